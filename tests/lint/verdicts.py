# SPDX-License-Identifier: Apache-2.0
"""What linters found to be clean, kept in the build cache: the same linter says the same of the same files.

Only for linters that keep no such cache themselves, and take long. What is not clean is not kept.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from tests.host.cache import CACHE
from tests.host.command import ENVIRONMENT, run_command
from tests.lint.sources import TOP, list_sources

CLEAN = CACHE / "clean"
KEPT = 2000
# what reads C, and the headers that it reads from the system
PACKAGES = ("clang*", "cppcheck", "gcc", "libc6-dev", "linux-libc-dev", "make", "musl-*")
NAMES = ("Makefile", ".clang-format", ".clang-tidy")
_INCLUDE = re.compile(rb'^\s*#\s*include\b(?:\s*[<"]([^>"]+)[>"])?', re.MULTILINE)


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


def list_read(source: Path) -> list[Path]:
    """The files of this checkout that may be read with a source of C: what configures linters, and headers
    with a name that the source, or such a header, includes; all of them where a macro has that name."""
    headers = [path for path in list_c_sources() if path.suffix == ".h"]
    found, left = {source}, [source]
    while left:
        for included in _INCLUDE.findall(left.pop().read_bytes()):
            name = Path(included.decode()).name
            new = {path for path in headers if path.name == name or not name} - found
            left += new
            found |= new
    return [*found, *(path for path in list_c_sources() if path.name in NAMES)]


def check_c(argv: Sequence[str], timeout: float) -> None:
    """Run a linter of C, unless it has found these files to be clean before. CommandError if they are not."""
    check(argv, list_c_sources(), PACKAGES, timeout)


def check_c_each(argv: Sequence[str], variable: str, sources: Sequence[Path], timeout: float) -> None:
    """The same with a linter that reads sources one by one: it reads those again that it has not found to be
    clean as they are, with what they include. make gets them in a variable, by their names in its folder."""
    folder = TOP / argv[argv.index("-C") + 1]
    verdicts = {
        str(source.relative_to(folder)): CLEAN / derive_key(argv, list_read(source), find_versions(PACKAGES))
        for source in sources
    }
    unknown = [name for name, verdict in verdicts.items() if not verdict.exists()]
    if unknown:
        run_command([*argv, f"{variable}={' '.join(unknown)}"], timeout=timeout)
    _keep(*verdicts.values())


def check(
    argv: Sequence[str],
    sources: Sequence[Path],
    packages: Sequence[str],
    timeout: float,
    env: Mapping[str, str] = ENVIRONMENT,
) -> None:
    """Run a linter that is of these packages, unless it has found these files to be clean before."""
    verdict = CLEAN / derive_key(argv, sources, find_versions(tuple(packages)))
    if not verdict.exists():
        run_command(argv, timeout=timeout, env=env)
    _keep(verdict)


@cache
def find_versions(packages: tuple[str, ...]) -> str:
    """The versions of the installed ones of these packages."""
    return run_command(["dpkg-query", "-W", *packages], timeout=60, check=False).stdout


def _keep(*verdicts: Path) -> None:
    CLEAN.mkdir(parents=True, exist_ok=True)
    for verdict in verdicts:
        verdict.touch()
    by_age = sorted(CLEAN.iterdir(), key=lambda path: path.stat().st_mtime)
    for path in by_age[:-KEPT]:
        path.unlink(missing_ok=True)
