# SPDX-License-Identifier: Apache-2.0
"""Which addresses a VM gets in its network. Pure.

A lease lasts: the VM keeps its addresses over stops, restarts and reboots of the host, until it is removed or
its definition asks for others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, IPv6Interface
from typing import TypeVar

from hypemand.config.addresses import Interface, count_addresses, find_misfit, find_range, suggest_address
from hypemand.config.eui64 import PREFIX_LENGTH, derive_eui64
from hypemand.config.network import NetworkUse
from hypemand.errors import InsufficientResources, InUse, InvalidDefinition, Problem
from hypemand.network.port import BridgePlan
from hypemand.vm.record import Lease

Address = TypeVar("Address", IPv4Address, IPv6Address)


@dataclass(frozen=True, slots=True)
class AddressUse:
    """What another VM has in the network. `wanted`: it does not have it yet, its definition asks for it."""

    vm: str
    mac: str | None = None
    ipv4: IPv4Address | None = None
    ipv6: IPv6Address | None = None
    wanted: bool = False


def is_lease_of(use: NetworkUse, lease: Lease) -> bool:
    """Is a lease what a definition asks for? One that is not counts no more."""
    asked = ((use.address, lease.ipv4), (use.address6, lease.ipv6), (use.mac, lease.mac))
    return lease.network == use.name and all(wanted is None or wanted == has for wanted, has in asked)


def keep_fitting(lease: Lease, bridge: BridgePlan | None) -> Lease:
    """A lease with only those addresses that a VM of the network can have: its subnets may have changed
    since. None: there is no such network."""
    ipv4 = None if bridge is None else _keep_fitting(lease.ipv4, bridge.ipv4, bridge.network)
    ipv6 = None if bridge is None else _keep_fitting(lease.ipv6, bridge.ipv6, bridge.network)
    return replace(lease, ipv4=ipv4, ipv6=ipv6)


def _keep_fitting(address: Address | None, interface: Interface | None, network: str) -> Address | None:
    return None if address is None or find_misfit(address, interface, network) else address


def derive_address_uses(
    vm: str, use: NetworkUse | None, lease: Lease | None, network: str
) -> list[AddressUse]:
    """What a VM that is defined with `use` and has had `lease` has in a network."""
    if use is None or use.name != network:
        return []
    if lease is not None and is_lease_of(use, lease):
        return [AddressUse(vm, lease.mac, lease.ipv4, lease.ipv6)]
    return [AddressUse(vm, use.mac, use.address, use.address6, wanted=True)]


def allocate(
    vm: str, vm_id: str, use: NetworkUse, bridge: BridgePlan, old: Lease | None, others: Sequence[AddressUse]
) -> Lease:
    """The lease of a VM on a network, the one that it has if it fits. InvalidDefinition for an address that
    no VM of it can have, InUse for one that another has, InsufficientResources if none is left.

    On a LAN others have addresses too: there a VM has none but those of its definition, and the IPv6 address
    of its MAC address unless the LAN gives it one."""
    kept = old if old is not None and old.network == bridge.network else None
    mac = _choose_mac(vm, vm_id, use, kept, others)
    ipv4 = _choose(
        vm, "address", bridge, bridge.ipv4, use.address, kept.ipv4 if kept else None, None,
        [(other, other.ipv4) for other in others],
    )  # fmt: skip
    derived = None if bridge.ipv6 is None else derive_ipv6(mac, bridge.ipv6)
    asked = use.address6 or (None if bridge.managed or bridge.dhcp else derived)
    ipv6 = _choose(
        vm, "address6", bridge, bridge.ipv6, asked, kept.ipv6 if kept else None, derived,
        [(other, other.ipv6) for other in others],
    )  # fmt: skip
    return Lease(bridge.network, mac, ipv4, ipv6)


def derive_mac(vm_id: str, attempt: int = 0) -> str:
    """A locally administered address, made of a VM's id."""
    digest = hashlib.sha256(f"{vm_id}/{attempt}".encode()).digest()
    return ":".join(("02", *(f"{byte:02x}" for byte in digest[:5])))


def derive_ipv6(mac: str, interface: IPv6Interface) -> IPv6Address | None:
    """The address that a host with that MAC gives itself (EUI-64, RFC 4291); None in a subnet that has no
    room for it."""
    if interface.network.prefixlen > PREFIX_LENGTH:
        return None
    return derive_eui64(mac, interface.network)


def _choose_mac(
    vm: str, vm_id: str, use: NetworkUse, kept: Lease | None, others: Sequence[AddressUse]
) -> str:
    held = {other.mac: other for other in others if not other.wanted}
    if use.mac is not None:
        if (holder := held.get(use.mac)) is not None:
            raise _in_use(vm, f"the MAC address {use.mac}", holder, use.name)
        return use.mac
    # that others wish for it takes it from nobody
    if kept is not None and kept.mac not in held:
        return kept.mac
    taken = {other.mac for other in others}
    attempt = 0
    while (mac := derive_mac(vm_id, attempt)) in taken:
        attempt += 1
    return mac


def _choose(
    vm: str,
    key: str,
    bridge: BridgePlan,
    interface: Interface | None,
    asked: Address | None,
    kept: Address | None,
    derived: Address | None,
    others: Sequence[tuple[AddressUse, Address | None]],
) -> Address | None:
    """`asked`, or `kept` unless another VM has it by now, or `derived` if no definition asks for it, or the
    lowest free one."""
    if asked is not None:
        if misfit := find_misfit(asked, interface, bridge.network):
            hint = suggest_address(interface, chosen=bridge.managed or bridge.dhcp)
            raise _wrong_address(key, f"{asked} {misfit}", hint)
        for other, address in others:
            if address == asked and not other.wanted:
                raise _in_use(vm, f"the address {asked}", other, bridge.network)
        return asked
    if interface is None or not bridge.managed:
        return None
    held = {address for other, address in others if not other.wanted}
    taken = {address for _, address in others if address is not None and address in interface.network}
    for address, excluded in ((kept, held), (derived, taken)):
        if address is None or address in excluded or find_misfit(address, interface, bridge.network):
            continue
        return address
    found = _find_lowest(interface, {int(address) for address in taken})
    if found is None:
        raise _used_up(vm, bridge.network, interface, len(taken))
    return type(interface.ip)(found)  # type: ignore[return-value]


def _find_lowest(interface: Interface, taken: set[int]) -> int | None:
    first, last = find_range(interface.network)
    number = first
    while number <= last:
        if number not in taken and number != int(interface.ip):
            return number
        number += 1
    return None


def _wrong_address(key: str, message: str, hint: str) -> InvalidDefinition:
    return InvalidDefinition([Problem("", 0, 0, f"network.{key}", message, hint)])


def _in_use(vm: str, what: str, other: AddressUse, network: str) -> InUse:
    return InUse(
        f"VM {vm} cannot have {what} of network {network}, which is used by VM {other.vm}",
        hint=f"use another one for {vm}, or remove {other.vm}",
    )


def _used_up(vm: str, network: str, interface: Interface, taken: int) -> InsufficientResources:
    return InsufficientResources(
        f"network {network} has no free address for VM {vm}: {interface.network} has"
        f" {count_addresses(interface)} for VMs, and {taken} are used by other VMs",
        hint="remove VMs that are not needed, or give the network a larger subnet",
    )
