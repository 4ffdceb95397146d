# SPDX-License-Identifier: Apache-2.0
"""What tests of networks share: guests with netprobe in them, what they see, and what passes on a wire."""

from __future__ import annotations

import contextlib
import itertools
import json
import queue
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.host.command import ENVIRONMENT, Result, kill_group
from tests.host.faults import compile_static
from tests.host.hypemanctl import run_hypemanctl
from tests.host.machine import TestHost
from tests.host.packets import End
from tests.host.vms import Vms
from tests.host.wire import Wire

IMAGE = "netlab"
PROBE = "/srv/netprobe"
SOURCE = Path(__file__).parents[1] / "guest/netprobe.c"
# what guests and hosts serve on, unless a test says otherwise
PORT = 7007
# How long somebody who must not be answered waits; one who must be waits no longer than it takes.
SILENCE_MS = 300
ANSWER_MS = 20000
# argv: the folder. A root of busybox and the probe.
MAKE_ROOT = """
mkdir -p "$1"/bin "$1"/etc "$1"/tmp
cp /bin/busybox /srv/netprobe "$1"/bin
for applet in $(busybox --list); do [ "$applet" = busybox ] || ln -sf busybox "$1/bin/$applet"; done
"""
_tokens = itertools.count(1)


@cache
def netprobe(folder: Path) -> bytes:
    """The static program, built once in a process."""
    return compile_static(SOURCE.read_text(), folder / "netprobe", "-std=c17", "-D_GNU_SOURCE", "-Wextra")


def install_probe(host: TestHost, folder: Path, *, image: bool = True) -> None:
    """Put netprobe into a host, and into an image there from which guests are started."""
    host.push(PROBE, netprobe(folder), 0o755)
    if image:
        host.run(["sh", "-euc", MAKE_ROOT, "make", "/srv/netlab"])
        host.run(["hypemanctl", "image", "import", IMAGE, "/srv/netlab"])


def new_token() -> bytes:
    """Four bytes that no other frame has. The first is what neighbour_advertisement() needs."""
    return b"\x25" + (next(_tokens) * 0x9E3779 % 2**24).to_bytes(3, "big")


@dataclass(frozen=True)
class Wired:
    """Two hosts on a wire; `folder` holds netprobe for this machine."""

    a: TestHost
    b: TestHost
    wire: Wire
    folder: Path

    def route(self) -> None:
        """Let A reach by B what it does not know. To be done again when its uplink is another."""
        self.a.run(["ip", "route", "replace", "default", "via", self.wire.address(self.b)])
        self.a.run(["ip", "route", "replace", "default", "via", self.wire.address6(self.b)])

    def equip_b(self) -> None:
        """Let B answer. To be done again after its boot."""
        serve(self.b, "b", PORT)

    @property
    def a4(self) -> str:
        """A's IPv4 address on the wire."""
        return self.wire.address(self.a)

    @property
    def a6(self) -> str:
        """A's IPv6 address on the wire."""
        return self.wire.address6(self.a)

    @property
    def b4(self) -> str:
        """B's IPv4 address on the wire."""
        return self.wire.address(self.b)

    @property
    def b6(self) -> str:
        """B's IPv6 address on the wire."""
        return self.wire.address6(self.b)


