# SPDX-License-Identifier: Apache-2.0
"""Fixtures for tests that run VMs on a host."""

from collections.abc import Iterator

import pytest

from tests.host.machine import TestHost
from tests.host.vms import Vms, vms_of


@pytest.fixture
def vms(host: TestHost) -> Iterator[Vms]:
    """The VMs of one test on the host that all tests share. Nothing of them is left afterwards."""
    with vms_of(host) as mine:
        yield mine
