# SPDX-License-Identifier: Apache-2.0
"""exec -t and shell on a pseudo terminal: raw while the command has it, as before at the end."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import tempfile
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.conftest import DEADLINE, Cli
from tests.unit.cli.guest import FakeGuest


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[FakeGuest]:
    """A VM `web` that runs."""
    with FakeGuest(tmp_path / "api.sock").serve() as fake:
        yield fake


@dataclass
class Terminal:
    """hypemanctl on a terminal of which this is the other end."""

    fd: int
    inner: int
    process: subprocess.Popen[bytes]
    seen: bytes = b""

    def resize(self, rows: int, cols: int) -> None:
        """As a window does: the kernel signals the foreground process."""
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self.fd, keys)

    def expect(self, text: bytes) -> None:
        """Read until `text` has come."""
        end = time.monotonic() + DEADLINE
        while text not in self.seen:
            ready, _, _ = select.select([self.fd], [], [], max(end - time.monotonic(), 0))
            assert ready, f"{text!r} did not come: {self.seen!r}"
            self.seen += os.read(self.fd, 65536)

    def modes(self) -> list[Any]:
        return termios.tcgetattr(self.inner)


@contextmanager
def on_terminal(cli: Cli, *words: str) -> Iterator[Terminal]:
    """Run hypemanctl on a terminal of 30 lines of 100 columns that is its controlling one."""
    outer, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))

    process = subprocess.Popen(
        # as on any terminal: what nohup starts, also these tests, ignores hangups
        ["env", "--default-signal=HUP", "setsid", "--ctty", *cli.argv(*words)],
        env=cli.environ | {"TERM": "xterm-test"},
        stdin=inner,
        stdout=inner,
        stderr=inner,
    )
    try:
        yield Terminal(outer, inner, process)
    finally:
        process.kill()
        process.wait()
        os.close(outer)
        os.close(inner)


def test_the_command_gets_every_key_and_the_terminals_kind_and_size(guest: FakeGuest, cli: Cli) -> None:
    with on_terminal(cli, "exec", "-it", "web", "tty") as terminal:
        before = terminal.modes()
        terminal.expect(b"ready")
        assert terminal.modes() != before
        terminal.type(b"\x03\x04\x1ax")
        terminal.expect(b"<03><04><1a><78>")
        terminal.type(b"q")
        assert terminal.process.wait(DEADLINE) == 7
        assert terminal.modes() == before
    opening = guest.openings[0]
    assert (opening["tty"], opening["rows"], opening["cols"]) == (True, 30, 100)
    assert opening["env"] == {"TERM": "xterm-test"}
    assert guest.signals == []


def test_a_new_size_is_passed_on(guest: FakeGuest, cli: Cli) -> None:
    with on_terminal(cli, "exec", "-it", "web", "tty") as terminal:
        terminal.expect(b"ready")
        terminal.resize(50, 132)
        terminal.expect(b"50x132")
        terminal.type(b"q")
        assert terminal.process.wait(DEADLINE) == 7


@pytest.mark.parametrize("how", ["vanish", "terminate"])
def test_the_terminal_is_as_before_whatever_happens(guest: FakeGuest, cli: Cli, how: str) -> None:
    with on_terminal(cli, "exec", "-it", "web", "tty") as terminal:
        before = terminal.modes()
        terminal.expect(b"ready")
        assert terminal.modes() != before
        if how == "vanish":
            terminal.type(b"v")
            terminal.expect(b"was lost before the command exited\r\n")
            assert terminal.process.wait(DEADLINE) == 125
        else:
            terminal.process.send_signal(signal.SIGTERM)
            terminal.expect(b"signal 15")
            terminal.type(b"q")
            assert terminal.process.wait(DEADLINE) == 7
        assert terminal.modes() == before


def test_a_terminal_without_input_leaves_ours_alone(guest: FakeGuest, cli: Cli) -> None:
    with on_terminal(cli, "exec", "-t", "web", "tty") as terminal:
        before = terminal.modes()
        terminal.expect(b"ready")
        assert terminal.modes() == before
        terminal.type(b"\x03")
        terminal.expect(b"signal 2")


def test_without_a_terminal_t_and_i_do_not_go_together(guest: FakeGuest, cli: Cli) -> None:
    done = cli.run("exec", "-it", "web", "tty")
    assert done.returncode == 125
    assert "requires a terminal as standard input; leave out -t" in done.stderr
    assert guest.openings == []


def test_shell_is_on_a_terminal_where_we_are_on_one(guest: FakeGuest, cli: Cli) -> None:
    with on_terminal(cli, "shell", "web", "-u", "app", "-e", "A=1") as terminal:
        terminal.expect(b"ready")
        terminal.type(b"q")
        assert terminal.process.wait(DEADLINE) == 7
    opening = guest.openings[0]
    assert (opening["tty"], opening["user"], opening["env"]["A"]) == (True, "app", "1")
    assert opening["command"][:2] == ["/bin/sh", "-c"]
    done = cli.run("shell", "web", input=b"q")
    assert (done.returncode, guest.openings[1]["tty"]) == (7, False)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can read."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def run_login(folder: Path, passwd: str, *, uid: int = 0, cwd: str = "") -> list[str]:
    """What the login script does in a root that has these users: shell, its options, home, user, folder."""
    from hypemand.cli.execute import _LOGIN

    script = _LOGIN.replace("/etc/passwd", str(folder / "passwd"))
    (folder / "passwd").write_text(passwd)
    argv = ["setpriv", f"--reuid={uid}", "--clear-groups", "/bin/sh", "-c", script, "sh", cwd]
    environment = {"PATH": os.environ["PATH"], "HOME": "/nowhere"}
    done = subprocess.run(
        argv, env=environment, cwd="/", capture_output=True, text=True, timeout=DEADLINE, check=True,
        input='echo "$0"; echo "$SHELL"; echo "$HOME"; echo "$USER"; pwd',
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.parametrize("kind", ["/bin/sh", "/bin/bash", "/usr/sbin/nologin", "/not/there", ""])
def test_the_shell_is_that_of_the_user(open_folder: Path, kind: str) -> None:
    expected = kind if kind in ("/bin/sh", "/bin/bash") else "/bin/bash"
    passwd = f"root:x:0:0:root:/root:/bin/false\nweb:x:1234:1234::/var:{kind}\n"
    zeroth, shell, home, user, folder = run_login(open_folder, passwd, uid=1234)
    assert (shell, home, user, folder) == (expected, "/var", "web", "/var")
    assert zeroth == expected
    assert run_login(open_folder, passwd, uid=1234, cwd="/etc")[4] == "/"
    assert run_login(open_folder, "other:x:5:5::/var:/bin/sh\n", uid=1234)[1:3] == ["/bin/bash", "/nowhere"]


def test_the_opening_is_as_it_is_described(guest: FakeGuest, cli: Cli) -> None:
    from tests.openapi_check import Description

    with on_terminal(cli, "exec", "-it", "web", "tty") as terminal:
        terminal.expect(b"ready")
        terminal.type(b"q")
        terminal.process.wait(DEADLINE)
    Description().check_schema("ExecRequest", json.loads(json.dumps(guest.openings[0])))