@dataclass(frozen=True)
class Place:
    """Where a command can be run that deals with a network: a host, or a guest of it."""

    host: TestHost
    vm: str | None = None

    @property
    def probe(self) -> str:
        return PROBE if self.vm is None else "/bin/netprobe"

    def words(self, *words: str) -> list[str]:
        """The command as the host has to run it."""
        return list(words) if self.vm is None else ["hypemanctl", "exec", self.vm, "--", *words]

    def run(self, *words: str, check: bool = True, timeout: float = 60) -> Result:
        if self.vm is None:
            return self.host.run(words, check=check, timeout=timeout)
        return run_hypemanctl(self.host, ["exec", self.vm, "--", *words], check=check, timeout=timeout)

    # as a friend

    def ask(
        self, address: str, port: int = PORT, transport: str = "tcp", *, within: int = ANSWER_MS
    ) -> str | None:
        """What a server there says: its label and our address as it sees it. None: nothing."""
        argv = [self.probe, "ask", transport, address, str(port), str(within)]
        answer = self.run(*argv, check=False)
        return answer.stdout.rsplit(maxsplit=1)[0] if answer.ok else None

    def reaches(self, address: str, port: int = PORT, transport: str = "tcp") -> str | None:
        """The label of the server that answers there, or None."""
        said = self.ask(address, port, transport)
        return said.split()[0] if said else None

    def hears_nothing(self, address: str, port: int = PORT, transport: str = "tcp") -> bool:
        """Nobody answers there, not even with a refusal."""
        argv = [self.probe, "ask", transport, address, str(port), str(SILENCE_MS)]
        answer = self.run(*argv, check=False)
        return not answer.ok and "timeout" in answer.stderr

    def pings(self, address: str) -> bool:
        """An echo comes back from there."""
        return self.run("busybox", "ping", "-c1", "-W3", address, check=False).ok

    def transfer(self, direction: str, address: str, port: int, amount: int) -> float:
        """`upload` or `download` bytes; the rate in bytes a second, by the clock that is here."""
        argv = [self.probe, direction, address, str(port), str(amount)]
        return amount / (int(self.run(*argv, timeout=120).stdout) / 1e9)

    def open_flows(self, address: str, port: int, seconds: float) -> int:
        """How many connections are answered there, or refused, of all that are tried in this time."""
        words = [self.probe, "flows", address, str(port), str(round(seconds * 1000))]
        answered, _tried = self.run(*words, timeout=seconds + 60).stdout.split()
        return int(answered)

    @contextlib.contextmanager
    def talk(self, address: str, port: int = PORT) -> Iterator[Talk]:
        """A connection that lasts as long as the block."""
        words = self.words(self.probe, "talk", address, str(port))
        if self.vm is not None:
            words.insert(words.index("exec") + 1, "-i")
        with self.host.popen(words) as process:
            yield Talk(process)

    @contextlib.contextmanager
    def nag(self, address: str, port: int) -> Iterator[Lines]:
        """Ask by UDP again and again in this block, always from the same port; a line for each time."""
        with self.host.popen(self.words(self.probe, "nag", address, str(port))) as process:
            yield Lines(process)

    # as an enemy

    def send(self, interface: str, *frames: bytes) -> None:
        """Put frames on the wire, in this order."""
        self.run(self.probe, "send", interface, *(frame.hex() for frame in frames))

    @contextlib.contextmanager
    def watch(self, interface: str) -> Iterator[Watch]:
        """See all frames on an interface in this block."""
        with self.host.popen(self.words(self.probe, "watch", interface)) as process:
            yield Watch(process, f"{self.vm or self.host.name} {interface}")


@contextlib.contextmanager
def watch_wire(wire: Wire, folder: Path) -> Iterator[Watch]:
    """See all frames on the switch of a wire in this block."""
    netprobe(folder)
    process = subprocess.Popen(
        wire.inside([str(folder / "netprobe"), "watch", "switch"]),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=dict(ENVIRONMENT),
        start_new_session=True,
    )
    with process:
        try:
            yield Watch(process, "wire")
        finally:
            kill_group(process)


class Lines:
    """The lines that a process writes, read beside the test."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        self._stdout = process.stdout
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, name="lines", daemon=True).start()

    def _read(self) -> None:
        with contextlib.suppress(ValueError):  # the pipe is closed at the end of the block
            for line in self._stdout:
                self._lines.put(line.decode(errors="replace").strip())
        self._lines.put(None)

    def next(self, deadline: float) -> str | None:
        """The next line; None if there is none in `deadline` seconds."""
        try:
            line = self._lines.get(block=deadline > 0, timeout=max(deadline, 0.0))
        except queue.Empty:
            return None
        assert line is not None, "the process has ended"
        return line

    def await_line(self, is_wanted: Callable[[str], bool], deadline: float) -> bool:
        """Such a line comes in time."""
        end = time.monotonic() + deadline
        while (line := self.next(end - time.monotonic())) is not None:
            if is_wanted(line):
                return True
        return False

    def drop(self) -> None:
        """Forget what has come up to now."""
        while self.next(0) is not None:
            pass


class Talk(Lines):
    """A connection over which lines go there and come back."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        super().__init__(process)
        assert process.stdin is not None
        self._stdin = process.stdin

    def say(self, line: str) -> None:
        self._stdin.write(f"{line}\n".encode())
        self._stdin.flush()

    def echo(self, line: str, deadline: float = 30) -> bool:
        """Say it, and hear it again in time."""
        self.say(line)
        return self.next(deadline) == line


