# SPDX-License-Identifier: Apache-2.0
"""The text of rules: numbers of groups, elements of VMs."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

from hypothesis import given
from hypothesis import strategies as st

from hypemand.config.eui64 import LINK_LOCAL, derive_eui64
from hypemand.config.network import Publish, Transport
from hypemand.network.port import tap_name
from hypemand.network.rules import (
    Family,
    derive_elements,
    number_groups,
    render_changes,
    render_removal,
)
from tests.unit.network.lab import make_bridge, make_port

PLAN = make_bridge()


def test_the_link_local_address_is_made_of_the_mac() -> None:
    assert derive_eui64("52:54:00:12:34:56", LINK_LOCAL) == IPv6Address("fe80::5054:ff:fe12:3456")
    assert derive_eui64("00:00:00:00:00:00", LINK_LOCAL) == IPv6Address("fe80::200:ff:fe00:0")


def list_elements(**changes: object) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for element in derive_elements(replace(make_port(PLAN, 1), **changes), 7):  # type: ignore[arg-type]
        found.setdefault(element.set, []).append(element.text)
    return found


def test_ports_are_published_for_the_addresses_that_the_vm_has() -> None:
    one, six = IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1")
    publish = (Publish(None, 80, 8080), Publish(one, 81, 8081, Transport.UDP), Publish(six, 82, 8082))
    both = list_elements(publish=publish)
    assert both["any4"] == ["tcp . 80 : 10.77.0.2 . 8080"]
    assert both["any6"] == ["tcp . 80 : fd77::2 . 8080"]
    assert both["one4"] == ["192.0.2.1 . udp . 81 : 10.77.0.2 . 8081"]
    assert both["one6"] == ["2001:db8::1 . tcp . 82 : fd77::2 . 8082"]
    four = list_elements(publish=publish, ipv6=None)
    assert not {"any6", "one6", "source6", "target6", "option6"} & set(four)
    six_alone = list_elements(publish=publish, ipv4=None)
    assert not {"any4", "one4", "source4"} & set(six_alone)


def test_a_change_names_our_tables_alone() -> None:
    elements = tuple(derive_elements(make_port(PLAN, 1, publish=(Publish(None, 80, 80),)), 1))
    text = render_changes(elements, elements) + render_removal()
    for line in text.splitlines():
        verb, kind, family, table, *_ = line.split()
        assert verb in ("add", "delete")
        assert kind in ("element", "table")
        assert (family in list(Family), table) == (True, "hypemand")
    assert render_changes((), ()) == ""


@given(st.lists(st.tuples(st.integers(1, 60), st.sampled_from("abcdef"), st.booleans()), max_size=60))
def test_groups_have_numbers_of_their_own_and_keep_them(events: list[tuple[int, str, bool]]) -> None:
    ports = {}
    numbers: dict[tuple[str, str], int] = {}
    for number, group, comes in events:
        if comes:
            ports[number] = make_port(PLAN, number, group=group)
        else:
            ports.pop(number, None)
        before, numbers = numbers, number_groups(ports.values(), numbers)
        assert set(numbers) == {(PLAN.bridge, port.group) for port in ports.values()}
        assert len(set(numbers.values())) == len(numbers)
        assert 0 not in numbers.values()
        assert all(numbers[key] == before[key] for key in numbers.keys() & before.keys())


def test_names_of_devices_fit_and_differ() -> None:
    names = {tap_name(uid) for uid in range(61184, 65520)} | {tap_name(uid) for uid in (0, 2**32 - 2)}
    assert len(names) == 65520 - 61184 + 2
    assert max(map(len, names)) <= 15
