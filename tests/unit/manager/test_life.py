# SPDX-License-Identifier: Apache-2.0
"""The life of VMs under the real manager: started, stopped, ended by themselves, started again by systemd."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hypemand.config.cluster import derive_vm_id
from hypemand.errors import AlreadyExists, HostNotReady, NotFound, WrongState
from hypemand.model.evidence import RunState
from hypemand.model.state import State
from hypemand.systemd.bus import unit_path
from hypemand.systemd.units import SERVICE
from hypemand.unitnames import unit_name
from tests.fakes.host import FakeHost, drive


def test_a_vm_runs_and_stops_and_nothing_is_left() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run(network="default")
        view = await host.manager.get_vm("web")
        assert (view.state, host.unit()) == (State.RUNNING, "active/running")
        assert (view.invocation_id, view.boot_id) == (host.vmm().run_id, host.vmm().boot)
        assert [port.vm for port in host.network.taps.values()] == ["web"]
        stopped = await host.manager.stop_vm("web")
        assert stopped.state is State.STOPPED
        assert stopped.exit is not None
        assert (stopped.exit.code, stopped.exit.message) == (0, "stopped on request")
        assert stopped.exit.success
        assert host.traces() == []

    drive(scenario)


def test_a_vm_on_a_lan_tells_others_where_it_is_once_its_guest_is_up() -> None:
    def count(host: FakeHost) -> int:
        return host.vmm().monitor.orders.count("announce-self")

    def is_refused(host: FakeHost) -> bool:
        session = host.vm().session
        return session is not None and session.resumption is not None and session.resumption.tries > 1

    async def scenario(host: FakeHost) -> None:
        host.networks["default"] = replace(host.networks["default"], managed=False)
        await host.put("web", State.INITIALIZING, network={"name": "default", "address": "10.7.0.9"})
        assert count(host) == 0
        await host.manager.kill_vm("web")
        host.guest().boots = True
        await host.manager.start_vm("web")
        await host.until(State.RUNNING)
        await host.until_true(lambda: count(host) == 1)
        await host.manager.standby_vm("web")
        host.guest().thaw_refusal = "not yet"
        await host.manager.restore_vm("web")
        await host.until_true(lambda: is_refused(host))
        assert count(host) == 0, "its addresses may be about to change"
        host.vmm().freezer.refusal = ""
        await host.until(State.RUNNING)
        await host.until_true(lambda: count(host) == 1)

    drive(scenario)


def test_a_vm_on_a_network_of_hypemands_tells_nobody() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run(network="default")
        assert "announce-self" not in host.vmm().monitor.orders

    drive(scenario)


def test_a_cluster_gives_new_vms_their_ids_and_lets_others_keep_theirs() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.create("old")
        before = host.vm("old").record.id
        host.config = replace(host.config, cluster="prod")
        await host.restart_daemon()
        await host.run("web")
        vm_id = derive_vm_id("prod", "web")
        assert (host.vm("old").record.id, host.vm().record.id) == (before, vm_id)
        # again and again, also while the data of the last one are still being deleted
        for _ in range(2):
            await host.manager.delete_vm("web", kill=True)
            await host.create("web")
            assert host.vm().record.id == vm_id
        await host.manager.rename_vm("web", "shop")
        assert host.vm("shop").record.id == vm_id
        with pytest.raises(AlreadyExists, match="VM shop has the id that VM web is to have") as caught:
            await host.create("web")
        assert caught.value.hint.startswith("shop was called web before")
        assert host.vm("shop").record.id == vm_id

    drive(scenario)


def test_a_vm_is_saved_by_its_own_user_and_runs_on(tmp_path: Path) -> None:
    """What the driver asks of a VMM, over a daemon's own connection to it."""
    paths = tmp_path / "memory", tmp_path / "state"

    async def scenario(host: FakeHost, files: list[int]) -> None:
        await host.run()
        session = host.vm().session
        assert session is not None
        vmm = await session.reach_vmm()
        host.vmm().monitor.memory = b"what it knows" * 1000
        await vmm.save(*files, size=96 * 1024**2, user=host.vm().record.uid, deadline=60.0)
        assert await vmm.query_run_state() is RunState.HALTED
        await vmm.resume()
        assert (await host.manager.get_vm("web")).state is State.RUNNING

    with paths[0].open("wb") as memory, paths[1].open("wb") as state:
        drive(lambda host: scenario(host, [memory.fileno(), state.fileno()]))
    assert paths[0].read_bytes().rstrip(b"\0") == b"what it knows" * 1000
    assert paths[1].read_bytes().startswith(b"QEVM")


