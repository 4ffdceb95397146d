# SPDX-License-Identifier: Apache-2.0
"""The launcher as a unit executes it, with a network service and a VMM of the test's own.

usage: whole.py LAUNCHER VMM
"""

from __future__ import annotations

import array
import errno
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import zlib
from collections.abc import Callable
from pathlib import Path

LAUNCHER, VMM = sys.argv[1:3]
BOOT = "b0" * 16
RUN = "0123456789abcdef0123456789abcdef"
DEADLINE = 60.0
POWEROFF = 38
WATCHDOG = signal.SIGURG
# its memory is in root's reach anyway
ALLOWED = {"read", "write", "directory", "done", "leader-memory"}
PORTS = {"qmp": 4, "agent": 5, "report": 6, "stop": 7}


class Service(threading.Thread):
    """Answers one request by `answer`, and notes who made it."""

    def __init__(self, path: Path, answer: Callable[[socket.socket], None]) -> None:
        super().__init__(daemon=True)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(str(path))
        self.listener.listen(1)
        self.answer = answer
        self.peer = (0, 0, 0)
        self.start()

    def run(self) -> None:
        """Serve."""
        connection, _ = self.listener.accept()
        with connection:
            data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            self.peer = struct.unpack("=iII", data)
            self.answer(connection)

    def close(self) -> None:
        """It has answered by now, or nobody has asked."""
        self.listener.close()


def give(path: Path) -> Callable[[socket.socket], None]:
    """Answer with a descriptor of a file."""

    def answer(connection: socket.socket) -> None:
        fd = os.open(path, os.O_RDWR)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        connection.sendmsg([b"F"], ancillary)
        os.close(fd)

    return answer


