# SPDX-License-Identifier: Apache-2.0
"""What to do about what can no longer be restored, in the words of all who say so."""

from __future__ import annotations


def cure_standby(vm: str) -> str:
    """Of a VM in Standby."""
    return f"hypemanctl start --cold {vm} boots it anew, and gives up what was in its memory"


def cure_snapshot(snapshot: str) -> str:
    """Of a snapshot of kind Standby, by its id or name."""
    command = f"hypemanctl snapshot restore --state Stopped {snapshot}"
    return f"restore its disk alone: target_state Stopped ({command})"


def cure_orphan(snapshot: str) -> str:
    """Of one whose VM was removed."""
    return f"hypemanctl snapshot fork --state Standby {snapshot} NEW, then hypemanctl start --cold NEW"
