# SPDX-License-Identifier: Apache-2.0
"""The unit files that the package installs."""

import re
import subprocess
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
    assert own["RestartSec"] == "100ms"
    assert own["ExecStopPost"] == f"-+/usr/lib/hypemand/restart-pause /run/hypemand/{service.stem}.failures"
    # it counts what failed in years, and systemd 252 does not know it
    assert "RestartSteps" not in own


class Service:
    """A service that ends, and what its restart waits for: `clock` in seconds."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "service.failures"
        self.clock = 1000
        self._tools = folder / "tools"
        self._tools.mkdir()
        (self._tools / "sleep").write_text('#!/bin/sh\necho "$1"\n')
        (self._tools / "sleep").chmod(0o755)
        self._uptime = folder / "uptime"
        self._script = folder / "restart-pause"
        text = (UNITS / "restart-pause").read_text()
        assert text.count("/proc/uptime") == 1
        self._script.write_text(text.replace("/proc/uptime", str(self._uptime)))

    def end(self, lived: int, *, result: str = "signal", status: str = "KILL") -> int:
        """It ends after so many seconds. Gives the seconds until it is started again, which pass too."""
        self.clock += lived
        self._uptime.write_text(f"{self.clock}.25 17.00\n")
        done = subprocess.run(
            ["/bin/sh", str(self._script), str(self.file)],
            env={"PATH": f"{self._tools}:/usr/bin:/bin", "SERVICE_RESULT": result, "EXIT_STATUS": status},
            capture_output=True,
            timeout=60,
            check=True,
        )
        assert done.stderr == b""
        pause = int(done.stdout or b"0")
        self.clock += pause
        return pause


def test_what_fails_again_and_again_is_tried_less_and_less_often(tmp_path: Path) -> None:
    service = Service(tmp_path)
    assert [service.end(1) for _ in range(16)] == [0, 0, 0, 0, *range(1, 11), 10, 10]


def test_what_has_lasted_for_a_while_is_there_again_at_once(tmp_path: Path) -> None:
    service = Service(tmp_path)
    assert [service.end(1) for _ in range(8)][-1] == 4
    assert [service.end(20) for _ in range(50)] == [0] * 50
    assert [service.end(1) for _ in range(6)] == [0, 0, 0, 1, 2, 3]


@pytest.mark.parametrize(
    "how", [{"result": "success", "status": "0"}, {"result": "exit-code", "status": "78"}]
)
def test_a_stop_waits_for_nothing_and_is_no_failure(tmp_path: Path, how: dict[str, str]) -> None:
    service = Service(tmp_path)
    assert [service.end(1) for _ in range(8)][-1] == 4
    assert service.end(1, **how) == 0
    assert not service.file.exists()
    assert [service.end(1) for _ in range(5)] == [0, 0, 0, 0, 1]


@pytest.mark.parametrize("content", ["", "17", "x y\n", "5 -3\n", "1 2 3\n"])
def test_a_file_that_was_cut_off_is_one_of_no_failure(tmp_path: Path, content: str) -> None:
    service = Service(tmp_path)
    service.file.write_text(content)
    assert [service.end(1) for _ in range(5)] == [0, 0, 0, 0, 1]


@pytest.mark.parametrize("socket", sorted(UNITS.glob("*.socket")), ids=lambda path: path.name)
def test_a_socket_is_not_closed_since_its_service_dies_again_and_again(socket: Path) -> None:
    assert settings(socket)["TriggerLimitIntervalSec"] == "0"


def test_both_services_are_looked_at() -> None:
    assert {path.stem for path in RESTARTED} == {"hypemand", "hypemand-network"}
