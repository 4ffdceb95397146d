# SPDX-License-Identifier: Apache-2.0
"""ExecStop= against a VMM's stop port."""

import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import pytest

from hypemand.sockets import hold_socket
from hypemand.systemd.notify import notify_for
from hypemand.unit import stop


@contextmanager
def stop_port(path: Path, heard: list[bytes]) -> Iterator[None]:
    """A VMM's port: hears one order, then closes, as a VMM that ends does."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                heard.append(connection.recv(100))

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join(10)


@contextmanager
def paused_vmm(folder: Path) -> Iterator[list[bytes]]:
    """A VMM whose guest hears the order, and ends, only when QMP has said that it is to go on. Gives what it
    hears: the lines of QMP, then the order."""
    orders: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as port, socket.socket(socket.AF_UNIX) as qmp:
        for listener, name in ((port, "stop"), (qmp, "qmp")):
            listener.bind(str(folder / f"{name}.sock"))
            listener.listen(1)

        def serve() -> None:
            stop, _ = port.accept()
            client, _ = qmp.accept()
            with stop, client, client.makefile("rwb", buffering=0) as talk:
                talk.write(b'{"QMP": {"version": {}, "capabilities": []}}\n')
                while not orders or json.loads(orders[-1])["execute"] != "cont":
                    orders.append(talk.readline())
                    talk.write(b'{"return": {}}\n{"event": "RESUME"}\n')
                orders.append(stop.recv(100))

        thread = threading.Thread(target=serve)
        thread.start()
        yield orders
        thread.join(10)
        assert not thread.is_alive()


def run_stop(folder: Path, *more: str, **variables: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[3]
    command = [sys.executable, "-m", "hypemand.unit.stop", str(folder), "27", *more]
    env = {name: value for name, value in os.environ.items() if name != "MAINPID"} | variables
    return subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=30, check=False)


def test_the_guest_is_told_and_the_end_awaited(tmp_path: Path) -> None:
    heard: list[bytes] = []
    with stop_port(tmp_path / "stop.sock", heard):
        result = run_stop(tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert heard == [b"poweroff 27\n"]


def test_a_guest_that_is_paused_is_resumed_where_no_daemon_does_it(tmp_path: Path) -> None:
    with paused_vmm(tmp_path) as orders:
        result = run_stop(tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert [json.loads(order)["execute"] for order in orders[:-1]] == ["qmp_capabilities", "cont"]
    assert orders[-1] == b"poweroff 27\n"


def test_the_daemons_connection_to_qmp_is_left_to_it(tmp_path: Path) -> None:
    """Who comes second hears nothing, and the end is seen nevertheless."""
    heard: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as qmp, stop_port(tmp_path / "stop.sock", heard):
        qmp.bind(str(tmp_path / "qmp.sock"))
        qmp.listen(1)
        assert run_stop(tmp_path).returncode == 0
        waited, _ = qmp.accept()
        with waited:
            assert waited.recv(100) == b""
    assert heard == [b"poweroff 27\n"]


def test_a_vmm_that_has_gone_is_what_is_wanted(tmp_path: Path) -> None:
    assert run_stop(tmp_path).returncode == 0
    with socket.socket(socket.AF_UNIX) as nobody_listens:
        nobody_listens.bind(str(tmp_path / "stop.sock"))
    assert run_stop(tmp_path).returncode == 0


def test_a_link_to_another_socket_is_not_followed(tmp_path: Path) -> None:
    other = tmp_path / "other.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(other))
        (tmp_path / "stop.sock").symlink_to(other)
        with pytest.raises(PermissionError), hold_socket(tmp_path / "stop.sock", os.getuid()):
            pass
        with hold_socket(other, os.getuid()) as held:
            assert held.startswith("/proc/self/fd/")


def test_a_socket_of_another_user_is_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "stop.sock"))
        with (
            pytest.raises(PermissionError, match="not a socket of user 12345"),
            hold_socket(tmp_path / "stop.sock", 12345),
        ):
            pass


def test_systemd_is_told_to_wait_as_long_as_the_guest_may_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = tmp_path / "notify"
    heard: list[bytes] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(manager))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        listener.settimeout(20)
        monkeypatch.setattr("hypemand.systemd.notify._NOTIFY_SOCKET", str(manager))
        monkeypatch.setenv("MAINPID", str(os.getpid()))
        monkeypatch.setattr(sys, "argv", ["stop", str(tmp_path), "86400"])
        with stop_port(tmp_path / "stop.sock", heard):
            assert stop.main() == 0
        words, ancillary, _flags, _address = listener.recvmsg(4096, 256)
    assert words == b"EXTEND_TIMEOUT_USEC=86405000000"
    ((_level, _kind, credentials),) = ancillary
    assert struct.unpack("iII", credentials)[0] == os.getpid()
    assert heard == [b"poweroff 86400\n"]


def test_a_systemd_that_does_not_read_keeps_no_guest_from_being_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    heard: list[bytes] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        monkeypatch.setattr("hypemand.systemd.notify._NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setattr("hypemand.systemd.notify._DEADLINE", 0.01)
        with suppress(BlockingIOError):
            while True:
                notify_for(os.getpid(), "STATUS=full")
        monkeypatch.setenv("MAINPID", str(os.getpid()))
        monkeypatch.setattr(sys, "argv", ["stop", str(tmp_path), "27"])
        with stop_port(tmp_path / "stop.sock", heard):
            assert stop.main() == 0
    assert heard == [b"poweroff 27\n"]
    assert "cannot tell systemd to wait 32 s: Connection timed out" in capsys.readouterr().err


def test_a_systemd_that_cannot_be_told_keeps_no_guest_from_being_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    heard: list[bytes] = []
    monkeypatch.setattr("hypemand.systemd.notify._NOTIFY_SOCKET", str(tmp_path / "none"))
    monkeypatch.setenv("MAINPID", str(os.getpid()))
    monkeypatch.setattr(sys, "argv", ["stop", str(tmp_path), "27"])
    with stop_port(tmp_path / "stop.sock", heard):
        assert stop.main() == 0
    assert heard == [b"poweroff 27\n"]
    assert "cannot tell systemd to wait 32 s" in capsys.readouterr().err


RUN = "5a" * 16


@pytest.mark.parametrize(("run", "asked"), [(RUN, False), ("6b" * 16, True)])
def test_a_guest_that_was_saved_is_asked_nothing(tmp_path: Path, run: str, asked: bool) -> None:
    """What is there of a run before is no reason not to ask."""
    saved = tmp_path / "state" / "standby"
    saved.mkdir(parents=True)
    (saved / "snapshot.json").write_text(json.dumps({"run": RUN}))
    heard: list[bytes] = []
    with stop_port(tmp_path / "stop.sock", heard) if asked else nullcontext():
        done = run_stop(tmp_path, str(saved.parent), INVOCATION_ID=run)
    assert (done.returncode, heard) == (0, [b"poweroff 27\n"] if asked else [])


@pytest.mark.parametrize(
    ("host", "client", "asked"),
    [("stopping", "exit 0", False), ("stopping", "exit 1", True), ("running", "exit 0", True)],
)
def test_a_shutdown_of_the_host_saves_a_vm_that_wants_it_or_stops_it(
    tmp_path: Path, host: str, client: str, asked: bool
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    scripts = {"systemctl": f"echo {host}", "hypemanctl": f'echo "$@" >{tmp_path}/orders; {client}'}
    for name, script in scripts.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    heard: list[bytes] = []
    with stop_port(tmp_path / "stop.sock", heard) if asked else nullcontext():
        done = run_stop(tmp_path, str(tmp_path), "web", PATH=f"{programs}:{os.environ['PATH']}")
    assert (done.returncode, heard) == (0, [b"poweroff 27\n"] if asked else [])
    orders = tmp_path / "orders"
    assert (orders.read_text() if orders.exists() else "") == ("standby web\n" if host == "stopping" else "")
    assert ("the VM is stopped instead" in done.stderr) is (client == "exit 1")
