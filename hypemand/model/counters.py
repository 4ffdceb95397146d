# SPDX-License-Identifier: Apache-2.0
"""What has passed a TAP device."""

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
