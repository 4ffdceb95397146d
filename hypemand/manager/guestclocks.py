# SPDX-License-Identifier: Apache-2.0
"""Keeps the clocks of guests at the host's time.

A guest's clock runs freely once its session has set it: it knows neither of a step of the host's clock nor of
the small corrections that NTP makes to that all the time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from hypemand.clocksteps import ClockSteps
from hypemand.manager.fleet import Fleet

_log = logging.getLogger(__name__)
# Seconds until the clocks are compared without a step: at 500 ppm, the most that adjtimex(2) slews, they are
# 0.3 s apart then.
_DRIFT_SECONDS = 600.0


class GuestClocks:
    """Sets them after each step, from `follow` to `close`."""

    def __init__(self, fleet: Fleet, clock: Callable[[], float] = time.monotonic) -> None:
        self._fleet = fleet
        self._clock = clock
        self._compared = clock()
        self._steps: ClockSteps | None = None

    def follow(self) -> None:
        """Set the clocks of all guests when the host's is set."""
        try:
            self._steps = ClockSteps(self._take_step)
        except OSError as error:
            _log.warning("guests follow a step of this host's clock after minutes only: %s", error)

    def look(self) -> None:
        """To be called now and then: sets the clocks when they may have drifted apart."""
        if self._clock() - self._compared >= _DRIFT_SECONDS:
            self._set_all()

    def close(self) -> None:
        """Leave them alone."""
        if self._steps is not None:
            self._steps.close()
            self._steps = None

    def _take_step(self) -> None:
        _log.info("this host's clock was set: the guests' are set, too")
        self._set_all()

    def _set_all(self) -> None:
        self._compared = self._clock()
        for vm in self._fleet:
            if vm.session is not None:
                vm.session.keep_clock()
