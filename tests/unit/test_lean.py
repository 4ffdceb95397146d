# SPDX-License-Identifier: Apache-2.0
"""What the daemon loads. Each case is a process of its own, since modules once loaded stay."""

import subprocess
import sys

DAEMON = """
import sys
from hypemand.__main__ import main
sys.argv = ["hypemand", "--version"]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print(*sys.modules)
"""
TWICE = """
import email
from hypemand.lean import skip_package
skip_package("email")
skip_package("json", mark="set")
import email.message, json.decoder, json
print(email.message_from_string.__name__)
print(json.decoder.JSONDecoder.__name__, json.mark, hasattr(json, "loads"))
"""
UNIT = """
import sys
import hypemand.unit.exit
print(*sys.modules)
"""
NONE = """
from hypemand.lean import skip_package
for name in ("no_such_package", "this"):
    try:
        skip_package(name)
    except ModuleNotFoundError as error:
        print(error.name)
"""


def run(program: str) -> list[str]:
    ended = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {sys.path[0]!r})\n{program}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout.split()


def test_the_units_commands_load_no_daemon() -> None:
    """Each end of a run would take longer."""
    loaded = set(run(UNIT))
    assert "hypemand.unit.exit" in loaded
    assert {"asyncio", "hypemand.vmm.driver", "hypemand.manager"} & loaded == set()


def test_the_daemon_loads_what_serves_and_no_client() -> None:
    loaded = set(run(DAEMON))
    assert {"hypemand.daemon", "aiohttp.web"} <= loaded
    assert not {"aiohttp.client", "aiohttp.connector", "lxml", "pystemd", "pyroute2", "nftables"} & loaded


def test_the_process_for_the_bus_loads_little() -> None:
    loaded = set(run("import hypemand.systemd.busworker, sys\nprint(*sys.modules)"))
    assert "pystemd.dbuslib" in loaded
    assert not {"asyncio", "aiohttp", "lxml", "logging", "hypemand.config"} & loaded


def test_modules_of_a_skipped_package_are_found_and_a_loaded_one_stays() -> None:
    assert run(TWICE) == ["message_from_string", "JSONDecoder", "set", "False"]


def test_what_is_no_package_is_named() -> None:
    assert run(NONE) == ["no_such_package", "this"]