def test_systemd_gets_the_names_that_specifiers_mean() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run(unit={"OnFailure": "alert@%n.service", "Description": "%N"})
        properties = host.systemd.units[host.vm().unit].properties
        assert properties["OnFailure"] == ["alert@hypeman-vm-web.service.service"]
        assert properties["Description"] == "hypeman-vm-web"
        assert host.vm().record.definition.unit["OnFailure"] == ("alert@%n.service",)
        assert not host.vm().needs_restart

    drive(scenario)


def test_what_is_stopped_is_stopped_again_and_what_runs_is_started_again_without_effect() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.create()
        assert (await host.manager.stop_vm("web")).state is State.STOPPED
        await host.manager.start_vm("web")
        await host.until(State.RUNNING)
        assert (await host.manager.start_vm("web")).state is State.RUNNING
        assert host.vmms.runs == {"web": 1}

    drive(scenario)


def test_a_vm_is_initializing_until_its_guest_is_up() -> None:
    async def scenario(host: FakeHost) -> None:
        host.guest().boots = False
        await host.create()
        await host.manager.start_vm("web")
        await host.until_true(lambda: "web" in host.vmms.live and bool(host.vmm().monitor.orders))
        assert (await host.manager.get_vm("web")).state is State.INITIALIZING
        assert host.unit() == "activating/start"
        host.vmm().come_up()
        await host.until(State.RUNNING)
        assert host.unit() == "active/running"
        unit = host.systemd.units[host.vm().unit]
        await host.until_true(lambda: unit.status_text.startswith("Running"))

    drive(scenario)


@pytest.mark.parametrize("witness", ["journal", "sockets"])
def test_either_witness_is_enough(witness: str) -> None:
    async def scenario(host: FakeHost) -> None:
        host.journal.broken = witness == "sockets"
        if witness == "journal":
            host.guest().sockets = ("qmp",)
        await host.run()
        assert host.unit() == "active/running"

    drive(scenario)


def test_markers_of_another_boot_count_for_nothing() -> None:
    async def scenario(host: FakeHost) -> None:
        host.guest().boots = False
        await host.create()
        await host.manager.start_vm("web")
        await host.until_true(lambda: "web" in host.vmms.live)
        vmm = host.vmm()
        own = vmm.boot
        # nor one that signs with the id of its run
        for forged in ("0" * 32, vmm.run_id):
            vmm.boot = forged
            vmm.come_up()
        for _ in range(5):
            await host.manager.get_vm("web")
        assert host.unit() == "activating/start"
        vmm.boot = own
        vmm.come_up()
        await host.until(State.RUNNING)

    drive(scenario)


@pytest.mark.parametrize("witness", ["journal", "sockets"])
def test_a_vm_with_a_check_is_running_once_that_has_succeeded(witness: str) -> None:
    async def scenario(host: FakeHost) -> None:
        host.journal.broken = witness == "sockets"
        if witness == "journal":
            host.guest().sockets = ("qmp",)
        await host.create(ready="tcp:5432")
        await host.manager.start_vm("web")
        words = "Initializing: program started, waiting for tcp 5432"
        await host.until_true(lambda: host.vm().view().status_text == words)
        host.vmm().keep_waiting("nothing listens on port 5432")
        reason = f"{words} (nothing listens on port 5432)"
        await host.until_true(lambda: host.systemd.units[host.vm().unit].status_text == reason)
        assert host.unit() == "activating/start"
        host.vmm().become_ready()
        await host.until(State.RUNNING)
        assert host.unit() == "active/running"
        spans = [span.name for span in (await host.manager.timeline("web")).spans]
        assert "ready" in spans

    drive(scenario)


def test_a_check_of_another_boot_counts_for_nothing() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.create(ready={"notify": True})
        await host.manager.start_vm("web")
        await host.until_true(lambda: "waiting for notify" in host.vm().view().status_text)
        vmm = host.vmm()
        own, vmm.boot = vmm.boot, "0" * 32
        vmm.become_ready()
        for _ in range(5):
            await host.manager.get_vm("web")
        assert host.unit() == "activating/start"
        vmm.boot = own
        vmm.become_ready()
        await host.until(State.RUNNING)

    drive(scenario)


