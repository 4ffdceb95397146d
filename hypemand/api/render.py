# SPDX-License-Identifier: Apache-2.0
"""Values as the JSON that clients read. Field names are those of the published client library."""

from __future__ import annotations

import json
import time
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any, TypeAlias

from aiohttp import web

from hypemand.api.platforms import host_platform
from hypemand.api.policies import HEALTH_FAILED, POLICY_WORDS
from hypemand.api.tokens import Token
from hypemand.config.definition import Definition
from hypemand.config.durations import format_go_duration
from hypemand.config.health import Health
from hypemand.config.netparse import format_publish
from hypemand.config.rates import format_byte_rate, format_rate
from hypemand.config.sizes import format_size
from hypemand.config.vmdef import definition_to_json
from hypemand.errors import WrongState
from hypemand.model.answers.compression import SnapshotCompression
from hypemand.model.answers.guest import LogEntry, PathInfo
from hypemand.model.answers.image import Image, PrunedImage, PruneReport
from hypemand.model.answers.instance import (
    HealthCheck,
    HealthCheckExec,
    HealthCheckHttp,
    HealthCheckTcp,
    Instance,
    InstanceHeaders,
    InstanceHealth,
    InstanceNetwork,
    InstanceOperation,
    InstanceRestart,
    InstanceStandby,
    InstanceVolume,
    RestartPolicy,
    Run,
    Stats,
)
from hypemand.model.answers.token import NewToken, TokenInfo
from hypemand.model.document import encode
from hypemand.model.files import FileInfo, FileKind
from hypemand.model.health import HealthStatus, is_unhealthy
from hypemand.model.images import ImageInfo, Pruned
from hypemand.model.logs import LogLine
from hypemand.model.networks import OPEN_GROUP, VmNetwork
from hypemand.model.state import State
from hypemand.model.vm import OngoingOperation, RestartStatus, RunReport, SavedView, VmView
from hypemand.vmm.process import read_memory

Json: TypeAlias = Any

HYPERVISOR = "qemu-microvm"


def json_response(value: object, status: int = 200) -> web.Response:
    """An answer. Non-ASCII is escaped, so that no text from a guest can break the encoding."""
    return web.Response(
        status=status, text=json.dumps(value, separators=(",", ":")), content_type="application/json"
    )


