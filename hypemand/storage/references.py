# SPDX-License-Identifier: Apache-2.0
"""Image names: names in the store, registry references, sources on this host.

    app, app:v2, team/app              a name that somebody gave; where a registry is asked: docker.io's
    registry.example:5000/team/app:v2  in a registry; `@sha256:…` in place of the tag is one content for ever
    oci:/DIR[:TAG], docker-archive:/FILE[:TAG], dir:/DIR   made of what lies at a path of this host
    builtin:NAME                       owned by a Debian package

Names are kept in one spelling: the tag `latest` is left out, and so is a tag before a digest, which says
more. A name whose first word is no host (it has no dot and no port, and is not localhost) is read as Docker
does: `nginx` is `docker.io/library/nginx`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from hypemand.errors import InvalidRequest

BUILTIN_PREFIX = "builtin:"
DOCKER_HUB = "docker.io"
_HUB_ALIASES = (DOCKER_HUB, "index.docker.io")
_MAX_NAME = 255
_DIGEST = r"@sha256:[0-9a-f]{64}"
_NAME = re.compile(
    r"(?P<path>(?:[a-z0-9][a-z0-9.-]*:[0-9]{1,5}/)?"  # registry with its port
    r"[a-z0-9][a-z0-9._-]*(?:/[a-z0-9][a-z0-9._-]*)*)"
    r"(?P<tag>:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?"
    rf"(?P<digest>{_DIGEST})?"
)
_SOURCE = re.compile(rf"(oci|docker-archive|dir):(/[^\x00-\x1f\x7f]*?)({_DIGEST})?", re.DOTALL)


class Transport(StrEnum):
    """Where an image comes from. The three in the middle are spelled as skopeo's."""

    REGISTRY = "docker"
    OCI = "oci"
    DOCKER_ARCHIVE = "docker-archive"
    DIR = "dir"
    BUILTIN = "builtin"

    @property
    def is_local(self) -> bool:
        """A path of this host?"""
        return self in (Transport.OCI, Transport.DOCKER_ARCHIVE, Transport.DIR)


@dataclass(frozen=True, slots=True)
class Reference:
    """A name, taken apart. `name` is what an image made of it is called; `path` that of a source on this
    host, with the tag behind it."""

    transport: Transport
    name: str
    path: str = ""


def parse_image_name(text: str) -> str:
    """Check an image's name and give its one spelling. Raises InvalidRequest."""
    source = _SOURCE.fullmatch(text)
    if len(text) <= _MAX_NAME and source is not None and ".." not in Path(source[2]).parts:
        return text
    match = _NAME.fullmatch(text)
    if len(text) > _MAX_NAME or match is None:
        raise InvalidRequest(
            f"{text[:80]!r} cannot be the name of an image",
            hint="use lower-case names such as app, app:v2 or registry.example/team/app:v2",
            code="invalid_name",
        )
    if match["digest"]:
        return match["path"] + match["digest"]
    return text.removesuffix(":latest")


def parse_reference(text: str) -> Reference:
    """Tell where an image of that name comes from. Raises InvalidRequest."""
    name = parse_image_name(text)
    if name.startswith(BUILTIN_PREFIX):
        return Reference(Transport.BUILTIN, name)
    source = _SOURCE.fullmatch(name)
    if source is not None:
        return Reference(Transport(source[1]), name, source[2])
    return Reference(Transport.REGISTRY, derive_registry_name(name))


def derive_registry_name(name: str) -> str:
    """The full name of what `name`, in its one spelling, is called in a registry."""
    host, slash, rest = name.partition("/")
    if slash and host in _HUB_ALIASES:
        return f"{DOCKER_HUB}/{rest if '/' in rest else f'library/{rest}'}"
    if slash and ("." in host or ":" in host or host == "localhost"):
        return name
    return f"{DOCKER_HUB}/{name if slash else f'library/{name}'}"


def split_name(name: str) -> tuple[str, str]:
    """A name without its tag or digest, and that: `app:v2` is `app` and `:v2`, `app` is `app` and nothing."""
    match = _NAME.fullmatch(name)
    if match is not None:
        return match["path"], match["digest"] or match["tag"] or ""
    path, at, digest = name.rpartition("@sha256:")
    return (path, at + digest) if at else (name, "")


def derive_digest_name(name: str, digest: str) -> str:
    """How the content `digest` is called when the name `name` has gone over to another: `app@sha256:…`."""
    return f"{split_name(name)[0]}@{digest}"
