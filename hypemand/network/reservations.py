# SPDX-License-Identifier: Apache-2.0
"""Reserves published ports with sockets that are bound and do not listen.

So a port that a program of the host has is found when the VM starts, and a program that comes later gets an
error, rather than both thinking that it is theirs. Connections never get to these sockets:
they are led to the VM before.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from ipaddress import ip_address

from hypemand.config.netparse import format_publish
from hypemand.config.network import Publish, Transport
from hypemand.errors import HostNotReady, InUse, InvalidDefinition, Problem
from hypemand.network.listeners import find_holder, has_holder, leaves_addresses
from hypemand.network.port import PortPlan
from hypemand.network.sysctl import has_ipv6

_IP_FREEBIND = 15
_KINDS = {Transport.TCP: socket.SOCK_STREAM, Transport.UDP: socket.SOCK_DGRAM}
_ANY: Mapping[int, str] = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}


@dataclass(frozen=True, slots=True)
class _Place:
    """A port of the host, of one address or of all of one family. `publish`: what it is for."""

    family: int
    address: str
    transport: Transport
    port: int
    publish: Publish = field(compare=False)

    def __str__(self) -> str:
        text = f"{self.port}/{self.transport}"
        if self.address == _ANY[self.family]:
            return text
        return f"[{self.address}]:{text}" if self.family == socket.AF_INET6 else f"{self.address}:{text}"


class Reservations:
    """The published ports of all VMs."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[PortPlan, dict[_Place, socket.socket | None]]] = {}

    def take(self, port: PortPlan) -> None:
        """Reserve all ports that a VM publishes, and release its others. All or none.

        Raises InUse when another VM or a program of the host has one; InvalidDefinition when one cannot be
        led to the VM; HostNotReady when the kernel gives none.
        """
        self._check_clashes(port)
        old = self._held.get(port.uid)
        held: dict[_Place, socket.socket | None] = {}
        try:
            for place in _derive_places(port):
                kept = old[1].get(place) if old is not None else None
                held[place] = kept if kept is not None else _bind(place)
        except BaseException:
            _close(held, keep=old[1] if old is not None else {})
            raise
        if old is not None:
            _close(old[1], keep=held)
        self._held[port.uid] = (port, held)

    def complete(self) -> bool:
        """Hold what could not be held yet (see _bind); is there nothing left of that kind?"""
        for _, held in self._held.values():
            for place, taken in held.items():
                if taken is None:
                    with suppress(InUse, HostNotReady):  # somebody was faster
                        held[place] = _bind(place)
        return all(taken is not None for _, held in self._held.values() for taken in held.values())

    def release(self, uid: int) -> None:
        """Release all ports of a VM."""
        if (entry := self._held.pop(uid, None)) is not None:
            _close(entry[1], keep={})

    def release_others(self, uids: Iterable[int]) -> None:
        """Release the ports of all VMs but these."""
        for uid in set(self._held) - set(uids):
            self.release(uid)

    def _check_clashes(self, port: PortPlan) -> None:
        others = [other for uid, (other, _) in self._held.items() if uid != port.uid]
        for number, publish in enumerate(port.publish):
            for other in others:
                if any(publish.clashes_with(taken) for taken in other.publish):
                    what = f"port {publish.where} is published by VM {other.vm}"
                    raise InUse(what, hint="publish another port")
            if any(publish.clashes_with(before) for before in port.publish[:number]):
                raise InUse(f"port {publish.where} is published twice by VM {port.vm}")


def _derive_places(port: PortPlan) -> Iterator[_Place]:
    families = []
    if port.ipv4 is not None:
        families.append(socket.AF_INET)
    if port.ipv6 is not None and has_ipv6():
        families.append(socket.AF_INET6)
    for publish in port.publish:
        found = False
        for family in families:
            if publish.address is None:
                found = True
                yield _Place(family, _ANY[family], publish.transport, publish.host_port, publish)
            elif publish.address.version == (4 if family == socket.AF_INET else 6):
                found = True
                yield _Place(family, str(publish.address), publish.transport, publish.host_port, publish)
        if not found:
            raise _no_way(port, publish)


def _no_way(port: PortPlan, publish: Publish) -> InvalidDefinition:
    what = f"IPv{publish.address.version} address" if publish.address is not None else "address"
    return InvalidDefinition(
        [Problem("", 0, 0, "network.publish", f"port {publish.host_port}: VM {port.vm} has no {what}")]
    )


def _bind(place: _Place) -> socket.socket | None:
    """A bound socket. None: the port is free, but the kernel still remembers old connections to it
    (TIME-WAIT) of a program that let nobody share them; it can be held later."""
    try:
        return _open(place, share=False)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise HostNotReady(f"port {place} cannot be reserved: {error.strerror}") from None
    what = (place.transport, ip_address(place.address), place.port)
    if place.transport is Transport.TCP:
        with suppress(OSError):
            taken = _open(place, share=True)
            if not has_holder(*what):
                return taken
            taken.close()
        if not has_holder(*what):
            return None
    holder = find_holder(*what)
    cure = "publish another port, or stop that program"
    if leaves_addresses(*what):  # as systemd-resolved, which has port 53 of 127.0.0.53
        address = "[ADDRESS]" if place.family == socket.AF_INET6 else "ADDRESS"
        one = replace(place.publish, address=None)
        cure = f"publish it at {address}:{format_publish(one)}, one address of the host, or stop that program"
    raise InUse(f"port {place} of the host is in use{f' by {holder}' if holder else ''}", hint=cure)


def _open(place: _Place, *, share: bool) -> socket.socket:
    taken = socket.socket(place.family, _KINDS[place.transport] | socket.SOCK_CLOEXEC)
    try:
        if place.family == socket.AF_INET6:
            taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # an address that the host does not have now may come, as with an uplink
        taken.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(share))
        taken.bind((place.address, place.port))
        # nobody is to share it from now on
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except BaseException:
        taken.close()
        raise
    return taken


def _close(held: dict[_Place, socket.socket | None], *, keep: dict[_Place, socket.socket | None]) -> None:
    kept = set(map(id, keep.values()))
    for taken in held.values():
        if taken is not None and id(taken) not in kept:
            taken.close()