def time_json(seconds: float | None) -> str | None:
    """RFC 3339 in UTC with milliseconds."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def instance_json(view: VmView) -> Json:
    """A VM."""
    return encode(derive_instance(view))


def derive_instance(view: VmView) -> Instance:
    """A VM as clients see it."""
    headers, doing = view.kernel_headers, view.operation
    # what the guest has, and beside it what it will have
    definition, defined = view.effective, definition_to_json(view.definition)
    running = definition_to_json(definition) if definition is not view.definition else defined
    return Instance(
        id=view.id,
        name=view.name,
        image=definition.image,
        state=view.state,
        state_error=view.state_error,
        has_snapshot=view.state is State.STANDBY,
        created_at=time_json(view.created_at),
        started_at=time_json(view.started_at),
        stopped_at=time_json(view.stopped_at),
        expires_at=time_json(view.expires_at),
        current_phase=view.state.lower(),
        current_phase_since=time_json(view.current_phase_since),
        phase_durations_ms={phase.lower(): ms for phase, ms in view.phase_durations_ms.items()},
        exit_code=view.exit.code if view.exit else None,
        exit_message=view.exit.message if view.exit else None,
        size=_client_size(definition.memory),
        overlay_size=_client_size(definition.disk),
        disk_io_bps=None if (total := definition.disk_io.get("total")) is None else format_byte_rate(total),
        vcpus=definition.vcpus,
        env=definition.env,
        tags=view.definition.tags,
        hypervisor=HYPERVISOR,
        platform=host_platform(),
        network=_derive_network(view.network),
        volumes=tuple(
            InstanceVolume(mount.volume, mount.mount_path, not mount.writes, mount.overlay)
            for mount in definition.volumes
        ),
        restart_policy=_derive_policy(definition),
        health_check=derive_check(view.definition.health),
        health_status=_derive_health(view.health),
        restart_status=None if view.restart is None else _derive_restart(view.restart),
        origin=view.origin,
        status_text=view.status_text,
        ready_ms=None if view.ready_ms is None else round(view.ready_ms, 1),
        needs_restart=view.needs_restart,
        pending_changes=view.changes,
        needs_reload=view.needs_reload,
        removed_from_config=view.removed_from_config,
        unit=view.unit,
        invocation_id=view.invocation_id,
        boot_id=view.boot_id,
        exit_success=view.exit.success if view.exit else None,
        main_pid=view.main_pid,
        uid=view.uid,
        memory_current=view.memory_current,
        cpu_seconds=view.cpu_seconds,
        kernel_headers=None if headers is None else InstanceHeaders(headers.state, headers.error),
        operation=None if doing is None else _derive_operation(doing),
        definition=defined,
        running_definition=None if running == defined else running,
        definition_file=view.definition_file,
        standby=None if view.saved is None else _derive_standby(view.saved),
    )


def _derive_standby(saved: SavedView) -> InstanceStandby:
    compression = saved.compression
    return InstanceStandby(
        time_json(saved.saved_at),
        saved.size,
        compression.state,
        SnapshotCompression.of(compression),
        compression.error,
        saved.problem,
    )


def _derive_operation(operation: OngoingOperation) -> InstanceOperation:
    return InstanceOperation(operation.name, operation.owner, time_json(operation.since))


def _derive_policy(definition: Definition) -> RestartPolicy:
    return RestartPolicy(
        POLICY_WORDS[definition.restart],
        format_go_duration(definition.restart_backoff),
        definition.restart_max_attempts,
        format_go_duration(definition.restart_stable_after),
    )


def derive_check(health: Health | None) -> HealthCheck | None:
    """A health check as clients see it."""
    if health is None:
        return None
    check = health.check
    port = check.port or 0
    kinds: dict[str, Any] = {
        "http": HealthCheckHttp(port, check.path, "http", check.status),
        "tcp": HealthCheckTcp(port),
        "exec": HealthCheckExec(check.argv, health.workdir),
    }
    return HealthCheck(
        type=check.check.value,
        interval=format_go_duration(check.interval),
        timeout=format_go_duration(health.timeout),
        start_period=format_go_duration(health.start_period),
        failure_threshold=health.failure_threshold,
        success_threshold=health.success_threshold,
        **{check.check.value: kinds[check.check.value]},
    )


def _derive_health(health: HealthStatus) -> InstanceHealth:
    return InstanceHealth(
        health.state,
        health.failures,
        health.successes,
        time_json(health.checked_at),
        time_json(health.succeeded_at),
        time_json(health.failed_at),
        health.error,
    )


def _derive_restart(restart: RestartStatus) -> InstanceRestart:
    return InstanceRestart(
        restart.attempts,
        time_json(restart.last_attempt_at),
        time_json(restart.next_attempt_at),
        restart.blocked_reason,
        HEALTH_FAILED if is_unhealthy(restart.last_reason) else restart.last_reason,
        restart.text,
    )


def runs_json(runs: Sequence[RunReport]) -> Json:
    """Runs of a VM."""
    return [encode(_derive_run(run)) for run in runs]


def _derive_run(run: RunReport) -> Run:
    end = run.exit
    return Run(
        run.run,
        time_json(run.started_at),
        None if run.ready_ms is None else round(run.ready_ms, 1),
        time_json(run.ended_at),
        None if end is None else end.code,
        None if end is None else end.message,
        None if end is None else end.success,
    )


def derive_group(group: str | None) -> tuple[str | None, bool]:
    """`group` and `isolated` of a VM in a network: it reaches those of its group, those that are not isolated
    either, or none."""
    return None if group == OPEN_GROUP else group, group is None


def _derive_network(network: VmNetwork | None) -> InstanceNetwork:
    """A VM's place in a network."""
    if network is None:
        return InstanceNetwork()
    group, isolated = derive_group(network.group)
    return InstanceNetwork(
        enabled=True,
        name=network.name,
        ip=None if network.ipv4 is None else str(network.ipv4),
        mac=network.mac,
        bandwidth_download=_client_rate(network.bandwidth.download),
        bandwidth_upload=_client_rate(network.bandwidth.upload),
        ip6=None if network.ipv6 is None else str(network.ipv6),
        group=group,
        isolated=isolated,
        publish=tuple(format_publish(publish) for publish in network.publish),
        interface=network.interface,
        counters=network.counters,
    )


