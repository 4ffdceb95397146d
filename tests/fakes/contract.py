# SPDX-License-Identifier: Apache-2.0
"""What we rely on of systemd, as scenarios that hold for the real one and for tests.fakes.systemd.

tests/unit/systemd/test_contract.py plays them on the latter, tests/host/test_contract.py on the former.
"""

from __future__ import annotations

import asyncio
import errno
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

from hypemand.systemd.units import UnitWatch
from tests.fakes.stage import ABSENT, DEADLINE, OTHER, SECOND, Script, Stage, U, World, same, state

# --- start and stop ---


async def a_unit_is_active_when_its_main_process_says_ready(stage: Stage) -> None:
    same(state(await stage.units.status(U)), "None/")
    await stage.begin()
    starting = await stage.begun()
    same(state(starting), "activating/start")
    assert starting.invocation_id is not None
    up = await stage.ready()
    same((state(up), up.invocation_id, up.main_pid), (
        "active/running", starting.invocation_id, starting.main_pid
    ))  # fmt: skip
    same(await stage.units.list_vms(), {"contract": "active"})


async def readiness_of_another_process_counts_for_nothing(stage: Stage) -> None:
    await stage.begin()
    await stage.begin(unit=OTHER, start=Script("other"))
    pid = (await stage.begun()).main_pid
    assert pid is not None
    await stage.until_marked("other")
    stage.world.notify(pid, "READY=1")
    await stage.until("active")
    same(state(await stage.units.status(OTHER)), "activating/start")


async def what_it_says_of_itself_is_shown(stage: Stage) -> None:
    await stage.begin()
    pid = (await stage.begun()).main_pid
    assert pid is not None
    stage.world.notify(pid, "STATUS=half way")
    async with asyncio.timeout(DEADLINE):
        while await stage.get("Service.StatusText") != "half way":  # noqa: ASYNC110 - polled on both
            await asyncio.sleep(0.005)


async def a_stop_runs_both_commands_and_the_unit_is_gone(stage: Stage) -> None:
    await stage.begin(stop=Script("stop"), post=Script("post"))
    await stage.ready()
    await stage.units.stop(U)
    await stage.until_marked("stop")
    same(state(await stage.units.status(U)), "deactivating/stop")
    stage.world.release("stop")
    same(await stage.until_marked("post"), ["success killed TERM"])
    same(state(await stage.units.status(U)), "deactivating/stop-post")
    stage.world.release("post")
    await stage.until(None)
    same(await stage.units.list_vms(), {})


async def a_stop_before_readiness_runs_no_stop_command(stage: Stage) -> None:
    await stage.begin(stop=Script("stop", waits=False), post=Script("post", waits=False))
    await stage.begun()
    await stage.units.stop(U)
    await stage.until(None)
    same((stage.world.marks("stop"), len(stage.world.marks("post"))), ([], 1))


async def a_start_under_way_is_stopped_though_it_is_to_restart(stage: Stage) -> None:
    await stage.begin(Script("main", on_term=3), Restart=("s", "always"))
    await stage.begun()
    await stage.units.stop(U)
    same(state(await stage.until("failed", None)), "failed/failed")
    same(len(stage.world.marks("main")), 1)


async def a_main_process_that_ends_in_order_ends_the_unit(stage: Stage) -> None:
    await stage.begin(stop=Script("stop", waits=False), post=Script("post", waits=False))
    await stage.ready()
    stage.world.release("main")
    await stage.until(None)
    same(len(stage.world.marks("stop")), 1)
    same(stage.world.marks("post"), ["success exited 0"])


async def signals_tell_of_each_state_and_the_last(stage: Stage) -> None:
    changed = asyncio.Event()

    async def follow(active_state: str | None) -> None:
        """Asked again at each signal, and at no other time."""
        async with asyncio.timeout(DEADLINE):
            while (await stage.units.status(U)).active_state != active_state:
                await changed.wait()
                changed.clear()

    await stage.bus.start_signals(lambda: None, DEADLINE)
    stage.units.watch(U, UnitWatch(lambda _: changed.set()))
    await stage.begin(stop=Script("stop", waits=False))
    active = asyncio.create_task(follow("active"))
    await stage.ready()
    await active
    inactive = asyncio.create_task(follow(None))
    await stage.units.stop(U)
    await inactive
    stage.units.unwatch(U)
    changed.clear()
    await stage.begin(Script("again"))
    await stage.until_marked("again")
    same(changed.is_set(), False)


# --- names ---


async def a_name_is_taken_while_its_unit_lives(stage: Stage) -> None:
    await stage.begin()
    same(await stage.refused(stage.begin()), errno.EEXIST)
    await stage.ready()
    same(await stage.refused(stage.begin()), errno.EEXIST)


