# SPDX-License-Identifier: Apache-2.0
"""Restarts that systemd makes by itself, as they are shown, and the history of runs."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from systemd import journal

from hypemand.model.state import RestartBlock, State
from hypemand.model.vm import RunReport
from hypemand.unitnames import unit_name
from hypemand.vm.exitrecord import LOST, MAX_RUNS
from tests.fakes.host import FakeHost, drive

SOON = {"StartLimitBurst": 3, "StartLimitIntervalSec": "10min", "RestartSec": "1ms"}


async def crash(host: FakeHost, runs: int) -> None:
    """Wait until there was this run, and it is Running."""
    await host.until_true(lambda: host.vmms.runs["web"] == runs and "web" in host.vmms.live)
    await host.until_true(lambda: host.vm().run == host.vmm().run_id)
    await host.until(State.RUNNING)


def test_a_crash_loop_is_counted_and_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(journal, "send", lambda text, **fields: sent.append({"text": text} | fields))

    async def scenario(host: FakeHost) -> None:
        await host.run(restart="on-failure", unit=SOON)
        first = await host.manager.get_vm("web")
        assert first.restart is not None
        assert (first.restart.attempts, first.restart.text) == (0, "")
        host.vmm().exit(3)
        await crash(host, 2)
        again = await host.manager.get_vm("web")
        assert again.restart is not None
        assert (again.restart.attempts, again.restart.last_reason) == (1, "exited with code 3")
        assert again.restart.text == "restarted: exited with code 3, 2nd of 3"
        assert again.exit is None
        host.vmm().exit(4)
        await crash(host, 3)
        host.vmm().exit(5)
        await host.until_ended()
        last = await host.manager.get_vm("web")
        assert last.restart is not None
        assert last.restart.blocked_reason is RestartBlock.LIMIT
        assert last.status_text == "Stopped: gave up after 3 starts: exited with code 5"
        await host.restart_daemon()  # systemd has counted the restart that it has refused
        again = await host.manager.get_vm("web")
        assert again.restart is not None
        assert (again.restart.attempts, again.restart.text) == (last.restart.attempts, last.restart.text)
        assert last.restart.attempts == 2
        codes = [entry["HYPEMAN_EXIT_CODE"] for entry in sent if "HYPEMAN_EXIT_CODE" in entry]
        assert codes == ["3", "4", "5"]
        texts = [entry["text"] for entry in sent if "HYPEMAN_EXIT_CODE" in entry]
        assert "restarting: exited with code 3, 2nd of 3" in texts[0]

    drive(scenario)


def test_a_restart_of_a_boot_that_failed_is_logged_though_the_state_is_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(journal, "send", lambda text, **fields: sent.append({"text": text} | fields))

    async def scenario(host: FakeHost) -> None:
        host.guest().boots = False
        await host.create(restart="on-failure", unit=SOON | {"RestartSec": "1s"})
        await host.manager.start_vm("web")
        for run in (1, 2):
            await host.until_true(lambda run=run: host.vmms.runs["web"] == run and "web" in host.vmms.live)  # type: ignore[misc]
            await host.until_true(lambda: host.vm().run == host.vmm().run_id)
            # it says by QMP that it ends, which is a state of its own, if there is the time
            monkeypatch.setattr(host.vmm().monitor, "tell", lambda *_words, **_data: None)
            with host.systemd.signals_held() as held:
                host.vmm().exit(7)
                await host.until_true(lambda run=run: host.vmms.runs["web"] == run + 1)  # type: ignore[misc]
                # the daemon sees no more than that another run is on
                del held[:-1]
        await host.until_true(lambda: sum("HYPEMAN_EXIT_CODE" in entry for entry in sent) == 2)
        pairs = {(e["HYPEMAN_OLD_STATE"], e["HYPEMAN_NEW_STATE"]) for e in sent if "HYPEMAN_EXIT_CODE" in e}
        assert ("Initializing", "Initializing") in pairs
        assert (await host.manager.get_vm("web")).status_text.endswith(
            "(restarting: exited with code 7, 3rd of 3)"
        )

    drive(scenario)


def test_a_daemon_that_starts_in_a_crash_loop_knows_count_and_reason() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run(restart="on-failure", unit=SOON)
        host.vmm().exit(3)
        await crash(host, 2)
        await host.restart_daemon()
        view = await host.manager.get_vm("web")
        assert view.restart is not None
        assert (view.restart.attempts, view.restart.text) == (1, "restarted: exited with code 3, 2nd of 3")

    drive(scenario)


def test_a_start_on_request_begins_to_count_anew() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run(restart="on-failure", unit=SOON)
        host.vmm().exit(3)
        await crash(host, 2)
        await host.manager.restart_vm("web")
        await host.until(State.RUNNING)
        view = await host.manager.get_vm("web")
        assert view.restart is not None
        assert (view.restart.attempts, view.restart.text) == (0, "")
        await host.manager.stop_vm("web")
        view = await host.manager.get_vm("web")
        assert view.restart is not None
        assert (view.restart.blocked_reason, view.restart.text) == (RestartBlock.MANUAL, "")

    drive(scenario)


def test_a_stop_before_a_restart_is_due_is_shown_as_such() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run(restart="always", restart_backoff="10min")
        host.vmm().exit(0)
        await host.until_true(lambda: host.unit() == "activating/auto-restart")
        await host.until(State.INITIALIZING)
        waiting = (await host.manager.get_vm("web")).restart
        assert waiting is not None
        assert waiting.next_attempt_at is not None
        assert 500 < waiting.next_attempt_at - time.time() <= 600
        await host.manager.stop_vm("web")
        await host.until(State.STOPPED)
        stopped = (await host.manager.get_vm("web")).restart
        assert stopped is not None
        assert (stopped.blocked_reason, stopped.next_attempt_at) == (RestartBlock.MANUAL, None)
        await host.manager.start_vm("web")
        await host.until(State.RUNNING)
        again = (await host.manager.get_vm("web")).restart
        assert again is not None
        assert again.blocked_reason is None

    drive(scenario)


def test_a_run_that_begins_before_the_end_of_the_last_is_heard_of_is_not_ended() -> None:
    """What follows the last one connects to it."""

    async def scenario(host: FakeHost) -> None:
        await host.run(restart="on-failure", unit=SOON)
        with host.systemd.signals_held():
            host.vmm().exit(3)
            await host.until_true(lambda: host.vmms.runs["web"] == 2 and "web" in host.vmms.live)
            second = host.vmm()
            await host.until_true(lambda: "set-action" in second.monitor.orders)
            await asyncio.sleep(0.05)
        await crash(host, 2)
        assert "quit" not in second.monitor.orders

    drive(scenario)


def test_a_stable_run_begins_a_new_count() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run(
            restart="on-failure", restart_max_attempts=1, restart_stable_after="1s", restart_backoff="1ms"
        )
        service = host.systemd.units[unit_name("web")]
        host.vmm().exit(3)
        await crash(host, 2)
        assert service.restarts == 1
        await host.until_true(lambda: service.restarts == 0)
        await host.until_true(lambda: host.vm().runs.restarts == 0)
        host.vmm().exit(4)  # and is restarted again, which would have been once too often
        await crash(host, 3)
        view = await host.manager.get_vm("web")
        assert view.restart is not None
        assert (view.restart.attempts, view.restart.blocked_reason) == (1, None)

    drive(scenario)


def test_a_run_that_was_stable_while_no_daemon_was_there_counts_when_one_comes() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run(restart="on-failure", restart_stable_after="1s", restart_backoff="1ms")
        service = host.systemd.units[unit_name("web")]
        host.vmm().exit(3)
        await crash(host, 2)

        async def pass_time() -> None:
            await asyncio.sleep(1.0)
            assert service.restarts == 1

        await host.restart_daemon(pass_time)
        await host.until_true(lambda: service.restarts == 0)

    drive(scenario)


def test_the_delay_grows_where_systemd_has_that() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run(restart="on-failure", restart_backoff="1s", restart_backoff_max="1min")
        grown = host.systemd.units[unit_name("web")].properties
        assert (grown["RestartUSec"], grown["RestartMaxDelayUSec"], grown["RestartSteps"]) == (
            1_000_000, 60_000_000, 5
        )  # fmt: skip
        await host.manager.stop_vm("web")
        host.systemd.version = "252.38-1~deb12u1"
        await host.restart_daemon()
        await host.manager.start_vm("web")
        await host.until(State.RUNNING)
        plain = host.systemd.units[unit_name("web")].properties
        assert (plain["RestartUSec"], plain["RestartSteps"]) == (1_000_000, 0)

    drive(scenario)


def test_the_history_has_the_last_runs_over_daemons_also_those_that_none_has_seen() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.create()
        assert await host.manager.list_runs("web") == []
        await host.manager.start_vm("web")
        await host.until(State.RUNNING)
        (run,) = await host.manager.list_runs("web")
        assert (run.run, run.exit, run.ended_at) == (host.vmm().run_id, None, None)
        assert run.started_at is not None
        assert run.ready_ms is not None
        await host.vm().runs.files.flush_notes()  # which takes up to a second
        await host.manager.stop_vm("web")
        await host.manager.start_vm("web")
        await host.until(State.RUNNING)

        async def end() -> None:
            host.vmm().exit(3)
            await host.until_true(lambda: host.unit() == "failed/failed")

        await host.restart_daemon(end)
        await host.manager.start_vm("web")
        await host.until(State.RUNNING)
        first, second, third = await host.manager.list_runs("web")
        assert ends([first, second, third]) == ["stopped on request", "exited with code 3", None]
        assert first.started_at is not None
        assert first.ended_at is not None
        assert first.started_at <= first.ended_at
        assert first.ready_ms is not None

    drive(scenario)


def test_a_run_has_begun_when_it_did_whatever_its_main_process_is() -> None:
    """That of a warm start changes, and systemd counts from then."""

    async def scenario(host: FakeHost) -> None:
        await host.run()
        before = await host.manager.get_vm("web")
        assert before.started_at is not None
        unit = host.systemd.units[unit_name("web")]
        unit.started_at += 5
        unit.start_monotonic += 5
        await host.vm().refresh()
        assert (await host.manager.get_vm("web")).started_at == before.started_at
        (run,) = await host.manager.list_runs("web")
        assert run.started_at == before.started_at
        await host.vm().runs.files.flush_notes()
        await host.restart_daemon()
        again = (await host.manager.get_vm("web")).started_at
        assert again is not None
        assert abs(again - before.started_at) < 1
        unit.started_at += 5
        unit.start_monotonic += 5
        await host.vm().refresh()
        assert (await host.manager.get_vm("web")).started_at == again

    drive(scenario)


def ends(runs: list[RunReport]) -> list[str | None]:
    """Why they ended."""
    return [None if run.exit is None else run.exit.message for run in runs]


def test_the_history_is_bounded_on_the_disk() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.create()
        for code in range(MAX_RUNS + 2):
            host.guest().ends = code
            await host.manager.start_vm("web")
            await host.until_true(lambda code=code: host.vmms.runs["web"] == code + 1)  # type: ignore[misc]
            await host.until_ended()
        runs = await host.manager.list_runs("web")
        assert [run.exit.code for run in runs if run.exit is not None] == list(range(2, MAX_RUNS + 2))
        document = json.loads((host.config.state_dir / "vms/web/exit.json").read_text())
        assert len(document["before"]) == MAX_RUNS - 1

    drive(scenario)


def test_a_run_that_the_host_went_down_with_is_in_the_history_and_no_result() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        await host.vm().runs.files.flush_notes()

        async def power_cut() -> None:
            unit = host.systemd.units.pop(host.vm().unit)
            await unit.close()

        await host.restart_daemon(power_cut)
        view = await host.manager.get_vm("web")
        assert (view.state, view.exit) == (State.STOPPED, None)
        assert ends(list(await host.manager.list_runs("web"))) == [LOST]
        await host.restart_daemon()
        assert (await host.manager.get_vm("web")).exit is None
        await host.manager.start_vm("web")
        await host.until(State.RUNNING)
        assert ends(list(await host.manager.list_runs("web"))) == [LOST, None]

    drive(scenario)
