# SPDX-License-Identifier: Apache-2.0
"""Bandwidth limits: a transfer keeps to them, in both directions."""

import socket
import threading
import time
from collections.abc import Callable

import pytest

from hypemand.config.network import Bandwidth
from hypemand.network.limits import derive_bucket
from hypemand.network.port import PortPlan
from hypemand.network.reconcile import HostNetworks
from tests.unit.network.lab import REMOTE, Cable, Guest, Namespace, connect, make_bridge, make_port, serve

SECONDS = 2.0
CHUNK = bytes(64 * 1024)


def measure(client: Namespace, address: str, server: socket.socket, *, upload: bool) -> float:
    """Bytes per second of a transfer, as who gets them counts them."""
    with connect(client, address, server.getsockname()[1]) as one:
        other, _ = server.accept()
        with other:
            source, target = (one, other) if upload else (other, one)
            feeder = threading.Thread(target=feed, args=(source,))
            feeder.start()
            count, start = 0, time.monotonic()
            while time.monotonic() - start < SECONDS:
                count += len(target.recv(len(CHUNK)))
            rate = count / (time.monotonic() - start)
            one.shutdown(socket.SHUT_RDWR)
            other.shutdown(socket.SHUT_RDWR)
            feeder.join()
    return rate


def feed(source: socket.socket) -> None:
    try:
        while True:
            source.sendall(CHUNK)
    except OSError:
        pass


@pytest.mark.parametrize("limit", [500_000, 10_000_000])
@pytest.mark.parametrize("upload", [False, True], ids=["download", "upload"])
def test_a_transfer_keeps_to_the_limit(
    networks: HostNetworks,
    cable: Cable,
    start_guest: Callable[[PortPlan], Guest],
    limit: int,
    upload: bool,
) -> None:
    plan = make_bridge()
    networks.apply((plan,), (), prune=True)
    bandwidth = Bandwidth(upload=limit) if upload else Bandwidth(download=limit)
    guest = start_guest(make_port(plan, 1, bandwidth=bandwidth))
    with serve(cable.namespace, socket.SOCK_STREAM, 5001) as server:
        rate = measure(guest.namespace, REMOTE, server, upload=upload)
    assert 0.9 <= rate / limit <= 1.05


@pytest.mark.parametrize("rate", [1, 1000, 10**6, 10**9, 2**32, 10**12])
def test_every_rate_has_a_bucket_that_the_kernel_takes(networks: HostNetworks, rate: int) -> None:
    plan = make_bridge(mtu=9000)
    networks.apply((plan,), (), prune=True)
    networks.attach(make_port(plan, 1, bandwidth=Bandwidth(rate, rate)))
    bucket = derive_bucket(rate, 9000)
    assert bucket["burst"] > 9018
    assert bucket["limit"] > bucket["burst"]
