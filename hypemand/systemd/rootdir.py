# SPDX-License-Identifier: Apache-2.0
"""The root directory of a VMM: /usr, and its own files.

A folder with mount points, the same for all VMs. systemd mounts into it, for each VM in a mount namespace of
its own. Less is visible than with ProtectSystem=, ProtectHome= and their like on the host's root, and it is
set up in a quarter of the time. For each mount that is read only, and for each path that is to be hidden,
systemd reads all of /proc/self/mountinfo, which has the host's mounts too, two or three times: so there are
few of both.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hypemand.atomic import replace_file, write_all
from hypemand.config.definition import MAX_VOLUMES
from hypemand.systemd.sandbox import Property

_USR = Path("/usr")
_LINKER_CACHE = Path("/etc/ld.so.cache")
_FOLDERS = ("usr", "dev", "proc", "sys", "etc", "run", "tmp")
_LINKS = ("bin", "sbin", "lib", "lib64")


@dataclass(frozen=True, slots=True)
class Own:
    """Where a VMM finds what is its own, in its root: the same places for every VM, below `base`.

    The folder is there on the host too, with nothing in its files: systemd mounts for the unit's other
    commands as well, which do not run in the root, and would make on the host what it does not find.
    """

    base: Path

    @property
    def runtime(self) -> Path:
        """The VM's runtime folder."""
        return self.base / "vm"

    @property
    def disk(self) -> Path:
        """The VM's disk."""
        return self.base / "disk"

    @property
    def image(self) -> Path:
        """The image."""
        return self.base / "image"

    @property
    def kernel(self) -> Path:
        """The guest kernel."""
        return self.base / "kernel"

    @property
    def initrd(self) -> Path:
        """The guest's initrd."""
        return self.base / "initrd"

    @property
    def headers(self) -> Path:
        """The disk with the guest kernel's headers."""
        return self.base / "headers"

    @property
    def memory(self) -> Path:
        """The guest's memory, of a VM that was saved."""
        return self.base / "memory"

    @property
    def saved(self) -> Path:
        """The state of its devices."""
        return self.base / "state"

    @property
    def tap(self) -> Path:
        """The network service's socket for its TAP device."""
        return self.base / "tap.sock"

    @property
    def journal(self) -> Path:
        """journald's socket, for the VM's console."""
        return self.base / "journal.sock"

    def volume(self, number: int) -> Path:
        """A volume, counted from 0 to MAX_VOLUMES - 1."""
        return self.base / f"volume{number}"

    def make(self, root: Path) -> None:
        """Make the mount points in a root, or those that are missing."""
        (root / self.runtime.relative_to("/")).mkdir(mode=0o755, parents=True, exist_ok=True)
        volumes = (self.volume(number) for number in range(MAX_VOLUMES))
        shared = (self.image, self.kernel, self.initrd, self.headers, self.memory, self.saved)
        for path in (self.disk, *shared, self.tap, self.journal, *volumes):
            (root / path.relative_to("/")).touch(mode=0o444)


def make_root(root: Path, own: Own) -> None:
    """Make the root of VMMs, or complete it, and the mount points on the host."""
    for name in _FOLDERS:
        (root / name).mkdir(mode=0o755, parents=True, exist_ok=True)
    copy_linker_cache(root)
    for name in _LINKS:
        with contextlib.suppress(FileExistsError):
            (root / name).symlink_to(f"usr/{name}")
    for place in (root, Path("/")):
        own.make(place)


def copy_linker_cache(root: Path, source: Path = _LINKER_CACHE) -> None:
    """Give the root the host's list of libraries (ldconfig(8)), anew if the host has another one.

    A copy takes no mount. Where it is out of date, since systemd has started a VM alone after an upgrade, a
    library that is not where the list says is looked for in the usual folders (ld.so(8)).
    """
    copy = root / "etc" / source.name
    try:
        there = source.stat()
    except FileNotFoundError:
        copy.unlink(missing_ok=True)
        return
    with contextlib.suppress(FileNotFoundError):
        known = copy.stat()
        if (known.st_mtime_ns, known.st_size) == (there.st_mtime_ns, there.st_size):
            return
    with replace_file(copy, mode=0o444) as fd:
        write_all(fd, source.read_bytes())
        os.utime(fd, ns=(there.st_atime_ns, there.st_mtime_ns))


def is_in_usr(path: Path) -> bool:
    """Does a VMM see this file of the host without its being bound: below /usr, by no link, and on the mount
    that /usr is part of? Only that one is in the root. False where this is not known."""
    try:
        return path.is_relative_to(_USR) and path == path.resolve() and _read_mount(path) == _read_mount(_USR)
    except OSError:
        return False


def _read_mount(path: Path) -> str:
    """The id of the mount that a path is on (proc(5), fdinfo)."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    finally:
        os.close(fd)
    return next(line for line in lines if line.startswith("mnt_id:"))


def root_properties(
    root: Path,
    *,
    readable: Iterable[tuple[Path, Path]],
    writable: Sequence[tuple[Path, Path]],
    volumes: Sequence[tuple[Path, Path]] = (),
    passing: Sequence[tuple[Path, Path]] = (),
) -> list[Property]:
    """Properties of a unit whose main process runs in `root`. Of each pair the first is the path on the host,
    the second the one that the process sees. `volumes` are written to like `writable`, and are not named to
    systemd again: a file that is bound stays writable, and one mount less for each is quicker. What of
    `passing` is not there is left out: who connects to a socket can say so, and systemd could not; and a
    saved VM is there for one start."""
    read = [(str(path), str(inside), False, 0) for path, inside in ((_USR, _USR), *readable)]
    return [
        ("RootDirectory", "s", str(root)),
        # ExecStop= and ExecStopPost= see the host
        ("RootDirectoryStartOnly", "b", True),
        ("BindReadOnlyPaths", "a(ssbt)", read),
        # it would get the host's: /sys with all that is mounted there, and memory that all share
        ("InaccessiblePaths", "as", ["+/sys", "+/dev/shm"]),
        (
            "BindPaths",
            "a(ssbt)",
            [
                *((str(host), str(inside), False, 0) for host, inside in (*writable, *volumes)),
                *((str(host), str(inside), True, 0) for host, inside in passing),
            ],
        ),
        # + : as the process sees them
        ("ReadWritePaths", "as", [f"+{inside}" for _host, inside in writable]),
    ]


def outside_usr(paths: Iterable[Path]) -> list[tuple[Path, Path]]:
    """What of `paths` must be bound to be seen at its own place."""
    return [(path, path) for path in paths if not path.is_relative_to(_USR)]