# --- ends ---


def test_a_program_that_ends_before_its_check_succeeds_has_its_own_end() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.create(ready="tcp:5432")
        await host.manager.start_vm("web")
        await host.until_true(lambda: "waiting for tcp" in host.vm().view().status_text)
        host.vmm().exit(3)
        await host.until(State.STOPPED)
        view = await host.manager.get_vm("web")
        assert view.exit is not None
        assert (view.exit.code, view.exit.message, view.exit.success) == (3, "exited with code 3", False)

    drive(scenario)


def test_a_boot_whose_check_does_not_succeed_is_ended_and_says_what_it_waited_for() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.create(boot_timeout="40s", ready={"http": {"port": 80, "path": "/up"}})
        await host.manager.start_vm("web")
        await host.until_true(lambda: "waiting for http" in host.vm().view().status_text)
        host.vmm().keep_waiting("http: status 503")
        view, late = await host.manager.wait_vm("web", State.RUNNING, 10)
        assert (view.state, late) == (State.STOPPED, False)
        assert view.exit is not None
        words = "boot timed out: program started, waiting for http 80/up (http: status 503)"
        assert view.exit.message == words

    drive(scenario)


def test_a_program_that_ends_stops_its_vm() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run(network="default")
        host.vmm().exit(3)
        await host.until(State.STOPPED)
        await host.vm().runs.settle()
        view = await host.manager.get_vm("web")
        assert view.exit is not None
        assert (view.exit.code, view.exit.message, view.exit.success) == (3, "exited with code 3", False)
        assert (host.unit(), host.traces()) == ("failed/failed", [host.vm().unit])
        assert host.systemd.units[host.vm().unit].status_text == "Stopped: exited with code 3"
        await host.manager.start_vm("web")
        await host.until(State.RUNNING)
        assert (await host.manager.get_vm("web")).exit is None

    drive(scenario)


def test_a_guest_that_powers_off_without_a_word_is_told_apart() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        host.vmm().power_off()
        await host.until(State.STOPPED)
        view = await host.manager.get_vm("web")
        assert view.exit is not None
        assert (view.exit.code, view.exit.success) == (None, False)
        assert view.exit.message == "the guest powered off without an exit report"

    drive(scenario)


def test_a_killed_vmm_is_told_apart() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run(network="default")
        view = await host.manager.kill_vm("web")
        assert view.state is State.STOPPED
        assert view.exit is not None
        assert view.exit.message == "the VMM was killed by SIGKILL"
        assert host.traces() == [host.vm().unit]

    drive(scenario)


def test_a_boot_that_takes_too_long_is_ended_and_says_what_was_missing() -> None:
    async def scenario(host: FakeHost) -> None:
        host.guest().boots = False
        await host.create(boot_timeout="2s")
        await host.manager.start_vm("web")
        view, late = await host.manager.wait_vm("web", State.RUNNING, 10)
        assert (view.state, late) == (State.STOPPED, False)
        assert view.exit is not None
        words = "boot timed out: HYPEMAN-PROGRAM-START and HYPEMAN-AGENT-READY were not seen"
        assert view.exit.message == words

    drive(scenario)


def test_a_guest_that_does_not_heed_a_stop_is_ended_by_force() -> None:
    async def scenario(host: FakeHost) -> None:
        host.guest().heeds = False
        await host.run(stop_timeout="1s")
        view = await host.manager.stop_vm("web")
        assert view.state is State.STOPPED
        assert view.exit is not None
        assert view.exit.message == "the guest did not power off in time and was ended by force"
        assert host.traces() == [host.vm().unit]

    drive(scenario)


def test_a_stop_with_a_grace_of_its_own_asks_the_guests_agent() -> None:
    async def scenario(host: FakeHost) -> None:
        host.guest().heeds = False  # to what the unit's own command says
        await host.run()
        view = await host.manager.stop_vm("web", timeout=5)
        assert view.state is State.STOPPED
        assert view.exit is not None
        assert view.exit.message == "stopped on request"

    drive(scenario)


def test_what_systemd_stops_is_stopped_and_released() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run(network="default", restart="always")
        await host.order("StopUnit", host.vm().unit)
        await host.until(State.STOPPED)
        await host.vm().runs.settle()
        assert host.traces() == []

    drive(scenario)


