# SPDX-License-Identifier: Apache-2.0
"""The VMs of a test: defined in files as an administrator does, asked about as one does, gone at the end."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from guest.tools.make_initrd import Entry, format_archive
from hypemand.cli.client import ApiError, Client, parse
from hypemand.cli.watch import wait_until_started
from hypemand.errors import NotFound
from hypemand.model.answers.instance import Instance
from tests.host.apiget import api_get
from tests.host.command import Result, read_lines
from tests.host.hypemanctl import run_hypemanctl
from tests.host.machine import POLL, TestHost

STATE_CHANGED = "5ed3ba3c6a6a43c1b1ee4b4a5b1f7d01"
NEEDS_RESTART = "5ed3ba3c6a6a43c1b1ee4b4a5b1f7d04"
DEFINITION_BROKEN = "5ed3ba3c6a6a43c1b1ee4b4a5b1f7d03"

SMALL: Mapping[str, Any] = {
    "image": "builtin:busybox",
    "memory": "128M",
    "vcpus": 1,
    "disk": "64M",
    "kernel_headers": False,
    "network": "none",
}
# Programs for `define`: scripts of busybox's sh.
STAYS = "echo up; exec sleep infinity"
HAS_LAST_WORDS = "trap 'echo last words; exit 0' TERM; echo up; sleep infinity & wait"
IS_DEAF = "trap '' TERM; echo up; while :; do sleep 1; done"

# In such a program: wait for `Vms.knock`.
KNOCK_PORT = 7
KNOCKED = f"nc -l -p {KNOCK_PORT} -e true"
# argv: a unit that is being started
EXTEND = """
import subprocess, sys
from hypemand.systemd.notify import notify_for
pid = subprocess.check_output(["systemctl", "show", "--value", "--property=MainPID", sys.argv[1]])
notify_for(int(pid), "EXTEND_TIMEOUT_USEC=10000000")
"""

# of what is waited for by an event: a busy machine may need ten times what a calm one does
BOOT_DEADLINE = 180.0
# of a boot that boot_timeout ends, most often before
START_DEADLINE = 900.0
END_DEADLINE = 180.0
# then the daemon is asked, lest a change that it has missed be waited for
FOLLOW_SECONDS = 3.0
JOURNAL_SECONDS = 10.0

# argv: name, uid. Prints all that a host still has of a VM beside what the daemon says.
TRACES = """
unit=hypeman-vm-$1.service
systemctl list-units --all --plain --no-legend --full "$unit" "hypeman@$1.service" | grep -v ' not-found '
for path in "/run/systemd/transient/$unit" "/run/hypemand/vms/$1" "/var/lib/hypemand/vms/$1" \
            "/etc/hypemand/vms.d/$1.yaml" /run/userdb/hypeman-$2.* /run/userdb/$2.*; do
    [ ! -e "$path" ] && [ ! -L "$path" ] || echo "$path"
