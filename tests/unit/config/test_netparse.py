# SPDX-License-Identifier: Apache-2.0
"""Rates, addresses and ports as people write them."""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_interface
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypemand.config.netparse import (
    NetworkText,
    format_egress,
    format_host_port,
    format_publish,
    parse_egress,
    parse_host_port,
    parse_mac,
    parse_network_text,
    parse_publish,
)
from hypemand.config.network import Egress, HostPort, Publish, Transport
from hypemand.config.rates import RATE_EXAMPLES, format_rate, parse_rate
from hypemand.config.schemafile import load_schema

TCP, UDP = Transport.TCP, Transport.UDP


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("8kbit", 1000),
        ("20Mbit", 2_500_000),
        (" 20 mbit ", 2_500_000),
        ("1Gbit/s", 125_000_000),
        ("1.5Mbit", 187_500),
        ("125MB/s", 125_000_000),
        ("2.5kB/s", 2500),
        ("64bit", 8),
        ("9B/s", 9),
    ],
)
def test_rates_are_in_bits_unless_they_say_bytes(text: str, rate: int) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    "text", ["", "20", "20M", "Mbit", "-1Mbit", "1Tbit", "1Mb", "1e3kbit", "\u0661kbit", "1 0kbit", "9bit"]
)
def test_what_is_no_rate_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"; write {RATE_EXAMPLES}")):
        parse_rate(text)


@pytest.mark.parametrize(
    ("text", "hint"), [("20Mbps", "write 20Mbit or 20MB/s"), ("1 gbps", "write 1gbit or 1gB/s")]
)
def test_bps_is_refused_since_tools_do_not_agree_on_it(text: str, hint: str) -> None:
    with pytest.raises(ValueError, match=f"is ambiguous: bytes in tc\\(8\\), bits elsewhere; {hint}"):
        parse_rate(text)


@given(st.integers(min_value=0, max_value=10**11))
def test_rates_are_read_back_as_written(rate: int) -> None:
    assert parse_rate(format_rate(rate)) == rate


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ("8080:80", [Publish(None, 8080, 80)]),
        ("8080:80/tcp", [Publish(None, 8080, 80)]),
        ("127.0.0.1:53:53/udp", [Publish(ip_address("127.0.0.1"), 53, 53, UDP)]),
        ("[2001:db8::1]:8080:80", [Publish(ip_address("2001:db8::1"), 8080, 80)]),
        ("192.0.2.1:1:65535", [Publish(ip_address("192.0.2.1"), 1, 65535)]),
        ("9000-9002:80-82/udp", [Publish(None, 9000 + i, 80 + i, UDP) for i in range(3)]),
        ("9000-9000:80", [Publish(None, 9000, 80)]),
        ("[2001:db8::1]:5-6:5-6", [Publish(ip_address("2001:db8::1"), p, p) for p in (5, 6)]),
    ],
)
def test_ports_are_published_as_docker_has_it(text: str, ports: list[Publish]) -> None:
    assert list(parse_publish(text)) == ports


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("80", "'80' has no host port; write HOST_PORT:PORT, such as 8080:80"),
        ("", "'' has no host port; write HOST_PORT:PORT"),
        ("0:80", "0 is not from 1 to 65535; write HOST_PORT:PORT"),
        ("80:0", "0 is not from 1 to 65535"),
        ("65536:80", "65536 is not from 1 to 65535"),
        ("80:http", "'http' is not a port"),
        ("80:80/sctp", "'sctp' is neither tcp nor udp"),
        ("80:80/", "'' is neither tcp nor udp"),
        ("80:80/TCP", "'TCP' is neither tcp nor udp"),
        (":80:80", "'' is not an IPv4 address"),
        ("localhost:80:80", "'localhost' is not an IPv4 address"),
        ("127.1:80:80", "'127.1' is not an IPv4 address"),
        ("::1:80:80", "'::1' is an IPv6 address without brackets; write HOST_PORT:PORT"),
        ("[::1%lo]:80:80", "'::1%lo' is not an IPv6 address"),
        ("[127.0.0.1]:80:80", "'127.0.0.1' is not an IPv6 address"),
        ("[::ffff:127.0.0.1]:80:80", "::ffff:127.0.0.1 is an IPv4 address; write it as 127.0.0.1"),
        ("[fe80::1]:80:80", "fe80::1 is a link-local address; write the address of a single host"),
        ("0.0.0.0:80:80", "0.0.0.0 means all addresses; omit it, which has the same effect"),
        ("[::]:80:80", ":: means all addresses; omit it, which has the same effect"),
        ("224.0.0.1:80:80", "224.0.0.1 is a multicast address"),
        ("255.255.255.255:80:80", "255.255.255.255 is reserved"),
        ("8000-8001:80", "8000-8001 has 2 ports, 80 has 1; write ranges of the same length"),
        ("8001-8000:80-81", "8001-8000 ends before it begins; write 8000-8001"),
        ("1-65535:1-65535", "1-65535 has 65535 ports; write at most 64"),
        ("80-:80", "'80-' is not a port"),
        ("\u0668:80", "'\u0668' is not a port"),
    ],
)
def test_what_cannot_be_published_is_told_with_the_cure(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=rf"^{re.escape(said)}") as caught:
        parse_publish(text)
    assert "; " in str(caught.value)