class Watch(Lines):
    """The frames that pass an interface; the ones that come in and that go out."""

    def __init__(self, process: subprocess.Popen[bytes], name: str) -> None:
        super().__init__(process)
        self.name = name
        self.frames: list[bytes] = []
        assert self.next(60) == "watching", name

    def sees(self, token: bytes, deadline: float = 60) -> bool:
        """A frame with these bytes has passed or does so in time."""
        end = time.monotonic() + deadline
        while not self.has_seen(token):
            line = self.next(end - time.monotonic())
            if line is None:
                return False
            self.frames.append(bytes.fromhex(line.split()[1]))
        return True

    def has_seen(self, token: bytes) -> bool:
        """A frame with these bytes is among those that are known."""
        return any(token in frame for frame in self.frames)


def look_up(place: Place) -> End:
    """Who a guest is, as it says itself."""
    mac = place.run("cat", "/sys/class/net/eth0/address").stdout.strip()
    words = place.run("ip", "addr", "show", "dev", "eth0", "scope", "global").stdout.split()
    found = {kind: words[words.index(kind) + 1].split("/")[0] for kind in ("inet", "inet6")}
    return End(mac, found["inet"], found["inet6"])


def bridge_end(host: TestHost, bridge: str) -> End:
    """Who a bridge of the host is."""
    (link,) = json.loads(host.run(["ip", "--json", "addr", "show", "dev", bridge]).stdout)
    found = {item["family"]: item["local"] for item in link["addr_info"] if item["scope"] == "global"}
    return End(link["address"], found["inet"], found["inet6"])


def serve(host: TestHost, label: str, *ports: int) -> None:
    """Let netprobe answer in a host, until it is off."""
    words = [PROBE, "serve", label, *map(str, ports)]
    host.run(["systemd-run", "--quiet", f"--unit=serve-{label}", *words])
    listening = ["sh", "-c", f"ss -Hltn 'sport = :{ports[-1]}' | grep -q ."]
    host.wait_until_succeeds(listening)


# All that networks have in a host, but what changes by itself: devices, limits, rules, addresses and
# neighbours that somebody has set, forwarding.
NETWORK_STATE = """
ip -o link | sed 's/^[0-9]*: \\([^@:]*\\).*/\\1/'
ip -o link | sed -n 's/^[0-9]*: \\([^@:]*\\).*alias \\([^\\\\]*\\).*/\\1 is \\2/p'
tc qdisc show
for device in $(ls /sys/class/net); do tc filter show dev "$device" ingress 2>/dev/null; done
ip neigh show nud permanent
nft --stateless list ruleset
"""


def read_network(host: TestHost) -> list[str]:
    """The state of a host's networks, line by line. The same before and after something: nothing stayed."""
    text = host.run(["sh", "-c", NETWORK_STATE]).stdout
    # the kernel gives the elements of a set in an order of its own
    state = re.sub(r"elements = \{(.*?)\}", _sort_elements, text, flags=re.DOTALL)
    return [line for line in state.splitlines() if line.strip()]


def _sort_elements(found: re.Match[str]) -> str:
    if "limit rate over" in found[1] or "ct count" in found[1]:
        return ""  # of the kernel's own making, as packets come
    return f"elements = {sorted(' '.join(element.split()) for element in found[1].split(','))}"


def write_guest(
    vms: Vms, name: str, network: Any = None, *, ports: Sequence[int] = (PORT,), **keys: Any
) -> None:
    """Define a guest that answers on these ports; it is read at the next reload."""
    words = ["/bin/netprobe", "serve", name, *map(str, ports)]
    vms.write(name, None, image=IMAGE, cmd=words, network=network, **keys)
