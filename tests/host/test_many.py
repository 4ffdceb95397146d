# SPDX-License-Identifier: Apache-2.0
"""A host on which a thousand VMs are defined: more than a connection to the bus may have match rules."""

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

import pytest

from tests.host.apiget import api_get
from tests.host.machine import TestHost
from tests.host.test_daemon_faults import daemon_pid, wait_for_another_daemon
from tests.host.vms import SMALL, STAYS, Vms

pytestmark = pytest.mark.one_release

HostFactory = Callable[..., TestHost]

COUNT, RUNNING = 1000, 40
MOST_RSS_KIB = 80 * 1024

WRITE = """
i=0
while [ "$i" -lt "$1" ]; do
    cp /root/many.yaml "/etc/hypemand/vms.d/many-$i.yaml"; i=$((i + 1))
done
"""
# at once: more take as long on two CPUs, and leave nothing for tests beside this one
STARTS = 8
DEADLINE = 600.0
# between two looks at all of them, each of which takes the daemon some tenths of a second
LOOK_S = 1.0


def define_many(vms: Vms) -> None:
    """Define a thousand VMs, on a host that goes with them."""
    # those that boot at once, beside other tests, take their time
    definition = {**SMALL, "cmd": ["sh", "-c", STAYS], "disk": "10G", "boot_timeout": "600s"}
    vms.host.push("/root/many.yaml", json.dumps(definition))
    vms.host.run(["sh", "-c", WRITE, "sh", str(COUNT)], timeout=DEADLINE)
    vms.host.run(["hypemanctl", "reload"], timeout=DEADLINE)


@pytest.fixture
def many(fresh_host: HostFactory) -> Vms:
    """A host of its own with them: to remove them takes longer than to boot it."""
    vms = Vms(fresh_host())
    define_many(vms)
    return vms


def count_listed(host: TestHost) -> int:
    return len(re.findall(r"^many-", host.run(["hypemanctl", "list"], timeout=DEADLINE).stdout, re.MULTILINE))


def read_states(host: TestHost) -> list[str]:
    return [instance["state"] for instance in api_get(host, "/instances")]


def start_forty(many: Vms) -> list[str]:
    """Start them, and look at all of them until they run; gives all states that were seen."""
    seen: set[str] = set()
    names = [f"many-{number}" for number in range(RUNNING)]

    def start() -> None:
        for first in range(0, RUNNING, STARTS):
            many.ctl("start", "--wait", *names[first : first + STARTS], timeout=DEADLINE)

    with ThreadPoolExecutor(1) as pool:
        started = pool.submit(start)
        while not started.done():
            seen.update(read_states(many.host))
            wait([started], LOOK_S)
        started.result()
    return sorted(seen)


def read_rss(host: TestHost, pid: int) -> int:
    status = host.run(["cat", f"/proc/{pid}/status"]).stdout
    rss = re.search(r"^VmRSS:\s+([0-9]+) kB$", status, re.MULTILINE)
    assert rss is not None
    return int(rss[1])


@pytest.mark.timeout(1500)
def test_a_thousand_defined_vms_of_which_forty_run_take_no_more_than_their_share(many: Vms) -> None:
    host = many.host
    since = host.run(["date", "+%s"]).stdout.strip()
    assert count_listed(host) == COUNT
    # what is only defined is promised no disk: 1000 of 10 GiB are more than any host has
    host.run(["hypemanctl", "start", "--wait", "many-999"], timeout=DEADLINE)
    host.run(["hypemanctl", "stop", "many-999"], timeout=DEADLINE)
    assert start_forty(many) == ["Initializing", "Running", "Stopped"]
    old = daemon_pid(many)
    host.run(["systemctl", "kill", "--kill-whom=main", "--signal=KILL", "hypemand"])
    wait_for_another_daemon(many, old)
    assert count_listed(host) == COUNT
    host.wait_until(lambda: read_states(host).count("Running") == RUNNING, deadline=DEADLINE)
    # a signal of systemd: what ends by itself is noticed
    host.run(["systemctl", "kill", "--kill-whom=main", "--signal=KILL", "hypeman-vm-many-0"])
    many.wait("many-0", "Stopped")
    assert read_rss(host, daemon_pid(many)) < MOST_RSS_KIB
    log = host.run(["journalctl", "-u", "hypemand", f"--since=@{since}", "-o", "cat"]).stdout
    assert "lost the system bus" not in log
    assert "atchdog" not in log
