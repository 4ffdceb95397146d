# SPDX-License-Identifier: Apache-2.0
"""Bandwidth: kept to in both directions, and nothing of it stays, whatever dies."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.host.machine import DEADLINE
from tests.host.netlab import PORT, Place, Wired, read_network, write_guest
from tests.host.vms import Vms, vms_of

pytestmark = pytest.mark.one_release

LIMITED, FREE = 7480, 7481
# bytes a second
UPLOAD, DOWNLOAD = 16_000_000 // 8, 24_000_000 // 8
BANDWIDTH = {"upload": "16Mbit", "download": "24Mbit"}
SECONDS = 3
TRIES = 3
MOMENTS = (0.0, 0.15, 0.5)


@pytest.fixture
def bare(wired: Wired) -> Iterator[Vms]:
    """VMs of host A; when they are gone its network is as it was before."""
    with vms_of(wired.a) as vms:
        before = read_network(wired.a)
        yield vms
        vms.remove_all()
        assert read_network(wired.a) == before


def write_limited(vms: Vms) -> None:
    write_guest(vms, "limited", {"publish": [f"{LIMITED}:{PORT}"], "bandwidth": BANDWIDTH})
    vms.reload()


@pytest.mark.both_releases
def test_transfers_keep_to_the_limits(bare: Vms, wired: Wired) -> None:
    write_guest(bare, "free", {"publish": [f"{FREE}:{PORT}"]})
    write_limited(bare)
    bare.start("limited", "free")
    b = Place(wired.b)
    # seen from the other end: what the guest downloads is uploaded there
    for direction, limit in (("download", UPLOAD), ("upload", DOWNLOAD)):
        rates = []
        for _ in range(TRIES):
            rates.append(b.transfer(direction, wired.a4, LIMITED, limit * SECONDS) / limit)
            if rates[-1] >= 0.9:  # a busy machine can make it slower, never faster
                break
        assert max(rates) <= 1.05, rates
        assert rates[-1] >= 0.9, rates
        assert b.transfer(direction, wired.a4, FREE, limit * SECONDS) > 1.5 * limit, "without a limit"


def test_a_vmm_that_is_killed_leaves_nothing(bare: Vms) -> None:
    write_limited(bare)
    before = read_network(bare.host)
    bare.start("limited")
    assert read_network(bare.host) != before
    bare.host.run(["kill", "-KILL", bare.unit("limited", "MainPID")["MainPID"]])
    bare.wait("limited", "Stopped")
    bare.host.wait_until(lambda: read_network(bare.host) == before, "the network is as before")


def test_a_vm_that_ends_while_the_daemon_is_away_leaves_nothing(bare: Vms) -> None:
    write_limited(bare)
    before = read_network(bare.host)
    bare.start("limited")
    with bare.without_daemon():
        bare.host.run(["kill", "-KILL", bare.unit("limited", "MainPID")["MainPID"]])
        bare.wait_unit("limited", "failed")
    bare.host.wait_until(lambda: read_network(bare.host) == before, "the network is as before")
    assert bare.state("limited") == "Stopped"


def kill_service(vms: Vms, name: str) -> None:
    vms.host.run(["systemctl", "kill", "--signal=KILL", "--kill-whom=main", f"{name}.service"])


def test_the_network_service_is_killed_and_nobody_is_cut_off(bare: Vms, wired: Wired) -> None:
    write_limited(bare)
    write_guest(bare, "next")
    bare.reload()
    before = read_network(bare.host)
    bare.start("limited")
    during = read_network(bare.host)
    with Place(wired.b).talk(wired.a4, LIMITED) as talk:
        assert talk.echo("before")
        kill_service(bare, "hypemand-network")
        assert talk.echo("after")
        assert read_network(bare.host) == during
        bare.host.wait_until_succeeds(["systemctl", "is-active", "hypemand-network.service"])
        bare.start("next")
        assert Place(wired.a, "next").reaches(wired.b4) == "b"
        bare.ctl("stop", "next")
        assert talk.echo("and after that")
    assert read_network(bare.host) == during
    bare.ctl("stop", "limited")
    assert read_network(bare.host) == before


@pytest.mark.parametrize("victim", ["hypemand", "hypemand-network"])
def test_killed_at_any_moment_of_a_start_it_is_whole_or_gone(bare: Vms, wired: Wired, victim: str) -> None:
    write_limited(bare)
    before = read_network(bare.host)
    for moment in MOMENTS:
        with bare.host.popen(["hypemanctl", "start", "limited"]) as starting:
            time.sleep(moment)  # the moment of the kill is what varies
            kill_service(bare, victim)
            # it may be told that the daemon has gone away
            starting.wait(DEADLINE)
        settle(bare)
        if bare.state("limited") == "Running":
            assert Place(wired.b).reaches(wired.a4, LIMITED) == "limited"
            bare.ctl("stop", "limited")
        bare.wait("limited", "Stopped")
        after = read_network(bare.host)
        assert after == before, f"after a kill {moment:g} s into the start"
    write_guest(bare, "limited", {"publish": [f"{LIMITED}:{PORT}"]})
    bare.reload()
    bare.start("limited")
    assert Place(wired.b).reaches(wired.a4, LIMITED) == "limited"


def settle(vms: Vms) -> None:
    """Wait until both services are there again and no start is under way."""
    for service in ("hypemand.service", "hypemand-network.service"):
        vms.host.wait_until_succeeds(["systemctl", "is-active", service])
    vms.host.wait_until(lambda: vms.state("limited") in ("Running", "Stopped"), "the start is over")
