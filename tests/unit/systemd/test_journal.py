# SPDX-License-Identifier: Apache-2.0
"""The journal of a boot, read while journald writes and removes files of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from hypemand.systemd import journal as journal_module
from hypemand.systemd.journal import BootJournal

ALL = [str(number) for number in range(1000)]


@dataclass
class Journald:
    """Lines by number, in files of a hundred. `vacuum` removes the oldest files; `at` is called before a line
    of that number is read. `unlinked`: the lines from there on are counted, and cannot be matched yet."""

    lines: list[int] = field(default_factory=lambda: list(range(1000)))
    broken: set[int] = field(default_factory=set)
    at: dict[int, Callable[[], None]] = field(default_factory=dict)
    times: int = 0
    opened: int = 0
    unlinked: int = 10_000

    def vacuum(self, below: int) -> None:
        self.lines = [number for number in self.lines if number >= below]
        self.times += 1


class FakeReader:
    """What sd-journal does: files that were opened are known, and cannot be read once they are removed."""

    def __init__(self, journald: Journald) -> None:
        self._journald = journald
        journald.opened += 1
        self._known = list(journald.lines)
        self._at: float = -1
        self._seeks = False
        self._counted: int | None = None

    data_threshold = 0

    def add_match(self, _match: str) -> None:
        pass

    def seek_head(self) -> None:
        self._at, self._counted = -1, None

    def seek_tail(self) -> None:
        self._at = 10_000

    def seek_cursor(self, cursor: str) -> None:
        # the line itself is the next one in either direction
        self._at, self._seeks, self._counted = int(cursor), True, None

    def _next(self) -> bool:
        count, self._seeks, seeks = len(self._journald.lines), False, self._seeks
        if count == self._counted:
            return False
        known = [number for number in self._journald.lines if number < self._journald.unlinked]
        after = [number for number in known if number > self._at or (seeks and number == self._at)]
        if not after:
            self._counted = count
            return False
        self._at, self._counted = after[0], None
        return True

    def _previous(self) -> bool:
        seeks, self._seeks, self._counted = self._seeks, False, None
        before = [number for number in self._known if number < self._at or (seeks and number == self._at)]
        if not before:
            return False
        self._at = before[-1]
        if (act := self._journald.at.pop(before[-1], None)) is not None:
            act()
        return True

    def _check(self) -> int:
        number = int(self._at)
        if number not in self._journald.lines or number in self._journald.broken:
            raise OSError(74, "Bad message")
        return number

    def test_cursor(self, cursor: str) -> bool:
        return int(cursor) == self._at

    def _get_cursor(self) -> str:
        return str(self._check())

    def _get(self, _field: str) -> bytes:
        return str(self._check()).encode()

    def _get_monotonic(self) -> tuple[int, str]:
        return 0, ""

    def _get_realtime(self) -> int:
        return 0

    def close(self) -> None:
        self._known = []


def open_journal(monkeypatch: pytest.MonkeyPatch, journald: Journald) -> BootJournal:
    monkeypatch.setattr(journal_module, "_Reader", lambda: FakeReader(journald))
    monkeypatch.setattr(journal_module, "_read_folder_times", lambda: [journald.times])
    return BootJournal("b" * 32)


def read(monkeypatch: pytest.MonkeyPatch, journald: Journald, limit: int = 5000) -> list[str]:
    journal = open_journal(monkeypatch, journald)
    return [line.message.decode() for line in journal.read_backwards(limit)]


def read_on(journal: BootJournal) -> list[str]:
    return [line.message.decode() for line in journal.read(5)]


def test_lines_come_once_as_they_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    journald = Journald(lines=[0, 1])
    journal = open_journal(monkeypatch, journald)
    assert (read_on(journal), read_on(journal)) == (["0", "1"], [])
    journald.lines += [2]
    assert (read_on(journal), read_on(journal)) == (["2"], [])
    journald.lines += range(3, 10)
    assert (read_on(journal), read_on(journal), read_on(journal)) == (ALL[3:8], ALL[8:10], [])


@pytest.mark.parametrize("there", [[], [0, 1]])
def test_a_line_that_was_counted_and_not_yet_linked_comes_without_another_one(
    monkeypatch: pytest.MonkeyPatch, there: list[int]
) -> None:
    journald = Journald(lines=list(there), unlinked=2)
    journal = open_journal(monkeypatch, journald)
    assert read_on(journal) == [str(number) for number in there]
    journald.lines += [2]
    assert read_on(journal) == []
    journald.unlinked = 3
    assert (read_on(journal), read_on(journal)) == (["2"], [])


def test_where_the_last_line_is_gone_the_next_one_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    journald = Journald(lines=[0, 1])
    journal = open_journal(monkeypatch, journald)
    assert read_on(journal) == ["0", "1"]
    journald.lines += [2, 3]
    journald.vacuum(2)
    assert (read_on(journal), read_on(journal)) == (["2", "3"], [])


def test_all_lines_come_newest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    journald = Journald()
    assert read(monkeypatch, journald) == ALL[::-1]
    assert read(monkeypatch, journald, 10) == ALL[:-11:-1]
    assert journald.opened == 2


@pytest.mark.parametrize("at", [999, 905, 550, 500, 450, 1])
def test_what_is_still_there_comes_once_whenever_files_are_removed(
    monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    journald = Journald()
    journald.at[at] = lambda: journald.vacuum(500)
    lines = read(monkeypatch, journald)
    kept = [line for line in lines if int(line) >= 500]
    assert kept == ALL[:499:-1]
    assert lines == sorted(lines, key=int, reverse=True)


def test_removed_files_hide_none_that_are_older(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are removed by age, and have lines of other times than their names say."""
    journald = Journald()

    def remove() -> None:
        journald.lines = [number for number in journald.lines if not 300 <= number < 600]
        journald.times += 1

    journald.at[700] = remove
    assert read(monkeypatch, journald) == ALL[:599:-1] + ALL[299::-1]


def test_a_rotation_at_each_look_ends_and_repeats_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    journald = Journald()
    for number in journald.lines:
        journald.at[number] = lambda: journald.vacuum(0)
    assert read(monkeypatch, journald) == ALL[::-1]
    assert journald.opened <= 1000 / journal_module._LOOK_EVERY + 2


def test_where_all_is_removed_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    journald = Journald()
    journald.at[700] = lambda: journald.vacuum(10_000)
    assert read(monkeypatch, journald) == ALL[:700:-1]


def test_lines_that_cannot_be_read_hide_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    journald = Journald(broken={300, 301, 302, 999})
    assert read(monkeypatch, journald) == [line for line in ALL[::-1] if int(line) not in journald.broken]
    # and a file of them is no loop without end
    assert read(monkeypatch, Journald(broken=set(range(800)))) == ALL[:799:-1]


def test_a_stage_of_a_boot_is_read_where_an_entry_has_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is sent so that journalctl does not show it."""
    stage = b"HYPEMAN-STAGE name=root"

    class Reader(FakeReader):
        def _get(self, field: str) -> bytes:
            if int(super()._get(field)) % 2:
                return super()._get(field)
            if field == "HYPEMAN_STAGE":
                return stage
            raise KeyError(field)

    monkeypatch.setattr(journal_module, "_Reader", lambda: Reader(Journald()))
    monkeypatch.setattr(journal_module, "_read_folder_times", lambda: [0])
    assert [line.message for line in BootJournal("b" * 32).read_backwards(3)] == [b"999", stage, b"997"]
