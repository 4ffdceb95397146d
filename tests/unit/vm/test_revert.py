# SPDX-License-Identifier: Apache-2.0
"""A snapshot takes the place of what a VM has: all of it, or nothing, whenever that is cut off."""

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hypemand.errors import InUse
from hypemand.vm.revert import begin_revert, commit_revert, settle_revert
from tests.unit.storage.diskuser import WRITES, locked

OLD = {"disk.ext4": "old", "dir-a.erofs": "old", "standby/snapshot.json": "old", "standby/memory": "old"}
NEW = {"disk.ext4": "new", "dir-a.erofs": "new"}
MEMORY = {"snapshot.json": "new", "state": "new", "memory": "new"}


def fill(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


def read(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


class CutOff(Exception):
    """The daemon ends."""


@pytest.mark.parametrize("memory", [{}, MEMORY])
def test_all_of_it_is_there_wherever_it_was_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: dict[str, str]
) -> None:
    wanted = NEW | {f"standby/{name}": text for name, text in memory.items()}
    for most in range(100):
        state = tmp_path / str(most)
        state.mkdir()
        fill(state, OLD)
        fill(begin_revert(state), NEW | memory)
        with monkeypatch.context() as cutting:
            left = _cut_after(cutting, most)
            with contextlib.suppress(CutOff):
                commit_revert(state)
        committed = not (state / "revert.new").exists()
        settle_revert(state)
        assert read(state) == (wanted if committed else OLD), most
        settle_revert(state)
        assert read(state) == (wanted if committed else OLD)
        if left():
            break
    else:
        pytest.fail("it has no end")
    assert most > 3


def test_what_fails_before_the_disk_is_another_one_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The VM can be started then: what is tried later must not replace what it has written."""
    fill(tmp_path, OLD)
    fill(begin_revert(tmp_path), NEW | MEMORY)
    rename = os.rename

    def fail(source: Path, target: Path) -> None:
        if Path(target) == tmp_path / "disk.ext4":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OSError, match="Input/output"):
        commit_revert(tmp_path)
    monkeypatch.undo()
    settle_revert(tmp_path)
    assert read(tmp_path)["disk.ext4"] == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"disk.ext4", "dir-a.erofs"}


def test_the_disk_of_a_vm_that_runs_is_not_replaced(tmp_path: Path) -> None:
    fill(tmp_path, OLD)
    fill(tmp_path / "revert", NEW)
    with locked(tmp_path / "disk.ext4", WRITES), pytest.raises(InUse):
        settle_revert(tmp_path)
    assert read(tmp_path)["disk.ext4"] == "old"


def _cut_after(patch: pytest.MonkeyPatch, most: int) -> Callable[[], bool]:
    """Have it end at the rename or removal of that number. Gives whether it has come to its end."""
    done = 0

    def count(function: Callable[..., object]) -> Callable[..., object]:
        def run(*words: object, **keys: object) -> object:
            nonlocal done
            done += 1
            if done > most:
                raise CutOff
            return function(*words, **keys)

        return run

    for name in ("rename", "unlink", "rmdir"):
        patch.setattr(os, name, count(getattr(os, name)))
    return lambda: done <= most
