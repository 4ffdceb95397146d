# SPDX-License-Identifier: Apache-2.0
"""Names of units: those of VMs, and of the tools that the daemon runs."""

from __future__ import annotations

from hypemand.config.names import is_name

_VM, _HANDLE, _IMAGE, _REPLAY, _SUFFIX = (
    "hypeman-vm-",
    "hypeman@",
    "hypeman-image-",
    "hypeman-replay-",
    ".service",
)
VM_UNITS = f"{_VM}*{_SUFFIX}"
"""Pattern of the transient units of all VMs."""
HANDLES = f"{_HANDLE}*{_SUFFIX}"
"""Pattern of the handles of all VMs."""


def unit_name(vm: str) -> str:
    """The transient unit of a VM."""
    return f"{_VM}{vm}{_SUFFIX}"


def template_unit_name() -> str:
    """The unit in which a template for warm starts is made, of which there is one at a time."""
    return f"hypeman-template{_SUFFIX}"


def handle_name(vm: str) -> str:
    """The unit that an administrator enables and orders."""
    return f"{_HANDLE}{vm}{_SUFFIX}"


def vm_of_handle(unit: str) -> str | None:
    """The VM whose handle this is, or None."""
    return _find_middle(_HANDLE, unit)


def vm_of_unit(unit: str) -> str | None:
    """The VM whose transient unit this is, or None."""
    return _find_middle(_VM, unit)


def is_of_vm(unit: str) -> bool:
    """Is it the transient unit or the handle of a VM, be there such a VM or not?"""
    names = (_find_middle(prefix, unit) for prefix in (_VM, _HANDLE))
    return any(name is not None and is_name(name) for name in names)


def image_unit_name(key: str) -> str:
    """The unit of a tool that works on an image; keys of one daemon begin alike. `*`: a pattern."""
    return f"{_IMAGE}{key}{_SUFFIX}"


def key_of_image_unit(unit: str) -> str | None:
    """The opposite; None for another unit."""
    return _find_middle(_IMAGE, unit)


def replay_unit_name(key: str) -> str:
    """The unit that replays the journal of a file system."""
    return f"{_REPLAY}{key}{_SUFFIX}"


def _find_middle(prefix: str, unit: str) -> str | None:
    if unit.startswith(prefix) and unit.endswith(_SUFFIX):
        return unit[len(prefix) : -len(_SUFFIX)]
    return None
