# SPDX-License-Identifier: Apache-2.0
"""The transient unit of a VM: its properties, and what can be done to it over D-Bus."""

from __future__ import annotations

import errno
import math
import os
import re
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypemand.config.definition import Secret
from hypemand.config.guestfiles import decode_encrypted
from hypemand.model.evidence import UnitEvidence
from hypemand.systemd.bus import BusError, unit_path
from hypemand.systemd.busframes import PROPERTIES, Part
from hypemand.systemd.extras import INFINITY, derive_log_limit, extra_properties, microseconds
from hypemand.systemd.port import Bus
from hypemand.systemd.rootdir import root_properties
from hypemand.systemd.sandbox import Property, sandbox_properties
from hypemand.unitnames import HANDLES, VM_UNITS, unit_name, vm_of_handle, vm_of_unit

SERVICE = "org.freedesktop.systemd1"
MANAGER = "/org/freedesktop/systemd1"
SLICE = "hypeman.slice"
GROWTH_SINCE = 254  # systemd.service(5), RestartSteps=
RESTART_STEPS = 5
"""In how many restarts the delay before them grows to its maximum."""


@dataclass(frozen=True, slots=True)
class DeviceAccess:
    """A block device that a unit may open, as a member of its `group`."""

    path: Path
    group: int
    writes: bool


@dataclass(frozen=True, slots=True)
class UnitPlan:
    """All that a VM's unit is made of. Sizes in bytes, times in seconds (None: infinity). `stop_timeout`: of
    each step of its end; `stop` may ask systemd for more for itself.

    `restart`: Restart=, in systemd's words. `start_limit`: how many starts are made within so many seconds.
    `restart_delay`: before a restart, and what it grows to, where systemd has that. `watchdog`: may the
    daemon call for it?

    `readable`, `writable` and `volumes` (files that are written to): what the VMM sees, as pairs of the path
    on the host and the one in `root`. `sockets`: those it connects to, likewise; `saved`: what it is restored
    from, which is there for one start. `mounts`: paths whose file systems must be mounted. `devices`: what of
    the former are block devices. `secrets`: its credentials. `unit`: its name, if it is not that of a VM's
    (`vm_id` is "" then); `idle`: it runs at idle priority.
    """

    vm: str
    vm_id: str
    uid: int
    start: tuple[str, ...]
    stop: tuple[str, ...]
    stop_post: tuple[str, ...]
    root: Path
    readable: tuple[tuple[Path, Path], ...]
    writable: tuple[tuple[Path, Path], ...]
    memory_max: int
    cpu_quota: float
    tasks_max: int
    boot_timeout: float | None
    stop_timeout: float
    restart: str
    restart_delay: tuple[float, float]
    start_limit: tuple[int, float | None]
    kvm: bool
    watchdog: bool
    extra: Mapping[str, tuple[str, ...]]
    volumes: tuple[tuple[Path, Path], ...] = ()
    mounts: tuple[Path, ...] = ()
    devices: tuple[DeviceAccess, ...] = ()
    sockets: tuple[tuple[Path, Path], ...] = ()
    saved: tuple[tuple[Path, Path], ...] = ()
    unit: str = ""
    idle: bool = False
    secrets: tuple[Secret, ...] = ()


@dataclass(frozen=True, slots=True)
class UnitStatus:
    """What systemd says of a unit at one moment. `active_state` None: there is no such unit.

    `start_monotonic` and `started_at` (since the epoch): when its main process was spawned, or has become
    that (MAINPID=); `changed_at`: when its state was another one last. `memory_current` in bytes.
    `waits_for`: the units whose jobs come before its own, which is queued. `answered`: what of this systemd
    signals, as it does.
    """

    active_state: str | None
    sub_state: str = ""
    invocation_id: str | None = None
    main_pid: int | None = None
    started_at: float | None = None
    changed_at: float | None = None
    memory_current: int | None = None
    start_monotonic: float | None = None
    waits_for: tuple[str, ...] = ()
    answered: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def is_live(self) -> bool:
        """See `UnitEvidence`."""
        return UnitEvidence.from_active_state(self.active_state).is_live


