# SPDX-License-Identifier: Apache-2.0
"""A start that fails at any of its steps, or is cancelled there, leaves nothing; the next one works."""

from __future__ import annotations

import asyncio
import errno
import shutil
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from hypemand.errors import HostNotReady, HypemandError
from hypemand.model.state import State
from hypemand.systemd.bus import BusError
from tests.fakes.host import LAB, FakeHost, define, drive


@dataclass
class Step:
    """Something that a start needs. `fail` takes it away, `mend` gives it back. `left`: what stays of a start
    that failed for it."""

    fail: Callable[[FakeHost], None]
    mend: Callable[[FakeHost], None]
    left: tuple[str, ...] = ()


def _hide(path: str, *, folder: bool = False) -> Step:
    """A file or folder of the host is away; in place of a folder there is a file then."""

    def fail(host: FakeHost) -> None:
        place = host.folder / path
        if place.exists():
            place.rename(f"{place}.away")
        if folder:
            place.parent.mkdir(exist_ok=True)
            place.touch()

    def mend(host: FakeHost) -> None:
        place = host.folder / path
        if folder:
            place.unlink()
        if Path(f"{place}.away").exists():
            Path(f"{place}.away").rename(place)

    return Step(fail, mend)


def _block(path: str) -> Step:
    """A folder that is not empty, where a start would write a file."""

    def fail(host: FakeHost) -> None:
        place = host.folder / path
        place.mkdir(parents=True)
        (place / "x").touch()

    def mend(host: FakeHost) -> None:
        shutil.rmtree(host.folder / path)

    return Step(fail, mend)


def _refuse_network(host: FakeHost) -> None:
    host.network.refuse = HostNotReady("the kernel has no bridge")


def _lose_network(host: FakeHost) -> None:
    host.network.away = HostNotReady("the network service does not answer")


def _give_network(host: FakeHost) -> None:
    host.network.refuse = host.network.away = None


def _refuse_call(method: str, number: int) -> Step:
    def fail(host: FakeHost) -> None:
        host.systemd.refuse[method] = BusError("no", number)

    return Step(fail, lambda host: None)


def _remove_network(host: FakeHost) -> None:
    host.networks.clear()


def _add_network(host: FakeHost) -> None:
    host.networks[LAB.name] = LAB


def _take_name(host: FakeHost) -> None:
    host.systemd.files["hypeman-vm-web.service"] = {}


def _give_name(host: FakeHost) -> None:
    del host.systemd.files["hypeman-vm-web.service"]


STEPS = {
    "kernel": _hide("kernel/kernel.json"),
    "initrd": _hide("guest/initrd.cpio"),
    "image": _hide("images/app/rootfs.erofs"),
    "network in the host config": Step(_remove_network, _add_network),
    "template of the disk": _hide("state/templates", folder=True),
    "runtime folder": _hide("run/vms", folder=True),
    "network": Step(_refuse_network, _give_network),
    # it may have made a device, and is to remove that when it is back
    "network service": Step(_lose_network, _give_network, left=("state/port.json",)),
    "systemd refuses": _refuse_call("StartTransientUnit", errno.EINVAL),
    "systemd is gone": _refuse_call("StartTransientUnit", errno.ENOTCONN),
    "name of the unit": Step(_take_name, _give_name),
}
FORESEEN = ("kernel", "initrd", "image", "network in the host config")
# that the VM of this name has a folder already, these need
OF_THE_VM = {
    "what it runs with": _block("state/vms/web/run.json"),
    "disk": _block("state/vms/web/disk.ext4"),
    "place in the network": _block("state/vms/web/port.json"),
}


def holds(host: FakeHost) -> list[str]:
    """All that is held for a start, the disk and addresses too."""
    held = host.traces()
    vm = host.parts.fleet.find("web")
    if vm is not None:
        held += ["lease"] if vm.record.lease is not None else []
        held += ["memory"] if vm.held is not None else []
    disk = host.config.state_dir / "vms/web/disk.ext4"
    return held + (["disk"] if disk.is_file() else [])


async def fails(work: Awaitable[object]) -> None:
    with pytest.raises((HypemandError, OSError)):
        await work


@pytest.mark.parametrize("name", [*STEPS, *OF_THE_VM])
def test_a_start_that_fails_leaves_nothing_and_the_next_one_works(name: str) -> None:
    step = (STEPS | OF_THE_VM)[name]

    async def scenario(host: FakeHost) -> None:
        await host.create(network="default")
        await host.parts.networks.sync()  # of a network that is not known to be there nothing is begun
        step.fail(host)
        await fails(host.manager.start_vm("web"))
        step.mend(host)
        assert holds(host) == [*step.left]
        assert (await host.manager.get_vm("web")).state is State.STOPPED
        await host.start()
        assert host.vmms.runs == {"web": 1}

    drive(scenario)


