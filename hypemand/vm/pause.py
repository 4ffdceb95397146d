# SPDX-License-Identifier: Apache-2.0
"""Pauses and resumes a VM. The caller holds the VM's lock."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from hypemand.errors import GuestError, HypemandError, TimedOut
from hypemand.model.evidence import RunState
from hypemand.model.state import Operation, check_allowed
from hypemand.vm.session import Session
from hypemand.vm.vm import Vm
from hypemand.vmm.driver import VmmError, VmmTimeout


async def pause(vm: Vm) -> None:
    """Stop the CPUs of a VM until `resume`. WrongState, TimedOut, GuestError."""
    await vm.refresh()
    check_allowed(Operation.PAUSE, vm.state, vm.name, vm.state_error)
    await _ask(vm, "pause", Session.pause)
    # a disk that was full at this very moment has paused it before we did, and it goes on without being asked
    if vm.session is not None and vm.session.run_state is RunState.IO_ERROR:
        check_allowed(Operation.PAUSE, vm.state, vm.name, vm.state_error)


async def resume(vm: Vm) -> None:
    """Let a VM go on, whatever it was paused for, also one whose boot a full disk has stopped. WrongState,
    TimedOut, GuestError."""
    await vm.refresh()
    if vm.session is None or not vm.session.run_state.is_halted:
        check_allowed(Operation.RESUME, vm.state, vm.name)
    await _ask(vm, "resume", Session.resume)


async def resume_to_end(vm: Vm) -> None:
    """Let a VM go on that is about to be stopped, so that it can end in order. One that cannot is ended by
    force later, and logged."""
    if vm.session is not None and vm.session.run_state.is_halted:
        try:
            await _ask(vm, "resume", Session.resume)
        except HypemandError as error:
            vm.log(logging.WARNING, f"VM {vm.name} cannot be shut down gracefully: {error}")


async def _ask(vm: Vm, what: str, order: Callable[[Session], Awaitable[None]]) -> None:
    with reach_session(vm, f"{what} VM {vm.name}") as session:
        await order(session)
    await vm.refresh()


@contextmanager
def reach_session(vm: Vm, what: str) -> Iterator[Session]:
    """The connections to its VMM, in a block that does `what`. GuestError when there are none, and for what
    the VMM refuses there; TimedOut."""
    if vm.session is None:
        raise GuestError(f"cannot {what}: its VMM is not reachable", hint="try again")
    try:
        yield vm.session
    except VmmTimeout as error:
        raise TimedOut(f"cannot {what}: {error}", hint="see hypemanctl status") from None
    except VmmError as error:
        raise GuestError(f"cannot {what}: {error}", hint="see hypemanctl status") from None
