# SPDX-License-Identifier: Apache-2.0
"""A service as systemd runs it: its states, what leads from one to the next, and when it is started again.

After systemd's src/core/service.c in its behaviour, for Type= notify, oneshot and simple.
"""

from __future__ import annotations

import asyncio
import signal
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from tests.fakes.process import Exit, Process

INFINITY = 2**64 - 1
_SECOND = 1_000_000
_ACTIVE = {
    "dead": "inactive",
    "failed": "failed",
    "start": "activating",
    "auto-restart": "activating",
    "running": "active",
    "exited": "active",
}
_DEFAULTS: Mapping[str, Any] = {
    "Type": "simple",
    "NotifyAccess": "main",
    "Restart": "no",
    "RestartUSec": 100_000,
    "RestartSteps": 0,
    "WatchdogSignal": signal.SIGABRT,
    "RestartMaxDelayUSec": INFINITY,
    "TimeoutStartUSec": 90 * _SECOND,
    "TimeoutStopUSec": 90 * _SECOND,
    "StartLimitBurst": 5,
    "StartLimitIntervalUSec": 10 * _SECOND,
    "CollectMode": "inactive",
    "RemainAfterExit": False,
    "ExecStart": [],
    "ExecStop": [],
    "ExecStopPost": [],
    "After": [],
    "Description": "",
    "BindPaths": [],
    "BindReadOnlyPaths": [],
}
# what ends a service in order (systemd.service(5), SuccessExitStatus=)
_CLEAN_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)


class Host(Protocol):
    """What a service needs of the service manager."""

    def spawn(
        self, unit: str, argv: list[str], env: dict[str, str], on_end: Callable[[], None]
    ) -> Process: ...
    def later(self, seconds: float, work: Callable[[], None]) -> asyncio.TimerHandle: ...
    def now(self) -> float: ...
    def state_changed(self, service: Service) -> None: ...
    def restart_due(self, service: Service) -> None: ...


