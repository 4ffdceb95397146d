# SPDX-License-Identifier: Apache-2.0
"""VMs whose lifetime is over are deleted: once, unless that was changed, and with no timer for the others."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from hypemand.errors import HostNotReady, WrongState
from hypemand.manager.expiry import Expiry, Term
from hypemand.model.change import VmChange
from hypemand.model.lifetime import Lifetime
from hypemand.model.state import Operation, State
from tests.fakes.host import DEADLINE, FakeHost, define, drive

SOON = 0.15


async def create(host: FakeHost, ttl: float, *, start: bool = False) -> None:
    await host.manager.create_vm(define(), start=start, lifetime=Lifetime(ttl))
    if start:
        await host.until(State.RUNNING)


async def until_gone(host: FakeHost) -> None:
    await host.until_true(lambda: host.parts.fleet.find("web") is None)


async def set_end(host: FakeHost, expires_at: float | None) -> None:
    """As by a change that began before."""
    await host.parts.records.change("web", lambda old: replace(old, expires_at=expires_at))


async def end_soon(host: FakeHost) -> None:
    """Its lifetime is over in a moment, and the daemon knows."""
    await set_end(host, time.time() + SOON)
    host.manager.expiry.schedule()


def is_armed(host: FakeHost) -> bool:
    """Will something of it wake the daemon?"""
    return host.manager.expiry.timer.is_set


def test_a_vm_that_runs_is_ended_and_deleted_when_its_time_is_over() -> None:
    async def scenario(host: FakeHost) -> None:
        await create(host, 3600.0, start=True)
        await host.manager.change_vm("web", VmChange(Lifetime(SOON)))
        await until_gone(host)
        host.check_gone()
        assert not is_armed(host)

    drive(scenario)


def test_nothing_wakes_up_where_no_vm_has_an_end() -> None:
    async def scenario(host: FakeHost) -> None:
        await create(host, 0.0)
        assert not is_armed(host)
        await host.manager.change_vm("web", VmChange(Lifetime(3600.0)))
        assert is_armed(host)
        await host.manager.change_vm("web", VmChange(Lifetime()))
        assert not is_armed(host)
        await host.manager.change_vm("web", VmChange(Lifetime(3600.0)))
        await host.manager.delete_vm("web")
        assert not is_armed(host)

    drive(scenario)


def test_the_end_is_looked_at_again_when_nothing_else_is_done_with_the_vm() -> None:
    async def scenario(host: FakeHost) -> None:
        await create(host, 3600.0)
        vm = host.vm()
        async with vm.operations.hold(Operation.CHANGE):
            await end_soon(host)
            await host.until_true(lambda: vm.record.id in host.manager.expiry._ending)
            await set_end(host, time.time() + 3600)
        await host.until_true(lambda: not host.manager.expiry._ending)
        assert host.vm() is vm
        assert vm.record.expires_at is not None

    drive(scenario)


def test_a_vm_that_is_busy_is_deleted_afterwards_and_changes_no_more() -> None:
    async def scenario(host: FakeHost) -> None:
        await create(host, 3600.0)
        # who would wait for the end of an export is refused
        async with host.vm().operations.hold(Operation.EXPORT):
            await end_soon(host)
            await asyncio.sleep(2 * SOON)
            assert host.parts.fleet.find("web") is not None
        await until_gone(host)

    drive(scenario)


def test_after_its_end_nothing_changes_it() -> None:
    async def scenario(host: FakeHost) -> None:
        await create(host, 3600.0)
        await set_end(host, time.time() - 1)
        with pytest.raises(WrongState, match="has expired"):
            await host.manager.change_vm("web", VmChange(Lifetime(3600.0)))

    drive(scenario)


def test_a_daemon_that_starts_deletes_what_has_expired_meanwhile() -> None:
    async def scenario(host: FakeHost) -> None:
        await create(host, 3600.0, start=True)
        await host.restart_daemon(lambda: set_end(host, time.time() - 1))
        await until_gone(host)
        host.check_gone()

    drive(scenario)


def test_a_file_that_defines_a_vm_ends_its_lifetime() -> None:
    async def scenario(host: FakeHost) -> None:
        await create(host, 3600.0)
        host.write()
        await host.reload()
        assert host.vm().record.expires_at is None
        assert not is_armed(host)

    drive(scenario)


def test_a_deletion_that_fails_is_tried_again() -> None:
    async def scenario(host: FakeHost) -> None:
        tried: list[str] = []

        async def delete() -> None:
            tried.append("web")
            if len(tried) == 1:
                raise HostNotReady("no bus")
            terms.clear()

        terms = [Term("1a", "VM web", time.time() - 1, "web", "1a", delete)]
        expiry = Expiry(lambda: terms, retry=0.05)
        expiry.begin()
        await host.until_true(lambda: len(tried) == 2)
        await expiry.close()

    drive(scenario)


def test_a_clock_that_is_set_forward_is_followed() -> None:
    async def scenario(host: FakeHost) -> None:
        ahead, deleted = 0.0, asyncio.Event()

        async def delete() -> None:
            deleted.set()
            terms.clear()

        terms = [Term("1a", "VM web", time.time() + 3600, "web", "1a", delete)]
        expiry = Expiry(lambda: terms, clock=lambda: time.time() + ahead)
        expiry.begin()
        assert expiry.timer._steps is not None
        await asyncio.sleep(0.05)
        assert not deleted.is_set()
        ahead = 7200.0
        expiry.timer._steps._on_step()
        async with asyncio.timeout(DEADLINE):
            await deleted.wait()
        await expiry.close()

    drive(scenario)
