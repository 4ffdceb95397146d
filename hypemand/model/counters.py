# SPDX-License-Identifier: Apache-2.0
"""What a VM has sent and received."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Counters:
    """Bytes and packets since the TAP device was made, as the VM sees them."""

    sent_bytes: int = 0
    sent_packets: int = 0
    received_bytes: int = 0
    received_packets: int = 0
    dropped_packets: int = 0


@dataclass(frozen=True, slots=True)
class Connections:
    """New connections, as conntrack has them (TCP, UDP and others), since the rules were made: those that the
    VM has begun, allowed or not, and those to it that were allowed."""

    outgoing: int = 0
    incoming: int = 0
