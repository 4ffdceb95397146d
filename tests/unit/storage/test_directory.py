# SPDX-License-Identifier: Apache-2.0
"""Directories of the host as images: made when they have changed, and with nothing from beyond them."""

from __future__ import annotations

import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hypemand.errors import InsufficientResources, InvalidDefinition, WrongState
from hypemand.storage import directory
from hypemand.storage.directory import ensure_directory_image, look_at
from hypemand.storage.erofs import write_tar
from hypemand.storage.tools import DirectTools


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with some content, which has rested long enough."""
    source = tmp_path / "site"
    (source / "sub").mkdir(parents=True)
    (source / "index.html").write_text("one")
    (source / "sub/link").symlink_to("/etc/shadow")
    (source / "sub").chmod(0o2750)
    os.mkfifo(source / "pipe")
    monkeypatch.setattr(directory, "_TICK_NS", 0)
    return source


def make(source: Path, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return ensure_directory_image(source, folder, DirectTools(), 0)


def names_in(image: Path, folder: Path) -> dict[str, tarfile.TarInfo]:
    (folder / "tar").unlink(missing_ok=True)
    write_tar(image, folder / "tar")
    with tarfile.open(folder / "tar") as archive:
        return {os.path.normpath(member.name): member for member in archive.getmembers()}


def test_an_image_has_what_is_there_and_links_as_links(site: Path, tmp_path: Path) -> None:
    os.chown(site / "index.html", 33, 44)
    image = make(site, tmp_path / "images")
    by_name = names_in(image, tmp_path)
    assert set(by_name) - {"."} == {"index.html", "pipe", "sub", "sub/link"}
    assert (by_name["index.html"].uid, by_name["index.html"].gid, by_name["index.html"].size) == (33, 44, 3)
    assert by_name["sub/link"].linkname == "/etc/shadow"
    assert by_name["sub"].mode == 0o2750
    assert image.stat().st_mode & 0o777 == 0o400


def test_it_is_made_again_when_something_has_changed_and_only_then(site: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    image = make(site, folder)
    assert image.stat().st_ino == make(site, folder).stat().st_ino
    other = tmp_path / "other"
    other.mkdir()
    kept = make(other, folder)
    changes: tuple[Callable[[], object], ...] = (
        lambda: (site / "index.html").write_text("two"),
        lambda: os.utime(site / "index.html", (1, 1)),
        lambda: write_with_the_same_time(site / "index.html"),
        lambda: (site / "index.html").chmod(0o600),
        lambda: os.chown(site / "sub", 5, -1),
        (site / "sub/new").touch,
        lambda: (site / "sub/new").rename(site / "sub/newer"),
        (site / "sub/newer").unlink,
        lambda: site.chmod(0o700),
    )
    for number, change in enumerate(changes):
        before = image
        change()
        image = make(site, folder)
        assert image != before, number
        assert {entry.name for entry in folder.iterdir()} == {image.name, kept.name}


def test_what_has_just_changed_is_made_again(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A further change within the same tick of the file system's clock would leave no trace."""
    monkeypatch.setattr(directory, "_TICK_NS", 3600 * 10**9)
    first = make(site, tmp_path / "images")
    ino = first.stat().st_ino
    with open(first, "rb"):  # so that its number is not used again
        assert make(site, tmp_path / "images").stat().st_ino != ino
    assert len(list((tmp_path / "images").iterdir())) == 1


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ("rm -r $1; ln -s /etc $1", r"site is a link; write /etc"),
        ("rm -r $1", "cannot be read: No such file"),
        ("rm -r $1; touch $1", "is not a directory"),
        ("chown 1000 $2", "others than root can write to .*, and so exchange the directory"),
        ("chmod 775 $2", "others than root can write to"),
        ("chmod 1777 $2; chown 1000 $1", "others than root can write to"),
        ("mkdir -p $1/$(seq -s / 1 101)", "is nested too deeply"),
        ("truncate -s 65G $1/large", "or 64G; use a volume"),
    ],
)
def test_a_directory_that_no_guest_can_have_is_refused(site: Path, spoil: str, words: str) -> None:
    run_shell(spoil, site, site.parent)
    with pytest.raises(InvalidDefinition, match=words):
        look_at(site)


def test_in_a_sticky_folder_what_is_roots_stays_in_its_place(site: Path) -> None:
    site.parent.chmod(0o1777)
    assert look_at(site).size > 0


def test_another_file_system_in_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidDefinition, match="in it is another file system"):
        look_at(Path("/dev"))


def test_more_entries_than_it_may_have_are_refused_before_all_are_read(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "MAX_ENTRIES", 4)
    assert look_at(site).size > 0
    (site / "sub/one-more").touch()
    with pytest.raises(InvalidDefinition, match="has more than 4 entries"):
        look_at(site)


def test_no_descriptor_is_left(site: Path) -> None:
    (site / "sub/a/b").mkdir(parents=True)
    before = len(os.listdir("/proc/self/fd"))
    look_at(site)
    run_shell("mkdir -p $1/$(seq -s / 1 101)", site)
    with pytest.raises(InvalidDefinition):
        look_at(site)
    assert len(os.listdir("/proc/self/fd")) == before


def test_without_room_nothing_is_made(site: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    with pytest.raises(InsufficientResources):
        ensure_directory_image(site, folder, DirectTools(), 1 << 60)
    tools = DirectTools()
    tools.cancel()
    with pytest.raises(WrongState):
        ensure_directory_image(site, folder, tools, 0)
    assert list(folder.iterdir()) == []


def test_a_folder_that_becomes_a_link_meanwhile_leads_nowhere(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.stat

    def race(path: str, **keywords: Any) -> os.stat_result:
        about = real(path, **keywords)
        if path == "sub":
            run_shell("rm -r $1/sub; ln -s /etc $1/sub", site)
        return about

    monkeypatch.setattr(os, "stat", race)
    with pytest.raises(InvalidDefinition, match="cannot be read: "):
        look_at(site)


def write_with_the_same_time(path: Path) -> None:
    """As many bytes, and the time set back: only the time of the change of the inode tells."""
    before = path.stat()
    path.write_text("six")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def run_shell(script: str, *arguments: Path) -> None:
    subprocess.run(["sh", "-euc", script, "spoil", *arguments], check=True, timeout=30)
