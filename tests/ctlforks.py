# SPDX-License-Identifier: Apache-2.0
"""hypemanctl as often as it is asked for, by a fork of a process that has imported it. What is left out is
the start of an interpreter, which is nine tenths of what most commands take. In a host, Python of its own
release runs it.

argv: the socket to listen on. A connection is one command: a JSON object with its words, its environment and
its folder, which comes with its standard streams; the answer is its status as os.waitpid gives it. When the
client hangs up before that, the command is killed with its group. Where standard input is a pipe, its end is
the end of all.
"""

import contextlib
import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import stat
import sys
import time
from io import BufferedReader, BufferedWriter, FileIO, TextIOWrapper

import hypemand.cli
from hypemand.cli.main import main

REQUEST_BYTES = 1 << 20


def run(words: list[str], environment: dict[str, str], folder: str, streams: list[int]) -> None:
    """Be the command; does not come back."""
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    # of what they are now: a terminal, or none
    sys.stdin = TextIOWrapper(BufferedReader(FileIO(0)), encoding="utf-8")
    sys.stdout, sys.stderr = (
        TextIOWrapper(BufferedWriter(FileIO(number, "w")), encoding="utf-8", line_buffering=number == 2)
        for number in (1, 2)
    )
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    os.chdir(folder)
    sys.argv = ["/usr/bin/hypemanctl", *words]
    os._exit(main())  # it has flushed what it has written


def serve(link: socket.socket) -> None:
    """Start the command of a connection and wait for its end."""
    request, streams, _flags, _address = socket.recv_fds(link, REQUEST_BYTES, 3)
    asked = json.loads(request)
    pid = os.fork()
    if pid == 0:
        link.close()
        run(asked["words"], asked["environment"], asked["folder"], streams)
    for stream in streams:
        os.close(stream)
    ended = os.pidfd_open(pid)
    ready, _, _ = select.select([ended, link.fileno()], [], [])
    if ended not in ready:
        for kill in (os.kill, os.killpg):
            with contextlib.suppress(ProcessLookupError):  # it may lead no group yet
                kill(pid, signal.SIGKILL)
    link.send(str(os.waitpid(pid, 0)[1]).encode())


def listen(path: str) -> None:
    """Serve connections, each in a process of its own."""
    for module in pkgutil.iter_modules(hypemand.cli.__path__, "hypemand.cli."):
        importlib.import_module(module.name)
    importlib.import_module("websocket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(path)
        server.listen(64)
        gc.collect()
        gc.freeze()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for what serves
        print("ready", flush=True)
        watched = [0] if stat.S_ISFIFO(os.fstat(0).st_mode) else []
        while 0 not in select.select([server.fileno(), *watched], [], [])[0]:
            link, _ = server.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                server.close()
                with contextlib.suppress(BrokenPipeError):  # it hung up, and its command is killed
                    serve(link)
                os._exit(0)
            link.close()


if __name__ == "__main__":
    listen(sys.argv[1])
