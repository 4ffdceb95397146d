# SPDX-License-Identifier: Apache-2.0
"""Real guests that go on from one template, as VMs of their own. Run as boot_guest.py is."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import subprocess
import tempfile
import time
import unittest
import uuid
from pathlib import Path

from boot_guest import BOOT_S, SCRIPT_INIT, BootCase, Guest, format_config, make_ext4
from frames import format_records
from machine import Machine, format_command, format_template, format_warm
from saved import control, save

from hypemand.vmm.commandline import SavedFiles
from hypemand.vmm.template import PLACEHOLDER, SECTOR

MEMORY = 128
BLOCK = 4096
# sizes in MiB: that of the disk, and of a volume
SIZES = ((64, 16), (80, 24))
SHOW = """
cat /proc/sys/kernel/random/boot_id /proc/sys/kernel/random/uuid /proc/cmdline /sys/class/net/lan0/address
stat -f -c %i /dev/shm /run
hostname; date +%s
for disk in /sys/block/vd*; do echo $(cat $disk/serial) $(cat $disk/size) $(cat $disk/ro); done
cat /mnt/own; ls /run/hypeman
"""


def format_block(boot: str) -> bytes:
    """As launcher/warm.c."""
    pairs = [("clock", str(time.time_ns())), ("entropy", os.urandom(64).hex())]
    pairs.append(("words", f"quiet systemd.hostname=vm hypeman.boot={boot}"))
    records = format_records(pairs)
    return (struct.pack("<8sI", b"HYPESTA1", len(records)) + records).ljust(BLOCK, b"\0")


class WarmBoot(BootCase):
    @classmethod
    def change_root(cls, root: Path) -> None:
        for applet in ("date", "hostname"):
            (root / "bin" / applet).symlink_to("busybox")

    def setUp(self) -> None:
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory(prefix="hypeman-warm-")))
        self.saved = self.make_template()

    def make_template(self) -> SavedFiles:
        folder = self.folder / "template"
        folder.mkdir()
        machine = Machine(drives=[("any", self.folder / "any", False)])
        argv = format_template(folder, machine, MEMORY)
        for number in range(4):
            with (folder / f"disk{number}").open("wb") as disk:
                disk.truncate(PLACEHOLDER)
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        with contextlib.ExitStack() as stack:
            stack.callback(process.communicate, timeout=BOOT_S)
            stack.callback(process.kill)
            qmp = stack.enter_context(control(folder / "qmp"))
            report = stack.enter_context(socket.socket(socket.AF_UNIX))
            report.settimeout(BOOT_S)
            report.connect(str(folder / "report"))
            self.assertEqual(report.recv(100)[:17], b"HYPEMAN-TEMPLATE\n")
            qmp.execute("stop")
            for drive in qmp.execute("query-block"):
                qmp.execute("block_resize", device=drive["device"], size=PLACEHOLDER - SECTOR)
            memory, state = save(qmp, folder, MEMORY << 20)
            qmp.execute("quit")
        for path in (memory, state):
            path.chmod(0o444)
        return SavedFiles(memory, state, is_shared=False)

    def start(
        self, stack: contextlib.ExitStack, number: int, *argv: str, mode: str = "exec", **records: str
    ) -> Guest:
        folder, boot = self.folder / f"vm{number}", uuid.uuid4().hex
        folder.mkdir()
        disk_size, volume_size = SIZES[number]
        disk, volume = make_ext4(folder / "disk"), folder / "volume"
        (folder / "content").mkdir()
        (folder / "content/own").write_text(f"own {number}\n")
        with volume.open("wb") as file:
            file.truncate(volume_size << 20)
        subprocess.run(["mkfs.ext4", "-q", "-d", folder / "content", volume], check=True, timeout=60)
        os.truncate(disk, disk_size << 20)
        mac = f"52:54:00:00:01:0{number}"
        pairs = [("version", "1"), ("name", f"vm{number}"), ("mode", mode), ("headers", "0")]
        pairs += [("agent", "1" if mode == "exec" else "0"), *(("arg", word) for word in argv)]
        pairs += [
            ("volume", "serial=v,path=/mnt,readonly=1"),
            ("net", f"mac={mac},name=lan0"),
            *records.items(),
        ]
        config = format_config(pairs)
        (folder / "config").write_bytes(config + bytes(-len(config) % BLOCK) + format_block(boot))
        machine = Machine(drives=[("v", volume, True)])
        command = format_command(folder, machine, self.image, boot, MEMORY, "exec")
        net = ["-netdev", "hubport,id=n0,hubid=0", "-device", f"virtio-net-device,netdev=n0,mac={mac}"]
        fd = os.open(self.saved.state, os.O_RDONLY)
        stack.callback(os.close, fd)
        warm = format_warm(folder, machine, self.image, MEMORY, self.saved)
        warm[warm.index("-incoming") + 1] = f"fd:{fd}"
        for option in ("-kernel", "-initrd", "-append"):  # as the launcher does
            at = command.index(option)
            del command[at : at + 2]
        process = subprocess.Popen(
            [*command, *net, *warm], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, pass_fds=(fd,)
        )
        stack.callback(process.communicate, timeout=BOOT_S)
        stack.callback(process.kill)
        return Guest(process, folder, boot)

    def test_guests_of_one_template_are_vms_of_their_own(self) -> None:
        seen: list[str] = []
        with contextlib.ExitStack() as stack:
            guests = [self.start(stack, number, "sh", "-c", f"{SHOW}exit 3") for number in range(2)]
            for number, guest in enumerate(guests):
                self.assertEqual(guest.exit_report(), (3, "exited with code 3"))
                lines = guest.console.partition("name=program")[2].splitlines()[1:]
                own, clock, disks, rest = lines[:7], lines[7], lines[8:12], lines[12:]
                seen += own
                self.assertEqual(own[2], f"quiet systemd.hostname=vm hypeman.boot={guest.boot}")
                self.assertEqual([own[3], own[6]], [f"52:54:00:00:01:0{number}", f"vm{number}"])
                self.assertLess(abs(int(clock) - time.time()), 60)
                disk, volume = SIZES[number]
                found = {serial: (size, ro) for serial, size, ro in map(str.split, disks)}
                self.assertEqual(found["hypeman-disk"], (str(disk * 2048), "0"))
                self.assertEqual(found["v"], (str(volume * 2048), "1"))
                self.assertEqual({found[f"hypeman-{name}"][1] for name in ("config", "image")}, {"1"})
                self.assertEqual(rest[:2], [f"own {number}", "cmdline"])
                self.assertIn("thaw", guest.stages())
                # again, for a host that was not connected before
                self.assertIn("name=thaw", guest.console.partition("HYPEMAN-PROGRAM-START")[2])
                self.assertNotIn("mounts", guest.stages())
                self.assertLess(guest.stages()["thaw"][0], 0.5)
                self.check_ext4(guest.folder / "disk")
        self.assertEqual(len(set(seen)), len(seen), seen)

    def test_the_agent_of_a_template_is_that_of_the_vm(self) -> None:
        with contextlib.ExitStack() as stack:
            guest = self.start(stack, 0, "sleep", "infinity")
            guest.wait_for("HYPEMAN-PROGRAM-START")
            channel = stack.enter_context(contextlib.closing(guest.channel()))
            self.assertEqual(channel.greet()["boot"], guest.boot)
            self.assertEqual(channel.run(["sh", "-c", "cat /mnt/own; hostname"]).output[1], b"own 0\nvm0\n")
            stack.enter_context(guest.order_poweroff(0))
            self.assertEqual(guest.exit_report()[0], 143)

    def test_in_systemd_mode_the_init_sees_the_words_of_its_own_start(self) -> None:
        with contextlib.ExitStack() as stack:
            script = "cat /proc/cmdline /proc/[0-9]*/cmdline"
            script += "; ln -s /run/initramfs/shutdown /shutdown; exec /shutdown halt"
            guest = self.start(stack, 0, SCRIPT_INIT, "-c", script, mode="systemd")
            self.assertEqual(guest.exit_report()[0], 0)
            self.assertRegex(guest.console, f"\nquiet systemd.hostname=vm hypeman.boot={guest.boot}\n")
            self.assertNotIn("hypeman-agent", guest.console)

    def test_a_block_that_is_not_whole_ends_the_boot(self) -> None:
        original, words = format_block, r"config disk: it does not end with what a warm start needs"
        with contextlib.ExitStack() as stack:
            globals()["format_block"] = lambda boot: bytes(BLOCK)
            stack.callback(globals().__setitem__, "format_block", original)
            guest = self.start(stack, 0, "true")
            self.assertRegex(guest.finish(), re.escape(words))


if __name__ == "__main__":
    unittest.main()
