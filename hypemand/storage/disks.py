# SPDX-License-Identifier: Apache-2.0
"""The writable disk of a VM: a sparse file with an ext4 that takes milliseconds to make.

mke2fs runs once per size and leaves a template; a disk is a clone of it (FICLONE where the file system
can, else a copy of its few data blocks). Every feature is stated, so that it does not matter which
release of Debian made a disk and which one carries it on.

What a guest has written to is opened by no program of the host that would have to understand it, but to
replay a journal, in a sandbox (storage/replay.py). A disk grows by making its file larger: the guest's kernel
does the rest when it mounts it. Nothing is done to a disk that a VMM has open, whatever the records say
(storage/locks.py).

All functions block: an event loop calls them in a thread.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path

from hypemand.atomic import remove_temporaries, replace_file, write_all
from hypemand.config.definition import GIB, MIB
from hypemand.config.sizes import format_size
from hypemand.errors import HypemandError, InvalidDefinition, Problem
from hypemand.fulldisk import name_full_disk
from hypemand.model.volumes import VolumeRoot
from hypemand.run import run
from hypemand.storage.locks import hold_disk

DISK = "disk.ext4"
"""The name of a VM's disk in the folder of its state."""
BLOCK = 4096
MIN_SIZE = 16 * MIB
MAX_SIZE = 16 * 1024 * GIB
LABEL = "hypeman-disk"

# In the name of every template: raise it when what follows changes.
_TEMPLATE_VERSION = 1
_FEATURES = (
    "none,has_journal,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super,"
    "large_file,huge_file,dir_nlink,extra_isize,metadata_csum"
)
# A new sparse file is zero already: neither mke2fs nor a thread of the guest's kernel need clear inode
# tables. Metadata in one place keeps the file and the copy of it small.
_EXTENDED = "assume_storage_prezeroed=1,packed_meta_blocks=1,hash_seed=7b0d6f3a-53c5-4cf4-9c1f-5f5b1a0c1a11"
_UUID = "2f0a0d2e-6a2b-4c83-8f43-5d8f2f1f7a01"
_MAKE_TIMEOUT = 60.0

# EXT4_FEATURE_INCOMPAT_RECOVER: mounted, or left by a crash
_RECOVER = 0x4

_COPY_BYTES = 1 * MIB
_FICLONE = 0x40049409  # ioctl_ficlone(2)
_NO_CLONE = {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS}


class DiskChange(StrEnum):
    """What `ensure_disk` did."""

    MADE = "made"
    GROWN = "grown"
    KEPT = "kept"


def derive_disk_size(size: int) -> int:
    """The size that a disk of `size` bytes really gets: whole blocks, never less than asked for."""
    return (size + BLOCK - 1) // BLOCK * BLOCK


def read_size(path: Path) -> int:
    """Bytes of the disk `path`. What its guest has made of it cannot change that."""
    return path.stat().st_size