addresses = st.one_of(
    st.none(),
    st.sampled_from(["127.0.0.1", "192.0.2.7", "2001:db8::1", "2001:db8::5"]).map(ip_address),
)
ports = st.integers(min_value=1, max_value=65535)


@given(st.builds(Publish, addresses, ports, ports, st.sampled_from(Transport)))
def test_published_ports_are_read_back_as_written(one: Publish) -> None:
    assert parse_publish(format_publish(one)) == (one,)


@given(st.builds(HostPort, st.sampled_from(Transport), ports))
def test_ports_of_the_host_are_read_back_as_written(port: HostPort) -> None:
    assert parse_host_port(format_host_port(port)) == port


@pytest.mark.parametrize("text", ["0", "65536", "53/icmp", "dns", "53-54", "", "53/udp/tcp", "-1"])
def test_what_is_no_port_of_the_host_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="; write "):
        parse_host_port(text)


@pytest.mark.parametrize(
    ("mac", "said"),
    [
        ("52-54-00-12-34-56", "is not a MAC address; write one such as 52:54:00:12:34:56"),
        ("52:54:0:12:34:56", "is not a MAC address"),
        ("52:54:00:12:34:56:78", "is not a MAC address"),
        ("53:54:00:12:34:56", "is a multicast address; write an even first byte, such as 52:54:00:12:34:56"),
        ("FF:FF:FF:FF:FF:FF", "is a multicast address; write an even first byte, such as fe:ff:ff:ff:ff:ff"),
        ("00:00:00:00:00:00", "is not a valid address"),
    ],
)
def test_a_mac_address_is_one_of_a_single_machine(mac: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_mac(mac)


def test_a_mac_address_is_kept_in_lower_case() -> None:
    assert parse_mac("52:54:00:AB:CD:EF") == "52:54:00:ab:cd:ef"


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("gateway4", "10.0.0.1/8"),
        ("gateway4", "10.20.30.254/24"),
        ("gateway4", "10.20.30.2/30"),
        ("gateway6", "fd00::1/64"),
        ("gateway6", "2001:db8::ffff/112"),
        ("gateway6", "fd00::3/126"),
    ],
)
def test_a_gateway_is_an_address_with_the_prefix_of_its_network(kind: str, text: str) -> None:
    assert parse_network_text(kind, text) == ip_interface(text)


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("gateway4", "10.20.30.1", "10.20.30.1 has no prefix length; write one, such as 10.83.112.1/20"),
        ("gateway4", "10.20.30/24", "'10.20.30' is not an IPv4 address; write one with a prefix length"),
        ("gateway4", "fd00::1/64", "'fd00::1' is not an IPv4 address"),
        ("gateway4", "10.20.30.1/255.255.255.0", "/255.255.255.0 is not a valid prefix length"),
        ("gateway4", "10.20.30.1/31", "/31 is not a valid prefix length for a network; write /8 to /30"),
        ("gateway4", "10.20.30.1/7", "/7 is not a valid prefix length"),
        ("gateway4", "10.20.30.1/", "/ is not a valid prefix length"),
        ("gateway4", "10.2.3.0/24", (
"10.2.3.0 is the network address of "
"10.2.3.0/24; write another, such as 10"
)),
        ("gateway4", "10.2.3.255/24", "10.2.3.255 is the broadcast address of 10.2.3.0/24; write another"),
        ("gateway4", "127.0.0.1/8", "127.0.0.1 is a loopback address"),
        ("gateway4", "169.254.1.1/16", "169.254.1.1 is a link-local address"),
        ("gateway4", "224.0.0.1/24", "224.0.0.1 is a multicast address"),
        ("gateway4", "0.0.0.1/8", "0.0.0.1 is reserved"),
        ("gateway4", "240.0.0.1/8", "240.0.0.1 is reserved"),
        ("gateway6", "fd00::1/63", "/63 is not a valid prefix length for a network; write /64 to /126"),
        ("gateway6", "fd00::1/127", "/127 is not a valid prefix length"),
        ("gateway6", "fd00::/64", "fd00:: is the routers' anycast address of fd00::/64; write another"),
        ("gateway6", "fe80::1/64", "fe80::1 is a link-local address"),
        ("gateway6", "ff02::1/64", "ff02::1 is a multicast address"),
        ("gateway6", "::ffff:10.0.0.1/96", "::ffff:10.0.0.1 is an IPv4 address; write one with a prefix"),
        ("gateway6", "fd00::1%br0/64", "'fd00::1%br0' is not an IPv6 address"),
        ("address", "127.0.0.53", "127.0.0.53 is local to the guest"),
        ("address", "dns.example", "'dns.example' is not an IP address"),
        ("address", "::", ":: is the unspecified address"),
        ("address4", "10.1", "'10.1' is not an IPv4 address"),
        ("address4", "10.083.112.9", "'10.083.112.9' is not an IPv4 address"),
        ("address6", "10.1.1.1", "'10.1.1.1' is not an IPv6 address"),
        ("egress", "10.0.0.0/255.0.0.0", (
"'10.0.0.0/255.0.0.0' is not a "
"network; write a network, optionally"
)),
        ("egress", "example.org", "'example.org' is not a network"),
        ("egress", "::ffff:10.0.0.1", "'::ffff:10.0.0.1' is not a network"),
        ("egress", "10.0.0.0/33", "'10.0.0.0/33' is not a network"),
        ("egress", "10.1.2.3/8 80", "10.1.2.3/8 has host bits set; write 10.0.0.0/8"),
        ("egress", "10.0.0.0/8 80-", "'80-' is not a port"),
        ("egress", "10.0.0.0/8 0", "0 is not from 1 to 65535"),
        ("egress", "10.0.0.0/8 9-1", "9-1 ends before it begins; write 1-9"),
        ("egress", "10.0.0.0/8 53/icmp", "'icmp' is neither tcp nor udp"),
        ("egress", "10.0.0.0/8  53", "' 53' is not a port"),
    ],
)  # fmt: skip
def test_addresses_that_cannot_be_are_told_with_the_cure(kind: str, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=rf"^{re.escape(said)}") as caught:
        parse_network_text(kind, text)
    assert "; " in str(caught.value)


