# SPDX-License-Identifier: Apache-2.0
"""What the VMM itself writes to the standard output and error that it shares with the guest's console."""

from __future__ import annotations

PROGRAM = b"qemu-system-"
"""How the lines begin that have the program's name before them (error-report in QEMU)."""

PREFIXES = (PROGRAM, b"qemu: ")
"""The same, and of messages on what it cannot go on with."""
