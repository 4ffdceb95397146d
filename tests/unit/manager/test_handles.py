# SPDX-License-Identifier: Apache-2.0
"""hypeman@NAME.service is active while the VM is, and starts or stops none that nobody asked it to."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

import pytest

from hypemand.model.state import State
from hypemand.systemd.bus import BusError
from hypemand.systemd.units import Units
from hypemand.tasks import Tasks
from hypemand.vm.handle import Handle
from tests.fakes.host import FakeHost, drive
from tests.fakes.jobs import Job
from tests.unit.manager.test_races import hold_start, outcome

HANDLE = "hypeman@web.service"


def state(host: FakeHost) -> str:
    return host.systemd.units[HANDLE].active if HANDLE in host.systemd.units else "inactive"


async def until_settled(host: FakeHost) -> None:
    """Wait until nothing happens to it any more."""
    await host.until_true(lambda: host.systemd.jobs.find(HANDLE) is None)
    await host.until_true(lambda: state(host) in ("active", "inactive", "failed"))


def notes(host: FakeHost) -> list[str]:
    """What is left in the folder of handles, but for the locks."""
    folder = host.config.runtime_dir / "handles"
    return sorted(path.name for path in folder.glob("*") if path.suffix != ".lock")


async def run(host: FakeHost, restart: str = "no") -> None:
    await host.run(restart=restart)
    await host.until_true(lambda: host.is_active(HANDLE))


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was said of handles."""
    found = (record for record in caplog.records if record.levelno >= logging.WARNING)
    return [record.getMessage() for record in found if record.name == "hypemand.vm.handle"]


def started(host: FakeHost) -> list[Job]:
    """The jobs that have started it, or have not."""
    return [job for job in host.systemd.jobs.done if job.unit == HANDLE and job.kind == "start"]


@pytest.mark.parametrize("by", ["create", "start", "file"])
def test_whoever_starts_a_vm_its_handle_is_active_and_stops_it(by: str) -> None:
    async def scenario(host: FakeHost) -> None:
        if by == "create":
            await host.create(start=True)
        elif by == "start":
            await host.create()
            await host.manager.start_vm("web")
        else:
            host.write(autostart=True)
            await host.reload()
        await host.until(State.RUNNING)
        await host.until_true(lambda: host.is_active(HANDLE))
        await host.order("StopUnit", HANDLE)
        await host.until(State.STOPPED)
        await until_settled(host)
        await host.vm().runs.settle()
        assert (state(host), host.traces(), notes(host)) == ("inactive", [], [])

    drive(scenario)


def test_the_handle_of_a_vm_that_boots_is_activating_and_stops_it() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.put("web", State.INITIALIZING)
        await host.until_true(lambda: state(host) == "activating")
        await host.order("StopUnit", HANDLE)
        await host.until(State.STOPPED)
        await until_settled(host)
        assert (state(host), notes(host), host.vmms.runs["web"]) == ("inactive", [], 1)

    drive(scenario)


def test_a_restart_of_the_handle_of_a_vm_that_was_started_in_another_way_restarts_the_vm() -> None:
    async def scenario(host: FakeHost) -> None:
        await run(host)
        first = host.vm().run
        await host.order("RestartUnit", HANDLE)
        await host.until_true(lambda: host.vm().run not in (None, first))
        await host.until(State.RUNNING)
        await until_settled(host)
        assert (state(host), host.vmms.runs["web"], notes(host)) == ("active", 2, [])

    drive(scenario)


def test_the_handle_is_active_through_restarts_by_systemd() -> None:
    async def scenario(host: FakeHost) -> None:
        await run(host, restart="on-failure")
        held, first = host.systemd.units[HANDLE].invocation, host.vm().run
        host.vmm().exit(3)
        await host.until_true(lambda: host.vm().run not in (None, first))
        await host.until(State.RUNNING)
        assert (state(host), host.systemd.units[HANDLE].invocation) == ("active", held)

    drive(scenario)


def test_the_handle_of_a_vm_that_is_saved_ends_beside_its_unit() -> None:
    """What follows on both takes systemd as long: nobody waits for one after the other."""

    async def scenario(host: FakeHost) -> None:
        await run(host, restart="always")
        begun = len(started(host))
        may_end = host.guest().ends_stop = asyncio.Event()
        saving = asyncio.create_task(host.manager.standby_vm("web"))
        await host.until_true(lambda: state(host) == "inactive")
        await host.until(State.SHUTDOWN)
        assert not saving.done(), "its unit has not ended"
        may_end.set()
        assert (await saving).state is State.STANDBY
        assert (state(host), notes(host), len(started(host))) == ("inactive", [], begun)
        host.guest().ends_stop = None
        await host.manager.restore_vm("web")
        await host.until(State.RUNNING)
        await host.until_true(lambda: host.is_active(HANDLE))

    drive(scenario)


