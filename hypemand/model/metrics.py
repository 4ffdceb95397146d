# SPDX-License-Identifier: Apache-2.0
"""What is counted of the API's requests."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class ApiCounts:
    """`requests`: those that were answered, by method, route and status; `refused`: over TCP, without a valid
    token."""

    requests: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    refused: int = 0
