# SPDX-License-Identifier: Apache-2.0
"""TAP devices for the launchers of VMs (launcher/tap.h), and detection of changes to them.

Whoever connects has asked, and which device is meant follows from the uid that the kernel says it has. So it
works when systemd starts a VM alone, and nothing is read from the other end.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections.abc import Callable, Iterable, Iterator

from hypemand.errors import HypemandError
from hypemand.network.failures import told_by_kernel
from hypemand.network.links import Link, Links, derive_tap_mac, is_ours
from hypemand.network.port import PortPlan

_log = logging.getLogger(__name__)
_CREDENTIALS = struct.Struct("=iII")  # ucred: pid, uid, gid
_GIVEN, _REFUSED = b"F", b"E"
_MOST_TEXT = 400
# requests that are answered in one turn of the event loop
_MOST_AT_ONCE = 16


class TapDoor:
    """Answers all requests that come to `listener`. `open_tap` opens the device of a VMM's uid, or raises
    HypemandError."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, listener: socket.socket, open_tap: Callable[[int], int]
    ) -> None:
        self._loop = loop
        self._listener = listener
        self._open_tap = open_tap
        loop.add_reader(listener, self._accept)

    def close(self) -> None:
        """Answer no more. The listener is systemd's, where requests wait for the next service."""
        self._loop.remove_reader(self._listener)
        self._listener.close()

    def _accept(self) -> None:
        for _ in range(_MOST_AT_ONCE):
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:  # it has gone, or there are no descriptors: the next may do
                _log.warning("cannot take a request for a TAP device: %s", error.strerror)
                return
            with connection:
                connection.setblocking(False)
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        uid = find_peer(connection)
        try:
            fd = self._open_tap(uid)
        except HypemandError as error:
            _log.warning("no TAP device for uid %d: %s", uid, error)
            self._send(connection, _REFUSED + str(error).encode()[:_MOST_TEXT])
            return
        try:
            self._send(connection, _GIVEN, fd)
        finally:
            os.close(fd)

    def _send(self, connection: socket.socket, packet: bytes, *fds: int) -> None:
        try:
            socket.send_fds(connection, [packet], fds)
        except OSError as error:  # a launcher that systemd has ended meanwhile
            _log.debug("a request for a TAP device has ended: %s", error)


def find_peer(connection: socket.socket) -> int:
    """The uid of whoever has connected, unix(7)."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(data)
    return int(uid)


def mend_taps(
    links: Links,
    suspects: Iterable[PortPlan],
    everybody: Iterable[PortPlan],
    derive_flags: Callable[[PortPlan], dict[str, bool]],
) -> Iterator[tuple[str, str | None]]:
    """Of the TAP devices of `suspects`, repair those whose MAC or owner was changed: each VM, and what it
    was, or None. A VMM can do neither, unless it was taken over and has got around launcher/filter.c.

    The owner is put back when the device is opened the next time. The bridge of a device that had a guest's
    MAC has forgotten where that guest is, and gets all of them again.
    """
    for port in suspects:
        try:
            with told_by_kernel(f"VM {port.vm}"):
                link = links.find(port.tap)
                what = None if link is None else find_tampering(link, port.uid)
                if link is not None and link.mac != derive_tap_mac(port.uid):
                    links.mend_mac(link, port.uid)
                    _restore_neighbours(links, port, everybody, derive_flags)
        except HypemandError as error:
            what = f"its interface {port.tap} cannot be repaired: {error}"
        yield port.vm, what


def find_tampering(link: Link, uid: int) -> str | None:
    """What of the TAP device of a VMM's uid somebody has made another; None: nothing."""
    mac = derive_tap_mac(uid)
    if link.mac != mac:
        return f"the MAC address of its interface {link.name} was changed from {mac} to {link.mac}"
    if link.owner != uid:
        return f"its interface {link.name} had its owner changed from user {uid} to {link.owner}"
    return None


def _restore_neighbours(
    links: Links,
    port: PortPlan,
    everybody: Iterable[PortPlan],
    derive_flags: Callable[[PortPlan], dict[str, bool]],
) -> None:
    for other in everybody:
        found = links.find(other.tap)
        if other.bridge.bridge == port.bridge.bridge and found is not None and is_ours(found):
            links.set_port(found.index, other.mac, **derive_flags(other))
