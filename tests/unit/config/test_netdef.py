# SPDX-License-Identifier: Apache-2.0
"""A VM's place in a network: the forms it can have, and what of it the host's networks have no room for."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import Path
from typing import Any

import pytest

from hypemand.config.definition import DefinitionDefaults
from hypemand.config.network import Bandwidth, Egress, NetworkConfig, NetworkUse, Publish, Transport
from hypemand.config.source import parse_source
from hypemand.config.vmdef import definition_to_json, parse_definition, parse_source_definition
from hypemand.config.vmfile import load_vm_dir, load_vm_file
from hypemand.errors import InvalidDefinition

NETWORKS = {
    network.name: network
    for network in (
        NetworkConfig("default", "hypeman0", IPv4Interface("10.83.112.1/20"), IPv6Interface("fd00::1/64")),
        NetworkConfig("lan", "lan0", IPv4Interface("10.20.30.1/30"), None),
        NetworkConfig("six", "six0", None, IPv6Interface("fd00:6::ff/120")),
    )
}
LAN = DefinitionDefaults(network="lan")
NONE = DefinitionDefaults(network=None)
NOT_HERE = "lna is not a network of this host; write default, lan, six or"
CHOOSE = "network default; write one of 10.83.112.2 to 10.83.127.254, or leave it out to have one chosen"


def parse(network: Any, defaults: DefinitionDefaults | None = None) -> NetworkUse | None:
    data = {"image": "x"} if network is ... else {"image": "x", "network": network}
    return parse_definition("web", data, defaults or DefinitionDefaults(), NETWORKS).network


def problems_of(text: str, defaults: DefinitionDefaults | None = None) -> list[str]:
    source = parse_source(f"image: x\nnetwork: {text}\n", "web.yaml")
    with pytest.raises(InvalidDefinition) as caught:
        parse_source_definition("web", source, defaults or DefinitionDefaults(), NETWORKS)
    return [str(problem).removeprefix("web.yaml:") for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("network", "defaults", "use"),
    [
        (..., None, NetworkUse("default")),
        (..., LAN, NetworkUse("lan")),
        (..., NONE, None),
        ("none", LAN, None),
        ("six", LAN, NetworkUse("six")),
        ("default", NONE, NetworkUse("default")),
        ({}, LAN, NetworkUse("lan")),
        ({"group": "shop"}, LAN, NetworkUse("lan", group="shop")),
        ({"name": "default"}, NONE, NetworkUse("default")),
    ],
)
def test_a_vm_is_on_the_network_it_names_else_on_the_hosts_default(
    network: Any, defaults: DefinitionDefaults | None, use: NetworkUse | None
) -> None:
    assert parse(network, defaults) == use


def test_every_key_is_carried_over() -> None:
    wish = {
        "name": "default",
        "address": "10.83.127.254",
        "address6": "fd00::ffff",
        "mac": "52:54:00:AB:CD:EF",
        "publish": ["8080:80", "127.0.0.1:53:53/udp", "[2001:db8::1]:9000-9001:90-91"],
        "bandwidth": {"upload": "8kbit", "download": "32Gbit"},
        "group": "shop",
        "connections": 512,
        "egress": ["192.0.2.0/24 443", "9.9.9.9 53/udp", "2001:db8::/32"],
    }
    assert parse(wish) == NetworkUse(
        name="default",
        address=IPv4Address("10.83.127.254"),
        address6=IPv6Address("fd00::ffff"),
        mac="52:54:00:ab:cd:ef",
        publish=(
            Publish(None, 8080, 80),
            Publish(IPv4Address("127.0.0.1"), 53, 53, Transport.UDP),
            Publish(IPv6Address("2001:db8::1"), 9000, 90),
            Publish(IPv6Address("2001:db8::1"), 9001, 91),
        ),
        bandwidth=Bandwidth(1000, 4_000_000_000),
        group="shop",
        connections=512,
        egress=(
            Egress(IPv4Network("192.0.2.0/24"), Transport.TCP, 443, 443),
            Egress(IPv4Network("9.9.9.9/32"), Transport.UDP, 53, 53),
            Egress(IPv6Network("2001:db8::/32")),
        ),
    )
    assert parse({"isolate": False}) == NetworkUse("default", isolate=False)


@pytest.mark.parametrize(
    ("network", "shown"),
    [
        ("none", "none"),
        ({"name": "lan"}, "lan"),
        ({"publish": ["8000-8001:80-81"]}, {"name": "default", "publish": ["8000:80", "8001:81"]}),
        ({"bandwidth": {}}, "default"),
        ({"bandwidth": {"upload": "2.5MB/s"}}, {"name": "default", "bandwidth": {"upload": "20Mbit"}}),
        ({"isolate": True}, {"name": "default", "isolate": True}),
        ({"group": "a"}, {"name": "default", "group": "a"}),
        ({"connections": 16}, {"name": "default", "connections": 16}),
        ({"egress": []}, {"name": "default", "egress": []}),
        ({"egress": ["::/0 1-9/udp"]}, {"name": "default", "egress": ["::/0 1-9/udp"]}),
    ],
)
def test_a_definition_shows_its_network_in_full(network: Any, shown: object) -> None:
    definition = parse_definition("web", {"image": "x", "network": network})
    assert definition_to_json(definition)["network"] == shown
    assert parse_definition("web", definition_to_json(definition), NONE) == definition


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lna", f"2:10: network: {NOT_HERE} none, or add it to networks in the host configuration"),
        ("{name: lna, mac: '52:54:00:00:00:01'}", f"2:17: network.name: {NOT_HERE} network: none, or"),
        (
            "{address: 10.20.30.2}",
            f"2:20: network.address: 10.20.30.2 is not in 10.83.112.0/20, the subnet of {CHOOSE}",
        ),
        (
            "{address: 10.83.112.1}",
            f"2:20: network.address: 10.83.112.1 is the gateway's address in {CHOOSE}",
        ),
        ("{address: 10.83.112.0}", "2:20: network.address: 10.83.112.0 is the network address of"),
        ("{address: 10.83.127.255}", "2:20: network.address: 10.83.127.255 is the broadcast address of"),
        ("{address6: 'fd01::1'}", "2:21: network.address6: fd01::1 is not in fd00::/64, the subnet of"),
        ("{address6: 'fd00::1'}", "2:21: network.address6: fd00::1 is the gateway's address"),
        ("{address6: 'fd00::'}", "2:21: network.address6: fd00:: is the routers' anycast"),
        ("{name: lan, address6: 'fd00::2'}", "2:32: network.address6: fd00::2 is of a family that"),
        ("{name: six, address: 10.0.0.9}", "2:31: network.address: 10.0.0.9 is of a family that"),
        (
            "{name: six, publish: ['80:80', '127.0.0.1:81:81']}",
            "2:41: network.publish[1]: is of IPv4, which network six has not; write an address of the other",
        ),
        ("{name: lan, publish: ['[fd00::1]:80:80']}", "2:32: network.publish[0]: is of IPv6, which network"),
    ],
)  # fmt: skip
def test_what_the_hosts_networks_have_no_room_for_is_told_with_its_place(text: str, said: str) -> None:
    (problem,) = problems_of(text)
    assert problem.startswith(said)


def test_a_mapping_must_name_a_network_where_vms_have_none_by_default() -> None:
    assert problems_of("{group: shop}", NONE) == [
        (
            "2:10: network: has no name, and the host configuration has no default network; "
            "write name: with a network of the host, or network: none"
        )
    ]


def test_a_record_that_says_both_group_and_isolate_can_still_be_read() -> None:
    wish = {"group": "shop", "isolate": False}
    use = parse_definition("web", {"image": "x", "network": wish}).network
    assert use == NetworkUse("default", group="shop", isolate=False)


def test_an_address_in_ipv6_may_be_the_last_of_its_subnet() -> None:
    use = parse({"name": "six", "address6": "fd00:6::fe"})
    assert use is not None


def test_without_the_hosts_networks_nothing_is_held_against_them() -> None:
    wish = {"name": "gone", "address": "192.0.2.0"}
    assert parse_definition("web", {"image": "x", "network": wish}).network == NetworkUse(
        "gone", IPv4Address("192.0.2.0")
    )


@pytest.mark.parametrize(
    ("ports", "index", "said"),
    [
        (
            "['80:80', '80:81']",
            1,
            "publishes 80/tcp, which publish[0] already does; write each host port",
        ),
        ("['127.0.0.1:80:80', '8080:80', '80:80']", 2, "publishes 80/tcp, which publish[0] already does"),
        ("['80:80', '[2001:db8::1]:80:80']", 1, "publishes 80/tcp, which publish[0] already does"),
        ("['127.0.0.1:80:80', '127.0.0.1:80:81']", 1, "publishes 80/tcp, which publish[0] already does"),
        ("['1-9:1-9', '5-14:5-14']", 1, "publishes 5/tcp, which publish[0] already does"),
    ],
)
def test_a_port_of_the_host_is_published_once(ports: str, index: int, said: str) -> None:
    (problem,) = problems_of(f"\n  publish: {ports}")
    place, _, rest = problem.partition(": ")
    assert place.startswith("3:")
    assert rest.startswith(f"network.publish[{index}]: {said}")


def test_one_port_may_be_of_two_addresses_and_of_two_transports() -> None:
    use = parse({"publish": ["127.0.0.1:80:80", "192.0.2.1:80:80", "80:80/udp", "[2001:db8::1]:80:80"]})
    assert use is not None
    assert len(use.publish) == 4


def test_at_most_64_ports_are_published_ranges_counted_out() -> None:
    use = parse({"publish": ["1-64:1-64"]})
    assert use is not None
    assert len(use.publish) == 64
    assert problems_of("{publish: ['1-64:1-64', '65:65']}") == [
        "2:20: network.publish: publishes 65 ports; write at most 64, including all ports of ranges"
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[lan]", "network: is a list, not a string or a mapping; write the name of a network, none"),
        ("off!", "network: 'off!' is not valid; write the name of a network, none, or a mapping"),
        ("false", "network: is false, not a string or a mapping"),
        (
            "{name: none}",
            (
"network.name: 'none' is not valid; write the name "
"of a network; for no network, write network: none"
),
        ),
        ("{nmae: lan}", "network.nmae: is not known; did you mean name?"),
        ("{address: 10.83.112}", "network.address: '10.83.112' is not an IPv4 address; write one such as"),
        ("{address: 10}", 'network.address: is the number 10, not a string; quote it: "10"'),
        ("{mac: '01:00:5e:00:00:01'}", "network.mac: 01:00:5e:00:00:01 is a multicast address"),
        ("{publish: '80:80'}", "network.publish: is the string '80:80', not a list; write a list"),
        ("{publish: [80]}", "network.publish[0]: is the number 80, not a string"),
        ("{publish: ['80']}", "network.publish[0]: '80' has no host port; write HOST_PORT:PORT"),
        ("{bandwidth: 20Mbit}", "network.bandwidth: is the string '20Mbit', not a mapping"),
        ("{bandwidth: {upload: 7kbit}}", "network.bandwidth.upload: 7kbit is too slow; write 8kbit to"),
        ("{bandwidth: {upload: 33Gbit}}", "network.bandwidth.upload: 33Gbit is too fast; write 8kbit to"),
        ("{bandwidth: {upload: 0kbit}}", "network.bandwidth.upload: 0kbit is too slow"),
        ("{bandwidth: {download: 20Mbps}}", (
"network.bandwidth.download: '20Mbps' "
"is ambiguous: bytes in tc(8)"
)),
        ("{bandwidth: {download: 20}}", "network.bandwidth.download: is the number 20, not a rate"),
        ("{bandwidth: {up: 20Mbit}}", "network.bandwidth.up: is not known"),
        ("{group: Shop}", "network.group: 'Shop' is not valid; write 1 to 63 characters of a-z"),
        ("{group: a, isolate: false}", "network.isolate: cannot be combined with group"),
        ("{isolate: true, group: a}", "network.isolate: cannot be combined with group"),
        ("{isolate: yes}", "network.isolate: is the string 'yes', not true or false; write true"),
    ],
)  # fmt: skip
def test_each_fault_names_key_and_cure(text: str, said: str) -> None:
    (problem,) = problems_of(text)
    assert problem.startswith("2:")
    assert problem.split(": ", 1)[1].startswith(said)


def test_all_mistakes_of_a_network_are_told_at_once() -> None:
    said = problems_of("\n  mac: x\n  address: 1\n  publish: ['80:80', '80:81', '0:0']\n  name: lna")
    assert [line.split(": ")[:2] for line in said] == [
        ["3:8", "network.mac"],
        ["4:12", "network.address"],
        ["5:22", "network.publish[1]"],
        ["5:31", "network.publish[2]"],
    ]


def test_files_are_held_against_the_hosts_networks(tmp_path: Path) -> None:
    (tmp_path / "web.yaml").write_text("image: x\n")
    (tmp_path / "db.yaml").write_text("image: x\nnetwork: dmz\n")
    found = load_vm_dir(tmp_path, LAN, NETWORKS)
    assert found.definitions["web"].network == NetworkUse("lan")
    assert found.broken == {"db"}
    assert str(found.problems[0]).startswith(
        f"{tmp_path}/db.yaml:2:10: network: dmz is not a network of this host"
    )
    assert load_vm_file(tmp_path / "db.yaml", LAN).network == NetworkUse("dmz")


OFFICE = NetworkConfig(
    "office", "br0", IPv4Interface("192.0.2.1/24"), IPv6Interface("2001:db8::1/64"), managed=False
)
ON_OFFICE = DefinitionDefaults(network="office")


def office_problems(
    text: str, network: NetworkConfig = OFFICE, defaults: DefinitionDefaults = ON_OFFICE
) -> list[str]:
    source = parse_source(f"image: x\n{text}\n", "web.yaml")
    try:
        parse_source_definition("web", source, defaults, {"office": network})
    except InvalidDefinition as error:
        return [str(problem).removeprefix("web.yaml:") for problem in error.problems]
    return []


REACHED, PASS = "are reached under their own addresses", "pass no firewall of this host"
REMOVE = "remove it, or name another network"
FREE = "write one of 192.0.2.2 to 192.0.2.254 that nobody else has"
MISSING = f"is missing: hypemand does not know which addresses of network office are free; {FREE}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("network: {address: 192.0.2.7}", []),
        ("network: {address: 192.0.2.7, address6: '2001:db8::7', bandwidth: {upload: 20Mbit}}", []),
        ("network: none", []),
        ("", [f"1:1: network: address {MISSING}"]),
        ("network: office", [f"2:10: network: address {MISSING}"]),
        ("network: {group: a}", [f"2:10: network.address: {MISSING}"]),
        (
            "network: {address: 192.0.2.1}",
            [f"2:20: network.address: 192.0.2.1 is the gateway's address in network office; {FREE}"],
        ),
        (
            "network: {address: 192.0.2.7, publish: ['8080:80']}",
            [f"2:40: network.publish: is not possible on network office: its VMs {REACHED}; {REMOVE}"],
        ),
        (
            "network: {address: 192.0.2.7, egress: []}",
            [f"2:39: network.egress: is not possible on network office, whose packets {PASS}; {REMOVE}"],
        ),
    ],
)
def test_a_vm_on_a_lan_says_its_address_and_asks_for_nothing_of_a_router(text: str, said: list[str]) -> None:
    assert office_problems(text) == said


def test_an_address_of_the_lan_can_be_left_to_the_lan() -> None:
    network = replace(OFFICE, dhcp=True)
    assert office_problems("", network) == []
    assert office_problems("network: {publish: ['80:80']}", network) != []
    said = office_problems("network: {address: 192.0.2.7}", replace(network, ipv4=None))
    assert [problem for problem in said if "is of a family that network office has not" in problem]


def test_where_no_mac_address_makes_one_the_ipv6_address_is_said_too() -> None:
    network = replace(OFFICE, ipv6=IPv6Interface("2001:db8::1/120"))
    (said,) = office_problems("network: {address: 192.0.2.7}", network)
    assert "network.address6: is missing" in said
