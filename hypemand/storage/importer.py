# SPDX-License-Identifier: Apache-2.0
"""Creates images from a directory, a tar archive, an OCI or Docker image on this host, or a registry.

All that happens in one staging folder for each name, which is locked meanwhile and removed at the end,
whatever that end is. Tars are never unpacked by this process: a root file system in a tar is wrapped as a
one-layer OCI image, and umoci, which resolves every path inside its target, unpacks it.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from hypemand.errors import AlreadyExists, ImageNotReady, InvalidRequest, NotFound
from hypemand.model.images import OciConfig, derive_host_architecture
from hypemand.storage import ocilayout, tarball
from hypemand.storage.archives import Listed, choose
from hypemand.storage.images import ROOTFS, Image, derive_id, store_metadata
from hypemand.storage.references import (
    BUILTIN_PREFIX,
    Transport,
    derive_registry_name,
    parse_image_name,
    parse_reference,
    split_name,
)
from hypemand.storage.registry import Manifest, Registry
from hypemand.storage.room import RoomWatch
from hypemand.storage.rootfs import (
    find_architecture,
    find_in_root,
    find_systemd_links,
    hash_file,
    make_erofs,
)
from hypemand.storage.staging import name_failures, open_staging, remove_tree
from hypemand.storage.store import ImageStore
from hypemand.storage.tools import DirectTools, RegistryAuth, Tools

_INIT = "/sbin/init"
_DIR_VERSION = b"Directory Transport Version"


class Step(StrEnum):
    """What is being done, in the words of the published API."""

    PULLING = "pulling"
    CONVERTING = "converting"


@dataclass(frozen=True, slots=True)
class Told:
    """Progress of an image that is being made. While PULLING: what is fetched, and where it appears."""

    step: Step
    manifest: Manifest | None = None
    layout: Path | None = None


Tell = Callable[[Told], None]
# Is a content waited for that somebody else makes? Called when that has another answer.
Waits = Callable[[bool], None]


@dataclass(frozen=True, slots=True)
class _Unpacked:
    """A root file system that is ready to become erofs. `digest` "": that of the erofs is to be taken."""

    root: Path
    architecture: str
    config: OciConfig
    digest: str = ""


@dataclass(frozen=True, slots=True)
class _Work:
    """An image under way. `moves`: its name may have stood for another content."""

    store: ImageStore
    name: str
    source: str
    staging: Path
    tools: Tools
    tell: Tell
    moves: bool
    room: RoomWatch


def _tell_nobody(_told: Told | bool) -> None:
    pass


def import_image(
    store: ImageStore,
    name: str,
    source: str,
    tools: Tools | None = None,
    *,
    tell: Tell = _tell_nobody,
    moves: bool = False,
) -> Image:
    """Make the image `name` from `source`: a folder with a root file system or an OCI layout (then `:tag`
    may follow), or a tar, compressed or not, with a root file system, an OCI or a Docker image. `oci:`,
    `docker-archive:` or `dir:` before it says what it is to be.

    The same content under the same name again changes nothing. Raises AlreadyExists (the name has another
    content, unless it `moves`), ImageNotReady (cannot be used here), InsufficientResources (disk full),
    WrongState (the same name is being imported), InvalidRequest, NotFound (no such source). Blocks, for
    minutes if need be.
    """
    name = parse_image_name(name)
    if name.startswith(BUILTIN_PREFIX):
        raise InvalidRequest(f"names that begin with {BUILTIN_PREFIX} are reserved", code="invalid_name")
    path, tag, kind = _find_source(source)
    store.prepare()
    tools = tools or DirectTools()
    with _making(store, name, source, tools) as (staging, room):
        work = _Work(store, name, source, staging, tools, tell, moves, room)
        tell(Told(Step.CONVERTING))
        unpacked = _unpack(path, tag, kind, work)
        if isinstance(unpacked, Image):
            return unpacked
        _check_architecture(source, unpacked.architecture)
        return _finish(work, unpacked)


def pull_image(
    store: ImageStore,
    name: str,
    tools: Tools | None = None,
    *,
    tell: Tell = _tell_nobody,
    waits: Waits = _tell_nobody,
    auth: RegistryAuth | None = None,
) -> Image:
    """Ensure the image that `name` refers to in its registry now. A content that is in the store already is
    not fetched again. Raises what `Registry` and `import_image` do."""
    name = derive_registry_name(parse_image_name(name))
    tools = tools or DirectTools()
    store.prepare()
    with _making(store, name, name, tools) as (staging, room):
        fetched = staging / "fetch"
        fetched.mkdir(mode=0o700)
        registry = Registry(name, tools, fetched, auth)
        digest = registry.find_digest()
        with store.making(digest, waits, tools.check):
            if store.find_content(digest) is not None:
                return store.bind(name, digest)
            work = _Work(store, name, f"docker://{name}", staging, tools, tell, True, room)
            return _pull(work, registry, digest)


@contextmanager
def _making(store: ImageStore, name: str, source: str, tools: Tools) -> Iterator[tuple[Path, RoomWatch]]:
    """A folder to make `name` of `source` in, and the watch over its room."""
    room = RoomWatch(f"the image {name}", store.folder, store.reserve(), tools.cancel)
    with name_failures(source), open_staging(store, name) as staging, room.watching():
        yield staging, room


def _pull(work: _Work, registry: Registry, digest: str) -> Image:
    manifest = registry.describe(digest)
    # before anything is fetched: the layers alone, packed as they are, must fit
    work.room.need(manifest.size)
    layout = work.staging / "fetch/layout"
    work.tell(Told(Step.PULLING, manifest, layout))
    registry.copy(digest, layout)
    work.tell(Told(Step.CONVERTING, manifest))
    described = ocilayout.read_image(layout)
    _check_architecture(work.name, described.architecture)
    return _finish(work, _unpack_layout(layout, described, digest, work))


def make_image(
    store: ImageStore,
    name: str,
    tools: Tools | None = None,
    *,
    tell: Tell = _tell_nobody,
    waits: Waits = _tell_nobody,
    auth: RegistryAuth | None = None,
) -> Image:
    """Make the image that `name` refers to now: in a registry or at a path of this host."""
    reference = parse_reference(name)
    if reference.transport is Transport.BUILTIN:
        return store.get_image(name)
    if reference.transport is Transport.REGISTRY:
        return pull_image(store, name, tools, tell=tell, waits=waits, auth=auth)
    source = f"{reference.transport}:{reference.path}"
    return import_image(store, reference.name, source, tools, tell=tell, moves=True)


def _find_source(source: str) -> tuple[Path, str, Transport | None]:
    """The path of a source, the tag behind it, "" for none, and what it has to be."""
    word, colon, rest = source.partition(":")
    kind = Transport(word) if colon and word in {t.value for t in Transport if t.is_local} else None
    plain = source if kind is None or Path(source).exists() else rest
    path = Path(plain)
    if path.exists():
        return path.resolve(), "", kind
    for end in reversed([at for at, char in enumerate(plain) if char == ":"]):
        before, tag = Path(plain[:end]), plain[end + 1 :]
        if tag and before.exists() and (before.is_file() or _holds_images(before)):
            return before.resolve(), tag, kind
    raise NotFound(f"{plain} does not exist", hint="use a directory, a tar archive or an OCI layout")


def _holds_images(path: Path) -> bool:
    return ocilayout.is_layout(path) or ocilayout.find_docker_images(path) is not None


def _unpack(path: Path, tag: str, kind: Transport | None, work: _Work) -> _Unpacked | Image:
    """A root file system to make an image of, or the image if it is here already."""
    if path.is_dir():
        return _unpack_folder(path, tag, kind, work)
    if not path.is_file():
        raise ImageNotReady(f"{path} is neither a file nor a directory")
    if kind in (Transport.OCI, Transport.DIR):
        raise ImageNotReady(f"{path} is a file, and no {_KIND_WORDS[kind]}")
    tar = work.staging / "source.tar"
    work.room.need(path.stat().st_size)
    tarball.decompress(path, tar, work.tools, work.room.check)
    return _unpack_tar(tar, path, tag, kind, work)


def _unpack_folder(path: Path, tag: str, kind: Transport | None, work: _Work) -> _Unpacked | Image:
    images = None if kind is Transport.DIR else ocilayout.find_images(path)
    if images is not None:
        chosen = choose(images, tag, os.fspath(path))
        if ocilayout.link(path, chosen.content, work.staging / "layout"):
            return _unpack_copy(os.fspath(path), work)
        return _unpack_oci(f"oci:{path}:{chosen.word}" if chosen.word else f"oci:{path}", path, work)
    if kind in (None, Transport.DOCKER_ARCHIVE) and ocilayout.find_docker_images(path) is not None:
        tar = work.staging / "source.tar"
        ocilayout.pack_folder(path, tar, work.tools)
        return _unpack_tar(tar, path, tag, kind, work)
    if kind in (Transport.OCI, Transport.DOCKER_ARCHIVE):
        raise ImageNotReady(f"{path} is no {_KIND_WORDS[kind]}", hint=f"dir:{path} is a plain directory")
    if _is_skopeo_dir(path):
        return _unpack_oci(f"dir:{path}", path, work)
    return _derive_plain(path, path)


def _unpack_tar(tar: Path, path: Path, tag: str, kind: Transport | None, work: _Work) -> _Unpacked | Image:
    """What is in the uncompressed `tar`, which was made of `path`."""
    source = os.fspath(path)
    found = tarball.find_contents(tar, source)
    if kind is Transport.DOCKER_ARCHIVE and found.docker is None:
        raise ImageNotReady(f"{path} is no {_KIND_WORDS[kind]}")
    # of an archive that is both, its index has the digests; but two images may have one name there
    if found.oci is not None and (found.docker is None or _is_plain_choice(found.oci, tag)):
        chosen = choose(found.oci, tag, source)
        return _unpack_oci(f"oci-archive:{tar}{_word(found.oci, chosen)}", tar, work)
    if found.docker is not None:
        chosen = choose(found.docker, tag, source)
        return _unpack_oci(f"docker-archive:{tar}{_word(found.docker, chosen)}", tar, work)
    if tag:
        raise ImageNotReady(f"{path} is a root file system, which has no tags", hint=f"import {path}")
    layout = work.staging / "layout"
    ocilayout.wrap_layer(tar, layout, derive_host_architecture())
    ocilayout.unpack(layout, work.staging / "root", work.tools, work.room.check)
    return _derive_plain(work.staging / "root", path)


def _is_plain_choice(listed: list[Listed], tag: str) -> bool:
    """Is there one image of that tag, and nothing else that skopeo would take for it?"""
    found = {item.content for item in listed if not tag or tag in item.names}
    words = {item.word for item in listed if item.content in found}
    return len(found) == 1 and all(item.content in found for item in listed if item.word in words)


def _word(listed: list[Listed], chosen: Listed) -> str:
    return f":{chosen.word}" if len(listed) > 1 and chosen.word else ""


_KIND_WORDS = {
    Transport.OCI: "OCI layout",
    Transport.DOCKER_ARCHIVE: "Docker archive, as docker save writes it",
    Transport.DIR: "folder",
}


def _is_skopeo_dir(path: Path) -> bool:
    """A folder as skopeo's `dir:` writes it, with an image in pieces?"""
    try:
        return (path / "version").read_bytes()[:100].startswith(_DIR_VERSION)
    except OSError:
        return False


