# SPDX-License-Identifier: Apache-2.0
"""The library that a VMM loads which maps a file of its guest's memory.

usage: preload.py LIBRARY
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any

(LIBRARY,) = sys.argv[1:]
PAGE = 4096
# the kernel reads some MiB ahead of what is read
SIZE = 32768 * PAGE
NOBODY = 65534
# argv: the file, 1 to map it privately, and a word to compare. Opens and maps it as QEMU does, and prints
# what came of it: the flags of the descriptor; whether what is mapped is what the file holds; its mappings,
# each with its first page and the count, and whether it is of the file; and how many pages of the file are
# in memory when all of it was read. Writes to all of a private mapping at last.
CLIENT = """
import ctypes, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap64.restype = ctypes.c_void_p
number = ctypes.c_int
libc.mmap64.argtypes = [ctypes.c_void_p, ctypes.c_size_t, number, number, number, ctypes.c_long]
path, private, page = sys.argv[1], int(sys.argv[2]), 4096
fd = libc.open64(path.encode(), os.O_RDWR)
assert fd >= 0, os.strerror(ctypes.get_errno())
size = os.fstat(fd).st_size
at = libc.mmap64(None, size, 3, 2 if private else 1, fd, 0)
assert at not in (None, 2**64 - 1), os.strerror(ctypes.get_errno())
flags = open(f"/proc/self/fdinfo/{fd}").read().split("flags:")[1].split()[0]
same = ctypes.string_at(at, size) == os.pread(fd, size, 0) if len(sys.argv) > 3 else None
found = []
for line in open("/proc/self/maps"):
    first, last = (int(word, 16) for word in line.split()[0].split("-"))
    if first < at + size and last > at:
        first, last = max(first, at), min(last, at + size)
        found.append([(first - at) // page, (last - first) // page, path in line])
ctypes.string_at(at, size)
vector = (ctypes.c_ubyte * (size // page))()
other = libc.mmap64(None, size, 1, 1, os.open(path, os.O_RDONLY), 0)
libc.mincore(ctypes.c_void_p(other), ctypes.c_size_t(size), vector)
if private:
    ctypes.memset(at, 0x5A, size)
print(json.dumps({"flags": flags, "same": same, "mapped": found, "cached": sum(byte & 1 for byte in vector)}))
"""


class PreloadTest(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        Path(folder.name).chmod(0o755)
        self.file = Path(folder.name, "memory")
        # another user may have no way to where it was built
        self.library = shutil.copy(LIBRARY, folder.name)
        Path(self.library).chmod(0o755)
        with self.file.open("wb") as file:
            # data at pages 0, 300 to 301 and 900, then a short hole, and one up to the end
            for first, count in ((0, 1), (300, 2), (900, 1), (910, 10)):
                file.seek(first * PAGE)
                file.write(bytes([1 + first % 250]) * (count * PAGE))
            file.truncate(SIZE)
        os.sync()
        self.digest = self.hash()

    def hash(self) -> bytes:
        with self.file.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()

    def use(
        self, *more: str, memory: str = "", user: int | None = None, private: bool = True
    ) -> dict[str, Any]:
        """What the client says of it."""
        with self.file.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        done = subprocess.run(
            [sys.executable, "-I", "-c", CLIENT, str(self.file), str(int(private)), *more],
            env={"LD_PRELOAD": self.library, "HYPEMAN_MEMORY": memory or str(self.file)},
            user=user,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def test_what_is_mapped_is_the_file_and_its_holes_are_no_pages_of_it(self) -> None:
        answer = self.use("compare")
        self.assertTrue(answer["same"])
        files = [(first, count) for first, count, is_file in answer["mapped"] if is_file]
        self.assertEqual(files, [(0, 1), (300, 2), (900, 20)])
        self.assertEqual(sum(count for _, count, _ in answer["mapped"]), SIZE // PAGE)
        self.assertEqual(self.hash(), self.digest)

    def test_reading_all_of_it_brings_no_hole_into_memory(self) -> None:
        self.assertLess(self.use()["cached"], SIZE // PAGE // 2)
        self.assertEqual(self.use(memory="/another")["cached"], SIZE // PAGE)

    def test_another_file_and_a_shared_mapping_are_left_alone(self) -> None:
        for memory, private in (("/another", True), ("", False)):
            with self.subTest(memory=memory, private=private):
                answer = self.use("compare", memory=memory, private=private)
                self.assertTrue(answer["same"])
                self.assertEqual([is_file for _, _, is_file in answer["mapped"]], [True])

    @unittest.skipIf(os.getuid() != 0, "root alone can be another user")
    def test_one_that_may_not_be_written_is_opened_to_read(self) -> None:
        os.chown(self.file, NOBODY, NOBODY)
        self.assertEqual(int(self.use(user=NOBODY)["flags"], 8) & os.O_ACCMODE, os.O_RDWR)
        os.chown(self.file, 0, 0)
        self.file.chmod(0o444)
        self.assertEqual(int(self.use(user=NOBODY)["flags"], 8) & os.O_ACCMODE, os.O_RDONLY)
        self.assertEqual(self.hash(), self.digest)

    def test_a_file_without_holes_is_mapped_whole(self) -> None:
        self.file.write_bytes(b"x" * SIZE)
        answer = self.use("compare")
        self.assertTrue(answer["same"])
        self.assertEqual([is_file for _, _, is_file in answer["mapped"]], [True])

    def test_a_file_that_is_one_hole_is_none(self) -> None:
        self.file.unlink()
        with self.file.open("wb") as file:
            file.truncate(SIZE)
        answer = self.use("compare")
        self.assertTrue(answer["same"])
        self.assertNotIn(True, [is_file for _, _, is_file in answer["mapped"]])


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
