# SPDX-License-Identifier: Apache-2.0
"""Importing images with the real tools: what survives, what is refused, what is left behind."""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import hashlib
import json
import os
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from hypemand.errors import (
    AlreadyExists,
    ImageNotReady,
    InsufficientResources,
    InvalidRequest,
    NotFound,
    WrongState,
)
from hypemand.model.images import derive_host_architecture
from hypemand.run import Completed, run
from hypemand.storage.images import METADATA, STAGING, read_image
from hypemand.storage.importer import import_image
from hypemand.storage.rootfs import find_systemd_links
from hypemand.storage.staging import clean_staging
from hypemand.storage.store import NAMES, ImageStore
from hypemand.storage.tools import DirectTools
from tests.unit.storage.support import (
    BUSYBOX,
    extract,
    folder,
    link,
    make_layout,
    make_tar,
    member,
    mounted,
    shell,
)

HOST = derive_host_architecture()
OTHER = "arm64" if HOST == "amd64" else "amd64"
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)  # cap_net_raw=ep, capabilities(7)


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    """An empty store."""
    return ImageStore(tmp_path / "images", [])


def left(store: ImageStore) -> list[Path]:
    """What is in the store, of any kind, but the images and the empty staging folder."""
    images = {image.folder for image in store.list_images()}
    if not store.folder.exists():
        return []
    found = [*store.folder.iterdir(), *store.folder.glob(f"{STAGING}/*")]
    return [path for path in found if path not in images and path.name not in (STAGING, NAMES)]


