# SPDX-License-Identifier: Apache-2.0
"""What a VM's unit executes when it ends, against a VMM, a systemd and a hypemanctl of the test's own.

usage: ending.py ENDING, built to wait 200 ms for systemd
"""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import unittest
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

(ENDING,) = sys.argv[1:]
DEADLINE = 60.0
RUN, OTHER = "5a" * 16, "6b" * 16
GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\n'
UNIT = "hypeman-vm-web.service"


class EndingTest(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name)
        self.runtime = self.root / "hypeman-web"
        self.state = self.root / "state"
        for made in (self.runtime, self.state, self.root / "usr/bin", self.root / "run/systemd/machines"):
            made.mkdir(parents=True)
        self.heard: list[bytes] = []

    def execute(self, *arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        env = {"PATH": os.environ["PATH"], "INVOCATION_ID": RUN} | variables
        command = [ENDING, f"--root={self.root}", *map(str, arguments)]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=DEADLINE, check=False)

    def stop(self, *more: str, **variables: str) -> tuple[int, str]:
        done = self.execute("stop", self.runtime, "27", self.state, *more, **variables)
        return done.returncode, done.stderr

    def write(self, path: str, text: str, mode: int = 0o644) -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)
        return file

    @contextmanager
    def port(self) -> Iterator[None]:
        """A VMM's port: hears one order, then closes, as a VMM that ends does."""
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self.runtime / "stop.sock"))
            listener.listen()

            def serve() -> None:
                connection, _ = listener.accept()
                with connection:
                    self.heard.append(connection.recv(100))

            thread = threading.Thread(target=serve)
            thread.start()
            yield
            thread.join(DEADLINE)

    @contextmanager
    def manager(self) -> Iterator[socket.socket]:
        """systemd's socket for notifications."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
            listener.bind(str(self.root / "run/systemd/notify"))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            listener.settimeout(DEADLINE)
            yield listener

    # stop

    def test_the_guest_is_told_and_the_end_awaited(self) -> None:
        with self.port():
            self.assertEqual(self.stop(), (0, ""))
        self.assertEqual(self.heard, [b"poweroff 27\n"])

    def test_a_guest_that_is_paused_is_resumed_where_no_daemon_does_it(self) -> None:
        orders: list[bytes] = []
        with socket.socket(socket.AF_UNIX) as port, socket.socket(socket.AF_UNIX) as qmp:
            for listener, name in ((port, "stop"), (qmp, "qmp")):
                listener.bind(str(self.runtime / f"{name}.sock"))
                listener.listen(1)

            def serve() -> None:
                stop, _ = port.accept()
                client, _ = qmp.accept()
                with stop, client, client.makefile("rwb", buffering=0) as talk:
                    talk.write(GREETING)
                    while not orders or json.loads(orders[-1])["execute"] != "cont":
                        orders.append(talk.readline())
                        talk.write(b'{"return": {}}\n{"event": "RESUME"}\n')
                    orders.append(stop.recv(100))

            thread = threading.Thread(target=serve)
            thread.start()
            self.assertEqual(self.stop(), (0, ""))
            thread.join(DEADLINE)
        words = [json.loads(order)["execute"] for order in orders[:-1]]
        self.assertEqual((words, orders[-1]), (["qmp_capabilities", "cont"], b"poweroff 27\n"))

    def test_the_daemons_connection_to_qmp_is_left_to_it(self) -> None:
        """Who comes second hears nothing, and the end is seen nevertheless."""
        with socket.socket(socket.AF_UNIX) as qmp, self.port():
            qmp.bind(str(self.runtime / "qmp.sock"))
            qmp.listen(1)
            self.assertEqual(self.stop(), (0, ""))
            waited, _ = qmp.accept()
            with waited:
                self.assertEqual(waited.recv(100), b"")
        self.assertEqual(self.heard, [b"poweroff 27\n"])

    def test_a_control_socket_that_has_no_place_is_not_waited_for(self) -> None:
        with socket.socket(socket.AF_UNIX) as qmp, self.port():
            qmp.bind(str(self.runtime / "qmp.sock"))
            qmp.listen(0)
            with socket.socket(socket.AF_UNIX) as first:
                first.connect(str(self.runtime / "qmp.sock"))
                self.assertEqual(self.stop(), (0, ""))
        self.assertEqual(self.heard, [b"poweroff 27\n"])

    def test_a_vmm_that_has_gone_is_what_is_wanted(self) -> None:
        self.assertEqual(self.stop(), (0, ""))
        with socket.socket(socket.AF_UNIX) as nobody_listens:
            nobody_listens.bind(str(self.runtime / "stop.sock"))
            self.assertEqual(self.stop(), (0, ""))
        for left in self.runtime.iterdir():
            left.unlink()
        self.runtime.rmdir()
        self.assertEqual(self.stop(), (0, ""))

    def test_a_link_to_another_socket_is_not_followed(self) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self.root / "other.sock"))
            listener.listen(1)
            (self.runtime / "stop.sock").symlink_to(self.root / "other.sock")
            code, words = self.stop()
        self.assertEqual((code, words), (1, "cannot ask the guest to power off: Operation not permitted\n"))

    @unittest.skipIf(os.getuid() != 0, "only root can make a file another user's")
    def test_a_socket_of_another_user_is_refused(self) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self.runtime / "stop.sock"))
            listener.listen(1)
            os.chown(self.runtime / "stop.sock", 12345, 12345)
            self.assertEqual(self.stop()[0], 1)

    def test_systemd_is_told_to_wait_as_long_as_the_guest_may_take(self) -> None:
        with self.manager() as listener:
            with self.port():
                arguments = ("stop", self.runtime, "86400", self.state)
                self.assertEqual(self.execute(*arguments, MAINPID=str(os.getpid())).returncode, 0)
            words, ancillary, _flags, _address = listener.recvmsg(4096, 256)
        self.assertEqual(words, b"EXTEND_TIMEOUT_USEC=86405000000")
        ((_level, _kind, credentials),) = ancillary
        self.assertEqual(struct.unpack("iII", credentials)[0], os.getpid())
        self.assertEqual(self.heard, [b"poweroff 86400\n"])

    def test_a_systemd_that_does_not_read_keeps_no_guest_from_being_asked(self) -> None:
        with self.manager(), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as flood:
            flood.setblocking(False)
            with suppress(BlockingIOError):
                while True:
                    flood.sendto(b"STATUS=full", str(self.root / "run/systemd/notify"))
            with self.port():
                code, words = self.stop(MAINPID=str(os.getpid()))
        self.assertEqual((code, self.heard), (0, [b"poweroff 27\n"]))
        self.assertIn("cannot tell systemd to wait 32 s: ", words)

    def test_a_systemd_that_cannot_be_told_keeps_no_guest_from_being_asked(self) -> None:
        with self.port():
            code, words = self.stop(MAINPID=str(os.getpid()))
        self.assertEqual((code, self.heard), (0, [b"poweroff 27\n"]))
        self.assertIn("cannot tell systemd to wait 32 s: No such file or directory", words)

    def test_a_main_process_that_has_gone_is_no_error(self) -> None:
        with self.manager(), subprocess.Popen(["true"]) as gone:
            gone.wait()
            self.assertEqual(self.stop(MAINPID=str(gone.pid)), (0, ""))

    def test_a_guest_that_was_saved_is_asked_nothing(self) -> None:
        """What is there of a run before is no reason not to ask."""
        self.write("state/standby/snapshot.json", json.dumps({"version": 1, "run": RUN, "vm_id": "x"}))
        for run, asked in ((RUN, False), (OTHER, True)):
            with self.subTest(asked=asked):
                with self.port() if asked else nullcontext():
                    self.assertEqual(self.stop(INVOCATION_ID=run), (0, ""))
                self.assertEqual(self.heard, [b"poweroff 27\n"] if asked else [])

    def test_what_is_no_record_of_a_save_is_none(self) -> None:
        record = self.state / "standby/snapshot.json"
        record.parent.mkdir()
        for text in ("", "{", '{"run": "', f'{{"run": "{RUN[:-1]}', f'{{"run": "{RUN}0"}}', f'"{RUN}"', "[]"):
            with self.subTest(text), self.port():
                record.write_text(text)
                self.assertEqual(self.stop(), (0, ""))
            (self.runtime / "stop.sock").unlink()
        record.unlink()
        os.mkfifo(record)
        with self.port():
            self.assertEqual(self.stop(), (0, ""))
        (self.runtime / "stop.sock").unlink()
        record.unlink()
        record.write_text('{"run": ""}')
        with self.port():
            self.assertEqual(self.stop(INVOCATION_ID=""), (0, ""))

    def test_a_shutdown_of_the_host_saves_a_vm_that_wants_it_or_stops_it(self) -> None:
        orders = self.root / "orders"
        for host, status, asked in (("stopping", 0, False), ("stopping", 1, True), ("running", 0, True)):
            with self.subTest(host=host, status=status):
                self.heard.clear()
                orders.unlink(missing_ok=True)
                (self.runtime / "stop.sock").unlink(missing_ok=True)
                self.write("usr/bin/systemctl", f"#!/bin/sh\necho {host}\n", 0o755)
                client = f'#!/bin/sh\necho "$@" >{orders}; exit {status}\n'
                self.write("usr/bin/hypemanctl", client, 0o755)
                with self.port() if asked else nullcontext():
                    code, words = self.stop("web")
                self.assertEqual((code, self.heard), (0, [b"poweroff 27\n"] if asked else []))
                given = orders.read_text() if orders.exists() else ""
                self.assertEqual(given, "standby web\n" if host == "stopping" else "")
                self.assertEqual("is stopped instead of being put" in words, status == 1)

    # record

    def record(self, *, exit_of: str = RUN, saved_of: str = RUN, **variables: str) -> tuple[int, str]:
        """By a command that says so and ends with 7."""
        self.write("state/standby/snapshot.json", json.dumps({"version": 2, "run": saved_of}))
        self.write("state/exit.json", json.dumps({"run": exit_of, "code": 0}))
        command = ("/bin/sh", "-c", 'echo "found out: $*"; exit 7', "sh", "a b", "")
        done = self.execute("record", self.state, UNIT, self.runtime, *command, **variables)
        return done.returncode, done.stdout

    def machine(self, name: str) -> Path:
        """What systemd-machined has of a machine of that name, which is this unit's."""
        self.write(f"run/systemd/machines/{name}", "")
        link = self.root / f"run/systemd/machines/unit:{UNIT}"
        link.unlink(missing_ok=True)
        link.symlink_to(name)
        return link

    def test_what_was_put_into_standby_and_is_recorded_needs_no_more(self) -> None:
        link = self.machine(self.runtime.name)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
            listener.bind(str(self.root / "notify"))
            listener.settimeout(DEADLINE)
            self.assertEqual(self.record(NOTIFY_SOCKET=str(self.root / "notify")), (0, ""))
            self.assertEqual(listener.recv(4096), b"STATUS=Stopped: put into standby")
        self.assertEqual(list(link.parent.iterdir()), [])

    def test_a_machine_of_another_is_left(self) -> None:
        link = self.machine("container")
        self.assertEqual(self.record(), (0, ""))
        self.assertTrue(link.is_symlink() and link.exists())

    def test_anything_else_is_found_out(self) -> None:
        found = (7, "found out: a b \n")
        self.assertEqual(self.record(exit_of=OTHER), found)
        self.assertEqual(self.record(saved_of=OTHER), found)
        self.assertEqual(self.record(INVOCATION_ID=""), found)
        (self.state / "standby.old").mkdir()
        self.assertEqual(self.record(), found)

    def test_wrong_arguments_are_refused(self) -> None:
        for arguments in ((), ("stop", "a"), ("stop", "a", "x", "b"), ("record", "a", "b", "c"), ("go",) * 6):
            with self.subTest(arguments):
                self.assertEqual(self.execute(*arguments).returncode, 2)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
