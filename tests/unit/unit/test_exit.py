# SPDX-License-Identifier: Apache-2.0
"""What ExecStopPost= finds in the journal of a boot."""

import errno
import os
import sys
from pathlib import Path

import pytest

from hypemand.atomic import write_file
from hypemand.boot.record import Ending, ExitRecord, find_spare, load_exit_record
from hypemand.sentinels import AgentReady, Emergency, EmergencyState, Exit, format_sentinel
from hypemand.state import Marker
from hypemand.systemd.journal import JournalLine
from hypemand.unit import exit as exit_module
from hypemand.unit.exit import main, scan_journal

BOOT, OTHER = "a" * 32, "b" * 32


def newest_first(*messages: bytes | str) -> list[JournalLine]:
    lines = [m if isinstance(m, bytes) else m.encode() for m in messages]
    return [JournalLine(message, 0.0, 0.0) for message in reversed(lines)]


def test_the_last_report_wins_wherever_it_stands() -> None:
    lines = newest_first(
        format_sentinel(Exit(BOOT, 1, "first")), "noise", format_sentinel(Exit(BOOT, 2, "last")), "more"
    )
    assert scan_journal(BOOT, lines).report == Exit(BOOT, 2, "last")


def test_a_forged_report_of_another_boot_is_none() -> None:
    assert scan_journal(BOOT, newest_first(format_sentinel(Exit(OTHER, 0, "fine")))).report is None


def test_without_a_report_it_finds_markers_panic_and_the_vmms_words() -> None:
    lines = newest_first(
        format_sentinel(AgentReady(BOOT, 0)),
        "qemu-system-x86_64: first words",
        "qemu-system-x86_64: last words",
        b"[    1.0] Kernel panic - not syncing: \x1b[31mAttempted to kill init!\xff",
    )
    found = scan_journal(BOOT, lines)
    assert found.report is None
    assert found.markers == {Marker.AGENT}
    assert found.panic == "Kernel panic - not syncing: ?[31mAttempted to kill init!\N{REPLACEMENT CHARACTER}"
    assert found.vmm == "last words"


def test_the_newest_word_on_emergency_mode_counts() -> None:
    entered, left = (format_sentinel(Emergency(BOOT, 0, state)) for state in EmergencyState)
    assert scan_journal(BOOT, newest_first(entered)).emergency is EmergencyState.ENTERED
    assert scan_journal(BOOT, newest_first(entered, left, "x")).emergency is EmergencyState.LEFT


def end_a_run(monkeypatch: pytest.MonkeyPatch, state: Path, runtime: Path) -> int:
    """What ExecStopPost= does after systemd's stop timeout."""
    ending = Ending("timeout", "killed", "KILL", None, (), None, None, True, 15)
    monkeypatch.setattr(exit_module, "collect_ending", lambda *_args: ending)
    monkeypatch.setenv("INVOCATION_ID", BOOT)
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
        patch.setattr(exit_module, "write_file", write_file_but_here)
        assert end_a_run(patch, state, runtime) == 0  # systemd knows of the timeout by itself
    assert list(state.iterdir()) == []
    # not where the VMM can write
    assert list(runtime.iterdir()) == []
    record = load_exit_record(find_spare(runtime))
    assert record is not None
    assert (record.boot, record.success) == (BOOT, False)
    assert "ended by force" in record.message
    end_a_run(monkeypatch, state, runtime)
    assert not find_spare(runtime).exists()
    assert isinstance(load_exit_record(state / "exit.json"), ExitRecord)


def test_where_nothing_can_be_written_its_status_is_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert end_a_run(monkeypatch, tmp_path / "file", tmp_path / "file/vms/web") == 0
    assert "cannot write the exit record (the guest did not power off" in capsys.readouterr().err
