# SPDX-License-Identifier: Apache-2.0
"""The files of this checkout."""

import re
from functools import cache
from pathlib import Path

from tests.host.command import run_command

TOP = Path(__file__).parents[2]


@cache
def list_sources() -> list[Path]:
    """The files that git knows or would know."""
    git = ["git", "-C", str(TOP), "-c", "safe.directory=*"]
    listing = run_command(
        [*git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        timeout=30,
    )
    paths = [TOP / name for name in listing.stdout.split("\0") if name]
    return [path for path in paths if path.is_file()]


def find_scripts() -> list[Path]:
    """Shell scripts, by their first line, and those that a package's maintainer scripts are made from."""
    scripts = []
    for path in list_sources():
        with path.open("rb") as file:
            first = file.readline(100)
        if re.match(rb"#! ?(/usr)?/bin/(ba|da)?sh\b", first):
            scripts.append(path)
    return scripts
