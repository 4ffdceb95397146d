# SPDX-License-Identifier: Apache-2.0
"""Definition files that are others than those that were loaded: systemd's NeedDaemonReload= of unit files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, replace
from pathlib import Path

from hypemand.config.source import MAX_BYTES
from hypemand.config.vmfile import SUFFIXES, list_definition_files
from hypemand.recordfile import read_regular


@dataclass(frozen=True, slots=True)
class _Mark:
    """A file as it was. `signature` None: it could not be inspected; `digest` None: nor read."""

    path: Path
    signature: tuple[int, ...] | None
    digest: bytes | None


class DefinitionFiles:
    """Those of a directory, by the VM that they define. `note` and `find_changed` block."""

    def __init__(self) -> None:
        self._marks: Mapping[str, _Mark] | None = None
        self._before: Mapping[str, _Mark] = {}

    def note(self, folder: Path) -> None:
        """They are about to be loaded as they are."""
        self._before = self._marks or {}
        self._marks = {name: _mark(path) for name, path in _list(folder).items()}

    def reject(self, names: Iterable[str]) -> None:
        """The files of these VMs were not taken: what was loaded is what they were before `note`."""
        marks = dict(self._marks or {})
        for name in marks.keys() & set(names):
            before = self._before.get(name, _Mark(marks[name].path, None, None))
            marks[name] = replace(before, path=marks[name].path)
        self._marks = marks

    def find(self, name: str) -> str | None:
        """The path of the file that a VM was loaded from."""
        mark = None if self._marks is None else self._marks.get(name)
        return None if mark is None else str(mark.path)

    def name_file(self, folder: Path, name: str) -> Path:
        """The file that a VM is defined in, or would be where nothing was loaded."""
        return Path(self.find(name) or folder / f"{name}{SUFFIXES[0]}")

    def find_changed(self, folder: Path) -> Set[str]:
        """The VMs whose file has been changed or removed since it was loaded, by its content: one that was
        only touched has not. Empty before anything was loaded, and where the directory cannot be read."""
        if self._marks is None:
            return frozenset()
        try:
            found = _list(folder)
        except OSError:
            return frozenset()
        marks = dict(self._marks)
        changed = set()
        for name, mark in marks.items():
            path = found.get(name)
            if path is None or not _is_same(path, mark):
                changed.add(name)
        return changed


def _list(folder: Path) -> dict[str, Path]:
    return {name.vm: file for name, file in list_definition_files(folder) if not name.is_template}


def _mark(path: Path) -> _Mark:
    return _Mark(path, _sign(path), _digest(path))


def _is_same(path: Path, mark: _Mark) -> bool:
    if mark.signature is not None and _sign(path) == mark.signature:
        return True
    return mark.digest is not None and _digest(path) == mark.digest


def _sign(path: Path) -> tuple[int, ...] | None:
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns


def _digest(path: Path) -> bytes | None:
    try:
        return hashlib.sha256(read_regular(path, MAX_BYTES)).digest()
    except OSError:
        return None
