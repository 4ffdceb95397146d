# SPDX-License-Identifier: Apache-2.0
"""Traffic counters of the TAP devices of VMs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from hypemand.model.counters import Counters
from hypemand.network.port import TAP_PREFIX

_TAP = re.compile(rf"{TAP_PREFIX}[0-9]+")
_PROC_NET_DEV = Path("/proc/net/dev")


def read_counters() -> Mapping[str, Counters]:
    """Counters of every TAP device of hypemand, by its name. Raises OSError."""
    return dict(_parse_counters(_PROC_NET_DEV.read_text()))


def _parse_counters(text: str) -> Iterator[tuple[str, Counters]]:
    """proc_net(5): 8 figures of what came in, 8 of what went out; bytes, packets, errors, drops first. What
    comes in by a TAP device is what the VM has sent."""
    for line in text.splitlines()[2:]:
        name, _, figures = line.partition(":")
        if not _TAP.fullmatch(name.strip()):
            continue
        values = [int(figure) for figure in figures.split()]
        yield (
            name.strip(),
            Counters(
                sent_bytes=values[0],
                sent_packets=values[1],
                received_bytes=values[8],
                received_packets=values[9],
                dropped_packets=values[3] + values[11],
            ),
        )
