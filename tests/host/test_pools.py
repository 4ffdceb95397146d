# SPDX-License-Identifier: Apache-2.0
"""Volumes on a directory that two hosts have: one host has the volume, and the other one is told who. Block
devices."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from hypemand.config.definition import MIB
from tests.host.command import run_command
from tests.host.faults import DROPIN, ctl
from tests.host.lab import boot_hosts, start_host
from tests.host.machine import TestHost
from tests.host.recipe import Suite
from tests.host.test_volumes import COUNTS
from tests.host.vms import Vms

pytestmark = pytest.mark.one_release

SHARED = "/srv/shared"
SERVICE = f"[Unit]\nRequiresMountsFor={SHARED}\n[Service]\nReadWritePaths={SHARED}\n"
LOG = {"volume": "san/log", "mount_path": "/srv"}
OWN = {"volume": "san/own", "mount_path": "/"}
READS = {**LOG, "readonly": True}


def give_pool(host: TestHost) -> None:
    """As docs/volumes.md says; `check` says what is missing until then."""
    host.push(DROPIN, yaml.safe_dump({"pools": {"san": {"directory": SHARED, "shared": True}}}))
    missing = ctl(host, "check", check=False)
    assert not missing.ok
    assert f"RequiresMountsFor={SHARED}, [Service] and ReadWritePaths={SHARED}" in missing.stderr
    host.push("/etc/systemd/system/hypemand.service.d/pools.conf", SERVICE)
    host.shell("systemctl daemon-reload; systemctl restart hypemand")
    ctl(host, "check")


def find_name(host: TestHost) -> str:
    return host.run(["uname", "-n"]).stdout.strip()


def list_numbers(vms: Vms, word: str) -> list[int]:
    lines = vms.console("counter")
    return [int(line.split()[1]) for line in lines if re.fullmatch(rf"{word} [0-9]+", line)]


def stat(host: TestHost) -> Any:
    """What a touch of the volume would change."""
    return host.shell(f"stat -c '%i %s %u:%g %a' {SHARED}/volumes/*/volume.ext4").stdout


def test_a_volume_has_its_vm_on_one_host_and_the_next_one_when_that_host_has_died(
    suite: Suite, tmp_path: Path
) -> None:
    with boot_hosts([suite, suite], binds=[f"{tmp_path}:{SHARED}"]) as (a, b):
        on_a, on_b = Vms(a), Vms(b)
        assert find_name(a) != find_name(b)
        for host in (a, b):
            give_pool(host)
        ctl(a, "volume", "create", "--size=64M", "san/log")
        on_a.define("counter", COUNTS, volumes=[LOG], restart="always", unit={"RestartSec": 0})
        on_a.start("counter")
        a.wait_until(lambda: len(list_numbers(on_a, "kept")) > 3)
        assert ctl(b, "volume", "list", "-q").stdout == "san/log\n"
        refuse_on(b, on_b, f"VM counter on host {find_name(a)} ")
        ctl(a, "volume", "create", "--size=64M", "san/own")
        for vms in (on_a, on_b):
            vms.define("mover", volumes=[OWN])
        on_a.start("mover")
        on_a.execute("mover", "sh", "-c", "echo mine >/etc/kept && sync")
        refused = ctl(b, "start", "mover", check=False)
        assert f"VM mover on host {find_name(a)} " in refused.stderr, refused.describe()
        assert not a.run(["ls", "/var/lib/hypemand/vms/mover/disk.ext4"], check=False).ok
        restart_by_systemd_alone(a, on_a)
        kept = list_numbers(on_a, "kept")[-1]
        a.kill()
        # it is not closed cleanly: the first reader's start replays its journal, and no one has it now
        on_b.start("reader")
        assert int(on_b.execute("reader", "tail", "-n", "1", "/srv/log")) >= kept
        on_b.ctl("stop", "reader")
        on_b.start("counter")
        b.wait_until(lambda: len(list_numbers(on_b, "kept")) > 3)
        assert list_numbers(on_b, "found")[0] >= kept
        on_b.start("mover")
        assert on_b.execute("mover", "cat", "/etc/kept") == "mine\n"
        assert "pool san (/srv/shared, shared):" in ctl(b, "df").stdout


def refuse_on(host: TestHost, vms: Vms, holder: str) -> None:
    """Neither a reader nor a writer starts there; nothing is changed, and nothing removed."""
    marked = f"{SHARED}/volumes/.{'a' * 32}.making"
    host.run(["mkdir", marked])
    vms.define("reader", volumes=[READS])
    vms.define("counter", COUNTS, volumes=[LOG])
    before = stat(host)
    for words in (("start", "reader"), ("start", "counter"), ("volume", "resize", "san/log", "128M")):
        refused = ctl(host, *words, check=False)
        assert (refused.code, holder in refused.stderr) == (11, True), refused.describe()
    vms.restart_daemon()
    assert stat(host) == before
    assert host.run(["ls", "-d", marked]).ok
    assert not any("hypeman-replay-" in entry.get("UNIT", "") for entry in host.journal())
    vms.define("without", volumes=[{**LOG, "required": False}])
    vms.start("without")
    assert "No such file" in ctl(host, "exec", "without", "--", "ls", "/srv/log", check=False).stderr
    vms.ctl("stop", "without")


def restart_by_systemd_alone(host: TestHost, vms: Vms) -> None:
    """What a host has asked for in vain does not keep the VM from its volume."""
    began = len(list_numbers(vms, "found"))
    kept = list_numbers(vms, "kept")[-1]
    host.run(["systemctl", "stop", "hypemand.socket", "hypemand.service"])
    host.run(["systemctl", "kill", "--kill-who=main", "--signal=KILL", "hypeman-vm-counter.service"])
    host.wait_until(lambda: len(list_numbers(vms, "found")) > began)
    assert list_numbers(vms, "found")[-1] >= kept
    host.run(["systemctl", "start", "hypemand.socket", "hypemand.service"])


@contextmanager
def lend_loop_device(file: Path) -> Iterator[int]:
    """A loop device of this machine; its number. It goes with the last process that has it open."""
    device = run_command(["losetup", "--find", "--show", str(file)], timeout=60).stdout.strip()
    with open(device, "rb") as lent:
        run_command(["losetup", "--detach", device], timeout=60)
        yield os.fstat(lent.fileno()).st_rdev


# the machine must have loop devices
@pytest.mark.long
def test_a_vm_keeps_its_data_on_a_block_device_of_which_it_is_the_only_writer(
    suite: Suite, tmp_path: Path
) -> None:
    file = tmp_path / "lun.raw"
    with file.open("wb") as made:
        made.truncate(64 * MIB)
    with lend_loop_device(file) as number, start_host(suite) as host:
        vms = Vms(host)
        host.shell(f"""
            mkdir /dev/lun
            mknod /dev/lun/sdx b {os.major(number)} {os.minor(number)}
            chgrp disk /dev/lun/sdx
            chmod 0660 /dev/lun/sdx
            ln -s sdx /dev/lun/scsi-1
            ln -s sdx /dev/lun/scsi-2
            mkfs.ext4 -q /dev/lun/sdx
        """)
        host.push(DROPIN, yaml.safe_dump({"pools": {"lun": {"devices": "/dev/lun"}}}))
        ctl(host, "reload")
        device = {"device": "lun/scsi-1", "mount_path": "/srv"}
        vms.define("counter", COUNTS, volumes=[device])
        vms.define("other", volumes=[device])
        vms.define("alias", volumes=[{**device, "device": "lun/scsi-2"}])
        vms.start("counter")
        host.wait_until(lambda: len(list_numbers(vms, "kept")) > 3)
        refused = ctl(host, "start", "other", check=False)
        assert "VM counter writes to the device lun/scsi-1, so no other VM can use it" in refused.stderr
        assert not ctl(host, "start", "--wait", "alias", check=False).ok
        assert any('Failed to get "write" lock' in line for line in vms.console("alias"))
        refused = ctl(host, "standby", "counter", check=False)
        assert "VM counter has the device lun/scsi-1, and when it is restored" in refused.stderr
        kept = list_numbers(vms, "kept")[-1]
        vms.ctl("kill", "counter")
        host.run(["mount", "/dev/lun/sdx", "/mnt"])
        refused = ctl(host, "start", "counter", check=False)
        assert "/dev/lun/scsi-1 is mounted on this host, on /mnt; " in refused.stderr.replace("\n", "; ")
        host.run(["umount", "/mnt"])
        vms.start("counter")
        host.wait_until(lambda: list_numbers(vms, "found")[-1] >= kept)
