# SPDX-License-Identifier: Apache-2.0
"""The last events of this host: numbered, kept as long as there is room, and sent to those who follow them.

A cursor is the daemon's own key and the number of an event. Events are not kept beyond the daemon: what came
before its start is missed by those who ask with a cursor of the daemon before it. The journal has states and
ends of VMs of all daemons.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import AsyncIterator, Iterator

from hypemand.model.events import Cursor, Event, Missed, Noted, Since, Tell
from hypemand.vm.changes import Changes

CAPACITY = 1000
"""Events that are kept: less than a MiB, and what a host with 40 VMs has while it boots, four times."""


class Events:
    """`follow` those that come; `read` those that are kept. Whoever follows does little, and raises
    nothing."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._key = secrets.token_hex(4)
        self._kept: deque[Event] = deque(maxlen=capacity)
        # the number of the last one
        self._last = 0
        self._followers: list[Tell] = []
        self._changes = Changes()

    def follow(self, tell: Tell) -> None:
        """Call this with each event from now on."""
        self._followers.append(tell)

    def tell(self, event: Event) -> None:
        """Something has happened."""
        self._last += 1
        self._kept.append(event)
        for follower in self._followers:
            follower(event)
        self._changes.tell()

    @property
    def _first(self) -> int:
        """The number of the oldest one that is kept."""
        return self._last - len(self._kept) + 1

    def _note(self, number: int, event: Event) -> Noted:
        return Noted(Cursor(self._key, number), event)

    async def read(self, since: Since, *, follow: bool) -> AsyncIterator[Noted]:
        """Events from `since` on, oldest first: those that are kept, and then those that come if they are
        followed. Where some are missing, because there were too many for who reads slowly, an event says how
        many."""
        number, missed = self._find(since)
        with self._changes.watching() as changed:
            if missed is not None:
                yield missed
            while True:
                changed.clear()
                for noted in self._take(number):
                    number = noted.cursor.number + 1
                    yield noted
                    if number < self._first:
                        break  # while that was sent more came than are kept
                if number <= self._last:
                    continue
                if not follow:
                    return
                await changed.wait()

    def _find(self, since: Since) -> tuple[int, Noted | None]:
        """The number of the first that is wanted, and what was missed where nobody knows how much that is."""
        if since.cursor is not None and since.cursor.key != self._key:
            return self._first, self._miss(None, "events before the daemon was started are not kept")
        if since.cursor is not None:
            return min(since.cursor.number, self._last) + 1, None
        if since.at is not None:
            later = (at for at, event in enumerate(self._kept) if event.at >= since.at)
            return self._first + next(later, len(self._kept)), None
        return (self._first if since.kept else self._last + 1), None

    def _miss(self, count: int | None, words: str) -> Noted:
        return self._note(self._first - 1, Event(Missed(count), words))

    def _take(self, number: int) -> Iterator[Noted]:
        """Those from a number on that are kept, as they are now."""
        if number < self._first:
            count = self._first - number
            yield self._miss(count, f"{count} events were missed")
            number = self._first
        for at, event in enumerate(tuple(self._kept)[number - self._first :], number):
            yield self._note(at, event)
