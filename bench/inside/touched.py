# SPDX-License-Identifier: Apache-2.0
"""VMs whose program touches some of their memory, and waits then."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from bench.inside.rounds import run

_VM_DIR = Path("/etc/hypemand/vms.d")
_DEADLINE = 90.0
TOUCHED = b"memory touched"
# busybox itself, again and again: pages that are not zero
_FILL = """\
set -e
mkdir -p /m; mount -t tmpfs m /m
until [ "$(stat -c %s /m/f 2>/dev/null || echo 0)" -ge {size} ]; do cat /proc/self/exe >>/m/f; done
echo memory touched
"""
_STAYS = "exec sleep infinity\n"


def define(name: str, memory: str, touched: int, then: str = _STAYS, network: str = "none") -> None:
    """Define a VM. `touched` in MiB; `then`: what its shell does afterwards."""
    program = _FILL.format(size=touched * 1024**2) + then
    definition = {
        "image": "builtin:busybox",
        "memory": memory,
        "vcpus": 1,
        "disk": "64M",
        "kernel_headers": False,
        "network": network,
        "cmd": ["sh", "-c", program],
    }
    (_VM_DIR / f"{name}.yaml").write_text(json.dumps(definition))
    run("systemctl", "reload", "hypemand.service")


def read_console(instance: dict[str, Any]) -> list[str]:
    """The lines of its run so far."""
    return run(
        "journalctl", "--output=cat", f"_SYSTEMD_INVOCATION_ID={instance['invocation_id']}"
    ).splitlines()


def wait_touched(instance: dict[str, Any]) -> None:
    """Until its program has touched its memory."""
    end = time.monotonic() + _DEADLINE
    while TOUCHED.decode() not in read_console(instance):
        if time.monotonic() > end:
            raise TimeoutError(f"{instance['name']} has not touched its memory in {_DEADLINE:g} s")
        time.sleep(0.05)
