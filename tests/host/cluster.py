# SPDX-License-Identifier: Apache-2.0
"""A cluster of test hosts: corosync and Pacemaker on one wire, a directory that all of them have, and a fence
agent that takes the power of a host away.

A host asks for that by a file in the shared directory, since it reaches nothing else outside.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.host.command import Result
from tests.host.lab import boot_hosts
from tests.host.machine import TestHost
from tests.host.recipe import Suite
from tests.host.wire import Wire, lay_wire

SHARED = "/srv/shared"
AGENT = "/usr/lib/ocf/resource.d/hypemand/vm"
RUNNING, NOT_RUNNING, NOT_INSTALLED = 0, 7, 5
# a busy machine loses no host by it; a run that measures has less
TOKEN_MS, SHORT_TOKEN_MS = 3000, 1000
SERVICES = ("corosync.service", "pacemaker.service")
JOIN_DEADLINE = 90.0
POLL = 0.05

# what is the same on all hosts, as docs/cluster.md has it
HOST_CONFIG = f"""\
cluster: lab
pools: {{san: {{directory: {SHARED}, shared: true}}}}
networks: {{default: {{ipv6: "fd12:3456:789a::1/64"}}}}
"""
POOL_UNIT = f"[Unit]\nRequiresMountsFor={SHARED}\n[Service]\nReadWritePaths={SHARED}\n"

COROSYNC = """\
totem {{
  version: 2
  cluster_name: lab
  transport: knet
  crypto_cipher: none
  crypto_hash: none
  token: {token}
}}
system {{
  sched_rr: no
}}
quorum {{
  provider: corosync_votequorum
}}
logging {{
  to_syslog: yes
}}
nodelist {{
{nodes}}}
"""
NODE = "  node {{\n    ring0_addr: {address}\n    name: {name}\n    nodeid: {number}\n  }}\n"
# argv: the cluster's services, which are not to start with the host: it gets its place on the wire only after
# its boot.
PREPARE_NODE = """
cat >>/etc/hosts
systemctl unmask "$@"
SYSTEMCTL_SKIP_SYSV=1 systemctl disable "$@"
systemctl restart hypemand
"""
# Nodes that start together wait for dc-deadtime, by default 20 s, before one of them is the DC; one of the
# oldest release.
FIRST_CIB = """
cd /var/lib/pacemaker/cib
cibadmin --empty >cib.xml
CIB_file=$PWD/cib.xml crm_attribute --name dc-deadtime --update 3s
chown hacluster:haclient *
"""
# For crm configure. A busy machine is no reason to start one VM after the other.
PROPERTIES = """\
property stonith-enabled=true placement-strategy=balanced load-threshold=1000%
primitive fence stonith:fence_lab params pcmk_host_check=none pcmk_monitor_action=metadata
rsc_defaults resource-stickiness=100 migration-threshold=3
"""
FENCE_AGENT = """\
#!/bin/sh
# fence_lab: has the test run take the power of a node away. Options on standard input, as fenced gives them.
action=reboot node=
while IFS='=' read -r key value; do
    case $key in
    action) action=$value ;;
    nodename | plug | port) node=${value:-$node} ;;
    esac
done
case $action in
metadata)
    cat <<END
<?xml version="1.0"?>
<resource-agent name="fence_lab" shortdesc="Fence agent of the tests">
<longdesc>Takes the power of a test host away.</longdesc>
<vendor-url>https://example.org</vendor-url>
<parameters>
<parameter name="action"><content type="string" default="reboot"/></parameter>
<parameter name="plug"><content type="string"/></parameter>
</parameters>
<actions>
<action name="off"/><action name="reboot"/><action name="metadata"/><action name="monitor"/>
</actions>
</resource-agent>
END
    ;;
off | reboot)
    [ -n "$node" ] || exit 1
    : >"/srv/shared/fence/$node.kill"
    while [ -e "/srv/shared/fence/$node.kill" ]; do sleep 0.1; done
    ;;
