# SPDX-License-Identifier: Apache-2.0
"""States from evidence: every combination against a table written apart from the code."""

from __future__ import annotations

from itertools import combinations, product

import pytest

from hypemand.errors import WrongState
from hypemand.model.evidence import (
    Derived,
    Evidence,
    Marker,
    RunState,
    UnitEvidence,
    derive_state,
    derive_status_text,
    describe_check,
)
from hypemand.model.state import Operation, State, check_allowed

MARKERS = [frozenset(seen) for count in range(4) for seen in combinations(Marker, count)]
EVERYTHING = [
    Evidence(*values)
    for values in product(UnitEvidence, RunState, MARKERS, (False, True), (False, True), (False, True))
]

GONE = {"no-unit", "inactive", "failed", "maintenance"}
UP = {"active", "reloading", "refreshing"}
MUTE = {"no-answer", "unrecognised"}
DEAD = {"SHUTDOWN", "PANICKED", "INTERNAL_ERROR"}

# DESIGN's table with its gaps filled: the first row that fits. Columns: unit, VMM, all markers in, snapshot.
ANY: set[str] = set()
TABLE: list[tuple[set[str], set[str], bool | None, bool | None, str]] = [
    (MUTE, ANY, None, None, "Unknown"),
    (GONE, ANY, None, True, "Standby"),
    (GONE, ANY, None, False, "Stopped"),
    ({"deactivating"}, ANY, None, None, "Shutdown"),
    ({"activating"}, {"ABSENT", "AWAITED"}, None, None, "Initializing"),
    (UP, {"ABSENT"}, None, None, "Unknown"),
    (ANY, {"NO_ANSWER", "UNRECOGNISED"}, None, None, "Unknown"),
    (ANY, DEAD, None, None, "Shutdown"),
    (ANY, {"NOT_STARTED"}, None, None, "Created"),
    ({"activating"}, ANY, None, None, "Initializing"),
    (UP, {"RUNNING", "AWAITED"}, True, None, "Running"),
    (UP, {"RUNNING", "AWAITED"}, False, None, "Initializing"),
    (UP, ANY, None, None, "Paused"),
]


def expected_state(evidence: Evidence) -> str:
    seen = {marker.value for marker in evidence.markers}
    ready = "program" in seen and ("agent" in seen or not evidence.guest_agent)
    ready = ready and ("ready" in seen or not evidence.ready)
    for units, states, want_ready, want_snapshot, state in TABLE:
        if (
            (not units or evidence.unit.value in units)
            and (not states or evidence.vmm.name in states)
            and want_ready in (None, ready)
            and want_snapshot in (None, evidence.has_snapshot)
        ):
            return state
    raise AssertionError(evidence)


def test_every_combination_has_the_state_of_the_table() -> None:
    wrong = [
        (e, derive_state(e).state, expected_state(e))
        for e in EVERYTHING
        if derive_state(e).state != expected_state(e)
    ]
    assert wrong == []
    assert len(EVERYTHING) == 11 * 13 * 64


def test_unknown_always_says_why_and_running_never_has_an_error() -> None:
    for evidence in EVERYTHING:
        derived = derive_state(evidence)
        if derived.state is State.UNKNOWN:
            assert derived.state_error
        if derived.state in (State.RUNNING, State.STOPPED, State.STANDBY, State.CREATED):
            assert derived.state_error is None


def test_resources_are_held_whenever_the_unit_lives_or_cannot_be_asked_for() -> None:
    for evidence in EVERYTHING:
        assert derive_state(evidence).state.is_vmm_active == (evidence.unit.value not in GONE)


def test_running_needs_a_unit_that_systemd_calls_active() -> None:
    for evidence in EVERYTHING:
        if derive_state(evidence).state is State.RUNNING:
            assert evidence.unit.value in UP


@pytest.mark.parametrize(
    ("program", "agent", "wanted", "missing", "text"),
    [
        (False, False, True, (Marker.PROGRAM, Marker.AGENT), "kernel up, waiting for agent and program"),
        (False, True, True, (Marker.PROGRAM,), "agent ready, waiting for program"),
        (True, False, True, (Marker.AGENT,), "program started, waiting for agent"),
        (True, True, True, (), "guest ready, waiting for systemd"),
        (False, False, False, (Marker.PROGRAM,), "kernel up, waiting for program"),
        (True, False, False, (), "guest ready, waiting for systemd"),
    ],
)
def test_initializing_says_which_marker_is_waited_for(
    program: bool, agent: bool, wanted: bool, missing: tuple[Marker, ...], text: str
) -> None:
    seen = frozenset([Marker.PROGRAM] * program + [Marker.AGENT] * agent)
    evidence = Evidence(UnitEvidence.ACTIVATING, RunState.RUNNING, seen, wanted)
    derived = derive_state(evidence)
    assert derived == Derived(State.INITIALIZING, None, missing)
    assert derive_status_text(derived, guest_agent=wanted) == f"Initializing: {text}"


