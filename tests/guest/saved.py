# SPDX-License-Identifier: Apache-2.0
"""Saves guests and goes on with them, as hypemand/vmm does: QEMU writes to a socket, and the intake takes it
apart."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

INTAKE = os.environ.get("HYPEMAN_INTAKE", "")
BLOCK = "microvm.ram"
DEADLINE = 180.0


class Qmp:
    """The control socket of a QEMU, which may be about to listen."""

    def __init__(self, path: Path) -> None:
        until = time.monotonic() + DEADLINE
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(DEADLINE)
        while self._socket.connect_ex(str(path)) != 0:
            assert time.monotonic() < until
            time.sleep(0.01)
        self._lines = self._socket.makefile("r")
        self._lines.readline()
        self.execute("qmp_capabilities")

    def execute(self, command: str, *, fd: int | None = None, **arguments: object) -> Any:
        order = json.dumps({"execute": command, "arguments": arguments}).encode()
        socket.send_fds(self._socket, [order], [] if fd is None else [fd])
        while True:
            answer = json.loads(self._lines.readline())
            assert "error" not in answer, answer
            if "return" in answer:
                return answer["return"]

    def await_status(self, *, not_in: str) -> str:
        """The run state, once it is another one."""
        until = time.monotonic() + DEADLINE
        while (status := self.execute("query-status")["status"]) == not_in:
            assert time.monotonic() < until
            time.sleep(0.01)
        return str(status)

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


@contextmanager
def control(path: Path) -> Iterator[Qmp]:
    qmp = Qmp(path)
    try:
        yield qmp
    finally:
        qmp.close()


def save(qmp: Qmp, folder: Path, size: int) -> tuple[Path, Path]:
    """The files `memory` and `state` of a guest with `size` bytes of memory."""
    paths = folder / "memory", folder / "state"
    ours, theirs = socket.socketpair()
    with contextlib.ExitStack() as stack:
        stack.enter_context(ours)
        fds = tuple(stack.enter_context(path.open("wb")).fileno() for path in paths)
        argv = [INTAKE, str(os.getuid()), BLOCK, str(size), str(2**24), *map(str, fds)]
        intake = subprocess.Popen(argv, stdin=ours.fileno(), pass_fds=fds)
        stack.callback(intake.wait)
        stack.callback(intake.kill)
        qmp.execute("migrate-set-parameters", **{"max-bandwidth": 2**60})
        qmp.execute("getfd", fd=theirs.fileno(), fdname="save")
        theirs.close()
        qmp.execute("migrate", uri="fd:save")
        assert intake.wait(DEADLINE) == 0
        until = time.monotonic() + DEADLINE
        while (found := qmp.execute("query-migrate")["status"]) != "completed":
            assert found in ("active", "device"), found
            assert time.monotonic() < until
            time.sleep(0.01)
    return paths


def restore_arguments(memory: Path, state: int) -> list[str]:
    """What QEMU goes on from the files with: `state` is a descriptor."""
    backend = f"memory-backend-file,id={BLOCK},x-use-canonical-path-for-ramblock-id=off"
    mapped = f"{backend},mem-path={memory},share=off,size={memory.stat().st_size}"
    options = ["-object", mapped, "-machine", f"memory-backend={BLOCK}"]
    return [*options, "-incoming", f"fd:{state}", "-S"]
