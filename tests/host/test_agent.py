# SPDX-License-Identifier: Apache-2.0
"""The agent of a real VM: terminals, copies, stat and the clock, asked for in the daemon's place."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.host.command import Result
from tests.host.machine import TestHost
from tests.host.vms import Vms, vms_of

pytestmark = pytest.mark.one_release

PROBE = Path(__file__).with_name("agent_probe.py")


@pytest.fixture(scope="module")
def vms(host: TestHost) -> Iterator[Vms]:
    """The VM of this module, `asked`."""
    host.push("/srv/probe.py", PROBE.read_bytes())
    with vms_of(host) as vms:
        vms.run("asked", disk="128M")
        yield vms
    host.run(["rm", "-rf", "/srv/probe.py", "/srv/tree"])


def arguments(vms: Vms, act: str, *more: str) -> list[str]:
    """The probe's command line. Ask for it while there is a daemon."""
    boot = vms.show("asked")["boot_id"]
    return ["python3", "-W", "error", "/srv/probe.py", "/run/hypemand/vms/asked/agent.sock", boot, act, *more]


@pytest.fixture(scope="module")
def said(vms: Vms) -> Mapping[str, Result]:
    """What each act of the probe had to say, done while there was no daemon. The daemon that comes back finds
    the VM Running, and its agent."""
    acts = ["terminal", "tree", "escape", "clock"]
    argv = {act: arguments(vms, act, *(["/srv/tree"] if act == "tree" else [])) for act in acts}
    with vms.without_daemon():
        said = {act: vms.host.run(argv[act], timeout=120, check=False) for act in acts}
    vms.wait("asked", "Running")
    assert vms.execute("asked", "echo", "here") == "here\n"
    return said


def answer(said: Mapping[str, Result], act: str) -> Any:
    assert said[act].ok, said[act].describe()
    return json.loads(said[act].stdout)


def test_a_shell_in_a_terminal(said: Mapping[str, Result]) -> None:
    found = answer(said, "terminal")
    lines = found["text"].split("\r\n")
    assert "30 80" in lines
    assert "vt220" in lines
    assert "50 100" in lines
    assert found["code"] == 7


def test_a_tree_is_the_same_on_both_sides(said: Mapping[str, Result]) -> None:
    found = answer(said, "tree")
    assert found["differs"] == []
    assert found["same"]
    assert found["entries"] == 9
    # the file that is mostly a hole has but one piece of data
    assert 1_000_000 < found["written"] < 1_300_000
    assert 1_000_000 < found["moved"] < 1_300_000
    lines = found["listing"].splitlines()
    assert lines[0].split()[:4] == ["-rw-r--r--", "1", "1234", "4321"]
    assert "-> ../elsewhere" in lines[1]
    assert lines[2].startswith("-rwsr-xr-x")
    assert int(lines[3].split()[0]) < 1000
    assert found["link"] == "../elsewhere"
    assert found["missing"]


def test_planted_links_lead_nowhere(said: Mapping[str, Result]) -> None:
    found = answer(said, "escape")
    assert found["safe"] == ""
    assert "go through the link out" in found["words"][0]
    assert "out/evil" in found["words"][1]
    assert "not a path that stays below" in found["words"][2]
    assert "own/evil" in found["words"][3]


def test_a_daemon_that_dies_in_a_copy_leaves_no_half_file_and_the_vm_unharmed(vms: Vms) -> None:
    before = vms.show("asked")["invocation_id"]
    argv = arguments(vms, "half")
    # at the end of the block it goes as a process does that is killed: with no word to the guest
    with vms.without_daemon(), vms.host.popen(argv) as cut_off:
        assert cut_off.stdout is not None
        listing = json.loads(cut_off.stdout.readline())
        assert [name.startswith(".hypeman-") for name in listing] == [True]
    vms.wait("asked", "Running")
    until_empty = "until [ -z $(ls -A /srv/half) ]; do sleep 0.1; done"
    assert vms.execute("asked", "timeout", "120", "sh", "-c", until_empty) == ""
    assert vms.show("asked")["invocation_id"] == before


def test_the_clock_is_set(said: Mapping[str, Result]) -> None:
    found = answer(said, "clock")
    assert 0 <= found["then"] - 1_700_000_000 <= found["took"] + 1
    assert found["back"]
