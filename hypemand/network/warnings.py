# SPDX-License-Identifier: Apache-2.0
"""What works less well on the host's networks than it is meant to, in words for the administrator."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from hypemand.network.firewall import Nftables
from hypemand.network.forwarding import find_forwarding_warnings
from hypemand.network.lan import find_lan_warnings
from hypemand.network.links import Links, Route
from hypemand.network.port import BridgePlan
from hypemand.network.sysctl import has_bridge_netfilter

NOT_COUNTED = (
    "the kernel cannot count connections (nft_connlimit): only new connections per second are limited"
)


def find_warnings(
    plans: Iterable[BridgePlan],
    present: Mapping[str, BridgePlan],
    links: Links,
    nft: Nftables | None,
    routes: Iterable[Route],
    *,
    counts: bool,
) -> dict[str, list[str]]:
    """By the networks' names, what keeps VMs from others. `present`: those that are there, by their bridges;
    `counts`: the kernel counts connections."""
    routes = tuple(routes)
    warnings: dict[str, list[str]] = defaultdict(list)
    for plan in plans:
        found = find_forwarding_warnings(plan, routes) if plan.managed else find_lan_warnings(links, plan)
        warnings[plan.network] += found
        if not counts:
            warnings[plan.network].append(NOT_COUNTED)
    # what a bridge of others carries the firewalls of the host see with br_netfilter alone
    seen = [bridge for bridge, plan in present.items() if plan.managed or has_bridge_netfilter()]
    if nft is not None and seen:
        for bridge, blocks in nft.find_forward_blocks(seen).items():
            warnings[present[bridge].network] += blocks
    return dict(warnings)
