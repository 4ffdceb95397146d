# SPDX-License-Identifier: Apache-2.0
"""VMs that are put into Standby, and go on from it."""

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hypemand.errors import GuestError, HypemandError, WrongState
from hypemand.manager.images.images import Images
from hypemand.model.exits import ExitKind
from hypemand.model.state import FromStandby, Operation, State, check_allowed
from tests.fakes.host import FakeHost, drive


def folder(host: FakeHost, name: str = "web") -> Path:
    """What lasts of it."""
    return host.config.state_dir / "vms" / name


def saves(host: FakeHost, name: str = "web") -> set[str]:
    """The folders of its saves."""
    return {path.name for path in folder(host, name).glob("standby*")}


async def put_away(host: FakeHost, restart: str = "no") -> None:
    """A VM in Standby."""
    await host.run(restart=restart)
    await host.manager.standby_vm("web")
    assert host.vm().state is State.STANDBY


def test_a_vm_is_saved_and_goes_on_where_it_was() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run(restart="always")
        before, first = host.vm().view(), host.vmm()
        first.monitor.memory = b"what it has in memory"
        assert (await host.manager.standby_vm("web")).state is State.STANDBY
        assert host.traces() == [], "address, memory and volumes are free"
        assert first.freezer.frozen
        assert saves(host) == {"standby"}
        memory = (folder(host) / "standby/memory").read_bytes()
        assert memory.startswith(b"what it has in memory")
        stopped = host.vm().view()
        assert stopped.exit is not None
        assert (stopped.exit.message, stopped.exit.success) == ("put into standby", True)
        assert not host.is_active("hypeman@web.service")
        await host.manager.restore_vm("web")
        await host.until(State.RUNNING)
        after = host.vm().view()
        assert (after.boot_id, after.started_at) == (before.boot_id, before.started_at)
        assert after.invocation_id != before.invocation_id
        assert host.vmm().is_restored
        assert any(word.startswith("--preload=") for word in host.vmm().process.argv)
        (thaw,) = host.vmm().freezer.thaws
        assert set(thaw) == {"clock", "entropy"}
        await host.until_true(lambda: saves(host) == set())
        await host.until_true(lambda: host.is_active("hypeman@web.service"))

    drive(scenario)


def test_the_memory_that_a_vm_has_gone_on_with_is_given_back_when_that_has_ended_and_not_by_its_vmm() -> None:
    """A file system takes 100 ms and more for such a file, and whoever closes it last waits."""

    def held(host: FakeHost) -> list[str]:
        links = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if is_open(int(fd))]
        return [link for link in links if link.startswith(str(folder(host))) and "/memory" in link]

    def is_open(fd: int) -> bool:
        return os.path.lexists(f"/proc/self/fd/{fd}")

    async def scenario(host: FakeHost) -> None:
        await put_away(host, restart="on-failure")
        for order in (host.manager.standby_vm, host.manager.stop_vm):
            await host.manager.restore_vm("web")
            await host.until(State.RUNNING)
            await host.until_true(lambda: saves(host) == set())
            await host.until_true(lambda: len(held(host)) == 1)
            await order("web")
            await host.until_true(lambda: held(host) == [])
        # a run that systemd starts alone boots
        await host.manager.start_vm("web")
        await host.until(State.RUNNING)
        await host.manager.standby_vm("web")
        await host.manager.restore_vm("web")
        await host.until(State.RUNNING)
        await host.until_true(lambda: len(held(host)) == 1)
        before = host.vm().run
        host.vmm().exit(1)
        await host.until_true(lambda: host.vm().run != before)
        await host.until(State.RUNNING)
        await host.until_true(lambda: held(host) == [])

    drive(scenario)


def test_what_cannot_be_saved_is_refused_before_its_guest_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    async def find_nothing(*_: object) -> None:
        return None

    async def scenario(host: FakeHost) -> None:
        await host.run()
        monkeypatch.setattr(Images, "find_for", find_nothing)
        with pytest.raises(GuestError, match="it is not known what VM web runs with"):
            await host.manager.standby_vm("web")
        assert not host.vmm().freezer.frozen
        assert host.vmm().freezer.thaws == []
        assert host.vm().state is State.RUNNING
        session = host.vm().session
        assert session is not None
        assert session.has_agent, "nobody was sent away"

    drive(scenario)