done
machinectl list --no-legend | awk -v name="$1" '$1 == name { print "machine " $0 }'
ps -o pid,args --no-headers -u "$2"
exit 0
"""


@dataclass(frozen=True)
class Change:
    """A state change as the journal has it; `at` in microseconds since the epoch.

    `at` is when it was sent. When journald says that it came may be some ms before that: it looks at the
    clock once for all that it finds when it wakes.
    """

    old: str
    new: str
    at: int


class Vms:
    """The VMs that were defined through it, on one host."""

    def __init__(self, host: TestHost) -> None:
        self.host = host
        self._names: dict[str, int] = {}

    # defining

    def write(self, name: str, program: str | None = STAYS, **keys: Any) -> None:
        """Write a definition and do no more. A key that is None is left out."""
        definition = {**SMALL, **({} if program is None else {"cmd": ["sh", "-c", program]}), **keys}
        text = json.dumps({key: value for key, value in definition.items() if value is not None}, indent=2)
        self._names.setdefault(name, 0)
        self.host.push(f"/etc/hypemand/vms.d/{name}.yaml", text + "\n")

    def define(self, name: str, program: str | None = STAYS, **keys: Any) -> str:
        """Write a definition and have it read; gives the name back."""
        self.write(name, program, **keys)
        self.reload()
        return name

    def undefine(self, *names: str) -> None:
        """Remove definitions and have that read."""
        self.host.run(["rm", "-f", *(f"/etc/hypemand/vms.d/{name}.yaml" for name in names)])
        self.reload()

    def reload(self) -> None:
        """Have the definitions read again. AssertionError for one that is not valid."""
        problems = self.api.post("reload")["problems"]
        assert not problems, problems

    # doing

    @property
    def api(self) -> Client:
        """The daemon's, asked from outside. What an administrator types is what tests do with `ctl`."""
        return Client(str(self.host.root / "run/hypemand/api.sock"))

    def ctl(self, *arguments: str, check: bool = True, timeout: float = END_DEADLINE) -> Result:
        """Run hypemanctl."""
        return run_hypemanctl(self.host, arguments, check=check, timeout=timeout)

    def start(self, *names: str) -> None:
        """Start, and wait until all are Running."""
        started = [parse(Instance, self.api.post("instances", name, "start")) for name in names]
        for instance in started:
            wait_until_started(self.api, instance, START_DEADLINE)

    def run(self, name: str, program: str = STAYS, **keys: Any) -> str:
        """Define and start; Running when this is back, and the program ready to be stopped."""
        self.define(name, program, **keys)
        self.start(name)
        if HAS_LAST_WORDS in program or IS_DEAF in program:
            self.wait_console(name, "up")
        return name

    def restart_daemon(self) -> None:
        """Restart the daemon and nothing else."""
        self.host.run(["systemctl", "restart", "hypemand.service"])

    def is_active(self, unit: str) -> bool:
        """Is a unit active now?"""
        return self.properties(unit, "ActiveState")["ActiveState"] == "active"

    @contextmanager
    def without_daemon(self) -> Iterator[None]:
        """No daemon in this block, and no socket that would bring it back."""
        self.host.run(["systemctl", "stop", "hypemand.socket", "hypemand.service"])
        try:
            yield
        finally:
            self.host.run(["systemctl", "start", "hypemand.socket", "hypemand.service"])

    @contextmanager
    def without_file(self, path: str, size: int | None = None) -> Iterator[None]:
        """A file of a package is not there in this block, or is one of so many zero bytes."""
        self.host.run(["mv", path, f"{path}.whole"])
        if size is not None:
            self.host.run(["truncate", f"--size={size}", path])
        try:
            yield
        finally:
            self.host.run(["mv", f"{path}.whole", path])

    # asking

    def show(self, name: str) -> dict[str, Any]:
        """What the daemon says of it."""
        shown: dict[str, Any] = api_get(self.host, f"/instances/{name}")
        self._names[name] = shown["uid"]
        return shown

    def list_all(self) -> list[dict[str, Any]]:
        """What the daemon says of all VMs."""
        listed: list[dict[str, Any]] = api_get(self.host, "/instances")
        return listed

    def state(self, name: str) -> str:
        """Its state."""
        return str(self.show(name)["state"])

    def wait(self, name: str, state: str, deadline: float = END_DEADLINE) -> dict[str, Any]:
        """Wait until it is in `state`; what the daemon says of it then."""
        end = time.monotonic() + deadline
        while True:
            shown = self.show(name)
            if shown["state"] != state:
                shown = self._follow(name, state) or shown
            if shown["state"] == state:
                return shown
            if time.monotonic() > end:
                raise AssertionError(f"{name} is not {state} after {deadline:g} s; at last {shown}")
            time.sleep(POLL)

    def _follow(self, name: str, state: str) -> dict[str, Any] | None:
        """What the daemon tells of its changes until it is in `state`, for some seconds: to ask instead, all
        the time, would take much of a CPU of the daemon and systemd. None if it tells nothing."""
        last: dict[str, Any] | None = None
        with (
            suppress(ApiError, TimeoutError),
            self.api.events("instances", name, "watch", timeout=FOLLOW_SECONDS) as events,
        ):
            for last in events:
                if last["state"] == state:
                    break
        return last

    def unit(self, name: str, *properties: str) -> dict[str, str]:
        """Properties of its unit."""
        return self.properties(f"hypeman-vm-{name}.service", *properties)

    def properties(self, unit: str, *properties: str) -> dict[str, str]:
        """Properties of any unit; all of them if none is named."""
        wanted = [f"--property={','.join(properties)}"] if properties else []
        lines = self.host.run(["systemctl", "show", "--no-pager", *wanted, unit]).stdout.splitlines()
        return dict(line.partition("=")[::2] for line in lines)

    def wait_unit(self, name: str, active: str, deadline: float = END_DEADLINE) -> None:
        """Wait until systemd calls its unit `active`, with no daemon asked."""
        self.host.wait_until(
            lambda: self.unit(name, "ActiveState")["ActiveState"] == active,
            f"{name} is {active}",
            deadline=deadline,
        )

    def changes(self, name: str) -> list[Change]:
        """The state changes of the VM that has this name now."""
        entries = self.host.journal(f"MESSAGE_ID={STATE_CHANGED}", f"HYPEMAN_VM_ID={self.show(name)['id']}")
        return [
            Change(e["HYPEMAN_OLD_STATE"], e["HYPEMAN_NEW_STATE"], int(e["_SOURCE_REALTIME_TIMESTAMP"]))
            for e in entries
        ]

    def states(self, name: str) -> list[str]:
        """The states that the journal tells of, from the first change on."""
        changes = self.changes(name)
        for before, after in pairwise(changes):
            assert before.new == after.old, f"a gap between {before} and {after}"
        return [changes[0].old, *(change.new for change in changes)] if changes else []

    def console(self, name: str) -> list[str]:
        """The guest's own lines of the unit, straight from the journal: the entries of stages have none."""
        entries = self.host.journal(f"_SYSTEMD_UNIT=hypeman-vm-{name}.service")
        return [entry["MESSAGE"] for entry in entries if "MESSAGE" in entry]

    def wait_console(self, name: str, line: str, times: int = 1, deadline: float = END_DEADLINE) -> None:
        """Wait until the guest has written a line so often."""
        argv = ["journalctl", "--follow", "--no-tail", "--all", "--output=cat"]
        seen: list[str] = []
        until = time.monotonic() + deadline
        # not by one alone: a journalctl may sleep on although there is another entry, until there is one more
        while time.monotonic() < until:
            seen.clear()
            with self.host.popen([*argv, f"_SYSTEMD_UNIT=hypeman-vm-{name}.service"]) as journal:
                assert journal.stdout is not None
                with suppress(TimeoutError):
                    for text in read_lines(journal.stdout, min(until, time.monotonic() + JOURNAL_SECONDS)):
                        seen.append(text)
                        if text == line and seen.count(line) == times:
                            return
        raise AssertionError(
            f"{name} has not written {line!r} {times} times in {deadline:g} s; at last: {seen[-5:]}"
        )

    def knock(self, address: str, port: int = KNOCK_PORT) -> None:
        """Connect to a port of a guest as soon as anything listens there. A guest can wait for that, with no
        daemon (`KNOCKED`)."""
        script = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 60).close()"
        self.host.wait_until_succeeds(["/usr/bin/python3", "-c", script, address, str(port)])

    def execute(self, name: str, *command: str) -> str:
        """What a command prints in the guest."""
        return self.ctl("exec", name, "--", *command).stdout

    def traces(self, name: str, uid: int) -> str:
        """All that the host still has of a VM; empty when it is gone."""
        found = self.host.run(["sh", "-uc", TRACES, "traces", name, str(uid)]).stdout
        return found + "".join(f"VM {name}\n" for shown in self.list_all() if shown["name"] == name)

    # the end

    def remove(self, name: str) -> None:
        """Remove a VM as an administrator does, and see that nothing of it stays."""
        uid = self.show(name)["uid"]
        self.undefine(name)
        self._delete(name)
        self._wait_gone(name, uid)
        self._names.pop(name, None)

    def _delete(self, name: str, *, graceful: bool = True) -> None:
        """Delete it, also while it runs. It may be gone with its definition."""
        query = {} if graceful else {"graceful_shutdown": "false"}
        try:
            self.api.delete("instances", name, query=query, timeout=END_DEADLINE)
        except ApiError as error:
            if error.code != NotFound.code:
                raise

    def _wait_gone(self, name: str, uid: int) -> None:
        left = ""

        def look() -> bool:
            nonlocal left
            left = self.traces(name, uid)
            return not left

        try:
            self.host.wait_until(look)
        except AssertionError:
            raise AssertionError(f"of {name} there is still: {left}") from None

    def remove_all(self) -> None:
        """Remove what is there, however the test has left it: no guest has anything to end in order."""
        known = {shown["name"]: shown["uid"] for shown in self.list_all()}
        mine = [name for name in self._names if name in known]
        self.undefine(*self._names)
        for name in mine:
            self._delete(name, graceful=False)
        for name in mine:
            self._wait_gone(name, known[name])
        self._names.clear()


