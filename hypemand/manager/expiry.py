# SPDX-License-Identifier: Apache-2.0
"""Deletes VMs and snapshots whose lifetime is over.

There is one timer, for what ends first, and none where nothing has an end. A lifetime ends by the host's
clock.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from hypemand.errors import HypemandError, InUse, NotFound
from hypemand.manager.walltimer import WallTimer
from hypemand.systemd.log import log_vm
from hypemand.tasks import Tasks

# seconds after which a deletion that failed is tried again
_RETRY = 60.0


@dataclass(frozen=True, slots=True)
class Term:
    """Something that ends `at` that time, in seconds since the epoch. `key`: its id; `what`: it in words;
    `vm` and `vm_id`: whose it is; `delete`: deletes it if its lifetime is over, when nothing else is done
    with it."""

    key: str
    what: str
    at: float
    vm: str
    vm_id: str
    delete: Callable[[], Awaitable[None]]


class Expiry:
    """From `begin` to `close`. `list_terms`: all that has an end."""

    def __init__(
        self,
        list_terms: Callable[[], Iterable[Term]],
        clock: Callable[[], float] = time.time,
        retry: float = _RETRY,
    ) -> None:
        self._list_terms = list_terms
        self._clock = clock
        self._retry = retry
        self._tasks = Tasks("the expiry of VMs and snapshots")
        self._begun = False
        self.timer = WallTimer("ends of VMs and snapshots", self._look, clock)
        # by key: being deleted, or waited with after a failure until that time
        self._ending: set[str] = set()
        self._later: dict[str, float] = {}

    def begin(self) -> None:
        """VMs and snapshots are known. Those whose lifetime is over are deleted now."""
        self._begun = True
        self.schedule()

    async def close(self) -> None:
        """Delete no more."""
        self._begun = False
        self.schedule()
        await self._tasks.close()

    def schedule(self) -> None:
        """To be called when something has another end, or has gone."""
        self.timer.set(min((self._find_time(term) for term in self._list_open()), default=None))

    def _list_open(self) -> list[Term]:
        return [term for term in self._list_terms() if term.key not in self._ending] if self._begun else []

    def _find_time(self, term: Term) -> float:
        return max(term.at, self._later.get(term.key, 0.0))

    def _look(self) -> None:
        now = self._clock()
        for term in self._list_open():
            if self._find_time(term) <= now:
                self._ending.add(term.key)
                self._tasks.start(f"end of {term.what}", self._end(term))
        self.schedule()

    async def _end(self, term: Term) -> None:
        self._later.pop(term.key, None)
        try:
            await term.delete()
        except NotFound:
            pass  # it has been deleted meanwhile
        except (HypemandError, OSError) as error:
            level = logging.WARNING if isinstance(error, InUse) else logging.ERROR
            log_vm(level, f"{term.what} has expired, and is not deleted yet: {error}", term.vm, term.vm_id)
            self._later[term.key] = self._clock() + self._retry
        finally:
            self._ending.discard(term.key)
            self.schedule()
