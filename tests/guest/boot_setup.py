# SPDX-License-Identifier: Apache-2.0
"""Real boots: volumes and networks, and what becomes of a boot by what its agent does.

Run by `make -C guest boot-check KERNEL=…`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
import unittest
from collections.abc import Sequence
from pathlib import Path

import boot_guest
from boot_guest import SCRIPT_INIT, Guest, make_erofs, make_ext4, make_root
from machine import Machine

from guest.tools.make_initrd import Entry, format_archive
from hypemand.protocol.filesdisk import DiskFile, write_files_disk
from hypemand.storage.disks import ensure_disk

INIT = Path(os.environ["HYPEMAN_INIT"])
FAKE_AGENT = Path(os.environ["HYPEMAN_FAKE_AGENT"])
MAC = "52:54:00:ab:cd:01"
OTHER_MAC = "52:54:00:ab:cd:02"
NETWORK = (
    ("net", f"mac={MAC},name=lan0,mtu=1400,address=10.9.8.7/24,address=fd00:9::7/64,gateway=10.9.8.1"),
    ("dns", "10.9.8.1"),
    ("dns", "fd00:9::1"),
    ("search", "example.org"),
    ("search", "lan"),
)
RESOLVER = "nameserver 10.9.8.1\nnameserver fd00:9::1\nsearch example.org lan\n"


def card(mac: str, name: str = "n0") -> list[str]:
    return ["-netdev", f"hubport,id={name},hubid=0", "-device", f"virtio-net-device,netdev={name},mac={mac}"]


def read_from(volume: Path, path: str) -> str:
    """A file of an ext4 file system that is not mounted."""
    command = ["debugfs", "-R", f"cat {path}", str(volume)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout


class SetUp(boot_guest.BootCase):
    @classmethod
    def change_root(cls, root: Path) -> None:
        (root / "data").mkdir()
        (root / "etc/resolv.conf").symlink_to("../run/resolver/stub.conf")
        (root / "etc/hosts").write_text("127.0.0.1 localhost # vm1\n::1 localhost")
        (root / "run/mysqld").mkdir(parents=True)
        os.chown(root / "run/mysqld", 500, 600)
        (root / "run/mysqld").chmod(0o3777)
        (root / "var/run").symlink_to("../run")
        (root / "srv/app").mkdir(parents=True)
        (root / "srv/app/seed").write_text("of the image\n")
        (root / "srv/app/seed").chmod(0o640)
        os.chown(root / "srv/app/seed", 500, 500)
        os.chown(root / "srv/app", 500, 600)
        (root / "srv/app").chmod(0o750)
        (root / "large").mkdir()
        (root / "large/much").write_bytes(os.urandom(20 << 20))
        # as seen from outside of the root that leads to the initrd's
        (root / "out").symlink_to("../../../../..")

    def setUp(self) -> None:
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory(prefix="hypeman-setup-")))

    def volume(self, name: str, **files: str) -> Path:
        root = self.folder / f"{name}.root"
        root.mkdir()
        for file, text in files.items():
            (root / file).write_text(text)
        return make_ext4(self.folder / name, root)

    def expect_order(self, guest: Guest, *names: str) -> None:
        """The stages came one after the other."""
        stages = guest.stages()
        moments = [moment for name in names for moment in stages[name]]
        self.assertEqual(moments, sorted(moments), stages)

    def test_network_and_volumes_at_once(self) -> None:
        outer, inner = self.volume("outer", a="of the outer\n"), self.folder / "inner"
        root = self.folder / "root"
        root.mkdir()
        (root / "b").write_text("of the inner\n")
        make_erofs(inner, root)
        machine = Machine(
            drives=[("v-inner", inner, True), ("v-outer", outer, False)],
            options=[*card(OTHER_MAC, "n0"), *card(MAC, "n1")],
            records=[
                ("volume", "serial=v-inner,path=/data/in%2Cner,fstype=erofs,readonly=1"),
                ("volume", "serial=v-outer,path=/data"),
                *NETWORK,
                ("net", f"mac={OTHER_MAC},name=eth1,address=192.0.2.1/32"),
            ],
        )
        script = (
            "cat /data/a /data/in,ner/b; echo new >/data/c; echo no >/data/in,ner/x && echo written;"
            "cat /etc/resolv.conf /etc/hosts; ip addr; ip route; ip -6 route; ls -l /etc/resolv.conf;"
            "cat /proc/mounts; ls -a / /run"
        )
        with self.guest("sh", "-c", script, agent="0", machine=machine) as guest:
            self.assertEqual(guest.exit_report()[0], 0, guest.console)
            for expected in (
                "of the outer\nof the inner\n",
                "Read-only file system",
                RESOLVER,
                "127.0.0.1 localhost # vm1\n::1 localhost\n127.0.1.1\tvm1\n",
                "lan0: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1400",
                "inet 10.9.8.7/24 scope global lan0",
                "inet6 fd00:9::7/64 scope global",
                "inet 192.0.2.1/32 scope global eth1",
                "default via 10.9.8.1 dev lan0",
                " /data ext4 rw,",
                " /data/in,ner erofs ro,",
            ):
                self.assertIn(expected, guest.console)
            self.assertNotRegex(guest.console, r"scope global .*tentative")
            self.assertNotIn("written", guest.console)
            self.assertNotIn("resolver", guest.console)
            stages = guest.stages()
            self.assertLess(stages["network"][0], stages["volumes"][1], stages)
            self.assertLess(stages["volumes"][0], stages["network"][1], stages)
            for name in ("network", "volumes"):
                self.expect_order(guest, "root", name, "binds", "api", "system", "program")
        self.check_ext4(outer)
        self.assertEqual(read_from(outer, "/c"), "new\n")

    def test_run_has_what_the_image_has_there_and_the_volumes_in_it(self) -> None:
        machine = Machine(
            drives=[("v-run", self.volume("run", a="of the volume\n"), False)],
            records=[("volume", "serial=v-run,path=/run/of/volume")],
        )
        script = "touch /var/run/mysqld/s && stat -c '%a %u:%g' /run/mysqld; cat /run/of/volume/a; mount"
        with self.guest("sh", "-c", script, agent="0", user="app", machine=machine) as guest:
            self.assertEqual(guest.exit_report()[0], 0, guest.console)
            self.assertIn("3777 500:600\nof the volume\n", guest.console)
            self.assertRegex(guest.console, r"on /run type tmpfs \(rw,nosuid,nodev\S*,mode=755")
        show = "ls -A /run; ln -s /run/initramfs/shutdown /shutdown; exec /shutdown halt"
        with self.guest(SCRIPT_INIT, "-c", show, mode="systemd", agent="0") as guest:
            self.assertEqual(guest.exit_report(), (0, "halted from inside"))
            self.assertNotIn("mysqld", guest.console)

    def test_a_new_volume_begins_with_what_the_image_has_in_its_place(self) -> None:
        volume = self.folder / "new"
        ensure_disk(volume, 64 << 20, -1, self.folder / "templates")
        machine = Machine(drives=[("v", volume, False)], records=[("volume", "serial=v,path=/srv/app")])
        show = "stat -c '%a %u:%g' /srv/app /srv/app/seed; ls -A /srv/app; cat /srv/app/seed"
        with self.guest(
            "sh", "-c", f"{show}; rm /srv/app/seed; >/srv/app/mine", agent="0", user="app", machine=machine
        ) as guest:
            self.assertEqual(guest.exit_report()[0], 0, guest.console)
            self.assertIn("750 500:600\n640 500:500\nseed\nof the image\n", guest.console)
        self.check_ext4(volume)
        with self.guest("ls", "-A", "/srv/app", agent="0", machine=machine) as guest:
            self.assertEqual(guest.exit_report()[0], 0, guest.console)
            self.assertIn("mine\n", guest.console)
            self.assertNotIn("seed", guest.console)

    def test_a_new_volume_that_is_too_small_for_what_the_image_has_ends_the_boot(self) -> None:
        volume = self.folder / "small"
        ensure_disk(volume, 16 << 20, -1, self.folder / "templates")
        machine = Machine(drives=[("v", volume, False)], records=[("volume", "serial=v,path=/large")])
        with self.guest("true", agent="0", machine=machine) as guest:
            code, why = guest.exit_report()
        self.assertEqual(code, 125)
        words = (
            "volume /large: cannot copy what the image has there to the new volume: No space left on device"
        )
        self.assertEqual(why, words)
        # With space for it, it is as if that had never been.
        ensure_disk(volume, 64 << 20, -1, self.folder / "templates")
        with self.guest("sh", "-c", "ls -A /large; wc -c </large/much", agent="0", machine=machine) as guest:
            self.assertEqual(guest.exit_report()[0], 0, guest.console)
            self.assertIn(f"much\n{20 << 20}\n", guest.console)

    def test_two_interfaces_swap_their_names(self) -> None:
        options = [*card(MAC, "n0"), *card(OTHER_MAC, "n1")]
        show = "for n in eth0 eth1; do echo $n $(cat /sys/class/net/$n/address); done"
        with self.guest("sh", "-c", show, agent="0", machine=Machine(options=options)) as guest:
            self.assertEqual(guest.exit_report()[0], 0)
            first = MAC if f"eth0 {MAC}" in guest.console else OTHER_MAC
        second = {MAC: OTHER_MAC, OTHER_MAC: MAC}[first]
        records = [("net", f"mac={second},name=eth0"), ("net", f"mac={first.upper()},name=eth1")]
        with self.guest(
            "sh", "-c", show, agent="0", machine=Machine(options=options, records=records)
        ) as guest:
            self.assertEqual(guest.exit_report()[0], 0)
            self.assertIn(f"eth0 {second}\neth1 {first}\n", guest.console)

    def test_in_turn_when_a_volume_holds_etc(self) -> None:
        etc = self.volume("etc", group="root:x:0:\n")
        machine = Machine(
            drives=[("v", etc, False)],
            options=card(MAC),
            records=[("volume", "serial=v,path=/etc"), *NETWORK],
        )
        with self.guest("cat", "/etc/resolv.conf", agent="0", machine=machine) as guest:
            self.assertEqual(guest.exit_report()[0], 0, guest.console)
            self.assertIn(RESOLVER, guest.console)
            self.expect_order(guest, "root", "volumes", "binds", "network", "api")
        self.check_ext4(etc)
        self.assertEqual(read_from(etc, "/resolv.conf"), RESOLVER)

    def test_an_etc_that_cannot_be_written_to_needs_no_name_in_hosts(self) -> None:
        etc = self.volume("etc", hosts="127.0.0.1 localhost\n", hostname="other\n")
        machine = Machine(drives=[("v", etc, True)], records=[("volume", "serial=v,path=/etc,readonly=1")])
        script = "cat /etc/hosts; grep -m 1 hypeman: /dev/kmsg"
        with self.guest("sh", "-c", script, agent="0", machine=machine) as guest:
            self.assertEqual(guest.exit_report()[0], 0, guest.console)
            self.assertIn("127.0.0.1 localhost\n", guest.console)
            self.assertIn(
                "warning: /etc/hosts does not get the VM's names: Read-only file system\n", guest.console
            )

    def test_names_of_others_and_its_own_address(self) -> None:
        disk = make_ext4(self.folder / "disk")
        others = [
            ("host", "address=10.9.8.7,name=vm1,name=vm1.hypeman"),
            ("host", "address=fd00:9::3,name=db,name=db.hypeman"),
            ("host", "address=10.9.8.3,name=db,name=db.hypeman"),
        ]
        block = (
            "# BEGIN hypemand\n10.9.8.7\tvm1 vm1.hypeman\nfd00:9::3\tdb db.hypeman\n10.9.8.3\tdb db.hypeman\n"
            "# END hypemand\n"
        )
        image = "127.0.0.1 localhost # vm1\n::1 localhost\n"
        show = "stat -c 'hosts %a %u:%g %N' /etc/hosts; cat /etc/hosts; echo END"
        ask = "ping -4 -c 1 -W 1 vm1; ping -4 -c 1 -W 1 db.hypeman || true"
        move = "cat /etc/hosts >/data/hosts; ln -sf /data/hosts /etc/hosts"
        machine = Machine(disk=disk, options=card(MAC))
        with_others = Machine(disk=disk, options=card(MAC), records=[*NETWORK, *others])
        for at, script, expected in (
            (machine, f"{show}; {move}", f"{image}127.0.1.1\tvm1\nEND\n"),
            (with_others, f"{show}; {ask}", f"-> '/data/hosts'\n{image}{block}END\n"),
            (with_others, show, f"-> '/data/hosts'\n{image}{block}END\n"),
            (machine, show, f"-> '/data/hosts'\n{image}127.0.1.1\tvm1\nEND\n"),
        ):
            with self.guest("sh", "-c", script, agent="0", machine=at) as guest:
                self.assertEqual(guest.exit_report()[0], 0, guest.console)
                self.assertIn(expected, guest.console)
                if ask in script:
                    self.assertIn("PING vm1 (10.9.8.7)", guest.console)
                    self.assertIn("1 packets received", guest.console)
                    self.assertIn("PING db.hypeman (10.9.8.3)", guest.console)

    def test_a_guest_that_loses_its_power_seconds_later_has_its_names(self) -> None:
        disk = make_ext4(self.folder / "disk")
        machine = Machine(disk=disk, records=[("host", "address=10.9.8.7,name=vm1")])
        # more than the 5 s after which ext4 has the name on the disk, less than those of the text on its own
        with self.guest("sh", "-c", "sleep 7; echo now; sleep 1", agent="0", machine=machine) as guest:
            guest.wait_for("now\n")
            left = Path(shutil.copy(disk, self.folder / "left"))
            self.assertEqual(guest.exit_report()[0], 0, guest.console)
        subprocess.run(["e2fsck", "-fy", left], capture_output=True, timeout=60, check=False)
        image = "127.0.0.1 localhost # vm1\n::1 localhost\n"
        self.assertEqual(
            read_from(left, "/upper/etc/hosts"), f"{image}# BEGIN hypemand\n10.9.8.7\tvm1\n# END hypemand\n"
        )

    def test_hosts_that_are_too_large_are_the_images_own(self) -> None:
        etc = self.volume("etc", hosts="127.0.0.1 localhost\n" + "#" * (1 << 20), hostname="other\n")
        machine = Machine(
            drives=[("v", etc, False)],
            records=[("volume", "serial=v,path=/etc"), ("host", "address=10.9.8.7,name=db")],
        )
        script = "tail -c 10 /etc/hosts; grep -m 1 hypeman: /dev/kmsg"
        with self.guest("sh", "-c", script, agent="0", machine=machine) as guest:
            self.assertEqual(guest.exit_report()[0], 0, guest.console)
            self.assertIn("##########", guest.console)
            self.assertIn("warning: /etc/hosts is left as it is: File too large\n", guest.console)

    def test_an_overlay_keeps_what_is_written_apart_from_its_volume(self) -> None:
        volume = self.volume("v", a="of the volume\n")
        before = volume.read_bytes()
        machine = Machine(
            drives=[("vol-0123456789abcdef", volume, True)],
            records=[("volume", "serial=vol-0123456789abcdef,path=/data,overlay=1")],
        )
        script = "cat /data/a; echo new >/data/b && cat /data/b; cat /proc/mounts"
        with self.guest("sh", "-c", script, agent="0", machine=machine) as guest:
            self.assertEqual(guest.exit_report()[0], 0, guest.console)
            self.assertIn("of the volume\nnew\n", guest.console)
            self.assertIn(" /data overlay rw,", guest.console)
        self.assertEqual(volume.read_bytes(), before)

    def grown(self, name: str, before: int, after: int) -> Path:
        """A disk as the host makes it, and has made larger since."""
        path = self.folder / name
        for size in (before, after):
            ensure_disk(path, size, os.getuid(), self.folder / "templates")
        self.assertEqual(path.stat().st_size, after)
        return path

    def test_what_the_host_has_made_larger_grows(self) -> None:
        records = [("volume", "serial=v,path=/data")]
        script = "df -k / /data | tail -n 2; for d in / /data; do echo kept >$d/kept; done"
        for before, after in ((64 << 20, 100 << 20), (64 << 20, 64 << 30)):
            disk, volume = (self.grown(f"{name}-{after}", before, after) for name in ("disk", "volume"))
            machine = Machine(disk=disk, drives=[("v", volume, False)], records=records)
            with self.guest("sh", "-c", script, agent="0", machine=machine) as guest:
                self.assertEqual(guest.exit_report()[0], 0, guest.console)
            sizes = [int(size) << 10 for size in re.findall(r"(?m)^\S+ +(\d+) +\d+ +\d+ ", guest.console)]
            self.assertEqual(len(sizes), 2, guest.console)
            self.assertGreater(min(sizes), after * 0.93)
            self.assertNotIn("warning", guest.console)
            self.check_ext4(volume)
            self.assertEqual(read_from(volume, "/kept"), "kept\n")
            self.assertLess(volume.stat().st_blocks * 512, 16 << 20)

    def test_a_growth_that_was_cut_off_goes_on_at_the_next_boot(self) -> None:
        disk = self.grown("disk", 64 << 20, 1 << 40)
        machine = Machine(disk=disk)
        with self.guest("true", agent="0", machine=machine) as guest:
            deadline = time.monotonic() + 60
            before = disk.stat().st_blocks
            while disk.stat().st_blocks < before + 1024:
                self.assertLess(time.monotonic(), deadline, "it does not grow")
                time.sleep(0.005)
            guest.process.kill()
            guest.process.wait()
            # as a power cut leaves it; the next boot's check is the one that counts
            header = subprocess.run(["dumpe2fs", "-h", disk], capture_output=True, timeout=60, check=True)
            self.assertIn(b"needs_recovery", header.stdout)
            subprocess.run(["cp", "--sparse=always", disk, self.folder / "cut"], check=True, timeout=60)
            subprocess.run(["e2fsck", "-p", disk], check=False, timeout=60)
        machine = Machine(disk=self.folder / "cut")
        with self.guest("sh", "-c", "df -k / | tail -n 1", agent="0", machine=machine) as guest:
            self.assertEqual(guest.exit_report()[0], 0, guest.console)
        size = re.search(r"(?m)^\S+ +(\d+) +\d+ +\d+ ", guest.console)
        assert size is not None, guest.console
        self.assertGreater(int(size[1]) << 10, (1 << 40) * 0.93)

    def test_a_growth_that_is_in_the_journal_alone_goes_on(self) -> None:
        """As a power cut leaves it some seconds after a growth: all is in its place but the superblock."""
        disk, volume = (self.half_grown(name, 64 << 20, 128 << 20, 256 << 20) for name in ("disk", "volume"))
        machine = Machine(
            disk=disk, drives=[("v", volume, False)], records=[("volume", "serial=v,path=/data")]
        )
        with self.guest("sh", "-c", "df -k / /data | tail -n 2", agent="0", machine=machine) as guest:
            self.assertEqual(guest.exit_report()[0], 0, guest.console)
        sizes = [int(size) << 10 for size in re.findall(r"(?m)^\S+ +(\d+) +\d+ +\d+ ", guest.console)]
        self.assertEqual(len(sizes), 2, guest.console)
        self.assertGreater(min(sizes), (256 << 20) * 0.9)
        for path in (disk, volume):
            self.check_ext4(path)

    def half_grown(self, name: str, before: int, between: int, after: int) -> Path:
        """A disk whose file is of the last size and whose file system is of the second, of which its own
        superblock knows nothing: the journal has that."""
        path = self.grown(name, before, between)
        with path.open("r+b") as disk:
            old = disk.read(4096)
            self.run_tool("resize2fs", path)
            disk.seek(0)
            new = disk.read(4096)
            disk.seek(0)
            disk.write(old)
            disk.truncate(after)
        (self.folder / "block").write_bytes(new)
        script = f"jo\njw -b 0 {self.folder / 'block'}\njc\n"
        self.run_tool("debugfs", "-w", "-f", "-", path, input=script.encode())
        self.assertIn(b"needs_recovery", self.run_tool("dumpe2fs", "-h", path))
        self.assertEqual(self.count_blocks(path) << 12, before)
        self.run_tool("cp", "--sparse=always", path, self.folder / "replayed")
        subprocess.run(
            ["e2fsck", "-p", self.folder / "replayed"], check=False, timeout=60, capture_output=True
        )
        self.assertEqual(self.count_blocks(self.folder / "replayed") << 12, between)
        return path

    def count_blocks(self, path: Path) -> int:
        found = re.search(rb"(?m)^Block count: +(\d+)$", self.run_tool("dumpe2fs", "-h", path))
        assert found is not None
        return int(found[1])

    def run_tool(self, *argv: str | Path, input: bytes | None = None) -> bytes:
        return subprocess.run(argv, input=input, capture_output=True, timeout=60, check=True).stdout

    def test_a_volume_as_the_root(self) -> None:
        root = self.folder / "root"
        make_root(root)
        volume = make_ext4(self.folder / "volume", root)
        machine = Machine(
            drives=[("v", volume, False)],
            options=card(MAC),
            records=[("volume", "serial=v,path=/"), *NETWORK],
        )
        with self.guest("sh", "-c", "mount; cat /etc/hosts; >/made", agent="0", machine=machine) as guest:
            self.assertEqual(guest.exit_report()[0], 0, guest.console)
            self.assertRegex(guest.console, r"/dev/vd. on / type ext4 \(rw")
            self.assertIn("127.0.0.1\tlocalhost vm1\n", guest.console)
        self.check_ext4(volume)
        self.assertEqual(read_from(volume, "/etc/resolv.conf"), RESOLVER)

    def test_no_link_of_the_image_leads_a_volume_out_of_its_root(self) -> None:
        machine = Machine(
            drives=[("v", self.volume("v", a="here\n"), False)],
            records=[("volume", "serial=v,path=/out/out/disk")],
        )
        with self.guest("sh", "-c", "cat /disk/a; mount", agent="0", machine=machine) as guest:
            self.assertEqual(guest.exit_report()[0], 0, guest.console)
            self.assertIn("here\n", guest.console)
            self.assertRegex(guest.console, r"on /disk type ext4")

    def test_a_volume_that_is_not_there(self) -> None:
        words = "volume /data: no block device with the serial v came up"
        for record, code in (("serial=v,path=/data", 125), ("serial=v,path=/data,required=0", 0)):
            machine = Machine(records=[("volume", record)])
            with self.subTest(record), self.guest("echo", "ran", agent="0", machine=machine) as guest:
                begun = time.monotonic()
                reported, message = guest.exit_report()
                self.assertEqual(reported, code, guest.console)
                self.assertGreater(time.monotonic() - begun, 9)
                self.assertEqual("ran\n" in guest.console, code == 0)
                if code:
                    self.assertEqual(message, words)
                else:
                    self.assertIn(f"hypeman-init: warning: {words}\n", guest.console)

    def test_a_volume_that_cannot_be_mounted(self) -> None:
        garbage = self.folder / "garbage"
        garbage.write_bytes(os.urandom(1 << 20))
        for options, code in (("", 125), (",required=0", 0)):
            machine = Machine(
                drives=[("v", garbage, False)],
                options=card(MAC),
                records=[("volume", f"serial=v,path=/data{options}"), *NETWORK],
            )
            script = "grep -m 1 hypeman-init /dev/kmsg; echo ran"
            with self.subTest(options), self.guest("sh", "-c", script, agent="0", machine=machine) as guest:
                reported, message = guest.exit_report()
                self.assertEqual(reported, code, guest.console)
                said = message if code else guest.console
                self.assertRegex(said, r"volume /data: cannot mount v \(/dev/vd.\) as ext4: Invalid argument")
                self.assertEqual("ran\n" in guest.console, code == 0)
                if not code:
                    self.assertRegex(guest.console, r"12,\d+,\d+,-;hypeman-init: warning: volume /data")

    def test_an_interface_that_is_not_there(self) -> None:
        machine = Machine(options=card(OTHER_MAC), records=NETWORK)
        with self.guest("echo", "ran", agent="0", machine=machine) as guest:
            words = f"network: no interface with the MAC address {MAC} came up"
            self.assertEqual(guest.exit_report(), (125, words))
            self.assertNotIn("ran\n", guest.console)

    def test_the_failing_stage_of_two_ends_the_boot(self) -> None:
        records = [("volume", "serial=v,path=/data"), ("net", f"mac={MAC},mtu=68,address=fd00::1/8")]
        machine = Machine(drives=[("v", self.volume("v"), False)], options=card(MAC), records=records)
        with self.guest("echo", "ran", agent="0", machine=machine) as guest:
            code, message = guest.exit_report()
            self.assertEqual(code, 125)
            self.assertIn(f"network: cannot set the address fd00::1 of {MAC}: ", message)

    def files_machine(self, *records: tuple[str, str]) -> Machine:
        """With a files disk, and one as the launcher makes it."""
        files, secrets = self.folder / "files", self.folder / "secrets"
        fields = {"path": "/srv/app/conf.d/a,b", "mode": "0640", "owner": "500:600"}
        write_files_disk(
            files, [DiskFile(fields, b"of the \0 host\n"), DiskFile({"path": "/etc/hosts"}, b"")]
        )
        write_files_disk(secrets, [DiskFile({"name": "key"}, b"open sesame"), DiskFile({"name": "x"}, b"y")])
        drives = [("hypeman-files", files, True), ("hypeman-secrets", secrets, True)]
        return Machine(drives=drives, records=[("files", "1"), *records])

    def test_files_and_secrets_of_the_host_are_there_before_the_program(self) -> None:
        machine = self.files_machine(("secret", "name=key,mode=0440,owner=500"), ("read_only", "1"))
        script = (
            "stat -c '%n %a %u:%g' /srv/app/conf.d; stat -c '%n %a %u:%g %s' /srv/app/conf.d/a,b /etc/hosts"
            " /run/secrets/*;"
            "cat /run/secrets/key; grep secrets /proc/mounts; touch /srv/x"
        )
        with self.guest("sh", "-c", script, agent="0", machine=machine) as guest:
            self.assertEqual(guest.exit_report()[0], 1, guest.console)
            expected = (
                "/srv/app/conf.d 755 0:0\n/srv/app/conf.d/a,b 640 500:600 14\n/etc/hosts 644 0:0 0\n"
                "/run/secrets/key 440 500:500 11\nopen sesametmpfs /run/secrets tmpfs rw,nosuid,nodev,noexec,"
            )
            self.assertIn(expected, guest.console)
            self.expect_order(guest, "system", "files", "console", "program")

    def test_files_and_secrets_in_systemd_mode(self) -> None:
        machine = self.files_machine(("secret", "name=key"))
        script = "stat -c '%n %a %u:%g %s' /run/secrets/key"
        with self.guest(SCRIPT_INIT, "-c", script, mode="systemd", agent="0", machine=machine) as guest:
            self.assertIn("/run/secrets/key 400 0:0 11\n", guest.finish())

    def test_a_secret_that_the_host_did_not_bring_ends_the_boot(self) -> None:
        with self.guest("true", agent="0", machine=self.files_machine(("secret", "name=other"))) as guest:
            self.assertEqual(guest.exit_report(), (125, "secrets: 0 of 1 are on the disk"))

    def test_without_network_and_volumes_there_is_neither_stage(self) -> None:
        with self.guest("ip", "addr", agent="0") as guest:
            self.assertEqual(guest.exit_report()[0], 0)
            self.assertEqual(set(guest.stages()) & {"network", "volumes", "binds"}, set())
            self.assertIn("lo: <LOOPBACK,UP,LOWER_UP>", guest.console)


class Gate(boot_guest.BootCase):
    """What init does by what the agent does, with the agent of a real initrd replaced: one of each kind, of
    which exec_mode.py has all."""

    def machine(self, agent: str) -> Machine:
        initrd = Path(self.shared.name) / f"{agent}.cpio"
        entries: Sequence[Entry] = (
            Entry("dev", 0o040755),
            Entry("dev/console", 0o020600, device=(5, 1)),
            Entry("init", 0o100755, INIT.read_bytes()),
        )
        if agent != "missing":
            entries = [*entries, Entry("hypeman-agent", 0o100755, FAKE_AGENT.read_bytes())]
        initrd.write_bytes(format_archive(entries))
        return Machine(initrd=initrd, words=f"fake_agent={agent}")

    def test_an_agent_that_dies_after_its_byte_does_no_harm(self) -> None:
        with self.guest("sh", "-c", "echo ran; exit 4", machine=self.machine("byte-crash")) as guest:
            self.assertEqual(guest.exit_report(), (4, "exited with code 4"))
            words = [guest.console.index(word) for word in ("AGENT-READY", "PROGRAM-START", "EXIT")]
            self.assertEqual(words, sorted(words))

    def test_no_byte_no_program(self) -> None:
        with self.guest("echo", "ran", machine=self.machine("missing")) as guest:
            words = "cannot open its binary: No such file or directory"
            message = f"the guest agent is not ready: {words}; the program was not started"
            self.assertEqual(guest.exit_report(), (125, message))
            for line in ("ran\n", "PROGRAM-START", "AGENT-READY"):
                self.assertNotIn(line, guest.console)

    def test_without_an_agent_there_is_nothing_of_it(self) -> None:
        script = "ps; ls -l /proc/[1-9]/exe /proc/1/fd; find / -xdev; find /run; (sleep 1 &); exit 5"
        with self.guest("sh", "-c", script, agent="0", machine=self.machine("crash")) as guest:
            self.assertEqual(guest.exit_report(), (5, "exited with code 5"))
            self.assertRegex(guest.console, r"\n +1 root +sh -c ")
            self.assertNotIn("agent", guest.console.split("PROGRAM-START")[1])


if __name__ == "__main__":
    unittest.main()
