# SPDX-License-Identifier: Apache-2.0
"""What goes over the network service's socket: frames of JSON, the values in them, and errors by their kind.

A frame is a 32-bit big-endian length and that many bytes of JSON, an object. A request has `id`, `op` and
what the operation takes; its answer has the same `id` and either `result` or `error`. Requests are served in
the order in which they come. Unasked the service sends only `event`, which is CHANGED.

Both ends come from one package, but one may be older for the moments of an upgrade: fields that are not known
are passed over, and one that is missing has its default.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import StrEnum
from functools import cache
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from hypemand.errors import (
    HostNotReady,
    HypemandError,
    InsufficientResources,
    InUse,
    InvalidDefinition,
    Problem,
)

SOCKET = Path("/run/hypemand/network.sock")
TAP_SOCKET = Path("/run/hypemand/tap/tap.sock")
"""Where launchers get the TAP device of their VM: launcher/tap.h. Its folder is root's."""
MAX_FRAME = 16 * 1024 * 1024
NOT_APPLIED = "not_applied"
"""Code of the answer of a service that has just started and does not yet know what there is to be."""
CHANGED = "changed"
"""Event: somebody else has changed the host's networks. The daemon is to tell what there is to be again."""
TAMPERED = "tampered"
"""Event, with `vm` and `what`: somebody has changed the TAP device of a VM, which the daemon is to end. It is
told to each new connection until the daemon says with `Op.ENDED` that it has."""

_LENGTH = struct.Struct(">I")
_ADDRESSES = (IPv4Address, IPv6Address, IPv4Interface, IPv6Interface, IPv4Network, IPv6Network)
_KINDS: Mapping[str, type[HypemandError]] = {
    kind.__name__: kind for kind in (HypemandError, HostNotReady, InUse, InsufficientResources)
}


class Op(StrEnum):
    """What the service can be asked for: the methods of `hypemand.network.port.NetworkHost`, and ENDED."""

    APPLY = "apply"
    ATTACH = "attach"
    DETACH = "detach"
    COUNTERS = "counters"
    ENDED = "ended"


class BadFrame(Exception):
    """What came is no frame, or its JSON is not what it should be."""


async def read_frame(reader: asyncio.StreamReader) -> dict[str, Any] | None:
    """The next frame, or None when the other end has closed. Raises BadFrame, ConnectionError."""
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        if length > MAX_FRAME:
            raise BadFrame(f"a frame of {length} bytes; at most {MAX_FRAME} are taken")
        data = await reader.readexactly(length)
    except asyncio.IncompleteReadError as error:
        if not error.partial:
            return None
        raise BadFrame("the connection ended within a frame") from None
    try:
        frame = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadFrame(f"no JSON: {error}") from None
    if not isinstance(frame, dict):
        raise BadFrame("a frame is an object")
    return frame


def encode_frame(frame: Mapping[str, Any]) -> bytes:
    """Raises BadFrame when it would be larger than MAX_FRAME."""
    data = json.dumps(frame, separators=(",", ":")).encode()
    if len(data) > MAX_FRAME:
        raise BadFrame(f"a frame of {len(data)} bytes; at most {MAX_FRAME} are sent")
    return _LENGTH.pack(len(data)) + data


def encode(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, StrEnum):
        return value.value
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, _ADDRESSES):
        return str(value)
    if is_dataclass(value):
        return {field.name: encode(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (tuple, list, frozenset)):
        return [encode(item) for item in value]
    raise TypeError(f"no JSON for {type(value).__name__}")


def decode(kind: Any, data: Any) -> Any:
    """The value of type `kind` that `encode` has made `data` of. Raises BadFrame."""
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return _decode_union(get_args(kind), data)
    if origin in (tuple, frozenset):
        return origin(decode(get_args(kind)[0], item) for item in _expect(list, data))
    if origin is not None and issubclass(origin, Mapping):
        _, item_kind = get_args(kind)
        return {key: decode(item_kind, item) for key, item in _expect(dict, data).items()}
    if is_dataclass(kind):
        return _decode_dataclass(kind, data)
    if kind in (bool, int, str):
        return _expect(kind, data)
    try:
        return kind(_expect(str, data))
    except ValueError as error:
        raise BadFrame(str(error)) from None


def _expect(kind: type, data: Any) -> Any:
    if type(data) is not kind:
        raise BadFrame(f"{type(data).__name__} where {kind.__name__} belongs")
    return data


def _decode_union(kinds: tuple[Any, ...], data: Any) -> Any:
    if data is None and NoneType in kinds:
        return None
    problem = BadFrame("null where a value belongs")
    for kind in kinds:
        if kind is NoneType:
            continue
        try:
            return decode(kind, data)
        except BadFrame as error:
            problem = error
    raise problem


@cache
def _derive_fields(kind: Any) -> tuple[tuple[str, Any, bool], ...]:
    """Name, type and whether there is a default, of each field."""
    hints = get_type_hints(kind)
    return tuple(
        (field.name, hints[field.name], field.default is not MISSING or field.default_factory is not MISSING)
        for field in fields(kind)
    )


def _decode_dataclass(kind: Any, data: Any) -> Any:
    _expect(dict, data)
    values = {}
    for name, field_kind, has_default in _derive_fields(kind):
        if name in data:
            values[name] = decode(field_kind, data[name])
        elif not has_default:
            raise BadFrame(f"{kind.__name__} without {name}")
    return kind(**values)


def encode_error(error: HypemandError) -> dict[str, Any]:
    """An error, so that the other end raises the same kind."""
    told: dict[str, Any] = {"code": error.code, "message": error.message, "hint": error.hint}
    if isinstance(error, InvalidDefinition):
        return {**told, "kind": InvalidDefinition.__name__, "problems": encode(error.problems)}
    kind = next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in _KINDS)
    return {**told, "kind": kind}


def decode_error(data: Any) -> HypemandError:
    """What `encode_error` was given. A kind that is not known is the base of all. Raises BadFrame."""
    _expect(dict, data)
    if data.get("kind") == InvalidDefinition.__name__:
        return InvalidDefinition(decode(tuple[Problem, ...], data.get("problems")))
    kind = _KINDS.get(str(data.get("kind")), HypemandError)
    message, hint, code = (_expect(str, data.get(key)) for key in ("message", "hint", "code"))
    return kind(message, hint=hint, code=code)
