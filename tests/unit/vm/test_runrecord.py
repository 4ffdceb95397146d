# SPDX-License-Identifier: Apache-2.0
"""Which boot a run carries, by a record that stands in a folder of the VMM's own."""

import os
from pathlib import Path

import pytest

from hypemand.vm.runrecord import find_boot_id

RUN, BOOT, OTHER = "c" * 32, "a" * 32, "b" * 32


def test_a_run_carries_the_boot_that_the_launcher_has_noted(tmp_path: Path) -> None:
    (tmp_path / "run").write_text(f"{RUN} {BOOT}\n")
    assert find_boot_id(tmp_path, RUN) == BOOT


def test_the_record_of_the_run_before_is_none(tmp_path: Path) -> None:
    (tmp_path / "run").write_text(f"{OTHER} {BOOT}\n")
    assert find_boot_id(tmp_path, RUN) is None


@pytest.mark.parametrize(
    "record",
    [
        b"",
        f"{RUN} {BOOT}".encode(),
        f"{RUN}  {BOOT}\n".encode(),
        f"{RUN} {BOOT}\nmore".encode(),
        f"{RUN} {BOOT.upper()}\n".encode(),
        b"\xff" * 66,
        b"x" * 4096,
    ],
)
def test_a_record_that_is_not_whole_is_none(tmp_path: Path, record: bytes) -> None:
    (tmp_path / "run").write_bytes(record)
    assert find_boot_id(tmp_path, RUN) is None


def test_what_a_vmm_may_put_in_its_place_is_none_and_holds_nobody_up(tmp_path: Path) -> None:
    good = tmp_path / "good"
    good.write_text(f"{RUN} {BOOT}\n")
    path = tmp_path / "run"
    assert find_boot_id(tmp_path, RUN) is None
    path.mkdir()
    assert find_boot_id(tmp_path, RUN) is None
    path.rmdir()
    os.mkfifo(path)
    assert find_boot_id(tmp_path, RUN) is None
    path.unlink()
    path.symlink_to(good)
    assert find_boot_id(tmp_path, RUN) is None
    path.unlink()
    good.rename(path)
    os.chown(path, 1234, 1234)
    assert find_boot_id(tmp_path, RUN) is None
    os.chown(path, os.geteuid(), os.getegid())
    assert find_boot_id(tmp_path, RUN) == BOOT
