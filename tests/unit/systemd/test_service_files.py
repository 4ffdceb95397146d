# SPDX-License-Identifier: Apache-2.0
"""The unit files that the package installs."""

import re
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[3] / "units"
RESTARTED = [path for path in sorted(UNITS.glob("*.service")) if "\nRestart=" in path.read_text()]


def settings(path: Path) -> dict[str, str]:
    return dict(re.findall(r"^(\w+)=(.*)$", path.read_text(), re.MULTILINE))


@pytest.mark.parametrize("service", RESTARTED, ids=lambda path: path.name)
def test_a_service_that_dies_again_and_again_goes_on_by_itself(service: Path) -> None:
    """systemd.unit(5): past StartLimitBurst= a service stays down, and its socket with it; systemd.socket(5):
    past TriggerLimitBurst= the socket does."""
    own = settings(service)
    assert own["StartLimitIntervalSec"] == "0"
    assert {"RestartSec", "RestartSteps", "RestartMaxDelaySec"} <= own.keys()


@pytest.mark.parametrize("socket", sorted(UNITS.glob("*.socket")), ids=lambda path: path.name)
def test_a_socket_is_not_closed_since_its_service_dies_again_and_again(socket: Path) -> None:
    assert settings(socket)["TriggerLimitIntervalSec"] == "0"


def test_both_services_are_looked_at() -> None:
    assert {path.stem for path in RESTARTED} == {"hypemand", "hypemand-network"}
