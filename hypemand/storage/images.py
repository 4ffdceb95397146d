# SPDX-License-Identifier: Apache-2.0
"""Images: read-only root file systems and what their makers say of how to run them.

An image is a folder with ROOTFS (erofs) and METADATA (JSON). Those that were imported stand under the
store's folder, each named by its id; the built-in ones in folders that a package owns. Images never
change: a name is bound to one content until the image is removed.
"""

from __future__ import annotations

import difflib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hypemand.atomic import sync_folder
from hypemand.errors import ImageNotReady, InUse, InvalidRequest, NotFound

ROOTFS = "rootfs.erofs"
METADATA = "image.json"
STAGING = ".staging"
METADATA_VERSION = 1
BUILTIN_PREFIX = "builtin:"
BUILTIN_FOLDERS = (Path("/usr/lib/hypemand/images"),)

_NAME = re.compile(
    r"(?:[a-z0-9][a-z0-9.-]*:[0-9]{1,5}/)?"  # registry with its port
    r"[a-z0-9][a-z0-9._-]*(?:/[a-z0-9][a-z0-9._-]*)*"  # path
    r"(?::[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?"  # tag
)
_MAX_NAME = 255


@dataclass(frozen=True, slots=True)
class OciConfig:
    """The part of an OCI image's config that says how to run it. Empty: the image says nothing."""

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    working_dir: str = ""
    user: str = ""
    stop_signal: str = ""


@dataclass(frozen=True, slots=True)
class Image:
    """An image that can be used. `digest` is `sha256:…` of its content, `size` the bytes of its rootfs,
    `created_at` seconds since the epoch, `source` what it was made from."""

    name: str
    id: str
    digest: str
    architecture: str
    size: int
    created_at: float
    source: str
    folder: Path
    config: OciConfig = field(default_factory=OciConfig)

    @property
    def rootfs(self) -> Path:
        """The erofs file."""
        return self.folder / ROOTFS

    @property
    def builtin(self) -> bool:
        """Does a package own it?"""
        return self.name.startswith(BUILTIN_PREFIX)


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """An image as the faces show it. `in_use_by` are the names of VMs."""

    name: str
    digest: str
    architecture: str
    size: int
    created_at: float
    entrypoint: tuple[str, ...]
    cmd: tuple[str, ...]
    env: tuple[str, ...]
    working_dir: str
    user: str
    builtin: bool
    in_use_by: tuple[str, ...]


def derive_info(image: Image, in_use_by: Sequence[str] = ()) -> ImageInfo:
    """What is shown of `image`."""
    return ImageInfo(
        name=image.name,
        digest=image.digest,
        architecture=image.architecture,
        size=image.size,
        created_at=image.created_at,
        entrypoint=image.config.entrypoint,
        cmd=image.config.cmd,
        env=image.config.env,
        working_dir=image.config.working_dir,
        user=image.config.user,
        builtin=image.builtin,
        in_use_by=tuple(in_use_by),
    )


def parse_image_name(text: str) -> str:
    """Check an image's name and give its one spelling: the tag `latest` is left out."""
    if len(text) > _MAX_NAME or not _NAME.fullmatch(text):
        raise InvalidRequest(
            f"{text[:80]!r} cannot be the name of an image",
            hint="lower-case words as in app, app:v2 or registry.example/team/app:v2",
            code="invalid_name",
        )
    return text.removesuffix(":latest")


def derive_id(name: str, digest: str) -> str:
    """The id of the image that binds `name` to the content `digest`; also its folder's name."""
    return hashlib.sha256(f"{name}\n{digest}".encode()).hexdigest()[:24]


def encode_metadata(image: Image) -> bytes:
    """The text of METADATA."""
    config = image.config
    document = {
        "version": METADATA_VERSION,
        "name": image.name,
        "id": image.id,
        "digest": image.digest,
        "architecture": image.architecture,
        "size": image.size,
        "created_at": image.created_at,
        "source": image.source,
        "config": {
            "Entrypoint": list(config.entrypoint),
            "Cmd": list(config.cmd),
            "Env": list(config.env),
            "WorkingDir": config.working_dir,
            "User": config.user,
            "StopSignal": config.stop_signal,
        },
    }
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()


def parse_oci_config(document: object) -> OciConfig:
    """Read the `config` object of an OCI image config. ValueError if it is none."""
    if document is None:
        return OciConfig()
    if not isinstance(document, dict):
        raise ValueError("config is not an object")
    return OciConfig(
        entrypoint=_parse_words(document, "Entrypoint"),
        cmd=_parse_words(document, "Cmd"),
        env=_parse_words(document, "Env"),
        working_dir=_parse_text(document, "WorkingDir"),
        user=_parse_text(document, "User"),
        stop_signal=_parse_text(document, "StopSignal"),
    )


def _parse_words(document: Mapping[str, object], key: str) -> tuple[str, ...]:
    value = document.get(key)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise ValueError(f"{key} is not a list of strings")
    return tuple(value)


