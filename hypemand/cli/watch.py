# SPDX-License-Identifier: Apache-2.0
"""Waits for a VM, with the events that the daemon sends at every change."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Iterator

from hypemand.cli.client import ApiError, Client, Events, StreamBroken, parse
from hypemand.cli.instance import (
    ENDED_STATES,
    build_timed_out,
    describe_exit,
    describe_status,
    has_failed,
    is_being_deleted,
)
from hypemand.cli.terminal import LiveLine
from hypemand.errors import NotFound, StartFailed, WrongState
from hypemand.model.answers.instance import Instance
from hypemand.model.state import State

# Breaks of a stream in a row, with nothing between, before it is given up.
MAX_BREAKS = 3


def watch(client: Client, ref: str, timeout: float) -> Iterator[Instance]:
    """The instance now and at each change, across restarts of the daemon.

    Ends when the VM is removed. Raises TimeoutError after `timeout` seconds, which may be infinite.
    """
    end = time.monotonic() + timeout
    breaks = 0
    while True:
        try:
            with client.events("instances", ref, "watch", timeout=end - time.monotonic()) as events:
                for event in events:
                    breaks = 0
                    yield parse(Instance, event)
            return
        except StreamBroken:
            breaks += 1
            if breaks > MAX_BREAKS:
                raise


def wait_for_state(client: Client, ref: str, wanted: str, timeout: float) -> Instance:
    """Wait until the VM is in `wanted`, and return it. Raises WrongState when it has ended or its state is
    Unknown; TimedOut; NotFound if it is removed meanwhile."""
    last: Instance | None = None
    with LiveLine(f"{ref}: waiting for {wanted}") as line:
        try:
            for last in watch(client, ref, timeout):
                line.update(f"{ref}: {describe_status(last)}")
                state = last.state
                if state == wanted:
                    return last
                if not is_being_deleted(last) and (state in ENDED_STATES or state == State.UNKNOWN):
                    raise _build_wont_happen(last, wanted)
        except TimeoutError:
            raise build_timed_out(ref, wanted, timeout, last) from None
    raise NotFound(f"{ref} was removed while waiting")


def _build_wont_happen(instance: Instance, wanted: str) -> WrongState:
    state = instance.state
    why = instance.state_error or describe_exit(instance)
    text = f"{instance.name} is {state}{f' ({why})' if why else ''} and will not become {wanted}"
    return WrongState(
        text, hint="" if state == State.UNKNOWN else f"start it: hypemanctl start {instance.name}"
    )


def wait_until_started(client: Client, instance: Instance, timeout: float | None) -> Instance:
    """Wait until a VM that was just started is Running, or has exited successfully. Raises StartFailed with
    the known reason, and TimedOut after `timeout` seconds. None: the boot's own deadline is systemd's, which
    ends it then; it does not run while the VM waits for other units or for space on a disk."""
    name = instance.name
    seconds = math.inf if timeout is None else timeout
    last = instance
    with LiveLine(f"{name}: starting") as line:
        try:
            for last in watch(client, name, seconds):
                line.update(f"{name}: {describe_status(last)}")
                if last.state == State.RUNNING:
                    return last
                if last.state == State.STANDBY:
                    raise _build_not_restored(last)
                if last.state in ENDED_STATES and not is_being_deleted(last):
                    return _check_has_run(last)
        except TimeoutError:
            raise build_timed_out(name, State.RUNNING, seconds, last) from None
    raise NotFound(f"{name} was removed while it was starting")


def _check_has_run(instance: Instance) -> Instance:
    """A program may be quicker than we look: a run that is over and was good is no failure."""
    if instance.exit_code == 0 and not has_failed(instance):
        return instance
    name = instance.name
    why = describe_exit(instance) or instance.status_text or "unknown reason"
    raise StartFailed(f"{name} did not start: {why}", hint=f"see: hypemanctl status {name}")


def _build_not_restored(instance: Instance) -> StartFailed:
    name = instance.name
    return StartFailed(
        f"{name} did not start, and is in Standby: {describe_exit(instance) or 'unknown reason'}",
        hint=f"see: hypemanctl status {name}; hypemanctl start --cold {name} discards its memory",
    )


@contextlib.contextmanager
def show_progress(client: Client, name: str, text: str) -> Iterator[None]:
    """On a terminal: while a call blocks, show what the daemon says of the VM."""
    with LiveLine(f"{name}: {text}") as line:
        if not line.is_active:
            yield
            return
        follower = _Follower(client, name, line)
        follower.start()
        try:
            yield
        finally:
            follower.stop()


class _Follower:
    """Updates a live line from the daemon's watch stream in a thread. Its failure only costs the text."""

    def __init__(self, client: Client, name: str, line: LiveLine) -> None:
        self._client = client
        self._name = name
        self._line = line
        self._lock = threading.Lock()
        self._events: Events | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._follow, name=f"watch-{name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread. The call that was shown is over, so nothing is lost."""
        with self._lock:
            self._stopped = True
            if self._events is not None:
                self._events.abort()
        self._thread.join()

    def _follow(self) -> None:
        with contextlib.suppress(ApiError), self._client.events("instances", self._name, "watch") as events:
            with self._lock:
                if self._stopped:
                    return
                self._events = events
            for event in events:
                instance = parse(Instance, event)
                self._line.update(f"{self._name}: {describe_status(instance)}")
