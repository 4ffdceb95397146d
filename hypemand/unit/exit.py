# SPDX-License-Identifier: Apache-2.0
"""ExecStopPost= of a VM's unit: give systemd the program's result and leave a record of it. launcher/ending
executes it, unless all of that is known.

``python3 -I -m hypemand.unit.exit STATE_DIR UNIT STOP_SIGNAL NEEDED MODE RUNTIME_DIR``, and ``SIZE UID
TEMPLATES`` after that or not, as root, with what systemd puts into the environment. Exits with the program's
code, so that the unit's result is the program's. NEEDED: `1` or `0` for an agent or none; where the VM may go
on from a template, an @ and its key; and where the definition has a readiness check, a colon and that in
words.

A VM that was put into Standby has ended by that: nothing is looked for, and its disk is kept.

With the last three the VM's disk does not persist: it is made anew here, so that a restart by systemd has a
fresh one too, and its room is free at once.

The VMM ends with a guest that reboots. Then systemd is asked here to start the unit again: it has no rule of
its own for that, and the daemon may not be there.

It takes a bounded time, whatever the journal holds and whether or not journald answers: what has not been
found by then, the daemon's notes may have, and else the record says that not all was read.
"""

from __future__ import annotations

import os
import select
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from hypemand.config.mode import Mode
from hypemand.errors import HypemandError
from hypemand.model.evidence import Marker, describe_check, list_missing
from hypemand.notify import notify
from hypemand.protocol.sentinels import (
    AgentReady,
    Emergency,
    EmergencyState,
    Exit,
    ProgramStart,
    Ready,
    Waiting,
    parse_sentinel,
)
from hypemand.systemd.journal import BootJournal, JournalLine, synchronize_journal
from hypemand.vm.exitrecord import (
    Ending,
    ExitRecord,
    add_start,
    derive_exit_record,
    derive_saved,
    find_spare,
    load_history,
    store_exit_record,
)
from hypemand.vm.folders import OLD_STANDBY, STALLED, STANDBY, WARM
from hypemand.vm.runrecord import find_boot_id, has_note
from hypemand.vm.tracker import load_notes
from hypemand.vmm.messages import PREFIXES

_PANIC = b"Kernel panic - not syncing"
_VMM = (*PREFIXES, b"launcher: ")
_SYSTEMCTL_DEADLINE, _LEAST_SYSTEMCTL_DEADLINE = 5.0, 1.0
_ARGUMENTS = 7
# Seconds. For all that tells of the end to be found: less than the least TimeoutStopSec=, which is 6 s. Of
# it, so long at most for the last lines of a console to be passed on, and for journald to write what it has.
_EVIDENCE_DEADLINE = 4.0
_CONSOLE_DEADLINE = 2.0
_JOURNALD_DEADLINE = 1.0
# For all that is done here: units that an earlier version of hypemand has made may have no TimeoutStopSec=.
_LAST_DEADLINE = 120
_MACHINES = Path("/run/systemd/machines")


@dataclass(slots=True)
class Findings:
    """What a boot's lines tell of its end: the exit report, the markers, the panic's line, the VMM's last
    words, emergency mode, and why the readiness check had not succeeded. All but the report are of after it.
    `complete`: what is not in it is not in the
    journal either."""

    report: Exit | None = None
    markers: set[Marker] = field(default_factory=set)
    panic: str | None = None
    vmm: str | None = None
    emergency: EmergencyState | None = None
    waiting: str | None = None
    complete: bool = False


def scan_journal(boot: str | None, lines: Iterable[JournalLine], found: Findings) -> None:
    """Read from the newest line back, up to the exit report, since nothing else matters then. What is found
    is put into `found` at once. `boot`: the id that the guest signs with; None: no guest has been started."""
    for line in lines:
        sentinel = parse_sentinel(line.message)
        if sentinel is None or sentinel.boot != boot:
            _take_other_line(found, line.message)
        elif isinstance(sentinel, Exit):
            found.report = sentinel
            break
        elif isinstance(sentinel, ProgramStart):
            found.markers.add(Marker.PROGRAM)
        elif isinstance(sentinel, AgentReady):
            found.markers.add(Marker.AGENT)
        elif isinstance(sentinel, Ready):
            found.markers.add(Marker.READY)
        elif isinstance(sentinel, Waiting):
            found.waiting = found.waiting or sentinel.reason
        elif isinstance(sentinel, Emergency):
            found.emergency = found.emergency or sentinel.state
    found.complete = True


def _take_other_line(found: Findings, message: bytes) -> None:
    if found.panic is None and (at := message.find(_PANIC)) >= 0:
        found.panic = _words(message[at:])
    elif found.vmm is None and message.startswith(_VMM):
        found.vmm = _words(message.partition(b": ")[2])


def _words(message: bytes) -> str:
    text = message[:300].decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "?" for c in text).strip()


