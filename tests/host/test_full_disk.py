# SPDX-License-Identifier: Apache-2.0
"""VMs that stand still: since a file system of the host is full, or on request. Nothing of theirs is lost."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.host.faults import ctl, host_config
from tests.host.machine import TestHost
from tests.host.vms import HAS_LAST_WORDS, Vms, hold_deadline, stuck_guests

pytestmark = pytest.mark.one_release

SMALL = "/srv/small"
BALLAST = f"{SMALL}/ballast"
VOLUMES, DISKS = "/var/lib/hypemand/volumes", "/var/lib/hypemand/vms"
# for two turns of the daemon's watchdog, which are half a minute
TURNS = 180.0
# Writes blocks, keeps what each should be in memory, and reads all of it again from the disk.
WRITES = """
mkdir /run/w; cd /srv; echo writing
for n in $(seq 48); do
    dd if=/dev/urandom of=/run/w/block bs=1M count=1 2>/dev/null
    sha256sum </run/w/block >>/run/w/sums
    cp /run/w/block f$n
done
sync; echo 3 >/proc/sys/vm/drop_caches; echo written
for n in $(seq 48); do sha256sum <f$n; done >/run/w/found
cmp /run/w/found /run/w/sums && echo whole
exec sleep infinity
"""
# Fills its disk before it is up.
FILLS = """
/bin/busybox mount -t devtmpfs dev /dev; /bin/busybox mkdir /sys; /bin/busybox mount -t sysfs sys /sys
for disk in vda vdb vdc vdd; do
    [ "$(/bin/busybox cat /sys/block/$disk/serial)" != hypeman-disk ] ||
        /bin/busybox dd if=/dev/zero of=/dev/$disk bs=1M count=60 oflag=direct
