# SPDX-License-Identifier: Apache-2.0
"""A VM as the API answers it. Times are RFC 3339 in UTC, with milliseconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hypemand.model.answers.compression import SnapshotCompression
from hypemand.model.compression import CompressionState
from hypemand.model.counters import Counters
from hypemand.model.document import SOURCE
from hypemand.model.health import HealthState
from hypemand.model.state import HeadersState, Operation, RestartBlock, State


@dataclass(frozen=True, slots=True)
class InstanceNetwork:
    """A VM's place in a network; without one `enabled` is false and all else empty."""

    enabled: bool = False
    name: str | None = None
    ip: str | None = None
    mac: str | None = None
    bandwidth_download: str | None = None
    bandwidth_upload: str | None = None
    # those above are the published client's
    ip6: str | None = None
    group: str | None = None
    isolated: bool | None = None
    publish: tuple[str, ...] = ()
    interface: str | None = None
    counters: Counters | None = None


@dataclass(frozen=True, slots=True)
class InstanceHeaders:
    """How far the guest is with its kernel's headers, and why they failed."""

    state: HeadersState | str = ""
    error: str | None = None


@dataclass(frozen=True, slots=True)
class InstanceOperation:
    """An operation that is under way, and who has asked for it."""

    name: Operation | str = ""
    owner: str = ""
    since: str | None = None


@dataclass(frozen=True, slots=True)
class InstanceVolume:
    """A volume in a VM."""

    volume_id: str = ""
    mount_path: str = ""
    readonly: bool = False
    overlay: bool = False


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """When systemd starts it again. Delays are durations of Go, as `1m30s`."""

    policy: str = ""
    backoff: str = ""
    max_attempts: int = 0
    stable_after: str = ""


@dataclass(frozen=True, slots=True)
class HealthCheckHttp:
    """An HTTP request. `expected_status` null: 200 to 399."""

    port: int = 0
    path: str | None = None
    scheme: str | None = None
    expected_status: int | None = None


@dataclass(frozen=True, slots=True)
class HealthCheckTcp:
    """A port on which something listens."""

    port: int = 0


@dataclass(frozen=True, slots=True)
class HealthCheckExec:
    """A command in the guest."""

    command: tuple[str, ...] = ()
    working_dir: str | None = None


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """The health check of a VM; of `type` none it has none. Times are durations of Go."""

    type: str = "none"
    http: HealthCheckHttp | None = None
    tcp: HealthCheckTcp | None = None
    exec: HealthCheckExec | None = None
    interval: str | None = None
    timeout: str | None = None
    start_period: str | None = None
    failure_threshold: int | None = None
    success_threshold: int | None = None


@dataclass(frozen=True, slots=True)
class InstanceHealth:
    """What its guest has reported last."""

    status: HealthState | str = HealthState.DISABLED
    consecutive_failures: int = 0
    consecutive_successes: int = 0
    last_checked_at: str | None = None
    last_success_at: str | None = None
    last_failure_at: str | None = None
    last_error: str | None = None


@dataclass(frozen=True, slots=True)
class InstanceRestart:
    """Restarts that systemd has made by itself, and why it makes no more. The published client has its own
    server's; `text` is ours."""

    attempts: int = 0
    last_attempt_at: str | None = None
    next_attempt_at: str | None = None
    blocked_reason: RestartBlock | str | None = None
    last_reason: str | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class Run:
    """A run of a VM. `exit_success` null: it is on."""

    invocation_id: str
    started_at: str | None = None
    ready_ms: float | None = None
    ended_at: str | None = None
    exit_code: int | None = None
    exit_message: str | None = None
    exit_success: bool | None = None


@dataclass(frozen=True, slots=True)
class InstanceStandby:
    """What a VM in Standby is restored from. `size_bytes`: on the disk of the host; those of compression: of
    its memory; `restore_error`: why it cannot be restored."""

    saved_at: str | None = None
    size_bytes: int | None = None
    compression_state: CompressionState | str | None = None
    compression: SnapshotCompression | None = None
    compression_error: str | None = None
    restore_error: str | None = None


@dataclass(frozen=True, slots=True)
class Instance:
    """A VM. What is not supported is null. `definition`: the keys of a definition file;
    `running_definition`: the same of what it was started with, where that differs; `definition_file`: its
    path, unless the VM was made by the API; `document`: all that the daemon has answered."""

    id: str
    name: str
    image: str | None = None
    state: State | str = State.UNKNOWN
    state_error: str | None = None
    has_snapshot: bool = False
    created_at: str | None = None
    started_at: str | None = None
    stopped_at: str | None = None
    expires_at: str | None = None
    current_phase: str | None = None
    current_phase_since: str | None = None
    phase_durations_ms: Mapping[str, int] = field(default_factory=dict)
    exit_code: int | None = None
    exit_message: str | None = None
    size: str | None = None
    overlay_size: str | None = None
    disk_io_bps: str | None = None
    vcpus: int | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    hypervisor: str | None = None
    platform: str | None = None
    network: InstanceNetwork | None = None
    volumes: tuple[InstanceVolume, ...] = ()
    restart_policy: RestartPolicy | None = None
    restart_status: InstanceRestart | None = None
    health_check: HealthCheck | None = None
    health_status: InstanceHealth | None = None
    # those above are the published client's
    origin: str | None = None
    status_text: str | None = None
    ready_ms: float | None = None
    needs_restart: bool = False
    pending_changes: tuple[str, ...] = ()
    needs_reload: bool = False
    removed_from_config: bool = False
    unit: str | None = None
    invocation_id: str | None = None
    boot_id: str | None = None
    exit_success: bool | None = None
    main_pid: int | None = None
    uid: int | None = None
    memory_current: int | None = None
    cpu_seconds: float | None = None
    kernel_headers: InstanceHeaders | None = None
    operation: InstanceOperation | None = None
    definition: Mapping[str, Any] = field(default_factory=dict)
    running_definition: Mapping[str, Any] | None = None
    definition_file: str | None = None
    standby: InstanceStandby | None = None
    document: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False, metadata=SOURCE)


@dataclass(frozen=True, slots=True)
class WaitResult:
    """The state at the end of a wait for another. `timed_out`: its time was up."""

    state: State | str
    timed_out: bool = False
    state_error: str | None = None


@dataclass(frozen=True, slots=True)
class Stats:
    """Resource usage of a VM, by the keys of the published client. `network_rx_bytes`: received by it."""

    instance_id: str
    instance_name: str
    cpu_seconds: float
    memory_rss_bytes: int
    memory_vms_bytes: int
    allocated_vcpus: int
    allocated_memory_bytes: int
    memory_utilization_ratio: float
    network_rx_bytes: int
    network_tx_bytes: int
