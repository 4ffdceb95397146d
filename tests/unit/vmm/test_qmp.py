# SPDX-License-Identifier: Apache-2.0
"""The QMP client against a VMM that behaves, and against ones that do not."""

import asyncio
import contextlib
import json
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hypemand.budget import BURST, PER_SECOND, Budget, Price, Reserve
from hypemand.vmm import qmp as qmp_module
from hypemand.vmm.driver import VmmError, VmmTimeout
from hypemand.vmm.qmp import Qmp

Answer = Callable[[str, int], bytes | None]
RUNNING = {"status": "running", "running": True}


def good(command: str, number: int) -> bytes | None:
    results: dict[str, object] = {"query-status": RUNNING}
    return json.dumps({"return": results.get(command, {}), "id": number}).encode() + b"\n"


@asynccontextmanager
async def vmm(path: Path, answer: Answer = good, *, first: bytes = b"") -> AsyncIterator[None]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'{"QMP": {"version": {}, "capabilities": []}}\n')
        try:
            while line := await reader.readline():
                request = json.loads(line)
                if request["execute"] == "query-status":
                    writer.write(first)
                reply = answer(request["execute"], request["id"])
                if reply is not None:
                    writer.write(reply)
                if request["execute"] == "quit":
                    break
        finally:
            writer.close()

    server = await asyncio.start_unix_server(serve, str(path))
    try:
        yield
    finally:
        server.close()


def run(
    path: Path, talk: Callable[[Qmp, list[str]], Awaitable[None]], answer: Answer = good, **kw: bytes
) -> None:
    async def main() -> None:
        events: list[str] = []
        async with asyncio.timeout(60), vmm(path, answer, **kw):
            session = await Qmp.connect(
                str(path), lambda name, data: events.append(f"{name} {data}"), "test", Budget()
            )
            try:
                await talk(session, events)
            finally:
                await session.close()

    asyncio.run(main())


def test_it_negotiates_and_asks(tmp_path: Path) -> None:
    async def talk(session: Qmp, events: list[str]) -> None:
        assert await session.execute("query-status") == RUNNING

    run(tmp_path / "q", talk)


def test_events_are_handed_on_and_nonsense_is_dropped(tmp_path: Path) -> None:
    async def talk(session: Qmp, events: list[str]) -> None:
        assert await session.execute("query-status") == RUNNING
        assert events == ["SHUTDOWN {'reason': 'guest-reset'}", "STOP {}"]

    noise = b'{"event": "SHUTDOWN", "data": {"reason": "guest-reset"}}\n{"event": "STOP", "data": 7}\n'
    noise += b'not json\n[1]\n{"id": "x"}\n{"return": {}, "id": 99}\n{"event": 5}\n'
    run(tmp_path / "q", talk, first=noise)


def test_a_vmm_that_does_not_answer_is_told_apart_from_one_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(command: str, number: int) -> bytes | None:
        return None if command == "query-status" else good(command, number)

    async def talk(session: Qmp, events: list[str]) -> None:
        with pytest.raises(VmmTimeout):
            await session.execute("query-status", deadline=0.05)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(session.execute("query-status", deadline=None), 0.05)
        await session.execute("quit")
        await session.closed.wait()
        with pytest.raises(VmmError, match="has closed"):
            await session.execute("query-status")

    assert qmp_module.ANSWER_DEADLINE == 0.5
    run(tmp_path / "q", talk, silent)


def test_a_refusal_has_the_vmms_words(tmp_path: Path) -> None:
    def refuse(command: str, number: int) -> bytes | None:
        if command == "qmp_capabilities":
            return good(command, number)
        return json.dumps({"error": {"desc": "no such command"}, "id": number}).encode() + b"\n"

    async def talk(session: Qmp, events: list[str]) -> None:
        with pytest.raises(VmmError, match="no such command"):
            await session.execute("nonsense")

    run(tmp_path / "q", talk, refuse)


def test_a_line_without_end_closes_the_session(tmp_path: Path) -> None:
    def flood(command: str, number: int) -> bytes | None:
        return b"x" * (3 * 1024 * 1024) if command == "query-status" else good(command, number)

    async def talk(session: Qmp, events: list[str]) -> None:
        with pytest.raises(VmmError):
            await session.execute("query-status", deadline=10.0)
        assert session.closed.is_set()

    run(tmp_path / "q", talk, flood)