def make_root(path: Path) -> Path:
    """A root file system with all that is easily lost."""
    for name in ("bin", "etc", "sbin", "tmp", "dev"):
        (path / name).mkdir(parents=True)
    (path / "tmp").chmod(0o1777)
    (path / "bin/sh").write_bytes(BUSYBOX.read_bytes())
    (path / "bin/sh").chmod(0o4755)
    os.chown(path / "etc", 12, 34)
    os.mknod(path / "dev/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mkfifo(path / "etc/fifo")
    (path / "etc/ping").write_bytes(b"p")
    os.setxattr(path / "etc/ping", "security.capability", CAPABILITY)
    os.setxattr(path / "etc/ping", "user.color", b"blue")
    (path / "etc/old").write_bytes(b"o")
    os.link(path / "etc/old", path / "etc/same")
    os.utime(path / "etc/old", (1_000_000_000, 1_000_000_000))
    (path / "sbin/init").symlink_to("/bin/sh")
    return path


def check_root(rootfs: Path, at: Path) -> None:
    """Nothing of `make_root` was lost, as a kernel sees it."""
    with mounted(rootfs, at):
        assert stat.S_IMODE((at / "bin/sh").stat().st_mode) == 0o4755
        assert stat.S_IMODE((at / "tmp").stat().st_mode) == 0o1777
        assert ((at / "etc").stat().st_uid, (at / "etc").stat().st_gid) == (12, 34)
        assert (at / "dev/null").stat().st_rdev == os.makedev(1, 3)
        assert stat.S_ISFIFO((at / "etc/fifo").stat().st_mode)
        assert os.getxattr(at / "etc/ping", "security.capability") == CAPABILITY
        assert os.getxattr(at / "etc/ping", "user.color") == b"blue"
        assert (at / "etc/old").stat().st_mtime == 1_000_000_000
        assert (at / "etc/old").stat().st_ino == (at / "etc/same").stat().st_ino
        assert os.readlink(at / "sbin/init") == "/bin/sh"


# --- what survives ---


def test_a_folder_keeps_all_and_is_started_by_its_init(tmp_path: Path, store: ImageStore) -> None:
    image = import_image(store, "app", str(make_root(tmp_path / "root")))
    check_root(image.rootfs, tmp_path / "out")
    assert image.config.cmd == ("/sbin/init",)
    assert image.architecture == HOST
    assert image.size == image.rootfs.stat().st_size
    assert stat.S_IMODE(image.rootfs.stat().st_mode) == 0o444
    assert store.get_image("app") == image
    assert left(store) == []


@pytest.mark.parametrize("pack", ["", "--gzip", "--xz", "--bzip2"])
def test_a_tar_keeps_all(tmp_path: Path, store: ImageStore, pack: str) -> None:
    root = make_root(tmp_path / "root")
    tar = tmp_path / "root.tar"
    argv = ["tar", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-C", str(root), "-cf", str(tar), "."]
    run([*argv[:1], *([pack] if pack else []), *argv[1:]], timeout=60)
    image = import_image(store, "app", str(tar))
    check_root(image.rootfs, tmp_path / "out")
    assert image.config.cmd == ("/sbin/init",)
    assert left(store) == []


def test_equal_content_is_equal_bytes(tmp_path: Path, store: ImageStore) -> None:
    root = make_root(tmp_path / "root")
    first = import_image(store, "one", str(root))
    second = import_image(store, "two", str(root))
    assert first.digest == second.digest
    assert first.rootfs.read_bytes() == second.rootfs.read_bytes()


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """An OCI image of two layers, with a white-out, an opaque folder, and a config."""
    below = make_tar(
        tmp_path / "1.tar",
        [
            folder("bin"),
            shell(),
            folder("etc"),
            member("etc/gone", b"1"),
            folder("opt"),
            member("opt/old", b"1"),
        ],
    )
    above = make_tar(
        tmp_path / "2.tar",
        [
            member("etc/.wh.gone"),
            folder("opt"),
            member("opt/.wh..wh..opq"),
            member("opt/new", b"2", uid=7, gid=8),
        ],
    )
    config: dict[str, str | list[str]] = {
        "entrypoint": ["/bin/sh", "-c"],
        "cmd": ["echo hello"],
        "env": ["A=b", "PATH=/bin"],
        "workingdir": "/opt",
        "user": "7:8",
        "stopsignal": "SIGINT",
    }
    return make_layout(tmp_path / "layout", [below, above], config=config, tag="v1", architecture=HOST)


def check_oci(store: ImageStore, name: str, out: Path) -> None:
    image = store.get_image(name)
    root = extract(image.rootfs, out)
    assert not (root / "etc/gone").exists()
    assert sorted(p.name for p in (root / "opt").iterdir()) == ["new"]
    assert ((root / "opt/new").stat().st_uid, (root / "opt/new").stat().st_gid) == (7, 8)
    config = image.config
    assert (config.entrypoint, config.cmd) == (("/bin/sh", "-c"), ("echo hello",))
    assert (config.env, config.working_dir, config.user) == (("A=b", "PATH=/bin"), "/opt", "7:8")
    assert left(store) == []


@pytest.mark.parametrize("tag", ["", ":v1"])
def test_an_oci_layout_with_its_layers_and_its_config(
    tmp_path: Path, store: ImageStore, layout: Path, tag: str
) -> None:
    image = import_image(store, "app", f"{layout}{tag}")
    check_oci(store, "app", tmp_path / "out")
    assert image.config.stop_signal == "SIGINT"
    assert image.digest.startswith("sha256:")


def test_of_many_images_in_a_layout_the_tagged_one(tmp_path: Path, store: ImageStore, layout: Path) -> None:
    other = make_tar(tmp_path / "3.tar", [shell("bin/other")])
    make_layout(layout, [other], tag="v2", architecture=HOST)
    image = import_image(store, "app", f"{layout}:v2")
    assert [p.name for p in (extract(image.rootfs, tmp_path / "out") / "bin").iterdir()] == ["other"]
    with pytest.raises(ImageNotReady):
        import_image(store, "which", str(layout))
    with pytest.raises(ImageNotReady):
        import_image(store, "none", f"{layout}:v3")
    assert left(store) == []


def test_links_of_an_image_to_systemd_are_noted(tmp_path: Path, store: ImageStore) -> None:
    """A link is followed as in the guest: not out of the image, and not for ever."""
    entries = [
        *(shell(), shell("usr/lib/systemd/systemd"), link("lib", "usr/lib"), link("init", "a/../b")),
        *(folder("a"), link("b", "/../../lib/systemd/systemd"), link("etc/init", "init")),
        *(link("usr/bin/init", "../../bin/sh"), link("bin/init", str(tmp_path / "systemd"))),
    ]
    (tmp_path / "systemd").write_bytes(b"of the host")
    image = import_image(store, "linked", str(make_tar(tmp_path / "linked.tar", entries)))
    assert image.systemd_links == ("/init",)
    assert store.get_image("linked").systemd_links == ("/init",)
    # what was made before this was noted
    metadata = image.folder / METADATA
    old = json.loads(metadata.read_text())
    del old["systemd_links"]
    metadata.write_text(json.dumps(old))
    assert read_image(image.folder).systemd_links == ()


def test_the_program_of_an_image_may_be_such_a_link(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    (root / "lib/systemd").mkdir(parents=True)
    (root / "lib/systemd/systemd").write_bytes(b"")
    (root / "start").symlink_to("lib/systemd/systemd")
    assert find_systemd_links(root, "/start") == ("/start",)
    assert find_systemd_links(root, "start") == ()


def test_an_oci_archive(tmp_path: Path, store: ImageStore, layout: Path) -> None:
    run(["tar", "-C", str(layout), "-cf", str(tmp_path / "oci.tar"), "."], timeout=60)
    import_image(store, "app", str(tmp_path / "oci.tar"))
    check_oci(store, "app", tmp_path / "out")


def test_a_docker_archive_compressed_or_not(tmp_path: Path, store: ImageStore, layout: Path) -> None:
    tar = tmp_path / "docker.tar"
    run(["skopeo", "copy", f"oci:{layout}:v1", f"docker-archive:{tar}:app:v1"], timeout=60)
    import_image(store, "app", str(tar))
    check_oci(store, "app", tmp_path / "out")
    (tmp_path / "docker.tar.gz").write_bytes(gzip.compress(tar.read_bytes()))
    import_image(store, "app", str(tmp_path / "docker.tar.gz"))
    assert len(store.list_images()) == 1


def save_as_docker_does(layout: Path, images: Mapping[str, Sequence[str]]) -> None:
    """Make of a layout what docker save writes since Docker 25: `images` by their tags in the layout."""
    index = json.loads((layout / "index.json").read_text())
    documents = []
    for entry in index["manifests"]:
        tag = entry["annotations"]["org.opencontainers.image.ref.name"]
        if tag not in images:
            continue
        manifest = json.loads((layout / "blobs/sha256" / entry["digest"][7:]).read_bytes())
        blobs = [f"blobs/sha256/{part['digest'][7:]}" for part in (manifest["config"], *manifest["layers"])]
        documents.append({"Config": blobs[0], "RepoTags": images[tag], "Layers": blobs[1:]})
    (layout / "manifest.json").write_text(json.dumps(documents))


@pytest.mark.parametrize(
    "written", ["{tar}", "docker-archive:{tar}", "docker-archive:{tar}:app:v2", "{tar}:v2"]
)
def test_a_docker_save_of_an_image_with_two_tags(
    tmp_path: Path, store: ImageStore, layout: Path, written: str
) -> None:
    run(["umoci", "tag", "--image", f"{layout}:v1", "v2"], timeout=60)
    save_as_docker_does(layout, {"v1": ["app:v1", "app:v2"]})
    tar = tmp_path / "saved:5.tar"
    run(["tar", "-C", str(layout), "-cf", str(tar), "."], timeout=60)
    import_image(store, "app", written.format(tar=tar))
    check_oci(store, "app", tmp_path / "out")


@pytest.mark.parametrize("written", ["{folder}", "docker-archive:{folder}", "{folder}:v2"])
@pytest.mark.parametrize("old", [False, True], ids=["today's", "that of an old Docker"])
def test_a_docker_save_that_was_unpacked(
    tmp_path: Path, store: ImageStore, layout: Path, written: str, old: bool
) -> None:
    run(["umoci", "tag", "--image", f"{layout}:v1", "v2"], timeout=60)
    save_as_docker_does(layout, {"v1": ["app:v1", "app:v2"]})
    if old:
        (layout / "oci-layout").unlink()
        (layout / "index.json").unlink()
    import_image(store, "app", written.format(folder=layout))
    check_oci(store, "app", tmp_path / "out")


def test_of_many_images_in_a_docker_save_the_named_one(
    tmp_path: Path, store: ImageStore, layout: Path
) -> None:
    other = make_tar(tmp_path / "3.tar", [shell("bin/other")])
    make_layout(layout, [other], tag="v2", architecture=HOST)
    save_as_docker_does(layout, {"v1": ["app:v1"], "v2": ["other:v2"]})
    # as Docker has it: both are called latest there
    index = json.loads((layout / "index.json").read_text())
    for entry, name in zip(index["manifests"], ("app", "other"), strict=True):
        entry["annotations"] = {
            "org.opencontainers.image.ref.name": "latest",
            "io.containerd.image.name": f"docker.io/library/{name}:latest",
        }
    (layout / "index.json").write_text(json.dumps(index))
    saved = json.loads((layout / "manifest.json").read_text())
    for item, name in zip(saved, ("app", "other"), strict=True):
        item["RepoTags"] = [f"{name}:latest"]
    (layout / "manifest.json").write_text(json.dumps(saved))
    tar = tmp_path / "saved.tar"
    run(["tar", "-C", str(layout), "-cf", str(tar), "."], timeout=60)
    image = import_image(store, "other", f"docker-archive:{tar}:other:latest")
    assert [p.name for p in (extract(image.rootfs, tmp_path / "out") / "bin").iterdir()] == ["other"]
    with pytest.raises(
        ImageNotReady, match=r"more than one image; it contains app:latest, other:latest.*:TAG"
    ):
        import_image(store, "which", str(tar))
    with pytest.raises(ImageNotReady, match="no image v9; it contains app:latest, other:latest"):
        import_image(store, "which", f"{tar}:v9")
    assert left(store) == []


@pytest.mark.parametrize("index", [b"{", b"[]", b'{"manifests": {}}', b'{"manifests": [1]}'])
def test_a_layout_with_a_damaged_index_is_no_root_file_system(
    tmp_path: Path, store: ImageStore, layout: Path, index: bytes
) -> None:
    broken = shutil.copytree(layout, tmp_path / "broken")
    (broken / "index.json").write_bytes(index)
    tar = tmp_path / "broken.tar"
    subprocess.run(["tar", "-C", broken, "-cf", tar, "."], check=True, timeout=60)
    for source in (broken, tar):
        with pytest.raises(ImageNotReady, match=f"index.json of the OCI layout {source} is damaged"):
            import_image(store, "which", str(source))
    assert left(store) == []


@pytest.mark.parametrize(
    "files",
    [
        {"manifest.json": b'{"name": "shop"}'},
        {"manifest.json": b"[]", "index.json": b"{}", "oci-layout": b"text"},
        {"manifest.json": b'[{"Config": 1, "Layers": []}]'},
        {"manifest.json": b"[" * 100000},
    ],
)
def test_a_root_file_system_may_have_files_of_such_names(
    tmp_path: Path, store: ImageStore, files: dict[str, bytes]
) -> None:
    members = [member(name, data) for name, data in files.items()]
    tar = make_tar(tmp_path / "pwa.tar", [*members, folder("bin"), shell()])
    image = import_image(store, "pwa", str(tar))
    assert set(files) < {p.name for p in extract(image.rootfs, tmp_path / "out").iterdir()}
    root = make_root(tmp_path / "root")
    for name, data in files.items():
        (root / name).write_bytes(data)
    import_image(store, "folder", str(root))
    with pytest.raises(ImageNotReady, match="has no tags"):
        import_image(store, "tagged", f"{tar}:v1")
    assert left(store) == []


class _Confined(DirectTools):
    """What unpacks has file capabilities to give, as in its unit, and no right to all attributes."""

    def build(
        self,
        argv: Sequence[str],
        *,
        folder: Path,
        timeout: float,
        env: Mapping[str, str] | None = None,
        readable: Sequence[Path] = (),
    ) -> Completed:
        confined = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-all", *argv]
        return super().build(confined, folder=folder, timeout=timeout, env=env, readable=readable)


@pytest.mark.parametrize("form", ["tar", "layout", "gzip"])
def test_attributes_of_security_modules_are_left_out(tmp_path: Path, store: ImageStore, form: str) -> None:
    xattrs = {"security.ima": "x", "trusted.a": "y", "security.selinux": "z\0", "user.color": "blue"}
    tar = make_tar(
        tmp_path / "layer.tar",
        [folder("bin"), shell(), member("signed", b"s", xattrs=xattrs), member("after", b"a" * 5000)],
    )
    source = tar
    if form != "tar":
        source = make_layout(tmp_path / "layout", [tar], architecture=HOST)
    if form == "gzip":
        run(["skopeo", "copy", f"oci:{source}:latest", f"oci:{tmp_path}/packed:latest"], timeout=60)
        source = tmp_path / "packed"
    image = import_image(store, "signed", str(source), _Confined())
    with mounted(image.rootfs, tmp_path / "out"):
        assert os.listxattr(tmp_path / "out/signed") == ["user.color"]
        assert (tmp_path / "out/after").read_bytes() == b"a" * 5000
    assert left(store) == []


def test_what_is_mounted_in_a_root_file_system_is_named(tmp_path: Path, store: ImageStore) -> None:
    root = make_root(tmp_path / "a root")
    (root / "proc").mkdir()
    run(["mount", "--bind", "/proc", str(root / "proc")], timeout=60)
    try:
        with pytest.raises(ImageNotReady, match=r"/a root/proc is a mount point: unmount it; umount '"):
            import_image(store, "mounted", str(root))
    finally:
        run(["umount", str(root / "proc")], timeout=60)
    import_image(store, "mounted", str(root))
    assert left(store) == []


# --- names ---


class _NoTools(DirectTools):
    """With which nothing can be made."""

    def build(
        self,
        argv: Sequence[str],
        *,
        folder: Path,
        timeout: float,
        env: Mapping[str, str] | None = None,
        readable: Sequence[Path] = (),
    ) -> Completed:
        raise AssertionError(f"{argv} is run")


def test_what_is_here_by_its_digest_is_not_unpacked_again(store: ImageStore, layout: Path) -> None:
    first = import_image(store, "app", f"{layout}:v1")
    again = import_image(store, "app", f"{layout}:v1", _NoTools())
    other = import_image(store, "other", f"{layout}:v1", _NoTools())
    assert (again.digest, other.digest, other.name) == (first.digest, first.digest, "other")
    assert left(store) == []


def test_the_same_again_changes_nothing_and_another_content_is_refused(
    tmp_path: Path, store: ImageStore
) -> None:
    root = make_root(tmp_path / "root")
    image = import_image(store, "app", str(root))
    assert import_image(store, "app:latest", str(root)) == image
    (root / "etc/new").write_bytes(b"")
    with pytest.raises(AlreadyExists, match="app:TAG"):
        import_image(store, "app", str(root))
    assert store.list_images() == [image]
    import_image(store, "app:v2", str(root))
    store.remove_image("app", [])
    assert [image.name for image in store.list_images()] == ["app:v2"]
    assert left(store) == []


@pytest.mark.parametrize("name", ["builtin:busybox", "../app", ""])
def test_names_that_are_none_or_reserved(tmp_path: Path, store: ImageStore, name: str) -> None:
    with pytest.raises(InvalidRequest):
        import_image(store, name, str(tmp_path))


def test_a_source_that_is_not_there(tmp_path: Path, store: ImageStore) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        import_image(store, "app", str(tmp_path / "none:v1"))


# --- what is refused ---


def elf(machine: int) -> bytes:
    return b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 2, machine) + bytes(44)


def test_another_architecture_is_refused_and_both_are_named(tmp_path: Path, store: ImageStore) -> None:
    machine = {"arm64": 183, "amd64": 62}[OTHER]
    root = tmp_path / "root"
    (root / "usr/bin").mkdir(parents=True)
    (root / "bin").symlink_to("usr/bin")
    (root / "usr/bin/dash").write_bytes(elf(machine))
    (root / "usr/bin/sh").symlink_to("/bin/dash")
    with pytest.raises(ImageNotReady, match=f"for {OTHER}, this host is {HOST}"):
        import_image(store, "app", str(root))
    tar = make_tar(tmp_path / "app.tar", [member("opt/app", elf(machine), mode=0o755)])
    with pytest.raises(ImageNotReady, match=f"for {OTHER}, this host is {HOST}"):
        import_image(store, "app", str(tar))
    layout = make_layout(tmp_path / "layout", [tar], architecture=OTHER)
    with pytest.raises(ImageNotReady, match=f"for {OTHER}, this host is {HOST}"):
        import_image(store, "app", str(layout))
    assert left(store) == []


ESCAPES = {
    "a name with dots": [member("../evil", b"x")],
    "a name with dots inside": [folder("a"), member("a/../../evil", b"x")],
    "a hard link out": [member("a", kind=tarfile.LNKTYPE, link="../victim")],
}


@pytest.mark.parametrize("members", ESCAPES.values(), ids=ESCAPES.keys())
def test_a_tar_whose_names_lead_out_is_refused(
    tmp_path: Path, store: ImageStore, members: list[tuple[tarfile.TarInfo, bytes]]
) -> None:
    with pytest.raises(ImageNotReady, match="out of the root"):
        import_image(store, "app", str(make_tar(tmp_path / "evil.tar", [shell(), *members])))
    assert left(store) == []


@pytest.mark.parametrize("hops", [["{out}"], ["../../../../../../../../..{out}"], ["b", "{out}"]])
def test_links_lead_nowhere_outside(tmp_path: Path, store: ImageStore, hops: list[str]) -> None:
    out = tmp_path / "outside"
    out.mkdir()
    (out / "victim").write_bytes(b"safe")
    names = ["a", "b"]
    links = [link(name, hop.format(out=out)) for name, hop in zip(names, hops, strict=False)]
    evil = [member("a/evil", b"x"), member("a/victim", b"overwritten"), member(f"{out}/absolute", b"x")]
    hard = [member("stolen", kind=tarfile.LNKTYPE, link=f"{out}/victim"), member("stolen", b"overwritten")]
    tar = make_tar(tmp_path / "evil.tar", [shell(), *links, *evil])
    with contextlib.suppress(ImageNotReady):  # as good
        import_image(store, "app", str(tar))
    with contextlib.suppress(ImageNotReady):
        import_image(store, "hard", str(make_tar(tmp_path / "hard.tar", [shell(), *hard])))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {"victim": b"safe"}
    assert left(store) == []


def test_a_link_in_the_source_cannot_make_the_host_read_its_own_files(
    tmp_path: Path, store: ImageStore
) -> None:
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    (root / "bin/sh").symlink_to("/bin/busybox")
    (root / "bin/busybox").write_bytes(elf({"amd64": 62, "arm64": 183}[HOST]))
    (root / "bin/busybox").chmod(0o755)
    image = import_image(store, "app", str(root))
    assert image.architecture == HOST


@pytest.mark.parametrize(
    "content",
    [b"", b"no tar at all" * 100, gzip.compress(b"no tar"), b"\x1f\x8bbroken"],
    ids=["empty", "text", "compressed", "broken"],
)
def test_what_is_no_tar_is_refused(tmp_path: Path, store: ImageStore, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ImageNotReady, match=r"file (is|cannot)"):
        import_image(store, "app", str(tmp_path / "file"))
    assert left(store) == []


def test_a_tar_that_was_cut_off_is_refused(tmp_path: Path, store: ImageStore) -> None:
    tar = make_tar(tmp_path / "app.tar", [folder("bin"), shell()])
    os.truncate(tar, 100_000)
    with pytest.raises(ImageNotReady):
        import_image(store, "app", str(tar))
    assert left(store) == []


def test_an_empty_folder_is_refused(tmp_path: Path, store: ImageStore) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageNotReady, match="is empty"):
        import_image(store, "app", str(tmp_path / "empty"))


def test_a_layer_that_is_not_what_its_digest_says_is_refused(
    tmp_path: Path, store: ImageStore, layout: Path
) -> None:
    largest = max((layout / "blobs/sha256").iterdir(), key=lambda blob: blob.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1] + b"!")
    with pytest.raises(ImageNotReady):
        import_image(store, "app", str(layout))
    assert left(store) == []