async def a_failed_unit_holds_its_name_until_it_is_reset(stage: Stage) -> None:
    await stage.begin(Script("main", waits=False, status=3), post=Script("post", waits=False))
    same(state(await stage.until("failed")), "failed/failed")
    same(await stage.units.list_vms(), {"contract": "failed"})
    same(await stage.refused(stage.begin()), errno.EEXIST)
    await stage.units.stop(U)
    same(state(await stage.units.status(U)), "failed/failed")
    await stage.units.reset_failed(U)
    await stage.until(None)
    await stage.begin(Script("second"))
    await stage.until_marked("second")


async def a_unit_that_is_collected_leaves_nothing(stage: Stage) -> None:
    await stage.begin(Script("main", waits=False, status=3), CollectMode=("s", "inactive-or-failed"))
    await stage.until_marked("main")
    await stage.until(None)


async def what_is_asked_of_a_unit_that_is_not_there(stage: Stage) -> None:
    for method, values in (("StopUnit", ("replace",)), ("KillUnit", ("main", 9)), ("ResetFailedUnit", ())):
        same((method, await stage.refused(stage.order(method, *values, unit=ABSENT))), (method, errno.ENOENT))
    await stage.units.stop(ABSENT)
    await stage.units.kill(ABSENT, signal.SIGKILL)
    await stage.units.reset_failed(ABSENT)
    same(await stage.units.bound_files(ABSENT), {})
    same(await stage.refused(stage.order("StartUnit", "fail", unit=ABSENT)), errno.ENOENT)


async def a_unit_without_a_main_process_cannot_be_killed(stage: Stage) -> None:
    await stage.begin(Script("main", waits=False, status=3))
    await stage.until("failed")
    same(await stage.refused(stage.order("KillUnit", "main", 9)), errno.ESRCH)


async def a_property_that_is_none_makes_no_unit(stage: Stage) -> None:
    same(await stage.refused(stage.begin(NoSuchThing=("s", "x"))), errno.EROFS)
    same(state(await stage.units.status(U)), "None/")


async def what_is_bound_is_told(stage: Stage) -> None:
    await stage.begin(BindReadOnlyPaths=("a(ssbt)", [("/usr", "/mnt", False, 0)]))
    same(await stage.units.bound_files(U), {Path("/usr"): False})


# --- results ---


async def one_that_ends_before_it_was_ready_has_failed(stage: Stage) -> None:
    await stage.begin(Script("main", waits=False), Script("stop"), Script("post", waits=False))
    await stage.until("failed")
    same(await stage.get("Service.Result"), "protocol")
    same((stage.world.marks("stop"), stage.world.marks("post")), ([], ["protocol exited 0"]))


async def a_program_that_fails_runs_no_stop_command(stage: Stage) -> None:
    await stage.begin(Script("main", status=3), Script("stop", waits=False), Script("post", waits=False))
    await stage.ready()
    stage.world.release("main")
    await stage.until("failed")
    same(await stage.get("Service.Result"), "exit-code")
    same((stage.world.marks("stop"), stage.world.marks("post")), ([], ["exit-code exited 3"]))


async def one_that_is_killed_has_failed(stage: Stage) -> None:
    await stage.begin(post=Script("post", waits=False))
    await stage.ready()
    await stage.units.kill(U, signal.SIGKILL)
    await stage.until("failed")
    same(await stage.get("Service.Result"), "signal")
    same(stage.world.marks("post"), ["signal killed KILL"])


async def the_command_after_the_end_decides_the_result(stage: Stage) -> None:
    await stage.begin(post=Script("post", waits=False, status=5))
    await stage.ready()
    stage.world.release("main")
    await stage.until("failed")
    same(await stage.get("Service.Result"), "exit-code")


async def a_stop_command_that_fails_fails_the_unit(stage: Stage) -> None:
    await stage.begin(stop=Script("stop", waits=False, status=1), post=Script("post", waits=False))
    await stage.ready()
    await stage.units.stop(U)
    await stage.until("failed")
    same(stage.world.marks("post"), ["exit-code killed TERM"])


