# SPDX-License-Identifier: Apache-2.0
"""What this daemon has counted since it was started, from the events of the host."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from hypemand.histogram import Histogram
from hypemand.model.events import Event, Exit, Failure, Pull, Ready, Rename, Restart, Start, StartKind
from hypemand.model.images import PullStatus

BOUNDS = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0)
"""Seconds: from a warm start under KVM to a whole Debian under TCG."""


def _make_histograms() -> dict[StartKind, Histogram]:
    return {kind: Histogram(BOUNDS) for kind in StartKind}


class Counts:
    """`starts` by kind, `failures` by reason and marker, `exits` and `pulls` by how they ended; `restarts` by
    the VM's name. `initializing` and `ready`: see Ready."""

    def __init__(self) -> None:
        self.starts: Counter[str] = Counter()
        self.failures: Counter[tuple[str, str]] = Counter()
        self.exits: Counter[str] = Counter()
        self.pulls: Counter[str] = Counter()
        self.restarts: Counter[str] = Counter()
        self.initializing = _make_histograms()
        self.ready = _make_histograms()

    def take(self, event: Event) -> None:
        """It has happened."""
        match event.details:
            case Start(start=kind):
                self.starts[kind] += 1
            case Restart():
                self.starts[StartKind.RESTARTED] += 1
                self.restarts[event.vm] += 1
            case Ready(start=kind, ready=ready, initializing=initializing):
                if initializing is not None:
                    self.initializing[kind].observe(initializing)
                if ready is not None:
                    self.ready[kind].observe(ready)
            case Failure(reason=reason, marker=marker):
                self.failures[reason, marker] += 1
            case Exit(exit=kind):
                self.exits[kind] += 1
            case Rename(old=old, new=new):
                self.restarts[new] = self.restarts.pop(old, 0)
            case Pull(status=status) if status is not PullStatus.PENDING:
                self.pulls[status] += 1

    def forget(self, is_known: Callable[[str], bool]) -> None:
        """Keep nothing of VMs that are not known any more."""
        for name in [name for name in self.restarts if not is_known(name)]:
            del self.restarts[name]
