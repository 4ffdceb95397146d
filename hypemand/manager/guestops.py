# SPDX-License-Identifier: Apache-2.0
"""Requests to the agent of a running guest: commands and files."""

from __future__ import annotations

from dataclasses import replace

from hypemand.agent.channel import AgentChannel
from hypemand.config.definition import Definition
from hypemand.errors import HostNotReady, WrongState
from hypemand.manager.fleet import Fleet
from hypemand.manager.images.images import Images
from hypemand.model.exec import AttachRequest, AttachSession, ExecRequest, ExecSession
from hypemand.model.files import CopyIn, CopyOut, FileInfo
from hypemand.model.state import Operation, State, check_allowed
from hypemand.protocol.configdisk import GuestConfig, load_env
from hypemand.protocol.records import ProtocolError
from hypemand.storage.program import resolve_program
from hypemand.vm.record import VmRecord
from hypemand.vm.session import AGENT_DEADLINE
from hypemand.vm.vm import Vm
from hypemand.workers import Pool, run_in


class GuestOps:
    """Implements `hypemand.model.vm.GuestService` and `hypemand.manager.net.names.Guests`."""

    def __init__(self, fleet: Fleet, images: Images) -> None:
        self._fleet = fleet
        self._images = images

    def running_boot(self, vm: str) -> str | None:
        """See `hypemand.manager.net.names.Guests`."""
        found = self._fleet.find(vm)
        if found is None or found.state is not State.RUNNING or not found.runs.definition.guest_agent:
            return None
        return found.boot

    async def exec_vm(self, ref: str, request: ExecRequest) -> ExecSession:
        """See `GuestService`."""
        vm, channel = await self._reach_agent(ref, Operation.EXEC)
        program = await self.find_program(vm.record, vm.runs.definition)
        return await channel.exec(like_the_program(request, program))

    async def attach_vm(self, ref: str, request: AttachRequest) -> AttachSession:
        """See `GuestService`."""
        vm, channel = await self._reach_agent(ref, Operation.ATTACH)
        definition = vm.runs.definition
        if not (definition.stdin or definition.tty):
            what = f"the program of VM {vm.name} was started with neither stdin nor tty"
            hint = f"show its output: hypemanctl logs -f {vm.name}; log in: hypemanctl shell {vm.name}"
            raise WrongState(what, hint=hint)
        return await channel.attach(request)

    async def find_program(self, record: VmRecord, definition: Definition) -> GuestConfig:
        """What the program of a VM runs with. NotFound if its image is not there."""
        pin = record.pin
        digest = pin.digest if pin is not None and pin.name == definition.image else ""
        guest = resolve_program(definition, await self._images.get_for(definition.image, digest))
        if definition.env_file:
            guest = replace(guest, env=await run_in(Pool.RECORDS, _read_env, self._fleet.get(record.name)))
        return guest

    async def stat_path(self, ref: str, path: str, *, follow: bool = False) -> FileInfo | None:
        """See `GuestService`."""
        _, channel = await self._reach_agent(ref, Operation.STAT)
        return await channel.stat(path, follow=follow)

    async def copy_out(self, ref: str, path: str, *, follow: bool = False) -> CopyOut:
        """See `GuestService`."""
        _, channel = await self._reach_agent(ref, Operation.COPY)
        return await channel.copy_out(path, follow=follow)

    async def copy_in(self, ref: str, path: str) -> CopyIn:
        """See `GuestService`."""
        _, channel = await self._reach_agent(ref, Operation.COPY)
        return await channel.copy_in(path)

    async def _reach_agent(self, ref: str, operation: Operation) -> tuple[Vm, AgentChannel]:
        """A VM whose state allows the operation, and the channel to its agent."""
        vm = self._fleet.get(ref)
        ongoing = vm.operations.describe()
        check_allowed(operation, vm.state, vm.name, vm.state_error, ongoing=ongoing)
        if vm.standby.is_saving:  # its guest may be frozen already
            raise WrongState(
                f"{operation} is not possible while {vm.name} is saved ({ongoing})",
                hint="wait until that is over",
            )
        if not vm.runs.definition.guest_agent or vm.session is None:
            raise WrongState(f"VM {vm.name} has no guest agent", hint="set guest_agent: true and restart it")
        return vm, await vm.session.open_agent(AGENT_DEADLINE)


def _read_env(vm: Vm) -> dict[str, str]:
    """The variables that its program was started with: files may have others by now. Blocks."""
    try:
        return load_env(vm.places.config)
    except (OSError, ProtocolError) as error:
        raise HostNotReady(
            f"the environment of VM {vm.name} cannot be read: {error}", hint="restart the VM"
        ) from error


def like_the_program(request: ExecRequest, guest: GuestConfig) -> ExecRequest:
    """A command runs as the VM's program does, where the request does not say otherwise: with its variables,
    in its folder, as its user, by its settings."""
    return replace(
        request,
        env={**guest.env, **request.env},
        cwd=request.cwd or guest.workdir,
        user=request.user or guest.user,
        settings=guest.settings,
    )