async def a_start_that_takes_too_long_is_ended(stage: Stage) -> None:
    await stage.begin(post=Script("post", waits=False), TimeoutStartUSec=("t", SECOND // 2))
    await stage.until("failed")
    same(await stage.get("Service.Result"), "timeout")
    same(stage.world.marks("post"), ["timeout killed TERM"])


async def a_start_that_asks_for_more_time_gets_it(stage: Stage) -> None:
    await stage.begin(TimeoutStartUSec=("t", 4 * SECOND))
    pid = (await stage.begun()).main_pid
    assert pid is not None
    stage.world.notify(pid, f"EXTEND_TIMEOUT_USEC={60 * SECOND}")
    await asyncio.sleep(4.5)
    same(state(await stage.units.status(U)), "activating/start")


async def a_stop_that_asks_for_more_time_gets_it(stage: Stage) -> None:
    await stage.begin(stop=Script("stop"), TimeoutStopUSec=("t", 4 * SECOND))
    pid = (await stage.ready()).main_pid
    assert pid is not None
    await stage.units.stop(U)
    await stage.until_marked("stop")
    stage.world.notify(pid, f"EXTEND_TIMEOUT_USEC={60 * SECOND}")
    await asyncio.sleep(4.5)
    same(state(await stage.units.status(U)), "deactivating/stop")
    stage.world.release("stop")
    await stage.until(None)


async def a_process_that_does_not_hear_is_killed(stage: Stage) -> None:
    await stage.begin(
        Script("main", on_term=-1), post=Script("post", waits=False), TimeoutStopUSec=("t", 3 * SECOND)
    )
    await stage.ready()
    await stage.units.stop(U)
    same(state(await stage.until("deactivating")), "deactivating/stop-sigterm")
    await stage.until("failed")
    same(stage.world.marks("post"), ["timeout killed KILL"])


async def a_stop_with_a_kill_ends_at_once_and_for_good(stage: Stage) -> None:
    await stage.begin(Script("main", on_term=-1), Script("stop"), Restart=("s", "always"))
    await stage.ready()
    await stage.units.stop(U)
    await stage.until("deactivating/stop")
    await stage.units.kill(U, signal.SIGKILL)
    stage.world.release("stop")
    await stage.until("failed", None)
    same(len(stage.world.marks("main")), 1)


# --- restarts ---


async def systemd_restarts_what_failed(stage: Stage) -> None:
    await stage.begin(Script("main", status=3), Restart=("s", "on-failure"), RestartUSec=("t", SECOND // 2))
    first = await stage.ready()
    stage.world.release("main")
    between = await stage.until("activating/auto-restart")
    same(between.main_pid, None)
    await stage.until_marked("main", 2)
    second = await stage.until("activating/start")
    assert second.invocation_id not in (None, first.invocation_id)
    same(await stage.get("Service.NRestarts"), 1)
    same(state(await stage.ready()), "active/running")


async def an_end_in_order_is_no_failure(stage: Stage) -> None:
    await stage.begin(Restart=("s", "on-failure"))
    await stage.ready()
    stage.world.release("main")
    await stage.until(None)


async def a_job_that_waits_names_the_unit_that_it_waits_for(stage: Stage) -> None:
    await stage.begin(unit=OTHER)
    await stage.begin(After=("as", [OTHER]))
    waiting = await stage.until("activating/queued")
    same(waiting.waits_for, (OTHER,))
    await stage.begun(unit=OTHER)
    await stage.ready(unit=OTHER)
    status = await stage.until("activating/start")
    same(status.waits_for, ())


async def what_a_command_of_its_end_says_stays_its_status(stage: Stage) -> None:
    await stage.begin(post=Script("post", status=3), NotifyAccess=("s", "exec"))
    main = await stage.ready()
    assert main.main_pid is not None
    stage.world.notify(main.main_pid, "STATUS=Running")
    stage.world.release("main")
    await stage.until_marked("post")
    stage.world.notify(await stage.get("Service.ControlPID"), "STATUS=ended with 3")
    stage.world.release("post")
    await stage.until("failed")
    same(await stage.get("Service.StatusText"), "ended with 3")


async def without_notifyaccess_exec_it_says_nothing(stage: Stage) -> None:
    await stage.begin(post=Script("post", status=3))
    main = await stage.ready()
    assert main.main_pid is not None
    stage.world.notify(main.main_pid, "STATUS=Running")
    stage.world.release("main")
    await stage.until_marked("post")
    stage.world.notify(await stage.get("Service.ControlPID"), "STATUS=ended with 3")
    stage.world.release("post")
    await stage.until("failed")
    same(await stage.get("Service.StatusText"), "Running")


async def one_that_fails_too_often_is_given_up(stage: Stage) -> None:
    await stage.begin(
        Script("main", waits=False, status=3),
        Restart=("s", "always"),
        RestartUSec=("t", 1000),
        StartLimitBurst=("u", 3),
        StartLimitIntervalUSec=("t", 60 * SECOND),
    )
    await stage.until_marked("main", 3)
    await stage.until("failed")
    # it keeps the reason for which it was to be restarted
    same(await stage.get("Service.Result"), "exit-code")
    same(len(stage.world.marks("main")), 3)


async def one_that_ends_in_order_too_often_has_failed(stage: Stage) -> None:
    await stage.begin(
        Script("main", waits=False),
        Type=("s", "simple"),
        Restart=("s", "always"),
        RestartUSec=("t", 1000),
        StartLimitBurst=("u", 2),
        StartLimitIntervalUSec=("t", 60 * SECOND),
    )
    await stage.until("failed")
    same(await stage.get("Service.Result"), "start-limit-hit")
    same(len(stage.world.marks("main")), 2)


async def a_stop_between_two_runs_is_the_end(stage: Stage) -> None:
    await stage.begin(
        Script("main", waits=False, status=3), Restart=("s", "always"), RestartUSec=("t", 60 * SECOND)
    )
    await stage.until("activating/auto-restart")
    await stage.units.stop(U)
    await stage.until("failed", None)
    same(len(stage.world.marks("main")), 1)


async def a_restart_asked_for_at_the_end_makes_another_run(stage: Stage) -> None:
    await stage.begin(post=Script("post"))
    first = await stage.ready()
    stage.world.release("main")
    await stage.until_marked("post")
    await stage.order("RestartUnit", "fail")
    stage.world.release("post")
    await stage.until_marked("main", 2)
    assert (await stage.begun()).invocation_id != first.invocation_id


async def a_restart_gives_way_to_a_stop(stage: Stage) -> None:
    await stage.begin(post=Script("post"))
    await stage.ready()
    await stage.units.stop(U)
    await stage.until_marked("post")
    same(await stage.refused(stage.order("RestartUnit", "fail")), errno.EDEADLK)
    stage.world.release("post")
    await stage.until(None)


async def a_stop_replaces_a_restart_that_waits(stage: Stage) -> None:
    await stage.begin(post=Script("post"))
    await stage.ready()
    stage.world.release("main")
    await stage.until_marked("post")
    await stage.order("RestartUnit", "fail")
    await stage.units.stop(U)
    stage.world.release("post")
    await stage.until(None)
    same(len(stage.world.marks("main")), 1)


async def a_restart_while_it_starts_makes_another_run(stage: Stage) -> None:
    await stage.begin()
    first = await stage.begun()
    await stage.order("RestartUnit", "replace")
    await stage.until_marked("main", 2)
    second = await stage.begun()
    assert second.invocation_id != first.invocation_id


# --- jobs ---


async def a_start_waits_for_what_it_comes_after(stage: Stage) -> None:
    await stage.begin(unit=OTHER, start=Script("other"))
    await stage.until_marked("other")
    await stage.begin(After=("as", [OTHER]))
    queued = await stage.units.status(U)
    same((state(queued), queued.invocation_id), ("activating/queued", None))
    pid = (await stage.units.status(OTHER)).main_pid
    assert pid is not None
    stage.world.notify(pid, "READY=1")
    await stage.until_marked("main")
    await stage.until("activating/start")


async def a_start_that_waits_is_stopped_and_leaves_nothing(stage: Stage) -> None:
    await stage.begin(unit=OTHER, start=Script("other"))
    await stage.until_marked("other")
    await stage.begin(After=("as", [OTHER]))
    await stage.units.stop(U)
    await stage.until(None)
    same(stage.world.marks("main"), [])


async def a_second_stop_joins_the_first(stage: Stage) -> None:
    await stage.begin(post=Script("post"))
    await stage.ready()
    await stage.units.stop(U)
    await stage.until_marked("post")
    await stage.units.stop(U)
    stage.world.release("post")
    await stage.until(None)
    same(len(stage.world.marks("post")), 1)


# --- systemd itself ---


async def a_reexecution_changes_nothing(stage: Stage) -> None:
    changed = asyncio.Event()
    await stage.bus.start_signals(lambda: None, DEADLINE)
    stage.units.watch(U, UnitWatch(lambda _: changed.set()))
    await stage.begin()
    before = await stage.ready()
    await stage.world.reexecute()
    after = await stage.units.status(U)
    same((state(after), after.invocation_id, after.main_pid), (
        "active/running", before.invocation_id, before.main_pid
    ))  # fmt: skip
    changed.clear()
    await stage.units.stop(U)
    async with asyncio.timeout(DEADLINE):
        await changed.wait()
    await stage.until(None)


async def readiness_that_is_sent_in_a_reexecution_counts(stage: Stage) -> None:
    await stage.begin()
    pid = (await stage.begun()).main_pid
    assert pid is not None
    reexecution = asyncio.create_task(stage.world.reexecute())
    await asyncio.sleep(0.01)
    stage.world.notify(pid, "READY=1")
    await reexecution
    await stage.until("active")


Scenario = Callable[[Stage], Awaitable[None]]
SCENARIOS: dict[str, Scenario] = {
    name: function for name, function in list(globals().items()) if asyncio.iscoroutinefunction(function)
}


async def play(world: World, scenario: Scenario) -> None:
    """One scenario, on a world that is clean before and after it."""
    await world.clean()
    try:
        async with asyncio.timeout(2 * DEADLINE):
            await scenario(Stage(world))
    finally:
        await world.clean()
