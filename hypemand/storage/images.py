# SPDX-License-Identifier: Apache-2.0
"""Images: read-only root file systems with metadata that says how to run them.

An image is a folder with ROOTFS (erofs) and METADATA (JSON), one for each content, which never changes. What
the store has of names is in hypemand.storage.store.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType

from hypemand.errors import ImageNotReady
from hypemand.model.images import OciConfig
from hypemand.recordfile import load_record, store_record
from hypemand.storage.references import BUILTIN_PREFIX

ROOTFS = "rootfs.erofs"
METADATA = "image.json"
STAGING = ".staging"
METADATA_VERSION = 1
BUILTIN_FOLDERS = (Path("/usr/lib/hypemand/images"),)
_HEX = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Image:
    """An image that can be used, by one of its names. `digest` is `sha256:…` of its content, `size` the bytes
    of its rootfs, `created_at` seconds since the epoch, `source` what it was made from. `systemd_links`:
    which of its usual inits are links to systemd; () also for images that were made before this was noted.
    `tags`: what users have labelled the name with."""

    name: str
    id: str
    digest: str
    architecture: str
    size: int
    created_at: float
    source: str
    folder: Path
    config: OciConfig = field(default_factory=OciConfig)
    systemd_links: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def rootfs(self) -> Path:
        """The erofs file."""
        return self.folder / ROOTFS

    @property
    def builtin(self) -> bool:
        """Does a package own it?"""
        return self.name.startswith(BUILTIN_PREFIX)


def derive_id(digest: str) -> str:
    """The id of the content `digest`; also its folder's name."""
    algorithm, _, digits = digest.partition(":")
    if algorithm == "sha256" and _HEX.fullmatch(digits):
        return digits
    return hashlib.sha256(digest.encode()).hexdigest()


def store_metadata(folder: Path, image: Image) -> None:
    """Write METADATA of an image in its folder. Blocks; OSError."""
    document = {
        "version": METADATA_VERSION,
        "name": image.name,
        "id": image.id,
        "digest": image.digest,
        "architecture": image.architecture,
        "size": image.size,
        "created_at": image.created_at,
        "source": image.source,
        "config": dict(sorted(encode_oci_config(image.config).items())),
        "systemd_links": list(image.systemd_links),
    }
    store_record(folder / METADATA, dict(sorted(document.items())), indent=2, mode=0o644)


def encode_oci_config(config: OciConfig) -> dict[str, object]:
    """The `config` object of an OCI image config."""
    return {
        "Entrypoint": list(config.entrypoint),
        "Cmd": list(config.cmd),
        "Env": list(config.env),
        "WorkingDir": config.working_dir,
        "User": config.user,
        "StopSignal": config.stop_signal,
    }


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


def _parse_metadata(folder: Path, document: Mapping[str, object]) -> Image:
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
        systemd_links=_parse_words(document, "systemd_links"),
    )


def read_image(folder: Path) -> Image:
    """The image in `folder`; ImageNotReady says what is broken about it."""
    try:
        parse = partial(_parse_metadata, folder)
        image = load_record(folder / METADATA, parse, versions=(METADATA_VERSION,))
        size = image.rootfs.stat().st_size
    except (OSError, ValueError) as error:
        raise ImageNotReady(f"the image in {folder} is broken: {error}", hint="import it again") from error
    if size != image.size:
        raise ImageNotReady(
            f"the image {image.name} is broken: {image.rootfs} has {size} bytes instead of {image.size}",
            hint="remove it and import it again",
        )
    return image
