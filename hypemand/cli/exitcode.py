# SPDX-License-Identifier: Apache-2.0
"""Exit statuses of hypemanctl: one table, for the program, its help and its man page."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What a script can tell apart."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    NOT_RUNNING = 3
    NOT_FOUND = 4
    WRONG_STATE = 5
    TIMED_OUT = 6
    UNREACHABLE = 7
    INVALID = 8
    HOST_REFUSES = 9
    OWN_FAILURE = 125
    INTERRUPTED = 130
    BROKEN_PIPE = 141


MEANINGS = {
    ExitCode.OK: "done",
    ExitCode.FAILURE: "failed; the message says why",
    ExitCode.USAGE: "the command line is wrong",
    ExitCode.NOT_RUNNING: "status: a VM is not Running",
    ExitCode.NOT_FOUND: "no such VM or image, or more than one fits",
    ExitCode.WRONG_STATE: "the state does not allow it, the name is taken, or it is in use",
    ExitCode.TIMED_OUT: "a deadline passed",
    ExitCode.UNREACHABLE: "hypemand cannot be reached or does not answer, or it stops meanwhile",
    ExitCode.INVALID: "a definition, configuration, image or value is invalid",
    ExitCode.HOST_REFUSES: "the host has not the resources, or lacks a part",
    ExitCode.OWN_FAILURE: "run, exec, shell: there is no status of the program",
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
    """The table as it stands at the end of every --help."""
    lines = [f"  {int(code):>3}  {text}" for code, text in MEANINGS.items()]
    return "\n".join(["exit status:", *lines])
