# SPDX-License-Identifier: Apache-2.0
"""The image store: names, what is listed, what is broken, what may be removed."""

from __future__ import annotations

import json
import stat
import threading
from pathlib import Path

import pytest

from hypemand.errors import HostNotReady, InUse, InvalidRequest, NotFound
from hypemand.model.images import OciConfig
from hypemand.run import run
from hypemand.storage.builtin import make_builtin
from hypemand.storage.images import METADATA, ROOTFS, Image, derive_id, read_image, store_metadata
from hypemand.storage.references import parse_image_name
from hypemand.storage.store import NAMES, ImageStore, ImageUse
from tests.unit.storage.support import extract

CONFIG = OciConfig(("/e",), ("c",), ("A=b",), "/srv", "me", "SIGINT")


def put(folder: Path, name: str) -> Image:
    """An image in a store's folder; its rootfs is four bytes."""
    digest = f"sha256:{name}"
    target = folder / derive_id(digest)
    target.mkdir(parents=True)
    (target / ROOTFS).write_bytes(b"root")
    image = Image(name, derive_id(digest), digest, "amd64", 4, 12.5, "here", target, CONFIG)
    store_metadata(target, image)
    return image


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    """A store with two images of its own and a built-in one."""
    put(tmp_path / "builtin", "builtin:tiny")
    put(tmp_path / "images", "app")
    put(tmp_path / "images", "team/app:v2")
    return ImageStore(tmp_path / "images", [tmp_path / "builtin", tmp_path / "none"])


def test_images_are_listed_by_name_with_the_builtin_ones(store: ImageStore) -> None:
    assert [image.name for image in store.list_images()] == ["app", "builtin:tiny", "team/app:v2"]
    assert store.list_broken() == []


def test_metadata_survives_writing_and_reading(store: ImageStore) -> None:
    image = store.get_image("app")
    assert image.config == CONFIG
    store_metadata(image.folder, image)
    assert read_image(image.folder) == image
    assert image.rootfs.read_bytes() == b"root"


def test_the_tag_latest_is_the_name_without_a_tag(store: ImageStore) -> None:
    assert store.get_image("app:latest") == store.get_image("app")


def test_an_image_that_is_not_there(store: ImageStore) -> None:
    assert store.find_image("ap") is None
    with pytest.raises(NotFound, match="no image ap; did you mean app"):
        store.get_image("ap")
    with pytest.raises(NotFound, match=r"there are: app, builtin:tiny, team/app:v2"):
        store.get_image("zzzzzz")


def test_a_store_with_nothing_says_how_to_import(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="hypemanctl image pull"):
        ImageStore(tmp_path / "none", []).get_image("app")


@pytest.mark.parametrize(
    "name",
    ["a", "app:v1.2_x", "localhost:5000/team/app", "docker.io/library/debian:bookworm", "builtin:busybox"],
)
def test_good_names(name: str) -> None:
    assert parse_image_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "App", "/a", "a/", "a//b", "../a", "a b", "a:", "a:b:c", "-a", "a\n", "a" * 256, "a:" + "t" * 129],
)
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="cannot be the name of an image"):
        parse_image_name(name)


def test_a_content_has_many_names_and_goes_with_the_last(store: ImageStore) -> None:
    digest = store.get_image("app").digest
    tagged = store.tag_image("app", "team/other:v1")
    assert (tagged.name, tagged.digest) == ("team/other:v1", digest)
    kept = [ImageUse("vm", "app", digest)]
    store.remove_image("app", kept)
    assert store.find_image("app") is None
    assert store.get_image("team/other:v1").folder.is_dir()
    with pytest.raises(InUse, match="used by vm"):
        store.remove_image("team/other:v1", kept)
    store.remove_image("team/other:v1", [])
    assert store.find_content(digest) is None


def test_a_vm_that_keeps_to_a_content_is_no_user_of_what_its_name_stands_for_now(store: ImageStore) -> None:
    old = store.get_image("app")
    kept = [ImageUse("vm", "app", old.digest)]
    store.bind("app", store.get_image("team/app:v2").digest)
    assert store.list_users(store.get_image("app"), kept) == []
    left = f"app@{old.digest}"
    assert left in [image.name for image in store.list_images()]
    assert store.list_users(store.get_image("team/app:v2"), kept) == []


def test_a_tag_that_moves_leaves_its_content_under_the_digest(store: ImageStore) -> None:
    old = put(store.folder, "0" * 64)
    store.bind("app", old.digest)
    [pruned] = store.find_prunable([], every=False)
    assert pruned.names == ("app@sha256:app",)
    assert store.find_prunable([ImageUse("vm", "app", "sha256:app")], every=False) == []
    assert store.prune([], every=False) == [pruned]
    assert store.get_image("app").digest == old.digest


