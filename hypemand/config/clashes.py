# SPDX-License-Identifier: Apache-2.0
"""What several definitions ask for and only one VM can have at a time. Pure.

No error: one may be there to take over from the other, and a VM that asks for what a running one has is
refused when it is started.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from hypemand.config.definition import Definition
from hypemand.config.network import Publish, Transport


@dataclass(frozen=True, slots=True)
class Clash:
    """`vms`: those that ask for `what`, by name; one alone if it is the host that has it."""

    vms: tuple[str, ...]
    what: str

    def __str__(self) -> str:
        names = self.vms[0] if len(self.vms) == 1 else f"{', '.join(self.vms[:-1])} and {self.vms[-1]}"
        return f"{names} {self.what}"


def find_clashes(definitions: Mapping[str, Definition], host_name: str) -> list[Clash]:
    """Addresses, MAC addresses, published ports and names that are there more than once; by the VMs'
    names."""
    found = [*_find_addresses(definitions), *_find_ports(definitions), *_find_names(definitions, host_name)]
    return sorted(found, key=lambda clash: (clash.vms, clash.what))


def _find_addresses(definitions: Mapping[str, Definition]) -> Iterator[Clash]:
    users: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name in sorted(definitions):
        use = definitions[name].network
        if use is None:
            continue
        for kind, value in (("address", use.address), ("address", use.address6), ("MAC address", use.mac)):
            if value is not None:
                users[use.name, f"{kind} {value}"].append(name)
    for (network, what), vms in users.items():
        if len(vms) > 1:
            yield Clash(tuple(vms), f"have the same {what} of network {network}: only one of them can run")


def _find_ports(definitions: Mapping[str, Definition]) -> Iterator[Clash]:
    """One for all VMs that share the same ports with each other, or for a pair, however many it shares."""
    seen: dict[tuple[Transport, int], list[tuple[str, Publish]]] = defaultdict(list)
    shared: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for name in sorted(definitions):
        use = definitions[name].network
        for one in use.publish if use is not None else ():
            others = seen[one.transport, one.host_port]
            for other, its in others:
                if other != name and one.clashes_with(its):
                    shared[other, name][one.where] = None
            others.append((name, one))
    pairs: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for pair, ports in shared.items():
        pairs[", ".join(ports)].append(pair)
    for where, those in pairs.items():
        vms = sorted({vm for pair in those for vm in pair})
        is_each_with_each = len(those) == len(vms) * (len(vms) - 1) // 2
        for group in [vms] if is_each_with_each else those:
            what = f"publish the same port of this host ({where})"
            yield Clash(tuple(group), f"{what}: only one of them can run")


def _find_names(definitions: Mapping[str, Definition], host_name: str) -> Iterator[Clash]:
    for name in ("localhost", host_name.partition(".")[0].lower()):
        if name in definitions:
            yield Clash((name,), f"has the name of this host, which knows the VM as {name}.hypeman only")