def unit_properties(plan: UnitPlan) -> list[Property]:
    """Properties for StartTransientUnit: (name, signature, value)."""
    properties: list[Property] = [
        ("Description", "s", f"Micro VM {plan.vm}"),
        ("Documentation", "as", ["man:hypemand(8)", "man:hypemanctl(1)"]),
        ("Slice", "s", SLICE),
        # at shutdown the VMs stop while the daemon is still there, and can ask systemd
        ("After", "as", ["dbus.service", "hypemand.service"]),
        ("Type", "s", "notify"),
        # exec: ExecStopPost= says how the run has ended
        ("NotifyAccess", "s", "exec"),
        ("ExecStart", "a(sasb)", [_command(plan.start)]),
        ("ExecStop", "a(sasb)", [_command(plan.stop)]),
        ("ExecStopPost", "a(sasb)", [_command(plan.stop_post)]),
        # ExecStop= and ExecStopPost= run as root, outside of the sandbox. (Their "+" would do the same, but
        # systemd 252 forgets commands with flags at a daemon-reload.)
        ("PermissionsStartOnly", "b", True),
        # Not mixed: that kills what is left at the moment in which the VMM has ended, with its last words. So
        # what passes those on has its time (it ignores SIGTERM), and all end with ExecStopPost=, however that
        # ends.
        ("KillMode", "s", "control-group"),
        ("Restart", "s", plan.restart),
        ("TimeoutStartUSec", "t", microseconds(plan.boot_timeout)),
        ("TimeoutStopUSec", "t", microseconds(plan.stop_timeout)),
        # before those of the definition, of which the last one counts
        ("RestartUSec", "t", microseconds(plan.restart_delay[0])),
        ("StartLimitBurst", "u", plan.start_limit[0]),
        ("StartLimitIntervalUSec", "t", microseconds(plan.start_limit[1])),
        # its group is that of its record: to name that too would be one more question to systemd itself
        ("User", "s", str(plan.uid)),
        ("StandardInput", "s", "null"),
        ("StandardOutput", "s", "journal"),
        ("StandardError", "s", "inherit"),
        ("SyslogIdentifier", "s", plan.vm),
        # a guest's "<0>" at the start of a line is text: journald would send such a line to every terminal
        ("SyslogLevelPrefix", "b", False),
        ("LogExtraFields", "aay", _log_fields(plan)),
        ("MemoryMax", "t", plan.memory_max),
        ("CPUQuotaPerSecUSec", "t", round(plan.cpu_quota * 1e6)),
        ("TasksMax", "t", plan.tasks_max),
        # for metrics: its memory and CPU are counted for the sake of their limits
        ("IOAccounting", "b", True),
        ("OOMPolicy", "s", "stop"),
        # as containers and VMs of others do
        ("IgnoreOnIsolate", "b", True),
    ]
    properties += root_properties(
        plan.root,
        readable=plan.readable,
        writable=plan.writable,
        volumes=plan.volumes,
        passing=(*plan.sockets, *plan.saved),
    )
    properties += sandbox_properties(kvm=plan.kvm)
    properties += _allow_devices(plan.devices)
    properties += _credentials(plan.secrets)
    properties += [("RequiresMountsFor", "as", [str(path)]) for path in plan.mounts]
    if plan.idle:
        properties += _IDLE
    if plan.watchdog:
        # what the launcher's leader makes an order to the guest of; the VMM ignores it
        properties.append(("WatchdogSignal", "i", int(signal.SIGURG)))
    limit = derive_log_limit(plan.extra)
    properties += extra_properties({**limit, **plan.extra, **limit})
    return properties


def _allow_devices(devices: tuple[DeviceAccess, ...]) -> list[Property]:
    """All else of the group is still denied: neither its nodes nor the access to them are in the sandbox."""
    found: list[Property] = [
        ("DeviceAllow", "a(ss)", [(str(one.path), "rw" if one.writes else "r")]) for one in devices
    ]
    groups = sorted({str(one.group) for one in devices})
    return [*found, ("SupplementaryGroups", "as", groups)] if groups else []


def _log_fields(plan: UnitPlan) -> list[bytes]:
    fields = {"HYPEMAN_VM": plan.vm, "HYPEMAN_VM_ID": plan.vm_id} if plan.vm_id else {}
    return [f"{key}={value}".encode() for key, value in fields.items()]


# sched(7), ioprio_set(2)
_IDLE: tuple[Property, ...] = (("CPUSchedulingPolicy", "i", os.SCHED_IDLE), ("IOSchedulingClass", "i", 3))


def growth_properties(plan: UnitPlan) -> list[Property]:
    """What has the delay before restarts grow, for a systemd that has that (254); none where it does not."""
    first, last = plan.restart_delay
    if last <= first:
        return []
    return [("RestartSteps", "u", RESTART_STEPS), ("RestartMaxDelayUSec", "t", microseconds(last))]


