# SPDX-License-Identifier: Apache-2.0
"""QEMU's command line."""

import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from hypemand.config.mode import Mode
from hypemand.model.limits import DiskLimits
from hypemand.vmm.accel import AccelKind
from hypemand.vmm.commandline import (
    NetDevice,
    SavedFiles,
    VmmFiles,
    VmmPlan,
    VolumeFile,
    find_drive,
    is_limited,
    kernel_words,
    qemu_arguments,
    restore_arguments,
    warm_arguments,
)
from hypemand.vmm.driver import Drive

RUN = Path("/run/hypemand/vms/web")
FILES = VmmFiles(
    kernel=Path("/k/vmlinux"),
    initrd=Path("/g/initrd.cpio"),
    config=RUN / "config.img",
    image=Path("/i/a,b/rootfs.erofs"),
    disk=Path("/s/disk.ext4"),
)
PLAN = VmmPlan(
    vm="web",
    vm_id="0123456789abcdef0123456789abcdef",
    binary=Path("/usr/bin/qemu-system-x86_64"),
    accel=AccelKind.TCG,
    memory=128 * 1024 * 1024,
    vcpus=2,
    tsc_khz=2596120,
    mode=Mode.EXEC,
    files=FILES,
)


def options(plan: VmmPlan, name: str) -> list[str]:
    words = qemu_arguments(plan)
    return [value for option, value in pairwise(words) if option == name]


def test_each_disk_is_found_by_its_serial_and_only_one_can_be_written() -> None:
    plan = replace(PLAN, files=replace(FILES, headers=Path("/k/headers.erofs")))
    drives, devices = options(plan, "-drive"), options(plan, "-device")
    for name in ("config", "image", "disk", "headers"):
        (drive,) = (d for d in drives if f"id={name}," in d)
        assert ("readonly=on" in drive) == (name != "disk")
        # the host looks at its locks before it touches that
        assert ("file.locking=on" in drive) == (name == "disk")
        assert any(f"drive={name}," in d and d.endswith(f",serial=hypeman-{name}") for d in devices)


def test_a_full_file_system_stops_the_guest_and_other_errors_of_disks_are_its_own() -> None:
    volumes = (VolumeFile(Path("/v/0"), "v0", readonly=False), VolumeFile(Path("/v/1"), "v1", readonly=True))
    plan = replace(PLAN, files=replace(FILES, volumes=volumes))
    devices = [d for d in options(plan, "-device") if d.startswith("virtio-blk-device")]
    written = {d.split("drive=")[1].split(",")[0] for d in devices if "werror=enospc" in d}
    assert written == {"disk", "volume0"}
    assert all("rerror=report" in d and d.count("werror=") == 1 for d in devices)


def test_drives_are_found_again_by_their_names() -> None:
    assert find_drive("disk") == Drive()
    assert [find_drive(name) for name in ("volume0", "volume15")] == [Drive(0), Drive(15)]
    for name in (
        "image",
        "volume",
        "volume-1",
        "volume1x",
        "volume\u0661",
        "xvolume1",
        "volume" + "9" * 5000,
    ):
        assert find_drive(name) is None


def read_launcher_fds() -> dict[str, int]:
    """What launcher/ports.h says of the descriptors that it brings."""
    header = (Path(__file__).parents[3] / "launcher/ports.h").read_text()
    return {name.lower(): int(number) for name, number in re.findall(r"FD_([A-Z]+) = (\d+),", header)}


def test_each_port_is_on_the_descriptor_that_the_launcher_gives_it() -> None:
    fds = read_launcher_fds()
    devices, chardevs = options(PLAN, "-device"), options(PLAN, "-chardev")
    for name in ("agent", "report", "stop"):
        assert f"virtserialport,chardev={name},name=org.hypeman.{name}" in devices
    assert options(PLAN, "-mon") == ["chardev=qmp,mode=control"]
    for name in ("qmp", "agent", "report", "stop"):
        assert f"socket,id={name},fd={fds[name]},server=on,wait=off" in chardevs


