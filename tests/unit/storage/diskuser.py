# SPDX-License-Identifier: Apache-2.0
"""Programs that have a disk open: QEMU itself, and a process that holds locks as QEMU does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# what QEMU 7.2 and 10 hold of a disk that is only read, and of one that is written to
READS, WRITES = (100, 201), (100, 101, 201)
_HOLDER = """
import fcntl, os, struct, sys
fd = os.open(sys.argv[1], os.O_RDWR)
for byte in sys.argv[2:]:
    fcntl.fcntl(fd, 37, struct.pack("@hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, int(byte), 1, 0))
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def locked(path: Path, held: tuple[int, ...] = WRITES) -> Iterator[None]:
    """A process holds these bytes of the file."""
    argv = [sys.executable, "-I", "-c", _HOLDER, str(path), *map(str, held)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        try:
            yield
        finally:
            process.kill()


def qemu_argv(path: Path, *, readonly: bool) -> list[str]:
    """A VMM with the disk, as on a VM's command line, whose CPU does not run. QMP is its standard IO."""
    drive = f"if=none,id=disk,file={path},format=raw,readonly={'on' if readonly else 'off'}"
    return [
        "qemu-system-x86_64", "-M", "microvm,accel=tcg", "-nodefaults", "-display", "none", "-S",
        "-m", "32M", "-qmp", "stdio", "-drive", drive, "-device", "virtio-blk-device,drive=disk",
    ]  # fmt: skip


@contextmanager
def in_qemu(path: Path, *, readonly: bool = False) -> Iterator[None]:
    """QEMU has the disk open."""
    argv = qemu_argv(path, readonly=readonly)
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            # the greeting may come before the disks are opened, an answer does not
            process.stdin.write(b'{"execute":"qmp_capabilities"}')
            process.stdin.flush()
            assert b"QMP" in process.stdout.readline()
            assert b"return" in process.stdout.readline()
            yield
        finally:
            process.kill()
