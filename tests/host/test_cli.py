# SPDX-License-Identifier: Apache-2.0
"""hypemanctl on a real host: what administrators and scripts do with it, on terminals and off."""

from __future__ import annotations

import hashlib
import json
import os
import select
import subprocess
import time
import xml.etree.ElementTree
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from tests.host.command import CommandError
from tests.host.faults import BUSYBOX, SMALL, Vm, check_gone, ctl, define_vm, start_vm, strip_escapes
from tests.host.hypemanctl import as_installed, fork_hypemanctl
from tests.host.machine import TestHost

pytestmark = pytest.mark.one_release


@pytest.fixture(scope="module", autouse=True)
def installed(host: TestHost) -> Iterator[None]:
    """Here it is the command line itself that is tested."""
    with as_installed(host):
        yield


MEBIBYTE = bytes(range(256)) * 4096


@pytest.fixture(scope="module")
def web(host: TestHost) -> Iterator[Vm]:
    """A VM that runs; tests only look at it and run commands in it."""
    with define_vm(
        host, "web", cmd=["sh", "-c", "seq 20; exec sleep infinity"], tags={"team": "shop"}, env={"A": "b"}
    ) as vm:
        vm.ctl("start", "--wait")
        host.wait_until(lambda: len(vm.logs()) == 20)
        yield vm


def test_other_tests_have_the_same_without_the_start_of_an_interpreter(host: TestHost, web: Vm) -> None:
    script = 'cat; echo "$0" >&2; exit 9'
    for words, content, env in (
        (("exec", "-i", "web", "--", "sh", "-c", script, "words of it"), b"in\0\xff\n", {}),
        (("show", "-p", "definition", "--json", "web"), None, {}),
        (("show", "nothing"), None, {}),
        (("no-such-command",), None, {}),
        (("exec", "web", "--", "echo", "ä\n"), None, {"LC_ALL": "C"}),
        (("--help",), None, {"COLUMNS": "40"}),
    ):
        real = host.run(["hypemanctl", *words], check=False, input=content, env=env)
        forked = fork_hypemanctl(host, words, input=content, env=env)
        assert (forked.code, forked.raw) == (real.code, real.raw), words
        assert (forked.stderr, forked.argv) == (real.stderr, real.argv)
    with pytest.raises(CommandError, match=r"not done after 1 s and killed: hypemanctl exec web"):
        fork_hypemanctl(host, ["exec", "web", "--", "sleep", "4712"], timeout=1)
    host.wait_until(lambda: not web.exec("pgrep", "-x", "sleep 4712", check=False).ok, "it is killed")


# looking


def test_list_and_status_show_what_runs(host: TestHost, web: Vm) -> None:
    lines = ctl(host, "list").stdout.splitlines()
    assert " ".join(lines[0].split()) == "NAME STATE READY ADDRESS IMAGE MEMORY VCPUS RESTARTS EXIT NOTE"
    assert [line.split()[:2] for line in lines[1:]] == [["web", "Running"]]
    assert ctl(host, "list", "-q", "--state=running").stdout == "web\n"
    assert ctl(host, "list", "-q", "--state=stopped").stdout == ""
    status = web.ctl("status", "-n", "2")
    assert "● web - builtin:busybox" in status.stdout
    assert [line.split()[-1] for line in status.stdout.splitlines()[-2:]] == ["19", "20"]
    assert "\x1b" not in status.stdout


