# SPDX-License-Identifier: Apache-2.0
"""What VMs have on the host's networks while they run: how it is worked out, and how a daemon that comes
later knows of it.

STATE/vms/NAME/port.json is there from before the VM's TAP device is made until after it was removed.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

from hypemand.config.network import NetworkConfig, NetworkUse
from hypemand.errors import InUse
from hypemand.model.document import decode, encode
from hypemand.model.networks import OPEN_GROUP
from hypemand.network.port import BridgePlan, PortPlan
from hypemand.recordfile import BadRecord, encode_record, load_record
from hypemand.vm.record import Lease

_log = logging.getLogger(__name__)


def make_bridge(config: NetworkConfig) -> BridgePlan:
    """A network of the host config as it is to be on the host."""
    return BridgePlan(
        network=config.name,
        bridge=config.bridge,
        ipv4=config.ipv4,
        ipv6=config.ipv6,
        mtu=config.mtu,
        nat=config.nat,
        host_ports=config.host_ports,
        egress=config.egress,
        link_local=config.link_local,
        managed=config.managed,
        dhcp=config.dhcp,
    )


def derive_group(use: NetworkUse, *, isolation: bool) -> str | None:
    """See PortPlan; `isolation` is the network's."""
    if use.group is not None:
        return use.group
    isolated = isolation if use.isolate is None else use.isolate
    return None if isolated else OPEN_GROUP


def derive_connections(use: NetworkUse, config: NetworkConfig) -> int:
    """How many a VM may have: who writes definitions does not loosen what the host's administrator says."""
    return config.connections if use.connections is None else min(use.connections, config.connections)


def make_port(
    vm: str, uid: int, use: NetworkUse, lease: Lease, bridge: BridgePlan, config: NetworkConfig
) -> PortPlan:
    """A VM's port on the bridge of a network."""
    return PortPlan(
        vm=vm,
        uid=uid,
        bridge=bridge,
        mac=lease.mac,
        ipv4=lease.ipv4,
        ipv6=lease.ipv6,
        group=derive_group(use, isolation=config.isolation),
        publish=use.publish,
        bandwidth=use.bandwidth,
        connections=derive_connections(use, config),
        egress=use.egress,
    )


def check_publish(port: PortPlan, others: Iterable[PortPlan]) -> None:
    """Raise InUse if a port of the host that a VM publishes leads to another VM now."""
    for other in others:
        if other.vm == port.vm:
            continue
        for wanted in port.publish:
            if any(wanted.clashes_with(taken) for taken in other.publish):
                raise InUse(
                    f"VM {port.vm} publishes port {wanted.host_port}/{wanted.transport} of this host, which"
                    f" is published by VM {other.vm}",
                    hint=f"publish another port, or stop {other.vm} first",
                )


def _decode_port(document: Any) -> PortPlan:
    port: PortPlan = decode(PortPlan, document)
    return port


# what stands in a port.json that can be read, and: is there anything in its place?
FoundPort: TypeAlias = tuple[PortPlan | None, bool]


class PortFiles:
    """The port.json of all VMs, below `vms`. All of it blocks."""

    def __init__(self, vms: Path) -> None:
        self._vms = vms

    def _path(self, vm: str) -> Path:
        return self._vms / vm / "port.json"

    def write(self, port: PortPlan) -> None:
        """Not synced: it has to outlive the daemon, but not the host, where no TAP device does."""
        path = self._path(port.vm)
        new = path.with_suffix(".new")
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(encode_record(encode(port)))
        new.replace(path)

    def write_all(self, ports: Iterable[PortPlan]) -> None:
        """Write ports of VMs that run down. Where that fails, as on a full disk, they are known all the same,
        and a daemon after this one derives them again."""
        for port in ports:
            try:
                self.write(port)
            except OSError as error:
                _log.error("VM %s: cannot record its network resources: %s", port.vm, error.strerror)

    def find_all(self, vms: Iterable[str]) -> dict[str, FoundPort]:
        """The recorded port of each VM."""
        return {vm: (self.find(vm), self.is_there(vm)) for vm in vms}

    def find(self, vm: str) -> PortPlan | None:
        """The recorded port; None also when it cannot be read."""
        try:
            return load_record(self._path(vm), _decode_port)
        except FileNotFoundError:
            return None
        except (OSError, BadRecord) as error:
            _log.warning("cannot read %s: %s", self._path(vm), error)
            return None

    def is_there(self, vm: str) -> bool:
        """Is there anything in its place, be it such that it cannot be read?"""
        return os.path.lexists(self._path(vm))

    def remove(self, vm: str) -> None:
        """The VM has no port any more."""
        with contextlib.suppress(OSError):
            self._path(vm).unlink()