done
echo "the disk is written"
"""


@contextmanager
def small_file_system(host: TestHost, vms: Vms, ballast: str, size: str = "64M") -> Iterator[None]:
    """Disks and volumes are on a file system of that size in this block, of which `ballast` is taken."""
    with vms.without_daemon():
        host.shell(f"""
            mkdir {SMALL}; mount -t tmpfs -o size={size},mode=711 small {SMALL}
            for place in {VOLUMES} {DISKS}; do
                mkdir -m 711 {SMALL}/${{place##*/}}; mount --bind {SMALL}/${{place##*/}} $place
            done
            fallocate -l {ballast} {BALLAST}
        """)
    try:
        yield
    finally:
        vms.remove_all()
        if ctl(host, "volume", "list", "-q").stdout:
            ctl(host, "volume", "rm", "data")
        with vms.without_daemon():
            host.shell(f"umount {VOLUMES} {DISKS} {SMALL}; rmdir {SMALL}")


def warnings(host: TestHost, pattern: str) -> int:
    """How often the daemon has warned so."""
    entries = host.journal("--unit=hypemand.service", "--priority=4")
    return sum(re.search(pattern, entry["MESSAGE"]) is not None for entry in entries)


@pytest.fixture(autouse=True)
def small_reserve(host: TestHost) -> Iterator[None]:
    with host_config(host, disk={"reserve": "8M"}):
        yield


@pytest.mark.both_releases
def test_a_full_file_system_pauses_a_vm_until_there_is_space_and_no_write_is_lost(
    host: TestHost, vms: Vms
) -> None:
    # the daemon looks now and then, and a guest that is slow may not have filled it by then
    short = rf"the file system {VOLUMES} has \S+ free, and with less than the 8M \(disk\.reserve\)"
    with small_file_system(host, vms, "36M"):
        ctl(host, "volume", "create", "--size=128M", "data")
        name = vms.run("fills", WRITES, volumes=[{"volume": "data", "mount_path": "/srv"}])
        shown = vms.wait(name, "Paused")
        assert (
            f"the file system {VOLUMES} is full, so its volume data cannot be written" in shown["state_error"]
        )
        assert vms.unit(name, "StatusText")["StatusText"] == f"Paused: {shown['state_error']}"
        refused = vms.ctl("exec", name, "--", "true", check=False)
        assert f"{name} is Paused: the file system {VOLUMES} is full" in refused.stderr
        host.wait_until(lambda: warnings(host, short) == 1, "a warning")
        vms.restart_daemon()
        again = vms.show(name)
        assert (again["state"], again["state_error"]) == ("Paused", shown["state_error"])
        resumed = vms.ctl("resume", name)
        assert resumed.ok
        assert vms.wait(name, "Paused")["state_error"] == shown["state_error"], "it cannot write yet"
        host.run(["rm", BALLAST])
        vms.wait(name, "Running", TURNS)
        vms.wait_console(name, "whole")
        assert vms.unit(name, "NRestarts", "ActiveState") == {"NRestarts": "0", "ActiveState": "active"}
        assert "Paused" not in vms.unit(name, "StatusText")["StatusText"]


def test_a_boot_that_a_full_file_system_stops_has_its_deadline_extended(host: TestHost, vms: Vms) -> None:
    with small_file_system(host, vms, "40M"), stuck_guests(host, does=FILLS):
        name = vms.define("boots", boot_timeout="30s")
        vms.ctl("start", name)
        began = time.monotonic()
        hold_deadline(host, name, lambda: "is full" in (vms.show(name)["state_error"] or ""), "it is full")
        # past its deadline, and what that was extended by until then
        time.sleep(max(began + 34 - time.monotonic(), 14))
        assert vms.state(name) == "Initializing"
        host.run(["rm", BALLAST])
        vms.wait_console(name, "the disk is written", deadline=TURNS)
        assert vms.show(name)["state_error"] is None


def test_how_a_vm_ended_is_known_although_the_disk_was_full(host: TestHost, vms: Vms) -> None:
    why = "the guest did not power off in time and was ended by force"
    with small_file_system(host, vms, "1M", "96M"):
        name = vms.run("deaf", stop_timeout="5s")
        vms.wait_console(name, "up")
        # it can write what it wants, and nobody else can write anything
        host.shell(f"fallocate -l 64M {DISKS}/{name}/disk.ext4")
        host.shell(f"dd if=/dev/zero of={BALLAST}.more bs=4k 2>/dev/null || true")
        assert host.shell(f"df --output=avail {DISKS} | tail -n 1").stdout.split() == ["0"]
        # it hears of no order, so that systemd has to end it
        host.run(["kill", "-STOP", vms.unit(name, "MainPID")["MainPID"]])
        stopped = vms.ctl("stop", "--result", name, check=False)
        assert (stopped.code, stopped.stderr) == (1, f"hypemanctl: {name} failed: {why}\n")
        assert vms.unit(name, "Result")["Result"] == "timeout"
        assert not host.run(["test", "-e", f"{DISKS}/{name}/exit.json"], check=False).ok
        for _ in range(2):
            shown = vms.show(name)
            assert (shown["state"], shown["exit_message"]) == ("Stopped", why)
            vms.restart_daemon()
        # the next one that can be written counts
        host.run(["rm", f"{BALLAST}.more"])
        vms.start(name)
        host.run(["kill", "-KILL", vms.unit(name, "MainPID")["MainPID"]])
        assert vms.wait(name, "Stopped")["exit_message"] == "the VMM was killed by SIGKILL"


def test_a_vm_is_paused_and_goes_on_on_request(host: TestHost, vms: Vms) -> None:
    name = vms.run("rests", "while :; do date +%s; sleep 1; done")
    vms.ctl("pause", name)
    shown = vms.show(name)
    assert (shown["state"], shown["state_error"]) == ("Paused", None)
    assert vms.unit(name, "StatusText")["StatusText"] == "Paused: on request, until hypemanctl resume"
    lines = vms.console(name)
    vms.restart_daemon()
    time.sleep(4)
    assert vms.state(name) == "Paused"
    assert vms.console(name) == lines
    vms.ctl("resume", name)
    assert vms.state(name) == "Running"

    def is_right() -> bool:
        before = time.time()
        return before - 2 <= int(vms.execute(name, "date", "+%s")) <= time.time() + 2

    host.wait_until(is_right, "its clock is right")
    host.wait_until(lambda: len(vms.console(name)) > len(lines), "its program goes on")


def test_a_stop_of_a_paused_vm_ends_in_order(host: TestHost, vms: Vms) -> None:
    def stop_by_unit(name: str) -> None:
        host.run(["systemctl", "stop", f"hypeman-vm-{name}.service"])

    def stop_without_daemon(name: str) -> None:
        with vms.without_daemon():
            stop_by_unit(name)

    def stop(name: str) -> None:
        vms.ctl("stop", "--result", name)

    def stop_soon(name: str) -> None:
        vms.ctl("stop", "--result", "--timeout=20s", name)

    for number, end in enumerate((stop, stop_soon, stop_by_unit, stop_without_daemon)):
        name = vms.run(f"ends-{number}", HAS_LAST_WORDS, stop_timeout="60s")
        vms.ctl("pause", name)
        end(name)
        shown = vms.wait(name, "Stopped")
        assert (shown["exit_code"], shown["state"]) == (0, "Stopped"), end
        assert "last words" in vms.console(name), end
