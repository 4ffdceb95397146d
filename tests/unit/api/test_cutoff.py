# SPDX-License-Identifier: Apache-2.0
"""Uploads that are cut off at any moment: nothing of them stays, and no thread works on what is closed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from hypemand.api import spool as spool_module
from hypemand.api.spool import IN_MEMORY
from hypemand.atomic import write_all
from hypemand.model.state import State
from tests.unit.api.harness import Api, run_api

UPLOADS, AT_ONCE = 150, 10
DEADLINE = 120.0
# for threads to end, on a busy machine
SETTLED = 20.0
ORDER = {"direction": "to", "guest_path": "/tmp/a", "is_dir": False, "mode": 0o600}
BLOCK = os.urandom(IN_MEMORY // 2 + 1)


class Writes:
    """The writes of spools to descriptors. `strays`: those in which a number became another file's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.strays: list[str] = []
        monkeypatch.setattr(spool_module, "write_all", self._write)

    def _write(self, fd: int, data: bytearray) -> None:
        self.count += 1
        try:
            before = os.fstat(fd)
            # piece by piece, so that much may happen meanwhile
            for start in range(0, len(data), 4096):
                write_all(fd, data[start : start + 4096])
            after = os.fstat(fd)
        except OSError as error:
            self.strays.append(str(error))
            return
        if (before.st_dev, before.st_ino) != (after.st_dev, after.st_ino):
            self.strays.append(f"descriptor {fd} is another file now")


def list_open(folder: Path) -> Iterator[str]:
    """What this process has open; of the files in `folder` that have no name, with that mark."""
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            target = os.readlink(f"/proc/self/fd/{number}")
            yield "NAMELESS" if target.startswith(f"{folder}/") and "(deleted)" in target else target


async def cut_off(api: Api, dice: random.Random) -> None:
    """Begin an upload, and be gone somewhere in it."""
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(api.path))) as session:
        socket = await session.ws_connect(api.url("/instances/a/cp"))
        await socket.send_json(ORDER)
        for _ in range(dice.randint(2, 5)):
            await socket.send_bytes(BLOCK)
        if dice.random() < 0.3:
            await socket.send_json({"type": "end"})  # it is on its way to the guest
        await asyncio.sleep(dice.uniform(0, 0.01))
        assert socket._response.connection is not None
        transport = socket._response.connection.transport
        assert transport is not None
        transport.abort()


async def cut_off_many(api: Api, dice: random.Random) -> None:
    """All of them, some at once."""
    for _ in range(UPLOADS // AT_ONCE):
        await asyncio.gather(*(cut_off(api, dice) for _ in range(AT_ONCE)))


def test_uploads_that_are_cut_off_leave_nothing_open_and_write_to_nothing_that_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = Writes(monkeypatch)
    dice = random.Random(12)

    async def main() -> None:
        async with asyncio.timeout(DEADLINE), run_api(tmp_path) as api:
            await api.host.put("a", State.RUNNING)
            await api.ask("GET", "/health")  # its connection stays
            before = len(list(list_open(tmp_path)))
            await cut_off_many(api, dice)
            end = time.monotonic() + SETTLED
            opened = Counter(list_open(tmp_path))
            while opened.total() > before and time.monotonic() < end:
                await asyncio.sleep(0.05)
                opened = Counter(list_open(tmp_path))
            assert opened["NAMELESS"] == 0
            # what the start of the VM had open may have been closed meanwhile
            assert opened.total() <= before, opened
            assert api.host.guest("a").files.copies_open == 0
            assert (await api.ask("GET", "/health")).status == 200

    asyncio.run(main())
    assert writes.count > UPLOADS / 2, "hardly any had a file when it was cut off"
    assert writes.strays == []
    assert not [path for path in tmp_path.iterdir() if path.name != "tokens.json"]
