# SPDX-License-Identifier: Apache-2.0
"""Network devices of the host: bridges, TAP and ifb devices, their addresses, and the host's routes.

What is ours says so in its alias, which `ip link` shows. A TAP device gets its alias before it is made to
last; a bridge is ours by its MAC too, which it gets when it is made.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import socket
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_interface,
    ip_network,
)
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl.ndmsg import NTF_MASTER, NUD_NOARP

from hypemand.errors import HostNotReady
from hypemand.network.port import TAP_PREFIX, BridgePlan, PortPlan
from hypemand.network.sysctl import has_ipv6, set_sysctl

IFB_PREFIX = "hi"
BRIDGE_ALIAS = "hypemand network "
TAP_ALIAS = "hypemand VM "
IFB_ALIAS = "hypemand upload of VM "
_TAP = re.compile(rf"{TAP_PREFIX}[0-9]+")
_IFB = re.compile(rf"{IFB_PREFIX}[0-9]+")
_TUN = "/dev/net/tun"
# linux/if_tun.h
_TUNSETIFF, _TUNSETPERSIST, _TUNSETOWNER = 0x400454CA, 0x400454CB, 0x400454CC
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_TUN_EXCL = 0x0002, 0x1000, 0x4000, 0x8000
_LONE_TAP = b"hypetmpl%d"  # numbered by the kernel
_TAP_FLAGS = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
_IFREQ = struct.Struct("=16sH22x")
_NO_DAD = 0x02  # IFA_F_NODAD: a bridge without a guest has no carrier, and its address would stay tentative
_TABLE_LOCAL = 255
_UNICAST = 1
_ROOT, _INGRESS = 0xFFFFFFFF, 0xFFFFFFF1  # where a qdisc is on its device
_PROTO_RA = 9
_IFF_UP, _IFF_NOARP = 0x1, 0x80
# IFLA_BRPORT_GROUP_FWD_MASK: 01:80:c2:00:00:00 to :0f, but for :01 (PAUSE), which no bridge forwards
_ALL_GROUPS = 0xFFFD
_GUARD = ("IFLA_BRPORT_LEARNING", "IFLA_BRPORT_UNICAST_FLOOD", "IFLA_BRPORT_GROUP_FWD_MASK")
_GUARDED = (0, 0, _ALL_GROUPS)


@dataclass(frozen=True, slots=True)
class Link:
    """A network device. `owner`: the uid that a TAP device belongs to. `master`: the index of its bridge, or
    0; what follows is so as its port. `guarded`: it answers nobody, and what Links.set_port does for all is
    done. `stp`: a bridge that speaks the spanning tree protocol."""

    index: int
    name: str
    kind: str
    alias: str
    mac: str
    owner: int | None
    mtu: int
    up: bool
    master: int
    isolated: bool
    hairpin: bool
    guarded: bool
    stp: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """A route of the host."""

    network: IPv4Network | IPv6Network
    device: str
    from_advertisement: bool

    def __str__(self) -> str:
        return f"{self.network} dev {self.device}" if self.device else str(self.network)


def derive_bridge_mac(network: str) -> str:
    """The MAC of a network's bridge, locally administered: always the same, for guests remember it."""
    digest = hashlib.sha256(f"hypemand bridge {network}".encode()).digest()
    return ":".join(f"{octet:02x}" for octet in b"\x02\x68" + digest[:4])


def derive_tap_mac(uid: int) -> str:
    """The MAC of the host's end of a TAP device: locally administered, no guest's (bridges keep to it)."""
    return ":".join(f"{octet:02x}" for octet in b"\xfe\x68" + uid.to_bytes(4, "big"))


