# SPDX-License-Identifier: Apache-2.0
"""A host with more to do than CPUs: systemd and VMMs answer late, and VMs are what they were until then."""

from __future__ import annotations

import asyncio
import errno

import pytest

from hypemand.errors import NotFound
from hypemand.model.evidence import Derived, derive_status_text
from hypemand.model.state import Operation, State
from hypemand.systemd.bus import BusError, unit_path
from hypemand.systemd.units import SERVICE
from hypemand.unitnames import unit_name
from hypemand.vm import session as session_module
from hypemand.vm import vm as vm_module
from hypemand.vm.tracker import Moment
from tests.fakes.host import DEADLINE, FakeHost, drive

LATE = "Connection timed out"
UNIT = f"{SERVICE}.Unit"


def test_a_list_is_what_was_seen_last_while_systemd_does_not_answer() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        await host.run("db")
        await host.await_handle()
        await host.await_handle("db")
        host.systemd.answers.clear()
        for _ in range(2):
            views = await host.manager.list_vms()
            assert [(view.name, view.state) for view in views] == [
                ("db", State.RUNNING), ("web", State.RUNNING)
            ]  # fmt: skip
        asked = len(host.systemd.asked)
        await host.manager.list_vms()
        assert len(host.systemd.asked) == asked, "the question that is open is not asked again"
        host.systemd.answers.set()
        await host.manager.list_vms()

    drive(scenario)


def test_what_a_late_answer_says_is_taken_when_it_comes() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        host.systemd.answers.clear()
        assert (await host.manager.list_vms())[0].memory_current is None
        host.systemd.answers.set()
        await host.until_true(lambda: host.vm().view().memory_current is not None)

    drive(scenario)


async def refuse(host: FakeHost) -> None:
    """The next question about a unit is not answered in time. What follows of the start has been asked."""
    await host.await_handle()
    await host.vm().refresh()
    host.systemd.refuse["Get"] = BusError(LATE, errno.ETIMEDOUT)


def test_one_answer_that_is_lost_makes_no_vm_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vm_module, "_PAUSE", 0.01)

    async def scenario(host: FakeHost) -> None:
        await host.run()
        await refuse(host)
        assert (await host.manager.list_vms())[0].state is State.RUNNING
        assert not host.systemd.refuse
        assert host.vm().state is State.RUNNING

    drive(scenario)


def test_after_some_tries_it_is_unknown_until_systemd_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vm_module, "_PAUSE", 0.01)

    async def scenario(host: FakeHost) -> None:
        await host.run()
        answer = host.systemd.get_unit_properties
        asked: list[State] = []

        async def refuse_all(*_: object) -> None:
            asked.append(host.vm().state)
            raise BusError(LATE, errno.ETIMEDOUT)

        monkeypatch.setattr(host.systemd, "get_unit_properties", refuse_all)
        await host.manager.list_vms()
        await host.until(State.UNKNOWN)
        assert asked[:3] == [State.RUNNING] * 3
        monkeypatch.setattr(host.systemd, "get_unit_properties", answer)
        await host.until(State.RUNNING)

    drive(scenario)


def test_who_decides_something_is_not_told_what_was() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        await refuse(host)
        assert (await host.manager.get_vm("web")).state is State.UNKNOWN

    drive(scenario)