def _client_rate(rate: int | None) -> str | None:
    """`20Mbps`: bits, as the client counts them."""
    return None if rate is None else f"{format_rate(rate).removesuffix('bit')}bps"


def _client_size(size: int) -> str:
    """`1GB`, `512MB`: the client's spelling, in which units are powers of 1024 too."""
    return f"{format_size(size)}B"


def image_json(image: ImageInfo) -> Json:
    """An image."""
    config = image.config
    answer = Image(
        name=image.name,
        digest=image.digest,
        status=image.status,
        error=image.error or None,
        error_code=image.error_code or None,
        created_at=time_json(image.created_at),
        size_bytes=image.size,
        platform=f"linux/{image.architecture}",
        entrypoint=config.entrypoint,
        cmd=config.cmd,
        env={key: value for key, _, value in (word.partition("=") for word in config.env)},
        working_dir=config.working_dir or None,
        user=config.user or None,
        builtin=image.builtin,
        in_use_by=image.in_use_by,
        source=image.source or None,
        progress=image.progress,
        tags=image.tags,
    )
    return encode(answer)


def pruned_json(pruned: Sequence[Pruned]) -> Json:
    """What pruning has removed, or would."""
    images = tuple(PrunedImage(image.names, image.digest, image.size) for image in pruned)
    return encode(PruneReport(images, sum(image.size for image in pruned)))


def stats_json(view: VmView) -> Json:
    """What a VM uses, in the published client's words. WrongState without a VMM."""
    if view.main_pid is None:
        raise WrongState(f"stats needs a running VM, and {view.name} is {view.state}", hint="start it first")
    allocated = view.effective.memory
    virtual, resident = read_memory(view.main_pid)
    counters = None if view.network is None else view.network.counters
    answer = Stats(
        instance_id=view.id,
        instance_name=view.name,
        cpu_seconds=view.cpu_seconds or 0.0,
        memory_rss_bytes=resident,
        memory_vms_bytes=virtual,
        allocated_vcpus=view.effective.vcpus,
        allocated_memory_bytes=allocated,
        memory_utilization_ratio=resident / allocated,
        network_rx_bytes=0 if counters is None else counters.received_bytes,
        network_tx_bytes=0 if counters is None else counters.sent_bytes,
    )
    return encode(answer)


def path_json(info: FileInfo | None) -> Json:
    """A file of a guest."""
    if info is None:
        return {"exists": False}
    is_link = info.kind is FileKind.SYMLINK
    answer = PathInfo(
        exists=True,
        is_dir=info.kind is FileKind.DIRECTORY,
        is_file=info.kind is FileKind.FILE,
        is_symlink=is_link,
        link_target=info.target if is_link else None,
        mode=info.mode,
        size=info.size,
        kind=info.kind,
        uid=info.uid,
        gid=info.gid,
        mtime=_guest_time_json(info.mtime_ns),
    )
    return encode(answer)


def _guest_time_json(nanoseconds: int) -> str | None:
    """None for a time that no calendar here has: a guest can set any."""
    try:
        return time_json(nanoseconds / 1e9)
    except (OverflowError, ValueError, OSError):
        return None


def log_line_json(line: LogLine) -> Json:
    """A line of a log with all that is known of it."""
    text = line.text
    exact = None if text.encode() == line.data else b64encode(line.data).decode()
    entry = LogEntry(time_json(line.time), text, line.invocation_id, exact, line.partial, line.missing)
    return encode(entry)


def exact_line_json(line: LogLine) -> Json:
    """The line as a string, where that with a newline is what the guest wrote; else all of it."""
    try:
        text = None if line.partial or line.missing else line.data.decode()
    except UnicodeDecodeError:
        text = None
    return log_line_json(line) if text is None else text


def token_json(token: Token) -> Json:
    """A token."""
    return encode(_derive_token(token))


def new_token_json(token: Token, text: str) -> Json:
    """A token that was made just now, with its text."""
    info = _derive_token(token)
    return encode(NewToken(**{key.name: getattr(info, key.name) for key in fields(info)}, token=text))


def _derive_token(token: Token) -> TokenInfo:
    return TokenInfo(
        name=token.name,
        prefix=token.prefix,
        scope=token.scope,
        vms=token.vms,
        tags=dict(token.tags),
        created_at=time_json(token.created_at),
        expires_at=time_json(token.expires_at),
        expired=token.is_expired(time.time()),
        last_used_at=time_json(token.last_used_at),
    )