def hold_deadline(host: TestHost, name: str, condition: Callable[[], object], what: str) -> None:
    """Wait until `condition` is true of a VM that boots. Meanwhile its deadline is extended, as by the daemon
    for a guest that stands still: how far it has come when it is given up depends on no machine's speed."""

    def look() -> object:
        if found := condition():
            return found
        host.run(["/usr/bin/python3", "-c", EXTEND, f"hypeman-vm-{name}.service"], check=False)
        return None

    host.wait_until(look, what)


@contextmanager
def vms_of(host: TestHost) -> Iterator[Vms]:
    """VMs on a host; at the end of the block they and all of their traces are gone."""
    vms = Vms(host)
    try:
        yield vms
    finally:
        vms.remove_all()


# PID 1 of a guest that does not come up. /dev/console can be opened some moments after the start.
_STUCK_INIT = """#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
until (: >/dev/console) 2>/dev/null; do /bin/busybox usleep 10000; done
exec >/dev/console 2>&1
boot=$(/bin/busybox sed 's/.*hypeman.boot=\\([0-9a-f]*\\).*/\\1/' /proc/cmdline)
echo "the guest is stuck"
%s
exec /bin/busybox sleep 1000000
"""
_PROGRAM_START = 'echo "HYPEMAN-PROGRAM-START ts=2026-01-01T00:00:00.000000000Z mode=exec boot=$boot"'
_DROPIN = "/run/hypemand/hypemand.yaml.d/stuck.yaml"


@contextmanager
def stuck_guests(host: TestHost, *, program_starts: bool = False, does: str = "") -> Iterator[None]:
    """VMs that are started in this block never get to Running: their PID 1 says nothing, or only that the
    program has started, `does` this, and never powers off."""
    init = _STUCK_INIT % ("\n".join([_PROGRAM_START] * program_starts + [does]))
    archive = format_archive(
        (
            Entry("dev", 0o040755),
            Entry("dev/console", 0o020600, device=(5, 1)),
            Entry("proc", 0o040755),
            Entry("bin", 0o040755),
            Entry("bin/busybox", 0o100755, host.pull("/bin/busybox")),
            Entry("init", 0o100755, init.encode()),
        )
    )
    host.push("/srv/stuck/initrd.cpio", archive)
    host.push(_DROPIN, "guest_dir: /srv/stuck\n")
    host.run(["systemctl", "reload", "hypemand"])
    try:
        yield
    finally:
        host.run(["rm", "-rf", _DROPIN, "/srv/stuck"])
        host.run(["systemctl", "reload", "hypemand"])
