# SPDX-License-Identifier: Apache-2.0
"""What ExecStopPost= finds in the journal of a boot."""

from hypemand.sentinels import AgentReady, Emergency, EmergencyState, Exit, format_sentinel
from hypemand.state import Marker
from hypemand.systemd.journal import JournalLine
from hypemand.unit.exit import scan_journal

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
