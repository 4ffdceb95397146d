# SPDX-License-Identifier: Apache-2.0
"""Reconciles the VMs with the definition files in vms.d."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from systemd import journal

from hypemand.config.definition import Definition
from hypemand.config.host import HostConfig, load_host_config
from hypemand.config.vmfile import VmDir, load_vm_dir
from hypemand.errors import HypemandError, InvalidDefinition, Problem
from hypemand.manager.autostart import Autostarts, ReachOnline, reach_online
from hypemand.manager.parts import Parts
from hypemand.manager.service import VmManager
from hypemand.manager.startqueue import derive_boots
from hypemand.model.answers.host import ReloadReport
from hypemand.model.state import Origin
from hypemand.systemd.log import MessageId
from hypemand.tasks import Tasks
from hypemand.vm.vm import Vm
from hypemand.workers import Pool, run_in

# what takes longer goes on by itself
_NETWORKS_DEADLINE = 10.0


class Reloader:
    """Reads the files again on request. `close` waits for the starts and stops that a reload has caused.
    `boots`: how many VMs that it starts boot at a time; None: what fits the host's CPUs."""

    def __init__(
        self,
        parts: Parts,
        manager: VmManager,
        load_config: Callable[[], HostConfig] = load_host_config,
        reach_online: ReachOnline = reach_online,
        boots: int | None = None,
    ) -> None:
        self._manager = manager
        self._config, self._fleet, self._networks = parts.config, parts.fleet, parts.networks
        self._load_config, self._files, self._volumes = load_config, parts.files, parts.volumes
        self._lock = asyncio.Lock()
        self._tasks = Tasks("the reload")
        boots = derive_boots(len(os.sched_getaffinity(0))) if boots is None else boots
        self._autostarts = Autostarts(parts, manager, self._tasks, reach_online, boots)

    async def begin(self) -> None:
        """Read the files for the first time. VMs that are marked `autostart` are started once after the host
        has booted, not again when only the daemon is restarted."""
        left = await self._autostarts.load()
        report = await self.reload(sync_networks=False, at_boot=left is None)
        await self._autostarts.go_on(left, report.defined)

    async def reload(self, *, sync_networks: bool = True, at_boot: bool = False) -> ReloadReport:
        """Read host config and definitions again, and follow them. `at_boot`: see `Autostarts.begin`.

        New: defined, and started if it says autostart. Changed: taken, and marked if the VM runs. Gone: the
        VM is stopped, its data stay. A file with problems changes nothing for its VM. A host config with
        problems leaves the one before in force.
        """
        async with self._lock:
            problems = list(await run_in(Pool.RECORDS, self._reload_host_config))
            report = await self._reload_definitions(problems, at_boot=at_boot)
            if sync_networks:
                await self._networks.sync_within(_NETWORKS_DEADLINE)
        for problem in report.problems:
            # python3-systemd formats this one field itself, and wants a number
            fields = {"CODE_FILE": problem.file, "CODE_LINE": problem.line}
            journal.send(
                str(problem),
                MESSAGE_ID=MessageId.DEFINITION_BROKEN.value,
                PRIORITY="3",
                SYSLOG_IDENTIFIER="hypemand",
                **fields,
            )
        return report

    def _reload_host_config(self) -> tuple[Problem, ...]:
        try:
            config = self._load_config()
        except InvalidDefinition as error:
            return error.problems
        self._volumes.take_pools(config.pools, config.pools_of_devices)
        self._config.replace(config)
        return ()

    async def _reload_definitions(self, problems: list[Problem], *, at_boot: bool) -> ReloadReport:
        config = self._config()
        found = await run_in(Pool.RECORDS, self._load_definitions, config)
        problems += found.problems
        self._fleet.take_files(found)
        rejected = set(found.broken)
        defined, changed, new = [], [], []
        for name, definition in found.definitions.items():
            vm = self._fleet.find(name)
            is_of_api = vm is not None and vm.record.origin is Origin.API
            if vm is not None and is_of_api and vm.record.definition != definition:
                problems.append(_defined_twice(self._files.name_file(config.vm_dir, name), name))
                continue
            try:
                if vm is not None and is_of_api:
                    await self._take_over(vm, definition)
                    changed.append(name)
                elif vm is None or vm.removed:
                    new.append(await self._define(definition))
                    defined.append(name)
                elif vm.record.definition != definition:
                    await self._redefine(vm, definition)
                    changed.append(name)
            except (HypemandError, OSError) as error:  # one VM keeps no other from what its file says
                problems.append(_not_taken(self._files.name_file(config.vm_dir, name), error))
                rejected.add(name)
        for vm in new:  # now that all are known of which one may be ordered after another
            if vm.record.definition.autostart:
                self._autostarts.begin(vm, at_boot=at_boot)
        self._files.reject(rejected)
        # a directory that cannot be read says nothing of files that are gone
        await self._manager.look_at_files()
        removed = self._remove_missing({*found.definitions, *found.broken}) if found.readable else []
        outdated = [
            name for name in changed if (vm := self._fleet.find(name)) is not None and vm.needs_restart
        ]
        return ReloadReport(tuple(defined), tuple(changed), tuple(removed), tuple(problems), tuple(outdated))

    def _load_definitions(self, config: HostConfig) -> VmDir:
        """What is changed while this reads is found changed later, as it may not have been read."""
        with suppress(OSError):  # which is told by the next line
            self._files.note(config.vm_dir)
        return load_vm_dir(config.vm_dir, config.defaults, config.networks)

    async def _define(self, definition: Definition) -> Vm:
        vm = await self._manager.define(definition)
        vm.log(logging.INFO, f"VM {vm.name} is defined")
        return vm

    async def _take_over(self, vm: Vm, definition: Definition) -> None:
        """Let the file define a VM from now on that was created or imported with the API and is the same."""
        await self._manager.define(definition)
        vm.log(logging.INFO, f"VM {vm.name} is defined by its file from now on")

    async def _redefine(self, vm: Vm, definition: Definition) -> None:
        await self._manager.define(definition)
        if vm.needs_restart:
            vm.log(
                logging.WARNING,
                f"VM {vm.name} needs a restart to apply its changed definition"
                f" ({', '.join(vm.view().changes)}): hypemanctl restart {vm.name}",
                MessageId.NEEDS_RESTART,
            )

    def _remove_missing(self, kept: set[str]) -> list[str]:
        removed = []
        for vm in self._fleet:
            if vm.record.origin is Origin.FILE and vm.name not in kept and not vm.removed:
                vm.set_removed(True)
                removed.append(vm.name)
                vm.log(
                    logging.WARNING,
                    f"VM {vm.name} has no definition file any more: it is stopped,"
                    f" its data are kept until hypemanctl rm {vm.name}",
                )
                self._tasks.start(f"stop of VM {vm.name}", self._stop(vm))
        return removed

    async def _stop(self, vm: Vm) -> None:
        try:
            await self._manager.stop_vm(vm.name)
        except HypemandError as error:
            vm.log(logging.ERROR, f"VM {vm.name} could not be stopped: {error}")

    def prepare_close(self) -> None:
        """See `Autostarts.prepare_close`."""
        self._autostarts.prepare_close()

    async def close(self, deadline: float) -> None:
        """Wait for what was begun, at most `deadline` seconds. The next daemon makes the starts that are not
        made by then."""
        self.prepare_close()
        await self._tasks.close(patience=deadline)


def _not_taken(file: Path, error: HypemandError | OSError) -> Problem:
    what, hint = (error.message, error.hint) if isinstance(error, HypemandError) else (str(error), "")
    return Problem(str(file), 0, 0, "", what, hint)


def _defined_twice(file: Path, name: str) -> Problem:
    return Problem(
        str(file), 0, 0, "", f"a VM {name} was already created with the API",
        "rename the file, write that VM's own definition into it, or remove that VM",
    )  # fmt: skip
