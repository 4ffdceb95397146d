# SPDX-License-Identifier: Apache-2.0
"""The processes of a handle, with a systemctl and a hypemanctl of the test's own.

usage: handle.py HANDLE
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from collections.abc import Callable, Mapping
from pathlib import Path

(HANDLE,) = sys.argv[1:]
DEADLINE = 60.0
# Each notes what it was called with. A stop of the handle sends SIGTERM to the one that asks for it.
SYSTEMCTL = """#!/bin/sh
echo "systemctl $*" >>"$ROOT/calls"
case "$1" in
show)
    case "$*" in
    *hypeman@*) cat "$ROOT/handle"; exit ;;
    *hypeman-again@*) cat "$ROOT/again"; exit ;;
    esac
    cat "$ROOT/unit"
    # "look again", of the daemon, which the answer does not know of yet
    if [ -s "$ROOT/news" ]; then
        sed -i 1d "$ROOT/news"
        [ -s "$ROOT/news" ] || mv "$ROOT/unit.then" "$ROOT/unit"
        kill -URG "$PPID"
    fi
    ;;
is-system-running) cat "$ROOT/system" ;;
stop)
    case "$*" in *hypeman@*) kill -TERM "$PPID" ;; esac
    while [ -e "$ROOT/stopping" ]; do sleep 0.01; done
    ;;
