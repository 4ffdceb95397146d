# SPDX-License-Identifier: Apache-2.0
"""What compilers made of the programs in C with sanitizers, kept in the build cache: the same compilers make
the same of the same sources. It is the compiling that is spared; what was compiled runs each time."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

from tests.host.cache import CACHE, lock_file
from tests.lint.sources import TOP
from tests.lint.verdicts import PACKAGES, derive_key, find_versions, list_c_sources

COMPILED = CACHE / "compiled"
KEPT = 6
# with what sanitizers and fuzzers link
COMPILERS = (*PACKAGES, "libclang-rt-*", "libgcc-*", "libasan*", "libubsan*")
# what fuzzers found on their way
SPARE = shutil.ignore_patterns("found")


def find_place(folder: str) -> Path:
    """Where that of a folder of this checkout is kept: of all C in the checkout, where that is, and the
    compilers."""
    return COMPILED / derive_key([str(TOP), folder], list_c_sources(), find_versions(COMPILERS))


def restore_compiled(kept: Path, target: Path) -> None:
    """Put what is kept, if anything is, into a folder of a checkout, later than its sources: make has nothing
    to do. What is there already stays."""
    now = time.time()
    for source in sorted(kept.rglob("*")):
        copy = target / source.relative_to(kept)
        if source.is_file() and not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, copy)
            os.utime(copy, (now, now))


def keep_compiled(target: Path, kept: Path) -> None:
    """Keep what make has made in a folder, unless it is kept already; and no more than the newest ones."""
    COMPILED.mkdir(parents=True, exist_ok=True)
    with lock_file(COMPILED.with_suffix(".lock")):
        if not kept.exists():
            made = Path(tempfile.mkdtemp(prefix=".made-", dir=COMPILED))
            shutil.copytree(target, made, ignore=SPARE, dirs_exist_ok=True)
            made.rename(kept)
        os.utime(kept)
        by_age = sorted(COMPILED.iterdir(), key=lambda path: path.stat().st_mtime)
        for path in by_age[:-KEPT]:
            shutil.rmtree(path)
