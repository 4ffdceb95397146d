# SPDX-License-Identifier: Apache-2.0
"""Files and log lines of a guest as the API answers them. Times are RFC 3339 in UTC."""

from __future__ import annotations

from dataclasses import dataclass

from hypemand.model.files import FileKind


@dataclass(frozen=True, slots=True)
class PathInfo:
    """A file of a guest. All but `exists` has a meaning only where there is one; `mtime` None: in no
    calendar."""

    exists: bool
    error: str | None = None
    is_dir: bool = False
    is_file: bool = False
    is_symlink: bool = False
    link_target: str | None = None
    mode: int = 0
    size: int = 0
    # those above are the published client's
    kind: FileKind | str | None = None
    uid: int = 0
    gid: int = 0
    mtime: str | None = None


@dataclass(frozen=True, slots=True)
class LogEntry:
    """A line of a log with all that is known of it. `base64`: the line, where its text is not all of it."""

    time: str | None = None
    text: str = ""
    invocation_id: str | None = None
    base64: str | None = None
    partial: bool = False
    missing: int = 0


@dataclass(frozen=True, slots=True)
class ArchiveResult:
    """Bytes of all files that an archive has brought into a guest."""

    bytes_written: int
