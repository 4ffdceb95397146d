# SPDX-License-Identifier: Apache-2.0
"""May the daemon write to `state_dir`, and to pools? Its unit lets it write to /var/lib/hypemand and to what
a drop-in adds."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from hypemand.config.pools import PoolConfig
from hypemand.errors import Problem

DEFAULT_STATE_DIR = Path("/var/lib/hypemand")
DROPIN = Path("/etc/systemd/system/hypemand.service.d/state-dir.conf")
POOLS_DROPIN = DROPIN.with_name("pools.conf")


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
    return None if _is_covered(place, writable) else _make_problem(place, config)


def find_uncovered_pools(
    pools: Mapping[str, PoolConfig], config: Path, writable: Iterable[str]
) -> list[Problem]:
    """The pools that none of the paths has that the daemon's unit may write to."""
    paths = list(writable)
    return [
        Problem(
            str(config), 0, 0, f"pools.{name}", f"{pool.directory} is read-only for hypemand.service",
            explain_dropin(pool.directory, POOLS_DROPIN, is_mount=pool.shared),
        )
        for name, pool in pools.items() if not _is_covered(Path(os.path.realpath(pool.directory)), paths)
    ]  # fmt: skip


def _is_covered(place: Path, writable: Iterable[str]) -> bool:
    paths = [Path(os.path.realpath(path.lstrip("-+"))) for path in writable]
    return any(place == path or path in place.parents for path in paths)


def _make_problem(place: Path, config: Path) -> Problem:
    return Problem(
        str(config), 0, 0, "state_dir", f"{place} is read-only for hypemand.service",
        f"mkdir -p {place}, {explain_dropin(place, DROPIN)}",
    )  # fmt: skip


def explain_dropin(place: Path, dropin: Path, *, is_mount: bool = False) -> str:
    """How to let the daemon write to a directory, when that is there, or, if it is a mount, mounted."""
    mount = f"[Unit] and RequiresMountsFor={place}, " if is_mount else ""
    return (
        f"write {'four' if mount else 'two'} lines to {dropin}: {mount}[Service] and ReadWritePaths={place},"
        " then: systemctl daemon-reload; systemctl restart hypemand"
    )