def test_show_and_every_json_document_agree(host: TestHost, web: Vm) -> None:
    shown = web.show()
    assert (shown["name"], shown["state"], shown["tags"]) == ("web", "Running", {"team": "shop"})
    assert web.ctl("show", "-p", "definition.memory", "--value").stdout == "128M\n"
    assert web.ctl("show", "-p", "id").stdout == f"id={shown['id']}\n"
    assert ctl(host, "show", shown["id"][:8], "-p", "name", "--value").stdout == "web\n"
    for words in (["list"], ["status", "web"], ["start", "web"]):
        (instance,) = json.loads(ctl(host, *words, "--json").stdout)
        assert instance["id"] == shown["id"]
    timeline = json.loads(web.ctl("analyze", "--json").stdout)
    assert timeline["boot"] == shown["boot_id"] != shown["invocation_id"]
    assert json.loads(web.ctl("wait", "--json").stdout)["state"] == "Running"
    assert [image["name"] for image in json.loads(ctl(host, "image", "list", "--json").stdout)] == [BUSYBOX]
    assert json.loads(ctl(host, "reload", "--json").stdout)["problems"] == []
    assert json.loads(ctl(host, "check", "--json").stdout)["problems"] == []
    versions = json.loads(ctl(host, "version", "--json").stdout)
    assert versions["hypemanctl"] == versions["hypemand"]
    assert versions["loop"]["slow_turns"] >= 0
    entries = [json.loads(line) for line in web.logs("--json", "-n", "3")]
    assert [entry["text"] for entry in entries] == ["18", "19", "20"]
    assert {entry["invocation_id"] for entry in entries} == {shown["invocation_id"]}


def test_logs_leave_markers_out_unless_asked(web: Vm) -> None:
    assert web.logs() == [str(number) for number in range(1, 21)]
    assert web.logs("-n", "1") == ["20"]
    assert web.logs("-n", "0") == []
    everything = web.logs("--all")
    assert [line.split()[0] for line in everything if "HYPEMAN-PROGRAM-START" in line] == [
        "HYPEMAN-PROGRAM-START"
    ]
    assert any("Initializing -> Running" in line for line in web.logs("--source=hypeman"))


def test_logs_are_followed_to_the_end_of_the_run(host: TestHost) -> None:
    with start_vm(
        host, "talker", "sh", "-c", "echo first; until [ -e /run/go ]; do sleep 0.1; done; echo last"
    ) as vm:
        vm.wait("Running")
        with host.popen(["hypemanctl", "logs", "-f", "talker"]) as follower:
            assert follower.stdout is not None
            assert follower.stdout.readline() == b"first\n"
            vm.exec("touch", "/run/go", check=False)
            assert follower.communicate(timeout=180) == (b"last\n", b"")
            assert follower.returncode == 0


def test_analyze_tells_and_draws_where_the_time_went(web: Vm) -> None:
    told = web.ctl("analyze").stdout
    for step in ("prepare", "VMM start", "kernel", "mounts", "agent", "program"):
        assert f" {step} " in told
    document = xml.etree.ElementTree.fromstring(  # noqa: S314 - our own
        web.host.run(["hypemanctl", "analyze", "plot", "web"]).stdout
    )
    assert document.tag.endswith("svg")
    assert "kernel" in "".join(document.itertext())


# exec


def test_exec_keeps_output_apart_and_passes_the_exit_code_on(host: TestHost, web: Vm) -> None:
    result = web.exec("sh", "-c", "echo out; echo err >&2; exit 3", check=False)
    assert (result.code, result.stdout, result.stderr) == (3, "out\n", "err\n")
    assert web.exec("nosuch", check=False).code == 127
    assert web.exec("/etc/passwd", check=False).code == 126
    assert web.exec("sh", "-c", "kill -KILL $$", check=False).code == 137
    words = ctl(host, "exec", "-e", "A=1", "-e", "B", "-w", "/tmp", "-u", "nobody", "web", "--",
                "sh", "-c", "echo $A $B $(pwd) $(id -un)", env={"B": "two"})  # fmt: skip
    assert words.stdout == "1 two /tmp nobody\n"
    late = ctl(host, "exec", "--timeout=500ms", "web", "--", "sleep", "60", check=False)
    assert late.code != 0
    host.wait_until(lambda: not web.exec("pgrep", "-x", "sleep 60", check=False).ok)


