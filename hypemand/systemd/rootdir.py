# SPDX-License-Identifier: Apache-2.0
"""The root that a VMM sees: /usr, and of everything else only what is its own.

A folder with mount points, the same for all VMs. systemd mounts into it, for each VM in a mount namespace of
its own. Less is visible than with ProtectSystem=, ProtectHome= and their like on the host's root, and it is
set up in half the time, since there are few mounts to protect one by one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hypemand.config.definition import MAX_VOLUMES
from hypemand.systemd.sandbox import Property

_USR = Path("/usr")
_FOLDERS = ("usr", "dev", "proc", "etc", "run", "tmp")
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

    def volume(self, number: int) -> Path:
        """A volume, counted from 0 to MAX_VOLUMES - 1."""
        return self.base / f"volume{number}"

    def make(self, root: Path) -> None:
        """Make the mount points in a root, or those that are missing."""
        (root / self.runtime.relative_to("/")).mkdir(mode=0o755, parents=True, exist_ok=True)
        volumes = (self.volume(number) for number in range(MAX_VOLUMES))
        for path in (self.disk, self.image, self.kernel, self.initrd, self.headers, *volumes):
            (root / path.relative_to("/")).touch(mode=0o444)


def make_root(root: Path, own: Own) -> None:
    """Make the root of VMMs, or complete it, and the mount points on the host."""
    for name in _FOLDERS:
        (root / name).mkdir(mode=0o755, parents=True, exist_ok=True)
    (root / "etc/ld.so.cache").touch(mode=0o444)
    for name in _LINKS:
        with contextlib.suppress(FileExistsError):
            (root / name).symlink_to(f"usr/{name}")
    for place in (root, Path("/")):
        own.make(place)


def root_properties(
    root: Path,
    *,
    readable: Iterable[tuple[Path, Path]],
    writable: Sequence[tuple[Path, Path]],
    volumes: Sequence[tuple[Path, Path]] = (),
) -> list[Property]:
    """Properties of a unit whose main process runs in `root`. Of each pair the first is the path on the host,
    the second the one that the process sees. `volumes` are written to like `writable`, and are not named to
    systemd again: a file that is bound stays writable, and one mount less for each is quicker."""
    read = [(str(_USR), str(_USR), False, 0), ("/etc/ld.so.cache", "/etc/ld.so.cache", True, 0)]
    read += [(str(host), str(inside), False, 0) for host, inside in readable]
    return [
        ("RootDirectory", "s", str(root)),
        # ExecStop= and ExecStopPost= see the host
        ("RootDirectoryStartOnly", "b", True),
        ("BindReadOnlyPaths", "a(ssbt)", read),
        (
            "BindPaths",
            "a(ssbt)",
            [(str(host), str(inside), False, 0) for host, inside in (*writable, *volumes)],
        ),
        # + : as the process sees them
        ("ReadWritePaths", "as", [f"+{inside}" for _host, inside in writable]),
    ]


def outside_usr(paths: Iterable[Path]) -> list[tuple[Path, Path]]:
    """What of `paths` must be bound to be seen at its own place."""
    return [(path, path) for path in paths if not path.is_relative_to(_USR)]
