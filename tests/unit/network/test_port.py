# SPDX-License-Identifier: Apache-2.0
"""Names of TAP devices: no two VMs have one, whatever the VMs are called. And the shape of a network."""

from dataclasses import fields, replace
from ipaddress import IPv4Interface, IPv6Interface, ip_network
from pathlib import Path
from typing import Any

import pytest

from hypemand.config.network import Bandwidth, Egress, HostPort, Transport
from hypemand.network.port import BridgePlan, PortPlan, adapt_bridge, has_same_shape, tap_name

IFNAMSIZ = 16
BRIDGE = BridgePlan("lab", "lab0", None, None, 1500, True, frozenset())


def make_port(vm: str, uid: int) -> PortPlan:
    return PortPlan(vm, uid, BRIDGE, "02:00:00:00:00:01", None, None, None, (), Bandwidth())


def test_twenty_thousand_vms_with_names_that_begin_alike_have_devices_of_their_own() -> None:
    names = [f"a-rather-long-name-for-a-machine-{number}" for number in range(20_000)]
    ports = [make_port(name, 100_000 + number) for number, name in enumerate(names)]
    taps = {port.tap for port in ports}
    assert len(taps) == 20_000
    assert all(len(tap) < IFNAMSIZ for tap in taps)


def test_every_uid_makes_a_name_that_is_one() -> None:
    for uid in (1, 61184, 65519, 2**31, 2**32 - 2):
        assert len(tap_name(uid)) < IFNAMSIZ
        assert "/" not in tap_name(uid)
        assert Path("/sys/class/net", tap_name(uid)).name == tap_name(uid)


# Another value for each field of a network, and: can it change while VMs are on it?
CHANGES: dict[str, tuple[Any, bool]] = {
    "bridge": ("lab1", False),
    "ipv4": (IPv4Interface("10.7.0.1/24"), False),
    "ipv6": (IPv6Interface("fd00::1/64"), False),
    "mtu": (1400, False),
    "nat": (False, True),
    "host_ports": (frozenset({HostPort(Transport.TCP, 53)}), True),
    "egress": ((Egress(ip_network("10.0.0.0/8")),), True),
    "link_local": (True, True),
    "managed": (False, False),
    "dhcp": (True, False),
}


@pytest.mark.parametrize("key", CHANGES)
def test_what_of_a_network_changes_under_vms_is_told_from_what_does_not(key: str) -> None:
    """The daemon and the network service go by the same rule."""
    value, can_change = CHANGES[key]
    changed = replace(BRIDGE, **{key: value})
    assert has_same_shape(BRIDGE, changed) == can_change
    assert adapt_bridge(BRIDGE, changed) == (changed if can_change else BRIDGE)


def test_each_field_of_a_network_is_of_one_kind() -> None:
    assert {field.name for field in fields(BridgePlan)} == CHANGES.keys() | {"network"}
