# SPDX-License-Identifier: Apache-2.0
"""Files of a hostile guest onto this host: nothing is written but at the place that was named."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hypemand.cli.pack import LocalError
from hypemand.cli.unpack import Unpacker
from hypemand.model.files import FileInfo, FileKind


def entry(kind: FileKind, size: int = 0, target: str | None = None, mode: int = 0o755) -> FileInfo:
    return FileInfo("", kind, mode, 0, 0, size, 1_000_000_000, target)


DIRECTORY, FILE = entry(FileKind.DIRECTORY), entry(FileKind.FILE, 4)


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A folder that nothing may be written to."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_bytes(b"safe")
    yield outside
    assert os.listdir(outside) == ["victim"]
    assert (outside / "victim").read_bytes() == b"safe"


def unpack(target: Path, *entries: tuple[str, FileInfo], is_named: bool = False, keep: bool = False) -> None:
    with Unpacker(target, is_named=is_named, keep=keep, warn=lambda _: None) as unpacker:
        for path, info in entries:
            unpacker.add(path, info)
            if info.kind is FileKind.FILE and info.size:
                unpacker.write(b"evil")
        unpacker.finish()


@pytest.mark.parametrize("path", ["../outside/x", "a/../../outside/x", "/x", "a//x", ".", "a/.", "a\0b"])
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, outside: Path, path: str) -> None:
    with pytest.raises(LocalError, match="with an unsafe path"):
        unpack(tmp_path / "out", ("", DIRECTORY), ("a", DIRECTORY), (path, FILE))


@pytest.mark.parametrize("keep", [False, True])
def test_nothing_goes_through_a_link_that_came_before(tmp_path: Path, outside: Path, keep: bool) -> None:
    link = entry(FileKind.SYMLINK, target=str(outside))
    for path in ("link/x", "link/sub/x"):
        with pytest.raises(LocalError, match="it is not followed"):
            unpack(tmp_path / "out", ("", DIRECTORY), ("link", link), (path, FILE), keep=keep)
    with pytest.raises(LocalError):
        unpack(tmp_path / "out", ("", DIRECTORY), ("link", link), ("link", DIRECTORY), keep=keep)


def test_a_file_replaces_a_link_and_not_what_it_leads_to(tmp_path: Path, outside: Path) -> None:
    link = entry(FileKind.SYMLINK, target=str(outside / "victim"))
    unpack(tmp_path / "out", ("", DIRECTORY), ("x", link), ("x", FILE))
    assert (tmp_path / "out/x").read_bytes() == b"evil"
    unpack(tmp_path / "one", ("", link))
    unpack(tmp_path / "one", ("", FILE))
    assert (tmp_path / "one").read_bytes() == b"evil"


def test_a_link_of_an_earlier_copy_is_not_entered_at_the_next(tmp_path: Path, outside: Path) -> None:
    unpack(tmp_path / "x", ("", entry(FileKind.SYMLINK, target=str(outside))))
    with pytest.raises(LocalError, match="it is not followed"):
        unpack(tmp_path / "x", ("", DIRECTORY), ("y", FILE))


def test_a_link_that_the_user_has_named_is_his_will(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "named").symlink_to("real")
    unpack(tmp_path / "named", ("", DIRECTORY), ("x", FILE), is_named=True)
    assert (tmp_path / "real/x").read_bytes() == b"evil"


def test_modes_of_folders_are_set_on_those_that_were_made_and_through_no_link(
    tmp_path: Path, outside: Path
) -> None:
    before = outside.stat().st_mode
    strict = entry(FileKind.DIRECTORY, mode=0o555)
    link = entry(FileKind.SYMLINK, target=str(outside))
    (tmp_path / "out/old").mkdir(parents=True, mode=0o701)
    (tmp_path / "out/old").chmod(0o701)
    unpack(tmp_path / "out", ("", strict), ("old", strict), ("new", strict), ("new/x", FILE), ("link", link))
    assert (tmp_path / "out/old").stat().st_mode & 0o777 == 0o701
    assert (tmp_path / "out/new").stat().st_mode & 0o777 == 0o555
    assert outside.stat().st_mode == before


@pytest.mark.parametrize("kind", [FileKind.BLOCK, FileKind.CHARACTER, FileKind.SOCKET, FileKind.FIFO])
def test_no_devices_are_made(tmp_path: Path, kind: FileKind) -> None:
    unpack(tmp_path / "out", ("", DIRECTORY), ("x", entry(kind)))
    assert os.listdir(tmp_path / "out") == []
    if kind is not FileKind.FIFO:
        unpack(tmp_path / "out", ("", DIRECTORY), ("x", entry(kind)), keep=True)
        assert os.listdir(tmp_path / "out") == []


def break_off(target: Path) -> None:
    """Half a file, and no more."""
    with Unpacker(target, is_named=False, keep=False, warn=lambda _: None) as unpacker:
        unpacker.add("", DIRECTORY)
        unpacker.add("x", entry(FileKind.FILE, 100))
        unpacker.write(b"half")
        raise ConnectionError


def test_what_is_half_there_is_removed(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError):
        break_off(tmp_path / "out")
    assert os.listdir(tmp_path / "out") == []


def test_a_file_where_a_folder_stands_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LocalError):
        unpack(tmp_path / "out", ("", DIRECTORY), ("x", DIRECTORY), ("x", FILE))
    assert os.listdir(tmp_path / "out") == ["x"]
    with pytest.raises(LocalError, match="before its directory"):
        unpack(tmp_path / "none", ("x", FILE))
