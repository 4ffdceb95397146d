# SPDX-License-Identifier: Apache-2.0
"""Fixtures for tests that run VMs on a host."""

from collections.abc import Iterator

import pytest

from tests.host.lab import boot_hosts
from tests.host.machine import TestHost
from tests.host.netlab import Wired, install_probe
from tests.host.recipe import Suite
from tests.host.vms import Vms, vms_of
from tests.host.wire import lay_wire


@pytest.fixture
def vms(host: TestHost) -> Iterator[Vms]:
    """The VMs of one test on the host that all tests share. Nothing of them is left afterwards."""
    with vms_of(host) as mine:
        yield mine


@pytest.fixture(scope="session")
def wired(suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wired]:
    """Two hosts on a wire, for all tests of networks: leave them as you found them. The first reaches all
    that is not its own by the second, as by a router; the second is in no network of the first."""
    folder = tmp_path_factory.mktemp("netprobe")
    with boot_hosts([suite, suite]) as (a, b), lay_wire(a, b) as wire:
        wired = Wired(a, b, wire, folder)
        wired.route()
        for host in (a, b):
            install_probe(host, folder)
        wired.equip_b()
        yield wired
