# SPDX-License-Identifier: Apache-2.0
"""Pools of volumes: the folder of volumes in the state folder, and others that the host config names.

Of a pool that this host alone has, the records are read once and kept: finding a volume costs a start
nothing. A pool that other hosts have is read at each use, since it may have changed; what others make there
is nothing for the start of this host's daemon to clean up.

A folder becomes a volume, and stops being one, by a rename. `.HEX.making` is being made and `.HEX.removed` is
being removed: these two, and a volume whose record says that it was not filled to its end, are all that is
ever deleted unasked, and none of them while a VMM has it open, or a daemon on any host works on it. Any other
folder without a record that can be read is reported and left: the record may be what is missing.

The functions block.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hypemand.atomic import make_folder
from hypemand.config.pools import PoolConfig
from hypemand.config.statedir import POOLS_DROPIN, explain_dropin
from hypemand.errors import HostNotReady, HypemandError, InUse
from hypemand.model.space import Room
from hypemand.storage.room import read_room
from hypemand.storage.volume import DISK, Volume, is_marked, load_volume
from hypemand.storage.volumelock import lock_file, lock_volume

_log = logging.getLogger(__name__)
FOLDER = "volumes"
"""The folder of volumes in the directory of a pool."""
# of fsck(8), at the root of every ext4; and what only one host may do at a time
_LOST_AND_FOUND, _LOCK = "lost+found", ".lock"
# seconds that others may take to make a volume
_PATIENCE = 30.0


class VolumePool:
    """The volumes of one folder. `name` "": those of the state folder. `directory`: that of the pool."""

    def __init__(
        self, name: str, folder: Path, directory: Path | None = None, *, shared: bool = False
    ) -> None:
        self.name, self.folder, self.shared = name, folder, shared
        self._directory = directory
        # replaced as a whole, or changed by one who has `changing`
        self.volumes: dict[str, Volume] = {}
        self.unreadable: dict[str, str] = {}
        self.problem = ""
        """Why none of its volumes is known; "" where they are."""
        self.room = Room(folder, 0, 0)
        """Of a pool of the host config: its free space when it was read last."""
        self.unfilled: list[Volume] = []
        self._marked: list[Path] = []
        self._changing = threading.RLock()

    @classmethod
    def from_config(cls, name: str, config: PoolConfig) -> VolumePool:
        """A pool of the host config."""
        return cls(name, config.directory / FOLDER, config.directory, shared=config.shared)

    @property
    def config(self) -> PoolConfig | None:
        """What the host config says of it; None for the state folder."""
        return None if self._directory is None else PoolConfig(self._directory, self.shared)

    def read(self) -> None:
        """Read all records. A folder that is no volume is reported and not changed. OSError when the folder
        of the state folder cannot be listed; of another pool `problem` says that."""
        with self._changing:
            if self._directory is None:
                self._read_all()
                return
            try:
                self._check(self._directory)
                self._read_all()
                self.room = read_room(self._directory)
                self.problem = ""
            except (OSError, HypemandError) as error:
                self.lose(str(error))

    def refresh(self) -> None:
        """Before a use: read a pool that others have too, and the free space of any."""
        if self.shared:
            self.read()
        elif self._directory is not None and not self.problem:
            with suppress(OSError):
                self.room = read_room(self._directory)

    def lose(self, why: str) -> None:
        """None of its volumes is known from now on, until it is read again."""
        if why != self.problem:
            _log.error("the pool %s is not available: %s", self.name, why)
        self.problem, self.volumes = why, {}

    def _check(self, directory: Path) -> None:
        """HostNotReady unless it is there, mounted if others have it too, and the daemon can write to it."""
        if not directory.is_dir():
            raise HostNotReady(f"{directory} does not exist", hint="create or mount it")
        if self.shared and directory.stat().st_dev == Path("/").stat().st_dev:
            raise HostNotReady(
                f"{directory} is on the root file system of this host, and not on one that hosts share",
                hint=f"mount it; systemctl status '{directory}' shows its mount unit",
            )
        if not os.access(directory, os.W_OK):
            raise HostNotReady(
                f"{directory} is read-only for hypemand.service",
                hint=explain_dropin(directory, POOLS_DROPIN, is_mount=self.shared),
            )

    def _read_all(self) -> None:
        make_folder(self.folder, mode=0o711)
        volumes: dict[str, Volume] = {}
        unreadable: dict[str, str] = {}
        marked = []
        for folder in sorted(self.folder.iterdir()):
            if folder.name in (_LOST_AND_FOUND, _LOCK):
                continue
            if is_marked(folder):
                marked.append(folder)
                continue
            try:
                volume = load_volume(folder, self.name)
            except (OSError, ValueError, HypemandError) as error:
                if self.shared and not os.path.lexists(folder):
                    continue  # it was removed meanwhile
                if unreadable.setdefault(folder.name, str(error)) != self.unreadable.get(folder.name):
                    _log.error("cannot read the volume in %s, which is not changed: %s", folder, error)
                continue
            volumes[volume.id] = volume
        self.volumes, self.unreadable, self._marked = volumes, unreadable, marked
        self.unfilled = [] if self.shared else [one for one in volumes.values() if not one.ready]

    def find(self, word: str) -> Volume | None:
        """By id, or by name without that of the pool."""
        volumes = self.volumes.copy()
        by_name = (volume for volume in volumes.values() if volume.name.rpartition("/")[2] == word)
        return volumes.get(word) or next(by_name, None)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Be the only one who makes a volume in it, on any host: with what others have made until then, and
        without what those have left that were cut off. HostNotReady, InUse."""
        if not self.shared:
            self._refuse_lost()
            with self._changing:
                yield
            return
        self.read()
        self._refuse_lost()
        waiting = lock_file(self.folder / _LOCK, f"the pool {self.name}", "changed", patience=_PATIENCE)
        with waiting, self._changing:
            self.read()
            self._refuse_lost()
            self.clean_up()
            yield

    def _refuse_lost(self) -> None:
        if self.problem:
            raise HostNotReady(f"the pool {self.name} is not available: {self.problem}")

    def new_mark(self, mark: str) -> Path:
        """The name of a folder that is to become a volume, or to be deleted."""
        return self.folder / f".{uuid.uuid4().hex}.{mark}"

    def clean_up(self) -> None:
        """Delete what was being made or removed when the pool was read, but what another daemon is still at.
        What fails is logged: the mark stays, and so the next try."""
        marked, self._marked = self._marked, []
        for folder in marked:
            try:
                with lock_volume(folder / DISK, "removed"):
                    _log.info("removing %s: a volume that was being made or removed", folder)
                    delete_marked(folder)
            except InUse:
                _log.info("leaving %s: it is being worked on", folder)
            except FileNotFoundError:
                continue
            except (OSError, HypemandError) as error:
                _log.warning("cannot remove %s: %s", folder, error)


def delete_marked(marked: Path) -> None:
    """Delete a folder that is marked for it. What fails is logged: the mark stays, and so the next try."""
    try:
        shutil.rmtree(marked)
    except FileNotFoundError:
        return
    except OSError as error:
        _log.warning("cannot delete all of %s: %s", marked, error)