def test_pruning_everything_spares_what_vms_need_and_builtin_ones(store: ImageStore) -> None:
    uses = [ImageUse("a", "app"), ImageUse("b", "builtin:tiny")]
    assert [p.names for p in store.prune(uses, every=True)] == [("team/app:v2",)]
    assert [image.name for image in store.list_images()] == ["app", "builtin:tiny"]
    assert store.prune(uses, every=True) == []


@pytest.mark.parametrize("target", ["builtin:tiny", "a@sha256:" + "0" * 64, "dir:/srv", "A"])
def test_names_that_cannot_be_given(store: ImageStore, target: str) -> None:
    with pytest.raises(InvalidRequest):
        store.tag_image("app", target)
    with pytest.raises(InvalidRequest, match="Debian package"):
        store.tag_image("builtin:tiny", "mine")


def test_names_that_cannot_be_read_are_those_the_contents_were_made_under(store: ImageStore) -> None:
    store.tag_image("app", "more")
    (store.folder / NAMES).write_text("{")
    assert [image.name for image in store.list_images()] == ["app", "builtin:tiny", "team/app:v2"]


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 2, "names": {"app": "sha256:app"}}'])
def test_names_that_cannot_be_read_are_not_written_over(store: ImageStore, text: str) -> None:
    store.tag_image("app", "more")
    file = store.folder / NAMES
    kept = file.read_bytes()
    file.write_text(text)
    before = sorted(store.folder.iterdir())
    for change in (
        lambda: store.bind("new", "sha256:app"),
        lambda: store.remove_image("app", []),
        lambda: store.prune([], every=True),
    ):
        with pytest.raises(HostNotReady, match=r"names.json cannot be read, so no image is"):
            change()
    assert (file.read_text(), sorted(store.folder.iterdir())) == (text, before)
    file.write_bytes(kept)
    store.remove_image("more", [])


def test_removal(store: ImageStore) -> None:
    with pytest.raises(InUse, match="used by a, b; remove these VMs, or snapshots, first"):
        store.remove_image("app", [ImageUse("b", "app"), ImageUse("a", "app", "sha256:app")])
    with pytest.raises(InUse, match="belongs to a Debian package"):
        store.remove_image("builtin:tiny", [])
    with pytest.raises(NotFound):
        store.remove_image("other", [])
    store.remove_image("app", [])
    assert [image.name for image in store.list_images()] == ["builtin:tiny", "team/app:v2"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"version": 2}',
        "nonsense",
        '{"version": 1, "size": true}',
        '{"version": 1, "name": 3}',
    ],
)
def test_a_broken_image_is_told_of_and_does_not_hide_the_others(store: ImageStore, text: str) -> None:
    (store.get_image("app").folder / METADATA).write_text(text)
    assert [image.name for image in store.list_images()] == ["builtin:tiny", "team/app:v2"]
    [problem] = store.list_broken()
    assert "is broken" in str(problem)


def test_a_truncated_rootfs_is_a_broken_image(store: ImageStore) -> None:
    store.get_image("app").rootfs.write_bytes(b"r")
    assert store.find_image("app") is None
    assert "1 bytes instead of 4" in str(store.list_broken()[0])


def test_an_imported_image_cannot_pose_as_a_builtin_one(store: ImageStore) -> None:
    folder = store.get_image("app").folder
    document = json.loads((folder / METADATA).read_text())
    (folder / METADATA).write_text(json.dumps({**document, "name": "builtin:tiny"}))
    assert store.get_image("builtin:tiny").folder.parent != store.folder


def test_the_builtin_busybox_is_whole_and_the_same_each_time(tmp_path: Path) -> None:
    images = [make_builtin(tmp_path / name, Path("/bin/busybox"), "1000") for name in ("a", "b")]
    assert images[0].rootfs.read_bytes() == images[1].rootfs.read_bytes()
    assert images[0].digest == images[1].digest
    store = ImageStore(tmp_path / "images", [tmp_path / "a"])
    image = store.get_image("builtin:busybox")
    assert image.config.cmd[0] == "/bin/sh"
    root = extract(image.rootfs, tmp_path / "root")
    assert stat.S_IMODE((root / "tmp").stat().st_mode) == 0o1777
    assert not (root / "sbin/init").is_symlink()
    said = run(["chroot", str(root), "/bin/sh", "-c", "id -u -n; which ls"], timeout=10)
    assert said.stdout == b"root\n/bin/ls\n"


def test_nothing_is_kept_of_a_content_that_was_made(tmp_path: Path) -> None:
    """Each pull makes another content, and a store lives as long as the daemon."""
    store = ImageStore(tmp_path)
    holding, waiting, may_end = threading.Event(), threading.Event(), threading.Event()

    def hold() -> None:
        with store.making("a"):
            holding.set()
            may_end.wait(60)

    first = threading.Thread(target=hold)
    first.start()
    holding.wait(60)

    def note(wait: bool) -> None:
        if wait:
            waiting.set()
            may_end.set()

    with store.making("a", note), store.making("b"):
        assert waiting.is_set(), "of one content one is made at a time"
    first.join(60)
    assert store._making == {}