def _derive_plain(root: Path, source: Path) -> _Unpacked:
    """A root file system without metadata: it is started by its own init, if it has one."""
    if root == source:
        _check_no_mounts(root)
    if not any(root.iterdir()):
        raise ImageNotReady(
            f"{source} is empty", hint=("use a directory or tar archive with a root file system")
        )
    cmd = (_INIT,) if find_in_root(root, _INIT) is not None else ()
    architecture = find_architecture(root) or derive_host_architecture()
    return _Unpacked(root, architecture, OciConfig(cmd=cmd))


def _check_no_mounts(root: Path) -> None:
    """ImageNotReady if something is mounted in a root file system, as what a chroot is used with."""
    below = os.fsencode(root).rstrip(b"/") + b"/"
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        # proc_pid_mountinfo(5): the fifth field, in which blanks are octal
        point = re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), line.split(b" ")[4])
        if point.startswith(below):
            path = os.fsdecode(point)
            raise ImageNotReady(f"{path} is a mount point: unmount it", hint=f"umount {shlex.quote(path)}")


def _unpack_oci(reference: str, source: Path, work: _Work) -> _Unpacked | Image:
    ocilayout.copy(reference, source, work.staging / "layout", work.tools)
    return _unpack_copy(reference.partition(":")[2], work)


