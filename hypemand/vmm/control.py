# SPDX-License-Identifier: Apache-2.0
"""Where a VMM takes orders, for those who give one without holding a conversation."""

from __future__ import annotations

CONTROL = "qmp"
"""The VMM's control socket is CONTROL.sock in the VM's runtime folder (launcher/ports.c). It serves one
client at a time: who comes meanwhile waits for its greeting."""

RESUME = b'{"execute": "qmp_capabilities"}\n{"execute": "cont"}\n'
"""What to send there, once it has greeted, so that a paused guest goes on. One that runs takes no notice."""
