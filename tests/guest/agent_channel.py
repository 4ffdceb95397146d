# SPDX-License-Identifier: Apache-2.0
"""The agent on a socket, with real processes, built with sanitizers.

Usage: agent_channel.py AGENT [unittest …]
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from time import monotonic
from typing import Any

from frames import DEADLINE_S, WINDOW, Channel, Frame, Type, format_entry, format_item, format_records

AGENT = sys.argv.pop(1)
BOOT = "0123456789abcdef0123456789abcdef"


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def remove_groups(agent: int) -> None:
    """The control groups that the agent made, once what it has killed has gone."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    for folder in (
        Path(place) / f"hypeman-test-{agent}" for _, place, kind, *_ in mounts if kind == "cgroup2"
    ):
        for group in (*folder.glob("*/"), folder):
            deadline = monotonic() + DEADLINE_S
            while group.exists():
                with contextlib.suppress(OSError):
                    group.rmdir()
                if monotonic() > deadline:
                    raise AssertionError(f"{group} is not empty: {(group / 'cgroup.procs').read_text()}")


class AgentChannel(unittest.TestCase):
    def setUp(self) -> None:
        ours, theirs = socket.socketpair()
        pipe = subprocess.PIPE
        self.agent = subprocess.Popen([AGENT, BOOT], stdin=theirs.fileno(), stdout=pipe, stderr=pipe)
        theirs.close()
        self.channel = Channel(ours, BOOT)
        self.addCleanup(self.stop)
        assert self.agent.stdout is not None
        self.assertEqual(self.agent.stdout.read(1), b"r")

    def stop(self) -> None:
        """The agent ends by itself when told to, and no sanitizer has found anything."""
        self.agent.send_signal(signal.SIGTERM)
        _, errors = self.agent.communicate(timeout=DEADLINE_S)
        self.channel.close()
        remove_groups(self.agent.pid)
        self.assertEqual((self.agent.returncode, errors), (0, b""))

    def expect_refusal(self, code: str) -> None:
        while (frame := self.channel.receive()).type is not Type.ERROR:
            pass
        self.assertEqual((frame.stream, frame.records()["code"]), (0, code))

    def expect_gone(self, pid: int) -> None:
        """The process ends; a pidfd tells when."""
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        with os.fdopen(pidfd) as opened:
            self.assertTrue(select.select([opened], [], [], DEADLINE_S)[0], "it lives")

    def test_hello_names_boot_and_versions(self) -> None:
        self.assertEqual(
            self.channel.greet(), {"version": "1", "boot": BOOT, "agent": "2", "feature": "freeze"}
        )

    def test_ping_comes_back(self) -> None:
        self.channel.greet()
        self.channel.send(Type.PING, b"p" * 64)
        self.assertEqual(self.channel.receive(), Frame(Type.PONG, 0, 0, b"p" * 64))

    def test_exec_keeps_stdout_and_stderr_apart(self) -> None:
        self.channel.greet()
        result = self.channel.run(["sh", "-c", "echo out; echo err >&2; exit 7"])
        self.assertEqual((result.code, result.message), (7, "exited with code 7"))
        self.assertEqual(result.output, {1: b"out\n", 2: b"err\n"})
        self.assertEqual(result.ended, {1, 2})
        self.assertIsNotNone(result.pid)

    def test_stdin_environment_folder_and_user(self) -> None:
        self.channel.greet()
        script = 'cat; echo "$A|$HOME|$PWD|$(id -u):$(id -g)"'
        result = self.channel.run(["sh", "-c", script], b"in\n", env="A=b c", cwd="/usr", user="65534:65533")
        self.assertEqual(result.output[1], b"in\nb c|/nonexistent|/usr|65534:65533\n", result)

    def test_what_cannot_start_ends_with_words_and_no_started(self) -> None:
        self.channel.greet()
        cases: tuple[tuple[dict[str, Any], list[str], int, str], ...] = (
            ({}, ["nothing-of-this-name"], 127, "not found in PATH"),
            ({}, ["/nothing"], 127, "/nothing not found"),
            ({}, ["/etc/passwd"], 126, "/etc/passwd cannot be executed: Permission denied"),
            ({"user": "nobody-at-all"}, ["true"], 125, 'user "nobody-at-all" is not in'),
            ({"cwd": "/nowhere"}, ["true"], 125, "working directory /nowhere"),
            ({"env": "novalue"}, ["true"], 125, "expected KEY=value"),
            ({}, [], 125, "nothing to execute"),
        )
        for records, argv, code, words in cases:
            with self.subTest(argv=argv, records=records):
                result = self.channel.run(argv, **records)
                self.assertEqual((result.code, result.pid), (code, None))
                self.assertIn(words, result.message)

    def test_arguments_never_meet_a_shell(self) -> None:
        self.channel.greet()
        result = self.channel.run(["printf", "%s|", "$HOME", "a b", "", ";id"])
        self.assertEqual(result.output[1], b"$HOME|a b||;id|")

    def test_output_stops_at_its_credit_and_goes_on_with_more(self) -> None:
        self.channel.greet()
        stream = self.channel.start(["sh", "-c", f"head -c {2 * WINDOW} /dev/zero"])
        self.channel.expect(Type.STARTED)
        got = 0
        while got < WINDOW:
            got += len(self.channel.expect(Type.DATA).payload)
        self.channel.send(Type.PING, b"quiet?")
        self.assertEqual((got, self.channel.receive().type), (WINDOW, Type.PONG))
        self.channel.send(Type.CREDIT, struct.pack("<I", WINDOW), stream, 1)
        result = self.channel.collect(stream)[stream]
        self.assertEqual((len(result.output[1]), result.code), (WINDOW, 0))

    def test_stdin_gives_credit_back_only_for_what_was_taken(self) -> None:
        self.channel.greet()
        stream = self.channel.start(["sh", "-c", f"read go; head -c {2 * WINDOW - 3} | wc -c"])
        self.channel.expect(Type.STARTED)
        sent = window = 0
        data = b"go\n" + b"x" * (2 * WINDOW - 3)
        window = WINDOW
        while sent < len(data):
            part = data[sent : sent + min(window, 65536)]
            if part:
                self.channel.send(Type.DATA, part, stream)
                sent += len(part)
                window -= len(part)
                continue
            credit = self.channel.expect(Type.CREDIT)
            self.assertEqual(credit.channel, 0)
            window += struct.unpack("<I", credit.payload)[0]
            self.assertLessEqual(window, WINDOW)
        result = self.channel.collect(stream)[stream]
        self.assertEqual(result.output[1].strip(), str(2 * WINDOW - 3).encode())

    def test_many_at_once(self) -> None:
        self.channel.greet()
        script = "read x; head -c 100000 /dev/zero; exit "
        streams = [self.channel.start(["sh", "-c", f"{script}{n}"]) for n in range(64)]
        refused = self.channel.start(["true"])
        for stream in streams:
            self.channel.send(Type.DATA, b"go\n", stream)
        results = self.channel.collect(*streams, refused)
        self.assertEqual([results[stream].code for stream in streams], list(range(64)))
        self.assertEqual({len(results[stream].output[1]) for stream in streams}, {100000})
        self.assertIn("64 is the limit", results[refused].message)

    def test_signal_reaches_the_group(self) -> None:
        self.channel.greet()
        stream = self.channel.start(["sh", "-c", "sleep 1000 | sleep 1000"])
        self.channel.send(Type.SIGNAL, struct.pack("<I", signal.SIGINT), stream)
        result = self.channel.collect(stream)[stream]
        self.assertEqual((result.code, result.message), (130, "killed by signal 2 (INT)"))

    def test_close_kills_the_group_and_exit_follows(self) -> None:
        self.channel.greet()
        stream = self.channel.start(["sh", "-c", "sleep 1000 & echo $!; wait"])
        self.channel.expect(Type.STARTED)
        child = int(self.channel.expect(Type.DATA).payload)
        self.channel.send(Type.CLOSE, stream=stream)
        self.assertEqual(self.channel.collect(stream)[stream].code, 137)
        self.expect_gone(child)

    def start_with_setsid(self, *, end: str, **records: Any) -> tuple[int, int]:
        """A program, and the pid of what it has put into a session of its own."""
        script = f"setsid sh -c 'trap \"\" HUP; echo $$; exec sleep 1000' & {end}"
        stream = self.channel.start(["bash", "-c", script], **records)
        self.channel.expect(Type.STARTED)
        return stream, int(self.channel.expect(Type.DATA).payload)

    def test_what_has_left_the_session_ends_with_a_program_that_is_dropped(self) -> None:
        self.channel.greet()
        for records in ({}, {"tty": "1"}):
            with self.subTest(closed=records):
                stream, pid = self.start_with_setsid(end="exec sleep 1000", **records)
                self.channel.send(Type.CLOSE, stream=stream)
                self.channel.collect(stream)
                self.expect_gone(pid)
        pids = [self.start_with_setsid(end="exec sleep 1000", **r)[1] for r in ({}, {"tty": "1"})]
        self.channel.send(Type.HELLO, format_records((("version", "1"), ("boot", BOOT))))
        while self.channel.receive().type is not Type.HELLO:
            pass
        for pid in pids:
            self.expect_gone(pid)

    def test_what_a_program_leaves_behind_when_it_ends_goes_on(self) -> None:
        self.channel.greet()
        for records in ({}, {"tty": "1"}):
            stream, pid = self.start_with_setsid(end="sleep 0.2", **records)
            self.assertEqual(self.channel.collect(stream)[stream].code, 0)
            self.assertEqual(self.channel.run(["true"]).code, 0)
            self.assertTrue(is_alive(pid))
            groups = Path(f"/proc/{pid}/cgroup").read_text()
            os.kill(pid, signal.SIGKILL)
            self.expect_gone(pid)
        self.assertIn(f"/hypeman-test-{self.agent.pid}/", groups)

    def test_what_stays_in_the_background_does_not_hold_up_the_end(self) -> None:
        self.channel.greet()
        result = self.channel.run(["sh", "-c", "sleep 1000 & echo $!"])
        self.assertEqual(result.code, 0)
        child = int(result.output[1])
        self.assertTrue(is_alive(child))
        os.kill(child, signal.SIGKILL)

    def test_a_program_that_reads_nothing_does_not_hold_up_the_host(self) -> None:
        self.channel.greet()
        result = self.channel.run(["sh", "-c", "exec <&-; sleep 0.2; echo done"], b"x" * WINDOW)
        self.assertEqual((result.code, result.output[1]), (0, b"done\n"))

    def test_a_host_that_leaves_takes_its_programs_along(self) -> None:
        self.channel.greet()
        self.channel.start(["sleep", "1000"])
        pid = int(self.channel.expect(Type.STARTED).records()["pid"])
        self.channel.close()
        self.expect_gone(pid)

    def test_a_second_hello_begins_anew(self) -> None:
        self.channel.greet()
        self.channel.start(["sleep", "1000"])
        pid = int(self.channel.expect(Type.STARTED).records()["pid"])
        self.channel.send(Type.HELLO, format_records((("version", "1"), ("boot", BOOT))))
        self.channel.expect(Type.HELLO)
        self.expect_gone(pid)
        self.assertEqual(self.channel.run(["true"]).code, 0)

    def test_a_refused_host_may_begin_anew(self) -> None:
        self.channel.greet()
        self.channel.send(77)
        self.expect_refusal("protocol")
        self.channel.greet()
        self.assertEqual(self.channel.run(["true"]).code, 0)

    def test_shutdown_tells_pid_1_the_grace(self) -> None:
        power_off = 38
        signal.pthread_sigmask(signal.SIG_BLOCK, {power_off})
        self.addCleanup(signal.pthread_sigmask, signal.SIG_UNBLOCK, {power_off})
        self.channel.greet()
        self.channel.send(Type.SHUTDOWN, format_records((("grace", "17"),)))
        self.assertIsNotNone(signal.sigtimedwait({power_off}, DEADLINE_S))

    def test_what_has_a_terminal_has_one_output(self) -> None:
        self.channel.greet()
        stream = self.channel.start(["sh", "-c", "tty -s && stty size; cat"], tty="1", rows="5", cols="9")
        self.channel.send(Type.DATA, b"typed\n", stream)
        self.channel.send(Type.DATA, b"", stream)
        result = self.channel.collect(stream)[stream]
        self.assertIn(b"5 9\r\n", result.output[1])
        self.assertIn(b"typed\r\n", result.output[1])
        self.assertEqual((result.output[2], result.code, result.ended), (b"", 0, {1}))

    def test_what_is_no_setting_ends_with_words(self) -> None:
        self.channel.greet()
        for key, value in (("tty", "2"), ("rows", "65536"), ("cols", "-1"), ("umask", "512"), ("umask", "x")):
            with self.subTest(key=key, value=value):
                records: dict[str, Any] = {key: value}
                result = self.channel.run(["true"], **records)
                self.assertEqual((result.code, result.pid), (125, None))
                self.assertIn(f"{key}={value}: expected a number", result.message)

    def test_a_command_has_its_limits(self) -> None:
        self.channel.greet()
        script = "ulimit -S -n; ulimit -H -n"
        result = self.channel.run(["sh", "-c", script], user="65534", ulimit="nofile=100:200")
        self.assertEqual((result.output[1], result.code), (b"100\n200\n", 0))
        result = self.channel.run(["true"], ulimit="nofile=200:100")
        self.assertEqual((result.code, result.pid), (125, None))
        self.assertIn("soft not above hard", result.message)

    def test_a_terminal_that_is_closed_at_once_ends(self) -> None:
        self.channel.greet()
        stream = self.channel.start(["sleep", "1000"], tty="1")
        self.channel.send(Type.RESIZE, struct.pack("<HH", 1, 1), stream)
        self.channel.send(Type.CLOSE, stream=stream)
        self.assertIn(self.channel.collect(stream)[stream].code, (129, 137))
        self.assertEqual(self.channel.run(["true"]).code, 0)

    def test_a_host_that_leaves_takes_terminals_along(self) -> None:
        self.channel.greet()
        pids = []
        for script in ("exec sleep 1000", "trap '' HUP; exec sleep 1000"):
            self.channel.start(["sh", "-c", script], tty="1")
            pids.append(int(self.channel.expect(Type.STARTED).records()["pid"]))
        self.channel.send(Type.HELLO, format_records((("version", "1"), ("boot", BOOT))))
        while self.channel.receive().type is not Type.HELLO:
            pass
        self.assertEqual(self.channel.run(["true"]).code, 0)
        for pid in pids:
            self.expect_gone(pid)

    def test_the_last_of_many_has_its_turn_too(self) -> None:
        """Though the host has taken nothing for a while, and others always have more."""
        self.channel.greet()
        os.mkfifo("written")
        for _ in range(20):
            self.channel.start(["cat", "/dev/zero"])
        script = f"head -c 60000 /dev/zero; echo >{os.getcwd()}/written"
        last = self.channel.start(["sh", "-c", script])
        Path("written").read_bytes()
        taken = {last: 0, 0: 0}
        while taken[last] < 60000:
            frame = self.channel.receive()
            taken[last if frame.stream == last else 0] += len(frame.payload)
        # two turns of each, of a frame of 64 KiB; not the windows of all, which are 5 MiB
        self.assertLess(taken[0], 20 * 2 * 65536)

    def test_stat_and_a_tree_out(self) -> None:
        self.channel.greet()
        os.makedirs("tree/sub")
        Path("tree/file").write_bytes(b"abc")
        os.symlink("file", "tree/link")
        top = os.path.abspath("tree")
        entry, end = self.channel.files("stat", f"{top}/file")
        self.assertEqual(entry.records()["size"], "3")
        self.assertEqual(end.records()["code"], "ok")
        (end,) = self.channel.files("stat", f"{top}/nothing")
        self.assertEqual(end.records()["code"], "missing")
        end = self.channel.files("out", "/proc/version")[-1]
        self.assertEqual(end.records()["message"][:41], "cannot copy it: it does not say how long ")
        items = self.channel.files("out", top)
        entries = {item.records()["path"]: item.records() for item in items if item.type is Type.ENTRY}
        kinds = {path: entry["kind"] for path, entry in entries.items()}
        self.assertEqual(kinds, {"": "directory", "sub": "directory", "file": "file", "link": "symlink"})
        self.assertEqual(entries["link"]["target"], "file")
        self.assertEqual([item.payload for item in items if item.type is Type.DATA], [b"abc"])
        self.assertEqual((items[-1].type, items[-1].records()["code"]), (Type.END, "ok"))

    def test_what_is_no_order_for_files_ends_with_words(self) -> None:
        self.channel.greet()
        for records in (b"", b"operation=stat\0", b"operation=burn\0path=/\0", b"operation=out\0path=x\0"):
            with self.subTest(records):
                self.channel.next_stream += 1
                self.channel.send(Type.FILES, records, self.channel.next_stream)
                result = self.channel.collect(self.channel.next_stream)[self.channel.next_stream]
                self.assertEqual((result.code, result.message[:13]), (125, "FILES without"))

    def test_a_copy_in_that_is_none_leaves_nothing(self) -> None:
        self.channel.greet()
        whole = format_item(Type.END)
        os.mkdir("into")
        target = os.path.abspath("into/file")
        cases = {
            "nothing at all": b"",
            "no end": format_entry("", size=3) + format_item(Type.DATA, b"abc"),
            "half a header": format_entry("", size=3) + b"\1\0",
            "half an item": format_entry("", size=3) + format_item(Type.DATA, b"abc")[:-1],
            "no such item": format_entry("") + format_item(Type.EXEC) + whole,
            "huge item": struct.pack("<IIBBH", 1 << 30, 0, Type.DATA, 0, 0) + whole,
            "item of a stream": struct.pack("<IIBBH", 0, 1, Type.END, 0, 0),
            "short hole": format_entry("", size=3) + format_item(Type.HOLE, b"x") + whole,
            "huge hole": format_entry("", size=3) + format_item(Type.HOLE, b"\xff" * 8) + whole,
            "no records": format_item(Type.ENTRY, b"path") + whole,
            "no path": format_item(Type.ENTRY, format_records((("kind", "file"),))) + whole,
            "path twice": format_item(Type.ENTRY, format_entry("")[12:] + b"path=x\0") + whole,
            "no such kind": format_entry("", "door") + whole,
            "device": format_entry("", "block") + whole,
            "no such mode": format_entry("", mode=4096) + whole,
            "no such owner": format_entry("", uid=1 << 32) + whole,
            "no such size": format_entry("", size=-1) + whole,
            "huge size": format_entry("", size=1 << 63) + whole,
            "no such time": format_entry("", mtime="now") + whole,
            "dots": format_entry("", "directory") + format_entry("..") + whole,
            "long path": format_entry("", "directory") + format_entry("x/" * 2500 + "x") + whole,
            "long name": format_entry("", "directory") + format_entry("x" * 256) + whole,
        }  # fmt: skip
        for name, data in cases.items():
            with self.subTest(name):
                items = self.channel.files("in", target, data)
                self.assertEqual([item.type for item in items], [Type.END], items)
                self.assertEqual(items[0].records()["code"], "failed", items)
                self.assertEqual([name for name in os.listdir("into") if name != "file"], [])
                self.assertFalse(os.path.isfile(target))

    def test_a_check_is_repeated_and_what_changes_is_reported(self) -> None:
        self.channel.greet()
        with tempfile.TemporaryDirectory() as folder:
            mark = Path(folder) / "mark"
            check = f"check=exec,arg=test,arg=-e,arg={mark},interval=20"
            stream = self.channel.check(check, failures="2", successes="2")
            fails = {"error": "exec: exited with code 1", "passed": "0", "successes": "0"}
            self.assertEqual(self.channel.report(stream), {"status": "starting", "failures": "1"} | fails)
            self.assertEqual(self.channel.report(stream), {"status": "unhealthy", "failures": "2"} | fails)
            mark.touch()
            passes = fails | {"passed": "1", "failures": "0"}
            wanted = passes | {"status": "unhealthy", "successes": "1"}
            self.assertEqual(self.channel.report(stream), wanted)
            self.assertEqual(self.channel.report(stream), passes | {"status": "healthy", "successes": "2"})
            # nothing changes, so nothing is said
            self.assertEqual(select.select([self.channel.connection], [], [], 0.3)[0], [])
            mark.unlink()
            self.assertEqual(self.channel.report(stream), {"status": "healthy", "failures": "1"} | fails)
            self.channel.send(Type.CLOSE, b"", stream)
            self.channel.collect(stream)

    def test_what_does_not_change_is_confirmed(self) -> None:
        self.channel.greet()
        stream = self.channel.check("check=exec,arg=true,interval=10", confirm="50")
        counts = [int(self.channel.report(stream)["successes"]) for _ in range(3)]
        self.assertEqual(counts[0], 1)
        self.assertGreater(counts[2], counts[1])
        self.channel.send(Type.CLOSE, b"", stream)
        self.channel.collect(stream)

    def test_failures_do_not_count_while_it_starts(self) -> None:
        self.channel.greet()
        stream = self.channel.check("check=tcp,port=1,interval=10", start="300")
        first = self.channel.report(stream)
        self.assertEqual((first["status"], first["failures"]), ("starting", "0"))
        self.assertEqual(first["error"], "nothing listens on port 1")
        later = self.channel.report(stream)
        self.assertEqual((later["status"], later["failures"]), ("unhealthy", "1"))
        self.channel.send(Type.CLOSE, b"", stream)
        self.channel.collect(stream)

    def test_a_check_that_takes_too_long_has_failed(self) -> None:
        self.channel.greet()
        stream = self.channel.check("check=exec,arg=sleep,arg=1000,interval=10,timeout=50")
        self.assertEqual(self.channel.report(stream)["error"], "exec: it did not end in time and was killed")
        self.channel.send(Type.CLOSE, b"", stream)
        self.channel.collect(stream)

    def test_a_check_ends_with_its_command_when_the_host_leaves(self) -> None:
        self.channel.greet()
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "pid"
            script = f"echo $$ >{place}.new; mv {place}.new {place}; exec sleep 1000"
            stream = self.channel.check(f"check=exec,arg=sh,arg=-c,arg={script},interval=10,timeout=60000")
            pid = int(self.channel.expect(Type.STARTED).records()["pid"])
            deadline = monotonic() + DEADLINE_S
            while not place.exists():
                self.assertLess(monotonic(), deadline)
            command = int(place.read_text())
            self.channel.send(Type.CLOSE, b"", stream)
            self.channel.collect(stream)
            self.expect_gone(command)
            self.expect_gone(pid)

    def test_what_is_no_order_for_a_check_ends_with_words(self) -> None:
        self.channel.greet()
        cases: tuple[tuple[str, dict[str, str], str], ...] = (
            ("check=log,pattern=x", {}, "HEALTH without a check that can be repeated"),
            ("check=exec", {}, "config disk: ready: exec has no command"),
            ("check=tcp,port=1", {"failures": "0"}, "failures=0: expected a number from 1 to 1000"),
            ("check=tcp,port=1", {"user": "nobody-at-all"}, 'user "nobody-at-all" is not in'),
        )
        for check, records, words in cases:
            with self.subTest(check):
                stream = self.channel.check(check, **records)
                result = self.channel.collect(stream)[stream]
                self.assertEqual((result.code, result.pid), (125, None))
                self.assertIn(words, result.message)

    def test_the_clock_is_set_by_who_may(self) -> None:
        self.channel.greet()
        for stream, time, code in ((1, 1_700_000_000_000_000_005, 0), (2, 7, 125)):
            self.channel.send(Type.CLOCK, struct.pack("<Q", time), stream)
            self.assertEqual(self.channel.collect(stream)[stream].code, code)
        assert self.agent.stdout is not None
        self.assertEqual(self.agent.stdout.readline(), b"1700000000.000000005\n")

    def test_it_is_frozen_and_thawed_by_order(self) -> None:
        """What that does is another's, which a real boot has."""
        hello = self.channel.greet()
        self.assertNotIn("frozen", hello)
        self.assertEqual(self.channel.order(Type.FREEZE), (0, "all stands still"))
        self.assertEqual(self.channel.order(Type.FREEZE), (125, "it does not stand still"))
        self.assertEqual(self.channel.greet()["frozen"], "1")
        for kind in (Type.EXEC, Type.FILES, Type.HEALTH, Type.ATTACH):
            refused = (125, "the guest is frozen: nothing runs in it until THAW")
            self.assertEqual(self.channel.order(kind), refused)
        for pairs, words in (
            ([], "THAW: it needs clock and entropy"),
            ([("clock", "1700000000000000005")], "THAW: it needs clock and entropy"),
            ([("clock", "-1")], "THAW: clock=-1: expected nanoseconds since the epoch"),
            ([("clock", "9" * 30)], f"THAW: clock={'9' * 30}: expected nanoseconds since the epoch"),
            ([("entropy", "0" * 127)], "THAW: entropy: expected 128 hex digits"),
            ([("entropy", "0" * 127 + "G")], "THAW: entropy: expected 128 hex digits"),
            ([("clock", "5"), ("entropy", "0" * 128)], "it stays frozen"),
            ([("boot", BOOT[1:])], f"THAW: boot={BOOT[1:]}: expected 32 hex digits"),
            ([("hostname", "a b")], "THAW: hostname=a b: expected a host name of at most 64 characters"),
            ([("machine_id", "0" * 32)], f"THAW: machine_id={'0' * 32}: expected 32 hex digits"),
            ([("net", "old_mac=x")], "THAW: net: old_mac=x: expected a MAC address"),
            ([("net", "old_mac=52:54:00:ab:cd:01")], "THAW: net: it needs a mac"),
            ([("dns", "here")], "THAW: dns=here: expected an address"),
            ([("host", "name=x")], "THAW: host: it needs an address and a name"),
            ([("reset", "all")], "THAW: reset=all is not known to this agent; it knows ssh-host-keys"),
        ):
            with self.subTest(words):
                refused = (125, words)
                self.assertEqual(self.channel.order(Type.THAW, format_records(pairs)), refused)
        self.assertEqual(self.channel.greet()["frozen"], "1")
        pairs = [("clock", "1700000000000000005"), ("entropy", "ab" + "0" * 124 + "cd"), ("later", "x")]
        self.assertEqual(self.channel.order(Type.THAW, format_records(pairs)), (0, "the guest goes on"))
        assert self.agent.stdout is not None
        said = [self.agent.stdout.readline() for _ in range(2)]
        self.assertEqual(said, [b"frozen\n", b"1700000000.000000005 abcd -\n"])
        self.assertEqual(self.channel.run(["echo", "here"]).output[1], b"here\n")

    def test_a_fork_is_greeted_by_its_own_boot_id(self) -> None:
        self.channel.greet()
        pairs = [("clock", "1700000000000000005"), ("entropy", "0" * 128), ("hostname", "vm2")]
        pairs += [
            ("boot", BOOT[::-1]),
            ("host", "address=10.0.0.1,name=vm2"),
            ("net", "mac=52:54:00:ab:cd:01"),
        ]
        self.assertEqual(self.channel.order(Type.THAW, format_records(pairs)), (0, "the guest goes on"))
        assert self.agent.stdout is not None
        self.assertEqual(self.agent.stdout.readline(), b"1700000000.000000005 0000 vm2\n")
        self.assertEqual(self.channel.run(["echo", "here"]).output[1], b"here\n")
        self.channel.boot = BOOT[::-1]
        self.assertEqual(self.channel.greet()["boot"], BOOT[::-1])
        self.channel.send(Type.HELLO, format_records((("version", "1"), ("boot", BOOT))))
        self.expect_refusal("boot")

    def test_hostile_input_is_refused(self) -> None:
        hello = format_records((("version", "1"), ("boot", BOOT)))
        cases: tuple[tuple[str, str, bytes, tuple[int, bytes, int, int] | None], ...] = (
            ("ping first", "protocol", b"", (Type.PING, b"", 0, 0)),
            ("other version", "version", b"", (Type.HELLO, b"version=2\0boot=x\0", 0, 0)),
            ("other boot", "boot", b"", (Type.HELLO, b"version=1\0boot=x\0", 0, 0)),
            ("bad records", "protocol", b"", (Type.HELLO, b"version", 0, 0)),
            ("unknown type", "protocol", hello, (77, b"", 0, 0)),
            ("guest's type", "protocol", hello, (Type.STARTED, b"", 1, 0)),
            ("long ping", "protocol", hello, (Type.PING, b"x" * 65, 0, 0)),
            ("channel 3", "protocol", hello, (Type.DATA, b"x", 1, 3)),
            ("exec on 0", "stream", hello, (Type.EXEC, b"arg=true\0", 0, 0)),
            ("exec twice", "stream", hello, (Type.EXEC, b"arg=true\0", 9, 0)),
            ("credit beyond", "credit", hello, (Type.CREDIT, struct.pack("<I", 1), 9, 1)),
            ("credit on stdin", "credit", hello, (Type.CREDIT, struct.pack("<I", 1), 9, 0)),
            ("short credit", "protocol", hello, (Type.CREDIT, b"x", 9, 1)),
            ("signal 0", "protocol", hello, (Type.SIGNAL, struct.pack("<I", 0), 9, 0)),
            ("signal 65", "protocol", hello, (Type.SIGNAL, struct.pack("<I", 65), 9, 0)),
            ("data on stdout", "credit", hello, (Type.DATA, b"x", 9, 1)),
            ("short size", "protocol", hello, (Type.RESIZE, b"x", 9, 0)),
            ("files on 0", "stream", hello, (Type.FILES, b"operation=stat\0path=/\0", 0, 0)),
            ("files twice", "stream", hello, (Type.FILES, b"operation=stat\0path=/\0", 9, 0)),
            ("bad files", "protocol", hello, (Type.FILES, b"operation", 10, 0)),
            ("clock twice", "stream", hello, (Type.CLOCK, bytes(8), 9, 0)),
            ("short clock", "protocol", hello, (Type.CLOCK, b"x", 10, 0)),
            ("freeze with words", "protocol", hello, (Type.FREEZE, b"x", 10, 0)),
            ("freeze on 0", "stream", hello, (Type.FREEZE, b"", 0, 0)),
            ("thaw twice", "stream", hello, (Type.THAW, b"", 9, 0)),
            ("bad thaw", "protocol", hello, (Type.THAW, b"clock", 10, 0)),
            ("item outside", "protocol", hello, (Type.ENTRY, b"", 9, 0)),
            ("shutdown", "protocol", hello, (Type.SHUTDOWN, b"grace=-1\0", 0, 0)),
            ("huge frame", "protocol", hello, None),
        )
        for name, code, greeting, frame in cases:
            with self.subTest(name):
                self.doCleanups()
                self.setUp()
                if greeting:
                    self.channel.greet()
                    self.channel.send(Type.EXEC, b"arg=sleep\0arg=1000\0", 9)
                if frame is None:
                    self.channel.connection.sendall(struct.pack("<IIBBH", 65537, 0, Type.PING, 0, 0))
                else:
                    kind, payload, stream, channel = frame
                    self.channel.send(kind, payload, stream, channel)
                self.expect_refusal(code)
                self.channel.send(Type.PING, b"deaf?")
                self.channel.connection.settimeout(0.05)
                self.assertRaises(TimeoutError, self.channel.receive)

    def test_stdin_beyond_its_credit_is_refused(self) -> None:
        self.channel.greet()
        stream = self.channel.start(["sleep", "1000"])
        for _ in range(7):
            self.channel.send(Type.DATA, bytes(65536), stream)
        self.expect_refusal("credit")

    def test_frames_for_a_stream_that_is_over_are_no_fault(self) -> None:
        self.channel.greet()
        self.channel.run(["true"])
        late = ((Type.DATA, b"x"), (Type.CREDIT, bytes(4)), (Type.SIGNAL, bytes(4)), (Type.CLOSE, b""))
        for kind, payload in late:
            self.channel.send(kind, payload, 1)
        self.channel.send(Type.PING, b"well?")
        self.channel.expect(Type.PONG)

    def test_frames_in_single_bytes(self) -> None:
        self.channel.greet()
        frame = struct.pack("<IIBBH", 4, 0, Type.PING, 0, 0) + b"slow"
        for at in range(len(frame)):
            self.channel.connection.sendall(frame[at : at + 1])
        self.assertEqual(self.channel.expect(Type.PONG).payload, b"slow")

    def test_a_flood_of_pings_is_bounded_by_its_reader(self) -> None:
        self.channel.greet()
        self.channel.connection.settimeout(0.2)
        frame = struct.pack("<IIBBH", 64, 0, Type.PING, 0, 0) + bytes(64)
        sent = 0
        try:
            while sent < 64 << 20:
                sent += self.channel.connection.send(frame * 100)
        except TimeoutError:
            pass
        self.assertLess(sent, 8 << 20, "the agent takes what nobody reads the answers to")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        unittest.main()
