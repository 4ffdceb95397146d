# SPDX-License-Identifier: Apache-2.0
"""The host config: /etc/hypemand/hypemand.yaml and its drop-ins."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from hypemand.config.definition import GIB, MIB, DefinitionDefaults, WarmStart
from hypemand.config.durations import parse_duration
from hypemand.config.listen import (
    ListenConfig,
    find_address_problems,
    find_listen_problems,
    find_metrics_problems,
    make_listen_config,
    make_metrics_listen,
)
from hypemand.config.nethost import (
    MACHINE_ID,
    find_default_problems,
    find_networks_problems,
    make_networks,
    read_machine_id,
)
from hypemand.config.netparse import NONE
from hypemand.config.network import DEFAULT_NETWORK, NetworkConfig
from hypemand.config.pools import PoolConfig, find_pool_problems, make_device_pools, make_pools
from hypemand.config.schema import find_problems, sort_problems
from hypemand.config.sizes import parse_size
from hypemand.config.source import KeyPath, Source, read_source
from hypemand.errors import InvalidDefinition, Problem

HOST_CONFIG = Path("/etc/hypemand/hypemand.yaml")
# As for systemd's drop-ins: a file hides those of its name in the directories after it.
DROPIN_DIRS = (
    Path("/etc/hypemand/hypemand.yaml.d"),
    Path("/run/hypemand/hypemand.yaml.d"),
    Path("/usr/lib/hypemand/hypemand.yaml.d"),
)


class Accel(StrEnum):
    """What runs the guest's CPUs."""

    AUTO = "auto"
    KVM = "kvm"
    TCG = "tcg"


@dataclass(frozen=True, slots=True)
class MemoryPolicy:
    """VMs together may have (host memory - `reserve` bytes) times `overcommit`; each of them may have
    `page_cache` bytes of the host's page cache besides."""

    overcommit: float = 1.0
    reserve: int = 256 * MIB
    page_cache: int = 1024 * MIB


@dataclass(frozen=True, slots=True)
class DiskPolicy:
    """Disks and volumes together may have (file system - `reserve` bytes) times `overcommit`, and `reserve`
    bytes must be free."""

    overcommit: float = 10.0
    reserve: int = 256 * MIB


@dataclass(frozen=True, slots=True)
class JournalPolicy:
    """What the journal takes of each VM's console, in bytes: at once, and what comes back in an hour."""

    burst: int = 256 * MIB
    per_hour: int = 256 * MIB


@dataclass(frozen=True, slots=True)
class WarmStartPolicy:
    """`room`: bytes that all templates may take on the disk."""

    mode: WarmStart = WarmStart.OFF
    room: int = 1 * GIB


@dataclass(frozen=True, slots=True)
class HostConfig:
    """The validated host config, every default filled in. `uid_range`: first and last, both included;
    `listen` None: only the socket is listened on; `metrics`: where metrics are served without a token,
    if anywhere; `cluster`: of hosts that give the same VMs the same ids; `networks` by name, the default one
    too unless the host has it not; `pools` by name, and those of block devices: `pools_of_devices`."""

    accel: Accel = Accel.AUTO
    qemu: Path = Path("/usr/bin/qemu-system-x86_64")
    kernel_dir: Path = Path("/usr/lib/hypemand/kernel")
    guest_dir: Path = Path("/usr/lib/hypemand/guest")
    image_dirs: tuple[Path, ...] = (Path("/usr/lib/hypemand/images"),)
    state_dir: Path = Path("/var/lib/hypemand")
    runtime_dir: Path = Path("/run/hypemand")
    vm_dir: Path = Path("/etc/hypemand/vms.d")
    uid_range: tuple[int, int] = (61184, 65519)
    memory: MemoryPolicy = field(default_factory=MemoryPolicy)
    disk: DiskPolicy = field(default_factory=DiskPolicy)
    journal: JournalPolicy = field(default_factory=JournalPolicy)
    warm_start: WarmStartPolicy = field(default_factory=WarmStartPolicy)
    defaults: DefinitionDefaults = field(default_factory=DefinitionDefaults)
    listen: ListenConfig | None = None
    metrics: ListenConfig | None = None
    cluster: str | None = None
    networks: Mapping[str, NetworkConfig] = field(default_factory=lambda: make_networks({}, ""))
    pools: Mapping[str, PoolConfig] = field(default_factory=dict)
    pools_of_devices: Mapping[str, Path] = field(default_factory=dict)


def load_host_config(
    path: Path = HOST_CONFIG, dropin_dirs: Sequence[Path] = DROPIN_DIRS, machine_id: Path = MACHINE_ID
) -> HostConfig:
    """Read `path`, then the drop-ins by name; what comes later wins, key by key within mappings.

    A missing file gives the defaults; the file `machine_id` has a part in those of the networks. Raises
    InvalidDefinition with the problems of all the files.
    """
    problems: list[Problem] = []
    merged: dict[str, Any] = {}
    sources: list[Source] = []
    for file in ([path] if os.path.lexists(path) else []) + find_dropins(dropin_dirs, problems):
        try:
            source = read_source(file)
        except InvalidDefinition as error:
            problems += error.problems
            continue
        if source.data is None and not source.problems:
            continue
        found = find_problems("host", source) or [
            *_find_range_problems(source), *find_address_problems(source), *find_metrics_problems(source)
        ]  # fmt: skip
        if found:
            problems += found
        else:
            merged = _merge(merged, source.data)
            sources.append(source)
    config: HostConfig | None = None
    if "listen" in merged:
        problems += find_listen_problems(merged["listen"], _last_saying(sources, ("listen",)))
    if not problems:
        config = _build(merged, read_machine_id(machine_id))
        problems += _find_network_problems(config, sources)
        problems += _find_pool_problems(merged.get("pools", {}), config.state_dir, sources)
    if problems or config is None:
        raise InvalidDefinition(sort_problems(problems))
    return config