# --- restarts by systemd ---


def test_a_failed_program_is_started_again_with_what_the_vm_holds() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run(network="default", restart="on-failure")
        first = host.vmm().run_id
        host.vmm().exit(7)
        await host.until_true(lambda: host.vmms.runs["web"] == 2 and host.unit() == "active/running")
        await host.until(State.RUNNING)
        view = await host.manager.get_vm("web")
        assert view.invocation_id not in (None, first)
        assert host.network.asked.count("detach web") == 0
        assert (await host.manager.stop_vm("web")).state is State.STOPPED
        assert host.traces() == []

    drive(scenario)


def test_between_two_runs_it_holds_what_it_has() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run(network="default", restart="always", unit={"RestartSec": "10min"})
        host.vmm().exit(0)
        await host.until_true(lambda: host.unit() == "activating/auto-restart")
        view = await host.manager.get_vm("web")
        assert view.state.is_vmm_active
        assert (view.invocation_id, host.vm().session) == (None, None)
        assert (host.config.runtime_dir / "vms/web").exists()
        assert (await host.manager.stop_vm("web")).state is State.STOPPED
        assert host.traces() == []

    drive(scenario)


def test_one_that_fails_too_often_is_stopped_with_its_own_reason() -> None:
    async def scenario(host: FakeHost) -> None:
        host.guest().ends = 9
        limits = {"StartLimitBurst": 2, "StartLimitIntervalSec": "10min", "RestartSec": "1ms"}
        await host.create(restart="always", network="default", unit=limits)
        await host.manager.start_vm("web")
        await host.until_true(lambda: host.vmms.runs["web"] == 2 and host.unit() == "failed/failed")
        await host.until(State.STOPPED)
        await host.vm().runs.settle()
        view = await host.manager.get_vm("web")
        assert view.exit is not None
        assert view.exit.code == 9
        assert host.traces() == [host.vm().unit]

    drive(scenario)


def test_a_killed_vmm_that_is_to_run_always_comes_back() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run(restart="always")
        first = host.vmm().run_id
        await host.manager.kill_vm("web", signal.SIGKILL)
        await host.until_true(lambda: "web" in host.vmms.live and host.vmm().run_id != first)
        await host.until(State.RUNNING)
        assert host.vmms.runs == {"web": 2}

    drive(scenario)


def test_one_that_was_taken_over_is_ended_for_good() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run(restart="always", network="default")
        await host.manager.end_tampered("web", "it has another's address")
        await host.until(State.STOPPED)
        await host.vm().runs.settle()
        assert host.vmms.runs == {"web": 1}
        assert host.traces() in ([], [host.vm().unit])

    drive(scenario)


# --- delete ---


def test_a_vm_is_deleted_while_it_runs_and_nothing_is_left() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run(network="default")
        await host.manager.delete_vm("web")
        with pytest.raises(NotFound):
            await host.manager.get_vm("web")
        assert host.traces() == []
        assert list((host.config.state_dir / "vms").iterdir()) == []
        await host.run(network="default")

    drive(scenario)


def test_a_failed_vm_is_deleted_with_its_unit() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        host.vmm().exit(1)
        await host.until(State.STOPPED)
        await host.manager.delete_vm("web")
        await host.until_true(lambda: host.traces() == [])

    drive(scenario)


def test_a_vm_of_a_file_is_not_deleted_while_its_file_is_there() -> None:
    async def scenario(host: FakeHost) -> None:
        host.write()
        await host.reload()
        with pytest.raises(WrongState, match=r"defined in .*/web\.yaml"):
            await host.manager.delete_vm("web")
        (host.config.vm_dir / "web.yaml").unlink()
        await host.reload()
        await host.manager.delete_vm("web")
        assert host.parts.fleet.find("web") is None

    drive(scenario)


# --- a systemd that is late, and a bus that is lost ---


