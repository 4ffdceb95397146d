# SPDX-License-Identifier: Apache-2.0
"""VMs as resources of a Pacemaker cluster of three hosts, of which some fail.

Run by `make test-cluster` alone (marked `long`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from tests.host.cluster import (
    AGENT,
    NOT_INSTALLED,
    NOT_RUNNING,
    RUNNING,
    Cluster,
    ask_agent,
    is_well,
    measure,
    start_cluster,
)
from tests.host.lab import NODE_PACKAGES, find_packages
from tests.host.machine import TestHost
from tests.host.recipe import Suite

pytestmark = pytest.mark.long

SMALL = {"image": "builtin:busybox", "memory": "128M", "vcpus": 1, "disk": "64M", "kernel_headers": False}
STAYS = ["sh", "-c", "echo up; exec sleep infinity"]
# A line counts once it is written to the volume.
WRITES = """
n=$(tail -n 1 /data/log 2>/dev/null); n=${n:-0}
while sleep 0.1; do n=$((n + 1)); echo $n >>/data/log && sync && echo "kept $n"; done
"""
LOG = {"cmd": ["sh", "-c", WRITES], "volumes": [{"volume": "san/data", "mount_path": "/data"}]}
VMS = ("log", "one", "two", "three")


@pytest.fixture(scope="module")
def cluster(suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes that run four VMs, one of which writes to a volume that all nodes have."""
    folder = tmp_path_factory.mktemp("shared")
    folder.chmod(0o755)
    with start_cluster([suite] * 3, folder) as cluster:
        first = cluster.hosts[0]
        first.run(["hypemanctl", "volume", "create", "--size", "64M", "san/data"])
        for host in cluster.hosts:
            for name in VMS:
                define(host, name, **(LOG if name == "log" else {}))
            host.run(["systemctl", "reload", "hypemand"])
        for host in cluster.hosts:
            host.shell("hypemanctl cluster show | grep '^crm node' | sh")
        first.shell("hypemanctl cluster show | grep '^crm configure' | sh", timeout=300)
        for name in VMS:
            cluster.wait_running(name)
        yield cluster


@pytest.fixture(autouse=True)
def whole(cluster: Cluster) -> None:
    """All nodes are up, and Pacemaker has nothing to do, when a test begins."""
    for host in cluster.hosts:
        if not host.leader:
            cluster.boot(host)
    cluster.wait_settled()
    cluster.live[0].run(["crm_resource", "--cleanup"])
    cluster.wait_settled()


def define(host: TestHost, name: str, **keys: Any) -> None:
    definition = {**SMALL, "network": "none", "cmd": STAYS, **keys}
    host.push(f"/etc/hypemand/vms.d/{name}.yaml", json.dumps(definition) + "\n")


def find_kept(host: TestHost) -> int:
    """The last line that the writer has kept, by its console."""
    lines = host.run(["journalctl", "--no-pager", "--output=cat", "HYPEMAN_VM=log"]).stdout.splitlines()
    return max(int(line.split()[1]) for line in lines if line.startswith("kept "))


def read_log(host: TestHost) -> list[int]:
    shown = host.run(["hypemanctl", "exec", "log", "--", "cat", "/data/log"]).stdout
    return [int(line) for line in shown.split()]


def test_the_agent_says_what_it_is_and_what_is_wrong(cluster: Cluster) -> None:
    host = cluster.hosts[0]
    host.shell(
        f"{AGENT} meta-data >/tmp/meta.xml; sed -i 2d /tmp/meta.xml; xmllint --noout"
        " --dtdvalid /usr/share/resource-agents/ra-api-1.dtd /tmp/meta.xml",
    )
    assert "name* (string)" in host.run(["crm", "ra", "info", "ocf:hypemand:vm"]).stdout
    # an empty configuration: pcs checks its own commands against the agent
    host.shell(
        "cibadmin --empty >/tmp/cib.xml; hypemanctl cluster show --tool pcs | grep '^pcs resource'"
        " | sed 's|^pcs|pcs -f /tmp/cib.xml|' | sh -e",
    )
    assert ask_agent(host, "validate-all", "one").code == 0
    define(host, "one", autostart=True)
    refused = ask_agent(host, "validate-all", "one")
    assert refused.code == NOT_INSTALLED
    assert "autostart: is true, but VM one is run by the cluster, as its resource one" in refused.stderr
    define(host, "one")
    missing = ask_agent(host, "start", "nope")
    assert missing.code == NOT_INSTALLED
    assert "there is no VM nope" in missing.stderr
    assert (ask_agent(host, "stop", "nope").code, ask_agent(host, "monitor", "nope").code) == (0, NOT_RUNNING)
    assert host.run(["sh", "-c", "ls /run/systemd/system | grep nope"], check=False).stdout == ""


def test_vms_of_a_host_that_is_killed_run_elsewhere_with_all_that_they_kept(cluster: Cluster) -> None:
    used = {cluster.locate(name)[0] for name in VMS}
    assert len(used) > 1, used
    node = cluster.wait_running("log")
    victim = cluster.host(node)
    theirs = [name for name in VMS if cluster.locate(name) == [node]]
    victim.wait_until(lambda: find_kept(victim) > 20, 60)
    kept = find_kept(victim)
    began = time.monotonic()
    victim.kill()
    for name in theirs:
        cluster.wait_running(name, but=node)
    other = cluster.find_well("log")
    print(f"{len(theirs)} VMs of a killed host run after {measure(began)}")
    lines = read_log(other)
    assert lines == list(range(1, len(lines) + 1))
    assert len(lines) >= kept


