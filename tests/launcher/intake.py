# SPDX-License-Identifier: Apache-2.0
"""What the intake makes of streams, whole and wrong.

usage: python3 -m tests.launcher.intake INTAKE
"""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
import tempfile
import time
import unittest
from collections.abc import Sequence
from pathlib import Path

from tests.fakes.migration import (
    BLOCK,
    CONTINUE,
    DATA,
    END,
    LAST,
    PAGE,
    SIZES,
    ZERO,
    command,
    device,
    end,
    format_stream,
    header,
    name,
    page,
    part,
    sizes,
    start,
)

(INTAKE,) = sys.argv[1:]
USER = str(os.getuid())
SIZE = 64 * PAGE
STATE_SIZE = 1024 * 1024
FAILED, NO_SPACE, BAD_STREAM, TOO_LARGE, CUT_SHORT = range(1, 6)
BLOCKS = {BLOCK: SIZE, "pc.bios": 2 * PAGE}
BEGIN = header() + start(sizes(BLOCKS) + end())


def fill(byte: int) -> bytes:
    return bytes([byte]) * PAGE


class IntakeTest(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def run_intake(
        self, stream: bytes, *, arguments: Sequence[str] | None = None, state: str = "state"
    ) -> tuple[int, str]:
        """Its exit status and what it says, which is one line or nothing."""
        with (self.folder / "memory").open("wb") as memory, (self.folder / state).open("wb") as rest:
            known = [USER, BLOCK, str(SIZE), str(STATE_SIZE), str(memory.fileno()), str(rest.fileno())]
            argv = [INTAKE, *(known if arguments is None else arguments)]
            fds = (memory.fileno(), rest.fileno())
            done = subprocess.run(
                argv, input=stream, stderr=subprocess.PIPE, pass_fds=fds, timeout=60, check=False
            )
        words = done.stderr.decode()
        self.assertEqual(words.count("\n"), min(1, done.returncode), words)
        self.assertTrue(not words or words.startswith("intake: "), words)
        return done.returncode, words.removeprefix("intake: ").strip()

    def split(self, stream: bytes) -> tuple[bytes, bytes]:
        """The memory and the state, of a stream that is whole."""
        self.assertEqual(self.run_intake(stream), (0, ""))
        memory = (self.folder / "memory").read_bytes()
        self.assertEqual(len(memory), SIZE)
        return memory, (self.folder / "state").read_bytes()

    def blocks(self) -> int:
        """Bytes that the memory takes on the disk."""
        return (self.folder / "memory").stat().st_blocks * 512

    # streams that are whole

    def test_memory_and_state_are_taken_apart(self) -> None:
        own = page(0, fill(1), BLOCK) + page(PAGE, fill(2)) + page(2 * PAGE, None) + page(63 * PAGE, fill(3))
        bios = page(0, fill(9), "pc.bios") + page(PAGE, None)
        again = page(PAGE, fill(4), BLOCK)
        last = page(2 * PAGE, fill(5)) + end()
        stream = b"".join(
            (BEGIN, part(own + bios + end()), part(again + end()), command(b"x"), part(last, kind=END))
        )
        memory, state = self.split(stream + command(b"") + device())
        expected = fill(1) + fill(4) + fill(5) + bytes(60 * PAGE) + fill(3)
        self.assertEqual(memory, expected)
        named = page(0, fill(9), "pc.bios") + page(PAGE, None, "pc.bios")
        rest = part(named + end()) + part(end()) + command(b"x") + part(end(), kind=END) + command(b"")
        self.assertEqual(state, BEGIN + rest + device())
        self.assertLessEqual(self.blocks(), 6 * PAGE)

    def test_what_follows_the_first_device_is_not_looked_at(self) -> None:
        for rest in (b"", os.urandom(300_000), page(0, fill(1), BLOCK) * 3):
            stream = BEGIN + part(end(), kind=END) + device() + rest
            memory, state = self.split(stream)
            self.assertEqual((memory, state), (bytes(SIZE), stream))

    def test_a_page_that_becomes_zero_is_a_hole(self) -> None:
        first = page(0, fill(1), BLOCK) + b"".join(page(at, fill(2)) for at in range(PAGE, 40 * PAGE, PAGE))
        zeros = b"".join(page(at, None) for at in range(PAGE, 30 * PAGE, PAGE))
        sent = b"".join(page(at, bytes(PAGE)) for at in range(30 * PAGE, 45 * PAGE, PAGE))
        memory, _ = self.split(BEGIN + part(first + zeros + sent + end(), kind=END) + device())
        self.assertEqual(memory, fill(1) + bytes(63 * PAGE))
        self.assertLessEqual(self.blocks(), 2 * PAGE)
        back = zeros + page(5 * PAGE, fill(7)) + page(6 * PAGE, None) + page(6 * PAGE, fill(8))
        memory, _ = self.split(BEGIN + part(first + back + end(), kind=END) + device())
        self.assertEqual(memory[: 7 * PAGE], fill(1) + bytes(4 * PAGE) + fill(7) + fill(8))

    def test_any_order_of_pages_comes_to_the_same_as_one_at_a_time(self) -> None:
        chance = random.Random(1)
        expected, pages = bytearray(SIZE), [page(0, None, BLOCK)]
        at = 0
        for _ in range(3000):
            at = (at + 1) % 64 if chance.random() < 0.9 else chance.randrange(64)
            data = None if chance.random() < 0.3 else fill(chance.choice((0, 1, 2, 3)))
            pages.append(page(at * PAGE, data))
            expected[at * PAGE : (at + 1) * PAGE] = data or bytes(PAGE)
        memory, _ = self.split(BEGIN + part(b"".join(pages) + end(), kind=END) + device())
        self.assertEqual(memory, expected)

    def test_what_the_file_had_before_is_gone(self) -> None:
        (self.folder / "memory").write_bytes(b"old" * SIZE)
        memory, _ = self.split(format_stream(b"", SIZE))
        self.assertEqual(memory, bytes(SIZE))

    def test_it_may_come_in_pieces(self) -> None:
        """A byte at a time, where it is not pages."""
        stream = format_stream(os.urandom(5 * PAGE), SIZE)
        with (self.folder / "memory").open("wb") as memory, (self.folder / "state").open("wb") as state:
            fds = (memory.fileno(), state.fileno())
            argv = [INTAKE, USER, BLOCK, str(SIZE), str(STATE_SIZE), *map(str, fds)]
            process = subprocess.Popen(argv, stdin=subprocess.PIPE, pass_fds=fds, bufsize=0)
            assert process.stdin is not None
            for at in range(0, len(stream), 97):
                process.stdin.write(stream[at : at + 97])
            process.stdin.close()
            self.assertEqual(process.wait(30), 0)
        self.assertEqual(self.split(stream)[0], (self.folder / "memory").read_bytes())

    @unittest.skipIf(os.getuid(), "needs root")
    def test_it_is_of_the_user_and_has_no_rights(self) -> None:
        with (self.folder / "memory").open("wb") as memory, (self.folder / "state").open("wb") as state:
            fds = (memory.fileno(), state.fileno())
            argv = [INTAKE, "65534", BLOCK, str(SIZE), str(STATE_SIZE), *map(str, fds)]
            process = subprocess.Popen(argv, stdin=subprocess.PIPE, pass_fds=fds, bufsize=0)
            assert process.stdin is not None
            status, until = "", time.monotonic() + 30
            while "Seccomp:\t2" not in status and time.monotonic() < until:
                time.sleep(0.005)
                status = Path(f"/proc/{process.pid}/status").read_text()
            process.stdin.write(format_stream(b"x", SIZE))
            process.stdin.close()
            self.assertEqual(process.wait(30), 0)
        for key, value in (
            ("Uid", "\t65534" * 4),
            ("Gid", "\t65534" * 4),
            ("Groups", "\t ?"),
            *((f"Cap{kind}", "\t0{16}") for kind in ("Inh", "Prm", "Eff", "Amb")),
            ("NoNewPrivs", "\t1"),
            ("Seccomp", "\t2"),
        ):
            self.assertRegex(status, f"(?m)^{key}:{value}$")

    # streams that are not

    def test_each_that_is_wrong_is_refused_with_a_reason(self) -> None:
        begun, done = header() + start(sizes(BLOCKS) + end()), part(end(), kind=END)
        flags = struct.pack(">Q", 0x200)
        for wrong, words in (
            (b"QEVN" + begun[4:], "does not begin as one of QEMU"),
            (begun[:4] + b"\0\0\0\4" + begun[8:], "does not begin as one of QEMU"),
            (b"QEVM\0\0\0\3\1", "does not name its machine"),
            (b"QEVM\0\0\0\3\7\0\0\1\0" + bytes(256), "name of the machine is too long"),
            (b"QEVM\0\0\0\3\7\xff\xff\xff\xff" + bytes(256), "name of the machine is too long"),
            (header() + b"\5", "section of unknown type 5"),
            (header() + b"\0", "section of unknown type 0"),
            (header() + device(), "device before the end of the memory"),
            (begun + device(), "device before the end of the memory"),
            (header() + start(b"", section="dirty-bitmap"), "section that is not known"),
            (header() + start(b"", section="ra"), "section that is not known"),
            (begun + start(end()), "section that is not known"),
            (header() + part(end(), number=0), "section that has not begun"),
            (begun + part(end(), number=3), "section that has not begun"),
            (begun + done + done, "section that has not begun"),
            (header() + start(sizes(BLOCKS) + end()[:8] + b"\0\0\0\0\0"), "does not end"),
            (header() + start(sizes(BLOCKS) + end(3)), "does not end"),
            (header() + start(page(0, fill(1), BLOCK)), "before the sizes"),
            (header() + start(sizes(BLOCKS) * 2), "sizes of the memory come twice"),
            (header() + start(sizes({"pc.bios": PAGE})), f"no memory {BLOCK}"),
            (header() + start(sizes({BLOCK: 2 * SIZE})), f"has {2 * SIZE} bytes instead of {SIZE}"),
            (header() + start(sizes({BLOCK: SIZE // 2})), "bytes instead of"),
            (header() + start(sizes({BLOCK + "s": SIZE})), f"no memory {BLOCK}"),
            (header() + start(struct.pack(">Q", PAGE | SIZES) + sizes(BLOCKS)[8:]), "add up"),
            (header() + start(sizes({"": 0, **BLOCKS})), "add up"),
            (begun + part(page(0, fill(1))), "page of no block"),
            (begun + part(page(SIZE, fill(1), BLOCK)), "0x40000, where there is no memory"),
            (begun + part(page(SIZE, None, BLOCK)), "where there is no memory"),
            (begun + part(page(2**64 - PAGE, fill(1), BLOCK)), "0xfffffffffffff000, where there is no"),
            (begun + part(page(2**63, fill(1), BLOCK)), "where there is no memory"),
            (begun + part(page(0, None, BLOCK)[:-1] + b"\1"), "not zero"),
            (begun + part(flags), "unknown flags 0x200"),
            (begun + part(struct.pack(">Q", LAST | CONTINUE)), "unknown flags 0x30"),
            (begun + part(struct.pack(">Q", DATA | ZERO)), "unknown flags 0xa"),
            (begun + part(struct.pack(">Q", 0)), "unknown flags 0"),
        ):
            with self.subTest(words):
                status, told = self.run_intake(wrong)
                self.assertEqual(status, BAD_STREAM, told)
                self.assertRegex(told, words)

    def test_a_stream_that_ends_anywhere_is_cut_short(self) -> None:
        bios = page(0, fill(9), "pc.bios")
        stream = BEGIN + part(page(0, fill(1), BLOCK) + bios + end()) + command(b"xy") + part(end(), kind=END)
        ends = [*range(0, len(BEGIN) + 60, 3), *range(len(BEGIN) + PAGE, len(stream) + 1, 97), len(stream)]
        for at in ends:
            status, told = self.run_intake(stream[:at])
            self.assertEqual((status, told), (CUT_SHORT, "the stream ends early"), at)

    def test_a_stream_that_never_ends_is_too_large(self) -> None:
        again = part(page(0, fill(1), BLOCK) + end()) * 20_000
        status, told = self.run_intake(BEGIN + again)
        self.assertEqual((status, told), (TOO_LARGE, f"the stream has more than {4 * SIZE + 2**26} bytes"))

    def test_a_state_that_never_ends_is_too_large(self) -> None:
        done = BEGIN + part(end(), kind=END) + device()
        for stream in (
            done + bytes(STATE_SIZE),
            BEGIN + part(page(0, fill(1), "pc.bios") * 300),
            BEGIN + command(bytes(65535)) * 17,
            BEGIN + part(end()) * 80_000,
            header() + start(struct.pack(">Q", 2**63 | SIZES) + (name("x") + struct.pack(">Q", 1)) * 110_000),
        ):
            status, told = self.run_intake(stream)
            self.assertEqual(
                (status, told), (TOO_LARGE, f"the state of the devices has more than {STATE_SIZE} bytes")
            )
            self.assertLessEqual((self.folder / "state").stat().st_size, STATE_SIZE)
        self.assertEqual(self.split(done + bytes(STATE_SIZE - len(done)))[1][:4], b"QEVM")

    # what it writes to

    def test_a_disk_that_is_full_is_told_from_other_errors(self) -> None:
        whole = BEGIN + part(page(0, fill(1), BLOCK) + end(), kind=END) + device()
        status, told = self.run_intake(whole, state="/dev/full")
        self.assertEqual((status, told), (NO_SPACE, "cannot write the state: No space left on device"))
        closed = [USER, BLOCK, str(SIZE), str(STATE_SIZE), "1000", "1001"]
        status, told = self.run_intake(whole, arguments=closed)
        self.assertEqual((status, told), (FAILED, "cannot write the memory: Bad file descriptor"))

    def test_wrong_arguments_are_refused(self) -> None:
        for arguments, words in (
            ([], "usage"),
            ([USER, BLOCK, str(SIZE), "1", "3"], "usage"),
            ([USER, BLOCK, "0", "1", "3", "4"], "no whole pages"),
            ([USER, BLOCK, "4097", "1", "3", "4"], "no whole pages"),
            ([USER, BLOCK, "-4096", "1", "3", "4"], "no number"),
            ([USER, BLOCK, str(2**64 + PAGE), "1", "3", "4"], "no number"),
            ([USER, BLOCK, "4096x", "1", "3", "4"], "no number"),
            ([USER, BLOCK, "4096", "", "3", "4"], "no number"),
            (["-1", BLOCK, "4096", "1", "3", "4"], "no number"),
            (["4294967295", BLOCK, "4096", "1", "3", "4"], "no number"),
        ):
            status, told = self.run_intake(b"", arguments=arguments)
            self.assertEqual(status, FAILED)
            self.assertIn(words, told)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
