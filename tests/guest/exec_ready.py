# SPDX-License-Identifier: Apache-2.0
"""Readiness checks in exec mode as PID 1 of a namespace, built with sanitizers. That of the console needs a
console of its own: see boot_ready.py.

Usage: exec_ready.py INIT FAKE-AGENT [unittest …]
"""

from __future__ import annotations

import os
import socket
import tempfile
import unittest
from pathlib import Path

import exec_mode

PYTHON = ("/usr/bin/python3", "-I", "-c")
WAIT = "import time; time.sleep(60)"


def find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def list_children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Readiness(unittest.TestCase):
    def init(self, *argv: str, ready: str | None, **others: str) -> exec_mode.Init:
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        fixed = [("version", "1"), ("name", "vm1"), ("mode", "exec"), ("agent", "0"), ("headers", "0")]
        arguments = [("arg", argument) for argument in argv]
        check = [] if ready is None else [("ready", ready)]
        init = exec_mode.Init(Path(temporary.name), None, fixed + arguments + check + [*others.items()])
        self.addCleanup(init.process.communicate)
        self.addCleanup(init.process.kill)
        return init

    def end(self, init: exec_mode.Init) -> None:
        """A guest that is merely killed would go on."""
        init.order(b"poweroff 0\n")
        self.assertIn("stopped on request", init.report()[1])

    def expect_order(self, init: exec_mode.Init, *words: str) -> None:
        places = [init.console.index(word) for word in words]
        self.assertEqual(places, sorted(places), init.console)

    def test_a_port_counts_once_the_program_listens(self) -> None:
        port = find_free_port()
        serve = (
            "import socket, sys, time\n"
            f"s = socket.socket(); s.bind(('127.0.0.1', {port}))\n"
            "time.sleep(1.5); print('listens', flush=True)\n"
            "s.listen(); time.sleep(60)\n"
        )
        init = self.init(*PYTHON, serve, ready=f"check=tcp,port={port}")
        init.wait_for("HYPEMAN-READY")
        words = f'HYPEMAN-WAITING ts={{}} boot={exec_mode.BOOT} reason="nothing listens on port {port}"'
        self.assertIn(words.partition("{}")[2], init.console)
        self.expect_order(init, "PROGRAM-START", "WAITING", "listens", "HYPEMAN-READY")
        self.assertEqual(init.console.count("HYPEMAN-WAITING"), 1)
        self.end(init)

    def test_a_request_is_repeated_until_its_status_is_right(self) -> None:
        port = find_free_port()
        serve = (
            "import http.server\n"
            "class Handler(http.server.BaseHTTPRequestHandler):\n"
            "    seen = 0\n"
            "    def do_GET(self):\n"
            "        Handler.seen += 1\n"
            "        right = self.path == '/up,' and Handler.seen > 2\n"
            "        self.send_response(200 if right else 503); self.end_headers()\n"
            "    def log_message(self, *_): pass\n"
            f"http.server.HTTPServer(('127.0.0.1', {port}), Handler).serve_forever()\n"
        )
        init = self.init(*PYTHON, serve, ready=f"check=http,port={port},path=/up%2C")
        init.wait_for("HYPEMAN-READY")
        self.end(init)

    def test_a_command_has_the_programs_place(self) -> None:
        """User, folder, environment and processes; and the program starts it all."""
        script = "sleep 0.2; touch ready; sleep 60"
        check = 'test "$A" = b && test $(id -u) = 65534 && test -e ready && test -e /proc/self/comm'
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        os.chown(temporary.name, 65534, 65534)
        init = self.init(
            "sh",
            "-c",
            script,
            ready=f"check=exec,arg=sh,arg=-c,arg={check.replace(',', '%2C')}",
            user="65534",
            workdir=temporary.name,
            env="A=b",
        )
        init.wait_for("HYPEMAN-READY")
        self.assertIn('reason="exec: exited with code 1"', init.console)
        self.end(init)

    def test_a_notification_of_a_program_that_is_not_root(self) -> None:
        tell = (
            "import os, socket, time\n"
            "s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
            "s.connect(os.environ['NOTIFY_SOCKET'])\n"
            "s.send(b'STATUS=loading'); time.sleep(0.2); print('says it', flush=True)\n"
            "s.send(b'READY=1')\n"
            # afterwards it is listened to as well: a program may stop at an error
            "for _ in range(1000): s.send(b'WATCHDOG=1')\n"
            "print('said a lot', flush=True); time.sleep(60)\n"
        )
        init = self.init(*PYTHON, tell, ready="check=notify", user="65534")
        init.wait_for("HYPEMAN-READY")
        self.assertIn('reason="loading"', init.console)
        init.wait_for("said a lot")
        self.expect_order(init, "PROGRAM-START", "says it", "HYPEMAN-READY")
        self.end(init)

    def test_the_socket_is_there_before_the_program(self) -> None:
        for _ in range(10):  # the other order would show in most of them
            init = self.init("test", "-S", "/run/hypeman/notify", ready="check=notify")
            self.assertEqual(init.report(), (0, "exited with code 0"))

    def test_a_program_that_ends_before_it_is_ready_has_its_own_end(self) -> None:
        for ready in ("check=tcp,port=1", "check=notify", "check=exec,arg=sleep,arg=60"):
            with self.subTest(ready=ready):
                init = self.init("sh", "-c", "sleep 0.1; exit 3", ready=ready)
                self.assertEqual(init.report(), (3, "exited with code 3"))
                self.assertNotIn("HYPEMAN-READY", init.console)

    def test_a_program_that_cannot_be_started_is_told_of_as_ever(self) -> None:
        init = self.init("/nothing", ready="check=notify")
        self.assertEqual(init.report()[0], 127)
        self.assertNotIn("HYPEMAN-READY", init.console)

    def test_a_stop_ends_what_waits(self) -> None:
        init = self.init(*PYTHON, WAIT, ready="check=tcp,port=1")
        init.wait_for("HYPEMAN-WAITING")
        init.order(b"poweroff 5\n")
        self.assertEqual(init.report()[1], "stopped on request: killed by signal 15 (TERM)")

    def test_without_a_check_there_is_none(self) -> None:
        """No process more, and no variable."""
        init = self.init("sh", "-c", 'echo "[$NOTIFY_SOCKET]"; sleep 60', ready=None)
        init.wait_for("PROGRAM-START")
        init.wait_for("[]\n")
        (own,) = list_children(init.process.pid)
        self.assertEqual(len(list_children(own)), 1)
        self.end(init)
        self.assertNotIn("WAITING", init.console)


if __name__ == "__main__":
    unittest.main()