monitor | status | list | start | stop | validate-all) ;;
*) exit 1 ;;
esac
"""


def ask_agent(host: TestHost, action: str, name: str, level: int = 0) -> Result:
    """Call the agent as Pacemaker does."""
    env = {"OCF_ROOT": "/usr/lib/ocf", "OCF_RESKEY_name": name, "OCF_RESOURCE_INSTANCE": name}
    return host.run([AGENT, action], env=env | {"OCF_CHECK_LEVEL": str(level)}, check=False)


def is_well(host: TestHost, name: str) -> bool:
    """Is a VM Running on this host, with an agent that answers? To the agent one that boots runs, too."""
    is_active = host.run(["systemctl", "is-active", f"hypeman-vm-{name}"], check=False).ok
    return is_active and ask_agent(host, "monitor", name, 10).code == RUNNING


@dataclass
class Cluster:
    """The nodes, by their names in the cluster, which are those of the hosts."""

    hosts: tuple[TestHost, ...]
    suites: Sequence[Suite]
    wire: Wire
    fenced: list[str]

    def host(self, node: str) -> TestHost:
        """The host of a node."""
        return next(host for host in self.hosts if host.name == node)

    @property
    def live(self) -> list[TestHost]:
        """The hosts that are on."""
        return [host for host in self.hosts if host.leader]

    def configure(self, token: int) -> None:
        """Write what each node needs, and start the cluster; back when all nodes are in it. `token` in ms."""
        nodes = "".join(
            NODE.format(address=self.wire.address(host), name=host.name, number=number)
            for number, host in enumerate(self.hosts, 1)
        )
        # crmsh does nothing to a node that it cannot reach by its name, and says so with status 0
        names = "".join(f"{self.wire.address(host)} {host.name}\n" for host in self.hosts)
        with ThreadPoolExecutor(len(self.hosts)) as threads:
            configure = partial(
                _configure_node, names=names, corosync=COROSYNC.format(token=token, nodes=nodes)
            )
            list(threads.map(configure, self.hosts))
        for host, suite in zip(self.hosts, self.suites, strict=True):
            if suite is min(self.suites):
                host.shell(FIRST_CIB)
        self.start(*self.hosts)
        self.hosts[0].run(["crm", "configure", "load", "update", "-"], input=PROPERTIES)

    def start(self, *hosts: TestHost) -> None:
        """Start the cluster's services, and wait until these nodes are in it."""
        for host in hosts:
            host.run(["systemctl", "start", "--no-block", *SERVICES])
        for host in hosts:
            host.wait_until(partial(self._is_online, host), f"{host.name} is online", deadline=JOIN_DEADLINE)

    def _is_online(self, host: TestHost) -> bool:
        nodes = host.run(["crm_node", "-p"], check=False).stdout.split()
        state = host.run(["crm_mon", "-1", "--include=nodes,dc"], check=False).stdout
        return host.name in nodes and "with quorum" in state and set(self._read_online(state)) >= set(nodes)

    @staticmethod
    def _read_online(state: str) -> list[str]:
        lines = [line for line in state.splitlines() if "Online:" in line]
        return lines[0].partition("[")[2].strip(" ]").split() if lines else []

    def boot(self, host: TestHost) -> None:
        """Boot one that is off, and have it join again."""
        host.start()
        self._forget_cib(host)
        self.wire.plug(host)
        self.start(host)

    def mend(self, host: TestHost) -> None:
        """Undo a cut of its wire, and have it join again."""
        if self._is_mixed:
            host.run(["systemctl", "stop", *reversed(SERVICES)])
        self._forget_cib(host)
        self.wire.mend(host)
        self.start(host)

    @property
    def _is_mixed(self) -> bool:
        return len(set(self.suites)) > 1

    def _forget_cib(self, host: TestHost) -> None:
        """In a cluster of two releases, as docs/cluster.md has it: what a node of the newer one has written
        alone, the others do not understand, and would refuse for ever."""
        if self._is_mixed:
            host.shell("rm -f /var/lib/pacemaker/cib/*")

    def locate(self, resource: str) -> list[str]:
        """The nodes on which a resource runs, as Pacemaker says."""
        shown = self.live[0].run(["crm_resource", "--locate", "--quiet", "--resource", resource], check=False)
        return shown.stdout.split()

    def wait_running(self, resource: str, deadline: float = 120, *, but: str = "") -> str:
        """Wait until a resource runs on one node, which is not `but`; the node."""

        def find() -> str | None:
            found = self.locate(resource)
            return found[0] if len(found) == 1 and found[0] != but else None

        return self.live[0].wait_until(find, f"{resource} runs on one node", deadline=deadline)

    def find_well(self, name: str, deadline: float = 90) -> TestHost:
        """Wait until a VM is Running on one host alone, with an agent that answers; the host."""

        def find() -> TestHost | None:
            running = [host for host in self.live if ask_agent(host, "monitor", name).code != NOT_RUNNING]
            return running[0] if len(running) == 1 and is_well(running[0], name) else None

        return self.live[0].wait_until(find, f"VM {name} is well on one host", deadline=deadline)

    def wait_settled(self, deadline: float = 120) -> None:
        """Wait until Pacemaker has nothing more to do."""
        self.live[0].run(["crm_resource", "--wait", f"--timeout={deadline:g}"], timeout=deadline + 10)


def _configure_node(host: TestHost, names: str, corosync: str) -> None:
    host.push("/etc/corosync/corosync.conf", corosync)
    host.push("/usr/sbin/fence_lab", FENCE_AGENT, 0o755)
    host.push("/etc/hypemand/hypemand.yaml.d/cluster.yaml", HOST_CONFIG)
    host.push("/etc/systemd/system/hypemand.service.d/pool.conf", POOL_UNIT)
    host.run(["sh", "-euc", PREPARE_NODE, "prepare", *SERVICES], input=names)


class Fencing:
    """Takes the power of hosts away that the fence agent names, in a thread."""

    def __init__(self, hosts: Sequence[TestHost], folder: Path) -> None:
        self._hosts = {host.name: host for host in hosts}
        self._folder = folder
        self._ended = threading.Event()
        self.fenced: list[str] = []
        self._thread = threading.Thread(target=self._run, name="fencing", daemon=True)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """In this block."""
        self._folder.mkdir()
        self._thread.start()
        try:
            yield
        finally:
            self._ended.set()
            self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(POLL):
            for request in self._folder.glob("*.kill"):
                self.fenced.append(request.stem)
                self._hosts[request.stem].kill()
                request.unlink()


@contextmanager
def start_cluster(suites: Sequence[Suite], folder: Path, token: int = TOKEN_MS) -> Iterator[Cluster]:
    """A cluster of hosts of these releases, with `folder` of this machine as their shared directory. `token`:
    milliseconds after which a host that does not answer is lost."""
    with ExitStack() as stack:
        hosts = stack.enter_context(boot_hosts(suites, nodes=True, binds=[f"{folder}:{SHARED}"]))
        wire = stack.enter_context(lay_wire(*hosts))
        fencing = Fencing(hosts, folder / "fence")
        stack.enter_context(fencing.at_work())
        cluster = Cluster(hosts, suites, wire, fencing.fenced)
        cluster.configure(token)
        yield cluster


def measure(began: float) -> str:
    """Seconds since then, for a report."""
    return f"{time.monotonic() - began:.1f} s"
