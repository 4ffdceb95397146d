# SPDX-License-Identifier: Apache-2.0
"""A guest that ends before systemd has its unit active: what its program says counts, and nothing waits."""

from __future__ import annotations

import asyncio
from typing import cast

from hypemand.model.state import State
from hypemand.tasks import Tasks
from hypemand.vm.endhold import EndHold
from hypemand.vmm.driver import Vmm
from tests.fakes.host import FakeHost, drive
from tests.fakes.process import Process


async def begin(host: FakeHost) -> None:
    """Start it, which does not come up by itself, and wait until its VMM is held."""
    host.guest().boots = False
    await host.manager.start_vm("web")
    await host.until_true(lambda: "web" in host.vmms.live and host.vmm().monitor.holds_end)


async def run_quickly(host: FakeHost, code: int) -> None:
    """Its program ends at once, and the daemon hears of it by the journal alone, which it reads later."""
    host.guest().sockets = ("qmp",)
    await begin(host)
    host.vmm().come_up()
    host.vmm().exit(code)


def results(host: FakeHost) -> list[str]:
    """The results with which systemd has executed ExecStopPost=, from now on."""
    found: list[str] = []
    run = host.vmms.run

    async def note(process: Process) -> int:
        if "hypemand.unit.exit" in process.argv:
            found.append(process.env["SERVICE_RESULT"])
        return await run(process)

    host.systemd.program = note
    return found


def test_a_program_that_succeeds_before_the_daemon_knows_of_its_start_is_a_success() -> None:
    async def scenario(host: FakeHost) -> None:
        found = results(host)
        await host.create(restart="on-failure", boot_timeout="1h")
        await run_quickly(host, 0)
        await host.until(State.STOPPED)
        view = await host.manager.get_vm("web")
        assert view.exit is not None
        assert view.exit.success
        assert (host.unit(), found, host.vmms.runs["web"]) == (None, ["success"], 1)

    drive(scenario)


def test_the_code_of_a_program_that_fails_so_soon_is_the_units() -> None:
    async def scenario(host: FakeHost) -> None:
        found = results(host)
        await host.create(boot_timeout="1h")
        await run_quickly(host, 3)
        await host.until(State.STOPPED)
        view = await host.manager.get_vm("web")
        assert view.exit is not None
        assert (view.exit.code, host.unit(), found) == (3, "failed/failed", ["success"])

    drive(scenario)


def test_a_guest_that_will_never_be_ready_is_not_held() -> None:
    async def scenario(host: FakeHost) -> None:
        found = results(host)
        await host.create(boot_timeout="1h")
        await begin(host)
        host.vmm().monitor.shut_down("guest-reset")
        await host.until(State.STOPPED)
        assert (host.unit(), found) == ("failed/failed", ["protocol"])
        await begin(host)
        host.vmm().exit(7, "the guest agent is not ready")
        await host.until(State.STOPPED)
        assert (host.unit(), found) == ("failed/failed", ["protocol"] * 2)

    drive(scenario)


def test_one_that_ends_without_a_word_is_not_held_for_long() -> None:
    async def scenario(host: FakeHost) -> None:
        found = results(host)
        await host.create(boot_timeout="1h")
        await begin(host)
        host.vmm().power_off()
        await host.until(State.STOPPED)
        assert (host.unit(), found) == ("failed/failed", ["protocol"])

    drive(scenario)


def test_a_vmm_ends_with_its_guest_when_it_is_running_and_when_the_daemon_has_ended() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run(boot_timeout="1h")
        await host.until_true(lambda: not host.vmm().monitor.holds_end)
        await host.stop_for_good()
        await begin(host)
        held: list[bool] = []

        async def look() -> None:
            held.append(host.vmm().monitor.holds_end)

        await host.restart_daemon(look)
        await host.until_true(lambda: host.vmm().monitor.holds_end)
        assert held == [False]

    drive(scenario)


def test_a_vmm_that_a_daemon_has_left_held_is_ended_by_the_next() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        await host.until_true(lambda: not host.vmm().monitor.holds_end)

        async def crash() -> None:
            host.vmm().monitor.holds_end = True
            host.vmm().exit(0)
            assert "web" in host.vmms.live

        await host.restart_daemon(crash)
        await host.until(State.STOPPED)
        assert (host.unit(), host.vmms.runs["web"]) == (None, 1)

    drive(scenario)


def test_a_daemon_that_ends_while_it_lets_go_says_so_again() -> None:
    """What a task of it was saying is cut off then."""
    said: list[bool] = []

    class Deaf:
        is_closed = False

        async def hold_end(self, hold: bool) -> None:
            said.append(hold)
            if said == [True, False]:
                await asyncio.Event().wait()

    async def scenario() -> None:
        tasks = Tasks("the test")
        hold = EndHold("web", tasks, is_activating=True, has_report=lambda: False, is_ready=lambda: True)
        await hold.meet(cast(Vmm, Deaf()))
        hold.follow(is_activating=False)
        await asyncio.sleep(0)
        await hold.close()
        await tasks.close()

    asyncio.run(scenario())
    assert said == [True, False, False]
