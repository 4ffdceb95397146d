# SPDX-License-Identifier: Apache-2.0
"""Raw mode of the terminal for a program in a VM; restored at the end."""

from __future__ import annotations

import contextlib
import os
import termios
import tty
from collections.abc import Iterator

_DEFAULT_SIZE = (24, 80)


@contextlib.contextmanager
def raw_terminal(fd: int) -> Iterator[None]:
    """While it is entered no key is edited, echoed or made a signal."""
    before = termios.tcgetattr(fd)
    tty.setraw(fd, termios.TCSANOW)
    try:
        yield
    finally:
        with contextlib.suppress(termios.error):  # the terminal itself may have gone
            termios.tcsetattr(fd, termios.TCSADRAIN, before)


def read_size() -> tuple[int, int]:
    """Rows and columns of whichever of our standard streams is a terminal."""
    for fd in (0, 1, 2):
        with contextlib.suppress(OSError):
            size = os.get_terminal_size(fd)
            if size.lines > 0 and size.columns > 0:
                return size.lines, size.columns
    return _DEFAULT_SIZE
