# SPDX-License-Identifier: Apache-2.0
"""What a saved VM is bound to."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest

from hypemand.vmm.accel import AccelKind
from hypemand.vmm.build import BuildFinder, VmmBuild, list_differences
from hypemand.vmm.host import read_qemu_version

CPU = """\
processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8488C
stepping\t: 8
cpu MHz\t\t: {mhz}
flags\t\t: {flags}
"""
OLD = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)"
NEW = "QEMU emulator version 10.0.13 (Debian 1:10.0.13+ds-0+deb13u1)"


class Host:
    """A host with a QEMU and a CPU."""

    def __init__(self, folder: Path) -> None:
        self.binary = folder / "qemu"
        self.binary.write_text("first")
        self.cpuinfo = folder / "cpuinfo"
        self.version = OLD
        self.asked = 0
        self.set_cpu()
        self.finder = BuildFinder(self._read_version, self.cpuinfo)

    def _read_version(self, binary: Path) -> str:
        assert binary == self.binary
        self.asked += 1
        return self.version

    def set_cpu(self, mhz: int = 2000, flags: str = "fpu vme vmx", stepping: int = 8) -> None:
        """Of its two CPUs, the first."""
        text = CPU.format(mhz=mhz, flags=flags).replace("stepping\t: 8", f"stepping\t: {stepping}")
        self.cpuinfo.write_text(text + "\n" + CPU.format(mhz=3000, flags="other"))

    def find(self, accel: AccelKind = AccelKind.TCG) -> VmmBuild:
        return asyncio.run(self.finder.find(self.binary, accel))


def test_an_emulated_cpu_is_that_of_the_build(tmp_path: Path) -> None:
    host = Host(tmp_path)
    machine = "microvm,pit=off,pic=off,isa-serial=off"
    assert host.find() == VmmBuild(OLD.removeprefix("QEMU emulator version "), machine, "tcg", "max", "")
    host.set_cpu(flags="fpu")
    assert list_differences(host.find(), Host(tmp_path).find()) == ()


def test_the_version_is_asked_for_once_until_the_binary_is_another(tmp_path: Path) -> None:
    host = Host(tmp_path)
    for _ in range(3):
        host.find()
    assert host.asked == 1
    before = host.find()
    new = tmp_path / "new"
    new.write_text("other")
    new.rename(host.binary)
    host.version = NEW
    words = [word.removeprefix("QEMU emulator version ") for word in (OLD, NEW)]
    assert list_differences(before, host.find()) == (f"saved with QEMU {words[0]}, this host has {words[1]}",)
    assert host.asked == 2
    os.utime(host.binary, (1, 1))
    host.find()
    assert host.asked == 3


def test_a_version_in_other_words_is_taken_as_it_is(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.version = "of an unknown version"
    assert host.find().version == "of an unknown version"


def test_a_cpu_that_guests_share_is_another_by_what_they_see_of_it(tmp_path: Path) -> None:
    host = Host(tmp_path)
    saved = host.find(AccelKind.KVM)
    assert saved.cpu == "Intel(R) Xeon(R) Platinum 8488C"
    host.set_cpu(mhz=1234, flags="vmx fpu vme")
    assert list_differences(saved, host.find(AccelKind.KVM)) == ()
    for flags, stepping in (("fpu vme", 8), ("fpu vme vmx", 7)):
        host.set_cpu(flags=flags, stepping=stepping)
        (difference,) = list_differences(saved, host.find(AccelKind.KVM))
        assert "CPU Intel(R) Xeon(R) Platinum 8488C of another stepping, or with other flags" in difference


def test_all_that_differs_is_told(tmp_path: Path) -> None:
    saved = Host(tmp_path).find(AccelKind.KVM)
    other = replace(saved, version="8", machine="pc", cpu="AMD EPYC", cpu_digest="x")
    assert list_differences(saved, other) == (
        f"saved with QEMU {saved.version}, this host has 8",
        f"saved as machine {saved.machine}, this version has pc",
        "saved on the CPU Intel(R) Xeon(R) Platinum 8488C, this host has AMD EPYC",
    )
    assert list_differences(saved, replace(saved, accel="tcg", cpu="max", cpu_digest="")) == (
        "saved with the accelerator kvm, this host has tcg",
    )


def test_it_lasts_in_a_file(tmp_path: Path) -> None:
    build = Host(tmp_path).find(AccelKind.KVM)
    assert VmmBuild.from_json(build.to_json()) == build
    wrongs: list[object] = [None, [], {}, {**build.to_json(), "cpu": 5}]
    for wrong in wrongs:
        with pytest.raises(ValueError, match="is no"):
            VmmBuild.from_json(wrong)


def test_the_qemu_of_this_machine_has_a_version() -> None:
    words = read_qemu_version(Path("/usr/bin/qemu-system-x86_64"))
    assert words.startswith("QEMU emulator version ")
