# SPDX-License-Identifier: Apache-2.0
"""Which addresses VMs get: the same again, the lowest that is free, and never somebody else's."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface

import pytest

from hypemand.config.addresses import count_addresses
from hypemand.config.network import NetworkUse
from hypemand.errors import InsufficientResources, InUse, InvalidDefinition
from hypemand.manager.net.leases import (
    AddressUse,
    allocate,
    derive_address_uses,
    derive_ipv6,
    derive_mac,
)
from hypemand.network.port import BridgePlan
from hypemand.vm.record import Lease, lease_from_json, lease_to_json

BRIDGE = BridgePlan(
    network="lab",
    bridge="lab0",
    ipv4=IPv4Interface("10.7.0.1/29"),
    ipv6=IPv6Interface("fd00:7::1/64"),
    mtu=1500,
    nat=True,
    host_ports=frozenset(),
)
USE = NetworkUse(name="lab")


def v4(last: int) -> IPv4Address:
    return IPv4Address(f"10.7.0.{last}")


def lease(vm: str = "web", use: NetworkUse = USE, *uses: AddressUse, old: Lease | None = None) -> Lease:
    return allocate(vm, f"id-of-{vm}", use, BRIDGE, old, uses)


def test_the_lowest_free_address_is_taken_and_the_gateways_never() -> None:
    taken: list[AddressUse] = []
    for last in (2, 3, 4, 5, 6):
        got = lease(f"vm{last}", USE, *taken)
        assert got.ipv4 == v4(last)
        taken.append(AddressUse(f"vm{last}", got.mac, got.ipv4, got.ipv6))
    with pytest.raises(InsufficientResources) as caught:
        lease("late", USE, *taken)
    for words in ("network lab", "VM late", "10.7.0.0/29 has 5 for VMs", "5 are used by other VMs"):
        assert words in caught.value.message
    assert "larger subnet" in caught.value.hint
    del taken[1]
    assert lease("late", USE, *taken).ipv4 == v4(3)


@pytest.mark.parametrize(
    ("interface", "count", "lowest"),
    [
        ("10.7.0.6/29", 5, "10.7.0.1"),
        ("10.7.0.1/30", 1, "10.7.0.2"),
        ("10.0.0.1/8", 2**24 - 3, "10.0.0.2"),
    ],
)
def test_every_size_of_subnet(interface: str, count: int, lowest: str) -> None:
    bridge = replace(BRIDGE, ipv4=IPv4Interface(interface), ipv6=None)
    assert count_addresses(IPv4Interface(interface)) == count
    got = allocate("web", "id", USE, bridge, None, ())
    assert (str(got.ipv4), got.ipv6) == (lowest, None)


def test_a_vm_keeps_what_it_has() -> None:
    first = lease()
    again = lease(old=first)
    assert again == first
    moved = replace(first, ipv4=v4(6), ipv6=IPv6Address("fd00:7::9"))
    assert lease(old=moved) == moved
    assert lease(old=replace(moved, network="other")) == first


def test_what_it_had_is_another_vms_by_now() -> None:
    first = lease()
    assert first.ipv4 == v4(2)
    assert lease("web", USE, AddressUse("new", ipv4=v4(2)), old=first).ipv4 == v4(3)


def test_what_another_only_asks_for_is_taken_from_nobody() -> None:
    first = lease()
    thief = NetworkUse(name="lab", address=first.ipv4, address6=first.ipv6, mac=first.mac)
    assert lease("web", USE, *derive_address_uses("thief", thief, None, "lab"), old=first) == first


def test_an_address_that_another_definition_asks_for_is_left_to_it() -> None:
    wanted = derive_address_uses("fixed", NetworkUse(name="lab", address=v4(2)), None, "lab")
    assert lease("web", USE, *wanted).ipv4 == v4(3)
    assert lease("web", replace(USE, address=v4(2)), *wanted).ipv4 == v4(2), "first come, first served"


def test_what_another_vm_has_cannot_be_asked_for() -> None:
    other = AddressUse("db", "02:00:00:00:00:09", v4(4), IPv6Address("fd00:7::4"))
    for use, words in (
        (replace(USE, address=v4(4)), "the address 10.7.0.4"),
        (replace(USE, address6=IPv6Address("fd00:7::4")), "the address fd00:7::4"),
        (replace(USE, mac="02:00:00:00:00:09"), "the MAC address 02:00:00:00:00:09"),
    ):
        with pytest.raises(InUse, match=f"VM web cannot have {words} of network lab, which is used by VM db"):
            lease("web", use, other)


@pytest.mark.parametrize(
    ("use", "words"),
    [
        (replace(USE, address=IPv4Address("10.8.0.4")), "10.8.0.4 is not in 10.7.0.0/29"),
        (replace(USE, address=v4(1)), "10.7.0.1 is the gateway's address"),
        (replace(USE, address=v4(0)), "is the network address"),
        (replace(USE, address=v4(7)), "is the broadcast address"),
        (replace(USE, address6=IPv6Address("fd00:7::")), "is the routers' anycast address"),
        (replace(USE, address6=IPv6Address("fd00:7::1")), "is the gateway's address"),
        (replace(USE, address6=IPv6Address("fd00:8::1")), "is not in"),
    ],
)
def test_what_no_vm_can_have_is_refused_with_what_it_is(use: NetworkUse, words: str) -> None:
    with pytest.raises(InvalidDefinition) as caught:
        lease("web", use)
    (problem,) = caught.value.problems
    assert problem.key == ("network.address" if use.address is not None else "network.address6")
    assert words in problem.message
    assert "or leave it out to have one chosen" in problem.hint


def test_a_family_that_the_network_lacks() -> None:
    bridge = replace(BRIDGE, ipv6=None)
    assert allocate("web", "id", USE, bridge, None, ()).ipv6 is None
    with pytest.raises(InvalidDefinition, match="is of a family that network lab has not"):
        allocate("web", "id", replace(USE, address6=IPv6Address("fd00:7::2")), bridge, None, ())


def test_mac_addresses_are_local_and_of_one_host() -> None:
    macs = {derive_mac(f"id{number}") for number in range(2000)}
    assert len(macs) == 2000
    for mac in macs:
        first = int(mac.split(":")[0], 16)
        assert (first & 2, first & 1, len(mac)) == (2, 0, 17)
    other = AddressUse("other", derive_mac("id-of-web"))
    assert lease("web", USE, other).mac == derive_mac("id-of-web", 1)


def test_ipv6_is_made_of_the_mac_where_there_is_room() -> None:
    assert str(derive_ipv6("52:54:00:12:34:56", IPv6Interface("fd00::1/64"))) == "fd00::5054:ff:fe12:3456"
    got = lease("web", replace(USE, mac="52:54:00:12:34:56"))
    assert str(got.ipv6) == "fd00:7::5054:ff:fe12:3456"
    small = replace(BRIDGE, ipv6=IPv6Interface("fd00:7::1/120"))
    assert str(allocate("web", "id", USE, small, None, ()).ipv6) == "fd00:7::2"
    other = AddressUse("other", ipv6=got.ipv6)
    assert str(lease("web", replace(USE, mac="52:54:00:12:34:56"), other).ipv6) == "fd00:7::2"


def test_a_lease_that_the_definition_does_not_ask_for_any_more_is_free() -> None:
    has = Lease("lab", "02:00:00:00:00:01", v4(2), None)
    assert derive_address_uses("a", USE, has, "lab") == [AddressUse("a", has.mac, v4(2), None)]
    assert derive_address_uses("a", None, has, "lab") == []
    assert derive_address_uses("a", NetworkUse(name="other"), has, "lab") == []
    (use,) = derive_address_uses("a", replace(USE, address=v4(5)), has, "lab")
    assert (use.ipv4, use.wanted) == (v4(5), True)


def test_a_lease_is_written_and_read() -> None:
    for ipv6 in (None, IPv6Address("fd00::2")):
        has = Lease("lab", "02:00:00:00:00:01", v4(2), ipv6)
        assert lease_from_json(lease_to_json(has)) == has


LAN = replace(BRIDGE, managed=False, nat=False)


def on_lan(use: NetworkUse, *uses: AddressUse, bridge: BridgePlan = LAN, old: Lease | None = None) -> Lease:
    return allocate("web", "id-of-web", use, bridge, old, uses)


def test_on_a_lan_no_address_is_chosen_but_that_of_the_mac() -> None:
    got = on_lan(replace(USE, address=v4(3)))
    assert BRIDGE.ipv6 is not None
    assert (got.ipv4, got.ipv6) == (v4(3), derive_ipv6(got.mac, BRIDGE.ipv6))
    # also if the network was hypemand's before
    assert on_lan(USE, old=lease()).ipv4 is None
    with pytest.raises(InUse, match=r"10\.7\.0\.3"):
        on_lan(replace(USE, address=v4(3)), AddressUse("db", ipv4=v4(3)))
    with pytest.raises(InUse, match=str(got.ipv6)):
        on_lan(replace(USE, address=v4(3)), AddressUse("db", ipv6=got.ipv6))
    with pytest.raises(InvalidDefinition, match="that nobody else has"):
        on_lan(replace(USE, address=v4(1)))


def test_what_the_lan_gives_is_not_known_here() -> None:
    free = replace(LAN, dhcp=True)
    got = on_lan(USE, bridge=free, old=lease())
    assert (got.ipv4, got.ipv6, got.mac) == (None, None, lease().mac)
    assert on_lan(replace(USE, address=v4(3)), bridge=free).ipv4 == v4(3)
