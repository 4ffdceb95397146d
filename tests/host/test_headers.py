# SPDX-License-Identifier: Apache-2.0
"""Kernel headers in the guest: beside the program, seen by an administrator, never in Running's way."""

from typing import Any

import pytest

from tests.host.vms import STAYS, Vms

pytestmark = pytest.mark.one_release

DISK = "/usr/lib/hypemand/kernel/headers.erofs"


def wait_settled(vms: Vms, name: str) -> dict[str, Any]:
    """What is shown of the headers once they are ready or have failed."""

    def look() -> dict[str, Any] | None:
        headers: dict[str, Any] | None = vms.show(name)["kernel_headers"]
        return headers if headers is not None and headers["state"] in ("ready", "failed") else None

    found = vms.host.wait_until(look, f"the kernel headers of {name}")
    assert found is not None
    return found


def test_they_are_ready_some_time_after_running(vms: Vms) -> None:
    name = vms.run("headers", STAYS, kernel_headers=True)
    assert wait_settled(vms, name) == {"state": "ready", "error": None}
    release = vms.execute(name, "uname", "-r").strip()
    build = f"/lib/modules/{release}/build"
    assert vms.execute(name, "readlink", build) == f"/usr/src/linux-headers-{release}\n"
    assert vms.execute(name, "cat", "/run/hypeman/kernel-headers.status") == "ready\n"
    # the kernel's own: they say its release, and its module indexes are there
    assert vms.execute(name, "cat", f"{build}/include/config/kernel.release").strip() == release
    assert vms.execute(name, "head", "-n", "1", f"/lib/modules/{release}/modules.builtin")
    # and so are its modules, for any modprobe
    assert vms.execute(name, "cat", "/proc/modules") == ""
    vms.execute(name, "sh", "-euc", "modprobe wireguard && ip link add wg0 type wireguard")
    assert "\nwireguard " in "\n" + vms.execute(name, "cat", "/proc/modules")
    assert "Headers: ready\n" in vms.ctl("status", name).stdout
    assert vms.ctl("show", "-p", "kernel_headers", name).stdout.startswith("kernel_headers.state=ready\n")
    markers = [line for line in vms.console(name) if "HYPEMAN-" in line]
    order = [
        next(i for i, line in enumerate(markers) if word in line)
        for word in ("PROGRAM-START", "HEADERS-START")
    ]
    assert order == sorted(order)
    vms.restart_daemon()
    assert vms.show(name)["kernel_headers"] == {"state": "ready", "error": None}
    vms.ctl("stop", name)
    assert vms.show(name)["kernel_headers"] is None


def test_without_them_there_is_no_disk(vms: Vms) -> None:
    name = vms.run("bare", STAYS, kernel_headers=False)
    assert vms.show(name)["kernel_headers"] is None
    assert "hypeman-headers" not in vms.execute(name, "sh", "-c", "cat /sys/block/*/serial")
    assert "HEADERS" not in "".join(vms.console(name))


def test_what_a_daemon_that_is_away_has_missed_is_learned_later(vms: Vms) -> None:
    # a guest that waits for its disk in vain says so seconds after it is Running
    with vms.without_file(DISK):
        name = vms.run("missed", STAYS, kernel_headers=True)
        with vms.without_daemon():
            what = f"the kernel headers of {name} fail"
            vms.host.wait_until(lambda: "HEADERS-FAILED" in "".join(vms.console(name)), what)
        error = "no block device with the serial hypeman-headers came up"
        assert wait_settled(vms, name) == {"state": "failed", "error": error}


def test_a_damaged_disk_is_told_and_the_vm_is_running(vms: Vms) -> None:
    with vms.without_file(DISK, size=1 << 20):
        name = vms.run("damaged", STAYS, kernel_headers=True)
        headers = wait_settled(vms, name)
        assert headers["state"] == "failed"
        assert headers["error"].startswith("the headers disk /dev/vd")
        assert "is damaged: there is no erofs on it" in headers["error"]
        assert f"Headers: failed: {headers['error']}\n" in vms.ctl("status", name).stdout
        assert vms.state(name) == "Running"
        assert vms.execute(name, "echo", "here") == "here\n"
