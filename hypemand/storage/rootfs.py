# SPDX-License-Identifier: Apache-2.0
"""Root file systems in directories: their architecture, and their conversion to erofs."""

from __future__ import annotations

import hashlib
import os
import posixpath
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from hypemand.storage.tools import Tools

# One id for all: guests find an image by its serial, and equal content is to be equal bytes.
_UUID = "2f0a0d2e-6a2b-4c83-8f43-5d8f2f1f7a01"
# mkfs.erofs clamps times to this and stamps the superblock with it: the bytes depend on the content alone,
# and files keep their times (2100-01-01; -T would set all of them).
_EPOCH = "4102444800"
_MAKE_TIMEOUT = 1800.0
_MAX_LINKS = 40
_MAX_WALK = 20000

# e_machine of elf(5), as OCI (GOARCH) spells it.
_MACHINES = {3: "386", 21: "ppc64le", 22: "s390x", 40: "arm", 62: "amd64", 183: "arm64", 243: "riscv64"}
_USUAL_INITS = ("/init", "/bin/init", "/etc/init", "/usr/bin/init")
_USUAL_PROGRAMS = ("bin/sh", "sbin/init", "usr/bin/env", "bin/busybox", "lib/systemd/systemd")


def make_erofs(
    root: Path,
    target: Path,
    tools: Tools,
    *,
    epoch: str = _EPOCH,
    all_root: bool = False,
    timeout: float = _MAKE_TIMEOUT,
) -> None:
    """Write the tree under `root` to `target`; equal trees give equal bytes.

    Not compressed: a guest that starts reads some megabytes, which cost more to unpack than to read.
    """
    argv = ["mkfs.erofs", "--quiet", "-U", _UUID]
    if all_root:
        argv += ["--all-root"]
    argv += [os.fspath(target), os.fspath(root)]
    env = {"SOURCE_DATE_EPOCH": epoch}
    tools.build(argv, folder=target.parent, timeout=timeout, env=env, readable=[root])


def hash_file(path: Path) -> str:
    """`sha256:…` of a file."""
    with open(path, "rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def find_in_root(root: Path, inside: str) -> Path | None:
    """Where the path `inside` leads for somebody whose root directory is `root`; None: nowhere.

    Links are followed as in a chroot, so the result is never outside.
    """
    todo = [part for part in reversed(inside.split("/")) if part not in ("", ".")]
    done: list[str] = []
    links = 0
    while todo:
        part = todo.pop()
        if part == "..":
            done = done[:-1]
            continue
        here = root.joinpath(*done, part)
        try:
            mode = here.lstat().st_mode
        except OSError:
            return None
        if not stat.S_ISLNK(mode):
            done.append(part)
            continue
        links += 1
        if links > _MAX_LINKS:
            return None
        target = os.readlink(here)
        if target.startswith("/"):
            done = []
        todo += [p for p in reversed(target.split("/")) if p not in ("", ".")]
    return root.joinpath(*done)


def find_systemd_links(root: Path, program: str) -> tuple[str, ...]:
    """Which of the usual inits of a root file system, and of the absolute path `program`, lead to systemd."""
    paths = {
        posixpath.normpath(f"/{path.lstrip('/')}") for path in (*_USUAL_INITS, program) if path[:1] == "/"
    }
    targets = {path: find_in_root(root, path) for path in sorted(paths)}
    return tuple(path for path, target in targets.items() if target is not None and target.name == "systemd")


def _find_elf_architecture(path: Path) -> str | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        head = os.pread(fd, 20, 0) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    finally:
        os.close(fd)
    if len(head) < 20 or head[:4] != b"\x7fELF":
        return None
    machine: int = struct.unpack_from("<H" if head[5] == 1 else ">H", head, 18)[0]
    return _MACHINES.get(machine, f"ELF machine {machine}")


def _iter_programs(root: Path) -> Iterator[Path]:
    for inside in _USUAL_PROGRAMS:
        path = find_in_root(root, inside)
        if path is not None:
            yield path
    seen = 0
    for folder, _, files in os.walk(root):
        for name in files:
            seen += 1
            if seen > _MAX_WALK:
                return
            path = Path(folder, name)
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode) and mode & 0o111:
                yield path


def find_architecture(root: Path) -> str | None:
    """The architecture of the programs in `root`, as OCI spells it; None if none is known."""
    for path in _iter_programs(root):
        architecture = _find_elf_architecture(path)
        if architecture is not None:
            return architecture
    return None
