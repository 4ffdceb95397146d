# SPDX-License-Identifier: Apache-2.0
"""A daemon that comes after another one: what it finds of VMs that run, have ended, or are gone."""

from __future__ import annotations

import asyncio
import errno
import shutil

import pytest

from hypemand.model.state import State
from hypemand.systemd.bus import BusError
from tests.fakes.host import FakeHost, drive


def test_a_vm_that_runs_is_running_with_all_that_it_has() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run(network="default")
        before = await host.manager.get_vm("web")
        await host.restart_daemon()
        after = await host.manager.get_vm("web")
        assert (after.state, after.invocation_id) == (State.RUNNING, before.invocation_id)
        assert after.ready_ms == before.ready_ms
        await host.network.wait_until(lambda: "apply" in host.network.asked[2:])
        assert [port.vm for port in host.network.taps.values()] == ["web"]
        stopped = await host.manager.stop_vm("web")
        assert stopped.exit is not None
        assert stopped.exit.message == "stopped on request"
        assert host.traces() == []

    drive(scenario)


def test_a_look_that_is_under_way_when_the_daemon_ends_connects_to_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        await host.await_handle()
        vm = host.vm()
        host.systemd.asked.clear()
        host.systemd.answers.clear()
        look = asyncio.create_task(vm.refresh())
        await host.until_true(lambda: "Get" in host.systemd.asked)
        flush = vm.runs.files.flush_notes

        async def answer() -> None:
            # by then its connections are closed
            host.systemd.answers.set()
            await look
            await flush()

        monkeypatch.setattr(vm.runs.files, "flush_notes", answer)
        await host.daemon.end()
        assert vm.session is None

    drive(scenario)


def test_a_boot_is_brought_to_its_end() -> None:
    async def scenario(host: FakeHost) -> None:
        host.guest().boots = False
        await host.create()
        await host.manager.start_vm("web")
        await host.until_true(lambda: "web" in host.vmms.live)
        await host.restart_daemon()
        assert host.vm().state is State.INITIALIZING
        host.vmm().come_up()
        await host.until(State.RUNNING)
        assert host.unit() == "active/running"

    drive(scenario)


@pytest.mark.parametrize("moment", ["the VMM is there", "the guest runs"])
def test_a_restore_is_brought_to_its_end(moment: str) -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        before = host.vm().view()
        await host.manager.standby_vm("web")
        saved = host.vm().places.standby
        host.guest().thaw_refusal = "not yet"
        await host.manager.restore_vm("web")
        await host.until_true(lambda: "web" in host.vmms.live)
        if moment == "the guest runs":
            await host.until_true(lambda: host.vmm().monitor.status == "running")
            assert not saved.exists(), "it has another name"
        await host.restart_daemon()
        await host.daemon.recovery.clean_up()
        assert host.vm().state is State.INITIALIZING
        host.vmm().freezer.refusal = ""
        await host.until(State.RUNNING)
        after = host.vm().view()
        assert (after.boot_id, after.started_at) == (before.boot_id, before.started_at)
        await host.until_true(lambda: list(saved.parent.glob("standby*")) == [])

    drive(scenario)


@pytest.mark.parametrize("when", ["before", "between"])
@pytest.mark.parametrize("witness", ["journal", "sockets"])
def test_a_check_that_succeeds_while_the_daemon_is_new_is_found(when: str, witness: str) -> None:
    """Before the daemon went, when it had not noted that yet; or while there was none."""

    async def scenario(host: FakeHost) -> None:
        host.journal.broken = witness == "sockets"
        if witness == "journal":
            host.guest().sockets = ("qmp",)
        await host.create(ready="tcp:5432")
        await host.manager.start_vm("web")
        await host.until_true(lambda: "waiting for tcp 5432" in host.vm().view().status_text)

        async def succeed() -> None:
            host.vmm().become_ready()

        if when == "before":
            await host.restart_daemon()
            assert host.vm().state is State.INITIALIZING
            await succeed()
        else:
            await host.restart_daemon(succeed)
        await host.until(State.RUNNING)
        assert host.unit() == "active/running"

    drive(scenario)


def test_a_boot_that_was_through_while_nobody_looked_is_running() -> None:
    async def scenario(host: FakeHost) -> None:
        host.guest().boots = False
        await host.create()
        await host.manager.start_vm("web")
        await host.until_true(lambda: "web" in host.vmms.live)

        async def come_up() -> None:
            host.vmm().come_up()
            await asyncio.sleep(0.01)
            assert host.unit() == "activating/start", "nobody is there who could say that it is ready"

        await host.restart_daemon(come_up)
        await host.until(State.RUNNING)

    drive(scenario)


@pytest.mark.parametrize(("code", "unit"), [(3, "failed/failed"), (0, None)])
def test_one_that_has_ended_has_its_result_and_nothing_else(code: int, unit: str | None) -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run(network="default")

        async def end() -> None:
            host.vmm().exit(code)
            await host.until_true(lambda: host.unit() == unit)

        await host.restart_daemon(end)
        view = await host.manager.get_vm("web")
        assert view.state is State.STOPPED
        assert view.exit is not None
        assert (view.exit.code, view.exit.success) == (code, code == 0)
        await host.until_true(lambda: host.traces() == ([] if unit is None else [host.vm().unit]))
        await host.manager.start_vm("web")
        await host.until(State.RUNNING)

    drive(scenario)


