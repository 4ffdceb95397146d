# SPDX-License-Identifier: Apache-2.0
"""A new machine: what is seen in it, and that nothing of it stays, however it ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.host import cgroups
from tests.host.cache import CACHE
from tests.host.command import Result, run_command
from tests.host.leftovers import HOSTS, remove_leftovers
from tests.host.newmachine import TOP, derive_environment
from tests.host.recipe import Suite

pytestmark = pytest.mark.one_release

DEADLINE = 120.0
RUN = [sys.executable, "-m", "tests.host.newmachine"]


def run_in_new_machine(suite: Suite, script: str) -> Result:
    argv = ["env", "-C", str(TOP), *RUN, suite, "sh", "-c", script]
    return run_command(argv, env=derive_environment(os.environ), timeout=DEADLINE, check=False)


@contextmanager
def start_in_new_machine(suite: Suite, script: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [*RUN, suite, "sh", "-c", script],
        cwd=TOP,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        env=derive_environment(os.environ),
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def list_rest(token: str) -> list[str]:
    """What there is of a run that had `token` in its script: processes, directories, control groups."""
    commands = [path for path in Path("/proc").glob("[0-9]*/cmdline") if token in _read(path)]
    groups = [
        str(path)
        for hierarchy in cgroups.find_hierarchies()
        for path in hierarchy.mount.glob(f"{cgroups.PREFIX}new-*")
        if not (HOSTS / path.name.removeprefix(cgroups.PREFIX)).exists()
    ]
    roots = [str(path) for path in HOSTS.glob("new-*/root") if (path / "root" / token).exists()]
    return [str(path) for path in commands] + groups + roots


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def wait_until_gone(token: str) -> None:
    """A process that was killed is gone a moment later."""
    deadline = time.monotonic() + DEADLINE
    while list_rest(token) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list_rest(token) == []


def test_a_new_machine_has_nothing_but_make_and_the_checkout(suite: Suite) -> None:
    script = """
        . /etc/os-release; echo "$VERSION_CODENAME"
        pwd
        for program in make git gcc python3 nft qemu-system-x86_64; do
            command -v "$program" >/dev/null && echo "has $program"
        done
        ls -d README.md .git/index /work /var/cache/hypemand-build/roots 2>/dev/null
        echo "processes: $(ls -d /proc/[0-9]* | wc -l)"
        exit 7
    """
    result = run_in_new_machine(suite, script)
    assert result.code == 7, result.describe()
    lines = result.stdout.splitlines()
    assert lines[:3] == [str(suite), "/root/hypemand", "has make"]
    assert lines[3:6] == [".git/index", "/var/cache/hypemand-build/roots", "README.md"]
    assert int(lines[6].removeprefix("processes: ")) < 10


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_of_it_stays_after_a_signal(suite: Suite, number: signal.Signals) -> None:
    token = f"token-{suite}-{number.name}-{os.getpid()}"
    # what is inside ends on an interrupt, as a test run does
    script = f"touch /root/{token}; mount -t tmpfs {token} /mnt; trap 'exit 3' INT; echo up; sleep 600 & wait"
    with start_in_new_machine(suite, script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        assert len(list_rest(token)) >= 3
        process.send_signal(number)
        code = process.wait(DEADLINE)
    assert code == (-number if number is signal.SIGKILL else 130)
    if number is signal.SIGKILL:
        # the kernel kills what was inside; the next run removes the rest
        remove_leftovers()
    wait_until_gone(token)
    assert token not in Path("/proc/self/mounts").read_text()
    assert CACHE.is_dir()
