# SPDX-License-Identifier: Apache-2.0
"""A wire between running test hosts: a switch in a network namespace of its own, a port of it for each host.

All of it hangs on one process, which dies with the thread that laid the wire, and with it go its namespace
and both ends of each veth pair: nothing is ever made in this machine's own namespace, and nothing can stay.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tests.host.command import ENVIRONMENT, Result, kill_group, run_command
from tests.host.machine import TestHost

UPLINK = "uplink0"
# Both are for documentation (RFC 5737, RFC 3849): nobody's routes have them.
NETWORK4 = "198.51.100.{}"
NETWORK6 = "2001:db8:100::{}"

SWITCH = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "sh", "-c"]
# Its frames are no business of a firewall. The word tells that the switch is there.
MAKE_SWITCH = """
ip link add switch type bridge mcast_snooping 0
ip link set switch up
echo ready
exec sleep infinity
"""


@dataclass
class Wire:
    """The switch, and the hosts that are plugged in."""

    process: subprocess.Popen[bytes]
    _numbers: dict[str, int] = field(default_factory=dict)

    def plug(self, host: TestHost) -> None:
        """Give a host its uplink, up and with addresses. To be done again when the host has been rebooted."""
        number = self._numbers.setdefault(host.name, len(self._numbers) + 1)
        # a card that is pulled and put in again is the same one for others
        card = ["name", UPLINK, "address", f"02:00:5e:10:00:{number:02x}", "netns", str(host.leader)]
        self.run(["ip", "link", "add", f"port{number}", "type", "veth", "peer", *card])
        self.run(["ip", "link", "set", f"port{number}", "master", "switch", "up"])
        self.configure(host)

    def unplug(self, host: TestHost) -> None:
        """Take the host's uplink away, as when a card is pulled."""
        self.run(["ip", "link", "del", f"port{self._numbers[host.name]}"])

    def configure(self, host: TestHost) -> None:
        """Give an uplink that is there its addresses. IPv6 has no detection of duplicates to wait for."""
        host.shell(f"""
            ip link set {UPLINK} up
            ip addr add {self.address(host)}/24 dev {UPLINK}
            ip addr add {self.address6(host)}/64 dev {UPLINK} nodad
        """)

    def address(self, host: TestHost) -> str:
        """The host's IPv4 address on the wire."""
        return NETWORK4.format(self._numbers[host.name])

    def address6(self, host: TestHost) -> str:
        """The host's IPv6 address on the wire."""
        return NETWORK6.format(self._numbers[host.name])

    def cut(self, host: TestHost) -> None:
        """Cut a host off: its uplink loses its carrier."""
        self._set_port(host, "down")

    def mend(self, host: TestHost) -> None:
        """Undo cut()."""
        self._set_port(host, "up")

    @contextlib.contextmanager
    def cut_off(self, host: TestHost) -> Iterator[None]:
        """The host is cut off in this block."""
        self.cut(host)
        try:
            yield
        finally:
            self.mend(host)

    def run(self, argv: Sequence[str], timeout: float = 60) -> Result:
        """Run a command at the switch."""
        return run_command(self.inside(argv), shown=argv, timeout=timeout)

    def inside(self, argv: Sequence[str]) -> list[str]:
        """What runs a command at the switch."""
        return ["nsenter", f"--target={self.process.pid}", "--net", "--", *argv]

    def _set_port(self, host: TestHost, state: str) -> None:
        self.run(["ip", "link", "set", f"port{self._numbers[host.name]}", state])


@contextlib.contextmanager
def lay_wire(*hosts: TestHost) -> Iterator[Wire]:
    """Join hosts that run. To be used in the main thread, as they are started in it."""
    process = subprocess.Popen(
        [*SWITCH, MAKE_SWITCH],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=dict(ENVIRONMENT),
        start_new_session=True,
    )
    with process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                raise AssertionError("the switch did not come up")
            wire = Wire(process)
            for host in hosts:
                wire.plug(host)
            yield wire
        finally:
            kill_group(process)
