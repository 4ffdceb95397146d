# SPDX-License-Identifier: Apache-2.0
"""What a boot is taken to have shown."""

import json
from pathlib import Path

import pytest

from hypemand.config.mode import Mode
from hypemand.model.evidence import Marker
from hypemand.model.state import HeadersState, HeadersStatus
from hypemand.protocol.sentinels import (
    AgentReady,
    Emergency,
    EmergencyState,
    Exit,
    HeadersFailed,
    HeadersReady,
    HeadersStart,
    ProgramStart,
    Ready,
    Sentinel,
    Stage,
    Waiting,
    format_sentinel,
)
from hypemand.vm.tracker import BootNotes, BootTracker, Moment, load_notes, store_notes
from hypemand.vmm.shutdown import Shutdown

RUN, BOOT, OTHER = "c" * 32, "a" * 32, "b" * 32


def make_tracker(notes: BootNotes | None = None) -> BootTracker:
    return BootTracker(RUN, lambda: BOOT, notes)


def line(sentinel: Sentinel) -> bytes:
    return format_sentinel(sentinel).encode()


def start(boot: str = BOOT) -> bytes:
    return line(ProgramStart(boot, 0, Mode.EXEC))


def test_both_markers_make_it_ready() -> None:
    tracker = make_tracker()
    assert tracker.take_line(start(), 1.0)
    assert not tracker.is_ready(guest_agent=True)
    assert tracker.is_ready(guest_agent=False)
    assert tracker.take_line(line(AgentReady(BOOT, 0)), 2.0)
    assert tracker.is_ready(guest_agent=True)


def test_a_check_of_the_definition_needs_its_own_marker() -> None:
    tracker = make_tracker()
    tracker.take_line(start(), 1.0)
    tracker.take_agent(2.0)
    assert not tracker.is_ready(guest_agent=True, ready=True)
    assert tracker.take_line(line(Waiting(BOOT, 0, "nothing listens")), 2.5)
    assert not tracker.take_line(line(Waiting(BOOT, 1, "nothing listens")), 2.6)
    assert tracker.notes.waiting == "nothing listens"
    assert tracker.take_line(line(Ready(BOOT, 0)), 3.0)
    assert tracker.is_ready(guest_agent=True, ready=True)
    assert tracker.notes.moments[Moment.READY] == 3.0
    assert not tracker.take_line(line(Ready(BOOT, 1)), 4.0)
    # what comes late changes nothing
    assert not tracker.take_line(line(Waiting(BOOT, 2, "late")), 5.0)


def test_the_agents_hello_stands_for_its_marker() -> None:
    tracker = make_tracker()
    tracker.take_line(start(), 1.0)
    assert tracker.take_agent(2.0)
    assert tracker.is_ready(guest_agent=True)


def test_the_first_witness_dates_a_marker() -> None:
    tracker = make_tracker()
    tracker.take_agent(2.0)
    assert not tracker.take_line(line(AgentReady(BOOT, 0)), 3.0)
    assert tracker.notes.moments[Moment.AGENT_READY] == 2.0


@pytest.mark.parametrize("sentinel", [start(OTHER), line(AgentReady(OTHER, 0)), line(Exit(OTHER, 0, "x"))])
def test_a_line_of_another_boot_counts_for_nothing(sentinel: bytes) -> None:
    tracker = make_tracker()
    assert not tracker.take_line(sentinel, 1.0)
    assert tracker.notes == BootNotes(RUN, BOOT)


def test_the_last_exit_report_wins() -> None:
    tracker = make_tracker()
    tracker.take_line(line(Exit(BOOT, 1, "first")), 1.0)
    tracker.take_line(line(Exit(BOOT, 2, "second")), 2.0)
    assert tracker.exit == Exit(BOOT, 2, "second")


def test_emergency_mode_is_entered_and_left() -> None:
    tracker = make_tracker()
    assert tracker.take_line(line(Emergency(BOOT, 0, EmergencyState.ENTERED)), 1.0)
    assert not tracker.take_line(line(Emergency(BOOT, 0, EmergencyState.ENTERED)), 1.0)
    assert tracker.notes.emergency
    assert make_tracker(tracker.notes).emergency
    assert tracker.take_line(line(Emergency(BOOT, 0, EmergencyState.LEFT)), 2.0)
    assert not tracker.notes.emergency


