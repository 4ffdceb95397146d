# SPDX-License-Identifier: Apache-2.0
"""The program that takes in a VM that is saved."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

from tests.lint.sources import TOP
from tests.programs import build_program


@cache
def find_intake() -> Path:
    """It, where users of VMs may execute it: a checkout may be where no other user gets."""
    place = Path(tempfile.mkdtemp(prefix="intake-"))
    atexit.register(shutil.rmtree, place)
    place.chmod(0o755)
    argv = ["gcc", "-std=c17", "-D_GNU_SOURCE", "-O1"]
    build_program(place / "intake", argv, sorted((TOP / "launcher/intake").glob("*.c")))
    return place / "intake"
