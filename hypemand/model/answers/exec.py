# SPDX-License-Identifier: Apache-2.0
"""Text frames of exec and attach: the first and those with control of the client, the first of the daemon for
attach, and its last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ExecCommand:
    """The first frame. None: the default; `timeout` in seconds. `streams`: output frames begin with a byte
    that names the stream, and the last frame has a message. `rows` and `cols` need `tty`."""

    command: tuple[str, ...]
    env: Mapping[str, str] | None = None
    cwd: str | None = None
    user: str | None = None
    umask: int | None = None
    timeout: float | None = None
    wait_for_agent: float | None = None
    tty: bool | None = None
    rows: int | None = None
    cols: int | None = None
    streams: bool | None = None


@dataclass(frozen=True, slots=True)
class AttachCommand:
    """The first frame of attach. `rows` and `cols`: of a terminal, if the program has one."""

    stdin: bool = False
    replay: bool = False
    rows: int | None = None
    cols: int | None = None


@dataclass(frozen=True, slots=True)
class AttachStarted:
    """What the program has: a terminal, and this client's input."""

    tty: bool
    stdin: bool


@dataclass(frozen=True, slots=True)
class ExecEof:
    """The end of standard input."""

    eof: bool = True


@dataclass(frozen=True, slots=True)
class ExecSignal:
    """A signal for the process group of the command."""

    signal: int


@dataclass(frozen=True, slots=True)
class TerminalSize:
    """Lines and columns of a terminal."""

    rows: int
    cols: int


@dataclass(frozen=True, slots=True)
class ExecResize:
    """The new size of the terminal."""

    resize: TerminalSize


@dataclass(frozen=True, slots=True)
class ExecExit:
    """The exit status of the command, with a message for those who asked for streams."""

    exitCode: int  # noqa: N815 - the published client's word
    message: str | None = None
