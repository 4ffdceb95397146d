# SPDX-License-Identifier: Apache-2.0
"""Warm starts: from a template, as VMs of their own, and as boots where that is of no use."""

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.host.machine import TestHost
from tests.host.test_standby import KNOCK
from tests.host.vms import Vms, vms_of

DROPIN = "/etc/hypemand/hypemand.yaml.d/warm.yaml"
FOLDER = "/var/lib/hypemand/templates/warm"
# what no two VMs may have in common, a line each; the clock, and the size of the VM's disk
IDENTITY = """
cat /proc/sys/kernel/random/boot_id /proc/sys/kernel/random/uuid /proc/cmdline /etc/hostname
ip link show dev eth0 | grep -o 'link/ether [0-9a-f:]*'
ip -4 addr show dev eth0 | grep -o 'inet [0-9.]*'
"""
# what a program may draw or read as its own
DRAWN = "head -c 16 /dev/urandom | hexdump -ve '/1 \"%02x\"'; echo"
# as many as there is room for beside other tests; with --long, many
SOME, MANY = 8, 50
COMMON = 'for d in /sys/block/vd*; do echo "$(cat $d/serial) $(cat $d/size) $(cat $d/ro)"; done'


@pytest.fixture(scope="module")
def vms(host: TestHost) -> Iterator[Vms]:
    host.push(DROPIN, "warm_start: {mode: auto}\n")
    host.run(["systemctl", "reload", "hypemand"])
    with vms_of(host) as those:
        yield those
    host.run(["rm", "-rf", DROPIN, FOLDER])
    host.run(["systemctl", "reload", "hypemand"])


# changes a file so that neither size nor time show it: its path, what is in it, what takes the place of that
SPOIL = """
import mmap, os, sys
path, old, new = sys.argv[1], *(word.encode() for word in sys.argv[2:])
before = os.stat(path)
with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as content:
    at = content.find(old)
    assert at >= 0
    while at >= 0:
        content[at:at + len(old)] = new.ljust(len(old), b"X")
        at = content.find(old, at + 1)
os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
"""


def spoil(vms: Vms, key: str, old: str, new: str = "") -> None:
    """The memory of a template, in a way that no time or size shows."""
    vms.host.run(["python3", "-c", SPOIL, f"{FOLDER}/{key}/memory", old, new])


def templates(vms: Vms) -> list[str]:
    return vms.host.shell(f"ls {FOLDER} 2>/dev/null || true").stdout.split()


def has_time(vms: Vms, name: str) -> bool:
    """Is its clock right, to a second? How long it takes to ask does not count."""
    before = time.time()
    clock = float(vms.execute(name, "sh", "-c", "echo $EPOCHREALTIME"))
    return before - 1 <= clock <= time.time() + 1


def wait_for_time(vms: Vms, name: str) -> None:
    """Where a guest has read an order late, which a busy host makes it, its clock is set again."""
    vms.host.wait_until(lambda: has_time(vms, name), f"{name} has the host's time")


def is_warm(vms: Vms, name: str) -> bool:
    pid = vms.unit(name, "MainPID")["MainPID"]
    return b"-incoming" in vms.host.shell(f"tr '\\0' ' ' </proc/{pid}/cmdline").stdout.encode()


def check_steps(vms: Vms, name: str) -> None:
    """What `analyze` shows of a warm start: a thaw in place of the kernel, and all that comes after."""
    timeline = json.loads(vms.ctl("analyze", "--json", name).stdout)
    steps = {span["name"] for span in timeline["spans"]}
    assert {"thaw", "config", "root", "api", "system", "console", "agent", "program"} <= steps, timeline
    assert "kernel" not in steps


def make_template(vms: Vms, name: str = "first", **keys: Any) -> str:
    """By a boot of the first VM of its kind."""
    before = set(templates(vms))
    vms.run(name, network="default", **keys)
    assert not is_warm(vms, name)
    vms.host.wait_until(lambda: set(templates(vms)) - before, "a template")
    (key,) = set(templates(vms)) - before
    return key


