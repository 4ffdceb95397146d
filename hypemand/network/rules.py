# SPDX-License-Identifier: Apache-2.0
"""The text of our nftables rules. Pure: what goes to the kernel is in firewall.py.

Two tables are ours, `bridge hypemand` and `inet hypemand`; nothing else is named here. What belongs to one VM
is nothing but elements of sets and maps, so a VM that comes or goes is one small transaction, and all rules
are the same for one VM as for a thousand.

bridge  what a guest sends is checked on its TAP device: MAC, the sender of ARP and IP, neighbour discovery,
        no answers of a DHCP server or router. What one guest sends to another passes if both are of one
        group.
inet    what guests reach of the host, what others reach of them, address translation. Nothing comes in by a
        TAP device itself: all that the bridge does not take is dropped, also when there is no bridge.

br_netfilter (which Docker loads) shows frames between two ports of a bridge to the inet chains too, and
translates what goes to a published port of a VM on the same bridge there. Such frames carry a mark from one
table to the other, since nothing else distinguishes them; it is a bit of hypemand's own, which is removed
again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv6Address

from hypemand.config.eui64 import LINK_LOCAL, derive_eui64
from hypemand.config.network import Publish
from hypemand.model.counters import Connections
from hypemand.network.port import BridgePlan, PortPlan
from hypemand.network.profiles import Profile, name_connections, name_egress, render_profiles

TABLE = "hypemand"
_BRIDGED_MARK = "0x08000000"
_PUBLISHED_MARK = "0x04000000"
_PUBLISHED_CLEARED = "0xfbffffff"


class Family(StrEnum):
    """Families of nftables that we have a table of."""

    BRIDGE = "bridge"
    INET = "inet"


@dataclass(frozen=True, slots=True)
class Element:
    """An element of a set or, with a value, a map."""

    family: Family
    set: str
    key: str
    value: str = ""

    @property
    def text(self) -> str:
        """As nft writes it."""
        return f"{self.key} : {self.value}" if self.value else self.key


def derive_elements(port: PortPlan, group: int | None) -> Iterator[Element]:
    """All that the rules know of one VM. `group`: the number of its group, for others of the same one."""
    tap = f'"{port.tap}"'
    bridge = Family.BRIDGE
    for family in Family:
        yield Element(family, "taps", tap)
    yield Element(bridge, "macs", f"{tap} . {port.mac}")
    yield Element(bridge, "itself", f"{tap} . {tap}")
    if port.ipv4 is not None:
        yield Element(bridge, "source4", f"{tap} . {port.mac} . {port.ipv4}")
    if port.ipv6 is not None:
        yield Element(bridge, "option6", f"{tap} . 0x{port.mac.replace(':', '')}")
        for address in _list_own6(port):
            yield Element(bridge, "source6", f"{tap} . {port.mac} . {address}")
            yield Element(bridge, "target6", f"{tap} . {int(address):#034x}")
    if not port.bridge.managed:
        yield from _derive_on_lan(port)
    if group is not None:
        yield Element(bridge, "groups", tap, f"{group:#x}")
        yield Element(bridge, "members", f"{tap} . {group:#x}")
    for publish in port.publish:
        yield from _derive_published(port, publish)
    quota = f"jump {name_connections(port.connections)}"
    yield Element(Family.INET, "outgoing", f'"{port.bridge.bridge}" . {port.mac}', quota)
    for name, own in (("incoming4", port.ipv4), ("incoming6", port.ipv6)):
        if own is not None:
            yield Element(Family.INET, name, str(own))
    if port.egress is not None:
        jump = f"jump {name_egress(port.egress)}"
        for name, own in (("egress4", port.ipv4), ("egress6", port.ipv6)):
            if own is not None:
                yield Element(Family.INET, name, str(own), jump)


def _list_own6(port: PortPlan) -> tuple[IPv6Address, ...]:
    return () if port.ipv6 is None else (port.ipv6, derive_eui64(port.mac, LINK_LOCAL))


def _derive_on_lan(port: PortPlan) -> Iterator[Element]:
    """What is to be known besides of a VM whose bridge leads to others by itself."""
    tap, bridge = f'"{port.tap}"', Family.BRIDGE
    yield Element(Family.INET, "guests", f'"{port.bridge.bridge}" . {port.mac}')
    if not port.bridge.link_local:
        yield Element(bridge, "no_link_local", tap)
    if port.is_free4:
        yield Element(bridge, "free4", tap)
    elif port.ipv4 is not None:
        yield Element(bridge, "claimed4", str(port.ipv4))
    if port.is_free6:
        yield Element(bridge, "free6", tap)
        yield Element(bridge, "option6", f"{tap} . 0x{port.mac.replace(':', '')}")
    else:
        yield Element(bridge, "fixed6", tap)
        for address in _list_own6(port):
            yield Element(bridge, "claimed6", f"{int(address):#034x}")


COUNTED = {"outgoing": "map", "incoming4": "set", "incoming6": "set"}
"""What of `inet hypemand` counts new connections by its elements, and its kind."""


def derive_connections(port: PortPlan, counted: Mapping[str, Mapping[str, int]]) -> Connections:
    """Of one VM. `counted`: packets by element, of each of COUNTED."""
    incoming = (
        counted[name].get(str(own), 0) for name, own in (("incoming4", port.ipv4), ("incoming6", port.ipv6))
    )
    return Connections(counted["outgoing"].get(f"{port.bridge.bridge} . {port.mac}", 0), sum(incoming))


def _derive_published(port: PortPlan, publish: Publish) -> Iterator[Element]:
    for version, address in ((4, port.ipv4), (6, port.ipv6)):
        if address is None or (publish.address is not None and publish.address.version != version):
            continue
        key = f"{publish.transport} . {publish.host_port}"
        value = f"{address} . {publish.guest_port}"
        if publish.address is None:
            yield Element(Family.INET, f"any{version}", key, value)
        else:
            yield Element(Family.INET, f"one{version}", f"{publish.address} . {key}", value)


def render_changes(add: Iterable[Element], delete: Iterable[Element] = ()) -> str:
    """One transaction that takes elements away and adds others."""
    return "".join([*_render_commands("delete", delete), *_render_commands("add", add)])


def _render_commands(verb: str, elements: Iterable[Element]) -> Iterator[str]:
    sets: defaultdict[tuple[Family, str], list[str]] = defaultdict(list)
    for element in elements:
        sets[element.family, element.set].append(element.text)
    for (family, name), texts in sets.items():
        yield f"{verb} element {family} {TABLE} {name} {{ {', '.join(texts)} }}\n"


def render_removal() -> str:
    """One transaction that removes all of hypemand's tables, whether they exist or not."""
    return "".join(f"add table {family} {TABLE}\ndelete table {family} {TABLE}\n" for family in Family)


