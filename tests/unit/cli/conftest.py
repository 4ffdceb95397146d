# SPDX-License-Identifier: Apache-2.0
"""Fixtures: answers by hand, a daemon on a fake host, and hypemanctl as a process of its own."""

from __future__ import annotations

import atexit
import contextlib
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

from tests.unit.cli import forkserver
from tests.unit.cli.canned import Canned
from tests.unit.cli.forkserver import ForkServer
from tests.unit.cli.live import Live, start

REPOSITORY = Path(__file__).parents[3]
DEADLINE = 60.0


@cache
def _fork_server() -> ForkServer:
    """One for all tests of this process."""
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(forkserver.start(_environment()))


def _environment() -> dict[str, str]:
    kept = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    return kept | {"PYTHONPATH": str(REPOSITORY), "TZ": "UTC", "LC_ALL": "C.UTF-8"}


@dataclass
class Cli:
    """Runs hypemanctl against a socket, as a script would: no terminal, no input."""

    socket: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def environ(self) -> dict[str, str]:
        """The environment of the process."""
        return _environment() | {"HYPEMAN_SOCKET": str(self.socket)} | self.environment

    def argv(self, *words: str) -> list[str]:
        """The command line of the process."""
        return [sys.executable, "-m", "hypemand.cli.main", *words]

    def run(self, *words: str, input: bytes | None = None) -> subprocess.CompletedProcess[str]:
        """Run it to its end. What is no UTF-8 shows as escapes."""
        if any(key.startswith(("PYTHON", "LC_")) for key in self.environment):
            done = subprocess.run(
                self.argv(*words),
                env=self.environ,
                input=input or b"",
                capture_output=True,
                timeout=DEADLINE,
                check=False,
            )
            result = done.returncode, done.stdout, done.stderr
        else:
            result = _fork_server().run(words, self.environ, input or b"", DEADLINE)
        status, *streams = result
        texts = [bytes(stream).decode("utf-8", "backslashreplace") for stream in streams]
        return subprocess.CompletedProcess(words, status, *texts)

    def run_on_terminal(self, *words: str) -> bytes:
        """Run it to its end with a terminal for its output; all that the terminal was sent."""
        outer, inner = pty.openpty()
        with open(outer, "rb", buffering=0) as terminal, open(os.devnull) as nothing:
            fds = (nothing.fileno(), inner, inner)
            with _fork_server().start(words, self.environ, fds) as wait:
                os.close(inner)
                seen = b""
                with contextlib.suppress(OSError):  # EIO: nobody has the other end any more
                    while data := terminal.read(65536):
                        seen += data
                wait(DEADLINE)
        return seen

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """Start it; the test ends it. Not buffered here: lines and the rest can be read in turn."""
        return subprocess.Popen(
            self.argv(*words),
            env=self.environ,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Canned]:
    """Answers by hand; none of VMs."""
    with Canned(tmp_path / "api.sock").serve() as canned:
        yield canned


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    """A daemon without VMs."""
    with start(tmp_path / "api.sock") as live:
        yield live


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """hypemanctl on the daemon's socket."""
    return Cli(tmp_path / "api.sock")
