# SPDX-License-Identifier: Apache-2.0
"""The log of a VM from the journal, for API and command line."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from hypemand.model.logs import LogLine, LogSource
from hypemand.protocol.sentinels import derive_user_text
from hypemand.systemd.journal import LogJournal
from hypemand.unitnames import unit_name
from hypemand.vmm import messages
from hypemand.workers import Lent, Pool, run_in

_BATCH = 500
# lines of one step of a search: so long does the end of a client that has left wait
_SEEK_STEP = 2000
_FIELD_LIMIT = 64 * 1024


class VmLog:
    """The lines of one VM, of all its runs. `close` it."""

    def __init__(
        self, journal: LogJournal, name: str, vm_id: str, source: LogSource, *, sentinels: bool
    ) -> None:
        unit = "hypemand.service" if source is LogSource.HYPEMAN else unit_name(name)
        self._source = source
        self._sentinels = sentinels
        self._missing = 0
        self._reader = journal.open()
        self._reader.data_threshold = _FIELD_LIMIT
        # the id too: an earlier VM of the same name had lines of its own
        self._reader.add_match(f"HYPEMAN_VM_ID={vm_id}")
        self._reader.add_match(f"_SYSTEMD_UNIT={unit}")
        if source is LogSource.APP:
            # what systemd says while it sets the unit up comes by another way
            self._reader.add_match("_TRANSPORT=stdout")
        self._reader.fileno()

    def begin_seek(self, tail: int | None) -> bool:
        """Go to where the last `tail` wanted lines begin; None: to the first line. True: it is there; else
        call `seek_on` until that says so."""
        self._missing = tail or 0
        if tail is None:
            self._reader.seek_head()
            return True
        self._reader.seek_tail()
        return False

    def seek_on(self) -> bool:
        """Look through some more lines, from the last one back: of what a guest wrote, few may be wanted."""
        for _ in range(_SEEK_STEP):
            if not self._reader._previous():
                self._reader.seek_head()
                return True
            # `read` begins with the line after the one that the reader stands on
            if self._missing == 0:
                return True
            self._missing -= self._wanted_text() is not None
        return False

    def read(self) -> list[LogLine]:
        """The next lines; empty when there are none now."""
        lines: list[LogLine] = []
        for _ in range(_BATCH):
            if not self._reader._next():
                break
            text = self._wanted_text()
            if text is not None:
                lines.append(LogLine(self._reader._get_realtime() / 1e6, text, self._invocation()))
        return lines

    def process(self) -> None:
        """Take notice of files that journald has added or rotated."""
        self._reader.process()

    @property
    def fd(self) -> int:
        """Readable when the journal has changed; journald says so up to half a second late."""
        return int(self._reader.fileno())

    def _message(self) -> bytes:
        return self._field("MESSAGE")

    def _invocation(self) -> str | None:
        return self._field("_SYSTEMD_INVOCATION_ID").decode("ascii", "replace") or None

    def _field(self, name: str) -> bytes:
        try:
            return bytes(self._reader._get(name))
        except KeyError:
            return b""

    def _wanted_text(self) -> str | None:
        """The line that the reader stands on, as it is to be shown; None if it is not."""
        message = self._message()
        if self._source is LogSource.HYPEMAN:
            return message.decode("utf-8", "replace")
        by_vmm = message.startswith(messages.PROGRAM) or self._field("_TRANSPORT") != b"stdout"
        if by_vmm != (self._source is LogSource.VMM):
            return None
        if self._sentinels:
            return message.decode("utf-8", "replace")
        return derive_user_text(message.decode("utf-8", "replace"))

    def close(self) -> None:
        """Close the journal's files."""
        self._reader.close()


@asynccontextmanager
async def open_log(
    journal: LogJournal, name: str, vm_id: str, source: LogSource, *, sentinels: bool
) -> AsyncIterator[Lent[VmLog]]:
    """A VM's lines, for threads. A client that leaves while one reads does not free the journal under it."""
    log = await run_in(Pool.LOGS, VmLog, journal, name, vm_id, source, sentinels=sentinels)
    lent = Lent(Pool.LOGS, log, VmLog.close)
    try:
        yield lent
    finally:
        lent.close()


async def seek_log(log: Lent[VmLog], tail: int | None) -> None:
    """Go to where the last `tail` lines begin; None: to the first one."""
    there = await log.run(lambda log: log.begin_seek(tail))
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
