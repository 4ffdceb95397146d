# SPDX-License-Identifier: Apache-2.0
"""VMs as resources of a Pacemaker cluster of three hosts, of which some fail.

Run by `make test-cluster` alone (marked `long`); the main cases are in test_failover.py.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import cycle, islice
from typing import Any

import pytest

from tests.host.cluster import (
    AGENT,
    NOT_INSTALLED,
    NOT_RUNNING,
    RUNNING,
    SHORT_TOKEN_MS,
    Cluster,
    ask_agent,
    is_well,
    measure,
    start_cluster,
)
from tests.host.clustervms import (
    define,
    find_kept,
    find_run,
    move,
    put_into_memory,
    read_log,
    read_memory,
    start_vms,
)
from tests.host.lab import NODE_PACKAGES, find_packages
from tests.host.machine import TestHost
from tests.host.recipe import Suite

pytestmark = [pytest.mark.long, pytest.mark.host]

NODES = 3

VMS = ("log", "one", "two", "three")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Three nodes of each release, and if there is more than one, of both in one cluster."""
    chosen = [Suite(name) for name in metafunc.config.getoption("--suite") or list(Suite)]
    clusters = {str(suite): [suite] * NODES for suite in chosen}
    if len(chosen) > 1:
        clusters["mixed"] = list(islice(cycle(chosen), NODES))
    metafunc.parametrize("suites", clusters.values(), ids=clusters, scope="module")


@pytest.fixture(scope="module")
def cluster(suites: Sequence[Suite], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes that run four VMs, one of which writes to a volume that all nodes have."""
    folder = tmp_path_factory.mktemp("shared")
    folder.chmod(0o755)
    with start_cluster(suites, folder, SHORT_TOKEN_MS) as cluster:
        start_vms(cluster, VMS)
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


def test_hosts_are_compared_over_ssh(cluster: Cluster) -> None:
    first, *others = cluster.hosts
    names = [host.name for host in others]
    first.shell("[ -e /root/.ssh/id_ed25519 ] || ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519")
    key = first.pull("/root/.ssh/id_ed25519.pub")
    unknown = first.run(["hypemanctl", "cluster", "diff", names[0]], check=False)
    assert (unknown.code > 1, f"{names[0]} cannot be reached: " in unknown.stderr) == (True, True), (
        unknown.describe()
    )
    for host in others:
        host.push("/root/.ssh/authorized_keys", key, 0o600)
        host.run(["systemctl", "unmask", "ssh.service"])
        host.run(["systemctl", "start", "ssh.service"])
        known = host.pull("/etc/ssh/ssh_host_ed25519_key.pub").decode()
        first.run(["sh", "-c", "cat >>/root/.ssh/known_hosts"], input=f"{host.name} {known}")
    assert list_differences(first, names) == expect_differences(cluster)
    define(others[0], "one", memory="192M")
    others[0].run(["systemctl", "reload", "hypemand"])
    try:
        found = list_differences(first, names)
    finally:
        define(others[0], "one")
        others[0].run(["systemctl", "reload", "hypemand"])
    assert found == {**expect_differences(cluster), "vm/one/memory": ["128M", "192M", "128M"]}


def list_differences(host: TestHost, others: Sequence[str]) -> Any:
    """What `cluster diff` finds, with the values in the order of the hosts."""
    shown = host.run(["hypemanctl", "cluster", "diff", "--json", *others], check=False)
    assert shown.code <= 1, shown.describe()
    found = json.loads(shown.stdout)
    assert all(list(values) == [host.name, *others] for values in found.values()), found
    return {what: list(values.values()) for what, values in found.items()}


def expect_differences(cluster: Cluster) -> dict[str, list[str]]:
    """Of hosts that are of different releases, the versions of QEMU."""
    versions = []
    for host in cluster.hosts:
        said = host.run(["qemu-system-x86_64", "--version"]).stdout
        versions.append(said.split()[3])
    return {} if len(set(versions)) == 1 else {"version/QEMU": versions}


def test_vms_of_a_host_that_is_killed_run_elsewhere_with_all_that_they_kept(cluster: Cluster) -> None:
    used = {cluster.locate(name)[0] for name in VMS}
    assert len(used) > 1, used
    node = cluster.wait_running("log")
    victim = cluster.host(node)
    theirs = [name for name in VMS if cluster.locate(name) == [node]]
    victim.wait_until(lambda: find_kept(victim) > 20)
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


def test_a_planned_move_with_standby_keeps_the_memory_where_the_builds_are_the_same(cluster: Cluster) -> None:
    """Between two releases the VM is stopped and booted, and the journal says why."""
    cluster.hosts[0].run(["crm", "resource", "param", "log", "set", "standby", "san"])
    try:
        cluster.wait_settled()
        for target in cluster.hosts:
            host = cluster.find_well("log")
            if target is host:
                continue
            boot, kept = put_into_memory(host, "log", target.name), find_kept(host)
            began = time.monotonic()
            move(cluster, "log", target.name)
            print(f"a VM was moved from {host.name} to {target.name} within {measure(began)}")
            same = cluster.suites[cluster.hosts.index(host)] is cluster.suites[cluster.hosts.index(target)]
            assert (
                read_memory(target, "log") == (target.name, boot)
                if same
                else read_memory(target, "log")[1] != boot
            )
            if not same:
                said = target.run(["journalctl", "--no-pager", "--output=cat"]).stdout
                assert "VM log is booted, and loses what was in its memory: " in said
                assert "VM log cannot be restored: saved with QEMU " in said
            lines = read_log(target)
            assert lines == list(range(1, len(lines) + 1))
            assert len(lines) >= kept
    finally:
        cluster.hosts[0].run(["crm", "resource", "param", "log", "delete", "standby"])


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
    rest[0].wait_until(lambda: any(is_well(host, "log") for host in rest), "log runs elsewhere")
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
        cluster.mend(cluster.host(node))
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
            f"VM three has another VMM after SIG{signal}",
        )
        host.run(["crm_resource", "--cleanup", "--resource", "three"])


def is_another_run(cluster: Cluster, name: str, before: str) -> bool:
    return find_run(cluster.find_well(name, 150), name) != before
