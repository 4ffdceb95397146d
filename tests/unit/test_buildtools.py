# SPDX-License-Identifier: Apache-2.0
"""What make says before and during a build that takes long: tools/parts and tools/pulse."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.host.recipe import Recipe, Suite

TOP = Path(__file__).parents[2]
DEADLINE = 60.0


def run(*argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv,
        cwd=TOP,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


def parts(cache: Path, *words: str) -> dict[str, str]:
    done = run("tools/parts", *words, HYPEMAND_BUILD_CACHE=str(cache))
    assert (done.returncode, done.stdout) == (0, "")
    head, *lines = done.stderr.splitlines()
    assert head == f"make {words[0]}: what is built once is kept in {cache}"
    return {line[2:28].strip(): line[28:] for line in lines}


def test_a_new_machine_is_told_each_part_and_its_time(tmp_path: Path) -> None:
    told = parts(tmp_path, "test", "bookworm", "trixie")
    assert list(told) == [
        "set-up of this machine", "guest kernel", "Debian packages", "roots of Debian bookworm",
        "roots of Debian trixie", "tests",
    ]  # fmt: skip
    assert all(re.match(r"about \d+ minutes?\b", time) for time in told.values()), told
    minutes = int(told["tests"].split()[1])
    assert minutes > 1
    assert list(parts(tmp_path, "demo"))[-2:] == ["root of a test host", "demo"]


def test_what_is_in_the_cache_is_there(tmp_path: Path) -> None:
    for name in ("venv-12/complete", "kernel-12/kernel.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    (tmp_path / "roots" / Recipe(Suite.TRIXIE).key).mkdir(parents=True)
    told = parts(tmp_path, "test", "bookworm", "trixie")
    there = [what for what, time in told.items() if time == "there"]
    assert there == ["set-up of this machine", "guest kernel", "roots of Debian trixie"]


def test_make_says_it_before_anything_else(tmp_path: Path) -> None:
    for target, suites in (("demo", []), ("test", ["bookworm"])):
        done = run(
            "make", "--no-print-directory", "--dry-run", target, *[f"SUITES={suite}" for suite in suites]
        )
        assert done.returncode == 0, done.stderr
        assert "tools/parts" in done.stdout.splitlines()[0]
    assert run("tools/parts", "frob").returncode == 2
    assert "tools/parts" not in run("make", "--no-print-directory", "--dry-run", "lint").stdout


@pytest.mark.parametrize(("command", "status"), [("sleep 1", 0), ("sh -c 'exit 3'", 3)])
def test_what_takes_long_says_that_it_goes_on(command: str, status: int) -> None:
    script = f". tools/pulse; with_pulse 'building it' {command}"
    done = run("bash", "-c", script, HYPEMAND_PULSE="0.3")
    assert (done.returncode, done.stdout) == (status, "")
    lines = done.stderr.splitlines()
    if status:
        assert lines == []
    else:
        assert lines[0] == "  still building it, for 1 min ..."
        assert 1 <= len(lines) <= 4
