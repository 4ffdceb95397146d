# SPDX-License-Identifier: Apache-2.0
"""The client over the unix socket: whatever the other side does, there is a clear error in time."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hypemand.cli.client import ApiError, Client, StreamBroken, Unreachable, build_target, find_socket
from tests.unit.cli.canned import Canned

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"


@contextmanager
def answer(path: Path, *pieces: bytes, hold: bool = False) -> Iterator[Client]:
    """A server that answers one request with these bytes, then hangs up, or with `hold` at the end only."""
    done = threading.Event()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(60)

        def work() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                for piece in pieces:
                    connection.sendall(piece)
                if hold:
                    done.wait(60)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield Client(str(path))
        finally:
            done.set()
            thread.join()


def read_events(client: Client, timeout: float | None = None) -> list[object]:
    """All events of a stream."""
    with client.events("stream", timeout=timeout) as events:
        return list(events)


def chunked(*pieces: bytes) -> bytes:
    """A whole chunked body."""
    return b"".join(f"{len(p):x}\r\n".encode() + p + b"\r\n" for p in pieces) + b"0\r\n\r\n"


def test_events_are_read_however_the_stream_is_cut(tmp_path: Path) -> None:
    stream = (
        b': comment\r\nid: 7\ndata: {"a":\ndata: 1}\n\n\ndata:"two"\n\nevent: news\ndata: [3]\n\ndata: lost'
    )
    body = (
        HEAD
        + b"Transfer-Encoding: chunked\r\n\r\n"
        + chunked(*(stream[i : i + 1] for i in range(len(stream))))
    )
    with answer(tmp_path / "s", *(body[i : i + 7] for i in range(0, len(body), 7))) as client:
        assert read_events(client) == [{"a": 1}, "two", [3]]


def test_events_of_a_stream_without_chunks_end_with_the_connection(tmp_path: Path) -> None:
    with answer(tmp_path / "s", HEAD + b"Connection: close\r\n\r\n" + b"data: 1\n\ndata: 2\n\n") as client:
        assert read_events(client) == [1, 2]


@pytest.mark.parametrize("tail", [b"", b"5\r\n", b"5\r\nda", b"10\r\ndata: 2\n\n", b"zz\r\n"])
def test_a_stream_that_breaks_is_not_taken_for_a_whole_one(tmp_path: Path, tail: bytes) -> None:
    body = HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"9\r\ndata: 1\n\n\r\n" + tail
    with answer(tmp_path / "s", body) as client, client.events("stream") as events:
        stream = iter(events)
        assert next(stream) == 1
        with pytest.raises(StreamBroken, match="was lost"):
            list(stream)


def test_an_error_event_raises_what_it_says(tmp_path: Path) -> None:
    body = b'data: 1\n\nevent: error\ndata: {"code":"guest_error","message":"gone","hint":"look"}\n\n'
    with (
        answer(tmp_path / "s", HEAD + b"Connection: close\r\n\r\n" + body) as client,
        pytest.raises(ApiError, match="gone; look") as error,
    ):
        read_events(client)
    assert error.value.code == "guest_error"


def test_a_stream_that_says_nothing_ends_at_its_deadline(tmp_path: Path) -> None:
    with (
        answer(tmp_path / "s", HEAD + b"Connection: close\r\n\r\n", hold=True) as client,
        pytest.raises(TimeoutError),
    ):
        read_events(client, timeout=0.1)


def test_a_stream_that_is_refused_raises_the_refusal(tmp_path: Path) -> None:
    with Canned(tmp_path / "s").serve() as daemon, pytest.raises(ApiError) as error:
        read_events(Client(str(daemon.path)))
    assert error.value.code == "not_found"


def test_a_call_that_is_not_answered_ends_at_its_deadline(tmp_path: Path) -> None:
    with (
        answer(tmp_path / "s", hold=True) as client,
        pytest.raises(Unreachable, match=r"did not answer within 0\.1 s"),
    ):
        client.call("GET", "x", timeout=0.1)


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"rubbish\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nno!",
    ],
)
def test_an_answer_that_is_none_is_unreachable(tmp_path: Path, reply: bytes) -> None:
    with answer(tmp_path / "s", reply) as client, pytest.raises(Unreachable):
        client.get("x")


@pytest.mark.parametrize("content", [b"<html>", b"[]", b'{"message": 3}', b"\xff"])
def test_an_error_without_words_still_has_a_status(tmp_path: Path, content: bytes) -> None:
    head = f"HTTP/1.1 500 No\r\nContent-Length: {len(content)}\r\n\r\n".encode()
    with (
        answer(tmp_path / "s", head + content) as client,
        pytest.raises(ApiError, match="HTTP status 500") as error,
    ):
        client.get("x")
    assert error.value.code == "http_500"


def test_no_socket_and_a_dead_socket_say_how_to_start_the_daemon(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    for name in ("none", "dead"):
        with pytest.raises(Unreachable, match=r"systemctl start hypemand\.socket"):
            Client(str(tmp_path / name)).get("x")


def test_a_path_that_is_too_long_is_an_error_too(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="cannot connect"):
        Client(f"/{'x' * 200}").get("x")


def test_names_cannot_leave_their_place_in_the_path() -> None:
    assert build_target("instances", "../../reload?x#y") == "/instances/..%2F..%2Freload%3Fx%23y"
    assert build_target("images", "a/b:1", query={"tail": "all"}) == "/images/a%2Fb%3A1?tail=all"


def test_the_socket_is_found_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HYPEMAN_SOCKET", raising=False)
    assert find_socket(None) == "/run/hypemand/api.sock"
    monkeypatch.setenv("HYPEMAN_SOCKET", "/tmp/a")
    assert find_socket(None) == "/tmp/a"
    assert find_socket("/tmp/b") == "/tmp/b"
