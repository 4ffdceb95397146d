# SPDX-License-Identifier: Apache-2.0
"""network list, inspect."""

from __future__ import annotations

import sys

from hypemand.cli.client import parse_all
from hypemand.cli.context import Context
from hypemand.cli.exitcode import ExitCode
from hypemand.cli.terminal import GREEN, RED, YELLOW, print_table
from hypemand.cli.values import escape_controls
from hypemand.model.answers.network import HostNetwork

_HEADER = ("NAME", "STATE", "BRIDGE", "IPV4", "IPV6", "VMS", "FREE", "NOTE")


def list_networks(context: Context) -> int:
    """A table of networks, or their names, or JSON."""
    answer = context.client.get("networks")
    networks = parse_all(HostNetwork, answer)
    if context.wants_document:
        context.print_document(answer)
    elif context.args.quiet:
        for network in networks:
            print(escape_controls(network.name))
    elif networks:
        header = None if context.args.no_legend else _HEADER
        print_table(header, [_row(n) for n in networks], [_find_colour(n) for n in networks])
    elif sys.stdout.isatty():
        print("No networks.")
    return ExitCode.OK


def _row(network: HostNetwork) -> list[str]:
    cells = [
        network.name,
        "problem" if network.problem else "pending" if network.pending else "ready",
        network.bridge or "-",
        network.ipv4 or "-",
        network.ipv6 or "-",
        f"{sum(member.attached for member in network.members)}/{len(network.members)}",
        _format_count(network.free_addresses if network.managed else None),
        "; ".join(describe_trouble(network)),
    ]
    return [escape_controls(cell) for cell in cells]


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


def inspect(context: Context) -> int:
    """Details of one network. The document is JSON unless YAML is asked for."""
    context.print_document(context.client.get("networks", context.args.network))
    return ExitCode.OK