def _unpack_copy(source: str, work: _Work) -> _Unpacked | Image:
    """What is in the layout of the staging folder, from `source`."""
    layout = work.staging / "layout"
    described = ocilayout.read_image(layout)
    # Before the work of unpacking: another architecture needs none.
    _check_architecture(source, described.architecture)
    existing = _check_name_free(work, described.digest)
    if existing is None and work.store.find_content(described.digest) is not None:
        existing = work.store.bind(work.name, described.digest)
    return existing or _unpack_layout(layout, described, described.digest, work)


def _unpack_layout(layout: Path, described: ocilayout.Described, digest: str, work: _Work) -> _Unpacked:
    if described.zstd:
        layout = ocilayout.repack(layout, work.tools)
    root = work.staging / "root"
    ocilayout.unpack(layout, root, work.tools, work.room.check)
    # what is unpacked need not lie here twice
    shutil.rmtree(layout)
    return _Unpacked(root, described.architecture, described.config, digest)


def _check_architecture(source: str, architecture: str) -> None:
    host = derive_host_architecture()
    if architecture != host:
        raise ImageNotReady(
            f"{source} is for {architecture or 'an unknown architecture'}, this host is {host}",
            hint=f"use the image for {host}",
        )


def _finish(work: _Work, unpacked: _Unpacked) -> Image:
    if unpacked.digest:
        _check_name_free(work, unpacked.digest)
    folder = work.staging / "image"
    folder.mkdir()
    folder.chmod(0o755)
    make_erofs(unpacked.root, folder / ROOTFS, work.tools)
    config = unpacked.config
    program = next(filter(None, (*config.entrypoint, *config.cmd)), "")
    systemd_links = find_systemd_links(unpacked.root, program)
    if unpacked.root.parent == work.staging:
        # gone before anything is synced, or all of it would be written to the disk first
        remove_tree(unpacked.root)
    digest = unpacked.digest or hash_file(folder / ROOTFS)
    existing = _check_name_free(work, digest)
    if existing is not None:
        return existing
    image = Image(
        name=work.name,
        id=derive_id(digest),
        digest=digest,
        architecture=unpacked.architecture,
        size=(folder / ROOTFS).stat().st_size,
        created_at=time.time(),
        source=work.source,
        folder=folder,
        config=config,
        systemd_links=systemd_links,
    )
    _seal(folder / ROOTFS)
    # which syncs the folder too
    store_metadata(folder, image)
    return work.store.add_image(folder, image)


def _check_name_free(work: _Work, digest: str) -> Image | None:
    """The image of that name if it has that content; AlreadyExists if it has another and keeps to it."""
    existing = work.store.find_named(work.name)
    if existing is not None and existing.digest != digest:
        if work.moves:
            return None
        raise AlreadyExists(
            f"an image {work.name} with another content exists",
            hint=f"import it as {split_name(work.name)[0]}:TAG with a new tag, or remove the old one first",
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
