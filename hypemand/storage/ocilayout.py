# SPDX-License-Identifier: Apache-2.0
"""OCI image layouts (OCI image-spec, image-layout.md): copy with skopeo, read, wrap, unpack with umoci.

A layout that this module makes has one image, tagged TAG.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypemand.errors import ImageNotReady
from hypemand.model.images import OciConfig
from hypemand.run import CommandFailed, run
from hypemand.storage import tarball
from hypemand.storage.archives import INDEX, MANIFEST, OCI_LAYOUT, Listed, parse_index, parse_manifest
from hypemand.storage.attributes import drop_forbidden
from hypemand.storage.images import encode_oci_config, parse_oci_config
from hypemand.storage.rootfs import hash_file
from hypemand.storage.tools import Tools

TAG = "image"
_TIMEOUT = 1800.0
_MAX_JSON = 4 * 1024 * 1024
_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
# of umoci, for what a process without CAP_SYS_ADMIN may not set
_DENIED = "restore xattr metadata"
_REF_NAME = "org.opencontainers.image.ref.name"


@dataclass(frozen=True, slots=True)
class Described:
    """What an image says of itself. `digest` is that of its manifest. `zstd`: it has a layer that is packed
    with that, which umoci does not unpack."""

    digest: str
    architecture: str
    config: OciConfig
    zstd: bool


def is_layout(path: Path) -> bool:
    """Is that folder an OCI layout?"""
    return find_images(path) is not None


def find_images(path: Path) -> list[Listed] | None:
    """The images of an OCI layout; None if that folder is none. ImageNotReady for one that is damaged."""
    return parse_index(_read_markers(path, OCI_LAYOUT, INDEX), str(path))


def find_docker_images(path: Path) -> list[Listed] | None:
    """The images of a Docker archive that was unpacked; None if that folder is none."""
    return parse_manifest(_read_markers(path, MANIFEST))


def _read_markers(path: Path, *names: str) -> dict[str, bytes]:
    files = {}
    for name in names:
        with suppress(OSError, ValueError):
            files[name] = _read(path / name)
    return files


# A layout has no place for signatures, which have done their work when an image is copied. Layers stay as
# they are packed; those that are not get packed, quickly, since skopeo 1.9 would call them so all the same.
COPY_OPTIONS = ("--quiet", "--remove-signatures", "--dest-compress-level=1")


def _skopeo(scratch: Path) -> list[str]:
    """The host's policy is for what comes from elsewhere. TMPDIR does not count for what may be large."""
    return ["skopeo", "--insecure-policy", f"--tmpdir={scratch}", "copy"]


def copy(reference: str, source: Path, layout: Path, tools: Tools) -> None:
    """Copy an image on this host, in skopeo's spelling (containers-transports(5)), into a new layout.

    `source` is the file or folder that it names. Of an index, the image for this host. Digests are verified.
    """
    argv = [*_skopeo(layout.parent), *COPY_OPTIONS, reference, f"oci:{layout}:{TAG}"]
    tools.build(argv, folder=layout.parent, timeout=_TIMEOUT, readable=[source])


def link(source: Path, content: str, layout: Path) -> bool:
    """Make a new layout of the image in another that has the digest `content`; blobs stay where they are.

    False, and nothing made, for what needs more than that: an index, layers that have to be packed anew, or
    what cannot be understood, which `copy` has the words for. Digests are verified as blobs are read.
    """
    try:
        listed = _read_json(source / "index.json")["manifests"]
        [found] = {d["digest"]: d for d in listed if d["digest"] == content}.values()
        layers = _read_blob(source, found)["layers"]
        kinds = {str(layer.get("mediaType")) for layer in layers}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, ImageNotReady):
        return False
    if found.get("mediaType") != _MANIFEST_TYPE or not kinds <= {_LAYER_TYPE, f"{_LAYER_TYPE}+gzip"}:
        return False
    layout.mkdir()
    (layout / "blobs").symlink_to(source / "blobs")
    _write_index(layout, {key: found[key] for key in ("mediaType", "digest", "size")})
    return True


def pack(layout: Path, archive: Path, name: str, tools: Tools) -> None:
    """Write the image in a layout to a tar of an OCI layout, in which it is called `name`."""
    argv = [*_skopeo(archive.parent), "--quiet", f"oci:{layout}:{TAG}", f"oci-archive:{archive}"]
    argv[-1] += f":{name}" if name else ""
    tools.build(argv, folder=archive.parent, timeout=_TIMEOUT)


def pack_folder(folder: Path, tar: Path, tools: Tools) -> None:
    """Write a tar of a folder."""
    argv = ["tar", "-C", os.fspath(folder), "-cf", os.fspath(tar), "."]
    tools.build(argv, folder=tar.parent, timeout=_TIMEOUT, readable=[folder])


def unpack(layout: Path, root: Path, tools: Tools, check: Callable[[], None]) -> None:
    """Unpack the image into the new folder `root`: owners, modes, xattrs, devices; white-outs applied.
    `check` raises when it takes too much room."""
    try:
        _unpack(layout, root, tools)
    except CommandFailed as error:
        if _DENIED not in error.result.stderr:
            raise
        # the copy of the layers may need its room
        run(["rm", "-rf", "--", os.fspath(root)], timeout=_TIMEOUT)
        other = _without_forbidden(layout, tools, check)
        _unpack(other, root, tools)
        shutil.rmtree(other)


