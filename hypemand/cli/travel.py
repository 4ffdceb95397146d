# SPDX-License-Identifier: Apache-2.0
"""What of VMs would be another thing on another host of their cluster."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from hypemand.config.cluster import derive_vm_id
from hypemand.config.definition import Definition
from hypemand.config.netdef import Networks
from hypemand.config.nethost import derive_default_ipv6, read_machine_id
from hypemand.config.pools import PoolConfig
from hypemand.errors import InvalidRequest
from hypemand.model.answers.instance import Instance
from hypemand.storage.references import Transport, parse_reference

_SHOWN = 10


def describe_differences(
    definitions: Mapping[str, Definition], networks: Networks, pools: Mapping[str, PoolConfig]
) -> Iterator[str]:
    """What differs by the definitions, and of which VMs."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for name, definition in sorted(definitions.items()):
        for what in _find_differences(definition, networks, pools):
            found[what].append(name)
    for what, vms in found.items():
        yield f"{what}: {_join(vms)}"


def describe_other_ids(instances: Iterable[Instance], cluster: str, names: Iterable[str]) -> Iterator[str]:
    """Which of the VMs of these names have an id that other hosts would not give them."""
    wanted = {name: derive_vm_id(cluster, name) for name in names}
    others = [vm.name for vm in instances if wanted.get(vm.name, vm.id) != vm.id]
    if others:
        yield (
            "the id is not the one of the cluster, nor are MAC address and machine id; they would be if the "
            f"VM was removed and created again: {_join(sorted(others))}"
        )


def _find_differences(
    definition: Definition, networks: Networks, pools: Mapping[str, PoolConfig]
) -> Iterator[str]:
    if definition.persistent and definition.root_volume is None:
        yield "the disk is on this host only: what the VM writes to it is not on other hosts"
    for mount in definition.volumes:
        pool = pools.get(mount.volume.rpartition("/")[0])
        if not mount.is_device and (pool is None or not pool.shared):
            yield f"the volume {mount.volume} is on this host only; have it in a pool with shared: true"
    for directory in definition.directories:
        yield f"the directory {directory.source} is read from each host; keep it the same on all"
    if what := _describe_image(definition.image):
        yield what
    network = None if definition.network is None else networks.get(definition.network.name)
    if definition.network is None or network is None:
        return
    if network.ipv4 is not None and definition.network.address is None and not network.dhcp:
        yield "no fixed address: each host chooses one; set network.address"
    if network.ipv6 is not None and network.ipv6 == derive_default_ipv6(read_machine_id()):
        yield f"the IPv6 subnet of network {network.name} is of this host only; set its ipv6 in hypemand.yaml"


def _describe_image(image: str) -> str:
    try:
        reference = parse_reference(image)
    except InvalidRequest:  # the definition has an error, which is reported as such
        return ""
    if reference.transport is Transport.BUILTIN or "@sha256:" in image:
        return ""
    if reference.transport.is_local:
        return "the image is made of a path of this host; use one of a registry, NAME@sha256:DIGEST"
    return "the image can have another content on other hosts; use NAME@sha256:DIGEST"


def _join(vms: list[str]) -> str:
    more = f" and {len(vms) - _SHOWN} more" if len(vms) > _SHOWN else ""
    return f"{', '.join(vms[:_SHOWN])}{more}"
