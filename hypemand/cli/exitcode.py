# SPDX-License-Identifier: Apache-2.0
"""Exit statuses of hypemanctl: one table, for the program, its help and its man page.

systemd shows an exit status by name where the LSB or the BSDs have named it: an ExecStart= that ends with 4
is logged as `status=4/NOPERMISSION`. So hypemanctl uses none of those with another meaning (systemd.exec(5),
"Process Exit Codes"). 2 is INVALIDARGUMENT there, and 3 what systemctl(1) returns for `status` of a unit that
is not active.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit statuses of hypemanctl."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    NOT_RUNNING = 3
    INVALID = 8
    HOST_REFUSES = 9
    NOT_FOUND = 10
    WRONG_STATE = 11
    TIMED_OUT = 12
    UNREACHABLE = 13
    OWN_FAILURE = 125
    INTERRUPTED = 130
    BROKEN_PIPE = 141


# Exit statuses of a program that are not its own words: not started, not found, ended by a signal.
FIRST_SPOKEN_CODE = 125

MEANINGS = {
    ExitCode.OK: "success",
    ExitCode.FAILURE: "failure; see the message",
    ExitCode.USAGE: "invalid command line",
    ExitCode.NOT_RUNNING: "status: a VM is not Running",
    ExitCode.INVALID: "invalid definition, configuration, image or value",
    ExitCode.HOST_REFUSES: "not enough resources, or a component is missing on the host",
    ExitCode.NOT_FOUND: "no such VM or image, or the reference is ambiguous",
    ExitCode.WRONG_STATE: "not possible in this state, the name exists, or in use",
    ExitCode.TIMED_OUT: "timed out",
    ExitCode.UNREACHABLE: "hypemand is not reachable, does not answer, or is stopping",
    ExitCode.OWN_FAILURE: "run, attach, exec, shell: exit status of the program not available; diff: failure",
    ExitCode.INTERRUPTED: "interrupted",
}

_BY_CODE = {
    "not_found": ExitCode.NOT_FOUND,
    "ambiguous": ExitCode.NOT_FOUND,
    "invalid_state": ExitCode.WRONG_STATE,
    "already_exists": ExitCode.WRONG_STATE,
    "name_conflict": ExitCode.WRONG_STATE,
    "in_use": ExitCode.WRONG_STATE,
    "timed_out": ExitCode.TIMED_OUT,
    "unreachable": ExitCode.UNREACHABLE,
    "stopping": ExitCode.UNREACHABLE,
    "insufficient_resources": ExitCode.HOST_REFUSES,
    "host_not_ready": ExitCode.HOST_REFUSES,
    "image_not_ready": ExitCode.INVALID,
}


def derive_exit_code(error_code: str) -> ExitCode:
    """The exit status for an error's `code`. A code that is not known is a plain failure."""
    if error_code in _BY_CODE:
        return _BY_CODE[error_code]
    if error_code.startswith("invalid_"):
        return ExitCode.INVALID
    return ExitCode.NOT_FOUND if error_code.endswith("_not_found") else ExitCode.FAILURE


def format_exit_codes() -> str:
    """The table at the end of every --help."""
    lines = [f"  {int(code):>3}  {text}" for code, text in MEANINGS.items()]
    return "\n".join(["exit status:", *lines])