def _parse_text(document: Mapping[str, object], key: str) -> str:
    value = document.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{key} is not a string")
    return value


def _parse_number(document: Mapping[str, object], key: str) -> float:
    value = document.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{key} is not a number")
    return value


def parse_metadata(data: bytes, folder: Path) -> Image:
    """Read METADATA of the image in `folder`. ValueError if it cannot be understood."""
    document = json.loads(data)
    if not isinstance(document, dict) or document.get("version") != METADATA_VERSION:
        raise ValueError(f"version is not {METADATA_VERSION}")
    return Image(
        name=_parse_text(document, "name"),
        id=_parse_text(document, "id"),
        digest=_parse_text(document, "digest"),
        architecture=_parse_text(document, "architecture"),
        size=int(_parse_number(document, "size")),
        created_at=float(_parse_number(document, "created_at")),
        source=_parse_text(document, "source"),
        folder=folder,
        config=parse_oci_config(document.get("config")),
    )


def _read_image(folder: Path) -> Image:
    """The image in `folder`; ImageNotReady says what is broken about it."""
    try:
        image = parse_metadata((folder / METADATA).read_bytes(), folder)
        size = image.rootfs.stat().st_size
    except (OSError, ValueError) as error:
        raise ImageNotReady(f"the image in {folder} is broken: {error}", hint="import it again") from error
    if size != image.size:
        raise ImageNotReady(
            f"the image {image.name} is broken: {image.rootfs} has {size} bytes instead of {image.size}",
            hint="remove it and import it again",
        )
    return image


class ImageStore:
    """The images of a host. Nothing is cached: what the folders hold is true. All methods block on disk.

    `folder` is the store's own (made if missing), `builtin` are folders with one folder for each image.
    """

    def __init__(self, folder: Path, builtin: Sequence[Path] = BUILTIN_FOLDERS) -> None:
        self.folder = folder
        self._builtin = tuple(builtin)

    def prepare(self) -> None:
        """Make the store's folder. VMMs open images in it by path, but nobody lists it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o711)

    def _iter_folders(self) -> Iterator[Path]:
        for root in (*self._builtin, self.folder):
            if root.is_dir():
                yield from sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))

    def _iter_images(self) -> Iterator[Image]:
        for folder in self._iter_folders():
            try:
                image = _read_image(folder)
            except ImageNotReady:
                continue
            if image.builtin != (folder.parent == self.folder):
                yield image

    def list_images(self) -> list[Image]:
        """All usable images, by name."""
        return sorted(self._iter_images(), key=lambda image: image.name)

    def list_broken(self) -> list[ImageNotReady]:
        """What is wrong with the folders that hold no usable image."""
        found = []
        for folder in self._iter_folders():
            try:
                _read_image(folder)
            except ImageNotReady as error:
                found.append(error)
        return found

    def find_image(self, name: str) -> Image | None:
        """The image of that name; a name that cannot be one is InvalidRequest."""
        wanted = parse_image_name(name)
        return next((image for image in self._iter_images() if image.name == wanted), None)

    def get_image(self, name: str) -> Image:
        """The image of that name; NotFound tells which there are."""
        image = self.find_image(name)
        if image is None:
            raise NotFound(f"there is no image {name}", hint=self._derive_hint(name), code="image_not_found")
        return image

    def _derive_hint(self, name: str) -> str:
        names = [image.name for image in self.list_images()]
        if not names:
            return "there are no images yet; import one with: hypemanctl image import NAME PATH"
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        meant = f"did you mean {near[0]}? " if near else ""
        more = f" and {len(names) - 10} more" if len(names) > 10 else ""
        return f"{meant}there are: {', '.join(names[:10])}{more}"

    def remove_image(self, name: str, in_use_by: Sequence[str]) -> None:
        """Remove an image that no VM uses. `in_use_by` are the names of those that do."""
        image = self.get_image(name)
        if image.builtin:
            raise InUse(f"{image.name} belongs to a Debian package", hint="remove the package instead")
        if in_use_by:
            names = ", ".join(sorted(in_use_by))
            raise InUse(f"the image {image.name} is used by {names}", hint="remove these VMs first")
        self._discard(image.folder)

    def _discard(self, folder: Path) -> None:
        """Take an image away in one step, then delete: what a crash leaves, `clean_staging` removes."""
        staging = self.folder / STAGING
        staging.mkdir(mode=0o700, exist_ok=True)
        doomed = staging / f"removed-{folder.name}-{os.getpid()}"
        try:
            os.rename(folder, doomed)
        except FileNotFoundError:
            return  # somebody else was faster
        sync_folder(self.folder)
        shutil.rmtree(doomed)

    def add_image(self, staged: Path, image: Image) -> Image:
        """Put a finished folder into the store. Somebody may have added the same image meanwhile."""
        target = self.folder / image.id
        try:
            os.rename(staged, target)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        sync_folder(self.folder)
        return _read_image(target)