def _without_forbidden(layout: Path, tools: Tools, check: Callable[[], None]) -> Path:
    """A layout of the same image, its layers unpacked and without attributes that may not be set."""
    [descriptor] = _read_json(layout / "index.json")["manifests"]
    manifest = _read_blob(layout, descriptor)
    document = _read_blob(layout, manifest["config"])
    other = layout.with_name(f"{layout.name}-plain")
    (other / "blobs/sha256").mkdir(parents=True)
    layers = []
    for layer in manifest["layers"]:
        digest = str(layer["digest"]).removeprefix("sha256:")
        blob = layout / "blobs/sha256" / digest
        # who unpacks the copy cannot tell any more
        if not digest.isalnum() or hash_file(blob) != f"sha256:{digest}":
            raise ImageNotReady(f"the image is broken: the content of its blob {digest[:64]} does not match")
        tar = other / "layer.tar"
        tarball.decompress(blob, tar, tools, check)
        drop_forbidden(tar)
        plain = hash_file(tar)
        size = tar.stat().st_size
        tar.rename(other / "blobs/sha256" / plain.removeprefix("sha256:"))
        layers.append({"mediaType": _LAYER_TYPE, "digest": plain, "size": size})
    document["rootfs"] = {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]}
    described = {"mediaType": _CONFIG_TYPE, **_write_blob(other, document)}
    plainer = {"schemaVersion": 2, "mediaType": _MANIFEST_TYPE, "config": described, "layers": layers}
    _write_index(other, {"mediaType": _MANIFEST_TYPE, **_write_blob(other, plainer)})
    return other


def _unpack(layout: Path, root: Path, tools: Tools) -> None:
    argv = ["umoci", "raw", "unpack", "--image", f"{layout}:{TAG}", os.fspath(root)]
    read = [layout, (layout / "blobs").resolve()]
    try:
        tools.build(argv, folder=root.parent, timeout=_TIMEOUT, readable=read)
    except CommandFailed as error:
        if "panic:" not in error.result.stderr:
            raise
        # When an unpack fails, its threads may race to a crash that hides the reason: one thread tells it.
        run(["rm", "-rf", "--", os.fspath(root)], timeout=_TIMEOUT)
        one_thread = {"GOMAXPROCS": "1"}
        tools.build(argv, folder=root.parent, timeout=_TIMEOUT, env=one_thread, readable=read)


def repack(layout: Path, tools: Tools) -> Path:
    """Have all layers packed with gzip, quickly rather than well: another layout in place of this one."""
    other = layout.with_name(f"{layout.name}-gzip")
    argv = [*_skopeo(layout.parent), "--quiet", "--dest-compress-format=gzip", "--dest-compress-level=1"]
    argv += [f"oci:{layout}:{TAG}", f"oci:{other}:{TAG}"]
    read = [(layout / "blobs").resolve()]
    tools.build(argv, folder=layout.parent, timeout=_TIMEOUT, readable=read)
    shutil.rmtree(layout)
    return other


def _read(path: Path) -> bytes:
    # a named pipe would be waited for
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError(f"{path.name} is not a file")
        data = file.read(_MAX_JSON + 1)
    if len(data) > _MAX_JSON:
        raise ValueError(f"{path.name} has more than {_MAX_JSON} bytes")
    return data


def _read_json(path: Path) -> Any:
    return json.loads(_read(path))


def _read_blob(layout: Path, descriptor: Any) -> Any:
    """A blob that is JSON and what its descriptor says."""
    algorithm, _, digest = str(descriptor["digest"]).partition(":")
    if algorithm != "sha256" or not digest.isalnum():
        raise ValueError("a digest is malformed")
    data = _read(layout / "blobs" / algorithm / digest)
    if hashlib.sha256(data).hexdigest() != digest:
        raise ImageNotReady(f"the image is broken: the content of its blob {digest} does not match")
    return json.loads(data)


def read_image(layout: Path) -> Described:
    """Read manifest and config of the image in a layout that `copy` made."""
    try:
        [descriptor] = _read_json(layout / "index.json")["manifests"]
        manifest = _read_blob(layout, descriptor)
        kinds = [str(layer.get("mediaType")) for layer in manifest["layers"]]
        document = _read_blob(layout, manifest["config"])
        return Described(
            digest=str(descriptor["digest"]),
            architecture=str(document.get("architecture") or ""),
            config=parse_oci_config(document.get("config")),
            zstd=any(kind.endswith("zstd") for kind in kinds),
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ImageNotReady(f"the image's metadata cannot be read: {error}") from error


def _write_blob(layout: Path, document: object) -> dict[str, object]:
    data = json.dumps(document, sort_keys=True).encode()
    digest = hashlib.sha256(data).hexdigest()
    (layout / "blobs/sha256" / digest).write_bytes(data)
    return {"digest": f"sha256:{digest}", "size": len(data)}


def wrap_layer(tar: Path, layout: Path, architecture: str, config: OciConfig | None = None) -> None:
    """Make a layout with one layer, the uncompressed `tar`, which is moved into it."""
    (layout / "blobs/sha256").mkdir(parents=True)
    with open(tar, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    size = tar.stat().st_size
    shutil.move(tar, layout / "blobs/sha256" / digest)
    layer = f"sha256:{digest}"
    document: dict[str, object] = {
        "architecture": architecture,
        "os": "linux",
        "config": {} if config is None else encode_oci_config(config),
        "rootfs": {"type": "layers", "diff_ids": [layer]},
    }
    described = {"mediaType": _CONFIG_TYPE, **_write_blob(layout, document)}
    layers = [{"mediaType": _LAYER_TYPE, "digest": layer, "size": size}]
    manifest = {"schemaVersion": 2, "mediaType": _MANIFEST_TYPE, "config": described, "layers": layers}
    _write_index(layout, {"mediaType": _MANIFEST_TYPE, **_write_blob(layout, manifest)})


def _write_index(layout: Path, descriptor: Mapping[str, object]) -> None:
    """What makes a layout of blobs: the one image is that of the descriptor."""
    entry = {**descriptor, "annotations": {_REF_NAME: TAG}}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
