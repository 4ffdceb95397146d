# SPDX-License-Identifier: Apache-2.0
"""hypemanctl as a process of its own, without the start of an interpreter for each: see tests/ctlforks.py."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

SERVER = Path(__file__).parents[2] / "ctlforks.py"
_MAX_REQUEST = 1024 * 1024


class ForkServer:
    """Runs hypemanctl. Its environment is of the interpreter's start: what the interpreter itself heeds (the
    locale, PYTHON…) has to be given to it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def run(
        self, words: Sequence[str], environ: Mapping[str, str], input: bytes, timeout: float
    ) -> tuple[int, bytes, bytes]:
        """Run it to its end: status, standard output and error."""
        with ExitStack() as stack:
            output, errors = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(2))
            reader, writer = os.pipe()
            feeding = threading.Thread(target=_feed, args=(writer, input))
            feeding.start()
            try:
                with self.start(words, environ, (reader, output.fileno(), errors.fileno())) as wait:
                    os.close(reader)
                    status = wait(timeout)
            finally:
                feeding.join()
            output.seek(0)
            errors.seek(0)
            return status, output.read(), errors.read()

    @contextmanager
    def start(
        self, words: Sequence[str], environ: Mapping[str, str], fds: Sequence[int]
    ) -> Iterator[Callable[[float], int]]:
        """Start it with these as standard input, output and error; gives what waits for its status, with a
        TimeoutError when that takes too long. It is killed at the end of the block."""
        request = {"words": list(words), "environment": dict(environ), "folder": os.getcwd()}
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MAX_REQUEST)
            link.connect(str(self._path))
            socket.send_fds(link, [json.dumps(request).encode()], list(fds))

            def wait(timeout: float) -> int:
                link.settimeout(timeout)
                answer = link.recv(64)
                if not answer:
                    raise ConnectionError("the fork server has gone")
                return os.waitstatus_to_exitcode(int(answer))

            yield wait


def _feed(fd: int, data: bytes) -> None:
    with contextlib.suppress(BrokenPipeError), open(fd, "wb", buffering=0) as pipe:
        view = memoryview(data)
        while view:
            view = view[pipe.write(view) :]


@contextmanager
def start(environ: Mapping[str, str]) -> Iterator[ForkServer]:
    """One that serves as long as the block lasts."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "socket"
        argv = [sys.executable, str(SERVER), str(path)]
        process = subprocess.Popen(argv, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield ForkServer(path)
        finally:
            process.kill()
            process.communicate()