@pytest.mark.parametrize("order", ["as sent", "reversed", "lost"])
def test_signals_in_any_order_lead_to_the_state_that_is(order: str) -> None:
    def of_vm(held: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
        return [signal for signal in held if signal[0] == unit_path(unit_name("web"))]

    async def scenario(host: FakeHost) -> None:
        await host.create()
        with host.systemd.signals_held() as held:
            await host.manager.start_vm("web")
            await host.until_true(lambda: host.unit() == "active/running")
            await host.until_true(lambda: len(of_vm(held)) >= 2)
            if order == "reversed":
                held.reverse()
            elif order == "lost":
                held[:] = of_vm(held)[-1:]
        await host.until(State.RUNNING)
        with host.systemd.signals_held() as held:
            host.vmm().exit(0)
            await host.until_true(lambda: host.unit() is None)
            if order == "reversed":
                held.reverse()
            elif order == "lost":
                held[:] = of_vm(held)[-1:]
        await host.until(State.STOPPED)

    drive(scenario)


def test_an_old_signal_that_it_is_active_makes_nothing_running() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        path, old = next(
            sent for sent in host.systemd.sent if sent[1][f"{SERVICE}.Unit.ActiveState"] == "active"
        )
        await host.manager.stop_vm("web")
        host.guest().boots = False
        await host.manager.start_vm("web")
        await host.until_true(lambda: host.unit() == "activating/start")
        host.systemd.deliver(path, old)
        assert host.vm().state is not State.RUNNING
        assert (await host.manager.get_vm("web")).state is not State.RUNNING

    drive(scenario)


def test_while_the_bus_is_lost_a_vm_is_unknown_and_afterwards_what_it_is() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run(network="default")
        await host.run("db")
        host.systemd.lose_bus()
        view = await host.manager.get_vm("web")
        assert view.state is State.UNKNOWN
        with pytest.raises(HostNotReady, match="lost"):
            await host.manager.restart_vm("db")
        host.vmm().exit(0)
        await host.until_true(lambda: host.unit() is None)
        assert host.traces() != []
        host.systemd.find_bus()
        await host.until(State.STOPPED)
        await host.vm().runs.settle()
        assert host.traces() == []
        await host.until(State.RUNNING, "db")

    drive(scenario)


def test_systemd_that_executes_itself_anew_loses_no_start() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.create()
        task = asyncio.create_task(host.systemd.reexecute())
        await asyncio.sleep(0)
        await host.manager.start_vm("web")
        await task
        await host.until(State.RUNNING)

    drive(scenario)


# --- the handle ---


def test_the_handle_starts_its_vm_and_ends_with_it() -> None:
    async def scenario(host: FakeHost) -> None:
        handle = "hypeman@web.service"
        await host.create()
        await host.start_handle("web")
        await host.until(State.RUNNING)
        await host.until_true(lambda: host.systemd.units[handle].active == "active")
        assert (await host.manager.stop_vm("web")).state is State.STOPPED
        assert handle not in host.systemd.units or host.systemd.units[handle].is_gone
        await host.start_handle("web")
        await host.until(State.RUNNING)
        await host.until_true(lambda: host.systemd.units[handle].active == "active")
        host.vmm().exit(0)
        await host.until(State.STOPPED)
        await host.until_true(lambda: handle not in host.systemd.units)

    drive(scenario)


def test_a_stop_of_the_handle_stops_its_vm() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.create()
        await host.start_handle("web")
        await host.until(State.RUNNING)
        await host.until_true(lambda: host.systemd.units["hypeman@web.service"].active == "active")
        await host.order("StopUnit", "hypeman@web.service")
        await host.until(State.STOPPED)
        await host.until_true(lambda: "hypeman@web.service" not in host.systemd.units)
        await host.vm().runs.settle()
        assert host.traces() == []

    drive(scenario)


def test_a_restart_keeps_the_handle() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.create()
        await host.start_handle("web")
        await host.until(State.RUNNING)
        await host.until_true(lambda: host.systemd.units["hypeman@web.service"].active == "active")
        held = host.systemd.units["hypeman@web.service"].invocation
        await host.manager.restart_vm("web")
        await host.until(State.RUNNING)
        assert host.systemd.units["hypeman@web.service"].invocation == held

    drive(scenario)


def test_a_program_that_ends_while_its_handle_starts_leaves_no_handle_that_is_active() -> None:
    async def scenario(host: FakeHost) -> None:
        handle = "hypeman@web.service"
        await host.create()
        host.handles_end.clear()
        await host.start_handle("web")
        await host.until(State.RUNNING)
        host.vmm().exit(0)
        await host.until(State.STOPPED)
        await host.vm().runs.settle()
        assert host.systemd.units[handle].active == "activating"
        host.handles_end.set()
        await host.until_true(lambda: handle not in host.systemd.units)

    drive(scenario)
