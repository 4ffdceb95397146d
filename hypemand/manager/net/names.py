# SPDX-License-Identifier: Apache-2.0
"""Names of VMs: for the host in a file that libnss-hypemand reads, for VMs of a group in their /etc/hosts.

A guest gets the names of that time with its configuration (docs/protocol.md, "Names"). Later changes are
written to the host's block of its file through its agent, in the background, and never on the way of a start.
A guest where that fails keeps its file, and gets the names with the next change.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import posixpath
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Protocol

from hypemand.atomic import write_file
from hypemand.errors import GuestError, HypemandError
from hypemand.model.files import CopyIn, CopyOut, FileInfo, FileKind, Hole
from hypemand.model.networks import OPEN_GROUP, Member
from hypemand.protocol.configdisk import MAX_HOSTS, GuestHost
from hypemand.recordfile import read_regular
from hypemand.tasks import Tasks
from hypemand.workers import Pool, run_in

_log = logging.getLogger(__name__)
_DOMAIN = "hypeman"
_PATH = "/etc/hosts"
_HEADER = b"# VMs that run, for libnss-hypemand; written by hypemand\n"
_BEGIN = re.compile(rb"^# BEGIN hypemand$", re.MULTILINE)
_END = re.compile(rb"^# END hypemand$", re.MULTILINE)
_MAX_SIZE = 1024 * 1024
_MAX_LINKS = 8
_DEADLINE = 15.0
# so many guests are asked at once
_AT_ONCE = 4

Hosts = tuple[GuestHost, ...]


class Guests(Protocol):
    """What is needed of VMs that run. The methods that wait raise HypemandError."""

    def running_boot(self, vm: str) -> str | None:
        """The id of its boot if it is Running and has an agent."""

    async def stat_path(self, ref: str, path: str, *, follow: bool = False) -> FileInfo | None:
        """See `hypemand.model.vm.GuestService`."""

    async def copy_out(self, ref: str, path: str, *, follow: bool = False) -> CopyOut:
        """See `hypemand.model.vm.GuestService`."""

    async def copy_in(self, ref: str, path: str) -> CopyIn:
        """See `hypemand.model.vm.GuestService`."""


# what is to be known


def _lines(member: Member) -> Iterator[GuestHost]:
    for address in (member.ipv4, member.ipv6):
        if address is not None:
            yield GuestHost(str(address), (member.vm, f"{member.vm}.{_DOMAIN}"))


def _named_group(member: Member) -> tuple[str, str] | None:
    """Those who have the same know each other; VMs that are merely not isolated do not."""
    return None if member.group in (None, OPEN_GROUP) else (member.network, str(member.group))


def derive_host_names(members: Iterable[Member], own: str = "") -> Hosts:
    """What the host knows: every VM that is on its network now, by name. The host's `own` short name and
    localhost are not a VM's, even if it is called so; nor is any short name where the VM may not have it."""
    attached = sorted((member for member in members if member.attached), key=lambda member: member.vm)
    return tuple(chain.from_iterable(_lines_for_host(member, own) for member in attached))


def _lines_for_host(member: Member, own: str) -> Iterator[GuestHost]:
    hidden = {own, "localhost"} if member.short_name else {own, "localhost", member.vm}
    for line in _lines(member):
        yield replace(line, names=tuple(name for name in line.names if name not in hidden))


def derive_guest_names(members: Iterable[Member]) -> dict[str, Hosts]:
    """What each guest knows: first itself, then by name those of its network with the same named group,
    whether they run or not, since their addresses last. At most MAX_HOSTS lines."""
    groups: dict[tuple[str, str], list[Member]] = {}
    names: dict[str, Hosts] = {}
    for member in sorted(members, key=lambda member: member.vm):
        group = _named_group(member)
        if group is None:
            names[member.vm] = tuple(_lines(member))
        else:
            groups.setdefault(group, []).append(member)
    for others in groups.values():
        names |= _derive_group_names(others)
    return names


def _derive_group_names(group: Sequence[Member]) -> Iterator[tuple[str, Hosts]]:
    lines = [tuple(_lines(member)) for member in group]
    for at, member in enumerate(group):
        own_first = (lines[at], *lines[:at], *lines[at + 1 :])
        yield member.vm, tuple(islice(chain.from_iterable(own_first), MAX_HOSTS))


