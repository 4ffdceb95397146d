# SPDX-License-Identifier: Apache-2.0
"""Where the API listens beside its socket: an address, and TLS beyond this host."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypemand.config.source import Source
from hypemand.errors import Problem

# Below it the daemon, which has not that capability, may not listen.
MIN_PORT = 1024
_EXAMPLE = "write an IP address and a port from 1024 to 65535, as 127.0.0.1:7420 or [::1]:7420"


@dataclass(frozen=True, slots=True)
class ListenConfig:
    """HTTP over TCP at `host`, an IP address; HTTPS with `certificate` and `key`, files in PEM."""

    host: str
    port: int
    certificate: Path | None = None
    key: Path | None = None

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of `127.0.0.1:7420` or `[::1]:7420`. ValueError says what is right."""
    host, _, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        raise ValueError(f"{text!r} is not an IP address with a port; {_EXAMPLE}") from None
    if (address.version == 6) != (bare != host):
        raise ValueError(f"an IPv6 address must be in brackets, an IPv4 address must not; {_EXAMPLE}")
    if not port.isdecimal() or len(port) > 5 or not MIN_PORT <= int(port) <= 65535:
        raise ValueError(f"{port!r} is not a valid port for the daemon; {_EXAMPLE}")
    return str(address), int(port)


def find_address_problems(source: Source) -> list[Problem]:
    """What the schema cannot say of `listen.address` in one file."""
    listen = source.data.get("listen") if isinstance(source.data, Mapping) else None
    if not isinstance(listen, Mapping) or "address" not in listen:
        return []
    try:
        parse_address(listen["address"])
    except ValueError as error:
        message, _, hint = str(error).partition("; ")
        return [source.problem(("listen", "address"), message, hint)]
    return []


def find_metrics_problems(source: Source) -> list[Problem]:
    """What the schema cannot say of `metrics.listen` in one file."""
    metrics = source.data.get("metrics") if isinstance(source.data, Mapping) else None
    if not isinstance(metrics, Mapping) or "listen" not in metrics:
        return []
    place = ("metrics", "listen")
    try:
        host, _ = parse_address(metrics["listen"])
    except ValueError as error:
        message, _, hint = str(error).partition("; ")
        return [source.problem(place, message, hint)]
    if ipaddress.ip_address(host).is_loopback:
        return []
    hint = "write an address of 127.0.0.0/8 or ::1; elsewhere GET /metrics needs a token, at listen.address"
    return [source.problem(place, f"metrics are served without a token, and {host} is not loopback", hint)]


def make_metrics_listen(data: Mapping[str, Any]) -> ListenConfig | None:
    """The values of `metrics`, which has no problems. None: it has no address."""
    return None if "listen" not in data else ListenConfig(*parse_address(data["listen"]))


def find_listen_problems(data: Mapping[str, Any], source: Source) -> list[Problem]:
    """What does not go together in `listen` of all files; `source` is the last that says something of it."""
    for given, missing in (("certificate", "key"), ("key", "certificate")):
        if given in data and missing not in data:
            hint = "TLS needs both; give the other, or neither"
            return [source.problem(("listen",), f"has a {given} and no {missing}", hint)]
    if "address" not in data or "certificate" in data or data.get("allow_plain_http"):
        return []
    host, _ = parse_address(data["address"])
    if ipaddress.ip_address(host).is_loopback:
        return []
    hint = "give certificate and key, or an address of 127.0.0.0/8 or ::1; allow_plain_http: true permits it"
    return [source.problem(("listen",), f"tokens could be read on their way to {data['address']}", hint)]


def make_listen_config(data: Mapping[str, Any]) -> ListenConfig | None:
    """The values of `listen`, which has no problems. Without an address nothing is listened on."""
    if "address" not in data:
        return None
    host, port = parse_address(data["address"])
    certificate, key = (Path(data[name]) if name in data else None for name in ("certificate", "key"))
    return ListenConfig(host, port, certificate, key)
