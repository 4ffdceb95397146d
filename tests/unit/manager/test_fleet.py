# SPDX-License-Identifier: Apache-2.0
"""What VMs together take of the host."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from hypemand.config.host import HostConfig
from hypemand.config.vmdef import parse_definition
from hypemand.manager.fleet import Fleet
from hypemand.model.state import State
from hypemand.storage.volumes import VolumeStore

GIB = 1 << 30


def add_vm(fleet: Fleet, folder: Path, name: str, state: State = State.STOPPED) -> Path:
    """A VM with a disk of 10 GiB; gives where that would be."""
    definition = parse_definition(name, {"image": "builtin:busybox", "disk": "10G"})
    disk = folder / f"{name}.ext4"
    vm = SimpleNamespace(
        name=name,
        state=state,
        record=SimpleNamespace(definition=definition),
        places=SimpleNamespace(disk=disk),
    )
    fleet.add(cast(Any, vm))
    return disk


def test_a_vm_that_is_only_defined_is_promised_no_disk(tmp_path: Path) -> None:
    fleet = Fleet(lambda: HostConfig(state_dir=tmp_path), VolumeStore(tmp_path / "volumes", tmp_path))
    for number in range(300):
        add_vm(fleet, tmp_path, f"defined-{number}")
    look = asyncio.run(fleet.look_at_disks())
    assert fleet.promised_room(look) == 0
    add_vm(fleet, tmp_path, "runs", State.RUNNING)
    add_vm(fleet, tmp_path, "was-started").touch()
    add_vm(fleet, tmp_path, "starts")
    fleet.starting["starts"] = parse_definition("starts", {"image": "builtin:busybox"})
    look = asyncio.run(fleet.look_at_disks())
    assert fleet.promised_room(look) == 30 * GIB
    assert fleet.promised_room(look, but="runs") == 20 * GIB
