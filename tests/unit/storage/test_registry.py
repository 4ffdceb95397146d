# SPDX-License-Identifier: Apache-2.0
"""Pulling: what is asked, what is believed, what becomes of names."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

from hypemand.errors import HypemandError, ImageNotReady, InsufficientResources, NotFound
from hypemand.model.images import derive_host_architecture
from hypemand.run import run
from hypemand.storage.images import STAGING
from hypemand.storage.importer import Step, Told, import_image, make_image, pull_image
from hypemand.storage.registry import PullFailed
from hypemand.storage.store import ImageStore
from tests.unit.storage.fakeregistry import FakeRegistry
from tests.unit.storage.support import make_layout, make_tar, member, mounted, shell

HOST = derive_host_architecture()
NAME = "registry.example/app"


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    """An empty store."""
    return ImageStore(tmp_path / "images", [])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `layout` is a copy of."""
    folder = tmp_path_factory.mktemp("made")
    first = make_tar(folder / "1.tar", [shell(), member("etc/version", b"1")])
    second = make_tar(folder / "2.tar", [member("etc/version", b"2")])
    path = make_layout(folder / "layout", [first], tag="v1", architecture=HOST)
    make_layout(path, [first, second], tag="v2", architecture=HOST)
    return make_layout(path, [first], tag="other", architecture="s390x")


@pytest.fixture
def layout(tmp_path: Path, made: Path) -> Path:
    """Two images for this host, v1 and v2, and one for another."""
    return Path(shutil.copytree(made, tmp_path / "layout"))


@pytest.fixture
def registry(layout: Path) -> FakeRegistry:
    """A registry with NAME:v1."""
    found = FakeRegistry()
    found.push(f"{NAME}:v1", layout, "v1")
    return found


def left(store: ImageStore) -> list[str]:
    return [path.name for path in (store.folder / STAGING).glob("*")]


def test_what_is_here_is_asked_for_with_one_question(
    store: ImageStore, registry: FakeRegistry, layout: Path
) -> None:
    digest = registry.push(f"{NAME}:v1", layout, "v1")
    told: list[Told] = []
    image = pull_image(store, f"{NAME}:v1", registry, tell=told.append)
    assert (image.name, image.digest, image.id) == (f"{NAME}:v1", digest, digest[7:])
    assert [t.step for t in told] == [Step.PULLING, Step.CONVERTING]
    assert told[0].manifest is not None
    assert told[0].manifest.size > 0
    before = len(registry.asked)
    assert pull_image(store, f"{NAME}:v1", registry) == image
    assert registry.asked[before:] == [f"inspect {NAME}:v1"]
    assert left(store) == []


def test_a_tag_that_moved_leaves_the_old_content(
    store: ImageStore, registry: FakeRegistry, layout: Path
) -> None:
    old = pull_image(store, f"{NAME}:v1", registry)
    new = registry.push(f"{NAME}:v1", layout, "v2")
    assert pull_image(store, f"{NAME}:v1", registry).digest == new
    assert [image.name for image in store.list_images()] == [f"{NAME}:v1", f"{NAME}@{old.digest}"]
    kept = store.get_image(f"{NAME}@{old.digest}")
    assert kept.rootfs.is_file()


def test_two_tags_of_one_content_are_one_image(
    store: ImageStore, registry: FakeRegistry, layout: Path
) -> None:
    registry.push(f"{NAME}:same", layout, "v1")
    registry.gate.clear()
    threads = [
        threading.Thread(target=pull_image, args=(store, f"{NAME}:{tag}", registry)) for tag in ("v1", "same")
    ]
    for thread in threads:
        thread.start()
    registry.gate.set()
    for thread in threads:
        thread.join(60)
    assert sum(asked.startswith("copy") for asked in registry.asked) == 1
    assert {image.name for image in store.list_images()} == {f"{NAME}:v1", f"{NAME}:same"}


def test_of_an_index_the_image_for_this_host(store: ImageStore, registry: FakeRegistry, layout: Path) -> None:
    digest = registry.push("x", layout, "v1")
    index = registry.push_index(f"{NAME}:multi", [("sha256:" + "0" * 64, "s390x"), (digest, HOST)])
    assert pull_image(store, f"{NAME}:multi", registry).digest == digest
    registry.tags[f"{NAME}@{index}"] = registry.tags[f"{NAME}:multi"]
    assert pull_image(store, f"{NAME}@{index}", registry).name == f"{NAME}@{index}"
    assert store.get_image(f"{NAME}@{index}").digest == digest


