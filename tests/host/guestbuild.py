# SPDX-License-Identifier: Apache-2.0
"""What several groups of tests (tests/schedule.py) need of the guest's build."""

from pathlib import Path

from tests.host.cache import CACHE, lock_file
from tests.host.command import run_command

GUEST = Path(__file__).parents[2] / "guest"
SHARED = ("build/initrd.cpio", "build/check/fake-agent")
DEADLINE = 120.0


def make_shared() -> None:
    """Make it in one process at a time: a `make` that follows finds it made."""
    with lock_file(CACHE / "guest-build.lock"):
        run_command(["make", "-C", str(GUEST), *SHARED], timeout=DEADLINE)