# --- crashes, races, a full disk ---


def test_one_import_of_a_name_at_a_time(tmp_path: Path, store: ImageStore) -> None:
    root = str(make_root(tmp_path / "root"))
    import_image(store, "app", root)
    busy = store.folder / STAGING / hashlib.sha256(b"app").hexdigest()[:24]
    busy.mkdir()
    fd = os.open(busy, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with pytest.raises(WrongState, match="app is already being imported"):
        import_image(store, "app", root)
    import_image(store, "other", root)
    assert clean_staging(store) == []
    os.close(fd)
    assert clean_staging(store) == [busy.name]
    assert left(store) == []


def test_leftovers_of_a_crash_do_not_hinder_the_next_import(tmp_path: Path, store: ImageStore) -> None:
    root = make_root(tmp_path / "root")
    script = (
        "import os, sys; from pathlib import Path\n"
        "from hypemand.storage import importer, store\n"
        "importer.make_erofs = lambda *_: os._exit(9)\n"
        "importer.import_image(store.ImageStore(Path(sys.argv[1]), []), 'app', sys.argv[2])\n"
    )
    argv = [sys.executable, "-c", script, str(store.folder), str(root)]
    environment = {"PYTHONPATH": str(Path(__file__).parents[3])}
    assert run(argv, timeout=60, env=environment, ok=(9,)).code == 9
    assert len(left(store)) == 1
    assert store.list_images() == []
    import_image(store, "app", str(root))
    assert left(store) == []


@pytest.mark.parametrize("kind", ["folder", "tar", "layout"])
def test_a_full_disk_is_told_and_nothing_is_left(tmp_path: Path, layout: Path, kind: str) -> None:
    big = make_tar(tmp_path / "big.tar", [shell(), member("big", os.urandom(2_000_000))])
    root = make_root(tmp_path / "root")
    (root / "big").write_bytes(os.urandom(2_000_000))
    make_layout(layout, [big], tag="big", architecture=HOST)
    source = {"folder": str(root), "tar": str(big), "layout": f"{layout}:big"}[kind]
    full = tmp_path / "full"
    full.mkdir()
    for size in ("1m", "5m") if kind != "folder" else ("1m",):
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", full], check=True)
        try:
            store = ImageStore(full / "images", [])
            with pytest.raises(InsufficientResources, match=r"no space left|needs at least"):
                import_image(store, "app", source)
            assert left(store) == []
            assert store.list_images() == []
        finally:
            subprocess.run(["umount", full], check=True)
