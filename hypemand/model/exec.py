# SPDX-License-Identifier: Apache-2.0
"""Commands in a guest."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from hypemand.model.vm import ExitReport


@dataclass(frozen=True, slots=True)
class ExecRequest:
    """A command for the guest. `argv` is not empty; times in seconds, None: no limit.
    `settings`: as in GuestConfig."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str | None
    user: str | None
    timeout: float | None
    umask: int | None = None
    tty: bool = False  # stdout and stderr are one then: everything comes as ExecStream.STDOUT
    rows: int = 24
    cols: int = 80
    settings: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class AttachRequest:
    """To be attached to the program of a VM. `stdin`: input goes to it; `replay`: what it has written last
    comes first. `rows` and `cols`: of the terminal that it has from now on; None: as it is."""

    stdin: bool = False
    replay: bool = False
    rows: int | None = None
    cols: int | None = None


class ExecStream(StrEnum):
    """Which output bytes came on."""

    STDOUT = "stdout"
    STDERR = "stderr"


class ExecSession(Protocol):
    """A command that runs in a guest. Leaving it unread stops only its own output (flow control)."""

    async def write(self, data: bytes) -> None:
        """Send to its standard input; returns when there is credit for more."""

    async def write_eof(self) -> None:
        """Close its standard input."""

    async def signal(self, number: int) -> None:
        """Send a signal to its process group."""

    async def resize(self, rows: int, cols: int) -> None:
        """Tell its terminal the new size; nothing without one."""

    def output(self) -> AsyncIterator[tuple[ExecStream, bytes]]:
        """Its output until both streams have ended. Raises GuestError when the channel breaks."""

    async def wait(self) -> ExitReport:
        """Its exit, after all output has been read."""

    async def close(self) -> None:
        """Lose interest: what still runs is killed, group and all. May be called at any time."""


class AttachSession(ExecSession, Protocol):
    """The program of a VM, which goes on when the session is closed. `tty`: it has a terminal; `stdin`: it
    gets the input."""

    @property
    def tty(self) -> bool:
        """Has it a terminal?"""

    @property
    def stdin(self) -> bool:
        """Does it get the input?"""
