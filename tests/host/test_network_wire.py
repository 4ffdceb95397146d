# SPDX-License-Identifier: Apache-2.0
"""The host's own network comes and goes; VMs and what is published of them are there whenever it is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.host.netlab import PORT, SILENCE_MS, Place, Wired, write_guest
from tests.host.vms import Vms, vms_of
from tests.host.wire import UPLINK

pytestmark = pytest.mark.one_release

HOST_PORT = 7380
DEADLINE = 120.0


@pytest.fixture(scope="module")
def lab(wired: Wired) -> Iterator[Vms]:
    """`web` runs on host A and publishes a port."""
    with vms_of(wired.a) as vms:
        write_guest(vms, "web", {"publish": [f"{HOST_PORT}:{PORT}"]})
        write_guest(vms, "late", {"publish": [f"{HOST_PORT + 1}:{PORT}"]})
        vms.reload()
        vms.start("web")
        yield vms


def reaches_again(wired: Wired, place: Place, address: str, port: int = PORT) -> bool:
    """As soon as neighbours have found each other."""
    return wired.a.wait_until(lambda: place.ask(address, port, within=1000) is not None, deadline=DEADLINE)


def test_a_connection_outlives_a_cut_and_the_host_does_not_mind_it(lab: Vms, wired: Wired) -> None:
    changes = lab.changes("web")
    with Place(wired.b).talk(wired.a4, HOST_PORT) as talk, Place(wired.a, "web").talk(wired.b4) as out:
        assert talk.echo("before")
        assert out.echo("before")
        with wired.wire.cut_off(wired.a):
            talk.say("meanwhile")
            assert talk.next(1) is None
            assert not Place(wired.a, "web").ask(wired.b4, within=SILENCE_MS)
            for address in (wired.a4, "127.0.0.1"):
                assert Place(wired.a).reaches(address, HOST_PORT) == "web"
        assert talk.next(DEADLINE) == "meanwhile"
        assert talk.echo("after")
        assert out.echo("after", DEADLINE)
    assert reaches_again(wired, Place(wired.b), wired.a4, HOST_PORT)
    assert lab.changes("web") == changes


def test_a_vm_starts_behind_a_cut_wire_and_is_reached_once_it_is_mended(lab: Vms, wired: Wired) -> None:
    with wired.wire.cut_off(wired.a):
        lab.start("late")
        assert Place(wired.a).reaches("127.0.0.1", HOST_PORT + 1) == "late"
        assert not Place(wired.b).ask(wired.a4, HOST_PORT + 1, within=SILENCE_MS)
    try:
        for address in (wired.a4, wired.a6):
            assert reaches_again(wired, Place(wired.b), address, HOST_PORT + 1)
        for address in (wired.b4, wired.b6):
            assert reaches_again(wired, Place(wired.a, "late"), address)
    finally:
        lab.ctl("stop", "late")


def test_an_uplink_that_comes_later_serves_vms_that_are_there(lab: Vms, wired: Wired) -> None:
    wired.wire.unplug(wired.a)
    try:
        assert UPLINK not in wired.a.run(["ip", "link"]).stdout
        lab.start("late")
        assert Place(wired.a).reaches("127.0.0.1", HOST_PORT + 1) == "late"
    finally:
        wired.wire.plug(wired.a)
        wired.route()
    try:
        for vm, port in (("web", HOST_PORT), ("late", HOST_PORT + 1)):
            for a, b in ((wired.a4, wired.b4), (wired.a6, wired.b6)):
                assert reaches_again(wired, Place(wired.b), a, port)
                assert reaches_again(wired, Place(wired.a, vm), b)
    finally:
        lab.ctl("stop", "late")


def test_a_new_address_of_the_host_serves_at_once_and_an_old_one_no_more(lab: Vms, wired: Wired) -> None:
    new = "198.51.100.77"
    assert Place(wired.a, "web").ask(wired.b4) == f"b {wired.a4}"
    wired.a.shell(f"ip addr del {wired.a4}/24 dev {UPLINK}; ip addr add {new}/24 dev {UPLINK}")
    try:
        assert reaches_again(wired, Place(wired.b), new, HOST_PORT)
        assert Place(wired.a, "web").ask(wired.b4) == f"b {new}"
        assert not Place(wired.b).ask(wired.a4, HOST_PORT, within=SILENCE_MS)
    finally:
        wired.a.shell(f"ip addr flush dev {UPLINK}")
        wired.wire.configure(wired.a)
        wired.route()
    assert reaches_again(wired, Place(wired.b), wired.a4, HOST_PORT)
    assert reaches_again(wired, Place(wired.b), wired.a6, HOST_PORT)


def test_the_host_is_booted_without_its_uplink(wired: Wired) -> None:
    """Enabled VMs come up all the same, and are reached once the wire is there."""
    with vms_of(wired.b) as vms:
        write_guest(vms, "early", {"publish": [f"{HOST_PORT}:{PORT}"]})
        vms.reload()
        vms.host.run(["systemctl", "enable", "hypeman@early"])
        wired.b.reboot()
        vms.wait("early", "Running")
        assert Place(wired.b).reaches("127.0.0.1", HOST_PORT) == "early"
        wired.wire.plug(wired.b)
        wired.equip_b()
        assert reaches_again(wired, Place(wired.a), wired.b4, HOST_PORT)
        assert reaches_again(wired, Place(wired.a), wired.b6, HOST_PORT)
        vms.host.run(["systemctl", "disable", "hypeman@early"])
