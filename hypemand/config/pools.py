# SPDX-License-Identifier: Apache-2.0
"""Pools in the host config: directories for volumes besides the state directory, and directories of block
devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypemand.config.source import KeyPath
from hypemand.errors import Problem

Say = Callable[[KeyPath, str, str], Problem]


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """`shared`: other hosts have the directory too."""

    directory: Path
    shared: bool = False


def make_pools(data: Mapping[str, Any]) -> dict[str, PoolConfig]:
    """The value of `pools`, by name. What is incomplete is left out: `find_pool_problems` says that."""
    return {
        name: PoolConfig(Path(keys["directory"]), bool(keys.get("shared", False)))
        for name, keys in data.items()
        if "directory" in keys
    }


def make_device_pools(data: Mapping[str, Any]) -> dict[str, Path]:
    """Of the value of `pools`, the directories of those that are block devices, by name."""
    return {name: Path(keys["devices"]) for name, keys in data.items() if "devices" in keys}


def find_pool_problems(data: Mapping[str, Any], state_dir: Path, say: Say) -> Iterator[Problem]:
    """What is missing or does not go together in the pools of all files."""
    places: list[tuple[str, Path]] = [("state_dir", state_dir)]
    for name, keys in data.items():
        path = ("pools", name, "directory")
        if "devices" in keys:
            for other in keys.keys() & {"directory", "shared"}:
                what = "cannot be combined with devices, which are used where they are"
                yield say(("pools", name, other), what, "remove it")
            continue
        if "directory" not in keys:
            hint = f"write directory: /srv/{name}, or devices: /dev/disk/by-id"
            yield say(("pools", name), "has neither directory nor devices", hint)
            continue
        directory = Path(keys["directory"])
        for other, place in places:
            if directory == place or directory in place.parents or place in directory.parents:
                what = f"{directory} overlaps {place} of {other}"
                yield say(path, what, "write a directory that is not part of another")
        places.append((f"pool {name}", directory))
