# SPDX-License-Identifier: Apache-2.0
"""The transient unit of a VM: its properties, and what can be done to it over D-Bus."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hypemand.config.definition import Restart
from hypemand.systemd.bus import BusError, SystemBus, encode_arguments, encode_properties, unit_path
from hypemand.systemd.extras import INFINITY, extra_properties, microseconds
from hypemand.systemd.sandbox import Property, sandbox_properties

SERVICE = "org.freedesktop.systemd1"
MANAGER = "/org/freedesktop/systemd1"
SLICE = "hypeman.slice"
_PREFIX, _SUFFIX = "hypeman-vm-", ".service"


def unit_name(vm: str) -> str:
    """The transient unit of a VM."""
    return f"{_PREFIX}{vm}{_SUFFIX}"


def vm_of_unit(unit: str) -> str | None:
    """The VM whose unit this is, or None."""
    if unit.startswith(_PREFIX) and unit.endswith(_SUFFIX):
        return unit[len(_PREFIX) : -len(_SUFFIX)]
    return None


def handle_name(vm: str) -> str:
    """The unit that an administrator enables and orders."""
    return f"hypeman@{vm}.service"


@dataclass(frozen=True, slots=True)
class UnitPlan:
    """All that a VM's unit is made of. Sizes in bytes, times in seconds (None: infinity)."""

    vm: str
    vm_id: str
    uid: int
    start: tuple[str, ...]
    stop: tuple[str, ...]
    stop_post: tuple[str, ...]
    writable: tuple[str, ...]
    memory_max: int
    cpu_quota: float
    tasks_max: int
    boot_timeout: float | None
    stop_timeout: float | None
    restart: Restart
    kvm: bool
    extra: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class UnitStatus:
    """What systemd says of a unit at one moment. `active_state` None: there is no such unit."""

    active_state: str | None
    sub_state: str = ""
    invocation_id: str | None = None
    main_pid: int | None = None
    result: str = ""
    memory_current: int | None = None
    start_monotonic: float | None = None

    @property
    def is_live(self) -> bool:
        """Does it hold processes, or will it again without being asked (auto-restart)?"""
        return self.active_state in ("active", "reloading", "refreshing", "activating", "deactivating")


def unit_properties(plan: UnitPlan) -> list[Property]:
    """Properties for StartTransientUnit: (name, signature, value)."""
    properties: list[Property] = [
        ("Description", "s", f"Micro VM {plan.vm}"),
        ("Documentation", "as", ["man:hypemand(8)", "man:hypemanctl(1)"]),
        ("Slice", "s", SLICE),
        # at shutdown the VMs stop while the daemon is still there to see it
        ("After", "as", ["hypemand.service"]),
        ("Type", "s", "notify"),
        ("NotifyAccess", "s", "main"),
        ("ExecStart", "a(sasb)", [_command(plan.start)]),
        ("ExecStop", "a(sasb)", [_command(plan.stop)]),
        ("ExecStopPostEx", "a(sasas)", [_privileged(plan.stop_post)]),
        ("KillMode", "s", "mixed"),
        ("Restart", "s", plan.restart.value),
        ("TimeoutStartUSec", "t", microseconds(plan.boot_timeout)),
        ("TimeoutStopUSec", "t", microseconds(plan.stop_timeout)),
        ("User", "s", str(plan.uid)),
        ("Group", "s", str(plan.uid)),
        ("StandardInput", "s", "null"),
        ("StandardOutput", "s", "journal"),
        ("StandardError", "s", "inherit"),
        ("SyslogIdentifier", "s", plan.vm),
        ("LogExtraFields", "aay", [f"HYPEMAN_VM={plan.vm}".encode(), f"HYPEMAN_VM_ID={plan.vm_id}".encode()]),
        ("MemoryMax", "t", plan.memory_max),
        ("CPUQuotaPerSecUSec", "t", round(plan.cpu_quota * 1e6)),
        ("TasksMax", "t", plan.tasks_max),
        ("OOMPolicy", "s", "stop"),
        ("ReadWritePaths", "as", list(plan.writable)),
    ]
    properties += sandbox_properties(kvm=plan.kvm)
    properties += extra_properties(plan.extra)
    return properties


def _command(argv: tuple[str, ...]) -> tuple[str, list[str], bool]:
    return (argv[0], list(argv), False)


