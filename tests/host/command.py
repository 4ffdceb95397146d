# SPDX-License-Identifier: Apache-2.0
"""Commands with a deadline: argv only, a stated environment, failures that can be pasted into a shell."""

import os
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ENVIRONMENT: Mapping[str, str] = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
    "DEBIAN_FRONTEND": "noninteractive",
    "PYTHONDONTWRITEBYTECODE": "1",
}


@dataclass(frozen=True)
class Result:
    """What a command left: its output as text (bytes that are no UTF-8 replaced) and its exit code.

    A code below zero is the number of the signal that ended it.
    """

    argv: tuple[str, ...]
    code: int
    stdout: str
    stderr: str

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
    result, stdout = run_for_bytes(argv, shown=shown, input=input, env=env, timeout=timeout)
    full = Result(result.argv, result.code, stdout.decode(errors="replace"), result.stderr)
    if check and not full.ok:
        raise CommandError(full.describe())
    return full


def run_for_bytes(
    argv: Sequence[str],
    *,
    shown: Sequence[str] | None = None,
    input: bytes | None = None,
    env: Mapping[str, str] = ENVIRONMENT,
    timeout: float,
) -> tuple[Result, bytes]:
    """As run_command without the check, stdout given back as bytes beside a result whose stdout is empty."""
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(env),
        start_new_session=True,
    )
    named = tuple(shown if shown is not None else argv)
    try:
        stdout, stderr = process.communicate(input, timeout)
    except subprocess.TimeoutExpired:
        kill_group(process)
        stdout, stderr = process.communicate()
        late = Result(named, process.returncode, stdout.decode(errors="replace"), stderr.decode(errors="replace"))
        raise CommandError(f"not done after {timeout:g} s and killed: {late.describe()}") from None
    except BaseException:
        kill_group(process)
        process.communicate()
        raise
    return Result(named, process.returncode, "", stderr.decode(errors="replace")), stdout


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that leads its own session, and all of its group; none left is no error."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
