# SPDX-License-Identifier: Apache-2.0
"""Who is attached to the VM's program: the agent on a socket, with the ends of a program that is this test.

Usage: agent_attach.py AGENT [unittest …]
"""

from __future__ import annotations

import array
import os
import pty
import signal
import socket
import struct
import subprocess
import sys
import unittest

from frames import DEADLINE_S, WINDOW, Channel, Frame, Type, format_records

AGENT = sys.argv.pop(1)
BOOT = "0123456789abcdef0123456789abcdef"
KEPT = 262144
NEWS = struct.Struct("=i?3xi513s3x5?3x")  # struct packet of programnews.c


class Program:
    """What a program and init do, with the ends that the agent has not."""

    def __init__(self, init: socket.socket, *, tty: bool = False, stdin: bool = True) -> None:
        self._init = init
        console, self.console_end = os.pipe()
        self.console = os.fdopen(console, "rb", buffering=0)
        os.set_blocking(console, False)
        if tty:
            self.given = list(pty.openpty())
            self.stdin = self.stdout = self.stderr = os.dup(self.given[1])
            self.given = [self.given[0], os.dup(self.given[0]), -1, self.given[1]]
        else:
            self.stdin, typed = os.pipe()
            output, self.stdout = os.pipe()
            error, self.stderr = os.pipe()
            self.given = [typed, output, error, -1]
        if not stdin:
            os.close(self.given[0])
            self.given[0] = -1
        for fd in self.given:
            if fd >= 0 and fd != self.given[3]:
                os.set_blocking(fd, False)

    def start(self) -> None:
        ends = [self.console_end, *self.given]
        there = [fd >= 0 for fd in ends]
        fds = array.array("i", [fd for fd in ends if fd >= 0])
        body = NEWS.pack(os.getpid(), False, 0, b"", *there)
        self._init.sendmsg([body], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
        for fd in fds:
            os.close(fd)

    def end(self, code: int) -> None:
        for fd in {self.stdin, self.stdout, self.stderr}:
            os.close(fd)
        self._init.send(NEWS.pack(0, True, code, b"as told", *[False] * 5))

    def read_console(self, size: int) -> bytes:
        got = b""
        os.set_blocking(self.console.fileno(), True)
        while len(got) < size:
            got += self.console.read(size - len(got)) or b""
        return got


class Attach(unittest.TestCase):
    def setUp(self) -> None:
        ours, theirs = socket.socketpair()
        self.init, init = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.init.settimeout(DEADLINE_S)
        pipe = subprocess.PIPE
        self.agent = subprocess.Popen(
            [AGENT, BOOT, str(init.fileno())],
            stdin=theirs.fileno(),
            stdout=pipe,
            stderr=pipe,
            pass_fds=[init.fileno()],
        )
        theirs.close()
        init.close()
        self.channel = Channel(ours, BOOT)
        self.addCleanup(self.stop)
        assert self.agent.stdout is not None
        self.assertEqual(self.agent.stdout.read(1), b"r")
        self.channel.greet()

    def stop(self) -> None:
        self.agent.send_signal(signal.SIGTERM)
        _, errors = self.agent.communicate(timeout=DEADLINE_S)
        self.channel.close()
        self.init.close()
        self.assertEqual((self.agent.returncode, errors), (0, b""))

    def program(self, *, tty: bool = False, stdin: bool = True) -> Program:
        program = Program(self.init, tty=tty, stdin=stdin)
        self.addCleanup(program.console.close)
        return program

    def attach(self, **records: str) -> tuple[int, dict[str, str]]:
        stream = self.channel.next_stream
        self.channel.next_stream += 1
        self.channel.send(Type.ATTACH, format_records({"stdin": "1", **records}.items()), stream)
        return stream, self.channel.expect(Type.STARTED).records()

    def expect_exit(self, frame: Frame, code: int, words: str) -> None:
        self.assertIs(frame.type, Type.EXIT, frame)
        self.assertEqual(frame.records()["code"], str(code))
        self.assertIn(words, frame.records()["message"])

    def refuse(self, **records: str) -> str:
        stream = self.channel.next_stream
        self.channel.next_stream += 1
        self.channel.send(Type.ATTACH, format_records(records.items()), stream)
        frame = self.channel.expect(Type.EXIT)
        self.assertEqual(frame.records()["code"], "125")
        return frame.records()["message"]

    def receive_data(self, stream: int, channel: int, size: int) -> bytes:
        got = b""
        while len(got) < size:
            frame = self.channel.receive()
            if frame.type is Type.CREDIT:
                continue
            self.assertEqual((frame.type, frame.stream, frame.channel), (Type.DATA, stream, channel), frame)
            got += frame.payload
            self.channel.send(Type.CREDIT, struct.pack("<I", len(frame.payload)), stream, channel)
        return got

    def test_input_and_both_outputs_and_the_programs_end(self) -> None:
        program = self.program()
        program.start()
        stream, started = self.attach()
        self.assertEqual(started, {"pid": str(os.getpid()), "tty": "0", "stdin": "1"})
        self.channel.send(Type.DATA, b"typed", stream)
        self.assertEqual(os.read(program.stdin, 100), b"typed")
        os.write(program.stdout, b"prompt> ")
        self.assertEqual(self.receive_data(stream, 1, 8), b"prompt> ")
        os.write(program.stderr, b"error\n")
        self.assertEqual(self.receive_data(stream, 2, 6), b"error\n")
        self.assertEqual(program.read_console(14), b"prompt> error\n")
        os.write(program.stdout, b"last")
        program.end(7)
        self.assertEqual(self.receive_data(stream, 1, 4), b"last")
        self.expect_exit(self.channel.receive(), 7, "as told")
        self.assertEqual(self.init.recv(10), b"\0")
        self.assertEqual(program.read_console(4), b"last")

    def test_the_end_of_input_is_for_all_and_comes_after_it(self) -> None:
        program = self.program()
        program.start()
        first, _ = self.attach()
        second, _ = self.attach()
        viewer, started = self.attach(stdin="0")
        self.assertEqual(started["stdin"], "0")
        self.channel.send(Type.DATA, b"ignored", viewer)
        self.channel.send(Type.DATA, b"", viewer)
        self.channel.send(Type.DATA, b"one", second)
        self.assertEqual(os.read(program.stdin, 100), b"one")
        self.channel.send(Type.DATA, b"two", first)
        self.channel.send(Type.DATA, b"", first)
        got = b""
        while data := os.read(program.stdin, 100):
            got += data
        self.assertEqual(got, b"two")

    def test_who_leaves_does_not_end_the_input(self) -> None:
        program = self.program()
        program.start()
        stream, _ = self.attach()
        self.channel.send(Type.CLOSE, b"", stream)
        self.expect_exit(self.channel.receive(), 0, "detached")
        self.channel.greet()  # as after the loss of the host
        os.set_blocking(program.stdin, False)
        with self.assertRaises(BlockingIOError):
            os.read(program.stdin, 1)
        stream, _ = self.attach()
        self.channel.send(Type.DATA, b"again", stream)
        os.set_blocking(program.stdin, True)
        self.assertEqual(os.read(program.stdin, 100), b"again")

    def test_what_was_written_before_is_there_on_demand(self) -> None:
        program = self.program()
        program.start()
        os.write(program.stdout, b"early")
        self.assertEqual(program.read_console(5), b"early")
        late, _ = self.attach()
        stream, _ = self.attach(replay="1")
        self.assertEqual(self.receive_data(stream, 1, 5), b"early")
        os.write(program.stdout, b"x")
        frames = [self.channel.expect(Type.DATA) for _ in range(2)]
        self.assertEqual({frame.stream: frame.payload for frame in frames}, {late: b"x", stream: b"x"})
        program.end(0)
        self.channel.collect(late, stream)
        after, _ = self.attach(replay="1")
        self.assertEqual(self.receive_data(after, 1, 6), b"earlyx")
        self.expect_exit(self.channel.receive(), 0, "as told")

    def write_all(self, program: Program, data: bytes) -> None:
        """Into the program's output, with the console emptied meanwhile."""
        for at in range(0, len(data), 4096):
            os.write(program.stdout, data[at : at + 4096])
            self.assertEqual(program.read_console(4096), data[at : at + 4096])

    def test_the_last_bytes_are_kept(self) -> None:
        program = self.program()
        program.start()
        data = os.urandom(2 * KEPT + 4096)
        self.write_all(program, data)
        stream, _ = self.attach(replay="1")
        self.assertEqual(self.receive_data(stream, 1, KEPT), data[-KEPT:])

    def test_who_reads_nothing_is_detached_and_holds_nobody_up_for_long(self) -> None:
        program = self.program()
        program.start()
        slow, _ = self.attach()
        self.write_all(program, bytes(WINDOW))  # all credit of `slow`
        self.write_all(program, bytes(KEPT))
        os.write(program.stdout, b"late")  # held until `slow` is given up
        self.assertEqual(program.read_console(4), b"late")
        while (frame := self.channel.receive()).type is not Type.EXIT:
            pass
        self.assertEqual((frame.stream, frame.records()["detached"]), (slow, "1"))
        self.assertIn("was not read for too long", frame.records()["message"])
        self.assertNotIn("code", frame.records())

    def test_who_reads_nothing_does_not_hold_up_the_programs_end(self) -> None:
        program = self.program()
        program.start()
        self.attach()
        self.write_all(program, bytes(WINDOW + KEPT))
        os.write(program.stdout, b"late")
        program.end(0)
        self.assertEqual(program.read_console(4), b"late")

    def test_a_terminal(self) -> None:
        program = self.program(tty=True)
        program.start()
        stream, started = self.attach(rows="5", cols="9")
        self.assertEqual((started["tty"], started["stdin"]), ("1", "1"))
        self.assertEqual(tuple(os.get_terminal_size(program.stdout)), (9, 5))
        self.channel.send(Type.RESIZE, struct.pack("<HH", 50, 90), stream)
        self.channel.send(Type.DATA, b"hi\r", stream)
        self.assertEqual(os.read(program.stdin, 100), b"hi\n")
        self.assertEqual(self.receive_data(stream, 1, 4), b"hi\r\n")
        self.assertEqual(tuple(os.get_terminal_size(program.stdout)), (90, 50))
        self.channel.send(Type.DATA, b"", stream)
        self.assertEqual(os.read(program.stdin, 100), b"")
        again, _ = self.attach()
        self.channel.send(Type.DATA, b"yes\r", again)
        self.assertEqual(os.read(program.stdin, 100), b"yes\n")
        program.end(3)
        results = self.channel.collect(stream, again)
        self.assertEqual([result.code for result in results.values()], [3, 3])

    def test_a_terminal_without_input(self) -> None:
        program = self.program(tty=True, stdin=False)
        program.start()
        stream, started = self.attach()
        self.assertEqual((started["tty"], started["stdin"]), ("1", "0"))
        os.write(program.stdout, b"x")
        self.assertEqual(self.receive_data(stream, 1, 1), b"x")

    def test_nobody_attaches_to_what_is_not_there(self) -> None:
        self.assertIn("has not been started yet", self.refuse())
        self.init.send(NEWS.pack(os.getpid(), False, 0, b"", *[False] * 5))
        self.assertIn("with neither stdin nor a terminal", self.refuse())
        for bad in ({"stdin": "2"}, {"rows": "65536"}, {"replay": "x"}):
            self.assertIn("expected a number", self.refuse(**bad))


if __name__ == "__main__":
    unittest.main()