def render_tables(
    bridges: Iterable[BridgePlan],
    elements: Iterable[Element],
    profiles: Iterable[Profile] = (),
    *,
    bridge_netfilter: bool,
) -> str:
    """One transaction after which the tables are so, whatever they were. `profiles`: all that elements and
    networks lead to. `bridge_netfilter`: br_netfilter is at work (see above)."""
    tables = [_BRIDGE_TABLE, _INET_TABLE]
    if bridge_netfilter:
        tables.append(_BRIDGE_NETFILTER)
    networks = _render_commands("add", _derive_network_elements(tuple(bridges)))
    text = [render_removal(), *tables, render_profiles(profiles), *networks]
    return "".join([*text, *_render_commands("add", elements)])


def _derive_network_elements(bridges: tuple[BridgePlan, ...]) -> Iterator[Element]:
    inet = Family.INET
    for plan in bridges:
        bridge = f'"{plan.bridge}"'
        for port in sorted(plan.host_ports, key=lambda port: (port.transport, port.port)):
            yield Element(inet, "host_ports", f"{bridge} . {port.transport} . {port.port}")
        if not plan.managed:
            if plan.ipv4 is not None:
                yield Element(Family.BRIDGE, "claimed4", str(plan.ipv4.ip))
            if plan.ipv6 is not None:
                yield Element(Family.BRIDGE, "claimed6", f"{int(plan.ipv6.ip):#034x}")
            continue
        yield Element(inet, "bridges", bridge)
        if not plan.nat:
            yield Element(inet, "routed", bridge)
        if plan.link_local:
            yield Element(inet, "link_local", bridge)
        if plan.egress is not None:
            yield Element(inet, "network_egress", bridge, f"jump {name_egress(plan.egress)}")
        for version, interface in ((4, plan.ipv4), (6, plan.ipv6)):
            if interface is None:
                continue
            yield Element(inet, f"subnets{version}", str(interface.network))
            if plan.nat:
                yield Element(inet, f"nat{version}", str(interface.network))


