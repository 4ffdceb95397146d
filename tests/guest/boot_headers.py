# SPDX-License-Identifier: Apache-2.0
"""Real boots with kernel headers, or what is not quite that, on a disk of their own.

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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import boot_guest
from boot_guest import Guest, make_erofs, make_ext4, make_root
from machine import KERNEL, Machine

STAMP = ".hypeman-build-id"
NEEDED = ("Makefile", ".config", "Module.symvers", "scripts/mod/modpost")
STATUS = "/run/hypeman/kernel-headers.status"
FINAL = r"HYPEMAN-HEADERS-(READY|FAILED) ts=\S+ boot=[0-9a-f]+( error=\"(.*)\")?\n"
SHOW = (
    "r=$(uname -r); m=/lib/modules/$r; cat "
    + STATUS
    + "; readlink $m/build; cat $m/build/which $m/modules.dep;"
    "ls -1a $m; ls -1 /usr/src /lib/modules; grep linux-headers /proc/mounts; echo shown"
)


def read_build_id() -> str:
    notes = subprocess.run(["readelf", "-nW", KERNEL], capture_output=True, text=True, check=True, timeout=60)
    found = re.search(r"Build ID: ([0-9a-f]{40})", notes.stdout)
    assert found is not None
    return found[1]


def read_release() -> str:
    """The release, from the line that a kernel has in it for /proc/version."""
    found = re.search(rb"Linux version (\S+) \(", KERNEL.read_bytes())
    assert found is not None
    return found[1].decode()


# one of each kind: tunnels, load balancing, matches of iptables, file systems of disks and of servers
MODULES = (
    "wireguard",
    "vxlan",
    "ip_vs",
    "ip_vs_rr",
    "xt_set",
    "squashfs",
    "nfs",
    "nfsv4",
    "cifs",
    "isofs",
    "vfat",
)
BUILD_ID = read_build_id()
RELEASE = read_release()


def make_headers(folder: Path, which: str, build_id: str = BUILD_ID) -> None:
    """A headers tree as far as it is looked at."""
    for name in (*NEEDED, "which", ".hypeman-modules/modules.dep"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{which}\n")
    (folder / ".hypeman-modules/kernel").mkdir()
    (folder / STAMP).write_text(f"{build_id}\n")


def make_modules(folder: Path, which: str, build_id: str, build: str) -> None:
    folder.mkdir(parents=True)
    (folder / "modules.dep").write_text(f"{which}\n")
    (folder / STAMP).write_text(f"{build_id}\n")
    (folder / "build").symlink_to(build)


class Headers(boot_guest.BootCase):
    @classmethod
    def change_root(cls, root: Path) -> None:
        # where it is to run without being PID 1
        shutil.copy(os.environ["HYPEMAN_INIT"], root / "bin/hypeman-init")

    def setUp(self) -> None:
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory(prefix="hypeman-headers-")))

    def headers_disk(self, build_id: str = BUILD_ID) -> Path:
        make_headers(self.folder / "headers", "of the disk", build_id)
        # large enough that half of it is not all
        (self.folder / "headers/zeros").write_bytes(bytes(100_000))
        return make_erofs(self.folder / "headers.erofs", self.folder / "headers")

    @contextmanager
    def headers_guest(
        self,
        disk: Path | None,
        *,
        image: Path | None = None,
        upper: Path | None = None,
        script: str = SHOW,
        records: Sequence[tuple[str, str]] = (),
        drives: Sequence[tuple[str, Path, bool]] = (),
    ) -> Iterator[Guest]:
        """A guest that runs its script once it gets a line over the agent's exec; ends after it."""
        all_drives = [*drives, *([("hypeman-headers", disk, True)] if disk else [])]
        machine = Machine(image=image, disk=upper, drives=all_drives, records=records)
        program = f"while ! grep -qE 'ready|failed' {STATUS}; do sleep 0.05; done; {script}"
        with self.guest("sh", "-c", program, agent="0", headers="1", machine=machine) as guest:
            yield guest

    def expect_ready(self, guest: Guest, which: str = "of the disk") -> None:
        """The program has run, and after it the headers were made; and they are right."""
        self.assertEqual(guest.exit_report(), (0, "exited with code 0"), guest.console)
        begin, end = guest.console.index("HEADERS-START"), guest.console.index("HEADERS-READY")
        self.assertLess(guest.console.index("PROGRAM-START"), begin)
        self.assertLess(begin, end)
        self.assertNotIn("HEADERS-FAILED", guest.console)
        self.assertIn(
            "ready\n/usr/src/linux-headers-" + RELEASE + "\n" + f"{which}\n{which}\n", guest.console
        )

    def expect_failed(self, guest: Guest) -> str:
        """The program has run all the same; gives the reason, which is the status file's too."""
        self.assertEqual(guest.exit_report()[0], 0, guest.console)
        found = re.search(FINAL, guest.console)
        assert found is not None, guest.console
        self.assertEqual(found[1], "FAILED", guest.console)
        self.assertIn(f"failed\n{found[3]}\n", guest.console)
        self.assertIn("shown\n", guest.console)
        return found[3]

    def new_image(self, *, lib: bool = False) -> tuple[Path, Path]:
        """A root to change, and where its image goes."""
        root = self.folder / "root"
        make_root(root)
        (root / "usr/lib").mkdir(parents=True)
        if lib:
            (root / "lib").symlink_to("usr/lib")
        return root, self.folder / "root.erofs"

    def test_an_image_without_anything_gets_all(self) -> None:
        with self.headers_guest(self.headers_disk()) as guest:
            self.expect_ready(guest)
            for expected in (STAMP, "kernel", "modules.dep", f"linux-headers-{RELEASE} erofs ro,"):
                self.assertIn(expected, guest.console)
            self.assertNotIn("noexec", re.search(r"/dev/vd. /usr/src.*\n", guest.console)[0])  # type: ignore[index]

    def test_lib_as_a_link(self) -> None:
        root, image = self.new_image(lib=True)
        script = f"{SHOW}; ls /usr/lib/modules; readlink /lib"
        with self.headers_guest(self.headers_disk(), image=make_erofs(image, root), script=script) as guest:
            self.expect_ready(guest)
            self.assertIn(f"shown\n{RELEASE}\nusr/lib\n", guest.console)

    def test_those_of_other_kernels_are_removed(self) -> None:
        root, image = self.new_image(lib=True)
        make_headers(root / "usr/src/linux-headers-6.1.0-1-amd64", "old")
        (root / "usr/src/linux-headers-6.1.0-1-common/include").mkdir(parents=True)
        (root / "usr/src/mine-1.0").mkdir()
        (root / "usr/lib/modules/6.1.0-1-amd64/kernel/fs").mkdir(parents=True)
        (root / "usr/lib/modules/6.1.0-1-amd64/kernel/fs/x.ko").write_text("old")
        (root / "usr/lib/modules/README").write_text("stays")
        with self.headers_guest(self.headers_disk(), image=make_erofs(image, root)) as guest:
            self.expect_ready(guest)
            self.assertIn(f"/usr/src:\nlinux-headers-{RELEASE}\nmine-1.0\n", guest.console)
            self.assertIn(f"/lib/modules:\n{RELEASE}\nREADME\n", guest.console)

    def test_those_of_a_volume_stay(self) -> None:
        old = self.folder / "old"
        make_headers(old / "linux-headers-1.0", "old")
        volume = make_ext4(self.folder / "volume", old)
        script = f"{SHOW}; cat /usr/src/linux-headers-1.0/which; grep -m 1 hypeman-init /dev/kmsg"
        with self.headers_guest(
            self.headers_disk(),
            drives=[("v", volume, False)],
            records=[("volume", "serial=v,path=/usr/src")],
            script=script,
        ) as guest:
            guest.finish()
            self.assertIn("shown\nold\n", guest.console)
            words = "kernel headers: cannot remove /usr/src/linux-headers-1.0: Cross-device link"
            self.assertIn(f",-;hypeman-init: warning: {words}\n", guest.console)

    def test_same_release_of_another_build_is_replaced(self) -> None:
        root, image = self.new_image()
        make_headers(root / f"usr/src/linux-headers-{RELEASE}", "stale", "00" * 20)
        make_modules(root / f"lib/modules/{RELEASE}", "stale", "00" * 20, f"/usr/src/linux-headers-{RELEASE}")
        (root / f"lib/modules/{RELEASE}/stale.ko").write_text("stale")
        with self.headers_guest(self.headers_disk(), image=make_erofs(image, root)) as guest:
            self.expect_ready(guest)
            self.assertNotIn("stale", guest.console.split("shown")[0])

    def test_a_build_link_to_elsewhere_is_replaced(self) -> None:
        root, image = self.new_image()
        make_modules(root / f"lib/modules/{RELEASE}", "of the image", BUILD_ID, "/nowhere")
        with self.headers_guest(self.headers_disk(), image=make_erofs(image, root)) as guest:
            self.expect_ready(guest)

    def test_nothing_is_done_where_all_is_right(self) -> None:
        root, image = self.new_image()
        make_headers(root / f"usr/src/linux-headers-{RELEASE}", "of the image")
        make_modules(
            root / f"lib/modules/{RELEASE}", "of the image", BUILD_ID, f"/usr/src/linux-headers-{RELEASE}"
        )
        make_headers(root / "usr/src/linux-headers-other", "kept")
        # not even the disk is looked for
        with self.headers_guest(None, image=make_erofs(image, root)) as guest:
            self.expect_ready(guest, "of the image")
            self.assertIn("linux-headers-other\n", guest.console)
            self.assertNotIn(f"linux-headers-{RELEASE} erofs", guest.console)

    def test_the_modules_of_the_kernel_can_be_loaded(self) -> None:
        """The disk that is in the package with this kernel, by a modprobe that knows indexes alone."""
        load = "\n".join(f"modprobe {name} || echo no {name}" for name in MODULES)
        script = f"""
        {load}
        ip link add wg0 type wireguard && ip link set wg0 up && echo wg0 is up
        for f in squashfs nfs4 cifs fuse; do grep -w $f /proc/filesystems; done
        mknod /tmp/tun c 10 200 && exec 9<>/tmp/tun && echo tun opens
        k=/lib/modules/$(uname -r)
        cp $k/kernel/hypeman/drivers/net/ifb.ko $k/kernel/mine.ko
        insmod $k/kernel/mine.ko && echo mine, too
        {SHOW}"""
        disk = KERNEL.with_name("headers.erofs")
        with self.headers_guest(disk, script=script) as guest:
            self.assertEqual(guest.exit_report()[0], 0, guest.console)
        said = guest.console
        self.assertNotIn("\nno ", said)
        self.assertIn("wg0 is up\n\tsquashfs\n", said)
        self.assertIn("nodev\tnfs4\nnodev\tcifs\nnodev\tfuse\ntun opens\n", said)
        self.assertIn("\nmine, too\n", said)

    def test_the_next_boot_keeps_what_was_installed(self) -> None:
        disk, upper = self.headers_disk(), make_ext4(self.folder / "upper")
        script = f"{SHOW}; >/lib/modules/$r/mine.ko"
        with self.headers_guest(disk, upper=upper, script=script) as guest:
            self.expect_ready(guest)
        with self.headers_guest(disk, upper=upper) as guest:
            self.expect_ready(guest)
            self.assertIn("mine.ko\n", guest.console)

    def test_a_damaged_disk_is_told_and_nothing_else(self) -> None:
        whole = self.headers_disk()
        size = whole.stat().st_size
        data = whole.read_bytes()
        half = size // 2 // 4096 * 4096
        cases = (
            ("cut short", data[:half], rf"is damaged: {half} bytes of {size} are there"),
            ("garbage", b"\x5a" * size, "is damaged: there is no erofs on it"),
            ("empty", bytes(512), "is damaged: there is no erofs on it"),
            ("half garbage", data[:1152] + b"\x5a" * (size - 1152), "cannot mount|is damaged"),
        )
        for name, content, words in cases:
            damaged = self.folder / "damaged"
            damaged.write_bytes(content)
            with self.subTest(name), self.headers_guest(damaged) as guest:
                reason = self.expect_failed(guest)
                self.assertRegex(
                    reason, f"the headers disk /dev/vdd .*({words})|cannot mount the headers disk"
                )

    def test_a_disk_of_another_kernel(self) -> None:
        with self.headers_guest(self.headers_disk("11" * 20)) as guest:
            self.assertRegex(self.expect_failed(guest), f"of another kernel than .* {BUILD_ID}$")
            self.assertNotIn(" erofs ro,", guest.console)

    def test_a_missing_disk(self) -> None:
        with self.headers_guest(None) as guest:
            guest.wait_for("PROGRAM-START.*\n")
            begun = time.monotonic()
            reason = self.expect_failed(guest)
            self.assertGreater(time.monotonic() - begun, 9)
            self.assertEqual(reason, "no block device with the serial hypeman-headers came up")

    def test_a_worker_does_not_hold_up_the_end(self) -> None:
        script = f"cat {STATUS}; exit 6"
        machine = Machine()
        with self.guest("sh", "-c", script, agent="0", headers="1", machine=machine) as guest:
            guest.wait_for("PROGRAM-START.*\n")
            begun = time.monotonic()
            self.assertEqual(guest.exit_report(), (6, "exited with code 6"))
            self.assertLess(time.monotonic() - begun, 9, "it waits for the disk for 10 s")
            self.assertRegex(guest.console, r"\n(pending|running)\n")
            self.assertIsNone(re.search(FINAL, guest.console))

    def test_as_a_program_of_its_own(self) -> None:
        script = f"hypeman-init headers; echo code $?; {SHOW}"
        wrong = "; hypeman-init; echo wrong $?; hypeman-init other; echo wrong $?"
        for disk, code in ((self.headers_disk(), 0), (None, 1)):
            machine = Machine(drives=[("hypeman-headers", disk, True)] if disk else [])
            with (
                self.subTest(code=code),
                self.guest("sh", "-c", script + wrong, agent="0", machine=machine) as guest,
            ):
                guest.finish()
                self.assertEqual(re.findall(r"\ncode (\d)", guest.console), [str(code)], guest.console)
                self.assertEqual(re.findall(r"\nwrong (\d)", guest.console), ["1", "1"])
                states = re.findall(rf"HEADERS-(\w+) ts=\S+ boot={guest.boot}", guest.console)
                self.assertEqual(states, ["START", "FAILED" if code else "READY"])
                if code:
                    reason = "no block device with the serial hypeman-headers came up"
                    self.assertIn(f"failed\n{reason}\n", guest.console)
                    self.assertIn(f"hypeman-init: kernel headers: {reason}\n", guest.console)
                else:
                    self.assertIn("code 0\nready\n/usr/src/linux-headers-", guest.console)

    def test_without_them_there_is_nothing_of_it(self) -> None:
        disk = self.headers_disk()
        machine = Machine(drives=[("hypeman-headers", disk, True)])
        with self.guest("find", "/run", "/usr", "/lib", agent="0", machine=machine) as guest:
            guest.finish()
            for word in ("HEADERS", "hypeman/", "linux-headers", "modules"):
                self.assertNotIn(word, guest.console)


if __name__ == "__main__":
    unittest.main()
