# SPDX-License-Identifier: Apache-2.0
"""What ExecStopPost= finds in the journal of a boot."""

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hypemand.atomic import write_file
from hypemand.config.mode import Mode
from hypemand.model.evidence import Marker
from hypemand.protocol.sentinels import (
    AgentReady,
    Emergency,
    EmergencyState,
    Exit,
    Ready,
    Waiting,
    format_sentinel,
)
from hypemand.systemd.journal import JournalLine
from hypemand.unit import exit as exit_module
from hypemand.unit.exit import Findings, collect_ending, describe_end, find_in_time, main, scan_journal
from hypemand.vm.exitrecord import Ending, ExitRecord, derive_exit_record, find_spare, load_exit_record
from hypemand.vm.tracker import BootNotes, store_notes

RUN, BOOT, OTHER = "c" * 32, "a" * 32, "b" * 32


def newest_first(*messages: bytes | str) -> list[JournalLine]:
    lines = [m if isinstance(m, bytes) else m.encode() for m in messages]
    return [JournalLine(message, 0.0, 0.0) for message in reversed(lines)]


def scan(lines: list[JournalLine]) -> Findings:
    found = Findings()
    scan_journal(BOOT, lines, found)
    assert found.complete
    return found


def test_the_last_report_wins_wherever_it_stands() -> None:
    lines = newest_first(
        format_sentinel(Exit(BOOT, 1, "first")), "noise", format_sentinel(Exit(BOOT, 2, "last")), "more"
    )
    assert scan(lines).report == Exit(BOOT, 2, "last")


def test_a_forged_report_of_another_boot_is_none() -> None:
    assert scan(newest_first(format_sentinel(Exit(OTHER, 0, "fine")))).report is None


def test_without_a_report_it_finds_markers_panic_and_the_vmms_words() -> None:
    lines = newest_first(
        format_sentinel(AgentReady(BOOT, 0)),
        "qemu-system-x86_64: first words",
        "qemu-system-x86_64: last words",
        b"[    1.0] Kernel panic - not syncing: \x1b[31mAttempted to kill init!\xff",
    )
    found = scan(lines)
    assert found.report is None
    assert found.markers == {Marker.AGENT}
    assert found.panic == "Kernel panic - not syncing: ?[31mAttempted to kill init!\N{REPLACEMENT CHARACTER}"
    assert found.vmm == "last words"


def test_the_newest_word_on_emergency_mode_counts() -> None:
    entered, left = (format_sentinel(Emergency(BOOT, 0, state)) for state in EmergencyState)
    assert scan(newest_first(entered)).emergency is EmergencyState.ENTERED
    assert scan(newest_first(entered, left, "x")).emergency is EmergencyState.LEFT


def test_the_marker_of_a_check_and_its_newest_reason_are_found() -> None:
    first, last = (format_sentinel(Waiting(BOOT, 0, words)) for words in ("nothing listens", "status 503"))
    assert scan(newest_first(first, last)).waiting == "status 503"
    found = scan(newest_first(first, format_sentinel(Ready(BOOT, 0)), format_sentinel(Ready(OTHER, 0))))
    assert (found.markers, found.waiting) == ({Marker.READY}, "nothing listens")


