# SPDX-License-Identifier: Apache-2.0
"""The agent channel against a guest that behaves, and against guests that do not."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hypemand.agent.channel import (
    MAX_FEATURES,
    MAX_PINGS_PER_SECOND,
    MAX_STREAMS,
    MAX_UNANSWERED,
    AgentChannel,
)
from hypemand.agent.session import Session
from hypemand.budget import BURST, PER_SECOND, Budget, Price, Reserve
from hypemand.errors import GuestError, InvalidRequest, TimedOut, WrongState
from hypemand.model.exec import AttachRequest, ExecRequest, ExecStream
from hypemand.model.vm import ExitReport
from hypemand.protocol.thaw import Thaw
from tests.unit.agent.support import (
    ATTACH,
    BOOT,
    CLOCK,
    CLOSE,
    CREDIT,
    DATA,
    ENTRY,
    ERROR,
    EXEC,
    EXIT,
    FILES,
    FREEZE,
    GREETING,
    HELLO,
    OLD_GREETING,
    PING,
    PONG,
    RESIZE,
    SHUTDOWN,
    SIGNAL,
    STARTED,
    THAW,
    WINDOW,
    Guest,
    connected,
    greeted,
    in_loop,
    listening,
    pack,
    records,
)


def request(*argv: str, timeout: float | None = None) -> ExecRequest:
    return ExecRequest(argv or ("true",), {"A": "b"}, "/tmp", "nobody:nogroup", timeout)


async def start(channel: AgentChannel, guest: Guest, timeout: float | None = None) -> tuple[Session, int]:
    """A command that runs, and its stream."""
    execution = asyncio.create_task(channel.exec(request(timeout=timeout)))
    number = await guest.start()
    return await execution, number


async def read(session: Session) -> list[tuple[ExecStream, bytes]]:
    return [item async for item in session.output()]


# --- greeting ---


@in_loop
async def test_host_greets_with_version_and_boot(tmp_path: Path) -> None:
    async with connected(tmp_path) as (channel, guest):
        _, _, payload = await guest.expect(HELLO)
        assert payload == records(("version", "1"), ("boot", BOOT))
        assert not channel.is_ready


@in_loop
async def test_ready_when_the_agent_of_this_boot_answers(tmp_path: Path) -> None:
    async with connected(tmp_path) as (channel, guest):
        waiting = asyncio.create_task(channel.ready())
        await guest.expect(HELLO)
        guest.send(GREETING)
        assert (await waiting).version == "7"
        assert channel.is_ready


@in_loop
async def test_what_was_under_way_for_the_connection_before_is_skipped(tmp_path: Path) -> None:
    async with connected(tmp_path) as (channel, guest):
        guest.send(b"half a frame" + pack(DATA, 3, b"old", 1) + GREETING)
        await channel.ready()


@pytest.mark.parametrize(
    ("hello", "reason"),
    [
        ([("version", "2"), ("boot", BOOT)], "version 2"),
        ([("version", "1"), ("boot", "f" * 32)], "another boot"),
        ([("version", "1")], "boot is missing"),
        ([("boot", BOOT)], "version is missing"),
        ([("version", "1"), ("boot", BOOT), ("boot", BOOT)], "2 times"),
    ],
)
@in_loop
async def test_a_greeting_that_is_not_right_closes_with_a_reason(
    tmp_path: Path, hello: list[tuple[str, str]], reason: str
) -> None:
    async with connected(tmp_path) as (channel, guest):
        await guest.expect(HELLO)
        guest.send(pack(HELLO, 0, records(*hello)))
        with pytest.raises(GuestError, match=reason):
            await channel.ready()
        _, _, payload = await guest.expect(ERROR)
        assert reason.encode() in payload
        assert await guest.reader.read() == b""


@in_loop
async def test_an_agent_that_refuses_the_greeting_is_heard(tmp_path: Path) -> None:
    async with connected(tmp_path) as (channel, guest):
        guest.send(pack(ERROR, 0, records(("code", "version"), ("message", "version 1 is too new"))))
        with pytest.raises(GuestError, match="version 1 is too new"):
            await channel.ready()


@in_loop
async def test_a_second_greeting_closes(tmp_path: Path) -> None:
    async with greeted(tmp_path) as (channel, guest):
        guest.send(GREETING)
        assert "anew" in str(await channel.closed)


@in_loop
async def test_exec_before_the_agent_answered_is_refused(tmp_path: Path) -> None:
    async with connected(tmp_path) as (channel, _):
        with pytest.raises(GuestError, match="not answered yet"):
            await channel.exec(request())


@in_loop
async def test_no_socket_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(GuestError, match=r"none\.sock"):
        await AgentChannel.connect(tmp_path / "none.sock", BOOT)


# --- commands ---


@in_loop
async def test_exec_sends_the_whole_request(tmp_path: Path) -> None:
    async with greeted(tmp_path) as (channel, guest):
        execution = asyncio.create_task(channel.exec(request("ls", "-l")))
        stream, _, payload = await guest.expect(EXEC)
        assert payload == records(
            ("arg", "ls"), ("arg", "-l"), ("env", "A=b"), ("cwd", "/tmp"), ("user", "nobody:nogroup")
        )
        guest.exit(stream, 127, "not found")
        assert await (await execution).wait() == ExitReport(127, "not found")


@in_loop
async def test_output_comes_apart_in_order_and_then_the_exit(tmp_path: Path) -> None:
    async with greeted(tmp_path) as (channel, guest):
        session, number = await start(channel, guest)
        for channel_number, data in ((1, b"a"), (2, b"b"), (1, b"c"), (1, b"d")):
            guest.send(pack(DATA, number, data, channel_number))
        guest.send(pack(DATA, number, b"", 1) + pack(DATA, number, b"", 2))
        guest.exit(number, 3, "exited\x1b[31m")
        assert await session.wait() == ExitReport(3, "exited?[31m")
        out, err = ExecStream.STDOUT, ExecStream.STDERR
        assert await read(session) == [(out, b"a"), (err, b"b"), (out, b"cd")]


@in_loop
async def test_the_guest_gets_credit_for_what_was_read_only(tmp_path: Path) -> None:
    async with greeted(tmp_path) as (channel, guest):
        session, number = await start(channel, guest)
        for _ in range(4):
            guest.send(pack(DATA, number, bytes(65536), 1))
        ping = asyncio.create_task(channel.ping())
        _, _, token = await guest.expect(PING)  # so no CREDIT came while nobody read
        guest.send(pack(PONG, 0, token))
        await ping
        output = session.output()
        taken = 0
        while taken < WINDOW:
            taken += len((await anext(output))[1])
        guest.send(pack(DATA, number, b"", 2) + pack(DATA, number, b"x", 1))  # as the credit now allows
        credit = asyncio.create_task(guest.expect(CREDIT))
        assert await anext(output) == (ExecStream.STDOUT, b"x")
        assert await credit == (number, 1, struct.pack("<I", WINDOW))


@in_loop
async def test_a_reader_that_sleeps_stops_only_its_own_command(tmp_path: Path) -> None:
    async with greeted(tmp_path) as (channel, guest):
        _, slow = await start(channel, guest)
        quick_session, quick = await start(channel, guest)
        guest.send(b"".join(pack(DATA, slow, bytes(65536), 1) for _ in range(4)))
        guest.send(pack(DATA, quick, b"here", 1))
        assert await anext(quick_session.output()) == (ExecStream.STDOUT, b"here")


@in_loop
async def test_input_waits_for_credit(tmp_path: Path) -> None:
    async with greeted(tmp_path) as (channel, guest):
        session, number = await start(channel, guest)
        data = bytes(range(256)) * (WINDOW // 256 + 40)
        writing = asyncio.create_task(session.write(data))
        got = b""
        while len(got) < WINDOW:
            got += (await guest.expect(DATA))[2]
        assert not writing.done()
        guest.send(pack(CREDIT, number, struct.pack("<I", WINDOW)))
        while len(got) < len(data):
            got += (await guest.expect(DATA))[2]
        await writing
        assert got == data
        await session.write_eof()
        assert await guest.expect(DATA) == (number, 0, b"")
        with pytest.raises(WrongState):
            await session.write(b"more")


@in_loop
async def test_input_for_a_command_that_ended_is_dropped(tmp_path: Path) -> None:
    async with greeted(tmp_path) as (channel, guest):
        session, number = await start(channel, guest)
        writing = asyncio.create_task(session.write(bytes(2 * WINDOW)))
        guest.exit(number)
        await writing
        await session.write(b"more")


@in_loop
async def test_signal_goes_to_the_guest_and_nonsense_does_not(tmp_path: Path) -> None:
    async with greeted(tmp_path) as (channel, guest):
        session, number = await start(channel, guest)
        with pytest.raises(InvalidRequest):
            await session.signal(65)
        await session.signal(15)
        assert await guest.expect(SIGNAL) == (number, 0, struct.pack("<I", 15))


@in_loop
async def test_close_kills_and_what_still_comes_is_no_fault(tmp_path: Path) -> None:
    async with greeted(tmp_path) as (channel, guest):
        session, number = await start(channel, guest)
        await session.close()
        await session.close()
        assert await guest.expect(CLOSE) == (number, 0, b"")
        guest.send(pack(DATA, number, b"late", 1))
        guest.exit(number, 137, "killed")
        other, _ = await start(channel, guest)
        assert await read(session) == []
        assert not channel.closed.done()
        await other.close()


@in_loop
async def test_a_command_that_takes_too_long_is_killed(tmp_path: Path) -> None:
    async with greeted(tmp_path) as (channel, guest):
        session, number = await start(channel, guest, timeout=0.5)
        guest.send(pack(DATA, number, b"before", 1))
        assert (await guest.expect(CLOSE))[0] == number
        output = session.output()
        assert await anext(output) == (ExecStream.STDOUT, b"before")
        with pytest.raises(TimedOut, match=r"0\.5 s"):
            await anext(output)
        with pytest.raises(TimedOut):
            await session.wait()
        guest.exit(number, 137)
        await start(channel, guest)


@in_loop
async def test_a_guest_that_does_not_start_the_command_is_given_up(tmp_path: Path) -> None:
    async with greeted(tmp_path) as (channel, guest):
        with pytest.raises(TimedOut, match="did not start true"):
            await channel.exec(request(), start_timeout=0.05)
        await guest.expect(EXEC)
        await guest.expect(CLOSE)


@in_loop
async def test_a_cancelled_exec_is_killed_in_the_guest(tmp_path: Path) -> None:
    async with greeted(tmp_path) as (channel, guest):
        execution = asyncio.create_task(channel.exec(request()))
        stream, _, _ = await guest.expect(EXEC)
        execution.cancel()
        assert (await guest.expect(CLOSE))[0] == stream
        guest.send(pack(STARTED, stream, records(("pid", "1"))))
        guest.exit(stream, 137)
        await start(channel, guest)


@in_loop
async def test_an_error_on_a_stream_ends_that_command_only(tmp_path: Path) -> None:
    async with greeted(tmp_path) as (channel, guest):
        execution = asyncio.create_task(channel.exec(request()))
        stream, _, _ = await guest.expect(EXEC)
        guest.send(pack(ERROR, stream, records(("code", "busy"), ("message", "no pipes left"))))
        with pytest.raises(GuestError, match="no pipes left"):
            await execution
        assert not channel.closed.done()


@in_loop
async def test_too_many_commands_are_refused(tmp_path: Path) -> None:
    async with greeted(tmp_path) as (channel, guest):
        for _ in range(MAX_STREAMS):
            await start(channel, guest)
        with pytest.raises(GuestError, match="64 commands"):
            await channel.exec(request())


@in_loop
async def test_a_command_that_does_not_fit_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    async with greeted(tmp_path) as (channel, _):
        for argv in (("x" * 70000,), ("a\0b",)):
            with pytest.raises(InvalidRequest):
                await channel.exec(request(*argv))
        with pytest.raises(InvalidRequest):
            await channel.exec(ExecRequest((), {}, None, None, None))
        assert not channel.closed.done()


# --- ping, shutdown, the end ---


@in_loop
async def test_ping_is_answered_both_ways(tmp_path: Path) -> None:
    async with greeted(tmp_path) as (channel, guest):
        guest.send(pack(PING, 0, b"y" * 64))
        assert (await guest.expect(PONG))[2] == b"y" * 64
        ping = asyncio.create_task(channel.ping())
        _, _, token = await guest.expect(PING)
        guest.send(pack(PONG, 0, token))
        assert 0 <= await ping < 5


@in_loop
async def test_ping_without_an_answer_times_out(tmp_path: Path) -> None:
    async with greeted(tmp_path) as (channel, _):
        with pytest.raises(TimedOut):
            await channel.ping(timeout=0.05)


@in_loop
async def test_a_pong_that_comes_late_is_none_too_many_and_a_second_one_is(tmp_path: Path) -> None:
    async with greeted(tmp_path) as (channel, guest):
        with pytest.raises(TimedOut):
            await channel.ping(timeout=0.01)
        _, _, token = await guest.expect(PING)
        guest.send(pack(PONG, 0, token))
        guest.send(pack(PING, 0, b"after"))
        assert (await guest.expect(PONG))[2] == b"after"
        assert not channel.closed.done()
        guest.send(pack(PONG, 0, token))
        assert "PONG that answers no PING" in (await channel.closed).message


@in_loop
async def test_an_agent_that_answers_nothing_is_asked_no_more(tmp_path: Path) -> None:
    async with greeted(tmp_path) as (channel, _):
        for _ in range(MAX_UNANSWERED):
            with pytest.raises(TimedOut):
                await channel.ping(timeout=0)
        with pytest.raises(TimedOut, match="unanswered"):
            await channel.ping()


@in_loop
async def test_a_hello_with_features_without_end_is_refused(tmp_path: Path) -> None:
    many = [("version", "1"), ("boot", BOOT), *[("feature", str(n)) for n in range(MAX_FEATURES + 1)]]
    async with connected(tmp_path) as (channel, guest):
        guest.send(pack(HELLO, 0, records(*many)))
        assert "features" in (await channel.closed).message


@in_loop
async def test_frames_beyond_the_vms_budget_wait_and_the_loop_goes_on(tmp_path: Path) -> None:
    """Small pieces of output: they are many for what they bring."""
    async with listening(tmp_path / "agent.sock") as guests:
        budget = Budget()
        channel = await AgentChannel.connect(tmp_path / "agent.sock", BOOT, budget)
        guest = await guests.get()
        await guest.expect(HELLO)
        guest.send(GREETING)
        await channel.ready()
        session, number = await start(channel, guest)
        budget.spend(BURST - Reserve.FRAMES)
        guest.send(pack(DATA, number, b"x", 1) * 20_000)
        loop = asyncio.get_running_loop()
        began, got, wanted = loop.time(), 0, 4000
        async for _, data in session.output():
            got += len(data)
            if got >= wanted:
                break
        # the last piece is read before it is paid
        assert loop.time() - began > (wanted - 1500) * Price.FRAME / PER_SECOND * 0.9
        await channel.close()


@in_loop
async def test_shutdown_tells_the_grace_in_whole_seconds(tmp_path: Path) -> None:
    async with greeted(tmp_path) as (channel, guest):
        await channel.shutdown(2.1)
        assert (await guest.expect(SHUTDOWN))[2] == records(("grace", "3"))


@in_loop
async def test_when_the_vmm_goes_everybody_who_waits_is_told(tmp_path: Path) -> None:
    async with greeted(tmp_path) as (channel, guest):
        session, number = await start(channel, guest)
        guest.send(pack(DATA, number, b"last words", 1))
        starting = asyncio.create_task(channel.exec(request()))
        pinging = asyncio.create_task(channel.ping())
        writing = asyncio.create_task(session.write(bytes(2 * WINDOW)))
        waiting = asyncio.create_task(session.wait())
        await guest.expect(EXEC)
        output = session.output()
        assert await anext(output) == (ExecStream.STDOUT, b"last words")
        guest.writer.transport.abort()
        for waiter in (starting, pinging, writing, waiting):
            with pytest.raises(GuestError):
                await waiter
        with pytest.raises(GuestError):
            await anext(output)
        assert isinstance(await channel.closed, GuestError)
        with pytest.raises(GuestError):
            await channel.exec(request())


@in_loop
async def test_close_frees_the_socket_and_tells_the_sessions(tmp_path: Path) -> None:
    async with greeted(tmp_path) as (channel, guest):
        session, _ = await start(channel, guest)
        waiting = asyncio.create_task(session.wait())
        await channel.close()
        with pytest.raises(GuestError, match="was closed"):
            await waiting
        assert await guest.reader.read() == b""


@in_loop
async def test_a_wait_for_the_end_that_is_given_up_harms_nothing(tmp_path: Path) -> None:
    async with greeted(tmp_path) as (channel, guest):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(channel.closed, 0.01)
        await start(channel, guest)
        await channel.close()
        assert "was closed" in str(await channel.closed)


@in_loop
async def test_the_agents_own_reason_is_told(tmp_path: Path) -> None:
    async with greeted(tmp_path) as (channel, guest):
        guest.send(pack(ERROR, 0, records(("code", "boot"), ("message", "HELLO names another boot"))))
        assert "HELLO names another boot" in str(await channel.closed)


# --- what not every agent can ---


@in_loop
async def test_an_older_agent_executes_and_is_named_for_the_rest(tmp_path: Path) -> None:
    async with greeted(tmp_path, OLD_GREETING) as (channel, guest):
        session, number = await start(channel, guest)
        guest.send(pack(DATA, number, b"out", 1))
        guest.exit(number, 4)
        assert await read(session) == [(ExecStream.STDOUT, b"out")]
        assert (await session.wait()).code == 4
        plain = request()
        for refused in (
            channel.exec(replace(plain, tty=True)),
            channel.exec(replace(plain, umask=0)),
            channel.stat("/"),
            channel.copy_out("/"),
            channel.copy_in("/"),
            channel.set_clock(),
            channel.attach(AttachRequest()),
            channel.freeze(),
            channel.thaw(Thaw()),
        ):
            with pytest.raises(GuestError, match=r"older than this hypemand.*; restart the VM") as caught:
                await refused
            assert caught.value.code == "agent_too_old"
        await start(channel, guest)


@in_loop
async def test_a_newer_agent_may_have_more_features(tmp_path: Path) -> None:
    newer = pack(HELLO, 0, records(("version", "1"), ("boot", BOOT), ("feature", "wings"), ("colour", "red")))
    async with greeted(tmp_path, newer) as (channel, guest):
        assert (await channel.ready()).features == {"wings"}
        await start(channel, guest)


@in_loop
async def test_a_terminal_has_a_size_and_one_output(tmp_path: Path) -> None:
    async with greeted(tmp_path) as (channel, guest):
        asked = replace(request(), tty=True, rows=5, cols=6, umask=0o22, env={"TERM": "x"})
        asked = replace(asked, settings=(("ulimit", "nofile=1:2"),))
        execution = asyncio.create_task(channel.exec(asked))
        stream, _, payload = await guest.expect(EXEC)
        assert b"tty=1\0rows=5\0cols=6\0umask=18\0env=TERM=x\0" in payload
        assert b"\0ulimit=nofile=1:2\0tty=1\0" in payload
        guest.send(pack(STARTED, stream, records(("pid", "42"))))
        session = await execution
        await session.resize(50, 60)
        assert await guest.expect(RESIZE) == (stream, 0, struct.pack("<HH", 50, 60))
        guest.send(pack(DATA, stream, b"x", 2))
        assert "STDERR" in str(await channel.closed)


@in_loop
async def test_what_has_no_terminal_is_not_resized(tmp_path: Path) -> None:
    async with greeted(tmp_path) as (channel, guest):
        session, _ = await start(channel, guest)
        await session.resize(50, 60)
        await session.signal(1)
        await guest.expect(SIGNAL)


@pytest.mark.parametrize("wrong", [{"umask": 0o1000}, {"umask": -1}, {"tty": True, "rows": 65536}])
@in_loop
async def test_settings_that_are_none_are_refused_before_they_are_sent(
    tmp_path: Path, wrong: dict[str, Any]
) -> None:
    async with greeted(tmp_path) as (channel, _):
        with pytest.raises(InvalidRequest):
            await channel.exec(replace(request(), **wrong))


@in_loop
async def test_the_clock_is_set_to_the_hosts(tmp_path: Path) -> None:
    async with greeted(tmp_path) as (channel, guest):
        before = time.time_ns()
        setting = asyncio.create_task(channel.set_clock())
        stream, _, payload = await guest.expect(CLOCK)
        assert before <= struct.unpack("<Q", payload)[0] <= time.time_ns()
        guest.exit(stream)
        await setting
        with pytest.raises(TimedOut, match="set its clock"):
            await channel.set_clock(timeout=0.05)


# --- standby ---


@in_loop
async def test_a_guest_is_frozen_and_goes_on(tmp_path: Path) -> None:
    async with greeted(tmp_path) as (channel, guest):
        assert not (await channel.ready()).frozen
        freezing = asyncio.create_task(channel.freeze())
        stream, _, payload = await guest.expect(FREEZE)
        guest.exit(stream, 0, "the guest is frozen")
        assert (payload, await freezing) == (b"", "the guest is frozen")
        thawing = asyncio.create_task(channel.thaw(Thaw(clock_ns=5, entropy=b"e" * 64)))
        stream, _, payload = await guest.expect(THAW)
        assert payload == records(("clock", "5"), ("entropy", "65" * 64))
        guest.exit(stream)
        await thawing


@in_loop
async def test_nothing_is_sent_to_a_guest_that_stands_still(tmp_path: Path) -> None:
    """A part of a frame would be completed by the HELLO of the connection after the save."""
    async with greeted(tmp_path) as (channel, guest):
        session, number = await start(channel, guest)
        for answer, words in ((125, "dd waits"), (0, "")):
            freezing = asyncio.create_task(channel.freeze())
            stream, _, _ = await guest.expect(FREEZE)
            await session.write(b"later")
            await session.signal(15)
            with pytest.raises(TimedOut):
                await channel.ping(timeout=0.05)
            guest.exit(stream, answer, words)
            if answer:
                with pytest.raises(GuestError, match=words):
                    await freezing
                assert (await guest.expect(DATA))[2] == b"later"
                assert (await guest.expect(SIGNAL))[0] == number
                await guest.expect(PING)
        await freezing
        await session.write(b"never")
        await channel.close()
        assert await guest.reader.read() == b""


@in_loop
async def test_a_guest_that_does_not_stand_still_or_go_on_says_why(tmp_path: Path) -> None:
    async with greeted(tmp_path) as (channel, guest):
        for ordered, kind, words in (
            (channel.freeze(), FREEZE, "the guest cannot be frozen: dd waits"),
            (channel.thaw(Thaw()), THAW, "the guest cannot go on: dd waits"),
        ):
            order = asyncio.create_task(ordered)
            stream, _, _ = await guest.expect(kind)
            guest.exit(stream, 125, "dd waits")
            with pytest.raises(GuestError, match=words):
                await order
        with pytest.raises(TimedOut, match=r"did not stand still in 0\.05 s"):
            await channel.freeze(timeout=0.05)
        with pytest.raises(TimedOut, match=r"did not go on in 0\.05 s"):
            await channel.thaw(Thaw(), timeout=0.05)


@in_loop
async def test_a_frozen_guest_says_so_when_it_is_greeted(tmp_path: Path) -> None:
    frozen = pack(HELLO, 0, records(("version", "1"), ("boot", BOOT), ("frozen", "1")))
    async with greeted(tmp_path, frozen) as (channel, _):
        assert (await channel.ready()).frozen


# --- violations ---


def data(stream: int, size: int, channel: int = 1) -> bytes:
    return pack(DATA, stream, bytes(size), channel)


VIOLATIONS = {
    "unknown type": pack(99),
    "long frame": struct.pack("<IIBBH", 65537, 1, DATA, 1, 0),
    "EXEC from the guest": pack(EXEC, 1, records(("arg", "x"))),
    "SHUTDOWN from the guest": pack(SHUTDOWN, 0, records(("grace", "1"))),
    "ENTRY outside of a copy": pack(ENTRY, 1, records(("path", ""))),
    "FILES from the guest": pack(FILES, 1),
    "RESIZE from the guest": pack(RESIZE, 1, bytes(4)),
    "CLOCK from the guest": pack(CLOCK, 0, bytes(8)),
    "FREEZE from the guest": pack(FREEZE, 1),
    "THAW from the guest": pack(THAW, 1),
    "DATA on stream 0": data(0, 1),
    "DATA for nobody": data(77, 1),
    "DATA on stdin": data(1, 1, channel=0),
    "DATA after its end": data(1, 0) + data(1, 1),
    "DATA beyond its credit": data(1, 65536) * 4 + data(1, 1),
    "STARTED twice": pack(STARTED, 1, records(("pid", "1"))),
    "CREDIT that was not spent": pack(CREDIT, 1, struct.pack("<I", 1)),
    "CREDIT of nothing": pack(CREDIT, 1, struct.pack("<I", 0)),
    "CREDIT that is no number": pack(CREDIT, 1, b"\1"),
    "CREDIT for stdout": pack(CREDIT, 1, struct.pack("<I", 1), channel=1),
    "EXIT twice": pack(EXIT, 1, records(("code", "0"))) * 2,
    "EXIT without a code": pack(EXIT, 1, records(("message", "x"))),
    "EXIT with no such code": pack(EXIT, 1, records(("code", "256"))),
    "records that are none": pack(EXIT, 1, b"code=0"),
    "long PING": pack(PING, 0, bytes(65)),
    "PING flood": pack(PING, 0, b"p") * (2 * MAX_PINGS_PER_SECOND + 1),
}


@pytest.mark.parametrize("violation", VIOLATIONS.values(), ids=VIOLATIONS.keys())
@in_loop
async def test_a_violation_closes_the_channel_with_a_reason(tmp_path: Path, violation: bytes) -> None:
    async with greeted(tmp_path) as (channel, guest):
        session, number = await start(channel, guest)
        assert number == 1
        guest.send(violation)
        reason = await channel.closed
        assert reason.code == "protocol_error"
        kinds = []
        while guest.reader.at_eof() is False:
            try:
                kinds.append((await guest.receive())[0])
            except asyncio.IncompleteReadError:
                break
        assert kinds[-1] == ERROR
        if "EXIT" not in str(reason) and session._exit is None:
            with pytest.raises(GuestError):
                await session.wait()


@in_loop
async def test_a_guest_that_alternates_bytes_cannot_fill_the_memory(tmp_path: Path) -> None:
    async with greeted(tmp_path) as (channel, guest):
        session, number = await start(channel, guest)
        pair = pack(DATA, number, b"o", 1) + pack(DATA, number, b"e", 2)
        guest.send(pair * 20000)
        guest.exit(number)
        await session.wait()
        items = await read(session)
        assert len(items) <= 300
        for stream, letter in ((ExecStream.STDOUT, b"o"), (ExecStream.STDERR, b"e")):
            assert b"".join(part for kind, part in items if kind is stream) == letter * 20000


@in_loop
async def test_a_guest_that_reads_nothing_loses_the_channel(tmp_path: Path) -> None:
    async with listening(tmp_path / "agent.sock") as guests:
        channel = await AgentChannel.connect(tmp_path / "agent.sock", BOOT, queue_limit=100_000)
        (await guests.get()).send(GREETING)
        await channel.ready()
        starting = [asyncio.create_task(channel.exec(request("x" * 60_000))) for _ in range(MAX_STREAMS)]
        assert "does not read" in str(await channel.closed)
        results = await asyncio.gather(*starting, return_exceptions=True)
        assert all(isinstance(result, GuestError) for result in results)
        await channel.close()


@in_loop
async def test_all_commands_at_once_are_no_reason_to_end(tmp_path: Path) -> None:
    async with greeted(tmp_path) as (channel, guest):
        starting = [asyncio.create_task(channel.exec(request("x" * 60_000))) for _ in range(MAX_STREAMS)]
        for _ in starting:
            await guest.start()
        assert len(await asyncio.gather(*starting)) == MAX_STREAMS


@in_loop
async def test_a_flood_leaves_time_for_others(tmp_path: Path) -> None:
    async with greeted(tmp_path) as (channel, guest):
        session, number = await start(channel, guest)
        ticks = 0

        async def flood() -> None:
            async for _, _ in session.output():
                pass

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        reading, ticking = asyncio.create_task(flood()), asyncio.create_task(tick())
        guest.send(pack(DATA, number, b"x", 1) * 50_000)
        guest.exit(number)
        await session.wait()
        await reading
        ticking.cancel()
        assert ticks > 25


@in_loop
async def test_a_socket_whose_queue_is_full_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as full, socket.socket(socket.AF_UNIX) as first:
        full.bind(str(path))
        full.listen(0)
        first.setblocking(False)
        first.connect(str(path))

        async def connect() -> None:
            channel = await AgentChannel.connect(path, BOOT, timeout=0.1)
            try:
                await channel.ready()
            finally:
                await channel.close()

        with pytest.raises(GuestError):
            await connect()


@in_loop
async def test_a_new_connection_begins_anew(tmp_path: Path) -> None:
    async with listening(tmp_path / "agent.sock") as guests:
        for _ in range(2):
            channel = await AgentChannel.connect(tmp_path / "agent.sock", BOOT)
            guest = await guests.get()
            guest.send(GREETING)
            await channel.ready()
            await guest.expect(HELLO)
            _, number = await start(channel, guest)
            assert number == 1
            await channel.close()


# --- attaching ---


@in_loop
async def test_attaching_says_what_the_program_has(tmp_path: Path) -> None:
    async with greeted(tmp_path) as (channel, guest):
        attaching = asyncio.create_task(channel.attach(AttachRequest(stdin=True, rows=5, cols=6)))
        stream, _, payload = await guest.expect(ATTACH)
        assert payload == records(("stdin", "1"), ("replay", "0"), ("rows", "5"), ("cols", "6"))
        said = (("pid", "7"), ("tty", "1"), ("stdin", "1"))
        guest.send(pack(STARTED, stream, records(*said)) + pack(DATA, stream, b"x", 1))
        session = await attaching
        assert (session.tty, session.stdin) == (True, True)
        await session.resize(50, 60)
        assert await guest.expect(RESIZE) == (stream, 0, struct.pack("<HH", 50, 60))
        guest.send(pack(EXIT, stream, records(("code", "7"), ("message", "words"))))
        assert await read(session) == [(ExecStream.STDOUT, b"x")]
        assert await session.wait() == ExitReport(7, "words")


@in_loop
async def test_what_has_ended_at_once_was_attached_to_nevertheless(tmp_path: Path) -> None:
    async with greeted(tmp_path) as (channel, guest):
        attaching = asyncio.create_task(channel.attach(AttachRequest(replay=True)))
        stream, _, _ = await guest.expect(ATTACH)
        ended = pack(EXIT, stream, records(("code", "0"), ("message", "")))
        guest.send(pack(STARTED, stream, records(("pid", "7"))) + pack(DATA, stream, b"x", 2) + ended)
        session = await attaching
        assert (session.tty, session.stdin) == (False, False)
        assert await read(session) == [(ExecStream.STDERR, b"x")]


@in_loop
async def test_an_agent_that_refuses_to_attach_says_why(tmp_path: Path) -> None:
    async with greeted(tmp_path) as (channel, guest):
        attaching = asyncio.create_task(channel.attach(AttachRequest()))
        stream, _, _ = await guest.expect(ATTACH)
        guest.send(pack(EXIT, stream, records(("code", "125"), ("message", "not yet"))))
        with pytest.raises(GuestError, match="cannot attach: not yet"):
            await attaching


@in_loop
async def test_who_is_detached_for_being_slow_is_told(tmp_path: Path) -> None:
    async with greeted(tmp_path) as (channel, guest):
        attaching = asyncio.create_task(channel.attach(AttachRequest()))
        stream, _, _ = await guest.expect(ATTACH)
        ended = pack(EXIT, stream, records(("detached", "1"), ("message", "too slow")))
        guest.send(pack(STARTED, stream, records(("pid", "7"))) + pack(DATA, stream, b"x", 1) + ended)
        session = await attaching
        with pytest.raises(GuestError, match="too slow") as caught:
            await read(session)
        assert caught.value.code == "detached"
        await start(channel, guest)
