# SPDX-License-Identifier: Apache-2.0
"""What linters found to be clean, kept in the build cache: the same linter says the same of the same files.

Only for linters that keep no such cache themselves, and take minutes. What is not clean is not kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from tests.host.cache import CACHE
from tests.host.command import run_command
from tests.lint.sources import TOP, list_sources

CLEAN = CACHE / "clean"
KEPT = 50
# what reads C, and the headers that it reads from the system
PACKAGES = ("clang*", "cppcheck", "gcc", "libc6-dev", "linux-libc-dev", "make", "musl-*")
NAMES = ("Makefile", ".clang-format", ".clang-tidy")


def derive_key(argv: Sequence[str], sources: Sequence[Path], versions: str) -> str:
    """What stands for a linter, its version, and all files that it may read."""
    digest = hashlib.sha256(repr((tuple(argv), versions)).encode())
    for path in sorted(sources):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(TOP)}\0{content}\n".encode())
    return digest.hexdigest()


def list_c_sources() -> list[Path]:
    """All files of this checkout that a linter of C may read."""
    return [path for path in list_sources() if path.suffix in (".c", ".h") or path.name in NAMES]


def check_c(argv: Sequence[str], timeout: float) -> None:
    """Run a linter of C, unless it has found these files to be clean before. CommandError if they are not."""
    versions = run_command(["dpkg-query", "-W", *PACKAGES], timeout=60, check=False).stdout
    verdict = CLEAN / derive_key(argv, list_c_sources(), versions)
    if not verdict.exists():
        run_command(argv, timeout=timeout)
        CLEAN.mkdir(parents=True, exist_ok=True)
    verdict.touch()
    _remove_old()


def _remove_old() -> None:
    by_age = sorted(CLEAN.iterdir(), key=lambda path: path.stat().st_mtime)
    for path in by_age[:-KEPT]:
        path.unlink(missing_ok=True)
