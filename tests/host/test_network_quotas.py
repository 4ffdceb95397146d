# SPDX-License-Identifier: Apache-2.0
"""Where a guest may send, and how much of its host's connection tracking it gets: from inside of guests."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.host.faults import ctl, host_config
from tests.host.netlab import PORT, Place, Wired, serve, write_guest
from tests.host.test_network import tap_of
from tests.host.vms import Vms, vms_of

pytestmark = pytest.mark.one_release

TAMPERED = "5ed3ba3c6a6a43c1b1ee4b4a5b1f7d05"
METADATA = "169.254.169.254"
OTHER = PORT + 1
FEW = 20
# of one who opens connections and ends them at once: so many in a moment, and a quarter of it each second
AT_ONCE = 40
A_SECOND = AT_ONCE // 4
SECONDS = 4
CLOSED = 9
# argv: address, port. In a guest: many connections that nobody answers, of which conntrack knows for a while.
FLOOD = """
for i in $(seq 1 60); do /bin/netprobe ask udp "$1" "$2" 10 >/dev/null 2>&1; done; true
"""


@pytest.fixture(scope="module")
def lab(wired: Wired) -> Iterator[Vms]:
    """Guests on host A, and B with what a cloud serves."""
    serve(wired.b, "cloud", OTHER)
    wired.b.run(["ip", "addr", "add", f"{METADATA}/32", "dev", "uplink0"])
    wired.a.run(["ip", "route", "add", f"{METADATA}/32", "via", wired.b4])
    with vms_of(wired.a) as vms:
        write_guest(vms, "free")
        write_guest(vms, "narrow", {"egress": [f"{wired.b4} {PORT}", f"{wired.b6}/128"]})
        write_guest(vms, "shut", {"egress": [], "publish": [f"7300:{PORT}"]})
        write_guest(vms, "few", {"connections": FEW})
        write_guest(vms, "hasty", {"connections": AT_ONCE})
        vms.reload()
        vms.start("free", "narrow", "shut", "few", "hasty")
        yield vms
    wired.b.run(["ip", "addr", "del", f"{METADATA}/32", "dev", "uplink0"])
    wired.a.run(["ip", "route", "del", f"{METADATA}/32"])


def test_a_guest_sends_where_its_definition_lets_it(lab: Vms, wired: Wired) -> None:
    free, narrow, shut = (Place(wired.a, name) for name in ("free", "narrow", "shut"))
    assert free.reaches(wired.b4) == "b"
    assert free.reaches(wired.b4, OTHER) == "cloud"
    assert narrow.reaches(wired.b4) == "b"
    assert narrow.hears_nothing(wired.b4, OTHER)
    assert narrow.reaches(wired.b6, OTHER) == "cloud"
    assert narrow.hears_nothing(wired.b4, PORT, "udp")
    assert shut.hears_nothing(wired.b4)
    assert shut.hears_nothing(wired.b6)
    assert Place(wired.b).reaches(wired.a4, 7300) == "shut"


def test_a_guest_does_not_reach_the_clouds_secrets_but_where_the_network_says_so(
    lab: Vms, wired: Wired
) -> None:
    free = Place(wired.a, "free")
    assert Place(wired.a).reaches(METADATA, OTHER) == "cloud"
    assert free.hears_nothing(METADATA, OTHER)
    with host_config(wired.a, networks={"default": {"link_local": True}}):
        wired.a.wait_until(lambda: free.reaches(METADATA, OTHER) == "cloud")
        shown = json.loads(ctl(wired.a, "network", "inspect", "default").stdout)
        assert shown["link_local"] is True
    wired.a.wait_until(lambda: free.hears_nothing(METADATA, OTHER))


def count_entries(wired: Wired, address: str) -> int:
    """What conntrack of host A has of a guest's."""
    told = wired.a.run(["sh", "-c", f"grep -c 'src={address} ' /proc/net/nf_conntrack || true"]).stdout
    return int(told)


@pytest.mark.both_releases
def test_a_guest_fills_its_own_share_of_connection_tracking_and_no_other(lab: Vms, wired: Wired) -> None:
    address = lab.show("few")["network"]["ip"]
    lab.execute("few", "sh", "-c", FLOOD, "sh", wired.b4, "9999")
    assert FEW // 2 <= count_entries(wired, address) <= FEW
    assert Place(wired.a, "few").hears_nothing(wired.b4)
    assert Place(wired.a, "free").reaches(wired.b4) == "b"


def test_a_guest_that_opens_many_connections_a_second_is_held_to_its_limit_and_no_other_is(
    lab: Vms, wired: Wired
) -> None:
    hasty, free = (Place(wired.a, name) for name in ("hasty", "free"))

    def open_flows(place: Place) -> int:
        # B refuses them, so none of them lasts and counts among those at once
        return place.open_flows(wired.b4, CLOSED, SECONDS)

    began = time.monotonic()
    with ThreadPoolExecutor(2) as both:
        counts = list(both.map(open_flows, (hasty, free)))
    most = AT_ONCE + A_SECOND * (time.monotonic() - began + 1)
    print(f"hasty {counts[0]}, free {counts[1]}, at most {most:.0f}")
    assert AT_ONCE + A_SECOND < counts[0] <= most

    def opens_more() -> bool:
        began = time.monotonic()
        return open_flows(free) > AT_ONCE + A_SECOND * (time.monotonic() - began + 1)

    # what it opens is as much as a busy machine lets it
    assert counts[1] > most or wired.a.wait_until(
        opens_more, "more than its share of the one without a limit"
    )
    # both families are one VM's, and what was spent comes back
    began = time.monotonic()
    others = hasty.open_flows(wired.b6, CLOSED, 1)
    assert others <= A_SECOND * (time.monotonic() - began + 2)
    wired.a.wait_until(lambda: hasty.reaches(wired.b4) == "b")


def test_a_vm_whose_interface_is_tampered_with_is_ended_for_good(lab: Vms, wired: Wired) -> None:
    write_guest(lab, "victim")
    write_guest(lab, "taken", restart="always")
    lab.reload()
    lab.start("victim", "taken")
    mac = lab.show("victim")["network"]["mac"]
    wired.a.run(["ip", "link", "set", tap_of(lab, "taken"), "address", mac])
    shown = lab.wait("taken", "Stopped")
    (entry,) = wired.a.journal(f"MESSAGE_ID={TAMPERED}", f"HYPEMAN_VM_ID={shown['id']}")
    assert f"to {mac}" in entry["MESSAGE"]
    assert Place(wired.a, "victim").reaches(wired.b4) == "b"