def test_a_host_that_is_shut_down_leaves_its_vms_to_pacemaker(cluster: Cluster) -> None:
    node = cluster.wait_running("log")
    victim = cluster.host(node)
    kept = find_kept(victim)
    began, fenced = time.monotonic(), list(cluster.fenced)
    victim.stop()
    assert time.monotonic() - began < 45
    other = cluster.find_well("log")
    assert cluster.fenced == fenced
    assert len(read_log(other)) >= kept


def test_a_node_in_standby_gives_its_vms_away(cluster: Cluster) -> None:
    node = cluster.wait_running("log")
    host = cluster.host(node)
    theirs = [name for name in VMS if cluster.locate(name) == [node]]
    kept = find_kept(host)
    began, fenced = time.monotonic(), list(cluster.fenced)
    host.run(["crm", "node", "standby", node])
    try:
        for name in theirs:
            cluster.wait_running(name, but=node)
        other = cluster.find_well("log")
        print(f"{len(theirs)} VMs of a node in standby run elsewhere after {measure(began)}")
        assert len(read_log(other)) >= kept
        assert cluster.fenced == fenced
    finally:
        host.run(["crm", "node", "online", node])


def test_an_upgrade_of_one_node_after_the_other_moves_no_vm(cluster: Cluster) -> None:
    cluster.wait_settled()
    before = {name: (cluster.locate(name), find_run(cluster.find_well(name), name)) for name in VMS}
    for host in cluster.hosts:
        host.install(find_packages(packages=NODE_PACKAGES), reinstall=True)
        cluster.wait_settled()
    for name, (place, run) in before.items():
        assert cluster.locate(name) == place
        assert find_run(cluster.find_well(name), name) == run
    shown = cluster.hosts[0].run(["crm_mon", "-1", "--include=failures"]).stdout
    assert "Failed" not in shown, shown


def test_a_vm_is_watched_without_the_daemon_and_through_its_agent(cluster: Cluster) -> None:
    node = cluster.wait_running("one")
    host = cluster.host(node)
    host.run(["systemctl", "stop", "hypemand.socket", "hypemand.service"])
    try:
        assert ask_agent(host, "monitor", "one").code == RUNNING
        unasked = ask_agent(host, "monitor", "one", 10)
        assert unasked.code == RUNNING, unasked.describe()
        assert ask_agent(host, "stop", "one").code == 0
        assert ask_agent(host, "monitor", "one").code == NOT_RUNNING
    finally:
        host.run(["systemctl", "start", "hypemand.socket", "hypemand.service"])
    again = cluster.find_well("one")
    again.run(["hypemanctl", "kill", "-s", "STOP", "one"])
    silent = ask_agent(again, "monitor", "one", 10)
    again.run(["hypemanctl", "kill", "-s", "CONT", "one"])
    assert silent.code == 1
    assert "VM one runs, but its agent does not answer" in silent.stderr


def test_a_vm_that_was_started_by_hand_on_another_host_is_found(cluster: Cluster) -> None:
    node = cluster.wait_running("two")
    other = next(host for host in cluster.live if host.name != node)
    # Pacemaker may find it while it boots
    other.run(["hypemanctl", "start", "--wait", "two"], check=False)
    cluster.find_well("two")
    cluster.wait_settled()
    assert len(cluster.locate("two")) == 1


def cut_off(cluster: Cluster, node: str) -> None:
    """Cut the wire of the node that runs the writer, and see that its log continues on another one."""
    victim = cluster.host(node)
    kept = find_kept(victim)
    began = time.monotonic()
    cluster.wire.cut(victim)
    rest = [host for host in cluster.live if host is not victim]
    rest[0].wait_until(lambda: any(is_well(host, "log") for host in rest), 120, "log runs elsewhere")
    print(f"VM of a host that is cut off runs elsewhere after {measure(began)}")
    other = next(host for host in rest if is_well(host, "log"))
    lines = read_log(other)
    assert lines == list(range(1, len(lines) + 1))
    assert len(lines) >= kept


def test_a_host_that_is_cut_off_is_fenced(cluster: Cluster) -> None:
    node = cluster.wait_running("log")
    cut_off(cluster, node)
    assert cluster.fenced[-1] == node
    assert not cluster.host(node).leader


def test_without_fencing_a_host_that_is_cut_off_stops_its_vms_by_itself(cluster: Cluster) -> None:
    node = cluster.wait_running("log")
    fenced = list(cluster.fenced)
    set_property(cluster, "stonith-enabled=false")
    try:
        cut_off(cluster, node)
        victim = cluster.host(node)
        assert ask_agent(victim, "monitor", "log").code == NOT_RUNNING
    finally:
        cluster.wire.mend(cluster.host(node))
        cluster.start(cluster.host(node))
        set_property(cluster, "stonith-enabled=true")
    assert cluster.fenced == fenced


def set_property(cluster: Cluster, assignment: str) -> None:
    cluster.live[0].run(["crm", "configure", "property", assignment])
    cluster.wait_settled()


def test_a_vmm_that_dies_or_hangs_is_replaced(cluster: Cluster) -> None:
    for signal in ("KILL", "STOP"):
        host = cluster.find_well("three")
        before = find_run(host, "three")
        host.run(["hypemanctl", "kill", "-s", signal, "three"])
        host.wait_until(
            partial(is_another_run, cluster, "three", before),
            150,
            f"VM three has another VMM after SIG{signal}",
        )
        host.run(["crm_resource", "--cleanup", "--resource", "three"])


def is_another_run(cluster: Cluster, name: str, before: str) -> bool:
    return find_run(cluster.find_well(name, 150), name) != before


def find_run(host: TestHost, name: str) -> str:
    """What names the run of a VM's unit."""
    return host.run(["systemctl", "show", "--property=InvocationID", f"hypeman-vm-{name}"]).stdout
