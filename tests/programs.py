# SPDX-License-Identifier: Apache-2.0
"""C programs that tests execute, kept in the build cache: a compiler makes the same of the same files."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.host.cache import CACHE
from tests.host.command import run_command
from tests.lint.sources import TOP
from tests.lint.verdicts import derive_key, find_versions, list_read

PROGRAMS = CACHE / "programs"
KEPT = 30
# what compiles, with the headers and libraries of the system
PACKAGES = ("gcc*", "libc6-dev", "linux-libc-dev", "libasan*", "libubsan*", "binutils")


def build_program(target: Path, argv: Sequence[str], sources: Sequence[Path]) -> None:
    """Compile these sources of the checkout to `target`, unless that is in the cache. Folders in `argv` are
    relative to the checkout."""
    named = [str(source.relative_to(TOP)) for source in sources]
    read = {path for source in sources for path in list_read(source)}
    kept = PROGRAMS / derive_key([*argv, *named], sorted(read), find_versions(PACKAGES))
    if not kept.exists():
        PROGRAMS.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=PROGRAMS, prefix=".") as folder:
            made = Path(folder) / "program"
            run_command(["env", "-C", str(TOP), *argv, "-o", str(made), *named], timeout=120)
            made.replace(kept)
    shutil.copy(kept, target)
    os.utime(kept)
    by_age = sorted(PROGRAMS.glob("[!.]*"), key=lambda path: path.stat().st_mtime)
    for path in by_age[:-KEPT]:
        path.unlink(missing_ok=True)
