# SPDX-License-Identifier: Apache-2.0
"""Notifications reach the manager as they are, and what keeps them from it is known to the caller."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from hypemand import notify as module
from hypemand.notify import notify


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield manager


def test_text_of_any_script_arrives_in_utf_8(manager: socket.socket) -> None:
    """python3-sdnotify encodes as Latin-1, and loses what has no place in it."""
    assert notify("STATUS=läuft → 起動", "READY=1")
    assert manager.recv(100).decode() == "STATUS=läuft → 起動\nREADY=1"
    assert notify("STATUS=\udc80")
    assert manager.recv(100) == b"STATUS=?"


def test_an_abstract_socket_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("")  # the kernel gives it a name
        manager.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + manager.getsockname()[1:].decode())
        assert notify("READY=1")
        assert manager.recv(100) == b"READY=1"


def test_without_a_manager_nothing_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "none"))
    assert not notify("READY=1", wait=True)


@pytest.mark.parametrize("wait", [False, True])
def test_a_manager_that_does_not_read_holds_nobody_up(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch, wait: bool
) -> None:
    """Its queue is short, and a blocked event loop is one whose watchdog ends it."""
    monkeypatch.setattr(module, "_DEADLINE", 0.01)
    sent = 0
    while notify("WATCHDOG=1", wait=wait):
        sent += 1
        assert sent < 100_000, "the queue has no end"
    manager.recv(100)
    assert notify("WATCHDOG=1", wait=wait)
