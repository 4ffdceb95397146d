# SPDX-License-Identifier: Apache-2.0
"""Values as the JSON that clients read. Field names are those of the published client library."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime

from aiohttp import web

from hypemand.api.failures import problem_json
from hypemand.api.services import ReloadReport
from hypemand.api.tokens import Token
from hypemand.config.definition import Restart
from hypemand.config.netparse import format_publish
from hypemand.config.rates import format_rate
from hypemand.config.sizes import format_size
from hypemand.config.vmdef import definition_to_json
from hypemand.errors import WrongState
from hypemand.manager.imageview import ImageInfo
from hypemand.manager.networkview import VmNetwork
from hypemand.manager.ports import OPEN_GROUP
from hypemand.manager.view import FileInfo, FileKind, LogLine, Timeline, VmView
from hypemand.qemu.process import read_memory
from hypemand.state import State
from hypemand.storage.store import Pruned

HYPERVISOR = "qemu-microvm"
_NETWORK_KEYS = (
    "enabled", "name", "ip", "mac", "bandwidth_download", "bandwidth_upload", "ip6", "group", "isolated",
    "publish", "interface", "counters",
)  # fmt: skip
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}

# restart_policy.policy in the client's words.
RESTART_POLICIES = {"never": Restart.NO, "always": Restart.ALWAYS, "on_failure": Restart.ON_FAILURE}
_POLICY_WORDS = {restart: word for word, restart in RESTART_POLICIES.items()}


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


def host_platform() -> str:
    """This host as OCI names it: `linux/amd64`."""
    machine = platform.machine()
    return f"linux/{_ARCHITECTURES.get(machine, machine)}"


def instance_json(view: VmView) -> dict[str, object]:
    """A VM. First the keys of the published client, then our own."""
    return {
        **_client_keys(view),
        "origin": view.origin,
        "status_text": view.status_text,
        "ready_ms": None if view.ready_ms is None else round(view.ready_ms, 1),
        "needs_restart": view.needs_restart,
        "removed_from_config": view.removed_from_config,
        "unit": view.unit,
        "invocation_id": view.invocation_id,
        "exit_success": view.exit.success if view.exit else None,
        "main_pid": view.main_pid,
        "uid": view.uid,
        "memory_current": view.memory_current,
        "cpu_seconds": view.cpu_seconds,
        "kernel_headers": _headers_json(view),
        "definition": definition_to_json(view.definition),
    }


def _headers_json(view: VmView) -> dict[str, object] | None:
    headers = view.kernel_headers
    return None if headers is None else {"state": headers.state, "error": headers.error}


def _client_keys(view: VmView) -> dict[str, object]:
    definition = view.definition
    return {
        "id": view.id,
        "name": view.name,
        "image": definition.image,
        "state": view.state,
        "state_error": view.state_error,
        "has_snapshot": view.state is State.STANDBY,
        "created_at": time_json(view.created_at),
        "started_at": time_json(view.started_at),
        "stopped_at": time_json(view.stopped_at),
        "expires_at": None,
        "current_phase": view.state.lower(),
        "current_phase_since": time_json(view.current_phase_since),
        "phase_durations_ms": {phase.lower(): ms for phase, ms in view.phase_durations_ms.items()},
        "exit_code": view.exit.code if view.exit else None,
        "exit_message": view.exit.message if view.exit else None,
        "size": _client_size(definition.memory),
        "overlay_size": _client_size(definition.disk),
        "vcpus": definition.vcpus,
        "env": dict(definition.env),
        "tags": dict(definition.tags),
        "hypervisor": HYPERVISOR,
        "platform": host_platform(),
        "network": _network_json(view.network),
        "volumes": [
            {
                "volume_id": mount.volume,
                "mount_path": mount.mount_path,
                "readonly": not mount.writes,
                "overlay": mount.overlay,
            }
            for mount in definition.volumes
        ],
        "restart_policy": {"policy": _POLICY_WORDS[definition.restart]},
        "restart_status": None,
        "health_check": None,
        "health_status": None,
    }


def group_json(group: str | None) -> dict[str, object]:
    """Whom of its network a VM reaches: those of its group, those that are not isolated either, or nobody."""
    return {"group": None if group == OPEN_GROUP else group, "isolated": group is None}


def _network_json(network: VmNetwork | None) -> dict[str, object]:
    """A VM's place in a network. First the keys of the published client, then our own."""
    told: dict[str, object] = dict.fromkeys(_NETWORK_KEYS)
    if network is None:
        return told | {"enabled": False, "publish": []}
    limits = network.bandwidth
    return told | {
        "enabled": True,
        "name": network.name,
        "ip": None if network.ipv4 is None else str(network.ipv4),
        "mac": network.mac,
        "bandwidth_download": _client_rate(limits.download),
        "bandwidth_upload": _client_rate(limits.upload),
        "ip6": None if network.ipv6 is None else str(network.ipv6),
        **group_json(network.group),
        "publish": [format_publish(publish) for publish in network.publish],
        "interface": network.interface,
        "counters": None if network.counters is None else asdict(network.counters),
    }


