# SPDX-License-Identifier: Apache-2.0
"""Resources of a running VM, from its run record; if it is lost, all resources that it may have."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypemand.config.definition import LIVE_KEYS, Definition, Restart
from hypemand.config.network import NetworkUse
from hypemand.systemd.bus import BusError
from hypemand.systemd.log import log_vm
from hypemand.systemd.units import Units
from hypemand.unitnames import unit_name
from hypemand.vm.record import VmRecord

_log = logging.getLogger(__name__)
_PLAIN = Definition("", "")


class Running:
    """`definition` is what a VM runs with; None: it does not run, or its run.json is lost. Then `bound` has
    the files of its unit (see `Units.bound_files`), as soon as systemd has told them."""

    def __init__(self) -> None:
        self.definition: Definition | None = None
        self.bound: Mapping[Path, bool] = {}
        self._is_lost = False

    @property
    def is_unknown(self) -> bool:
        """Is it to be looked up what it runs with, should it run?"""
        return self.definition is None and not self._is_lost

    def follow(self, found: Definition | None, *, may_run: bool) -> None:
        """Know what it runs with from the first look on, also between two runs that systemd makes alone,
        while it ends, and while systemd cannot be asked. `found`: what its run.json has, where it
        `is_unknown`."""
        if not may_run:
            self._is_lost, self.bound = False, {}
        elif self.is_unknown:
            self.definition = found
            self._is_lost = found is None

    async def learn_bound_files(self, record: VmRecord, units: Units) -> None:
        """Its definition may be another by now: systemd knows which volumes its unit has. The query is
        repeated with the next refresh until it is answered."""
        if not self._is_lost or self.bound:
            return
        try:
            self.bound = await units.bound_files(unit_name(record.name))
        except BusError as error:
            _log.warning("VM %s: cannot determine its volumes: %s", record.name, error.message)
            return
        if self.bound:
            words = "its run.json cannot be read"
            held = "all volumes of its definition and of its unit are considered in use"
            log_vm(logging.ERROR, f"VM {record.name}: {words}: {held}", record.name, record.id)

    def derive_network(self, record: VmRecord) -> NetworkUse | None:
        """The network that it runs on. Where that is lost: at least what it has addresses of, though
        isolated."""
        use, lease = (self.definition or record.definition).network, record.lease
        if self._is_lost and lease is not None and (use is None or use.name != lease.network):
            return NetworkUse(lease.network, isolate=True)
        return use


def runtime_part(definition: Definition) -> Definition:
    """What of a definition makes a difference to a VM that runs: not a volume that it may go without, nor its
    health check, which follows the definition at once."""
    volumes = tuple(mount for mount in definition.volumes if mount.required)
    live: dict[str, Any] = {key: getattr(_PLAIN, key) for key in LIVE_KEYS}
    return replace(definition, volumes=volumes, **live)


def is_outdated(running: Definition, defined: Definition) -> bool:
    """Does a VM that runs with one definition need a restart for another one?"""
    return runtime_part(running) != runtime_part(defined) or lacks_watchdog(running, defined)


def restarts_unhealthy(running: Definition) -> bool:
    """Is the unit of a VM that was started with this definition one that systemd restarts by its watchdog,
    whatever its health check is by now?"""
    policy, health = running.restart, running.health
    return health is not None and (policy is not Restart.NO or health.restarts(policy))


def lacks_watchdog(running: Definition, defined: Definition) -> bool:
    """Is a VM to be restarted when it is unhealthy, by its definition, which its unit cannot do before the
    next start?"""
    health = defined.health
    wanted = health is not None and health.restarts(defined.restart)
    return wanted and not restarts_unhealthy(running)
