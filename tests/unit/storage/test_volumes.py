# SPDX-License-Identifier: Apache-2.0
"""What lasts of volumes, and what a crash leaves."""

import errno
import os
import re
import stat
import subprocess
from pathlib import Path

import pytest

from hypemand.errors import AlreadyExists, Ambiguous, HypemandError, InvalidRequest, NotFound
from hypemand.model.volumes import VolumeRoot
from hypemand.storage import volumes as volumes_module
from hypemand.storage.disks import has_journal_to_replay, read_size
from hypemand.storage.replay import replay_here
from hypemand.storage.volumes import VolumeStore
from hypemand.storage.volumestart import prepare_volume

MIB = 1024 * 1024


def make(folder: Path) -> VolumeStore:
    store = VolumeStore(folder / "volumes", folder / "templates")
    store.load()
    return store


def test_a_volume_lasts_and_is_found_by_name_id_and_start_of_id(tmp_path: Path) -> None:
    store = make(tmp_path)
    made = store.create("data", 20 * MIB, {"team": "x"})
    other = store.create("other", 16 * MIB, {}, "my-id")
    again = make(tmp_path)
    assert list(again) == [made, other]
    assert again.get("data") == again.get(made.id) == again.get(made.id[:8]) == made
    assert (made.size, len(made.serial), made.serial != other.serial) == (20 * MIB, 20, True)
    assert made.used < 6 * MIB
    assert stat.S_IMODE(made.folder.stat().st_mode) == 0o700
    for ref in ("nothing", made.id[:3], "my"):
        with pytest.raises(NotFound):
            again.get(ref)
    store.create("third", 16 * MIB, {}, "my-id-2")
    store.create("fourth", 16 * MIB, {}, "my-id-3")
    with pytest.raises(Ambiguous, match="fourth, third"):
        store.get("my-id-")


def show_root(volume: Path) -> str:
    shown = subprocess.run(
        ["debugfs", "-R", "stat <2>", volume], capture_output=True, text=True, check=True, timeout=60
    )
    return " ".join(shown.stdout.split())


def test_a_volume_with_an_owner_or_a_mode_is_sound_and_not_new_to_a_guest(tmp_path: Path) -> None:
    store = make(tmp_path)
    for root in (VolumeRoot(1000, 70000, 0o1750), VolumeRoot(2**32 - 2, 0), VolumeRoot()):
        volume = store.create(f"v{root.gid}-{root.uid}", 16 * MIB, {}, root=root)
        shown = show_root(volume.disk)
        found = re.search(r"Mode: +(\d+) .*User: +(-?\d+) +Group: +(-?\d+) ", shown)
        assert found is not None, shown
        assert int(found[1], 8) == root.mode
        assert (int(found[2]) % 2**32, int(found[3]) % 2**32) == (root.uid, root.gid)
        assert "Links: 2 " in shown
        checked = subprocess.run(["e2fsck", "-fn", volume.disk], capture_output=True, timeout=60, check=False)
        assert checked.returncode == 0 or b"lost+found not found" in checked.stdout, checked.stdout
        names = subprocess.run(
            ["debugfs", "-R", "ls -p /", volume.disk], capture_output=True, check=True, timeout=60
        )
        assert b"lost+found" not in names.stdout


def test_a_volume_whose_root_cannot_be_set_is_none(tmp_path: Path) -> None:
    store = make(tmp_path)
    with pytest.raises(HypemandError, match="cannot set owner and mode"):
        store.create("odd", 16 * MIB, {}, root=VolumeRoot(uid=2**40))
    assert list(store) == []
    assert list((tmp_path / "volumes").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "size", "tags", "volume_id", "word"),
    [
        ("Up", 16 * MIB, {}, None, "name"),
        ("../up", 16 * MIB, {}, None, "name"),
        ("a", 16 * MIB, {}, "../x", "id"),
        ("a", MIB, {}, None, "size: 1M is not a valid size; give 16M to 16T"),
        ("a", 2**60, {}, None, "size"),
        ("a", 16 * MIB, {"!": "x"}, None, "tags"),
        ("a", 16 * MIB, {"x": "two\nlines"}, None, "tags"),
    ],
)
def test_what_cannot_be_is_refused(
    tmp_path: Path, name: str, size: int, tags: dict[str, str], volume_id: str | None, word: str
) -> None:
    store = make(tmp_path)
    with pytest.raises(InvalidRequest, match=f"^{word}"):
        store.create(name, size, tags, volume_id)
    assert list((tmp_path / "volumes").iterdir()) == []


def test_no_two_have_one_name(tmp_path: Path) -> None:
    store = make(tmp_path)
    store.create("data", 16 * MIB, {}, "one")
    for name, volume_id in (("data", None), ("one", None), ("new", "data"), ("new", "one")):
        with pytest.raises(AlreadyExists):
            store.create(name, 16 * MIB, {}, volume_id)


def test_what_is_marked_is_gone_after_a_crash(tmp_path: Path) -> None:
    store = make(tmp_path)
    unfilled = store.create("filling", 16 * MIB, {}, ready=False)
    made = store.create("data", 16 * MIB, {})
    for mark in ("making", "removed"):
        half = tmp_path / "volumes" / f".{'a' * 32}.{mark}"
        half.mkdir()
        (half / "volume.ext4").write_bytes(bytes(100))
    again = make(tmp_path)
    again.clean_up()
    assert list(again) == [made, unfilled]
    assert again.unfilled == [unfilled]
    being_filled = again.create("new", 16 * MIB, {}, ready=False)
    assert again.unfilled == [unfilled]
    again.remove_unfilled(unfilled)
    again.remove(being_filled)
    assert again.unfilled == []
    assert [path.name for path in (tmp_path / "volumes").iterdir()] == [made.id]


