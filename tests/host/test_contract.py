# SPDX-License-Identifier: Apache-2.0
"""systemd does what the fake one of the unit tests does: the scenarios of tests/fakes/contract.py."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.fakes.contract import SCENARIOS
from tests.host.machine import TestHost

TOP = Path(__file__).parents[2]
FILES = (
    "tests/__init__.py",
    *(f"tests/fakes/{name}.py" for name in ("__init__", "stage", "contract", "realworld")),
)


@pytest.fixture(scope="module")
def said(host: TestHost) -> Iterator[Mapping[str, str]]:
    """What was wrong, by the scenario's name; all are played in one go, one after the other."""
    for name in FILES:
        host.push(f"/srv/contract/{name}", (TOP / name).read_bytes())
    play = "cd /srv/contract; exec python3 -W error -m tests.fakes.realworld /run/contract"
    yield json.loads(host.shell(play, timeout=900).stdout)
    host.run(["rm", "-rf", "/srv/contract", "/run/contract"])


@pytest.mark.parametrize("name", SCENARIOS)
def test_systemd_does_what_the_fake_does(said: Mapping[str, str], name: str) -> None:
    if said[name]:
        pytest.fail(said[name], pytrace=False)
