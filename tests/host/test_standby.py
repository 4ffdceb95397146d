# SPDX-License-Identifier: Apache-2.0
"""Standby and restore of real guests, and what befalls them on the way."""

import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.host.machine import TestHost
from tests.host.vms import Vms, vms_of

# counts, and checks what it has in memory and on its disk against each other
COUNTS = """
i=0
while :; do
    i=$((i+1)); echo $i >/var/count.new; mv /var/count.new /var/count; echo "count $i"; sleep 0.2
done
"""
STANDBY = "/var/lib/hypemand/vms/{}/standby"


@pytest.fixture(scope="module")
def vms(host: TestHost) -> Iterator[Vms]:
    with vms_of(host) as those:
        yield those


def count(vms: Vms, name: str) -> int:
    return int(vms.execute(name, "cat", "/var/count"))


def saves(vms: Vms, name: str) -> list[str]:
    found = vms.host.shell(f"cd /var/lib/hypemand/vms/{name} && ls -d standby* || true").stdout
    return found.split()


def put_away(vms: Vms, name: str) -> None:
    vms.ctl("standby", name)
    assert vms.state(name) == "Standby"


def bring_back(vms: Vms, name: str) -> dict[str, Any]:
    vms.ctl("restore", name)
    return vms.wait(name, "Running")


def check_snapshot(vms: Vms, name: str) -> None:
    """It runs on after a snapshot, and is taken back to it: in memory and on its disk."""
    run = vms.show(name)["invocation_id"]
    made = vms.ctl("snapshot", "create", "--name", "then", name).stdout.strip()
    then = int(vms.console(name)[-1].split()[1])
    vms.host.wait_until(lambda: count(vms, name) > then + 3)
    assert vms.show(name)["invocation_id"] == run
    files = f"/var/lib/hypemand/snapshots/{made}"
    size = vms.host.run(["du", "--block-size=1M", "-s", files]).stdout
    assert int(size.split()[0]) < 200, "sparse files"
    vms.ctl("stop", name)
    vms.ctl("snapshot", "restore", "--wait", "then")
    assert then - 1 <= count(vms, name) <= then + 3
    at = count(vms, name)
    vms.host.wait_until(lambda: count(vms, name) > at)
    assert saves(vms, name) == []
    vms.ctl("snapshot", "rm", "then")
    assert vms.host.run(["ls", "-A", "/var/lib/hypemand/snapshots"]).stdout == ""


def test_a_vm_goes_on_where_it_was_with_all_that_it_had(vms: Vms) -> None:
    name = vms.run("sleeper", COUNTS, network="default", restart="always")
    before = vms.show(name)
    vms.host.wait_until(lambda: count(vms, name) > 3)
    put_away(vms, name)
    # systemd's view: it has ended with success, and is not started again; nothing of it is left
    assert vms.unit(name, "ActiveState")["ActiveState"] == "inactive"
    assert vms.host.run(["systemctl", "is-active", f"hypeman@{name}"], check=False).stdout == "inactive\n"
    taps = vms.host.run(["ip", "-br", "link"]).stdout
    assert before["network"]["interface"] not in taps.split()
    stopped = vms.show(name)
    assert (stopped["exit_code"], stopped["has_snapshot"]) == (0, True)
    assert [stopped["network"][key] for key in ("ip", "mac")] == [
        before["network"][key] for key in ("ip", "mac")
    ]
    size = vms.host.run(["du", "--block-size=1M", "-s", STANDBY.format(name)]).stdout
    assert int(size.split()[0]) < 100, "a sparse file"
    at = int(vms.console(name)[-1].split()[1])
    time.sleep(2)  # what it must not notice is that time goes by
    after = bring_back(vms, name)
    assert [after[key] for key in ("boot_id", "started_at")] == [
        before[key] for key in ("boot_id", "started_at")
    ]
    assert after["invocation_id"] != before["invocation_id"]
    assert after["network"]["ip"] == before["network"]["ip"]
    assert vms.unit(name, "ActiveState")["ActiveState"] == "active"
    vms.host.wait_until(lambda: count(vms, name) > at)
    numbers = [int(number) for number in re.findall("count ([0-9]+)", "\n".join(vms.console(name)))]
    assert numbers == list(range(1, len(numbers) + 1)), "none is missing, none comes twice"
    clock = float(vms.execute(name, "date", "+%s"))
    assert abs(clock - float(vms.host.run(["date", "+%s"]).stdout)) <= 2
    vms.host.wait_until(lambda: saves(vms, name) == [])
    check_snapshot(vms, name)
    # it is what any VM is
    vms.ctl("stop", name)
    assert vms.state(name) == "Stopped"
