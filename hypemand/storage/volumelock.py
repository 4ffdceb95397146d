# SPDX-License-Identifier: Apache-2.0
"""The lock file of a volume, `volume.lock` beside its disk: work on volumes is one at a time, on all hosts
that have the folder.

Who makes, resizes, removes or replays a volume, or gives it to a VM, has a write lock on that file (fcntl(2),
F_OFD_SETLK), which a network file system has on its server, and which ends with the process. Whether a VMM
has the disk open is another matter, and QEMU's own locks on the disk say it (storage/locks.py). The file
holds who was given the volume last, for an error to name: nothing is decided by it.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from hypemand.config.names import is_name
from hypemand.config.specifiers import read_specifier_host
from hypemand.errors import InUse
from hypemand.recordfile import encode_record, parse_json, read_beginning
from hypemand.storage.ofdlocks import WHOLE, explain_no_locks, take_lock

_PAUSE = 0.05
_MOST_HOLDERS = 16
_MOST_BYTES = 64 * 1024
_MOST_NAME = 64


@dataclass(frozen=True, slots=True)
class Holder:
    """A VM that was given a volume. `boot`: the boot id of its host then."""

    host: str
    boot: str
    vm: str


class VolumeLock:
    """What `lock_volume` gives; `note` writes who was given the volume."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def note(self, vm: str, *, beside_others: bool) -> None:
        """The VM has the volume from now on: beside those that were noted before, or after them. OSError."""
        host = read_specifier_host()
        before = _parse(os.pread(self._fd, _MOST_BYTES, 0)) if beside_others else []
        own = Holder(host.name, host.boot_id, vm)
        holders = [*(one for one in before if one != own), own][-_MOST_HOLDERS:]
        data = encode_record({"holders": [asdict(holder) for holder in holders]})
        os.pwrite(self._fd, data, 0)
        os.ftruncate(self._fd, len(data))


def find_lock_file(disk: Path) -> Path:
    """That of the volume with this disk."""
    return disk.with_suffix(".lock")


@contextmanager
def lock_volume(disk: Path, what: str, *, patience: float = 0.0) -> Iterator[VolumeLock]:
    """Be the only one on any host that works on the volume, as "removed", waiting so many seconds for others.
    InUse; FileNotFoundError if its folder is not there, or not any more when others are done with it."""
    with lock_file(find_lock_file(disk), f"the volume in {disk.parent}", what, patience=patience) as fd:
        yield VolumeLock(fd)


@contextmanager
def lock_file(path: Path, thing: str, what: str, *, patience: float) -> Iterator[int]:
    """Have the lock of a file, which is made if it is missing, to write to it by the descriptor. As
    `lock_volume`."""
    end = time.monotonic() + patience
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        try:
            if _take(fd, path):
                if not _is_at(fd, path):
                    continue  # the one before has moved it away, or removed it
                yield fd
                return
        finally:
            os.close(fd)
        if time.monotonic() >= end:
            raise InUse(
                f"{thing} is being worked on, by this host or another that has it, and cannot be {what}"
                " meanwhile",
                hint="try again later",
            )
        time.sleep(_PAUSE)


def _take(fd: int, path: Path) -> bool:
    try:
        return take_lock(fd, fcntl.F_WRLCK, WHOLE)
    except OSError as error:
        raise explain_no_locks(f"cannot lock {path}", error) from error


def _is_at(fd: int, path: Path) -> bool:
    try:
        there = path.lstat()
    except FileNotFoundError:
        return False
    own = os.fstat(fd)
    return (there.st_dev, there.st_ino) == (own.st_dev, own.st_ino)


def describe_holders(disk: Path) -> str:
    """The VMs that the disk of a volume was given to last, in words; "" where that is not known."""
    try:
        holders = _parse(read_beginning(find_lock_file(disk), _MOST_BYTES))
    except OSError:
        return ""
    own = read_specifier_host()
    # what ran on this host before it was booted has ended
    holders = [one for one in holders if one.host != own.name or one.boot == own.boot_id]
    return ", ".join(f"VM {one.vm} on host {one.host} (boot {one.boot[:8]})" for one in holders)


def _parse(data: bytes) -> list[Holder]:
    """Those that are noted; nobody, where that is not whole. Other hosts write it, too."""
    try:
        found = [Holder(**one) for one in parse_json(data)["holders"][:_MOST_HOLDERS]]
        return [one for one in found if is_name(one.vm) and _is_word(one.host) and one.boot.isalnum()]
    except (ValueError, LookupError, TypeError, AttributeError):
        return []


def _is_word(text: str) -> bool:
    return 0 < len(text) <= _MOST_NAME and text.isascii() and text.isprintable() and " " not in text