def test_without_one_for_this_host_those_that_there_are_are_named(
    store: ImageStore, registry: FakeRegistry, layout: Path
) -> None:
    registry.push_index(f"{NAME}:multi", [("sha256:" + "0" * 64, a) for a in ("s390x", "riscv64")])
    with pytest.raises(ImageNotReady, match=f"is for riscv64, s390x, this host is {HOST}"):
        pull_image(store, f"{NAME}:multi", registry)
    registry.push(f"{NAME}:other", layout, "other")
    with pytest.raises(ImageNotReady, match=f"is for s390x, this host is {HOST}"):
        pull_image(store, f"{NAME}:other", registry)
    assert not [asked for asked in registry.asked if asked.startswith("copy")]
    assert left(store) == []


def test_a_digest_is_believed_and_the_registry_is_not(store: ImageStore, registry: FakeRegistry) -> None:
    wrong = f"{NAME}@sha256:{'1' * 64}"
    registry.tags[wrong] = registry.tags[f"{NAME}:v1"]
    with pytest.raises(PullFailed, match="returned another content"):
        pull_image(store, wrong, registry)
    assert store.list_images() == []


def test_layers_that_are_packed_with_zstd_are_packed_anew(
    tmp_path: Path, store: ImageStore, registry: FakeRegistry, layout: Path
) -> None:
    packed = tmp_path / "zstd"
    argv = ["skopeo", "--insecure-policy", "copy", "-q", "--dest-compress-format=zstd"]
    run([*argv, f"oci:{layout}:v2", f"oci:{packed}:v2"], timeout=60)
    digest = registry.push(f"{NAME}:zstd", packed, "v2")
    for image in (pull_image(store, f"{NAME}:zstd", registry), import_image(store, "here", f"{packed}:v2")):
        assert image.digest == digest
        with mounted(image.rootfs, tmp_path / image.name.replace("/", "-")):
            assert (tmp_path / image.name.replace("/", "-") / "etc/version").read_text() == "2"
    assert left(store) == []


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"{", b"[" * 100_000, b'{"manifests": 3}', b'{"manifests": [3, {}]}']
)
def test_what_is_no_manifest_is_refused(store: ImageStore, registry: FakeRegistry, raw: bytes) -> None:
    registry.tags[f"{NAME}:v1"] = raw or b" "
    with pytest.raises(HypemandError):
        pull_image(store, f"{NAME}:v1", registry)
    assert left(store) == []


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        ("manifest unknown: it", NotFound, "there is no image"),
        ("unauthorized: authentication required", PullFailed, "/etc/hypemand/auth.json"),
        ("x509: certificate signed by unknown authority", PullFailed, "certs.d"),
        ("http: server gave HTTP response to HTTPS client", PullFailed, "registries.conf"),
        ("Source image rejected: by policy", PullFailed, "policy.json"),
        ("dial tcp: connection refused", PullFailed, "cannot be pulled: dial tcp"),
        ("write: no space left on device", InsufficientResources, "no space left"),
    ],
)
def test_failures_say_what_to_do(
    store: ImageStore, registry: FakeRegistry, said: str, kind: type[HypemandError], words: str
) -> None:
    registry.failure = said
    with pytest.raises(kind, match=words):
        pull_image(store, f"{NAME}:v1", registry)
    assert left(store) == []


def test_what_cannot_fit_is_not_begun(tmp_path: Path, registry: FakeRegistry) -> None:
    store = ImageStore(tmp_path / "images", [], lambda: 1 << 60)
    with pytest.raises(InsufficientResources, match=r"needs at least \d+ of disk, .* which 1024P are kept"):
        pull_image(store, f"{NAME}:v1", registry)
    assert not [asked for asked in registry.asked if asked.startswith("copy")]


def test_short_names_are_dockers(store: ImageStore, registry: FakeRegistry, layout: Path) -> None:
    registry.push("docker.io/library/app", layout, "v1")
    assert make_image(store, "app:latest", registry).name == "docker.io/library/app"
    assert store.get_image("app").name == "docker.io/library/app"


def test_paths_of_the_host_are_followed_when_they_change(store: ImageStore, layout: Path) -> None:
    first = make_image(store, f"oci:{layout}:v1")
    assert first.name == f"oci:{layout}:v1"
    assert make_image(store, f"oci:{layout}:v1") == first
    (layout / "index.json").write_text((layout / "index.json").read_text().replace('"v1"', '"v0"'))
    (layout / "index.json").write_text((layout / "index.json").read_text().replace('"v2"', '"v1"'))
    assert make_image(store, f"oci:{layout}:v1").digest != first.digest


@pytest.mark.parametrize("source", ["docker-archive:{}", "oci:{}"])
def test_what_is_not_what_it_is_said_to_be_is_refused(tmp_path: Path, store: ImageStore, source: str) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root/file").touch()
    with pytest.raises(ImageNotReady, match="is no"):
        make_image(store, source.format(tmp_path / "root"))
    tar = make_tar(tmp_path / "root.tar", [shell()])
    with pytest.raises(ImageNotReady, match=r"no (Docker archive|OCI layout)"):
        make_image(store, source.format(tar))
