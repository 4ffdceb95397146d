# SPDX-License-Identifier: Apache-2.0
"""The identity of VMs that can run on several hosts: `cluster` of the host configuration."""

from __future__ import annotations

import hashlib
import uuid


def derive_vm_id(cluster: str, name: str) -> str:
    """The id of the VM of that name in a cluster, 32 hexadecimal digits: SHA-256 of `hypemand VM`, the
    cluster and the name, each followed by a NUL, of which the first 16 bytes are made a UUID of version 4
    (RFC 9562).

    It never changes, since VMs are known by it: the machine id of the guest is the id itself, and the MAC
    address and the suffix of the IPv6 address are made of it (`hypemand.manager.net.leases`).
    """
    text = "".join(f"{word}\0" for word in ("hypemand VM", cluster, name))
    return uuid.UUID(bytes=hashlib.sha256(text.encode()).digest()[:16], version=4).hex
