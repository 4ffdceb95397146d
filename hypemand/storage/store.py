# SPDX-License-Identifier: Apache-2.0
"""The image store: contents, each stored once, and the names that refer to them.

    ID/          a content: its root file system and metadata; ID is its digest
    names.json   the content of each name, and its tags
    .staging/    what is being made, or removed

A content without a name (its tag has moved on) is called NAME@DIGEST, after the name that
it was made under.
"""

from __future__ import annotations

import difflib
import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hypemand.atomic import sync_folder
from hypemand.errors import HostNotReady, ImageNotReady, InUse, InvalidRequest, NotFound
from hypemand.model.images import Pruned
from hypemand.recordfile import BadRecord, load_record, store_record
from hypemand.storage.images import BUILTIN_FOLDERS, ROOTFS, STAGING, Image, derive_id, read_image
from hypemand.storage.locks import hold_disk, is_disk_in_use
from hypemand.storage.references import (
    BUILTIN_PREFIX,
    derive_digest_name,
    derive_registry_name,
    parse_image_name,
)

NAMES = "names.json"
_VERSION = 1
# seconds: who waits for a content that somebody else makes looks so often whether that is still wanted
_LOOK_AGAIN = 0.5


@dataclass(frozen=True, slots=True)
class ImageUse:
    """That a VM needs an image: the content `digest`, or that of `name` where this is ""."""

    vm: str
    name: str
    digest: str = ""


@dataclass(frozen=True, slots=True)
class _Names:
    """What NAMES has: the content of each name, and the tags of those that have some."""

    digests: dict[str, str]
    tags: Mapping[str, Mapping[str, str]]