def test_the_handle_of_a_vm_that_is_saved_is_not_started_again_while_its_unit_waits_to_stop() -> None:
    """As for a unit that comes after it."""

    async def scenario(host: FakeHost) -> None:
        await run(host)
        begun = len(started(host))
        host.vmm().monitor.refuses.add("quit")
        with host.systemd.jobs_held(host.vm().unit, stops=True):
            saving = asyncio.create_task(host.manager.standby_vm("web"))
            await host.until_true(lambda: state(host) == "inactive")
            assert host.unit() == "active/running"
            await asyncio.sleep(1.2)  # the pause until one that has ended is started again
        assert (await saving).state is State.STANDBY
        assert (state(host), notes(host), len(started(host))) == ("inactive", [], begun)

    drive(scenario)


@pytest.mark.parametrize("code", [0, 3])
def test_the_handle_ends_with_its_vm_also_without_a_daemon(code: int) -> None:
    async def scenario(host: FakeHost) -> None:
        await run(host)

        async def meanwhile() -> None:
            host.vmm().exit(code)
            await host.until_true(lambda: state(host) == ("failed" if code else "inactive"))

        await host.restart_daemon(meanwhile)
        assert (host.vm().state, notes(host)) == (State.STOPPED, [])

    drive(scenario)


def test_a_daemon_that_starts_compares_handles_with_their_vms() -> None:
    async def scenario(host: FakeHost) -> None:
        await run(host)
        await host.create("other")
        (host.config.runtime_dir / "handles/other.follow").touch()  # of a daemon that was killed

        async def meanwhile() -> None:
            host.systemd.units[HANDLE].kill(9)
            await host.until_true(lambda: state(host) == "failed")

        await host.restart_daemon(meanwhile)
        await host.daemon.recovery.clean_up()
        await host.until_true(lambda: host.is_active(HANDLE))
        assert (host.vm().state, host.vmms.runs["web"]) == (State.RUNNING, 1)
        assert not (host.config.runtime_dir / "handles/other.follow").exists()

    drive(scenario)


def test_a_handle_whose_process_is_killed_is_started_again_and_the_vm_goes_on() -> None:
    async def scenario(host: FakeHost) -> None:
        await run(host)
        held, first = host.systemd.units[HANDLE].invocation, host.vm().run
        host.systemd.units[HANDLE].kill(9)
        await host.until_true(lambda: state(host) == "failed")
        await host.until_true(lambda: host.is_active(HANDLE))
        assert host.systemd.units[HANDLE].invocation != held
        assert (host.vm().state, host.vm().run) == (State.RUNNING, first)

    drive(scenario)


async def end_by_itself(host: FakeHost) -> None:
    host.vmm().exit(0)
    await host.until_ended()


ENDS: dict[str, Callable[[FakeHost], Awaitable[object]]] = {
    "stop": lambda host: host.manager.stop_vm("web"),
    "kill": lambda host: host.manager.kill_vm("web"),
    "delete": lambda host: host.manager.delete_vm("web"),
    "unit": lambda host: host.order("StopUnit", "hypeman-vm-web.service"),
    "itself": end_by_itself,
}


