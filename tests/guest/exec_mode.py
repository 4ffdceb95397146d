# SPDX-License-Identifier: Apache-2.0
"""Exec mode as PID 1 of a namespace, built with sanitizers.

Usage: exec_mode.py INIT FAKE-AGENT [unittest …]
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest
import zlib
from collections.abc import Sequence
from pathlib import Path

from frames import DEADLINE_S, format_records

INIT = sys.argv.pop(1)
FAKE_AGENT = sys.argv.pop(1)
BOOT = "0123456789abcdef0123456789abcdef"
ZOMBIES = 'for s in /proc/[0-9]*/stat; do read -r l <$s; case "$l" in *") Z "*) echo zombie;; esac; done'


def read_link(link: Path) -> str:
    """Its target; empty if it has none, or none any more."""
    try:
        return str(link.readlink())
    except OSError:
        return ""


def find_children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Init:
    """A running init; its console is its stdout, its stop port its stdin."""

    def __init__(self, folder: Path, agent: str | None, records: list[tuple[str, str]]) -> None:
        body = format_records(records)
        config = folder / "config"
        config.write_bytes(struct.pack("<8sII", b"HYPECFG1", len(body), zlib.crc32(body)) + body)
        binary = folder / (agent or "missing")
        if agent is not None and not binary.exists():
            shutil.copy(FAKE_AGENT, binary)
        # what init writes to /run is not for this machine
        private = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c"]
        self.process = subprocess.Popen(
            [*private, 'mount -t tmpfs tmpfs /run && exec "$@"', "sh", INIT, config, binary],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"ASAN_OPTIONS": "detect_leaks=0"},
        )
        self.console = ""

    def wait_for(self, text: str) -> None:
        assert self.process.stdout is not None
        while text not in self.console:
            got = os.read(self.process.stdout.fileno(), 65536)
            if not got:
                raise AssertionError(f"{text!r} does not come: {self.console}")
            self.console += got.decode()

    def order(self, line: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line)
        self.process.stdin.flush()

    def report(self) -> tuple[int, str]:
        rest, errors = self.process.communicate(timeout=DEADLINE_S)
        self.console += rest.decode()
        assert (self.process.returncode, errors) == (0, b""), (self.process.returncode, errors)
        reports = re.findall(rf'HYPEMAN-EXIT code=(\d+) message="(.*)" boot={BOOT}\n', self.console)
        assert len(reports) == 1, self.console
        return int(reports[0][0]), reports[0][1]


class ExecMode(unittest.TestCase):
    def setUp(self) -> None:
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = Path(temporary.name)

    def init(
        self,
        *argv: str,
        agent: str | None = "byte-stay",
        want_agent: str = "1",
        headers: str = "0",
        environment: Sequence[str] = (),
        limits: Sequence[str] = (),
        **records: str,
    ) -> Init:
        fixed = [
            ("version", "1"),
            ("name", "vm1"),
            ("mode", "exec"),
            ("agent", want_agent),
            ("headers", headers),
        ]
        arguments = [("arg", argument) for argument in argv]
        variables = [("env", variable) for variable in environment]
        others = [*(("ulimit", limit) for limit in limits), *records.items()]
        init = Init(self.folder, agent, fixed + arguments + variables + others)
        self.addCleanup(init.process.communicate)
        self.addCleanup(init.process.kill)
        return init

    def expect_no_program(self, init: Init) -> None:
        self.assertNotIn("PROGRAM-START", init.console)
        self.assertNotIn("ran", init.console)

    def test_gate(self) -> None:
        begun = "the guest agent is not ready: "
        ended = "; the program was not started"
        for agent, words in (
            ("eof", "exited with code 3"),
            ("crash", "killed by signal 9 (KILL)"),
            ("close-stay", "it closed its ready pipe without a byte"),
            (None, "cannot open its binary: No such file or directory"),
        ):
            with self.subTest(agent=agent):
                init = self.init("echo", "ran", agent=agent)
                self.assertEqual(init.report(), (125, begun + words + ended))
                self.expect_no_program(init)
                self.assertNotIn("AGENT-READY", init.console)

    def test_agent_that_cannot_be_executed(self) -> None:
        (self.folder / "text").write_text("no program")
        init = self.init("echo", "ran", agent="text")
        code, message = init.report()
        self.assertEqual(code, 125)
        self.assertIn("cannot execute hypeman-agent: Permission denied", message)
        self.expect_no_program(init)

    def test_agent_dead_after_its_byte_does_no_harm(self) -> None:
        for agent in ("byte-exit", "byte-crash", "byte-unadmitted"):
            with self.subTest(agent=agent):
                init = self.init("sh", "-c", "echo ran; exit 4", agent=agent)
                self.assertEqual(init.report(), (4, "exited with code 4"))
                words = ("AGENT-READY", "PROGRAM-START", "STAGE", "EXIT")
                order = [init.console.index(word) for word in words]
                self.assertEqual(order, sorted(order))

    def test_the_status_file_says_what_the_console_has_said(self) -> None:
        """A program may end the machine when it reads `ready`; the sentinel is out by then."""
        look = 'until [ "$s" = STATE ]; do read -r s </run/hypeman/kernel-headers.status; done 2>/dev/null'
        for state, sentinel in (("ready", "HEADERS-READY"), ("failed", "HEADERS-FAILED")):
            for attempt in range(10):  # the other order would show in most of them
                with self.subTest(state=state, attempt=attempt):
                    script = f">/run/{state}; {look.replace('STATE', state)}; echo seen"
                    init = self.init("sh", "-c", script, want_agent="0", headers="1")
                    self.assertEqual(init.report(), (0, "exited with code 0"))
                    order = [init.console.index(words) for words in ("HEADERS-START", sentinel, "seen")]
                    self.assertEqual(order, sorted(order), init.console)

    def test_a_worker_that_is_killed_has_failed(self) -> None:
        script = "until grep -q failed /run/hypeman/kernel-headers.status; do sleep 0.05; done 2>/dev/null"
        init = self.init("sh", "-c", script, want_agent="0", headers="1")
        init.wait_for("HEADERS-START")
        own = find_children(init.process.pid)[0]
        (worker,) = (child for child in find_children(own) if read_link(Path(f"/proc/{child}/exe")) == INIT)
        stat = Path(f"/proc/{worker}/stat").read_text().rsplit(")", 1)[1].split()
        # proc(5): nice is field 19, policy 41; those here begin with the third
        self.assertEqual((stat[19 - 3], stat[41 - 3]), ("19", "5"), "nice and SCHED_IDLE")
        self.assertEqual(Path(f"/proc/{worker}/oom_score_adj").read_text(), "1000\n")
        os.kill(worker, signal.SIGKILL)
        self.assertEqual(init.report(), (0, "exited with code 0"))
        self.assertIn("its worker ended before it was done: killed by signal 9 (KILL)", init.console)

    def test_no_agent_wanted(self) -> None:
        init = self.init("echo", "ran", want_agent="0", agent=None)
        self.assertEqual(init.report(), (0, "exited with code 0"))
        self.assertNotIn("AGENT-READY", init.console)

    def test_program_that_cannot_start_has_no_marker(self) -> None:
        (self.folder / "text").write_text("no program")
        (self.folder / "script").write_text("#!/no/interpreter\n")
        (self.folder / "script").chmod(0o755)
        (self.folder / "garbage").write_bytes(b"\x7fELFgarbage")
        (self.folder / "garbage").chmod(0o755)
        for argv0, code, words in (
            ("nothing-of-this-name", 127, "not found in PATH (/usr/local/sbin:"),
            ("/nothing", 127, "program /nothing not found: No such file"),
            ("", 127, "not found"),
            (f"{self.folder}/text", 126, "text cannot be executed: Permission denied"),
            (f"{self.folder}", 126, "it is a folder"),
            (f"{self.folder}/script", 126, "its interpreter or loader is not"),
            (f"{self.folder}/garbage", 126, "no program for this machine"),
        ):
            with self.subTest(argv0=argv0):
                init = self.init(argv0, "ran", want_agent="0")
                reported, message = init.report()
                self.assertEqual(reported, code, message)
                self.assertIn(words, message)
                self.expect_no_program(init)

    def test_bad_user_is_the_guests_failure(self) -> None:
        init = self.init("echo", "ran", want_agent="0", user="nobody-at-all")
        code, message = init.report()
        self.assertEqual(code, 125)
        self.assertIn('user \\"nobody-at-all\\" is not in', message)
        self.expect_no_program(init)

    def test_environment_folder_and_user(self) -> None:
        folder = self.folder / "made/for/it"
        self.folder.chmod(0o755)
        script = 'echo "$A|$HOME|$PATH|$PWD|$(id -u)|$(read x || echo empty stdin)"'
        init = self.init("sh", "-c", script, want_agent="0", env="A=b c", workdir=str(folder), user="65534")
        self.assertEqual(init.report()[0], 0)
        self.assertIn("b c|/nonexistent|/usr/local/sbin:", init.console)
        self.assertIn(f"|{folder}|65534|empty stdin\n", init.console)

    def test_settings_are_the_programs_and_not_inits(self) -> None:
        init = self.init("sh", "-c", "umask; umask 077", want_agent="0", umask="23")
        self.assertEqual(init.report(), (0, "exited with code 0"))
        self.assertIn("0027\n", init.console)

    def test_limits_are_set_before_the_program_is_another_user(self) -> None:
        # in one line: init prints between two
        script = 'echo "$(ulimit -S -n) $(ulimit -H -n) $(ulimit -H -c)"'
        limits = ["nofile=100:200", "core=0:0"]
        init = self.init("sh", "-c", script, want_agent="0", user="65534", limits=limits)
        self.assertEqual(init.report(), (0, "exited with code 0"))
        self.assertIn("100 200 0\n", init.console)

    def test_a_limit_that_the_kernel_refuses_is_told(self) -> None:
        init = self.init("true", want_agent="0", limits=["nofile=unlimited:unlimited"])
        words = "cannot set ulimit=nofile=unlimited:unlimited: Operation not permitted"
        self.assertEqual(init.report(), (125, words))
        self.expect_no_program(init)

    def test_argv_and_environment_are_exact(self) -> None:
        argv = ["a b", "$HOME", "`id`", "x'y\"z\\", "", "line\nbreak", "*", "-n", "\u00e4", "$(id);exit 9"]
        environment = {"A": "b  c ", "Q": "'\"\\", "N": "one\ntwo", "D": "$A ${A} $$", "E": "", "X": "a=b"}
        show = "import os, sys; print(ascii(sys.argv[1:])); print(ascii(dict(os.environ)))"
        init = self.init(
            sys.executable,
            "-I",
            "-c",
            show,
            *argv,
            want_agent="0",
            environment=[f"{key}={value}" for key, value in environment.items()],
        )
        self.assertEqual(init.report(), (0, "exited with code 0"))
        # the program may be quicker than init, which tells of it
        said_argv, said_environment = (line for line in init.console.splitlines() if line[:1] in "[{")
        self.assertEqual(ast.literal_eval(said_argv), argv)
        got = ast.literal_eval(said_environment)
        # what Python sets itself when no locale is set
        got.pop("LC_CTYPE", None)
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        added = {"PATH": path, "HOME": "/root", "HOSTNAME": "vm1"}
        self.assertEqual(got, {**environment, **added})

    def test_a_variable_of_the_definition_is_no_default(self) -> None:
        environment = (f"PATH={self.folder}", "HOME=/else", "HOSTNAME=own", "X=1")
        (self.folder / "mine").write_text('#!/bin/sh\necho "$HOME|$PATH|$HOSTNAME|$0"\n')
        (self.folder / "mine").chmod(0o755)
        init = self.init("mine", want_agent="0", environment=environment)
        self.assertEqual(init.report(), (0, "exited with code 0"))
        self.assertIn(f"/else|{self.folder}|own|{self.folder}/mine\n", init.console)

    def test_a_relative_program_is_found_from_its_folder(self) -> None:
        (self.folder / "mine").write_text("#!/bin/sh\necho ran in $PWD\n")
        (self.folder / "mine").chmod(0o755)
        init = self.init("./mine", want_agent="0", workdir=str(self.folder))
        self.assertEqual(init.report(), (0, "exited with code 0"))
        self.assertIn(f"ran in {self.folder}\n", init.console)

    def test_a_folder_that_cannot_be_made_is_told(self) -> None:
        (self.folder / "file").write_text("")
        init = self.init("echo", "ran", want_agent="0", workdir=f"{self.folder}/file/x")
        words = f"cannot make the working directory {self.folder}/file/x: Not a directory"
        self.assertEqual(init.report(), (125, words))
        self.expect_no_program(init)

    def test_killed_by_a_signal(self) -> None:
        for number, name, code in ((11, "SEGV", 139), (15, "TERM", 143)):
            with self.subTest(name):
                init = self.init("sh", "-c", f"kill -{name} $$", want_agent="0", init="1")
                self.assertEqual(init.report(), (code, f"killed by signal {number} ({name})"))

    def test_the_program_is_pid_1_of_its_own_namespace(self) -> None:
        show = 'cd /proc; echo "[$$ $(readlink self) $(cat 1/comm)]"'
        init = self.init("sh", "-c", show)
        self.assertEqual(init.report(), (0, "exited with code 0"))
        self.assertRegex(init.console, r"\[1 [23] sh\]")

    def test_with_an_init_the_program_is_pid_2(self) -> None:
        init = self.init("sh", "-c", 'echo "[$$ $(cat /proc/1/comm)]"; echo told >/proc/1/fd/1', init="1")
        self.assertEqual(init.report(), (0, "exited with code 0"))
        self.assertIn("[2 hypeman-reaper]\n", init.console)
        self.assertIn("told\n", init.console)

    def test_a_kill_of_all_reaches_neither_init_nor_agent(self) -> None:
        script = "sleep 1000 & sh -c 'kill -KILL -1'; wait; echo killed; exec sleep 1000"
        init = self.init("sh", "-c", script)
        init.wait_for("killed")
        links = [read_link(Path(f"/proc/{pid}/exe")) for pid in os.listdir("/proc") if pid.isdigit()]
        self.assertIn(str(self.folder / "byte-stay"), links)
        init.order(b"poweroff 1000\n")
        self.assertEqual(init.report(), (143, "stopped on request: killed by signal 15 (TERM)"))
        # with an init the program itself is among those that are killed
        init = self.init("sh", "-c", script, init="1")
        self.assertEqual(init.report(), (137, "killed by signal 9 (KILL)"))

    def test_a_stop_is_at_once_whoever_is_pid_1(self) -> None:
        """PID 1 of a namespace gets no signal that it does not catch."""
        for has_init, number, name in (("0", 15, "TERM"), ("1", 15, "TERM"), ("0", 10, "USR1")):
            with self.subTest(init=has_init, name=name):
                init = self.init("sleep", "1000", init=has_init, stop_signal=str(number))
                init.wait_for("PROGRAM-START")
                init.order(b"poweroff 1000\n")
                words = f"stopped on request: killed by signal {number} ({name})"
                self.assertEqual(init.report(), (128 + number, words))

    def test_a_stop_leaves_its_time_to_who_takes_the_signal(self) -> None:
        """Also if that waits for it instead of catching it; a signal that ends nothing is only sent."""
        blocks = "import signal as s, time; s.pthread_sigmask(s.SIG_BLOCK, {15}); print('up', flush=True)"
        for before in ("", "time.sleep(0.5); "):
            init = self.init(sys.executable, "-I", "-c", f"{blocks}; {before}s.sigwait({{15}}); exit(4)")
            init.wait_for("up")
            if not before:
                program = find_children(find_children(init.process.pid)[0])[-1]
                while (
                    not Path(f"/proc/{program}/syscall").read_text().startswith("128 ")
                ):  # rt_sigtimedwait(2)
                    pass
            init.order(b"poweroff 1000\n")
            self.assertEqual(init.report(), (4, "stopped on request: exited with code 4"))
        init = self.init("sh", "-c", "sleep 0.2 & echo up; wait; exit 5", stop_signal="28")  # WINCH
        init.wait_for("up")
        init.order(b"poweroff 1000\n")
        self.assertEqual(init.report(), (5, "stopped on request: exited with code 5"))

    def test_an_init_reaps_orphans(self) -> None:
        orphans = "(sh -c 'exit 9' &) ; (sleep 0.1; exit 8) & sh -c 'sleep 0.05 & exit 7'"
        init = self.init("sh", "-c", f"{orphans}; sleep 0.4; {ZOMBIES}; exit 5", init="1")
        self.assertEqual(init.report(), (5, "exited with code 5"))
        self.assertNotIn("zombie", init.console)

    def test_an_init_forwards_signals(self) -> None:
        for name in ("TERM", "HUP", "INT", "USR1"):
            with self.subTest(name):
                script = f"trap 'echo got; exit 6' {name}; kill -{name} 1; while :; do sleep 0.02; done"
                init = self.init("bash", "-c", script, want_agent="0", init="1")
                self.assertEqual(init.report()[0], 6)

    def test_the_agent_learns_of_the_program_and_may_order_the_end(self) -> None:
        for has_init in ("0", "1"):
            with self.subTest(init=has_init):
                init = self.init("sleep", "1000", agent="byte-power-off", stop_signal="10", init=has_init)
                words = "stopped on request: killed by signal 10 (USR1)"
                self.assertEqual(init.report(), (138, words))

    def test_the_agent_gets_the_ends_of_a_program_with_stdin(self) -> None:
        init = self.init("sh", "-c", "cat; echo error >&2; exit 7", agent="byte-attach", stdin="1")
        self.assertEqual(init.report(), (7, "exited with code 7"))
        self.assertIn("(typed\nerror\n)\nHYPEMAN-EXIT", init.console)

    def test_a_program_with_a_terminal_leads_its_session(self) -> None:
        script = "cat; tty; ps -o stat= -p $$; (echo background) & wait; exit 7"
        for has_init in ("0", "1"):
            with self.subTest(init=has_init):
                init = self.init("sh", "-c", script, agent="byte-attach", stdin="1", tty="1", init=has_init)
                self.assertEqual(init.report(), (7, "exited with code 7"))
                # the shell sleeps, or is about to, while ps runs
                said = r"\(typed\r\n(\^D\x08\x08)?typed\r\n/dev/pts/\d+\r\n[DRS]\w*s\+\r\nbackground\r\n\)\n"
                self.assertRegex(init.console, said)

    def test_without_an_agent_nothing_can_be_typed(self) -> None:
        init = self.init("cat", want_agent="0", stdin="1")
        self.assertIn("stdin and tty need the agent", init.report()[1])

    def test_a_read_only_root(self) -> None:
        script = "touch /made 2>/dev/null || echo refused; touch /run/made && echo written"
        init = self.init("sh", "-c", script, read_only="1", workdir=str(self.folder / "made"))
        self.assertEqual(init.report(), (0, "exited with code 0"))
        self.assertIn("refused\n", init.console)
        self.assertIn("written\n", init.console)

    def test_capabilities(self) -> None:
        for user, effective in (("0", "0000000000000401"), ("65534", "0000000000000000")):
            with self.subTest(user=user):
                script = "grep -E 'Cap(Bnd|Eff|Prm)' /proc/self/status"
                init = self.init("sh", "-c", script, user=user, capabilities="401")
                self.assertEqual(init.report(), (0, "exited with code 0"))
                self.assertIn(f"CapPrm:\t{effective}\nCapEff:\t{effective}\n", init.console)
                self.assertIn("CapBnd:\t0000000000000401\n", init.console)

    def test_stop_port(self) -> None:
        init = self.init("sh", "-c", "trap 'exit 3' TERM; echo ready; while :; do sleep 0.02; done")
        init.wait_for("ready")
        init.order(b"nonsense\npoweroff x\npoweroff \npower")
        init.order(b"off 10\n")
        self.assertEqual(init.report(), (3, "stopped on request: exited with code 3"))

    def test_stop_port_kills_after_the_grace(self) -> None:
        init = self.init("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.02; done")
        init.wait_for("ready")
        before = time.monotonic()
        init.order(b"poweroff 1\n")
        words = "stopped on request: killed, since TERM did not end it within 1 s"
        self.assertEqual(init.report(), (137, words))
        self.assertGreaterEqual(time.monotonic() - before, 1)

    def test_a_shorter_grace_overtakes_a_longer_one(self) -> None:
        init = self.init("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.02; done")
        init.wait_for("ready")
        init.order(b"poweroff 1000\npoweroff 0\n")
        self.assertEqual(init.report()[0], 137)

    def test_stop_before_the_program_of_an_agent_that_is_waited_for(self) -> None:
        init = self.init("echo", "ran", agent="silent")
        init.order(b"poweroff 5\n")
        self.assertEqual(init.report(), (0, "stopped on request before the program started"))
        self.expect_no_program(init)


if __name__ == "__main__":
    unittest.main()
