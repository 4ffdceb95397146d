# SPDX-License-Identifier: Apache-2.0
"""What a unit for images is started with. What the sandbox holds back is for the test host."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import pytest

from hypemand.storage.tools import (
    DirectTools,
    RegistryAuth,
    UnitTools,
    _secret_environment,
    find_link_local_servers,
)

SYSTEMD_RUN = """#!/bin/sh
printf '%s\\n' "$@" >"$TMPDIR/argv"
for word; do
    case $word in EnvironmentFile=*) cat "${word#EnvironmentFile=}" >"$TMPDIR/variables" ;; esac
done
"""
PROXY = 'http://user:pa$s"w`o\\rd@proxy.example:3128'


@pytest.fixture
def fake_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A systemd-run that writes down what it is told, into that folder."""
    program = tmp_path / "bin/systemd-run"
    program.parent.mkdir()
    program.write_text(SYSTEMD_RUN)
    program.chmod(0o755)
    path = f"{program.parent}:/usr/bin:/bin"
    monkeypatch.setattr("hypemand.run.ENVIRONMENT", {"PATH": path, "TMPDIR": str(tmp_path)})
    monkeypatch.setattr("hypemand.storage.tools._find_fetch_group", os.getgid)
    return tmp_path


def test_a_proxys_password_stands_on_no_command_line(fake_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", PROXY)
    monkeypatch.setenv("NO_PROXY", "localhost")
    folder = fake_run / "fetch"
    folder.mkdir()
    UnitTools("x", fake_run / "state").fetch(["true"], folder=folder, timeout=10)
    argv = (fake_run / "argv").read_text()
    assert "proxy.example" not in argv
    assert "pa$s" not in argv
    assert re.search(r"^EnvironmentFile=/proc/[0-9]+/fd/[0-9]+$", argv, re.MULTILINE)
    assert sorted((fake_run / "variables").read_text().splitlines()) == [
        'NO_PROXY="localhost"',
        'https_proxy="http://user:pa\\$s\\"w\\`o\\\\rd@proxy.example:3128"',
    ]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o770


def test_without_proxies_there_is_no_such_file() -> None:
    with _secret_environment({}) as file:
        assert file == ""


def test_a_build_sees_what_it_reads_and_writes_to_its_folder_alone(fake_run: Path) -> None:
    folder, source = fake_run / "staging", fake_run / "a b:c"
    folder.mkdir()
    read = [source, folder / "layout"]
    UnitTools("x", fake_run / "state").build(["true"], folder=folder, timeout=10, readable=read)
    argv = (fake_run / "argv").read_text().splitlines()
    assert f'BindPaths="{folder}"' in argv
    assert f'BindReadOnlyPaths="{fake_run}/a b\\\\:c"' in argv
    assert not any(str(folder / "layout") in word for word in argv)
    assert "TemporaryFileSystem=/:ro" in argv


@pytest.mark.parametrize("idle", [True, False])
def test_a_filter_has_two_open_files_and_nothing_else(fake_run: Path, idle: bool) -> None:
    source, target = fake_run / "source", fake_run / "target"
    source.write_text("all")
    with source.open() as reader, target.open("w") as writer:
        through = reader.fileno(), writer.fileno()
        tools = UnitTools("x", fake_run / "state")
        tools.filter(["cat"], through, user=1234, size=4096, timeout=10, idle=idle)
    argv = (fake_run / "argv").read_text().splitlines()
    assert {"User=1234", "Group=1234", "LimitFSIZE=4096", "TemporaryFileSystem=/:ro", "--pipe"} < set(argv)
    assert ("CPUSchedulingPolicy=idle" in argv) is idle
    assert not any(str(path) in word for word in argv for path in (source, target))


def test_a_filter_without_a_unit_reads_and_writes_these_files(tmp_path: Path) -> None:
    (tmp_path / "source").write_text("all")
    with (tmp_path / "source").open() as reader, (tmp_path / "target").open("w") as writer:
        DirectTools().filter(["tr", "a", "b"], (reader.fileno(), writer.fileno()), user=0, size=9, timeout=10)
    assert (tmp_path / "target").read_text() == "bll"


def test_link_local_name_servers_stay_open(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text(
        "search x\nnameserver 9.9.9.9\nnameserver 169.254.169.253\nnameserver fe80::1%eth0\n"
        "nameserver\nnameserver ::1\nnameserver nonsense\n"
    )
    assert find_link_local_servers(file) == ["169.254.169.253", "fe80::1"]
    assert find_link_local_servers(tmp_path / "none") == []


SHOWN = """#!/bin/sh
for word; do echo "$word"; done
"""


def test_a_bearer_token_is_in_the_option_of_the_tool_alone(tmp_path: Path) -> None:
    program, file = tmp_path / "tool", tmp_path / "token"
    program.write_text(SHOWN)
    program.chmod(0o755)
    file.write_text("a.b~c$HOME")
    words = [str(program), "inspect", "two words"]
    auth = RegistryAuth(file, is_token=True)
    done = DirectTools().fetch(words, folder=tmp_path, timeout=10, auth=auth, token_option="--token")  # noqa: S106
    assert done.stdout.decode().splitlines() == ["inspect", "two words", "--token=a.b~c$HOME"]


def test_a_bearer_token_is_in_no_property_of_a_unit(fake_run: Path) -> None:
    folder, file = fake_run / "work", fake_run / "token"
    folder.mkdir()
    file.write_text("secret")
    auth = RegistryAuth(file, is_token=True)
    tools = UnitTools("abc", fake_run / "state")
    tools.fetch(["cat", "x"], folder=folder, timeout=10, auth=auth, token_option="--token")  # noqa: S106
    given = (fake_run / "argv").read_text()
    assert "secret" not in given
    assert f"LoadCredential=auth.json:{file}" in given
    assert "REGISTRY_AUTH_FILE" not in given
    assert given.split("--\n", 1)[1].splitlines()[1:2] == ["-c"]
    assert given.splitlines()[-3:] == ["--token", "cat", "x"]
