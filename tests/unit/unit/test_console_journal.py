# SPDX-License-Identifier: Apache-2.0
"""hypeman-console and journald: lines become entries as they are, and what does not is counted."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.unit.unit.test_console import MIB, NOTICE

ENTRY_MAX = 128 * 1024
TRIES = 8
END = b'HYPEMAN-EXIT code=0 message="" boot=1\n'


Fields = Mapping[bytes, bytes]
STOP = b"stop"


def parse_entry(datagram: bytes) -> Fields:
    """The fields of an entry in the form without lengths, which no text with a newline can have."""
    assert datagram.endswith(b"\n")
    pairs = [field.partition(b"=") for field in datagram[:-1].split(b"\n")]
    assert all(re.fullmatch(rb"[A-Z_]+", key) and equals for key, equals, _ in pairs), datagram[:200]
    fields = {key: value for key, _, value in pairs}
    assert len(fields) == len(pairs)
    return fields


class Journald:
    """A socket that takes entries as journald does, while `reads` is set, which it is for so many as `first`.
    `pace`: seconds that each takes; one that was late is followed by those that are due."""

    def __init__(
        self, folder: Path, *, reads: bool = True, first: int | None = None, pace: float = 0
    ) -> None:
        self.path = folder / "journal.sock"
        self.path.unlink(missing_ok=True)
        self.entries: list[Fields] = []
        # how many entries were there when an empty datagram came
        self.fences: list[int] = []
        self.reads = threading.Event()
        if reads:
            self.reads.set()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))
        self._first = first
        self._pace = pace
        self._ends = False
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        began = None
        while self.reads.wait() and (datagram := self._socket.recv(MIB)) != STOP:
            if datagram:
                self.entries.append(parse_entry(datagram))
                if len(self.entries) == self._first:
                    self.reads.clear()
                if self._pace:
                    began = began or time.monotonic()
                    due = began + len(self.entries) * self._pace
                    time.sleep(max(due - time.monotonic(), 0))
            else:  # which has no effect
                self.fences.append(len(self.entries))

    def close(self) -> None:
        """No more comes."""
        if self._ends:
            return
        self._ends = True
        self.reads.set()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as wake:
            wake.connect(str(self.path))
            wake.send(STOP)
        self._thread.join()
        self._socket.close()


@contextmanager
def run_journald(
    folder: Path, *, reads: bool = True, first: int | None = None, pace: float = 0
) -> Iterator[Journald]:
    """Until the block ends."""
    journald = Journald(folder, reads=reads, first=first, pace=pace)
    try:
        yield journald
    finally:
        journald.close()


def command(
    console: Path, journald: Journald, burst: int = MIB, per_hour: int = MIB, end: int = 12
) -> list[str]:
    folder = str(journald.path.parent)
    return [str(console), folder, str(burst), str(per_hour), "--journal", str(journald.path), "web", str(end)]


def feed(console: Path, folder: Path, data: bytes, *, burst: int = MIB) -> list[Fields]:
    """The entries of a program that writes this and ends. All of them: nothing is on its way then."""
    with run_journald(folder) as journald:
        argv = [*command(console, journald, burst), "/bin/cat"]
        done = subprocess.run(argv, input=data, capture_output=True, timeout=60, check=True)
        assert (done.stdout, done.stderr) == (b"", b"")
        await_end(folder)
        return list(journald.entries)


def await_end(folder: Path, deadline: float = 60) -> None:
    """Until the process beside the program has ended."""
    mark = os.open(folder / "console.end", os.O_RDONLY | os.O_NONBLOCK)
    try:
        # a pipe that nobody held when it was opened has no hang-up to wait for, and no more to read
        with contextlib.suppress(BlockingIOError):
            if os.read(mark, 1) == b"":
                return
        waiting = select.poll()
        waiting.register(mark, 0)
        assert waiting.poll(deadline * 1000), "something holds the pipe"
    finally:
        os.close(mark)


def is_line(entry: Fields) -> bool:
    """Not a piece of a longer one."""
    return len(entry[b"MESSAGE"]) != ENTRY_MAX


def join(entries: list[Fields]) -> bytes:
    """What the guest wrote, as far as entries tell that: a last line without its end gets one."""
    texts = [entry[b"MESSAGE"] + b"\r" * (b"HYPEMAN_CR" in entry) for entry in entries if b"MESSAGE" in entry]
    # all of more than one are no terminal's end of a line
    plain = [entry for entry in entries if b"MESSAGE" in entry and b"HYPEMAN_CR" not in entry]
    assert not any(entry[b"MESSAGE"].endswith(b"\r") and is_line(entry) for entry in plain)
    return b"".join(text if len(text) == ENTRY_MAX else text + b"\n" for text in texts)


blanks = st.sampled_from(
    [b"\n", b"\r\n", b"\0", b" ", b"\t", b"<3>", b"<0>x\n", b"a=b\n", b"\n\n", b"\xff", b"\r"]
)
long = st.integers(ENTRY_MAX - 2, ENTRY_MAX + 2).map(lambda size: b"x" * size)
streams = st.lists(blanks | st.binary(max_size=200) | long, max_size=12).map(b"".join)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(streams)
@example(b"\r")
@example(b"\r\r\n")
def test_entries_are_what_was_written(console: Path, tmp_path: Path, data: bytes) -> None:
    entries = feed(console, tmp_path, data, burst=64 * MIB)
    whole = (
        data
        if data.endswith(b"\n") or not data or len(data.rpartition(b"\n")[2]) % ENTRY_MAX == 0
        else data + b"\n"
    )
    assert join(entries) == whole
    assert all(len(entry[b"MESSAGE"]) <= ENTRY_MAX for entry in entries if b"MESSAGE" in entry)


def test_an_entry_has_what_journald_would_give_a_line_of_a_service(console: Path, tmp_path: Path) -> None:
    first, last = feed(console, tmp_path, b"<0>one\n")
    known = {b"PRIORITY": b"6", b"SYSLOG_FACILITY": b"3", b"SYSLOG_IDENTIFIER": b"web"}
    assert first == {b"MESSAGE": b"<0>one", b"HYPEMAN_LINE": b"1", **known}
    assert last == {b"HYPEMAN_LINE": b"2", **known, b"PRIORITY": b"4"}


def test_a_line_says_where_it_stands_now_and_then(console: Path, tmp_path: Path) -> None:
    entries = feed(console, tmp_path, b"".join(b"%d\n" % n for n in range(1, 41)))
    numbered = {
        int(entry[b"HYPEMAN_LINE"]): entry.get(b"MESSAGE") for entry in entries if b"HYPEMAN_LINE" in entry
    }
    assert numbered == {1: b"1", 17: b"17", 33: b"33", 41: None}


def test_stages_of_a_boot_have_no_message_and_markers_are_for_debugging(
    console: Path, tmp_path: Path
) -> None:
    stage = b"HYPEMAN-STAGE name=root start=0.1 end=0.2 boot=1"
    program = b"HYPEMAN-PROGRAM-START ts=x boot=1"
    entries = feed(console, tmp_path, stage + b"\n" + program + b"\nsee HYPEMAN-STAGE name=x\n")
    assert entries[0][b"HYPEMAN_STAGE"] == stage
    assert b"MESSAGE" not in entries[0]
    assert [entry.get(b"MESSAGE") for entry in entries[1:3]] == [program, b"see HYPEMAN-STAGE name=x"]
    assert [entry[b"PRIORITY"] for entry in entries[:3]] == [b"7", b"7", b"6"]


def test_what_is_over_the_limit_is_counted(console: Path, tmp_path: Path) -> None:
    entries = feed(console, tmp_path, b"x\n" * 20_000 + END)
    (notice,) = [entry for entry in entries if b"HYPEMAN_DROPPED" in entry]
    found = NOTICE.fullmatch(notice[b"MESSAGE"] + b"\n")
    assert found is not None
    assert (found[1], notice[b"PRIORITY"]) == (notice[b"HYPEMAN_DROPPED"], b"4")
    texts = [entry[b"MESSAGE"] for entry in entries if b"MESSAGE" in entry]
    assert texts.count(b"x") + int(found[1]) == 20_000
    assert END.rstrip(b"\n") in texts
    assert entries[-1][b"HYPEMAN_LINE"] == b"20002"


def test_a_journald_that_stands_still_holds_the_program_up_no_more_than_the_queue_is_long(
    console: Path, tmp_path: Path
) -> None:
    """The VMM would lose what the pipe has no room for, and nobody would know how much that was."""
    lines = b"".join(b"%064d\n" % number for number in range(200_000))
    with run_journald(tmp_path, reads=False) as journald:
        argv = [
            *command(console, journald, burst=4096 * MIB),
            "/bin/sh",
            "-c",
            "cat; echo >done; exec sleep 60",
        ]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, cwd=tmp_path) as process:
            try:
                assert process.stdin is not None
                process.stdin.write(lines)
                process.stdin.close()
                while not (tmp_path / "done").exists():
                    time.sleep(0.01)
                journald.reads.set()
            finally:
                process.kill()
        await_end(tmp_path)
        entries = list(journald.entries)
    kept = [int(entry[b"MESSAGE"]) for entry in entries if entry.get(b"MESSAGE", b"").isdigit()]
    dropped = sum(int(entry[b"HYPEMAN_DROPPED"]) for entry in entries if b"HYPEMAN_DROPPED" in entry)
    assert len(kept) > 50_000
    assert dropped > 0
    assert len(kept) + dropped == 200_000
    assert kept == sorted(kept)


def test_what_journald_has_taken_leaves_room_for_what_comes(console: Path, tmp_path: Path) -> None:
    """Of three parts of 3 MiB the queue has two, wherever in it they begin."""
    part = b"".join(b"%0300d\n" % number for number in range(10_000))
    with run_journald(tmp_path, first=9_000) as journald:
        argv = [*command(console, journald, burst=4096 * MIB), "/bin/sh", "-c"]
        argv += ["n=1; while read -r go; do head -c 3010000 <data; echo >done.$n; n=$((n+1)); done"]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, cwd=tmp_path) as process:
            assert process.stdin is not None
            (tmp_path / "data").write_bytes(part)
            for number in (1, 2, 3):
                process.stdin.write(b"\n")
                process.stdin.flush()
                while not (tmp_path / f"done.{number}").exists():
                    time.sleep(0.01)
                while number == 1 and journald.reads.is_set():
                    time.sleep(0.01)
            journald.reads.set()
            process.stdin.close()
            process.wait(60)
        await_end(tmp_path)
        entries = list(journald.entries)
    kept = [int(entry[b"MESSAGE"]) for entry in entries if entry.get(b"MESSAGE", b"").isdigit()]
    assert kept == [*range(10_000)] * 3


def test_a_slow_journald_has_its_time_after_the_end(console: Path, tmp_path: Path) -> None:
    with run_journald(tmp_path, reads=False, pace=0.004) as journald:
        argv = [*command(console, journald), "/bin/sh", "-c", "seq 1400; kill -TERM 0"]
        with subprocess.Popen(argv, start_new_session=True) as process:
            assert process.wait(60) == -signal.SIGTERM
        began = time.monotonic()
        journald.reads.set()
        await_end(tmp_path, 40)
        took = time.monotonic() - began
        entries = list(journald.entries)
    assert took > 4.5, "there was time for all without more of it"
    assert [entry[b"MESSAGE"] for entry in entries if b"MESSAGE" in entry] == [
        b"%d" % n for n in range(1, 1401)
    ]


def test_an_end_that_comes_too_early_is_told(console: Path, tmp_path: Path) -> None:
    """systemd's SIGTERM is there, and journald takes nothing in the time that is left but for the last half
    second, which a machine that is busy with other things may not let it have."""
    for number in range(TRIES):
        folder = tmp_path / str(number)
        folder.mkdir()
        if end_early(console, folder) == 100_000:
            return
    raise AssertionError("it is not told")


def end_early(console: Path, tmp_path: Path) -> int:
    """How many lines of a hundred thousand journald has, or was told of."""
    with run_journald(tmp_path, reads=False) as journald:
        argv = [*command(console, journald, burst=1024 * MIB), "/bin/sh", "-c", "seq 100000; kill -TERM 0"]
        # as long as END_MS it goes on, of which the last part is for the notice
        with subprocess.Popen(argv, start_new_session=True) as process:
            assert process.wait(60) == -signal.SIGTERM
        time.sleep(3.7)
        assert journald.entries == []
        journald.reads.set()
        await_end(tmp_path)
        entries = list(journald.entries)
    kept = sum(entry.get(b"MESSAGE", b"").isdigit() for entry in entries)
    return kept + sum(int(entry[b"HYPEMAN_DROPPED"]) for entry in entries if b"HYPEMAN_DROPPED" in entry)


def test_it_lives_until_journald_is_done_with_the_last_line(console: Path, tmp_path: Path) -> None:
    """Whose unit a line is of, journald finds out in /proc when it comes to it."""
    with run_journald(tmp_path, reads=False) as journald:
        argv = [*command(console, journald), "/bin/echo", "hello"]
        subprocess.run(argv, stdin=subprocess.DEVNULL, timeout=60, check=True)
        with pytest.raises(AssertionError, match="holds"):
            await_end(tmp_path, 0.3)
        journald.reads.set()
        await_end(tmp_path)
        assert [entry.get(b"MESSAGE") for entry in journald.entries] == [b"hello", None]
    assert journald.fences == [2]


def test_without_a_journal_socket_lines_go_to_the_stream(console: Path, tmp_path: Path) -> None:
    argv = [str(console), str(tmp_path), str(MIB), str(MIB), "--journal", str(tmp_path / "none"), "web", "9"]
    done = subprocess.run(
        [*argv, "/bin/echo", "hello"], capture_output=True, timeout=60, check=True, stdin=subprocess.DEVNULL
    )
    assert (done.stdout, done.stderr) == (b"hello\n", b"")


def test_a_socket_that_goes_away_leaves_the_stream(console: Path, tmp_path: Path) -> None:
    with run_journald(tmp_path) as journald:
        argv = [*command(console, journald), "/bin/sh", "-c", "echo one; read x; echo two"]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            while not journald.entries:
                time.sleep(0.01)
            journald.close()
            assert process.stdin is not None
            output, _ = process.communicate(b"x\n", timeout=60)
    assert output == b"two\n"
