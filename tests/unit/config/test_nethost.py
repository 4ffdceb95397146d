# SPDX-License-Identifier: Apache-2.0
"""Networks of the host: what there is by itself, what is merged, and what does not go together."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network, ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypemand.config.host import HostConfig, load_host_config
from hypemand.config.nethost import DEFAULT_IPV4, derive_default_ipv6, make_networks, read_machine_id
from hypemand.config.network import Egress, HostPort, NetworkConfig, Transport
from hypemand.errors import InvalidDefinition
from hypemand.network.port import tap_name

ID = "0123456789abcdef0123456789abcdef"
DEFAULT = NetworkConfig("default", "hypeman0", DEFAULT_IPV4, derive_default_ipv6(ID))
LAN = NetworkConfig("lan", "lan0", IPv4Interface("10.20.30.1/24"), None)
LAN_TEXT = "lan: {bridge: lan0, ipv4: 10.20.30.1/24}"
EACH = "write a bridge for each"
SHARES = "; write a subnet that shares no address with it"
NO_ADDRESSES = "has no addresses; write ipv4: 10.20.30.1/24, or ipv6, or both"


def load(folder: Path, *texts: str, machine_id: str = ID) -> HostConfig:
    """The config of a file h.yaml and drop-ins 1.yaml, 2.yaml …"""
    (folder / "machine-id").write_text(f"{machine_id}\n")
    (folder / "d").mkdir()
    for number, text in enumerate(texts):
        (folder / ("h.yaml" if number == 0 else f"d/{number}.yaml")).write_text(text)
    return load_host_config(folder / "h.yaml", [folder / "d"], folder / "machine-id")


def problems_of(folder: Path, *texts: str) -> list[str]:
    with pytest.raises(InvalidDefinition) as caught:
        load(folder, *texts)
    return [str(problem).removeprefix(f"{folder}/") for problem in caught.value.problems]


def test_a_network_is_there_without_being_written(tmp_path: Path) -> None:
    config = load(tmp_path, "accel: tcg\n")
    assert config.networks == {"default": DEFAULT}
    assert config.defaults.network == "default"
    assert DEFAULT.ipv6 is not None


@given(st.binary(min_size=16, max_size=16), st.binary(min_size=16, max_size=16))
def test_the_default_ipv6_is_of_this_machine_alone_and_does_not_tell_its_id(one: bytes, other: bytes) -> None:
    made = derive_default_ipv6(one.hex())
    assert made is not None
    assert made == derive_default_ipv6(one.hex())
    assert made.network.subnet_of(IPv6Network("fd00::/8"))
    assert (made.network.prefixlen, made.ip) == (64, made.network.network_address + 1)
    assert (made == derive_default_ipv6(other.hex())) == (one == other)
    assert one[:5] != made.packed[1:6]


def test_the_default_ipv6_never_changes() -> None:
    assert derive_default_ipv6(ID) == IPv6Interface("fd0e:f93e:5f86::1/64")


@pytest.mark.parametrize("text", ["", "uninitialized\n", "0123\n", "\xff", "A" * 32])
def test_without_a_machine_id_the_default_network_has_no_ipv6(tmp_path: Path, text: str) -> None:
    path = tmp_path / "machine-id"
    path.write_text(text, "latin-1")
    assert read_machine_id(path) == read_machine_id(tmp_path / "none") == ""
    assert make_networks({}, "")["default"] == replace(DEFAULT, ipv6=None)


def test_every_key_of_a_network_is_carried_over(tmp_path: Path) -> None:
    text = """\
networks:
  lan:
    bridge: br-lan.1
    ipv4: 10.20.30.254/24
    ipv6: fd12:3456:789a:1::1/64
    mtu: 9000
    dns: [9.9.9.9, "2620:fe::fe"]
    nat: false
    isolation: false
    host_ports: [53/udp, 53, "80/tcp"]
    connections: 100
    egress: [10.0.0.0/8, 0.0.0.0/0 443]
    link_local: true
