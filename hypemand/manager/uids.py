# SPDX-License-Identifier: Apache-2.0
"""A uid of its own for each VM, which it keeps.

They come from systemd's dynamic range: journald keeps the lines of those in the system's journal, where any
other uid would get a journal file for itself. Records in /run/userdb make the uids known by name
(nss-systemd), so that systemd itself hands out none of them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import pwd
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from hypemand.errors import InsufficientResources

_log = logging.getLogger(__name__)
USERDB = Path("/run/userdb")
_DYNAMIC_LOCKS = Path("/run/systemd/dynamic-uid")
_USER_FILE = re.compile(r"hypeman-([0-9]{1,10})\.(?:user|group)")


class Uids:
    """The uids from the first to the last of `uid_range`, and their names in `userdb`. Its methods block, and
    may be called in threads."""

    def __init__(self, uid_range: tuple[int, int], userdb: Path) -> None:
        self._first, self._last = uid_range
        self._userdb = userdb
        # known by name as a VM's, and in no record that could be read
        self._lost: set[int] = set()
        # of removed VMs of whose files some are left
        self._held: set[int] = set()

    def read(self, used: Iterable[int]) -> None:
        """Learn which uids are known by name and are none of those that are in use."""
        found: set[int] = set()
        with contextlib.suppress(OSError):
            matches = (_USER_FILE.fullmatch(path.name) for path in self._userdb.iterdir())
            found = {int(match[1]) for match in matches if match is not None}
        self._lost = found - set(used)

    @property
    def lost(self) -> list[int]:
        """Those of VMs that are not known any more, and of which nothing but a unit may be left."""
        return sorted(self._lost)

    def free_lost(self, uid: int) -> None:
        """Release one of `lost`."""
        self.unpublish(uid)
        self._lost.discard(uid)

    def hold(self, uids: Iterable[int]) -> None:
        """Let nobody get these: files of theirs are left."""
        self._held |= set(uids)

    def release(self, uids: Iterable[int]) -> None:
        """Nothing of theirs is left."""
        self._held -= set(uids)

    def choose(self, used: Iterable[int]) -> int:
        """One that nobody has. Asks the host's user database (NSS), which may take long.
        InsufficientResources."""
        taken = set(used) | self._held.copy() | self._lost.copy()
        for uid in range(self._last, self._first - 1, -1):
            if uid not in taken and not (_DYNAMIC_LOCKS / str(uid)).exists() and not _is_known(uid):
                return uid
        raise InsufficientResources(
            f"all uids from {self._first} to {self._last} are in use, one for each VM",
            hint="remove VMs that are not needed, or widen uid_range in /etc/hypemand/hypemand.yaml",
        )

    def publish(self, uid: int, vm: str) -> None:
        """Drop-in user and group records (nss-systemd(8)): the uid has a name, and so an owner. What fails is
        logged."""
        user, by_uid, group, by_gid = self._files(uid)
        common = {"disposition": "dynamic", "service": "hypemand"}
        try:
            self._userdb.mkdir(mode=0o755, exist_ok=True)
            about = {"userName": user.stem, "uid": uid, "gid": uid, "realName": f"Micro VM {vm}"}
            nowhere = {"homeDirectory": "/", "shell": "/usr/sbin/nologin", "locked": True}
            user.write_text(json.dumps(about | nowhere | common))
            group.write_text(json.dumps({"groupName": user.stem, "gid": uid} | common))
            for link, target in ((by_uid, user), (by_gid, group)):
                with contextlib.suppress(FileExistsError):
                    link.symlink_to(target.name)
        except OSError as error:
            _log.warning("cannot register a name for uid %d of VM %s: %s", uid, vm, error)

    def unpublish(self, uid: int) -> None:
        """Take its name away: those files last by which `read` would find it again. OSError."""
        for path in sorted(self._files(uid)):
            path.unlink(missing_ok=True)

    def _files(self, uid: int) -> tuple[Path, ...]:
        user = f"hypeman-{uid}"
        names = (f"{user}.user", f"{uid}.user", f"{user}.group", f"{uid}.group")
        return tuple(self._userdb / name for name in names)


def find_owners(folder: Path) -> Iterator[int]:
    """The uids that own something in a folder, as far as that can be read."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            yield path.lstat().st_uid


def _is_known(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True