@pytest.mark.parametrize(
    ("seen", "agent", "missing", "text"),
    [
        ((), True, 3, "kernel up, waiting for agent and program"),
        (("agent",), True, 2, "agent ready, waiting for program"),
        (("program",), True, 2, "program started, waiting for agent"),
        (("program", "agent"), True, 1, "program started, waiting for tcp 5432 (nothing listens)"),
        (("program",), False, 1, "program started, waiting for tcp 5432 (nothing listens)"),
        (("program", "ready"), True, 1, "program started, waiting for agent"),
        # whatever the guest says of its check, its program comes first
        (("agent", "ready"), True, 1, "agent ready, waiting for program"),
        (("program", "agent", "ready"), True, 0, "guest ready, waiting for systemd"),
    ],
)
def test_a_check_is_waited_for_after_program_and_agent(
    seen: tuple[str, ...], agent: bool, missing: int, text: str
) -> None:
    markers = frozenset(Marker(word) for word in seen)
    derived = derive_state(Evidence(UnitEvidence.ACTIVATING, RunState.RUNNING, markers, agent, ready=True))
    assert (derived.state, len(derived.missing)) == (State.INITIALIZING, missing)
    check = describe_check("tcp 5432", "nothing listens")
    assert derive_status_text(derived, guest_agent=agent, check=check) == f"Initializing: {text}"


def test_a_check_without_a_reason_is_named_alone() -> None:
    derived = Derived(State.INITIALIZING, missing=(Marker.READY,))
    text = derive_status_text(derived, check=describe_check("notify", None))
    assert text == "Initializing: program started, waiting for notify"


@pytest.mark.parametrize(
    ("derived", "text"),
    [
        (Derived(State.RUNNING), "Running: ready in 612 ms"),
        (Derived(State.STOPPED), "Stopped: exited 3"),
        (Derived(State.SHUTDOWN, stopping=True), "Shutdown: stopping"),
        (Derived(State.SHUTDOWN), "Shutdown: guest has shut down, VMM still there"),
        (Derived(State.PAUSED), "Paused"),
        (Derived(State.PAUSED, requested=True), "Paused: on request, until hypemanctl resume"),
        (Derived(State.PAUSED, "/srv is full"), "Paused: /srv is full"),
        (Derived(State.STANDBY), "Standby: can be restored"),
        (Derived(State.CREATED), "Created: VMM up, guest not started"),
        (Derived(State.INITIALIZING, vmm_absent=True), "Initializing: starting the VMM"),
        (Derived(State.UNKNOWN, "systemd does not answer"), "Unknown: systemd does not answer"),
    ],
)
def test_status_text_of_each_state(derived: Derived, text: str) -> None:
    assert derive_status_text(derived, ready_ms=612.4, result="exited 3") == text


def test_status_text_leaves_out_what_is_not_known() -> None:
    assert derive_status_text(Derived(State.RUNNING)) == "Running"
    assert derive_status_text(Derived(State.STOPPED)) == "Stopped"


def test_every_combination_has_a_status_text_that_begins_with_its_state() -> None:
    for evidence in EVERYTHING:
        derived = derive_state(evidence)
        text = derive_status_text(derived, guest_agent=evidence.guest_agent)
        assert text.startswith(derived.state.value)
        assert "\n" not in text


def test_words_of_systemd_that_are_not_known_are_not_guessed_at() -> None:
    assert UnitEvidence.from_active_state(None) is UnitEvidence.NO_UNIT
    assert UnitEvidence.from_active_state("active") is UnitEvidence.ACTIVE
    for word in ("", "hibernating", "no-unit", "no-answer"):
        assert UnitEvidence.from_active_state(word) is UnitEvidence.UNRECOGNISED


# For each operation the states that allow it, spelled out.
ALLOWED = {
    "start": "Stopped Created Initializing Running",
    "stop": "Stopped Created Initializing Running Paused Shutdown Unknown",
    "restart": "Stopped Created Initializing Running Paused Shutdown Unknown",
    "kill": "Created Initializing Running Paused Shutdown Unknown",
    "delete": "Stopped Created Initializing Running Paused Shutdown Standby Unknown",
    "exec": "Running",
    "attach": "Running",
    "copy": "Running",
    "stat": "Running",
    "pause": "Running",
    "resume": "Paused",
    "set": "Initializing Running Paused",
    "standby": "Running Paused Standby",
    "restore": "Standby Created Initializing Running",
    "snapshot": "Running Standby Stopped",
    "fork": "Running Standby Stopped",
    "revert": "Standby Stopped",
    "change": "Stopped",
    "export": "Stopped",
    "rename": "Stopped",
}


@pytest.mark.parametrize("operation", Operation)
@pytest.mark.parametrize("state", State)
def test_operations_are_allowed_as_the_table_says(operation: Operation, state: State) -> None:
    if state.value in ALLOWED[operation.value].split():
        check_allowed(operation, state, "web")
        return
    with pytest.raises(WrongState) as caught:
        check_allowed(operation, state, "web")
    assert f"web is {state.value}" in caught.value.message
    assert operation.value in caught.value.message
    assert caught.value.hint
    assert (caught.value.status, caught.value.code) == (409, "invalid_state")


def test_a_refused_operation_names_state_and_cure() -> None:
    with pytest.raises(WrongState, match=r"^exec needs state Running, and web is Stopped; start it first$"):
        check_allowed(Operation.EXEC, State.STOPPED, "web")
