# SPDX-License-Identifier: Apache-2.0
"""Networks as the API answers them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NetworkMember:
    """A VM that has addresses in a network."""

    instance_id: str = ""
    instance_name: str = ""
    ip: str | None = None
    ip6: str | None = None
    mac: str | None = None
    group: str | None = None
    isolated: bool | None = None
    publish: tuple[str, ...] = ()
    attached: bool = False


@dataclass(frozen=True, slots=True)
class HostNetwork:
    """A network as it is on the host now. `free_addresses` None: not told."""

    name: str
    bridge: str | None = None
    ipv4: str | None = None
    ipv6: str | None = None
    mtu: int | None = None
    dns: tuple[str, ...] = ()
    nat: bool | None = None
    managed: bool = True
    dhcp: bool = False
    isolation: bool | None = None
    host_ports: tuple[str, ...] = ()
    connections: int | None = None
    egress: tuple[str, ...] | None = None
    link_local: bool | None = None
    problem: str | None = None
    warnings: tuple[str, ...] = ()
    pending: bool = False
    addresses: int | None = None
    free_addresses: int | None = None
    members: tuple[NetworkMember, ...] = ()
