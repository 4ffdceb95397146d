# SPDX-License-Identifier: Apache-2.0
"""THAW: what a guest that was saved gets when it continues (docs/protocol.md, "Freeze and thaw")."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from hypemand.errors import InvalidRequest
from hypemand.protocol.configdisk import (
    RESET_SSH_HOST_KEYS,
    GuestHost,
    GuestInterface,
    host_fields,
    interface_fields,
)
from hypemand.protocol.frames import MAX_PAYLOAD
from hypemand.protocol.records import encode_fields, encode_records

ENTROPY_BYTES = 64


@dataclass(frozen=True, slots=True)
class ForkInterface:
    """A network interface of a fork. `old_mac`: the address that it has had where the guest was saved."""

    old_mac: str
    interface: GuestInterface


@dataclass(frozen=True, slots=True)
class ForkIdentity:
    """What makes a fork a VM of its own. `boot_id`: 32 hex digits, with which the agent answers from then on;
    `machine_id` None: it keeps the one it has. Interfaces that are not named keep what they have. Without
    `dns` and `search` its resolv.conf stays. `hosts` replaces the block in /etc/hosts, all of it.
    `reset_ssh_host_keys`: the SSH server's keys are removed, and made anew where the guest can."""

    boot_id: str
    hostname: str
    machine_id: str | None = None
    interfaces: tuple[ForkInterface, ...] = ()
    dns: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    hosts: tuple[GuestHost, ...] = ()
    reset_ssh_host_keys: bool = True


@dataclass(frozen=True, slots=True)
class Thaw:
    """What the guest gets before anything in it goes on. `clock_ns`: nanoseconds since the epoch; `entropy`:
    ENTROPY_BYTES bytes that no other guest gets; `identity` None: it stays who it is."""

    clock_ns: int = field(default_factory=time.time_ns)
    entropy: bytes = field(default_factory=lambda: secrets.token_bytes(ENTROPY_BYTES), repr=False)
    identity: ForkIdentity | None = None


def identity_to_json(identity: ForkIdentity) -> dict[str, Any]:
    """As a JSON document."""
    return asdict(identity)


def identity_from_json(document: Any) -> ForkIdentity:
    """The opposite. KeyError, TypeError and ValueError for anything else."""
    interfaces = (
        ForkInterface(
            str(one["old_mac"]),
            GuestInterface(**{**one["interface"], **_tuples(one["interface"], "addresses", "gateways")}),
        )
        for one in document["interfaces"]
    )
    hosts = (GuestHost(str(one["address"]), tuple(map(str, one["names"]))) for one in document["hosts"])
    changed = {"interfaces": tuple(interfaces), "hosts": tuple(hosts), **_tuples(document, "dns", "search")}
    return ForkIdentity(**{**document, **changed})


def _tuples(document: Any, *keys: str) -> dict[str, tuple[str, ...]]:
    return {key: tuple(map(str, document[key])) for key in keys}


def _identity_pairs(identity: ForkIdentity) -> Iterator[tuple[str, str]]:
    yield "boot", identity.boot_id
    yield "hostname", identity.hostname
    if identity.machine_id is not None:
        yield "machine_id", identity.machine_id
    for fork in identity.interfaces:
        yield "net", encode_fields([("old_mac", fork.old_mac), *interface_fields(fork.interface)])
    for address in identity.dns:
        yield "dns", address
    for domain in identity.search:
        yield "search", domain
    for host in identity.hosts:
        yield "host", encode_fields(host_fields(host))
    if identity.reset_ssh_host_keys:
        yield "reset", RESET_SSH_HOST_KEYS


def encode_thaw(thaw: Thaw) -> bytes:
    """The payload. InvalidRequest if it is more than a frame carries: some 1500 lines of /etc/hosts."""
    pairs = [("clock", str(thaw.clock_ns)), ("entropy", thaw.entropy.hex())]
    if thaw.identity is not None:
        pairs += _identity_pairs(thaw.identity)
    payload = encode_records(pairs)
    if len(payload) > MAX_PAYLOAD:
        raise InvalidRequest(
            f"the identity of a fork takes {len(payload)} bytes, at most {MAX_PAYLOAD} are allowed",
            hint="give it fewer lines of /etc/hosts, and the others once it runs",
        )
    return payload
