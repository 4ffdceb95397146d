# SPDX-License-Identifier: Apache-2.0
"""Real guests that are frozen, saved, and go on, as the same VM or as another. Run as boot_guest.py is."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
import time
import unittest
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from boot_guest import BOOT_S, SCRIPT_INIT, BootCase, Guest, make_ext4
from frames import Channel, Type, format_records
from machine import Machine, format_command
from saved import control, restore_arguments, save

COUNTER = "i=0; while :; do echo tick $i; i=$((i+1)); sleep 0.05; done"
ENTROPY = os.urandom(64).hex()
MAC, NEW_MAC = "52:54:00:ab:cd:01", "52:54:00:ab:cd:99"
MEMORY = 128
FILL = 20_000_000
NETWORK = (
    ("net", f"mac={MAC},name=lan0,mtu=1400,address=10.9.8.7/24,address=fd00:9::7/64,gateway=10.9.8.1"),
    ("dns", "10.9.8.1"),
    ("host", "address=10.9.8.7,name=vm1"),
)
IDENTITY = (
    ("hostname", "vm2"),
    ("machine_id", "ab" * 16),
    ("net", f"old_mac={MAC},mac={NEW_MAC},name=lan0,mtu=1300,address=10.7.0.2/16,gateway=10.7.0.1"),
    ("dns", "10.7.0.1"),
    ("search", "lan"),
    ("host", "address=10.7.0.2,name=vm2"),
    ("reset", "ssh-host-keys"),
)


def thaw(channel: Channel, seconds: int, *identity: tuple[str, str]) -> tuple[int, str]:
    pairs = [("clock", str(seconds * 10**9)), ("entropy", ENTROPY), *identity]
    return channel.order(Type.THAW, format_records(pairs))


def order_announcements(guest: Guest) -> None:
    """A thousand, a millisecond apart, of the kernel, whatever else it does with its network."""
    with control(guest.folder / "qmp") as qmp:
        qmp.execute("announce-self", initial=1, max=1, rounds=1000, step=0)


def read_console(guest: Guest, seconds: float) -> str:
    """What comes within so many seconds."""
    assert guest.process.stdout is not None
    fd = guest.process.stdout.fileno()
    os.set_blocking(fd, False)
    time.sleep(seconds)
    got = b""
    with contextlib.suppress(BlockingIOError):
        while part := os.read(fd, 65536):
            got += part
    guest.console += got.decode(errors="replace")
    return got.decode(errors="replace")


class StandbyBoot(BootCase):
    @classmethod
    def change_root(cls, root: Path) -> None:
        for applet in ("date", "fsfreeze", "head", "hostname", "kill", "md5sum", "mkdir"):
            (root / "bin" / applet).symlink_to("busybox")
        (root / "etc/ssh").mkdir()
        for name in ("ssh_host_rsa_key", "ssh_host_rsa_key.pub", "sshd_config"):
            (root / "etc/ssh" / name).write_text("x\n")
        (root / "etc/hosts").write_text("1.2.3.4 other\n127.0.1.1\tvm1\n")

    def setUp(self) -> None:
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory(prefix="hypeman-standby-")))

    def test_all_is_frozen_and_goes_on(self) -> None:
        """The program, what it has put into a control group of its own, and a command; not the agent."""
        script = f"""
        mkdir /sys/fs/cgroup/own /sys/fs/cgroup/own/deep
        (sh -c 'echo 0 >/sys/fs/cgroup/own/deep/cgroup.procs; while :; do echo own; sleep 0.05; done') &
        {COUNTER}
        """
        volume = make_ext4(self.folder / "volume")
        machine = Machine(drives=[("v", volume, False)], records=[("volume", "serial=v,path=/mnt")])
        with self.guest("sh", "-c", script, machine=machine) as guest, contextlib.ExitStack() as stack:
            guest.wait_for("tick 3\n(.|\n)*own\n")
            channel = stack.enter_context(contextlib.closing(guest.channel()))
            self.assertNotIn("frozen", channel.greet())
            channel.start(["sh", "-c", "while :; do echo command >/dev/console; sleep 0.05; done"])
            channel.expect(Type.STARTED)
            guest.wait_for("command\n")
            self.check_unfreezable(guest, channel)
            self.assertEqual(channel.order(Type.FREEZE), (0, "the guest is frozen"))
            read_console(guest, 0.2)
            self.assertEqual(read_console(guest, 1.0), "")
            code, words = channel.order(Type.EXEC, format_records([("arg", "true")]))
            self.assertEqual((code, words), (125, "the guest is frozen: nothing runs in it until THAW"))
            self.assertEqual(channel.greet()["frozen"], "1")
            self.assertEqual(channel.order(Type.FREEZE), (0, "the guest is frozen"))
            self.assertEqual(thaw(channel, 2_000_000_000), (0, "the guest goes on"))
            back = read_console(guest, 1.0)
            self.assertIn("tick", back)
            self.assertIn("own\n", back)
            self.assertNotIn("frozen", channel.greet())
            show = "date +%s; cat /proc/1/cgroup /proc/self/cgroup; ls -d /sys/fs/cgroup/hypeman*"
            said = channel.run(["sh", "-c", f"{show}; ls /run/hypeman"]).output[1].decode()
            self.assertLess(abs(int(said.split("\n")[0]) - 2_000_000_000), 30)
            self.assertIn("\n0::/\n0::/hypeman-exec/", said)
            self.assertNotIn("frozen", said)
            channel.send(Type.SHUTDOWN, format_records([("grace", "5")]))
            self.assertEqual(guest.exit_report()[0], 143)

    def check_unfreezable(self, guest: Guest, channel: Channel) -> None:
        """What waits for the kernel cannot be frozen: then nothing is."""
        channel.run(["fsfreeze", "--freeze", "/mnt"])
        waiting = channel.start(["touch", "/mnt/more"])
        channel.expect(Type.STARTED)
        while channel.run(["sh", "-c", "grep -q '(touch) D' /proc/[0-9]*/stat"]).code != 0:
            pass
        words = "touch is not frozen within 2 s: it waits for the kernel (state D)"
        self.assertEqual(channel.order(Type.FREEZE), (125, words))
        self.assertIn("tick", read_console(guest, 0.5))
        stream = channel.start(["fsfreeze", "--unfreeze", "/mnt"])
        channel.collect(waiting, stream)

    @contextmanager
    def resumed(self, guest: Guest, machine: Machine) -> Iterator[Guest]:
        """The guest in another QEMU, which maps what this one saves from a sparse file."""
        with control(guest.folder / "qmp") as qmp:
            qmp.execute("stop")
            memory, state = save(qmp, self.folder, MEMORY << 20)
            qmp.execute("quit")
        guest.finish()
        found = memory.stat()
        self.assertEqual(found.st_size, MEMORY << 20)
        self.assertTrue(FILL < found.st_blocks * 512 < 100 << 20, found.st_blocks)
        self.assertLess(state.stat().st_size, 1 << 20)
        with contextlib.ExitStack() as stack:
            fd = os.open(state, os.O_RDONLY)
            stack.callback(os.close, fd)
            arguments = format_command(guest.folder, machine, self.image, guest.boot, MEMORY, "exec")
            process = subprocess.Popen(
                [*arguments, *restore_arguments(memory, fd)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                pass_fds=(fd,),
            )
            stack.callback(process.communicate, timeout=BOOT_S)
            stack.callback(process.kill)
            with control(guest.folder / "qmp") as qmp:
                self.assertEqual(qmp.await_status(not_in="inmigrate"), "paused")
                qmp.execute("cont")
            yield Guest(process, guest.folder, guest.boot)

    def machine(self, mac: str) -> Machine:
        return Machine(
            options=["-netdev", "hubport,id=n0,hubid=0", "-device", f"virtio-net-device,netdev=n0,mac={mac}"],
            records=NETWORK,
        )

    def test_a_guest_that_is_saved_goes_on_in_another_vmm_as_another_vm(self) -> None:
        """With all that was in its memory, and a root that is read-only again afterwards."""
        boot = uuid.uuid4().hex
        script = f"head -c {FILL} /dev/urandom >/tmp/kept; md5sum </tmp/kept; {COUNTER}"
        records = {"read_only": "1", "tmpfs": "/tmp"}
        with contextlib.ExitStack() as stack:
            guest = stack.enter_context(
                self.guest("sh", "-c", script, machine=self.machine(MAC), memory=MEMORY, **records)
            )
            kept = guest.wait_for(r"([0-9a-f]{32})  -\n")[1]
            guest.wait_for("tick 3\n")
            with contextlib.closing(guest.channel()) as channel:
                channel.greet()
                self.assertEqual(channel.order(Type.FREEZE), (0, "the guest is frozen"))
            fork = stack.enter_context(self.resumed(guest, self.machine(NEW_MAC)))
            last = int(re.findall(r"tick (\d+)\n", guest.console)[-1])
            channel = stack.enter_context(contextlib.closing(fork.channel()))
            self.assertEqual(channel.greet()["frozen"], "1")
            wrong = (*IDENTITY, ("net", "mac=52:54:00:00:00:00"))
            self.assertEqual(
                thaw(channel, 2_000_000_000, *wrong),
                (125, "network: the guest has no interface with the MAC address 52:54:00:00:00:00"),
            )
            self.assertEqual(read_console(fork, 0.5), "")
            for _ in range(2):
                order_announcements(fork)
                answer = thaw(channel, 2_000_000_000, *IDENTITY, ("boot", boot))
                self.assertEqual(answer, (0, "the guest goes on"))
            self.assertEqual(int(fork.wait_for(r"tick (\d+)\n")[1]), last + 1)
            channel.send(Type.HELLO, format_records([("version", "1"), ("boot", fork.boot)]))
            self.assertEqual(channel.expect(Type.ERROR).records()["code"], "boot")
            channel.close()
            fork.boot = boot
            channel = stack.enter_context(contextlib.closing(fork.channel()))
            self.assertEqual(channel.greet()["boot"], boot)
            self.check_identity(channel, boot)
            said = channel.run(["sh", "-c", "md5sum </tmp/kept"]).output[1].decode()
            self.assertEqual(said.split()[0], kept)
            stack.enter_context(fork.order_poweroff(5))
            self.assertEqual(fork.exit_report()[1], "stopped on request: killed by signal 15 (TERM)")

    def check_identity(self, channel: Channel, boot: str) -> None:
        def read(command: str) -> str:
            return channel.run(["sh", "-c", command]).output[1].decode()

        self.assertEqual(read("hostname; cat /etc/hostname"), "vm2\nvm2\n")
        self.assertEqual(read("cat /etc/machine-id /var/lib/dbus/machine-id"), f"{'ab' * 16}\n" * 2)
        self.assertEqual(read("cat /sys/class/net/lan0/address"), f"{NEW_MAC}\n")
        addresses: list[str] = []
        deadline = time.monotonic() + BOOT_S
        # the kernel sees a link come up at most once a second
        while addresses[1:] == [] and time.monotonic() < deadline:
            addresses = re.findall(r"inet6? (\S+)", read("ip addr show lan0"))
        self.assertEqual(addresses, ["10.7.0.2/16", "fe80::5054:ff:feab:cd99/64"])
        self.assertEqual(read("ip route").split("\n")[0].rstrip(), "default via 10.7.0.1 dev lan0 onlink")
        self.assertNotIn("10.9.8", read("ip route; ip -6 route"))
        self.assertEqual(read("cat /etc/resolv.conf"), "nameserver 10.7.0.1\nsearch lan\n")
        block = "# BEGIN hypemand\n10.7.0.2\tvm2\n# END hypemand\n"
        self.assertEqual(read("cat /etc/hosts"), f"1.2.3.4 other\n{block}")
        self.assertEqual(read("ls /etc/ssh"), "sshd_config\n")
        shown = read("cat /proc/sys/kernel/random/boot_id").strip()
        self.assertEqual((shown.replace("-", ""), str(uuid.UUID(boot))), (boot, shown))
        self.assertEqual(read("grep -c boot_id /proc/mounts"), "1\n")
        self.assertEqual(read("touch /etc/more 2>&1"), "touch: /etc/more: Read-only file system\n")
        self.assertLess(abs(int(read("date +%s")) - 2_000_000_000), 60)

    def test_in_systemd_mode_services_are_frozen_and_an_agent_that_is_started_anew_thaws_them(self) -> None:
        """Here a script stands for systemd."""
        boot = uuid.uuid4().hex
        script = """
        mount -t cgroup2 none /sys/fs/cgroup; cd /sys/fs/cgroup
        mkdir init.scope system.slice user.slice system.slice/web.service system.slice/hypeman-agent.service
        for p in $(cat cgroup.procs); do echo $p >init.scope/cgroup.procs 2>/dev/null; done
        service() { (echo 0 >$1/cgroup.procs; exec sh -c "while :; do echo $2; sleep 0.05; done") & }
        service system.slice/web.service web
        service user.slice user
        . /run/hypeman/environment
        export HYPEMAN_POWER_OFF_PID
        agent() {
            (echo 0 >system.slice/hypeman-agent.service/cgroup.procs
            NOTIFY_SOCKET=@none exec /opt/hypeman/hypeman-agent) & agent=$!
        }
        agent
        while :; do  # also when the sleep is killed, as all is that does not end in time
            sleep 0.1
            echo init
            if [ -e /run/hypeman/frozen ] && [ ! -e /run/killed ]; then
                sleep 2; >/run/killed; kill -KILL $agent
            fi
            grep -q hypeman /proc/$agent/comm || agent
        done
        """
        with self.guest(SCRIPT_INIT, "-c", script, mode="systemd") as guest, contextlib.ExitStack() as stack:
            guest.wait_for("HYPEMAN-AGENT-READY(.|\n)*web\n")
            channel = stack.enter_context(contextlib.closing(guest.channel()))
            channel.greet()
            self.assertEqual(channel.order(Type.FREEZE), (0, "the guest is frozen"))
            guest.console = ""
            guest.wait_for("HYPEMAN-AGENT-READY")
            channel.close()
            channel = stack.enter_context(contextlib.closing(guest.channel()))
            self.assertEqual(channel.greet()["frozen"], "1")
            read_console(guest, 0.2)
            self.assertEqual(set(read_console(guest, 0.5).split()), {"init"})
            self.assertEqual(thaw(channel, 2_000_000_000, ("boot", boot)), (0, "the guest goes on"))
            guest.wait_for("init\n(.|\n)*web\n(.|\n)*user\n")
            guest.boot = boot
            with guest.order_poweroff(1):
                self.assertEqual(guest.exit_report()[0], 137)


if __name__ == "__main__":
    unittest.main()
