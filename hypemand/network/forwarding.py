# SPDX-License-Identifier: Apache-2.0
"""IP forwarding: enabled when a VM needs it, unless it would disconnect the host from its network."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from hypemand.network.links import Route
from hypemand.network.port import BridgePlan
from hypemand.network.sysctl import find_sysctl, set_sysctl

_log = logging.getLogger(__name__)
_IPV4 = "ipv4/ip_forward"
_IPV6 = "ipv6/conf/all/forwarding"


def ensure_forwarding(plan: BridgePlan, list_routes: Callable[[], Iterable[Route]]) -> None:
    """What a VM on this network needs to reach others, and to be reached. `list_routes`: the host's."""
    if plan.ipv4 is not None and set_sysctl(_IPV4, "1"):
        _log.info("enabled net.ipv4.ip_forward, which network %s needs", plan.network)
    if plan.ipv6 is None or find_sysctl(_IPV6) == "1" or find_listeners(list_routes()):
        return
    if set_sysctl(_IPV6, "1"):
        _log.info("enabled net.ipv6.conf.all.forwarding, which network %s needs", plan.network)


def lacks_forwarding(plan: BridgePlan) -> bool:
    """Is what a VM on this network needs turned off?"""
    wanted = ((plan.ipv4, _IPV4), (plan.ipv6, _IPV6))
    return any(interface is not None and find_sysctl(name) != "1" for interface, name in wanted)


def find_listeners(routes: Iterable[Route]) -> tuple[str, ...]:
    """Interfaces whose default route is from router advertisements that the kernel would not listen to any
    more if it forwarded (accept_ra is 1). With 0 another program listens, as NetworkManager."""
    devices = {
        route.device
        for route in routes
        if route.from_advertisement and route.network.version == 6 and route.network.prefixlen == 0
    }
    return tuple(sorted(name for name in devices if find_sysctl(f"ipv6/conf/{name}/accept_ra") == "1"))


def find_forwarding_warnings(plan: BridgePlan, routes: Iterable[Route]) -> tuple[str, ...]:
    """Why VMs of this network cannot reach others by IPv6, and the cure."""
    if plan.ipv6 is None or find_sysctl(_IPV6) == "1":
        return ()
    return tuple(
        f"no IPv6 forwarding: {name} has its default route from router advertisements, which it would "
        f"no longer accept; sysctl net.ipv6.conf.{name}.accept_ra=2, persistently in /etc/sysctl.d, and "
        "hypemanctl reload"
        for name in find_listeners(routes)
    )
