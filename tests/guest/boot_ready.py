# SPDX-License-Identifier: Apache-2.0
"""Readiness checks in real guests: that of the console, whose redirection is the kernel's, and those of
systemd mode. Run as boot_guest.py is."""

from __future__ import annotations

import re
import unittest
from itertools import pairwise
from pathlib import Path

from boot_guest import SCRIPT_INIT, BootCase

LINES = 3000
READY_LINE = 1000


class ReadyBoot(BootCase):
    @classmethod
    def change_root(cls, root: Path) -> None:
        for applet in ("head", "tr", "test"):
            (root / "bin" / applet).symlink_to("busybox")

    def test_a_line_of_the_console_makes_it_ready_and_all_lines_arrive(self) -> None:
        script = (
            "test -t 1 && echo a terminal; i=0;"
            f"while [ $i -lt {LINES} ]; do echo line $i; i=$((i+1)); done; echo last words; exit 3"
        )
        with self.guest("sh", "-c", script, ready=f"check=log,pattern=^line {READY_LINE}$") as guest:
            self.assertEqual(guest.exit_report(), (3, "exited with code 3"))
            console = guest.console
            self.assertIn("a terminal\n", console)
            numbers = [int(number) for number in re.findall(r"^line (\d+)$", console, re.MULTILINE)]
            self.assertEqual(sorted(numbers), list(range(LINES)))
            late = sum(after < before for before, after in pairwise(numbers))
            self.assertLessEqual(late, 1)
            places = [console.index(words) for words in (f"line {READY_LINE}\n", "HYPEMAN-READY ts=")]
            self.assertEqual(places, sorted(places))
            self.assertNotIn("\r", console)
            # once it has matched, nothing takes the detour any more
            self.assertIn("last words\nHYPEMAN-EXIT", console)

    def test_a_program_that_ends_without_that_line_has_its_last_words(self) -> None:
        script = "echo start; head -c 50000 /dev/zero | tr '\\0' x; echo; echo no luck; exit 4"
        with self.guest("sh", "-c", script, ready="check=log,pattern=mode=exec|never") as guest:
            self.assertEqual(guest.exit_report(), (4, "exited with code 4"))
            self.assertNotIn("HYPEMAN-READY", guest.console)
            self.assertIn("x" * 50000 + "\nno luck\nHYPEMAN-EXIT", guest.console)

    def test_a_port_of_the_guest(self) -> None:
        script = "sleep 0.5; echo now; nc -l -p 5000 & sleep 30"
        with self.guest("sh", "-c", script, ready="check=tcp,port=5000") as guest:
            guest.wait_for("HYPEMAN-READY ts=")
            words = (
                "HYPEMAN-PROGRAM-START",
                'reason="nothing listens on port 5000"',
                "now\n",
                "HYPEMAN-READY",
            )
            places = [guest.console.index(word) for word in words]
            self.assertEqual(places, sorted(places))
            guest.order_poweroff(0).close()
            guest.finish()

    def test_in_systemd_mode_it_is_a_service(self) -> None:
        """Here a script stands for systemd."""
        script = """
        cat /run/systemd/system/hypeman-ready.service; ls -l /run/systemd/system/sysinit.target.wants
        busybox mkdir -p /dev/pts; mount -t devpts -o ptmxmode=666 devpts /dev/pts; ln -sf pts/ptmx /dev/ptmx
        (sleep 0.5; echo now; nc -l -p 5000) &
        /opt/hypeman/hypeman-init ready; echo back $?
        """
        with self.guest(
            SCRIPT_INIT, "-c", script, mode="systemd", agent="0", ready="check=tcp,port=5000"
        ) as guest:
            guest.wait_for(r"back (\d)")
            console = guest.console
            self.assertIn("hypeman-ready.service -> ../hypeman-ready.service", console)
            self.assertIn("ExecStart=/opt/hypeman/hypeman-init ready\n", console)
            words = ('reason="nothing listens on port 5000"', "now\n", f"boot={guest.boot}\nback 0")
            places = [console.index(word) for word in words]
            self.assertEqual(places, sorted(places))
            self.assertIn("HYPEMAN-READY", console)

    def test_in_systemd_mode_a_unit_that_is_active_starts_it(self) -> None:
        script = """
        cat /run/systemd/system/hypeman-ready.service; ls -l /run/systemd/system/db.service.wants
        /opt/hypeman/hypeman-init ready; echo back $?
        """
        ready = "check=notify,unit=db.service"
        with self.guest(SCRIPT_INIT, "-c", script, mode="systemd", agent="0", ready=ready) as guest:
            guest.wait_for(r"back 0")
            self.assertIn("After=db.service\nRequisite=db.service\n", guest.console)
            self.assertIn("hypeman-ready.service -> ../hypeman-ready.service", guest.console)
            self.assertIn("HYPEMAN-READY", guest.console)

    def test_in_systemd_mode_a_command_is_run(self) -> None:
        script = "(sleep 0.5; echo now; >/run/mark) & /opt/hypeman/hypeman-init ready; echo back $?"
        ready = "check=exec,arg=test,arg=-e,arg=/run/mark"
        with self.guest(SCRIPT_INIT, "-c", script, mode="systemd", agent="0", ready=ready) as guest:
            guest.wait_for(r"back 0")
            words = ('reason="exec: exited with code 1"', "now\n", "HYPEMAN-READY", "back 0")
            places = [guest.console.index(word) for word in words]
            self.assertEqual(places, sorted(places))

    def test_in_systemd_mode_the_console_is_followed_too(self) -> None:
        script = """
        busybox mkdir -p /dev/pts; mount -t devpts -o ptmxmode=666 devpts /dev/pts; ln -sf pts/ptmx /dev/ptmx
        /opt/hypeman/hypeman-init ready & sleep 1; echo first >/dev/console; echo up on 80 >/dev/console
        wait; echo back
        """
        ready = "check=log,pattern=^up on \\d+$"
        with self.guest(SCRIPT_INIT, "-c", script, mode="systemd", agent="0", ready=ready) as guest:
            guest.wait_for(r"back")
            words = ("first\n", "up on 80\n", "HYPEMAN-READY", "back")
            places = [guest.console.index(word) for word in words]
            self.assertEqual(places, sorted(places))


if __name__ == "__main__":
    unittest.main()