def _client_rate(rate: int | None) -> str | None:
    """`20Mbps`: bits, as the client counts them."""
    return None if rate is None else f"{format_rate(rate).removesuffix('bit')}bps"


def _client_size(size: int) -> str:
    """`1GB`, `512MB`: the client's spelling, in which units are powers of 1024 too."""
    return f"{format_size(size)}B"


def image_json(image: ImageInfo) -> dict[str, object]:
    """An image. First the keys of the published client, then our own."""
    config, progress = image.config, image.progress
    return {
        "name": image.name,
        "digest": image.digest,
        "status": image.status,
        "error": image.error or None,
        "error_code": image.error_code or None,
        "created_at": time_json(image.created_at),
        "size_bytes": image.size,
        "platform": f"linux/{image.architecture}",
        "entrypoint": list(config.entrypoint),
        "cmd": list(config.cmd),
        "env": {key: value for key, _, value in (word.partition("=") for word in config.env)},
        "working_dir": config.working_dir or None,
        "tags": {},
        "user": config.user or None,
        "builtin": image.builtin,
        "in_use_by": list(image.in_use_by),
        "source": image.source or None,
        "progress": None if progress is None else asdict(progress),
    }


def pruned_json(pruned: Sequence[Pruned]) -> dict[str, object]:
    """What pruning has removed, or would."""
    return {
        "images": [
            {"names": list(image.names), "digest": image.digest, "size_bytes": image.size} for image in pruned
        ],
        "freed_bytes": sum(image.size for image in pruned),
    }


def timeline_json(timeline: Timeline) -> dict[str, object]:
    """The last boot of a VM."""
    return {
        "vm": timeline.vm,
        "boot": timeline.boot,
        "running_ms": timeline.running_ms,
        "spans": [
            {"name": s.name, "lane": s.lane, "start_ms": s.start_ms, "end_ms": s.end_ms}
            for s in timeline.spans
        ],
    }


def stats_json(view: VmView) -> dict[str, object]:
    """What a VM uses, in the published client's words. WrongState without a VMM."""
    if view.main_pid is None:
        raise WrongState(f"stats needs a running VM, and {view.name} is {view.state}", hint="start it first")
    allocated = view.definition.memory
    virtual, resident = read_memory(view.main_pid)
    counters = None if view.network is None else view.network.counters
    return {
        "instance_id": view.id,
        "instance_name": view.name,
        "cpu_seconds": view.cpu_seconds or 0.0,
        "memory_rss_bytes": resident,
        "memory_vms_bytes": virtual,
        "allocated_vcpus": view.definition.vcpus,
        "allocated_memory_bytes": allocated,
        "memory_utilization_ratio": resident / allocated,
        "network_rx_bytes": 0 if counters is None else counters.received_bytes,
        "network_tx_bytes": 0 if counters is None else counters.sent_bytes,
    }


def path_json(info: FileInfo | None) -> dict[str, object]:
    """A file of a guest. First the keys of the published client, then our own."""
    if info is None:
        return {"exists": False}
    is_link = info.kind is FileKind.SYMLINK
    return {
        "exists": True,
        "error": None,
        "is_dir": info.kind is FileKind.DIRECTORY,
        "is_file": info.kind is FileKind.FILE,
        "is_symlink": is_link,
        "link_target": info.target if is_link else None,
        "mode": info.mode,
        "size": info.size,
        "kind": info.kind,
        "uid": info.uid,
        "gid": info.gid,
        "mtime": _guest_time_json(info.mtime_ns),
    }


def _guest_time_json(nanoseconds: int) -> str | None:
    """None for a time that no calendar here has: a guest can set any."""
    try:
        return time_json(nanoseconds / 1e9)
    except (OverflowError, ValueError, OSError):
        return None


def log_line_json(line: LogLine) -> Mapping[str, object]:
    """A line of a log with all that is known of it."""
    return {"time": time_json(line.time), "text": line.text, "invocation_id": line.invocation_id}


def token_json(token: Token) -> dict[str, object]:
    """A token, without its text, which is not kept, and its hash, which is nobody's business."""
    return {
        "name": token.name,
        "prefix": token.prefix,
        "scope": token.scope.value,
        "vms": list(token.vms),
        "tags": dict(token.tags),
        "created_at": time_json(token.created_at),
        "expires_at": time_json(token.expires_at),
        "expired": token.is_expired(time.time()),
        "last_used_at": time_json(token.last_used_at),
    }


def reload_json(report: ReloadReport) -> dict[str, object]:
    """What a reload found."""
    return {
        "defined": list(report.defined),
        "changed": list(report.changed),
        "removed": list(report.removed),
        "problems": [problem_json(p) for p in report.problems],
    }
