# SPDX-License-Identifier: Apache-2.0
"""Notifications of systemd and systemd-machined about the boot of a VM."""

from __future__ import annotations

import logging
import socket
import time
from pathlib import Path

from hypemand.systemd.bus import BusError
from hypemand.systemd.machined import register_machine
from hypemand.systemd.port import Bus
from hypemand.unitnames import unit_name
from hypemand.vm.networkmember import NetworkHost
from hypemand.vm.record import VmRecord
from hypemand.vm.session import Session
from hypemand.vm.tracker import Moment

_log = logging.getLogger(__name__)
# more than the time between two looks at what stands still, see manager/resources/diskwatch.py
_LEAST_EXTENSION = 60.0
_CONSOLE = "hypeman-console\n"


def notify_systemd(vm: str, session: Session, *assignments: str) -> None:
    """Tell the unit of a VM something, as READY=1, in the name of its VMM if that is known."""
    if session.main_pid is None:
        return
    try:
        session.notify(session.main_pid, *assignments)
    except OSError as error:
        _log.error("VM %s: cannot notify systemd of %s: %s", vm, assignments[0], error)


def notify_ready(vm: str, session: Session) -> None:
    """When all is there that makes a VM Running, say so once. Its unit is activating."""
    if session.notified or not session.is_ready or session.main_pid is None:
        return
    session.notified = True
    session.tracker.set_moment(Moment.NOTIFIED, time.monotonic())
    notify_systemd(vm, session, "READY=1", "STATUS=Running")


def extend_boot(vm: str, session: Session, boot_timeout: float | None) -> None:
    """Extend the deadline of a boot whose guest is paused. systemd takes only a time from now on, so the boot
    has all of its time again when the guest is resumed."""
    if boot_timeout is not None:
        seconds = max(boot_timeout, _LEAST_EXTENSION)
        notify_systemd(vm, session, f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")


def mark_running(vm: str, session: Session) -> bool:
    """Note that it is Running. False when there is nothing new in that."""
    moments = session.tracker.notes.moments
    if Moment.RUNNING in moments or Moment.NOTIFIED not in moments:
        return False
    session.tracker.set_moment(Moment.RUNNING, time.monotonic())
    return True


async def register(bus: Bus, record: VmRecord, session: Session, networks: NetworkHost) -> None:
    """Make a VM known to systemd-machined."""
    if session.main_pid is None:
        return
    try:
        leader = find_leader(session.main_pid, unit_name(record.name))
        tap = networks.interface_of(record.name)
        interfaces = () if tap is None else (socket.if_nametoindex(tap),)
        await register_machine(bus, record.name, record.id, leader, interfaces)
    except (OSError, BusError) as error:
        _log.warning("VM %s: cannot register it with systemd-machined: %s", record.name, error)


def find_leader(main_pid: int, unit: str, proc: Path = Path("/proc")) -> int:
    """The process that waits beside the VMM for machinectl's signals (launcher/leader.h): its only child.
    OSError when there is none in the unit, as before a VMM that starts warm is the main process. The one
    before has a child that ends before the VMM does (guest/console/candidate.h)."""
    for word in (proc / f"{main_pid}/task/{main_pid}/children").read_text().split():
        if (proc / word / "comm").read_text() == _CONSOLE:
            continue
        if f"/{unit}\n" in (proc / word / "cgroup").read_text():
            return int(word)
    raise ProcessLookupError(f"no leader beside process {main_pid} in {unit}")
