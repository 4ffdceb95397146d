# SPDX-License-Identifier: Apache-2.0
"""No code of ours blocks the event loop with the disk or with questions to NSS, in any of the unit tests."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import hypemand

# what takes as long as a disk, or a directory service, lets it
_BLOCKING: tuple[tuple[Any, str], ...] = (
    (os, "fsync"),
    (os, "fdatasync"),
    (shutil, "rmtree"),
    (shutil, "copyfileobj"),
    (pwd, "getpwuid"),
    (pwd, "getpwnam"),
)
_OURS = Path(hypemand.__file__).parent


def _find_callers() -> list[str]:
    """The lines of ours that this is called from in this turn of the loop, the outermost first."""
    found = []
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename != asyncio.events.__file__:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(_OURS):
            found.append(f"{path.relative_to(_OURS)}:{frame.f_lineno}")
        frame = frame.f_back
    return found[::-1]


@pytest.fixture(autouse=True)
def blocked_loops(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A test fails if code of ours does such a thing in a thread in which an event loop runs."""
    found: list[str] = []

    def guard(module: Any, name: str) -> Callable[..., Any]:
        real: Callable[..., Any] = getattr(module, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if asyncio._get_running_loop() is not None and (callers := _find_callers()):
                found.append(f"{name} in the event loop: {' > '.join(callers)}")
            return real(*args, **kwargs)

        return call

    for module, name in _BLOCKING:
        monkeypatch.setattr(module, name, guard(module, name))
    yield found
    assert not found, "\n".join(sorted(set(found)))
