# SPDX-License-Identifier: Apache-2.0
"""Images in registries, with skopeo: resolves and pulls a reference.

What a registry says is believed only where it fits a digest. Which digest a tag has is one small request; the
rest is asked for when the store has not that content already.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypemand.errors import HypemandError, ImageNotReady, NotFound
from hypemand.model.images import derive_host_architecture
from hypemand.run import CommandFailed, CommandTimedOut
from hypemand.storage.ocilayout import COPY_OPTIONS, TAG
from hypemand.storage.references import split_name
from hypemand.storage.tools import RegistryAuth, Tools

ASK_TIMEOUT = 60.0
COPY_TIMEOUT = 3600.0
_MAX_JSON = 4 * 1024 * 1024
_MAX_LAYERS = 1000
_DIGEST = re.compile("sha256:[0-9a-f]{64}")
_MESSAGE = re.compile(r'msg="((?:[^"\\]|\\.)*)"')
_NOT_THERE = ("manifest unknown", "name unknown", "not found", "repository name not known")
_DENIED = (
    "unauthorized",
    "authentication required",
    "denied",
    "403 (forbidden)",
    "invalid username/password",
)
_HINTS = (
    ("server gave http response", (
"a registry without TLS needs insecure = "
"true in /etc/containers/registries.conf"
)),
    ("certificate signed by unknown", "put its CA into /etc/containers/certs.d/HOST[:PORT]/ca.crt"),
    ("x509:", "put its CA into /etc/containers/certs.d/HOST[:PORT]/ca.crt"),
    ("source image rejected", "/etc/containers/policy.json says which images may be used"),
)  # fmt: skip


class PullFailed(HypemandError):
    """A registry could not be asked, or did not give what it had said."""

    code = "pull_failed"
    status = 502


@dataclass(frozen=True, slots=True)
class Blob:
    """A part of an image. `size` in bytes, as the manifest says."""

    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """An image for this host, as its registry describes it."""

    digest: str
    architecture: str
    layers: tuple[Blob, ...]

    @property
    def size(self) -> int:
        """Bytes to fetch."""
        return sum(layer.size for layer in {layer.digest: layer for layer in self.layers}.values())


class Registry:
    """Asks for one reference. `name` is its full name; `folder` is for what skopeo writes."""

    def __init__(self, name: str, tools: Tools, folder: Path, auth: RegistryAuth | None = None) -> None:
        self._name = name
        self._repository, self._version = split_name(name)
        self._tools = tools
        self._folder = folder
        self._auth = auth

    def find_digest(self) -> str:
        """The digest of the image for this host that the reference names now. Raises NotFound,
        ImageNotReady (it is not there for this host), PullFailed."""
        raw = self._inspect(self._name)
        found = f"sha256:{hashlib.sha256(raw).hexdigest()}"
        if self._version.startswith("@") and self._version[1:] != found:
            raise PullFailed(f"{self._name}: the registry returned another content, {found}")
        document = self._parse(raw)
        manifests = document.get("manifests")
        return found if manifests is None else self._choose(manifests)

    def describe(self, digest: str) -> Manifest:
        """The blobs of the image `digest`. ImageNotReady when it is not for this host."""
        reference = f"{self._repository}@{digest}"
        raw = self._inspect(reference)
        if f"sha256:{hashlib.sha256(raw).hexdigest()}" != digest:
            raise PullFailed(f"{reference}: the registry returned another content")
        config = self._parse(self._inspect(reference, "--config"))
        architecture = str(config.get("architecture") or "")
        host = derive_host_architecture()
        if architecture != host:
            raise _wrong_architecture(self._name, [architecture or "an unknown architecture"])
        layers = self._read_layers(self._parse(raw))
        return Manifest(digest, architecture, layers)

    def _read_layers(self, manifest: dict[str, Any]) -> tuple[Blob, ...]:
        try:
            descriptors = manifest["layers"]
            layers = tuple(Blob(str(d["digest"]), int(d["size"])) for d in descriptors)
            if len(layers) > _MAX_LAYERS or any(layer.size < 0 for layer in layers):
                raise ValueError("layers are out of bounds")
        except (LookupError, ValueError, TypeError, AttributeError) as error:
            raise ImageNotReady(f"{self._name}: its manifest cannot be parsed: {error}") from error
        return layers

    def copy(self, digest: str, layout: Path) -> None:
        """Fetch the image into a new layout. Digests are verified, and the host's policy is followed."""
        reference = f"docker://{self._repository}@{digest}"
        argv = ["skopeo", f"--tmpdir={self._folder}", "copy", *COPY_OPTIONS, reference, f"oci:{layout}:{TAG}"]
        self._run(argv, COPY_TIMEOUT, "--src-registry-token")

    def _inspect(self, reference: str, *options: str) -> bytes:
        argv = ["skopeo", "inspect", "--raw", *options, f"docker://{reference}"]
        data = self._run(argv, ASK_TIMEOUT, "--registry-token")
        if len(data) > _MAX_JSON:
            raise ImageNotReady(f"{self._name}: its manifest has more than {_MAX_JSON} bytes")
        return data

    def _run(self, argv: list[str], timeout: float, token_option: str) -> bytes:
        try:
            return self._tools.fetch(
                argv, folder=self._folder, timeout=timeout, auth=self._auth, token_option=token_option
            ).stdout
        except CommandTimedOut:
            raise PullFailed(f"{self._name}: the registry took more than {timeout:g} s") from None
        except CommandFailed as error:
            raise explain(self._name, error) from error

    def _parse(self, raw: bytes) -> dict[str, Any]:
        try:
            document = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise ImageNotReady(f"{self._name}: its manifest cannot be parsed: {error}") from error
        if not isinstance(document, dict):
            raise ImageNotReady(f"{self._name}: its manifest cannot be parsed: it is not an object")
        return document

    def _choose(self, manifests: object) -> str:
        """The image for this host out of an index."""
        host = derive_host_architecture()
        there = []
        for descriptor in manifests if isinstance(manifests, list) else []:
            platform = descriptor.get("platform") if isinstance(descriptor, dict) else None
            if not isinstance(platform, dict) or platform.get("os") != "linux":
                continue
            architecture, digest = str(platform.get("architecture")), str(descriptor.get("digest"))
            if architecture == host and _DIGEST.fullmatch(digest):
                return digest
            there.append(architecture)
        raise _wrong_architecture(self._name, there or ["no architecture of Linux"])


def _wrong_architecture(name: str, there: list[str]) -> ImageNotReady:
    host = derive_host_architecture()
    return ImageNotReady(
        f"{name} is for {', '.join(sorted(set(there)))}, this host is {host}",
        hint=f"use an image for {host}",
    )


def explain(name: str, error: CommandFailed) -> HypemandError | CommandFailed:
    """What a failure of skopeo means, as far as its words tell."""
    said = error.result.stderr
    words = [match.replace('\\"', '"').replace("\\n", " ") for match in _MESSAGE.findall(said)]
    why = (words or [line for line in said.splitlines() if line.strip()] or [error.message])[-1]
    lower = said.lower()
    if "no space left on device" in lower or "disk quota exceeded" in lower:
        return error
    if any(word in lower for word in _DENIED):
        return PullFailed(
            f"{name}: the registry denied access: {why}",
            hint="skopeo login --authfile /etc/hypemand/auth.json REGISTRY",
        )
    if any(word in lower for word in _NOT_THERE):
        return NotFound(f"there is no image {name} in its registry: {why}", code="image_not_found")
    hint = next((hint for text, hint in _HINTS if text in lower), "")
    return PullFailed(f"{name} cannot be pulled: {why}", hint=hint)