def test_one_that_systemd_has_started_again_is_followed() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run(network="default", restart="on-failure")
        first = host.vmm().run_id

        async def fail() -> None:
            host.vmm().exit(1)
            await host.until_true(lambda: host.vmms.runs["web"] == 2 and "web" in host.vmms.live)

        await host.restart_daemon(fail)
        await host.until(State.RUNNING)
        view = await host.manager.get_vm("web")
        assert view.invocation_id == host.vmm().run_id != first
        assert host.unit() == "active/running"

    drive(scenario)


def test_one_between_two_runs_holds_what_it_has() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run(network="default", restart="always", unit={"RestartSec": "10min"})

        async def fail() -> None:
            host.vmm().exit(1)
            await host.until_true(lambda: host.unit() == "activating/auto-restart")

        await host.restart_daemon(fail)
        assert host.vm().state.is_vmm_active
        assert (host.config.runtime_dir / "vms/web").exists()
        await host.manager.stop_vm("web")
        assert host.traces() in ([], [host.vm().unit])

    drive(scenario)


def test_a_daemon_that_dies_in_a_stop_leaves_it_to_the_next() -> None:
    async def scenario(host: FakeHost) -> None:
        host.guest().heeds = False
        await host.run(network="default")
        stop = asyncio.ensure_future(host.manager.stop_vm("web"))
        await host.until_true(lambda: host.unit() == "deactivating/stop")
        stop.cancel()
        await asyncio.gather(stop, return_exceptions=True)
        await host.restart_daemon()
        assert host.vm().state.is_vmm_active
        host.vmm().exit(0, "stopped on request")
        await host.until(State.STOPPED)
        await host.until_true(lambda: host.traces() == [])

    drive(scenario)


def test_a_vm_whose_record_is_gone_is_ended_and_nothing_is_left() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        await host.run("db")

        async def lose() -> None:
            await asyncio.to_thread(shutil.rmtree, host.config.state_dir / "vms/web")

        await host.restart_daemon(lose)
        assert host.parts.fleet.find("web") is None
        await host.daemon.recovery.clean_up()
        await host.until_true(lambda: host.unit() in (None, "failed/failed"))
        assert host.unit("db") == "active/running"
        assert (await host.manager.get_vm("db")).state is State.RUNNING

    drive(scenario)


def test_folders_of_vms_that_nobody_knows_are_removed_and_no_others() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        stray = host.config.runtime_dir / "vms/stray"

        async def make() -> None:
            stray.mkdir()

        await host.restart_daemon(make)
        await host.daemon.recovery.clean_up()
        assert not stray.exists()
        assert (host.config.runtime_dir / "vms/web").exists()
        assert host.vm().state is State.RUNNING

    drive(scenario)


def test_a_record_that_cannot_be_read_is_no_reason_to_end_its_vm() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()

        async def spoil() -> None:
            await asyncio.to_thread((host.config.state_dir / "vms/web/vm.json").write_text, "{")

        await host.restart_daemon(spoil)
        await host.daemon.recovery.clean_up()
        assert host.unit() == "active/running"
        assert (host.config.runtime_dir / "vms/web").exists()

    drive(scenario)


def test_what_it_runs_with_is_known_from_before() -> None:
    async def scenario(host: FakeHost) -> None:
        host.write(memory="96M")
        await host.reload()
        await host.manager.start_vm("web")
        await host.until(State.RUNNING)

        async def change() -> None:
            host.write(memory="128M")

        await host.restart_daemon(change)
        await host.reload()
        assert host.vm().needs_restart
        assert [held.memory for _, held in host.parts.fleet.list_held()] == [96 * 1024 * 1024]
        await host.manager.restart_vm("web")
        await host.until(State.RUNNING)
        assert not host.vm().needs_restart

    drive(scenario)


def test_without_a_bus_all_is_unknown_and_held_until_it_is_back() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run(network="default")
        await host.create("db", network="default")
        await host.run("job", network="default")

        async def lose() -> None:
            host.systemd.lose_bus()
            host.vmm("job").exit(3)
            await host.until_true(lambda: host.unit("job") == "failed/failed")

        await host.restart_daemon(lose)
        for name in ("web", "db", "job"):
            assert host.vm(name).state is State.UNKNOWN
            assert host.vm(name).held
        assert (host.config.runtime_dir / "vms/web").exists()
        host.systemd.find_bus()
        await host.until(State.RUNNING)
        await host.until(State.STOPPED, "db")
        await host.until(State.STOPPED, "job")
        await host.vm("job").runs.settle()
        assert host.traces("job") == [host.vm("job").unit]
        ended = (await host.manager.get_vm("job")).exit
        assert ended is not None
        assert ended.code == 3

    drive(scenario)


def test_a_question_that_fails_once_makes_only_its_vm_unknown() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        await host.run("db")

        async def fail() -> None:
            host.systemd.refuse["Get"] = BusError("no answer to Get in 30 s", errno.ETIMEDOUT)

        await host.restart_daemon(fail)
        states = [host.vm(name).state for name in ("db", "web")]
        assert sorted(states) == [State.RUNNING, State.UNKNOWN]
        await host.daemon.recovery.clean_up()
        await host.until(State.RUNNING)
        await host.until(State.RUNNING, "db")

    drive(scenario)


def test_a_deletion_that_was_cut_off_is_finished() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run(network="default")
        host.systemd.lose["StopUnit"] = BusError("the connection broke", errno.ECONNRESET)
        deletion = asyncio.ensure_future(host.manager.delete_vm("web"))
        await asyncio.gather(deletion, return_exceptions=True)
        await host.restart_daemon()
        await host.manager.delete_vm("web")
        assert host.traces() == []
        assert list((host.config.state_dir / "vms").iterdir()) == []

    drive(scenario)
