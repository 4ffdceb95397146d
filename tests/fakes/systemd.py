# SPDX-License-Identifier: Apache-2.0
"""systemd on its bus, in the test's own event loop: `hypemand.systemd.port.Bus`.

What it does is proved against the real one by tests/fakes/contract.py. What the real one leaves open, a test
decides: whether an answer is late or lost, when jobs run, whether signals arrive, and when the bus is gone.
"""

from __future__ import annotations

import asyncio
import errno
import fnmatch
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from hypemand.systemd.bus import BusError, unit_path
from hypemand.systemd.busframes import PROPERTIES, Part
from hypemand.systemd.extras import EXTRA_PROPERTIES
from hypemand.systemd.units import SERVICE
from tests.fakes.jobs import Jobs
from tests.fakes.process import Process, Program
from tests.fakes.properties import KNOWN, read_property
from tests.fakes.service import Service

_log = logging.getLogger(__name__)
_JOBS = "/org/freedesktop/systemd1/job/"
_GONE = "the connection to the bus was lost"

Callback = Callable[[dict[str, Any]], None]


class FakeSystemd:
    """systemd, its units and their processes. `program` is what processes do. `speed`: how much faster than
    the clock its own times pass. `files`: properties of unit files, by name; a template's ends with an @."""

    def __init__(self, program: Program, *, speed: float = 1.0) -> None:
        self.program = program
        self.files: dict[str, Mapping[str, Any]] = {}
        self.units: dict[str, Service] = {}
        self.jobs = Jobs(self._mark)
        # each call, by the name of its method
        self.asked: list[str] = []
        # errors: of calls that are not made, and of calls whose answer is lost; by method, each once
        self.refuse: dict[str, BusError] = {}
        self.lose: dict[str, BusError] = {}
        # called when such a call has been taken, before it is answered
        self.hooks: dict[str, Callable[[], Any]] = {}
        # open: calls are taken; answers are given
        self.takes, self.answers = asyncio.Event(), asyncio.Event()
        self.takes.set()
        self.answers.set()
        self.machines: list[str] = []
        self.version = "257.7-1"
        # signals: the path of the unit, and what they say
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self._speed = speed
        self._processes: list[Process] = []
        self._watches: dict[str, tuple[tuple[str, ...], Callback]] = {}
        self._turn = asyncio.Lock()
        self._is_up = True
        self._listening = False
        self._on_reconnect: Callable[[], None] | None = None
        self._dirty: dict[str, None] = {}
        self._due: asyncio.Handle | None = None
        self._held: list[tuple[str, dict[str, Any]]] | None = None
        self._is_away = False
        self._notes: list[tuple[int, Mapping[str, str]]] = []

    # the bus

    def start(self) -> None:
        """See Bus."""

    async def close(self) -> None:
        """End all processes."""
        if self._due is not None:
            self._due.cancel()
        for unit in list(self.units.values()):
            await unit.close()
        for process in self._processes:
            await process.close()

    async def call(self, service: str, path: str, member: str, arguments: Sequence[Part]) -> Any:
        """See Bus."""
        interface, _, method = member.rpartition(".")
        values: list[Any] = []
        for signature, part in arguments:
            values += [part] if signature == PROPERTIES else list(part)
        async with self._asked(method):
            if (interface, method) == (f"{SERVICE}.Job", "GetBefore"):
                return self._list_before(path)
            return self._do(service, interface, method, values)

    async def get_property(self, service: str, path: str, name: str) -> Any:
        """See Bus."""
        async with self._asked("Get"):
            return self._read(path, name)

    async def get_unit_properties(self, unit: str, names: Sequence[str]) -> list[Any] | None:
        """See Bus."""
        async with self._asked("Get"):
            if unit not in self.units:
                return None
            return [self._read(unit_path(unit), name) for name in names]

    @asynccontextmanager
    async def _asked(self, method: str) -> AsyncIterator[None]:
        """One call at a time, as it is with the real one; who gives up takes back nothing."""
        self.asked.append(method)
        async with self._turn:
            await self.takes.wait()
            await asyncio.sleep(0)
            if not self._is_up:
                raise BusError(_GONE, errno.ENOTCONN)
            if (error := self.refuse.pop(method, None)) is not None:
                raise error
            yield
            if (hook := self.hooks.pop(method, None)) is not None:
                hooked = hook()
                if hooked is not None:
                    await hooked
            await self.answers.wait()
            if (error := self.lose.pop(method, None)) is not None:
                raise error
            if not self._is_up:
                raise BusError(_GONE, errno.ENOTCONN)

    def watch_properties(self, path: str, names: Sequence[str], callback: Callback) -> None:
        """See Bus."""
        self._watches[path] = (tuple(names), callback)

    def unwatch_properties(self, path: str) -> None:
        """See Bus."""
        self._watches.pop(path, None)

    async def start_signals(self, on_reconnect: Callable[[], None], patience: float) -> None:
        """See Bus."""
        self._listening = self._is_up
        self._on_reconnect = on_reconnect

    # what happens to it

    def lose_bus(self) -> None:
        """The bus is gone: no calls, no signals. Units go on."""
        self._is_up = self._listening = False

    def find_bus(self) -> None:
        """The bus is back, and the signals since are lost."""
        self._is_up = self._listening = True
        if self._on_reconnect is not None:
            self._on_reconnect()

    @contextmanager
    def signals_held(self) -> Iterator[list[tuple[str, dict[str, Any]]]]:
        """Signals in this block arrive at its end, in the order that the list has by then."""
        held = self._held = []
        try:
            yield held
        finally:
            self._held = None
            for path, changed in held:
                self.deliver(path, changed)

    @contextmanager
    def jobs_held(self, *units: str, stops: bool = False) -> Iterator[None]:
        """Jobs to start these units, or to stop them, do not begin in this block."""
        held = self.jobs.held_stops if stops else self.jobs.held
        held.update(units)
        try:
            yield
        finally:
            held.difference_update(units)
            self._schedule()

    async def reexecute(self, seconds: float = 0.05) -> None:
        """`daemon-reexec`: it hears nobody for so long, and knows afterwards what it knew before."""
        self.takes.clear()
        self._is_away = True
        await asyncio.sleep(seconds)
        self._is_away = False
        self.takes.set()
        notes, self._notes = self._notes, []
        for pid, assignments in notes:
            self._take_note(pid, assignments)
        self._schedule()

    def notify(self, pid: int, *assignments: str) -> None:
        """What `notify_for` sends to its socket; it comes there in its own time."""
        values = dict(word.partition("=")[::2] for line in assignments for word in line.splitlines())
        asyncio.get_running_loop().call_soon(self._take_note, pid, values)

    def _take_note(self, pid: int, assignments: Mapping[str, str]) -> None:
        if self._is_away:
            self._notes.append((pid, assignments))
            return
        for unit in list(self.units.values()):
            unit.notify(pid, assignments)

    # methods of its own object

    def _do(self, service: str, interface: str, method: str, values: list[Any]) -> Any:
        if service != SERVICE:
            return self._register(method, values)
        match method, values:
            case "StartTransientUnit", [name, mode, properties, _]:
                return [self._start_transient(name, mode, properties)]
            case ("StartUnit" | "RestartUnit") as method, [name, mode]:
                unit = self._load(name)
                if unit is None:
                    raise BusError(f"Unit {name} not found.", errno.ENOENT)
                return self.jobs.add(name, method.removesuffix("Unit").lower(), mode).path
            case "StopUnit", [name, mode]:
                if self._load(name) is None:
                    raise BusError(f"Unit {name} not loaded.", errno.ENOENT)
                return self.jobs.add(name, "stop", mode).path
            case "KillUnit", [name, _, number]:
                if not self._get(name).kill(number):
                    raise BusError("No main process to kill", errno.ESRCH)
            case "SetUnitProperties", [name, True, properties]:
                # of those that a unit may be given later
                assert {key for key, _, _ in properties} <= {"CPUQuotaPerSecUSec"}
                self._get(name).properties |= {key: value for key, _, value in properties}
            case "GetUnitProcesses", [name]:
                self._get(name)
                return []  # of a unit that is over, which is when they are asked for
            case "ResetFailedUnit", [name]:
                self._get(name).reset_failed()
                self._schedule()
            case "ListUnitsByPatterns", [states, patterns]:
                return self._list(states, patterns)
            case _:
                raise BusError(f"Unknown method {method} or interface {interface}.", errno.EBADR)
        return None

    def _register(self, method: str, values: list[Any]) -> None:
        if method != "RegisterMachineWithNetwork":
            raise BusError("The name is not activatable", errno.EHOSTUNREACH)
        self.machines.append(values[0])

    def _start_transient(self, name: str, mode: str, properties: Sequence[tuple[str, str, Any]]) -> str:
        for key, _, _ in properties:
            if key not in KNOWN and key not in EXTRA_PROPERTIES:
                raise BusError(f"Cannot set property {key}, or unknown property.", errno.EROFS)
        if name in self.units or name in self.files:
            raise BusError(f"Unit {name} was already loaded or has a fragment file.", errno.EEXIST)
        values = {key: value for key, _, value in properties}
        self.units[name] = Service(name, values, self, fragment=f"/run/systemd/transient/{name}")
        return self.jobs.add(name, "start", mode).path

    def _list(self, states: Sequence[str], patterns: Sequence[str]) -> list[tuple[Any, ...]]:
        return [
            (name, "", "loaded", unit.active, unit.sub, "", unit_path(name), 0, "", "/")
            for name, unit in self.units.items()
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
            and (not states or unit.active in states)
        ]

    def _list_before(self, path: str) -> list[tuple[Any, ...]]:
        """GetBefore of a job: the jobs that have to be over before it may run."""
        for name, unit in self.units.items():
            job = self.jobs.find(name)
            if job is not None and job.path == path:
                return [
                    (other.number, other.unit, other.kind, "waiting", other.path, unit_path(other.unit))
                    for other in self.jobs.list_before(unit)
                ]
        raise BusError(f"Unknown object '{path}'.", errno.EBADR)

    def _load(self, name: str) -> Service | None:
        """A unit, from its file if it is not loaded yet."""
        if name in self.units:
            return self.units[name]
        file = name if name in self.files else f"{name.partition('@')[0]}@"
        if file not in self.files:
            return None
        unit = self.units[name] = Service(
            name, self.files[file], self, fragment=f"/lib/systemd/system/{file}"
        )
        return unit

    def _get(self, name: str) -> Service:
        if name not in self.units:
            raise BusError(f"Unit {name} not loaded.", errno.ENOENT)
        return self.units[name]

    def _read(self, path: str, name: str) -> Any:
        if name == f"{SERVICE}.Manager.Version":
            return self.version
        if path.startswith(_JOBS):
            for known in self.units:
                job = self.jobs.find(known)
                if job is not None and job.path == path:
                    return job.kind
            raise BusError(f"Unknown object '{path}'.", errno.EBADR)
        unit = next((unit for unit in self.units.values() if unit_path(unit.name) == path), None)
        job = None if unit is None else self.jobs.find(unit.name)
        return read_property(unit, job, name.removeprefix(f"{SERVICE}."))

    # for services

    def spawn(self, unit: str, argv: list[str], env: dict[str, str], on_end: Callable[[], None]) -> Process:
        """Run a command of a unit."""
        process = Process(unit, argv, env)
        process.start(self.program, on_end)
        self._processes.append(process)
        return process

    def later(self, seconds: float, work: Callable[[], None]) -> asyncio.TimerHandle:
        """Do something in so many seconds of its own."""
        return asyncio.get_running_loop().call_later(seconds / self._speed, work)

    def now(self) -> float:
        """Seconds of its own time."""
        return time.monotonic() * self._speed

    def state_changed(self, service: Service) -> None:
        """A service has another state, or something else that is told of."""
        self.jobs.take_change(service)
        self._mark(service.name)

    def restart_due(self, service: Service) -> None:
        """RestartUSec= has passed since a service has ended."""
        job = self.jobs.find(service.name)
        if job is not None and job.kind == "stop":
            return
        service.stop()
        service.allow_restart()
        self.jobs.add(service.name, "restart", "replace")
        self._schedule()

    # its own event loop

    def _mark(self, unit: str) -> None:
        self._dirty[unit] = None
        self._schedule()

    def _schedule(self) -> None:
        if self._due is None:
            self._due = asyncio.get_running_loop().call_soon(self._turn_once)

    def _turn_once(self) -> None:
        """Jobs first, then signals, then what is not needed any more is unloaded."""
        self._due = None
        if self._is_away:
            return
        for _ in range(10):
            if not self.jobs.run(self.units.get):
                break
        dirty, self._dirty = list(self._dirty), {}
        for name in dirty:
            if name in self.units:
                self._signal(name)
        for name, unit in list(self.units.items()):
            if unit.may_be_forgotten and self.jobs.find(name) is None:
                del self.units[name]

    def _signal(self, name: str) -> None:
        path = unit_path(name)
        watch = self._watches.get(path)
        if watch is None or not self._listening:
            return
        unit, job = self.units[name], self.jobs.find(name)
        prefix = f"{SERVICE}."
        changed = {key: read_property(unit, job, key.removeprefix(prefix)) for key in watch[0]}
        if self._held is not None:
            self._held.append((path, changed))
        else:
            self.sent.append((path, changed))
            asyncio.get_running_loop().call_soon(self.deliver, path, changed)

    def deliver(self, path: str, changed: dict[str, Any]) -> None:
        """A signal arrives."""
        watch = self._watches.get(path)
        if watch is None or not self._is_up:
            return
        try:
            watch[1](changed)
        except Exception:  # as SystemBus does
            _log.exception("what systemd signals of %s could not be taken", path)
