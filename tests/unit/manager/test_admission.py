# SPDX-License-Identifier: Apache-2.0
"""What a host's memory carries."""

from pathlib import Path

import pytest

from hypemand.config.definition import GIB, MIB
from hypemand.config.host import DiskPolicy, MemoryPolicy
from hypemand.errors import InsufficientResources
from hypemand.manager.resources.admission import check_disk, check_memory, read_total_memory
from hypemand.model.space import Room

POLICY = MemoryPolicy(overcommit=1.0, reserve=256 * MIB)


def test_the_last_byte_may_be_had_and_not_one_more() -> None:
    check_memory("web", 768 * MIB, 3 * GIB, 4 * GIB, POLICY)
    with pytest.raises(InsufficientResources):
        check_memory("web", 769 * MIB, 3 * GIB, 4 * GIB, POLICY)


def test_overcommit_stretches_what_there_is() -> None:
    check_memory("web", 4 * GIB, 3 * GIB, 4 * GIB, MemoryPolicy(overcommit=2.0, reserve=256 * MIB))


def test_the_refusal_has_the_figures_and_the_cure() -> None:
    with pytest.raises(InsufficientResources) as caught:
        check_memory("web", 2 * GIB, 3 * GIB, 4 * GIB, POLICY)
    for words in ("web wants 2G", "768M are left", "has 4G", "hold 3G"):
        assert words in caught.value.message
    assert "memory.overcommit" in caught.value.hint


def test_a_host_that_is_smaller_than_its_reserve_carries_nothing() -> None:
    with pytest.raises(InsufficientResources, match="0 are left"):
        check_memory("web", 64 * MIB, 0, 128 * MIB, POLICY)


def test_total_memory_is_read_in_bytes(tmp_path: Path) -> None:
    path = tmp_path / "meminfo"
    path.write_text("MemFree: 1 kB\nMemTotal:       24576 kB\n")
    assert read_total_memory(path) == 24 * MIB


ROOM = Room(Path("/state"), 100 * GIB, 20 * GIB)


def test_disks_may_be_promised_more_than_there_is_but_not_without_end() -> None:
    policy = DiskPolicy(overcommit=2.0, reserve=10 * GIB)
    check_disk("VM a", 80 * GIB, 100 * GIB, ROOM, policy)
    with pytest.raises(InsufficientResources) as caught:
        check_disk("VM a", 81 * GIB, 100 * GIB, ROOM, policy)
    for words in (
        "VM a needs 81G",
        "80G are left",
        "has 100G",
        "reserves 10G",
        "overcommit of 2",
        "have 100G allocated",
    ):
        assert words in caught.value.message


def test_with_too_little_free_nothing_is_made() -> None:
    with pytest.raises(InsufficientResources, match=r"20G are free on .* /state, of which 21G"):
        check_disk("VM a", 1, 0, ROOM, DiskPolicy(reserve=21 * GIB))
