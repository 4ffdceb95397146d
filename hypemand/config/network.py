# SPDX-License-Identifier: Apache-2.0
"""Networks of the host, and a VM's place in one, as values."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

DEFAULT_NETWORK = "default"
DEFAULT_CONNECTIONS = 4096


class Transport(StrEnum):
    """What a published port carries."""

    TCP = "tcp"
    UDP = "udp"


@dataclass(frozen=True, slots=True)
class HostPort:
    """A port of the host."""

    transport: Transport
    port: int


@dataclass(frozen=True, slots=True)
class Publish:
    """A port of the host that leads to one of the VM's. `address` None: every address of the host."""

    address: IPv4Address | IPv6Address | None
    host_port: int
    guest_port: int
    transport: Transport = Transport.TCP

    def clashes_with(self, other: Publish) -> bool:
        """Would something that comes to the host be for both?"""
        if (self.transport, self.host_port) != (other.transport, other.host_port):
            return False
        return None in (self.address, other.address) or self.address == other.address

    @property
    def where(self) -> str:
        """The port of the host, as `127.0.0.1:80/tcp`."""
        port = f"{self.host_port}/{self.transport}"
        if self.address is None:
            return port
        return f"[{self.address}]:{port}" if self.address.version == 6 else f"{self.address}:{port}"


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Bytes per second, as the VM sees it; None: no limit."""

    upload: int | None = None
    download: int | None = None


@dataclass(frozen=True, slots=True)
class Egress:
    """Where VMs may send: all of a network, or the ports `first` to `last` of it. `transport` None: all."""

    network: IPv4Network | IPv6Network
    transport: Transport | None = None
    first: int = 0
    last: int = 0


@dataclass(frozen=True, slots=True)
class NetworkUse:
    """A VM's place in a network.

    `address` and `address6` None: one of the network's; `mac` None: one made of the VM's id. VMs reach each
    other if they are of one `group`, or if neither has one and neither is isolated; `isolate` None: as the
    network says. `connections` None: as many as the network allows, and never more. `egress` None: wherever
    the network allows, and never elsewhere.
    """

    name: str = DEFAULT_NETWORK
    address: IPv4Address | None = None
    address6: IPv6Address | None = None
    mac: str | None = None
    publish: tuple[Publish, ...] = ()
    bandwidth: Bandwidth = field(default_factory=Bandwidth)
    group: str | None = None
    isolate: bool | None = None
    connections: int | None = None
    egress: tuple[Egress, ...] | None = None


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """A network of the host: a bridge with the gateway's addresses, whose networks are the subnets.

    `managed` False: the bridge is the administrator's, and leads to a LAN, whose gateway has the addresses.
    `dhcp`: of that, a VM whose definition has no address gets one from the LAN, if from anybody.
    One of `ipv4` and `ipv6` may be None; both with `dhcp`. `dns`: the name servers of VMs; None: the host's
    own. `nat`: VMs reach other networks under the host's address; without it their addresses are routed as
    they are. `isolation`: VMs do not reach each other unless they share a group. `host_ports`: what of the
    host's own services VMs may reach. `connections`: how many of each VM the host keeps track of at once.
    `egress`: where beyond the host VMs may open connections to; None: everywhere. `link_local`: also to
    link-local addresses, where clouds tell a host's secrets.
    """

    name: str
    bridge: str
    ipv4: IPv4Interface | None
    ipv6: IPv6Interface | None
    mtu: int = 1500
    dns: tuple[IPv4Address | IPv6Address, ...] | None = None
    nat: bool = True
    isolation: bool = True
    host_ports: frozenset[HostPort] = frozenset()
    connections: int = DEFAULT_CONNECTIONS
    egress: tuple[Egress, ...] | None = None
    link_local: bool = False
    managed: bool = True
    dhcp: bool = False

    def without_ipv6(self) -> NetworkConfig:
        """The same with IPv4 alone, as on a host that has no IPv6. One that has no IPv4 stays as it is, and
        so does a LAN, where the host's own addresses do not count."""
        return self if self.ipv4 is None or not self.managed else replace(self, ipv6=None)