def _credentials(secrets: tuple[Secret, ...]) -> list[Property]:
    """systemd reads and decrypts them at every start, also at those that it makes alone."""
    content = [s for s in secrets if s.encrypted_content is not None]
    plain = [s for s in secrets if s.encrypted_content is None and not s.encrypted]
    encrypted = [s for s in secrets if s.encrypted_content is None and s.encrypted]
    found: list[Property] = [
        ("LoadCredential", "a(ss)", [(s.name, s.source) for s in plain]),
        ("LoadCredentialEncrypted", "a(ss)", [(s.name, s.source) for s in encrypted]),
        (
            "SetCredentialEncrypted",
            "a(say)",
            [(s.name, decode_encrypted(s.encrypted_content or "")) for s in content],
        ),
    ]
    return [prop for prop in found if prop[2]]


def _command(argv: tuple[str, ...]) -> tuple[str, list[str], bool]:
    # systemd replaces variables in it: there are none of ours
    return (argv[0], [argument.replace("$", "$$") for argument in argv], False)


@dataclass(frozen=True, slots=True)
class _Property:
    """A property that is read: its name on the bus, the field of UnitStatus, and what is made of it."""

    name: str
    field: str
    convert: Callable[[Any], Any]


def _seconds(microseconds: int) -> float | None:
    return microseconds / 1e6 or None


# systemd answers each question at a time of its own: what comes between two leaves its mark in the last
_STAMP = "Unit.StateChangeTimestampMonotonic"
_MAX_TORN = 5
_PROPERTIES = (
    _Property(_STAMP, "stamp", int),
    # the job before the state: a job that is over by the time it is asked for has left its mark on the state
    _Property("Unit.Job", "job", lambda value: value[1] if value[0] else None),
    _Property("Unit.ActiveState", "active_state", str),
    _Property("Unit.SubState", "sub_state", str),
    _Property("Unit.InvocationID", "invocation_id", lambda value: bytes(value).hex() or None),
    _Property("Service.MainPID", "main_pid", lambda value: value or None),
    _Property("Service.ExecMainStartTimestampMonotonic", "start_monotonic", _seconds),
    _Property("Service.ExecMainStartTimestamp", "started_at", _seconds),
    _Property("Unit.StateChangeTimestamp", "changed_at", _seconds),
    _Property(_STAMP, "stamp_after", int),
)
_BOUND = (f"{SERVICE}.Service.BindReadOnlyPaths", f"{SERVICE}.Service.BindPaths")
_MEMORY = _Property(
    "Service.MemoryCurrent", "memory_current", lambda value: None if value == INFINITY else value
)
_ACTIVE_STATE, _INVOCATION = f"{SERVICE}.Unit.ActiveState", f"{SERVICE}.Unit.InvocationID"
_STAMP_NAME = f"{SERVICE}.{_STAMP}"
# systemd signals all properties of an interface when one may have changed: what these are tells the others
_TELLING = (
    _ACTIVE_STATE,
    _INVOCATION,
    f"{SERVICE}.Unit.Job",
    f"{SERVICE}.Unit.SubState",
    _STAMP_NAME,
    f"{SERVICE}.Service.MainPID",
)


class UnitWatch:
    """A unit that somebody watches: `callback` is called when a signal says what systemd has not answered him
    yet (`Units.status`), with the ActiveState that was signalled last, if one was.

    systemd signals on another connection than it answers on: what it signals may be older than an answer that
    is there already, or that is under way.
    """

    def __init__(self, callback: Callable[[str], None]) -> None:
        self._callback = callback
        self._known: dict[str, Any] = {}
        self._questions = 0
        # the last signal of each interface
        self._held: dict[tuple[str, ...], dict[str, Any]] = {}

    def take_signal(self, changed: dict[str, Any]) -> None:
        """Some properties, all of one moment."""
        if self._questions:
            self._held[tuple(changed)] = changed
            return
        is_older = changed.get(_STAMP_NAME, math.inf) < self._known.get(_STAMP_NAME, 0)
        if not is_older and not changed.items() <= self._known.items():
            self._known |= changed
            self._callback(str(self._known.get(_ACTIVE_STATE, "")))

    @contextmanager
    def asking(self) -> Iterator[None]:
        """He asks in the block: what is signalled meanwhile counts after it. Where that fails, what he was
        answered counts for nothing."""
        self._questions += 1
        try:
            yield
        except BaseException:
            self._known = {}
            raise
        finally:
            self._questions -= 1
            if not self._questions:
                held, self._held = self._held, {}
                for changed in held.values():
                    self.take_signal(changed)

    def take_answer(self, status: UnitStatus) -> None:
        """What he was answered, which is newer than all that was signalled before."""
        self._known = dict(status.answered)


