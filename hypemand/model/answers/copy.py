# SPDX-License-Identifier: Apache-2.0
"""Text frames of a copy over a WebSocket, which the daemon sends; their keys are the published client's."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CopyHeader:
    """An entry. `path`: relative; `mtime`: seconds since the epoch."""

    path: str
    mode: int
    is_dir: bool
    is_symlink: bool
    link_target: str
    size: int
    mtime: int
    uid: int
    gid: int
    type: str = "header"


@dataclass(frozen=True, slots=True)
class CopyEnd:
    """The end of an entry; `final`: of the last one."""

    final: bool
    type: str = "end"


@dataclass(frozen=True, slots=True)
class CopyResult:
    """The end of a copy to the guest."""

    bytes_written: int
    success: bool = True
    type: str = "result"


@dataclass(frozen=True, slots=True)
class CopyError:
    """A copy that failed."""

    message: str
    type: str = "error"