class Links:
    """The host's devices, by netlink. Raises NetlinkError and OSError with the kernel's errno."""

    def __init__(self) -> None:
        self._netlink = IPRoute()

    def close(self) -> None:
        """Close the netlink socket."""
        self._netlink.close()

    def tc(self, command: str, kind: str, index: int, **parameters: Any) -> None:
        """Traffic control, as pyroute2 has it."""
        self._netlink.tc(command, kind, index, **parameters)

    def list_qdiscs(self) -> Mapping[int, frozenset[str]]:
        """The kinds of queueing disciplines of all devices, by index."""
        kinds: defaultdict[int, set[str]] = defaultdict(set)
        for message in self._netlink.get_qdiscs():
            kinds[message["index"]].add(message.get_attr("TCA_KIND"))
        return {index: frozenset(found) for index, found in kinds.items()}

    def delete_qdisc(self, kind: str, index: int) -> None:
        """Remove one of a device itself, with all that belongs to it."""
        self._netlink.tc("del", index=index, parent=_INGRESS if kind == "ingress" else _ROOT)

    def find(self, name: str) -> Link | None:
        """The device of that name."""
        try:
            (message,) = self._netlink.link("get", ifname=name)
        except NetlinkError as error:
            if error.code == errno.ENODEV:
                return None
            raise
        return _parse_link(message)

    def list_links(self) -> tuple[Link, ...]:
        """All devices. It takes time with the number of them."""
        return tuple(_parse_link(message) for message in self._netlink.get_links())

    def delete(self, link: Link) -> None:
        """Delete a device. One that is not there is no error."""
        try:
            self._netlink.link("del", index=link.index)
        except NetlinkError as error:
            if error.code != errno.ENODEV:
                raise

    def delete_ours(self, name: str) -> None:
        """Delete the device of that name, if hypemand has made it."""
        link = self.find(name)
        if link is not None and is_ours(link):
            self.delete(link)

    # -- bridges

    def ensure_bridge(self, plan: BridgePlan) -> int:
        """Make or repair a network's bridge; its index. Raises HostNotReady when there is another's."""
        link = self.find(plan.bridge)
        mac = derive_bridge_mac(plan.network)
        if link is None:
            self._netlink.link(
                "add",
                ifname=plan.bridge,
                kind="bridge",
                address=mac,
                # not what it is to be: its MTU stays as it is set only if setting it changed it
                mtu=plan.mtu - 1,
                br_stp_state=0,
                br_mcast_snooping=0,
            )
            link = self.find(plan.bridge)
            assert link is not None
        elif not is_our_bridge(link, plan.network):
            raise HostNotReady(
                f"{plan.bridge} exists and does not belong to hypemand",
                hint="use another bridge for the network in hypemand.yaml",
            )
        alias = f"{BRIDGE_ALIAS}{plan.network}"
        if (link.alias, link.mac, link.mtu, link.up) != (alias, mac, plan.mtu, True):
            self._netlink.link("set", index=link.index, ifalias=alias, address=mac, mtu=plan.mtu, state="up")
        self._set_bridge_sysctls(plan)
        self._set_addresses(link.index, plan)
        return link.index

    def _set_bridge_sysctls(self, plan: BridgePlan) -> None:
        """Guests tell the host nothing of routes, and without IPv6 they find nothing to talk to."""
        if has_ipv6():
            conf = f"ipv6/conf/{plan.bridge}"
            for name in ("accept_ra", "accept_dad", "accept_redirects"):
                set_sysctl(f"{conf}/{name}", "0")
            set_sysctl(f"{conf}/disable_ipv6", "0" if plan.ipv6 else "1")
        elif plan.ipv6 is not None:
            raise HostNotReady(
                "the host has no IPv6", hint="boot without ipv6.disable=1, or use ipv6: none for the network"
            )
        # a connection to a published port of 127.0.0.1 goes out by the bridge with that as its source
        set_sysctl(f"ipv4/conf/{plan.bridge}/route_localnet", "1")
        set_sysctl(f"ipv4/conf/{plan.bridge}/accept_redirects", "0")
        set_sysctl(f"ipv4/conf/{plan.bridge}/send_redirects", "0")

    def _set_addresses(self, index: int, plan: BridgePlan) -> None:
        wanted: set[IPv4Interface | IPv6Interface] = {i for i in (plan.ipv4, plan.ipv6) if i is not None}
        present = set(self._list_addresses(index))
        for interface in present - wanted:
            self._netlink.addr("del", index=index, address=str(interface.ip), prefixlen=_prefix(interface))
        for interface in wanted - present:
            extra: dict[str, Any] = {"flags": _NO_DAD}
            if isinstance(interface, IPv4Interface):
                extra = {"broadcast": str(interface.network.broadcast_address)}
            self._netlink.addr(
                "add", index=index, address=str(interface.ip), prefixlen=_prefix(interface), **extra
            )

    def _list_addresses(self, index: int) -> Iterator[IPv4Interface | IPv6Interface]:
        for message in self._netlink.get_addr(index=index):
            interface = ip_interface(f"{message.get_attr('IFA_ADDRESS')}/{message['prefixlen']}")
            if not interface.ip.is_link_local:
                yield interface

    def has_address(self, plan: BridgePlan) -> bool:
        """Is the bridge there, with its addresses?"""
        link = self.find(plan.bridge)
        if link is None or not is_our_bridge(link, plan.network):
            return False
        wanted = {interface for interface in (plan.ipv4, plan.ipv6) if interface is not None}
        return wanted <= set(self._list_addresses(link.index))

    def is_whole(self, plan: BridgePlan, index: int) -> bool:
        """Is the bridge still that of `index`, up and with its addresses?"""
        link = self.find(plan.bridge)
        return link is not None and link.index == index and link.up and self.has_address(plan)

    # -- TAP and ifb devices

    def add_tap(self, port: PortPlan, bridge: int, *, isolated: bool, hairpin: bool) -> int:
        """Make a VM's TAP device, on the bridge and up; its index. Raises OSError; then it is not there."""
        name = port.tap
        if self.find(name) is not None:
            raise HostNotReady(f"{name} exists and does not belong to hypemand", hint=f"ip link del {name}")
        with _open_tun() as tun:
            fcntl.ioctl(tun, _TUNSETIFF, _IFREQ.pack(name.encode(), _TAP_FLAGS | _IFF_TUN_EXCL))
            fcntl.ioctl(tun, _TUNSETOWNER, port.uid)
            index = socket.if_nametoindex(name)
            if has_ipv6():
                set_sysctl(f"ipv6/conf/{name}/disable_ipv6", "1")
            self._netlink.link(
                "set",
                index=index,
                ifalias=f"{TAP_ALIAS}{port.vm}",
                address=derive_tap_mac(port.uid),
                mtu=port.bridge.mtu,
                master=bridge,
                # as long as it is on no bridge, it answers nobody
                flags=_IFF_NOARP,
                change=_IFF_NOARP,
            )
            self.set_port(index, port.mac, isolated=isolated, hairpin=hairpin)
            self._netlink.link("set", index=index, state="up")
            # as the last: until here it would go with the descriptor
            fcntl.ioctl(tun, _TUNSETPERSIST, 1)
        return index

    def open_tap(self, link: Link, uid: int) -> int:
        """A descriptor of a TAP device, for a VMM of that uid. Raises OSError: EBUSY where a VMM has it."""
        with _open_tun() as tun:
            fcntl.ioctl(tun, _TUNSETIFF, _IFREQ.pack(link.name.encode(), _TAP_FLAGS))
            if link.owner != uid:
                fcntl.ioctl(tun, _TUNSETOWNER, uid)
            return os.dup(tun.fileno())

    def open_lone_tap(self) -> int:
        """A descriptor of a new TAP device that is on no bridge, and down. It goes with the descriptor.
        Raises OSError."""
        with _open_tun() as tun:
            fcntl.ioctl(tun, _TUNSETIFF, _IFREQ.pack(_LONE_TAP, _TAP_FLAGS | _IFF_TUN_EXCL))
            return os.dup(tun.fileno())

    def mend_mac(self, link: Link, uid: int) -> None:
        """Give a TAP device back the MAC address that it was made with. Where it had a guest's, the bridge
        has forgotten where that guest is: set_port."""
        self._netlink.link("set", index=link.index, address=derive_tap_mac(uid))

    def set_port(self, index: int, mac: str, *, isolated: bool, hairpin: bool) -> None:
        """Set what a port of a bridge does. It learns nothing from what a guest sends: from what is sent to
        the addresses that bridges keep to themselves, it would learn before any rule sees it. The rules see
        that now, too. It gets what is sent to its guest, and to all; nothing that the bridge does not know
        the place of."""
        self._netlink.brport(
            "set",
            index=index,
            isolated=int(isolated),
            mode=int(hairpin),
            learning=0,
            unicast_flood=0,
            group_fwd_mask=_ALL_GROUPS,
        )
        self._netlink.fdb("replace", ifindex=index, lladdr=mac, state=NUD_NOARP, flags=NTF_MASTER)

    def mend_tap(self, link: Link, port: PortPlan, bridge: int, *, isolated: bool, hairpin: bool) -> None:
        """Put a TAP device that is there back to where it belongs."""
        if link.mac != derive_tap_mac(port.uid):
            self.mend_mac(link, port.uid)
        if (link.master, link.mtu, link.up, link.guarded) != (bridge, port.bridge.mtu, True, True):
            flags = _IFF_NOARP | _IFF_UP
            self._netlink.link(
                "set", index=link.index, mtu=port.bridge.mtu, master=bridge, flags=flags, change=flags
            )
        if (link.master, link.isolated, link.hairpin, link.guarded) != (bridge, isolated, hairpin, True):
            self.set_port(link.index, port.mac, isolated=isolated, hairpin=hairpin)

    def add_ifb(self, name: str, alias: str, mtu: int) -> int:
        """Make an ifb device anew, up; its index."""
        self.delete_ours(name)
        self._netlink.link("add", ifname=name, kind="ifb", mtu=mtu)
        index = socket.if_nametoindex(name)
        if has_ipv6():
            set_sysctl(f"ipv6/conf/{name}/disable_ipv6", "1")
        self._netlink.link("set", index=index, ifalias=alias, state="up")
        return index

    def forget_neighbours(self, index: int, addresses: Iterable[IPv4Address | IPv6Address]) -> None:
        """Forget behind which MAC addresses these are, on a device. What is not known is no error."""
        for address in addresses:
            family = socket.AF_INET if address.version == 4 else socket.AF_INET6
            try:
                self._netlink.neigh("del", ifindex=index, dst=str(address), family=family)
            except NetlinkError as error:
                if error.code != errno.ENOENT:
                    raise

    # -- routes

    def list_routes(self) -> tuple[Route, ...]:
        """The host's routes to other networks, of all tables but the local one; default routes too."""
        names: dict[int, str] = {}
        return tuple(
            route
            for family in ((socket.AF_INET, socket.AF_INET6) if has_ipv6() else (socket.AF_INET,))
            for message in self._netlink.get_routes(family=family)
            for route in _parse_routes(message, family, names)
        )


