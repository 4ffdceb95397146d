# SPDX-License-Identifier: Apache-2.0
"""Whether a unit lives: one rule for all who ask."""

from __future__ import annotations

import subprocess

import pytest

from hypemand.model.evidence import UnitEvidence
from hypemand.systemd.units import UnitStatus

# what systemd 252 and 257 list, and whether a VMM may be there
WORDS = {
    "active": True,
    "reloading": True,
    "refreshing": True,
    "activating": True,
    "deactivating": True,
    "inactive": False,
    "failed": False,
    "maintenance": False,
}


@pytest.mark.parametrize(("word", "is_live"), WORDS.items())
def test_each_word_of_systemd_is_known_and_means_one_thing(word: str, is_live: bool) -> None:
    assert UnitEvidence.from_active_state(word).value == word
    assert UnitEvidence.from_active_state(word).is_live == is_live
    assert UnitStatus(word).is_live == is_live


def test_a_unit_that_is_not_there_does_not_live() -> None:
    assert not UnitEvidence.from_active_state(None).is_live
    assert not UnitStatus(None).is_live


def test_what_is_not_known_counts_as_live() -> None:
    """Else what a VMM has would be given away on a word of a later systemd."""
    assert UnitStatus("hibernating").is_live
    assert UnitEvidence.NO_ANSWER.is_live


def test_the_words_are_those_of_the_systemd_here() -> None:
    answer = subprocess.run(
        ["systemctl", "--state=help"], capture_output=True, text=True, timeout=30, check=True
    )
    part = answer.stdout.partition("unit active states:\n")[2].partition("\n\n")[0]
    assert set(part.split()) - WORDS.keys() == set()
    assert len(part.split()) >= 7
