# SPDX-License-Identifier: Apache-2.0
"""The process of a service: what systemd hears of it, and how it ends."""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from hypemand.errors import HostNotReady, InvalidDefinition, Problem
from hypemand.service import Service, make_parser, run_service, set_up_logging
from hypemand.version import VERSION

DEADLINE = 60.0


class Manager:
    """A service manager that keeps what it is sent."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)

    async def receive(self) -> str:
        return (await asyncio.get_running_loop().sock_recv(self._socket, 1000)).decode()

    def fill(self) -> None:
        """Its queue takes no more."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.connect(self._socket.getsockname())
            sender.setblocking(False)
            try:
                while True:
                    sender.send(b"x")
            except BlockingIOError:
                pass

    def drain(self) -> list[str]:
        found = []
        try:
            while True:
                found.append(self._socket.recv(1000).decode())
        except BlockingIOError:
            return found

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    manager = Manager(tmp_path / "notify")
    yield manager
    manager.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, None])
def test_a_service_is_ready_until_it_is_to_stop(manager: Manager, number: int | None) -> None:
    async def scenario() -> None:
        service = Service()
        async with asyncio.timeout(DEADLINE), service.watch():
            serving = asyncio.create_task(service.serve())
            assert await manager.receive() == "READY=1"
            assert not serving.done()
            if number is None:
                service.stop()
            else:
                os.kill(os.getpid(), number)
            await serving
            assert await manager.receive() == "STOPPING=1"

    asyncio.run(scenario())


def test_the_watchdog_is_fed_also_where_its_check_fails(
    manager: Manager, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    checks = []

    def check() -> None:
        checks.append(1)
        raise OSError("no such disk")

    async def scenario() -> None:
        async with asyncio.timeout(DEADLINE), Service(check).watch():
            assert [await manager.receive() for _ in range(3)] == ["WATCHDOG=1"] * 3
        manager.drain()
        assert [task.get_name() for task in asyncio.all_tasks()] == [asyncio.current_task().get_name()]  # type: ignore[union-attr]

    asyncio.run(scenario())
    assert len(checks) >= 2
    assert "check failed" in caplog.text
    assert "no such disk" in caplog.text


def test_without_a_watchdog_nothing_recurs(manager: Manager) -> None:
    async def scenario() -> None:
        async with Service(lambda: pytest.fail("a check")).watch():
            await asyncio.sleep(0)

    asyncio.run(scenario())
    assert manager.drain() == []


def test_a_status_is_sent_when_it_is_new_and_again_if_it_was_lost(manager: Manager) -> None:
    async def scenario() -> None:
        service = Service()
        for status in ("one", "one", "two"):
            service.update_status(status)
        assert manager.drain() == ["STATUS=one", "STATUS=two"]
        manager.fill()
        service.update_status("three")
        assert "STATUS=three" not in manager.drain()
        service.update_status("three")
        assert manager.drain() == ["STATUS=three"]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, 0),
        (HostNotReady("there is no bus"), 1),
        (InvalidDefinition([Problem("/etc/h.yaml", 1, 2, "listen", "is wrong")]), os.EX_CONFIG),
    ],
)
def test_the_exit_status_says_why(
    error: Exception | None, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    def run() -> None:
        if error is not None:
            raise error

    assert run_service(run) == status
    assert [record.message for record in caplog.records] == ([f"cannot run: {error}"] if error else [])


def test_a_bug_is_no_exit_status() -> None:
    def run() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_service(run)


def test_every_service_has_a_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        make_parser("hypemand-x", "Does x.").parse_args(["--version"])
    assert capsys.readouterr().out == f"hypemand {VERSION}\n"


def test_of_a_chatty_library_only_warnings_are_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    try:
        set_up_logging("hypemand-x", quiet="some.library")
        assert not logging.getLogger("some.library").isEnabledFor(logging.INFO)
        assert logging.getLogger("some.library").isEnabledFor(logging.WARNING)
    finally:
        logging.getLogger("some.library").setLevel(logging.NOTSET)
