# SPDX-License-Identifier: Apache-2.0
"""Boot real guests under QEMU and see what they say: the whole of the guest side, kernel included.

Needs a kernel (HYPEMAN_KERNEL) and the initrd (HYPEMAN_INITRD), qemu-system-x86_64, mkfs.erofs, mkfs.ext4 and
a static busybox. Run by `make -C guest boot-check KERNEL=…`; with SHOW_CONSOLE=1 consoles are shown.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import struct
import subprocess
import tempfile
import time
import unittest
import uuid
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from frames import Channel, Type, format_records
from machine import PLAIN, Machine, format_command

BUSYBOX = "/bin/busybox"
BOOT_S = 180.0
# a shell, as a script: what systemd mode takes for the way to systemd
SCRIPT_INIT = "/bin/init"
APPLETS = (
    *("sh", "cat", "sleep", "id", "ls", "ps", "mount", "env", "tail", "dd", "echo", "ip", "readlink"),
    *("uname", "grep", "stat", "find", "ln", "ping", "wc", "touch", "rm", "true", "nc", "setsid"),
    *("modprobe", "insmod", "mknod", "cp"),
)


def make_root(root: Path) -> None:
    """A busybox root: a user `app` in two groups, a file that is no program, no /etc/hosts."""
    for name in ("bin", "etc", "tmp"):
        (root / name).mkdir(parents=True)
    shutil.copy(BUSYBOX, root / "bin/busybox")
    for applet in APPLETS:
        (root / "bin" / applet).symlink_to("busybox")
    (root / "tmp").chmod(0o1777)
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\napp:x:500:500::/srv/app:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\napp:x:500:\nextra:x:600:app\n")
    (root / "var/lib/dbus").mkdir(parents=True)
    (root / "var/lib/dbus/machine-id").write_text("e" * 32 + "\n")
    (root / "etc/data").write_text("no program\n")
    make_i386_program(root / "bin/i386")
    (root / SCRIPT_INIT[1:]).write_text('#!/bin/sh\nexec /bin/sh "$@"\n')
    (root / SCRIPT_INIT[1:]).chmod(0o755)


def make_i386_program(path: Path) -> None:
    """time(2) as programs of its time called it, and exit(42), or 1 where there is no such call."""
    code = bytes.fromhex("b80d000000 31db cd80 bb01000000 85c0 7e05 bb2a000000 b801000000 cd80")
    base, start, end = 0x08048000, 84, 84 + len(code)
    header = b"\x7fELF\x01\x01\x01" + bytes(9)
    header += struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, base + start, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    header += struct.pack("<8I", 1, 0, base, base, end, end, 5, 4096)
    path.write_bytes(header + code)
    path.chmod(0o755)


def make_erofs(image: Path, root: Path) -> Path:
    subprocess.run(["mkfs.erofs", "-T0", image, root], check=True, capture_output=True, timeout=60)
    return image


def make_ext4(image: Path, root: Path | None = None) -> Path:
    """64 MiB, with what is in `root`."""
    with image.open("wb") as disk:
        disk.truncate(64 << 20)
    content = () if root is None else ("-d", root)
    subprocess.run(["mkfs.ext4", "-q", *content, image], check=True, timeout=60)
    return image


def format_config(records: Sequence[tuple[str, str]]) -> bytes:
    body = format_records(records)
    disk = struct.pack("<8sII", b"HYPECFG1", len(body), zlib.crc32(body)) + body
    return disk + bytes(-len(disk) % 512)


@dataclass
class Guest:
    """A booted QEMU: its process, its console, its ports as sockets."""

    process: subprocess.Popen[bytes]
    folder: Path
    boot: str
    console: str = ""

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Read the console until it matches."""
        deadline = time.monotonic() + BOOT_S
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), True)
        while (match := re.search(pattern, self.console)) is None:
            got = os.read(self.process.stdout.fileno(), 65536)
            if not got or time.monotonic() > deadline:
                raise AssertionError(f"{pattern!r} does not come:\n{self.console}")
            self.console += got.decode(errors="replace")
        return match

    def finish(self) -> str:
        """The console up to QEMU's own end."""
        assert self.process.stdout is not None
        rest, _ = self.process.communicate(timeout=BOOT_S)
        self.console += rest.decode(errors="replace")
        assert self.process.returncode == 0, self.process.returncode
        return self.console

    def exit_report(self) -> tuple[int, str]:
        reports = re.findall(rf'HYPEMAN-EXIT code=(\d+) message="(.*)" boot={self.boot}\n', self.finish())
        assert len(reports) == 1, self.console
        return int(reports[0][0]), reports[0][1]

    def stages(self) -> dict[str, tuple[float, float]]:
        """Start and end of each stage, once the guest has finished."""
        pattern = r"HYPEMAN-STAGE name=(\S+) start=(\S+) end=(\S+) boot="
        return {name: (float(start), float(end)) for name, start, end in re.findall(pattern, self.console)}

    def channel(self) -> Channel:
        return Channel.connect(str(self.folder / "agent"), self.boot)

    def order_poweroff(self, grace: int) -> socket.socket:
        stop = socket.socket(socket.AF_UNIX)
        stop.connect(str(self.folder / "stop"))
        stop.sendall(f"poweroff {grace}\n".encode())
        return stop


