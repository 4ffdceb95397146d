# SPDX-License-Identifier: Apache-2.0
"""Exported images: nothing is lost on the way out and in again."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import pytest

from hypemand.run import run
from hypemand.storage.erofs import write_tar
from hypemand.storage.exporter import export_image
from hypemand.storage.images import STAGING
from hypemand.storage.importer import import_image
from hypemand.storage.store import ImageStore
from tests.unit.storage.support import make_layout, make_tar, shell
from tests.unit.storage.test_importer import HOST, check_root, make_root


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    """An empty store."""
    return ImageStore(tmp_path / "images", [])


def list_files(rootfs: Path, tar: Path) -> list[tuple[object, ...]]:
    """All there is to know of all files of an erofs."""
    write_tar(rootfs, tar)
    found: list[tuple[object, ...]] = []
    with tarfile.open(tar, errors="surrogateescape") as archive:
        for info in archive:
            data = archive.extractfile(info) if info.isreg() else None
            xattrs = {key: value for key, value in info.pax_headers.items() if key.startswith("SCHILY")}
            about = (info.name, info.type, info.mode, info.uid, info.gid, int(info.mtime), info.linkname)
            found.append((*about, info.devmajor, info.devminor, xattrs, data and data.read()))
    return found


def test_all_that_is_easily_lost_is_there_after_an_export(tmp_path: Path, store: ImageStore) -> None:
    root = make_root(tmp_path / "root")
    # of all lengths that a tail can have, a folder of many blocks, and names that are no UTF-8
    (root / "data").mkdir()
    for size in (0, 1, 4095, 4096, 4097, 3_000_000):
        (root / f"data/{size}").write_bytes(os.urandom(size))
    for number in range(500):
        (root / f"data/{number:03}-{'n' * 60}").touch()
    (root / os.fsdecode(b"data/\xff\xfe")).write_bytes(b"odd")
    os.setxattr(root / "data/1", "user.binary", bytes(range(256)))
    os.chown(root / "data/0", 100_000, 3_000_000_000)
    os.mknod(root / "dev/big", 0o060600, os.makedev(259, 70_000))
    image = import_image(store, "app", str(root))
    with export_image(store, image) as archive:
        exported = tmp_path / "out.tar"
        archive.rename(exported)
    assert list((store.folder / STAGING).iterdir()) == []
    again = import_image(store, "again", str(exported))
    check_root(again.rootfs, tmp_path / "out")
    assert again.config == image.config
    first, second = (list_files(i.rootfs, tmp_path / f"{i.name}.tar") for i in (image, again))
    assert second == first


def test_skopeo_reads_what_the_image_says_of_itself(tmp_path: Path, store: ImageStore) -> None:
    layer = make_tar(tmp_path / "1.tar", [shell()])
    config: dict[str, str | list[str]] = {"cmd": ["/bin/sh"], "env": ["A=b"], "workingdir": "/bin"}
    layout = make_layout(tmp_path / "layout", [layer], config=config, architecture=HOST)
    image = import_image(store, "registry.example/app:v1", str(layout))
    with export_image(store, image) as archive:
        told = run(["skopeo", "inspect", "--config", f"oci-archive:{archive}"], timeout=60).stdout
        listed = run(["tar", "-xOf", str(archive), "index.json"], timeout=60).stdout
    about = json.loads(told)
    assert (about["config"]["Cmd"], about["config"]["Env"]) == (["/bin/sh"], ["A=b"])
    assert (about["config"]["WorkingDir"], about["architecture"]) == ("/bin", HOST)
    assert b"registry.example/app:v1" in listed


@pytest.mark.parametrize("content", [b"", bytes(4096), b"\xe2\xe1\xf5\xe0" * 2000])
def test_what_is_no_erofs_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(ValueError, match=r"no erofs|too early|layout|attribute"):
        write_tar(tmp_path / "bad", tmp_path / "tar")
