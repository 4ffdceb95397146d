# SPDX-License-Identifier: Apache-2.0
"""Network namespaces: a host of the tests' own, guests behind its TAP devices, a machine at its uplink.

A guest here is the kernel's own network stack in a namespace, behind a TAP device of its own, with a thread
that carries frames to and from the one that a VMM would open.
"""

import ctypes
import fcntl
import os
import select
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from pathlib import Path
from typing import Any

from hypemand.config.network import Bandwidth, HostPort, Publish
from hypemand.network.port import BridgePlan, PortPlan
from tests.host.command import run_command

CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
DEADLINE = 60.0
HOST_UPLINK = "192.0.2.1"
REMOTE = "192.0.2.2"
HOST_UPLINK6 = "2001:db8::1"
REMOTE6 = "2001:db8::2"

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: int) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


class Namespace:
    """A network namespace, there as long as this is open."""

    def __init__(self) -> None:
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _call("unshare", CLONE_NEWNET)
            self._fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            ip("link", "set", "lo", "up")
        finally:
            _call("setns", before, CLONE_NEWNET)
            os.close(before)

    @property
    def path(self) -> str:
        """Its name for ip(8)."""
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    @contextmanager
    def entered(self) -> Iterator[None]:
        """This thread, and what it starts, is in the namespace; sockets stay there."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _call("setns", self._fd, CLONE_NEWNET)
            yield
        finally:
            _call("setns", before, CLONE_NEWNET)
            os.close(before)

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        with self.entered():
            made = socket.socket(family, kind, protocol)
        made.settimeout(DEADLINE)
        return made

    def close(self) -> None:
        os.close(self._fd)


def ip(*words: str) -> None:
    run_command(["ip", *words], timeout=DEADLINE)


def set_sysctl(name: str, value: str) -> None:
    Path("/proc/sys/net", name).write_text(value)


def open_tap(name: str) -> int:
    """A descriptor of a TAP device, as a VMM has it; frames without a header of virtio."""
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return tap


class Guest:
    """A machine with a network stack behind a VM's TAP device. Made in the host's namespace."""

    def __init__(self, port: PortPlan, stack: ExitStack) -> None:
        self.port = port
        self.namespace = Namespace()
        stack.callback(self.namespace.close)
        outer = open_tap(port.tap)
        with self.namespace.entered():
            inner = open_tap("eth0")
            ip("link", "set", "eth0", "address", port.mac, "mtu", str(port.bridge.mtu))
            set_sysctl("ipv6/conf/eth0/accept_dad", "0")
            set_sysctl("ipv4/icmp_ratelimit", "0")
            ip("link", "set", "eth0", "up")
            self._set_addresses()
        self._wake, other = os.pipe()
        self._pump = threading.Thread(target=self._carry, args=(outer, inner, self._wake), daemon=True)
        self._pump.start()
        stack.callback(self._stop, other, outer, inner)

    def _set_addresses(self) -> None:
        plan = self.port.bridge
        if self.port.ipv4 is not None and plan.ipv4 is not None:
            ip("addr", "add", f"{self.port.ipv4}/{plan.ipv4.network.prefixlen}", "dev", "eth0")
            ip("route", "add", "default", "via", str(plan.ipv4.ip))
        if self.port.ipv6 is not None and plan.ipv6 is not None:
            ip("addr", "add", f"{self.port.ipv6}/{plan.ipv6.network.prefixlen}", "dev", "eth0", "nodad")
            ip("route", "add", "default", "via", str(plan.ipv6.ip), "dev", "eth0")

    def _carry(self, outer: int, inner: int, wake: int) -> None:
        others = {outer: inner, inner: outer}
        while True:
            ready, _, _ = select.select([outer, inner, wake], [], [])
            if wake in ready:
                return
            for source in ready:
                with suppress(OSError):
                    while True:
                        os.write(others[source], os.read(source, 65536))

    def _stop(self, wake: int, *descriptors: int) -> None:
        os.close(wake)
        self._pump.join()
        for descriptor in (*descriptors, self._wake):
            os.close(descriptor)

    def serve(self, transport: int, port: int) -> socket.socket:
        return serve(self.namespace, transport, port)


class Cable:
    """Another machine, on a wire with the host: `eth0` on both sides."""

    def __init__(self, host: Namespace, stack: ExitStack) -> None:
        self.namespace = Namespace()
        stack.callback(self.namespace.close)
        with host.entered():
            ip("link", "add", "eth0", "type", "veth", "peer", "name", "far0")
            ip("link", "set", "far0", "netns", self.namespace.path, "name", "eth0")
            _bring_up(f"{HOST_UPLINK}/24", f"{HOST_UPLINK6}/64")
        with self.namespace.entered():
            _bring_up(f"{REMOTE}/24", f"{REMOTE6}/64")


def _bring_up(address: str, address6: str) -> None:
    set_sysctl("ipv6/conf/eth0/accept_dad", "0")
    ip("addr", "add", address, "dev", "eth0")
    ip("addr", "add", address6, "dev", "eth0", "nodad")
    ip("link", "set", "eth0", "up")


def serve(namespace: Namespace, transport: int, port: int) -> socket.socket:
    """A socket that takes what comes to a port, by IPv4 and IPv6."""
    server = namespace.socket(socket.AF_INET6, transport)
    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("::", port))
    if transport == socket.SOCK_STREAM:
        server.listen(8)
    return server


def connect(namespace: Namespace, address: str, port: int, timeout: float = DEADLINE) -> socket.socket:
    """A TCP connection from within a namespace. Raises OSError."""
    client = namespace.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    client.settimeout(timeout)
    try:
        client.connect((address, port))
    except BaseException:
        client.close()
        raise
    client.settimeout(DEADLINE)
    return client


def reaches(
    namespace: Namespace, address: str, port: int, server: socket.socket, timeout: float = DEADLINE
) -> str | None:
    """Does a connection from within `namespace` come to `server`? The address that it comes from, or None."""
    try:
        client = connect(namespace, address, port, timeout)
    except OSError:
        return None
    with client:
        taken, (peer, *_) = server.accept()
        with taken:
            client.sendall(b"hello")
            assert taken.recv(5) == b"hello"
            taken.sendall(b"there")
            assert client.recv(5) == b"there"
    return str(peer).removeprefix("::ffff:")


def make_bridge(
    network: str = "default", bridge: str = "hypeman0", number: int = 0, **changes: Any
) -> BridgePlan:
    plan = BridgePlan(
        network=network,
        bridge=bridge,
        ipv4=IPv4Interface(f"10.77.{number}.1/24"),
        ipv6=IPv6Interface(f"fd77:{number:x}::1/64"),
        mtu=1500,
        nat=True,
        host_ports=frozenset[HostPort](),
    )
    return replace(plan, **changes)


def make_port(bridge: BridgePlan, number: int, **changes: Any) -> PortPlan:
    """The VM of that number, from 1."""
    assert bridge.ipv4 is None or isinstance(bridge.ipv4.ip, IPv4Address)
    port = PortPlan(
        vm=f"vm{number}",
        uid=61200 + number,
        bridge=bridge,
        mac=f"52:54:00:00:{number >> 8:02x}:{number & 255:02x}",
        ipv4=bridge.ipv4.ip + number if bridge.ipv4 is not None else None,
        ipv6=IPv6Address(int(bridge.ipv6.ip) + number) if bridge.ipv6 is not None else None,
        group=None,
        publish=tuple[Publish, ...](),
        bandwidth=Bandwidth(),
    )
    return replace(port, **changes)
