# SPDX-License-Identifier: Apache-2.0
"""The memory of what was saved, compressed by zstd(1) and unpacked again.

Each writes the other form of the file beside the one that counts, syncs it, and replaces the record, which
says which one counts (`saved`): that commits. Whatever ends it before leaves the form that was there; what is
left of the other is removed by the next daemon (`drop_other_form`).

What a guest has had in memory is hostile: it is read and written in a sandbox (storage/tools.py), which can
write no more than it is to.

All functions block.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from hypemand.errors import HypemandError
from hypemand.model.compression import Compression
from hypemand.run import CommandFailed, is_disk_full
from hypemand.storage.room import RoomWatch
from hypemand.storage.tools import Tools
from hypemand.vm.saved import (
    MEMORY,
    PACKED,
    FileMark,
    Packing,
    SavedRun,
    UnusableError,
    drop_other_form,
    measure_stored,
)

# for what has idle priority, and for bytes a second of what somebody waits for
_PACK_TIMEOUT = 24 * 3600.0
_LEAST_TIMEOUT, _SLOWEST = 60.0, 16 * 1024 * 1024
_BLOCK = 512


@dataclass(frozen=True, slots=True)
class Work:
    """With what it is done. `what`: in words, for errors; `user`: who the tool is; `reserve`: bytes that the
    host's disk keeps."""

    what: str
    tools: Tools
    user: int
    reserve: int


def pack_memory(folder: Path, saved: SavedRun, wanted: Compression, work: Work) -> SavedRun:
    """Write `memory.zst`, which counts when the record is stored that this gives. HypemandError: nothing of
    it is left."""
    source = folder / MEMORY
    about = source.stat()
    stored = about.st_blocks * _BLOCK
    argv = ["zstd", "-qc", "-T1", f"-{wanted.level}", f"--stream-size={about.st_size}"]
    with _filtering(folder, saved, work) as through:
        try:
            limits = {"user": work.user, "size": stored, "timeout": _PACK_TIMEOUT}
            work.tools.filter(argv, through, idle=True, **limits)  # type: ignore[arg-type]
        except CommandFailed:
            if not _is_smaller(through[1], stored):
                raise _refuse_larger(work) from None
            raise
        if not _is_smaller(through[1], stored):
            raise _refuse_larger(work)
    packing = Packing(replace(wanted, delay=0.0), about.st_size, stored)
    return _take_form(folder, replace(saved, packing=packing))


def unpack_memory(folder: Path, saved: SavedRun, packing: Packing, work: Work) -> SavedRun:
    """The opposite. UnusableError for what is damaged, InsufficientResources; nothing of it is left then."""
    timeout = _LEAST_TIMEOUT + packing.size / _SLOWEST
    with _filtering(folder, saved, work) as through:
        try:
            work.tools.filter(
                ["zstd", "-dqc", "--sparse"], through, user=work.user, size=packing.size, timeout=timeout
            )
        except CommandFailed as error:
            work.tools.check()
            if is_disk_full(error):
                raise
            words = error.result.stderr.strip().splitlines()
            why = f": {words[-1]}" if words else ""
            raise UnusableError(f"its file {PACKED} cannot be unpacked{why}") from None
        if (size := os.fstat(through[1]).st_size) != packing.size:
            raise UnusableError(f"its file {PACKED} has {size} bytes of memory, not {packing.size}")
    return _take_form(folder, replace(saved, packing=None))


@contextmanager
def _filtering(folder: Path, saved: SavedRun, work: Work) -> Iterator[tuple[int, int]]:
    """Descriptors of the form that counts, and of the other one, which is new: on the disk when the block
    ends, and gone if it fails."""
    drop_other_form(folder, saved)
    room = RoomWatch(work.what, folder, work.reserve, work.tools.cancel)
    room.check()
    target = folder / (PACKED if saved.packing is None else MEMORY)
    reader = os.open(folder / saved.memory_name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        writer = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
        try:
            with room.watching():
                yield reader, writer
            os.fsync(writer)
        finally:
            os.close(writer)
    except BaseException:
        drop_other_form(folder, saved)
        raise
    finally:
        os.close(reader)


def _is_smaller(fd: int, stored: int) -> bool:
    return os.fstat(fd).st_size < stored


def _refuse_larger(work: Work) -> HypemandError:
    return HypemandError(f"{work.what} has not made it smaller", hint="it is left as it is")


def _take_form(folder: Path, saved: SavedRun) -> SavedRun:
    """With marks of the form that it has."""
    name = saved.memory_name
    return replace(saved, memory=FileMark.of(folder / name), stored=measure_stored(folder, name))
