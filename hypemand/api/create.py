# SPDX-License-Identifier: Apache-2.0
"""Bodies of POST /instances as definitions: our native form, and the form of the published client.

Fields that are not supported are rejected by name. All errors of a body are reported together.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace

from hypemand.api.bodies.instances import CreateFromDefinition
from hypemand.api.fields import InvalidField, read_form
from hypemand.api.hostreach import refuse_host_reach
from hypemand.api.kinds import Flag, Lifespan, Moment, Size, Text
from hypemand.api.lifetimes import derive_lifetime
from hypemand.api.platforms import check_platform
from hypemand.api.policies import (
    CHECK_FIELDS,
    HEALTH_FIELDS,
    RESTART_FIELDS,
    check_health_reach,
    read_health_check,
    read_restart_policy,
    refuse_others,
    rename,
)
from hypemand.api.policies import CLIENT_NAMES as POLICY_NAMES
from hypemand.api.render import HYPERVISOR
from hypemand.api.volumes import check_overlay_size
from hypemand.config.definition import Definition, DefinitionDefaults
from hypemand.config.netdef import Networks
from hypemand.config.netparse import NONE
from hypemand.config.schemafile import load_schema
from hypemand.config.vmdef import parse_definition
from hypemand.errors import InvalidDefinition, Problem
from hypemand.model.lifetime import Lifetime

# That are shown of a body. A definition file of an administrator has no such limit.
MAX_PROBLEMS = 100

_KEYS = load_schema("vm")["properties"]
# Fields of the published client that are a key of ours under another name or the same, or its opposite.
_SAME_MEANING = {rule["x-client"]: key for key, rule in _KEYS.items() if "x-client" in rule}
_NEGATED = {rule["x-client-not"]: key for key, rule in _KEYS.items() if "x-client-not" in rule}
_TRANSLATED = (
    "name", "network", "restart_policy", "health_check", "hypervisor", "volumes", "platform", "ttl",
    "expires_at", "disk_io_bps",
)  # fmt: skip
_UNSUPPORTED = (
    "auto_standby", "credentials", "devices", "gpu", "hotplug_size", "snapshot_policy",
)  # fmt: skip
# Seconds that a client of that form waits for a pull, as with its own server.
_PATIENCE = 5.0
# Of a volume's mount; the size of an overlay is looked at apart.
_MOUNT_KEYS = {
    "volume_id": "volume",
    "mount_path": "mount_path",
    "readonly": "readonly",
    "overlay": "overlay",
    "overlay_size": "",
}
_CLIENT_NAMES = {
    **{ours: theirs for theirs, ours in (_SAME_MEANING | _NEGATED).items()},
    **POLICY_NAMES,
}
_LIMITS = {"bandwidth_upload": "upload", "bandwidth_download": "download"}
# By the schema of openapi.yaml: the fields of the published client that are read here.
CLIENT_FIELDS: Mapping[str, tuple[str, ...]] = {
    "CreateInstance": (*_SAME_MEANING, *_NEGATED, *_TRANSLATED),
    "NetworkWish": ("enabled", *_LIMITS),
    "VolumeMount": tuple(_MOUNT_KEYS),
    "RestartPolicy": RESTART_FIELDS,
    "HealthCheck": HEALTH_FIELDS,
    "HealthCheckHttp": tuple(CHECK_FIELDS["http"]),
    "HealthCheckTcp": tuple(CHECK_FIELDS["tcp"]),
    "HealthCheckExec": tuple(CHECK_FIELDS["exec"]),
}
# To the client's own server bits, and by our own grammar nothing, since other tools mean bytes.
_BPS = re.compile(r"([0-9.]+\s*[kmg]?)bps", re.IGNORECASE)
# Of a disk it takes bytes, whether a second is named or not. Mbps, which is bits of a network, is neither.
_DISK_BPS = re.compile(r"([0-9.]+\s*[KMGkmg]?)(?:[Bb](?:/[Ss])?|Bps)")


@dataclass(frozen=True, slots=True)
class CreateRequest:
    """The definition of a new VM, whether to start it, how long it lives, and how many seconds a pull of its
    image is waited for; None: for ever, and to its end."""

    definition: Definition
    start: bool
    lifetime: Lifetime | None = None
    patience: float | None = None


def generate_name() -> str:
    """A name for a VM that was created without one, with 40 random bits."""
    return f"vm-{secrets.token_hex(5)}"


@dataclass(frozen=True, slots=True)
class _Host:
    """What of the host config counts for a definition. `networks` None: not known."""

    defaults: DefinitionDefaults
    networks: Networks | None


def parse_create(
    body: Mapping[str, object],
    defaults: DefinitionDefaults,
    networks: Networks | None = None,
    *,
    is_root: bool = False,
) -> CreateRequest:
    """The definition in a request body. Raises InvalidDefinition, InvalidRequest, or, unless the client is
    root, Forbidden for settings that affect the host beyond the VM. `networks`: those of the host; None: not
    known, so that the network of the body is not checked."""
    host = _Host(defaults, networks)
    try:
        wanted = _parse_native(body, host) if "definition" in body else _parse_client(body, host)
    except InvalidDefinition as error:
        raise _shorten(error) from None
    if not is_root:
        refuse_host_reach(wanted.definition, defaults)
    return wanted


def _shorten(error: InvalidDefinition) -> InvalidDefinition:
    """An error of bounded size: a problem is many times as long as what a body needs to have it."""
    more = len(error.problems) - MAX_PROBLEMS
    if more <= 0:
        return error
    return InvalidDefinition(
        [*error.problems[:MAX_PROBLEMS], _problem("", f"{more} more errors are not shown")]
    )


def _parse_native(body: Mapping[str, object], host: _Host) -> CreateRequest:
    given = read_form(CreateFromDefinition, body)
    name = given.name
    if name is None:
        named = given.definition.get("name")
        name = Text(may_be_empty=True).read(named, "name") if named else generate_name()
    lifetime = derive_lifetime(given.ttl, given.expires_at)
    definition = parse_definition(name, given.definition, host.defaults, host.networks)
    return CreateRequest(definition, given.start, lifetime)


def _parse_client(body: Mapping[str, object], host: _Host) -> CreateRequest:
    """Of the form of the published client. A null is a field that was left out, as for its own server."""
    given = {key: value for key, value in body.items() if value is not None}
    check_platform(Text(may_be_empty=True).read(given.get("platform", ""), "platform"))
    problems = [p for key in sorted(given) if (p := _find_unknown(key)) is not None]
    data: dict[str, object] = {
        ours: given[theirs] for theirs, ours in _SAME_MEANING.items() if theirs in given
    }
    for theirs, ours in _NEGATED.items():
        skip = _read_flag(given.get(theirs, False), theirs, problems)
        if skip is not None:
            data[ours] = not skip
    if "restart_policy" in given:
        data |= read_restart_policy(given["restart_policy"], problems)
    if "health_check" in given and (health := read_health_check(given["health_check"], problems)) is not None:
        data["health"] = health
    if "disk_io_bps" in given:
        data["disk_io"] = {"total": _in_bytes(given["disk_io_bps"])}
    if "volumes" in given:
        data["volumes"] = _parse_volumes(given["volumes"], problems)
    network = _parse_network(given, host.defaults, problems)
    if network is not None:
        data["network"] = network
    if given.get("hypervisor", HYPERVISOR) != HYPERVISOR:
        problems.append(_problem("hypervisor", "is not supported by hypemand", f"use {HYPERVISOR}"))
    name = given.get("name")
    if not isinstance(name, str):
        problems.append(_problem("name", "is missing" if name is None else "is not a string"))
        name = generate_name()
    lifetime = _parse_lifetime(given, problems)
    definition = _parse_translated(name, data, host, problems)
    check_health_reach(definition)
    for mount in given.get("volumes") or ():  # type: ignore[attr-defined]
        if mount.get("overlay_size") is not None:
            check_overlay_size(Size().read(mount["overlay_size"], "overlay_size"), definition.disk)
    return CreateRequest(definition, start=True, lifetime=lifetime, patience=_PATIENCE)


def _parse_lifetime(given: Mapping[str, object], problems: list[Problem]) -> Lifetime | None:
    """The lifetime of the VM; None: for ever, or it cannot be read."""
    try:
        ttl = Lifespan().read(given["ttl"], "ttl") if "ttl" in given else None
        at = Moment().read(given["expires_at"], "expires_at") if "expires_at" in given else None
        return derive_lifetime(ttl, at)
    except InvalidField as error:
        problems.append(_problem(error.key, error.problem, error.hint))
        return None


def _parse_translated(name: str, data: dict[str, object], host: _Host, problems: list[Problem]) -> Definition:
    """Parse a translated body. Errors have the names of the client's fields, and come with those that were
    found before."""
    try:
        definition = parse_definition(name, data, host.defaults, host.networks)
    except InvalidDefinition as error:
        raise InvalidDefinition([*problems, *map(_in_client_names, error.problems)]) from None
    if problems:
        raise InvalidDefinition(problems)
    return definition


def _in_client_names(problem: Problem) -> Problem:
    if problem.key.startswith("volumes[") and problem.key.endswith("].volume"):
        return replace(problem, key=f"{problem.key}_id")
    if problem.key.startswith("network.bandwidth."):
        return replace(problem, key=problem.key.replace("bandwidth.", "bandwidth_"))
    if problem.key.startswith("disk_io"):
        return replace(problem, key="disk_io_bps")
    return rename(problem, _CLIENT_NAMES)


def _find_unknown(key: str) -> Problem | None:
    if key in _UNSUPPORTED:
        return _problem(key, "is not supported by this version of hypemand", "leave it out")
    if key in CLIENT_FIELDS["CreateInstance"]:
        return None
    return _problem(key[:80], "is not a field of an instance", "GET /openapi.yaml describes the fields")


def _read_flag(value: object, key: str, problems: list[Problem]) -> bool | None:
    """None where it is none."""
    try:
        return Flag().read(value, key)
    except InvalidField as error:
        problems.append(_problem(error.key, error.problem))
        return None


def _parse_volumes(volumes: object, problems: list[Problem]) -> object:
    """The key `volumes` of a definition. What has a wrong type is for the schema to refuse."""
    if not isinstance(volumes, list):
        return volumes
    found = []
    for number, mount in enumerate(volumes):
        if not isinstance(mount, dict):
            return volumes
        problems += refuse_others(f"volumes[{number}]", mount, CLIENT_FIELDS["VolumeMount"])
        given = {_MOUNT_KEYS[key]: value for key, value in mount.items() if key in _MOUNT_KEYS}
        found.append({key: value for key, value in given.items() if key and value is not None})
    return found


def _parse_network(
    given: Mapping[str, object], defaults: DefinitionDefaults, problems: list[Problem]
) -> object | None:
    """The key `network` of a definition; None when the client leaves it to us."""
    network = given.get("network", {})
    if not isinstance(network, dict):
        problems.append(_problem("network", "is not an object"))
        return None
    problems += refuse_others("network", network, CLIENT_FIELDS["NetworkWish"])
    enabled = network.get("enabled")
    if enabled is not None and _read_flag(enabled, "network.enabled", problems) is None:
        return None
    limits = {
        ours: _in_bits(network[theirs]) for theirs, ours in _LIMITS.items() if network.get(theirs) is not None
    }
    if enabled is False:
        return NONE
    if not enabled and not limits:
        return None
    if defaults.network is None:
        what = "the host configuration has no default network"
        hint = "omit it, or specify a network in the form with a definition"
        problems.append(_problem("network.enabled", what, hint))
        return None
    return {"bandwidth": limits}


def _in_bits(rate: object) -> object:
    """1Gbps as we write it; what is none is for the schema to refuse."""
    found = _BPS.fullmatch(rate.strip()) if isinstance(rate, str) else None
    return f"{found[1]}bit" if found is not None else rate


def _in_bytes(rate: object) -> object:
    """100MB and 100MBps as we write it: 100MB/s."""
    found = _DISK_BPS.fullmatch(rate.strip()) if isinstance(rate, str) else None
    return f"{found[1]}B/s" if found is not None else rate


def _problem(key: str, message: str, hint: str = "") -> Problem:
    return Problem(file="", line=0, column=0, key=key, message=message, hint=hint)
