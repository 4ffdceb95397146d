# SPDX-License-Identifier: Apache-2.0
"""The directory of a test host, and the removal of what hosts of killed test runs left.

A directory belongs to whoever holds the lock beside it. The kernel drops that lock when its holder ends,
so a directory whose lock can be taken belongs to nobody.
"""

import contextlib
import os
import secrets
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.host import cgroups
from tests.host.cache import CACHE, lock_file, try_lock

HOSTS = CACHE / "hosts"


@dataclass(frozen=True)
class HostDirectory:
    """The paths of one host, and the open descriptor of its lock."""

    path: Path
    lock: int

    @classmethod
    def make(cls, label: str) -> Self:
        """A new directory with a name of its own on this machine, whatever its PID namespace and its cache:
        all of them share the machine's control groups."""
        path = HOSTS / f"{label}-{secrets.token_hex(4)}"
        with lock_file(HOSTS / "lock"):
            lock = try_lock(path.with_suffix(".lock"))
            assert lock is not None, f"{path.name} has an owner"
            path.mkdir()
        return cls(path, lock)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def upper(self) -> Path:
        return self.path / "upper"

    @property
    def work(self) -> Path:
        return self.path / "work"

    @property
    def merged(self) -> Path:
        return self.path / "merged"

    @property
    def notify(self) -> Path:
        return self.path / "notify"

    @property
    def console(self) -> Path:
        return self.path / "console.log"

    def prepare_boot(self) -> None:
        for directory in (self.upper, self.work, self.merged):
            directory.mkdir(exist_ok=True)
        self.notify.unlink(missing_ok=True)

    def remove(self) -> None:
        if self.path.exists():
            shutil.rmtree(self.path)
        self.path.with_suffix(".lock").unlink(missing_ok=True)
        os.close(self.lock)


def remove_leftovers() -> list[str]:
    """Remove all hosts that no living process owns; gives back their names."""
    removed = []
    with lock_file(HOSTS / "lock"):
        for lock_path in HOSTS.glob("*.lock"):
            lock = try_lock(lock_path)
            if lock is not None:
                directory = HostDirectory(lock_path.with_suffix(""), lock)
                _kill_processes(directory.name)
                cgroups.remove_group(directory.name)
                directory.remove()
                removed.append(directory.name)
    return removed


def _kill_processes(name: str) -> None:
    for pid in cgroups.find_processes(name):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