def test_the_end_of_what_is_saved_is_written_down_before_its_unit_would_find_it_out() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run(restart="always")
        run = host.vm().view().invocation_id
        await host.manager.standby_vm("web")
        assert host.vmms.found_out["web"] == 0
        (record,) = host.vm().runs.ended
        assert (record.run, record.kind, record.success) == (run, ExitKind.STANDBY, True)
        assert record.started_at is not None
        assert record.ready_ms is not None
        await host.manager.restore_vm("web")
        await host.until(State.RUNNING)
        # where it cannot be written, the unit finds another place
        (folder(host) / "exit.json").unlink()
        (folder(host) / "exit.json").mkdir()
        await host.manager.standby_vm("web")
        assert host.vmms.found_out["web"] == 1
        assert host.vm().state is State.STANDBY
        record = host.vm().runs.ended[0]
        assert (record.kind, record.success) == (ExitKind.STANDBY, True)

    drive(scenario)


def test_what_is_saved_is_on_the_disk_before_it_counts_and_so_is_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All but the two files that launcher/intake syncs."""
    steps: list[tuple[str, str]] = []
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def note_sync(fd: int) -> None:
        steps.append(("sync", Path(os.readlink(f"/proc/self/fd/{fd}")).name))
        fsync(fd)

    def note_rename(source: Path, target: Path) -> None:
        steps.append(("rename", Path(target).name))
        rename(source, target)

    def note_replace(source: Path, target: Path) -> None:
        steps.append(("rename", Path(target).name))
        replace(source, target)

    async def scenario(host: FakeHost) -> None:
        await host.run()
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", note_sync)
            patched.setattr(os, "rename", note_rename)
            patched.setattr(os, "replace", note_replace)
            await host.manager.standby_vm("web")
        commit = steps.index(("rename", "standby"))
        record = steps.index(("rename", "snapshot.json"))
        assert any(what == "sync" and name.startswith(".snapshot.json") for what, name in steps[:record])
        assert ("sync", "standby.new") in steps[record:commit]
        ended = next(at for at, (_, name) in enumerate(steps) if name.startswith(".exit.json"))
        assert ("sync", "web") in steps[commit:ended]
        assert host.vm().state is State.STANDBY

    drive(scenario)


def test_a_daemon_that_comes_later_knows_it() -> None:
    async def scenario(host: FakeHost) -> None:
        await put_away(host)
        await host.restart_daemon()
        assert host.vm().state is State.STANDBY
        await host.manager.restore_vm("web")
        await host.until(State.RUNNING)
        await host.restart_daemon()
        assert host.vm().state is State.RUNNING
        await host.stop_for_good()
        assert host.vm().state is State.STOPPED

    drive(scenario)


def test_a_start_is_refused_restores_or_boots_as_it_says() -> None:
    async def scenario(host: FakeHost) -> None:
        await put_away(host)
        boot = json.loads((folder(host) / "standby/snapshot.json").read_text())["boot"]
        with pytest.raises(WrongState, match="Standby"):
            await host.manager.start_vm("web")
        await host.manager.start_vm("web", standby=FromStandby.RESTORE)
        await host.until(State.RUNNING)
        assert host.vm().boot == boot
        steps = {span.name for span in (await host.manager.timeline("web")).spans}
        assert "restore" in steps
        assert not steps & {"kernel", "root", "program"}, "nothing of the boot is in it"
        await host.manager.standby_vm("web")
        await host.manager.start_vm("web", standby=FromStandby.COLD)
        await host.until(State.RUNNING)
        assert host.vm().boot != boot
        assert "restore" not in {span.name for span in (await host.manager.timeline("web")).spans}
        assert saves(host) == set()

    drive(scenario)


def test_what_is_so_already_is_no_error() -> None:
    async def scenario(host: FakeHost) -> None:
        await put_away(host)
        await host.manager.standby_vm("web")
        assert host.vm().state is State.STANDBY
        await host.manager.restore_vm("web")
        await host.until(State.RUNNING)
        await host.manager.restore_vm("web")
        assert host.vm().state is State.RUNNING

    drive(scenario)


@pytest.mark.parametrize("state", [State.STOPPED, State.INITIALIZING])
def test_only_what_runs_is_put_away(state: State) -> None:
    async def scenario(host: FakeHost) -> None:
        await host.put("web", state)
        with pytest.raises(WrongState, match="standby needs state Running or Paused or Standby"):
            await host.manager.standby_vm("web")

    drive(scenario)


def test_a_paused_vm_is_saved_as_it_is_and_runs_when_it_is_restored() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.put("web", State.PAUSED)
        await host.manager.standby_vm("web")
        await host.manager.restore_vm("web")
        await host.until(State.RUNNING)

    drive(scenario)


def _fail_save(host: FakeHost) -> None:
    host.vmm().monitor.failure = "no room"


def _refuse_freeze(host: FakeHost) -> None:
    host.vmm().freezer.refusal = "a process does not stand still"


def _fill_folder(host: FakeHost) -> None:
    (folder(host) / "standby.new").write_text("in the way")


@pytest.mark.parametrize("spoil", [_fail_save, _refuse_freeze, _fill_folder])
def test_a_vm_that_cannot_be_saved_runs_on(spoil: Callable[[FakeHost], None]) -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        run = host.vm().run
        spoil(host)
        with pytest.raises((HypemandError, OSError)):
            await host.manager.standby_vm("web")
        host.vmm().freezer.refusal = ""
        assert (host.vm().run, host.vmm().monitor.status) == (run, "running")
        assert saves(host) - {"standby.new"} == set()
        await host.until_true(lambda: not host.vmm().freezer.frozen)
        await host.until(State.RUNNING)

    drive(scenario)


def test_a_vmm_that_dies_while_it_is_saved_is_an_end() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        host.vmm().monitor.failure = "no room"
        task = asyncio.create_task(host.manager.standby_vm("web"))
        await host.until_true(lambda: "migrate" in host.vmm().monitor.orders)
        host.vmm().process.kill(9)
        with pytest.raises(HypemandError):
            await task
        await host.until_ended()
        assert saves(host) == set()

    drive(scenario)


def test_a_vmm_that_cannot_load_leaves_what_was_saved() -> None:
    async def scenario(host: FakeHost) -> None:
        await put_away(host)
        host.guest().loads = False
        await host.manager.restore_vm("web")
        await host.until(State.STANDBY)
        await host.vm().runs.settle()
        assert saves(host) == {"standby"}
        host.guest().loads = True
        await host.manager.restore_vm("web")
        await host.until(State.RUNNING)

    drive(scenario)


def test_a_guest_that_does_not_go_on_sees_the_end_of_a_connection_before_the_next_one() -> None:
    """One that has lost where a frame begins hears nothing until then, and nothing tells what it has seen."""

    async def scenario(host: FakeHost) -> None:
        await put_away(host)
        host.guest().thaw_refusal = "not today"
        await host.manager.restore_vm("web")
        await host.until_true(lambda: "web" in host.vmms.live and len(host.vmm().talks) >= 5)
        talks = host.vmm().talks[:5]
        assert [what for what, _at in talks] == ["begins", "ends", "begins", "ends", "begins"]
        for (_ends, ended), (_begins, begun) in zip(talks[1::2], talks[2::2], strict=True):
            assert begun - ended > 0.2

    drive(scenario)


@pytest.mark.parametrize(("has_written", "state"), [(False, State.STANDBY), (True, State.STOPPED)])
def test_a_guest_that_ends_before_it_is_running_goes_on_if_its_disk_is_as_it_was(
    has_written: bool, state: State
) -> None:
    """It runs from the moment on in which the folder has its other name."""

    async def scenario(host: FakeHost) -> None:
        await put_away(host)
        host.guest().thaw_refusal = "not today"
        await host.manager.restore_vm("web")
        await host.until_true(lambda: saves(host) == {"standby.old"})
        await host.until_true(lambda: host.vmm().monitor.status == "running")
        if has_written:
            with (folder(host) / "disk.ext4").open("r+b") as disk:
                disk.write(b"something")
        host.vmm().process.kill(9)
        await host.until(state)
        await host.vm().runs.settle()
        assert saves(host) == ({"standby"} if state is State.STANDBY else set())

    drive(scenario)


def _change_disk(host: FakeHost) -> None:
    with (folder(host) / "disk.ext4").open("r+b") as disk:
        disk.write(b"something")


def _cut_memory(host: FakeHost) -> None:
    with (folder(host) / "standby/memory").open("r+b") as memory:
        memory.truncate(4096)


def _flip_bit(host: FakeHost) -> None:
    with (folder(host) / "standby/state").open("r+b") as state:
        state.seek(10)
        byte = state.read(1)
        state.seek(10)
        state.write(bytes([byte[0] ^ 1]))


def _remove_state(host: FakeHost) -> None:
    (folder(host) / "standby/state").unlink()


def _change_record(key: str, value: object) -> Callable[[FakeHost], None]:
    def spoil(host: FakeHost) -> None:
        path = folder(host) / "standby/snapshot.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))

    return spoil


_OTHER_BUILD = {"version": "9.9", "machine": "pc", "accel": "tcg", "cpu": "max", "cpu_digest": ""}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_change_disk, "disk.ext4 was changed or removed since it was saved"),
        (_cut_memory, "a file in .*/standby is damaged, or was changed"),
        (_flip_bit, "a file in .*/standby is damaged, or was changed"),
        (_remove_state, "standby/state cannot be read: No such file or directory"),
        (_change_record("version", 99), "standby cannot be read: version is not 1"),
        (_change_record("build", _OTHER_BUILD), "saved with QEMU 9.9, this host has "),
        (_change_record("vm_id", "0" * 32), "it was saved of another VM"),
        (_change_record("image", "sha256:" + "0" * 64), "its image builtin:app is gone"),
    ],
)
def test_what_cannot_be_restored_is_refused_and_left(spoil: Callable[[FakeHost], None], words: str) -> None:
    """A cold start is the way out, and says so."""

    async def scenario(host: FakeHost) -> None:
        await put_away(host)
        spoil(host)
        await host.restart_daemon()
        assert host.vm().state is State.STANDBY
        with pytest.raises(WrongState, match=words) as refused:
            await host.manager.restore_vm("web")
        assert "hypemanctl start --cold web" in str(refused.value)
        assert host.vm().state is State.STANDBY
        assert host.traces() == []
        assert saves(host) == {"standby"}
        await host.manager.start_vm("web", standby=FromStandby.COLD)
        await host.until(State.RUNNING)
        assert saves(host) == set()

    drive(scenario)


def test_a_start_of_systemds_own_after_it_has_run_on_is_a_boot() -> None:
    async def scenario(host: FakeHost) -> None:
        await put_away(host, restart="always")
        await host.manager.restore_vm("web")
        await host.until(State.RUNNING)
        boot = host.vm().boot
        await host.until_true(lambda: saves(host) == set())
        host.vmm().process.kill(9)
        await host.until_true(lambda: host.vmms.runs["web"] == 3)
        await host.until(State.RUNNING)
        assert host.vm().boot != boot
        assert not host.vmm().is_restored

    drive(scenario)


def test_a_guest_that_is_frozen_is_asked_nothing() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        refused = pytest.raises(WrongState, match="stat is not possible while web is saved")
        with host.vm().standby.saving(), refused:
            await host.parts.guests.stat_path("web", "/")

    drive(scenario)


async def begin_freeze(host: FakeHost) -> asyncio.Task[object]:
    """A standby that is prepared, and waits for the guest."""
    monitor = host.vmm().monitor
    monitor.orders.clear()
    host.vmm().freezer.until = asyncio.Event()
    task: asyncio.Task[object] = asyncio.create_task(host.manager.standby_vm("web"))
    await host.until_true(lambda: "getfd" in monitor.orders and saves(host) == {"standby.new"})
    assert {"stop", "migrate"}.isdisjoint(monitor.orders)
    return task


def end_freeze(host: FakeHost) -> None:
    """The guest has answered."""
    until = host.vmm().freezer.until
    assert until is not None
    until.set()


def test_a_save_is_prepared_while_the_guest_is_frozen_and_begins_then() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        monitor = host.vmm().monitor
        host.vmm().freezer.refusal = "it is stuck"
        task = await begin_freeze(host)
        end_freeze(host)
        with pytest.raises(GuestError, match="the guest cannot be frozen: it is stuck"):
            await task
        assert {"stop", "migrate"}.isdisjoint(monitor.orders)
        assert (host.vm().state, saves(host)) == (State.RUNNING, set())
        host.vmm().freezer.refusal = ""
        task = await begin_freeze(host)
        end_freeze(host)
        await task
        assert monitor.orders.index("stop") < monitor.orders.index("migrate")
        assert (host.vm().state, saves(host)) == (State.STANDBY, {"standby"})

    drive(scenario)


async def stop_save(host: FakeHost, task: asyncio.Task[object]) -> None:
    """Stop the unit of a VM that is being saved: nothing is saved of it. Its VMM is there for as long as it
    takes to hear of the stop."""
    vmm, host.guest().heeds = host.vmm(), False
    await host.order("StopUnit", "hypeman-vm-web.service")
    with pytest.raises(WrongState, match="VM web was stopped while it was being put into standby"):
        await task
    vmm.power_off()
    await host.until_ended()
    assert saves(host) == set()


def test_a_stop_that_comes_while_the_guest_is_frozen_ends_a_save() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        task = await begin_freeze(host)
        await stop_save(host, task)

    drive(scenario)


def test_a_stop_ends_a_save() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        host.vmm().monitor.holds_save = True
        task = asyncio.create_task(host.manager.standby_vm("web"))
        await host.until_true(lambda: "migrate" in host.vmm().monitor.orders)
        await host.until(State.PAUSED)
        assert host.vm().view().status_text == "Paused: while its memory is being saved"
        ongoing = host.vm().operations.describe()
        with pytest.raises(WrongState, match=r"web is Paused \(entering standby since \d+ s, by ") as refused:
            check_allowed(Operation.EXEC, host.vm().state, "web", ongoing=ongoing)
        assert "wait until that is over" in str(refused.value)
        await stop_save(host, task)

    drive(scenario)


def test_a_vm_whose_save_was_cut_off_runs_on_with_the_next_daemon() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        vmm = host.vmm()
        vmm.monitor.holds_save = True
        task = asyncio.create_task(host.manager.standby_vm("web"))
        await host.until_true(lambda: "migrate" in vmm.monitor.orders)

        async def lose() -> None:
            # as by kill -9: nothing is undone
            await asyncio.wait([task])
            new = folder(host) / "standby.new"
            new.mkdir(exist_ok=True)
            (new / "was-running").touch()
            vmm.monitor.status = "paused"
            vmm.freezer.frozen = True

        await host.restart_daemon(lose)
        assert isinstance(task.exception(), BaseException) or task.cancelled()
        await host.daemon.recovery.clean_up()
        await host.until(State.RUNNING)
        await host.until_true(lambda: not vmm.freezer.frozen)
        assert (vmm.monitor.status, saves(host)) == ("running", set())

    drive(scenario)


def test_a_vm_that_was_saved_is_ended_by_the_next_daemon() -> None:
    async def scenario(host: FakeHost) -> None:
        await put_away(host)
        record = json.loads((folder(host) / "standby/snapshot.json").read_text())
        await host.manager.restore_vm("web")
        await host.until(State.RUNNING)
        await host.until_true(lambda: saves(host) == set())
        vmm, run = host.vmm(), host.vm().run

        async def save_only() -> None:
            """What is there when a daemon ends between the commit and the end of the VMM."""
            source = folder(host) / "standby"
            source.mkdir()
            vmm.monitor.status = "paused"
            (source / "snapshot.json").write_text(json.dumps({**record, "run": run}))

        await host.restart_daemon(save_only)
        await host.daemon.recovery.clean_up()
        await host.until(State.STANDBY)
        assert not vmm.heard_stop, "its guest is asked nothing"

    drive(scenario)


def test_a_shutdown_of_the_host_has_a_vm_that_wants_it_saved() -> None:
    """Its unit is being stopped by then, and waits for that (hypemand/unit/stop.py)."""

    async def scenario(host: FakeHost) -> None:
        await host.run(on_host_shutdown="standby")
        host.guest().heeds = False
        answered = asyncio.Event()
        host.guest().ends_stop = answered
        await host.order("StopUnit", "hypeman-vm-web.service")
        await host.until(State.SHUTDOWN)
        await host.manager.standby_vm("web")
        assert host.vm().state is State.SHUTDOWN, "ExecStop= has its answer before it ends"
        answered.set()
        await host.until(State.STANDBY)
        assert saves(host) == {"standby"}

    drive(scenario)


def test_a_vm_that_is_stopped_is_not_saved_unless_it_wants_that() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        host.guest().heeds = False
        await host.order("StopUnit", "hypeman-vm-web.service")
        await host.until(State.SHUTDOWN)
        with pytest.raises(WrongState, match="web is Shutdown"):
            await host.manager.standby_vm("web")

    drive(scenario)


def test_a_vm_is_restored_whatever_was_noted_of_its_boot() -> None:
    """A daemon that is killed may not have written what it saw; its VM was Running all the same."""

    async def scenario(host: FakeHost) -> None:
        await host.run()

        await host.manager.standby_vm("web")
        record = folder(host) / "standby/snapshot.json"

        async def lose_notes() -> None:
            written = json.loads(record.read_text())
            assert "program" in written["notes"]["markers"]
            written["notes"]["markers"] = []
            record.write_text(json.dumps(written))

        await host.restart_daemon(lose_notes)
        await host.manager.restore_vm("web")
        await host.until(State.RUNNING)

    drive(scenario)
