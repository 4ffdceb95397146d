# SPDX-License-Identifier: Apache-2.0
"""network list, inspect."""

from __future__ import annotations

import sys
from typing import Any

from hypemand.cli.context import Context
from hypemand.cli.exitcode import ExitCode
from hypemand.cli.terminal import GREEN, RED, YELLOW, print_json, print_table
from hypemand.cli.values import escape_controls

_HEADER = ("NAME", "STATE", "BRIDGE", "IPV4", "IPV6", "VMS", "FREE", "NOTE")


def list_networks(context: Context) -> int:
    """A table of networks, or their names, or JSON."""
    networks: list[dict[str, Any]] = context.client.get("networks")
    if context.wants_json:
        print_json(networks)
    elif context.args.quiet:
        for network in networks:
            print(escape_controls(str(network.get("name"))))
    elif networks:
        header = None if context.args.no_legend else _HEADER
        print_table(header, [_row(n) for n in networks], [_find_colour(n) for n in networks])
    elif sys.stdout.isatty():
        print("No networks.")
    return ExitCode.OK


def _row(network: dict[str, Any]) -> list[str]:
    members = network.get("members") or []
    cells = [
        str(network.get("name") or "?"),
        "problem" if network.get("problem") else "pending" if network.get("pending") else "ready",
        str(network.get("bridge") or "-"),
        str(network.get("ipv4") or "-"),
        str(network.get("ipv6") or "-"),
        f"{sum(bool(member.get('attached')) for member in members)}/{len(members)}",
        _format_count(network.get("free_addresses")),
        "; ".join(describe_trouble(network)),
    ]
    return [escape_controls(cell) for cell in cells]


def _format_count(count: object) -> str:
    """All of a subnet of IPv6 nobody counts."""
    if not isinstance(count, int):
        return "-"
    return str(count) if count < 2**32 else "many"


def describe_trouble(network: dict[str, Any]) -> list[str]:
    """What keeps VMs off a network, what works less well than asked for, and what has to wait."""
    words = [str(network["problem"])] if network.get("problem") else []
    words += [str(warning) for warning in network.get("warnings") or []]
    if network.get("pending"):
        words.append("change pending until no VM is attached")
    return words


def _find_colour(network: dict[str, Any]) -> str:
    if network.get("problem"):
        return RED
    return YELLOW if describe_trouble(network) else GREEN


def inspect(context: Context) -> int:
    """All about one network. The document is JSON with or without --json."""
    print_json(context.client.get("networks", context.args.network))
    return ExitCode.OK
