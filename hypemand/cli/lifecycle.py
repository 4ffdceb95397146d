# SPDX-License-Identifier: Apache-2.0
"""start, stop, restart, kill, pause, resume, standby, restore, rename, rm, wait."""

from __future__ import annotations

import math
from collections.abc import Iterable

from hypemand.cli.client import CHANGE_SECONDS, PULL_SECONDS, SAVE_SECONDS, ApiError, Client, ConnectionLost
from hypemand.cli.context import Context, for_each
from hypemand.cli.exitcode import ExitCode
from hypemand.cli.instance import (
    CHANGED_ON_DISK,
    ENDED_STATES,
    describe_exit,
    find_stop_deadline,
    get_instance,
    has_failed,
    post_instance,
)
from hypemand.cli.terminal import print_error, print_json
from hypemand.cli.watch import show_progress, wait_for_state, wait_until_started
from hypemand.errors import HypemandError, InvalidRequest, NotFound, WrongState
from hypemand.model.answers.instance import Instance
from hypemand.model.state import FromStandby, Origin, State
from hypemand.unitnames import handle_name

WAIT_SECONDS = 60.0
KILL_SIGNAL = 9
_SYSTEMD_SECONDS = 10.0


def start(context: Context) -> int:
    """Start VMs. With several and --wait they all boot at once."""
    started: list[Instance] = []
    body = (build_pull(context.args.pull) or {}) | {
        "standby": FromStandby.COLD if context.args.cold else FromStandby.RESTORE
    }

    def start_one(name: str) -> None:
        # its image may have to be pulled
        with show_progress(context.client, name, "starting"):
            started.append(post_instance(context.client, name, "start", body=body, timeout=PULL_SECONDS))

    failure = for_each(context.args.name, start_one)
    return _finish_starts(context, started, failure)


def restart(context: Context) -> int:
    """Stop and start VMs."""
    started: list[Instance] = []

    def restart_one(name: str) -> None:
        client = context.client
        before = get_instance(client, name)
        with show_progress(client, name, "restarting"):
            started.append(_restart_one(client, before, build_pull(context.args.pull)))

    failure = for_each(context.args.name, restart_one)
    return _finish_starts(context, started, failure)


def _has_daemon_ended(error: ApiError) -> bool:
    """Was a request not answered for that reason? systemd starts the next daemon for the next request."""
    return isinstance(error, ConnectionLost) or error.code == "stopping"


def _restart_one(client: Client, before: Instance, body: dict[str, str] | None) -> Instance:
    """Restart an instance. A restart ends with the daemon, perhaps between its stop and its start: what is
    left of it is requested of the next one."""
    name, deadline = before.name, find_stop_deadline(before, None) + PULL_SECONDS
    try:
        return post_instance(client, name, "restart", body=body, timeout=deadline)
    except ApiError as error:
        if not _has_daemon_ended(error):
            raise
    now = get_instance(client, name)
    if now.invocation_id not in (None, before.invocation_id):
        return now
    what = "start" if now.state is State.STOPPED else "restart"
    return post_instance(client, name, what, body=body, timeout=deadline)


def print_instances(instances: Iterable[Instance]) -> None:
    """What the daemon has answered of them, as one document."""
    print_json([instance.document for instance in instances])


def build_pull(when: str | None) -> dict[str, str] | None:
    """The body of a start or restart for --pull."""
    return None if when is None else {"image_pull": when}


def _finish_starts(context: Context, started: list[Instance], failure: ExitCode) -> int:
    """Wait for what was started if that is asked for, then show it."""
    instances = {instance.name: instance for instance in started}
    for instance in started:
        if instance.needs_reload:
            print_error(f"{instance.name} was started as it was loaded: its {CHANGED_ON_DISK}")
    if context.args.wait:

        def wait_one(name: str) -> None:
            instances[name] = wait_until_started(context.client, instances[name], context.args.timeout)

        waited = for_each(list(instances), wait_one)
        failure = failure or waited
    if context.wants_json:
        print_instances(instances.values())
    return failure


def stop(context: Context) -> int:
    """Stop VMs gracefully, and wait until they have stopped."""
    if context.args.timeout == math.inf:
        raise InvalidRequest(
            "--timeout infinity is not possible here", hint="set stop_timeout in its definition"
        )
    stopped: list[Instance] = []

    def stop_one(name: str) -> None:
        try:
            stopped.append(_stop_one(context.client, name, context.args.timeout))
        except NotFound:
            # one that has been removed has stopped, and nobody can tell its result any more
            if not context.args.result:
                raise

    failure = for_each(context.args.name, stop_one)
    if context.wants_json:
        print_instances(stopped)
    if failure or not context.args.result:
        return failure
    failed = [instance for instance in stopped if has_failed(instance)]
    for instance in failed:
        print_error(f"{instance.name} failed: {describe_exit(instance)}")
    return ExitCode.FAILURE if failed else ExitCode.OK