class Service:
    """A service that is loaded. `fragment`: the file it is from, also that of a transient one."""

    def __init__(self, name: str, properties: Mapping[str, Any], host: Host, *, fragment: str) -> None:
        self.name = name
        self.fragment = fragment
        self.properties = {**_DEFAULTS, **properties}
        self.sub = "dead"
        self.result = "success"
        self.invocation = ""
        self.restarts = 0
        self.status_text = ""
        self.started_at = 0.0
        self.start_monotonic = 0.0
        self.changed_at = 0.0
        self.main: Process | None = None
        self.main_exit: Exit | None = None
        self._control: Process | None = None
        self._commands: list[list[str]] = []
        self._host = host
        self._timer: asyncio.TimerHandle | None = None
        self._starts: list[float] = []
        self._forbid_restart = False
        self._auto = False

    @property
    def active(self) -> str:
        """Its ActiveState."""
        return _ACTIVE.get(self.sub, "deactivating")

    @property
    def control_pid(self) -> int:
        """Of the command beside its main process, or after it; 0: there is none."""
        return 0 if self._control is None else self._control.pid

    @property
    def is_gone(self) -> bool:
        """Has it ended, for now?"""
        return self.sub in ("dead", "failed")

    @property
    def may_be_forgotten(self) -> bool:
        """Is it to be unloaded, if no job is under way?"""
        return self.sub == "dead" or (
            self.sub == "failed" and self.properties["CollectMode"] == "inactive-or-failed"
        )

    # jobs

    def start(self) -> None:
        """What a start job does with one that is gone."""
        if self._is_started_too_often():
            self._take("start-limit-hit")
            self._set("failed")
            return
        if not self._auto:
            self.restarts = 0
        self._auto = self._forbid_restart = False
        self.result, self.status_text, self.main_exit = "success", "", None
        self.invocation = uuid.uuid4().hex
        self.started_at, self.start_monotonic = time.time(), time.monotonic()
        (command,) = self.properties["ExecStart"]
        self.main = self._host.spawn(self.name, _argv(command), self._env(), self._main_ended)
        if self.properties["Type"] == "simple":
            self._set("running")
        else:
            self._set("start")
            self._arm("TimeoutStartUSec", self._start_timed_out)

    def _is_started_too_often(self) -> bool:
        now = self._host.now()
        interval = self.properties["StartLimitIntervalUSec"] / _SECOND
        self._starts = [at for at in self._starts if now - at < interval]
        if interval and len(self._starts) >= self.properties["StartLimitBurst"] > 0:
            return True
        self._starts.append(now)
        return False

    def stop(self) -> None:
        """What a stop job does with one that is not gone."""
        self._forbid_restart = True
        if self.sub == "auto-restart":
            self._set("dead" if self.result == "success" else "failed")
        elif self.sub == "start":
            self._signal("stop-sigterm", "success")
        elif self.sub in ("running", "exited"):
            self._stop("success")

    def allow_restart(self) -> None:
        """The restart that is due by itself is made."""
        self._auto = True
        self.restarts += 1

    def reset_failed(self) -> None:
        """`systemctl reset-failed`."""
        self._starts, self.restarts = [], 0
        if self.sub == "failed":
            self.result = "success"
            self._set("dead")

    def kill(self, number: int) -> bool:
        """Send its main process a signal. False: there is none."""
        if self.main is None:
            return False
        self.main.kill(number)
        return True

    def notify(self, pid: int, assignments: Mapping[str, str]) -> None:
        """What came by the notification socket, from that process."""
        control = self._control if self.properties["NotifyAccess"] != "main" else None
        senders = [process.pid for process in (self.main, control) if process is not None]
        if pid not in senders:
            return
        if "STATUS" in assignments:
            self.status_text = assignments["STATUS"]
            self._host.state_changed(self)
        if self.sub in ("start", "stop") and "EXTEND_TIMEOUT_USEC" in assignments:
            late = self._start_timed_out if self.sub == "start" else self._stop_timed_out
            self._arm_for(int(assignments["EXTEND_TIMEOUT_USEC"]), late)
        if assignments.get("WATCHDOG") == "trigger":
            self._signal("stop-watchdog", "watchdog")
        if assignments.get("READY") == "1" and self.sub == "start" and self.properties["Type"] == "notify":
            self._set("running")

    # processes that end

    def _main_ended(self) -> None:
        assert self.main is not None
        ended, self.main = self.main.exit, None
        self.main_exit = ended
        how = self._judge(ended, daemon=self.properties["Type"] != "oneshot")
        if self.result == "success":
            self.result = how
        if self.sub == "start":
            self._end_start(how)
        elif self.sub == "running":
            if self.result != "success":
                self._signal("stop-sigterm", how)
            elif self.properties["RemainAfterExit"]:
                self._set("exited")
            else:
                self._stop("success")
        elif self._control is None:
            self._go_on(how)

    def _end_start(self, how: str) -> None:
        if how != "success":
            self._signal("stop-sigterm", how)
        elif self.properties["Type"] != "oneshot":
            self._signal("stop-sigterm", "protocol")
        elif self.properties["RemainAfterExit"]:
            self._set("exited")
        else:
            self._stop("success")

    def _control_ended(self) -> None:
        assert self._control is not None
        how, self._control = self._judge(self._control.exit, daemon=False), None
        if self.result == "success":
            self.result = how
        if self.sub in ("stop", "stop-post") and how == "success" and self._commands:
            self._next_command()
        elif self.sub == "stop":
            self._signal("stop-sigterm", how)
        elif self.sub == "stop-post":
            self._signal("final-sigterm", how)
        elif self.main is None:
            self._go_on(how)

    def _go_on(self, how: str) -> None:
        """The last process of this state has ended."""
        if self.sub == "stop":
            self._signal("stop-sigterm", how)
        elif self.sub in ("stop-sigterm", "stop-sigkill", "stop-watchdog"):
            self._stop_post(how)
        elif self.sub == "stop-post":
            self._signal("final-sigterm", how)
        else:
            self._die(how)

    def _judge(self, ended: Exit | None, *, daemon: bool) -> str:
        assert ended is not None
        if ended.code == "exited":
            return "success" if ended.status == 0 else "exit-code"
        return "success" if daemon and ended.status in _CLEAN_SIGNALS else "signal"

    # the way down

    def _stop(self, how: str) -> None:
        self._take(how)
        self._commands = [_argv(command) for command in self.properties["ExecStop"]]
        if not self._commands:
            self._signal("stop-sigterm", "success")
            return
        self._next_command()
        self._set("stop")
        self._arm("TimeoutStopUSec", self._stop_timed_out)

    def _next_command(self) -> None:
        env = self._env()
        if self.main_exit is not None:
            env |= {"EXIT_CODE": self.main_exit.code, "EXIT_STATUS": self.main_exit.word}
        env["SERVICE_RESULT"] = self.result
        if self.main is not None:
            env["MAINPID"] = str(self.main.pid)
        self._control = self._host.spawn(self.name, self._commands.pop(0), env, self._control_ended)

    def _signal(self, sub: str, how: str) -> None:
        self._take(how)
        processes = [process for process in (self.main, self._control) if process is not None]
        if not processes:
            if sub.startswith("stop"):
                self._stop_post("success")
            else:
                self._die("success")
            return
        self._set(sub)
        self._arm("TimeoutStopUSec", self._stop_timed_out)
        for process in processes:
            process.kill(self._signal_of(sub))

    def _signal_of(self, sub: str) -> int:
        if sub == "stop-watchdog":
            return int(self.properties["WatchdogSignal"])
        return signal.SIGKILL if sub.endswith("kill") else signal.SIGTERM

    def _stop_post(self, how: str) -> None:
        self._take(how)
        self._commands = [_argv(command) for command in self.properties["ExecStopPost"]]
        if not self._commands:
            self._signal("final-sigterm", "success")
            return
        self._next_command()
        self._set("stop-post")
        self._arm("TimeoutStopUSec", self._stop_timed_out)

    def _die(self, how: str) -> None:
        self._take(how)
        self._set("dead" if self.result == "success" else "failed")
        if self._shall_restart():
            self._set("auto-restart")
            self._arm_for(self._derive_delay(), lambda: self._host.restart_due(self))

    def _derive_delay(self) -> int:
        """Microseconds until it is started again (service_restart_usec_next)."""
        first: int = self.properties["RestartUSec"]
        steps, last = self.properties["RestartSteps"], self.properties["RestartMaxDelayUSec"]
        number = self.restarts + 1
        if number <= 1 or not steps or not first or last == INFINITY or first >= last:
            return first
        return int(last if number > steps else first * (last / first) ** ((number - 1) / steps))

    def _shall_restart(self) -> bool:
        if self._forbid_restart:
            return False
        match self.properties["Restart"]:
            case "always":
                return True
            case "on-failure":
                return self.result != "success"
            case "on-watchdog":
                return self.result == "watchdog"
            case _:
                return False

    def _start_timed_out(self) -> None:
        self._signal("stop-sigterm", "timeout")

    def _stop_timed_out(self) -> None:
        if self.sub == "stop":
            self._signal("stop-sigterm", "timeout")
        elif self.sub == "stop-post":
            self._signal("final-sigterm", "timeout")
        else:
            self._signal(self.sub.replace("sigterm", "sigkill").replace("watchdog", "sigkill"), "timeout")

    # small things

    def _take(self, how: str) -> None:
        if self.result == "success":
            self.result = how

    def _set(self, sub: str) -> None:
        self.disarm()
        self.sub, self.changed_at = sub, time.time()
        self._host.state_changed(self)

    def disarm(self) -> None:
        """No time is up for it until its next state: what it executes does real work, which on a busy machine
        takes longer than the speed of this systemd leaves."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, name: str, work: Callable[[], None]) -> None:
        self._arm_for(self.properties[name], work)

    def _arm_for(self, microseconds: int, work: Callable[[], None]) -> None:
        self.disarm()
        self._timer = None if microseconds == INFINITY else self._host.later(microseconds / _SECOND, work)

    def _env(self) -> dict[str, str]:
        return {"INVOCATION_ID": self.invocation}

    async def close(self) -> None:
        """End its processes with the test."""
        self.disarm()
        for process in (self.main, self._control):
            if process is not None:
                await process.close()


def _argv(command: tuple[str, list[str], bool]) -> list[str]:
    return [word.replace("$$", "$") for word in command[1]]
