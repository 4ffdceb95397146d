# SPDX-License-Identifier: Apache-2.0
"""`make soak`: SIGKILL for the daemon, VMMs, journald, D-Bus and the network service at random moments of
start, run, standby, restore, fork and stop of several VMs. Nothing may be lost, and nothing may be left.

All that is random comes from a seed, which is printed. What happens in a round:

1. some VMs are asked to start, stop or restart, to go into Standby or out of it, or for a fork, all at once,
   as by users;
2. meanwhile, one to three victims are killed;
3. when the clients have their answers, each VM comes to rest: Running, Standby or Stopped, as a client that
   was told of success may expect, unless its VMM was killed. A VM that runs has its unit, its TAP device, its
   data and what it keeps in memory, and does what is asked of it; one that does not has nothing of these but
   its data, and in Standby what was saved. A fork is whole, or is not there, and is removed.

At the end all are removed, and the host has what it had before.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from http.client import HTTPException

from tests.host.command import Result
from tests.host.faults import find_live_traces, is_registered
from tests.host.lab import start_host
from tests.host.machine import TestHost
from tests.host.recipe import Suite
from tests.host.rounds import play_rounds
from tests.host.vms import Vms, vms_of

# of what is waited for by an event, on a busy machine
REST_DEADLINE = 240.0
CLIENT_DEADLINE = 240.0
# of an operation's way through systemd, the boot of a guest and its end: when a victim is killed
MOMENTS = 2.5
# of a standby's or a restore's way
EARLY = 0.7
MOST_KILLS = 3

# Has data in its volume, or on its disk, that it can tell from damaged ones; what was synced must last. And
# others in memory, which it has again after a standby.
PROGRAM = """
mkdir -p /data
cd /run; dd if=/dev/urandom of=blob bs=64k count=64 2>/dev/null; sha256sum blob >new; mv new sum
cd /data
if [ -e sum ]; then
    sha256sum -c sum >/dev/null || { echo "DATA LOST"; exec sleep infinity; }
else
    dd if=/dev/urandom of=blob bs=64k count=8 2>/dev/null; sha256sum blob >new; sync; mv new sum; sync
fi
echo x >>starts; sync
trap 'exit 0' TERM; echo up; sleep infinity & wait
"""
# Running is the program's start: its first run makes the data after that
CHECK = """
cd /data; n=0
until [ -e sum ] && [ -e /run/sum ] || [ $n = 60 ]; do n=$((n + 1)); sleep 1; done
sha256sum -c sum >/dev/null && cd /run && sha256sum -c sum >/dev/null && echo whole
"""
# all that VMs have of a host, whoever asks
TRACES = """
ip -o link | grep -oE '(hv|hi)[0-9]+' | sort -u
nft list ruleset 2>/dev/null | grep -oE '"?hv[0-9]+' | sort -u
for place in /run/hypemand/vms /var/lib/hypemand/vms /var/lib/hypemand/volumes /run/userdb; do
    [ ! -d "$place" ] || find "$place" -mindepth 1 -maxdepth 1
done
systemctl list-units --all --plain --no-legend --full 'hypeman-vm-*' 'hypeman@*' | grep -v not-found || true
find /run/systemd/transient -name 'hypeman-*'
machinectl --no-legend list || true
pgrep --list-full --full -- '[-]name guest=|hypeman-consol[e]|hypemand[.]unit' || true
find /run/hypemand -name '*.sock' | sort
"""


# what is asked of a VM in these states, in which it can be at rest; and where it is to be then
VERBS: Mapping[str, tuple[str | None, ...]] = {
    "Running": ("stop", "restart", "standby", "standby", None),
    "Stopped": ("start", "start", None),
    "Standby": ("restore", "restore", "start", None),
}
ENDS = {"stop": "Stopped", "standby": "Standby"}


class Victim(StrEnum):
    """Who is killed."""

    DAEMON = "hypemand.service"
    VMM = "vmm"
    JOURNAL = "systemd-journald.service"
    BUS = "dbus.service"
    NETWORK = "hypemand-network.service"


# argv: names. Kills the VMM of the first that has one, and prints its name and process id.
KILL_VMM = """
for name; do
    pid=$(systemctl show --value --property=MainPID "hypeman-vm-$name.service")
    if [ "$pid" -gt 0 ] 2>/dev/null && kill -KILL "$pid"; then echo "$name $pid"; break; fi