def test_nesting_without_end_is_dropped_like_other_nonsense(tmp_path: Path) -> None:
    async def talk(session: Qmp, events: list[str]) -> None:
        assert await session.execute("query-status") == RUNNING
        assert events == []

    run(tmp_path / "q", talk, first=b"[" * 50_000 + b"\n" + b'{"a":' * 12_000 + b"\n")


def test_commands_that_a_vmm_does_not_read_are_not_kept_without_end(tmp_path: Path) -> None:
    """It answers the first and reads no more."""
    writers = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        writer.write(good("", json.loads(await reader.readline())["id"]) or b"")
        writer.transport.pause_reading()  # type: ignore[attr-defined]

    async def main() -> None:
        server = await asyncio.start_unix_server(serve, str(tmp_path / "q"))
        session = await Qmp.connect(str(tmp_path / "q"), lambda name, data: None, "test", Budget())
        said = ""
        for _ in range(20_000):
            try:
                await session.execute("x" * 200, deadline=0)
            except VmmTimeout as error:
                said = str(error)
            if "does not read" in said:
                break
        assert "does not read" in said
        await asyncio.wait_for(session.close(), 60)
        server.close()
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0)

    asyncio.run(main())


def test_arguments_and_a_descriptor_go_with_a_command(tmp_path: Path) -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        session = Qmp(reader, writer, lambda name, data: None, "test", Budget())
        with theirs, (tmp_path / "file").open("w+b") as file:
            with pytest.raises(VmmTimeout):
                await session.execute("getfd", {"fdname": "a"}, fd=file.fileno(), deadline=0)
            line, (fd,), _flags, _address = socket.recv_fds(theirs, 4096, 4)
            assert json.loads(line) == {"execute": "getfd", "arguments": {"fdname": "a"}, "id": 1}
            os.write(fd, b"of the VMM")
            os.close(fd)
            assert os.pread(file.fileno(), 100, 0) == b"of the VMM"
        await session.close()
        await asyncio.sleep(0)

    asyncio.run(main())


def test_a_descriptor_never_waits_behind_commands_that_a_vmm_does_not_read(tmp_path: Path) -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        session = Qmp(reader, writer, lambda name, data: None, "test", Budget())
        with theirs, (tmp_path / "file").open("wb") as file:
            while not writer.transport.get_write_buffer_size():
                with pytest.raises(VmmTimeout):
                    await session.execute("x" * 1000, deadline=0)
            with pytest.raises(VmmTimeout, match="does not read"):
                await session.execute("getfd", fd=file.fileno(), deadline=1)
            theirs.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    assert socket.recv_fds(theirs, 65536, 4)[1] == []
        await session.close()
        await asyncio.sleep(0)

    asyncio.run(main())


def test_a_command_is_bounded(tmp_path: Path) -> None:
    async def talk(session: Qmp, events: list[str]) -> None:
        with pytest.raises(VmmError, match="the command getfd is too long"):
            await session.execute("getfd", {"fdname": "x" * 65536})
        assert await session.execute("query-status") == RUNNING

    run(tmp_path / "q", talk)


def test_a_flood_of_events_is_read_as_far_as_the_budget_goes_and_others_have_their_turn(
    tmp_path: Path,
) -> None:
    """The loop's other work goes on, and no more events are handed on than were paid."""
    events = 0
    writers = []

    def count(name: str, data: object) -> None:
        nonlocal events
        events += 1
        time.sleep(0.0002)  # what is done for it

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        writer.write(good("", json.loads(await reader.readline())["id"]) or b"")
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b'{"event":"STOP"}\n' * 4096)
                await writer.drain()

    async def main() -> None:
        server = await asyncio.start_unix_server(serve, str(tmp_path / "q"))
        session = await Qmp.connect(str(tmp_path / "q"), count, "test", Budget(clock=lambda: 0.0))
        allowed = int((BURST - Reserve.EVENTS) / Price.EVENT)
        seen = []
        began = time.monotonic()
        for _ in range(allowed // 2):
            await asyncio.sleep(0)
            seen.append(events)
        assert 0 < seen[0] < 200
        # the budget's clock stands still: each one more has waited for what it does not get
        waited = (time.monotonic() - began) * PER_SECOND / Price.EVENT
        assert seen[-1] <= allowed + 1 + waited
        await session.close()
        server.close()
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0)

    asyncio.run(main())
