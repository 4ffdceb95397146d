# SPDX-License-Identifier: Apache-2.0
"""ExecStopPost= of a VM's unit: give systemd the program's result and leave a record of it.

``python3 -I -m hypemand.unit.exit STATE_DIR UNIT STOP_SIGNAL GUEST_AGENT``, as root, with what systemd
puts into the environment. Exits with the program's code, so that the unit's result is the program's.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from hypemand.atomic import write_file
from hypemand.boot.record import Ending, derive_exit_record, dump_exit_record
from hypemand.boot.tracker import load_notes
from hypemand.sentinels import AgentReady, Exit, ProgramStart, parse_sentinel
from hypemand.state import Marker
from hypemand.systemd.journal import BootJournal, JournalLine, synchronize_journal

_LINES = 200_000
_PANIC = b"Kernel panic - not syncing"
_VMM = (b"qemu-system-", b"qemu: ")
_SYSTEMCTL_DEADLINE = 5.0


def scan_journal(
    boot: str, lines: Iterable[JournalLine]
) -> tuple[Exit | None, set[Marker], str | None, str | None]:
    """From the newest line back: the exit report, the markers, the panic's line, the VMM's last words.
    Stops at the report, since nothing else matters then."""
    markers: set[Marker] = set()
    panic = vmm = None
    for line in lines:
        sentinel = parse_sentinel(line.message)
        if sentinel is not None and sentinel.boot == boot:
            if isinstance(sentinel, Exit):
                return sentinel, markers, panic, vmm
            if isinstance(sentinel, ProgramStart):
                markers.add(Marker.PROGRAM)
            elif isinstance(sentinel, AgentReady):
                markers.add(Marker.AGENT)
        elif panic is None and (at := line.message.find(_PANIC)) >= 0:
            panic = _words(line.message[at:])
        elif vmm is None and line.message.startswith(_VMM):
            vmm = _words(line.message.partition(b": ")[2])
    return None, markers, panic, vmm


def _words(message: bytes) -> str:
    text = message[:300].decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "?" for c in text).strip()


def _is_stopping(unit: str) -> bool:
    """Was systemd asked to stop or restart the unit? (It is not told to ExecStopPost=.)"""
    command = ["systemctl", "show", "--property=Job", "--value", unit]
    try:
        answer = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SYSTEMCTL_DEADLINE, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return answer.stdout.strip() not in (b"", b"0")


def collect_ending(boot: str, unit: str, state: Path, stop_signal: int, guest_agent: bool) -> Ending:
    """Everything that tells how this run ended, from the journal first and from the daemon's own record
    of the boot where the journal has lost lines."""
    synchronize_journal()
    journal = BootJournal(boot)
    try:
        report, markers, panic, vmm = scan_journal(boot, journal.read_backwards(_LINES))
    finally:
        journal.close()
    notes = load_notes(state / "boot.json", boot)
    if notes is not None:
        report = report or notes.exit
        markers |= notes.markers
    wanted = (Marker.PROGRAM, Marker.AGENT) if guest_agent else (Marker.PROGRAM,)
    return Ending(
        result=os.environ.get("SERVICE_RESULT", "success"),
        exit_code=os.environ.get("EXIT_CODE", ""),
        exit_status=os.environ.get("EXIT_STATUS", ""),
        report=report,
        missing=tuple(marker for marker in wanted if marker not in markers),
        panic=panic,
        vmm_words=vmm,
        stop_job=report is None and _is_stopping(unit),
        stop_signal=stop_signal,
    )


def main() -> int:
    """Write STATE_DIR/exit.json; the exit status is the program's."""
    state, unit, stop_signal, guest_agent = sys.argv[1:5]
    boot = os.environ["INVOCATION_ID"]
    ending = collect_ending(boot, unit, Path(state), int(stop_signal), guest_agent == "1")
    record = derive_exit_record(boot, ending, time.time())
    try:
        write_file(Path(state) / "exit.json", dump_exit_record(record).encode(), mode=0o600)
    except OSError as error:
        print(f"cannot keep the exit record: {error}", file=sys.stderr)
    return record.status


if __name__ == "__main__":
    sys.exit(main())
