# SPDX-License-Identifier: Apache-2.0
"""A host in a network namespace, for tests of what the kernel does."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from hypemand.network.port import PortPlan
from hypemand.network.reconcile import HostNetworks
from tests.unit.network.lab import Cable, Guest, Namespace


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def host_namespace(stack: ExitStack) -> Namespace:
    """A namespace in which the test itself runs."""
    namespace = Namespace()
    stack.callback(namespace.close)
    stack.enter_context(namespace.entered())
    return namespace


@pytest.fixture
def networks(host_namespace: Namespace, stack: ExitStack) -> HostNetworks:
    """The host's networks, with nothing there."""
    del host_namespace  # in which all of it happens
    networks = HostNetworks()
    stack.callback(networks.close)
    return networks


@pytest.fixture
def cable(host_namespace: Namespace, stack: ExitStack) -> Cable:
    return Cable(host_namespace, stack)


@pytest.fixture
def start_guest(networks: HostNetworks, stack: ExitStack) -> Callable[[PortPlan], Guest]:
    """Attaches a VM and starts a machine behind its TAP device."""

    def start(port: PortPlan) -> Guest:
        networks.attach(port)
        return Guest(port, stack)

    return start
