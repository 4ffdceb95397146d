# SPDX-License-Identifier: Apache-2.0
"""What ExecStopPost= finds in the journal of a boot."""

from hypemand.sentinels import AgentReady, Exit, format_sentinel
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
    report, _markers, _panic, _vmm = scan_journal(BOOT, lines)
    assert report == Exit(BOOT, 2, "last")


def test_a_forged_report_of_another_boot_is_none() -> None:
    report, *_ = scan_journal(BOOT, newest_first(format_sentinel(Exit(OTHER, 0, "fine"))))
    assert report is None


def test_without_a_report_it_finds_markers_panic_and_the_vmms_words() -> None:
    lines = newest_first(
        format_sentinel(AgentReady(BOOT, 0)),
        "qemu-system-x86_64: first words",
        "qemu-system-x86_64: last words",
        b"[    1.0] Kernel panic - not syncing: \x1b[31mAttempted to kill init!\xff",
    )
    report, markers, panic, vmm = scan_journal(BOOT, lines)
    assert report is None
    assert markers == {Marker.AGENT}
    assert panic == "Kernel panic - not syncing: ?[31mAttempted to kill init!\N{REPLACEMENT CHARACTER}"
    assert vmm == "last words"
