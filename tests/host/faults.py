# SPDX-License-Identifier: Apache-2.0
"""What the tests of faults share: VMs that are gone at the end, host config, other agents in guests."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from guest.tools.make_initrd import Entry, format_archive
from tests.host.apiget import api_get
from tests.host.command import Result
from tests.host.hypemanctl import run_hypemanctl
from tests.host.machine import TestHost

BUSYBOX = "builtin:busybox"
SMALL = ("--memory=128M", "--vcpus=1", "--disk=64M", "--network=none")
SMALL_DEFINITION = {"image": BUSYBOX, "memory": "128M", "vcpus": 1, "disk": "64M", "network": "none"}
VM_DIR = "/etc/hypemand/vms.d"
DROPIN = "/etc/hypemand/hypemand.yaml.d/50-test.yaml"
GUEST_DIR = "/usr/lib/hypemand/guest"
# what a unit of a VM, its VMM and its helpers leave while they live
LIVE_TRACES = """
systemctl list-units --plain --no-legend --state=active,activating,deactivating "hypeman-vm-$1.service"
pgrep --list-full --full -- "-name guest=$1," || true
pgrep --list-full --full -- "hypemand[.]unit.* $1( |$)" || true
ls -d "/run/hypemand/vms/$1" 2>/dev/null || true
"""
ALL_TRACES = """
systemctl list-units --all --plain --no-legend "hypeman-vm-$1.service"
ls -d "/var/lib/hypemand/vms/$1" "/run/systemd/transient/hypeman-vm-$1.service" 2>/dev/null || true
grep --recursive --files-with-matches "Micro VM $1\\"" /run/userdb 2>/dev/null || true
"""


def ctl(
    host: TestHost,
    *words: str,
    check: bool = True,
    timeout: float = 180,
    input: str | bytes | None = None,
    env: Mapping[str, str] | None = None,
) -> Result:
    """Run hypemanctl in the host."""
    content = input.encode() if isinstance(input, str) else input
    return run_hypemanctl(host, words, check=check, timeout=timeout, input=content, env=env)


def find_live_traces(host: TestHost, name: str) -> list[str]:
    """All that a VM that does not run must not have."""
    return host.run(["sh", "-c", LIVE_TRACES, "traces", name]).stdout.splitlines()


def find_traces(host: TestHost, name: str) -> list[str]:
    """All that a VM that is no more must not have, but for what machined knows."""
    found = host.run(["sh", "-c", ALL_TRACES, "traces", name]).stdout.splitlines()
    return find_live_traces(host, name) + found


def is_registered(host: TestHost, name: str) -> bool:
    """Does machined know a machine of that name? It forgets one that has ended when it has nothing else to
    do, which may be after it has answered a question."""
    return host.run(["machinectl", "show", name], check=False).ok


def check_gone(host: TestHost, name: str) -> None:
    """Nothing of a VM is left now, and soon no machine either."""
    assert find_traces(host, name) == []
    host.wait_until(lambda: not is_registered(host, name), f"machined has forgotten {name}")


@dataclass(frozen=True)
class Vm:
    """A VM in a host."""

    host: TestHost
    name: str

    def ctl(self, command: str, *words: str, check: bool = True, timeout: float = 180) -> Result:
        """`hypemanctl COMMAND NAME WORD...`"""
        return ctl(self.host, command, self.name, *words, check=check, timeout=timeout)

    def show(self) -> dict[str, Any]:
        """All that the daemon knows of it."""
        shown: dict[str, Any] = api_get(self.host, f"/instances/{self.name}")
        return shown

    def exec(self, *words: str, check: bool = True, timeout: float = 180) -> Result:
        """Run a command in it."""
        return ctl(self.host, "exec", self.name, "--", *words, check=check, timeout=timeout)

    def logs(self, *words: str) -> list[str]:
        """Lines of its console."""
        return self.ctl("logs", *words).stdout.splitlines()

    def wait(self, state: str, deadline: int = 180) -> None:
        """Wait until it is in a state."""
        self.ctl("wait", f"--for={state}", f"--timeout={deadline}", timeout=deadline + 10)

    def end(self, deadline: int = 180) -> dict[str, Any]:
        """Wait until it is Stopped and, soon after, nothing of the run is left; gives what is known of it
        then."""
        self.wait("Stopped", deadline)
        self.host.wait_until(
            lambda: find_live_traces(self.host, self.name) == [] and not is_registered(self.host, self.name),
            what="nothing is left",
        )
        return self.show()

    def unit(self, prop: str) -> str:
        """A property of its unit, as systemctl shows it."""
        unit = f"hypeman-vm-{self.name}.service"
        return self.host.run(["systemctl", "show", "--value", f"--property={prop}", unit]).stdout.strip()

    def remove(self) -> None:
        """Remove it by force; nothing of it may stay."""
        ctl(self.host, "rm", "-f", self.name)
        check_gone(self.host, self.name)


@contextlib.contextmanager
def start_vm(
    host: TestHost, name: str, *command: str, options: Sequence[str] = (), image: str = BUSYBOX
) -> Iterator[Vm]:
    """A small VM that is started, and removed at the end of the block. It may be in any state by then."""
    vm = Vm(host, name)
    ctl(host, "run", "-d", f"--name={name}", *SMALL, *options, image, *command)
    try:
        yield vm
    finally:
        vm.remove()


def write_definition(host: TestHost, name: str, definition: Mapping[str, Any] | str) -> None:
    """Put a definition file into the host."""
    text = definition if isinstance(definition, str) else yaml.safe_dump(dict(definition))
    host.push(f"{VM_DIR}/{name}.yaml", text)


@contextlib.contextmanager
def define_vm(host: TestHost, name: str, **definition: Any) -> Iterator[Vm]:
    """A small VM that a file defines, not started; file and VM are gone at the end of the block."""
    write_definition(host, name, {**SMALL_DEFINITION, **definition})
    vm = Vm(host, name)
    try:
        ctl(host, "reload")
        yield vm
    finally:
        host.run(["rm", "-f", f"{VM_DIR}/{name}.yaml"])
        ctl(host, "reload")
        vm.remove()


@contextlib.contextmanager
def host_config(host: TestHost, **config: Any) -> Iterator[None]:
    """Let the daemon run with these keys of the host config."""
    host.push(DROPIN, yaml.safe_dump(config))
    try:
        ctl(host, "reload")
        yield
    finally:
        host.run(["rm", "-f", DROPIN])
        ctl(host, "reload")


def compile_static(source: str, output: Path, *options: str) -> bytes:
    """A static program of C, which runs in a guest without anything beside it."""
    text = output.with_suffix(".c")
    text.write_text(source)
    argv = ["musl-gcc", "-static", "-Os", "-s", "-Wall", "-Werror", *options, "-o", str(output), str(text)]
    subprocess.run(argv, check=True, timeout=60, capture_output=True)
    return output.read_bytes()


@contextlib.contextmanager
def other_guest(host: TestHost, *, init: bytes | None = None, agent: bytes | None = None) -> Iterator[None]:
    """Let the daemon start VMs with another init or agent in their initrd."""
    init = init or host.pull(f"{GUEST_DIR}/hypeman-init")
    agent = agent or host.pull(f"{GUEST_DIR}/hypeman-agent")
    entries = (
        Entry("dev", 0o040755),
        Entry("dev/console", 0o020600, device=(5, 1)),
        Entry("hypeman-agent", 0o100755, agent),
        Entry("init", 0o100755, init),
    )
    folder = "/srv/other-guest"
    host.push(f"{folder}/initrd.cpio", format_archive(entries))
    try:
        with host_config(host, guest_dir=folder):
            yield
    finally:
        host.run(["rm", "-rf", folder])


@cache
def strip_escapes(text: str) -> str:
    """Text as a terminal shows it: without colours and cursor movements, carriage returns as line ends."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r\n", "\n")
