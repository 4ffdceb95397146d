# SPDX-License-Identifier: Apache-2.0
"""The guard of all unit tests (conftest.py) sees what code of hypemand does with a disk in the event loop."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest

import hypemand
from hypemand.atomic import sync_folder
from hypemand.recordfile import read_regular
from tests.fakes.host import folder_in_memory

_ON_DISK = [
    "open(path)",
    "path.open()",
    "path.read_text()",
    "path.write_bytes(b'')",
    "os.open(path, os.O_RDONLY)",
    "path.exists()",
    "path.is_file()",
    "path.lstat()",
    "os.path.lexists(path)",
    "os.path.getsize(path)",
    "os.statvfs(path)",
    "os.access(path, os.R_OK)",
    "list(path.parent.iterdir())",
    "list(path.parent.glob('*'))",
    "list(os.walk(path.parent))",
    "os.listdir(path.parent)",
    "list(os.scandir(path.parent))",
    "path.rename(path)",
    "os.replace(path, path)",
    "path.unlink()",
    "os.rmdir(path.parent / 'empty')",
    "path.with_name('new').mkdir()",
    "path.with_name('link').symlink_to(path)",
    "os.link(path, path.with_name('same'))",
    "path.chmod(0o600)",
    "shutil.rmtree(path.parent)",
    "tempfile.TemporaryFile(dir=path.parent)",
    "pwd.getpwuid(0)",
    "sync_folder(path.parent)",
]


def make_coroutine(work: str) -> Any:
    """A coroutine function of hypemand that does this."""
    source = f"async def do(path):\n    return {work}\n"
    module = compile(source, str(Path(hypemand.__file__).with_name("made_up.py")), "exec")
    (code,) = (const for const in module.co_consts if isinstance(const, CodeType))
    known = {"os": os, "pwd": pwd, "shutil": shutil, "tempfile": tempfile, "sync_folder": sync_folder}
    return FunctionType(code, known)


@pytest.fixture(params=["disk", "memory"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file beside an empty folder: on a disk, and where tests have what is on one in production."""
    with folder_in_memory() as memory:
        folder = memory if request.param == "memory" else tmp_path_factory.mktemp("disk")
        (folder / "empty").mkdir()
        (folder / "file").write_text("x")
        yield folder / "file"


@pytest.mark.parametrize("work", _ON_DISK)
def test_what_waits_for_a_disk_is_seen(place: Path, work: str, blocked_loops: list[str]) -> None:
    opened = asyncio.run(make_coroutine(work)(place))
    assert any("in the event loop: made_up.py:2" in line for line in blocked_loops)
    blocked_loops.clear()
    if isinstance(opened, int) and not isinstance(opened, bool) and "O_RDONLY" in work:
        os.close(opened)
    elif hasattr(opened, "close"):
        opened.close()


@pytest.mark.parametrize("work", _ON_DISK)
def test_a_thread_may_wait_for_it(place: Path, work: str, blocked_loops: list[str]) -> None:
    def drive() -> None:
        coroutine = make_coroutine(work)(place)
        with pytest.raises(StopIteration) as ended:
            coroutine.send(None)
        opened = ended.value.value
        if "O_RDONLY" in work:
            os.close(opened)
        elif hasattr(opened, "close"):
            opened.close()

    async def main() -> None:
        await asyncio.to_thread(drive)

    asyncio.run(main())
    assert blocked_loops == []


@pytest.mark.parametrize("path", ["/proc/meminfo", "/sys/kernel", "/dev/null"])
def test_what_is_in_memory_may_be_looked_at_in_the_loop(path: str, blocked_loops: list[str]) -> None:
    assert asyncio.run(make_coroutine("os.stat(path)")(path))
    assert blocked_loops == []


def test_what_a_test_does_itself_is_its_own_business(place: Path, blocked_loops: list[str]) -> None:
    async def main() -> None:
        read_regular(place)

    asyncio.run(main())
    assert blocked_loops == []