defaults: {network: lan}
"""
    config = load(tmp_path, text)
    assert config.defaults.network == "lan"
    assert list(config.networks) == ["default", "lan"]
    assert config.networks["lan"] == NetworkConfig(
        name="lan",
        bridge="br-lan.1",
        ipv4=IPv4Interface("10.20.30.254/24"),
        ipv6=IPv6Interface("fd12:3456:789a:1::1/64"),
        mtu=9000,
        dns=(ip_address("9.9.9.9"), ip_address("2620:fe::fe")),
        nat=False,
        isolation=False,
        connections=100,
        egress=(
            Egress(IPv4Network("10.0.0.0/8")),
            Egress(IPv4Network("0.0.0.0/0"), Transport.TCP, 443, 443),
        ),
        link_local=True,
        host_ports=frozenset(
            {HostPort(Transport.UDP, 53), HostPort(Transport.TCP, 53), HostPort(Transport.TCP, 80)}
        ),
    )


def test_what_is_not_said_of_the_default_network_stays(tmp_path: Path) -> None:
    networks = load(tmp_path, "networks: {default: {ipv6: none, mtu: 1280}}\n").networks
    assert networks == {"default": replace(DEFAULT, ipv6=None, mtu=1280)}


@pytest.mark.parametrize(
    ("text", "names", "default"),
    [
        ("networks: {default: none}", [], None),
        (f"networks: {{default: none, {LAN_TEXT}}}", ["lan"], None),
        (f"networks: {{{LAN_TEXT}}}\ndefaults: {{network: none}}", ["default", "lan"], None),
        (f"networks: {{default: none, {LAN_TEXT}}}\ndefaults: {{network: lan}}", ["lan"], "lan"),
    ],
)  # fmt: skip
def test_the_default_network_can_be_removed(
    tmp_path: Path, text: str, names: list[str], default: str | None
) -> None:
    config = load(tmp_path, text)
    assert (list(config.networks), config.defaults.network) == (names, default)


def test_drop_ins_change_networks_key_by_key(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        f"networks: {{{LAN_TEXT}, old: {{bridge: old0, ipv4: 10.1.1.1/24, mtu: 1300}}}}",
        "networks: {lan: {mtu: 1400, dns: [9.9.9.9, 8.8.8.8]}}",
        "networks: {lan: {dns: []}}",
        "networks: {old: none}",
    )
    assert config.networks == {"default": DEFAULT, "lan": replace(LAN, mtu=1400, dns=())}


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (
            ["networks:\n  lan: {bridge: hypeman0, ipv4: 10.20.30.1/24}"],
            [f"h.yaml:2:17: networks.lan.bridge: hypeman0 is already the bridge of network default; {EACH}"],
        ),
        (
            ["networks:\n  l: {bridge: lan0, ipv4: 10.0.0.1/8}"],
            [f"h.yaml:2:27: networks.l.ipv4: 10.0.0.1/8 overlaps 10.83.112.1/20 of network default{SHARES}"],
        ),
        (
            ["networks: {a: {bridge: a, ipv6: fd00::1/64}}", "networks:\n  b: {bridge: b, ipv6: fd00::9/65}"],
            [f"d/1.yaml:2:24: networks.b.ipv6: fd00::9/65 overlaps fd00::1/64 of network a{SHARES}"],
        ),
        (
            ["networks: {lan: {ipv4: 10.20.30.1/24}}"],
            ["h.yaml:1:17: networks.lan.bridge: is missing; write for example bridge: lanbr0"],
        ),
        (
            ["networks: {lan: {bridge: lan0}}", "networks: {lan: {nat: false}}"],
            [f"d/1.yaml:1:17: networks.lan: {NO_ADDRESSES}"],
        ),
        (
            ["networks: {l: {bridge: l0, ipv6: 'fd00::1/64'}}", "networks: {l: {mtu: 1279}}"],
            ["d/1.yaml:1:21: networks.l.mtu: 1279 is too small for IPv6; write 1280 or more, or ipv6: none"],
        ),
        (
            ["networks: {lan: {bridge: lan0, ipv6: 'fd00::1/64'}}\ndefaults: {network: lna}", "vm_dir: /v"],
            ["h.yaml:2:21: defaults.network: lna is not among networks; write default, lan or none"],
        ),
        (
            [f"networks: {{{LAN_TEXT}}}\ndefaults: {{network: lan}}", "networks: {lan: none}"],
            ["h.yaml:2:21: defaults.network: lan is not among networks; write default or none"],
        ),
        (
            ["networks: {default: none}\ndefaults: {network: default}"],
            ["h.yaml:2:21: defaults.network: default is not among networks; write none"],
        ),
        (
            ["networks: {a: {bridge: x}, b: {bridge: x}}"],
            [
                f"h.yaml:1:15: networks.a: {NO_ADDRESSES}",
                f"h.yaml:1:31: networks.b: {NO_ADDRESSES}",
                f"h.yaml:1:40: networks.b.bridge: x is already the bridge of network a; {EACH}",
            ],
        ),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_told_where_it_was_said_last(
    tmp_path: Path, texts: list[str], said: list[str]
) -> None:
    assert problems_of(tmp_path, *texts) == said


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            "bridge: hv7",
            "networks.lan.bridge: 'hv7' is not valid; write an interface name of at most 15 letters",
        ),
        (
            "bridge: hi61200",
            "networks.lan.bridge: 'hi61200' is not valid; write an interface name of at most 15 letters",
        ),
        (
            "bridge: lo",
            "networks.lan.bridge: 'lo' is not valid; write an interface name of at most 15 letters",
        ),
        ("bridge: abcdefghijklmnop", "networks.lan.bridge: 'abcdefghijklmnop' is not valid"),
        ("bridge: a/b", "networks.lan.bridge: 'a/b' is not valid"),
        ("bridge: 0lan", "networks.lan.bridge: '0lan' is not valid"),
        ("bridge: all", "networks.lan.bridge: 'all' is not valid"),
        ("bridge: lo", "networks.lan.bridge: 'lo' is not valid"),
        ("ipv4: 10.20.30.0/24", "networks.lan.ipv4: 10.20.30.0 is the network address"),
        ("ipv4: 10", "networks.lan.ipv4: is the number 10, not a string"),
        (
            "ipv6: fd00::1",
            "networks.lan.ipv6: fd00::1 has no prefix length; write one, such as fd00:1:2:3::1/64",
        ),
        ("mtu: 575", "networks.lan.mtu: 575 is too small; write 576 to 65535"),
        ("mtu: 65536", "networks.lan.mtu: 65536 is too large"),
        ("dns: [127.0.0.53]", "networks.lan.dns[0]: 127.0.0.53 is local to the guest"),
        ("dns: 9.9.9.9", "networks.lan.dns: is the string '9.9.9.9', not a list"),
        ("host_ports: [0]", "networks.lan.host_ports[0]: 0 is not from 1 to 65535"),
        ("host_ports: [22, ssh]", "networks.lan.host_ports[1]: 'ssh' is not a port"),
        ("nat: 'no'", "networks.lan.nat: is the string 'no', not true or false; write false"),
        ("isolated: true", "networks.lan.isolated: is not known; did you mean isolation?"),
    ],
)
def test_each_fault_names_key_and_cure(tmp_path: Path, keys: str, said: str) -> None:
    (problem,) = problems_of(tmp_path, f"networks:\n  lan:\n    {keys}\n")
    place, _, rest = problem.partition(": ")
    assert place.startswith("h.yaml:3:")
    assert rest.startswith(said)
    assert "; " in rest


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("networks: {lan: off}", "networks.lan: 'off' is not valid; write a mapping of the network's keys"),
        ("networks: {lan: 7}", "networks.lan: is the number 7, not a string or a mapping; write a mapping"),
        ("networks: {none: {}}", "networks.none: is not a valid key: 'none'; write the name of a network"),
        ("networks: {Lan: none}", "networks.Lan: is not a valid key: 'Lan'; write the name of a network"),
        ("networks: []", "networks: is a list, not a mapping"),
        ("defaults: {network: [lan]}", "defaults.network: is a list, not a string; write the name"),
    ],
)  # fmt: skip
def test_what_is_no_network_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (problem,) = problems_of(tmp_path, text)
    assert problem.split(": ", 1)[1].startswith(said)


def test_no_bridge_can_have_the_name_of_a_tap_device(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, f"networks: {{lan: {{bridge: {tap_name(61184)}, ipv4: 10.1.1.1/24}}}}")
    assert "is not valid" in problem


def test_a_bridge_of_the_administrators_has_nothing_by_itself(tmp_path: Path) -> None:
    text = "networks: {default: {managed: false, bridge: br0, ipv4: 192.0.2.1/24}}"
    assert load(tmp_path, text).networks == {
        "default": NetworkConfig(
            "default", "br0", IPv4Interface("192.0.2.1/24"), None, nat=False, isolation=False, managed=False
        )
    }


def test_the_lan_may_configure_vms(tmp_path: Path) -> None:
    lan = load(tmp_path, "networks: {lan: {managed: false, bridge: br0, dhcp: true}}").networks["lan"]
    assert (lan.ipv4, lan.ipv6, lan.dhcp) == (None, None, True)


@pytest.mark.parametrize(
    ("keys", "key", "said"),
    [
        ("bridge: br0, managed: false", "", f"{NO_ADDRESSES}, or dhcp: true"),
        ("managed: false, dhcp: true", ".bridge", "is missing; write for example bridge: br0"),
        ("bridge: l0, ipv4: 10.0.0.1/24, dhcp: true", ".dhcp", "is for networks with managed: false"),
        ("bridge: l0, dhcp: true, managed: false, nat: true", ".nat", "is not possible with managed: false"),
        (
            "bridge: l0, dhcp: true, managed: false, egress: []",
            ".egress",
            "is not possible with managed: false",
        ),
        (
            "bridge: l0, ipv4: 10.83.112.1/24, managed: false",
            ".ipv4",
            "10.83.112.1/24 overlaps 10.83.112.1/20 of network default",
        ),
    ],
)
def test_what_a_bridge_of_the_administrators_cannot_have_is_told(
    tmp_path: Path, keys: str, key: str, said: str
) -> None:
    (problem,) = problems_of(tmp_path, f"networks: {{lan: {{{keys}}}}}")
    assert problem.split(": ", 1)[1].startswith(f"networks.lan{key}: {said}")


def test_a_lan_has_ipv6_also_on_a_host_that_has_none() -> None:
    six = IPv6Interface("fd00::1/64")
    lan = replace(LAN, ipv6=six, managed=False)
    assert (lan.without_ipv6().ipv6, replace(LAN, ipv6=six).without_ipv6().ipv6) == (six, None)
