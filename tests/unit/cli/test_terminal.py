# SPDX-License-Identifier: Apache-2.0
"""What is different on a terminal, seen on a real one."""

from __future__ import annotations

import os
import pty
import socket
import subprocess
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hypemand.cli.pull import describe_pull
from hypemand.cli.terminal import LiveLine
from hypemand.model.answers.image import Image
from hypemand.model.images import Progress, PullStatus
from hypemand.model.state import State
from tests.unit.cli.canned import Canned, Events, make_instance
from tests.unit.cli.conftest import DEADLINE, Cli
from tests.unit.cli.live import Live

CLEAR = "\r\x1b[K"


def run_on_terminal(
    cli: Cli, *words: str, until: str = "", then: Callable[[], object] = lambda: None
) -> tuple[str, int]:
    """Run with standard output and error on a terminal; all that it showed, and the exit status.

    Once the terminal shows `until`, `then` is called.
    """
    leader, follower = pty.openpty()
    environ = cli.environ | {"TERM": "xterm", "COLUMNS": "80"}
    process = subprocess.Popen(
        cli.argv(*words), env=environ, stdin=follower, stdout=follower, stderr=follower
    )
    os.close(follower)
    shown, is_done = "", False
    try:
        while block := os.read(leader, 65536):
            shown += block.decode()
            if not is_done and until in shown:
                is_done = True
                then()
    except OSError:
        pass  # the terminal has nobody at its other side any more
    finally:
        os.close(leader)
    return shown, process.wait(DEADLINE)


def test_colours_only_on_a_terminal(daemon: Canned, cli: Cli) -> None:
    daemon.add("web")
    assert "\x1b[32mRunning" in run_on_terminal(cli, "list")[0]
    assert "\x1b" not in cli.run("list").stdout


def test_no_color_is_honoured(daemon: Canned, cli: Cli) -> None:
    daemon.add("web")
    cli.environment["NO_COLOR"] = "1"
    assert "\x1b" not in run_on_terminal(cli, "list")[0]


def test_waiting_shows_what_it_waits_for_and_clears_it(daemon: Canned, cli: Cli) -> None:
    script = daemon.add("web", "Initializing", status_text="Initializing: kernel up \x1b[2J")
    line = f"{CLEAR}web: Initializing: kernel up \\x1b[2J ("
    shown_line = threading.Event()

    def then() -> dict[str, Any]:
        assert shown_line.wait(DEADLINE)
        return make_instance("web")

    daemon.answers["GET /instances/web/watch"] = Events((script.instance, then))
    shown, status = run_on_terminal(cli, "wait", "web", until=line, then=shown_line.set)
    assert status == 0
    assert line in shown
    assert shown.endswith(CLEAR)


def test_a_stop_shows_what_the_vm_does_meanwhile(live: Live, cli: Cli) -> None:
    live.put("web", State.RUNNING)
    live.host.guest().heeds = False
    vmm = live.host.vmm()
    line = "web: Shutdown: "
    shown, status = run_on_terminal(cli, "stop", "web", until=line, then=lambda: live.call(vmm.power_off))
    assert status == 0
    assert line in shown
    assert shown.endswith(CLEAR)


def test_off_a_terminal_waiting_shows_nothing(live: Live, cli: Cli) -> None:
    live.put("web", State.INITIALIZING)
    done = cli.run("wait", "web", "--timeout", "300ms")
    text = live.host.vm().view().status_text
    assert done.stderr == f"hypemanctl: web was not Running within 0.3 s; it is {text}\n"


def test_an_empty_list_says_so_to_people_only(daemon: Canned, cli: Cli) -> None:
    assert run_on_terminal(cli, "list")[0] == "No VMs.\r\n"
    assert cli.run("list").stdout == ""


def test_an_interrupt_ends_a_wait_quietly(live: Live, cli: Cli) -> None:
    live.put("web", State.INITIALIZING)
    process = cli.start("wait", "web")
    live.until_true(lambda: live.host.watchers("web") > 0)
    process.send_signal(2)
    output, errors = process.communicate(timeout=DEADLINE)
    assert (output, errors, process.returncode) == (b"", b"", 130)


def test_a_pull_shows_bytes_and_layers() -> None:
    progress = Progress(bytes=512 * 1024, total_bytes=2 * 1024 * 1024, layers=1, total_layers=3)
    image = Image("app", status=PullStatus.PULLING, progress=progress)
    assert describe_pull(image) == f"[{'######':.<24}]  25%  512K of 2M  1 of 3 layers  app"
    assert describe_pull(replace(image, status=PullStatus.PENDING)) == "asking for app"
    assert describe_pull(replace(image, status=PullStatus.CONVERTING)) == "unpacking app"
    assert describe_pull(replace(image, progress=None)) == "pulling app"


def test_a_unit_that_may_is_told_what_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        with LiveLine("starting") as line:
            assert line.is_active
            line.update("web: pulling\x1b app")
            assert manager.recv(100) == b"STATUS=web: pulling\\x1b app"