def test_exec_has_no_input_unless_asked_and_then_all_of_it(host: TestHost, web: Vm) -> None:
    assert ctl(host, "exec", "web", "--", "cat", input="unheard").stdout == ""
    assert ctl(host, "exec", "-i", "web", "--", "cat", input=MEBIBYTE).raw == MEBIBYTE
    digest = hashlib.sha256(MEBIBYTE).hexdigest()
    counted = ctl(host, "exec", "-i", "web", "--", "sh", "-c", "tee /dev/stderr | sha256sum", input=MEBIBYTE)
    assert counted.stdout.split()[0] == digest
    assert len(counted.stderr) > 0


def test_many_execs_at_once_do_not_mix(web: Vm) -> None:
    def echo(number: int) -> str:
        return web.exec("sh", "-c", f"for i in $(seq 50); do echo {number}; done; exit 0").stdout

    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(echo, range(12))) == [f"{number}\n" * 50 for number in range(12)]


# run


def test_run_is_as_if_the_program_ran_here(host: TestHost) -> None:
    script = "echo $GREETING; echo err >&2; exit 9"
    result = ctl(
        host,
        "run",
        "--rm",
        "--name=once",
        "-e",
        "GREETING=hello",
        *SMALL,
        BUSYBOX,
        "sh",
        "-c",
        script,
        check=False,
    )
    assert (result.code, result.stdout) == (9, "hello\nerr\n")
    check_gone(host, "once")


def test_run_without_rm_keeps_the_vm_and_detached_leaves_it_running(host: TestHost) -> None:
    assert ctl(host, "run", "--name=kept", *SMALL, BUSYBOX, "echo", "hi").stdout == "hi\n"
    try:
        assert ctl(host, "logs", "kept").stdout == "hi\n"
        assert ctl(host, "stop", "kept", "--result").ok
        assert ctl(host, "start", "kept").ok
    finally:
        ctl(host, "rm", "-f", "kept")
    name = ctl(host, "run", "-d", *SMALL, BUSYBOX, "sleep", "infinity").stdout.strip()
    try:
        assert ctl(host, "wait", name).ok
        document = json.loads(ctl(host, "stop", name, "--json").stdout)
        assert [instance["state"] for instance in document] == ["Stopped"]
    finally:
        ctl(host, "rm", name)
    check_gone(host, name)


