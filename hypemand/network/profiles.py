# SPDX-License-Identifier: Apache-2.0
"""Rules that are shared by VMs or networks with the same limit or list. Pure.

Each is a chain of `inet hypemand` whose name says what is in it, so that one that is there already is the
same one; maps lead to it (rules.py).

connections_N   drops those of a VM's new connections that come too fast, or would be more than N at once. By
                bridge and MAC, which the bridge's rules have proved: so IPv4 and IPv6 count together. It is
                for the first packet of a connection: some kernels count each one that is not answered.
egress_HASH     drops what goes to no network of a list.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from hypemand.config.netparse import format_egress
from hypemand.config.network import DEFAULT_CONNECTIONS, Egress
from hypemand.network.port import BridgePlan, PortPlan

_TABLE = "inet hypemand"
_KEY = "iifname . ether saddr"
# new connections in a second, as a part of those at once
_RATE_DIVISOR = 4


@dataclass(frozen=True, slots=True)
class Profile:
    """A chain, its rules, and the sets that they need, by name with their flags."""

    name: str
    rules: tuple[str, ...]
    sets: tuple[tuple[str, str], ...] = ()


def name_connections(connections: int) -> str:
    """The chain that keeps to so many connections."""
    return f"connections_{connections}"


def name_egress(egress: Iterable[Egress]) -> str:
    """The chain that lets through what is in a list."""
    words = "\n".join(sorted(map(format_egress, egress)))
    return f"egress_{hashlib.sha256(words.encode()).hexdigest()[:16]}"


def derive_profiles(owner: PortPlan | BridgePlan, *, counts: bool) -> list[Profile]:
    """Those that a VM or a network needs; a network has that of most VMs, which need not wait for it then.
    `counts`: the kernel can count connections."""
    connections = owner.connections if isinstance(owner, PortPlan) else DEFAULT_CONNECTIONS
    profiles = [_derive_connections(connections, counts=counts)]
    if owner.egress is not None:
        rules = [_render_egress(egress) for egress in owner.egress]
        profiles.append(Profile(name_egress(owner.egress), (*rules, "drop")))
    return profiles


def _derive_connections(connections: int, *, counts: bool) -> Profile:
    rate = max(connections // _RATE_DIVISOR, 1)
    flows, known = f"flows_{connections}", f"known_{connections}"
    rules = [
        f"update @{flows} {{ {_KEY} limit rate over {rate}/second burst {connections} packets }} drop",
    ]
    sets = [(flows, "flags dynamic,timeout; timeout 1m;")]
    if counts:
        rules.append(f"add @{known} {{ {_KEY} ct count over {connections} }} drop")
        sets.append((known, "flags dynamic;"))
    return Profile(name_connections(connections), tuple(rules), tuple(sets))


def _render_egress(egress: Egress) -> str:
    family = "ip" if egress.network.version == 4 else "ip6"
    where = f"{family} daddr {egress.network}"
    if egress.transport is None:
        return f"{where} return"
    return f"{where} {egress.transport} dport {egress.first}-{egress.last} return"


def render_profiles(profiles: Iterable[Profile]) -> str:
    """Commands after which they are there, whether they were or not."""
    lines = []
    for profile in {profile.name: profile for profile in profiles}.values():
        for name, flags in profile.sets:
            lines.append(f"add set {_TABLE} {name} {{ type ifname . ether_addr; size 65535; {flags} }}\n")
        lines.append(f"add chain {_TABLE} {profile.name}\nflush chain {_TABLE} {profile.name}\n")
        lines += [f"add rule {_TABLE} {profile.name} {rule}\n" for rule in profile.rules]
    return "".join(lines)


def render_unused(profiles: Iterable[Profile], used: Iterable[Profile]) -> str:
    """Commands that remove those of `profiles` that are there and not among `used`."""
    names = {profile.name for profile in used}
    lines = []
    for profile in profiles:
        if profile.name not in names:
            names.add(profile.name)
            lines.append(f"delete chain {_TABLE} {profile.name}\n")
            lines += [f"delete set {_TABLE} {name}\n" for name, _ in profile.sets]
    return "".join(lines)
