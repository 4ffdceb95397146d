# SPDX-License-Identifier: Apache-2.0
"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from hypemand.atomic import make_folder, remove_temporaries, replace_file, write_all, write_file


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_content_mode_and_owner_are_set_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o777)
    try:
        write_file(tmp_path / "file", b"content", mode=0o640, uid=1234, gid=4321)
    finally:
        os.umask(before)
    path = tmp_path / "file"
    assert path.read_bytes() == b"content"
    assert (mode(path), path.stat().st_uid, path.stat().st_gid) == (0o640, 1234, 4321)
    assert list(tmp_path.iterdir()) == [path]


def fail_in_the_middle(path: Path) -> None:
    with replace_file(path) as fd:
        write_all(fd, b"half")
        raise RuntimeError("broken")


def test_a_failure_keeps_the_old_file_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_file(path, b"old")
    with pytest.raises(RuntimeError):
        fail_in_the_middle(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_nobody_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with replace_file(path) as fd:
        write_all(fd, b"half")
        assert not path.exists()
    assert path.read_bytes() == b"half"


def test_a_link_in_place_of_the_file_is_replaced_not_followed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"other")
    (tmp_path / "file").symlink_to(other)
    write_file(tmp_path / "file", b"new")
    assert other.read_bytes() == b"other"
    assert not (tmp_path / "file").is_symlink()


def test_what_a_crash_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    write_file(tmp_path / "file", b"")
    (tmp_path / ".hidden").write_bytes(b"")
    with replace_file(tmp_path / "other") as _:
        [left] = [path for path in tmp_path.iterdir() if path.name.startswith(".other")]
        assert remove_temporaries(tmp_path) == [left]
        left.touch()
    assert {path.name for path in tmp_path.iterdir()} == {"file", ".hidden", "other"}
    assert remove_temporaries(tmp_path / "none") == []


def test_a_new_folder_lasts_with_all_that_it_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    make_folder(tmp_path / "a/b/c", mode=0o711)
    assert synced == [str(tmp_path), str(tmp_path / "a"), str(tmp_path / "a/b")]
    assert mode(tmp_path / "a/b/c") == 0o711
    synced.clear()
    make_folder(tmp_path / "a/b/c", mode=0o711)
    assert synced == []
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        make_folder(tmp_path / "file/x", mode=0o711)
