# SPDX-License-Identifier: Apache-2.0
"""What a boot has shown is written once a second at most, and what its end asks for at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hypemand.protocol.sentinels import Exit
from hypemand.systemd.rootdir import Own
from hypemand.tasks import Tasks
from hypemand.vm.exitrecord import ExitRecord, store_exit_record
from hypemand.vm.places import Places
from hypemand.vm.runfiles import NOTES_PERIOD, RunFiles, derive_exit
from hypemand.vm.tracker import BootNotes, Moment, load_notes
from hypemand.vmm.shutdown import Shutdown

DEADLINE = 60.0
BOOT = "b" * 32
NOTES = BootNotes(BOOT, "a" * 32)


class Written:
    """A VM's files in a folder, and how often its notes were another file."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "boot.json"
        self.files = RunFiles("web", Places(folder, folder, folder, Own(folder)), Tasks("web"))
        self.inodes: list[int] = []

    def load_exits(self) -> tuple[ExitRecord, ...]:
        """The records of its last runs."""
        return self.files.load(definition=False, exits=True).exits

    @property
    def notes(self) -> BootNotes | None:
        return load_notes(self.path)

    def look(self) -> None:
        inode = self.path.stat().st_ino if self.path.exists() else 0
        if inode and inode not in self.inodes[-1:]:
            self.inodes.append(inode)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until it holds."""
        async with asyncio.timeout(DEADLINE):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.005)


def run(folder: Path, work: Callable[[Written], Awaitable[None]]) -> None:
    async def main() -> None:
        written = Written(folder)
        await work(written)
        await written.files.flush_notes()

    asyncio.run(main())


def message(number: int) -> BootNotes:
    return replace(NOTES, exit=Exit("a" * 32, 0, str(number)))


def test_a_guest_that_changes_its_exit_all_the_time_causes_one_write_a_second(tmp_path: Path) -> None:
    async def work(written: Written) -> None:
        loop = asyncio.get_running_loop()
        began, number = loop.time(), 0
        while loop.time() - began < 2 * NOTES_PERIOD or number < 50:
            number += 1
            written.files.keep_notes(message(number))
            written.look()
            await asyncio.sleep(0.002)
        assert 1 <= len(written.inodes) <= 3 + (loop.time() - began) / NOTES_PERIOD
        await written.files.flush_notes()
        assert written.notes == message(number)

    run(tmp_path, work)


def test_the_first_exit_a_shutdown_and_that_it_is_running_do_not_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hypemand.vm.runfiles.NOTES_PERIOD", 10 * DEADLINE)

    async def work(written: Written) -> None:
        written.files.keep_notes(NOTES)
        await written.until(lambda: written.notes == NOTES)
        running = replace(NOTES, moments={Moment.RUNNING: 5.0})
        ended = replace(running, exit=Exit("a" * 32, 0, "1"))
        for notes in (running, ended, replace(ended, shutdown=Shutdown.RESET)):
            written.files.keep_notes(notes)
            await written.until(lambda n=notes: written.notes == n)  # type: ignore[misc]

    run(tmp_path, work)


def test_what_waits_is_written_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hypemand.vm.runfiles.NOTES_PERIOD", 10 * DEADLINE)

    async def work(written: Written) -> None:
        written.files.keep_notes(NOTES)
        await written.until(lambda: written.notes == NOTES)
        last = replace(NOTES, waiting="there is no file yet")
        written.files.keep_notes(last)
        await asyncio.sleep(0.05)
        assert written.notes == NOTES
        written.files.keep_notes(last, at_end=True)
        await written.until(lambda: written.notes == last)

    run(tmp_path, work)


def test_a_run_whose_record_was_lost_has_not_the_end_of_another(tmp_path: Path) -> None:
    async def scenario(written: Written) -> None:
        other = ExitRecord("a" * 32, 0, "exited with code 0", True, 0, 1.0)
        store_exit_record(tmp_path / "exit.json", other)
        for failed in (True, False):
            ended = derive_exit(written.load_exits(), BOOT, failed=failed)
            assert ended is not None
            assert (ended.run, ended.code, ended.success) == (BOOT, None, False)
            seen = BootNotes(BOOT, exit=Exit(BOOT, 7, "exited with code 7"))
            ended = derive_exit(written.load_exits(), BOOT, failed=failed, notes=seen)
            assert ended is not None
            assert (ended.code, ended.message, ended.success) == (7, "exited with code 7", not failed)
        assert derive_exit(written.load_exits(), "a" * 32, failed=False) == other
        (tmp_path / "exit.json").unlink()
        assert derive_exit(written.load_exits(), None, failed=False) is None  # it never ran

    run(tmp_path, scenario)