class BootCase(unittest.TestCase):
    """Boots guests of one image."""

    image: Path
    shared: tempfile.TemporaryDirectory[str]

    @classmethod
    def setUpClass(cls) -> None:
        cls.shared = tempfile.TemporaryDirectory(prefix="hypeman-boot-")
        cls.addClassCleanup(cls.shared.cleanup)
        root = Path(cls.shared.name) / "root"
        make_root(root)
        cls.change_root(root)
        cls.image = make_erofs(Path(cls.shared.name) / "image.erofs", root)

    @classmethod
    def change_root(cls, root: Path) -> None:
        """What else is in the image."""

    @contextmanager
    def guest(
        self,
        *argv: str,
        memory: int = 128,
        agent: str = "1",
        mode: str = "exec",
        headers: str = "0",
        machine: Machine = PLAIN,
        **records: str,
    ) -> Iterator[Guest]:
        boot = uuid.uuid4().hex
        with tempfile.TemporaryDirectory(prefix="hypeman-guest-") as name:
            folder = Path(name)
            fixed = [
                ("version", "1"),
                ("name", "vm1"),
                ("mode", mode),
                ("agent", agent),
                ("headers", headers),
            ]
            config = fixed + [("arg", argument) for argument in argv] + list(records.items())
            config += machine.records
            (folder / "config").write_bytes(format_config(config))
            disk = machine.disk or make_ext4(folder / "disk")
            process = subprocess.Popen(
                format_command(folder, machine, self.image, boot, memory, mode),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
            )
            guest = Guest(process, folder, boot)
            try:
                yield guest
                self.check_ext4(disk, left=mode == "exec")
            finally:
                process.kill()
                process.communicate()
                if os.environ.get("SHOW_CONSOLE"):
                    print(f"\n--- {self.id()}\n{guest.console}")

    def check_ext4(self, disk: Path, *, left: bool = True) -> None:
        """A disk whose file system is whole; `left`: and was left in order. In systemd mode it is systemd
        that leaves the root, and the programs that stand for it here do not."""
        check = subprocess.run(["e2fsck", "-fn", disk], capture_output=True, timeout=60, check=False)
        self.assertEqual(check.returncode, 0, check.stdout)
        if not left:
            return
        header = subprocess.run(["dumpe2fs", "-h", disk], capture_output=True, timeout=60, check=True)
        self.assertNotIn(b"needs_recovery", header.stdout)


