# SPDX-License-Identifier: Apache-2.0
"""What the daemon of a host says, asked from outside: that takes a tenth of what a hypemanctl does."""

import http.client
import json
import socket
from typing import Any

from tests.host.machine import TestHost


class _Connection(http.client.HTTPConnection):
    def __init__(self, host: TestHost) -> None:
        super().__init__("hypemand", timeout=30)
        self._path = str(host.root / "run/hypemand/api.sock")

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def api_get(host: TestHost, path: str) -> Any:
    """What is at a path; AssertionError with the daemon's words if it refuses."""
    connection = _Connection(host)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read().decode()
    finally:
        connection.close()
    assert answer.status == 200, f"GET {path}: {answer.status} {body}"
    return json.loads(body)
