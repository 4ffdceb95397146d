# SPDX-License-Identifier: Apache-2.0
"""Values by hand, for tests of how they are shown."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, ip_address

from hypemand.config.definition import Definition
from hypemand.config.network import Bandwidth, Egress, HostPort, Publish, Transport
from hypemand.model.counters import Counters
from hypemand.model.networks import Member, NetworkInfo, VmNetwork
from hypemand.model.state import Origin, State
from hypemand.model.vm import VmView

IPV6 = IPv6Address("fd00:7::5054:ff:fe12:3456")
PLACE = VmNetwork(
    name="lab",
    ipv4=IPv4Address("10.7.0.2"),
    ipv6=IPV6,
    mac="52:54:00:12:34:56",
    group="db",
    publish=(Publish(None, 8080, 80), Publish(ip_address("127.0.0.1"), 53, 53, Transport.UDP)),
    bandwidth=Bandwidth(upload=2_500_000, download=125_000_000),
    interface="hv61200",
    counters=Counters(100, 1, 200, 2, 3),
)


def make_network(name: str, **changes: object) -> NetworkInfo:
    """A network with one VM."""
    member = Member("web", "0" * 32, name, "52:54:00:12:34:56", IPv4Address("10.7.0.2"), IPV6, None, True)
    values: dict[str, object] = {
        "name": name,
        "bridge": f"{name}0",
        "ipv4": IPv4Interface("10.7.0.1/24"),
        "ipv6": IPv6Interface("fd00:7::1/64"),
        "mtu": 1500,
        "dns": (ip_address("192.0.2.1"),),
        "nat": True,
        "managed": True,
        "dhcp": False,
        "isolation": True,
        "host_ports": (HostPort(Transport.UDP, 53),),
        "connections": 4096,
        "egress": (Egress(IPv4Network("192.0.2.0/24"), Transport.TCP, 443, 443),),
        "link_local": False,
        "problem": "",
        "warnings": (),
        "pending": False,
        "addresses": 253,
        "free_addresses": 252,
        "members": (member,),
    }
    return NetworkInfo(**values | changes)  # type: ignore[arg-type]


def make_view(name: str = "web", /, **changes: object) -> VmView:
    """A VM of the API's that is Stopped."""
    values: dict[str, object] = {
        "id": "0" * 24,
        "name": name,
        "origin": Origin.API,
        "definition": Definition(name, "builtin:busybox"),
        "state": State.STOPPED,
        "state_error": None,
        "status_text": "Stopped",
        "created_at": 1_700_000_000.0,
        "started_at": None,
        "stopped_at": None,
        "ready_ms": None,
        "exit": None,
        "needs_restart": False,
        "removed_from_config": False,
        "unit": f"hypeman-vm-{name}.service",
        "invocation_id": None,
        "boot_id": None,
        "main_pid": None,
        "uid": 61184,
        "memory_current": None,
        "current_phase_since": 1_700_000_000.0,
        "phase_durations_ms": {"Stopped": 12},
    }
    return VmView(**values | changes)  # type: ignore[arg-type]
