# SPDX-License-Identifier: Apache-2.0
"""What systemd-machined is told of a VM."""

from __future__ import annotations

from pathlib import Path

import pytest

from hypemand.unitnames import unit_name
from hypemand.vm.notifications import find_leader
from tests.fakes.host import FakeHost, drive

UNIT = unit_name("web")


def make_process(proc: Path, pid: int, comm: str, group: str = UNIT, children: str = "") -> None:
    """As proc(5) has it."""
    (proc / f"{pid}/task/{pid}").mkdir(parents=True)
    (proc / f"{pid}/task/{pid}/children").write_text(children)
    (proc / f"{pid}/comm").write_text(f"{comm}\n")
    (proc / f"{pid}/cgroup").write_text(f"0::/hypeman.slice/{group}\n")


def test_the_leader_is_the_vmms_child_in_its_unit(tmp_path: Path) -> None:
    make_process(tmp_path, 5, "qemu-system-x86", children="6 7 ")
    make_process(tmp_path, 6, "vm-leader", "other.service")
    make_process(tmp_path, 7, "vm-leader")
    assert find_leader(5, UNIT, tmp_path) == 7


def test_what_waits_for_a_vmm_that_is_not_the_main_process_yet_is_no_leader(tmp_path: Path) -> None:
    """It goes when that becomes the main process, and systemd-machined would forget the VM with it."""
    make_process(tmp_path, 5, "hypeman-console", children="6 ")
    make_process(tmp_path, 6, "hypeman-console", children="7 ")
    make_process(tmp_path, 7, "qemu-system-x86", children="8 ")
    make_process(tmp_path, 8, "vm-leader")
    with pytest.raises(ProcessLookupError):
        find_leader(5, UNIT, tmp_path)


def test_another_main_process_is_made_known_again(caplog: pytest.LogCaptureFixture) -> None:
    """In vain here, where no process is one of the kernel's: it is told."""

    def tries() -> int:
        return caplog.text.count("cannot register it with systemd-machined")

    async def scenario(host: FakeHost) -> None:
        await host.run()
        await host.until_true(lambda: tries() == 1)
        await host.vm().refresh()
        assert tries() == 1
        main = host.systemd.units[UNIT].main
        assert main is not None
        main.pid += 1_000_000
        await host.vm().refresh()
        await host.until_true(lambda: tries() == 2)

    drive(scenario)