def is_ours(link: Link) -> bool:
    """Have we made this device?"""
    match link.kind:
        case "tun":
            return bool(_TAP.fullmatch(link.name)) and link.alias.startswith(TAP_ALIAS)
        case "ifb":
            # killed between making and marking it, we have left one that is down
            unmarked = not link.alias and not link.up
            return bool(_IFB.fullmatch(link.name)) and (unmarked or link.alias.startswith(IFB_ALIAS))
        case "bridge":
            return has_our_alias(link)
    return False


def has_our_alias(link: Link) -> bool:
    """Does a bridge say that it is ours?"""
    return link.alias.startswith(BRIDGE_ALIAS)


def is_our_bridge(link: Link, network: str) -> bool:
    """Has it been made by us? Its alias may be missing, if we were killed before it was set."""
    if link.kind != "bridge":
        return False
    return has_our_alias(link) or link.mac == derive_bridge_mac(network)


def find_collision(plan: BridgePlan, routes: Iterable[Route]) -> Route | None:
    """A route of the host, other than by the network's own bridge, to addresses of the network."""
    networks = [interface.network for interface in (plan.ipv4, plan.ipv6) if interface is not None]
    for route in routes:
        if route.network.prefixlen == 0 or route.device == plan.bridge or route.network.is_link_local:
            continue
        for network in networks:
            if network.version == route.network.version and network.overlaps(route.network):
                return route
    return None