def _privileged(argv: tuple[str, ...]) -> tuple[str, list[str], list[str]]:
    return (argv[0], list(argv), ["privileged"])


class Units:
    """Units over D-Bus. All methods raise BusError (a HostNotReady) when systemd cannot be asked."""

    def __init__(self, bus: SystemBus) -> None:
        self._bus = bus

    async def start_transient(self, plan: UnitPlan) -> None:
        """Make and start a VM's unit; back when systemd has taken the job."""
        arguments = encode_arguments("ss", [unit_name(plan.vm), "fail"])
        arguments += encode_properties(unit_properties(plan))
        arguments += encode_arguments("a(sa(sv))", [[]])
        await self._manager("StartTransientUnit", arguments)

    async def stop(self, unit: str) -> None:
        """Queue a stop job. A unit that is not there is no error."""
        await self._unless_missing("StopUnit", "ss", unit, "replace")

    async def kill(self, unit: str, signal: int) -> None:
        """Send a signal to the unit's main process."""
        await self._unless_missing("KillUnit", "ssi", unit, "main", signal)

    async def reset_failed(self, unit: str) -> None:
        """Let go of a failed unit, so that its name can be used again."""
        await self._unless_missing("ResetFailedUnit", "s", unit)

    async def status(self, unit: str) -> UnitStatus:
        """What systemd says of a unit now."""
        path = unit_path(unit)
        get_all = "org.freedesktop.DBus.Properties.GetAll"
        try:
            of_unit = await self._bus.call(
                SERVICE, path, get_all, encode_arguments("s", [f"{SERVICE}.Unit"])
            )
        except BusError as error:
            if error.number in (errno.ENOENT, errno.EBADR):
                return UnitStatus(None)
            raise
        if of_unit["LoadState"] != "loaded":
            return UnitStatus(None)
        of_service = await self._bus.call(
            SERVICE, path, get_all, encode_arguments("s", [f"{SERVICE}.Service"])
        )
        return _status_from(of_unit, of_service)

    async def list_vms(self) -> dict[str, str]:
        """ActiveState of every VM's unit that is loaded, by the VM's name."""
        arguments = encode_arguments("asas", [[], [f"{_PREFIX}*{_SUFFIX}"]])
        rows = await self._manager("ListUnitsByPatterns", arguments)
        found = {}
        for row in rows or []:
            vm = vm_of_unit(row[0])
            if vm is not None and row[2] == "loaded":
                found[vm] = row[3]
        return found

    def watch(self, unit: str, callback: Callable[[dict[str, Any]], None]) -> None:
        """Call back with each change of the unit's properties."""
        self._bus.watch_properties(unit_path(unit), callback)

    def unwatch(self, unit: str) -> None:
        """Undo `watch`."""
        self._bus.unwatch_properties(unit_path(unit))

    async def _manager(self, method: str, arguments: list[Any]) -> Any:
        return await self._bus.call(SERVICE, MANAGER, f"{SERVICE}.Manager.{method}", arguments)

    async def _unless_missing(self, method: str, signature: str, *values: object) -> None:
        try:
            await self._manager(method, encode_arguments(signature, list(values)))
        except BusError as error:
            # NoSuchUnit, and NoSuchProcess for a signal to what has just ended
            if error.number not in (errno.ENOENT, errno.ESRCH):
                raise


def _status_from(of_unit: Mapping[str, Any], of_service: Mapping[str, Any]) -> UnitStatus:
    return merge_properties(UnitStatus(None), {**of_service, **of_unit})


def merge_properties(status: UnitStatus, changed: Mapping[str, Any]) -> UnitStatus:
    """What is known of a unit after these properties have changed. A property that was only invalidated
    (None) is kept as it was."""
    fields: dict[str, Any] = {}
    for name, value in changed.items():
        if value is not None and name in _FIELDS:
            field, convert = _FIELDS[name]
            fields[field] = convert(value)
    return replace(status, **fields)


_FIELDS: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "ActiveState": ("active_state", str),
    "SubState": ("sub_state", str),
    "InvocationID": ("invocation_id", lambda value: bytes(value).hex() or None),
    "MainPID": ("main_pid", lambda value: value or None),
    "Result": ("result", str),
    "MemoryCurrent": ("memory_current", lambda value: None if value == INFINITY else value),
    "ExecMainStartTimestampMonotonic": ("start_monotonic", lambda value: value / 1e6 or None),
}
