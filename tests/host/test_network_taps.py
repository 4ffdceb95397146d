# SPDX-License-Identifier: Apache-2.0
"""TAP devices: of the VMM's user, there as long as the VM is active, and no longer."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.host.netlab import Wired, read_network, write_guest
from tests.host.vms import Vms, stuck_guests, vms_of

pytestmark = pytest.mark.one_release

# argv: name. A device as only hypemand makes it, of no VM.
ORPHAN = """
ip tuntap add dev "$1" mode tap user 64999
ip link set "$1" alias "hypemand VM ghost" master hypeman0 up
"""


@pytest.fixture
def bare(wired: Wired) -> Iterator[Vms]:
    """VMs of host A; when they are gone its network is as it was before."""
    with vms_of(wired.a) as vms:
        before = read_network(wired.a)
        yield vms
        vms.remove_all()
        assert read_network(wired.a) == before


def find_tap(vms: Vms, name: str) -> tuple[int, int] | None:
    """Index and owner of a VM's TAP device."""
    tap = f"hv{vms.show(name)['uid']}"
    found = vms.host.run(["ip", "--json", "--details", "link", "show", "dev", tap], check=False)
    if not found.ok:
        return None
    (link,) = json.loads(found.stdout)
    owner = vms.host.run(["cat", f"/sys/class/net/{tap}/owner"]).stdout
    assert link["linkinfo"]["info_data"]["persist"]
    assert link["ifalias"] == f"hypemand VM {name}"
    return link["ifindex"], int(owner)


@pytest.mark.both_releases
def test_a_tap_device_is_the_vmms_and_is_kept_in_every_active_state(bare: Vms) -> None:
    write_guest(bare, "web")
    bare.reload()
    assert find_tap(bare, "web") is None
    with stuck_guests(bare.host):
        bare.ctl("start", "web")
        bare.wait("web", "Initializing")
        tap = find_tap(bare, "web")
        assert tap is not None
        assert tap[1] == bare.show("web")["uid"]
        restart_both(bare)
        assert (bare.state("web"), find_tap(bare, "web")) == ("Initializing", tap)
        bare.ctl("kill", "web")
        assert find_tap(bare, "web") is None
    bare.start("web")
    tap = find_tap(bare, "web")
    restart_both(bare)
    assert (bare.state("web"), find_tap(bare, "web")) == ("Running", tap)
    bare.ctl("stop", "web")
    assert find_tap(bare, "web") is None


def restart_both(vms: Vms) -> None:
    """The daemon and the network service start without knowing anything."""
    vms.host.run(["systemctl", "kill", "--signal=KILL", "--kill-whom=main", "hypemand-network.service"])
    vms.restart_daemon()


def test_what_is_of_no_vm_is_removed_and_what_is_not_ours_is_left(bare: Vms) -> None:
    write_guest(bare, "web")
    bare.reload()
    bare.start("web")
    tap = find_tap(bare, "web")
    before = read_network(bare.host)
    bare.host.run(["sh", "-euc", ORPHAN, "make", "hv64999"])
    bare.host.run(["ip", "link", "add", "hi64999", "type", "ifb"])
    bare.host.run(["ip", "link", "set", "hi64999", "alias", "hypemand upload of VM ghost"])
    bare.host.run(["ip", "tuntap", "add", "dev", "hvmine", "mode", "tap"])
    try:
        bare.restart_daemon()

        def list_devices() -> set[str]:
            return set(bare.host.run(["ls", "/sys/class/net"]).stdout.split())

        bare.host.wait_until(lambda: not list_devices() & {"hv64999", "hi64999"}, "they are gone")
        assert "hvmine" in list_devices()
        assert find_tap(bare, "web") == tap
    finally:
        bare.host.run(["ip", "link", "del", "hvmine"])
    assert read_network(bare.host) == before