def await_console(runtime: Path) -> bool:
    """Wait until all that the VMM said has been passed on to the journal: until nobody holds the named pipe
    any more that hypeman-console does (guest/console). Whoever has taken the VMM over can hold it, and then
    it is not waited for long: False."""
    try:
        mark = os.open(runtime / "console.end", os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return True  # nobody is there who would pass on anything
    try:
        if not stat.S_ISFIFO(os.fstat(mark).st_mode):
            return False
        with suppress(BlockingIOError):
            if os.read(mark, 1) == b"":
                return True
        waiting = select.poll()
        waiting.register(mark, 0)  # the end is told whatever is asked for
        return bool(waiting.poll(_CONSOLE_DEADLINE * 1000))
    finally:
        os.close(mark)


def forget_machine(unit: str, machine: str, records: Path = _MACHINES) -> None:
    """Remove what systemd-machined keeps of this run, for the case that it is not running, as when D-Bus was
    restarted. When it is started again it stops the unit of each machine whose leader has gone (systemd 257,
    manager_gc), by the unit's name: by then that may be the next run's. One that runs has it in memory, and
    removes it by itself."""
    link = records / f"unit:{unit}"
    try:
        # a container may have the same name
        if os.readlink(link) == machine:
            (records / machine).unlink(missing_ok=True)
            link.unlink()
    except FileNotFoundError:
        return
    except OSError as error:
        print(f"systemd-machined still has a record of {machine}: {error}", file=sys.stderr)


def _systemctl(*arguments: str, deadline: float = _SYSTEMCTL_DEADLINE) -> bytes:
    """What it prints. OSError, with its words if it has some."""
    # here and not above: most ends need it not
    import subprocess

    try:
        done = subprocess.run(
            ["systemctl", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=deadline,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        raise OSError(_words(error.stderr)) from error
    except subprocess.SubprocessError as error:
        raise OSError(str(error)) from error
    return done.stdout


def _is_stopping(unit: str, deadline: float) -> bool:
    """Was systemd asked to stop or restart the unit? (It is not told to ExecStopPost=.)"""
    rest = max(deadline - time.monotonic(), _LEAST_SYSTEMCTL_DEADLINE)
    try:
        job = _systemctl("show", "--property=Job", "--value", unit, deadline=rest)
    except OSError:
        return False
    return job.strip() not in (b"", b"0")


def read_journal(run: str, boot: str | None, found: Findings) -> None:
    """Find what the journal has of a run, as far as the last line that was written before this."""
    synchronize_journal(_JOURNALD_DEADLINE)
    try:
        with closing(BootJournal(run)) as journal:
            scan_journal(boot, journal.read_backwards(sys.maxsize), found)
    except OSError as error:
        print(f"cannot read the journal: {error}", file=sys.stderr)


def find_in_time(
    run: str,
    boot: str | None,
    deadline: float,
    read: Callable[[str, str | None, Findings], None] = read_journal,
) -> Findings:
    """What `read` has found by `deadline` (CLOCK_MONOTONIC). A thread reads, which is left behind when its
    time is over: it may hang in sd-journal, or in a page of a file that the disk does not give."""
    found = Findings()
    reader = threading.Thread(target=read, args=(run, boot, found), name="journal", daemon=True)
    reader.start()
    reader.join(max(deadline - time.monotonic(), 0.0))
    return replace(found, markers=set(found.markers))


def collect_ending(
    run: str,
    unit: str,
    state: Path,
    runtime: Path,
    stop_signal: int,
    needed: str,
    mode: Mode,
    deadline: float,
) -> Ending:
    """All evidence of how this run ended, from the journal first and from the daemon's own record
    of the boot where the journal has lost lines, or has too many."""
    notes = load_notes(state / "boot.json", run)
    boot = None if notes is None else notes.boot
    found = find_in_time(run, boot or find_boot_id(runtime, run), deadline)
    report, markers = found.report, found.markers
    emergency = found.emergency is EmergencyState.ENTERED
    waiting = found.waiting
    agent, _, check = needed.partition(":")
    agent = agent.partition("@")[0]
    if notes is not None:
        report = report or notes.exit
        markers |= notes.markers
        emergency |= notes.emergency and found.emergency is None
        waiting = waiting or notes.waiting
    return Ending(
        result=os.environ.get("SERVICE_RESULT", "success"),
        exit_code=os.environ.get("EXIT_CODE", ""),
        exit_status=os.environ.get("EXIT_STATUS", ""),
        report=report,
        missing=list_missing(markers, guest_agent=agent == "1", ready=bool(check)),
        panic=found.panic,
        vmm_words=found.vmm,
        stop_job=report is None and _is_stopping(unit, deadline),
        stop_signal=stop_signal,
        mode=mode,
        emergency=emergency,
        shutdown=None if notes is None else notes.shutdown,
        complete=found.complete or report is not None,
        check=describe_check(check, waiting),
        unhealthy=None if notes is None else notes.unhealthy,
    )


def _start_again(unit: str) -> None:
    """Queue a restart of the unit, which also keeps systemd from forgetting it, and do not wait for that.

    A restart rather than a start: a start job that is still under way would swallow that. In mode `fail`, so
    that it gives way to a stop, be it of the unit or of the whole host; one that comes later replaces it.
    """
    try:
        _systemctl("restart", "--no-block", "--job-mode=fail", unit)
    except OSError as error:
        print(f"not restarted: {error}", file=sys.stderr)


def _renew_disk(state: Path, size: str, uid: str, templates: str) -> None:
    """A fresh disk. Where it cannot be made there is none, or one that is in use: better that a restart fails
    than that it finds what should be gone."""
    # here and not above: most VMs need it not, and this is on the way of every restart
    from hypemand.storage.disks import DISK, make_fresh_disk

    try:
        make_fresh_disk(state / DISK, int(size), int(uid), Path(templates))
    except (OSError, HypemandError) as error:
        print(f"no fresh disk: {error}", file=sys.stderr)


def keep_record(record: ExitRecord, path: Path, spare: Path) -> None:
    """Write the record for the daemon, with those of the runs before, to the spare place if necessary. It has
    what an exit status cannot express."""
    before = load_history(path, spare)
    try:
        store_exit_record(path, record, before)
    except OSError as error:
        print(f"cannot write the persistent exit record: {error}", file=sys.stderr)
    else:
        spare.unlink(missing_ok=True)
        return
    try:
        spare.parent.mkdir(mode=0o700, exist_ok=True)
        store_exit_record(spare, record, before)
    except OSError as error:
        print(f"cannot write the exit record ({record.message}): {error}", file=sys.stderr)


def settle_standby(state: Path, run: str, is_stopping: Callable[[], bool]) -> tuple[bool, bool]:
    """Was this run put into Standby, or restored in vain? The first: it was saved; the second: the VM goes on
    from something."""
    if not ((state / STANDBY).exists() or (state / OLD_STANDBY).exists()):
        return False, False
    # here and not above: most VMs need it not
    from hypemand.vm.standbyfiles import load_standby, settle_restore

    try:
        if (state / OLD_STANDBY).exists():
            settle_restore(state, load_notes(state / "boot.json", run), is_stopped=is_stopping())
        saved, problem = load_standby(state)
    except OSError as error:
        print(f"what the VM was restored from is left: {error}", file=sys.stderr)
        return False, True
    return saved is not None and saved.run == run, saved is not None or bool(problem)


def set_aside_template(run: str, needed: str, state: Path, runtime: Path, ending: Ending) -> bool:
    """Remove the template of a guest that did not continue from it. True: it has ended by that, and is to
    boot; else it has done so already (guest/console/trial.h)."""
    key = needed.partition(":")[0].partition("@")[2]
    has_booted = has_note(runtime, STALLED, run)
    if not key or not (has_booted or has_note(runtime, WARM, run)):
        return False
    has_started = ending.report is not None or Marker.PROGRAM not in ending.missing
    # by the host: on request, or for want of memory
    was_killed = (ending.exit_code, ending.exit_status) == ("killed", "KILL")
    if not has_booted and (has_started or was_killed or ending.result == "success" or not ending.complete):
        return False
    # here and not above: most ends need it not
    from hypemand.vm.template import store_of

    store_of(state).remove(key)
    if not has_booted:
        print("the VM has not continued from its template, which is removed: it boots", file=sys.stderr)
    return not has_booted


def describe_end(record: ExitRecord) -> str:
    """The unit's status text from now on. The message may be the guest's."""
    return f"Stopped: {''.join(c if c.isprintable() else '?' for c in record.message)}"


def main() -> int:
    """Write STATE_DIR/exit.json; the exit status is the program's."""
    state, unit, stop_signal, needed, mode, runtime = sys.argv[1:_ARGUMENTS]
    run = os.environ["INVOCATION_ID"]
    deadline = time.monotonic() + _EVIDENCE_DEADLINE
    forget_machine(unit, Path(runtime).name)
    await_console(Path(runtime))
    boots_instead = False
    is_saved, goes_on = settle_standby(Path(state), run, lambda: _is_stopping(unit, deadline))
    if is_saved:
        record = derive_saved(run, time.time())
    else:
        how = (int(stop_signal), needed, Mode(mode))
        ending = collect_ending(run, unit, Path(state), Path(runtime), *how, deadline)
        record = derive_exit_record(run, ending, time.time())
        boots_instead = set_aside_template(run, needed, Path(state), Path(runtime), ending)
    record = add_start(record, load_notes(Path(state) / "boot.json", run), Path(runtime))
    keep_record(record, Path(state) / "exit.json", find_spare(Path(runtime)))
    notify(f"STATUS={describe_end(record)}")
    if len(sys.argv) > _ARGUMENTS and not goes_on:
        _renew_disk(Path(state), *sys.argv[_ARGUMENTS:])
    if record.reboot or boots_instead:
        _start_again(unit)
    return record.status


if __name__ == "__main__":
    signal.alarm(_LAST_DEADLINE)  # ends this process, also in the middle of a system call
    code = main()
    sys.stderr.flush()
    os._exit(code)  # without waiting for a thread that hangs
