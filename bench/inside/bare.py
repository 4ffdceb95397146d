# SPDX-License-Identifier: Apache-2.0
"""The same VMM without systemd, sandbox, limits and daemon: spawned by this process, its console a pipe."""

from __future__ import annotations

import json
import os
import re
import selectors
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MARKER = b"HYPEMAN-PROGRAM-START"
BOOT_DEADLINE = 60.0
STOP_DEADLINE = 15.0
TAP = "bench2"
"""The TAP device of a bare VM whose recipe has a network."""
_STOP_LINE = b"poweroff 5\n"


@dataclass(frozen=True)
class Recipe:
    """A VM's own command line, with config disk, disk and sockets in a folder of its own: the VMM's `argv`
    less -append, and the kernel's `words`. `disk` is where the VM's own disk is."""

    argv: tuple[str, ...]
    words: str
    disk: Path
    folder: Path

    @classmethod
    def take(cls, unit: str, folder: Path) -> Recipe:
        """From the unit of a VM that runs. Its disk is to be copied once it has stopped: `copy_disk`."""
        (_path, argv, *_), *_ = _read_property(unit, "ExecStart")
        runtime, words, vmm = split_start_line(argv)
        binds = [*_read_property(unit, "BindReadOnlyPaths"), *_read_property(unit, "BindPaths")]
        hosts = {inside: Path(host) for host, inside, *_ in binds if inside != "/usr"}
        disk = hosts[_find_disk(vmm)]
        folder.mkdir(parents=True)
        shutil.copy(hosts[runtime] / "config.img", folder)
        own = {**hosts, runtime: folder, _find_disk(vmm): folder / "disk.ext4"}
        vmm = [_replace_descriptor(word, folder) for word in vmm]
        return cls(tuple(_leave_root(word, own) for word in vmm), words, disk, folder)

    def copy_disk(self) -> None:
        """Take a copy of the VM's disk, holes kept."""
        copy = ["cp", "--sparse=always", str(self.disk), f"{self.folder}/disk.ext4"]
        subprocess.run(copy, stdin=subprocess.DEVNULL, check=True, timeout=60)


def split_start_line(argv: Sequence[str]) -> tuple[str, str, list[str]]:
    """The folder of a VM's sockets, the kernel's words and the VMM's command line, of what its unit executes:
    hypeman-console and its arguments, then launcher RUNTIME TAP_SOCKET KERNEL_WORDS VMM... ValueError."""
    launcher = next((place for place, word in enumerate(argv) if word.endswith("/launcher")), len(argv))
    if len(argv) < launcher + 5:
        raise ValueError(f"{argv} is not the launcher with its arguments")
    return argv[launcher + 1], argv[launcher + 3], list(argv[launcher + 4 :])


def _read_property(unit: str, name: str) -> list[Any]:
    path = "/org/freedesktop/systemd1/unit/" + "".join(c if c.isalnum() else f"_{ord(c):02x}" for c in unit)
    get = ["busctl", "get-property", "--json=short", "org.freedesktop.systemd1", path]
    get += ["org.freedesktop.systemd1.Service", name]
    answer = subprocess.run(get, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True, timeout=10)
    value: list[Any] = json.loads(answer.stdout)["data"]
    return value


def _replace_descriptor(word: str, folder: Path) -> str:
    """A word with what the VMM opens itself in the place of what the launcher would bring."""
    word = re.sub(r"^socket,id=(\w+),fd=\d+,", rf"socket,id=\1,path={folder}/\1.sock,", word)
    return re.sub(r"^tap,id=net,fd=\d+,", f"tap,id=net,ifname={TAP},script=no,downscript=no,", word)


def _leave_root(word: str, hosts: Mapping[str, Path]) -> str:
    """A word of the VMM's command line with the paths of its own root turned into those of the host."""
    inside = "|".join(re.escape(path) for path in hosts)
    return re.sub(rf"(?<![^=:])({inside})(?=[/,]|$)", lambda found: str(hosts[found[1]]), word)


