# SPDX-License-Identifier: Apache-2.0
"""Bridges that hypemand has not made (`managed: false`): what VMs need of them. They are checked, and never
changed but for the ports of VMs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from hypemand.errors import HostNotReady
from hypemand.network.links import Link, Links, has_our_alias
from hypemand.network.port import BridgePlan


def is_usable(link: Link | None) -> bool:
    """Can VMs be on it, be it right or not?"""
    return link is not None and link.kind == "bridge" and not has_our_alias(link)


def ensure_usable(links: Links, plan: BridgePlan) -> int:
    """The index of a network's bridge. HostNotReady unless it is there, as the host configuration says."""
    link = links.find(plan.bridge)
    if link is None:
        raise HostNotReady(
            f"the bridge {plan.bridge} does not exist",
            hint="create it, as it is not managed by hypemand, or correct bridge in hypemand.yaml",
        )
    if not is_usable(link):
        is_bridge = link.kind == "bridge"
        raise HostNotReady(
            f"{plan.bridge} {'was created by hypemand' if is_bridge else 'is not a bridge'}",
            hint=(
                f"remove managed: false in hypemand.yaml, or: ip link del {plan.bridge}, and create it"
                if is_bridge
                else "use the bridge that it is a port of"
            ),
        )
    if not link.up:
        raise HostNotReady(f"the bridge {plan.bridge} is down", hint=f"ip link set {plan.bridge} up")
    if link.mtu != plan.mtu:
        raise HostNotReady(
            f"the bridge {plan.bridge} has an MTU of {link.mtu}, and network {plan.network} of {plan.mtu}",
            hint=f"use mtu: {link.mtu} for the network in hypemand.yaml",
        )
    return link.index


def is_whole(links: Links, plan: BridgePlan, index: int) -> bool:
    """Is the bridge still that of `index`, and up?"""
    link = links.find(plan.bridge)
    return link is not None and is_usable(link) and link.index == index and link.up


def is_fit(links: Links, plan: BridgePlan) -> bool:
    """Would `ensure_usable` not raise?"""
    with suppress(HostNotReady):
        return ensure_usable(links, plan) > 0
    return False


def find_lan_warnings(links: Links, plan: BridgePlan) -> Iterator[str]:
    """What keeps VMs on a network's bridge from being reached at once, and the cure."""
    link = links.find(plan.bridge)
    if link is not None and link.stp:
        yield (
            f"{plan.bridge} uses the spanning tree protocol: VMs are connected only after twice the forward "
            f"delay, 30 s by default; ip link set {plan.bridge} type bridge stp_state 0 if there are no loops"
        )
