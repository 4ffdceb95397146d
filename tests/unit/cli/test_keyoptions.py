# SPDX-License-Identifier: Apache-2.0
"""A row beside a key of the schema is an option of run: parsed, shown, completed and sent."""

from __future__ import annotations

import subprocess
import sys

import pytest

from hypemand.cli.keyoptions import find_key_options, read_keys
from hypemand.cli.parser import UsageError, parse_command_line
from hypemand.config.schemafile import load_schema
from hypemand.config.vmdef import parse_definition

TYPED = "-m 256M --vcpus 3 --disk 1G -w /srv -u www --mode exec --restart always --boot-timeout 5s"
LIMITS = ["--ulimit", "nofile=1024:524288", "--ulimit", "core=-1"]


def test_what_is_typed_becomes_the_keys_and_nothing_else_does() -> None:
    words = [
        "run",
        *TYPED.split(),
        *LIMITS,
        "--stop-timeout",
        "6s",
        "--tag",
        "a=b",
        "--tag",
        "c=d=e",
        "--no-agent",
        "--ready",
        "http:8080/up",
        "box",
    ]
    typed = read_keys(parse_command_line(words)[1])
    assert typed == {
        "memory": "256M",
        "vcpus": 3,
        "disk": "1G",
        "workdir": "/srv",
        "user": "www",
        "ulimits": {"nofile": "1024:524288", "core": "-1"},
        "mode": "exec",
        "guest_agent": False,
        "boot_timeout": "5s",
        "ready": "http:8080/up",
        "stop_timeout": "6s",
        "restart": "always",
        "tags": {"a": "b", "c": "d=e"},
    }
    parse_definition("web", {"image": "box", **typed})
    assert read_keys(parse_command_line(["run", "box"])[1]) == {}


def test_an_option_has_the_words_of_its_key() -> None:
    keys = load_schema("vm")["properties"]
    for one in find_key_options():
        assert one.option.choices == tuple(keys[one.key].get("enum", ())), one.key
    with pytest.raises(UsageError, match="--mode"):
        parse_command_line(["run", "--mode", "exce", "box"])


def test_other_commands_do_not_wait_for_the_schema() -> None:
    program = (
        "import sys; from hypemand.cli.parser import parse_command_line; "
        "parse_command_line(['start', 'web']); print('hypemand.config.schemafile' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "False\n"
