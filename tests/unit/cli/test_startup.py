# SPDX-License-Identifier: Apache-2.0
"""hypemanctl starts fast because it imports little."""

from __future__ import annotations

import subprocess

import pytest

from tests.unit.cli.canned import Canned, Failure
from tests.unit.cli.conftest import DEADLINE, Cli

HEAVY = {"aiohttp", "asyncio", "jsonschema", "pystemd", "subprocess", "systemd", "websocket", "yaml"}


@pytest.mark.parametrize(
    "words",
    [
        ["--version"],
        ["--help"],
        ["list"],
        ["status", "web"],
        ["start", "--wait", "web"],
        ["run", "box"],
        ["top", "-d", "100ms"],
        ["token", "list"],
    ],
)
def test_no_command_imports_what_it_does_not_need(daemon: Canned, cli: Cli, words: list[str]) -> None:
    daemon.add("web")
    daemon.answers["POST /instances/web/start"] = daemon.vms["web"].instance
    daemon.answers["GET /tokens"] = []
    daemon.answers["GET /images/box"] = {"name": "box", "status": "ready"}
    daemon.answers["POST /instances"] = Failure(400, {"code": "invalid_definition", "message": "no"})
    argv = cli.argv(*words)
    argv[1:1] = ["-X", "importtime"]
    done = subprocess.run(
        argv, env=cli.environ, capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}
    assert "hypemand" in imported
    assert imported & HEAVY == set()
