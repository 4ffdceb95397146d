# SPDX-License-Identifier: Apache-2.0
"""Definitions as text: show --definition and diff, over a host that behaves."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from hypemand.cli.definition import format_definition
from hypemand.config.definition import LIVE_KEYS, Definition, ImagePull
from hypemand.config.health import Health
from hypemand.config.ready import Check, Ready
from hypemand.config.source import format_yaml, parse_source
from hypemand.config.vmdef import definition_to_json, parse_definition
from hypemand.config.vmfile import load_vm_file
from hypemand.model.state import State
from hypemand.vm.running import runtime_part
from tests.fakes.api import Client
from tests.fakes.host import FakeHost
from tests.unit.cli.canned import Canned
from tests.unit.cli.conftest import Cli
from tests.unit.cli.test_over_manager import Run, drive

# what one of the versions of YAML takes for something else than a text
ODD_TEXTS = [
    *("", "no", "on", "NULL", "~", "1", "1e5", "1.10", "0o17", "0x1F", "1:30", "1_000", ".5", "=", "<<"),
    *(" a ", "a: b", "- a", "#a", "a #b", "*a", "&a", "!a", "%a", "@a", "`a", "|", ">", "'", '"', "\\", "{a"),
    *("a\nb\n", "\n", "\ta", "a\r\n", "\x1b[2J\x07", "\x85\u2028\u202e\ufeff", "é", "\U0001f600", "x" * 5000),
    *("2026-03-01", "---", "... ", "? a", "a:", "[", "a\0b"),
]


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_every_text_is_read_as_it_was_written(text: str) -> None:
    value = {"list": [text], "map": {"key": text, "k" + text: "x"}}
    written = format_yaml(value)
    assert written.isascii()
    assert all(letter.isprintable() for letter in written.replace("\n", ""))
    source = parse_source(written, "x")
    assert (source.data, source.problems) == (value, ())


def test_a_definition_is_the_same_when_it_is_read_from_its_text(tmp_path: Path) -> None:
    rich = {
        "image": "builtin:app",
        "memory": "2G",
        "cmd": ["sh", "-c", 'echo "$A"\n'],
        "env": {"A": "no", "B": "1.10", "C": "0o17"},
        "user": "1000",
        "boot_timeout": "infinity",
        "stop_timeout": 90,
        "restart": "always",
        "guest_agent": False,
        "volumes": [{"volume": "data", "mount_path": "/data", "required": False}],
        "network": {"name": "lab", "publish": ["8080-8082:80-82", "[fd00::1]:53:53/udp"], "isolate": False},
        "ready": {"http": {"port": 80, "path": "/x"}},
        "ulimits": {"nofile": "1024:2048"},
        "unit": {"CPUWeight": 50, "After": ["a.service", "b.service"]},
        "tags": {"team/a": "on"},
    }
    for keys in (rich, {"image": "builtin:app", "network": "none"}):
        for key in [*keys, None]:
            given = parse_definition("web", {k: v for k, v in keys.items() if k == "image" or k != key})
            file = tmp_path / "web.yaml"
            file.write_text(format_definition(definition_to_json(given)))
            assert load_vm_file(file) == given


def test_what_is_the_default_of_every_host_is_left_out() -> None:
    text = format_definition(definition_to_json(Definition("web", "builtin:app")))
    written = parse_source(text, "").data
    assert isinstance(written, dict)
    # a host may have others for these
    assert set(written) == {"image", "memory", "vcpus", "disk", "boot_timeout", "stop_timeout", "network"}


def test_a_vm_of_the_api_has_a_file_that_check_takes(tmp_path: Path) -> None:
    async def scenario(host: FakeHost, api: Client, run: Run) -> None:
        body = {"name": "web", "image": "builtin:app", "cmd": ["x", "no"], "size": "96MB", "env": {"A": "1"}}
        assert (await api.ask("POST", "/instances", body | {"network": {"enabled": False}}))[0] in (200, 201)
        done = await run("show", "--definition", "web")
        assert (done.returncode, done.stderr) == (0, "")
        file = tmp_path / "web.yaml"
        file.write_text(done.stdout)
        assert load_vm_file(file) == host.vm().record.definition
        assert (await run("check", str(file))).returncode == 0
        # it is the same, and so the file may define it from now on
        (host.config.vm_dir / "web.yaml").write_text(done.stdout)
        assert (await run("reload")).returncode == 0
        shown = json.loads((await run("show", "--json", "web")).stdout)
        assert (shown["origin"], shown["definition_file"]) == ("file", str(host.config.vm_dir / "web.yaml"))
        assert json.loads((await run("show", "--definition", "--json", "web")).stdout)["name"] == "web"
        assert (await run("show", "--definition", "-p", "memory", "web")).returncode == 8

    drive(scenario)


def test_diff_shows_what_a_restart_would_change() -> None:
    async def scenario(host: FakeHost, _: Client, run: Run) -> None:
        host.write(autostart=True, memory="128M")
        assert (await run("reload")).returncode == 0
        await host.until(State.RUNNING)
        assert [(await run("diff", *words, "web")).returncode for words in ((), ("--json",))] == [0, 0]
        host.write(autostart=False, memory="192M", tags={"a": "b"}, env={"A": "no"})
        file = host.config.vm_dir / "web.yaml"
        unread = await run("diff", "web")
        assert unread.stdout.startswith(f"--- web (running)\n+++ web ({file})\n@@ ")
        assert "\n-memory: 128M\n+memory: 192M\n" in unread.stdout
        assert (await run("reload")).returncode == 0
        done = await run("diff", "web")
        assert (done.returncode, done.stderr) == (1, "")
        assert done.stdout.startswith("--- web (running)\n+++ web (definition)\n@@ ")
        changed = {line for line in done.stdout.splitlines()[2:] if line[0] in "+-"}
        assert changed == {"-memory: 128M", "+memory: 192M", "+env:", "+  A: 'no'"}
        assert json.loads((await run("diff", "--json", "web")).stdout) == {
            "memory": {"running": "128M", "defined": "192M"},
            "env": {"running": {}, "defined": {"A": "no"}},
        }
        assert (await run("restart", "--wait", "web")).returncode == 0
        same = await run("diff", "web")
        assert (same.returncode, same.stdout) == (0, "")

    drive(scenario)


def test_a_check_that_was_taken_since_the_start_and_the_order_of_keys_are_no_difference() -> None:
    async def scenario(host: FakeHost, _: Client, run: Run) -> None:
        first: dict[str, Any] = {
            "env": {"B": "2", "A": "1"},
            "sysctls": {"net.core.somaxconn": "9", "kernel.pid_max": "99"},
        }
        host.write(autostart=True, **first)
        assert (await run("reload")).returncode == 0
        await host.until(State.RUNNING)
        turned: dict[str, Any] = {
            key: dict(reversed(values.items())) for key, values in reversed(first.items())
        }
        check = {"http": {"path": "/x", "port": 80}, "failure_threshold": 2, "interval": "1s"}
        host.write(health=check, autostart=True, **turned)
        assert (await run("reload")).stdout == "Changed: web.\n"
        for words in ((), ("--json",)):
            done = await run("diff", *words, "web")
            assert (done.returncode, done.stdout) == (0, "{}\n" if words else "")
        host.write(autostart=True, memory="192M", **turned)
        assert (await run("reload")).stdout == "Changed, needs a restart: web.\n"
        lines = (await run("diff", "web")).stdout.splitlines()[2:]
        assert [line for line in lines if line[0] in "+-"] == ["-memory: 96M", "+memory: 192M"]

    drive(scenario)


def test_what_cannot_be_compared_is_no_difference() -> None:
    async def scenario(host: FakeHost, _: Client, run: Run) -> None:
        host.write()
        assert (await run("reload")).returncode == 0
        file = host.config.vm_dir / "web.yaml"
        file.write_text("image: builtin:app\nmemory: lots\n")
        broken = await run("diff", "web")
        assert (broken.returncode, f"{file}:2:9: memory: " in broken.stderr) == (8, True), broken.stderr
        file.unlink()
        gone = await run("diff", "web")
        assert (gone.returncode, f"{file}: cannot be read" in gone.stderr) == (8, True), gone.stderr
        assert (await run("diff", "nope")).returncode == 10

    drive(scenario)


def test_a_failure_of_diff_is_not_its_1(daemon: Canned, cli: Cli) -> None:
    daemon.refuse("GET /instances/web", 500, code="internal_error", message="oh")
    assert cli.run("diff", "web").returncode == 125
    assert cli.run("show", "web").returncode == 1


def test_live_keys_are_those_that_need_no_restart() -> None:
    health = Health(Ready(Check.TCP, port=80))
    pull, reset = ImagePull.ALWAYS, ("ssh-host-keys",)
    other = Definition(
        "web", "x", autostart=True, tags={"a": "b"}, image_pull=pull, health=health, fork_reset=reset
    )
    plain = Definition("web", "x")
    assert {
        key.name for key in fields(Definition) if getattr(other, key.name) != getattr(plain, key.name)
    } == LIVE_KEYS
    assert runtime_part(other) == runtime_part(plain)