def test_a_vm_that_is_ready_before_its_vmm_answers_is_running(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its markers come over another socket than QMP, and who waits for it is told."""
    monkeypatch.setattr(session_module, "SILENCE_DEADLINE", 2.0)

    async def scenario(host: FakeHost) -> None:
        host.guest().sockets = ("report", "agent")
        await host.create()
        await host.manager.start_vm("web")
        view, late = await host.manager.wait_vm("web", State.RUNNING, DEADLINE)
        assert (view.state, view.state_error, late) == (State.RUNNING, None, False)
        # it never listens
        await host.until(State.UNKNOWN)
        assert host.vm().state_error == "nothing listens on the VMM's QMP socket"

    drive(scenario)


def test_a_connection_that_is_lost_and_made_anew_is_no_change() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        states: set[State] = set()
        with host.vm().changes.watching() as changed:
            for writer in list(host.vmm()._monitors):
                writer.transport.abort()
            host.vmm().monitor.status = "paused"
            async with asyncio.timeout(DEADLINE):
                while host.vm().state is not State.PAUSED:
                    changed.clear()
                    states.add(host.vm().state)
                    await changed.wait()
        assert states <= {State.RUNNING}

    drive(scenario)


# --- deletion ---


@pytest.mark.parametrize("kill", [False, True])
def test_who_waits_for_a_vm_that_is_deleted_is_told_so(kill: bool) -> None:
    async def scenario(host: FakeHost) -> None:
        host.guest().boots = False
        await host.create()
        await host.manager.start_vm("web")
        await host.until_true(lambda: "web" in host.vmms.live)
        wait = asyncio.create_task(host.manager.wait_vm("web", State.RUNNING, DEADLINE))

        async def watch() -> set[Operation]:
            views = [view async for view in host.manager.watch_vm("web")]
            return {view.operation.name for view in views if view.operation and view.state is State.STOPPED}

        watching = asyncio.create_task(watch())
        await host.until_true(lambda: host.watchers("web") == 2)
        await host.manager.delete_vm("web", kill=kill)
        with pytest.raises(NotFound, match="deleted"):
            await wait
        assert await watching == {Operation.DELETE}

    drive(scenario)


def test_a_wait_for_its_end_is_over_with_that() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        wait = asyncio.create_task(host.manager.wait_vm("web", State.STOPPED, 5))
        await host.until_true(lambda: host.watchers("web") == 1)
        await host.manager.delete_vm("web")
        view, late = await wait
        assert (view.state, late) == (State.STOPPED, False)

    drive(scenario)


def test_of_the_steps_of_an_end_systemd_is_asked_nothing() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        await host.await_handle()
        host.guest().heeds = False
        await host.order("StopUnit", unit_name("web"))
        await host.until(State.SHUTDOWN)
        await host.until_true(lambda: host.vm().is_ending)
        await host.manager.get_vm("web")
        host.systemd.asked.clear()
        for step in ("stop-sigterm", "stop-sigkill", "stop-post"):
            told = {f"{UNIT}.ActiveState": "deactivating", f"{UNIT}.SubState": step}
            host.systemd.deliver(unit_path(unit_name("web")), told)
        await asyncio.sleep(0.02)
        assert host.systemd.asked == []
        await host.manager.kill_vm("web")
        await host.until(State.STOPPED)

    drive(scenario)


# --- waits for other units ---


def test_the_wait_for_another_unit_is_shown_and_no_part_of_the_boot() -> None:
    async def scenario(host: FakeHost) -> None:
        host.guest("redis").boots = False
        await host.create("redis")
        await host.start_handle("redis")
        await host.until_true(lambda: "redis" in host.vmms.live)
        await host.create(unit={"After": ["hypeman@redis.service"]})
        await host.manager.start_vm("web")
        words = "Initializing: waiting for hypeman@redis"
        await host.until_true(lambda: host.vm().view().status_text == words)
        assert "web" not in host.vmms.live
        host.vmm("redis").come_up()
        await host.until(State.RUNNING)
        notes = host.vm().runs.notes
        assert notes is not None
        total = (notes.moments[Moment.RUNNING] - notes.moments[Moment.REQUESTED]) * 1000
        waited = (notes.moments[Moment.VMM_STARTED] - notes.moments[Moment.QUEUED]) * 1000
        view = await host.manager.get_vm("web")
        assert view.ready_ms == pytest.approx(total - waited)
        spans = {span.name for span in (await host.manager.timeline("web")).spans}
        assert "wait for other units" in spans
        await host.manager.restart_vm("web")
        await host.until(State.RUNNING)
        again = host.vm().runs.notes
        assert again is not None
        assert Moment.HELD not in again.moments

    drive(scenario)


def test_only_some_of_many_units_are_named() -> None:
    booting = Derived(State.INITIALIZING, vmm_absent=True)
    text = derive_status_text(booting, waits_for=[f"hypeman@{n}.service" for n in range(5)])
    assert text == "Initializing: waiting for hypeman@0, hypeman@1, hypeman@2, 2 more"
