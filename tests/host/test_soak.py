# SPDX-License-Identifier: Apache-2.0
"""A part of `make soak`: see tests/host/soak.py."""

import pytest

from tests.host.rounds import play_rounds
from tests.host.soak import soak
from tests.host.vms import Vms

pytestmark = pytest.mark.one_release

KILLS = 15
SEED = 20


def test_a_vm_is_put_away_and_restored_any_number_of_times(vms: Vms) -> None:
    print(play_rounds(vms, 5))


def test_nothing_is_lost_and_nothing_left_whoever_is_killed_at_whatever_moment(vms: Vms) -> None:
    run = soak(vms, SEED, KILLS, 3)
    assert run.kills.total() == KILLS
    assert run.kills["VMM"], "another seed is needed: no VM ran when its VMM was to be killed"
    print(f"{dict(run.kills)}, {dict(run.commands)}")