def _find_disk(vmm: list[str]) -> str:
    for word in vmm:
        if word.startswith("if=none,id=disk,"):
            return _fields(word)["file"]
    raise ValueError(f"there is no drive with the id disk in {vmm}")


def _fields(words: str) -> dict[str, str]:
    return dict(field.split("=", 1) for field in words.split(",") if "=" in field)


class BareVm:
    """One run of a recipe, whose folder no other run uses at the time. `prefix`: a command that runs it;
    `more`: the last words of its command line, and `fds`: what of this process they name."""

    def __init__(
        self,
        recipe: Recipe,
        prefix: Sequence[str] = (),
        *,
        more: Sequence[str] = (),
        fds: Sequence[int] = (),
    ) -> None:
        self.boot = uuid.uuid4().hex
        argv = [*prefix, *recipe.argv, "-append", f"{recipe.words} hypeman.boot={self.boot}", *more]
        stop = next(word for word in recipe.argv if word.startswith("socket,id=stop,"))
        self._stop_path = _fields(stop)["path"]
        self.spawned = time.monotonic()
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=fds,
        )
        self.console = b""

    def read(self) -> bool:
        """Read what the console has; False at its end."""
        assert self._process.stdout is not None
        block = os.read(self._process.stdout.fileno(), 65536)
        self.console += block
        return bool(block)

    @property
    def fd(self) -> int:
        """Of the console."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    @property
    def has_started(self) -> bool:
        """Has the program's marker been seen, to the end of its line?"""
        return b"\n" in self.console.partition(MARKER)[2]

    def wait_console(self, line: bytes) -> None:
        """Until the console has had this."""
        end = time.monotonic() + BOOT_DEADLINE
        with selectors.DefaultSelector() as selector:
            selector.register(self.fd, selectors.EVENT_READ)
            while line not in self.console:
                if not selector.select(max(end - time.monotonic(), 0.0)):
                    raise TimeoutError(f"a bare VM has not written {line!r}: {self.console[-2000:]!r}")
                if not self.read():
                    raise RuntimeError(f"a bare VM ended: {self.console[-2000:]!r}")

    def wait_end(self) -> None:
        """Until it has ended by itself."""
        self._process.communicate(timeout=STOP_DEADLINE)

    def kill(self) -> None:
        """End it, if it has not ended."""
        self._process.kill()
        self._process.communicate()

    def stop(self) -> None:
        """Power off in order, as the managed VM is stopped, so that the next boot finds the disk alike."""
        try:
            with socket.socket(socket.AF_UNIX) as link:
                link.settimeout(STOP_DEADLINE)
                link.connect(self._stop_path)
                link.sendall(_STOP_LINE)
                self._process.communicate(timeout=STOP_DEADLINE)
        finally:
            self._process.kill()
            self._process.wait()


def boot_all(recipes: list[Recipe]) -> list[float]:
    """Boot them at once; seconds from the first spawn to each PROGRAM-START, in the order in which they came.

    TimeoutError when one did not get there. None is left running.
    """
    vms: list[BareVm] = []
    times: list[float] = []
    try:
        vms += [BareVm(recipe) for recipe in recipes]
        with selectors.DefaultSelector() as selector:
            for vm in vms:
                selector.register(vm.fd, selectors.EVENT_READ, vm)
            end = vms[0].spawned + BOOT_DEADLINE
            while len(times) < len(vms):
                events = selector.select(max(end - time.monotonic(), 0.0))
                now = time.monotonic()
                for key, _ in events:
                    if not key.data.read():
                        raise RuntimeError(f"a bare VM ended: {key.data.console[-2000:]!r}")
                    if key.data.has_started:
                        times.append(now - vms[0].spawned)
                        selector.unregister(key.fd)
                if not events:
                    raise TimeoutError(
                        f"{len(vms) - len(times)} bare VMs did not start in {BOOT_DEADLINE:g} s"
                    )
    finally:
        for vm in vms:
            vm.stop()
    return times
