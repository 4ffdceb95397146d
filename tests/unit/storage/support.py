# SPDX-License-Identifier: Apache-2.0
"""Root file systems, tars and OCI layouts for tests, and a look into what came of them."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from hypemand.run import run

BUSYBOX = Path("/bin/busybox")
SCHILY = "SCHILY.xattr."


def extract(rootfs: Path, target: Path) -> Path:
    """Unpack an erofs, owners and all."""
    run(["fsck.erofs", f"--extract={target}", "--preserve", str(rootfs)], timeout=60)
    return target


@contextmanager
def mounted(rootfs: Path, at: Path) -> Iterator[None]:
    """Mount an erofs; fsck.erofs cannot unpack all (set-user-id, xattrs, links)."""
    at.mkdir()
    run(["mount", "-t", "erofs", "-o", "ro", str(rootfs), str(at)], timeout=60)
    try:
        yield
    finally:
        run(["umount", str(at)], timeout=60)


def member(
    name: str,
    data: bytes = b"",
    *,
    kind: bytes = tarfile.REGTYPE,
    link: str = "",
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    device: tuple[int, int] = (0, 0),
    xattrs: Mapping[str, str] | None = None,
    mtime: int = 1_000_000_000,
) -> tuple[tarfile.TarInfo, bytes]:
    """One entry of a tar."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.mtime = kind, link, mode, mtime
    info.uid, info.gid = uid, gid
    info.devmajor, info.devminor = device
    info.size = len(data)
    info.pax_headers = {SCHILY + key: value for key, value in (xattrs or {}).items()}
    return info, data


def folder(name: str, mode: int = 0o755) -> tuple[tarfile.TarInfo, bytes]:
    """A folder of a tar."""
    return member(name, kind=tarfile.DIRTYPE, mode=mode)


def link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    """A symbolic link of a tar."""
    return member(name, kind=tarfile.SYMTYPE, link=target, mode=0o777)


def shell(name: str = "bin/sh") -> tuple[tarfile.TarInfo, bytes]:
    """A program for this host."""
    return member(name, BUSYBOX.read_bytes(), mode=0o755)


def make_tar(path: Path, members: Iterable[tuple[tarfile.TarInfo, bytes]], mode: str = "w") -> Path:
    """Write a tar; `mode` may name a compression, as `w:xz`."""
    quick = {"w:gz": {"compresslevel": 1}, "w:xz": {"preset": 0}}.get(mode, {})
    with tarfile.open(path, mode, format=tarfile.PAX_FORMAT, **quick) as archive:  # type: ignore[call-overload]
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return path


def make_layout(
    path: Path,
    layers: Sequence[Path],
    *,
    tag: str = "latest",
    config: Mapping[str, str | list[str]] | None = None,
    architecture: str = "amd64",
) -> Path:
    """An OCI layout of uncompressed layers, by umoci; with another image if it is there. Each is made once in
    a process, and written again where another test asks for the same."""
    index = path / "index.json"
    before = index.read_bytes() if index.exists() else b""
    contents = [hashlib.sha256(layer.read_bytes()).digest() for layer in layers]
    key = repr((before, contents, tag, config, architecture))
    if key not in _layouts:
        _run_umoci(path, layers, tag, config or {}, architecture)
        files = [file for file in path.rglob("*") if file.is_file()]
        _layouts[key] = {str(file.relative_to(path)): file.read_bytes() for file in files}
    for name, data in _layouts[key].items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


_layouts: dict[str, dict[str, bytes]] = {}


def _run_umoci(
    path: Path, layers: Sequence[Path], tag: str, config: Mapping[str, str | list[str]], architecture: str
) -> None:
    if not path.exists():
        run(["umoci", "init", "--layout", str(path)], timeout=60)
    image = f"{path}:{tag}"
    run(["umoci", "new", "--image", image], timeout=60)
    for layer in layers:
        run(["umoci", "raw", "add-layer", "--image", image, str(layer)], timeout=60)
    options = [f"--architecture={architecture}", "--os=linux"]
    for key, value in config.items():
        words = [value] if isinstance(value, str) else value
        options += [f"--config.{key}={word}" for word in words]
    run(["umoci", "config", "--image", image, *options], timeout=60)
    run(["umoci", "gc", "--layout", str(path)], timeout=60)
    assert json.loads((path / "index.json").read_text())["manifests"]