def format_hosts(hosts: Hosts) -> bytes:
    """Lines of hosts(5), as the guest's init writes them."""
    return "".join(f"{host.address}\t{' '.join(host.names)}\n" for host in hosts).encode()


def replace_block(text: bytes, hosts: Hosts) -> bytes:
    """The text of an /etc/hosts with the host's block replaced where it stands, or added at the end; without
    `hosts` there is none. All other lines stay as they are. `guest/init/hosts.c` does the same at a boot."""
    block = b"# BEGIN hypemand\n" + format_hosts(hosts) + b"# END hypemand\n" if hosts else b""
    kept: list[bytes] = []
    at = 0
    end = _END.search(text)
    while (begin := _BEGIN.search(text, at)) is not None:
        kept += [text[at : begin.start()], b"" if kept else block]
        # looked for once where there is none, whatever a guest has written
        if end is not None and end.start() < begin.end():
            end = _END.search(text, begin.end())
        at = (begin if end is None else end).end()
        at += text[at : at + 1] == b"\n"
    if kept or not block:
        return b"".join((*kept, text[at:]))
    return text + (b"" if not text or text.endswith(b"\n") else b"\n") + block


# in a guest


async def set_guest_names(guests: Guests, vm: str, hosts: Hosts) -> None:
    """Have the /etc/hosts of a guest say so. It keeps its mode and owner, and is written only if it changes.
    HypemandError."""
    path = await _find_file(guests, vm)
    info, old = await _read_file(guests, vm, path)
    new = replace_block(old, hosts)
    if new != old:
        await _write_file(guests, vm, path, info, new)


async def _find_file(guests: Guests, vm: str) -> str:
    """Where it is: a link is followed, so that it stays one."""
    path = _PATH
    for _ in range(_MAX_LINKS):
        info = await guests.stat_path(vm, path)
        if info is None:
            raise GuestError(f"there is no {path[:80]!r} in the guest")
        if info.kind is not FileKind.SYMLINK:
            return path
        path = posixpath.join(posixpath.dirname(path), info.target or "")
    raise GuestError(f"{_PATH} is a chain of too many links")


async def _read_file(guests: Guests, vm: str, path: str) -> tuple[FileInfo, bytes]:
    copy = await guests.copy_out(vm, path)
    try:
        info = None
        content = bytearray()
        async for event in copy.events():
            if isinstance(event, FileInfo):
                _check_file(event)
                info = event
            else:
                content += bytes(event.size) if isinstance(event, Hole) else event
    finally:
        await copy.close()
    if info is None:
        raise GuestError(f"{path[:80]!r} has no entry")
    return info, bytes(content)


def _check_file(info: FileInfo) -> None:
    if info.kind is not FileKind.FILE:
        raise GuestError(f"{_PATH} is not a file but a {info.kind}")
    if info.size > _MAX_SIZE:
        raise GuestError(f"{_PATH} has {info.size} bytes; it is not changed if it has more than {_MAX_SIZE}")


async def _write_file(guests: Guests, vm: str, path: str, info: FileInfo, content: bytes) -> None:
    copy = await guests.copy_in(vm, path)
    try:
        entry = FileInfo("", FileKind.FILE, info.mode, info.uid, info.gid, len(content), time.time_ns())
        await copy.add(entry)
        await copy.write(content)
        await copy.finish()
    finally:
        await copy.close()


# keeping it so


@dataclass(slots=True)
class _Guest:
    """A guest that has, or had, names. `disk`: those on its config disk; `has`: those that it has in `boot`;
    None: not known. `failed`: those that could not be written."""

    disk: Hosts | None = None
    boot: str | None = None
    has: Hosts | None = None
    failed: Hosts | None = None
    task: asyncio.Task[None] | None = None


