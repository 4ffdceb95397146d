# SPDX-License-Identifier: Apache-2.0
"""Import an image: from a folder, a tar, or an OCI or Docker image on disk.

All that happens in one staging folder for each name, which is locked while the import runs and removed at
its end, whatever that end is. Tars are never unpacked by this process: a root file system in a tar is
wrapped as a one-layer OCI image, and umoci, which resolves every path inside its target, unpacks it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hypemand.atomic import sync_folder, write_file
from hypemand.errors import (
    AlreadyExists,
    ImageNotReady,
    InsufficientResources,
    InvalidRequest,
    NotFound,
    WrongState,
)
from hypemand.run import CommandFailed, is_disk_full, run
from hypemand.storage import ocilayout, tarball
from hypemand.storage.images import (
    BUILTIN_PREFIX,
    METADATA,
    ROOTFS,
    STAGING,
    Image,
    ImageStore,
    OciConfig,
    derive_id,
    encode_metadata,
    parse_image_name,
)
from hypemand.storage.rootfs import (
    derive_host_architecture,
    find_architecture,
    find_in_root,
    hash_file,
    make_erofs,
)

_REMOVE_TIMEOUT = 600.0
_INIT = "/sbin/init"


@dataclass(frozen=True, slots=True)
class _Unpacked:
    """A root file system that is ready to become erofs. `digest` "": that of the erofs is to be taken."""

    root: Path
    architecture: str
    config: OciConfig
    digest: str = ""


def import_image(store: ImageStore, name: str, source: str) -> Image:
    """Make the image `name` from `source`: a folder with a root file system or an OCI layout (then `:tag`
    may follow), or a tar, compressed or not, with a root file system, an OCI or a Docker image.

    The same content under the same name again changes nothing. Raises AlreadyExists (the name has another
    content), ImageNotReady (cannot be used here), InsufficientResources (disk full), WrongState (the same
    name is being imported), InvalidRequest, NotFound (no such source). Blocks, for minutes if need be.
    """
    name = parse_image_name(name)
    if name.startswith(BUILTIN_PREFIX):
        raise InvalidRequest(f"names that begin with {BUILTIN_PREFIX} are reserved", code="invalid_name")
    path, tag = _find_source(source)
    store.prepare()
    with _name_failures(source), _open_staging(store, name) as staging:
        unpacked = _unpack(path, tag, staging)
        _check_architecture(source, unpacked.architecture)
        return _finish(store, name, source, unpacked, staging)


def clean_staging(store: ImageStore) -> list[str]:
    """Remove what crashes left. Imports that run, in whatever process, are not disturbed."""
    removed = []
    root = store.folder / STAGING
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        lock = _find_lock(folder)
        if lock is None:
            continue
        try:
            _remove_tree(folder)
            removed.append(folder.name)
        finally:
            os.close(lock)
    return removed


def _find_source(source: str) -> tuple[Path, str]:
    """The path of a source and the tag behind it, "" for none."""
    path = Path(source)
    if path.exists():
        return path.resolve(), ""
    before, colon, tag = source.rpartition(":")
    if colon and tag and "/" not in tag and ocilayout.is_layout(Path(before)):
        return Path(before).resolve(), tag
    raise NotFound(f"there is no file or folder {source}", hint="give a folder, a tar, or an OCI layout")


@contextmanager
def _name_failures(source: str) -> Iterator[None]:
    """Tell a full disk, and content that the tools refuse, from failures of the host."""
    try:
        yield
    except (OSError, CommandFailed) as error:
        if is_disk_full(error):
            raise InsufficientResources(
                f"no space left to import {source}; nothing of it was kept",
                hint="free space where the images are, or move the state folder",
            ) from error
        if isinstance(error, OSError):
            raise
        raise ImageNotReady(f"{source} cannot be imported: {error.message}") from error


def _find_lock(folder: Path) -> int | None:
    """Lock a staging folder: a descriptor, or None while somebody else has it or it is gone."""
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


@contextmanager
def _open_staging(store: ImageStore, name: str) -> Iterator[Path]:
    """A folder for the import of `name`, empty at the beginning, gone at the end."""
    root = store.folder / STAGING
    root.mkdir(mode=0o700, exist_ok=True)
    staging = root / hashlib.sha256(name.encode()).hexdigest()[:24]
    staging.mkdir(mode=0o700, exist_ok=True)
    lock = _find_lock(staging)
    if lock is None:
        raise WrongState(f"the image {name} is being imported already", hint="wait for that to end")
    try:
        for leftover in staging.iterdir():
            _remove_tree(leftover)
        yield staging
    finally:
        _remove_tree(staging)
        os.close(lock)


def _remove_tree(path: Path) -> None:
    """rm(1) copes with any depth of folders, which Python's own does not."""
    run(["rm", "-rf", "--one-file-system", "--", os.fspath(path)], timeout=_REMOVE_TIMEOUT)


