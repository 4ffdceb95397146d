# SPDX-License-Identifier: Apache-2.0
"""Which image of several is meant: indexes of OCI layouts, and manifests of Docker archives (docker save).

An archive of today's docker save is both at once. All that is read here is as hostile as the image.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hypemand.errors import ImageNotReady

OCI_LAYOUT = "oci-layout"
INDEX = "index.json"
MANIFEST = "manifest.json"
_REF_NAME = "org.opencontainers.image.ref.name"
_FULL_NAME = "io.containerd.image.name"
_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Listed:
    """An image in an archive. `content` identifies the content; `word` is what skopeo calls it by."""

    names: tuple[str, ...]
    content: str
    word: str


def parse_index(files: Mapping[str, bytes], source: str) -> list[Listed] | None:
    """The images of an OCI layout, of which `files` has oci-layout and index.json. None if it is none.
    ImageNotReady, naming `source`, if it is one whose index is damaged."""
    layout = _load(files.get(OCI_LAYOUT))
    if not isinstance(layout, dict) or "imageLayoutVersion" not in layout or INDEX not in files:
        return None
    index = _load(files[INDEX])
    manifests = index.get("manifests") if isinstance(index, dict) else None
    if not isinstance(manifests, list) or not all(isinstance(item, dict) for item in manifests):
        raise ImageNotReady(f"the {INDEX} of the OCI layout {source} is damaged", hint="create it again")
    return [_describe(item) for item in manifests]


def _describe(descriptor: Mapping[str, Any]) -> Listed:
    annotations = descriptor.get("annotations")
    notes = annotations if isinstance(annotations, dict) else {}
    word = str(notes.get(_REF_NAME) or "")
    full = str(notes.get(_FULL_NAME) or "")
    return Listed(tuple(_spellings(word, full)), str(descriptor.get("digest")), word)


def parse_manifest(files: Mapping[str, bytes]) -> list[Listed] | None:
    """The images of a Docker archive, of which `files` has manifest.json. None if that is another file."""
    document = _load(files.get(MANIFEST))
    if not isinstance(document, list) or not document:
        return None
    found = []
    for number, item in enumerate(document):
        if not isinstance(item, dict) or not isinstance(item.get("Config"), str):
            return None
        if not isinstance(item.get("Layers"), list):
            return None
        names = [name for name in item.get("RepoTags") or [] if isinstance(name, str)]
        found.append(Listed(tuple(_spellings(*names)), str(number), f"@{number}"))
    return found


def _load(data: bytes | None) -> Any:
    try:
        return None if data is None else json.loads(data)
    except (ValueError, RecursionError):
        return None


def _spellings(*names: str) -> Iterator[str]:
    """docker.io/library/app:v1, app:v1 and v1 are one name where there is only one of it."""
    for name in filter(None, names):
        yield name
        short = name.removeprefix("docker.io/").removeprefix("library/")
        if short != name:
            yield short
        tag = short.rpartition("/")[2].partition(":")[2]
        if tag:
            yield tag


def choose(listed: list[Listed], tag: str, source: str) -> Listed:
    """The image of that tag, or name; of any if `tag` is "" and all are one content. ImageNotReady."""
    found = [item for item in listed if not tag or tag in item.names]
    if len({item.content for item in found}) == 1:
        return found[0]
    names = ", ".join(item.names[0] if item.names else "(no name)" for item in listed[:_SHOWN])
    wanted = f"no image {tag}" if not found else f"more than one image {tag}".rstrip()
    raise ImageNotReady(
        f"{source} has {wanted}; it contains {names or 'nothing'}", hint=f"append :TAG, as in {source}:TAG"
    )
