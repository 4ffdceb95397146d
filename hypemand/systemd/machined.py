# SPDX-License-Identifier: Apache-2.0
"""Registration with systemd-machined, so that machinectl knows the VMs."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from hypemand.systemd.bus import BusError
from hypemand.systemd.port import Bus

_SERVICE = "org.freedesktop.machine1"
_PATH = "/org/freedesktop/machine1"
_REGISTER = "org.freedesktop.machine1.Manager.RegisterMachineWithNetwork"


async def register_machine(
    bus: Bus, name: str, vm_id: str, leader: int, interfaces: Sequence[int] = ()
) -> bool:
    """Register a VM under its name. The leader is the process that machinectl signals; the unit follows from
    its control group. `vm_id` is 32 hex digits, `interfaces` the indexes of the host's ends of its network.
    False: there is no machined. Raises BusError otherwise."""
    identity = (name, bytes.fromhex(vm_id), "hypemand", "vm", leader, "")
    try:
        await bus.call(_SERVICE, _PATH, _REGISTER, [("sayssusai", (*identity, list(interfaces)))])
    except BusError as error:
        if error.number == errno.EEXIST:
            return True
        # ServiceUnknown and friends: not installed, or masked
        if error.number in (errno.EHOSTUNREACH, errno.ENOENT, errno.EHOSTDOWN, errno.ENXIO):
            return False
        raise
    return True
