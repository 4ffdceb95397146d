# SPDX-License-Identifier: Apache-2.0
"""The clocks of guests follow the host's: when it is set, when it drifts, and what a daemon missed."""

from __future__ import annotations

import time

from hypemand.manager.guestclocks import GuestClocks
from hypemand.model.state import State
from tests.fakes.host import FakeHost, drive
from tests.hostclock import step_clock


def test_a_step_of_the_hosts_clock_reaches_every_guest_that_runs() -> None:
    async def scenario(host: FakeHost) -> None:
        for name in ("web", "db"):
            await host.run(name)
            await host.until_true(lambda name=name: len(host.vmm(name).clocks) == 1)  # type: ignore[misc]
        await host.put("off")
        host.parts.clocks.follow()
        step_clock()
        await host.until_true(lambda: all(len(host.vmm(name).clocks) == 2 for name in ("web", "db")))
        assert abs(host.vmm().clocks[-1] - time.time_ns()) < 60 * 10**9
        host.parts.clocks.close()

    drive(scenario)


def test_a_step_while_the_guest_stands_still_is_made_up_for_when_it_goes_on() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.put("web", State.PAUSED)
        await host.until_true(lambda: len(host.vmm().clocks) == 1)
        host.parts.clocks.follow()
        step_clock()
        await host.manager.resume_vm("web")
        await host.until_true(lambda: len(host.vmm().clocks) == 2)
        host.parts.clocks.close()

    drive(scenario)


def test_a_daemon_that_begins_sets_the_clocks_of_the_guests_that_it_finds() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        await host.until_true(lambda: len(host.vmm().clocks) == 1)
        await host.restart_daemon()
        await host.until_true(lambda: len(host.vmm().clocks) == 2)

    drive(scenario)


def test_clocks_are_compared_now_and_then_as_they_drift_apart() -> None:
    async def scenario(host: FakeHost) -> None:
        now = [0.0]
        await host.run()
        await host.until_true(lambda: len(host.vmm().clocks) == 1)
        clocks = GuestClocks(host.parts.fleet, clock=lambda: now[0])
        for now[0], count in ((15.0, 1), (599.0, 1), (600.0, 2), (615.0, 2), (1199.0, 2), (1200.0, 3)):
            clocks.look()
            await host.until_true(lambda count=count: len(host.vmm().clocks) == count)  # type: ignore[misc]

    drive(scenario)
