# SPDX-License-Identifier: Apache-2.0
"""Names of TAP devices: no two VMs have one, whatever the VMs are called."""

from pathlib import Path

from hypemand.config.network import Bandwidth
from hypemand.network.port import BridgePlan, PortPlan, tap_name

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
