# SPDX-License-Identifier: Apache-2.0
"""Which addresses a machine may have is one rule, in one wording, for all who ask."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_interface

import pytest

from hypemand.config.addresses import count_addresses, describe_special, find_misfit, suggest_address
from hypemand.config.netparse import parse_gateway4
from hypemand.config.network import NetworkConfig, NetworkUse
from hypemand.config.vmdef import parse_definition
from hypemand.errors import InvalidDefinition
from hypemand.manager.net.leases import allocate
from hypemand.manager.net.ports import make_bridge

LAN = NetworkConfig("lan", "br-lan", ip_interface("10.7.0.1/29"), ip_interface("fd00:7::1/64"))  # type: ignore[arg-type]
MISFITS = [
    ("10.8.0.4", "is not in 10.7.0.0/29, the subnet of network lan"),
    ("10.7.0.0", "is the network address of network lan"),
    ("10.7.0.1", "is the gateway's address in network lan"),
    ("10.7.0.7", "is the broadcast address of network lan"),
    ("fd00:8::1", "is not in fd00:7::/64, the subnet of network lan"),
    ("fd00:7::", "is the routers' anycast address of network lan"),
    ("fd00:7::1", "is the gateway's address in network lan"),
]


@pytest.mark.parametrize(("text", "words"), MISFITS)
def test_an_address_that_no_vm_can_have_is_refused_alike_everywhere(text: str, words: str) -> None:
    address = ip_address(text)
    gateway = LAN.ipv4 if address.version == 4 else LAN.ipv6
    assert find_misfit(address, gateway, "lan") == words
    key = "address" if address.version == 4 else "address6"
    with pytest.raises(InvalidDefinition) as by_the_file:
        parse_definition("web", {"image": "x", "network": {"name": "lan", key: text}}, networks={"lan": LAN})
    use = replace(NetworkUse("lan"), **{key: address})  # type: ignore[arg-type]
    with pytest.raises(InvalidDefinition) as by_the_lease:
        allocate("web", "id", use, make_bridge(LAN), None, ())
    for (problem,) in (by_the_file.value.problems, by_the_lease.value.problems):
        assert (problem.message, problem.hint) == (f"{text} {words}", suggest_address(gateway))


@pytest.mark.parametrize("text", ["10.7.0.2", "10.7.0.6", "fd00:7::2", "fd00:7::ffff:ffff:ffff:ffff"])
def test_all_others_fit(text: str) -> None:
    address = ip_address(text)
    assert find_misfit(address, LAN.ipv4 if address.version == 4 else LAN.ipv6, "lan") == ""


def test_a_network_without_a_family_has_none_of_its_addresses() -> None:
    assert find_misfit(ip_address("10.7.0.2"), None, "six") == "is of a family that network six has not"


@pytest.mark.parametrize(
    ("gateway", "count", "hint"),
    [
        ("10.7.0.1/29", 5, "write one of 10.7.0.2 to 10.7.0.6, or"),
        ("10.7.0.6/29", 5, "write one of 10.7.0.1 to 10.7.0.5, or"),
        ("10.7.0.3/29", 5, "write one of 10.7.0.1 to 10.7.0.6 but 10.7.0.3, or"),
        ("10.7.0.1/30", 1, "write one of 10.7.0.2 to 10.7.0.2, or"),
        ("10.0.0.1/8", 2**24 - 3, "write one of 10.0.0.2 to 10.255.255.254, or"),
        ("fd00::1/126", 2, "write one of fd00::2 to fd00::3, or"),
    ],
)
def test_every_size_of_subnet(gateway: str, count: int, hint: str) -> None:
    assert count_addresses(ip_interface(gateway)) == count
    assert suggest_address(ip_interface(gateway)).startswith(hint)


def test_a_gateway_is_of_the_same_range() -> None:
    assert (
        describe_special(ip_address("10.7.0.7"), ip_interface("10.7.0.1/29").network)
        == "the broadcast address"
    )
    with pytest.raises(ValueError, match=r"is the broadcast address of 10\.7\.0\.0/29; write another"):
        parse_gateway4("10.7.0.7/29")