def test_a_guest_cannot_fill_the_memory_with_stages() -> None:
    tracker = make_tracker()
    for number in range(1000):
        tracker.take_line(line(Stage(BOOT, f"s{number}", 0.0, 1.0)), 1.0)
    assert len(tracker.notes.stages) == 64


def test_headers_go_on_until_they_are_settled() -> None:
    tracker = make_tracker()
    assert tracker.notes.headers == HeadersStatus(HeadersState.PENDING)
    assert not tracker.take_line(line(HeadersStart(OTHER, 1)), 1.0)
    assert tracker.take_line(line(HeadersStart(BOOT, 1)), 1.0)
    assert not tracker.take_line(line(HeadersStart(BOOT, 2)), 1.0)
    assert tracker.notes.headers.state is HeadersState.RUNNING
    assert tracker.take_line(line(HeadersFailed(BOOT, 3, "no disk")), 1.0)
    assert not tracker.take_line(line(HeadersReady(BOOT, 4)), 1.0)
    assert tracker.notes.headers == HeadersStatus(HeadersState.FAILED, "no disk")


def test_notes_of_a_daemon_that_knew_no_headers_are_notes(tmp_path: Path) -> None:
    path = tmp_path / "boot.json"
    path.write_text(
        json.dumps({"run": RUN, "boot": BOOT, "markers": [], "exit": None, "moments": {}, "stages": []})
    )
    assert load_notes(path) == BootNotes(RUN, BOOT)


def test_notes_survive_their_file(tmp_path: Path) -> None:
    tracker = make_tracker()
    tracker.set_moment(Moment.REQUESTED, 10.0)
    tracker.take_line(start(), 10.5)
    tracker.take_line(line(Stage(BOOT, "root", 0.1, 0.2)), 10.5)
    tracker.take_line(line(Exit(BOOT, 3, "exited")), 11.0)
    tracker.take_line(line(HeadersFailed(BOOT, 3, "no disk")), 11.0)
    tracker.take_line(line(Waiting(BOOT, 0, "http: status 503")), 10.6)
    tracker.take_line(line(Ready(BOOT, 0)), 10.7)
    tracker.set_moment(Moment.RUNNING, 10.75)
    tracker.take_line(line(Emergency(BOOT, 0, EmergencyState.ENTERED)), 11.0)
    tracker.take_shutdown(None)
    tracker.take_shutdown(Shutdown.RESET)
    tracker.take_shutdown(None)
    tracker.take_shutdown(Shutdown.POWER_OFF)
    path = tmp_path / "boot.json"
    store_notes(path, tracker.notes)
    again = load_notes(path, RUN)
    assert again == tracker.notes
    assert again is not None
    assert (again.emergency, again.shutdown) == (True, Shutdown.RESET)
    assert again.ready_ms == pytest.approx(750.0)
    assert make_tracker(again).has(Marker.PROGRAM)
    assert make_tracker(again).has(Marker.READY)
    assert again.waiting == "http: status 503"
    assert load_notes(path, OTHER) is None


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"boot": 1}', b"\xff\xfe"])
def test_broken_notes_are_none(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "boot.json"
    path.write_bytes(data)
    assert load_notes(path) is None


def test_a_line_counts_as_soon_as_it_is_known_which_boot_the_run_carries() -> None:
    known: list[str] = []
    tracker = BootTracker(RUN, lambda: known[0] if known else None)
    # nor does a guest that signs with the run's id, which it should not know
    assert not tracker.take_line(start(), 1.0)
    assert not tracker.take_line(start(RUN), 1.0)
    assert tracker.notes == BootNotes(RUN)
    known.append(BOOT)
    assert not tracker.take_line(start(RUN), 2.0)
    assert tracker.take_line(start(), 2.0)
    known[0] = OTHER
    assert not tracker.take_line(start(OTHER), 3.0)
    assert tracker.notes.boot == BOOT


def test_a_daemon_that_comes_later_knows_the_boot_from_the_notes() -> None:
    tracker = BootTracker(RUN, lambda: None, BootNotes(RUN, BOOT))
    assert tracker.take_line(start(), 1.0)


def test_until_it_is_heard_the_boot_may_be_replaced_by_another_one() -> None:
    """A guest that does not continue from its template is, in the same run."""
    boots = [OTHER]
    tracker = BootTracker(RUN, lambda: boots[-1])
    assert tracker.boot == OTHER
    boots.append(BOOT)
    assert tracker.take_line(start(), 1.0)
    boots.append("c" * 32)
    assert tracker.boot == BOOT
