# SPDX-License-Identifier: Apache-2.0
"""Health checks: what a guest reports is shown beside the state, and systemd restarts what is unhealthy."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from systemd import journal

from hypemand.model.events import HealthChange
from hypemand.model.health import HealthState, HealthStatus
from hypemand.model.state import RestartBlock, State
from tests.fakes.guest import HealthCheck
from tests.fakes.host import FakeHost, drive
from tests.unit.manager.test_events import list_details

CHECK = {"tcp": 80, "interval": "100ms", "start_period": "0s"}


async def checked(host: FakeHost, number: int = 1) -> HealthCheck:
    """The check of that number that the guest of this run was asked to make."""
    await host.until_true(lambda: "web" in host.vmms.live and len(host.vmm().checks) >= number)
    return host.vmm().checks[number - 1]


async def until(host: FakeHost, state: HealthState) -> HealthStatus:
    await host.until_true(lambda: host.vm().health.status.state is state)
    return (await host.manager.get_vm("web")).health


def test_a_guest_is_asked_once_and_what_it_reports_is_shown_beside_the_state() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run(health=CHECK)
        check = await checked(host)
        assert check.values["check"] == "check=tcp,interval=100,port=80,timeout=2000"
        wanted = {"failures": "3", "successes": "1", "start": "0", "confirm": "10000", "loopback": "1"}
        assert {key: check.values[key] for key in wanted} == wanted
        assert host.vm().health.status.state is HealthState.UNKNOWN
        await check.report("healthy", successes=1)
        first = await until(host, HealthState.HEALTHY)
        assert (first.failures, first.successes, first.error) == (0, 1, None)
        assert first.checked_at == first.succeeded_at is not None
        assert first.failed_at is None
        await check.report("unhealthy", "nothing listens on port 80", failures=3)
        second = await until(host, HealthState.UNHEALTHY)
        assert (second.failures, second.successes, second.error) == (3, 0, "nothing listens on port 80")
        assert second.succeeded_at == first.succeeded_at
        assert second.failed_at is not None
        told = [found for found in await list_details(host) if isinstance(found, HealthChange)]
        assert [(change.old, change.new, change.error) for change in told] == [
            (HealthState.UNKNOWN, HealthState.HEALTHY, None),
            (HealthState.HEALTHY, HealthState.UNHEALTHY, "nothing listens on port 80"),
        ]
        assert host.vm().state is State.RUNNING
        assert host.unit() == "active/running", "the restart policy is no"
        assert len(host.vmm().checks) == 1

    drive(scenario)


def test_a_vm_without_a_check_is_asked_nothing() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        assert (await host.manager.get_vm("web")).health == HealthStatus(HealthState.DISABLED)
        assert host.vmm().checks == []

    drive(scenario)


def test_it_starts_until_its_start_period_is_over_and_is_unknown_when_it_does_not_run() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.create(health="tcp:80")
        assert (await host.manager.get_vm("web")).health.state is HealthState.UNKNOWN
        await host.manager.start_vm("web")
        await host.until(State.RUNNING)
        assert host.vm().health.status.state is HealthState.STARTING
        check = await checked(host)
        assert 25_000 < int(check.values["start"]) <= 30_000
        await check.report("healthy", successes=1)
        await until(host, HealthState.HEALTHY)
        await host.manager.pause_vm("web")
        await until(host, HealthState.UNKNOWN)
        await check.ended.wait()
        await host.manager.resume_vm("web")
        again = await checked(host, 2)
        await again.report("healthy", successes=1)
        await until(host, HealthState.HEALTHY)
        await host.manager.stop_vm("web")
        stopped = await until(host, HealthState.UNKNOWN)
        assert stopped == HealthStatus(HealthState.UNKNOWN)

    drive(scenario)


def test_an_unhealthy_vm_is_restarted_by_systemd_within_its_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(journal, "send", lambda text, **fields: sent.append({"text": text} | fields))

    async def scenario(host: FakeHost) -> None:
        await host.run(restart="on-failure", restart_max_attempts=1, restart_backoff="1ms", health=CHECK)
        for run in (1, 2):
            await host.until_true(lambda run=run: host.vmms.runs["web"] == run and "web" in host.vmms.live)  # type: ignore[misc]
            await host.until_true(lambda: host.vm().run == host.vmm().run_id)
            await (await checked(host)).report("unhealthy", "http: status 500", failures=3)
        await host.until_ended()
        view = await host.manager.get_vm("web")
        assert view.exit is not None
        assert (view.exit.code, view.exit.success) == (None, False)
        # the guest had powered off in order, as it was asked to
        assert view.exit.message == "unhealthy: http: status 500"
        assert view.restart is not None
        assert (view.restart.attempts, view.restart.blocked_reason) == (1, RestartBlock.LIMIT)
        assert view.restart.last_reason == "unhealthy: http: status 500"
        assert host.unit() == "failed/failed"
        words = [entry["text"] for entry in sent if entry.get("HYPEMAN_HEALTH") == "unhealthy"]
        assert words == ["VM web: health unknown -> unhealthy: http: status 500"] * 2

    drive(scenario)


@pytest.mark.parametrize(
    ("policy", "on_failure", "restarts"),
    [("no", "restart", True), ("always", None, True), ("always", "none", False), ("no", None, False)],
)
def test_on_failure_and_the_restart_policy_say_whether(
    policy: str, on_failure: str | None, restarts: bool
) -> None:
    async def scenario(host: FakeHost) -> None:
        keys = {} if on_failure is None else {"on_failure": on_failure}
        await host.run(restart=policy, restart_backoff="1ms", health=CHECK | keys)
        await (await checked(host)).report("unhealthy", "down", failures=3)
        await until(host, HealthState.UNHEALTHY) if not restarts else None
        if restarts:
            await host.until_true(lambda: host.vmms.runs["web"] == 2)
            await host.until(State.RUNNING)
            return
        assert host.unit() == "active/running"
        # a failure of another kind is none of the check's
        host.vmm().exit(3)
        await host.until_true(lambda: host.vmms.runs["web"] == (2 if policy == "always" else 1))

    drive(scenario)


def test_a_guest_that_does_not_hear_is_killed_by_systemd() -> None:
    async def scenario(host: FakeHost) -> None:
        host.guest().heeds = False
        await host.run(restart="on-failure", restart_backoff="1ms", stop_timeout="1s", health=CHECK)
        await (await checked(host)).report("unhealthy", "down", failures=3)
        await host.until_true(lambda: host.vmms.runs["web"] == 2)

    drive(scenario)


def test_a_guest_that_is_silent_is_unhealthy_and_a_report_later_counts() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.create(health=CHECK)
        host.vm().health.patience = -12.0
        await host.manager.start_vm("web")
        check = await checked(host)
        await check.report("healthy", successes=1)
        silent = await until(host, HealthState.UNHEALTHY)
        assert silent.error is not None
        assert silent.error.startswith("the guest has not reported for ")
        host.vm().health.patience = 10.0
        await check.report("healthy", successes=9)
        assert (await until(host, HealthState.HEALTHY)).successes == 9

    drive(scenario)


def test_time_that_a_vm_is_paused_is_neither_silence_nor_of_its_start_period() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.create(health=CHECK | {"start_period": "1min"})
        # within 2 s beyond what is left of its start period
        host.vm().health.patience = -10.1
        await host.manager.start_vm("web")
        before = await checked(host)
        asked = time.monotonic()
        await before.report("starting", failures=1)  # from now on without the start period
        await host.until_true(lambda: host.vm().health.status.failures == 1)
        await host.manager.pause_vm("web")
        paused = time.monotonic()
        await before.ended.wait()
        await asyncio.sleep(2.5)
        assert host.vm().health.status.state is HealthState.UNKNOWN
        stood = time.monotonic() - paused
        await host.manager.resume_vm("web")
        after = await checked(host, 2)
        ran = time.monotonic() - asked - stood
        assert int(after.values["start"]) >= int(before.values["start"]) - ran * 1000 - 1
        assert int(after.values["start"]) <= int(before.values["start"])
        await host.until_true(lambda: host.vm().health.status.state is HealthState.STARTING)

    drive(scenario)


def test_what_is_no_report_ends_the_check_which_is_begun_again() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run(health=CHECK)
        check = await checked(host)
        await check.report("splendid")
        broken = await until(host, HealthState.UNKNOWN)
        await host.until_true(lambda: host.vm().health.status.error is not None)
        await check.ended.wait()
        again = await checked(host, 2)
        await again.report("healthy", successes=1)
        await until(host, HealthState.HEALTHY)
        assert broken.state is HealthState.UNKNOWN

    drive(scenario)


def test_a_daemon_that_starts_asks_anew() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run(health=CHECK)
        first = await checked(host)
        await first.report("healthy", successes=1)
        await until(host, HealthState.HEALTHY)
        await host.restart_daemon()
        assert host.vm().health.status.state in (HealthState.UNKNOWN, HealthState.HEALTHY)
        again = await checked(host, 2)
        await again.report("healthy", successes=1)
        await until(host, HealthState.HEALTHY)

    drive(scenario)


def test_another_check_counts_at_once_and_needs_no_restart() -> None:
    async def scenario(host: FakeHost) -> None:
        host.write(health=CHECK)
        await host.reload()
        await host.start()
        first = await checked(host)
        await first.report("healthy", successes=1)
        await until(host, HealthState.HEALTHY)
        host.write(health="tcp:81")
        await host.reload()
        second = await checked(host, 2)
        await first.ended.wait()
        assert "port=81" in second.values["check"]
        assert not (await host.manager.get_vm("web")).needs_restart
        host.write()
        await host.reload()
        await second.ended.wait()
        assert host.vm().health.status.state is HealthState.DISABLED

    drive(scenario)


@pytest.mark.parametrize(
    ("policy", "before", "after"),
    [
        ("always", None, CHECK),
        ("no", None, CHECK | {"on_failure": "restart"}),
        ("no", CHECK, CHECK | {"on_failure": "restart"}),
    ],
)
def test_a_unit_that_cannot_restart_it_when_it_is_unhealthy_needs_a_restart(
    policy: str, before: dict[str, Any] | None, after: dict[str, Any]
) -> None:
    async def scenario(host: FakeHost) -> None:
        keys: dict[str, Any] = {} if before is None else {"health": before}
        host.write(restart=policy, **keys)
        await host.reload()
        await host.start()
        host.write(restart=policy, health=after)
        report = await host.reload()
        assert (report.changed, report.needs_restart) == (("web",), ("web",))
        asked = 1 if before is None else 2
        await (await checked(host, asked)).report("unhealthy", "down", failures=3)
        await until(host, HealthState.UNHEALTHY)
        view = await host.manager.get_vm("web")
        assert (host.unit(), view.changes) == ("active/running", ("restart when unhealthy",))
        await host.manager.restart_vm("web")
        await host.until(State.RUNNING)
        assert not (await host.manager.get_vm("web")).needs_restart

    drive(scenario)


def test_a_command_runs_as_the_program_does() -> None:
    async def scenario(host: FakeHost) -> None:
        check = {"exec": ["test", "-e", "mark"], "workdir": "/srv"}
        await host.run(health=check, env={"PGPORT": "1"}, user="70", workdir="/data")
        values = (await checked(host)).values
        assert values["check"].startswith("check=exec,interval=10000,arg=test,arg=-e,arg=mark")
        assert (values["cwd"], values["user"], values["env"]) == ("/srv", "70", "PGPORT=1")

    drive(scenario)


def test_why_a_vm_was_restarted_is_kept_for_its_history() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run(restart="on-failure", restart_backoff="1ms", health=CHECK)
        await (await checked(host)).report("unhealthy", "down", failures=3)
        await host.until_true(lambda: host.vmms.runs["web"] == 2)
        await host.until(State.RUNNING)
        first, _ = await host.manager.list_runs("web")
        assert first.exit is not None
        assert first.exit.message == "unhealthy: down"
        record = json.loads((host.folder / "state/vms/web/exit.json").read_text())
        assert record["message"] == "unhealthy: down"

    drive(scenario)
