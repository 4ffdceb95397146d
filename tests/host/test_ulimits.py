# SPDX-License-Identifier: Apache-2.0
"""Limits of processes: what a program has by itself, what its definition gives it, and what is no limit."""

from collections.abc import Iterator

import pytest

from tests.host.machine import TestHost
from tests.host.vms import Vms, vms_of

pytestmark = pytest.mark.one_release

SHOW = "ulimit -Sn; ulimit -Hn; ulimit -Hc"
STAYS = f"{SHOW}; echo up; exec sleep infinity"


@pytest.fixture(scope="module")
def vms(host: TestHost) -> Iterator[Vms]:
    with vms_of(host) as made:
        yield made


def test_a_user_who_is_not_root_may_open_as_many_files_as_a_service(vms: Vms) -> None:
    name = vms.define("usual", STAYS, user="1000:1000")
    vms.start(name)
    vms.wait_console(name, "up")
    lines = vms.console(name)
    assert lines[lines.index("1024") :][:3] == ["1024", "524288", "unlimited"]
    assert vms.execute(name, "sh", "-c", SHOW) == "1024\n524288\nunlimited\n"


def test_the_program_and_commands_have_the_limits_of_the_definition(vms: Vms) -> None:
    limits = {"nofile": {"soft": 64, "hard": 128}, "core": 0, "nproc": "unlimited"}
    name = vms.define("with-ulimits", STAYS, user="1000:1000", ulimits=limits)
    vms.start(name)
    vms.wait_console(name, "up")
    lines = vms.console(name)
    assert lines[lines.index("64") :][:3] == ["64", "128", "0"]
    assert vms.execute(name, "sh", "-c", SHOW) == "64\n128\n0\n"
    assert vms.show(name)["definition"]["ulimits"] == limits
    shown = vms.ctl("show", name, "-p", "definition.ulimits").stdout
    assert "definition.ulimits.nofile.hard=128\n" in shown


def test_run_takes_limits_as_docker_does(vms: Vms) -> None:
    words = ["--ulimit", "nofile=300:400", "--ulimit", "core=0", "--network", "none", "-m", "128M"]
    done = vms.ctl("run", "--rm", "--no-kernel-headers", *words, "builtin:busybox", "sh", "-c", SHOW)
    assert done.stdout == "300\n400\n0\n"
    refused = vms.ctl("run", "--rm", "--ulimit", "nofile=9:8", "builtin:busybox", "true", check=False)
    assert refused.code == 125
    assert "ulimits.nofile: the soft limit 9 is above the hard limit 8" in refused.stderr


def test_what_is_no_limit_is_told_with_its_place(vms: Vms) -> None:
    path = "/srv/ulimits.yaml"
    vms.host.push(path, "image: x\nulimits:\n  nofile: unlimited\n  files: 1\n")
    checked = vms.ctl("check", path, check=False)
    vms.host.run(["rm", path])
    assert checked.code != 0
    said = checked.stdout + checked.stderr
    assert f"{path}:3:11: ulimits.nofile: unlimited is more than the guest's kernel allows" in said
    assert f"{path}:4:3: ulimits.files: is not known; did you mean nofile?" in said