def test_vms_of_one_template_are_vms_of_their_own(vms: Vms) -> None:
    key = make_template(vms)
    names = [f"warm-{number}" for number in range(4)]
    for number, name in enumerate(names):
        vms.write(name, network="default", disk=f"{64 + 16 * number}M")
    vms.reload()
    vms.start(*names)
    assert all(is_warm(vms, name) for name in names)
    for name in names:
        check_steps(vms, name)
    seen: list[str] = []
    for number, name in enumerate(names):
        own = vms.execute(name, "sh", "-c", IDENTITY).splitlines()
        assert len(own) == 6, own
        assert f"hypeman.boot={vms.show(name)['boot_id']}" in own[2]
        assert own[3] == name
        assert own[4].split()[1] == vms.show(name)["network"]["mac"]
        seen += own
        disks = vms.execute(name, "sh", "-c", COMMON).splitlines()
        wait_for_time(vms, name)
        sizes = {serial: (int(size), ro) for serial, size, ro in (line.rsplit(" ", 2) for line in disks)}
        assert sizes["hypeman-disk"] == ((64 + 16 * number) * 2048, "0")
        assert sizes["hypeman-image"][1] == sizes["hypeman-config"][1] == "1"
        knock = vms.host.run(["python3", "-c", KNOCK, vms.show(name)["network"]["ip"]])
        assert knock.stdout == "refused\n", "it is there"
    assert len(set(seen)) == len(seen), "nothing twice"
    # as systemd starts it, with no daemon
    before = vms.show(names[0])["boot_id"]
    with vms.without_daemon():
        vms.host.run(["systemctl", "restart", "--no-block", f"hypeman-vm-{names[0]}"])
        vms.wait_console(names[0], "up", times=2)
        assert is_warm(vms, names[0])
    vms.wait(names[0], "Running")
    assert vms.show(names[0])["boot_id"] != before
    check_steps(vms, names[0])
    assert "<title>thaw: " in vms.ctl("analyze", "plot", names[0]).stdout
    # it can be saved, and goes on
    vms.ctl("standby", names[1])
    vms.ctl("restore", "--wait", names[1])
    assert vms.execute(names[1], "cat", "/etc/hostname").strip() == names[1]
    # one that is damaged is passed over, by systemd alone and by the daemon, and made anew
    state = f"{FOLDER}/{key}/state"
    vms.host.shell(f"printf changed | dd of={state} bs=1 seek=5000 conv=notrunc status=none")
    with vms.without_daemon():
        vms.host.run(["systemctl", "restart", "--no-block", f"hypeman-vm-{names[0]}"])
        vms.wait_console(names[0], "up", times=3)
        assert not is_warm(vms, names[0])
    vms.wait(names[0], "Running")
    assert "the template for a warm start is damaged" in "\n".join(vms.console(names[0]))
    vms.ctl("restart", names[2])
    vms.wait(names[2], "Running")
    assert not is_warm(vms, names[2])
    vms.host.wait_until(lambda: templates(vms), "another template")


def test_a_first_start_is_warm_if_the_template_was_made_by_command(vms: Vms) -> None:
    vms.write("prepared", network="default", memory="112M")
    vms.reload()
    key = vms.ctl("template", "create", "prepared").stdout.strip()
    assert key in templates(vms)
    assert vms.unit("prepared", "ActiveState")["ActiveState"] != "active", "it does not run"
    vms.start("prepared")
    assert is_warm(vms, "prepared")
    assert vms.ctl("template", "create", "prepared").stdout.strip() == key
    listed = vms.ctl("template", "list", "--no-legend").stdout
    assert re.search(rf"^{key[:12]} +ready +112M ", listed, re.MULTILINE), listed
    vms.ctl("template", "rm", key[:12])
    assert key not in templates(vms)
    assert vms.execute("prepared", "cat", "/etc/hostname").strip() == "prepared", "it goes on"


def test_a_guest_that_does_not_continue_boots_in_the_same_unit(vms: Vms) -> None:
    """Its init does not find the disks, and waits for ever."""
    key = make_template(vms, "stuck-first", memory="96M")
    spoil(vms, key, "/sys/block", "/sys/blind")
    name = vms.run("stuck", network="default", memory="96M")
    assert not is_warm(vms, name)
    assert vms.unit(name, "NRestarts")["NRestarts"] == "0"
    assert "\n".join(vms.console(name)).count("it has not continued from its template") == 1
    assert vms.execute(name, "cat", "/etc/hostname").strip() == name
    vms.host.wait_until(lambda: key not in templates(vms), "the template to be removed")
    # it ends as any other: its result is that of what runs now
    vms.ctl("stop", name)
    vms.wait(name, "Stopped")


def test_a_start_that_systemd_makes_alone_boots_where_the_guest_does_not_continue(vms: Vms) -> None:
    key = make_template(vms, "alone-first", memory="104M")
    name = vms.run("alone", network="default", memory="104M")
    assert is_warm(vms, name)
    spoil(vms, key, "/sys/block", "/sys/blind")
    with vms.without_daemon():
        vms.host.run(["systemctl", "restart", "--no-block", f"hypeman-vm-{name}"])
        vms.wait_console(name, "up", times=2)
        assert not is_warm(vms, name)
        assert key in templates(vms), "until its end"
    vms.wait(name, "Running")
    vms.ctl("stop", name)
    assert key not in templates(vms)


def test_many_side_by_side_have_nothing_of_one_another(vms: Vms, request: pytest.FixtureRequest) -> None:
    count = MANY if request.config.getoption("--long") else SOME
    make_template(vms, "many-first", memory="80M")
    names = [f"many-{number}" for number in range(count)]
    for name in names:
        vms.write(name, network="default", memory="80M", boot_timeout="600s")
    vms.reload()
    vms.start(*names)
    seen: list[str] = []
    for name in names:
        assert is_warm(vms, name)
        check_steps(vms, name)
        own = vms.execute(name, "sh", "-c", f"{IDENTITY}{DRAWN}").splitlines()
        assert len(own) == 7, own
        assert own[3] == name
        seen += own
    assert len(set(seen)) == len(seen) == 7 * count, "nothing twice"
    for name in names:
        wait_for_time(vms, name)
