# SPDX-License-Identifier: Apache-2.0
"""Real guests that stand still, are saved, and go on. Run as boot_guest.py is."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

from boot_guest import BOOT_S, BootCase, Guest, Machine, qemu_arguments
from frames import Channel, Type, format_records
from saved import control, restore_arguments, save

COUNTER = "i=0; while :; do echo tick $i; i=$((i+1)); sleep 0.05; done"
ENTROPY = os.urandom(64).hex()


def thaw(channel: Channel, seconds: int, **identity: str) -> tuple[int, str]:
    pairs = [("clock", str(seconds * 10**9)), ("entropy", ENTROPY), *identity.items()]
    return channel.order(Type.THAW, format_records(pairs))


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
        for applet in ("date", "head", "md5sum", "mkdir"):
            (root / "bin" / applet).symlink_to("busybox")

    def test_all_stands_still_and_goes_on(self) -> None:
        """The program, what it has put into a control group of its own, and a command; not the agent."""
        script = f"""
        mkdir /sys/fs/cgroup/own /sys/fs/cgroup/own/deep
        (sh -c 'echo 0 >/sys/fs/cgroup/own/deep/cgroup.procs; while :; do echo own; sleep 0.05; done') &
        {COUNTER}
        """
        with self.guest("sh", "-c", script) as guest, contextlib.ExitStack() as stack:
            guest.wait_for("tick 3\n(.|\n)*own\n")
            channel = stack.enter_context(contextlib.closing(guest.channel()))
            self.assertNotIn("frozen", channel.greet())
            channel.start(["sh", "-c", "while :; do echo command >/dev/console; sleep 0.05; done"])
            channel.expect(Type.STARTED)
            guest.wait_for("command\n")
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
            now = int(said.split("\n")[0])
            self.assertLess(abs(now - 2_000_000_000), 30)
            self.assertIn("\n0::/\n0::/hypeman-exec/", said)
            self.assertNotIn("hypeman-frozen", said)
            channel.send(Type.SHUTDOWN, format_records([("grace", "5")]))
            self.assertEqual(guest.exit_report()[0], 143)

    def test_a_guest_that_is_saved_goes_on_in_another_vmm(self) -> None:
        """With all that was in its memory, which is mapped from a sparse file."""
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            machine = Machine(options=("-qmp", f"unix:{folder / 'qmp'},server=on,wait=off"))
            filled = "head -c 20000000 /dev/urandom >/tmp/kept; md5sum </tmp/kept"
            script = f"{filled}; {COUNTER}"
            guest = stack.enter_context(self.guest("sh", "-c", script, machine=machine, tmpfs="/tmp"))
            sum_before = guest.wait_for(r"([0-9a-f]{32})  -\n")[1]
            guest.wait_for("tick 5\n")
            with control(folder / "qmp") as qmp:
                qmp.execute("stop")
                memory, state = save(qmp, folder, 128 << 20)
                qmp.execute("quit")
            last = int(re.findall(r"tick (\d+)\n", guest.finish())[-1])
            found = memory.stat()
            self.assertEqual(found.st_size, 128 << 20)
            self.assertTrue(20_000_000 < found.st_blocks * 512 < 100 << 20, found.st_blocks)
            self.assertLess(state.stat().st_size, 1 << 20)
            fd = os.open(state, os.O_RDONLY)
            stack.callback(os.close, fd)
            arguments = qemu_arguments(guest.folder, machine, self.image, guest.boot, 128)
            again = subprocess.Popen(
                [*arguments, *restore_arguments(memory, fd)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                pass_fds=(fd,),
            )
            stack.callback(again.communicate, timeout=BOOT_S)
            stack.callback(again.kill)
            restored = Guest(again, guest.folder, guest.boot)
            with control(folder / "qmp") as qmp:
                self.assertEqual(qmp.await_status(not_in="inmigrate"), "paused")
                qmp.execute("cont")
                first = int(restored.wait_for(r"tick (\d+)\n")[1])
                self.assertEqual(first, last + 1)
                channel = stack.enter_context(contextlib.closing(restored.channel()))
                channel.greet()
                said = channel.run(["sh", "-c", "md5sum </tmp/kept"]).output[1].decode()
                self.assertEqual(said.split()[0], sum_before)
                channel.send(Type.SHUTDOWN, format_records([("grace", "5")]))
                self.assertEqual(restored.exit_report()[0], 143)


if __name__ == "__main__":
    unittest.main()
