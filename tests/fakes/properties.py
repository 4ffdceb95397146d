# SPDX-License-Identifier: Apache-2.0
"""Properties of units on the bus: those that can be set, and what is read of a unit."""

from __future__ import annotations

from typing import Any

from hypemand.systemd.sandbox import sandbox_properties
from tests.fakes.jobs import Job
from tests.fakes.service import INFINITY, Service

# That systemd takes these, and in these types, the host tests of units prove.
_SET = (
    "Description", "Documentation", "Slice", "After", "Type", "NotifyAccess", "ExecStart",
    "ExecStop", "ExecStopPost", "KillMode", "PermissionsStartOnly", "Restart", "RestartUSec",
    "TimeoutStartUSec", "TimeoutStopUSec", "User", "StandardInput", "StandardOutput",
    "StandardError", "SyslogIdentifier", "SyslogLevelPrefix", "LogExtraFields",
    "LogRateLimitIntervalUSec", "LogRateLimitBurst", "MemoryMax", "IOAccounting",
    "CPUSchedulingPolicy", "IOSchedulingClass",
    "TasksMax", "CPUQuotaPerSecUSec", "OOMPolicy", "StartLimitBurst", "StartLimitIntervalUSec",
    "RestartSteps", "RestartMaxDelayUSec", "WatchdogSignal",
    "CollectMode", "RemainAfterExit", "RootDirectory", "RootDirectoryStartOnly", "BindPaths",
    "BindReadOnlyPaths", "InaccessiblePaths", "ReadWritePaths", "ProtectSystem", "IgnoreOnIsolate",
)  # fmt: skip
KNOWN = frozenset(_SET) | {name for name, _, _ in sandbox_properties(kvm=True)}
_NOTHING: dict[str, Any] = {
    "Unit.LoadState": "not-found",
    "Unit.ActiveState": "inactive",
    "Unit.SubState": "dead",
    "Unit.InvocationID": [],
    "Unit.Job": (0, "/"),
    "Unit.StateChangeTimestamp": 0,
    "Unit.StateChangeTimestampMonotonic": 0,
    "Service.MainPID": 0,
    "Service.ControlPID": 0,
    "Service.ExecMainStartTimestamp": 0,
    "Service.ExecMainStartTimestampMonotonic": 0,
    "Service.MemoryCurrent": INFINITY,
    "Service.NRestarts": 0,
    "Service.Result": "success",
    "Service.StatusText": "",
}


def read_property(unit: Service | None, job: Job | None, name: str) -> Any:
    """A property by its interface's last word and its own name; `unit` None: one that is not loaded."""
    if unit is None:
        return _NOTHING.get(name, [])
    match name:
        case "Unit.LoadState":
            return "loaded"
        case "Unit.ActiveState":
            return unit.active
        case "Unit.SubState":
            return unit.sub
        case "Unit.InvocationID":
            return list(bytes.fromhex(unit.invocation))
        case "Unit.Job":
            return (0, "/") if job is None else (job.number, job.path)
        case "Unit.StateChangeTimestamp" | "Unit.StateChangeTimestampMonotonic":
            return round(unit.changed_at * 1e6)
        case "Service.MainPID":
            return 0 if unit.main is None else unit.main.pid
        case "Service.ControlPID":
            return unit.control_pid
        case "Service.ExecMainStartTimestamp":
            return round(unit.started_at * 1e6)
        case "Service.ExecMainStartTimestampMonotonic":
            return round(unit.start_monotonic * 1e6)
        case "Service.MemoryCurrent":
            return INFINITY if unit.main is None else 64 * 1024 * 1024
        case "Service.NRestarts":
            return unit.restarts
        case "Service.Result":
            return unit.result
        case "Service.StatusText":
            return unit.status_text
        case _:
            return unit.properties[name.rpartition(".")[2]]