class WholeTest(unittest.TestCase):
    """One start each."""

    def setUp(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="hypemand-launcher.")
        self.addCleanup(self.folder.cleanup)
        self.runtime = Path(self.folder.name)
        for name in ("config", "disk", "device"):
            (self.runtime / name).write_bytes(b"")
        self.tap = self.runtime / "tap"

    def launch(
        self,
        *words: str,
        tap: str = "-",
        run: str = RUN,
        secrets: str = "",
        credentials: str = "",
        restore: str = "",
        warm: str = "",
    ) -> subprocess.Popen[str]:
        """Start it, with the VMM's arguments."""
        env = {"INVOCATION_ID": run} if run else {}
        env |= {"CREDENTIALS_DIRECTORY": credentials} if credentials else {}
        options = [f"--secrets={secrets}"] if secrets else []
        options += [f"--restore={restore}"] if restore else []
        options += [f"--warm={warm}"] if warm else []
        options += ["--preload=library.so,memory"] if warm or restore else []
        argv = [LAUNCHER, *options, str(self.runtime), tap, "quiet", VMM, *words]
        process = subprocess.Popen(
            argv,
            cwd=self.runtime,
            env=env,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.addCleanup(process.wait, DEADLINE)
        self.addCleanup(process.kill)
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            self.addCleanup(stream.close)
        return process

    def run_it(
        self, *words: str, tap: str = "-", run: str = RUN, restore: str = "", warm: str = ""
    ) -> tuple[int, list[str], str]:
        """Exit status, lines and errors of a start that ends by itself."""
        process = self.launch(*words, tap=tap, run=run, restore=restore, warm=warm)
        told, errors = process.communicate(timeout=3 * DEADLINE)
        return process.returncode, told.splitlines(), errors

    def test_it_becomes_the_vmm_with_the_boot_id_on_the_kernels_command_line(self) -> None:
        """Its own arguments first."""
        status, lines, errors = self.run_it("-m", "128M")
        self.assertEqual((status, errors), (0, ""))
        arguments = [line.partition(" ")[2] for line in lines if line.startswith("argument ")]
        run, boot = (self.runtime / "run").read_text().split()
        self.assertEqual(run, RUN)
        self.assertEqual(arguments, ["-m", "128M", "-append", f"quiet hypeman.boot={boot}"])
        self.assertIn("blocked 0", lines)

    def test_each_start_has_a_boot_id_of_its_own_also_in_one_run(self) -> None:
        """And the record is of the last."""
        starts = []
        for _ in range(2):
            self.assertEqual(self.run_it()[0], 0)
            starts.append((self.runtime / "run").read_text().split())
        self.assertEqual([run for run, _ in starts], [RUN, RUN])
        self.assertNotEqual(starts[0][1], starts[1][1])

    def test_a_saved_vm_is_restored_with_the_boot_id_that_it_has(self) -> None:
        """By the last arguments, and without a kernel, which is in its memory; the state of its devices is
        open, at its place, to be read."""
        state = self.runtime / "state"
        state.write_bytes(b"state")
        words = ("-kernel", "k", "-m", "128M", "-initrd", "i", "-S", "in")
        status, lines, errors = self.run_it(*words, restore=f"{state},{BOOT},2")
        self.assertEqual((status, errors), (0, ""))
        arguments = [line.partition(" ")[2] for line in lines if line.startswith("argument ")]
        self.assertEqual(arguments, ["-m", "128M", "-S", "in"])
        self.assertEqual((self.runtime / "run").read_text(), f"{RUN} {BOOT}\n")
        self.assertIn("fd 9 file", lines)

    def test_a_cold_start_is_left_where_the_state_has_gone(self) -> None:
        """As at a restart that systemd makes alone: nothing is bound at its place then, or an empty file."""
        state = self.runtime / "state"
        for is_there in (False, True):
            if is_there:
                state.touch()
            words = ("-kernel", "k", "-m", "128M", "-S", "in")
            status, lines, errors = self.run_it(*words, restore=f"{state},{BOOT},2")
            self.assertEqual((status, errors), (0, ""))
            _, boot = (self.runtime / "run").read_text().split()
            self.assertNotEqual(boot, BOOT)
            arguments = [line.partition(" ")[2] for line in lines if line.startswith("argument ")]
            line = f"quiet hypeman.boot={boot}"
            self.assertEqual(arguments, ["-kernel", "k", "-m", "128M", "-append", line])
            self.assertNotIn("fd 9 file", lines)

    def test_a_restore_that_cannot_be_is_refused(self) -> None:
        """Rather than that a VM is booted whose state is there."""
        state = self.runtime / "state"
        state.symlink_to("disk")
        status, lines, errors = self.run_it(restore=f"{state},{BOOT},1")
        self.assertEqual((status, lines), (1, []))
        self.assertIn("cannot read the saved state of the VM: ", errors)
        for option in (f"{state},{BOOT}", f"{state},{BOOT},0", f"{state},{BOOT},1x", f"{state},x,1", ","):
            status, lines, errors = self.run_it("-S", restore=option)
            self.assertEqual((status, lines), (1, []), option)
            self.assertIn("--restore is not STATE,BOOT,COUNT", errors)
        state.unlink()
        status, lines, errors = self.run_it("-S", restore=f"{state},{BOOT},60")
        self.assertEqual((status, lines), (1, []))
        self.assertIn("usage: launcher", errors)

    def make_template(self) -> str:
        """The option for one, of which the VMM's last two arguments are."""
        config, state, memory = (self.runtime / name for name in ("config.img", "state", "memory"))
        config.write_bytes(b"HYPECFG1".ljust(512, b"x"))
        state.write_bytes(b"state")
        memory.write_bytes(b"memory")
        os.utime(memory, ns=(1, 1_700_000_000_123_456_789))
        return f"{state},{zlib.crc32(b'state')},2,{memory}:6:1700000000123456789"

    def test_a_template_is_gone_on_from_with_all_that_makes_a_vm_its_own(self) -> None:
        """Behind the configuration, and once however often it starts."""
        template, blocks = self.make_template(), []
        for _ in range(2):
            kernel = ("-kernel", "k", "-initrd", "i")
            began = time.time()
            status, lines, errors = self.run_it("-m", "128M", *kernel, "-S", "in", warm=template)
            self.assertEqual((status, errors), (0, ""))
            self.assertIn("preload library.so memory", lines)
            self.assertEqual((self.runtime / "warm").read_text(), RUN)
            arguments = [line.partition(" ")[2] for line in lines if line.startswith("argument ")]
            _, boot = (self.runtime / "run").read_text().split()
            self.assertEqual(arguments, ["-m", "128M", "-S", "in"], "kernel and initrd are in its memory")
            self.assertIn("fd 9 file", lines)
            config = (self.runtime / "config.img").read_bytes()
            self.assertEqual((len(config), config[:512]), (8192, b"HYPECFG1".ljust(512, b"x")))
            magic, length = struct.unpack("<8sI", config[4096:4108])
            records = dict(r.split(b"=", 1) for r in config[4108 : 4108 + length].split(b"\0")[:-1])
            self.assertEqual((magic, records[b"words"].decode()), (b"HYPESTA1", f"quiet hypeman.boot={boot}"))
            self.assertTrue(began <= int(records[b"clock"]) / 1e9 <= time.time())
            blocks.append(bytes.fromhex(records[b"entropy"].decode()))
        self.assertEqual({len(block) for block in blocks}, {64})
        self.assertNotEqual(*blocks)

    def test_a_cold_start_is_left_where_a_template_is_not_what_it_was(self) -> None:
        """Without a word where it has gone."""
        template, state = self.make_template(), self.runtime / "state"
        stalled = self.runtime / "stalled"
        for case, words in (
            (lambda: state.write_bytes(b"stat?"), "the template for a warm start is damaged"),
            (lambda: state.write_bytes(b"stat"), "the template for a warm start is damaged"),
            (lambda: os.utime(self.runtime / "memory"), f"since {self.runtime}/memory is another file"),
            ((self.runtime / "memory").unlink, f"since {self.runtime}/memory is another file"),
            (lambda: stalled.write_text(RUN), "the VM boots: it has not continued from its template"),
            (state.unlink, ""),
            (lambda: state.write_bytes(b""), ""),
        ):
            self.make_template()
            stalled.unlink(missing_ok=True)
            case()
            (self.runtime / "warm").touch()
            status, lines, errors = self.run_it("-m", "128M", "-S", "in", warm=template)
            self.assertEqual((status, words in errors), (0, True), errors)
            self.assertEqual(errors.count("\n"), 1 if words else 0)
            arguments = [line.partition(" ")[2] for line in lines if line.startswith("argument ")]
            self.assertEqual(arguments[:3], ["-m", "128M", "-append"])
            self.assertNotIn("fd 9 file", lines)
            self.assertFalse([line for line in lines if line.startswith("preload")])
            self.assertFalse((self.runtime / "warm").exists())
            self.assertEqual((self.runtime / "config.img").stat().st_size, 512)

    def test_what_another_run_has_not_continued_from_counts_no_more(self) -> None:
        template, stalled = self.make_template(), self.runtime / "stalled"
        stalled.write_text("0" * 32)
        _, lines, errors = self.run_it("-m", "128M", "-S", "in", warm=template)
        self.assertEqual(errors, "")
        self.assertIn("fd 9 file", lines)
        self.assertFalse(stalled.exists())

    def test_a_cold_start_is_left_where_the_guest_cannot_be_told_what_is_its_own(self) -> None:
        template = self.make_template()
        (self.runtime / "config.img").unlink()
        status, lines, errors = self.run_it("-m", "128M", "-S", "in", warm=template)
        self.assertEqual(status, 0)
        self.assertIn("the VM boots: cannot write what a warm start needs to", errors)
        arguments = [line.partition(" ")[2] for line in lines if line.startswith("argument ")]
        self.assertEqual(arguments[:3], ["-m", "128M", "-append"])

    def test_an_option_for_a_template_that_is_none_is_refused(self) -> None:
        state = self.make_template().partition(",")[0]
        for option in (
            "",
            f"{state},1",
            f"{state},x,1,",
            f"{state},1,0,",
            f"{state},-1,1,",
            f",1,1,{state}:1:1",
        ):
            status, lines, errors = self.run_it("-S", warm=option or ",")
            self.assertEqual((status, lines), (1, []), option)
            self.assertIn("--warm is not STATE,CRC,COUNT,FILE:SIZE:MTIME,...", errors)

    def test_a_start_whose_boot_cannot_be_noted_fails(self) -> None:
        """Before there is a VMM: what it said would count for nothing."""
        (self.runtime / "run").mkdir()
        status, lines, errors = self.run_it()
        self.assertEqual((status, lines), (1, []))
        self.assertIn(f"cannot write {self.runtime}/run: Is a directory", errors)

    def test_the_vmm_has_its_ports_and_its_device_and_no_other_descriptor(self) -> None:
        """By the numbers of ports.h; the ports can be connected to, and it can listen on them, at once and
        after a restart."""
        for attempt in range(2):
            tap = self.runtime / f"tap{attempt}"
            service = Service(tap, give(self.runtime / "device"))
            status, lines, errors = self.run_it(tap=str(tap))
            self.assertEqual((status, errors), (0, ""))
            service.join(DEADLINE)
            service.close()
            self.assertEqual(service.peer[1], os.getuid())
            found = {line for line in lines if line.startswith("fd ")}
            ports = {f"fd {number} {self.runtime}/{name}.sock 1 0" for name, number in PORTS.items()}
            self.assertEqual(found, {"fd 3 file", *ports})

    def start_with_secrets(self, names: str, credentials: str) -> tuple[int, str, str]:
        """Exit status, the first line of the disk, and errors."""
        process = self.launch(secrets=names, credentials=credentials)
        told, errors = process.communicate(timeout=3 * DEADLINE)
        line = next((line for line in told.splitlines() if line.startswith("secrets ")), "")
        if line:
            self.assertIn(f"secrets-write {errno.EBADF}", told)
            self.assertIn("argument -append", told)
        return process.returncode, line.partition(" ")[2], errors

    def test_the_vmm_has_a_disk_of_the_credentials_that_were_named(self) -> None:
        """As the host writes a files disk; the leader does not hold it."""
        folder = self.runtime / "credentials"
        folder.mkdir()
        (folder / "key").write_bytes(b"a\0b" * 3000)
        (folder / "none").write_bytes(b"")
        (folder / "other").write_bytes(b"x")
        status, line, errors = self.start_with_secrets("none,key", str(folder))
        self.assertEqual((status, errors), (0, ""))
        body = struct.pack("<II", 10, 0) + b"name=none\0" + struct.pack("<II", 9, 9000) + b"name=key\0"
        disk = b"HYPEFIL1" + struct.pack("<II", len(body) + 9000, 2) + body + b"a\0b" * 3000
        self.assertEqual(bytes.fromhex(line), disk[:4096])
        process = self.launch("wait", secrets="key", credentials=str(folder))
        self.wait_for(process, "done 0")
        leader = Path(f"/proc/{self.find_leader(process.pid)}/fd")
        end = time.monotonic() + DEADLINE
        while "8" in os.listdir(leader):  # it closes that first of all, beside the VMM
            self.assertLess(time.monotonic(), end)
            time.sleep(0.01)
        self.assertIn("8", os.listdir(f"/proc/{process.pid}/fd"))
        self.assertEqual((Path(f"/proc/{process.pid}/fd/8")).stat().st_size % 512, 0)

    def test_a_start_without_its_secrets_fails(self) -> None:
        """And says which is missing."""
        folder = self.runtime / "credentials"
        folder.mkdir()
        (folder / "link").symlink_to(self.runtime / "config")
        (folder / "folder").mkdir()
        (folder / "large").touch()
        os.truncate(folder / "large", (1 << 20) + 1)
        for names, credentials, words in (
            ("key", "", "CREDENTIALS_DIRECTORY is not set"),
            ("key", "/nowhere", "there are no credentials: No such file"),
            ("key", str(folder), "cannot read the secret key: No such file"),
            ("link", str(folder), "cannot read the secret link: "),
            ("folder", str(folder), "cannot read the secret folder: "),
            ("large", str(folder), "cannot read the secret large: File too large"),
            (",b", str(folder), "the names of the secrets cannot be read"),
            ("x" * 65, str(folder), "the names of the secrets cannot be read"),
        ):
            status, line, errors = self.start_with_secrets(names, credentials)
            self.assertEqual((status, line), (1, ""))
            self.assertIn(words, errors)

    def test_without_a_network_there_is_no_device(self) -> None:
        """And nobody is asked."""
        _, lines, _ = self.run_it()
        found = {int(line.split()[1]) for line in lines if line.startswith("fd ")}
        self.assertEqual(found, set(PORTS.values()))

    def test_a_vmm_that_was_taken_over_is_refused_each_thing(self) -> None:
        """EPERM is the filter's; a file refuses requests to a TAP or block device with ENOTTY."""
        service = Service(self.tap, give(self.runtime / "device"))
        _, lines, _ = self.run_it(tap=str(self.tap))
        service.close()
        pairs = (line.partition(" ") for line in lines if not line.startswith("blocked "))
        told = {name: int(number) for name, _, number in pairs if number.isdigit()}
        allowed = (
            "TUNGETF",
            "TUNGETI",
            "TUNGETV",
            "TUNSETO",
            "KVM",
            "BLKRO",
            "BLKG",
            "BLKS",
            "BLKPB",
            "BLKD",
            "BLKZ",
        )
        uses = {name for name in told if name.startswith(allowed)}
        uses -= {name for name in told if name.startswith("TUNSETOWNER")}
        self.assertEqual(len(uses), 22)
        self.assertEqual({told[name] for name in uses}, {errno.ENOTTY})
        self.assertEqual({told[name] for name in ALLOWED}, {0})
        refused = set(told) - uses - ALLOWED
        self.assertEqual({name: told[name] for name in refused}, dict.fromkeys(refused, errno.EPERM))
        self.assertEqual(len(refused), 59)
        self.assertFalse((self.runtime / "made").exists())

    def test_the_leader_tells_the_guest_to_power_off(self) -> None:
        """Twice by one connection: the VMM serves one at a time."""
        process = self.launch("wait")
        self.wait_for(process, "done 0")
        leader = self.find_leader(process.pid)
        with self.listen("stop") as listener:
            os.kill(leader, POWEROFF)
            connection, _ = listener.accept()
            connection.settimeout(DEADLINE)
            with connection:
                self.assertEqual(connection.recv(100), b"poweroff 25\n")
                os.kill(leader, POWEROFF)
                self.assertEqual(connection.recv(100), b"poweroff 25\n")
            # of a VMM that has closed it there is a new one, also when the unit's watchdog asks for it
            os.kill(leader, WATCHDOG)
            connection, _ = listener.accept()
            connection.settimeout(DEADLINE)
            with connection:
                self.assertEqual(connection.recv(100), b"poweroff 25\n")

    def test_a_leader_that_finds_no_vmm_says_so_and_goes_on(self) -> None:
        """Nobody listens."""
        process = self.launch("wait")
        self.wait_for(process, "done 0")
        leader = self.find_leader(process.pid)
        (self.runtime / "stop.sock").unlink()
        os.kill(leader, POWEROFF)
        assert process.stderr is not None
        told = process.stderr.readline()
        self.assertEqual(told, "launcher: cannot ask the guest to power off: No such file or directory\n")
        os.kill(leader, 0)

    def test_the_leader_ends_with_the_vmm_however_that_ends(self) -> None:
        """Nothing of a unit survives its main process."""
        process = self.launch("wait")
        self.wait_for(process, "done 0")
        leader = self.find_leader(process.pid)
        self.assertNotEqual(
            Path(f"/proc/{leader}/comm").read_text(), Path(f"/proc/{process.pid}/comm").read_text()
        )
        self.assertEqual(
            {
                os.readlink(f"/proc/{leader}/fd/{fd}")
                for fd in os.listdir(f"/proc/{leader}/fd")
                if int(fd) > 2
            },
            set(),
        )
        watch = os.pidfd_open(leader)
        process.send_signal(signal.SIGKILL)
        process.wait(DEADLINE)
        await_end(self, watch)

    def test_a_service_that_refuses_says_why(self) -> None:
        """In its own words, of which none begins a line."""
        service = Service(
            self.tap, lambda connection: void(connection.send(b"Ehv7 is not there\n<0>x\x1b[2J"))
        )
        status, _, errors = self.run_it(tap=str(self.tap))
        service.close()
        self.assertEqual((status, errors), (1, "launcher: no TAP device: hv7 is not there?<0>x?[2J\n"))

    def test_a_service_that_is_down_is_an_error_that_names_it(self) -> None:
        """No socket; a socket that nobody listens on; a service that dies of the request."""
        status, _, errors = self.run_it(tap=str(self.tap))
        self.assertEqual(status, 1)
        self.assertRegex(
            errors, "cannot be reached: .*/tap: No such file or directory; systemctl status hypemand-tap"
        )
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as bound:
            bound.bind(str(self.tap))
        status, _, errors = self.run_it(tap=str(self.tap))
        self.assertRegex(errors, "cannot be reached: .*: Connection refused; systemctl status hypemand-tap")
        other = self.runtime / "other"
        service = Service(other, lambda connection: None)
        status, _, errors = self.run_it(tap=str(other))
        service.close()
        self.assertEqual(status, 1)
        self.assertRegex(
            errors,
            "no answer from the network service: the connection was closed; systemctl status hypemand-tap",
        )

    def test_an_answer_that_is_none_is_refused(self) -> None:
        """Neither a descriptor nor a reason."""
        service = Service(self.tap, lambda connection: void(connection.send(b"?")))
        status, _, errors = self.run_it(tap=str(self.tap))
        service.close()
        self.assertEqual(status, 1)
        self.assertRegex(errors, "invalid answer from the network service; systemctl status hypemand-tap")

    def test_a_service_that_hangs_is_waited_for_so_long_and_no_longer(self) -> None:
        """10 s."""
        service = Service(self.tap, lambda connection: void(connection.recv(1)))
        status, _, errors = self.run_it(tap=str(self.tap))
        service.close()
        self.assertEqual(status, 1)
        self.assertRegex(errors, "did not provide the TAP device within 10 s; systemctl status hypemand-tap")

    def test_what_no_unit_would_do_is_refused(self) -> None:
        """No invocation id, no VMM, no such VMM, no runtime folder."""
        status, _, errors = self.run_it(run="")
        self.assertEqual(status, 1)
        self.assertRegex(errors, "INVOCATION_ID is not 32 hex digits; this program must be started by")
        for argv, told in (
            ([LAUNCHER, "/", "-", "quiet"], "usage: launcher"),
            ([LAUNCHER, str(self.runtime), "-", "quiet", "/no/vmm"], "cannot execute /no/vmm: No such file"),
            ([LAUNCHER, "/no/folder", "-", "quiet", VMM], "cannot write /no/folder/run: No such file"),
        ):
            ended = subprocess.run(
                argv,
                env={"INVOCATION_ID": RUN},
                capture_output=True,
                text=True,
                timeout=DEADLINE,
                check=False,
            )
            self.assertEqual(ended.returncode, 1)
            self.assertIn(told, ended.stderr)

    # helpers

    def wait_for(self, process: subprocess.Popen[str], line: str) -> None:
        """Read the VMM's lines up to that one."""
        assert process.stdout is not None
        for told in process.stdout:
            if told == f"{line}\n":
                return
        self.fail("the VMM has ended")

    def find_leader(self, pid: int) -> int:
        """The one child of the VMM."""
        (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(child)

    def listen(self, name: str) -> socket.socket:
        """In the place of the VMM."""
        path = self.runtime / f"{name}.sock"
        path.unlink()
        listener = socket.socket(socket.AF_UNIX)
        listener.settimeout(DEADLINE)
        listener.bind(str(path))
        listener.listen(1)
        return listener


def await_end(test: unittest.TestCase, watch: int) -> None:
    """Wait until the process of a pidfd has ended."""
    ready, _, _ = select.select([watch], [], [], DEADLINE)
    os.close(watch)
    test.assertTrue(ready)


def void(_: object) -> None:
    """For what is called for its effect."""


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
