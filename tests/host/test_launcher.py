# SPDX-License-Identifier: Apache-2.0
"""What a VM's unit executes: a VMM with a TAP device and without the host's network, daemon or not."""

from __future__ import annotations

from typing import Any

from tests.host.test_network import find_taps, reach_gateway, tap_of
from tests.host.vms import STAYS, Vms

NETWORK = ("hypemand-network.socket", "hypemand-tap.socket", "hypemand-network.service")
ON_DEFAULT: dict[str, Any] = {"network": None}
# argv: pid. What the VMM of that pid sees, as its user in its own namespaces.
LOOK = """
exec nsenter --target="$1" --mount --root --net -- /usr/bin/python3 -I -c '
import os, socket
print(sorted(name for _, name in socket.if_nameindex()))
for path in ("/dev/net/tun", "/dev/shm/of-the-host", "/run/hypemand/tap"):
    print(path, os.path.exists(path))
'
"""


def find_children(vms: Vms, pid: int) -> list[str]:
    """The names of a process's children."""
    script = "for p in $(cat /proc/$1/task/$1/children); do cat /proc/$p/comm; done"
    return vms.host.run(["sh", "-c", script, "sh", str(pid)]).stdout.split()


def carrier(vms: Vms, name: str) -> bool:
    """Has a VMM opened its TAP device?"""
    return "LOWER_UP" in find_taps(vms.host)[tap_of(vms, name)]["flags"]


def test_a_vmm_is_in_a_network_of_its_own_and_its_guest_in_the_hosts(vms: Vms) -> None:
    name = vms.run("inside", **ON_DEFAULT)
    pid = vms.show(name)["main_pid"]
    vms.host.run(["touch", "/dev/shm/of-the-host"])
    try:
        seen = vms.host.run(["sh", "-c", LOOK, "sh", str(pid)]).stdout.splitlines()
    finally:
        vms.host.run(["rm", "/dev/shm/of-the-host"])
    assert seen[0] == "['lo']"
    assert [line.split()[-1] for line in seen[1:]] == ["False"] * 3
    assert carrier(vms, name)
    reach_gateway(vms, name)
    assert find_children(vms, pid) == ["vm-leader"]


def test_what_the_launcher_leaves_cannot_be_outlived(vms: Vms) -> None:
    name = vms.run("leads")
    shown = vms.show(name)
    leader = vms.host.run(
        ["cat", f"/proc/{shown['main_pid']}/task/{shown['main_pid']}/children"]
    ).stdout.strip()
    vms.host.run(["kill", "-KILL", str(shown["main_pid"])])
    vms.wait(name, "Stopped")
    assert not vms.host.run(["test", "-e", f"/proc/{leader}"], check=False).ok


def test_systemd_alone_restarts_a_vm_with_its_network_and_starts_what_gives_it_the_tap(vms: Vms) -> None:
    name = vms.run("alone-on-net", STAYS, restart="on-failure", **ON_DEFAULT)
    first = vms.show(name)
    with vms.without_daemon():
        vms.host.run(["systemctl", "stop", "hypemand-network.service"])
        vms.host.run(["kill", "-KILL", str(first["main_pid"])])
        vms.host.wait_until(lambda: vms.unit(name, "NRestarts")["NRestarts"] == "1")
        vms.wait_console(name, "up", times=2)
        assert vms.properties("hypemand-network.service", "ActiveState") == {"ActiveState": "active"}
    assert vms.wait(name, "Running")["main_pid"] != first["main_pid"]
    assert carrier(vms, name)


def test_without_the_network_service_a_restart_fails_with_words_for_it(vms: Vms) -> None:
    name = vms.run("no-tap", STAYS, **ON_DEFAULT)
    invocation = vms.show(name)["invocation_id"]
    try:
        with vms.without_daemon():
            vms.host.run(["systemctl", "stop", *NETWORK])
            vms.host.run(["systemctl", "restart", f"hypeman-vm-{name}.service"], check=False)
            told = [
                e.get("MESSAGE", "") for e in vms.host.journal(f"_SYSTEMD_UNIT=hypeman-vm-{name}.service")
            ]
            assert any(
                "launcher: the network service cannot be reached: " in line
                and "systemctl status hypemand-tap.socket" in line
                for line in told
            ), told[-10:]
    finally:
        vms.host.run(["systemctl", "start", *NETWORK[:2]])
    shown = vms.wait(name, "Stopped")
    assert shown["invocation_id"] != invocation
    assert "the network service cannot be reached" in shown["exit_message"]
    vms.start(name)
