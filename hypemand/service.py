# SPDX-License-Identifier: Apache-2.0
"""The process of a systemd service of type notify: arguments, log, signals, readiness, status, watchdog, and
the exit status. For the daemon and the network service alike."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable

import sdnotify
from systemd import journal

from hypemand.errors import HypemandError, InvalidDefinition
from hypemand.tasks import Tasks
from hypemand.version import VERSION

_log = logging.getLogger(__name__)
# for a service manager that does not read, where what it is sent must arrive
_NOTIFY_DEADLINE = 5.0


class Service:
    """One run of a service. `on_watchdog`: called with each ping of the watchdog, if the unit has one."""

    def __init__(self, on_watchdog: Callable[[], None] = lambda: None) -> None:
        self._on_watchdog = on_watchdog
        self._stop = asyncio.Event()
        self._status = ""

    def stop(self) -> None:
        """End `serve`."""
        self._stop.set()

    @contextlib.asynccontextmanager
    async def watch(self) -> AsyncIterator[None]:
        """Take SIGTERM and SIGINT as `stop`, and ping the watchdog from the event loop, so that systemd
        notices one that hangs; while the block runs."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        async with Tasks("the service") as tasks:
            tasks.start("watchdog", self._ping_watchdog())
            yield

    async def serve(self) -> None:
        """Notify systemd that the service is ready, and wait for SIGTERM, SIGINT or `stop`."""
        _notify("READY=1", wait=True)
        await self._stop.wait()
        _notify("STOPPING=1", wait=True)

    def update_status(self, status: str) -> None:
        """Show another STATUS= in `systemctl status`. One that cannot be sent now is sent with the next."""
        if status != self._status and _notify(f"STATUS={status}"):
            self._status = status

    async def _ping_watchdog(self) -> None:
        interval = int(os.environ.get("WATCHDOG_USEC", "0")) / 2e6
        while interval:
            _notify("WATCHDOG=1")
            try:
                self._on_watchdog()
            except Exception:
                # the event loop turns: that is what the watchdog is about
                _log.exception("%s failed", getattr(self._on_watchdog, "__qualname__", "a recurring check"))
            await asyncio.sleep(interval)


def _notify(assignment: str, *, wait: bool = False) -> bool:
    """Was it sent? Only with `wait` it is waited for a service manager that does not read."""
    if not os.environ.get("NOTIFY_SOCKET"):
        return False
    try:
        notifier = sdnotify.SystemdNotifier(debug=True)  # else it hides what goes wrong
        with notifier.socket as connection:
            connection.settimeout(_NOTIFY_DEADLINE if wait else 0)
            notifier.notify(assignment)
    except OSError:
        return False
    return True


def make_parser(program: str, description: str) -> argparse.ArgumentParser:
    """The options that every service has."""
    parser = argparse.ArgumentParser(prog=program, description=description, epilog="See hypemand(8).")
    parser.add_argument("--version", action="version", version=f"hypemand {VERSION}")
    return parser


def set_up_logging(identifier: str, *, quiet: str) -> None:
    """Everything from `logging` to the journal, or to standard error when it does not lead there. Of the
    logger `quiet` only warnings."""
    handler: logging.Handler = logging.StreamHandler()
    if "JOURNAL_STREAM" in os.environ:
        handler = journal.JournalHandler(SYSLOG_IDENTIFIER=identifier)
    logging.basicConfig(level=logging.INFO, handlers=[handler], format="%(message)s")
    logging.getLogger(quiet).setLevel(logging.WARNING)


def run_service(run: Callable[[], None]) -> int:
    """Run a service and return its exit status: 78 (EX_CONFIG of sysexits.h) when its configuration is wrong,
    1 when it cannot run for another reason, which is logged."""
    try:
        run()
    except HypemandError as error:
        _log.critical("cannot run: %s", error)
        return os.EX_CONFIG if isinstance(error, InvalidDefinition) else 1
    return 0
