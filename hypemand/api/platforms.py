# SPDX-License-Identifier: Apache-2.0
"""Platforms of images and VMs, in OCI's words: os/arch[/variant]. There is one, the host's."""

from __future__ import annotations

from hypemand.errors import InvalidRequest
from hypemand.model.images import derive_host_architecture

# What containerd's normalization makes of nothing, for the architectures that have a variant by default.
_DEFAULT_VARIANTS = {"arm64": "v8"}


def host_platform() -> str:
    """This host's: `linux/amd64`."""
    return f"linux/{derive_host_architecture()}"


def check_platform(platform: str | None) -> None:
    """Raise InvalidRequest for a platform other than this host's; None and "" mean that one."""
    host = host_platform()
    variant = _DEFAULT_VARIANTS.get(derive_host_architecture())
    if platform and platform not in (host, f"{host}/{variant}" if variant else host):
        raise InvalidRequest(
            f"platform: this host runs {host} only", hint=f"omit it, or use {host}", code="invalid_platform"
        )
