# SPDX-License-Identifier: Apache-2.0
"""hypemanctl in a host, without the start of an interpreter for each command (see tests/ctlforks.py).

It is the installed program, in the host's namespaces, by the host's Python. Tests of the command line itself
start it as an administrator does (`as_installed`).
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from json import dumps
from pathlib import Path
from threading import Lock
from weakref import WeakKeyDictionary, WeakSet

from tests.host.command import ENVIRONMENT, CommandError, Result, read_lines
from tests.host.machine import TestHost

PROGRAM = "hypemanctl"
SOURCE = Path(__file__).parents[1] / "ctlforks.py"
INSTALLED = "usr/lib/python3/dist-packages/hypemand/cli/main.py"
START_DEADLINE = 60.0
REQUEST_BYTES = 1 << 20

# Of each host: the boot and the installed program that the last one that was started is of.
_started: WeakKeyDictionary[TestHost, tuple[int, str]] = WeakKeyDictionary()
_starting = Lock()
_as_installed: WeakSet[TestHost] = WeakSet()


@contextmanager
def as_installed(host: TestHost) -> Iterator[None]:
    """In this block commands are started by the program's own script, each in an interpreter of its own."""
    _as_installed.add(host)
    try:
        yield
    finally:
        _as_installed.remove(host)


def run_hypemanctl(
    host: TestHost,
    words: Sequence[str],
    *,
    check: bool = True,
    timeout: float = 120,
    input: bytes | None = None,
    env: Mapping[str, str] | None = None,
) -> Result:
    """Run it with these words, as `host.run(["hypemanctl", *words])` does."""
    argv = (PROGRAM, *words)
    if host in _as_installed or not (host.root / INSTALLED).exists():
        return host.run(argv, check=check, timeout=timeout, input=input, env=env)
    result = fork_hypemanctl(host, words, timeout=timeout, input=input, env=env)
    if check and not result.ok:
        raise CommandError(result.describe())
    return result


def fork_hypemanctl(
    host: TestHost,
    words: Sequence[str],
    *,
    timeout: float = 120,
    input: bytes | None = None,
    env: Mapping[str, str] | None = None,
) -> Result:
    """Run it by a fork of what has imported it. CommandError if it is not done in `timeout`."""
    with ExitStack() as stack:
        streams = [stack.enter_context(open(os.memfd_create(PROGRAM), "w+b", 0)) for _ in range(3)]
        streams[0].write(input or b"")
        streams[0].seek(0)
        status = _ask(host, words, {**ENVIRONMENT, **(env or {})}, [s.fileno() for s in streams], timeout)
        output, errors = (_read_all(stream.fileno()) for stream in streams[1:])
    code = -signal.SIGKILL if status is None else os.waitstatus_to_exitcode(status)
    result = Result((PROGRAM, *words), code, output, errors.decode(errors="replace"))
    if status is None:
        raise CommandError(f"not done after {timeout:g} s and killed: {result.describe()}")
    return result


def _find_socket(host: TestHost) -> str:
    """Where the host's process of this boot, and of the program that is installed now, listens."""
    program = (host.root / INSTALLED).stat()
    path = f"run/{PROGRAM}-{program.st_ino}-{program.st_mtime_ns}.sock"
    key = (host.leader, path)
    with _starting:
        if _started.get(host) != key:
            argv = ["/usr/bin/python3", "-c", SOURCE.read_text(), f"/{path}"]
            helper = host.start_helper(argv)
            assert helper.stdout is not None
            assert next(read_lines(helper.stdout, time.monotonic() + START_DEADLINE), None) == "ready"
            _started[host] = key
    return str(host.root / path)


def _ask(
    host: TestHost, words: Sequence[str], environment: Mapping[str, str], streams: list[int], timeout: float
) -> int | None:
    """Have the command run; gives its status, or None where it takes longer, which kills it."""
    path = _find_socket(host)
    host.last_used = time.time()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
        link.settimeout(timeout)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, REQUEST_BYTES)
        link.connect(path)
        request = dumps({"words": list(words), "environment": dict(environment), "folder": "/"}).encode()
        socket.send_fds(link, [request], streams)
        try:
            answer = link.recv(64)
        except TimeoutError:
            return None
    assert answer, f"what was to run {PROGRAM} has ended"
    return int(answer)


def _read_all(stream: int) -> bytes:
    return os.pread(stream, os.fstat(stream).st_size, 0)
