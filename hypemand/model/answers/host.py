# SPDX-License-Identifier: Apache-2.0
"""What the API answers on the daemon itself."""

from __future__ import annotations

from dataclasses import dataclass

from hypemand.errors import Problem


@dataclass(frozen=True, slots=True)
class EventLoop:
    """Turns of the event loop that took over 100 ms: their number, and in milliseconds what the longest took,
    and the CPU time of the one that took most of that."""

    slow_turns: int = 0
    longest_ms: int = 0
    longest_cpu_ms: int = 0


@dataclass(frozen=True, slots=True)
class Health:
    """It answers."""

    status: str
    version: str | None = None
    loop: EventLoop | None = None


@dataclass(frozen=True, slots=True)
class ReloadReport:
    """What a reload of the definition files has found: names of VMs, and what is wrong in files.
    `needs_restart`: those of `changed` that run with what was before."""

    defined: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()
    needs_restart: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource of the host, by the keys of the published client."""

    type: str
    capacity: int
    effective_limit: int
    oversub_ratio: float
    allocated: int
    available: int


@dataclass(frozen=True, slots=True)
class ResourceAllocation:
    """What one VM has of the resources, by the keys of the published client."""

    instance_id: str
    instance_name: str
    cpu: int
    memory_bytes: int
    disk_bytes: int
    disk_io_bps: int | None
    network_download_bps: int | None
    network_upload_bps: int | None


@dataclass(frozen=True, slots=True)
class DiskBreakdown:
    """Bytes of the disk that are in use, by the keys of the published client."""

    images_bytes: int
    overlays_bytes: int
    volumes_bytes: int


@dataclass(frozen=True, slots=True)
class Resources:
    """The resources of the host."""

    cpu: Resource
    memory: Resource
    disk: Resource
    network: Resource
    allocations: tuple[ResourceAllocation, ...]
    disk_breakdown: DiskBreakdown


@dataclass(frozen=True, slots=True)
class ServerAbout:
    """This daemon: its version, and that of the API's description."""

    version: str
    api_version: str


@dataclass(frozen=True, slots=True)
class HostAbout:
    """This host, in OCI's words."""

    os: str
    arch: str


@dataclass(frozen=True, slots=True)
class DefaultRuntime:
    """What VMs run with. `available`: nothing that it needs is missing."""

    name: str
    available: bool


@dataclass(frozen=True, slots=True)
class Runtime:
    """What VMs can run with, and what it can do; `problem`: why it is not available."""

    name: str
    available: bool
    features: tuple[str, ...]
    problem: str | None


@dataclass(frozen=True, slots=True)
class NetworkAbout:
    """The default network."""

    model: str
    gateway: str | None
    subnet: str | None
    guest_to_guest: bool


@dataclass(frozen=True, slots=True)
class ImagesAbout:
    """For which platforms images can be."""

    platforms: tuple[str, ...]
    default_platform: str


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What this daemon can do on this host, by the keys of the published client."""

    server: ServerAbout
    host: HostAbout
    runtimes: tuple[Runtime, ...]
    default_runtime: DefaultRuntime
    network: NetworkAbout
    images: ImagesAbout
    features: tuple[str, ...]