def _prefix(interface: IPv4Interface | IPv6Interface) -> int:
    return interface.network.prefixlen


def _parse_link(message: Any) -> Link:
    info = message.get_attr("IFLA_LINKINFO")
    is_port = info is not None and info.get_attr("IFLA_INFO_SLAVE_KIND") == "bridge"
    port = info.get_attr("IFLA_INFO_SLAVE_DATA") if is_port else None
    kind = (info.get_attr("IFLA_INFO_KIND") if info else None) or ""
    data = info.get_attr("IFLA_INFO_DATA") if info else None
    return Link(
        index=message["index"],
        name=message.get_attr("IFLA_IFNAME"),
        kind=kind,
        alias=message.get_attr("IFLA_IFALIAS") or "",
        mac=message.get_attr("IFLA_ADDRESS") or "",
        owner=data.get_attr("IFLA_TUN_OWNER") if kind == "tun" and data is not None else None,
        mtu=message.get_attr("IFLA_MTU") or 0,
        up=bool(message["flags"] & _IFF_UP),
        master=message.get_attr("IFLA_MASTER") or 0,
        isolated=bool(port and port.get_attr("IFLA_BRPORT_ISOLATED")),
        hairpin=bool(port and port.get_attr("IFLA_BRPORT_MODE")),
        guarded=bool(
            message["flags"] & _IFF_NOARP and port and tuple(map(port.get_attr, _GUARD)) == _GUARDED
        ),
        stp=bool(kind == "bridge" and data is not None and data.get_attr("IFLA_BR_STP_STATE")),
    )


def _parse_routes(message: Any, family: int, names: dict[int, str]) -> Iterator[Route]:
    table = message.get_attr("RTA_TABLE") or message["table"]
    if table == _TABLE_LOCAL or message["type"] != _UNICAST:
        return
    anywhere = "0.0.0.0" if family == socket.AF_INET else "::"
    network = ip_network(f"{message.get_attr('RTA_DST') or anywhere}/{message['dst_len']}", strict=False)
    if network.is_multicast:
        return
    indexes = [message.get_attr("RTA_OIF")]
    indexes += [hop["oif"] for hop in message.get_attr("RTA_MULTIPATH") or ()]
    for index in indexes:
        if index:
            yield Route(network, _find_name(index, names), message["proto"] == _PROTO_RA)


def _find_name(index: int, names: dict[int, str]) -> str:
    if index not in names:
        names[index] = ""
        with suppress(OSError):  # it has gone meanwhile
            names[index] = socket.if_indextoname(index)
    return names[index]


def _open_tun() -> Any:
    try:
        return open(_TUN, "r+b", buffering=0)
    except OSError as error:
        raise HostNotReady(
            f"no TAP devices: {_TUN}: {os.strerror(error.errno or 0)}", hint="load the kernel module tun"
        ) from None