@dataclass(slots=True)
class _Making:
    """A content that is being made: who makes it holds the lock, and `users` are with those who wait."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0


def parse_new_name(text: str) -> str:
    """A name that any content may have: not one with a digest or a path of the host. InvalidRequest."""
    name = parse_image_name(text)
    if "@" in name or name.startswith((BUILTIN_PREFIX, "oci:/", "dir:/", "docker-archive:/")):
        raise InvalidRequest(
            f"{name} is not a valid new name", hint="write NAME or NAME:TAG", code="invalid_name"
        )
    return name


class ImageStore:
    """The images of a host. Nothing is cached: what the folders hold is true. All methods block on disk.

    `folder` is the store's own (made if missing), `builtin` are folders with one folder for each image.
    `reserve`: bytes of its file system that stay free, whatever is made.
    """

    def __init__(
        self,
        folder: Path,
        builtin: Sequence[Path] = BUILTIN_FOLDERS,
        reserve: Callable[[], int] = lambda: 0,
    ) -> None:
        self.folder = folder
        self.reserve = reserve
        self._builtin = tuple(builtin)
        self._changing = threading.RLock()
        self._making: dict[str, _Making] = {}
        # not set while work that a daemon before this one has left may still write to the staging folders
        self.may_make = threading.Event()
        self.may_make.set()

    def prepare(self) -> None:
        """Make the store's folder. VMMs open images in it by path, but nobody lists it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o711)

    # reading

    def list_images(self) -> list[Image]:
        """All usable images, by name; one that has several names comes with each."""
        found = [*self._iter_builtin(), *self._iter_named()]
        return sorted(found, key=lambda image: image.name)

    def _iter_named(self) -> Iterator[Image]:
        contents = {image.digest: image for image in self._iter_contents()}
        names, tags = self._read_names(contents.values()), self._read_tags()
        for name, digest in names.items():
            if digest in contents:
                yield replace(contents[digest], name=name, tags=tags.get(name, {}))
        for digest in contents.keys() - set(names.values()):
            yield _unnamed(contents[digest])

    def list_broken(self) -> list[ImageNotReady]:
        """What is wrong with the folders that hold no usable image."""
        found = []
        for root in (*self._builtin, self.folder):
            for folder in _list_folders(root):
                try:
                    read_image(folder)
                except ImageNotReady as error:
                    found.append(error)
        return found

    def find_image(self, name: str) -> Image | None:
        """The image of that name, else of the name that it has in a registry. InvalidRequest for what can be
        no name."""
        wanted = parse_image_name(name)
        if wanted.startswith(BUILTIN_PREFIX):
            return next((image for image in self._iter_builtin() if image.name == wanted), None)
        names = self._read_names()
        for known in (wanted, derive_registry_name(wanted)):
            image = self.find_content(names.get(known, ""))
            if image is not None:
                return replace(image, name=known, tags=self._read_tags().get(known, {}))
            _, at, digest = known.rpartition("@")
            image = self.find_content(digest) if at else None
            if image is not None and derive_digest_name(image.name, digest) == known:
                return replace(image, name=known)
        return None

    def find_named(self, name: str) -> Image | None:
        """The image of that very name."""
        image = self.find_content(self._read_names().get(parse_image_name(name), ""))
        return None if image is None else replace(image, name=parse_image_name(name))

    def find_content(self, digest: str) -> Image | None:
        """The image with that digest, under the name it was made under."""
        if not digest:
            return None
        try:
            image = read_image(self.folder / derive_id(digest))
        except ImageNotReady:
            return next((image for image in self._iter_contents() if image.digest == digest), None)
        return image if image.digest == digest and not image.builtin else None

    def get_image(self, name: str) -> Image:
        """The image of that name; NotFound lists the others."""
        image = self.find_image(name)
        if image is None:
            raise NotFound(f"there is no image {name}", hint=self._derive_hint(name), code="image_not_found")
        return image

    def list_users(self, image: Image, uses: Iterable[ImageUse]) -> list[str]:
        """Names of the VMs that need the content of `image`, or its name."""
        return sorted({use.vm for use in uses if self._is_of(use, image)})

    def _is_of(self, use: ImageUse, image: Image) -> bool:
        if use.digest:
            return use.digest == image.digest and not image.builtin
        known = self.find_image(use.name)
        return known is not None and known.name == image.name

    def find_prunable(self, uses: Sequence[ImageUse], *, every: bool) -> list[Pruned]:
        """The contents that no VM needs and that have no name; with `every` also those with names. Not those
        that a VMM has open."""
        named = list(self._iter_named())
        needed = {use.digest for use in uses}
        for use in uses:
            known = None if use.digest else self.find_image(use.name)
            needed.add(known.digest if known is not None else "")
        explicit = self._read_names()
        found: dict[str, Pruned] = {}
        for image in named:
            if image.digest in needed or (not every and image.digest in explicit.values()):
                continue
            try:
                if is_disk_in_use(image.rootfs):
                    continue
                size = image.rootfs.stat().st_blocks * 512
            except FileNotFoundError:
                continue  # removed meanwhile
            before = found.get(image.digest, Pruned((), image.digest, size))
            found[image.digest] = replace(before, names=tuple(sorted((*before.names, image.name))))
        return list(found.values())

    # changing

    def bind(self, name: str, digest: str) -> Image:
        """Have `name` refer to the content `digest` from now on."""
        name = parse_image_name(name)
        if name.startswith(BUILTIN_PREFIX):
            raise InvalidRequest(f"names that begin with {BUILTIN_PREFIX} are reserved", code="invalid_name")
        with self._changing:
            self._check_names()
            image = self.find_content(digest)
            if image is None:
                raise NotFound(f"there is no image with the digest {digest}", code="image_not_found")
            names = self._read_names()
            # Without the file the names are guessed, and two contents may have been made under this one.
            if names.get(name) != digest or not (self.folder / NAMES).exists():
                self._write_names({**names, name: digest})
        return replace(image, name=name, tags=self._read_tags().get(name, {}))

    def set_tags(self, name: str, tags: Mapping[str, str]) -> None:
        """Give a name these tags, in place of those that it has. Nothing is changed if it is no name."""
        with self._changing:
            self._check_names()
            names = self._read_names()
            if name in names:
                self._write_names(names, {**self._read_tags(), name: tags})

    def tag_image(self, name: str, target: str) -> Image:
        """Give an image one more name, which may have been another image's."""
        target = parse_new_name(target)
        image = self.get_image(name)
        if image.builtin:
            raise InvalidRequest(
                f"{image.name} belongs to a Debian package and cannot have other names",
                hint="import it under another name",
            )
        return self.bind(target, image.digest)

    def remove_image(self, name: str, uses: Sequence[ImageUse]) -> None:
        """Remove a name, and with the last one the content. Raises NotFound, InUse while a VM needs it."""
        with self._changing:
            self._check_names()
            image = self.get_image(name)
            if image.builtin:
                raise InUse(f"{image.name} belongs to a Debian package", hint="remove the package instead")
            names = self._read_names()
            others = [n for n, digest in names.items() if digest == image.digest and n != image.name]
            # A VM that keeps to the content does without this name of it.
            users = self.list_users(image, [use for use in uses if not (others and use.digest)])
            if users:
                raise InUse(
                    f"the image {image.name} is used by {', '.join(users)}",
                    hint="remove these VMs, or snapshots, first",
                )
            if not others:
                self._discard(image.folder)
            self._write_names({n: digest for n, digest in names.items() if n != image.name})

    def prune(self, uses: Sequence[ImageUse], *, every: bool) -> list[Pruned]:
        """Remove what `find_prunable` finds."""
        removed = []
        with self._changing:
            self._check_names()
            names = self._read_names()
            for pruned in self.find_prunable(uses, every=every):
                image = self.find_content(pruned.digest)
                if image is not None:
                    with suppress(InUse):
                        self._discard(image.folder)
                        removed.append(pruned)
            if removed:
                gone = {pruned.digest for pruned in removed}
                self._write_names({n: digest for n, digest in names.items() if digest not in gone})
        return removed

    @contextmanager
    def making(
        self,
        digest: str,
        waits: Callable[[bool], None] = lambda _is_waiting: None,
        check: Callable[[], None] = lambda: None,
    ) -> Iterator[None]:
        """Lock the making of a content: several names may refer to it. `waits` is called when another one's
        is waited for and when that is over, `check` raises what ends the wait."""
        with self._sharing(digest) as lock:
            if not lock.acquire(blocking=False):
                waits(True)
                try:
                    while not lock.acquire(timeout=_LOOK_AGAIN):
                        check()
                finally:
                    waits(False)
            try:
                yield
            finally:
                lock.release()

    @contextmanager
    def _sharing(self, digest: str) -> Iterator[threading.Lock]:
        """The lock of a content, which is forgotten when nobody holds it or waits for it any more."""
        with self._changing:
            making = self._making.setdefault(digest, _Making())
            making.users += 1
        try:
            yield making.lock
        finally:
            with self._changing:
                making.users -= 1
                if not making.users:
                    del self._making[digest]

    def add_image(self, staged: Path, image: Image) -> Image:
        """Put a finished folder into the store under its name. The same content may have been added
        meanwhile."""
        target = self.folder / image.id
        try:
            os.rename(staged, target)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        sync_folder(self.folder)
        read_image(target)
        return self.bind(image.name, image.digest)

    # inside

    def _iter_builtin(self) -> Iterator[Image]:
        for root in self._builtin:
            yield from (image for image in _read_folders(root) if image.builtin)

    def _iter_contents(self) -> Iterator[Image]:
        yield from (image for image in _read_folders(self.folder) if not image.builtin)

    def _read_names(self, contents: Iterable[Image] | None = None) -> dict[str, str]:
        """The content of each name. Without a file that can be read: as the contents were named when they
        were made, so that VMs start; nothing is changed then but in the want of a file."""
        try:
            return self._load_names().digests
        except (OSError, BadRecord):
            known = self._iter_contents() if contents is None else contents
            return {image.name: image.digest for image in known}

    def _read_tags(self) -> Mapping[str, Mapping[str, str]]:
        """The tags of each name that has some."""
        try:
            return self._load_names().tags
        except (OSError, BadRecord):
            return {}

    def _load_names(self) -> _Names:
        return load_record(self.folder / NAMES, _parse_names, versions=(_VERSION,))

    def _check_names(self) -> None:
        """Raise HostNotReady for a file of names that is there and cannot be read: it is not written over,
        and no content is removed since only that file may know its name."""
        try:
            self._load_names()
        except FileNotFoundError:
            return
        except (OSError, BadRecord) as error:
            raise HostNotReady(
                f"{self.folder / NAMES} cannot be read, so no image is added, renamed or removed: {error}",
                hint="repair it, or move it away: images then have the names under which they were created",
            ) from None

    def _write_names(
        self, names: Mapping[str, str], tags: Mapping[str, Mapping[str, str]] | None = None
    ) -> None:
        """Write the names with `tags`, or with those that they have."""
        tags = self._read_tags() if tags is None else tags
        kept = {name: dict(tags[name]) for name in sorted(names) if tags.get(name)}
        document = {"version": _VERSION, "names": dict(sorted(names.items())), "tags": kept}
        store_record(self.folder / NAMES, document, indent=2)

    def _derive_hint(self, name: str) -> str:
        names = [image.name for image in self.list_images()]
        if not names:
            return "there are no images yet; pull one with: hypemanctl image pull NAME"
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        meant = f"did you mean {near[0]}? " if near else ""
        more = f" and {len(names) - 10} more" if len(names) > 10 else ""
        return f"{meant}there are: {', '.join(names[:10])}{more}"

    def _discard(self, folder: Path) -> None:
        """Take a content away in one step, then delete: what a crash leaves, `clean_staging` removes. InUse
        while a VMM has it open, which nobody may know of."""
        staging = self.folder / STAGING
        staging.mkdir(mode=0o700, exist_ok=True)
        doomed = staging / f"removed-{folder.name}-{os.getpid()}"
        try:
            with hold_disk(folder / ROOTFS, "removed"):
                os.rename(folder, doomed)
        except FileNotFoundError:
            return  # somebody else was faster
        sync_folder(self.folder)
        shutil.rmtree(doomed)


def _parse_names(document: Any) -> _Names:
    digests = {str(name): str(digest) for name, digest in document["names"].items()}
    tags = {
        str(name): {str(key): str(value) for key, value in of_name.items()}
        for name, of_name in document.get("tags", {}).items()
    }
    return _Names(digests, tags)


def _unnamed(image: Image) -> Image:
    return replace(image, name=derive_digest_name(image.name, image.digest))


def _list_folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _read_folders(root: Path) -> Iterator[Image]:
    for folder in _list_folders(root):
        try:
            yield read_image(folder)
        except ImageNotReady:
            continue