done
"""
# argv: name and process id, again and again. Those of which systemd has not noticed that they were killed.
UNNOTICED = """
while [ $# -gt 0 ]; do
    [ "$(systemctl show --value --property=MainPID "hypeman-vm-$1.service")" != "$2" ] || echo "$1"
    shift 2
done
"""
# argv: name, TAP device or "", command. Of a VM that runs.
RUNS = """
systemctl is-active "hypeman-vm-$1.service" >/dev/null || echo "no active unit"
[ -z "$2" ] || ip link show "$2" >/dev/null || echo "no TAP device"
[ "$(hypemanctl exec "$1" -- sh -c "$3")" = whole ] || echo "its data are not whole"
"""
# argv: name. What was saved of a VM.
SAVED = 'cd "/var/lib/hypemand/vms/$1" && ls -d standby* revert* 2>/dev/null; exit 0'
# killed so often that systemd would give up, which is not what is looked at
KILL_UNIT = 'systemctl reset-failed "$1"; systemctl kill --signal=KILL "$1" 2>/dev/null; exit 0'


@dataclass
class Soak:
    """The VMs of `vms` and what is done to them. `kills`: how many there were, by victim."""

    vms: Vms
    dice: random.Random
    names: tuple[str, ...] = ()
    networked: frozenset[str] = frozenset()
    forkable: frozenset[str] = frozenset()
    kills: Counter[str] = field(default_factory=Counter)
    commands: Counter[str] = field(default_factory=Counter)
    states: dict[str, str] = field(default_factory=dict)
    boots: dict[str, str] = field(default_factory=dict)
    before: str = ""
    _victims: list[Victim] = field(default_factory=list)

    @property
    def host(self) -> TestHost:
        return self.vms.host

    # VMs

    def define(self, count: int) -> None:
        """VMs with a volume each, but for the last, which can be forked; every other one has a network, and
        every other pair is restarted."""
        self.before = self.traces()
        self.names = tuple(f"soak-{number}" for number in range(count))
        self.forkable = frozenset(self.names[-1:])
        for number, name in enumerate(self.names):
            volumes = []
            if name not in self.forkable:
                self.vms.ctl("volume", "create", "--size=16M", f"{name}-data")
                volumes = [{"volume": f"{name}-data", "mount_path": "/data"}]
            network = {"name": "default"} if number % 2 == 0 else "none"
            self.vms.write(
                name,
                PROGRAM,
                network=network,
                memory="96M",
                stop_timeout="20s",
                restart="on-failure" if number % 4 >= 2 else "no",
                volumes=volumes,
                # three kills in a moment are no reason for systemd to give up
                unit={"StartLimitBurst": 100},
            )
        self.networked = frozenset(self.names[::2])
        self.vms.reload()
        self.states = dict.fromkeys(self.names, "Stopped")

    def traces(self) -> str:
        return self.host.run(["sh", "-uc", TRACES]).stdout

    # a round

    def play(self, kills: int) -> None:
        """One round with so many kills."""
        asked = {name: verb for name in self.names if (verb := self._choose(name))}
        moments = sorted(self.dice.uniform(0, self.dice.choice((EARLY, MOMENTS))) for _ in range(kills))
        victims = [(self._next_victim(), self.dice.choice(self.names)) for _ in moments]
        killed: list[tuple[str, str]] = []
        with ThreadPoolExecutor(len(self.names)) as clients:
            answers = {name: clients.submit(self._ask, verb, name) for name, verb in asked.items()}
            began = time.monotonic()
            for moment, (victim, name) in zip(moments, victims, strict=True):
                time.sleep(max(0.0, began + moment - time.monotonic()))
                killed += self._kill(victim, name)
            told = {name: answer.result().ok for name, answer in answers.items()}
        # a VMM that was killed last may be taken for one that runs for a moment
        unnoticed = ["sh", "-c", UNNOTICED, "unnoticed", *(word for hit in killed for word in hit)]
        self.host.wait_until(lambda: not self.host.run(unnoticed).stdout, "systemd notices who was killed")
        hit = {name for name, _pid in killed}
        expected = {
            name: ENDS.get(verb, "Running") for name, verb in asked.items() if told[name] and name not in hit
        }
        forks = {f"{name}-fork": "Running" for name, verb in asked.items() if verb == "fork" and told[name]}
        self._come_to_rest(expected | forks)
        self._check_boots({name for name, verb in asked.items() if verb == "restore"} - hit)

    def _next_victim(self) -> Victim:
        """Each as often as the others, in any order."""
        if not self._victims:
            self._victims = self.dice.sample(list(Victim), len(Victim))
        return self._victims.pop()

    def _choose(self, name: str) -> str | None:
        """What is asked of a VM, by the state it is in."""
        verbs = VERBS[self.states[name]]
        if name in self.forkable and self.states[name] == "Running":
            verbs = (*verbs, "fork", "fork")
        verb = self.dice.choice(verbs)
        self.commands[str(verb)] += 1
        return verb

    def _ask(self, verb: str, name: str) -> Result:
        words = [verb, "--from-running", name, f"{name}-fork"] if verb == "fork" else [verb, name]
        return self.vms.ctl(*words, check=False, timeout=CLIENT_DEADLINE)

    def _kill(self, victim: Victim, name: str) -> list[tuple[str, str]]:
        """The VM whose VMM it was, with its process id, or none."""
        if victim is not Victim.VMM:
            self.host.run(["sh", "-c", KILL_UNIT, "kill", victim.value])
            self.kills[victim.name] += 1
            return []
        first = self.names.index(name)
        names = [*self.names[first:], *self.names[:first]]
        lines = self.host.run(["sh", "-c", KILL_VMM, "kill", *names]).stdout.splitlines()
        hit = [(words[0], words[1]) for line in lines if (words := line.split())]
        # where none runs the moment counts all the same
        self.kills["VMM" if hit else "VMM that was not there"] += 1
        return hit

    def _come_to_rest(self, expected: Mapping[str, str]) -> None:
        def look() -> bool:
            try:
                self.states = {shown["name"]: shown["state"] for shown in self.vms.list_all()}
            except (OSError, HTTPException):
                return False  # the daemon was killed while it answered
            at_rest = set(self.states.values()) <= set(VERBS)
            return at_rest and all(self.states.get(name) == state for name, state in expected.items())

        try:
            self.host.wait_until(look, deadline=REST_DEADLINE)
        except AssertionError:
            raise AssertionError(f"{self.states} after {REST_DEADLINE:g} s; expected {expected}") from None
        forks = {f"{name}-fork" for name in self.forkable} & set(self.states)
        assert set(self.states) - forks == set(self.names), "a VM was lost"
        for name, state in self.states.items():
            if state == "Running":
                self._check_running(name)
            else:
                self._check_stopped(name, state)
        for fork in forks:
            self.vms.remove(fork)
            del self.states[fork]

    def _check_boots(self, restored: set[str]) -> None:
        """A VM goes on in the boot that it was saved in, and no other has that."""
        shown = {name: self.vms.show(name) for name in self.names if self.states[name] == "Running"}
        boots = {name: str(vm["boot_id"]) for name, vm in shown.items()}
        assert len(set(boots.values())) == len(boots)
        for name in restored & set(boots):
            assert boots[name] == self.boots[name], f"{name} was booted"
        self.boots |= boots

    def _check_running(self, name: str) -> None:
        device = f"hv{self.vms.show(name)['uid']}" if name in self.networked else ""
        wrong = self.host.run(["sh", "-c", RUNS, "runs", name, device, CHECK])
        assert wrong.stdout == "", f"{name} is Running: {wrong.describe()}"
        self._wait_for_none(name, "Running", lambda: self._list_saved(name))

    def _check_stopped(self, name: str, state: str) -> None:
        uid = self.vms.show(name)["uid"]
        saved = ["standby"] if state == "Standby" else []

        def left() -> list[str]:
            device = self.host.run(["ip", "-o", "link", "show", f"hv{uid}"], check=False)
            wrong = [] if (found := self._list_saved(name)) == saved else [f"saved: {found}"]
            machine = [f"machine {name}"] if is_registered(self.host, name) else []
            return [*find_live_traces(self.host, name), *machine, *device.stdout.splitlines(), *wrong]

        self._wait_for_none(name, state, left)

    def _list_saved(self, name: str) -> list[str]:
        return self.host.run(["sh", "-c", SAVED, "saved", name]).stdout.split()

    def _wait_for_none(self, name: str, state: str, left: Callable[[], list[str]]) -> None:
        try:
            self.host.wait_until(lambda: not left())
        except AssertionError:
            raise AssertionError(f"{name} is {state}, and has still: {left()}") from None

    # the end

    def finish(self) -> None:
        """All start once more, with their data, and then nothing of them is left."""
        self.vms.ctl("start", *self.names)
        for name in self.names:
            self.vms.wait(name, "Running")
            assert self.vms.execute(name, "sh", "-c", CHECK) == "whole\n"
            assert "DATA LOST" not in self.vms.console(name)
        uids = [self.vms.show(name)["uid"] for name in self.names]
        assert len(set(uids)) == len(uids)
        for name in self.names:
            self.vms.remove(name)
            if name not in self.forkable:
                self.vms.ctl("volume", "rm", f"{name}-data")
        try:
            self.host.wait_until(lambda: self.traces() == self.before)
        except AssertionError:
            raise AssertionError(f"before:\n{self.before}\nafter:\n{self.traces()}") from None


def soak(vms: Vms, seed: int, kills: int, count: int = 4) -> Soak:
    """`kills` kills on the host of `vms`. What they were is in what is given back."""
    run = Soak(vms, random.Random(seed))
    run.define(count)
    left, since = kills, time.time()
    try:
        while left > 0:
            now = min(left, run.dice.randint(1, MOST_KILLS))
            since = time.time()
            run.play(now)
            left -= now
        run.finish()
    except BaseException:
        print(vms.host.report(since), file=sys.stderr)
        print(f"seed {seed}: failed with {left} of {kills} kills to come; {dict(run.kills)}", file=sys.stderr)
        raise
    return run


def main() -> int:
    """All of it, on a host of its own for each release."""
    parser = argparse.ArgumentParser(prog="make soak ARGS=…", description=__doc__.splitlines()[0])
    parser.add_argument("--suite", type=Suite, action="append", choices=list(Suite), help="(default: all)")
    parser.add_argument("--kills", type=int, default=200, help="(200)")
    parser.add_argument("--vms", type=int, default=4, help="(4)")
    parser.add_argument("--rounds", type=int, default=0, help="standbys and restores of one VM before (0)")
    parser.add_argument("--seed", type=int, default=None, help="of all that is random (default: the time)")
    options = parser.parse_args()
    for suite in options.suite or list(Suite):
        seed = int(time.time()) if options.seed is None else options.seed
        print(f"{suite}: seed {seed}", flush=True)
        began = time.monotonic()
        with start_host(suite) as host, vms_of(host) as vms:
            if options.rounds:
                print(
                    f"{suite}: {options.rounds} rounds: {play_rounds(vms, options.rounds, seed)}", flush=True
                )
            run = (
                soak(vms, seed, options.kills, options.vms)
                if options.kills
                else Soak(vms, random.Random(seed))
            )
        took = time.monotonic() - began
        print(f"{suite}: nothing lost, nothing left; {dict(run.kills)}, {dict(run.commands)}, {took:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