esac
"""
HYPEMANCTL = """#!/bin/sh
echo "hypemanctl $*" >>"$ROOT/calls"
exit "$(cat "$ROOT/status")"
"""
STOPS_UNIT = "systemctl stop -- hypeman-vm-web.servic[e]"
CANCELS = "systemctl stop --no-block -- hypeman@web.service"


class Daemon:
    """Answers each start with `status`, and each look at the VM with what is in the next of `streams`."""

    def __init__(self, path: Path, streams: list[list[Mapping[str, object]]], status: int = 200) -> None:
        self.asked: list[str] = []
        self._streams = streams
        self._status = status
        self._is_looked_at = threading.Event()
        # before a start is answered
        self.on_start: Callable[[], None] = lambda: None
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(4)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(DEADLINE)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection = self._listener.accept()[0]
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as request:
            asked = request.readline().decode().strip()
            self.asked.append(asked)
            if asked.startswith("POST"):
                self._is_looked_at.wait(DEADLINE)
                self.on_start()
                connection.sendall(f"HTTP/1.0 {self._status} X\r\n\r\n{{}}".encode())
                return
            connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
            for event in self._streams.pop(0):
                text = f"data: {json.dumps({'id': 'x', 'name': 'web', **event})}\n\n".encode()
                for part in (text[:20], text[20:]):
                    connection.sendall(part)
            self._is_looked_at.set()
            if self._streams:
                # it is looked at anew once the start was answered
                with contextlib.suppress(ConnectionError):
                    request.read()


BOOTS = {"state": "Initializing", "exit_code": None, "status_text": "Initializing: kernel up"}
RUNS = {"state": "Running", "exit_code": None, "status_text": "Running: ready in 5 ms"}
WAS_STOPPED = {
    "state": "Stopped",
    "exit_code": 4,
    "exit_message": "of the run before",
    "status_text": "Pulls",
}


class HandleTest(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name)
        self.folder = self.root / "run/hypemand/handles"
        self.note = self.folder / "web.follow"
        self.folder.mkdir(parents=True)
        (self.root / "usr/bin").mkdir(parents=True)
        for name, text in (("systemctl", SYSTEMCTL), ("hypemanctl", HYPEMANCTL)):
            program = self.root / "usr/bin" / name
            program.write_text(text)
            program.chmod(0o755)
        (self.root / "system").write_text("running\n")
        (self.root / "status").write_text("0\n")
        self.set_unit("inactive")
        self.set_unit("inactive", name="again")
        self.set_unit("active", name="handle")
        self.notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.notified.close)
        self.notified.bind(str(self.root / "notify"))
        self.notified.settimeout(DEADLINE)

    def set_unit(self, active: str, job: str = "", *, name: str = "unit") -> None:
        """What systemd says of the VM's unit from now on."""
        new = self.root / "unit.new"
        new.write_text(f"ActiveState={active}\n{f'Job={job}' if job else ''}\nMainPID=0\nControlPID=0\n")
        new.replace(self.root / name)

    def start(
        self, what: str = "follow", *, stderr: int | None = None, **env: str
    ) -> subprocess.Popen[bytes]:
        own = {"ROOT": str(self.root), "NOTIFY_SOCKET": str(self.root / "notify"), "PATH": os.environ["PATH"]}
        process = subprocess.Popen([HANDLE, what, "web", str(self.root)], env=own | env, stderr=stderr)
        self.addCleanup(self.end, process)
        return process

    @staticmethod
    def end(process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.wait()

    def calls(self) -> list[str]:
        """What was executed, but for questions."""
        file = self.root / "calls"
        lines = file.read_text().splitlines() if file.exists() else []
        return [line for line in lines if not line.startswith(("systemctl show", "systemctl is-"))]

    def await_true(self, condition: Callable[[], bool]) -> None:
        until = time.monotonic() + DEADLINE
        while not condition():
            self.assertLess(time.monotonic(), until)
            time.sleep(0.005)

    def await_asked(self) -> None:
        """Wait until systemd was asked for the state that it has now, and once more."""
        count = self.count_asked() + 2
        self.await_true(lambda: self.count_asked() >= count)

    def count_asked(self) -> int:
        file = self.root / "calls"
        return file.read_text().count("systemctl show") if file.exists() else 0

    def await_ready(self) -> None:
        while b"READY=1" not in self.notified.recv(4096):
            pass

    def follow_active(self) -> subprocess.Popen[bytes]:
        """One that is ready, since the VM that it follows is active."""
        self.note.touch()
        self.set_unit("active")
        process = self.start()
        self.await_ready()
        return process

    # of the daemon: it never starts a VM

    def test_one_that_follows_is_ready_when_the_vm_is_active_and_ends_with_it(self) -> None:
        for last, status in (("inactive", 0), ("failed", 1)):
            with self.subTest(last):
                self.note.touch()
                self.set_unit("activating")
                process = self.start()
                self.await_asked()
                self.set_unit("active")
                process.send_signal(signal.SIGURG)
                self.await_ready()
                self.set_unit(last)
                process.send_signal(signal.SIGURG)
                self.assertEqual(process.wait(DEADLINE), status)
                self.assertEqual((self.calls(), self.note.exists()), ([], False))

    def test_signals_that_come_with_systemds_answer_are_not_lost(self) -> None:
        """Else the pauses between the questions are as long together as this waits, and more."""
        self.note.touch()
        self.set_unit("activating")
        self.set_unit("active", name="unit.then")
        (self.root / "news").write_text(12 * "again\n")
        self.start()
        self.await_ready()

    def test_where_the_daemon_says_that_the_vm_has_ended_nobody_is_asked(self) -> None:
        process = self.follow_active()
        asked = self.count_asked()
        process.send_signal(signal.SIGWINCH)
        self.assertEqual(process.wait(DEADLINE), 0)
        self.assertEqual((self.calls(), self.note.exists()), ([], False))
        self.assertEqual(self.count_asked(), asked)

    def test_where_the_daemon_restarts_the_vm_that_has_ended_before_systemd_is_asked(self) -> None:
        process = self.follow_active()
        with (self.folder / "web.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            process.send_signal(signal.SIGWINCH)
            with self.assertRaises(subprocess.TimeoutExpired):
                process.wait(0.3)
        self.await_asked()
        self.assertIsNone(process.poll())

    def test_one_that_follows_what_has_ended_cancels_itself(self) -> None:
        for state in ("inactive", "failed"):
            with self.subTest(state):
                (self.root / "calls").unlink(missing_ok=True)
                self.note.touch()
                self.set_unit(state)
                self.assertEqual(self.start().wait(DEADLINE), 0)
                self.assertEqual((self.calls(), self.note.exists()), ([CANCELS], False))

    def test_a_unit_that_waits_or_is_started_again_has_not_ended(self) -> None:
        self.note.touch()
        self.set_unit("inactive", job="7")
        process = self.start()
        self.await_asked()
        self.set_unit("active")
        self.await_ready()
        for state, job in (("deactivating", ""), ("failed", "8"), ("activating", ""), ("active", "")):
            self.set_unit(state, job)
            self.await_asked()
            self.assertIsNone(process.poll())
        self.assertEqual(self.calls(), [])

    def test_it_waits_for_a_restart_by_the_daemon(self) -> None:
        for after, status in (("active", None), ("inactive", 0)):
            with self.subTest(after):
                process = self.follow_active()
                with (self.folder / "web.lock").open("w") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX)
                    self.set_unit("inactive")
                    process.send_signal(signal.SIGURG)
                    self.await_asked_once_more_than(1)
                    time.sleep(0.1)
                    self.assertIsNone(process.poll())
                    self.set_unit(after)
                if status is None:
                    self.await_asked()
                    self.assertIsNone(process.poll())
                    self.end(process)
                else:
                    self.assertEqual(process.wait(DEADLINE), status)

    def await_asked_once_more_than(self, number: int) -> None:
        self.await_true(lambda: self.count_asked() > number)

    # of anybody else: it has the daemon start the VM

    def test_one_that_is_started_by_others_starts_the_vm(self) -> None:
        self.set_unit("active")
        process = self.start()
        self.await_ready()
        self.assertEqual(self.calls(), ["hypemanctl start --wait web"])
        self.set_unit("inactive")
        process.send_signal(signal.SIGURG)
        self.assertEqual(process.wait(DEADLINE), 0)
        self.assertEqual(sorted(path.name for path in self.folder.iterdir()), ["web.lock", "web.process"])
        # which ExecStopPost= removes, as systemd has seen that end by then
        self.assertEqual(self.start("stop", EXIT_CODE="exited", EXIT_STATUS="0").wait(DEADLINE), 0)
        self.assertEqual(sorted(path.name for path in self.folder.iterdir()), ["web.lock"])

    def serve(self, *events: Mapping[str, object], status: int = 200) -> Daemon:
        """Before the start is answered, it says that the VM is stopped; after that, what is given."""
        daemon = Daemon(self.root / "run/hypemand/api.sock", [[WAS_STOPPED], list(events)], status)
        self.addCleanup(daemon.close)
        return daemon

    def hear_ready(self) -> list[bytes]:
        """All up to that it is ready."""
        heard = [self.notified.recv(4096)]
        while not heard[-1].startswith(b"READY=1"):
            heard.append(self.notified.recv(4096))
        return heard

    def test_a_daemon_that_answers_is_asked_without_hypemanctl(self) -> None:
        # what others wrote, as the names of variables, is no word of the daemon's
        written = {"env": {"state": "Running", "A": '"state": "Running"'}}
        daemon = self.serve({**BOOTS, **written}, RUNS)
        self.set_unit("active")
        process = self.start()
        last = [b"STATUS=Initializing: kernel up", b"READY=1\nSTATUS=Running"]
        self.assertIn(self.hear_ready(), ([b"STATUS=Pulls", *last], last))
        self.assertEqual(daemon.asked[-1], "GET /instances/web/watch HTTP/1.0")
        self.assertEqual(sorted(daemon.asked)[2:], ["POST /instances/web/start HTTP/1.0"])
        self.assertFalse((self.folder / "web.starting").exists())
        self.set_unit("inactive")
        process.send_signal(signal.SIGURG)
        self.assertEqual((process.wait(DEADLINE), self.calls()), (0, []))

    def test_a_vm_that_ends_before_it_runs_fails_the_start_and_its_reason_is_said(self) -> None:
        end = {"state": "Stopped", "exit_code": 3, "exit_message": 'of "disk", see', "exit_success": False}
        self.serve(BOOTS, end)
        process = self.start(stderr=subprocess.PIPE)
        assert process.stderr is not None
        said = process.stderr.read()
        self.assertEqual((process.wait(DEADLINE), self.calls()), (1, []))
        self.assertIn(b'web did not start: of \\"disk\\", see; see: hypemanctl status web', said)
        self.notified.settimeout(0.0)
        with self.assertRaises(BlockingIOError):
            self.hear_ready()

    def test_the_end_of_the_run_before_the_one_that_it_started_is_not_its_end(self) -> None:
        """The daemon tells the unit of it, which may be another process by then."""
        daemon, is_started = self.serve(RUNS), threading.Event()

        def tell() -> None:
            is_started.wait(DEADLINE)
            process.send_signal(signal.SIGWINCH)

        daemon.on_start = tell
        self.set_unit("active")
        process = self.start()
        is_started.set()
        self.await_ready()
        with self.assertRaises(subprocess.TimeoutExpired):
            process.wait(0.3)
        process.send_signal(signal.SIGWINCH)
        self.assertEqual((process.wait(DEADLINE), self.calls()), (0, []))

    def test_a_program_that_has_done_its_work_at_once_is_no_failure(self) -> None:
        self.serve({"state": "Stopped", "exit_code": 0, "exit_message": "done", "exit_success": True})
        process = self.start()
        self.await_ready()
        self.assertEqual((process.wait(DEADLINE), self.calls()), (0, []))

    def test_a_request_that_is_refused_is_hypemanctls_to_explain(self) -> None:
        self.serve(status=409)
        (self.root / "status").write_text("9\n")
        self.assertEqual(self.start().wait(DEADLINE), 9)
        self.assertEqual(self.calls(), ["hypemanctl start --wait web"])

    def test_where_the_daemon_ends_meanwhile_systemd_is_asked(self) -> None:
        self.serve(BOOTS)
        self.set_unit("activating")
        process = self.start()
        self.await_asked()
        self.set_unit("active")
        process.send_signal(signal.SIGURG)
        self.await_ready()
        self.assertEqual(self.calls(), [])

    def test_a_start_that_fails_gives_its_status_and_touches_no_vm(self) -> None:
        (self.root / "status").write_text("9\n")
        self.assertEqual(self.start().wait(DEADLINE), 9)
        self.assertEqual(self.calls(), ["hypemanctl start --wait web"])

    def test_sigterm_ends_it_at_once(self) -> None:
        process = self.follow_active()
        process.terminate()
        self.assertEqual(process.wait(DEADLINE), -signal.SIGTERM)

    # a start that comes while it ends

    def test_a_start_waits_for_the_end_of_a_handle_whose_vm_has_ended(self) -> None:
        process = self.follow_active()
        # systemd has said nothing to it yet
        self.set_unit("inactive")
        again = self.start("again")
        self.await_true((self.folder / "web.again").exists)
        self.assertIsNone(again.poll())
        process.send_signal(signal.SIGURG)
        self.assertEqual(process.wait(DEADLINE), 0)
        # until systemd knows of that, too
        with self.assertRaises(subprocess.TimeoutExpired):
            again.wait(0.3)
        self.set_unit("deactivating", name="handle")
        self.assertEqual((again.wait(DEADLINE), self.calls()), (0, []))

    def test_a_start_waits_for_nothing_where_the_vm_lives_or_nobody_follows_it(self) -> None:
        self.set_unit("inactive")
        self.set_unit("inactive", name="handle")
        self.assertEqual(self.start("again").wait(DEADLINE), 0)
        self.follow_active()
        self.assertEqual(self.start("again").wait(DEADLINE), 0)
        self.assertFalse((self.folder / "web.again").exists())

    def test_a_start_that_merges_with_one_that_follows_what_has_ended_starts_the_vm(self) -> None:
        daemon = self.serve(RUNS)
        self.note.touch()
        self.set_unit("activating")
        process = self.start()
        self.await_asked()
        # systemd was asked for the start of both units
        self.set_unit("activating", name="again")
        self.set_unit("inactive")
        process.send_signal(signal.SIGURG)
        with self.assertRaises(subprocess.TimeoutExpired):
            process.wait(0.3)
        again = self.start("again")
        self.await_ready()
        self.assertEqual(sorted(daemon.asked)[2:], ["POST /instances/web/start HTTP/1.0"])
        self.set_unit("active")
        self.assertEqual((again.wait(DEADLINE), self.calls()), (0, []))
        self.assertFalse((self.folder / "web.again").exists())
        self.assertFalse(self.note.exists())

    # its stop

    def test_only_a_stop_that_was_asked_for_stops_the_vm(self) -> None:
        for code, status, calls in (
            ("killed", "TERM", [STOPS_UNIT]),
            ("exited", "0", []),
            ("exited", "1", []),
            ("killed", "KILL", []),
        ):
            with self.subTest(f"{code} {status}"):
                (self.root / "calls").unlink(missing_ok=True)
                process = self.start("stop", EXIT_CODE=code, EXIT_STATUS=status)
                self.assertEqual((process.wait(DEADLINE), self.calls()), (0, calls))

    def asked(self) -> int:
        return self.start("stop", EXIT_CODE="killed", EXIT_STATUS="TERM").wait(DEADLINE)

    def test_a_vm_that_has_failed_is_a_failure(self) -> None:
        self.set_unit("failed")
        self.assertEqual(self.asked(), 1)

    def test_a_shutdown_is_not_held_up(self) -> None:
        (self.root / "system").write_text("stopping\n")
        self.set_unit("active")
        self.assertEqual((self.asked(), self.calls()), (0, []))

    def test_the_daemon_is_asked_where_it_may_be_about_to_make_the_unit(self) -> None:
        (self.folder / "web.starting").touch()
        self.assertEqual((self.asked(), self.calls()), (0, [STOPS_UNIT, "hypemanctl stop web"]))
        self.assertFalse((self.folder / "web.starting").exists())

    def test_a_restart_by_the_daemon_does_not_undo_a_stop(self) -> None:
        self.note.touch()
        with (self.folder / "web.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            process = self.start("stop", EXIT_CODE="killed", EXIT_STATUS="TERM")
            self.await_true(lambda: self.calls() == [STOPS_UNIT])
            time.sleep(0.1)
            self.assertIsNone(process.poll())
        self.assertEqual(process.wait(DEADLINE), 0)
        self.assertEqual((self.calls(), self.note.exists()), ([STOPS_UNIT, STOPS_UNIT], False))

    def test_a_start_that_comes_after_a_stop_is_not_undone_by_it(self) -> None:
        """The daemon has the lock then, while it has the handle follow."""
        (self.root / "stopping").touch()
        process = self.start("stop", EXIT_CODE="killed", EXIT_STATUS="TERM")
        self.await_true(lambda: self.calls() == [STOPS_UNIT])
        with (self.folder / "web.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            (self.root / "stopping").unlink()
            with self.assertRaises(subprocess.TimeoutExpired):
                process.wait(0.3)
        self.assertEqual((process.wait(DEADLINE), self.calls()), (0, [STOPS_UNIT]))


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
