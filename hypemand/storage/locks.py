# SPDX-License-Identifier: Apache-2.0
"""QEMU's image locks: disks that a VMM has open are not changed by the host.

QEMU and its tools (block/file-posix.c) keep open file description locks (fcntl(2), F_OFD_SETLK) on single
bytes of a disk that they have open, with or without a VM: on byte 100 + N for each permission N that they
need (0 read, 1 write, 3 resize), on byte 200 + N for each that no other process may have meanwhile. Then they
check the locks of other processes. The daemon's records say which VM has a disk, and can be lost or wrong;
these locks end with the process that holds them, and cannot.

Work on a disk holds it by the same rules, so that no VMM can open it in the middle of that either. Only reads
need no lock, and files that every VM only reads (kernels, headers) get none. On a file system that several
hosts have, these locks are known to all of them.

The functions block, for some microseconds.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypemand.errors import InUse
from hypemand.storage.ofdlocks import explain_no_locks, is_locked, take_lock
from hypemand.storage.volumelock import describe_holders

# (first byte, how many)
_NEEDS_READ, _NEEDS_WRITE, _BARS_READ, _BARS_WRITE = (100, 1), (101, 1), (200, 1), (201, 1)
_ALL = (100, 200)

# nothing that a VMM could have as a disk: it is not there, a link, or a socket
_NO_DISK = (errno.ENOENT, errno.ELOOP, errno.ENXIO)


@contextmanager
def hold_disk(path: Path, what: str, *, beside_readers: bool = False) -> Iterator[None]:
    """Have the disk at `path` for oneself while something is done to it, as "removed"; no program that keeps
    to QEMU's locks can open it meanwhile. `beside_readers`: only writers are kept away. InUse, and
    HypemandError if its file system knows no locks. A disk that is not there is held by nobody."""
    with _open_disk(path) as fd:
        if fd is not None:
            lock_disk(fd, path, what, beside_readers=beside_readers)
        yield


@contextmanager
def _open_disk(path: Path) -> Iterator[int | None]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno not in _NO_DISK:
            raise
        yield None
        return
    try:
        yield fd if stat.S_ISREG(os.fstat(fd).st_mode) else None
    finally:
        os.close(fd)


def lock_disk(fd: int, path: Path, what: str, *, beside_readers: bool = False) -> None:
    """`hold_disk` for a disk that is open, to read at least, until it is closed."""
    wanted = (_NEEDS_READ, _BARS_WRITE) if beside_readers else (_ALL,)
    # one who needs to write, or who bars everybody from reading
    barred = (_NEEDS_WRITE, _BARS_READ) if beside_readers else (_ALL,)
    with _explain(path):
        is_held = not all(take_lock(fd, fcntl.F_RDLCK, part) for part in wanted)
        is_held = is_held or any(is_locked(fd, part) for part in barred)
        if is_held:
            raise _in_use(fd, path, what)


def has_others(fd: int) -> bool:
    """Has another process locks of QEMU's on a disk that is open?"""
    return is_locked(fd, _ALL)


def is_disk_in_use(path: Path) -> bool:
    """Has a VMM, or another program that keeps to QEMU's locks, the disk open? Looks only: a VMM can open it
    at that very moment. HypemandError if its file system knows no locks."""
    with _open_disk(path) as fd, _explain(path):
        return fd is not None and is_locked(fd, _ALL)


@contextmanager
def _explain(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise explain_no_locks(f"cannot determine whether a VMM has {path} open", error) from error


def _in_use(fd: int, path: Path, what: str) -> InUse:
    use = "written to" if is_locked(fd, _NEEDS_WRITE) else "read"
    holders = describe_holders(path)
    whose = f"was given to {holders}" if holders else f"belongs to {_describe_owner(os.fstat(fd).st_uid)}"
    return InUse(
        f"{path} is being {use} by a VMM or another program with QEMU's locks, and cannot be {what}"
        f" meanwhile; it {whose}",
        hint=f"stop {'that' if holders else 'its'} VM, or the program that `fuser -v {path}` shows",
    )


def _describe_owner(uid: int) -> str:
    """Of a VM's own disk, that is the VM's user: its name in words is the VM's."""
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        return f"uid {uid}"
    return f"{user.pw_name} ({user.pw_gecos})" if user.pw_gecos else user.pw_name
