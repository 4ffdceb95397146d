# SPDX-License-Identifier: Apache-2.0
"""What the daemon of a host says, asked from outside: that takes a tenth of what a hypemanctl does."""

import json
from typing import Any

from hypemand.cli.client import Connection
from tests.host.machine import TestHost

_DEADLINE = 90.0


def api_get(host: TestHost, path: str) -> Any:
    """The document at a path; AssertionError with the daemon's words if it refuses."""
    return json.loads(api_text(host, path))


def api_text(host: TestHost, path: str) -> str:
    """What is at a path; AssertionError with the daemon's words if it refuses."""
    connection = Connection(str(host.root / "run/hypemand/api.sock"), _DEADLINE)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read().decode()
    finally:
        connection.close()
    assert answer.status == 200, f"GET {path}: {answer.status} {body}"
    return body
