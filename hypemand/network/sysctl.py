# SPDX-License-Identifier: Apache-2.0
"""Settings of the kernel's network below /proc/sys/net."""

from __future__ import annotations

from pathlib import Path

_ROOT = Path("/proc/sys/net")


def find_sysctl(name: str) -> str | None:
    """A setting, by its path with slashes; None when the kernel has none of that name."""
    try:
        return (_ROOT / name).read_text().strip()
    except FileNotFoundError:
        return None


def set_sysctl(name: str, value: str) -> bool:
    """Set it if it is otherwise; was it? Raises FileNotFoundError when the kernel has none of that name."""
    path = _ROOT / name
    if path.read_text().strip() == value:
        return False
    path.write_text(value)
    return True


def has_ipv6() -> bool:
    """Can interfaces of this host have IPv6 addresses?"""
    return (_ROOT / "ipv6/conf/all/disable_ipv6").exists()


def has_bridge_netfilter() -> bool:
    """Does br_netfilter show the frames of bridges to the chains of IP?"""
    names = ("bridge/bridge-nf-call-iptables", "bridge/bridge-nf-call-ip6tables")
    return any(find_sysctl(name) == "1" for name in names)
