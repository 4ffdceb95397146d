# SPDX-License-Identifier: Apache-2.0
"""What lasts of a VM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address

from hypemand.config.definition import Definition
from hypemand.errors import WrongState
from hypemand.model.change import VmChange
from hypemand.model.schedules import SnapshotSchedule
from hypemand.model.state import Origin

MAX_FORMER_NAMES = 8
"""Names of a VM that are kept after it was renamed."""
MAX_FORMER_IDS = 16
"""Ids of VMs that its disk was of, which are kept: forks of forks that have never run."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A VM's place in a network."""

    network: str
    mac: str
    ipv4: IPv4Address | None = None
    ipv6: IPv6Address | None = None


def lease_to_json(lease: Lease) -> dict[str, str | None]:
    """The lease in the format of the VM's record."""
    return {
        "network": lease.network,
        "mac": lease.mac,
        "ipv4": None if lease.ipv4 is None else str(lease.ipv4),
        "ipv6": None if lease.ipv6 is None else str(lease.ipv6),
    }


def lease_from_json(document: Mapping[str, str | None]) -> Lease:
    """The opposite. KeyError, TypeError and ValueError for anything else."""
    network, mac, ipv4, ipv6 = (document[key] for key in ("network", "mac", "ipv4", "ipv6"))
    if not isinstance(network, str) or not isinstance(mac, str):
        raise ValueError("a lease has a network and a MAC address")
    if not all(address is None or isinstance(address, str) for address in (ipv4, ipv6)):
        raise ValueError("an address is a string")  # of a number ipaddress would make one
    return Lease(network, mac, IPv4Address(ipv4) if ipv4 else None, IPv6Address(ipv6) if ipv6 else None)


@dataclass(frozen=True, slots=True)
class ImagePin:
    """The content that a VM keeps to while its definition says `name`."""

    name: str
    digest: str


@dataclass(frozen=True, slots=True)
class Imported:
    """What a VM has from an archive, or from its source: its id, its addresses if it keeps them, and the ids
    of the VMs whose disk it has."""

    id: str
    lease: Lease | None = None
    former_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class VmRecord:
    """What lasts of a VM. `id` is 32 hex digits, `created_at` seconds since the epoch. `pin`: what it was
    started with last; None: nothing yet, or an image that a package may change. `lease`: of the network that
    it was started on last. `short_name`: the host knows it by its bare name too, which can hide a name of
    DNS, and so is not for a VM that somebody other than root has made. `expires_at`: when its lifetime is
    over, in seconds since the epoch; None: never. `former_names`: those that it had before, the last one at
    the end. `former_ids`: of the VMs that its disk was of, the last one first. `schedule`: of its
    snapshots."""

    name: str
    id: str
    uid: int
    origin: Origin
    created_at: float
    definition: Definition
    pin: ImagePin | None = None
    lease: Lease | None = None
    short_name: bool = True
    expires_at: float | None = None
    former_names: tuple[str, ...] = ()
    former_ids: tuple[str, ...] = ()
    schedule: SnapshotSchedule | None = None

    def rename(self, name: str) -> VmRecord:
        """The same of another name."""
        names = tuple(old for old in (*self.former_names, self.name) if old != name)
        definition = replace(self.definition, name=name)
        return replace(self, name=name, definition=definition, former_names=names[-MAX_FORMER_NAMES:])

    def has_expired(self, now: float) -> bool:
        """Is its lifetime over?"""
        return self.expires_at is not None and self.expires_at <= now

    def apply(self, change: VmChange, now: float) -> VmRecord:
        """As it is after a change. `now`: seconds since the epoch. Raises WrongState when its lifetime is
        over, InvalidDefinition."""
        if self.has_expired(now):
            raise WrongState(f"VM {self.name} has expired, and is about to be deleted")
        lifetime, redefine = change.lifetime, change.redefine
        end = self.expires_at if lifetime is None else lifetime.derive_end(now)
        definition = self.definition if redefine is None else redefine(self.definition)
        return replace(self, definition=definition, expires_at=end)

    @property
    def image_digest(self) -> str:
        """The digest of the content that it is pinned to; "": none, its image's name decides."""
        return self.pin.digest if self.pin is not None and self.pin.name == self.definition.image else ""
