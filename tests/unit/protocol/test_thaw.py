# SPDX-License-Identifier: Apache-2.0
"""What a guest is told when it goes on."""

from __future__ import annotations

import time

import pytest

from hypemand.errors import InvalidRequest
from hypemand.protocol.configdisk import GuestHost, GuestInterface
from hypemand.protocol.records import parse_records
from hypemand.protocol.thaw import ForkIdentity, ForkInterface, Thaw, encode_thaw

BOOT = "0123456789abcdef0123456789abcdef"


def test_a_restore_has_a_clock_and_bytes_of_its_own() -> None:
    before = time.time_ns()
    one, other = (parse_records(encode_thaw(Thaw())) for _ in range(2))
    assert [key for key, _ in one.pairs] == ["clock", "entropy"]
    assert before <= one.get_int("clock", 0, 2**63) <= time.time_ns()
    assert len(bytes.fromhex(one.get("entropy"))) == 64
    assert one.get("entropy") != other.get("entropy")


def test_the_bytes_are_in_no_log() -> None:
    assert "eeee" not in repr(Thaw(1, b"e" * 64))


def test_a_fork_gets_its_identity() -> None:
    interface = GuestInterface("52:54:00:00:00:02", addresses=("10.0.0.3/24",), gateways=("10.0.0.1",))
    identity = ForkIdentity(
        BOOT, "web2", "a" * 32, (ForkInterface("52:54:00:00:00:01", interface),),
        ("10.0.0.1",), ("hypeman",), (GuestHost("10.0.0.3", ("web2", "web2.hypeman")),),
    )  # fmt: skip
    assert encode_thaw(Thaw(7, b"\x01" * 64, identity)).decode() == "\0".join((
        "clock=7", "entropy=" + "01" * 64, f"boot={BOOT}", "hostname=web2", "machine_id=" + "a" * 32,
        "net=old_mac=52:54:00:00:00:01,mac=52:54:00:00:00:02,address=10.0.0.3/24,gateway=10.0.0.1",
        "dns=10.0.0.1", "search=hypeman", "host=address=10.0.0.3,name=web2,name=web2.hypeman",
        "reset=ssh-host-keys", "",
    ))  # fmt: skip


def test_an_identity_that_fits_in_no_frame_is_refused_with_the_cure() -> None:
    hosts = tuple(GuestHost(f"10.0.{n // 256}.{n % 256}", (f"vm{n}",)) for n in range(4096))
    with pytest.raises(InvalidRequest, match="fewer lines of /etc/hosts"):
        encode_thaw(Thaw(1, b"e" * 64, ForkIdentity(BOOT, "web2", hosts=hosts)))