def _find_network_problems(config: HostConfig, sources: Sequence[Source]) -> Iterator[Problem]:
    """What does not go together in all files; each at the place that counts, the last to say it."""

    def say(path: KeyPath, message: str, hint: str) -> Problem:
        return _last_saying(sources, path).problem(path, message, hint)

    yield from find_networks_problems(config.networks, say)
    yield from find_default_problems(config.defaults.network, config.networks, say)


def _find_pool_problems(
    data: Mapping[str, Any], state_dir: Path, sources: Sequence[Source]
) -> Iterator[Problem]:
    def say(path: KeyPath, message: str, hint: str) -> Problem:
        return _last_saying(sources, path).problem(path, message, hint)

    yield from find_pool_problems(data, state_dir, say)


def _last_saying(sources: Sequence[Source], path: KeyPath) -> Source:
    """The last file that has something at `path`, else at the nearest above it."""
    while path:
        for source in reversed(sources):
            if _has(source.data, path):
                return source
        path = path[:-1]
    return sources[-1]


def _has(data: object, path: KeyPath) -> bool:
    for part in path:
        if not isinstance(data, Mapping) or part not in data:
            return False
        data = data[part]
    return True


def find_dropins(dropin_dirs: Sequence[Path], problems: list[Problem] | None = None) -> list[Path]:
    """The drop-ins in the order in which they count. Directories that cannot be read go to `problems`."""
    by_name: dict[str, Path] = {}
    for folder in dropin_dirs:
        try:
            names = os.listdir(folder)
        except FileNotFoundError:
            continue
        except OSError as error:
            if problems is not None:
                message = f"cannot be read: {error.strerror}"
                problems.append(Problem(str(folder), 0, 0, "", message, "check its owner and mode"))
            continue
        for name in names:
            if name.endswith((".yaml", ".yml")) and not name.startswith((".", "#")):
                by_name.setdefault(name, folder / name)
    return [by_name[name] for name in sorted(by_name)]


def _find_range_problems(source: Source) -> list[Problem]:
    data = source.data
    first, last = data.get("uid_range", (0, 0)) if isinstance(data, Mapping) else (0, 0)
    if first <= last:
        return []
    return [source.problem(("uid_range",), f"begins at {first}, after its end {last}", "write [first, last]")]


def _merge(below: Mapping[str, Any], above: Any) -> dict[str, Any]:
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def _build(data: Mapping[str, Any], machine_id: str) -> HostConfig:
    networks = make_networks(data.get("networks", {}), machine_id)
    values: dict[str, Any] = {"networks": networks, "defaults": _make_defaults({}, networks)}
    for key, value in data.items():
        match key:
            case "accel":
                values[key] = Accel(value)
            case "image_dirs":
                values[key] = tuple(Path(p) for p in value)
            case "uid_range":
                values[key] = (int(value[0]), int(value[1]))
            case "memory":
                values[key] = MemoryPolicy(**_convert(value))
            case "disk":
                values[key] = DiskPolicy(**_convert(value))
            case "journal":
                values[key] = JournalPolicy(**_convert(value))
            case "warm_start":
                values[key] = WarmStartPolicy(**_convert(value))
            case "listen":
                values[key] = make_listen_config(value)
            case "metrics":
                values[key] = make_metrics_listen(value)
            case "defaults":
                values[key] = _make_defaults(value, networks)
            case "cluster":
                values[key] = value
            case "networks":
                pass
            case "pools":
                values[key] = make_pools(value)
                values["pools_of_devices"] = make_device_pools(value)
            case _:
                values[key] = Path(value)
    return HostConfig(**values)


def _make_defaults(data: Mapping[str, Any], networks: Mapping[str, NetworkConfig]) -> DefinitionDefaults:
    """Where nobody says which network is the default, it is `default`, and none when that was removed."""
    network = data.get("network", DEFAULT_NETWORK if DEFAULT_NETWORK in networks else NONE)
    return DefinitionDefaults(**_convert({**data, "network": network}))


def _convert(data: Mapping[str, Any]) -> dict[str, Any]:
    """Values of the nested mappings as the dataclasses have them."""
    parsers: dict[str, Callable[[Any], object]] = {
        "memory": parse_size,
        "disk": parse_size,
        "reserve": parse_size,
        "page_cache": parse_size,
        "burst": parse_size,
        "per_hour": parse_size,
        "room": parse_size,
        "mode": WarmStart,
        "vcpus": int,
        "boot_timeout": parse_duration,
        "stop_timeout": parse_duration,
        "overcommit": float,
        "network": lambda name: None if name == NONE else name,
    }
    return {key: parsers[key](value) for key, value in data.items()}
