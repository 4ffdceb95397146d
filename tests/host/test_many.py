# SPDX-License-Identifier: Apache-2.0
"""A host on which a thousand VMs are defined: more than a connection to the bus may have match rules."""

import json
import re
from collections.abc import Iterator

import pytest

from tests.host.machine import TestHost
from tests.host.test_daemon_faults import daemon_pid, wait_for_another_daemon
from tests.host.vms import SMALL, STAYS, Vms

COUNT = 1000
MOST_RSS_KIB = 80 * 1024

WRITE = """
i=0
while [ "$i" -lt "$1" ]; do
    cp /root/many.yaml "/etc/hypemand/vms.d/many-$i.yaml"; i=$((i + 1))
done
"""
DEADLINE = 300.0


@pytest.fixture
def many(vms: Vms) -> Iterator[Vms]:
    """A thousand defined VMs, gone at the end."""
    definition = {**SMALL, "cmd": ["sh", "-c", STAYS], "disk": "10G"}
    vms.host.push("/root/many.yaml", json.dumps(definition))
    vms.host.run(["sh", "-c", WRITE, "sh", str(COUNT)], timeout=DEADLINE)
    try:
        vms.host.run(["hypemanctl", "reload"], timeout=DEADLINE)
        yield vms
    finally:
        vms.host.shell("rm -f /root/many.yaml; find /etc/hypemand/vms.d -name 'many-*.yaml' -delete")
        vms.host.run(["hypemanctl", "reload"], timeout=DEADLINE)
        vms.host.shell(
            "hypemanctl list | awk '/^many-/ { print $1 }' | xargs -r hypemanctl rm -f", timeout=DEADLINE
        )


def count_listed(host: TestHost) -> int:
    return len(re.findall(r"^many-", host.run(["hypemanctl", "list"], timeout=DEADLINE).stdout, re.MULTILINE))


def test_a_thousand_defined_vms_take_no_more_than_their_share(many: Vms) -> None:
    host = many.host
    since = host.run(["date", "+%s"]).stdout.strip()
    assert count_listed(host) == COUNT
    # what is only defined is promised no disk: 1000 of 10 GiB are more than any host has
    host.run(["hypemanctl", "start", "--wait", "many-999"], timeout=DEADLINE)
    host.run(["hypemanctl", "stop", "many-999"], timeout=DEADLINE)
    old = daemon_pid(many)
    host.run(["systemctl", "kill", "--signal=KILL", "hypemand"])
    wait_for_another_daemon(many, old)
    assert count_listed(host) == COUNT
    host.run(["hypemanctl", "start", "--wait", "many-0"], timeout=DEADLINE)
    # a signal of systemd: what ends by itself is noticed
    host.run(["systemctl", "kill", "--kill-whom=main", "--signal=KILL", "hypeman-vm-many-0"])
    many.wait("many-0", "Stopped")
    status = host.run(["cat", f"/proc/{daemon_pid(many)}/status"]).stdout
    rss = re.search(r"^VmRSS:\s+([0-9]+) kB$", status, re.MULTILINE)
    assert rss is not None
    assert int(rss[1]) < MOST_RSS_KIB
    log = host.run(["journalctl", "-u", "hypemand", f"--since=@{since}", "-o", "cat"]).stdout
    assert "lost the system bus" not in log
    assert "atchdog" not in log
