# SPDX-License-Identifier: Apache-2.0
"""A test host: a Debian booted by systemd-nspawn from an overlay, in its own namespaces and control groups.

Everything that runs in it hangs on one process: `unshare --kill-child`, which the kernel kills when the
thread that started it ends. So a host never outlives its test run, not even one ended by SIGKILL; what
stays then (a directory, empty control groups) is removed by the next run, see leftovers.py.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self, TypeVar

from tests.host import cgroups
from tests.host.command import ENVIRONMENT, Result, kill_group, run_command
from tests.host.leftovers import HostDirectory

T = TypeVar("T")

# Of what is to happen, and does so far sooner on a machine that has nothing else to do: long deadlines cost
# time where something is wrong, and nowhere else.
BOOT_DEADLINE = 300.0
POWEROFF_DEADLINE = 180.0
DEADLINE = 180.0
POLL = 0.05
MOST_POLL = 1.0
WAITED_TO_PAUSE = 25

# argv: control groups to join, "--", then the overlay's options, its mount point and systemd-nspawn's argv
LAUNCH = """
while [ "$1" != -- ]; do echo $$ >"$1/cgroup.procs"; shift; done; shift
exec setpriv --pdeathsig KILL unshare --mount --pid --fork --kill-child=KILL --mount-proc sh -c '
  mount -t overlay overlay -o "$1" "$2" && shift 2 && exec "$@"' sh "$@"
