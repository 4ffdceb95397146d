# SPDX-License-Identifier: Apache-2.0
"""Guests that fail, flood, lie and die: the right state, the right words, nothing left and nothing lost."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.host.faults import BUSYBOX, SMALL, Vm, compile_static, ctl, define_vm, other_guest, start_vm
from tests.host.machine import TestHost
from tests.host.vms import hold_deadline

pytestmark = pytest.mark.one_release

BUILTIN_ROOTFS = "/usr/lib/hypemand/images/busybox/rootfs.erofs"
LINES = 30_000
# of journald, which loses the rest: it allows up to six times that, by the space that it has
LIMIT = {"LogRateLimitIntervalSec": "1h", "LogRateLimitBurst": 2_000}

AGENT_CRASHES = "int main(void) { __builtin_trap(); }"
AGENT_HANGS = "#include <unistd.h>\nint main(void) { for (;;) pause(); }"
AGENT_LEAVES = '#include <unistd.h>\nint main(void) { return write(3, "", 1) != 1; }'
AGENT_ENDS_ALL = """
#include <sys/reboot.h>
#include <unistd.h>
int main(void) { return write(3, "", 1) != 1 || sleep(2) || reboot(HOW); }
"""
# Floods the console, then becomes the real agent, whose bytes it carries.
AGENT_FLOODS = """
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <termios.h>
#include <unistd.h>
__asm__(".section .rodata\\nagent: .incbin \\"AGENT\\"\\nagent_end:\\n.previous");
extern const char agent[], agent_end[];
extern char **environ;
int main(int argc, char **argv)
{
    static char buffer[65536];
    struct termios raw;
    FILE *console = fopen("/dev/console", "we");
    int file = memfd_create("agent", MFD_CLOEXEC);
    if (console == NULL || file < 0 || tcgetattr(fileno(console), &raw) != 0)
        return 1;
    /* many lines at once: the gate is open for ten seconds only */
    raw.c_oflag &= ~(tcflag_t)OPOST;
    if (tcsetattr(fileno(console), TCSANOW, &raw) != 0)
        return 1;
    setvbuf(console, buffer, _IOFBF, sizeof buffer);
    for (int i = 0; i < LINES; i++)
        fprintf(console, "noise %d\\n", i);
    fclose(console);
    if (write(file, agent, agent_end - agent) != agent_end - agent)
        return 1;
    fexecve(file, argv, environ);
    return 1;
}
"""
# for the host, what a kernel is that panics before its console is up
INIT_RESETS = "#include <sys/reboot.h>\nint main(void) { return reboot(RB_AUTOBOOT); }"

Compiler = Callable[..., bytes]

# In a program: wait until `tell` says that it may go on.
UNTIL_TOLD = "until [ -e /run/told ]; do sleep 0.1; done"


def tell(vm: Vm) -> None:
    """Once the VM is Running, let its program go on."""
    vm.wait("Running")
    told = vm.exec("touch", "/run/told", check=False)
    # the program may have ended the VM before the answer was under way
    assert told.ok or "closed the agent channel" in told.stderr


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Compiler:
    """Compiles sources of C to static programs."""
    folder = tmp_path_factory.mktemp("programs")
    return lambda source, *options: compile_static(source, folder / "program", *options)


@pytest.fixture(scope="module")
def long_lived(host: TestHost) -> Iterator[Vm]:
    """A VM whose program sleeps: what is done in it by exec must leave it as it was."""
    with start_vm(host, "bystander", "sleep", "infinity") as vm:
        vm.wait("Running")
        yield vm


def fail(host: TestHost, *command: str, options: tuple[str, ...] = ()) -> dict[str, Any]:
    """Run a VM to its end, which must be a failed unit and say nothing of success; what is known then."""
    with start_vm(host, "faulty", *command, options=options) as vm:
        shown = vm.end()
        assert vm.unit("ActiveState") == "failed"
        status = vm.ctl("status", check=False)
        assert status.code == 3
        assert str(shown["exit_message"]) in status.stdout
        return shown


# how programs end


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (("/no/such",), 127, r"program /no/such.*[Nn]o such file"),
        (("tail", "/dev/zero"), 137, r"out of memory: the kernel killed the program"),
    ],
    ids=["not found", "out of memory"],
)
def test_a_program_that_fails_fails_its_unit_with_code_and_reason(
    host: TestHost, command: tuple[str, ...], code: int, words: str
) -> None:
    with start_vm(host, "faulty", *command) as vm:
        shown = vm.end()
        assert (shown["state"], shown["exit_code"]) == ("Stopped", code)
        assert re.search(words, shown["exit_message"])
        assert vm.unit("ActiveState") == "failed"
        status = vm.ctl("status", check=False)
        assert status.code == 3
        assert shown["exit_message"] in status.stdout
        status = host.run(["systemctl", "status", "--no-pager", "hypeman-vm-faulty.service"], check=False)
        assert shown["exit_message"] in status.stdout


def test_a_program_killed_for_memory_by_a_child_says_so_too(host: TestHost) -> None:
    shown = fail(host, "sh", "-c", "tail /dev/zero; exit $?")
    assert shown["exit_code"] == 137
    assert "out of memory" in shown["exit_message"]


@pytest.mark.parametrize("how", ["RB_AUTOBOOT", "RB_POWER_OFF"])
def test_a_power_off_without_an_exit_report_is_a_failure(
    host: TestHost, compiler: Compiler, how: str
) -> None:
    """A program of exec mode ends only its own processes by that."""
    with other_guest(host, agent=compiler(AGENT_ENDS_ALL.replace("HOW", how))):
        shown = fail(host, "sleep", "infinity")
    assert shown["exit_code"] is None
    assert shown["exit_message"] == "the guest powered off without an exit report"


# the agent


def test_an_agent_that_dies_before_its_byte_keeps_the_program_from_starting(
    host: TestHost, compiler: Compiler
) -> None:
    agent = compiler(AGENT_CRASHES)
    with other_guest(host, agent=agent), start_vm(host, "faulty", "echo", "program started") as vm:
        shown = vm.end()
        assert shown["exit_code"] == 125
        assert "the guest agent is not ready" in shown["exit_message"]
        assert "killed by signal 4 (ILL)" in shown["exit_message"]
        assert "program started" not in vm.logs()
        assert vm.unit("ActiveState") == "failed"


def test_an_agent_that_never_answers_is_waited_for_as_long_as_the_boot_may_take(
    host: TestHost, compiler: Compiler
) -> None:
    """And no shorter: on a host that boots many guests at once an agent takes long."""
    options = ("--boot-timeout=15s", "--stop-timeout=2s")
    with (
        other_guest(host, agent=compiler(AGENT_HANGS)),
        start_vm(host, "faulty", "echo", "program started", options=options) as vm,
    ):
        shown = vm.show()
        assert shown["state"] == "Initializing"
        refused = vm.exec("true", check=False)
        assert (refused.code, "Initializing" in refused.stderr) == (125, True)
        shown = vm.end()
        assert "program started" not in vm.logs()
        assert shown["exit_message"].startswith("boot timed out: ")
        assert "HYPEMAN-PROGRAM-START" in shown["exit_message"]
        assert "HYPEMAN-AGENT-READY" in shown["exit_message"]
        assert vm.unit("Result") == "timeout"


def test_an_agent_that_dies_after_its_byte_leaves_the_program_running(
    host: TestHost, compiler: Compiler
) -> None:
    with (
        other_guest(host, agent=compiler(AGENT_LEAVES)),
        start_vm(host, "faulty", "sh", "-c", "echo program started; exec sleep infinity") as vm,
    ):
        vm.wait("Running")
        # Running says that it was started, not that it has come to its first line
        host.wait_until(lambda: "program started" in vm.logs())
        refused = vm.exec("true", check=False)
        assert refused.code == 125
        assert "agent" in refused.stderr
        assert vm.ctl("stop").ok
        assert vm.show()["exit_code"] == 143


# the kernel


def test_a_guest_that_resets_without_a_word_before_its_program_is_said_to_have_crashed(
    host: TestHost, compiler: Compiler
) -> None:
    with other_guest(host, init=compiler(INIT_RESETS)):
        shown = fail(host, "true")
    assert shown["exit_code"] is None
    assert shown["exit_message"].endswith("its kernel may have crashed before its console was up")


def test_a_panic_of_a_running_guest_is_told_with_its_reason(host: TestHost) -> None:
    shown = fail(host, "sh", "-c", "echo 2 >/proc/sys/vm/panic_on_oom; exec tail /dev/zero")
    assert shown["exit_code"] is None
    assert shown["exit_message"].startswith("Kernel panic - not syncing: Out of memory")


# the console


def test_a_flood_before_the_agent_is_ready_hides_neither_readiness_nor_exit(
    host: TestHost, compiler: Compiler, tmp_path: Path
) -> None:
    (tmp_path / "agent").write_bytes(host.pull("/usr/lib/hypemand/guest/hypeman-agent"))
    source = AGENT_FLOODS.replace("AGENT", str(tmp_path / "agent")).replace("LINES", str(LINES))
    with (
        other_guest(host, agent=compiler(source)),
        define_vm(host, "flood", cmd=["sh", "-c", f"{UNTIL_TOLD}; exit 7"], unit=LIMIT) as vm,
    ):
        vm.ctl("start")
        tell(vm)
        shown = vm.end()
        assert (shown["exit_code"], vm.unit("Result")) == (7, "exit-code")
        assert len(vm.logs()) < LINES, "the journal has lost no line"


def test_a_flood_right_after_the_start_hides_neither_readiness_nor_exit(host: TestHost) -> None:
    # a name of its own: journald counts the lines of a unit's earlier runs too
    command = ["sh", "-c", f"seq {LINES}; {UNTIL_TOLD}; exit 7"]
    with define_vm(host, "late-flood", cmd=command, unit=LIMIT) as vm:
        vm.ctl("start")
        tell(vm)
        shown = vm.end()
        assert (shown["exit_code"], vm.unit("Result")) == (7, "exit-code")
        lines = vm.logs()
        assert lines[:3] == ["1", "2", "3"]
        assert len(lines) < LINES, "the journal has lost no line"


def test_a_line_of_one_mebibyte_harms_nobody(host: TestHost) -> None:
    script = f"head -c 1048576 /dev/zero | tr '\\0' x; echo; echo after; {UNTIL_TOLD}; exit 6"
    with start_vm(host, "long", "sh", "-c", script) as vm:
        tell(vm)
        shown = vm.end()
        assert shown["exit_code"] == 6
        lines = vm.logs()
        assert lines[-1] == "after"
        assert sum(line.count("x") for line in lines) == 1048576


def test_what_dies_with_the_program_in_the_midst_of_a_read_leaves_no_word_behind(host: TestHost) -> None:
    """The kernel calls it an error if who reads a directory is killed, and would have the last word."""
    reads = "while :; do echo 3 >/proc/sys/vm/drop_caches; ls -lR /bin; done >/dev/null"
    script = f"for i in $(seq 16); do ({reads}) & done; {UNTIL_TOLD}; echo after; exit 6"
    with start_vm(host, "readers", "sh", "-c", script) as vm:
        tell(vm)
        assert vm.end()["exit_code"] == 6
        assert vm.logs()[-1] == "after"


def test_garbage_escapes_and_bytes_that_are_no_text_harm_nobody(host: TestHost) -> None:
    escapes = "\\377\\376 \\033[2J\\033]0;owned\\007 end\\n"
    script = f"head -c 100000 /dev/urandom; echo; printf '{escapes}'; {UNTIL_TOLD}; exit 4"
    with start_vm(host, "garbage", "sh", "-c", script) as vm:
        tell(vm)
        assert vm.end()["exit_code"] == 4
        assert ctl(host, "logs", "garbage", "-n", "1").raw == b"\xff\xfe \x1b[2J\x1b]0;owned\x07 end\n"
        for output in (
            ctl(host, "status", "garbage", check=False).raw,
            _on_a_terminal(host, "hypemanctl status garbage -n 5"),
        ):
            assert b"\\x1b[2J\\x1b]0;owned\\x07 end" in output
            assert b"\x1b[2J" not in output
            assert b"\x1b]" not in output
            assert b"\x07" not in output


def _on_a_terminal(host: TestHost, command: str) -> bytes:
    return host.run(["script", "-qec", command, "/dev/null"], check=False, env={"TERM": "xterm"}).raw


# lies


FORGED = "f" * 32
READY = "HYPEMAN-AGENT-READY ts=2026-01-01T00:00:00.000000000Z boot={boot}"
START = "HYPEMAN-PROGRAM-START ts=2026-01-01T00:00:00.000000000Z mode=exec boot={boot}"
EXIT = 'HYPEMAN-EXIT code=0 message="all is well" boot={boot}'
# prints what another boot would say, as an agent does that then stays mute
AGENT_LIES = """
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>
int main(void)
{
    FILE *console = fopen("/dev/console", "we");
    if (console != NULL) {
        fputs(LINES, console);
        fclose(console);
    }
    for (;;)
        pause();
}
"""


def _c_string(lines: list[str]) -> str:
    return '"' + "".join(line.replace('"', '\\"') + "\\n" for line in lines) + '"'


def test_sentinels_of_another_boot_make_nobody_running(host: TestHost, compiler: Compiler) -> None:
    stale = _last_boot(host)
    lines = [text.format(boot=boot) for boot in (FORGED, stale) for text in (START, READY)]
    lines += [
        "HYPEMAN-AGENT-READY ts=2026-01-01T00:00:00Z",
        "HYPEMAN-PROGRAM-START boot=",
        EXIT.format(boot=stale),
    ]
    agent = compiler(AGENT_LIES.replace("LINES", _c_string(lines)))
    options = ("--boot-timeout=10s", "--stop-timeout=2s")
    with other_guest(host, agent=agent), start_vm(host, "liar", "true", options=options) as vm:
        last = lines[-1]
        hold_deadline(host, vm.name, lambda: any(last in line for line in vm.logs("--all")), "its last lie")
        assert vm.end()["exit_message"].startswith("boot timed out: ")
        assert any("boot= " in f"{line} " for line in vm.logs("--all"))
        assert vm.unit("ActiveEnterTimestampMonotonic") == "0", "it was Running"


def _last_boot(host: TestHost) -> str:
    """The id of a boot that has been, by the same name."""
    with start_vm(host, "liar", "true") as vm:
        vm.end()
        (boot,) = {match[1] for line in vm.logs("--all") if (match := re.search("boot=([0-9a-f]{32})", line))}
    return boot


def test_an_exit_report_of_another_boot_counts_for_nothing(host: TestHost, compiler: Compiler) -> None:
    script = f"echo '{EXIT.format(boot=FORGED)}'; exit 5"
    with start_vm(host, "liar", "sh", "-c", script) as vm:
        shown = vm.end()
        assert (shown["exit_code"], shown["exit_message"]) == (5, "exited with code 5")
    script = f"echo '{EXIT.format(boot=FORGED)}'; exec sleep infinity"
    agent = compiler(AGENT_ENDS_ALL.replace("HOW", "RB_POWER_OFF"))
    with other_guest(host, agent=agent), start_vm(host, "liar", "sh", "-c", script) as vm:
        assert vm.end()["exit_message"] == "the guest powered off without an exit report"


def test_a_report_that_the_program_forges_for_its_own_boot_is_overruled_by_the_guests(
    host: TestHost,
) -> None:
    boot = "$(sed 's/.*hypeman.boot=//' /proc/cmdline)"
    line = EXIT.format(boot="BOOT").replace('"', '\\"').replace("BOOT", boot)
    with start_vm(host, "liar", "sh", "-c", f'echo "{line}"; {UNTIL_TOLD}; exit 5') as vm:
        host.wait_until(lambda: any("all is well" in line for line in vm.logs("--all")))
        assert vm.show()["state"] == "Running", "its own words have ended it"
        tell(vm)
        assert vm.end()["exit_code"] == 5
        assert any("all is well" in line for line in vm.logs("--all"))


def test_a_liar_harms_no_other_vm(host: TestHost, long_lived: Vm) -> None:
    boot = long_lived.show()["boot_id"]
    with start_vm(host, "liar", "sh", "-c", f"echo '{EXIT.format(boot=boot)}'; exit 5") as vm:
        assert vm.end()["exit_code"] == 5
    assert long_lived.show()["state"] == "Running"
    assert long_lived.show()["exit_code"] is None


# processes in the guest


def test_orphans_are_reaped_and_their_status_is_not_taken_for_the_programs(host: TestHost) -> None:
    script = "for i in $(seq 200); do (sh -c 'exit 9' &) ; done; sleep 1; echo done; exec sleep infinity"
    with start_vm(host, "forks", "sh", "-c", script) as vm:
        vm.wait("Running")
        host.wait_until(lambda: "done" in vm.logs())
        zombies = vm.exec("sh", "-c", "grep -l '^State:.Z' /proc/[0-9]*/status | wc -l")
        assert zombies.stdout == "0\n"
        assert vm.show()["state"] == "Running"
        assert vm.ctl("stop").ok
        assert vm.show()["exit_code"] == 143


def test_a_daemon_that_the_program_leaves_behind_does_not_keep_the_vm(host: TestHost) -> None:
    with start_vm(host, "forks", "sh", "-c", "setsid sleep infinity & exit 2") as vm:
        assert vm.end()["exit_code"] == 2


# the disk


def test_a_full_disk_is_the_programs_error_and_not_ours(host: TestHost, long_lived: Vm) -> None:
    filled = long_lived.exec("dd", "if=/dev/zero", "of=/root/full", "bs=1M", check=False)
    assert filled.code == 1
    assert "No space left on device" in filled.stderr
    assert long_lived.exec("echo", "alive").stdout == "alive\n"
    long_lived.exec("rm", "/root/full")
    long_lived.exec("sh", "-c", "echo room >/root/room; rm /root/room")
    assert long_lived.show()["state"] == "Running"


def test_data_outlast_stop_start_and_the_end_of_the_vmm_by_force_and_the_image_stays_as_it_was(
    host: TestHost,
) -> None:
    before = hashlib.sha256(host.pull(BUILTIN_ROOTFS)).hexdigest()
    with define_vm(host, "keeper", cmd=["sleep", "infinity"]) as vm:
        vm.ctl("start", "--wait")
        vm.exec("sh", "-c", "echo one >/root/first; rm /usr/bin/wget; echo mine >/etc/motd")
        vm.ctl("stop")
        vm.ctl("start", "--wait")
        assert vm.exec("cat", "/root/first", "/etc/motd").stdout == "one\nmine\n"
        assert vm.exec("test", "-e", "/usr/bin/wget", check=False).code == 1
        vm.exec("sh", "-c", "echo two >/root/second; sync")
        host.run(["kill", "-KILL", vm.unit("MainPID")])
        shown = vm.end()
        assert shown["exit_message"] == "the VMM was killed by SIGKILL"
        vm.ctl("start", "--wait")
        assert vm.exec("cat", "/root/first", "/root/second").stdout == "one\ntwo\n"
    assert hashlib.sha256(host.pull(BUILTIN_ROOTFS)).hexdigest() == before
    assert ctl(host, "run", "--rm", *SMALL, BUSYBOX, "test", "-e", "/usr/bin/wget").ok
