# SPDX-License-Identifier: Apache-2.0
"""cluster show: the commands by which a Pacemaker cluster takes VMs. They are printed, not executed."""

from __future__ import annotations

import math
import os
import platform
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from hypemand.cli.check import load_config
from hypemand.cli.context import Context
from hypemand.cli.exitcode import ExitCode
from hypemand.cli.values import escape_controls
from hypemand.config.definition import MIB, Definition
from hypemand.config.host import HostConfig
from hypemand.config.vmfile import load_vm_dir
from hypemand.errors import NotFound
from hypemand.manager.resources.admission import derive_usable, read_total_memory
from hypemand.vmm.accel import find_accel
from hypemand.vmm.commandline import memory_overhead

# Seconds beside a VM's own timeouts: for a volume that another host still has, and a pull of a small image;
# for the steps of a stop after the guest's
_START_MARGIN, _STOP_MARGIN = 90, 60
_ENDLESS = 3600


@dataclass(frozen=True, slots=True)
class Resource:
    """A VM as a resource. Memory in MiB with what its VMM takes, timeouts in seconds. `agent`: can its guest
    be asked?"""

    name: str
    memory: int
    cpu: int
    start_timeout: int
    stop_timeout: int
    agent: bool

    @property
    def operations(self) -> str:
        """Its operations, in the words that crm and pcs share."""
        deep = " op monitor interval=60s timeout=30s OCF_CHECK_LEVEL=10" if self.agent else ""
        return (
            f"op start interval=0 timeout={self.start_timeout}s"
            f" op stop interval=0 timeout={self.stop_timeout}s"
            f" op monitor interval=10s timeout=20s{deep} op monitor role=Stopped interval=45s timeout=20s"
        )


@dataclass(frozen=True, slots=True)
class Node:
    """What this host has for VMs: memory in MiB as admission counts it."""

    name: str
    memory: int
    cpu: int


def show(context: Context) -> int:
    """Print the commands for the named VMs, or for all that have a definition file."""
    config, networks = load_config()
    found = load_vm_dir(config.vm_dir, config.defaults, networks)
    names = context.args.name or sorted(found.definitions)
    for name in names:
        if name not in found.definitions:
            raise NotFound(
                f"VM {name} has no valid definition in {config.vm_dir}",
                hint=f"a cluster needs one on each host: hypemanctl check {name}",
            )
    overhead = memory_overhead(find_accel(config.accel).kind)
    resources = [derive_resource(found.definitions[name], overhead) for name in names]
    node = _read_node(config)
    if context.wants_document:
        context.print_document(
            {"resources": [asdict(one) for one in resources], "node": asdict(node)},
        )
        return ExitCode.OK
    lines = list_pcs(resources, node) if context.args.tool == "pcs" else list_crm(resources, node)
    for line in lines:
        print(escape_controls(line))
    return ExitCode.OK


def derive_resource(definition: Definition, overhead: int) -> Resource:
    """The resource of a VM whose VMM takes `overhead` bytes. Pure."""
    boot, stop = definition.boot_timeout, definition.stop_timeout
    return Resource(
        definition.name,
        memory=math.ceil((definition.memory + overhead) / MIB),
        cpu=definition.vcpus,
        start_timeout=_ENDLESS if boot is None else math.ceil(boot) + _START_MARGIN,
        stop_timeout=_ENDLESS if stop is None else math.ceil(stop) + _STOP_MARGIN,
        agent=definition.guest_agent,
    )


def _read_node(config: HostConfig) -> Node:
    memory = derive_usable(read_total_memory(), config.memory) // MIB
    return Node(platform.node(), memory, os.cpu_count() or 1)


def list_crm(resources: list[Resource], node: Node) -> Iterator[str]:
    """The commands of crmsh. Pure."""
    for one in resources:
        yield (
            f"crm configure primitive {one.name} ocf:hypemand:vm params name={one.name}"
            f" utilization memory={one.memory} cpu={one.cpu} {one.operations}"
        )
    for attribute, value in (("memory", node.memory), ("cpu", node.cpu)):
        yield f"crm node utilization {shlex.quote(node.name)} set {attribute} {value}"


def list_pcs(resources: list[Resource], node: Node) -> Iterator[str]:
    """Those of pcs. Pure."""
    for one in resources:
        yield f"pcs resource create {one.name} ocf:hypemand:vm name={one.name} {one.operations}"
        yield f"pcs resource utilization {one.name} memory={one.memory} cpu={one.cpu}"
    yield f"pcs node utilization {shlex.quote(node.name)} memory={node.memory} cpu={node.cpu}"
