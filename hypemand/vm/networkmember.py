# SPDX-License-Identifier: Apache-2.0
"""A VM as its network knows it, and its network as the VM knows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from hypemand.config.network import NetworkUse
from hypemand.model.networks import VmNetwork
from hypemand.vm.record import Lease


@dataclass(frozen=True, slots=True)
class NetworkMember:
    """A VM: `use` is its network by its definition, `running` by the one that it runs with, if it does.
    `short_name`: see `Member`."""

    vm: str
    vm_id: str
    uid: int
    use: NetworkUse | None
    lease: Lease | None
    running: NetworkUse | None = None
    short_name: bool = True


class NetworkHost(Protocol):
    """What a VM needs of the networks: `hypemand.manager.net.networks.Networks`."""

    async def detach(self, vm: str) -> None:
        """Give back what a VM had on its network."""

    def view(self, member: NetworkMember) -> VmNetwork | None:
        """A picture of the VM's network; None: it has none."""

    def is_outdated(self, vm: str) -> bool:
        """Is the VM on a network that is to change when it is started again?"""

    def is_on_lan(self, vm: str) -> bool:
        """Is it on a bridge that is not hypemand's, behind which others learn where it is?"""

    def interface_of(self, vm: str) -> str | None:
        """The VM's TAP device, while there is one."""
