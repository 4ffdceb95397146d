# SPDX-License-Identifier: Apache-2.0
"""Journal entries of the daemon: structured, and shown beside the VM's own lines.

OBJECT_SYSTEMD_UNIT= makes ``journalctl -u`` and ``systemctl status`` of the VM's unit show them too.
The message ids have texts in the catalog, units/hypemand.catalog.
"""

from __future__ import annotations

import logging
import sys
from enum import StrEnum

from systemd import journal

from hypemand.model.state import State
from hypemand.unitnames import unit_name

_log = logging.getLogger(__name__)
_LEVELS = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class MessageId(StrEnum):
    """One id for each kind of entry; the catalog has the same."""

    STATE_CHANGED = "5ed3ba3c6a6a43c1b1ee4b4a5b1f7d01"
    START_FAILED = "5ed3ba3c6a6a43c1b1ee4b4a5b1f7d02"
    DEFINITION_BROKEN = "5ed3ba3c6a6a43c1b1ee4b4a5b1f7d03"
    NEEDS_RESTART = "5ed3ba3c6a6a43c1b1ee4b4a5b1f7d04"
    TAMPERED = "5ed3ba3c6a6a43c1b1ee4b4a5b1f7d05"
    EXPIRED = "5ed3ba3c6a6a43c1b1ee4b4a5b1f7d06"
    RENAMED = "5ed3ba3c6a6a43c1b1ee4b4a5b1f7d07"
    NOT_RESTORABLE = "5ed3ba3c6a6a43c1b1ee4b4a5b1f7d08"
    SNAPSHOT_DELETED = "5ed3ba3c6a6a43c1b1ee4b4a5b1f7d09"
    SCHEDULE_FAILED = "5ed3ba3c6a6a43c1b1ee4b4a5b1f7d0a"


def log_vm(
    level: int, message: str, vm: str, vm_id: str, message_id: MessageId | None = None, **fields: str
) -> None:
    """An entry about a VM, with the fields by which it is found again."""
    about = {
        "HYPEMAN_VM": vm,
        "HYPEMAN_VM_ID": vm_id,
        "OBJECT_SYSTEMD_UNIT": unit_name(vm),
        "SYSLOG_IDENTIFIER": "hypemand",
        "PRIORITY": str(_LEVELS[level]),
    }
    # where python3-systemd has to find out by itself who calls, it reads the source from the disk
    caller = sys._getframe(1)
    code = {"CODE_FILE": caller.f_code.co_filename, "CODE_FUNC": caller.f_code.co_name}
    try:
        journal.send(
            message,
            MESSAGE_ID=message_id and message_id.value,
            CODE_LINE=caller.f_lineno,
            **code,
            **about,
            **fields,
        )
    except OSError as error:
        _log.log(level, "%s (%s)", message, error.strerror)


def log_state_change(
    vm: str, vm_id: str, old: State, new: State, text: str, error: str | None, **fields: str
) -> None:
    """A VM's state has changed, or a run of it has ended. `text` is the new state with its detail."""
    level = logging.WARNING if error else logging.INFO
    log_vm(
        level,
        f"VM {vm}: {old} -> {text}",
        vm,
        vm_id,
        MessageId.STATE_CHANGED,
        HYPEMAN_OLD_STATE=old.value,
        HYPEMAN_NEW_STATE=new.value,
        HYPEMAN_STATE_TEXT=text,
        **fields,
    )
