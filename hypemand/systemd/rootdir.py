# SPDX-License-Identifier: Apache-2.0
"""The root that a VMM sees: /usr, and of everything else only what is its own.

A folder with mount points, the same for all VMs. systemd mounts into it, for each VM in a mount namespace of
its own. Less is visible than with ProtectSystem=, ProtectHome= and their like on the host's root, and it is
set up in half the time, since there are few mounts to protect one by one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

from hypemand.systemd.sandbox import Property

# where a VMM finds what is its own
RUNTIME, CONFIG, DISK, IMAGE = Path("/vm"), Path("/vm/config.img"), Path("/disk"), Path("/image")
KERNEL, INITRD = Path("/kernel"), Path("/initrd")

_USR = Path("/usr")
_FOLDERS = ("usr", "dev", "proc", "etc", "run", "tmp", "vm")
_FILES = ("etc/ld.so.cache", "disk", "image", "kernel", "initrd")
_LINKS = ("bin", "sbin", "lib", "lib64")


def make_root(folder: Path) -> None:
    """Make the folder, or complete it."""
    for name in _FOLDERS:
        (folder / name).mkdir(mode=0o755, parents=True, exist_ok=True)
    for name in _FILES:
        (folder / name).touch(mode=0o444)
    for name in _LINKS:
        with contextlib.suppress(FileExistsError):
            (folder / name).symlink_to(f"usr/{name}")


def root_properties(
    root: Path, *, readable: Iterable[tuple[Path, Path]], writable: Iterable[tuple[Path, Path]]
) -> list[Property]:
    """Properties of a unit whose main process runs in `root`. Of each pair the first is the path on the host,
    the second the one that the process sees."""
    read = [(str(_USR), str(_USR), False, 0), ("/etc/ld.so.cache", "/etc/ld.so.cache", True, 0)]
    read += [(str(host), str(inside), False, 0) for host, inside in readable]
    return [
        ("RootDirectory", "s", str(root)),
        # ExecStop= and ExecStopPost= see the host
        ("RootDirectoryStartOnly", "b", True),
        ("BindReadOnlyPaths", "a(ssbt)", read),
        ("BindPaths", "a(ssbt)", [(str(host), str(inside), False, 0) for host, inside in writable]),
        # + : in the root; - : those two commands have no such paths
        ("ReadWritePaths", "as", [f"-+{inside}" for _host, inside in writable]),
    ]


def outside_usr(paths: Iterable[Path]) -> list[tuple[Path, Path]]:
    """What of `paths` must be bound to be seen at its own place."""
    return [(path, path) for path in paths if not path.is_relative_to(_USR)]
