# SPDX-License-Identifier: Apache-2.0
"""The one way in which hypemand runs another program.

A command is an argv list. It gets a stated environment, /dev/null as standard input unless there is input,
a session and process group of its own, and a deadline at whose end the whole group is killed. Output goes
to unlinked files, not pipes: neither a chatty child nor a grandchild that keeps a descriptor can make the
wait longer than the deadline.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import IO

from hypemand.errors import HostNotReady, HypemandError
from hypemand.workers import Lent, Pool, run_in

ENVIRONMENT: Mapping[str, str] = {
    "LC_ALL": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
}
STDERR_LINES = 12
STDERR_BYTES = 16 * 1024
STDOUT_BYTES = 16 * 1024 * 1024
# After SIGKILL only a task stuck in the kernel stays; waiting longer would not help it.
KILL_GRACE = 5.0


@dataclass(frozen=True, slots=True)
class Completed:
    """What a command that was run to its end gave. `stderr` is its tail, at most STDERR_BYTES."""

    argv: tuple[str, ...]
    code: int
    stdout: bytes
    stderr: str
    seconds: float


class CommandFailed(HypemandError):
    """A command ended with a status that the caller did not expect (negative: killed by that signal)."""

    code = "command_failed"

    def __init__(self, result: Completed) -> None:
        end = f"exit status {result.code}" if result.code >= 0 else f"killed by signal {-result.code}"
        super().__init__(_describe(f"command failed ({end})", result))
        self.result = result


def is_disk_full(error: OSError | CommandFailed) -> bool:
    """Is a full file system, or a quota, the reason? It is recognized by the command's words (LC_ALL is
    set)."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    told = error.result.stderr.lower()
    return "no space left on device" in told or "disk quota exceeded" in told


class CommandTimedOut(HypemandError):
    """A command did not end before its deadline; it and its process group were killed."""

    code = "timed_out"
    status = 504

    def __init__(self, result: Completed, timeout: float) -> None:
        super().__init__(_describe(f"command killed, it took more than {timeout:g} s", result))
        self.result = result


class CommandMissing(HostNotReady):
    """The program is not installed."""

    def __init__(self, program: str, reason: str) -> None:
        super().__init__(f"{program} cannot be run: {reason}", hint=f"install the package that has {program}")


def _describe(what: str, result: Completed) -> str:
    lines = [line for line in result.stderr.splitlines() if line.strip()][-STDERR_LINES:]
    tail = "".join(f"\n  {line}" for line in lines)
    return f"{what}: {shlex.join(result.argv)}{tail}"


@dataclass(frozen=True, slots=True)
class _Streams:
    """The three files of a child."""

    stdin: IO[bytes] | int
    stdout: IO[bytes]
    stderr: IO[bytes]

    def complete(self, argv: Sequence[str], code: int, started: float) -> Completed:
        """Read the outputs back. A standard output of more than STDOUT_BYTES is an error."""
        if self.stdout.seek(0, os.SEEK_END) > STDOUT_BYTES:
            raise HypemandError(f"command wrote more than {STDOUT_BYTES} bytes: {shlex.join(argv)}")
        self.stdout.seek(0)
        self.stderr.seek(max(0, self.stderr.seek(0, os.SEEK_END) - STDERR_BYTES))
        return Completed(
            argv=tuple(argv),
            code=code,
            stdout=self.stdout.read(),
            stderr=self.stderr.read().decode(errors="replace"),
            seconds=time.monotonic() - started,
        )


@cache
def _open_null() -> int:
    """Once, for ever: on control groups v1 systemd takes a unit's devices away for a moment whenever it sets
    them anew, which it does as other units come and go."""
    return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)


@contextmanager
def _open_streams(data: bytes | None) -> Iterator[_Streams]:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        if data is None:
            yield _Streams(_open_null(), out, err)
            return
        with tempfile.TemporaryFile() as stdin:
            stdin.write(data)
            stdin.seek(0)
            yield _Streams(stdin, out, err)