@pytest.mark.parametrize("new_daemon", [False, True])
@pytest.mark.parametrize("end", ENDS)
def test_a_handle_that_is_late_starts_no_vm_that_has_ended_meanwhile(
    end: str, new_daemon: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(host: FakeHost) -> None:
        await host.create()
        with host.systemd.jobs_held(HANDLE):
            await host.start()
            await host.until_true(lambda: host.systemd.jobs.find(HANDLE) is not None)
            await ENDS[end](host)
            if end != "delete":
                await host.until(State.STOPPED)
            if new_daemon:
                await host.restart_daemon()
        await until_settled(host)
        assert state(host) == "inactive"
        assert host.vmms.runs == {"web": 1}
        assert [job.result for job in started(host)] == ["canceled"]
        assert notes(host) == []
        assert warnings(caplog) == [], "nobody waits for it"
        # it is as if it had not been there
        if end != "delete":
            await host.start_handle("web")
            await host.until_true(lambda: host.is_active(HANDLE))
            assert (host.vm().state, host.vmms.runs) == (State.RUNNING, {"web": 2})

    drive(scenario)


@pytest.mark.parametrize("end", ["stop", "kill", "delete", "unit"])
@pytest.mark.parametrize("boots", [False, True])
def test_a_vm_that_is_ended_while_its_handle_follows_it_is_not_started_again(end: str, boots: bool) -> None:
    async def scenario(host: FakeHost) -> None:
        await host.put("web", State.RUNNING if boots else State.INITIALIZING)
        await host.until_true(lambda: state(host) == ("active" if boots else "activating"))
        await ENDS[end](host)
        await host.until_true(lambda: state(host) in ("inactive", "failed"))
        await until_settled(host)
        assert (state(host) == "failed") is (boots and end == "kill")
        assert (host.vmms.runs["web"], notes(host)) == (1, [])

    drive(scenario)


def test_a_handle_that_is_late_follows_the_next_run() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.create()
        with host.systemd.jobs_held(HANDLE):
            await host.start()
            await host.until_true(lambda: host.systemd.jobs.find(HANDLE) is not None)
            await host.manager.stop_vm("web")
            await host.start()
        await host.until_true(lambda: host.is_active(HANDLE))
        assert (host.vm().state, host.vmms.runs["web"]) == (State.RUNNING, 2)
        await host.order("StopUnit", HANDLE)
        await host.until(State.STOPPED)

    drive(scenario)


@pytest.mark.parametrize("ended", [False, True])
def test_a_start_that_merges_with_that_of_the_daemon_ends_with_the_vm_running_or_with_an_error(
    ended: bool,
) -> None:
    async def scenario(host: FakeHost) -> None:
        await host.create()
        with host.systemd.jobs_held(HANDLE):
            await host.start()
            await host.until_true(lambda: host.systemd.jobs.find(HANDLE) is not None)
            if ended:
                await host.manager.stop_vm("web")
            queued = host.systemd.jobs.find(HANDLE)
            await host.start_handle("web")
            assert host.systemd.jobs.find(HANDLE) is queued
        await until_settled(host)
        result = started(host)[-1].result
        assert (result, host.vm().state) in (("done", State.RUNNING), ("canceled", State.STOPPED))
        assert (result == "done") is not ended

    drive(scenario)


def test_a_stop_of_the_handle_is_stronger_than_a_restart_that_is_under_way() -> None:
    async def scenario(host: FakeHost) -> None:
        await run(host)
        taken, go_on = asyncio.Event(), asyncio.Event()

        async def wait() -> None:
            taken.set()
            await go_on.wait()

        host.systemd.hooks["StartTransientUnit"] = wait
        restart = asyncio.ensure_future(host.manager.restart_vm("web"))
        await taken.wait()
        assert state(host) == "active", "it is kept"
        host.systemd.jobs.add(HANDLE, "stop", "replace")
        host.systemd._schedule()
        await host.until_true(lambda: state(host) == "deactivating")
        go_on.set()
        await outcome(restart)
        await until_settled(host)
        await host.until(State.STOPPED)
        assert (state(host), notes(host)) == ("inactive", [])

    drive(scenario)


def test_the_end_of_a_handle_does_not_stop_the_run_that_comes_after() -> None:
    async def scenario(host: FakeHost) -> None:
        await run(host)
        for number in range(5):
            host.vmm().exit(0)
            await host.until(State.STOPPED)
            await host.start()
            await host.until_true(lambda: host.is_active(HANDLE))
            assert host.vmms.runs["web"] == number + 2
            assert host.vm().state is State.RUNNING

    drive(scenario)


def test_who_has_waited_for_the_end_of_a_vm_can_start_it_by_its_handle() -> None:
    async def scenario(host: FakeHost) -> None:
        for _ in range(5):
            await run(host)
            waiting = asyncio.ensure_future(host.manager.wait_vm("web", State.STOPPED, 10))
            host.vmm().exit(0)
            await waiting
            await host.start_handle("web")
            await until_settled(host)
            assert (state(host), host.vm().state) == ("active", State.RUNNING)
            await host.order("StopUnit", HANDLE)
            await host.until(State.STOPPED)
            await until_settled(host)
            await host.manager.delete_vm("web")

    drive(scenario)


def test_nothing_is_started_where_systemd_refuses_it_as_in_a_shutdown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario(host: FakeHost) -> None:
        await host.create()
        host.systemd.refuse["StartUnit"] = BusError("Transaction is destructive", errno.EDEADLK)
        await host.start()
        await host.until_true(lambda: "StartUnit" not in host.systemd.refuse)
        await host.manager.stop_vm("web")
        assert (state(host), notes(host)) == ("inactive", [])
        assert warnings(caplog) == []

    drive(scenario)


def test_a_failed_restart_lets_the_handle_end() -> None:
    async def scenario(host: FakeHost) -> None:
        await run(host)
        host.systemd.refuse["StartTransientUnit"] = BusError("no", errno.EINVAL)
        assert await outcome(host.manager.restart_vm("web")) is not None
        await until_settled(host)
        assert (state(host), host.traces(), notes(host)) == ("inactive", [], [])

    drive(scenario)


def test_a_start_that_is_called_off_while_systemd_takes_it_leaves_no_handle() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.create()
        start, go_on = await hold_start(host)
        stop = asyncio.ensure_future(host.manager.stop_vm("web"))
        go_on.set()
        await start
        await stop
        await until_settled(host)
        assert (host.vm().state, state(host), notes(host)) == (State.STOPPED, "inactive", [])

    drive(scenario)


def test_a_handle_that_was_only_loaded_has_not_ended(tmp_path: Path) -> None:
    async def main() -> None:
        looks: list[None] = []

        async def refresh() -> None:
            looks.append(None)

        async with Tasks("the test") as tasks:
            handle = Handle("web", cast(Units, None), tasks, tmp_path, lambda: False, refresh)
            handle._take_state("active", "1" * 32)
            handle._take_state("inactive", "")
            await asyncio.sleep(0)
            assert looks == []
            handle._take_state("active", "2" * 32)
            handle._take_state("inactive", "2" * 32)
            await asyncio.sleep(0)
            assert len(looks) == 1

    asyncio.run(main())