def test_a_missing_record_is_no_permission_to_delete(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = make(tmp_path)
    made = store.create("data", 16 * MIB, {})
    lost = store.create("lost", 16 * MIB, {}, "lost")
    (lost.folder / "volume.json").unlink()
    others = {"broken": "{", "list": "[]", "no-object": '{"name": "a", "created_at": 1, "tags": []}'}
    for name, record in others.items():
        folder = tmp_path / "volumes" / name
        folder.mkdir()
        (folder / "volume.ext4").write_bytes(bytes(16))
        (folder / "volume.json").write_text(record)
    (tmp_path / "volumes/lost+found").mkdir()
    (tmp_path / "volumes/lost+found/#12").write_text("saved")
    (tmp_path / "volumes/README").write_text("of the administrator")
    before = sorted(tmp_path.glob("volumes/**/*"))
    again = make(tmp_path)
    assert list(again) == [made]
    assert sorted(tmp_path.glob("volumes/**/*")) == before
    assert all(f"volumes/{name}, " in caplog.text for name in (*others, "lost", "README"))
    assert "lost+found" not in caplog.text
    # nor is it one to write over it
    with pytest.raises(AlreadyExists, match="contains no readable volume"):
        again.create("new", 16 * MIB, {}, "lost")


def test_a_making_that_fails_leaves_nothing_that_could_be_a_volume(tmp_path: Path) -> None:
    store = make(tmp_path)
    (tmp_path / "templates").write_text("no folder")
    with pytest.raises(OSError, match="templates"):
        store.create("data", 16 * MIB, {})
    assert (list(store), list((tmp_path / "volumes").iterdir())) == ([], [])


def test_what_cannot_be_deleted_is_logged_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = make(tmp_path)
    made = store.create("data", 16 * MIB, {})
    busy = tmp_path / "volumes" / f".{'a' * 32}.removed" / "mounted"
    busy.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(busy)], check=True, timeout=60)
    try:
        again = make(tmp_path)
        again.clean_up()
        assert list(again) == [made]
        assert "cannot delete all of" in caplog.text
    finally:
        subprocess.run(["umount", str(busy)], check=True, timeout=60)
    again = make(tmp_path)
    again.clean_up()
    assert [path.name for path in (tmp_path / "volumes").iterdir()] == [made.id]


def test_a_volume_grows_and_never_shrinks(tmp_path: Path) -> None:
    store = make(tmp_path)
    store.resize(store.create("data", 16 * MIB, {}), 40 * MIB)
    assert read_size(store.get("data").disk) == 40 * MIB == store.get("data").size
    with pytest.raises(
        InvalidRequest, match=r"size: 20M is less than the 40M that the volume data has; .*cannot shrink"
    ):
        store.resize(store.get("data"), 20 * MIB)


def test_owner_and_mode_are_the_same_for_all_and_only_root_gets_to_it(tmp_path: Path) -> None:
    store = make(tmp_path)
    disk = store.create("data", 16 * MIB, {}).disk
    made = disk.stat()
    # as a release that gave it to the user of its VM has left it
    os.chown(disk, 61234, 0)
    disk.chmod(0o600)
    disk.parent.chmod(0o711)
    for writes in (True, False):
        prepare_volume(disk, "web", 61235, writes=writes)
        about = disk.stat()
        assert (about.st_uid, about.st_gid, stat.S_IMODE(about.st_mode)) == (0, 0, 0o666)
        assert stat.S_IMODE(disk.parent.stat().st_mode) == 0o700
    store.resize(store.get("data"), 32 * MIB)
    assert disk.stat().st_mode == made.st_mode


def test_a_journal_that_a_crash_left_is_replayed_for_readers(tmp_path: Path) -> None:
    disk = make(tmp_path).create("data", 16 * MIB, {}).disk
    assert not has_journal_to_replay(disk)
    subprocess.run(["debugfs", "-w", "-R", "feature +needs_recovery", str(disk)], check=True, timeout=60)
    prepare_volume(disk, "web", os.getuid(), writes=False, replay=replay_here)
    assert not has_journal_to_replay(disk)
    subprocess.run(["e2fsck", "-fn", str(disk)], check=True, timeout=60)


def test_a_volume_whose_name_would_not_last_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(folder))

    store = make(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(volumes_module, "sync_folder", fail)
        with pytest.raises(OSError, match="Input/output"):
            store.create("data", 16 * MIB, {})
    assert (list(store), list((tmp_path / "volumes").iterdir())) == ([], [])
    made = store.create("data", 16 * MIB, {})
    assert list(make(tmp_path)) == [made]


def test_a_volume_that_cannot_even_be_taken_back_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def fail(folder: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(folder))

    def rename_once(path: Path, target: Path) -> Path:
        if path.suffix != ".making":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return rename(path, target)

    store = make(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(volumes_module, "sync_folder", fail)
        patch.setattr(Path, "rename", rename_once)
        with pytest.raises(OSError, match="Read-only"):
            store.create("data", 16 * MIB, {})
    assert list(store) == list(make(tmp_path))
    with pytest.raises(AlreadyExists):
        store.create("data", 16 * MIB, {})
