# SPDX-License-Identifier: Apache-2.0
"""Which published ports are one port of the host: one rule for definitions, starts and the service."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from hypemand.config.netparse import parse_publish
from hypemand.config.network import Publish, Transport


@pytest.mark.parametrize(
    ("one", "other", "clash"),
    [
        (Publish(None, 80, 80), Publish(None, 80, 81), True),
        (Publish(None, 80, 80), Publish(ip_address("127.0.0.1"), 80, 8080), True),
        (Publish(None, 80, 80), Publish(ip_address("fd00::1"), 80, 80), True),
        (Publish(ip_address("127.0.0.1"), 80, 80), Publish(ip_address("127.0.0.1"), 80, 81), True),
        (Publish(ip_address("127.0.0.1"), 80, 80), Publish(ip_address("127.0.0.2"), 80, 80), False),
        (Publish(ip_address("127.0.0.1"), 80, 80), Publish(ip_address("fd00::1"), 80, 80), False),
        (Publish(None, 80, 80), Publish(None, 81, 80), False),
        (Publish(None, 80, 80), Publish(None, 80, 80, Transport.UDP), False),
    ],
)
def test_what_would_get_the_same_packets_clashes(one: Publish, other: Publish, *, clash: bool) -> None:
    assert one.clashes_with(other) == clash
    assert other.clashes_with(one) == clash
    assert one.clashes_with(one)


@pytest.mark.parametrize("text", ["0.0.0.0:80:80", "[::]:80:80"])
def test_all_addresses_have_one_form(text: str) -> None:
    """So that the rule needs to know no other."""
    with pytest.raises(ValueError, match="means all addresses; omit it"):
        parse_publish(text)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("80:8080", "80/tcp"),
        ("127.0.0.1:53:5353/udp", "127.0.0.1:53/udp"),
        ("[fd00::1]:80:8080", "[fd00::1]:80/tcp"),
    ],
)
def test_a_port_of_the_host_in_words(text: str, where: str) -> None:
    assert parse_publish(text)[0].where == where
