# SPDX-License-Identifier: Apache-2.0
"""Steps of the host's clock, as an event: set by hand or by NTP, or gone on while the host was suspended.

timerfd_create(2): a timer of CLOCK_REALTIME with TFD_TIMER_CANCEL_ON_SET becomes readable, and its read
fails with ECANCELED, when that clock undergoes a discontinuous change. A clock that is only slewed does not.
Python has no timerfd before 3.13.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Callable

_TFD_TIMER_ABSTIME = 1
_TFD_TIMER_CANCEL_ON_SET = 2
_NEVER = 2**63 - 1  # seconds, time_t


class _Itimerspec(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("every_s", "every_ns", "value_s", "value_ns")]


class ClockSteps:
    """Calls `on_step` in the running event loop after each step, until `close`. OSError where the kernel has
    no such timer."""

    def __init__(self, on_step: Callable[[], None]) -> None:
        self._on_step = on_step
        self._loop = asyncio.get_running_loop()
        self._fd = _open_timer()
        self._loop.add_reader(self._fd, self._take)

    def _take(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return
        except OSError:  # ECANCELED; from then on the timer tells of the next step
            self._on_step()

    def close(self) -> None:
        """No more calls."""
        self._loop.remove_reader(self._fd)
        os.close(self._fd)


def _open_timer() -> int:
    library = ctypes.CDLL(None, use_errno=True)
    # TFD_CLOEXEC and TFD_NONBLOCK are the flags of open(2)
    fd: int = library.timerfd_create(0, os.O_CLOEXEC | os.O_NONBLOCK)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "timerfd_create")
    never = _Itimerspec(value_s=_NEVER)
    if (
        library.timerfd_settime(fd, _TFD_TIMER_ABSTIME | _TFD_TIMER_CANCEL_ON_SET, ctypes.byref(never), None)
        != 0
    ):
        number = ctypes.get_errno()
        os.close(fd)
        raise OSError(number, "timerfd_settime")
    return fd
