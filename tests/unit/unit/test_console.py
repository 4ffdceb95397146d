# SPDX-License-Identifier: Apache-2.0
"""hypeman-console: what a VM says reaches the journal whole, within limits, before its end is read."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path

import pytest

from hypemand.unit.exit import await_console

SOURCES = Path(__file__).parents[3] / "guest/console"
MIB = 1024 * 1024
NOTICE = re.compile(rb"hypeman-console: ([0-9]+) lines \(([0-9]+) bytes\) were not kept: .*\n")
LINE_COST = 512
# the process beside the program is late in its first act
LATE = """
#include <fcntl.h>
#include <unistd.h>
int __wrap_fcntl(int fd, int operation, int value);
int __wrap_fcntl(int fd, int operation, int value)
{
    if (operation == F_SETFL)
        usleep(300000);
    return fcntl64(fd, operation, value);
}
"""
# the console reads nothing before the end of what it has started
LATE_TO_READ = """
#include <fcntl.h>
#include <sys/wait.h>
int __wrap_fcntl(int fd, int operation, int value);
int __wrap_fcntl(int fd, int operation, int value)
{
    siginfo_t ended;
    if (operation == F_SETFL)
        waitid(P_ALL, 0, &ended, WEXITED | WNOWAIT);
    return fcntl64(fd, operation, value);
}
"""
# it learns of the program late
LATE_TO_KNOW = """
#include <sys/syscall.h>
#include <unistd.h>
long __real_syscall(long number, long a, long b, long c, long d);
long __wrap_syscall(long number, long a, long b, long c, long d);
long __wrap_syscall(long number, long a, long b, long c, long d)
{
    if (number == SYS_pidfd_open)
        usleep(300000);
    return __real_syscall(number, a, b, c, d);
}
"""
SIGN = "HYPEMAN-STAGE name=thaw"


def build_late(folder: Path, late: str, function: str) -> Path:
    """hypeman-console with another one of this function."""
    source, program = folder / "late.c", folder / "hypeman-console"
    source.write_text(late)
    argv = ["gcc", "-std=c17", "-D_GNU_SOURCE", f"-Wl,--wrap={function}", "-o", str(program), str(source)]
    subprocess.run([*argv, *sorted(SOURCES.glob("*.c"))], check=True, timeout=120)
    return program


def say(
    console: Path, folder: Path, script: str, *, burst: int = MIB, per_hour: int = MIB, input: bytes = b""
) -> bytes:
    """All that comes of a shell script that has the console for its output."""
    argv = [str(console), str(folder), str(burst), str(per_hour), "/bin/sh", "-c", script]
    done = subprocess.run(argv, input=input, capture_output=True, timeout=60, check=True)
    assert done.stderr == b""
    return done.stdout


def feed(console: Path, folder: Path, data: bytes, **limits: int) -> bytes:
    return say(console, folder, "exec cat", input=data, **limits)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"one\n\n  two  \n\x1b[1mthree\x1b[0m\r\n\xff\xfe\n",
        b"no end",
        b"a\0b\0\n\0",
        b"x" * 200_000 + b"\n" + b"y" * 70_000,
        b"".join(b"%d %s\n" % (n, b"z" * (n % 97)) for n in range(1000)),
    ],
    ids=["nothing", "texts", "no end", "zeros", "long", "many"],
)
def test_what_is_within_the_limits_comes_through_as_it_is(console: Path, tmp_path: Path, data: bytes) -> None:
    assert feed(console, tmp_path, data) == data


def test_standard_error_goes_the_same_way_in_order(console: Path, tmp_path: Path) -> None:
    assert say(console, tmp_path, "echo 1; echo 2 >&2; echo 3") == b"1\n2\n3\n"


def test_the_program_has_the_place_of_the_console_and_no_child(console: Path, tmp_path: Path) -> None:
    argv = [str(console), str(tmp_path), str(MIB), str(MIB), "/bin/sh", "-c"]
    script = (
        "echo $$; cat /proc/$$/task/$$/children; echo; readlink /proc/$$/fd/1 /proc/$$/fd/2; ls /proc/$$/fd"
    )
    with subprocess.Popen([*argv, script], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        lines = process.stdout.read().decode().splitlines()
    assert lines[0] == str(process.pid)
    (cat,) = lines[1].split()  # which reads that
    assert cat
    assert lines[2:4] == [lines[2]] * 2
    assert lines[2].startswith("pipe:")
    assert lines[4:] == ["0", "1", "2"]


def test_a_line_is_passed_on_when_it_is_whole(console: Path, tmp_path: Path) -> None:
    argv = [str(console), str(tmp_path), str(MIB), str(MIB), "/bin/sh", "-c", "echo one; read x; echo $x"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"one\n"
        process.stdin.write(b"two\n")
        process.stdin.close()
        assert process.stdout.readline() == b"two\n"


@pytest.mark.parametrize(
    "line", [b"x" * 60_000 + b"\n", b"y\n", b"\n", b"\0\n"], ids=["long", "short", "empty", "zero"]
)
def test_a_flood_of_any_lines_is_bounded_by_what_it_costs(console: Path, tmp_path: Path, line: bytes) -> None:
    count = 8 * MIB // (len(line) + LINE_COST)
    came = feed(console, tmp_path, line * count)
    (notice,) = NOTICE.finditer(came)
    kept = came[: notice.start()]
    lines = kept.count(b"\n")
    assert kept == line * lines
    assert lines + int(notice[1]) == count
    assert int(notice[2]) == len(line) * (count - lines)
    # a burst, and what has come back meanwhile
    assert MIB * 0.9 < lines * (len(line) + LINE_COST) < MIB * 1.2


def test_a_line_without_end_is_cut(console: Path, tmp_path: Path) -> None:
    came = feed(console, tmp_path, b"x" * (4 * MIB) + b"\nnext\n")
    first, _, rest = came.partition(b"\n")
    assert MIB * 0.8 < len(first) < MIB * 1.1
    assert set(first) == {ord("x")}
    notice = NOTICE.match(rest)
    assert notice is not None
    assert (notice[1] in (b"1", b"2"), int(notice[2]) >= 4 * MIB - len(first)) == (True, True)


def test_sentinels_have_a_reserve_and_it_has_an_end(console: Path, tmp_path: Path) -> None:
    flood, word = b"x" * 1000 + b"\n", b"HYPEMAN-EXIT boot=1 code=0\n"
    came = feed(console, tmp_path, flood * 4000 + word)
    assert word in came
    came = feed(console, tmp_path, flood * 4000 + word * 4000)
    assert 50 < came.count(word) < 200


def test_it_goes_on_when_there_is_room_again(console: Path, tmp_path: Path) -> None:
    # 64 KiB, a sixteenth of the burst, come back in a quarter of a second
    script = "head -c 4000000 /dev/zero | tr '\\0' '\\n'; sleep 1; echo after"
    came = say(console, tmp_path, script, per_hour=900 * MIB)
    assert came.endswith(b"after\n")
    assert len(NOTICE.findall(came)) >= 1


def test_the_cost_of_a_byte_does_not_grow(console: Path, tmp_path: Path) -> None:
    """Linear, whatever the lines are: twice the bytes take about twice the time."""

    def measure(line: bytes, size: int) -> float:
        data = line * (size // len(line))
        before = os.times().children_user
        feed(console, tmp_path, data, burst=1024 * MIB)
        return os.times().children_user - before

    for line in (b"x", b"\n", b"HYPEMAN-", b"x" * 65_536 + b"\n"):
        small, large = measure(line, 2 * MIB), measure(line, 8 * MIB)
        assert large < max(small, 0.05) * 12, line[:10]


def test_the_end_is_told_when_all_has_been_passed_on(console: Path, tmp_path: Path) -> None:
    """Whatever else holds the pipe, and however slow the journal is: ExecStopPost= reads after that."""
    reader, writer = os.pipe()
    # the program ends at once; a process that it leaves behind has the same output
    script = "sleep 30 & echo $! >left; head -c 300000 /dev/zero | tr '\\0' x; echo; echo last"
    argv = [str(console), str(tmp_path), str(MIB), str(MIB), "/bin/sh", "-c", script]
    process = subprocess.Popen(argv, stdout=writer, stderr=writer, cwd=tmp_path)
    os.close(writer)
    came = b""
    try:
        process.wait(60)
        ended: list[bool] = []
        waiting = threading.Thread(target=lambda: ended.append(await_console(tmp_path)))
        waiting.start()
        assert not ended, "the journal has not read it all"
        while data := os.read(reader, 65536):
            came += data
        waiting.join(60)
        assert ended == [True]
        assert came.endswith(b"\nlast\n")
    finally:
        os.kill(int((tmp_path / "left").read_text()), 9)
        os.close(reader)


def test_a_journal_that_does_not_read_holds_up_no_end(
    console: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a journald that stands still: systemd sends SIGTERM to all when the program has ended."""
    reader, writer = os.pipe()
    argv = [str(console), str(tmp_path), str(MIB), str(MIB), "/bin/sh", "-c"]
    argv += ["head -c 300000 /dev/zero | tr '\\0' x; kill -TERM 0"]
    monkeypatch.setattr("hypemand.unit.exit._CONSOLE_DEADLINE", 30.0)
    try:
        with subprocess.Popen(argv, stdout=writer, stderr=writer, start_new_session=True) as process:
            assert process.wait(60) == -signal.SIGTERM
        assert await_console(tmp_path)
    finally:
        os.close(reader)
        os.close(writer)


