# SPDX-License-Identifier: Apache-2.0
"""Host agent that makes a micro VM a systemd service."""
