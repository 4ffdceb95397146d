# SPDX-License-Identifier: Apache-2.0
"""Programs of launcher/ that tests execute beside a fake host."""

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
    """The program that takes in a VM that is saved."""
    return _build("intake")


@cache
def find_ending() -> Path:
    """What a VM's unit executes when it ends."""
    return _build("ending", TOP / "launcher/handle/host.c")


def _build(name: str, *more: Path) -> Path:
    """Where users of VMs may execute it: a checkout may be where no other user gets."""
    place = Path(tempfile.mkdtemp(prefix=f"{name}-"))
    atexit.register(shutil.rmtree, place)
    place.chmod(0o755)
    argv = ["gcc", "-std=c17", "-D_GNU_SOURCE", "-O1"]
    build_program(place / name, argv, [*sorted((TOP / "launcher" / name).glob("*.c")), *more])
    return place / name