def test_limits_are_one_for_all_disks_that_are_the_vms() -> None:
    volumes = (VolumeFile(Path("/v/0"), "v0", readonly=False),)
    files = replace(FILES, volumes=volumes, headers=Path("/k/headers.erofs"))
    assert not any("throttling" in drive for drive in options(replace(PLAN, files=files), "-drive"))
    plan = replace(PLAN, files=files, disk_limits=DiskLimits(read=10, total=30, iops=40))
    wanted = ",throttling.bps-read=10,throttling.bps-total=30,throttling.iops-total=40,throttling.group=disks"
    for drive in options(plan, "-drive"):
        name = drive.partition("id=")[2].partition(",")[0]
        assert drive.endswith(wanted) is is_limited(name) is (name not in ("config", "headers")), drive


def test_a_balloon_returns_what_the_guest_has_freed() -> None:
    balloon = "virtio-balloon-device,id=balloon,free-page-reporting=on"
    assert balloon not in options(PLAN, "-device")
    assert balloon in options(replace(PLAN, balloon=True), "-device")


def test_a_comma_in_a_path_is_no_separator() -> None:
    assert any("file=/i/a,,b/rootfs.erofs," in drive for drive in options(PLAN, "-drive"))


def test_the_network_device_is_on_the_tap_that_the_launcher_gives_it() -> None:
    assert "-netdev" not in qemu_arguments(PLAN)
    plan = replace(PLAN, net=NetDevice("02:00:00:00:00:01"))
    assert options(plan, "-netdev") == [f"tap,id=net,fd={read_launcher_fds()['tap']},vhost=off"]
    assert "virtio-net-device,netdev=net,mac=02:00:00:00:00:01" in options(plan, "-device")


@pytest.mark.parametrize("accel", AccelKind)
def test_no_timer_can_interrupt_a_kernel_that_is_not_ready_for_it(accel: AccelKind) -> None:
    (machine,) = options(replace(PLAN, accel=accel), "-machine")
    assert {"pit=off", "pic=off"} <= set(machine.split(","))


def test_under_tcg_the_guest_is_told_its_timers() -> None:
    words = kernel_words(PLAN).split()
    assert {"tsc=reliable", "no_timer_check", "tsc_early_khz=2596120"} <= set(words)
    assert options(PLAN, "-accel") == ["tcg,thread=single,tb-size=64,split-wx=on"]


def test_under_kvm_the_guest_finds_its_timers_itself() -> None:
    plan = replace(PLAN, accel=AccelKind.KVM)
    assert kernel_words(plan) == "console=hvc0 quiet rcupdate.rcu_expedited=1 dummy.numdummies=0"
    assert options(plan, "-accel") == ["kvm"]
    assert options(plan, "-cpu") == ["host"]


def test_memory_and_identity() -> None:
    assert options(PLAN, "-m") == ["128M"]
    assert options(PLAN, "-uuid") == ["01234567-89ab-cdef-0123-456789abcdef"]


def test_a_guests_systemd_has_the_vms_name_and_asks_nobody() -> None:
    words = kernel_words(replace(PLAN, mode=Mode.SYSTEMD)).split()
    assert {"systemd.hostname=web", "systemd.firstboot=no", "TERM=dumb"} <= set(words)
    assert not any(word.startswith("systemd.") for word in kernel_words(PLAN).split())


@pytest.mark.parametrize("go_on", [restore_arguments, warm_arguments])
def test_a_guest_that_goes_on_is_asked_to_announce_itself_once_and_not_while_it_gets_its_addresses(
    go_on: Callable[[VmmPlan, SavedFiles], tuple[str, ...]],
) -> None:
    words = go_on(PLAN, SavedFiles(Path("/m/memory"), Path("/m/state"), is_shared=False))
    assert ("-global", "migration.announce-rounds=1") in set(pairwise(words))
