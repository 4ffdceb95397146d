# SPDX-License-Identifier: Apache-2.0
"""A unit of an earlier run that systemd has not unloaded, since it has failed or has processes left: it is
cleared away, so that its VM can be started."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import time
from collections.abc import Iterable
from contextlib import ExitStack, suppress

from hypemand.errors import WrongState
from hypemand.systemd.bus import BusError
from hypemand.systemd.units import UnitPlan, Units
from hypemand.unitnames import unit_name

_log = logging.getLogger(__name__)
# for processes to end by SIGKILL: all do at once but those that the kernel holds
_DEADLINE = 5.0
# what forks while it is being killed is looked for again
_ROUNDS = 3
# The kernel reports an empty control group up to 10 ms after its last process has ended, and systemd forgets
# the unit some time after that. It signals that, but for all units of the host: not worth a subscription.
_RELEASE_DEADLINE, _RELEASE_PAUSE = 2.0, 0.01


async def start_unit(units: Units, plan: UnitPlan) -> None:
    """Make and start a VM's unit; back when systemd has taken the job. A unit that is there already, and is
    over, is cleared away first. WrongState if that is not possible, or it is not over; BusError."""
    unit = unit_name(plan.vm)
    held = await _try(units, plan)
    if held is None:
        return
    await _clear(units, unit)
    deadline = time.monotonic() + _RELEASE_DEADLINE
    while (held := await _try(units, plan)) is not None:
        if time.monotonic() >= deadline:
            raise WrongState(
                f"systemd still has the unit {unit} of an earlier run: {held.message}",
                hint=f"systemctl kill -s KILL {unit}; systemctl reset-failed {unit}",
            )
        await asyncio.sleep(_RELEASE_PAUSE)


async def _try(units: Units, plan: UnitPlan) -> BusError | None:
    """Start the unit, or what systemd says if it still has one of that name."""
    try:
        await units.start_transient(plan)
    except BusError as error:
        if error.number != errno.EEXIST:
            raise
        return error
    return None


async def _clear(units: Units, unit: str) -> None:
    """End what is left of the unit. WrongState, and nothing is done, if it is not over, or masked."""
    if await units.is_masked(unit):
        raise WrongState(f"the unit {unit} is masked", hint=f"systemctl unmask {unit}")
    status = await units.status(unit)
    if status.is_live:
        raise WrongState(f"the unit {unit} is {status.active_state} already", hint=f"systemctl status {unit}")
    _log.warning("systemd still has the unit %s of an earlier run: ending what is left of it", unit)
    try:
        async with asyncio.timeout(_DEADLINE):
            for _ in range(_ROUNDS):
                pids = await units.processes(unit)
                if not pids:
                    break
                await _kill(units, unit, pids)
    except TimeoutError:
        _log.error("processes of the unit %s do not end by SIGKILL", unit)
    await units.reset_failed(unit)


async def _kill(units: Units, unit: str, pids: Iterable[int]) -> None:
    """Kill all processes of the unit, and wait for the end of these."""
    loop = asyncio.get_running_loop()
    with ExitStack() as stack:
        ends = []
        for pid in pids:
            with suppress(ProcessLookupError):
                fd = os.pidfd_open(pid)
                stack.callback(os.close, fd)
                end = asyncio.Event()
                loop.add_reader(fd, end.set)
                stack.callback(loop.remove_reader, fd)
                ends.append(end)
        await units.kill(unit, signal.SIGKILL, everything=True)
        for end in ends:
            await end.wait()
