# SPDX-License-Identifier: Apache-2.0
"""The daemon: connects the packages, notifies systemd when it is ready, and shuts down in order.

VMs are systemd's, not its children: they go on when it ends, and it learns of them when it starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

from aiohttp import web

from hypemand.api.access import TokenGate
from hypemand.api.hold import Hold
from hypemand.api.listener import Listener
from hypemand.api.server import HttpServer, make_app, make_metrics_app, serve
from hypemand.api.services import Services
from hypemand.api.tokens import TokenStore
from hypemand.atomic import make_folder
from hypemand.config.host import HOST_CONFIG, HostConfig, load_host_config
from hypemand.config.listen import ListenConfig
from hypemand.config.schemafile import load_schema
from hypemand.config.statedir import find_sandbox_problem
from hypemand.errors import HostNotReady, InvalidDefinition, Problem
from hypemand.histogram import Histogram
from hypemand.manager.events import Events
from hypemand.manager.fork import ApiForks
from hypemand.manager.images.pulls import Pulls
from hypemand.manager.metrics.metrics import Metrics
from hypemand.manager.parts import make_parts
from hypemand.manager.recovery import Recovery, logged
from hypemand.manager.reload import Reloader
from hypemand.manager.resources.hostview import HostView
from hypemand.manager.schedules import SnapshotSchedules
from hypemand.manager.service import VmManager
from hypemand.manager.snapshots import ApiSnapshots
from hypemand.manager.templateservice import ApiTemplates
from hypemand.manager.transfer import Transfers
from hypemand.manager.uids import USERDB
from hypemand.manager.volumes import ApiVolumes
from hypemand.model.answers.host import ReloadReport
from hypemand.model.metrics import ApiCounts
from hypemand.network.client import NetworkClient
from hypemand.service import Service, make_parser, run_service, set_up_logging
from hypemand.sockets import open_socket, take_socket
from hypemand.storage.staging import clean_staging, has_leftovers
from hypemand.storage.store import ImageStore
from hypemand.storage.tools import UnitTools, stop_foreign_units
from hypemand.systemd.bus import SystemBus
from hypemand.systemd.port import Bus
from hypemand.systemd.units import Units
from hypemand.tasks import Tasks
from hypemand.turns import TurnCounts, TurnWatch, make_durations
from hypemand.vm.runs import VmServices
from hypemand.vm.watcher import BootWatcher
from hypemand.workers import Pool, run_in

_log = logging.getLogger(__name__)
_RELOAD_DEADLINE = 10.0
_BACKLOG = 128
# before the daemon serves: for the bus, and for all that is learned from records, systemd and files
_BUS_DEADLINE = 3.0
_BEGIN_DEADLINE = 20.0
_LISTEN_DEADLINE = 5.0


class Daemon:
    """The running daemon. `load` reads the host config again; `turns` counts slow turns of the event loop,
    `durations` all."""

    def __init__(
        self,
        config: HostConfig,
        *,
        bus: Bus | None = None,
        load: Callable[[], HostConfig] = load_host_config,
        userdb: Path = USERDB,
        turns: Callable[[], TurnCounts] = TurnCounts,
        durations: Histogram | None = None,
    ) -> None:
        self._turns = turns
        self._config = config
        # what no event tells of is checked with the watchdog, the one wake-up that recurs
        self._service = Service(self._look_around)
        self._tasks = Tasks("the daemon")
        self._bus: Bus = bus or SystemBus()
        self._watcher = BootWatcher()
        self._store = ImageStore(
            config.state_dir / "images", config.image_dirs, lambda: self._parts.config().disk.reserve
        )
        events = Events()
        services = VmServices(
            self._bus, Units(self._bus), self._watcher, self._update_status, tell_event=events.tell
        )
        self._pulls = Pulls(self._store, self._make_tools, config.runtime_dir, tell_event=events.tell)
        self._network_client = NetworkClient(on_reconnect=self._tell_networks, on_tampered=self._end_tampered)
        parts = self._parts = make_parts(
            config, services, self._store, self._pulls, self._network_client, userdb, events
        )
        self._counts = ApiCounts()
        self._metrics = Metrics(parts, self._counts, durations or make_durations())
        self._manager = VmManager(parts)
        self._snapshots = ApiSnapshots(parts, self._manager)
        self._schedules = SnapshotSchedules(parts, self._snapshots)
        self._recovery = Recovery(parts, self._manager.delete_vm)
        self._reloader = Reloader(parts, self._manager, load)
        self._tokens = TokenStore(config.state_dir / "tokens.json")
        self._hold = Hold()
        # what units of ours are told from those of a daemon before this one by
        self._key = secrets.token_hex(4)

    def _make_tools(self) -> UnitTools:
        """Tools for one image that is being made."""
        return UnitTools(f"{self._key}{secrets.token_hex(4)}", self._config.state_dir)

    def stop(self) -> None:
        """Have `run` end."""
        self._service.stop()

    async def run(self) -> None:
        """Serve until SIGTERM, SIGINT or `stop`."""
        async with AsyncExitStack() as stack:
            self._bus.start()
            stack.push_async_callback(self._bus.close)
            stack.callback(self._watcher.close)
            stack.push_async_callback(self._network_client.close)
            stack.push_async_callback(self._manager.close)
            stack.push_async_callback(self._schedules.close)
            stack.push_async_callback(self._metrics.close)
            stack.callback(self._parts.clocks.close)
            self._parts.clocks.follow()
            stack.push_async_callback(self._pulls.close)
            stack.push_async_callback(self._reloader.close, _RELOAD_DEADLINE)
            stack.callback(self._store.may_make.set)
            await stack.enter_async_context(self._service.watch())
            stack.push_async_callback(self._tasks.close)
            beginning = self._tasks.start("begin", self._begin())
            # who waits for READY finds what the files define
            await asyncio.wait([beginning], timeout=_BEGIN_DEADLINE)
            if not beginning.done():
                _log.error("listing the VMs takes more than %g s", _BEGIN_DEADLINE)
            await self._serve(stack)
            cleaning = self._tasks.start("clean-up", self._clean_up(beginning))
            stack.callback(cleaning.cancel)
            stack.callback(self._reloader.prepare_close)
            await self._service.serve()

    async def _begin(self) -> None:
        """Load the VMs and their states. No content and no error keeps the daemon from serving; nor does a
        step that hangs, but then requests are refused until it is over."""
        self._store.may_make.clear()
        self._hold.reason = "the list of VMs is not available yet"
        with logged("the folder of the state"):
            await run_in(Pool.TOOLS, self._prepare_folders)  # the process for the bus starts meanwhile
        with logged("the system bus"):
            await self._bus.start_signals(self._resync, _BUS_DEADLINE)
        with logged("what there was before"):
            await self._recovery.recover()
        with logged("the files that define VMs"):
            await self._reloader.begin()
            self._update_status()
        self._manager.expiry.begin()
        self._schedules.begin()
        self._hold.reason = ""

    def _prepare_folders(self) -> None:
        load_schema("vm")  # by which definitions are shown: else the first list would read it
        make_folder(self._config.state_dir, mode=0o711)
        self._store.prepare()

    async def _clean_up(self, beginning: asyncio.Task[None]) -> None:
        """When all are served: nothing that was left keeps the daemon from starting."""
        try:
            with logged("what pulls and imports that did not end have left"):
                await run_in(Pool.TOOLS, self._clean_staging)
        finally:
            self._store.may_make.set()
        await asyncio.wait([beginning])
        if self._recovery.has_doubled:
            with logged("compressions that did not end"):
                await run_in(Pool.TOOLS, stop_foreign_units, self._key)
        with logged("what was left of before"):
            await self._recovery.clean_up()
        with logged("what can no longer be restored"):
            await self._manager.restorables.tell()

    def _clean_staging(self) -> None:
        if has_leftovers(self._store):
            stop_foreign_units(self._key)
        for name in clean_staging(self._store):
            _log.info("removed %s, which a pull or import that did not end had left", name)

    async def _tell_networks(self) -> None:
        self._parts.networks.begin_sync()

    async def _end_tampered(self, vm: str, what: str) -> None:
        await self._manager.end_tampered(vm, what)

    def _resync(self) -> None:
        self._tasks.start("resync", self._recovery.resync())

    async def _serve(self, stack: AsyncExitStack) -> None:
        volumes = ApiVolumes(self._parts, self._manager)
        api = Services(
            manager=self._manager,
            guests=self._parts.guests,
            images=self._parts.images,
            volumes=volumes,
            snapshots=self._snapshots,
            schedules=self._schedules,
            forks=ApiForks(self._parts, self._manager, self._snapshots),
            templates=ApiTemplates(self._parts),
            transfers=Transfers(self._parts, volumes),
            host_networks=self._parts.networks,
            host=HostView(self._parts),
            tokens=self._tokens,
            reload=self._reload,
            metrics=self._metrics,
            events=self._parts.events,
            defaults=lambda: self._parts.config().defaults,
            networks=lambda: self._parts.config().networks,
            spool=self._config.state_dir,
            reserve=lambda: self._parts.config().disk.reserve,
            turns=self._turns,
            counts=self._counts,
        )
        self._listeners = {
            "listen": Listener(lambda: HttpServer(self._make_app_of_tokens(api))),
            "metrics.listen": Listener(lambda: HttpServer(make_metrics_app(api))),
        }
        for one in self._listeners.values():
            stack.push_async_callback(one.close)
        listener = take_socket() or self._open_socket()
        await stack.enter_async_context(serve(make_app(api, hold=self._hold), listener))
        listening = self._tasks.start("listener", self._begin_to_listen())
        stack.callback(listening.cancel)
        # a disk that its certificate is on may hang
        await asyncio.wait([listening], timeout=_LISTEN_DEADLINE)

    async def _begin_to_listen(self) -> None:
        with logged("the API over TCP"):
            await self._listen()

    def _make_app_of_tokens(self, api: Services) -> web.Application:
        gate = TokenGate(self._tokens, self._manager, counts=self._counts)
        return make_app(api, gate=gate.check, hold=self._hold)

    def _open_socket(self) -> socket.socket:
        folder = self._config.runtime_dir
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        return open_socket(folder / "api.sock", _BACKLOG)

    async def _listen(self) -> tuple[Problem, ...]:
        """Serve over TCP where the host config says so. An error is logged, and prevents nothing else."""
        config = self._parts.config()
        wanted = {"listen": config.listen, "metrics.listen": config.metrics}
        found = [await self._listen_at(key, address) for key, address in wanted.items()]
        return tuple(problem for problem in found if problem is not None)

    async def _listen_at(self, key: str, address: ListenConfig | None) -> Problem | None:
        try:
            await self._listeners[key].apply(address)
        except HostNotReady as error:
            problem = Problem(str(HOST_CONFIG), 0, 0, key, error.message, error.hint)
        except (OSError, ValueError) as error:
            problem = Problem(str(HOST_CONFIG), 0, 0, key, str(error), "")
        else:
            return None
        _log.error("%s", problem)
        return problem

    async def _reload(self) -> ReloadReport:
        report = await self._reloader.reload()
        self._update_status()
        return replace(report, problems=(*report.problems, *await self._listen()))

    def _update_status(self) -> None:
        counts = Counter(vm.state for vm in self._parts.fleet)
        words = ", ".join(f"{n} {state}" for state, n in sorted(counts.items())) or "none defined"
        status = f"VMs: {words}"
        if self._parts.fleet.broken:
            status += f"; {len(self._parts.fleet.broken)} with errors in their definitions: hypemanctl check"
        if unreadable := len(self._parts.fleet.unreadable):
            status += f"; {unreadable} with unreadable records: journalctl -u hypemand"
        self._service.update_status(status)

    def _look_around(self) -> None:
        self._parts.disk_watch.look_soon()
        self._parts.clocks.look()
        self._manager.restorables.look_soon()


def main() -> int:
    """Run the daemon, and return its exit status; see `run_service`."""
    make_parser(
        "hypemand", "Daemon that runs micro VMs as systemd services. Started by hypemand.service."
    ).parse_args()
    set_up_logging("hypemand", quiet="aiohttp.access")
    status = run_service(_run)
    if status == os.EX_CONFIG:
        _refuse_pending()
    return status


def _run() -> None:
    config = load_host_config()
    # all else would fail of it, one thing after the other
    if (problem := find_sandbox_problem(config.state_dir, HOST_CONFIG)) is not None:
        raise InvalidDefinition([problem])
    with TurnWatch() as watch, asyncio.Runner(loop_factory=watch.make_loop) as runner:
        runner.run(_serve(config, watch))


async def _serve(config: HostConfig, watch: TurnWatch) -> None:
    await Daemon(config, turns=lambda: watch.counts, durations=watch.durations).run()


def _refuse_pending() -> None:
    """Close the connections that wait at our socket: systemd would start us again for them, at once and for
    ever, and a wrong configuration stays wrong."""
    listener = take_socket()
    if listener is None:
        return
    with listener, contextlib.suppress(OSError):
        listener.setblocking(False)
        while True:
            listener.accept()[0].close()
