# SPDX-License-Identifier: Apache-2.0
"""Settings in a definition that affect the host beyond the VM, and are therefore reserved for root.

A definition file is root's. A client of the API may be a token from elsewhere, or a member of the group: that
it may run VMs does not mean that it may start and stop units of the host, take the host's well-known ports,
or have a VM outlive what the host needs more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from hypemand.config.definition import Definition, DefinitionDefaults
from hypemand.config.guestfiles import find_host_paths
from hypemand.config.netparse import format_publish
from hypemand.errors import Forbidden
from hypemand.unitnames import is_of_vm

# Ports below are for root on any Unix (net.ipv4.ip_unprivileged_port_start).
FIRST_FREE_PORT = 1024
# A VM that takes longer to stop holds up the host's shutdown.
LONGEST_STOP = 600.0

Words = tuple[str, ...]


def _other_units(words: Words) -> str:
    """Relations start, stop and order units: among VMs that is the client's business."""
    return ", ".join(word for word in words if not is_of_vm(word))


def _any(words: Words) -> str:
    return " ".join(words)


def _negative(words: Words) -> str:
    return words[0] if int(words[0]) < 0 else ""


_RELATIONS = (
    "After", "Before", "Wants", "Requires", "Requisite", "BindsTo", "PartOf", "Conflicts", "OnFailure",
    "OnSuccess",
)  # fmt: skip
_HARMLESS = (
    "Description", "Documentation", "CPUWeight", "IOWeight", "AllowedCPUs", "CPUAffinity", "MemoryHigh",
    "MemorySwapMax", "RestartSec", "StartLimitIntervalSec", "StartLimitBurst",
)  # fmt: skip
# Of each unit property, what of its value is the host's business; "" for nothing.
UNIT_RULES: Mapping[str, Callable[[Words], str]] = {
    **dict.fromkeys(_RELATIONS, _other_units),
    **dict.fromkeys(_HARMLESS, lambda _words: ""),
    # starts mounts
    "RequiresMountsFor": _any,
    "OOMScoreAdjust": _any,
    "Nice": _negative,
    # the journal is the host's, and shared
    "LogRateLimitIntervalSec": _any,
    "LogRateLimitBurst": _any,
}


def find_host_reach(definition: Definition, defaults: DefinitionDefaults) -> Iterator[str]:
    """Each key whose value is only for root, with that value."""
    for key, words in definition.unit.items():
        if what := UNIT_RULES.get(key, _any)(words):
            yield f"unit.{key} ({what})"
    for one in definition.network.publish if definition.network is not None else ():
        if one.host_port < FIRST_FREE_PORT:
            yield f"network.publish ({format_publish(one)})"
    stop = definition.stop_timeout
    if stop != defaults.stop_timeout and (stop is None or stop > LONGEST_STOP):
        yield f"stop_timeout ({'infinity' if stop is None else f'{stop:g}s'})"


def refuse_host_paths(definition: Definition, reader: str) -> None:
    """Raise Forbidden if the guest would get files or secrets of the host. `reader`: subject of the error."""
    found = list(find_host_paths(definition))
    if found:
        raise Forbidden(
            f"{reader} would read files of the host: {'; '.join(found)}",
            hint="send content in place of a path, or let root define the VM in /etc/hypemand/vms.d",
        )


def refuse_host_reach(definition: Definition, defaults: DefinitionDefaults) -> None:
    """Raise Forbidden with all that only root may ask for."""
    refuse_host_paths(definition, "a client that is not root")
    found = list(find_host_reach(definition, defaults))
    if found:
        raise Forbidden(
            f"this affects the host beyond the VM: {'; '.join(found)}",
            hint="omit it, or let root define the VM in /etc/hypemand/vms.d or create it on the host",
        )
