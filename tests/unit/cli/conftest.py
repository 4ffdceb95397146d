# SPDX-License-Identifier: Apache-2.0
"""Fixtures: a daemon that behaves, and hypemanctl as a process of its own."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.unit.cli.daemon import FakeDaemon

REPOSITORY = Path(__file__).parents[3]
DEADLINE = 20.0


@dataclass
class Cli:
    """Runs hypemanctl against a socket, as a script would: no terminal, no input."""

    socket: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def environ(self) -> dict[str, str]:
        """The environment of the process."""
        kept = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
        ours = {
            "PYTHONPATH": str(REPOSITORY),
            "HYPEMAN_SOCKET": str(self.socket),
            "TZ": "UTC",
            "LC_ALL": "C.UTF-8",
        }
        return kept | ours | self.environment

    def argv(self, *words: str) -> list[str]:
        """The command line of the process."""
        return [sys.executable, "-m", "hypemand.cli.main", *words]

    def run(self, *words: str, input: bytes | None = None) -> subprocess.CompletedProcess[str]:
        """Run it to its end. What is no UTF-8 shows as escapes."""
        done = subprocess.run(
            self.argv(*words),
            env=self.environ,
            input=b"" if input is None else input,
            capture_output=True,
            timeout=DEADLINE,
            check=False,
        )
        texts = [stream.decode("utf-8", "backslashreplace") for stream in (done.stdout, done.stderr)]
        return subprocess.CompletedProcess(done.args, done.returncode, *texts)

    def run_on_terminal(self, *words: str) -> bytes:
        """Run it to its end with a terminal for its output; all that the terminal was sent."""
        outer, inner = pty.openpty()
        with open(outer, "rb", buffering=0) as terminal:
            process = subprocess.Popen(
                self.argv(*words), env=self.environ, stdin=subprocess.DEVNULL, stdout=inner, stderr=inner
            )
            os.close(inner)
            seen = b""
            with contextlib.suppress(OSError):  # EIO: nobody has the other end any more
                while data := terminal.read(65536):
                    seen += data
            process.wait(DEADLINE)
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
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    """A daemon without VMs."""
    with FakeDaemon(tmp_path / "api.sock").serve() as fake:
        yield fake


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """hypemanctl on the daemon's socket."""
    return Cli(tmp_path / "api.sock")
