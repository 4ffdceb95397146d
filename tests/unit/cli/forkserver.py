# SPDX-License-Identifier: Apache-2.0
"""hypemanctl as a process of its own, without the start of an interpreter for each: a server that has loaded
it already, and forks."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from io import BufferedReader, BufferedWriter, FileIO, TextIOWrapper
from pathlib import Path
from typing import NoReturn

import hypemand.cli

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
        """Start it with these as standard input, output and error; gives what waits for its status, and kills
        it when that has taken too long."""
        request = json.dumps([list(words), dict(environ), os.getcwd()]).encode()
        with socket.socket(socket.AF_UNIX) as link:
            link.connect(str(self._path))
            socket.send_fds(link, [len(request).to_bytes(4, "little")], list(fds))
            link.sendall(request)
            pid = int.from_bytes(_receive(link, 4), "little")

            def wait(timeout: float) -> int:
                link.settimeout(timeout)
                try:
                    return int.from_bytes(_receive(link, 4), "little", signed=True)
                except TimeoutError:
                    os.kill(pid, signal.SIGKILL)
                    raise

            yield wait


def _feed(fd: int, data: bytes) -> None:
    with contextlib.suppress(BrokenPipeError), open(fd, "wb", buffering=0) as pipe:
        view = memoryview(data)
        while view:
            view = view[pipe.write(view) :]


def _receive(link: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = link.recv(size - len(data))
        if not more:
            raise ConnectionError("the fork server has gone")
        data += more
    return data


@contextmanager
def start(environ: Mapping[str, str]) -> Iterator[ForkServer]:
    """One that serves as long as the block lasts."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "socket"
        argv = [sys.executable, "-m", "tests.unit.cli.forkserver", str(path)]
        process = subprocess.Popen(argv, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield ForkServer(path)
        finally:
            process.kill()
            process.communicate()


def _serve(path: str) -> NoReturn:
    for module in pkgutil.iter_modules(hypemand.cli.__path__, "hypemand.cli."):
        importlib.import_module(module.name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(64)
        print("ready", flush=True)
        # until whoever has started it has gone
        while listener in select.select([listener, sys.stdin], [], [])[0]:
            link, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _handle(link)
            link.close()
    sys.exit()


def _handle(link: socket.socket) -> NoReturn:
    head, fds, _, _ = socket.recv_fds(link, 4, 3)
    words, environ, folder = json.loads(_receive(link, int.from_bytes(head, "little")))
    pid = os.fork()
    if pid == 0:
        link.close()
        _become(fds, words, environ, folder)
    for fd in fds:
        os.close(fd)
    link.sendall(pid.to_bytes(4, "little"))
    _, status = os.waitpid(pid, 0)
    link.sendall(os.waitstatus_to_exitcode(status).to_bytes(4, "little", signed=True))
    os._exit(0)


def _become(fds: Sequence[int], words: list[str], environ: Mapping[str, str], folder: str) -> NoReturn:
    """hypemanctl, with these files as its standard ones."""
    status = 120
    try:
        os.environ.clear()
        os.environ.update(environ)
        time.tzset()
        os.chdir(folder)
        for number, fd in enumerate(fds):
            os.dup2(fd, number)
            os.close(fd)
        sys.stdin = TextIOWrapper(BufferedReader(FileIO(0)), encoding="utf-8")
        sys.stdout, sys.stderr = (
            TextIOWrapper(BufferedWriter(FileIO(fd, "w")), encoding="utf-8", line_buffering=fd == 2)
            for fd in (1, 2)
        )
        main = importlib.import_module("hypemand.cli.main").main
        status = int(main(words))
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
    finally:
        os._exit(status)


if __name__ == "__main__":
    _serve(sys.argv[1])
