# SPDX-License-Identifier: Apache-2.0
"""Frames between the daemon and its process for the system bus: a length, and one pickled tuple.

Both ends are ours, of the same version, on a pair of sockets that nobody else has.

To the process:
    ("call", service, path, member, arguments)          answered
    ("get", service, path, name)                        answered
    ("unit", unit, path, names)                         answered; None: systemd has not loaded it
    ("listen",)                                         to systemd's signals, as soon as there is a bus
    ("watch", path, interface, names)
    ("unwatch", path)
From it:
    ("answer", value)
    ("error", words, errno)
    ("signal", path, {name: value})
    ("listening",)                                      signals come from now on
    ("lost", words)                                     no more of them, until it says so again
"""

from __future__ import annotations

import pickle
import struct
from typing import Any

HEAD = struct.Struct("=I")
PROPERTIES = "a(sv)"
"""Signature of arguments that are properties, each given as (name, signature, value)."""

Part = tuple[str, Any]
"""Arguments in a row: their signature, of plain D-Bus types or PROPERTIES, and their values."""


def encode(frame: tuple[Any, ...]) -> bytes:
    """A frame, with its length."""
    data = pickle.dumps(frame, pickle.HIGHEST_PROTOCOL)
    return HEAD.pack(len(data)) + data


def decode(data: bytes) -> tuple[Any, ...]:
    """What follows the length."""
    frame: tuple[Any, ...] = pickle.loads(data)  # noqa: S301 - of our own process
    return frame
