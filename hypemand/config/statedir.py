# SPDX-License-Identifier: Apache-2.0
"""May the daemon write to `state_dir`? Its unit lets it write to /var/lib/hypemand and to what a drop-in
adds."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from hypemand.errors import Problem

DEFAULT_STATE_DIR = Path("/var/lib/hypemand")
DROPIN = Path("/etc/systemd/system/hypemand.service.d/state-dir.conf")


def find_sandbox_problem(state_dir: Path, config: Path) -> Problem | None:
    """Asked by the daemon, in its sandbox: what is wrong if that keeps it from writing there. A file system
    that is read-only itself, as after an error of its disk, is another matter, and may be another one soon.
    Blocks."""
    place = Path(os.path.realpath(state_dir))
    there = next((path for path in (place, *place.parents) if path.exists()), place)
    if os.access(there, os.W_OK) or not _is_readonly_mount(there):
        return None
    return _make_problem(place, config)


def _is_readonly_mount(path: Path) -> bool:
    """Is it read-only by its mount, and not by its file system (mountinfo in proc(5))?"""
    mounts: dict[str, tuple[str, str]] = {}
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        fields = line.split(" ")
        mounts[_unescape(fields[4])] = (fields[5], fields[-1])
    own = next((str(one) for one in (path, *path.parents) if str(one) in mounts), "")
    options, file_system = mounts.get(own, ("", ""))
    return "ro" in options.split(",") and "rw" in file_system.split(",")


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def find_uncovered_problem(
    state_dir: Path, config: Path, writable: Iterable[str], default: Path = DEFAULT_STATE_DIR
) -> Problem | None:
    """Asked from outside: what is wrong if none of the paths that the daemon's unit may write to has it, or
    if `default`, which systemd makes (StateDirectory=), is a link."""
    if default.is_symlink():
        return Problem(
            str(default), 0, 0, "", "is a symbolic link, with which hypemand.service does not start",
            "mount the directory there instead, or set state_dir in hypemand.yaml",
        )  # fmt: skip
    place = Path(os.path.realpath(state_dir))
    paths = [Path(os.path.realpath(path.lstrip("-+"))) for path in writable]
    covered = any(place == path or path in place.parents for path in paths)
    return None if covered else _make_problem(place, config)


def _make_problem(place: Path, config: Path) -> Problem:
    return Problem(
        str(config), 0, 0, "state_dir", f"{place} is read-only for hypemand.service",
        f"mkdir -p {place}, write two lines to {DROPIN}: [Service] and ReadWritePaths={place},"
        " then: systemctl daemon-reload; systemctl restart hypemand",
    )  # fmt: skip
