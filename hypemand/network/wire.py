# SPDX-License-Identifier: Apache-2.0
"""What goes over the network service's socket: frames of JSON, and errors by their kind.

A frame is a 32-bit big-endian length and that many bytes of JSON, an object. A request has `id`, `op` and
what the operation takes; its answer has the same `id` and either `result` or `error`. Requests are served in
the order in which they come. Unasked the service sends only `event`, which is CHANGED.

What is in a frame becomes values by `hypemand.model.document`: both ends come from one package, and one may
be older for the moments of an upgrade.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from hypemand.errors import (
    HostNotReady,
    HypemandError,
    InsufficientResources,
    InUse,
    InvalidDefinition,
    Problem,
)
from hypemand.model.document import BadDocument, decode, encode

SOCKET = Path("/run/hypemand/network.sock")
TAP_SOCKET = Path("/run/hypemand/tap/tap.sock")
"""Where launchers get the TAP device of their VM: launcher/tap.h. Its folder is root's."""
TEMPLATE_USER = "hypemand-template"
"""Whose VMM is that of a template for warm starts: it gets a TAP device there that is on no network."""
MAX_FRAME = 16 * 1024 * 1024
NOT_APPLIED = "not_applied"
"""Code of the answer of a service that has just started and does not yet know what there is to be."""
CHANGED = "changed"
"""Event: somebody else has changed the host's networks. The daemon is to tell what there is to be again."""
TAMPERED = "tampered"
"""Event, with `vm` and `what`: somebody has changed the TAP device of a VM, which the daemon is to end. It is
told to each new connection until the daemon says with `Op.ENDED` that it has."""

_LENGTH = struct.Struct(">I")
_KINDS: Mapping[str, type[HypemandError]] = {
    kind.__name__: kind for kind in (HypemandError, HostNotReady, InUse, InsufficientResources)
}


class Op(StrEnum):
    """What the service can be asked for: the methods of `hypemand.network.port.NetworkHost`, and ENDED."""

    APPLY = "apply"
    ATTACH = "attach"
    DETACH = "detach"
    COUNTERS = "counters"
    CONNECTIONS = "connections"
    ENDED = "ended"


class BadFrame(BadDocument):
    """What came is no frame."""


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


def encode_error(error: HypemandError) -> dict[str, Any]:
    """An error, so that the other end raises the same kind."""
    told: dict[str, Any] = {"code": error.code, "message": error.message, "hint": error.hint}
    if isinstance(error, InvalidDefinition):
        return {**told, "kind": InvalidDefinition.__name__, "problems": encode(error.problems)}
    kind = next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in _KINDS)
    return {**told, "kind": kind}


def decode_error(data: Any) -> HypemandError:
    """What `encode_error` was given. A kind that is not known is the base of all. Raises BadDocument."""
    if not isinstance(data, dict):
        raise BadDocument("an error is an object")
    if data.get("kind") == InvalidDefinition.__name__:
        return InvalidDefinition(decode(tuple[Problem, ...], data.get("problems")))
    kind = _KINDS.get(str(data.get("kind")), HypemandError)
    message, hint, code = (decode(str, data.get(key)) for key in ("message", "hint", "code"))
    return kind(message, hint=hint, code=code)