def test_the_words_of_a_program_that_fails_at_once_are_not_lost(tmp_path: Path) -> None:
    """systemd ends all of its unit then, as here: before the process beside it has run much."""
    program = build_late(tmp_path, LATE, "fcntl")
    argv = [str(program), str(tmp_path), str(MIB), str(MIB), "/bin/sh", "-c", "echo why; kill -TERM 0"]
    done = subprocess.run(argv, capture_output=True, timeout=60, check=False, start_new_session=True)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGTERM, b"why\n", b"")


def test_no_console_is_waited_for_where_there_is_none(tmp_path: Path) -> None:
    assert await_console(tmp_path)
    os.mkfifo(tmp_path / "console.end")
    assert await_console(tmp_path)
    (tmp_path / "console.end").unlink()
    (tmp_path / "console.end").write_text("no pipe")
    assert not await_console(tmp_path)
    (tmp_path / "console.end").unlink()
    (tmp_path / "console.end").symlink_to("/dev/null")
    assert await_console(tmp_path)


def test_whoever_holds_the_pipe_is_not_waited_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hypemand.unit.exit._CONSOLE_DEADLINE", 0.05)
    os.mkfifo(tmp_path / "console.end")
    held = os.open(tmp_path / "console.end", os.O_RDWR)
    try:
        assert not await_console(tmp_path)
    finally:
        os.close(held)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["x"],
        ["x", "1", "1", "/bin/true"],
        ["x", "-5", "5", "y"],
        ["x", "1048576", "0", "y"],
        ["x", "1048576", "5", "--journal", "y", "z"],
        ["x", "1048576", "5", "--journal", "y", "z", "5"],
        ["x", "1048576", "5", "--journal", "y", "z", "0", "/bin/true"],
    ],
)
def test_what_it_is_told_is_checked(console: Path, words: Sequence[str]) -> None:
    done = subprocess.run([str(console), *words], capture_output=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(b"usage: hypeman-console")


def test_a_program_that_is_not_there_is_told(console: Path, tmp_path: Path) -> None:
    argv = [str(console), str(tmp_path), str(MIB), str(MIB), "/no/such/program"]
    done = subprocess.run(argv, capture_output=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stdout == b"hypeman-console: /no/such/program: No such file or directory\n"


# a VMM whose guest goes on from a template, as the launcher notes it: it has threads, and a sign or none
TRIAL = """
import os, signal, sys, threading, time
runtime, sign = sys.argv[1:]
run = os.environ["INVOCATION_ID"]
print("pid", os.getpid(), flush=True)
if os.path.exists(runtime + "/stalled"):
    print(open(runtime + "/stalled").read() == run, not os.path.exists(runtime + "/warm"), flush=True)
    sys.exit(7)
if sign == "fails":
    sys.exit(5)
if sign == "crashes":
    os.kill(os.getpid(), 11)
open(runtime + "/warm", "w").write("0" * 32 if sign == "other" else run)
if sign == "ends":
    sys.exit(1)
if sign == "is killed":
    os.kill(os.getpid(), 9)
if sign == "signals":
    some = {signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}
    signal.pthread_sigmask(signal.SIG_BLOCK, some)
    print("ready", flush=True)
    while signal.sigwait(some) == signal.SIGUSR1:
        print("heard", flush=True)
    sys.exit(3)
threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
print("x HYPEMAN-STAGE", flush=True)
if sign == "sign":
    print("HYPEMAN-STAGE name=thaw", flush=True)
    sys.stdin.readline()
if sign == "spins":
    while True:
        pass
if sign in ("sign", "other", "stops"):
    if sign == "stops":
        os.kill(os.getpid(), 19)
        print("HYPEMAN-STAGE name=thaw", flush=True)
        sys.stdin.readline()
    time.sleep(4 if sign == "other" else 0)
    print("end", flush=True)
else:
    time.sleep(3600)
"""


class Manager:
    """systemd's notification socket: what it was told."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))
        self._socket.settimeout(60)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """It reads nothing in this block, and has no room for more."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.setblocking(False)
            count = 0
            with suppress(BlockingIOError):
                while True:
                    other.sendto(b"", str(self.path))
                    count += 1
            try:
                yield
            finally:
                for _ in range(count):
                    assert self.hear() == b""

    def hear(self) -> bytes:
        return self._socket.recv(100)

    def hears_nothing(self) -> bool:
        self._socket.setblocking(False)
        with suppress(BlockingIOError):
            return not self._socket.recv(100)
        return True

    def close(self) -> None:
        self._socket.close()


def trial(
    console: Path, folder: Path, sign: str
) -> AbstractContextManager[tuple[subprocess.Popen[bytes], Manager]]:
    return trial_of(console, folder, sys.executable, "-c", TRIAL, str(folder), sign)


@contextmanager
def trial_of(console: Path, folder: Path, *program: str) -> Iterator[tuple[subprocess.Popen[bytes], Manager]]:
    manager = Manager(folder)
    environment = {**os.environ, "NOTIFY_SOCKET": str(manager.path), "INVOCATION_ID": "5" * 32}
    argv = [str(console), str(folder), str(MIB), str(MIB), "--trial", *program]
    process = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
    )
    with process, closing(manager):
        try:
            yield process, manager
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def first_pid(process: subprocess.Popen[bytes]) -> int:
    assert process.stdout is not None
    return int(process.stdout.readline().removeprefix(b"pid "))


@pytest.mark.parametrize("sign", ["sleeps", "spins", "ends", "is killed"])
def test_a_guest_that_does_not_continue_is_replaced_in_the_same_unit(
    console: Path, tmp_path: Path, sign: str
) -> None:
    """Also one whose VMM ends: the unit's main process is what it was."""
    with trial(console, tmp_path, sign) as (process, manager):
        assert first_pid(process) != process.pid
        assert process.stdout is not None
        lines = process.stdout.read().decode().splitlines()
        assert lines[-2:] == [f"pid {process.pid}", "True True"]
        assert process.wait() == 7
        assert manager.hears_nothing()


def test_a_guest_that_continues_is_the_main_process_and_a_child_of_systemds(
    console: Path, tmp_path: Path
) -> None:
    with trial(console, tmp_path, "sign") as (process, manager):
        pid = first_pid(process)
        assert manager.hear() == b"MAINPID=%d" % pid
        status = Path(f"/proc/{pid}/status").read_text()
        parent = re.search(r"^PPid:\t([0-9]+)$", status, re.MULTILINE)
        assert parent is not None
        assert int(parent[1]) != process.pid
        assert "hypeman-console" not in Path(f"/proc/{parent[1]}/comm").read_text()
        assert process.poll() is None
        assert process.stdin is not None
        process.stdin.close()
        assert process.stdout is not None
        assert process.stdout.read().endswith(b"end\n")
        assert manager.hears_nothing()
        # where it has ended before systemd took that: what the guest has said is what counts
        assert process.wait() == 0


def test_the_end_of_a_program_whose_first_line_is_read_after_it_is_the_units(tmp_path: Path) -> None:
    """systemd takes no process that has ended for a main process."""
    console = build_late(tmp_path, LATE_TO_READ, "fcntl")
    with trial_of(console, tmp_path, "/bin/sh", "-c", f"echo {SIGN}; exit 9") as (process, manager):
        assert process.stdout is not None
        assert process.stdout.read() == f"{SIGN}\n".encode()
        assert process.wait() == 9
        assert manager.hears_nothing()


def test_a_program_on_trial_that_fails_at_once_has_its_words_and_status(tmp_path: Path) -> None:
    console = build_late(tmp_path, LATE_TO_KNOW, "syscall")
    with trial_of(console, tmp_path, "/bin/sh", "-c", "echo why; exit 3") as (process, _):
        assert process.stdout is not None
        assert process.stdout.read() == b"why\n"
        assert process.wait() == 3


def test_a_manager_that_does_not_read_holds_up_no_guest(console: Path, tmp_path: Path) -> None:
    """As a systemd that executes itself anew: what the guest writes is read nevertheless."""
    written = tmp_path / "written"
    os.mkfifo(written)
    told = os.open(written, os.O_RDONLY | os.O_NONBLOCK)
    waiting = select.poll()
    waiting.register(told, select.POLLIN)
    script = f"echo {SIGN}; head -c 4000000 /dev/zero | tr '\\0' '\\n'; echo $$ >{written}; read x"
    with trial_of(console, tmp_path, "/bin/sh", "-c", script) as (process, manager):
        with os.fdopen(told), manager.busy():
            assert waiting.poll(30_000), "it waits"
            pid = int(os.read(told, 100))
        assert manager.hear() == b"MAINPID=%d" % pid
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_main_process_is_for_the_program_on_trial(
    console: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """As by `hypemanctl kill`. One that ends it ends the run."""
    with trial(console, tmp_path, "signals") as (process, manager):
        first_pid(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGUSR1)
        waiting = select.poll()
        waiting.register(process.stdout, select.POLLIN)
        assert waiting.poll(30_000), "it has not heard"
        assert process.stdout.readline() == b"heard\n"
        process.send_signal(number)
        assert process.wait(60) == 3
        assert process.stdout.read() == b""
        assert manager.hears_nothing()


def test_a_program_on_trial_is_killed_with_the_main_process(console: Path, tmp_path: Path) -> None:
    with (
        trial(console, tmp_path, "sleeps") as (process, _),
        os.fdopen(os.pidfd_open(first_pid(process))) as program,
    ):
        process.kill()
        waiting = select.poll()
        waiting.register(program, select.POLLIN)
        assert waiting.poll(30_000), "it lives"


def test_a_guest_that_does_not_run_at_all_is_left(console: Path, tmp_path: Path) -> None:
    with trial(console, tmp_path, "stops") as (process, manager):
        pid = first_pid(process)
        time.sleep(4)
        os.kill(pid, signal.SIGCONT)
        assert manager.hear() == b"MAINPID=%d" % pid
        out, _ = process.communicate(b"\n")
        assert out.endswith(b"end\n")


def test_a_guest_that_boots_is_left(console: Path, tmp_path: Path) -> None:
    with trial(console, tmp_path, "other") as (process, manager):
        assert process.stdout is not None
        assert process.stdout.read().endswith(b"end\n")
        assert process.wait() == 0
        assert manager.hears_nothing()


@pytest.mark.parametrize(("sign", "status"), [("fails", 5), ("crashes", -signal.SIGSEGV)])
def test_what_fails_without_a_template_ends_the_unit_as_it_has_ended(
    console: Path, tmp_path: Path, sign: str, status: int
) -> None:
    with trial(console, tmp_path, sign) as (process, manager):
        assert process.wait() == status
        assert manager.hears_nothing()


def test_a_stop_during_a_trial_is_a_stop(console: Path, tmp_path: Path) -> None:
    with trial(console, tmp_path, "sleeps") as (process, _):
        pid = first_pid(process)
        # as systemd: to all of the unit's processes
        for target in (process.pid, pid):
            os.kill(target, signal.SIGTERM)
        assert process.stdout is not None
        assert b"True" not in process.stdout.read()
        assert process.wait() == -signal.SIGTERM