@pytest.mark.parametrize(
    ("needed", "missing", "check"),
    [
        ("1", (Marker.PROGRAM, Marker.AGENT), ""),
        ("0", (Marker.PROGRAM,), ""),
        ("1:tcp 5432", (Marker.PROGRAM, Marker.AGENT, Marker.READY), "tcp 5432 (loading)"),
        ("0:log ^a:b$", (Marker.PROGRAM, Marker.READY), "log ^a:b$ (loading)"),
    ],
)
def test_what_the_definition_needs_is_told_to_the_units_end(
    needed: str,
    missing: tuple[Marker, ...],
    check: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also by an earlier version of hypemand, whose units know of no check."""
    store_notes(tmp_path / "boot.json", BootNotes(RUN, BOOT, waiting="loading"))
    monkeypatch.setattr(exit_module, "find_in_time", lambda *_: Findings(complete=True))
    monkeypatch.setattr(exit_module, "_systemctl", lambda *_args, **_options: b"")
    ending = collect_ending(RUN, "web.service", tmp_path, tmp_path, 15, needed, Mode.EXEC, 0.0)
    assert ending.missing == missing
    if check:
        assert ending.check == check


def flood(hung: threading.Event) -> Iterator[JournalLine]:
    """What a guest has said last, then more lines than can be read, one of which hangs at last."""
    yield from newest_first(
        "Kernel panic - not syncing: the last words", format_sentinel(AgentReady(BOOT, 0))
    )
    for _ in range(1000):
        yield JournalLine(b"and on", 0.0, 0.0)
    hung.wait(60)


def end_in_a_flood(monkeypatch: pytest.MonkeyPatch, state: Path, *, result: str = "success") -> Ending:
    """How a run ended whose journal cannot be read in time."""
    hung = threading.Event()

    def read(_run: str, boot: str | None, found: Findings) -> None:
        scan_journal(boot, flood(hung), found)

    (state / "run").write_text(f"{RUN} {BOOT}\n")
    monkeypatch.setattr(
        exit_module, "find_in_time", lambda run, boot, end: find_in_time(run, boot, end, read)
    )
    monkeypatch.setattr(exit_module, "_systemctl", lambda *_args, **_options: b"")
    monkeypatch.setenv("SERVICE_RESULT", result)
    monkeypatch.setenv("EXIT_CODE", "exited")
    monkeypatch.setenv("EXIT_STATUS", "0")
    deadline = time.monotonic() + 0.3
    try:
        return collect_ending(RUN, "hypeman-vm-web.service", state, state, 15, "1", Mode.EXEC, deadline)
    finally:
        hung.set()


def test_what_was_found_in_time_counts_and_the_record_says_that_it_is_not_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending = end_in_a_flood(monkeypatch, tmp_path)
    assert (ending.panic, ending.complete) == ("Kernel panic - not syncing: the last words", False)
    record = derive_exit_record(RUN, ending, 0.0)
    assert (record.code, record.success, record.status) == (None, False, 1)
    assert record.message == f"{ending.panic}; not all of its lines in the journal could be read"


def test_of_a_timeout_no_marker_is_called_missing_that_may_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = derive_exit_record(RUN, end_in_a_flood(monkeypatch, tmp_path, result="timeout"), 0.0)
    assert "was not seen" not in record.message
    assert record.message.startswith("it did not boot, or did not power off, in time and was ended by force;")


def test_the_daemons_notes_have_what_was_not_read_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = BootNotes(RUN, BOOT, exit=Exit(BOOT, 3, "exited with code 3"))
    store_notes(tmp_path / "boot.json", notes)
    record = derive_exit_record(RUN, end_in_a_flood(monkeypatch, tmp_path), 0.0)
    assert (record.code, record.message, record.status) == (3, "exited with code 3", 3)


def test_a_journal_that_cannot_be_opened_is_not_one_that_has_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_boot: str) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(exit_module, "synchronize_journal", lambda _deadline: False)
    monkeypatch.setattr(exit_module, "BootJournal", fail)
    assert not find_in_time(RUN, BOOT, time.monotonic() + 20).complete
    assert "cannot read the journal" in capsys.readouterr().err


def run_helper(state: Path, prepare: str) -> subprocess.CompletedProcess[bytes]:
    """ExecStopPost= as a process, in which this is done first."""
    script = f"""
import runpy, signal, sys, time, hypemand.atomic as atomic, hypemand.systemd.journal as journal
def hang(*_args, **_options):
    time.sleep(600)
{prepare}
runpy.run_module("hypemand.unit.exit", run_name="__main__", alter_sys=True)
"""
    how = [str(state), "hypeman-vm-web.service", "15", "1", "exec", str(state / "run/vms/web")]
    return subprocess.run(
        [sys.executable, "-c", script, *how],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "INVOCATION_ID": RUN},
        timeout=60,
        capture_output=True,
        check=False,
    )


def test_a_journal_that_never_answers_does_not_hold_the_process(tmp_path: Path) -> None:
    store_notes(tmp_path / "boot.json", BootNotes(RUN, BOOT, exit=Exit(BOOT, 3, "exited with code 3")))
    done = run_helper(tmp_path, "journal.BootJournal = hang")
    assert (done.returncode, done.stderr) == (3, b"")
    record = load_exit_record(tmp_path / "exit.json")
    assert record is not None
    assert (record.code, record.message) == (3, "exited with code 3")


def test_whatever_hangs_ends_at_last_and_is_a_failure(tmp_path: Path) -> None:
    """As systemd has it: ExecStopPost= that a signal has ended."""
    quick = "alarm = signal.alarm; signal.alarm = lambda seconds: alarm(3 if seconds == 120 else 600)"
    done = run_helper(tmp_path, f"journal.BootJournal = atomic.write_file = hang; {quick}")
    assert done.returncode == -signal.SIGALRM


def end_a_run(monkeypatch: pytest.MonkeyPatch, state: Path, runtime: Path) -> int:
    """What ExecStopPost= does after systemd's stop timeout."""
    ending = Ending("timeout", "killed", "KILL", None, (), None, None, True, 15)
    monkeypatch.setattr(exit_module, "collect_ending", lambda *_args: ending)
    monkeypatch.setenv("INVOCATION_ID", RUN)
    unit = "hypeman-vm-web.service"
    monkeypatch.setattr(sys, "argv", ["exit", str(state), unit, "15", "1", "exec", str(runtime)])
    return main()


def test_the_reason_survives_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, runtime = tmp_path / "state", tmp_path / "run/vms/web"
    for folder in (state, runtime):
        folder.mkdir(parents=True)

    def write_file_but_here(path: Path, data: bytes, *, mode: int) -> None:
        if path.is_relative_to(state):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write_file(path, data, mode=mode)

    with monkeypatch.context() as patch:
        patch.setattr("hypemand.recordfile.write_file", write_file_but_here)
        assert end_a_run(patch, state, runtime) == 0  # systemd knows of the timeout by itself
    assert list(state.iterdir()) == []
    # not where the VMM can write
    assert list(runtime.iterdir()) == []
    record = load_exit_record(find_spare(runtime))
    assert record is not None
    assert (record.run, record.success) == (RUN, False)
    assert "ended by force" in record.message
    end_a_run(monkeypatch, state, runtime)
    assert not find_spare(runtime).exists()
    assert isinstance(load_exit_record(state / "exit.json"), ExitRecord)


def test_machined_finds_no_record_of_a_run_that_has_ended(tmp_path: Path) -> None:
    unit = "hypeman-vm-web.service"
    exit_module.forget_machine(unit, "web", tmp_path / "missing")
    exit_module.forget_machine(unit, "web", tmp_path)
    for name, of in (("web", unit), ("other", "hypeman-vm-other.service")):
        (tmp_path / name).write_text(f"NAME={name}\nSCOPE={of}\n")
        (tmp_path / f"unit:{of}").symlink_to(name)
    exit_module.forget_machine(unit, "web", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "unit:hypeman-vm-other.service"]


def test_the_record_of_a_container_of_the_same_name_stays(tmp_path: Path) -> None:
    (tmp_path / "web").write_text("NAME=web\nSCOPE=machine-web.scope\n")
    (tmp_path / "unit:machine-web.scope").symlink_to("web")
    exit_module.forget_machine("hypeman-vm-web.service", "web", tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_where_nothing_can_be_written_its_status_is_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert end_a_run(monkeypatch, tmp_path / "file", tmp_path / "file/vms/web") == 0
    assert "cannot write the exit record (the guest did not power off" in capsys.readouterr().err


def test_systemd_gets_the_reason_as_the_units_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        monkeypatch.setenv("NOTIFY_SOCKET", str(address))
        end_a_run(monkeypatch, tmp_path, tmp_path)
        manager.settimeout(60)
        assert (
            manager.recv(4096)
            == b"STATUS=Stopped: the guest did not power off in time and was ended by force"
        )


def test_a_guests_words_are_no_assignments_for_systemd() -> None:
    record = ExitRecord(RUN, 1, "bad\nMAINPID=1\x1b[31m", False, 1, 0.0)
    assert describe_end(record) == "Stopped: bad?MAINPID=1?[31m"
