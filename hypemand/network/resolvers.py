# SPDX-License-Identifier: Apache-2.0
"""DNS servers of VMs whose network specifies none: those of the host."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

Address = IPv4Address | IPv6Address

# What a guest takes (docs/protocol.md).
MAX_SERVERS = 8
# The second has the servers behind systemd-resolved, where the first names that alone.
RESOLV_CONFS = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))


def parse_servers(text: str) -> Iterator[Address]:
    """The name servers of a resolv.conf(5) that another host can reach too: no loopback, no link-local."""
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2 or words[0] != "nameserver":
            continue
        try:
            address = ip_address(words[1])
        except ValueError:
            continue
        if not (address.is_loopback or address.is_link_local or address.is_unspecified):
            yield address


def find_host_servers(paths: Sequence[Path] = RESOLV_CONFS) -> tuple[Address, ...]:
    """Those of the first file that has any."""
    for path in paths:
        try:
            servers = tuple(parse_servers(path.read_text(errors="replace")))
        except OSError:
            continue
        if servers:
            return servers
    return ()


def choose_servers(servers: Iterable[Address], *, ipv4: bool, ipv6: bool) -> tuple[Address, ...]:
    """Of `servers` those that a VM with such addresses can reach, each once, and no more than it takes."""
    reachable = {4: ipv4, 6: ipv6}
    found = dict.fromkeys(server for server in servers if reachable[server.version])
    return tuple(found)[:MAX_SERVERS]