def has_journal_to_replay(path: Path) -> bool:
    """Was the one who had it mounted last killed? HypemandError if that is no ext4."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        # kernel, Documentation/filesystems/ext4: the superblock
        raw = os.pread(fd, 1024, 1024)
    finally:
        os.close(fd)
    if len(raw) < 1024 or struct.unpack_from("<H", raw, 0x38)[0] != 0xEF53:
        raise HypemandError(
            f"the disk {path} contains no ext4 file system",
            hint="restore it from a backup, or remove the file to start with an empty disk",
        )
    return bool(struct.unpack_from("<I", raw, 0x60)[0] & _RECOVER)


def find_size_problem(path: Path, size: int) -> Problem | None:
    """Why the disk at `path`, which need not be there, cannot have `size` bytes. Disks never shrink."""
    if not MIN_SIZE <= size <= MAX_SIZE:
        what = f"{format_size(size)} is not a valid size"
        return Problem("", 0, 0, "disk", what, f"write {format_size(MIN_SIZE)} to {format_size(MAX_SIZE)}")
    if not path.exists():
        return None
    there = read_size(path)
    if derive_disk_size(size) >= there:
        return None
    has = format_size(there)
    what = f"{format_size(size)} is less than the {has} that the VM's disk has; a disk cannot shrink"
    return Problem("", 0, 0, "disk", what, f"write {has} or more, or remove the VM and create it again")


def set_root(path: Path, root: VolumeRoot) -> None:
    """Owner and mode of the root of a disk that was made just now. Without lost+found, a guest does not take
    it for new (guest/init/firstuse.c)."""
    fields = {"mode": f"0{stat.S_IFDIR | root.mode:o}", "uid": f"{root.uid}", "gid": f"{root.gid}"}
    commands = ["rmdir lost+found", *(f"set_inode_field <2> {key} {value}" for key, value in fields.items())]
    argv = ["debugfs", "-w", "-f", "/dev/stdin", os.fspath(path)]
    done = run(argv, timeout=_MAKE_TIMEOUT, input="".join(f"{line}\n" for line in commands).encode())
    # it exits with 0 whatever fails; its first line is its version
    said = [line for line in done.stderr.splitlines()[1:] if line.strip()]
    if said:
        raise HypemandError(f"cannot set owner and mode of {path}: {said[0]}")


def make_fresh_disk(path: Path, size: int, uid: int, templates: Path) -> None:
    """A new disk in place of the one that may be there; the VM must be stopped. InUse if it is not."""
    remove_disk(path)
    ensure_disk(path, size, uid, templates)


def remove_disk(path: Path) -> None:
    """Remove a disk that may be there. InUse."""
    with hold_disk(path, "removed"):
        path.unlink(missing_ok=True)


def check_disk_unused(path: Path) -> None:
    """Raise InUse if a VMM has it open."""
    with hold_disk(path, "used"):
        pass


def ensure_disk(path: Path, size: int, uid: int, templates: Path, *, mode: int = 0o600) -> DiskChange:
    """Make sure that `path` is a disk of `size` bytes, of that mode, owned by `uid`.

    Made if it is missing, made larger if it is smaller: so the VM must be stopped. Its file system grows at
    the next boot. `templates` is the folder of the templates, made if missing. InvalidDefinition if the disk
    is larger, InsufficientResources if the host's is full, InUse if the VM is not stopped. In a failure a new
    disk is not left, and an old one keeps its content.
    """
    with hold_disk(path, "changed"):
        return _ensure_disk(path, size, uid, templates, mode)


def _ensure_disk(path: Path, size: int, uid: int, templates: Path, mode: int) -> DiskChange:
    problem = find_size_problem(path, size)
    if problem is not None:
        raise InvalidDefinition([problem])
    wanted = derive_disk_size(size)
    with name_full_disk(f"create the disk {path}", path):
        if not path.exists():
            _make_disk(path, wanted, uid, templates, mode)
            return DiskChange.MADE
        has_journal_to_replay(path)  # it is one of ours
        change = DiskChange.KEPT
        if read_size(path) < wanted:
            os.truncate(path, wanted)
            change = DiskChange.GROWN
    os.chown(path, uid, -1, follow_symlinks=False)
    path.chmod(mode)
    return change


def _make_disk(path: Path, size: int, uid: int, templates: Path, mode: int) -> None:
    template = os.open(_ensure_template(templates, size), os.O_RDONLY | os.O_CLOEXEC)
    try:
        with replace_file(path, mode=mode, uid=uid) as fd:
            _clone(template, fd, size, lambda: None)
    finally:
        os.close(template)


def copy_disk(
    source: Path, target: Path, *, uid: int = -1, mode: int = 0o600, check: Callable[[], None] = lambda: None
) -> None:
    """A copy of a disk, or of another file, which takes no more of the host's disk than that: it shares all
    blocks with it where the file system can. `check` raises when it is to end, and is called every MiB.
    Nobody may write to it meanwhile."""
    fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        with replace_file(target, mode=mode, uid=uid) as copy:
            _clone(fd, copy, os.fstat(fd).st_size, check)
    finally:
        os.close(fd)


def _clone(source: int, target: int, size: int, check: Callable[[], None]) -> None:
    """Fill the new file `target` from `source`, holes kept."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
        return
    except OSError as error:
        if error.errno not in _NO_CLONE:
            raise
    os.ftruncate(target, size)
    for start, end in iter_data(source, size):
        for at in range(start, end, _COPY_BYTES):
            check()
            os.lseek(target, at, os.SEEK_SET)
            write_all(target, os.pread(source, min(_COPY_BYTES, end - at), at))


def iter_data(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """The extents of a sparse file that hold data (lseek(2), SEEK_DATA)."""
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end


def _ensure_template(templates: Path, size: int) -> Path:
    path = templates / f"ext4-{_TEMPLATE_VERSION}-{size}.img"
    if path.exists():
        return path
    templates.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(templates, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            # Templates are made under this lock only, so whatever is temporary here is of a crash.
            remove_temporaries(templates)
            _make_template(path, size)
    finally:
        os.close(lock)
    return path


def _make_template(path: Path, size: int) -> None:
    journal = 32 if size >= 2 * GIB else 4
    with replace_file(path, mode=0o400) as fd:
        os.ftruncate(fd, size)
        target = f"/proc/{os.getpid()}/fd/{fd}"
        argv = ["mke2fs", "-F", "-q", "-b", str(BLOCK), "-I", "256", "-i", "16384", "-m", "0"]
        argv += ["-L", LABEL, "-U", _UUID, "-O", _FEATURES, "-E", _EXTENDED, "-J", f"size={journal}", target]
        run(argv, timeout=_MAKE_TIMEOUT, env={"MKE2FS_CONFIG": "/dev/null"})
