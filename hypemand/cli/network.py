# SPDX-License-Identifier: Apache-2.0
"""network list, inspect."""

from __future__ import annotations

from hypemand.cli.client import parse_all
from hypemand.cli.context import Context
from hypemand.cli.exitcode import ExitCode
from hypemand.cli.listing import Listing, show_list
from hypemand.cli.terminal import GREEN, RED, YELLOW
from hypemand.model.answers.network import HostNetwork

_HEADER = ("NAME", "STATE", "BRIDGE", "IPV4", "IPV6", "VMS", "FREE", "NOTE")


def list_networks(context: Context) -> int:
    """A table of networks, or their names, or JSON."""
    answer = context.client.get("networks")
    show_list(context, _LISTING, parse_all(HostNetwork, answer), answer)
    return ExitCode.OK


def _row(network: HostNetwork, _wide: bool) -> list[str]:
    return [
        network.name,
        "problem" if network.problem else "pending" if network.pending else "ready",
        network.bridge or "-",
        network.ipv4 or "-",
        network.ipv6 or "-",
        f"{sum(member.attached for member in network.members)}/{len(network.members)}",
        _format_count(network.free_addresses if network.managed else None),
        "; ".join(describe_trouble(network)),
    ]


def _format_count(count: int | None) -> str:
    """The addresses of an IPv6 subnet are not counted, and those of a LAN are not known here."""
    if count is None:
        return "-"
    return str(count) if count < 2**32 else "many"


def describe_trouble(network: HostNetwork) -> list[str]:
    """What keeps VMs off a network, what works less well than asked for, and what has to wait."""
    words = [network.problem] if network.problem else []
    words += network.warnings
    if network.pending:
        words.append("change pending until no VM is attached")
    return words


def _find_colour(network: HostNetwork) -> str:
    if network.problem:
        return RED
    return YELLOW if describe_trouble(network) else GREEN


_LISTING = Listing("networks", _HEADER, _row, name=lambda network: network.name, colour=_find_colour)


def inspect(context: Context) -> int:
    """Details of one network. The document is JSON unless YAML is asked for."""
    context.print_document(context.client.get("networks", context.args.network))
    return ExitCode.OK