@asynccontextmanager
async def _open_streams_beside(data: bytes | None) -> AsyncIterator[tuple[_Streams, Lent[ExitStack]]]:
    """`_open_streams` for the event loop: the files are on a disk, so threads open, read and close them. What
    is read of them is work on what is lent."""
    lent = Lent(Pool.TOOLS, ExitStack(), ExitStack.close)
    try:
        yield await lent.run(lambda stack: stack.enter_context(_open_streams(data))), lent
    finally:
        lent.close()


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError):  # it may end by itself in this moment
        os.killpg(pid, signal.SIGKILL)


def run(
    argv: Sequence[str],
    *,
    timeout: float,
    env: Mapping[str, str] | None = None,
    input: bytes | None = None,
    cwd: str | os.PathLike[str] | None = None,
    ok: Sequence[int] = (0,),
    through: tuple[int, int] | None = None,
) -> Completed:
    """Run `argv` to its end, at most `timeout` seconds. `env` adds to ENVIRONMENT; `ok` are good statuses;
    `through`: descriptors of the files that it reads and writes as a filter, in place of `input` and output.

    Raises CommandMissing, CommandFailed, CommandTimedOut.
    """
    started = time.monotonic()
    with _open_streams(input) as files:
        try:
            child = subprocess.Popen(
                list(argv),
                stdin=files.stdin if through is None else through[0],
                stdout=files.stdout if through is None else through[1],
                stderr=files.stderr,
                env={**ENVIRONMENT, **(env or {})},
                cwd=cwd,
                start_new_session=True,
            )
        except OSError as error:
            raise _derive_start_error(argv, cwd, error) from error
        try:
            code = child.wait(timeout)
        except subprocess.TimeoutExpired:
            _kill_group(child.pid)
            child.wait(KILL_GRACE)
            raise CommandTimedOut(files.complete(argv, -signal.SIGKILL, started), timeout) from None
        except BaseException:
            _kill_group(child.pid)
            child.wait(KILL_GRACE)
            raise
        return _derive_result(files.complete(argv, code, started), ok)


async def run_async(
    argv: Sequence[str],
    *,
    timeout: float,
    env: Mapping[str, str] | None = None,
    input: bytes | None = None,
    cwd: str | os.PathLike[str] | None = None,
    ok: Sequence[int] = (0,),
) -> Completed:
    """`run` for the event loop. A cancelled call kills the command and its group before it returns."""
    started = time.monotonic()
    async with _open_streams_beside(input) as (files, lent):
        try:
            child = await asyncio.create_subprocess_exec(
                *argv,
                stdin=files.stdin,
                stdout=files.stdout,
                stderr=files.stderr,
                env={**ENVIRONMENT, **(env or {})},
                cwd=cwd,
                start_new_session=True,
            )
        except OSError as error:
            raise await run_in(Pool.TOOLS, _derive_start_error, argv, cwd, error) from error
        try:
            code = await asyncio.wait_for(child.wait(), timeout)
        except TimeoutError:
            _kill_group(child.pid)
            await asyncio.wait_for(child.wait(), KILL_GRACE)
            done = await lent.run(lambda _: files.complete(argv, -signal.SIGKILL, started))
            raise CommandTimedOut(done, timeout) from None
        except BaseException:
            _kill_group(child.pid)
            await asyncio.wait_for(child.wait(), KILL_GRACE)
            raise
        return _derive_result(await lent.run(lambda _: files.complete(argv, code, started)), ok)


def _derive_start_error(
    argv: Sequence[str], cwd: str | os.PathLike[str] | None, error: OSError
) -> HypemandError:
    if cwd is not None and not os.path.isdir(cwd):
        return HypemandError(f"no such folder to run {argv[0]} in: {os.fspath(cwd)}")
    return CommandMissing(argv[0], error.strerror or str(error))


def _derive_result(result: Completed, ok: Sequence[int]) -> Completed:
    if result.code not in ok:
        raise CommandFailed(result)
    return result