class Names:
    """Keeps the names. `path` is the host's file; `members` are all VMs that have addresses."""

    def __init__(self, path: Path, members: Callable[[], tuple[Member, ...]], guests: Guests) -> None:
        self._path = path
        self._list_members = members
        self._vms = guests
        self._members: tuple[Member, ...] = ()
        self._wanted: Mapping[str, Hosts] = {}
        # what the host's file is to say, and what it says; None: that is not known
        self._content = b""
        self._written: bytes | None = None
        self._tasks = Tasks("the host")
        self._writer: asyncio.Task[None] | None = None
        self._guests: dict[str, _Guest] = {}
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._look_due: asyncio.Handle | None = None
        # is it known which VMs are on their networks?
        self._ready = False
        self._closed = False

    def members_changed(self) -> None:
        """VMs have come to their network or left it, or may have: have all that is to know of it know. Until
        it is called for the first time, everything is left as it is."""
        self._ready = True
        for guest in self._guests.values():
            guest.failed = None
        self.states_changed()

    def states_changed(self) -> None:
        """A VM may have become Running. Returns at once, as does `members_changed`."""
        if self._look_due is None and self._ready and not self._closed:
            self._look_due = asyncio.get_running_loop().call_soon(self._look)

    def set_disk(self, vm: str, hosts: Hosts) -> None:
        """The names on a VM's config disk from now on."""
        self._guests.setdefault(vm, _Guest()).disk = hosts

    async def close(self) -> None:
        """Stop all updates; the files of guests and host stay as they are."""
        self._closed = True
        if self._look_due is not None:
            self._look_due.cancel()
        for guest in self._guests.values():
            if guest.task is not None:
                guest.task.cancel()
        await self._tasks.close(patience=_DEADLINE)

    def _look(self) -> None:
        self._look_due = None
        members = self._list_members()
        if members != self._members or self._written is None:
            self._members = members
            self._wanted = derive_guest_names(members)
            self._guests = {
                vm: guest for vm, guest in self._guests.items() if vm in self._wanted or guest.task
            }
            self._write_host()
        for member in members:
            boot = self._vms.running_boot(member.vm) if member.attached else None
            if boot is not None:
                self._look_at(member, boot)

    def _look_at(self, member: Member, boot: str) -> None:
        guest = self._guests.setdefault(member.vm, _Guest())
        if guest.boot != boot:
            guest.boot, guest.has, guest.failed = boot, guest.disk, None
        wanted = self._wanted[member.vm]
        if guest.has is None and _named_group(member) is None:
            # started before this daemon, with its own address, which cannot have changed
            guest.has = wanted
        if guest.task is None and wanted not in (guest.has, guest.failed):
            guest.task = self._tasks.start(f"names in VM {member.vm}", self._tell(member.vm, guest))

    async def _tell(self, vm: str, guest: _Guest) -> None:
        boot, wanted, failed = guest.boot, self._wanted[vm], None
        try:
            async with self._turns:
                # what it is now, after a wait
                boot, wanted = guest.boot, self._wanted.get(vm, wanted)
                async with asyncio.timeout(_DEADLINE):
                    await set_guest_names(self._vms, vm, wanted)
            if guest.boot == boot:
                guest.has = wanted
        except (HypemandError, OSError) as error:
            # TimeoutError, which is an OSError, has no words
            what = str(error) or f"its agent took more than {_DEADLINE:g} s"
            failed = wanted
            # it may have ended meanwhile, which is no fault
            level = logging.WARNING if self._vms.running_boot(vm) == boot else logging.DEBUG
            _log.log(level, "VM %s: cannot update the names of its group: %s", vm, what)
        except Exception:
            failed = wanted
            _log.exception("VM %s: cannot update the names of its group", vm)
        finally:
            guest.task = None
            if guest.boot == boot:
                guest.failed = failed
            # what came meanwhile is looked at once more
            self.states_changed()

    def _write_host(self) -> None:
        """Have the host's file say so soon: it is written in a thread, one after the other."""
        own = socket.gethostname().partition(".")[0]
        self._content = _HEADER + format_hosts(derive_host_names(self._members, own))
        if self._content != self._written and (self._writer is None or self._writer.done()):
            self._writer = self._tasks.start("names", self._keep_host())

    async def _keep_host(self) -> None:
        while self._content != self._written:
            content = self._content
            try:
                await run_in(Pool.RECORDS, _replace_host, self._path, content, known=self._written)
            except OSError as error:
                _log.warning("cannot write %s, with the names of VMs for the host: %s", self._path, error)
                return
            self._written = content


def _replace_host(path: Path, content: bytes, *, known: bytes | None) -> None:
    """Have a file hold `content`, and leave it as it is where it does. `known`: what it holds, if known."""
    if known is None:
        with contextlib.suppress(OSError):
            if read_regular(path) == content:
                return
    write_file(path, content)