_BRIDGE_TABLE = f"""
table bridge {TABLE} {{
  # a TAP device, with what its guest may say it is
  set taps {{ type ifname; }}
  set macs {{ type ifname . ether_addr; }}
  set source4 {{ type ifname . ether_addr . ipv4_addr; }}
  set source6 {{ type ifname . ether_addr . ipv6_addr; }}
  set target6 {{ typeof iifname . @nh,384,128; }}
  set option6 {{ typeof iifname . @nh,528,48; }}
  # a frame that would go out where it came in
  set itself {{ type ifname . ifname; }}
  # on a bridge of others: VMs whose addresses the LAN gives, and those of others that they may not have
  set free4 {{ type ifname; }}
  set free6 {{ type ifname; }}
  set claimed4 {{ type ipv4_addr; }}
  set claimed6 {{ typeof @nh,384,128; }}
  # and VMs that are told of no router, or that may not ask the cloud that the host is in for its secrets
  set fixed6 {{ type ifname; }}
  set no_link_local {{ type ifname; }}
  map groups {{ type ifname : mark; }}
  set members {{ type ifname . mark; }}

  chain prerouting {{
    type filter hook prerouting priority -300; policy accept;
    iifname @taps jump guest
  }}

  chain guest {{
    iifname . ether saddr != @macs drop
    # what bridges say to each other, 802.1Q table 8-1
    ether daddr and ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00 drop
    ether type arp goto guest_arp
    ether type ip goto guest_ip
    ether type ip6 goto guest_ip6
    drop
  }}

  chain guest_arp {{
    arp htype != 1 drop
    arp ptype != ip drop
    arp hlen != 6 drop
    arp plen != 4 drop
    iifname . arp saddr ether . arp saddr ip @source4 accept
    iifname @free4 iifname . arp saddr ether @macs arp saddr ip != @claimed4 accept
    # is the address free? (RFC 5227)
    arp operation request arp saddr ip 0.0.0.0 iifname . arp saddr ether @macs accept
    drop
  }}

  chain guest_ip {{
    udp sport 67 drop
    iifname @no_link_local ip daddr 169.254.0.0/16 drop
    iifname . ether saddr . ip saddr @source4 accept
    iifname @free4 ip saddr != @claimed4 accept
    drop
  }}

  chain guest_ip6 {{
    udp sport 547 drop
    iifname @no_link_local ip6 daddr fd00:ec2::254 drop
    iifname @free6 @nh,64,128 @claimed6 drop
    # a router's: query for listeners, advertisement, redirect, renumbering
    icmpv6 type {{ 130, 134, 137, 138 }} drop
    # from behind an extension header neighbour discovery could not be looked into
    icmpv6 type {{ 133, 135, 136 }} ip6 nexthdr != ipv6-icmp drop
    # nor into what the header says that the next fragment begins with
    frag nexthdr {{ 0, 43, 44, 60 }} drop
    icmpv6 type 133 goto guest_query
    icmpv6 type {{ 135, 136 }} goto guest_neighbour
    iifname . ether saddr . ip6 saddr @source6 accept
    iifname @free6 accept
    # reports of listeners, sent before there is an address
    ip6 saddr :: icmpv6 type {{ 131, 132, 143 }} accept
    drop
  }}

  chain guest_query {{
    iifname != @free6 iifname . ether saddr . ip6 saddr != @source6 drop
    # no option, or the one that names the sender's own MAC
    ip6 length 8 accept
    ip6 length 16 @nh,384,16 0x0101 iifname . @nh,400,48 @option6 accept
    drop
  }}

  chain guest_neighbour {{
    iifname @free6 goto guest_free_neighbour
    # is the address free? Asked for its own only
    icmpv6 type 135 ip6 saddr :: iifname . @nh,384,128 @target6 accept
    iifname . ether saddr . ip6 saddr != @source6 drop
    icmpv6 type 136 iifname . @nh,384,128 != @target6 drop
    goto guest_option
  }}

  chain guest_free_neighbour {{
    icmpv6 type 135 ip6 saddr :: @nh,384,128 @claimed6 drop
    icmpv6 type 135 ip6 saddr :: accept
    icmpv6 type 136 @nh,384,128 @claimed6 drop
    goto guest_option
  }}

  chain guest_option {{
    # no option, or the one that names the sender's own MAC
    ip6 length 24 accept
    ip6 length 32 icmpv6 type 135 @nh,512,16 0x0101 iifname . @nh,528,48 @option6 accept
    ip6 length 32 icmpv6 type 136 @nh,512,16 0x0201 iifname . @nh,528,48 @option6 accept
    drop
  }}

  chain forward {{
    type filter hook forward priority -200; policy accept;
    iifname != @taps oifname != @taps accept
    # what an administrator has plugged into the bridge
    iifname != @taps meta mark set {_BRIDGED_MARK} accept
    oifname != @taps meta mark set {_BRIDGED_MARK} accept
    meta mark & {_PUBLISHED_MARK} == {_PUBLISHED_MARK} meta mark set meta mark & {_PUBLISHED_CLEARED} accept
    iifname . oifname @itself drop
    meta mark set 0
    meta mark set iifname map @groups
    oifname . meta mark @members meta mark set {_BRIDGED_MARK} accept
    drop
  }}

  # whose addresses are known is to give itself no others
  chain postrouting {{
    type filter hook postrouting priority -200; policy accept;
    oifname @fixed6 icmpv6 type 134 drop
  }}
}}
"""

