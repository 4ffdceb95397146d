# SPDX-License-Identifier: Apache-2.0
"""Disks that a VMM has open, whatever the daemon and systemd know of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.host.faults import ctl
from tests.host.machine import TestHost
from tests.host.test_volumes import VOLUMES, at, create, inspect, nothing_is_left
from tests.host.vms import Vms

pytestmark = pytest.mark.one_release

__all__ = ["nothing_is_left"]  # after each test
STATE = "/var/lib/hypemand/vms"
LOOKS = """
import sys
from pathlib import Path
from hypemand.storage.locks import is_disk_in_use
print(*[is_disk_in_use(Path(path)) for path in sys.argv[1:]])
"""
QEMU = "qemu-system-x86_64 -M microvm,accel=tcg -nodefaults -display none -S -m 32M"


def are_in_use(host: TestHost, *paths: str) -> list[bool]:
    told = host.run(["/usr/bin/python3", "-I", "-c", LOOKS, *paths]).stdout
    return [word == "True" for word in told.split()]


def about(host: TestHost, *paths: str) -> str:
    return host.run(["stat", "-c", "%i %s %u %a %n", *paths]).stdout


@contextmanager
def in_stray_qemu(host: TestHost, *paths: str) -> Iterator[None]:
    """A VMM that nobody has started as a VM has these disks."""
    drives = [f"-drive if=none,id=disk{n},format=raw,file={path}" for n, path in enumerate(paths)]
    devices = [f"-device virtio-blk-device,drive=disk{n}" for n in range(len(paths))]
    argv = " ".join([QEMU, *drives, *devices]).split()
    host.run(["systemd-run", "--quiet", "--collect", "--unit=stray", *argv])
    try:
        host.wait_until(lambda: all(are_in_use(host, *paths)), "QEMU has the disks")
        yield
    finally:
        host.run(["systemctl", "stop", "stray.service"])


@pytest.mark.both_releases
def test_a_vmm_locks_all_that_it_has_until_it_ends(host: TestHost, vms: Vms) -> None:
    create(host, "written", "read")
    vms.run("web", volumes=[at("written"), at("read", "/mnt", readonly=True)])
    disks = [f"{VOLUMES}/{inspect(host, name)['id']}/volume.ext4" for name in ("written", "read")]
    disks += [f"{STATE}/web/disk.ext4", "/run/hypemand/vms/web/config.img"]
    assert are_in_use(host, *disks) == [True] * 4
    vms.ctl("stop", "web")
    assert are_in_use(host, *disks[:3]) == [False] * 3


def test_a_vm_whose_run_json_is_lost_keeps_all_that_it_runs_with(host: TestHost, vms: Vms) -> None:
    create(host, "data")
    vms.run("web", volumes=[at("data")])
    vms.execute("web", "sh", "-c", "echo kept >/srv/file && sync")
    before, disk = vms.show("web"), f"{VOLUMES}/{inspect(host, 'data')['id']}/volume.ext4"
    files = about(host, disk, f"{STATE}/web/disk.ext4")
    vms.define("web")  # without the volume, from its next start on
    vms.define("other", volumes=[at("data")])
    with vms.without_daemon():
        host.run(["rm", f"{STATE}/web/run.json"])
    assert any("its run.json cannot be read" in e.get("MESSAGE", "") for e in host.journal("HYPEMAN_VM=web"))
    (attachment, _) = sorted(inspect(host, "data")["attachments"], key=json.dumps, reverse=True)
    assert vms.state("web") == "Running"
    assert "web" in json.dumps(attachment) + json.dumps(inspect(host, "data"))
    refused = ctl(host, "start", "other", check=False)
    assert "VM web writes to the volume data" in refused.stderr, refused.describe()
    vms.undefine("other")
    ctl(host, "rm", "--force", "other")
    for change in (["rm", "data"], ["resize", "data", "128M"]):
        refused = ctl(host, "volume", *change, check=False)
        assert not refused.ok
        assert "web" in refused.stderr, refused.describe()
    assert about(host, disk, f"{STATE}/web/disk.ext4") == files
    assert vms.show("web")["main_pid"] == before["main_pid"]
    assert vms.execute("web", "cat", "/srv/file") == "kept\n"
    vms.ctl("stop", "web")
    ctl(host, "volume", "resize", "data", "128M")


def test_what_a_stray_vmm_has_is_not_touched(host: TestHost, vms: Vms) -> None:
    create(host, "data")
    vms.run("web", volumes=[at("data")])
    vms.ctl("stop", "web")
    vms.undefine("web")  # so that it may be removed
    disk, own = f"{VOLUMES}/{inspect(host, 'data')['id']}/volume.ext4", f"{STATE}/web/disk.ext4"
    files = about(host, disk, own)
    with in_stray_qemu(host, disk, own):
        refused = ctl(host, "rm", "--force", "web", check=False)
        assert f"{own} is being written to by a VMM" in refused.stderr, refused.describe()
        assert "Micro VM web" in refused.stderr, "its owner is named"
        refused = ctl(host, "start", "web", check=False)
        assert f"{own} is being written to by a VMM" in refused.stderr, refused.describe()
        assert vms.state("web") == "Stopped"
        refused = ctl(host, "volume", "resize", "data", "128M", check=False)
        assert f"{disk} is being written to by a VMM" in refused.stderr, refused.describe()
        assert about(host, disk, own) == files
    ctl(host, "rm", "--force", "web")
    ctl(host, "volume", "resize", "data", "128M")


@pytest.mark.both_releases
@pytest.mark.parametrize("again", ["daemon-reload", "daemon-reexec"])
def test_a_unit_whose_file_is_gone_is_a_unit_for_as_long_as_it_lives(
    host: TestHost, vms: Vms, again: str
) -> None:
    vms.run("web", network="default")
    before = vms.show("web")
    host.run(["rm", "/run/systemd/transient/hypeman-vm-web.service"])
    host.run(["systemctl", again])
    vms.restart_daemon()
    shown = vms.show("web")
    assert (shown["state"], shown["main_pid"]) == ("Running", before["main_pid"])
    assert host.run(["ls", "/run/hypemand/vms"]).stdout == "web\n"
    assert vms.execute("web", "echo", "here") == "here\n"
    vms.ctl("stop", "web")
    assert vms.state("web") == "Stopped"