class Terminal:
    """A command on a terminal inside a host, as script(1) makes one."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.seen = b""

    def type(self, text: bytes) -> None:
        """Press keys."""
        assert self._process.stdin is not None
        self._process.stdin.write(text)
        self._process.stdin.flush()

    def expect(self, text: bytes, deadline: float = 180) -> None:
        """Read until `text` was seen."""
        end = time.monotonic() + deadline
        while text not in self.seen:
            assert self._read(end - time.monotonic()), f"{text!r} did not come: {self.seen!r}"

    def end(self, deadline: float = 180) -> int:
        """Read to the end; the exit code."""
        end = time.monotonic() + deadline
        while self._read(end - time.monotonic()):
            pass
        return self._process.wait(max(0.1, end - time.monotonic()))

    def _read(self, timeout: float) -> bytes:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, timeout))
        more = os.read(self._process.stdout.fileno(), 65536) if ready else b""
        self.seen += more
        return more


@contextmanager
def on_terminal(host: TestHost, command: str) -> Iterator[Terminal]:
    """Run a command of the shell on a terminal."""
    with host.popen(["script", "-qec", command, "/dev/null"], env={"TERM": "xterm"}) as process:
        yield Terminal(process)


def test_an_interrupt_stops_the_program_gracefully(host: TestHost) -> None:
    script = "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.1; done"
    command = f'exec hypemanctl run --rm --name=held {" ".join(SMALL)} {BUSYBOX} sh -c "{script}"'
    with on_terminal(host, command) as terminal:
        terminal.expect(b"up\r\n")
        terminal.type(b"\x03")
        code = terminal.end()
    assert b"stopping held; interrupt again to kill it" in terminal.seen
    assert b"bye\r\n" in terminal.seen
    assert code == 5
    check_gone(host, "held")


def test_a_second_interrupt_kills(host: TestHost) -> None:
    script = "trap '' TERM; echo up; while :; do sleep 0.1; done"
    command = f'exec hypemanctl run --rm --name=held {" ".join(SMALL)} {BUSYBOX} sh -c "{script}"'
    with on_terminal(host, command) as terminal:
        terminal.expect(b"up\r\n")
        terminal.type(b"\x03")
        terminal.expect(b"stopping held")
        terminal.type(b"\x03")
        code = terminal.end()
    assert code == 125
    assert b"SIGKILL" in terminal.seen
    check_gone(host, "held")


def test_run_passes_input_to_its_end(host: TestHost) -> None:
    typed = b"".join(b"line %d\n" % number for number in range(2000))
    words = ("run", "-i", "--rm", "--name=piped", *SMALL, BUSYBOX, "sh", "-c", "cat; echo err >&2; exit 4")
    result = ctl(host, *words, input=typed, check=False)
    assert (result.raw, result.stderr, result.code) == (typed, "err\n", 4)
    check_gone(host, "piped")


def test_a_program_in_a_terminal_is_left_and_attached_to_again(host: TestHost) -> None:
    run = f"stty rows 33 cols 77; exec hypemanctl run -it --name=seat {' '.join(SMALL)} {BUSYBOX} sh"
    try:
        with on_terminal(host, run) as terminal:
            terminal.expect(b"# ")
            terminal.type(b"stty size; tty; echo $TERM $((6 * 7))\r")
            terminal.expect(b"33 77\r\n/dev/pts/0\r\nxterm 42\r\n")
            # who says so is what is interrupted: before that the shell itself would read the key
            terminal.type(b"sh -c 'echo $((6 * 8)); exec sleep 1000' || echo interrupted $?\r")
            terminal.expect(b"\r\n48\r\n")
            terminal.type(b"\x03")
            terminal.expect(b"^C\r\n~ # ")
            terminal.type(b"\x10\x11")
            assert terminal.end() == 0
            assert b"attach again: hypemanctl attach seat" in terminal.seen
        assert "xterm 42\r\n" in ctl(host, "logs", "seat").stdout
        with on_terminal(host, "stty rows 20 cols 50; exec hypemanctl attach seat") as terminal:
            terminal.type(b"stty size\r")
            terminal.expect(b"\r\n20 50\r\n")
            terminal.type(b"exit 5\r")
            assert terminal.end() == 5
        ctl(host, "wait", "--for", "Stopped", "seat")
        refused = ctl(host, "attach", "seat", check=False)
        assert (refused.code, "seat is Stopped" in refused.stderr) == (125, True)
    finally:
        ctl(host, "rm", "-f", "seat")
    check_gone(host, "seat")


def test_a_terminal_gets_colours_and_a_line_that_says_what_is_waited_for(host: TestHost, web: Vm) -> None:
    with on_terminal(
        host, "hypemanctl status web; hypemanctl restart --wait web; hypemanctl status web"
    ) as terminal:
        assert terminal.end() == 0
    assert b"\x1b[32mRunning\x1b[0m" in terminal.seen
    shown = strip_escapes(terminal.seen.decode())
    assert "● web - builtin:busybox" in shown
    assert "web: Initializing: " in shown
    with on_terminal(host, "NO_COLOR=1 hypemanctl status web") as plain:
        assert plain.end() == 0
    assert b"\x1b[3" not in plain.seen


# who may


def test_members_of_the_group_may_and_others_are_told_how(host: TestHost, web: Vm) -> None:
    host.run(["useradd", "--groups=hypemand", "member"])
    host.run(["useradd", "stranger"])
    try:
        assert (
            host.run(["runuser", "-u", "member", "--", "hypemanctl", "exec", "web", "--", "id", "-u"]).stdout
            == "0\n"
        )
        refused = host.run(["runuser", "-u", "stranger", "--", "hypemanctl", "list"], check=False)
        assert (refused.code, refused.stdout) == (13, "")
        assert "become root, or a member of the group hypemand" in refused.stderr
    finally:
        host.run(["userdel", "member"])
        host.run(["userdel", "stranger"])