@pytest.mark.parametrize("name", STEPS)
def test_a_creation_that_fails_leaves_no_vm(name: str) -> None:
    step = STEPS[name]

    async def scenario(host: FakeHost) -> None:
        step.fail(host)
        await fails(host.manager.create_vm(define(network="default"), start=True))
        step.mend(host)
        host.check_gone()
        await host.run(network="default")

    drive(scenario)


@pytest.mark.parametrize(
    "name", [name for name in STEPS if name not in ("network service", "runtime folder")]
)
def test_a_restart_that_fails_leaves_it_running_or_nothing(name: str) -> None:
    """Running, where it could be told before its end that it cannot start."""
    step = STEPS[name]

    async def scenario(host: FakeHost) -> None:
        await host.run(network="default")
        first = host.vmm().run_id
        step.fail(host)
        with suppress(HypemandError, OSError):
            await host.manager.restart_vm("web")
        step.mend(host)
        if name in FORESEEN:
            assert (await host.manager.get_vm("web")).invocation_id == first
        elif name != "template of the disk":  # it has its disk
            assert host.vm().state is State.STOPPED
            assert host.traces() == []
            await host.start()
        await host.until(State.RUNNING)
        assert len(host.network.taps) == 1

    drive(scenario)


def test_a_start_of_a_vm_that_has_run_keeps_its_disk_and_addresses() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run(network="default")
        lease = host.vm().record.lease
        await host.manager.stop_vm("web")
        host.systemd.refuse["StartTransientUnit"] = BusError("no", errno.EINVAL)
        await fails(host.manager.start_vm("web"))
        assert holds(host) == ["lease", "disk"]
        assert host.vm().record.lease == lease

    drive(scenario)


def test_a_failed_unit_that_cannot_be_reset_is_told_of_and_left() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        host.vmm().exit(1)
        await host.until_ended()
        host.systemd.refuse["ResetFailedUnit"] = BusError("no", errno.EACCES)
        await fails(host.manager.start_vm("web"))
        assert host.traces() == [host.vm().unit]
        assert host.unit() == "failed/failed"
        await host.start()

    drive(scenario)


def test_a_creation_without_a_bus_leaves_no_vm() -> None:
    async def scenario(host: FakeHost) -> None:
        host.systemd.lose_bus()
        await fails(host.manager.create_vm(define(network="default"), start=True))
        host.systemd.find_bus()
        assert host.parts.fleet.find("web") is None
        await host.run(network="default")

    drive(scenario)


# --- answers that are lost, and starts that are cancelled ---


def test_a_lost_answer_keeps_what_systemd_has_taken() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.create(network="default")
        host.systemd.lose["StartTransientUnit"] = BusError("the connection broke", errno.ECONNRESET)
        await fails(host.manager.start_vm("web"))
        await host.until(State.RUNNING)
        assert len(host.network.taps) == 1
        await host.stop_for_good()

    drive(scenario)


def test_a_lost_answer_of_a_stop_does_not_lose_the_end() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run(network="default")
        host.systemd.lose["StopUnit"] = BusError("the connection broke", errno.ECONNRESET)
        await fails(host.manager.stop_vm("web"))
        await host.until_ended()
        assert host.traces() == []

    drive(scenario)


async def at_the_network(host: FakeHost) -> tuple[asyncio.Event, Callable[[], None]]:
    gate = host.network.gate = asyncio.Event()

    def go_on() -> None:
        gate.set()
        host.network.gate = None

    return host.network.made, go_on


async def at_systemd(host: FakeHost) -> tuple[asyncio.Event, Callable[[], None]]:
    taken, gate = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        taken.set()
        await gate.wait()

    host.systemd.hooks["StartTransientUnit"] = wait
    return taken, gate.set


async def at_once(host: FakeHost) -> tuple[asyncio.Event, Callable[[], None]]:
    begun = asyncio.Event()
    begun.set()
    return begun, lambda: None


@pytest.mark.parametrize("creates", [False, True])
@pytest.mark.parametrize("reach", [at_once, at_the_network, at_systemd])
def test_a_start_that_is_cancelled_leaves_nothing_or_a_vm_that_runs(
    reach: Callable[[FakeHost], Awaitable[tuple[asyncio.Event, Callable[[], None]]]],
    *,
    creates: bool,
) -> None:
    async def scenario(host: FakeHost) -> None:
        if not creates:
            await host.create(network="default")
        reached, go_on = await reach(host)
        if creates:
            work = asyncio.ensure_future(host.manager.create_vm(define(network="default"), start=True))
        else:
            work = asyncio.ensure_future(host.manager.start_vm("web"))
        await reached.wait()
        await asyncio.sleep(0)
        work.cancel()
        await asyncio.sleep(0.005)
        go_on()
        while not work.done():
            work.cancel()  # also what is being taken back
            await asyncio.sleep(0)
        if not creates and reach is at_systemd:
            await host.until(State.RUNNING)
            await host.stop_for_good()
        else:
            await host.until_true(lambda: holds(host) == [])
            await host.until_true(lambda: (host.parts.fleet.find("web") is None) is creates)
        if creates:
            await host.create(network="default")
        await host.start()

    drive(scenario)
