# SPDX-License-Identifier: Apache-2.0
"""KVM counts only where it is real."""

from collections.abc import Callable
from pathlib import Path

import pytest

from hypemand.errors import HostNotReady
from hypemand.vmm.accel import AccelKind, find_accel, find_tsc_khz

CPU = "processor : 0\nflags\t\t: fpu constant_tsc {flags} sse\nbogomips\t: 5192.24\n"


def cpuinfo(folder: Path, flags: str) -> Path:
    path = folder / "cpuinfo"
    path.write_text(CPU.format(flags=flags))
    return path


def opens(answer: str | None) -> Callable[[Path], str | None]:
    return lambda path: answer


@pytest.mark.parametrize(
    ("failure", "flags", "kind", "why"),
    [
        (None, "svm", AccelKind.KVM, "hardware virtualization"),
        (None, "vmx", AccelKind.KVM, "hardware virtualization"),
        (None, "", AccelKind.TCG, "neither vmx nor svm"),
        (None, "svm_lock xvmx", AccelKind.TCG, "neither vmx nor svm"),
        ("/dev/kvm: Permission denied", "svm", AccelKind.TCG, "Permission denied"),
    ],
)
def test_auto_takes_kvm_only_where_device_and_cpu_have_it(
    tmp_path: Path, failure: str | None, flags: str, kind: AccelKind, why: str
) -> None:
    found = find_accel("auto", open_kvm=opens(failure), cpuinfo=cpuinfo(tmp_path, flags))
    assert found.kind is kind
    assert why in found.reason


def test_tcg_can_be_demanded(tmp_path: Path) -> None:
    assert find_accel("tcg", open_kvm=opens(None), cpuinfo=cpuinfo(tmp_path, "svm")).kind is AccelKind.TCG


def test_kvm_that_is_demanded_and_not_there_is_an_error_with_its_cure(tmp_path: Path) -> None:
    with pytest.raises(HostNotReady, match="neither vmx nor svm") as caught:
        find_accel("kvm", open_kvm=opens(None), cpuinfo=cpuinfo(tmp_path, ""))
    assert "accel: tcg" in caught.value.hint


def test_the_frequency_of_the_time_stamp_counter_is_half_of_bogomips(tmp_path: Path) -> None:
    assert find_tsc_khz(cpuinfo(tmp_path, "")) == 2596120


def test_a_counter_that_is_not_constant_has_no_frequency(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text("flags : fpu\nbogomips : 5192.24\n")
    assert find_tsc_khz(path) is None
    assert find_tsc_khz(tmp_path / "none") is None
