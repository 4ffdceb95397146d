# SPDX-License-Identifier: Apache-2.0
"""How a run is judged by the evidence that it leaves."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hypemand.config.mode import Mode
from hypemand.model.evidence import Marker
from hypemand.model.exits import ExitKind
from hypemand.protocol.sentinels import Exit
from hypemand.vm.exitrecord import (
    REBOOTED,
    Ending,
    ExitRecord,
    derive_exit_record,
    load_exit_record,
    store_exit_record,
)
from hypemand.vmm.shutdown import Shutdown

BOOT = "0123456789abcdef0123456789abcdef"
SILENT = Ending(
    result="success",
    exit_code="exited",
    exit_status="0",
    report=None,
    missing=(),
    panic=None,
    vmm_words=None,
    stop_job=False,
    stop_signal=15,
)


def judge(ending: Ending) -> ExitRecord:
    return derive_exit_record(BOOT, ending, 12.5)


def reported(code: int, message: str) -> Ending:
    return replace(SILENT, report=Exit(BOOT, code, message))


@pytest.mark.parametrize(
    ("ending", "code", "success", "status"),
    [
        (reported(0, "exited with code 0"), 0, True, 0),
        (reported(3, "exited with code 3"), 3, False, 3),
        (reported(137, "out of memory"), 137, False, 137),
        (reported(143, "killed by signal 15 (TERM)"), 143, False, 143),
        (reported(143, "stopped on request: killed by signal 15 (TERM)"), 143, True, 0),
        (reported(0, "stopped on request before the program started"), 0, True, 0),
        # SIGKILL after the grace is a failure, as systemd's own stop timeout is
        (reported(137, "stopped on request: killed after 27 s"), 137, False, 137),
        # another stop signal was asked for than the one it died of
        (
            replace(reported(143, "stopped on request: killed by signal 15 (TERM)"), stop_signal=2),
            143,
            False,
            143,
        ),
        (SILENT, None, False, 1),
        (replace(SILENT, stop_job=True), None, True, 0),
        (replace(SILENT, panic="Kernel panic - not syncing: oops"), None, False, 1),
        # systemd knows of these failures by itself
        (replace(SILENT, result="signal", exit_code="killed", exit_status="KILL"), None, False, 0),
        (replace(SILENT, result="oom-kill", exit_code="killed", exit_status="KILL"), None, False, 0),
        (replace(SILENT, result="timeout", missing=(Marker.AGENT,)), None, False, 0),
        (replace(reported(0, "exited with code 0"), result="timeout"), None, False, 0),
        (replace(SILENT, result="exit-code", exit_status="1"), None, False, 0),
        (replace(SILENT, result="exit-code", exit_status="243"), None, False, 0),
        (replace(reported(0, "stopped on request"), result="watchdog", unhealthy="down"), None, False, 0),
        # the program could not be started
        (replace(reported(127, "not found"), result="protocol"), 127, False, 127),
    ],
)
def test_code_success_and_status_follow_the_evidence(
    ending: Ending, code: int | None, success: bool, status: int
) -> None:
    record = judge(ending)
    assert (record.code, record.success, record.status) == (code, success, status)


@pytest.mark.parametrize(
    ("ending", "words"),
    [
        (replace(SILENT, result="timeout", missing=(Marker.AGENT,)), "HYPEMAN-AGENT-READY was not seen"),
        (
            replace(SILENT, result="timeout", missing=(Marker.PROGRAM, Marker.AGENT)),
            "HYPEMAN-PROGRAM-START and HYPEMAN-AGENT-READY were not seen",
        ),
        (
            replace(SILENT, result="timeout", missing=(Marker.READY,), check="tcp 5432 (nothing listens)"),
            "boot timed out: program started, waiting for tcp 5432 (nothing listens)",
        ),
        (
            replace(SILENT, result="timeout", missing=(Marker.AGENT, Marker.READY), check="tcp 1"),
            "boot timed out: HYPEMAN-AGENT-READY was not seen",
        ),
        (replace(SILENT, result="timeout"), "did not power off in time"),
        (replace(SILENT, panic="Kernel panic - not syncing: oops"), "Kernel panic - not syncing: oops"),
        (
            replace(SILENT, result="timeout", missing=(Marker.AGENT,), panic="Kernel panic - not syncing: x"),
            "(Kernel panic - not syncing: x)",
        ),
        (replace(SILENT, result="signal", exit_code="killed", exit_status="KILL"), "killed by SIGKILL"),
        (replace(SILENT, result="signal", exit_code="killed", exit_status="11"), "killed by SIGSEGV"),
        (replace(SILENT, result="oom-kill", exit_code="killed", exit_status="KILL"), "memory limit"),
        (replace(reported(0, "stopped on request"), result="watchdog", unhealthy="down"), "unhealthy: down"),
        (replace(SILENT, result="watchdog"), "unhealthy: the watchdog of its unit says so"),
        (
            replace(SILENT, result="exit-code", exit_status="1", vmm_words="no such file"),
            "exit status 1: no such file",
        ),
        (replace(SILENT, result="exit-code", exit_status="243"), "systemd could not load the VM's secrets"),
        (SILENT, "the guest powered off without an exit report"),
        (
            replace(SILENT, result="protocol", missing=(Marker.AGENT,)),
            "the guest powered off without an exit",
        ),
    ],
)
def test_the_message_says_why(ending: Ending, words: str) -> None:
    assert words in judge(ending).message


SYSTEMD = replace(SILENT, mode=Mode.SYSTEMD)


def test_a_reboot_from_inside_is_success_and_is_known_as_one() -> None:
    record = judge(replace(reported(0, "rebooted from inside"), mode=Mode.SYSTEMD))
    assert (record.code, record.success, record.status, record.reboot) == (0, True, 0, True)
    early = judge(replace(reported(0, "rebooted from inside"), mode=Mode.SYSTEMD, result="protocol"))
    assert (early.status, early.reboot) == (0, True)
    assert not judge(reported(0, "rebooted from inside")).reboot, "no program can ask for that"
    assert not judge(replace(reported(0, "powered off from inside"), mode=Mode.SYSTEMD)).reboot


def test_the_vmms_word_stands_for_a_report_of_an_init() -> None:
    off = judge(replace(SYSTEMD, shutdown=Shutdown.POWER_OFF))
    assert (off.code, off.message, off.success, off.reboot) == (
        0,
        "powered off from inside, without an exit report",
        True,
        False,
    )
    reboot = judge(replace(SYSTEMD, shutdown=Shutdown.RESET))
    assert (reboot.code, reboot.success, reboot.reboot) == (0, True, True)
    assert not judge(SYSTEMD).success
    assert not judge(replace(SILENT, shutdown=Shutdown.POWER_OFF)).success, "a program has to report"
    panicked = judge(replace(SYSTEMD, shutdown=Shutdown.RESET, panic="Kernel panic - not syncing: x"))
    assert (panicked.success, panicked.reboot) == (False, False)
    killed = replace(SYSTEMD, shutdown=Shutdown.RESET, result="signal", exit_code="killed")
    assert not judge(replace(killed, exit_status="KILL")).reboot


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("shutdown", [None, Shutdown.RESET])
def test_a_guest_that_ends_before_its_program_is_taken_for_a_crash(
    mode: Mode, shutdown: Shutdown | None
) -> None:
    """A kernel that panics before its console is up says nothing. That is no reboot, after which the guest
    would be started again, for ever."""
    early = replace(
        SILENT, result="protocol", missing=(Marker.PROGRAM, Marker.AGENT), mode=mode, shutdown=shutdown
    )
    record = judge(early)
    assert record.message == (
        "the guest ended before its program started, without an exit report: "
        "its kernel may have crashed before its console was up"
    )
    assert (record.kind, record.success, record.status, record.reboot) == (ExitKind.PANIC, False, 1, False)
    off = judge(replace(early, shutdown=Shutdown.POWER_OFF))
    assert (off.kind, off.success) == (ExitKind.POWER_OFF, False)
    assert off.message == "the guest powered off before its program started, without an exit report"
    assert "crashed" not in judge(replace(early, complete=False)).message


def test_a_boot_that_timed_out_in_emergency_mode_says_so() -> None:
    ending = replace(SYSTEMD, result="timeout", missing=(Marker.AGENT,), emergency=True)
    assert judge(ending).message == (
        "boot timed out: HYPEMAN-AGENT-READY was not seen; the guest's systemd is in emergency mode"
    )


def test_a_record_survives_its_file(tmp_path: Path) -> None:
    record = judge(reported(3, 'exited with code 3 "in quotes"'))
    path = tmp_path / "exit.json"
    store_exit_record(path, record)
    assert load_exit_record(path) == record


@pytest.mark.parametrize("text", ["", "{", "[]", '{"boot": "x"}'])
def test_a_broken_record_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "exit.json"
    path.write_text(text)
    assert load_exit_record(path) is None


@pytest.mark.parametrize(
    ("ending", "kind", "marker"),
    [
        (reported(0, "exited with code 0"), ExitKind.SUCCESS, ""),
        (reported(3, "exited with code 3"), ExitKind.FAILURE, ""),
        (reported(143, "stopped on request: killed by signal 15 (TERM)"), ExitKind.REQUESTED, ""),
        (replace(SILENT, stop_job=True), ExitKind.REQUESTED, ""),
        (SILENT, ExitKind.POWER_OFF, ""),
        (replace(SILENT, panic="Kernel panic - not syncing: oops"), ExitKind.PANIC, ""),
        (replace(SILENT, result="oom-kill", exit_code="killed"), ExitKind.MEMORY, ""),
        (replace(SILENT, result="signal", exit_code="killed", exit_status="KILL"), ExitKind.VMM, ""),
        (replace(SILENT, result="exit-code", exit_status="1"), ExitKind.VMM, ""),
        (replace(reported(0, "exited with code 0"), result="timeout"), ExitKind.STOP_TIMEOUT, ""),
        (
            replace(SILENT, result="timeout", missing=(Marker.AGENT,)),
            ExitKind.BOOT_TIMEOUT,
            "HYPEMAN-AGENT-READY",
        ),
        (
            replace(SILENT, result="timeout", missing=(Marker.READY,), check="tcp port 80"),
            ExitKind.BOOT_TIMEOUT,
            "HYPEMAN-READY",
        ),
        # the check begins with the program
        (
            replace(SILENT, result="timeout", missing=(Marker.PROGRAM, Marker.READY), check="x"),
            ExitKind.BOOT_TIMEOUT,
            "HYPEMAN-PROGRAM-START",
        ),
        # what was not read may have been there
        (
            replace(SILENT, result="timeout", missing=(Marker.AGENT,), complete=False),
            ExitKind.BOOT_TIMEOUT,
            "",
        ),
        (replace(reported(0, REBOOTED), mode=Mode.SYSTEMD), ExitKind.REBOOT, ""),
    ],
)
def test_the_kind_of_an_end_follows_the_evidence(ending: Ending, kind: ExitKind, marker: str) -> None:
    record = judge(ending)
    assert (record.kind, record.marker) == (kind, marker)


def test_a_record_of_another_version_has_no_kind_or_one_that_is_not_known(tmp_path: Path) -> None:
    path = tmp_path / "exit.json"
    store_exit_record(path, judge(SILENT))
    document = json.loads(path.read_text())
    for change in ({"kind": "melted"}, {"kind": None}):
        path.write_text(json.dumps(document | change))
        found = load_exit_record(path)
        assert found is not None
        assert found.kind is ExitKind.UNKNOWN
    for key in ("kind", "marker"):
        del document[key]
    path.write_text(json.dumps(document))
    assert load_exit_record(path) == replace(judge(SILENT), kind=ExitKind.UNKNOWN)
