# SPDX-License-Identifier: Apache-2.0
"""What must hold in a guest before its VM is Running, beside program and agent."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

MAX_WORDS = 80


class Check(StrEnum):
    """The kinds of check; the words are the keys of `ready`."""

    TCP = "tcp"
    HTTP = "http"
    EXEC = "exec"
    NOTIFY = "notify"
    LOG = "log"


@dataclass(frozen=True, slots=True)
class Ready:
    """One check. `interval`: seconds, the longest time between two attempts.

    TCP has a `port`; HTTP that, a `path` and a `status` (None: 200 to 399); EXEC an `argv`; NOTIFY in systemd
    mode a `unit` (None: default.target); LOG a `pattern` (hypemand.config.patterns).
    """

    check: Check
    port: int | None = None
    path: str = "/"
    status: int | None = None
    argv: tuple[str, ...] = ()
    unit: str | None = None
    pattern: str | None = None
    interval: float = 1.0

    @property
    def words(self) -> str:
        """What is waited for, on one line: "tcp 5432"."""
        match self.check:
            case Check.TCP:
                text = f"tcp {self.port}"
            case Check.HTTP:
                text = f"http {self.port}{self.path}"
            case Check.EXEC:
                text = f"exec {' '.join(self.argv)}"
            case Check.NOTIFY:
                text = "notify" if self.unit is None else f"notify of {self.unit}"
            case Check.LOG:
                text = f"log {self.pattern}"
        shown = "".join(c if c.isprintable() else "?" for c in text)
        return shown if len(shown) <= MAX_WORDS else f"{shown[: MAX_WORDS - 1]}…"


def ready_fields(ready: Ready) -> list[tuple[str, str]]:
    """The fields of the guest's record `ready` (docs/protocol.md)."""
    fields = [("check", ready.check.value), ("interval", str(max(round(ready.interval * 1000), 1)))]
    if ready.port is not None:
        fields.append(("port", str(ready.port)))
    if ready.check is Check.HTTP:
        fields.append(("path", ready.path))
        if ready.status is not None:
            fields.append(("status", str(ready.status)))
    fields += [("arg", word) for word in ready.argv]
    if ready.unit is not None:
        fields.append(("unit", ready.unit))
    if ready.pattern is not None:
        fields.append(("pattern", ready.pattern))
    return fields