_INET_TABLE = f"""
table inet {TABLE} {{
  set bridges {{ type ifname; }}
  set taps {{ type ifname; }}
  # VMs on bridges that are not hypemand's
  set guests {{ type ifname . ether_addr; }}
  # bridges without address translation, whose VMs are reached under their own addresses
  set routed {{ type ifname; }}
  set subnets4 {{ type ipv4_addr; flags interval; }}
  set subnets6 {{ type ipv6_addr; flags interval; }}
  set nat4 {{ type ipv4_addr; flags interval; }}
  set nat6 {{ type ipv6_addr; flags interval; }}
  set host_ports {{ type ifname . inet_proto . inet_service; }}
  # bridges whose VMs may ask the cloud that the host is in for its secrets
  set link_local {{ type ifname; }}
  # what each VM may have of conntrack, and where those may send whose network or definition says so
  map outgoing {{ type ifname . ether_addr : verdict; counter; }}
  map network_egress {{ type ifname : verdict; }}
  map egress4 {{ type ipv4_addr : verdict; }}
  map egress6 {{ type ipv6_addr : verdict; }}
  # VMs, by the addresses to which connections are counted
  set incoming4 {{ type ipv4_addr; counter; }}
  set incoming6 {{ type ipv6_addr; counter; }}
  # published ports: of every address of the host, and of one
  map any4 {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
  map any6 {{ type inet_proto . inet_service : ipv6_addr . inet_service; }}
  map one4 {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}
  map one6 {{ type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service; }}

  # route_localnet lets the host's 127/8 lead to VMs; VMs are not to reach it
  chain raw {{
    type filter hook prerouting priority -300; policy accept;
    iifname @taps drop
    iifname @bridges ip daddr 127.0.0.0/8 drop
    # before addresses are translated: a host in a cloud may redirect them
    iifname @bridges iifname != @link_local ip daddr 169.254.0.0/16 drop
    iifname @bridges iifname != @link_local ip6 daddr fd00:ec2::254 drop
  }}

  # behind conntrack, which has an entry for a packet by now, and keeps it if the packet is not dropped
  chain count_connections {{
    type filter hook prerouting priority -150; policy accept;
    ct state new ct status ! confirmed iifname . ether saddr vmap @outgoing
  }}

  chain published {{
    dnat ip to ip daddr . meta l4proto . th dport map @one4
    dnat ip to meta l4proto . th dport map @any4
    # the kernel routes ::1 to nowhere but itself
    ip6 daddr ::1 return
    dnat ip6 to ip6 daddr . meta l4proto . th dport map @one6
    dnat ip6 to meta l4proto . th dport map @any6
  }}

  chain prerouting {{
    type nat hook prerouting priority -100; policy accept;
    fib daddr type local jump published
  }}

  chain output {{
    type nat hook output priority -100; policy accept;
    fib daddr type local jump published
  }}

  chain input {{
    type filter hook input priority 0; policy accept;
    iifname @bridges goto guest_input
    iifname . ether saddr @guests goto guest_input
  }}

  chain guest_input {{
    ct state established,related accept
    icmp type echo-request accept
    icmpv6 type {{ 128, 131, 132, 135, 136, 143 }} accept
    iifname . meta l4proto . th dport @host_ports accept
    drop
  }}

  # who is in no map may send everywhere
  chain egress {{
    iifname vmap @network_egress
    ip saddr vmap @egress4
    ip6 saddr vmap @egress6
  }}

  chain forward {{
    type filter hook forward priority 0; policy accept;
    iifname != @bridges oifname != @bridges accept
    # frames that the bridge may carry, shown by br_netfilter
    iifname @bridges oifname @bridges meta mark & {_BRIDGED_MARK} == {_BRIDGED_MARK} accept
    # what a published port leads to is where it goes
    iifname @bridges ct state {{ new, invalid, untracked }} jump egress
    ct status dnat accept
    iifname @bridges oifname @bridges drop
    iifname @bridges accept
    ct state established,related accept
    oifname @routed accept
    drop
  }}

  chain postrouting {{
    type nat hook postrouting priority 100; policy accept;
    oifname "lo" return
    # the first packet of a connection alone comes here
    oifname @bridges ip daddr @incoming4
    oifname @bridges ip6 daddr @incoming6
    oifname @bridges ip saddr 127.0.0.0/8 masquerade
    # to a published port from a VM, whose answer would otherwise go around the host
    oifname @bridges ip saddr @subnets4 ct status dnat masquerade
    oifname @bridges ip6 saddr @subnets6 ct status dnat masquerade
    oifname != @bridges ip saddr @nat4 masquerade
    oifname != @bridges ip6 saddr @nat6 masquerade
  }}
}}
"""

_BRIDGE_NETFILTER = f"""
table inet {TABLE} {{
  chain mark_published {{
    type filter hook prerouting priority -90; policy accept;
    iifname @bridges ct status dnat meta mark set meta mark | {_PUBLISHED_MARK}
  }}

  chain clear_published {{
    type filter hook forward priority -10; policy accept;
    iifname @bridges oifname != @bridges meta mark set meta mark & {_PUBLISHED_CLEARED}
  }}
}}
"""


def number_groups(
    ports: Iterable[PortPlan], known: Mapping[tuple[str, str], int]
) -> dict[tuple[str, str], int]:
    """A number for each group of each bridge; one that has a number keeps it. From 1: 0 is no mark."""
    numbers: dict[tuple[str, str], int] = {}
    used = set(known.values())
    for port in ports:
        if port.group is None:
            continue
        key = (port.bridge.bridge, port.group)
        if key not in numbers:
            number = known.get(key) or next(n for n in range(1, len(used) + 2) if n not in used)
            used.add(number)
            numbers[key] = number
    return numbers
