# SPDX-License-Identifier: Apache-2.0
"""Free space of file systems, and for an image that is being created, whose size is not known before.

A layer of a megabyte may unpack to a terabyte. So free space is checked repeatedly, and the import is
ended before it uses what the host reserves for itself (disk.reserve).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hypemand.config.sizes import format_size
from hypemand.errors import HypemandError, InsufficientResources
from hypemand.model.space import Room

_MIB = 1024 * 1024
# what is written in that time comes out of the reserve
_LOOK = 0.05
_TELL_AGAIN = 1.0
_FEW_FILES = 1024
_HINT = (
    "free space: hypemanctl image prune, hypemanctl df; or lower disk.reserve in /etc/hypemand/hypemand.yaml"
)


def read_room(folder: Path) -> Room:
    """What the file system of a folder has. OSError."""
    about = os.statvfs(folder)
    return Room(folder, about.f_blocks * about.f_frsize, about.f_bavail * about.f_frsize)


class RoomWatch:
    """Looks at the file system of `folder` while `what` is made there. `stop` ends the making, and is called
    again until that is so."""

    def __init__(self, what: str, folder: Path, reserve: int, stop: Callable[[], None]) -> None:
        self._what = what
        self._folder = folder
        self._reserve = reserve
        self._stop = stop
        self._free = self._look()[0]
        self._over = threading.Event()
        self._ended = threading.Event()

    def check(self) -> None:
        """Raise InsufficientResources if there is no room any more; for work in this process."""
        if self._is_short():
            self._over.set()
        if self._over.is_set():
            raise self._too_large()

    def need(self, size: int) -> None:
        """Raise InsufficientResources unless there is room for `size` bytes more."""
        free = self._look()[0]
        if size > max(free - self._reserve, 0):
            raise InsufficientResources(
                f"{self._what} needs at least {_shown(size)} of disk, and {self._folder} has {_shown(free)}"
                f" free, of which {_shown(self._reserve)} are kept",
                hint=_HINT,
            )

    def _look(self) -> tuple[int, bool]:
        """Bytes that are free, and are there few files that could be made?"""
        about = os.statvfs(self._folder)
        return about.f_bavail * about.f_frsize, about.f_files > 0 and about.f_favail < _FEW_FILES

    def _is_short(self) -> bool:
        free, few_files = self._look()
        return free < self._reserve or few_files

    def _too_large(self) -> InsufficientResources:
        return InsufficientResources(
            f"{self._what} needs more disk space than available: {self._folder} had"
            f" {_shown(self._free)} free, of which {_shown(self._reserve)} are kept; its files were removed",
            hint=_HINT,
        )

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch until the end of the block. What failed in it for the want of room has that as its error."""
        thread = threading.Thread(target=self._run, name="image room", daemon=True)
        thread.start()
        try:
            yield
        except Exception as error:
            if self._over.is_set() and not isinstance(error, InsufficientResources):
                raise self._too_large() from error
            raise
        finally:
            self._ended.set()
            thread.join()

    def _run(self) -> None:
        while not self._ended.wait(_TELL_AGAIN if self._over.is_set() else _LOOK):
            if self._over.is_set() or self._is_short():
                self._over.set()
                # what cannot be told to end now is told again
                with suppress(HypemandError):
                    self._stop()


def _shown(size: int) -> str:
    return format_size(size if size < 10 * _MIB else size // _MIB * _MIB)