def _unpack(path: Path, tag: str, staging: Path) -> _Unpacked:
    if path.is_dir():
        if ocilayout.is_layout(path):
            return _unpack_oci(f"oci:{path}:{tag}" if tag else f"oci:{path}", staging)
        return _derive_plain(path, path)
    if not path.is_file():
        raise ImageNotReady(f"{path} is neither a file nor a folder")
    tar = staging / "source.tar"
    tarball.decompress(path, tar)
    kind = tarball.find_kind(tar, os.fspath(path))
    if kind is not tarball.Kind.ROOTFS:
        return _unpack_oci(f"{kind.value}:{tar}", staging)
    layout = staging / "layout"
    ocilayout.wrap_layer(tar, layout, derive_host_architecture())
    ocilayout.unpack(layout, staging / "root")
    return _derive_plain(staging / "root", path)


def _derive_plain(root: Path, source: Path) -> _Unpacked:
    """A root file system without metadata: it is started by its own init, if it has one."""
    if not any(root.iterdir()):
        raise ImageNotReady(f"{source} is empty", hint="give a folder or tar with a root file system")
    cmd = (_INIT,) if find_in_root(root, _INIT) is not None else ()
    architecture = find_architecture(root) or derive_host_architecture()
    return _Unpacked(root, architecture, OciConfig(cmd=cmd))


def _unpack_oci(reference: str, staging: Path) -> _Unpacked:
    layout = staging / "layout"
    ocilayout.copy(reference, layout, scratch=staging)
    described = ocilayout.read_image(layout)
    # Before the work of unpacking: another architecture needs none.
    _check_architecture(reference.partition(":")[2], described.architecture)
    ocilayout.unpack(layout, staging / "root")
    return _Unpacked(staging / "root", described.architecture, described.config, described.digest)


def _check_architecture(source: str, architecture: str) -> None:
    host = derive_host_architecture()
    if architecture != host:
        raise ImageNotReady(
            f"{source} is for {architecture or 'an unknown architecture'}, this host is {host}",
            hint=f"get the image for {host}",
        )


def _finish(store: ImageStore, name: str, source: str, unpacked: _Unpacked, staging: Path) -> Image:
    if unpacked.digest:
        _check_name_free(store, name, unpacked.digest)
    folder = staging / "image"
    folder.mkdir(mode=0o755)
    make_erofs(unpacked.root, folder / ROOTFS)
    digest = unpacked.digest or hash_file(folder / ROOTFS)
    existing = _check_name_free(store, name, digest)
    if existing is not None:
        return existing
    _seal(folder / ROOTFS)
    image = Image(
        name=name,
        id=derive_id(name, digest),
        digest=digest,
        architecture=unpacked.architecture,
        size=(folder / ROOTFS).stat().st_size,
        created_at=time.time(),
        source=source,
        folder=folder,
        config=unpacked.config,
    )
    write_file(folder / METADATA, encode_metadata(image))
    folder.chmod(0o755)
    sync_folder(folder)
    return store.add_image(folder, image)


def _check_name_free(store: ImageStore, name: str, digest: str) -> Image | None:
    """The image of that name if it has that content; AlreadyExists if it has another."""
    existing = store.find_image(name)
    if existing is not None and existing.digest != digest:
        raise AlreadyExists(
            f"there is an image {name} with another content",
            hint=f"import it as {name.partition(':')[0]}:TAG with a new tag, or remove the old one first",
        )
    return existing


def _seal(rootfs: Path) -> None:
    """Read-only, on disk. Every VMM reads it, each under a user of its own."""
    rootfs.chmod(0o444)
    fd = os.open(rootfs, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