def test_none_is_a_gateway_that_is_not_there() -> None:
    assert parse_network_text("gateway4", "none") is None
    assert parse_network_text("gateway6", "none") is None


def rules_of(kind: str) -> list[dict[str, Any]]:
    """Every rule of the schemas for texts of this kind."""

    def walk(rule: Any) -> list[dict[str, Any]]:
        if isinstance(rule, dict):
            found = [rule] if rule.get("x-network") == kind else []
            return found + [one for below in rule.values() for one in walk(below)]
        return [one for below in rule for one in walk(below)] if isinstance(rule, list) else []

    return walk(load_schema("vm")) + walk(load_schema("host"))


@pytest.mark.parametrize("kind", list(NetworkText))
def test_every_kind_of_text_is_used_and_described(kind: NetworkText) -> None:
    assert kind.words
    assert rules_of(kind)


@given(
    st.builds(
        lambda network, transport, ports: Egress(network, transport, *(ports if transport else (0, 0))),
        st.one_of(
            st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)).map(
                lambda pair: IPv4Network(pair, strict=False)
            ),
            st.tuples(st.integers(2**64, 2**128 - 1), st.integers(0, 128)).map(
                lambda pair: IPv6Network(pair, strict=False)
            ),
        ),
        st.sampled_from([None, *Transport]),
        st.tuples(st.integers(1, 65535), st.integers(1, 65535)).map(sorted),
    )
)
def test_where_vms_may_send_is_read_back_as_written(egress: Egress) -> None:
    text = format_egress(egress)
    assert parse_egress(text) == egress
    assert all(re.search(rule["pattern"], text) for rule in rules_of("egress"))


@given(st.data(), st.sampled_from(NetworkText))
def test_what_editors_refuse_the_parser_refuses_too(data: st.DataObject, kind: NetworkText) -> None:
    text = data.draw(st.text(alphabet="0123456789abf.:/[]-tcpudnoe%", max_size=24))
    for rule in rules_of(kind):
        if re.search(rule["pattern"], text) is None:
            with pytest.raises(ValueError, match="; "):
                parse_network_text(kind, text)


@given(st.text(alphabet="0123456789.kMGbitB/s p", max_size=12))
def test_rates_that_editors_refuse_the_parser_refuses_too(text: str) -> None:
    rule = load_schema("vm")["properties"]["network"]["properties"]["bandwidth"]["properties"]["upload"]
    if re.search(rule["pattern"], text) is None:
        with pytest.raises(ValueError, match="write"):
            parse_rate(text)
