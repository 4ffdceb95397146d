# SPDX-License-Identifier: Apache-2.0
"""What a daemon that starts does about the one before it: first learn, which nothing may keep it from, and
clean up when it serves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from hypemand.errors import HypemandError
from hypemand.manager.inventory import Inventory
from hypemand.manager.vm import Vm
from hypemand.systemd.units import Units
from hypemand.tasks import Tasks
from hypemand.unitnames import unit_name
from hypemand.workers import Pool, run_in

_log = logging.getLogger(__name__)
# for what systemd has to tell of all VMs before the daemon serves: it takes milliseconds for each
_DEADLINE = 10.0
# between two questions to a systemd that does not answer
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0


@contextmanager
def logged(what: str) -> Iterator[None]:
    """Nothing that goes wrong in the block keeps the daemon from what comes after it."""
    try:
        yield
    except (HypemandError, OSError) as error:
        _log.error("%s: %s", what, error)
    except Exception:
        _log.exception("%s", what)


async def recover_vms(vms: Sequence[Vm], deadline: float = _DEADLINE) -> None:
    """Learn from systemd what the VMs do. Those that it tells nothing of in time are Unknown."""
    if not vms:
        return
    async with Tasks("VMs") as tasks:
        looks = [tasks.start(f"recovery of VM {vm.name}", vm.recover()) for vm in vms]
        _, late = await asyncio.wait(looks, timeout=deadline)
    if late:
        _log.error("systemd does not report the state of %d VMs: they are Unknown until it does", len(late))


async def ask_again(vms: Sequence[Vm]) -> None:
    """Until systemd has told of each VM. One that cannot be asked for another reason is left."""
    pause = _FIRST_PAUSE
    left: set[str] = set()
    while unknown := [vm for vm in vms if not (vm.is_known or vm.operations.closed or vm.name in left)]:
        found = await asyncio.gather(*(vm.refresh() for vm in unknown), return_exceptions=True)
        for vm, error in zip(unknown, found, strict=True):
            if isinstance(error, Exception):
                _log.error("cannot query VM %s", vm.name, exc_info=error)
                left.add(vm.name)
        if not all(vm.is_known for vm in unknown):
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)


async def stop_unknown(
    units: Units, found: Iterable[str], inventory: Inventory, is_known: Callable[[str], bool]
) -> None:
    """Stop the units of VMs that are not known: `found` are the VMs that have one. Let go of uids that only
    such a VM can have had."""
    unknown = [name for name in found if not is_known(name)]
    for name in unknown:
        _log.warning("the unit of VM %s does not belong to a known VM: stopping it", name)
        await units.stop(unit_name(name))
    if unknown:
        return  # a uid may be theirs: the daemon sees to it when it starts again
    for uid in await run_in(Pool.RECORDS, inventory.find_lost_uids):
        await run_in(Pool.RECORDS, inventory.free_uid, uid)
