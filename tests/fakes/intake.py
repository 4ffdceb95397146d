# SPDX-License-Identifier: Apache-2.0
"""The program that takes in a VM that is saved, as it is installed."""

from __future__ import annotations

import atexit
import fcntl
import shutil
import tempfile
from functools import cache
from pathlib import Path

from hypemand.run import run

_FOLDER = Path(__file__).parents[2] / "launcher"


@cache
def find_intake() -> Path:
    """It, where users of VMs may execute it: a checkout may be where no other user gets."""
    build = _FOLDER / "build"
    build.mkdir(exist_ok=True)
    with (build / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run(["make", "-C", str(_FOLDER), "build/intake"], timeout=120)
    place = Path(tempfile.mkdtemp(prefix="intake-"))
    atexit.register(shutil.rmtree, place)
    place.chmod(0o755)
    return Path(shutil.copy(build / "intake", place))