def _stop_one(client: Client, name: str, timeout: float | None) -> Instance:
    deadline = find_stop_deadline(get_instance(client, name), timeout)
    body = {"timeout": timeout}
    with show_progress(client, name, "stopping"):
        try:
            return post_instance(client, name, "stop", body=body, timeout=deadline)
        except ApiError as error:
            if not _has_daemon_ended(error):
                raise
        # systemd stops it all the same, and the next daemon waits for that
        return post_instance(client, name, "stop", body=body, timeout=deadline)


def kill(context: Context) -> int:
    """Send a signal to VMMs."""
    return _post_each(context, "kill", {"signal": context.args.signal or KILL_SIGNAL})


def pause(context: Context) -> int:
    """Stop the CPUs of VMs."""
    return _post_each(context, "pause", {})


def resume(context: Context) -> int:
    """Let VMs that are paused go on."""
    return _post_each(context, "resume", {})


def _post_each(context: Context, what: str, body: dict[str, int]) -> int:
    changed: list[Instance] = []

    def post_one(name: str) -> None:
        changed.append(post_instance(context.client, name, what, body=body, timeout=CHANGE_SECONDS))

    failure = for_each(context.args.name, post_one)
    if context.wants_json:
        print_instances(changed)
    return failure


def standby(context: Context) -> int:
    """Save VMs to disk, and end their VMMs."""
    saved: list[Instance] = []
    body = {**context.compression, **({} if context.args.pool is None else {"pool": context.args.pool})}

    def save_one(name: str) -> None:
        with show_progress(context.client, name, "saving"):
            saved.append(post_instance(context.client, name, "standby", body=body, timeout=SAVE_SECONDS))

    failure = for_each(context.args.name, save_one)
    if context.wants_json:
        print_instances(saved)
    return failure


def restore(context: Context) -> int:
    """Resume VMs in Standby."""
    restored: list[Instance] = []

    def restore_one(name: str) -> None:
        with show_progress(context.client, name, "being restored"):
            restored.append(post_instance(context.client, name, "restore", body={}, timeout=SAVE_SECONDS))

    failure = for_each(context.args.name, restore_one)
    return _finish_starts(context, restored, failure)


def rename(context: Context) -> int:
    """Give a VM another name. What systemd is to start at boot is the administrator's to say: if that is the
    VM by its old name, how to change it is shown."""
    client, args = context.client, context.args
    before = get_instance(client, args.name)
    renamed = post_instance(client, args.name, "rename", body={"name": args.new}, timeout=CHANGE_SECONDS)
    if renamed.name != before.name and _is_enabled(old := handle_name(before.name)):
        print_error(
            f"{old} is enabled, and there is no VM {before.name} any more: systemctl disable {old};"
            f" systemctl enable {handle_name(renamed.name)}"
        )
    if context.wants_json:
        print_json(renamed.document)
    return ExitCode.OK


def _is_enabled(unit: str) -> bool:
    """Not where that cannot be found out."""
    from hypemand.run import run

    try:
        done = run(["systemctl", "is-enabled", unit], timeout=_SYSTEMD_SECONDS)
    except HypemandError:
        return False
    return done.stdout.strip() == b"enabled"


def remove(context: Context) -> int:
    """Remove VMs and their data. One that runs needs --force."""
    removed: list[Instance] = []

    def remove_one(name: str) -> None:
        try:
            removed.append(_remove_one(context.client, name, force=context.args.force))
        except HypemandError as error:
            if not (context.args.force and error.code == NotFound.code):
                raise

    failure = for_each(context.args.name, remove_one)
    if context.wants_json:
        print_json([instance.name for instance in removed])
    return failure


def _remove_one(client: Client, name: str, *, force: bool) -> Instance:
    instance = get_instance(client, name)
    state = instance.state
    if state not in ENDED_STATES and not force:
        in_file = instance.origin == Origin.FILE and not instance.removed_from_config
        hint = "remove its definition file and reload" if in_file else f"hypemanctl rm -f {instance.name}"
        raise WrongState(f"{instance.name} is {state}, not removed", hint=f"stop it first, or: {hint}")
    with show_progress(client, name, "removing"):
        client.delete("instances", name, query={"graceful_shutdown": "false"})
    return instance


def wait(context: Context) -> int:
    """Wait until a VM is in a state."""
    args = context.args
    timeout = WAIT_SECONDS if args.timeout is None else args.timeout
    instance = wait_for_state(context.client, args.name, args.for_ or State.RUNNING, timeout)
    if context.wants_json:
        print_json(instance.document)
    return ExitCode.OK
