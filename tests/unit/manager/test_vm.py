# SPDX-License-Identifier: Apache-2.0
"""What a daemon that is new knows of a VM that is stopped."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any, cast

import pytest

from hypemand.boot.record import ExitRecord, dump_exit_record
from hypemand.boot.tracker import BootNotes, dump_notes
from hypemand.config.definition import Origin
from hypemand.config.vmdef import parse_definition
from hypemand.manager.inventory import VmRecord
from hypemand.manager.networks import Networks
from hypemand.manager.plan import Places
from hypemand.manager.tenancy import Tenancy
from hypemand.manager.view import VmView
from hypemand.manager.vm import Vm, VmServices
from hypemand.systemd.rootdir import Own
from hypemand.systemd.units import UnitStatus
from tests.unit.manager.fakenetwork import FakeNetworkHost

NOW = time.time()
MADE, ENDED, NOTED = NOW - 9000, NOW - 5000, NOW - 3000
OLD_BOOT, BOOT = "0" * 32, "1" * 32


class NoUnits:
    """systemd knows no unit."""

    async def status(self, _unit: str, *, with_memory: bool = False) -> UnitStatus:
        """Nothing is loaded."""
        return UnitStatus(None)


def recover(folder: Path) -> VmView:
    """The VM whose data are in `folder`, as a daemon sees it that has just started."""
    record = VmRecord(
        "web", "f" * 32, 61184, Origin.FILE, MADE, parse_definition("web", {"image": "builtin:busybox"})
    )
    networks = Networks(FakeNetworkHost(), Tenancy(folder, dict, list), cast(Any, None))
    places = Places(folder, folder / "run", folder / "root", Own(folder / "self"))
    services = VmServices(cast(Any, None), cast(Any, NoUnits()), cast(Any, None), lambda: None)

    async def look() -> VmView:
        vm = Vm(record, places, services, networks)
        await vm.recover()
        return vm.view()

    return asyncio.run(look())


def write_exit(folder: Path, boot: str, ended_at: float) -> None:
    record = ExitRecord(boot, 0, "exited with code 0", True, 0, ended_at)
    (folder / "exit.json").write_text(dump_exit_record(record))


def write_notes(folder: Path, boot: str, at: float) -> None:
    path = folder / "boot.json"
    path.write_bytes(dump_notes(BootNotes(boot)))
    os.utime(path, (at, at))


@pytest.mark.parametrize("noted", [BOOT, OLD_BOOT])
def test_it_is_stopped_since_its_run_ended(tmp_path: Path, noted: str) -> None:
    write_notes(tmp_path, noted, ENDED - 100)  # OLD_BOOT: systemd alone has run it since
    write_exit(tmp_path, BOOT, ENDED)
    view = recover(tmp_path)
    assert (view.stopped_at, view.current_phase_since) == (ENDED, ENDED)
    assert view.phase_durations_ms["stopped"] >= 5_000_000


def test_one_that_never_ran_is_stopped_since_it_was_made(tmp_path: Path) -> None:
    view = recover(tmp_path)
    assert (view.stopped_at, view.current_phase_since) == (None, MADE)


def test_a_run_that_the_host_went_down_with_has_not_the_end_of_the_one_before(tmp_path: Path) -> None:
    write_exit(tmp_path, OLD_BOOT, ENDED)
    write_notes(tmp_path, BOOT, NOTED)
    view = recover(tmp_path)
    assert (view.stopped_at, view.exit) == (None, None)
    assert view.current_phase_since >= NOW
