# SPDX-License-Identifier: Apache-2.0
"""ExecStop= of units of an earlier version. What becomes of it: tests/launcher/ending.py."""

import runpy
import sys
from pathlib import Path

import pytest


def test_a_unit_of_an_earlier_version_ends_by_the_same_program(monkeypatch: pytest.MonkeyPatch) -> None:
    executed: list[tuple[str, list[str]]] = []
    monkeypatch.setattr("os.execv", lambda path, argv: executed.append((path, argv)))
    monkeypatch.setattr(sys, "argv", ["stop", "/run/web", "27", "/state/web", "web"])
    runpy.run_module("hypemand.unit.stop", run_name="__main__")
    ((path, argv),) = executed
    assert (Path(path).name, argv[1:]) == ("ending", ["stop", "/run/web", "27", "/state/web", "web"])
