# SPDX-License-Identifier: Apache-2.0
"""The log of a VM from the journal, for API and command line."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from hypemand.model.logs import MAX_LINE, LogLine, LogSource
from hypemand.protocol.sentinels import derive_user_text
from hypemand.systemd.journal import STAGE_FIELD, LogJournal, get_field, seek_behind
from hypemand.unitnames import unit_name
from hypemand.vm.vm import Vm
from hypemand.vmm import messages
from hypemand.workers import Lent, Pool, run_in

_BATCH = 500
# lines of one step of a search: so long does the end of a client that has left wait
_SEEK_STEP = 2000
_FIELD_LIMIT = MAX_LINE + 1024
_MAX_DIGITS = 19
# what hypeman-console says of lines that it has dropped, and what is said here of those that journald has
NOTICE = b"hypeman-console: "
_MISSING = b"hypemand: %d lines were not kept: journald has dropped them"


class _Numbers:
    """Counts the lines of a run and finds out which are missing (guest/console/journal.h)."""

    def __init__(self) -> None:
        self._run: str | None = None
        self._next: int | None = None

    def find_missing(self, run: str | None, number: int | None) -> int:
        """How many lines are missing before this one, which has that number if that is known."""
        if run != self._run:
            # of the run that is read first, the first lines may have been removed with their files
            self._next = None if self._run is None else 1
            self._run = run
        missing = 0
        if number is not None:
            missing = 0 if self._next is None else max(number - self._next, 0)
            self._next = number
        return missing

    def advance(self, lines: int) -> None:
        """So many lines were there, or are known to be missing."""
        if self._next is not None:
            self._next += lines


@dataclass(frozen=True, slots=True)
class LogOwner:
    """Whose lines are wanted: the VM of that name and id. `former_names`: under which it has had `runs`."""

    name: str
    vm_id: str
    former_names: tuple[str, ...] = ()
    runs: frozenset[str] = frozenset()


class VmLog:
    """The lines of one VM, of all its runs; of those under a former name, of the runs that are known. `close`
    it."""

    def __init__(self, journal: LogJournal, owner: LogOwner, source: LogSource, *, sentinels: bool) -> None:
        names = (owner.name, *owner.former_names)
        units = ["hypemand.service"] if source is LogSource.HYPEMAN else [unit_name(name) for name in names]
        self._source = source
        self._sentinels = sentinels
        self._unit = units[0].encode()
        self._runs = owner.runs
        self._identifiers = {name.encode() for name in names}
        self._missing = 0
        self._since = 0
        # of the line that was read last, or is the last one not to be read
        self._cursor: str | None = None
        self._message: bytes | None = None
        self._numbers = _Numbers()
        self._reader = journal.open()
        self._reader.data_threshold = _FIELD_LIMIT
        # the id too: an earlier VM of the same name had lines of its own
        self._reader.add_match(f"HYPEMAN_VM_ID={owner.vm_id}")
        for unit in units:
            self._reader.add_match(f"_SYSTEMD_UNIT={unit}")
        if source is LogSource.APP:
            # what systemd says while it sets the unit up has another one
            for name in names:
                self._reader.add_match(f"SYSLOG_IDENTIFIER={name}")
        self._reader.fileno()

    def begin_seek(self, tail: int | None, since: float | None = None) -> bool:
        """Go to where the last `tail` wanted lines begin; None: to the first line; and not before `since`.
        True: it is there; else call `seek_on` until that says so."""
        self._missing = tail or 0
        self._since = 0 if since is None else round(since * 1e6)
        if tail is None and since is None:
            self._reader.seek_head()
            return True
        if tail is None:
            self._reader.seek_realtime(self._since)
            return True
        self._reader.seek_tail()
        return False

    def seek_on(self) -> bool:
        """Look through some more lines, from the last one back: of what a guest wrote, few may be wanted."""
        for _ in range(_SEEK_STEP):
            if not self._reader._previous():
                self._reader.seek_head()
                return True
            if self._missing == 0 or self._reader._get_realtime() < self._since:
                self._cursor = self._reader._get_cursor()
                return True
            self._take_message()
            self._missing -= self._find_wanted() is not None
        return False

    def read(self) -> list[LogLine]:
        """The next lines; empty when there are none now."""
        lines: list[LogLine] = []
        has_read = False
        for _ in range(_BATCH):
            if not self._reader._next():
                break
            has_read = True
            lines += self._read_entry()
        if has_read:
            self._cursor = self._reader._get_cursor()
        return lines

    def _read_entry(self) -> list[LogLine]:
        """What is to be shown of the entry that the reader stands on, and before it how many lines are
        missing there."""
        time, run = self._reader._get_realtime() / 1e6, self._invocation()
        message = self._take_message()
        lines: list[LogLine] = []
        dropped = 0
        if self._source is LogSource.APP and get_field(self._reader, "_TRANSPORT") == b"journal":
            missing = self._numbers.find_missing(run, self._number("HYPEMAN_LINE"))
            if missing:
                lines.append(LogLine(time, _MISSING % missing, run, missing=missing))
            if message is not None:
                dropped = (self._number("HYPEMAN_DROPPED") or 0) if message.startswith(NOTICE) else 0
                self._numbers.advance(dropped or len(message) != MAX_LINE)
        shown = self._find_wanted()
        if shown is not None:
            partial = len(shown) == MAX_LINE or shown != message
            lines.append(LogLine(time, shown, run, partial, dropped))
        return lines

    def process(self) -> None:
        """The journal has changed: have `read` look again, also in files that journald has added."""
        self._reader.process()
        if self._cursor is None and self._since:
            self._reader.seek_realtime(self._since)
        else:
            seek_behind(self._reader, self._cursor)

    @property
    def fd(self) -> int:
        """Readable when the journal has changed; journald says so up to half a second late."""
        return int(self._reader.fileno())

    def _take_message(self) -> bytes | None:
        """The text of the entry that the reader stands on; None: it has none."""
        self._message = None
        for field in ("MESSAGE", STAGE_FIELD):
            with contextlib.suppress(KeyError):
                self._message = self._reader._get(field)
                if get_field(self._reader, "HYPEMAN_CR"):
                    self._message += b"\r"
                break
        return self._message

    def _invocation(self) -> str | None:
        return get_field(self._reader, "_SYSTEMD_INVOCATION_ID").decode("ascii", "replace") or None

    def _number(self, name: str) -> int | None:
        value = get_field(self._reader, name)
        return int(value) if value.isdigit() and len(value) < _MAX_DIGITS else None

    def _is_own(self) -> bool:
        """Of a unit that had the VM's lines before, and may be another VM's by now, that VM's VMM could send
        lines with any id: but the run is journald's own word."""
        return get_field(self._reader, "_SYSTEMD_UNIT") == self._unit or self._invocation() in self._runs

    def _find_wanted(self) -> bytes | None:
        """What of the message that was taken is to be shown, if anything."""
        message = self._message
        if message is None or self._source is LogSource.HYPEMAN:
            return message
        if not self._is_own():
            return None
        by_vmm = message.startswith(messages.PROGRAM)
        if self._source is LogSource.VMM:
            # and what systemd says while it sets the unit up
            is_other = get_field(self._reader, "SYSLOG_IDENTIFIER") not in self._identifiers
            return message if by_vmm or is_other else None
        if by_vmm or self._sentinels:
            return None if by_vmm else message
        return derive_user_text(message)

    def close(self) -> None:
        """Close the journal's files."""
        self._reader.close()


