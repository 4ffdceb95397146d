# SPDX-License-Identifier: Apache-2.0
"""How a run ended: the record that the unit writes, and the rules for its result.

Pure, but for `load` and `store`. Written by the unit's ExecStopPost=, read by the daemon.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hypemand.config.mode import Mode
from hypemand.model.evidence import EMERGENCY, Marker
from hypemand.model.exits import ExitKind
from hypemand.model.health import UNHEALTHY
from hypemand.protocol.sentinels import Exit
from hypemand.recordfile import BadRecord, load_record, store_record
from hypemand.vm.runrecord import find_start
from hypemand.vm.tracker import BootNotes
from hypemand.vmm.shutdown import Shutdown

MAX_RUNS = 20
"""Runs of a VM of which the ends are kept."""
LOST = "its end was not seen: the host went down with it"
REQUESTED = "stopped on request"
REBOOTED = "rebooted from inside"
_SHUTDOWN = {
    Shutdown.POWER_OFF: "powered off from inside, without an exit report",
    Shutdown.RESET: f"{REBOOTED}, without an exit report",
}
# The results of a unit whose VMM has ended as its guest did; protocol: before it was ready. In both systemd
# knows no code of the program.
_CLEAN = ("success", "protocol")
_EARLY = (
    "the guest ended before its program started, without an exit report: "
    "its kernel may have crashed before its console was up"
)
# EXIT_CREDENTIALS of systemd.exec(5)
_CREDENTIALS = "243"
_INCOMPLETE = "; not all of its lines in the journal could be read"
_SENTINEL = {
    Marker.PROGRAM: "HYPEMAN-PROGRAM-START",
    Marker.AGENT: "HYPEMAN-AGENT-READY",
    Marker.READY: "HYPEMAN-READY",
}


@dataclass(frozen=True, slots=True)
class Ending:
    """The evidence at a run's end.

    `result`, `exit_code` and `exit_status` are what systemd hands to ExecStopPost= (systemd.exec(5)).
    `panic` and `vmm_words` are the last such lines; `stop_job`: systemd was asked to stop the unit. `mode`
    and `emergency`: how the guest ran; `shutdown`: what the VMM told the daemon, if that was there.
    `complete`: all that there is was read. `check`: what the definition's readiness check waited for;
    `unhealthy`: why the daemon has called for the unit's watchdog.
    """

    result: str
    exit_code: str
    exit_status: str
    report: Exit | None
    missing: tuple[Marker, ...]
    panic: str | None
    vmm_words: str | None
    stop_job: bool
    stop_signal: int
    mode: Mode = Mode.EXEC
    emergency: bool = False
    shutdown: Shutdown | None = None
    complete: bool = True
    check: str | None = None
    unhealthy: str | None = None


@dataclass(frozen=True, slots=True)
class ExitRecord:
    """How a run ended. `code` None: nobody could tell. `status` is the exit status of ExecStopPost=, by
    which systemd learns the program's result; 0 also where systemd knows of a failure by itself. `reboot`:
    the guest has rebooted and is to be started again. `started_at` and `ended_at`: seconds since the epoch;
    `ready_ms`: from the start to Running. `marker`: the first that was missing when the boot timed out."""

    run: str
    code: int | None
    message: str
    success: bool
    status: int
    ended_at: float
    reboot: bool = False
    started_at: float | None = None
    ready_ms: float | None = None
    kind: ExitKind = ExitKind.UNKNOWN
    marker: str = ""


def derive_exit_record(run: str, ending: Ending, ended_at: float) -> ExitRecord:
    """Judge a run."""
    kind, code, message, success = _judge(ending)
    if not ending.complete:
        message += _INCOMPLETE
    known_to_systemd = success or ending.result not in _CLEAN
    status = 0 if known_to_systemd else code or 1
    reboot = ending.mode is Mode.SYSTEMD and success and message.startswith(REBOOTED)
    marker = _SENTINEL[_list_unseen(ending)[0]] if kind is ExitKind.BOOT_TIMEOUT and ending.complete else ""
    kind = ExitKind.REBOOT if reboot else kind
    return ExitRecord(run, code, message, success, status, ended_at, reboot, kind=kind, marker=marker)


def _judge(ending: Ending) -> tuple[ExitKind, int | None, str, bool]:
    report = ending.report
    if ending.result == "watchdog":
        # whatever the guest says of its end: it was asked for
        words = f"{UNHEALTHY}: {ending.unhealthy or 'the watchdog of its unit says so'}"
        return ExitKind.UNHEALTHY, None, words, False
    if report is not None and ending.result != "timeout":
        requested = report.message.startswith(REQUESTED) and report.code in (0, 128 + ending.stop_signal)
        success = report.code == 0 or requested
        kind = ExitKind.REQUESTED if requested else ExitKind.SUCCESS if success else ExitKind.FAILURE
        return kind, report.code, report.message, success
    if ending.result == "timeout":
        kind = ExitKind.BOOT_TIMEOUT if ending.missing else ExitKind.STOP_TIMEOUT
        return kind, None, _timeout_words(ending), False
    if ending.panic is not None:
        return ExitKind.PANIC, None, ending.panic, False
    if ending.mode is Mode.SYSTEMD and ending.shutdown and ending.result in _CLEAN and not _is_early(ending):
        # an init of another kind than systemd, or one that was passed over (systemctl -ff)
        return ExitKind.POWER_OFF, 0, _SHUTDOWN[ending.shutdown], True
    if ending.stop_job and ending.result == "success":
        return ExitKind.REQUESTED, None, "stopped before the program had ended", True
    kind, words = _judge_vmm(ending)
    return kind, None, words, False


def _list_unseen(ending: Ending) -> tuple[Marker, ...]:
    """Those that are missing, without what could not be there: the check begins with the program."""
    return tuple(marker for marker in ending.missing if marker is not Marker.READY) or ending.missing


def _timeout_words(ending: Ending) -> str:
    if ending.missing and not ending.complete:
        return "it did not boot, or did not power off, in time and was ended by force"
    if ending.missing:
        missing = _list_unseen(ending)
        names = " and ".join(_SENTINEL[marker] for marker in missing)
        words = f"boot timed out: {names} {'was' if len(missing) == 1 else 'were'} not seen"
        if missing == ending.missing == (Marker.READY,):
            words = f"boot timed out: program started, waiting for {ending.check}"
        if ending.emergency:
            words += f"; {EMERGENCY}"
        return f"{words} ({ending.panic})" if ending.panic else words
    return "the guest did not power off in time and was ended by force"


def _is_early(ending: Ending) -> bool:
    """Has it ended before the program, or systemd, was started?"""
    return Marker.PROGRAM in ending.missing and ending.complete


def _judge_silence(ending: Ending) -> tuple[ExitKind, str]:
    """A panic resets the guest, by which the VMM ends; the console is there for its text only once the kernel
    has come that far."""
    if not _is_early(ending):
        return ExitKind.POWER_OFF, "the guest powered off without an exit report"
    if ending.shutdown is Shutdown.POWER_OFF:
        return ExitKind.POWER_OFF, "the guest powered off before its program started, without an exit report"
    return ExitKind.PANIC, _EARLY


def _judge_vmm(ending: Ending) -> tuple[ExitKind, str]:
    said = f": {ending.vmm_words}" if ending.vmm_words else ""
    if ending.result == "oom-kill":
        return ExitKind.MEMORY, "the VMM was killed because the unit's memory limit was reached"
    if ending.exit_code in ("killed", "dumped"):
        return ExitKind.VMM, f"the VMM was killed by {_signal_name(ending.exit_status)}"
    if ending.exit_code == "exited" and ending.exit_status not in ("", "0"):
        if ending.exit_status == _CREDENTIALS:
            words = "systemd could not load the VM's secrets; its own message is in the journal of the unit"
            return ExitKind.VMM, words
        return ExitKind.VMM, f"the VMM failed with exit status {ending.exit_status}{said}"
    if ending.result not in _CLEAN:
        return ExitKind.VMM, f"the unit ended with result {ending.result}{said}"
    return _judge_silence(ending)


def _signal_name(status: str) -> str:
    if status.isdigit():
        try:
            return signal.Signals(int(status)).name
        except ValueError:
            return f"signal {status}"
    return status if status.startswith("SIG") else f"SIG{status}"


def derive_unrecorded(run: str, ended_at: float, *, failed: bool, report: Exit | None) -> ExitRecord:
    """The record of a run whose own was lost, as on a full disk. What is known of it then is the guest's
    `report`, if the daemon has seen one, and whether systemd has its unit `failed`. One of which nothing is
    known is no success."""
    if report is not None:
        kind = ExitKind.FAILURE if failed else ExitKind.SUCCESS
        return ExitRecord(run, report.code, report.message, not failed, 0, ended_at, kind=kind)
    how = "failed" if failed else "ended"
    return ExitRecord(run, None, f"it {how}, and how could not be written down", False, 0, ended_at)


def derive_saved(run: str, ended_at: float) -> ExitRecord:
    """The record of a run that was put into Standby."""
    return ExitRecord(run, 0, "put into standby", True, 0, ended_at, kind=ExitKind.STANDBY)


def derive_lost(run: str, seen_at: float) -> ExitRecord:
    """The record of a run whose end nobody has seen; it was seen last at `seen_at`."""
    return ExitRecord(run, None, LOST, False, 0, seen_at, kind=ExitKind.LOST)


def add_start(record: ExitRecord, notes: BootNotes | None, runtime: Path) -> ExitRecord:
    """The record with when the run has begun, and how long it took to be Running, as far as a daemon has seen
    that: `notes` of it. Blocks."""
    started = find_start(runtime, record.run)
    return replace(record, started_at=started, ready_ms=None if notes is None else notes.ready_ms)


def find_spare(runtime: Path) -> Path:
    """Where the record of a run is written if its own place is full, as a disk may be: in memory, and not in
    the VM's runtime folder itself, which is the VMM's."""
    return runtime.parent.parent / "exits" / f"{runtime.name}.json"


def load_exit_record(path: Path) -> ExitRecord | None:
    """The record of the last run; None when there is none or it cannot be read."""
    return next(iter(load_history(path)), None)


def load_history(*paths: Path) -> tuple[ExitRecord, ...]:
    """The records of the last runs, the newest first: those of all these files, each once. What cannot be
    read is passed over. Blocks."""
    found: dict[str, ExitRecord] = {}
    for path in paths:
        try:
            found |= {record.run: record for record in load_record(path, _parse_all)}
        except (OSError, BadRecord):
            continue
    records = sorted(found.values(), key=lambda record: record.ended_at, reverse=True)
    return tuple(records[:MAX_RUNS])


def _parse_all(document: Any) -> list[ExitRecord]:
    """The last run, with those before it. Of these one that cannot be understood is passed over: it is no
    reason not to know how the last one ended."""
    before = document.pop("before", [])
    records = [_parse(document)]
    for row in before[:MAX_RUNS]:
        with suppress(TypeError):
            records.append(_parse(row))
    return records


def _parse(document: Any) -> ExitRecord:
    """Raises TypeError unless each value is of its type."""
    record = ExitRecord(**document)
    kinds: dict[str, Any] = {
        "run": str,
        "code": int | None,
        "message": str,
        "status": int,
        "ended_at": int | float,
        "started_at": int | float | None,
        "ready_ms": int | float | None,
        "marker": str,
    }
    if not all(isinstance(getattr(record, key), kind) for key, kind in kinds.items()):
        raise TypeError("a value of another type")
    # one of another version may have another word
    known = ExitKind(record.kind) if record.kind in set(ExitKind) else ExitKind.UNKNOWN
    return replace(record, kind=known)


def store_exit_record(path: Path, record: ExitRecord, before: Sequence[ExitRecord] = ()) -> None:
    """Write the record, with those of runs `before`, the newest first. Blocks; OSError."""
    kept = [asdict(old) for old in before if old.run != record.run]
    store_record(path, {**asdict(record), "before": kept[: MAX_RUNS - 1]})