class Units:
    """Units over D-Bus. All methods raise BusError (a HostNotReady) when systemd cannot be asked."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._grows: bool | None = None

    async def start_transient(self, plan: UnitPlan) -> None:
        """Make and start a VM's unit; back when systemd has taken the job."""
        growth = growth_properties(plan)
        if growth and not await self._has_growth():
            growth = []
        arguments: tuple[Part, ...] = (
            ("ss", (plan.unit or unit_name(plan.vm), "fail")),
            (PROPERTIES, unit_properties(plan) + growth),
            ("a(sa(sv))", ([],)),
        )
        await self._manager("StartTransientUnit", *arguments)

    async def _has_growth(self) -> bool:
        """Does this systemd have RestartSteps=? Asked once, and only for a VM that has a use for it."""
        if self._grows is None:
            words = str(await self._bus.get_property(SERVICE, MANAGER, f"{SERVICE}.Manager.Version"))
            found = re.match(r"[0-9]+", words)
            self._grows = found is not None and int(found[0]) >= GROWTH_SINCE
        return self._grows

    async def start(self, unit: str) -> None:
        """Queue a start job. BusError with EDEADLK for a unit that is being stopped."""
        await self._manager("StartUnit", ("ss", (unit, "fail")))

    async def stop(self, unit: str) -> None:
        """Queue a stop job. A unit that is not there is no error."""
        await self._unless_missing("StopUnit", "ss", unit, "replace")

    async def kill(self, unit: str, signal: int, *, everything: bool = False) -> None:
        """Send a signal to the unit's main process, or to all of its processes."""
        await self._unless_missing("KillUnit", "ssi", unit, "all" if everything else "main", signal)

    async def processes(self, unit: str) -> list[int]:
        """The processes in the unit's control group, also when the unit is over."""
        try:
            rows = await self._manager("GetUnitProcesses", ("s", (unit,)))
        except BusError as error:
            if error.number != errno.ENOENT:
                raise
            return []
        return [row[1] for row in rows or []]

    async def reset_failed(self, unit: str) -> None:
        """Have systemd forget a failed unit, so that its name can be used again."""
        await self._unless_missing("ResetFailedUnit", "s", unit)

    async def status(self, unit: str, *, with_memory: bool = False) -> UnitStatus:
        """What systemd says of a unit now; the memory it takes only if asked for, since that is dear.

        Single properties, because all of them at once cost PID 1 ten times as much; asked for again where
        the unit has changed between two of them. A unit whose start is queued (systemd answers before it
        begins; `After=` may hold it for long) is activating, with no invocation yet, and with the units that
        it waits for.
        """
        fields = await self._read(unit, [*_PROPERTIES, _MEMORY] if with_memory else _PROPERTIES)
        if fields is None:
            return UnitStatus(None)
        job = fields.pop("job")
        if job is not None and not UnitEvidence.from_active_state(fields["active_state"]).is_live:
            try:
                kind = await self._bus.get_property(SERVICE, job, f"{SERVICE}.Job.JobType")
                before = await self._bus.call(SERVICE, job, f"{SERVICE}.Job.GetBefore", ())
            except BusError as error:
                if error.gone:
                    raise
                return await self.status(unit, with_memory=with_memory)  # the job is over by now
            if kind in ("start", "restart"):
                fields |= {"active_state": "activating", "sub_state": "queued", "invocation_id": None}
                fields["waits_for"] = tuple(sorted({row[1] for row in before or ()} - {unit}))
        return UnitStatus(**fields)

    async def _read(self, unit: str, properties: Sequence[_Property]) -> dict[str, Any] | None:
        """These properties as they were at one moment, by their fields; None: there is no such unit. Of a
        unit that changes all the time the last answer is taken: its next signal has it read again."""
        names = [f"{SERVICE}.{prop.name}" for prop in properties]
        for _ in range(_MAX_TORN):
            try:
                values = await self._bus.get_unit_properties(unit, names)
            except BusError as error:
                if error.number in (errno.ENOENT, errno.EBADR):
                    return None
                raise
            if values is None:
                return None
            fields = {prop.field: prop.convert(value) for prop, value in zip(properties, values, strict=True)}
            fields["answered"] = {
                name: value for name, value in zip(names, values, strict=True) if name in _TELLING
            }
            if fields.pop("stamp") == fields.pop("stamp_after"):
                break
        return None if await self._is_a_name_only(unit, fields["active_state"]) else fields

    async def _is_a_name_only(self, unit: str, active_state: str) -> bool:
        """Does systemd know it only because another unit names it? (One that lives, and whose file was lost,
        is not found either once systemd has reloaded.)"""
        return active_state == "inactive" and await self._find_load_state(unit) == "not-found"

    async def set_cpu_quota(self, unit: str, cpus: float) -> None:
        """Another limit of its CPU time per second, until it is stopped."""
        quota: tuple[Part, ...] = (
            ("sb", (unit, True)),
            (PROPERTIES, [("CPUQuotaPerSecUSec", "t", round(cpus * 1e6))]),
        )
        await self._manager("SetUnitProperties", *quota)

    async def find_cpu_quota(self, unit: str) -> float | None:
        """The limit of its CPU time per second, in CPUs; None: there is none."""
        quota = await self._bus.get_property(
            SERVICE, unit_path(unit), f"{SERVICE}.Service.CPUQuotaPerSecUSec"
        )
        return None if quota == INFINITY else int(quota) / 1e6

    async def count_restarts(self, unit: str) -> int:
        """How often systemd has restarted it by itself since it was started."""
        count = await self._bus.get_property(SERVICE, unit_path(unit), f"{SERVICE}.Service.NRestarts")
        return int(count)

    async def is_masked(self, unit: str) -> bool:
        """Has an administrator made it impossible to start (systemctl mask)?"""
        return await self._find_load_state(unit) == "masked"

    async def _find_load_state(self, unit: str) -> str:
        return str(await self._bus.get_property(SERVICE, unit_path(unit), f"{SERVICE}.Unit.LoadState"))

    async def bound_files(self, unit: str) -> Mapping[Path, bool]:
        """What of the host a unit was given in its root, by the path on the host: may it write to that? Empty
        where there is no such unit."""
        read, write = await self._bus.get_unit_properties(unit, _BOUND) or ((), ())
        return {Path(row[0]): False for row in read} | {Path(row[0]): True for row in write}

    async def list_vms(self) -> dict[str, str]:
        """ActiveState of every VM's unit that there is, by the VM's name."""
        return await self._list(VM_UNITS, vm_of_unit)

    async def list_handles(self) -> dict[str, str]:
        """ActiveState of the handles that are loaded, by the VM's name."""
        return await self._list(HANDLES, vm_of_handle)

    async def _list(self, pattern: str, find_vm: Callable[[str], str | None]) -> dict[str, str]:
        rows = await self._manager("ListUnitsByPatterns", ("asas", ([], [pattern])))
        known = (row for row in rows or [] if (row[2], row[3]) != ("not-found", "inactive"))
        return {vm: row[3] for row in known if (vm := find_vm(row[0])) is not None}

    def watch(self, unit: str, watch: UnitWatch) -> None:
        """Have it called back when the unit may have changed. Ask `status` what it is now."""
        self._bus.watch_properties(unit_path(unit), _TELLING, watch.take_signal)

    def watch_state(self, unit: str, callback: Callable[[str, str], None]) -> None:
        """Call back with each new ActiveState and invocation id. They may be old ones by then."""
        told = ("", "")

        def tell(changed: dict[str, Any]) -> None:
            nonlocal told
            new = str(changed.get(_ACTIVE_STATE, "")), bytes(changed.get(_INVOCATION) or b"").hex()
            if new != told:
                told = new
                callback(*new)

        self._bus.watch_properties(unit_path(unit), (_ACTIVE_STATE, _INVOCATION), tell)

    def unwatch(self, unit: str) -> None:
        """Undo `watch` or `watch_state`."""
        self._bus.unwatch_properties(unit_path(unit))

    async def _manager(self, method: str, *arguments: Part) -> Any:
        return await self._bus.call(SERVICE, MANAGER, f"{SERVICE}.Manager.{method}", arguments)

    async def _unless_missing(self, method: str, signature: str, *values: object) -> None:
        try:
            await self._manager(method, (signature, values))
        except BusError as error:
            # NoSuchUnit, and NoSuchProcess for a signal to what has just ended
            if error.number not in (errno.ENOENT, errno.ESRCH):
                raise
