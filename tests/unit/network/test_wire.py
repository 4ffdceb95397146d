# SPDX-License-Identifier: Apache-2.0
"""What goes over the socket comes out as it went in, and nonsense is refused."""

import asyncio
import json
import struct
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

import pytest

from hypemand.config.network import Bandwidth, Egress, HostPort, Publish, Transport
from hypemand.errors import (
    AlreadyExists,
    HostNotReady,
    HypemandError,
    InsufficientResources,
    InUse,
    InvalidDefinition,
    Problem,
)
from hypemand.model.counters import Counters
from hypemand.model.document import BadDocument, decode, encode
from hypemand.network.port import BridgePlan, NetworkStatus, PortPlan
from hypemand.network.wire import MAX_FRAME, BadFrame, decode_error, encode_error, encode_frame, read_frame
from tests.unit.network.lab import make_bridge, make_port

PLAN = make_bridge(host_ports=frozenset({HostPort(Transport.UDP, 53), HostPort(Transport.TCP, 53)}))
PORT = make_port(
    PLAN,
    1,
    group="a",
    publish=(
        Publish(None, 8080, 80),
        Publish(IPv4Address("127.0.0.1"), 53, 53, Transport.UDP),
        Publish(IPv6Address("::1"), 53, 53),
    ),
    bandwidth=Bandwidth(None, 1000),
    connections=100,
    egress=(
        Egress(IPv4Network("192.0.2.0/24"), Transport.UDP, 1, 9),
        Egress(IPv6Network("2001:db8::/32")),
    ),
)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (BridgePlan, PLAN),
        (BridgePlan, make_bridge(ipv4=None, nat=False, egress=(), link_local=True)),
        (PortPlan, PORT),
        (PortPlan, make_port(make_bridge(ipv6=None), 2)),
        (tuple[PortPlan, ...], (PORT, PORT)),
        (tuple[NetworkStatus, ...], (NetworkStatus("a", "", ("b", "c")), NetworkStatus("d", "e"))),
        (dict[str, Counters], {"hv1": Counters(1, 2, 3, 4, 5)}),
    ],
)
def test_a_value_comes_out_as_it_went_in(kind: Any, value: object) -> None:
    assert decode(kind, json.loads(json.dumps(encode(value)))) == value


@pytest.mark.parametrize(
    "error",
    [
        HostNotReady("no", hint="cure"),
        HostNotReady("no", code="other"),
        InUse("taken"),
        InsufficientResources("none left"),
        InvalidDefinition([Problem("file", 1, 2, "key", "wrong", "right"), Problem("", 0, 0, "k", "m")]),
    ],
)
def test_an_error_is_of_the_same_kind_at_the_other_end(error: HypemandError) -> None:
    told = decode_error(json.loads(json.dumps(encode_error(error))))
    assert type(told) is type(error)
    assert (str(told), told.code, told.hint) == (str(error), error.code, error.hint)
    assert getattr(told, "problems", None) == getattr(error, "problems", None)


def test_an_error_of_another_kind_is_an_error_with_its_code() -> None:
    told = decode_error(encode_error(AlreadyExists("there")))
    assert (type(told), told.code) == (HypemandError, "already_exists")


def test_an_older_end_knows_less() -> None:
    data = {**encode(Publish(None, 1, 2)), "new": "thing"}
    del data["transport"]
    assert decode(Publish, data) == Publish(None, 1, 2)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (Publish, {"address": None, "host_port": 1}),
        (Publish, {"address": "nowhere", "host_port": 1, "guest_port": 2}),
        (Publish, {"address": None, "host_port": "1", "guest_port": 2}),
        (Publish, {"address": None, "host_port": True, "guest_port": 2}),
        (Publish, {"address": None, "host_port": 1, "guest_port": 2, "transport": "sctp"}),
        (Publish, []),
        (tuple[str, ...], {"a": 1}),
        (IPv4Address, 1),
        (IPv4Address, None),
    ],
)
def test_nonsense_is_no_value(kind: Any, data: object) -> None:
    with pytest.raises(BadDocument):
        decode(kind, data)


async def read_all(data: bytes) -> list[dict[str, Any]]:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    frames = []
    while (frame := await read_frame(reader)) is not None:
        frames.append(frame)
    return frames


def test_frames_come_one_after_the_other() -> None:
    frames: list[dict[str, Any]] = [{"id": 1}, {"op": "ä", "x": [1, None]}]
    assert asyncio.run(read_all(b"".join(map(encode_frame, frames)))) == frames


@pytest.mark.parametrize(
    "data",
    [
        b"\0\0",
        b"\0\0\0\5{}",
        struct.pack(">I", MAX_FRAME + 1),
        struct.pack(">I", 2) + b"[]",
        struct.pack(">I", 3) + b"{a}",
        struct.pack(">I", 2) + b"\xff\xfe",
        struct.pack(">I", 10**5) + b"[" * 10**5,
    ],
)
def test_nonsense_is_no_frame(data: bytes) -> None:
    with pytest.raises(BadFrame):
        asyncio.run(read_all(data))


def test_a_frame_that_is_too_large_is_not_sent() -> None:
    with pytest.raises(BadFrame):
        encode_frame({"x": "y" * MAX_FRAME})
