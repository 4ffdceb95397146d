# SPDX-License-Identifier: Apache-2.0
"""Staging directories of images: one per name, locked while in use, and removed at the end."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypemand.errors import HostNotReady, HypemandError, ImageNotReady, InsufficientResources, WrongState
from hypemand.run import CommandFailed, is_disk_full, run
from hypemand.storage.images import STAGING
from hypemand.storage.store import ImageStore

_log = logging.getLogger(__name__)
_REMOVE_TIMEOUT = 600.0
# for the units of a daemon before this one to end
_CLEAN_TIMEOUT = 120.0


@contextmanager
def name_failures(source: str) -> Iterator[None]:
    """Tell a full disk, and content that the tools refuse, from failures of the host."""
    try:
        yield
    except (OSError, CommandFailed) as error:
        if is_disk_full(error):
            raise InsufficientResources(
                f"no space left to import {source}; its files were removed",
                hint="free space on the file system of the images, or move state_dir",
            ) from error
        if isinstance(error, OSError):
            raise
        raise ImageNotReady(f"{source} cannot be imported: {error.message}") from error


@contextmanager
def open_staging(store: ImageStore, name: str) -> Iterator[Path]:
    """A folder for making `name`, empty at the beginning, gone at the end. WrongState while it is in use."""
    if not store.may_make.wait(_CLEAN_TIMEOUT):
        raise HostNotReady(
            "pulls and imports of a daemon before this one have not ended yet", hint="try again later"
        )
    root = store.folder / STAGING
    root.mkdir(mode=0o700, exist_ok=True)
    staging = root / hashlib.sha256(name.encode()).hexdigest()[:24]
    staging.mkdir(mode=0o700, exist_ok=True)
    lock = _find_lock(staging)
    if lock is None:
        raise WrongState(f"the image {name} is already being imported", hint="wait for it to finish")
    try:
        for leftover in staging.iterdir():
            remove_tree(leftover)
        yield staging
    finally:
        remove_tree(staging)
        os.close(lock)


def has_leftovers(store: ImageStore) -> bool:
    """Is there anything that somebody works on, or that a crash has left?"""
    root = store.folder / STAGING
    return root.is_dir() and any(root.iterdir())


def clean_staging(store: ImageStore) -> list[str]:
    """Remove what crashes left. What is being made, in whatever process, is not disturbed. What cannot be
    removed is logged."""
    removed = []
    root = store.folder / STAGING
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        try:
            if _remove_unused(folder):
                removed.append(folder.name)
        except (OSError, HypemandError) as error:
            _log.error("the staging directory %s is not removed: %s", folder, error)
    return removed


def _remove_unused(folder: Path) -> bool:
    lock = _find_lock(folder)
    if lock is None:
        return False
    try:
        remove_tree(folder)
    finally:
        os.close(lock)
    return True


def _find_lock(folder: Path) -> int | None:
    """Lock a staging folder: a descriptor, or None while another process has it or it is gone."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The one who had it may have removed it, and a new one may be in its place.
        if os.fstat(fd).st_ino == folder.stat().st_ino:
            return fd
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def remove_tree(path: Path) -> None:
    """rm(1) copes with any depth of folders, which Python's own does not."""
    run(["rm", "-rf", "--one-file-system", "--", os.fspath(path)], timeout=_REMOVE_TIMEOUT)
