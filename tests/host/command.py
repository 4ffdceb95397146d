# SPDX-License-Identifier: Apache-2.0
"""Commands with a deadline: argv only, a stated environment, failures that can be pasted into a shell.

Apart from the program's own way to run commands, so that the tests do not stand on what they test.
"""

import contextlib
import os
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

ENVIRONMENT: Mapping[str, str] = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
    "DEBIAN_FRONTEND": "noninteractive",
    "PYTHONDONTWRITEBYTECODE": "1",
}
# After SIGKILL only what left the process group can keep the pipes open.
KILL_GRACE = 5.0


@dataclass(frozen=True)
class Result:
    """What a command left; a code below zero is the number of the signal that ended it."""

    argv: tuple[str, ...]
    code: int
    raw: bytes
    stderr: str

    @property
    def stdout(self) -> str:
        """The output as text; bytes that are no UTF-8 are replaced."""
        return self.raw.decode(errors="replace")

    @property
    def ok(self) -> bool:
        return self.code == 0

    def describe(self) -> str:
        text = f"{shlex.join(self.argv)}: exit code {self.code}"
        for name, output in (("stdout", self.stdout), ("stderr", self.stderr)):
            if output.strip():
                text += f"\n--- {name} ---\n{output[-8000:].rstrip()}"
        return text


class CommandError(AssertionError):
    """A command that had to succeed failed, or did not end within its deadline."""


def run_command(
    argv: Sequence[str],
    *,
    shown: Sequence[str] | None = None,
    input: bytes | None = None,
    env: Mapping[str, str] = ENVIRONMENT,
    timeout: float,
    check: bool = True,
) -> Result:
    """Run `argv` with stdin /dev/null or `input`; after `timeout` seconds its whole process group is killed.

    `shown` replaces `argv` in results and errors, where a wrapper would hide what was meant.
    """
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(env),
        start_new_session=True,
    )
    with process:
        try:
            stdout, stderr = process.communicate(input, timeout)
        except BaseException as error:
            kill_group(process)
            stdout, stderr = process.communicate(timeout=KILL_GRACE)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            late = _derive_result(shown or argv, process.returncode, stdout, stderr)
            raise CommandError(f"not done after {timeout:g} s and killed: {late.describe()}") from None
    result = _derive_result(shown or argv, process.returncode, stdout, stderr)
    if check and not result.ok:
        raise CommandError(result.describe())
    return result


def read_lines(pipe: IO[bytes], deadline: float) -> Iterator[str]:
    """Lines of a pipe as they come, until its other end is closed.

    TimeoutError if there is neither a line nor the end by `deadline` (of `time.monotonic()`).
    """
    rest = b""
    while True:
        ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError
        data = os.read(pipe.fileno(), 65536)
        *lines, rest = (rest + data).split(b"\n")
        if not data and rest:
            lines.append(rest)
        yield from (line.decode(errors="replace") for line in lines)
        if not data:
            return


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that leads its own session, and all of its group; none left is no error."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _derive_result(argv: Sequence[str], code: int, stdout: bytes, stderr: bytes) -> Result:
    return Result(tuple(argv), code, stdout, stderr.decode(errors="replace"))
