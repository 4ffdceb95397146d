# SPDX-License-Identifier: Apache-2.0
"""The main cases of a cluster of three hosts: one is killed, a second writer starts, a VMM and a daemon die.

The others are in test_cluster.py. The order of these tests matters: the last one kills a host.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.host.cluster import RUNNING, Cluster, ask_agent, is_well, measure, start_cluster
from tests.host.clustervms import find_kept, find_run, move, put_into_memory, read_log, read_memory, start_vms
from tests.host.recipe import Suite

pytestmark = pytest.mark.one_release(Suite.BOOKWORM)

IN_USE = 11


@pytest.fixture(scope="module")
def cluster(suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes that run two VMs, one of which writes to a volume that all nodes have."""
    folder = tmp_path_factory.mktemp("shared")
    folder.chmod(0o755)
    with start_cluster([suite] * 3, folder) as cluster:
        start_vms(cluster, ("log", "one"))
        yield cluster


def test_a_second_writer_is_refused_by_the_volume_on_another_host(cluster: Cluster) -> None:
    node = cluster.wait_running("log")
    before = find_run(cluster.host(node), "log")
    other = next(host for host in cluster.live if host.name != node)
    refused = other.run(["hypemanctl", "start", "--wait", "log"], check=False)
    assert (refused.code, f"VM log on host {node} " in refused.stderr) == (IN_USE, True), refused.describe()
    assert find_run(cluster.host(node), "log") == before
    assert is_well(cluster.host(node), "log")


def test_a_vm_whose_daemon_is_dead_stays_where_it_is(cluster: Cluster) -> None:
    node = cluster.wait_running("one")
    host = cluster.host(node)
    before = find_run(host, "one")
    host.run(["systemctl", "stop", "hypemand.socket", "hypemand.service"])
    try:
        for level in (0, 10):
            asked = ask_agent(host, "monitor", "one", level)
            assert asked.code == RUNNING, asked.describe()
    finally:
        host.run(["systemctl", "start", "hypemand.socket", "hypemand.service"])
    assert cluster.locate("one") == [node]
    assert find_run(host, "one") == before


def test_a_vmm_that_dies_is_replaced_by_pacemaker(cluster: Cluster) -> None:
    host = cluster.find_well("one")
    before = find_run(host, "one")
    host.run(["hypemanctl", "kill", "-s", "KILL", "one"])
    host.wait_until(lambda: find_run(cluster.find_well("one"), "one") != before, "VM one has another VMM")


def test_a_planned_move_takes_the_memory_of_a_vm_along(cluster: Cluster) -> None:
    asked = cluster.hosts[0]
    asked.run(["crm", "resource", "param", "log", "set", "standby", "san"])
    cluster.wait_settled()
    host = cluster.find_well("log")
    boot = put_into_memory(host, "log", "here")
    target = next(other for other in cluster.hosts if other is not host)
    began = time.monotonic()
    assert move(cluster, "log", target.name) is target
    print(f"a VM was moved with its memory within {measure(began)}")
    assert read_memory(target, "log") == ("here", boot)
    lines = read_log(target)
    assert lines == list(range(1, len(lines) + 1))
    assert cluster.fenced == []
    for place in cluster.hosts:
        assert place.shell("ls -A /srv/shared/standby").stdout.split() == [".lock"]


def test_vms_of_a_host_that_is_killed_run_elsewhere_with_all_that_they_kept(cluster: Cluster) -> None:
    node = cluster.wait_running("log")
    victim = cluster.host(node)
    victim.wait_until(lambda: find_kept(victim) > 20)
    kept = find_kept(victim)
    began = time.monotonic()
    victim.kill()
    other = cluster.find_well("log")
    print(f"the VM of a killed host runs elsewhere after {measure(began)}")
    cluster.find_well("one")
    assert cluster.fenced == [node]
    lines = read_log(other)
    assert lines == list(range(1, len(lines) + 1))
    assert len(lines) >= kept
