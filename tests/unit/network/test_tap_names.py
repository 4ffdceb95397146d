# SPDX-License-Identifier: Apache-2.0
"""Names of TAP devices: one for each VM, and ones that the kernel takes."""

import re
from pathlib import Path

from hypemand.config.definition import Origin
from hypemand.config.vmdef import parse_definition
from hypemand.manager.inventory import Inventory
from hypemand.network.limits import ifb_name
from hypemand.network.port import tap_name

VMS = 20_000
# IFNAMSIZ is 16, with the zero at the end
DEVICE = re.compile(r"[A-Za-z][A-Za-z0-9]{0,14}")


def test_20000_vms_have_as_many_devices_whatever_they_are_called() -> None:
    first = 61184
    uids = range(first, first + VMS)
    names = {name(uid) for uid in uids for name in (tap_name, ifb_name)}
    assert len(names) == 2 * VMS
    assert all(DEVICE.fullmatch(name) for name in names)


def test_the_largest_uid_fits() -> None:
    for name in (tap_name(4294967293), ifb_name(4294967293)):
        assert DEVICE.fullmatch(name)


def test_names_that_differ_at_their_end_or_in_a_dash_have_different_devices(tmp_path: Path) -> None:
    inventory = Inventory(tmp_path / "vms", (2_000_000, 2_000_400), tmp_path / "userdb")
    inventory.load()
    names = [f"{'a' * 60}{number:03}" for number in range(200)]
    names += ["hv61184", "61184", "hv-61184", "a-b", "ab", "a--b"]
    taps = set()
    for name in names:
        definition = parse_definition(name, {"image": "builtin:busybox"})
        taps.add(tap_name(inventory.add(definition, Origin.API).uid))
    assert len(taps) == len(names)
