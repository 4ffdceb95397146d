# SPDX-License-Identifier: Apache-2.0
"""What a daemon that is new knows of a VM that is stopped."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any, cast

import pytest

from hypemand.config.vmdef import parse_definition
from hypemand.manager.net.allocation import AddressAllocation
from hypemand.manager.net.networks import Networks
from hypemand.model.state import Origin
from hypemand.model.vm import VmView
from hypemand.systemd.rootdir import Own
from hypemand.systemd.units import UnitStatus
from hypemand.vm.exitrecord import ExitRecord, find_spare, store_exit_record
from hypemand.vm.places import Places
from hypemand.vm.record import VmRecord
from hypemand.vm.runfiles import load_past
from hypemand.vm.runs import VmServices
from hypemand.vm.tracker import BootNotes, store_notes
from hypemand.vm.vm import Vm
from tests.unit.manager.fakenetwork import FakeNetworkHost

NOW = time.time()
MADE, ENDED, NOTED = NOW - 9000, NOW - 5000, NOW - 3000
OLD_BOOT, BOOT = "0" * 32, "1" * 32


class OneUnit:
    """All that systemd knows of, if it knows of any."""

    def __init__(self, known: UnitStatus) -> None:
        self._known = known

    async def status(self, _unit: str, *, with_memory: bool = False) -> UnitStatus:
        """What there is."""
        return self._known

    async def count_restarts(self, _unit: str) -> int:
        """None."""
        return 0


def recover(folder: Path, unit: UnitStatus | None = None) -> VmView:
    """The VM whose data are in `folder`, as a daemon sees it that has just started."""
    units = OneUnit(unit or UnitStatus(None))
    record = VmRecord(
        "web", "f" * 32, 61184, Origin.FILE, MADE, parse_definition("web", {"image": "builtin:busybox"})
    )
    networks = Networks(FakeNetworkHost(), AddressAllocation(dict, list), cast(Any, None), folder)
    places = Places(folder, folder / "run", folder / "root", Own(folder / "self"))
    services = VmServices(cast(Any, None), cast(Any, units), cast(Any, None), lambda: None)

    async def look() -> VmView:
        past = await asyncio.to_thread(load_past, record.name, places)
        vm = Vm(record, places, services, networks, past)
        await vm.recover()
        return vm.view()

    return asyncio.run(look())


def write_exit(folder: Path, boot: str, ended_at: float) -> None:
    record = ExitRecord(boot, 0, "exited with code 0", True, 0, ended_at)
    store_exit_record(folder / "exit.json", record)


def write_notes(folder: Path, boot: str, at: float) -> None:
    path = folder / "boot.json"
    store_notes(path, BootNotes(boot))
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


def test_a_run_that_failed_without_a_daemon_and_left_no_record_was_no_success(tmp_path: Path) -> None:
    folder = tmp_path / "web"
    folder.mkdir()
    write_exit(folder, OLD_BOOT, ENDED)
    write_notes(folder, OLD_BOOT, ENDED)
    ended = recover(folder, UnitStatus("failed", "failed", BOOT)).exit
    assert ended is not None
    assert (ended.code, ended.success) == (None, False)
    assert ended.message == "it failed, and how could not be written down"


def test_the_reason_is_read_from_the_spare_place(tmp_path: Path) -> None:
    folder = tmp_path / "web"
    folder.mkdir()
    write_exit(folder, OLD_BOOT, ENDED - 100)
    record = ExitRecord(BOOT, None, "ended by force", False, 0, ENDED)
    spare = find_spare(folder / "run")
    spare.parent.mkdir()
    store_exit_record(spare, record)
    for unit in (UnitStatus("failed", "failed", BOOT), UnitStatus(None)):
        view = recover(folder, unit)
        assert view.exit is not None
        assert (view.exit.message, view.exit.success, view.stopped_at) == ("ended by force", False, ENDED)
