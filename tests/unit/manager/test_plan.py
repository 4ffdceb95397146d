# SPDX-License-Identifier: Apache-2.0
"""From a definition to a start."""

from pathlib import Path

import pytest

from hypemand.config.definition import MIB, Origin
from hypemand.config.vmdef import parse_definition
from hypemand.errors import InvalidDefinition
from hypemand.manager.inventory import VmRecord
from hypemand.manager.plan import Places, Plan, make_plan, stop_grace
from hypemand.qemu.accel import Accel, AccelKind
from hypemand.qemu.host import Kernel, VmmHost
from hypemand.storage.images import Image, OciConfig
from hypemand.systemd.rootdir import Own

HOST = VmmHost(
    binary=Path("/usr/bin/qemu-system-x86_64"),
    kernel=Kernel(Path("/k/vmlinux"), "6.12.0"),
    initrd=Path("/g/initrd.cpio"),
    accel=Accel(AccelKind.TCG, "no KVM"),
    tsc_khz=2596120,
    architecture="x86_64",
)


OWN = Own(Path("/run/hypemand/self"))
PLACES = Places(Path("/state/web"), Path("/run/hypemand/vms/web"), Path("/run/hypemand/root"), OWN)


def plan(**keys: object) -> Plan:
    definition = parse_definition("web", {"image": "app", **keys})
    record = VmRecord("web", "0" * 32, 61200, Origin.FILE, 0.0, definition)
    image = Image(
        name="app",
        id="x",
        digest="sha256:0",
        architecture="amd64",
        size=1,
        created_at=0.0,
        source="",
        config=OciConfig(cmd=("/bin/app",), stop_signal="SIGINT"),
        folder=Path("/images/x"),
    )
    return make_plan(record, definition, image, HOST, PLACES)


def test_the_units_limits_leave_room_for_the_vmm() -> None:
    unit = plan(memory="256M", vcpus=2).unit
    assert unit.memory_max >= 256 * MIB + 128 * MIB
    assert unit.cpu_quota > 2
    assert unit.tasks_max > 2


def test_the_vmm_can_write_to_its_runtime_folder_and_its_disk_only() -> None:
    assert {host for host, _inside in plan().unit.writable} == {PLACES.runtime, PLACES.disk}


def test_every_file_that_the_vmm_is_told_of_is_in_its_root() -> None:
    unit = plan().unit
    seen = {inside for _host, inside in (*unit.readable, *unit.writable)}
    told = " ".join(unit.start)
    assert {OWN.kernel, OWN.initrd, OWN.image, OWN.disk, OWN.runtime} <= seen
    assert f"-kernel {OWN.kernel} -initrd {OWN.initrd}" in told
    for path in (OWN.runtime / "config.img", OWN.image, OWN.disk):
        assert f"file={path},format=raw" in told


def test_the_exit_helper_is_told_what_it_judges_by() -> None:
    assert plan(guest_agent=False).unit.stop_post[-4:] == ("/state/web", "hypeman-vm-web.service", "2", "0")


def test_systemd_mode_is_refused_with_words() -> None:
    with pytest.raises(InvalidDefinition, match="systemd mode is not supported yet"):
        plan(mode="systemd")


@pytest.mark.parametrize(
    ("stop_timeout", "grace"), [(30.0, 27), (100.0, 90), (5.0, 3), (1.0, 1), (None, 86400)]
)
def test_the_program_gets_less_time_than_the_unit(stop_timeout: float | None, grace: int) -> None:
    assert stop_grace(stop_timeout) == grace
