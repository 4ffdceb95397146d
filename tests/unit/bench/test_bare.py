# SPDX-License-Identifier: Apache-2.0
"""The same VM by hand: its command line, of what the unit of a VM executes."""

import pytest

from bench.inside.bare import split_start_line
from tests.unit.manager.test_plan import OWN, plan


def test_a_vmm_is_found_behind_what_starts_it_in_its_unit() -> None:
    start = plan().unit.start
    runtime, words, vmm = split_start_line(start)
    assert runtime == str(OWN.runtime)
    assert words.startswith("console=")
    assert vmm[0] == "/usr/bin/qemu-system-x86_64"
    assert vmm == list(start[-len(vmm) :])


def test_what_is_no_start_of_a_vmm_is_refused() -> None:
    with pytest.raises(ValueError, match="not the launcher"):
        split_start_line(["/usr/bin/qemu-system-x86_64", "-M", "microvm"])