async def read_log(
    journal: LogJournal,
    vm: Vm,
    source: LogSource,
    tail: int | None,
    *,
    follow: bool,
    sentinels: bool,
    since: float | None,
) -> AsyncIterator[LogLine]:
    """Lines of a VM; see `Manager.logs`."""
    record = vm.record
    runs = frozenset(ended.run for ended in vm.runs.ended)
    owner = LogOwner(record.name, record.id, record.former_names, runs)
    opened = open_log(journal, owner, source, sentinels=sentinels)
    with vm.changes.watching() as changed:
        async with opened as log:
            await seek_log(log, tail, since)
            async for line in follow_log(
                journal,
                log,
                follow=follow,
                is_live=lambda: vm.state.is_vmm_active,
                state_changed=changed,
            ):
                yield line


@asynccontextmanager
async def open_log(
    journal: LogJournal, owner: LogOwner, source: LogSource, *, sentinels: bool
) -> AsyncIterator[Lent[VmLog]]:
    """A VM's lines, for threads. A client that leaves while one reads does not free the journal under it."""
    log = await run_in(Pool.LOGS, VmLog, journal, owner, source, sentinels=sentinels)
    lent = Lent(Pool.LOGS, log, VmLog.close)
    try:
        yield lent
    finally:
        lent.close()


async def seek_log(log: Lent[VmLog], tail: int | None, since: float | None = None) -> None:
    """Go to where the last `tail` lines begin; None: to the first one; and not before `since`."""
    there = await log.run(lambda log: log.begin_seek(tail, since))
    while not there:
        there = await log.run(VmLog.seek_on)


async def follow_log(
    journal: LogJournal,
    log: Lent[VmLog],
    *,
    follow: bool,
    is_live: Callable[[], bool],
    state_changed: asyncio.Event,
) -> AsyncIterator[LogLine]:
    """Lines from where the log stands. With `follow`, until `is_live` says that the run is over and
    everything that journald had been sent by then was given. `state_changed` is set when `is_live` may
    have another answer."""
    last_round = not follow
    while True:
        state_changed.clear()
        batch = await log.run(VmLog.read)
        for line in batch:
            yield line
        if batch:
            continue
        if last_round:
            return
        if is_live():
            await _await_change(log, state_changed)
            continue
        await run_in(Pool.LOGS, journal.synchronize)
        await log.run(VmLog.process)
        last_round = True


async def _await_change(log: Lent[VmLog], state_changed: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    fd = await log.run(lambda log: log.fd)
    loop.add_reader(fd, state_changed.set)
    try:
        await state_changed.wait()
    finally:
        loop.remove_reader(fd)
    await log.run(VmLog.process)
