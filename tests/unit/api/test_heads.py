# SPDX-License-Identifier: Apache-2.0
"""Heads of requests that are too large, and what is expected before a client has shown who it is."""

import asyncio
from pathlib import Path

from hypemand.api.heads import MAX_HEAD
from hypemand.api.services import Limits
from tests.unit.api.harness import Api, drive
from tests.unit.api.test_listener import Place, over_tcp

GET = b"GET /health HTTP/1.1\r\nHost: x\r\n"


def headers(size: int) -> bytes:
    """Headers of `size` bytes or a few more, each short enough by itself, and not many."""
    each = 4000
    return b"".join(b"X-%d: " % n + b"v" * each + b"\r\n" for n in range(-(-size // each)))


def test_a_head_that_never_ends_is_refused_when_it_is_too_large(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        reader, writer = await asyncio.open_unix_connection(str(api.path))
        writer.write(GET + headers(MAX_HEAD + 4000))
        # nothing ends the head: the answer comes for what was sent so far
        assert (await reader.readline()).startswith(b"HTTP/1.0 400")
        writer.close()
        assert (await api.ask("GET", "/health")).status == 200

    drive(tmp_path, scenario)


def test_five_megabytes_of_headers_are_refused(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        reader, writer = await asyncio.open_unix_connection(str(api.path))
        writer.write(GET + headers(5_000_000) + b"\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.0 400")
        writer.close()

    drive(tmp_path, scenario)


def test_the_head_of_a_later_request_is_limited_too(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        reader, writer = await asyncio.open_unix_connection(str(api.path))
        writer.write(GET + b"\r\n")
        assert b'"status":"ok"' in await reader.readuntil(b"}}")
        writer.write(GET + headers(MAX_HEAD + 4000) + b"\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.0 400")
        writer.close()

    drive(tmp_path, scenario)


def test_bodies_and_many_requests_are_no_large_head(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        reader, writer = await asyncio.open_unix_connection(str(api.path))
        body = b'{"a":"' + b"x" * 500_000 + b'"}'
        for _ in range(4):
            head = b"POST /instances HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n" % len(body)
            writer.write(head + headers(40_000) + b"\r\n" + body)
            assert b" 400 " in await reader.readline()
            assert b"invalid_" in await reader.readuntil(b"}")
        writer.close()

    drive(tmp_path, scenario)


def test_an_expectation_is_refused_as_all_else_without_a_token(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        answers = set()
        for path in ("/instances", "/nothing", "/instances/web/exec"):
            for expected in ((), ("Expect: 100-continue",), ("Expect: something",)):
                answer = await place.ask_raw(
                    f"POST {path} HTTP/1.1", "Host: x", "Content-Length: 9", *expected
                )
                answers.add(b"\r\n".join(x for x in answer.split(b"\r\n") if not x.startswith(b"Date:")))
        (only,) = answers
        assert only.startswith(b"HTTP/1.1 401 ")

    over_tcp(tmp_path, scenario, Limits(lingering=0.05))


def test_a_body_that_is_held_back_is_asked_for_with_a_token(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        token = await place.token()
        reader, writer = await asyncio.open_connection(place.config.host, place.config.port)
        lines = ("POST /reload HTTP/1.1", "Host: x", f"Authorization: Bearer {token}", "Content-Length: 2")
        writer.write("\r\n".join((*lines, "Expect: 100-continue", "", "")).encode())
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"{}")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        writer.close()
        answer = await place.ask_raw(*lines[:3], "Expect: something", "Connection: close")
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"100-continue" in answer

    over_tcp(tmp_path, scenario)