class GuestBoot(BootCase):
    def test_program_runs_and_its_code_is_reported(self) -> None:
        script = "echo hello; env; mount; cat /etc/hosts /etc/hostname; ls -l /dev/stdout; pwd; ps; exit 3"
        with self.guest("sh", "-c", script, env="A=b c", workdir="/data/x") as guest:
            self.assertEqual(guest.exit_report(), (3, "exited with code 3"))
            self.assertNotIn("\r", guest.console)
            for expected in (
                "hello\n",
                "A=b c\n",
                "HOME=/root\n",
                "HOSTNAME=vm1\n",
                "127.0.0.1\tlocalhost vm1\n",
                "/data/x\n",
            ):
                self.assertIn(expected, guest.console)
            words = ("HYPEMAN-AGENT-READY", "HYPEMAN-PROGRAM-START", "HYPEMAN-STAGE", "HYPEMAN-EXIT")
            order = [guest.console.index(word) for word in words]
            self.assertEqual(order, sorted(order))

    def test_user_workdir_and_groups(self) -> None:
        with self.guest("sh", "-c", "id; echo again >/dev/stdout; pwd", user="app", agent="0") as guest:
            self.assertEqual(guest.exit_report()[0], 0)
            self.assertIn("uid=500(app) gid=500(app) groups=600(extra)", guest.console)
            self.assertIn("again\n", guest.console)
            self.assertNotIn("AGENT-READY", guest.console)

    def test_who_is_not_root_may_ping_and_have_any_port(self) -> None:
        script = (
            "cat /proc/sys/net/ipv4/ping_group_range;"
            "nc -l -p 80 127.0.0.1 >/tmp/got & sleep 1; echo hello | nc -w 5 127.0.0.1 80; wait; cat /tmp/got"
        )
        with self.guest("sh", "-c", script, user="500:500", agent="0") as guest:
            self.assertEqual(guest.exit_report()[0], 0)
            self.assertIn("0\t2147483647\nhello\n", guest.console)
        script = """
        cat /proc/sys/net/ipv4/ip_unprivileged_port_start
        ln -s /run/initramfs/shutdown /shutdown; exec /shutdown halt
        """
        with self.guest(SCRIPT_INIT, "-c", script, mode="systemd", agent="0") as guest:
            self.assertEqual(guest.exit_report()[0], 0)
            self.assertIn("\n1024\n", guest.console)

    def test_the_program_has_a_pid_namespace_of_its_own(self) -> None:
        """It cannot reach init and agent; commands join it, and end with all that they have started."""
        script = "echo pid $$; trap '' CHLD; while :; do sleep 1000; done"
        for init, own, words in (("0", "1", "sh"), ("1", "2", "hypeman-reaper")):
            with self.guest("sh", "-c", script, init=init) as guest, contextlib.ExitStack() as stack:
                guest.wait_for(f"pid {own}\n")
                guest.wait_for("HYPEMAN-PROGRAM-START")
                channel = stack.enter_context(contextlib.closing(guest.channel()))
                channel.greet()
                show = "cat /proc/1/comm; ps | grep -E 'hypeman-(init|agent)'; echo $PPID"
                self.assertEqual(channel.run(["sh", "-c", show]).output[1].decode(), f"{words}\n0\n")
                drop = channel.start(["sh", "-c", "setsid sleep 777 & exec sleep 778"])
                channel.expect(Type.STARTED)
                while b"777" not in channel.run(["ps"]).output[1]:
                    pass
                channel.send(Type.CLOSE, stream=drop)
                channel.collect(drop)
                while re.search(rb"77[78]", channel.run(["ps"]).output[1]):
                    pass
                if init == "0":
                    channel.run(["sh", "-c", "kill -KILL -1; true"])
                    self.assertEqual(channel.run(["echo", "here"]).output[1], b"here\n")
                stack.enter_context(guest.order_poweroff(1000))
                report = (143, "stopped on request: killed by signal 15 (TERM)")
                self.assertEqual(guest.exit_report(), report)

    def test_kernel_parameters_memory_file_systems_and_capabilities(self) -> None:
        script = """
        cat /proc/sys/net/core/somaxconn /proc/sys/vm/max_map_count /proc/sys/fs/inotify/max_user_watches
        grep -E ' /(tmp|srv/app/cache|var/new) ' /proc/mounts; stat -c '%n %a %u' /tmp /srv/app/cache /var/new
        touch /made || echo refused; touch /tmp/made && echo written; grep CapEff /proc/self/status
        """
        records = (
            ("sysctl", "net.core.somaxconn=77"),
            ("sysctl", "net/ipv4/conf/lo/forwarding=1"),
            ("tmpfs", "/tmp"),
            ("tmpfs", "/srv/app/cache:size=64k,mode=0711,uid=500,exec"),
            ("tmpfs", "/var/new:ro,nr_inodes=50"),
            ("read_only", "1"),
            ("capabilities", "21"),
        )
        with self.guest("sh", "-c", script, agent="0", machine=Machine(records=records)) as guest:
            self.assertEqual(guest.exit_report()[0], 0)
        for shown in (
            "\n77\n1048576\n65536\n",
            "tmpfs /tmp tmpfs rw,nosuid,nodev,noexec,relatime",
            "tmpfs /srv/app/cache tmpfs rw,nosuid,nodev,relatime,size=64k,mode=711,uid=500",
            "tmpfs /var/new tmpfs ro,nosuid,nodev,noexec,relatime,nr_inodes=50",
            "/tmp 1777 0\n/srv/app/cache 711 500\n/var/new 1777 0\n",
            "refused\nwritten\n",
            "CapEff:\t0000000000000021\n",
        ):
            self.assertIn(shown, guest.console)

    def test_api_file_systems_are_those_of_the_mode(self) -> None:
        """An image's own init mounts some of them itself, with options of its own."""
        script = """
        cat /proc/mounts; echo shown
        ls -1d /dev/pts/ptmx /sys/class/net/lo /dev/fd/0 /sys/fs/cgroup/cgroup.procs
        [ -e /run/initramfs/shutdown ] || exit 0
        ln -s /run/initramfs/shutdown /shutdown; exec /shutdown halt
        """
        inits = [
            "devpts /dev/pts devpts rw,nosuid,noexec,relatime,gid=5,mode=620,ptmxmode=666",
            "tmpfs /dev/shm tmpfs rw,nosuid,nodev,relatime",
            "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid,nodev,noexec,relatime",
        ]
        for mode, words in (("exec", ["sh", "-c", script]), ("systemd", [SCRIPT_INIT, "-c", script])):
            with self.guest(*words, mode=mode, agent="0") as guest:
                self.assertEqual(guest.exit_report()[0], 0)
            shown, _, rest = guest.console.partition("shown\n")
            lines = shown.splitlines()
            for always in (
                "proc /proc proc rw,nosuid,nodev,noexec,relatime",
                "sysfs /sys sysfs rw,nosuid,nodev,noexec,relatime",
                "devtmpfs /dev devtmpfs rw,nosuid,relatime,",
            ):
                self.assertTrue(any(line.startswith(always) for line in lines), shown)
            for own in inits:
                found = [line for line in lines if line.split()[1:2] == own.split()[1:2]]
                self.assertEqual(len(found), 1 if mode == "exec" else 0, shown)
                self.assertTrue(all(line.startswith(own) for line in found), shown)
            self.assertIn("/dev/fd/0\n", rest)
            self.assertIn("/sys/class/net/lo\n", rest)
            self.assertEqual("/dev/pts/ptmx\n" in rest, mode == "exec")
            self.assertEqual("/sys/fs/cgroup/cgroup.procs\n" in rest, mode == "exec")

    def test_what_the_kernel_does_not_take_ends_the_boot(self) -> None:
        for record, words in (
            (
                ("sysctl", "net.none=1"),
                "cannot set sysctl net.none=1: the guest's kernel has no such parameter",
            ),
            (
                ("sysctl", "vm.max_map_count=many"),
                "cannot set sysctl vm.max_map_count=many: Invalid argument",
            ),
            (("tmpfs", "/tmp:size=much"), "tmpfs /tmp: cannot mount it with these options: Invalid argument"),
        ):
            with self.subTest(record), self.guest("true", machine=Machine(records=(record,))) as guest:
                self.assertEqual(guest.exit_report(), (125, words))

    def test_limits_are_as_of_a_service_or_as_the_host_says(self) -> None:
        """exec_mode.py has those that the host says of exec mode."""
        script = "ulimit -Sn; ulimit -Hn; ulimit -Hc"
        with self.guest("sh", "-c", script, user="app", agent="0") as guest:
            self.assertEqual(guest.exit_report()[0], 0)
            self.assertIn("1024\n524288\nunlimited\n", guest.console)

    def test_systemd_gets_the_machine_id_of_the_vm_until_it_has_one(self) -> None:
        own, show = "0123456789abcdef" * 2, 'echo "<$0>"; ls -l /var/lib/dbus'
        end = "ln -sf /run/initramfs/shutdown /shutdown; exec /shutdown halt"
        with tempfile.TemporaryDirectory() as name:
            machine = Machine(disk=make_ext4(Path(name) / "disk"))
            for write, said in (
                ("true", f"<--machine-id={own}>"),
                (f"echo {own} >/etc/machine-id", own),
                ("true", "<"),
            ):
                words = (SCRIPT_INIT, "-c", f"{show}; {write}; {end}")
                with self.guest(*words, mode="systemd", agent="0", machine_id=own, machine=machine) as guest:
                    self.assertEqual(guest.exit_report()[0], 0)
                    self.assertIn(said, guest.console)
                    self.assertIn("machine-id -> /etc/machine-id\n", guest.console)
            self.assertNotIn("--machine-id", guest.console)

    def test_a_disk_of_another_vm_gets_the_machine_id_of_this_one(self) -> None:
        """And no SSH host keys of the other, if that is asked for."""
        own, other, foreign = "0123456789abcdef" * 2, "f" * 32, "e" * 32
        units = "/run/systemd/system"
        show = f"cat /etc/machine-id; ls -1 /etc/ssh; ls -1 {units} {units}/multi-user.target.wants"
        end = "ln -sf /run/initramfs/shutdown /shutdown; exec /shutdown halt"
        fill = "mkdir -p /etc/ssh; cd /etc/ssh; touch ssh_host_a_key ssh_host_a_key.pub sshd_config"
        keys = ("ssh_host_a_key\nssh_host_a_key.pub\nsshd_config\n", "hypeman-ssh-host-keys.service")
        with tempfile.TemporaryDirectory() as name:
            disk = make_ext4(Path(name) / "disk")
            former = (("former_machine_id", foreign), ("former_machine_id", other))
            for script, records, there, removed in (
                (f"{fill}; echo {other} >/etc/machine-id", (), True, False),
                ("true", (("former_machine_id", foreign), ("reset", "ssh-host-keys")), True, False),
                ("true", (*former, ("reset", "ssh-host-keys")), False, True),
                # it has its own id now, and what keys it has are its own
                (fill, (*former, ("reset", "ssh-host-keys")), True, False),
                (f"echo {other} >/etc/machine-id", (), True, False),
                ("true", former, True, False),
            ):
                words = (SCRIPT_INIT, "-c", f"{script}; {show}; {end}")
                machine = Machine(disk=disk, records=records)
                with self.guest(*words, mode="systemd", agent="0", machine_id=own, machine=machine) as guest:
                    self.assertEqual(guest.exit_report()[0], 0)
                    is_own = removed or script == fill or records == former
                    self.assertIn(f"{own if is_own else other}\n", guest.console)
                    self.assertEqual(keys[0] in guest.console, there, script)
                    self.assertEqual(guest.console.count(keys[1]), 2 if removed else 0)

    def test_systemd_mode_has_limits_for_the_services(self) -> None:
        script = """
        cat /run/systemd/system.conf.d/90-hypeman.conf; ulimit -Sn
        ln -s /run/initramfs/shutdown /shutdown; exec /shutdown halt
        """
        with self.guest(SCRIPT_INIT, "-c", script, mode="systemd", ulimit="nofile=64:128") as guest:
            self.assertEqual(guest.exit_report(), (0, "halted from inside"))
            self.assertIn("[Manager]\nDefaultLimitNOFILE=64:128\n1024\n", guest.console)

    def test_a_program_of_32_bits_runs(self) -> None:
        with self.guest("/bin/i386", agent="0") as guest:
            self.assertEqual(guest.exit_report(), (42, "exited with code 42"))

    def test_a_user_and_a_group_by_name(self) -> None:
        """unit.c has all ways to name them, and what becomes of groups and HOME then."""
        with self.guest("sh", "-c", "id; env", user="app:extra", agent="0") as guest:
            self.assertEqual(guest.exit_report()[0], 0)
            self.assertRegex(guest.console, r"uid=500\(app\) gid=600\(extra\)( groups=\d+\S*)?\n")
            self.assertIn("HOME=/srv/app\n", guest.console)

    def test_not_found(self) -> None:
        """exec_mode.py has all that cannot be executed."""
        with self.guest("/etc/nothing", agent="0") as guest:
            reported, message = guest.exit_report()
            self.assertEqual(reported, 127)
            self.assertIn("program /etc/nothing not found", message)
            self.assertNotIn("PROGRAM-START", guest.console)

    def test_stop_port_stops_the_program(self) -> None:
        script = "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.1; done"
        with self.guest("sh", "-c", script) as guest:
            guest.wait_for("ready\n")
            with guest.order_poweroff(20):
                self.assertEqual(guest.exit_report(), (0, "stopped on request: exited with code 0"))
            self.assertIn("bye\n", guest.console)

    def test_stop_port_before_the_program(self) -> None:
        with self.guest("sleep", "1000") as guest, guest_port(guest, "stop") as stop:
            stop.sendall(b"poweroff 5\n")
            self.assertEqual(guest.exit_report(), (0, "stopped on request before the program started"))

    def test_killed_for_memory(self) -> None:
        with self.guest("sh", "-c", "exec tail /dev/zero", memory=96, agent="0") as guest:
            self.assertEqual(guest.exit_report(), (137, "out of memory: the kernel killed the program"))

    def test_a_command_of_another_user_may_open_its_own_output_again(self) -> None:
        with self.guest("sleep", "1000") as guest:
            guest.wait_for("PROGRAM-START.*\n")
            channel = guest.channel()
            channel.greet()
            script = "cat </dev/stdin >/dev/stdout; echo err >/dev/stderr; env | grep HOSTNAME"
            result = channel.run(["sh", "-c", script], b"in\n", user="500:500")
            self.assertEqual((result.code, result.output), (0, {1: b"in\nHOSTNAME=vm1\n", 2: b"err\n"}))
            channel.close()
            with guest.order_poweroff(1):
                guest.exit_report()

    def test_agent_executes_and_shuts_down(self) -> None:
        with self.guest("sleep", "1000") as guest:
            guest.wait_for("PROGRAM-START.*\n")
            channel = guest.channel()
            self.assertEqual(channel.greet()["boot"], guest.boot)
            result = channel.run(["sh", "-c", "cat; id -u; echo err >&2; exit 7"], b"x" * 200000, user="app")
            self.assertEqual((result.code, result.output), (7, {1: b"x" * 200000 + b"500\n", 2: b"err\n"}))
            # The host leaves with a program under way, and comes back.
            channel.start(["sleep", "777"])
            channel.expect(Type.STARTED)
            channel.close()
            channel = guest.channel()
            self.addCleanup(channel.close)
            channel.greet()
            self.assertNotIn(b"777", channel.run(["ps"]).output[1])
            big = channel.run(["dd", "if=/dev/zero", "bs=65536", "count=64"])
            self.assertEqual(len(big.output[1]), 64 * 65536)
            channel.send(Type.SHUTDOWN, format_records((("grace", "5"),)))
            self.assertEqual(guest.exit_report(), (143, "stopped on request: killed by signal 15 (TERM)"))

    def test_report_port_has_a_copy(self) -> None:
        with self.guest("sh", "-c", "exit 0") as guest, guest_port(guest, "report") as report:
            self.assertEqual(guest.exit_report()[0], 0)
            copy = b""
            while got := report.recv(65536):
                copy += got
            said = re.findall(r"HYPEMAN-.*\n", guest.console)
            self.assertEqual(copy.decode(), "".join(said))

    def test_systemd_mode_makes_the_program_pid_1_of_a_root_of_its_own(self) -> None:
        script = """
        echo "pid $$"; env; cat /proc/self/mountinfo; grep Sig /proc/self/status
        cd /run/systemd/system; ls -1R; readlink serial-getty@hvc0.service; cat hypeman-agent.service
        cat /run/hypeman/environment; ls -1 /opt/hypeman
        NOTIFY_SOCKET=@none /opt/hypeman/hypeman-agent & sleep 1
        for p in /proc/[0-9]*; do grep -q '^hypeman-' $p/comm && grep VmRSS $p/status; done
        ln -s /run/initramfs/shutdown /shutdown; exec /shutdown poweroff
        """
        with self.guest(SCRIPT_INIT, "-c", script, mode="systemd", env='A=b "c" $d') as guest:
            self.assertEqual(guest.exit_report(), (0, "powered off from inside"))
            said = guest.console
        sizes = [int(size) for size in re.findall(r"VmRSS:\s+(\d+) kB", said)]
        self.assertEqual(len(sizes), 2, "keeper and agent")
        self.assertLessEqual(sum(sizes), 2048, sizes)
        self.assertLess(said.index("HYPEMAN-PROGRAM-START"), said.index("pid 1\n"))
        self.assertIn('\nA=b "c" $d\n', said)
        self.assertIn('\nA="b \\"c\\" \\$d"\n', said)
        self.assertRegex(said, r" 1 0:\d+ / / rw.* - overlay overlay ")
        self.assertRegex(said, r"SigBlk:\t0+\n")
        self.assertIn("\n/dev/null\n", said)
        self.assertIn("\nEnvironmentFile=/run/hypeman/environment\n", said)
        self.assertIn("hypeman-agent\nhypeman-init\n", said)
        self.assertIn("./sysinit.target.wants:\nhypeman-agent.service\n", said)

    def test_systemd_mode_without_an_agent_puts_none_into_the_image(self) -> None:
        script = "ls -1R /run /opt; ln -s /run/initramfs/shutdown /shutdown; exec /shutdown halt"
        with self.guest(SCRIPT_INIT, "-c", script, mode="systemd", agent="0") as guest:
            self.assertEqual(guest.exit_report(), (0, "halted from inside"))
            self.assertNotIn("hypeman-agent", guest.console)
            self.assertNotIn("environment", guest.console)

    def test_systemd_mode_ends_a_guest_that_does_not_follow_the_order_to_stop(self) -> None:
        script = """
        mount -t cgroup2 none /sys/fs/cgroup; mkdir /sys/fs/cgroup/deaf.service
        sh -c 'echo 0 >/sys/fs/cgroup/deaf.service/cgroup.procs; exec sleep 99' &
        tail -f /dev/null &
        echo ready; while :; do read -r _ </dev/zero; done
        """
        with self.guest(SCRIPT_INIT, "-c", script, mode="systemd") as guest:
            guest.wait_for("ready\n")
            with guest.order_poweroff(2):
                code, message = guest.exit_report()
        self.assertEqual(code, 137)
        forced = "stopped on request: powered off by force, since the image's init did not within 2 s"
        self.assertEqual(message, f"{forced}; still there: deaf.service, tail")

    def test_systemd_mode_passes_the_order_on_when_pid_1_listens(self) -> None:
        script = """
        ln -s /run/initramfs/shutdown /shutdown
        end=$(($(date +%s) + 3))
        while [ $(date +%s) -lt $end ]; do :; done  # a fork blocks signals, and that is no ear for them
        trap 'exec /shutdown reboot' 38; echo listens; while :; do sleep 0.1; done
        """
        with self.guest(SCRIPT_INIT, "-c", script, mode="systemd") as guest:
            guest.wait_for("PROGRAM-START.*\n")
            with guest.order_poweroff(30):
                report = guest.exit_report()
            self.assertIn("listens\n", guest.console)
        self.assertEqual(report, (0, "stopped on request: powered off in order"))

    def test_systemd_mode_without_its_program_says_so(self) -> None:
        for argv0, code, words in (
            ("/sbin/nothing", 127, "program /sbin/nothing cannot be executed: No such file"),
            ("/etc/data", 126, "program /etc/data cannot be executed: Permission denied"),
            ("/etc", 126, "program /etc cannot be executed: Is a directory"),
            ("init", 125, "must be an absolute path, not init"),
        ):
            with self.subTest(argv0=argv0), self.guest(argv0, mode="systemd") as guest:
                reported, message = guest.exit_report()
                self.assertEqual(reported, code)
                self.assertIn(words, message)
                self.assertNotIn("PROGRAM-START", guest.console)

    def test_systemd_mode_is_refused_with_an_init_of_another_kind(self) -> None:
        ways_out = "not systemd; use mode: exec to run it as a program, or another cmd"
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make_root(folder / "root")
            sbin = folder / "root/sbin"
            sbin.mkdir()
            (sbin / "init").symlink_to("/../bin/../bin/busybox")
            shutil.copy(BUSYBOX, sbin / "openrc-init")
            (sbin / "loop").symlink_to("loop")
            machine = Machine(image=make_erofs(folder / "image", folder / "root"))
            for argv0, words in (
                ("/sbin/init", f"/sbin/init is /bin/busybox, {ways_out}"),
                ("/sbin/openrc-init", f"/sbin/openrc-init is another program, {ways_out}"),
                ("/bin/sh", f"/bin/sh is /bin/busybox, {ways_out}"),
                ("/sbin/loop", "program /sbin/loop cannot be executed: "),
            ):
                with self.subTest(argv0=argv0), self.guest(argv0, mode="systemd", machine=machine) as guest:
                    self.assertIn(words, guest.exit_report()[1])
                    self.assertNotIn("PROGRAM-START", guest.console)

    def test_systemd_mode_is_for_what_is_systemd_or_may_lead_to_it(self) -> None:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make_root(folder / "root")
            lib, sbin = folder / "root/usr/lib/systemd", folder / "root/sbin"
            lib.mkdir(parents=True)
            sbin.mkdir()
            shutil.copy(BUSYBOX, lib / "systemd")
            (sbin / "other").mkdir()
            (sbin / "linked").symlink_to("other/../../usr/lib/systemd/systemd")
            # a copy that followed the link: told by what it is linked with
            (sbin / "other/init").write_bytes((lib / "systemd").read_bytes() + b"\0libsystemd-core-252.so\0")
            (sbin / "other/init").chmod(0o755)
            (sbin / "init").symlink_to("../bin/busybox")
            machine = Machine(image=make_erofs(folder / "image", folder / "root"))
            for argv0 in ("/sbin/linked", "/sbin/other/init", "/bin/true"):
                with self.subTest(argv0=argv0), self.guest(argv0, mode="systemd", machine=machine) as guest:
                    guest.wait_for("PROGRAM-START.* mode=systemd")
                    guest.process.kill()  # an init of busybox goes on
                    guest.process.wait(BOOT_S)
            with self.guest("/sbin/init", mode="systemd", machine=machine) as guest:
                self.assertIn("/sbin/init is /bin/busybox, not systemd", guest.exit_report()[1])


@contextmanager
def guest_port(guest: Guest, name: str) -> Iterator[socket.socket]:
    """A port's socket, as soon as QEMU listens."""
    connection = socket.socket(socket.AF_UNIX)
    deadline = time.monotonic() + BOOT_S
    while True:
        try:
            connection.connect(str(guest.folder / name))
            break
        except (FileNotFoundError, ConnectionRefusedError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.005)  # QEMU does not say when it listens.
    with connection:
        yield connection


if __name__ == "__main__":
    unittest.main()
