# SPDX-License-Identifier: Apache-2.0
"""VMs of a cluster in tests: one that writes what it keeps to a volume of the shared pool, and others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tests.host.cluster import Cluster
from tests.host.machine import TestHost

SMALL = {
    "image": "builtin:busybox",
    "memory": "128M",
    "vcpus": 1,
    "disk": "64M",
    "persistent": False,
    "kernel_headers": False,
}
STAYS = ["sh", "-c", "echo up; exec sleep infinity"]
# A line counts once it is written to the volume.
WRITES = """
n=$(tail -n 1 /data/log 2>/dev/null); n=${n:-0}
while sleep 0.1; do n=$((n + 1)); echo $n >>/data/log && sync && echo "kept $n"; done
"""
LOG = {"cmd": ["sh", "-c", WRITES], "volumes": [{"volume": "san/data", "mount_path": "/data"}]}


def define(host: TestHost, name: str, **keys: Any) -> None:
    """Write the definition of a VM, which is the writer if its name is log."""
    definition = {**SMALL, "network": "none", "cmd": STAYS, **(LOG if name == "log" else {}), **keys}
    host.push(f"/etc/hypemand/vms.d/{name}.yaml", json.dumps(definition) + "\n")


def start_vms(cluster: Cluster, names: Sequence[str]) -> None:
    """Define VMs on each host, and make them resources by the commands that hypemanctl prints."""
    first = cluster.hosts[0]
    first.run(["hypemanctl", "volume", "create", "--size", "64M", "san/data"])
    for host in cluster.hosts:
        for name in names:
            define(host, name)
        host.run(["systemctl", "reload", "hypemand"])
    for host in cluster.hosts:
        host.shell("hypemanctl cluster show | grep '^crm node' | sh")
    first.shell("hypemanctl cluster show | grep '^crm configure' | sh", timeout=300)
    for name in names:
        cluster.wait_running(name)


def put_into_memory(host: TestHost, name: str, text: str) -> str:
    """Have the guest of a VM keep that in its memory; the id of its boot."""
    host.run(["hypemanctl", "exec", name, "--", "sh", "-c", f"echo {text} >/dev/shm/kept"])
    return host.run(["hypemanctl", "show", "-p", "boot_id", "--value", name]).stdout


def read_memory(host: TestHost, name: str) -> tuple[str, str]:
    """What its guest has there, and the id of its boot."""
    kept = host.run(["hypemanctl", "exec", name, "--", "cat", "/dev/shm/kept"], check=False).stdout
    return kept.strip(), host.run(["hypemanctl", "show", "-p", "boot_id", "--value", name]).stdout


def move(cluster: Cluster, name: str, node: str) -> TestHost:
    """Have Pacemaker move a VM to a node; that host, when the VM is well there."""
    asked = cluster.live[0]
    asked.run(["crm", "resource", "move", name, node])
    try:
        cluster.wait_settled()
        host = cluster.find_well(name)
    finally:
        asked.run(["crm", "resource", "clear", name])
    assert host.name == node
    return host


def find_kept(host: TestHost) -> int:
    """The last line that the writer has kept, by its console."""
    lines = host.run(["journalctl", "--no-pager", "--output=cat", "HYPEMAN_VM=log"]).stdout.splitlines()
    return max((int(line.split()[1]) for line in lines if line.startswith("kept ")), default=0)


def read_log(host: TestHost) -> list[int]:
    """What is on the volume."""
    shown = host.run(["hypemanctl", "exec", "log", "--", "cat", "/data/log"]).stdout
    return [int(line) for line in shown.split()]


def find_run(host: TestHost, name: str) -> str:
    """What names the run of a VM's unit."""
    return host.run(["systemctl", "show", "--property=InvocationID", f"hypeman-vm-{name}"]).stdout