"""

# argv: control groups to join, "--", then what to run
JOIN = 'while [ "$1" != -- ]; do echo $$ >"$1/cgroup.procs"; shift; done; shift; exec "$@"'

# argv: path, mode
PUSH = """
mkdir -p "$(dirname "$1")"
new=$(mktemp "$1.XXXXXX")
cat >"$new"
chmod "$2" "$new"
mv -T "$new" "$1"
"""


class HostError(AssertionError):
    """A test host did not do what every host must: boot, stop, take a file."""


class TestHost:
    """One disposable Debian, used as a context manager; `layers` are its read-only roots, topmost first.

    Start it in the main thread: it ends with the thread that started it.
    """

    __test__ = False
    live: ClassVar[list["TestHost"]] = []

    def __init__(
        self, directory: HostDirectory, layers: Sequence[Path], *, binds: Sequence[str] = ()
    ) -> None:
        self.name = directory.name
        self.last_used = time.time()
        self._directory = directory
        self._layers = tuple(layers)
        self._binds = tuple(binds)
        self._process: subprocess.Popen[bytes] | None = None
        self._helpers: list[subprocess.Popen[bytes]] = []
        self._leader = 0

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # life

    def start(self) -> None:
        """Boot and wait until systemd says that the boot is done."""
        self.launch()
        self.wait_booted()

    def launch(self) -> None:
        """Begin to boot; follow with wait_booted(). Several hosts may boot at once this way."""
        directory = self._directory
        directory.prepare_boot()
        groups = [str(group) for group in cgroups.make_group(self.name)]
        layers = ":".join(map(str, self._layers))
        options = f"lowerdir={layers},upperdir={directory.upper},workdir={directory.work}"
        nspawn = ["systemd-nspawn", f"--directory={directory.merged}", f"--machine={self.name}", "--boot"]
        nspawn += ["--register=no", "--keep-unit", "--private-network", "--capability=all", "--quiet"]
        nspawn += ["--console=read-only", "--notify-ready=yes", "--bind=/dev/net/tun"]
        nspawn += [f"--bind={bind}" for bind in self._binds]
        # systemd from 256 on asks for a word on the command line before it runs on control groups v1
        nspawn += ["--", "SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1"]
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._notify.bind(str(directory.notify))
        with directory.console.open("ab") as console:
            self._process = subprocess.Popen(
                ["sh", "-c", LAUNCH, "sh", *groups, "--", options, str(directory.merged), *nspawn],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                env={**ENVIRONMENT, "NOTIFY_SOCKET": str(directory.notify)},
                start_new_session=True,
            )
        TestHost.live.append(self)

    def wait_booted(self) -> None:
        deadline = time.monotonic() + BOOT_DEADLINE
        with self._notify:
            while "READY=1" not in self._receive_notification(deadline):
                pass
        self._directory.notify.unlink()
        self._leader = self._find_leader()
        self._open_control_groups()
        booted = self.run(["systemctl", "is-system-running", "--wait"], check=False, timeout=BOOT_DEADLINE)
        state = booted.stdout.strip()
        if state != "running":
            failed = self.run(["systemctl", "--failed", "--no-pager"], check=False).stdout
            raise HostError(f"{self.name} has booted into state {state!r}:\n{failed}\n{self.console_tail()}")

    def stop(self) -> None:
        """Shut down in order; the disk stays, and start() boots it again."""
        self._end_helpers()
        self.run(["systemctl", "poweroff"], check=False)
        assert self._process is not None
        try:
            self._process.wait(POWEROFF_DEADLINE)
        except subprocess.TimeoutExpired:
            raise HostError(f"{self.name} is not off after {POWEROFF_DEADLINE:g} s") from None
        finally:
            self.kill()

    def _end_helpers(self) -> None:
        """Before a shutdown: that stops all processes for a moment, nsenter stops itself like its child, from
        outside, where nothing continues it, and so never waits for the end of that."""
        while self._helpers:
            with self._helpers.pop() as helper:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(helper.pid, signal.SIGKILL)
                helper.wait(POWEROFF_DEADLINE)

    def reboot(self) -> None:
        self.stop()
        self.start()

    def kill(self) -> None:
        """Take the power away, at once; the disk stays. No-op for a host that is off."""
        process, self._process = self._process, None
        if process is None:
            return
        self._end_helpers()
        # the first process of the PID namespace: when it is gone, all in it are gone
        for child in _find_children(process.pid) or [process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        process.wait(POWEROFF_DEADLINE)
        self._notify.close()
        self._leader = 0
        TestHost.live.remove(self)
        cgroups.remove_group(self.name)

    def close(self) -> None:
        """Kill the host and remove all that it had on this machine."""
        try:
            self.kill()
        finally:
            self._directory.remove()

    # use

    @property
    def leader(self) -> int:
        """The process id of its systemd, in whose namespaces all of the host is; 0 while it is off."""
        return self._leader

    @property
    def root(self) -> Path:
        """The host's root as seen from outside. Absolute symlinks lead out; with push() and pull() not."""
        return Path(f"/proc/{self._leader}/root")

    def run(
        self,
        argv: Sequence[str],
        *,
        check: bool = True,
        timeout: float = DEADLINE,
        input: str | bytes | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Result:
        """Run a command as root inside. CommandError if it fails and `check`, or is not done in `timeout`."""
        return run_command(
            self._inside(argv),
            shown=argv,
            check=check,
            timeout=timeout,
            input=_encode(input),
            env=self._env(env),
        )

    def shell(self, script: str, *, check: bool = True, timeout: float = DEADLINE) -> Result:
        """Run a script of POSIX sh that ends at its first failing command."""
        return self.run(["sh", "-euc", script], check=check, timeout=timeout)

    @contextlib.contextmanager
    def popen(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None
    ) -> Iterator[subprocess.Popen[bytes]]:
        """A command inside beside the test, with pipes; killed with its group at the end of the block."""
        process = subprocess.Popen(
            self._inside(argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self._env(env),
            start_new_session=True,
        )
        try:
            with process:
                try:
                    yield process
                finally:
                    kill_group(process)
        finally:
            self.last_used = time.time()

    def start_helper(self, argv: Sequence[str]) -> subprocess.Popen[bytes]:
        """A command inside that runs as long as the host is up, with a pipe from its standard output."""
        helper = subprocess.Popen(
            self._inside(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env=self._env(None),
            start_new_session=True,
        )
        self._helpers.append(helper)
        return helper

    def push(self, path: str, content: str | bytes, mode: int = 0o644) -> None:
        """Write a file inside, whole or not at all; folders on the way are made."""
        self.run(["sh", "-euc", PUSH, "push", path, f"{mode:o}"], input=content)

    def pull(self, path: str) -> bytes:
        """The content of a file inside."""
        return self.run(["cat", path]).raw

    def install(self, debs: Sequence[Path], *, reinstall: bool = False, timeout: float = 300) -> Result:
        """Install packages from files of this machine; what they depend on must be in the base."""
        for deb in debs:
            self.push(f"/var/cache/test-host/{deb.name}", deb.read_bytes())
        paths = [f"/var/cache/test-host/{deb.name}" for deb in debs]
        options = ["--reinstall"] if reinstall else []
        result = self.run(
            ["apt-get", "install", "-y", "--no-install-recommends", "--allow-downgrades", *options, *paths],
            timeout=timeout,
        )
        self.run(["rm", "-rf", "/var/cache/test-host"])
        return result

    def journal(self, *matches: str, since: float | None = None) -> list[dict[str, str]]:
        """Entries that fit all of journalctl's matches or options, oldest first; binary values decoded. All
        that was sent before is among them: journald reads what waits for it in its own time."""
        self.run(["journalctl", "--sync"])
        since_option = [f"--since=@{since:.6f}"] if since is not None else []
        argv = ["journalctl", "--no-pager", "--all", "--output=json", *since_option, *matches]
        lines = self.run(argv).stdout.splitlines()
        return [{key: _journal_text(value) for key, value in json.loads(line).items()} for line in lines]

    def wait_until(
        self, condition: Callable[[], T | None], what: str = "", *, deadline: float = DEADLINE
    ) -> T:
        """Ask until `condition` gives something true, at most `deadline` seconds; gives that back."""
        began = time.monotonic()
        end = began + deadline
        while True:
            asked = time.monotonic()
            if answer := condition():
                return answer
            now = time.monotonic()
            if now > end:
                raise AssertionError(f"{what or condition} not so within {deadline:g} s; at last: {answer!r}")
            time.sleep(derive_pause(now - asked, now - began))

    def wait_until_succeeds(self, argv: Sequence[str], *, deadline: float = DEADLINE) -> Result:
        """Run a command inside again and again until it succeeds, at most `deadline` seconds."""
        last: list[Result] = []

        def succeeds() -> Result | None:
            last[:] = [self.run(argv, check=False, timeout=deadline)]
            return last[0] if last[0].ok else None

        try:
            return self.wait_until(succeeds, deadline=deadline)
        except AssertionError:
            raise AssertionError(f"no success within {deadline:g} s; at last: {last[0].describe()}") from None

    def report(self, since: float) -> str:
        """What an investigation of a failed test starts from: failed units and the journal since then."""
        if not self._leader:
            return self.console_tail()
        failed = self.run(["systemctl", "--failed", "--no-pager", "--full"], check=False)
        self.run(["journalctl", "--sync"], check=False)
        journal = self.run(
            ["journalctl", "--no-pager", "--output=short-precise", f"--since=@{since:.0f}", "--lines=200"],
            check=False,
        )
        return f"{failed.stdout}{failed.stderr}\n{journal.stdout}{journal.stderr}"

    def console_tail(self) -> str:
        return self._directory.console.read_text(errors="replace")[-6000:]

    # inside

    def _env(self, extra: Mapping[str, str] | None) -> dict[str, str]:
        return {**ENVIRONMENT, **(extra or {})}

    def _inside(self, argv: Sequence[str]) -> list[str]:
        if not self._leader:
            raise HostError(f"{self.name} is not running")
        self.last_used = time.time()
        groups = [str(group) for group in cgroups.find_group_of(self._leader)]
        enter = ["nsenter", f"--target={self._leader}", "-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w", "--"]
        return ["sh", "-c", JOIN, "sh", *groups, "--", *enter, *argv]

    def _open_control_groups(self) -> None:
        """Make limits work: v1 controllers are mounted read-only inside, and systemd has looked at them."""
        controllers = [h.mount for h in cgroups.find_hierarchies() if h.is_v1_controller]
        if controllers:
            remounts = "".join(f"mount -o remount,rw,bind {mount}\n" for mount in controllers)
            self.shell(f"{remounts}systemctl daemon-reexec")

    def _receive_notification(self, deadline: float) -> list[str]:
        self._notify.settimeout(max(0.01, min(1.0, deadline - time.monotonic())))
        try:
            return self._notify.recv(4096).decode(errors="replace").splitlines()
        except TimeoutError:
            assert self._process is not None
            if self._process.poll() is not None:
                raise HostError(f"{self.name} ended while it booted:\n{self.console_tail()}") from None
            if time.monotonic() > deadline:
                raise HostError(
                    f"{self.name} not booted in {BOOT_DEADLINE:g} s:\n{self.console_tail()}"
                ) from None
            return []

    def _find_leader(self) -> int:
        """The host's systemd: the one child of nspawn, which is the one child of our process."""
        assert self._process is not None
        (nspawn,) = _find_children(self._process.pid)
        (leader,) = _find_children(nspawn)
        return leader


def derive_pause(took: float, waited: float) -> float:
    """Seconds between two questions of which the last has taken so long, after so long a wait: no more than
    half of the time is for asking, which would hold up what is waited for, and what takes long may take some
    hundredths longer."""
    return min(max(POLL, took, waited / WAITED_TO_PAUSE), MOST_POLL)


def _find_children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _encode(text: str | bytes | None) -> bytes | None:
    return text.encode() if isinstance(text, str) else text


def _journal_text(value: object) -> str:
    """A field's text: journalctl gives odd bytes as a list of numbers, repeated fields as a list."""
    if isinstance(value, list):
        if all(isinstance(byte, int) for byte in value):
            return bytes(value).decode(errors="replace")
        return "\n".join(_journal_text(part) for part in value)
    return "" if value is None else str(value)
