# SPDX-License-Identifier: Apache-2.0
"""Templates of VMs: what warm starts go on from. The files, and for which VMs each is.

A folder for each shape, which is named after all that a guest may have seen before it has read what it is:
QEMU's build, kernel, initrd, and the command line of a template (vmm/template.py). In it are `memory` and
`state`, as of a saved VM (`saved`), which all VMs that go on from it share and none may write to, and
`template.json`, written last.

All functions block but those of `Shape`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hypemand.atomic import make_folder, sync_folder
from hypemand.model.templates import TemplateKind, TemplateView
from hypemand.recordfile import BadRecord, load_record, read_regular, store_record
from hypemand.vm.saved import MAX_STATE, MEMORY, STATE, FileMark, measure_stored
from hypemand.vmm.build import VmmBuild

_log = logging.getLogger(__name__)
RECORD = "template.json"
TEMPLATES = Path("templates/warm")
"""In the folder of what lasts of all."""
VERSION = 2
_MAKING = ".making"
_KEY_DIGITS = 32


@dataclass(frozen=True, slots=True)
class Shape:
    """VMs that can go on from the same template. `line`: what it is started with; `files`: QEMU, kernel and
    initrd, as they are on the host; `host_kernel`: its release, on which depends what a TAP device can do."""

    build: VmmBuild
    line: tuple[str, ...]
    files: tuple[FileMark, ...]
    host_kernel: str

    @property
    def key(self) -> str:
        """Its name: hex digits."""
        marks = [asdict(mark) for mark in self.files]
        facts = [VERSION, self.build.to_json(), self.line, marks, self.host_kernel]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:_KEY_DIGITS]


@dataclass(frozen=True, slots=True)
class Template:
    """One that is there. `memory`: its file; `crc`: CRC-32 of the other; `made_at`: in seconds since the
    epoch; `stored`: bytes that both take on the disk."""

    folder: Path
    kind: TemplateKind
    files: tuple[FileMark, ...]
    memory: FileMark
    crc: int
    made_at: float
    stored: int

    @property
    def key(self) -> str:
        """Of its shape."""
        return self.folder.name

    def is_outdated(self) -> bool:
        """Is QEMU, kernel or initrd another file by now, so that no VM has its shape any more?"""
        return any(mark.has_changed() for mark in self.files)

    def view(self, used_at: float) -> TemplateView:
        """As it is shown. Blocks."""
        return TemplateView(self.key, self.kind, self.stored, self.made_at, used_at, self.is_outdated())


class TemplateStore:
    """The templates below `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, shape: Shape) -> Template | None:
        """The template of a shape. What is damaged, and so what cannot be read, is removed."""
        folder = self._folder / shape.key
        try:
            template = _load(folder)
            whole = not template.memory.has_changed() and _read_crc(folder) == template.crc
        except FileNotFoundError:
            if not folder.exists():
                return None
            whole = False
        except (OSError, BadRecord):
            whole = False
        if not whole:
            _log.warning("the template %s for warm starts is damaged: it is removed", folder)
            self.remove(shape.key)
            return None
        # when it was used last
        with suppress(OSError):
            os.utime(folder / RECORD)
        return template

    def list(self) -> tuple[tuple[Template, float], ...]:
        """All that can be read, and when each was used last, the one last that was used first."""
        found = []
        for folder in self._folders():
            with suppress(OSError, BadRecord):
                found.append((_load(folder), (folder / RECORD).stat().st_mtime))
        return tuple(sorted(found, key=lambda pair: -pair[1]))

    def begin(self, shape: Shape) -> Path:
        """A folder to make a template in. OSError."""
        make_folder(self._folder, mode=0o700)
        folder = self._folder / f".{shape.key}{_MAKING}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        return folder

    def commit(self, shape: Shape, kind: TemplateKind, folder: Path, made_at: float) -> Template:
        """What was saved there is the template of that shape from now on. OSError."""
        for name in (MEMORY, STATE):
            os.chown(folder / name, 0, 0)
            (folder / name).chmod(0o444)
        template = Template(
            folder,
            kind,
            shape.files,
            FileMark.of(folder / MEMORY),
            _read_crc(folder),
            made_at,
            measure_stored(folder),
        )
        store_record(folder / RECORD, _to_json(template))
        shutil.rmtree(self._folder / shape.key, ignore_errors=True)
        folder.rename(self._folder / shape.key)
        sync_folder(self._folder)
        return _load(self._folder / shape.key)

    def remove(self, key: str) -> None:
        """Remove one. VMs that run from it go on: they have its files open."""
        shutil.rmtree(self._folder / key, ignore_errors=True)

    def prune(self, room: int) -> None:
        """Remove what was cut off, what no VM can use any more, and what was not used for the longest time,
        as long as all take more than `room` bytes."""
        for folder in self._folder.glob(f".*{_MAKING}") if self._folder.is_dir() else ():
            shutil.rmtree(folder, ignore_errors=True)
        known = [template for template, _ in self.list()]
        used = 0
        for template in known:
            used += template.stored
            if used > room or template.is_outdated():
                _log.info("the template %s for warm starts is removed", template.folder)
                used -= template.stored
                self.remove(template.key)
        keys = {template.key for template in known}
        for folder in self._folders():
            if folder.name not in keys:
                self.remove(folder.name)

    def _folders(self) -> Iterator[Path]:
        entries: Sequence[Path] = sorted(self._folder.iterdir()) if self._folder.is_dir() else ()
        yield from (entry for entry in entries if not entry.name.startswith("."))


def store_of(state: Path) -> TemplateStore:
    """The templates of the host on which that is the folder of what lasts of a VM."""
    return TemplateStore(state.parent.parent / TEMPLATES)


def _read_crc(folder: Path) -> int:
    return zlib.crc32(read_regular(folder / STATE, MAX_STATE))


def _to_json(template: Template) -> dict[str, Any]:
    return {
        "version": VERSION,
        "kind": asdict(template.kind),
        "files": [asdict(mark) for mark in template.files],
        "memory": asdict(template.memory),
        "crc": template.crc,
        "made_at": template.made_at,
        "stored": template.stored,
    }


def _load(folder: Path) -> Template:
    return load_record(folder / RECORD, partial(_parse, folder), versions=(VERSION,))


def _parse(folder: Path, document: Any) -> Template:
    return Template(
        folder=folder,
        kind=TemplateKind(**document["kind"]),
        files=tuple(FileMark(**mark) for mark in document["files"]),
        memory=FileMark(**{**document["memory"], "path": str(folder / MEMORY)}),
        crc=int(document["crc"]),
        made_at=float(document["made_at"]),
        stored=int(document["stored"]),
    )
