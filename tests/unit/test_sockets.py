# SPDX-License-Identifier: Apache-2.0
"""Sockets in folders that are not ours."""

import os
import socket
from pathlib import Path

import pytest

from hypemand.sockets import hold_socket


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
