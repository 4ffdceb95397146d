# SPDX-License-Identifier: Apache-2.0
"""No code of ours blocks the event loop with the disk or with questions to NSS, in any of the unit tests."""

from __future__ import annotations

import asyncio
import inspect
import linecache
import os
import pwd
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import CodeType, FrameType
from typing import Any

import pytest

import hypemand
from tests.fakes.host import folder_in_memory

# what takes as long as a disk, or a directory service, lets it
_BLOCKING: tuple[tuple[Any, str], ...] = (
    (os, "fsync"),
    (os, "fdatasync"),
    (shutil, "rmtree"),
    (shutil, "copyfileobj"),
    (pwd, "getpwuid"),
    (pwd, "getpwnam"),
)
# The same of what has a path, as Python's own audit events (PEP 578) call it, whoever asks for it: `open` in
# builtins, io and os, pathlib and tempfile all raise them.
_AUDITED = frozenset(
    ("open", "os.listdir", "os.scandir", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link",
     "os.symlink", "os.truncate", "os.chmod", "os.chown", "os.utime", "os.getxattr", "os.setxattr")
)  # fmt: skip
# What raises none. pathlib and os.path look these up in the module with each call.
_UNAUDITED = ("stat", "lstat", "statvfs", "access", "readlink")
# In memory: may be read in the loop, if it is bounded and small.
_IN_MEMORY = ("/run/", "/proc/", "/sys/", "/dev/")
# Where tests have what is on disks in production (`folder_in_memory`).
_FOR_DISKS = "/dev/shm/"
# What does the same with paths that are in /run in production, and in a test's own folder here.
_OF_RUN = frozenset(
    (
        # before the daemon serves: its own socket
        "daemon.py:Daemon._open_socket",
        # the VMM's sockets, and which boot its run carries
        "vm/runrecord.py:find_boot_id",
        "vm/session.py:Session._poll_link",
        "vm/session.py:Session._may_reach",
        "vm/session.py:Session._look_for_other",
        "sockets.py:hold_socket",
        # names that are not needed any more, at once: see there
        "vm/runfiles.py:_mark_leftovers",
    )
)
# On a disk, and in the loop nevertheless: the journal is mapped into memory, what is read of it was written a
# moment ago, and turns are bounded in time.
_JOURNAL = "systemd/journal.py:"
# From Python 3.13 on the lines of a traceback are parsed too, and the parser opens what it cannot parse.
_TRACEBACKS = (linecache.__file__, traceback.__file__)
_OURS = f"{Path(hypemand.__file__).parent}{os.sep}"
_TESTS = f"{Path(__file__).parents[1]}{os.sep}"


class _Watch:
    """What was found in the test that runs; None between tests."""

    def __init__(self) -> None:
        self.found: list[str] | None = None

    def note(self, what: str, path: object = "") -> None:
        """Something that blocks is done with a path."""
        if self.found is None or asyncio._get_running_loop() is None or isinstance(path, int):
            return
        text = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else "the folder"
        in_memory = text.startswith(_IN_MEMORY) and not text.startswith(_FOR_DISKS)
        if not in_memory and (callers := _find_callers()):
            done = f"{what} {text}".strip()
            self.found.append(f"{done} in the event loop: {' > '.join(callers)}")

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        """A hook for `sys.addaudithook`."""
        if event in _AUDITED:
            self.note(event, args[0])


_watch = _Watch()
sys.addaudithook(_watch.audit)


def _find_callers() -> list[str]:
    """The lines of ours that this is called from in this turn of the loop, the outermost first; none where a
    test, or its fake, does it itself or by a function of ours that production calls in a thread."""
    found: list[str] = []
    outermost: CodeType | None = None
    frame: FrameType | None = sys._getframe(3)
    while frame is not None and frame.f_code.co_filename != asyncio.events.__file__:
        code = frame.f_code
        if code.co_name == "__del__":
            return []  # collected garbage, whose own business it is
        if code.co_filename in _TRACEBACKS and _is_logging(frame):
            return []  # the lines of a traceback, which is of a fault of ours
        if code.co_filename.startswith(_TESTS):
            is_async = outermost is not None and outermost.co_flags & _ASYNC
            return found[::-1] if is_async else []
        if code.co_filename.startswith(_OURS):
            place = f"{code.co_filename.removeprefix(_OURS)}:{code.co_qualname}"
            if place in _OF_RUN or place.startswith(_JOURNAL):
                return []
            found.append(f"{code.co_filename.removeprefix(_OURS)}:{frame.f_lineno}")
            outermost = code
        frame = frame.f_back
    return found[::-1]


_ASYNC = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


def _is_logging(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_globals.get("__name__") == "logging":
            return True
        frame = frame.f_back
    return False


# Of these packages, for attributes of files, disks of VMMs, and mounts; in the others a folder is a folder.
_NEED_DISKS = frozenset(("agent", "bench", "cli", "network", "storage", "unit", "vmm"))


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A test's folder: in memory, where syncing and removing take no time, unless it has to be on a disk."""
    if request.path.parent.name in _NEED_DISKS:
        yield request.getfixturevalue("tmp_path")
        return
    with folder_in_memory() as folder:
        yield folder


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users get into. Those of pytest are closed to them whenever a run of it begins."""
    with TemporaryDirectory(prefix="hypemand-test.") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture(autouse=True)
def blocked_loops(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A test fails if code of ours does such a thing in a thread in which an event loop runs."""

    def guard(module: Any, name: str, *, with_path: bool) -> Callable[..., Any]:
        real: Callable[..., Any] = getattr(module, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            _watch.note(name, args[0] if with_path else "")
            return real(*args, **kwargs)

        return call

    for module, name in _BLOCKING:
        monkeypatch.setattr(module, name, guard(module, name, with_path=False))
    for name in _UNAUDITED:
        monkeypatch.setattr(os, name, guard(os, name, with_path=True))
    found = _watch.found = []
    yield found
    _watch.found = None
    assert not found, "\n".join(sorted(set(found)))
