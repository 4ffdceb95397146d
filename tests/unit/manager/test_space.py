# SPDX-License-Identifier: Apache-2.0
"""Every byte is counted, once, and as what it is."""

import os
from pathlib import Path

from hypemand.manager.resources.space import measure_space
from hypemand.model.space import SpaceKind


def test_files_are_counted_by_kind_once_and_by_what_they_take(tmp_path: Path) -> None:
    state, runtime = tmp_path / "state", tmp_path / "run"
    for name, size in (
        ("images/a/rootfs.erofs", 8192),
        ("templates/t.img", 4096),
        ("volumes/v/volume.ext4", 4096),
        ("volumes/v/volume.json", 10),
        ("vms/web/disk.ext4", 4096),
        ("vms/web/vm.json", 10),
        ("vms/web/standby/memory", 4096),
        ("snapshots/2d3f/snapshot.json", 10),
        ("snapshots/2d3f/disk.ext4", 4096),
        ("tokens.json", 10),
    ):
        path = state / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
    for disk in ("vms/web/disk.ext4", "snapshots/2d3f/disk.ext4", "vms/web/standby/memory"):
        os.truncate(state / disk, 2**30)
    os.link(state / "vms/web/standby/memory", state / "snapshots/2d3f/memory")
    os.link(state / "images/a/rootfs.erofs", state / "images/a/again")
    runtime.mkdir()
    (runtime / "config.img").write_bytes(b"x" * 512)
    (runtime / "broken").symlink_to("nowhere")
    uses = {use.kind: use for use in measure_space(state, runtime, 10**9)}
    counts = {kind: use.count for kind, use in uses.items()}
    assert counts == {
        SpaceKind.IMAGES: 1,
        SpaceKind.TEMPLATES: 1,
        SpaceKind.VOLUMES: 1,
        SpaceKind.DISKS: 1,
        SpaceKind.STANDBY: counts[SpaceKind.STANDBY],  # of two names of a file, the one that is found first
        SpaceKind.SNAPSHOTS: 3 - counts[SpaceKind.STANDBY],
        SpaceKind.RECORDS: 3,
        SpaceKind.RUNTIME: 1,
    }
    disks = uses[SpaceKind.DISKS]
    assert (disks.size, disks.used) == (2**30, 4096)
    for kind in (SpaceKind.STANDBY, SpaceKind.SNAPSHOTS):
        assert uses[kind].size < 2**20, "what does not grow"
    assert uses[SpaceKind.IMAGES].reclaimable == uses[SpaceKind.IMAGES].used
    real = sum(
        path.lstat().st_blocks * 512
        for top in (state, runtime)
        for path in [top, *top.rglob("*")]
        if path.name != "again" and path != state / "snapshots/2d3f/memory"
    )
    assert sum(use.used for use in uses.values()) == real
