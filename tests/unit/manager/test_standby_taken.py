# SPDX-License-Identifier: Apache-2.0
"""What a VM in Standby had, and what others have of it by now: it is restored with all of that, or not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from ipaddress import IPv4Interface
from typing import Any

import pytest

from hypemand.config.definition import MIB
from hypemand.errors import HypemandError
from hypemand.model.state import State
from tests.fakes.host import LAB, FakeHost, drive
from tests.unit.manager.test_standby import saves

DATA = {"volume": "data", "mount_path": "/srv"}


def at(address: str) -> dict[str, Any]:
    """A place in the network."""
    return {"name": LAB.name, "address": address}


async def take_address(host: FakeHost) -> None:
    """Its definition has another one by now."""
    host.write(network=at("10.7.0.5"), volumes=[DATA | {"required": False}])
    await host.reload()
    await host.run("other", network=at("10.7.0.4"))


async def remove_other(host: FakeHost) -> None:
    await host.manager.delete_vm("other", kill=True)


async def move_network(host: FakeHost) -> None:
    host.networks[LAB.name] = replace(LAB, ipv4=IPv4Interface("10.8.0.1/24"))


async def move_back(host: FakeHost) -> None:
    host.networks[LAB.name] = LAB


async def take_volume(host: FakeHost) -> None:
    await host.run("other", volumes=[DATA])


async def remove_volume(host: FakeHost) -> None:
    disk = host.parts.volumes.get("data").disk
    disk.rename(disk.with_suffix(".away"))


async def return_volume(host: FakeHost) -> None:
    disk = host.parts.volumes.get("data").disk
    disk.with_suffix(".away").rename(disk)


@pytest.mark.parametrize(
    ("take", "words", "give"),
    [
        (take_address, "cannot have the address 10.7.0.4 of network default, .* VM other", remove_other),
        (move_network, "10.7.0.4 is not in 10.8.0.0/24", move_back),
        (take_volume, "it does not get all of its volumes", remove_other),
        (remove_volume, "volume.ext4 was changed or removed since it was saved", return_volume),
    ],
)
def test_it_waits_until_it_has_all_again(
    take: Callable[[FakeHost], Awaitable[None]], words: str, give: Callable[[FakeHost], Awaitable[None]]
) -> None:
    async def scenario(host: FakeHost) -> None:
        await asyncio.to_thread(host.parts.volumes.create, "data", 16 * MIB, {}, None)
        # which it starts without, but does not go on without
        host.write(network=at("10.7.0.4"), volumes=[DATA | {"required": False}])
        await host.reload()
        await host.start()
        boot, lease = host.vm().boot, host.vm().record.lease
        await host.manager.standby_vm("web")
        await take(host)
        with pytest.raises(HypemandError, match=words):
            await host.manager.restore_vm("web")
        assert (host.vm().state, saves(host), host.traces()) == (State.STANDBY, {"standby"}, [])
        await give(host)
        await host.manager.restore_vm("web")
        await host.until(State.RUNNING)
        assert (host.vm().boot, host.vm().record.lease) == (boot, lease)

    drive(scenario)


def test_addresses_that_were_chosen_for_it_are_not_exchanged_for_others() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run(network=LAB.name)
        lease = host.vm().record.lease
        await host.manager.standby_vm("web")
        await move_network(host)
        with pytest.raises(HypemandError, match="its addresses are not those any more"):
            await host.manager.restore_vm("web")
        assert (host.vm().state, host.vm().record.lease, host.traces()) == (State.STANDBY, lease, [])
        await move_back(host)
        await host.manager.restore_vm("web")
        await host.until(State.RUNNING)
        assert host.vm().record.lease == lease

    drive(scenario)


def test_a_volume_that_another_vm_has_written_to_is_another_one() -> None:
    async def scenario(host: FakeHost) -> None:
        await asyncio.to_thread(host.parts.volumes.create, "data", 16 * MIB, {}, None)
        await host.run(volumes=[DATA])
        await host.manager.standby_vm("web")
        disk = host.parts.volumes.get("data").disk
        with disk.open("r+b") as file:
            file.write(b"something")
        with pytest.raises(HypemandError, match=f"{disk} was changed or removed since it was saved"):
            await host.manager.restore_vm("web")
        assert (host.vm().state, saves(host), host.traces()) == (State.STANDBY, {"standby"}, [])

    drive(scenario)
