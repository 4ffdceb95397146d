# SPDX-License-Identifier: Apache-2.0
"""VMs' places in networks: made before a VM, gone after it, whatever fails in between."""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import logging
import os
from collections.abc import Awaitable, Callable, Set
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address
from pathlib import Path

import pytest

from hypemand.config.netparse import parse_egress
from hypemand.config.network import NetworkConfig, NetworkUse, Publish, Transport
from hypemand.errors import HostNotReady, HypemandError, InUse, InvalidDefinition, NotFound
from hypemand.manager.net.allocation import AddressAllocation
from hypemand.manager.net.networks import Networks
from hypemand.manager.net.ports import PortFiles, derive_connections, derive_group
from hypemand.manager.plan import Connection
from hypemand.model.networks import OPEN_GROUP
from hypemand.network.port import PortPlan, tap_name
from hypemand.vm.networkmember import NetworkMember
from tests.unit.manager.fakenetwork import FakeNetworkHost

LAB = NetworkConfig("lab", "lab0", IPv4Interface("10.7.0.1/24"), IPv6Interface("fd00:7::1/64"))
DMZ = NetworkConfig("dmz", "dmz0", IPv4Interface("10.8.0.1/24"), None, dns=(ip_address("10.8.0.53"),))
USE = NetworkUse(name="lab")
FIRST_UID = 61200


class Lab:
    """VMs and networks of a host, and the daemon's rooms that have to do with them."""

    def __init__(self, folder: Path) -> None:
        self.vms = folder
        self.host = FakeNetworkHost()
        self.config = {"lab": LAB, "dmz": DMZ}
        self.network_members: dict[str, NetworkMember] = {}
        self.live: set[str] = set()
        self.bus: HypemandError | None = None
        self.servers: tuple[IPv4Address | IPv6Address, ...] = ()
        self.told = 0
        self.has_ipv6 = True
        self._uids = itertools.count()
        self.start_daemon()

    def start_daemon(self) -> None:
        """A daemon that knows what stands in files."""
        self.allocation = AddressAllocation(
            lambda: self.config, lambda: list(self.network_members.values()), has_ipv6=self.has_ipv6
        )
        self.networks = Networks(
            self.host,
            self.allocation,
            self._list_live,
            self.vms,
            find_servers=lambda: self.servers,
            on_members=self._tell,
            first_pause=0.01,
        )

    def _tell(self) -> None:
        self.told += 1

    async def _list_live(self) -> Set[str]:
        if self.bus is not None:
            raise self.bus
        return self.live

    def define(self, vm: str, use: NetworkUse | None = USE) -> NetworkMember:
        """A VM, or another definition of it."""
        old = self.network_members.get(vm)
        uid = FIRST_UID + next(self._uids) if old is None else old.uid
        running = None if old is None else old.running
        self.network_members[vm] = NetworkMember(
            vm, f"id-of-{vm}", uid, use, None if old is None else old.lease, running
        )
        (self.vms / vm).mkdir(exist_ok=True)
        return self.network_members[vm]

    def tap(self, vm: str) -> str:
        return tap_name(self.network_members[vm].uid)

    async def start(self, vm: str) -> Connection:
        """As the manager does it."""
        connection = self.allocation.reserve(self.network_members[vm])
        assert connection is not None
        self.network_members[vm] = replace(self.network_members[vm], lease=connection.lease)
        await self.networks.attach(vm)
        self.network_members[vm] = replace(self.network_members[vm], running=self.network_members[vm].use)
        self.live.add(vm)
        return connection

    async def end(self, vm: str) -> None:
        self.live.discard(vm)
        self.network_members[vm] = replace(self.network_members[vm], running=None)
        await self.networks.detach(vm)

    def has_file(self, vm: str) -> bool:
        return (self.vms / vm / "port.json").exists()


def drive(folder: Path, scenario: Callable[[Lab], Awaitable[None]]) -> None:
    async def main() -> None:
        await asyncio.wait_for(scenario(Lab(folder)), 10)

    asyncio.run(main())


def test_a_vm_gets_a_device_and_its_guest_is_told(tmp_path: Path) -> None:
    async def scenario(lab: Lab) -> None:
        lab.define("web")
        connection = await lab.start("web")
        assert lab.host.taps[lab.tap("web")] == connection.port
        assert lab.has_file("web")
        told = connection.interface
        assert (told.name, told.mtu, told.mac) == ("eth0", 1500, connection.lease.mac)
        assert told.addresses == ("10.7.0.2/24", f"{connection.lease.ipv6}/64")
        assert told.gateways == ("10.7.0.1", "fd00:7::1")
        assert lab.allocation.interface_of("web") == "hv61200"
        (member,) = lab.allocation.members()
        assert (member.vm, member.ipv4, member.group, member.attached) == (
            "web", IPv4Address("10.7.0.2"), None, True,
        )  # fmt: skip
        told_before = lab.told
        await lab.end("web")
        assert lab.host.taps == {}
        assert not lab.has_file("web")
        assert lab.told > told_before
        assert [m.attached for m in lab.allocation.members()] == [False]
        assert (await lab.start("web")).lease == connection.lease

    drive(tmp_path, scenario)


def test_a_vm_without_a_network_needs_no_service(tmp_path: Path) -> None:
    async def scenario(lab: Lab) -> None:
        lab.host.away = HostNotReady("it is away")
        assert lab.allocation.reserve(lab.define("plain", None)) is None
        await lab.networks.detach("plain")
        assert lab.host.asked == []
        lab.define("web")
        with pytest.raises(HostNotReady, match="network lab is not available: it is away"):
            await lab.start("web")
        assert not lab.has_file("web")
        lab.host.away = None
        await lab.start("web")

    drive(tmp_path, scenario)


def test_a_network_with_a_problem_keeps_nobody_from_the_others(tmp_path: Path) -> None:
    async def scenario(lab: Lab) -> None:
        lab.host.problems["lab"] = "the bridge lab0 is not ours"
        lab.define("web")
        lab.define("shop", NetworkUse(name="dmz"))
        with pytest.raises(HostNotReady, match="the bridge lab0 is not ours"):
            await lab.start("web")
        connection = await lab.start("shop")
        assert connection.dns == ("10.8.0.53",)
        assert (await lab.networks.get_network("lab")).problem == "the bridge lab0 is not ours"
        del lab.host.problems["lab"]
        await lab.start("web")
        assert (await lab.networks.get_network("lab")).problem == ""

    drive(tmp_path, scenario)


@pytest.mark.parametrize("cut", ["refused", "cancelled"])
def test_an_attach_that_fails_leaves_nothing(tmp_path: Path, cut: str) -> None:
    async def scenario(lab: Lab) -> None:
        lab.define("web", replace(USE, publish=(Publish(None, 8080, 80),)))
        lab.define("other", replace(USE, publish=(Publish(None, 8080, 80),)))
        if cut == "refused":
            lab.host.refuse = InUse("port 8080/tcp of this host is taken")
            with pytest.raises(InUse, match="8080/tcp of this host is taken"):
                await lab.start("web")
            lab.host.refuse = None
        else:
            lab.host.gate = asyncio.Event()
            start = asyncio.create_task(lab.start("web"))
            await lab.host.made.wait()
            start.cancel()
            with pytest.raises(asyncio.CancelledError):
                await start
            lab.host.gate = None
        assert lab.host.taps == {}
        assert not lab.has_file("web")
        await lab.start("other")

    drive(tmp_path, scenario)


def test_what_a_vm_has_claimed_nobody_else_gets(tmp_path: Path) -> None:
    async def scenario(lab: Lab) -> None:
        publish = (Publish(None, 53, 53, Transport.UDP),)
        lab.allocation.reserve(lab.define("a", replace(USE, publish=publish)))
        assert lab.allocation.plan(lab.define("b")).lease.ipv4 == IPv4Address("10.7.0.3")  # type: ignore[union-attr]
        with pytest.raises(
            InUse, match="VM c publishes port 53/udp of this host, which is published by VM a"
        ):
            lab.allocation.reserve(lab.define("c", replace(USE, publish=publish)))
        await lab.networks.give_up("a")
        assert lab.allocation.reserve(lab.define("c", replace(USE, publish=publish)))

    drive(tmp_path, scenario)


@pytest.mark.parametrize(
    ("one", "other", "clash"),
    [
        (Publish(None, 80, 80), Publish(ip_address("127.0.0.1"), 80, 8080), True),
        (Publish(None, 80, 80), Publish(ip_address("fd00::1"), 80, 80), True),
        (Publish(ip_address("127.0.0.1"), 80, 80), Publish(ip_address("127.0.0.1"), 80, 80), True),
        (Publish(ip_address("127.0.0.1"), 80, 80), Publish(ip_address("127.0.0.2"), 80, 80), False),
        (Publish(None, 80, 80), Publish(None, 81, 80), False),
        (Publish(None, 80, 80), Publish(None, 80, 80, Transport.UDP), False),
    ],
)
def test_which_published_ports_are_the_same(
    tmp_path: Path, one: Publish, other: Publish, *, clash: bool
) -> None:
    async def scenario(lab: Lab) -> None:
        for first, second in ((one, other), (other, one)):
            lab.define("a", replace(USE, publish=(first,)))
            lab.define("b", replace(USE, publish=(second,)))
            await lab.start("a")
            if clash:
                with pytest.raises(InUse, match="is published by VM a"):
                    lab.allocation.plan(lab.network_members["b"])
            else:
                assert lab.allocation.plan(lab.network_members["b"])
            await lab.end("a")

    drive(tmp_path, scenario)


def test_a_sync_that_goes_on_by_itself_and_fails_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(lab: Lab) -> None:
        may_fail = asyncio.Event()

        async def list_live() -> Set[str]:
            await may_fail.wait()
            raise LookupError("a fault of ours")

        networks = Networks(lab.host, lab.allocation, list_live, lab.vms)
        await networks.sync_within(0.01)
        assert caplog.messages == []
        may_fail.set()
        for _ in range(20):
            await asyncio.sleep(0)
        assert caplog.messages == ["sync of networks failed"]
        with pytest.raises(LookupError):
            await networks.sync_within(5)
        assert caplog.messages == ["sync of networks failed"]
        await networks.close()

    drive(tmp_path, scenario)


def test_groups() -> None:
    assert derive_group(USE, isolation=True) is None
    assert derive_group(USE, isolation=False) == OPEN_GROUP
    assert derive_group(replace(USE, isolate=False), isolation=True) == OPEN_GROUP
    assert derive_group(replace(USE, isolate=True), isolation=False) is None
    assert derive_group(replace(USE, group="db"), isolation=True) == "db"


def test_a_definition_asks_for_fewer_connections_than_its_network_allows_and_gets_no_more() -> None:
    config = replace(LAB, connections=100)
    assert derive_connections(USE, config) == 100
    assert derive_connections(replace(USE, connections=20), config) == 20
    assert derive_connections(replace(USE, connections=5000), config) == 100


def test_a_daemon_that_comes_later_knows_who_has_what(tmp_path: Path) -> None:
    async def scenario(lab: Lab) -> None:
        for vm in ("runs", "ended", "lost"):
            lab.define(vm)
            await lab.start(vm)
        ports = dict(lab.host.taps)
        lab.live.discard("ended")
        (tmp_path / "lost" / "port.json").write_text("{")
        lab.host.asked.clear()
        lab.start_daemon()
        await lab.networks.recover(lambda vm: vm in lab.live)
        await lab.networks.sync()
        assert lab.host.asked == ["apply", "detach ended"]
        assert lab.host.taps == {tap: port for tap, port in ports.items() if port.vm != "ended"}
        assert [lab.has_file(vm) for vm in ("runs", "ended", "lost")] == [True, False, True]
        assert PortFiles(tmp_path).find("lost") == ports[lab.tap("lost")]

    drive(tmp_path, scenario)


def test_a_vm_that_runs_keeps_its_device_though_its_record_cannot_be_read(tmp_path: Path) -> None:
    async def scenario(lab: Lab) -> None:
        lab.define("web")
        port = (await lab.start("web")).port
        del lab.network_members["web"]
        lab.start_daemon()
        await lab.networks.recover(lambda _vm: True)
        await lab.networks.sync()
        assert lab.host.asked[-1] == "apply"
        assert lab.host.taps == {port.tap: port}

    drive(tmp_path, scenario)


@pytest.mark.parametrize("lost", ["record", "network"])
def test_nothing_is_removed_while_it_cannot_be_told_what_a_vm_that_runs_has(
    tmp_path: Path, lost: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(lab: Lab) -> None:
        lab.define("web")
        await lab.start("web")
        (tmp_path / "web" / "port.json").unlink()
        member = lab.network_members["web"]
        if lost == "record":
            del lab.network_members["web"]
        else:
            del lab.config["lab"]
        lab.start_daemon()
        await lab.networks.recover(lambda _vm: True)
        await lab.networks.sync()
        await lab.networks.sync()
        assert lab.host.asked[-2:] == ["apply without prune"] * 2
        assert tap_name(member.uid) in lab.host.taps
        assert caplog.text.count("of the VMs web") == 1
        lab.live.clear()
        await lab.networks.sync()
        assert lab.host.asked[-1] == "apply"
        assert not lab.host.taps
        await lab.networks.close()

    drive(tmp_path, scenario)


def test_nothing_is_removed_while_systemd_cannot_be_asked(tmp_path: Path) -> None:
    async def scenario(lab: Lab) -> None:
        lab.define("web")
        await lab.start("web")
        (tmp_path / "web" / "port.json").unlink()
        lab.bus = HostNotReady("no bus")
        lab.start_daemon()
        await lab.networks.recover(lambda _vm: True)
        await lab.networks.sync()
        assert lab.host.asked[-1] == "apply without prune"
        assert lab.tap("web") in lab.host.taps
        lab.bus = None
        await lab.networks.sync()
        assert lab.host.asked[-1] == "apply"
        assert lab.tap("web") in lab.host.taps

    drive(tmp_path, scenario)


def test_a_service_that_has_just_started_is_told_all_there_is(tmp_path: Path) -> None:
    async def scenario(lab: Lab) -> None:
        for vm in ("a", "b"):
            lab.define(vm)
            await lab.start(vm)
            lab.host.restart()
        assert lab.host.asked == ["apply", "attach a", "attach b", "apply", "attach b"]
        await lab.end("a")
        assert set(lab.host.taps) == {lab.tap("b")}

    drive(tmp_path, scenario)


def test_a_detach_that_fails_is_made_good_later(tmp_path: Path) -> None:
    async def scenario(lab: Lab) -> None:
        lab.define("web")
        await lab.start("web")
        lab.host.away = HostNotReady("it is away")
        await lab.end("web")
        assert lab.tap("web") in lab.host.taps
        assert lab.allocation.interface_of("web") is None
        assert lab.has_file("web"), "a daemon that comes later is told"
        lab.host.away = None
        # not only the device: conntrack remembers who had the address
        await lab.host.wait_until(lambda: lab.host.asked[-1] == "detach web")
        await lab.networks.sync()
        assert not lab.host.taps
        assert not lab.has_file("web")
        assert lab.host.asked.count("detach web") == 2

    drive(tmp_path, scenario)


def test_what_is_left_of_a_run_goes_before_another_gets_what_it_had(tmp_path: Path) -> None:
    async def scenario(lab: Lab) -> None:
        address = IPv4Address("10.7.0.9")
        lab.define("old", replace(USE, address=address))
        await lab.start("old")
        lab.host.refuse_detach = HostNotReady("it is away")
        await lab.end("old")
        del lab.network_members["old"]
        lab.define("new", replace(USE, address=address))
        with pytest.raises(HostNotReady, match="it is away"):
            await lab.start("new")
        lab.host.refuse_detach = None
        lab.host.asked.clear()
        await lab.start("new")
        assert [asked for asked in lab.host.asked if asked != "apply"] == ["detach old", "attach new"]

    drive(tmp_path, scenario)


def test_a_vm_that_is_removed_before_its_device_could_be_is_forgotten(tmp_path: Path) -> None:
    async def scenario(lab: Lab) -> None:
        lab.define("web")
        await lab.start("web")
        lab.host.gate = asyncio.Event()
        lab.define("slow")
        starting = asyncio.create_task(lab.start("slow"))
        await lab.host.wait_until(lambda: "attach slow" in lab.host.asked)
        ending = asyncio.create_task(lab.end("web"))
        await asyncio.sleep(0)
        ending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ending
        gone = lab.tap("web")
        del lab.network_members["web"]
        lab.host.gate.set()
        await starting
        await lab.host.wait_until(lambda: gone not in lab.host.taps)
        assert set(lab.host.taps) == {lab.tap("slow")}

    drive(tmp_path, scenario)


def test_what_could_not_be_told_is_told_later_unasked(tmp_path: Path) -> None:
    async def scenario(lab: Lab) -> None:
        host = lab.host
        host.away = HostNotReady("it is away")
        host.taps["hv1"] = lab.allocation.plan(lab.define("gone")).port  # type: ignore[union-attr]
        lab.networks.begin_sync()
        await host.wait_until(lambda: host.asked.count("apply") == 3)
        host.away, lab.bus = None, HostNotReady("no bus")
        await host.wait_until(lambda: "apply without prune" in host.asked)
        assert "hv1" in host.taps
        lab.bus = None
        await host.wait_until(lambda: not host.taps)
        asked = len(host.asked)
        await asyncio.sleep(0.1)
        assert len(host.asked) == asked, "it is told once"

    drive(tmp_path, scenario)


def test_a_network_that_vms_are_on_changes_when_the_last_has_gone(tmp_path: Path) -> None:
    async def scenario(lab: Lab) -> None:
        for vm in ("a", "b"):
            lab.define(vm)
            await lab.start(vm)
        lab.config["lab"] = replace(LAB, ipv4=IPv4Interface("10.9.0.1/24"), nat=False)
        lab.config["dmz"] = replace(DMZ, mtu=1400)
        await lab.networks.sync()
        assert lab.host.bridges["lab"].ipv4 == LAB.ipv4
        assert lab.host.bridges["dmz"].mtu == 1400
        assert lab.allocation.is_outdated("a")
        info = await lab.networks.get_network("lab")
        assert (info.pending, info.ipv4) == (True, LAB.ipv4)
        await lab.end("a")
        assert (await lab.start("a")).lease.ipv4 == IPv4Address("10.7.0.2"), "it joins the one that is there"
        await lab.end("a")
        assert lab.host.bridges["lab"].ipv4 == LAB.ipv4
        await lab.end("b")
        assert lab.host.bridges["lab"].ipv4 == IPv4Interface("10.9.0.1/24")
        assert (await lab.start("a")).lease.ipv4 == IPv4Address("10.9.0.2")
        assert not lab.allocation.is_outdated("a")

    drive(tmp_path, scenario)


def test_an_address_that_the_network_has_no_more_is_not_shown(tmp_path: Path) -> None:
    def shown(lab: Lab, vm: str) -> list[str | None]:
        view = lab.networks.view(lab.network_members[vm])
        assert view is not None
        return [None if address is None else str(address) for address in (view.ipv4, view.ipv6)]

    async def scenario(lab: Lab) -> None:
        for vm in ("runs", "rests"):
            lab.define(vm, replace(USE, group="shop"))
            await lab.start(vm)
        await lab.end("rests")
        old = {vm: shown(lab, vm) for vm in ("runs", "rests")}
        lab.config["lab"] = replace(LAB, ipv4=IPv4Interface("10.9.0.1/24"))
        await lab.networks.sync()
        assert {vm: shown(lab, vm) for vm in old} == old, "it stays as it is while a VM is on it"
        await lab.end("runs")
        assert shown(lab, "rests") == [None, old["rests"][1]]
        assert [str(member.ipv4) for member in lab.allocation.members()] == ["None", "None"]
        told = [host.address for host in (await lab.start("runs")).hosts]
        assert told == ["10.9.0.2", old["runs"][1], old["rests"][1]]
        await lab.end("runs")
        lab.config["lab"] = replace(LAB, ipv4=IPv4Interface("10.6.0.1/24"), ipv6=None)
        await lab.networks.sync()
        assert shown(lab, "rests") == [None, None]
        assert lab.allocation.members() == ()
        lab.define("asks", replace(USE, address=IPv4Address("10.7.0.9")))
        assert shown(lab, "asks") == [None, None]
        info = await lab.networks.get_network("lab")
        assert info.free_addresses == info.addresses

    drive(tmp_path, scenario)


def test_a_network_that_is_gone_from_the_config_goes_with_its_last_vm(tmp_path: Path) -> None:
    async def scenario(lab: Lab) -> None:
        lab.define("a")
        await lab.start("a")
        del lab.config["lab"]
        await lab.networks.sync()
        assert set(lab.host.bridges) == {"lab", "dmz"}
        with pytest.raises(
            InvalidDefinition,
            match="there is no network lab in the host configuration; write dmz or network: none",
        ):
            lab.allocation.plan(lab.define("b"))
        await lab.end("a")
        assert set(lab.host.bridges) == {"dmz"}
        with pytest.raises(NotFound, match="there is no network lab"):
            await lab.networks.get_network("lab")

    drive(tmp_path, scenario)


@pytest.mark.parametrize("mtu", [LAB.mtu, 1400])
def test_rules_of_a_network_change_at_once(tmp_path: Path, mtu: int) -> None:
    """Also if something else of it has to wait."""

    async def scenario(lab: Lab) -> None:
        lab.define("a")
        await lab.start("a")
        lists = (parse_egress("192.0.2.0/24 443"),)
        lab.config["lab"] = replace(
            LAB, nat=False, isolation=False, mtu=mtu, egress=lists, link_local=True, connections=99
        )
        await lab.networks.sync()
        assert lab.allocation.is_outdated("a") == (mtu != LAB.mtu)
        assert lab.host.bridges["lab"].mtu == LAB.mtu
        assert not lab.host.bridges["lab"].nat
        assert not lab.host.taps[lab.tap("a")].bridge.nat
        port = lab.host.taps[lab.tap("a")]
        assert (port.group, port.connections) == (OPEN_GROUP, 99)
        assert (port.bridge.egress, port.bridge.link_local) == (lists, True)
        assert json.loads((tmp_path / "a" / "port.json").read_text())["group"] == OPEN_GROUP

    drive(tmp_path, scenario)


def test_what_is_shown_of_a_vm(tmp_path: Path) -> None:
    async def scenario(lab: Lab) -> None:
        use = replace(USE, address=IPv4Address("10.7.0.9"))
        shown = lab.networks.view(lab.define("web", use))
        assert shown is not None
        assert (str(shown.ipv4), shown.mac, shown.interface) == ("10.7.0.9", None, None)
        await lab.start("web")
        await lab.networks.read_counters()
        shown = lab.networks.view(lab.network_members["web"])
        assert shown is not None
        assert shown.counters is not None
        assert (shown.counters.sent_bytes, shown.interface) == (100, lab.tap("web"))
        lab.host.away = HostNotReady("it is away")
        await lab.networks.read_counters()
        shown = lab.networks.view(lab.network_members["web"])
        assert shown is not None
        assert shown.counters is None
        assert lab.networks.view(lab.define("plain", None)) is None

    drive(tmp_path, scenario)


def test_that_there_are_no_name_servers_is_told(tmp_path: Path) -> None:
    async def scenario(lab: Lab) -> None:
        lab.config["quiet"] = replace(LAB, name="quiet", bridge="quiet0", dns=())
        told = {info.name: info.warnings for info in await lab.networks.list_networks()}
        assert (told["dmz"], told["quiet"]) == ((), ())
        assert "VMs have no DNS servers" in " ".join(told["lab"])
        vms = [lab.define("web"), lab.define("here", NetworkUse(name="quiet")), lab.define("plain", None)]
        vms += [lab.define("inside", NetworkUse(name="dmz")), lab.define("lost", NetworkUse(name="gone"))]
        assert [vm.vm for vm in vms if lab.allocation.lacks_servers(vm)] == ["web"]
        lab.servers = (ip_address("9.9.9.9"),)
        assert (await lab.networks.get_network("lab")).warnings == ()
        assert not any(map(lab.allocation.lacks_servers, vms))
        lab.config["lab"] = replace(LAB, ipv4=None)
        assert lab.allocation.lacks_servers(vms[0]), "it cannot reach that one"

    drive(tmp_path, scenario)


def test_free_addresses_are_counted(tmp_path: Path) -> None:
    async def scenario(lab: Lab) -> None:
        for vm in ("a", "b"):
            lab.define(vm)
            await lab.start(vm)
        await lab.end("b")
        info = await lab.networks.get_network("lab")
        assert (info.addresses, info.free_addresses) == (253, 251)
        assert [m.vm for m in info.members] == ["a", "b"]
        assert [n.name for n in await lab.networks.list_networks()] == ["dmz", "lab"]

    drive(tmp_path, scenario)


def test_problems_are_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(lab: Lab) -> None:
        caplog.set_level(logging.INFO)
        lab.host.problems["lab"] = "its subnet is a route of this host"
        await lab.networks.sync()
        await lab.networks.sync()
        assert caplog.text.count("its subnet is a route of this host") == 1
        lab.host.problems.clear()
        await lab.networks.sync()
        assert "network lab is available again" in caplog.text

    drive(tmp_path, scenario)


def test_a_guest_is_told_its_own_name_and_those_of_its_group(tmp_path: Path) -> None:
    async def scenario(lab: Lab) -> None:
        for vm, group in (("db", "g"), ("web", "g"), ("other", "h"), ("lone", None)):
            lab.define(vm, replace(USE, group=group))
        first = await lab.start("db")
        await lab.start("other")
        await lab.end("db")
        told = [(host.address, host.names) for host in (await lab.start("web")).hosts]
        assert told == [
            ("10.7.0.4", ("web", "web.hypeman")),
            (str((lab.network_members["web"].lease or first.lease).ipv6), ("web", "web.hypeman")),
            ("10.7.0.2", ("db", "db.hypeman")),
            (str(first.lease.ipv6), ("db", "db.hypeman")),
        ]
        assert {name for host in (await lab.start("lone")).hosts for name in host.names} == {
            "lone",
            "lone.hypeman",
        }

    drive(tmp_path, scenario)


@pytest.mark.parametrize("garbage", ["{", "[]", "", "\0"])
def test_a_device_whose_record_cannot_be_read_is_not_removed(
    tmp_path: Path, garbage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor is anything else: it is not known whose is whose."""

    async def scenario(lab: Lab) -> None:
        lab.define("web")
        await lab.start("web")
        await lab.networks.close()
        # neither the VM nor what it has can be read
        tap = lab.tap("web")
        (lab.vms / "web/port.json").write_text(garbage)
        del lab.network_members["web"]
        lab.start_daemon()
        for _ in range(2):
            await lab.networks.sync()
            assert lab.host.asked[-1] == "apply without prune"
        assert tap in lab.host.taps
        words = "nothing is removed from networks now: the network resources are not known of the VMs web"
        assert caplog.text.count(words) == 1
        lab.live.clear()
        await lab.networks.sync()
        assert lab.host.taps == {}
        await lab.networks.close()

    drive(tmp_path, scenario)


def test_a_port_that_cannot_be_written_down_is_known_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_files: PortFiles, _port: PortPlan) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def scenario(lab: Lab) -> None:
        lab.define("web")
        port = (await lab.start("web")).port
        await lab.networks.close()
        (lab.vms / "web/port.json").unlink()
        lab.network_members["web"] = replace(lab.network_members["web"], running=USE)
        lab.start_daemon()
        monkeypatch.setattr(PortFiles, "write", refuse)
        await lab.networks.sync()
        assert lab.host.asked[-1] == "apply"
        assert lab.host.taps == {port.tap: port}
        assert "VM web: cannot record its network resources: No space left" in caplog.text
        await lab.networks.close()

    drive(tmp_path, scenario)


def test_a_vm_that_comes_to_run_unknown_while_files_are_read_keeps_its_device(tmp_path: Path) -> None:
    """What stands in its file was not read: so it may have anything, and nothing is removed."""

    async def scenario(lab: Lab) -> None:
        for vm in ("web", "other"):
            lab.define(vm, None)
            lab.live.add(vm)
        found = await asyncio.to_thread(PortFiles(tmp_path).find_all, ["web"])
        assert lab.allocation.adopt(lab.live, found) == {"other"}

    drive(tmp_path, scenario)


def test_a_host_without_ipv6_has_its_networks_with_ipv4_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As with ipv6.disable=1, which a network of IPv6 alone cannot do without."""

    async def scenario(lab: Lab) -> None:
        lab.config["six"] = replace(LAB, name="six", bridge="six0", ipv4=None)
        lab.define("web")
        before = (await lab.start("web")).lease
        assert before.ipv6 is not None
        await lab.end("web")
        lab.has_ipv6 = False
        lab.start_daemon()
        connection = await lab.start("web")
        assert (connection.lease.ipv4, connection.lease.ipv6) == (before.ipv4, None)
        assert connection.interface.gateways == ("10.7.0.1",)
        assert {name: bridge.ipv6 for name, bridge in lab.host.bridges.items()} == {
            "lab": None,
            "dmz": None,
            "six": LAB.ipv6,
        }
        words = "the host has no IPv6 (ipv6.disable=1): the network has IPv4 only"
        warnings = {info.name: info.warnings for info in await lab.networks.list_networks()}
        assert [name for name, said in warnings.items() if words in said] == ["lab"]
        assert caplog.text.count(words) == 1
        assert not lab.networks.is_outdated("web")
        lab.define("fixed", replace(USE, address6=IPv6Address("fd00:7::9")))
        with pytest.raises(InvalidDefinition, match="address6"):
            await lab.start("fixed")

    drive(tmp_path, scenario)


OFFICE = NetworkConfig(
    "office", "br0", IPv4Interface("192.0.2.1/24"), None, nat=False, isolation=False, managed=False
)


def test_a_vm_on_a_lan_has_the_address_of_its_definition_and_the_lans_gateway(tmp_path: Path) -> None:
    async def scenario(lab: Lab) -> None:
        lab.config["office"] = OFFICE
        lab.define("web", NetworkUse("office", address=IPv4Address("192.0.2.7")))
        told = (await lab.start("web")).interface
        assert (told.addresses, told.gateways) == (("192.0.2.7/24",), ("192.0.2.1",))
        assert not lab.host.taps[lab.tap("web")].bridge.managed
        assert lab.networks.is_on_lan("web")
        info = await lab.networks.get_network("office")
        assert (info.managed, info.addresses, info.free_addresses, len(info.members)) == (False, 0, 0, 1)
        lab.define("db")
        await lab.start("db")
        assert not lab.networks.is_on_lan("db")

    drive(tmp_path, scenario)


def test_a_definition_that_does_not_fit_a_lan_is_refused_at_the_start(tmp_path: Path) -> None:
    async def scenario(lab: Lab) -> None:
        lab.config["lab"] = replace(LAB, managed=False)
        for use, said in ((USE, "address: is missing"), (replace(USE, egress=()), "egress: is not possible")):
            member = lab.define("web", use)
            with pytest.raises(InvalidDefinition, match=said):
                lab.allocation.reserve(member)

    drive(tmp_path, scenario)


def test_a_vm_that_the_lan_configures_has_no_address_and_waits_for_no_name_servers(tmp_path: Path) -> None:
    async def scenario(lab: Lab) -> None:
        lab.config["office"] = replace(OFFICE, ipv4=None, dhcp=True)
        member = lab.define("web", NetworkUse("office"))
        assert not lab.allocation.lacks_servers(member)
        connection = await lab.start("web")
        assert (connection.interface.addresses, connection.dns) == ((), ())
        port = lab.host.taps[lab.tap("web")]
        assert (port.is_free4, port.is_free6) == (True, True)
        assert (await lab.networks.get_network("office")).warnings == ()
        (member_shown,) = (await lab.networks.get_network("office")).members
        assert (member_shown.ipv4, member_shown.attached) == (None, True)

    drive(tmp_path, scenario)


def test_a_vm_waits_at_boot_for_a_bridge_that_others_make(tmp_path: Path) -> None:
    async def scenario(lab: Lab) -> None:
        lab.config["office"] = OFFICE
        web = lab.define("web", NetworkUse("office", address=IPv4Address("192.0.2.7")))
        db = lab.define("db")
        assert lab.networks.lacks_lan(web)
        lab.host.problems["office"] = "the bridge br0 does not exist"
        await lab.networks.sync()
        assert lab.networks.lacks_lan(web)
        assert not lab.networks.lacks_lan(db)
        lab.host.problems.clear()
        await lab.networks.sync()
        assert not lab.networks.lacks_lan(web)

    drive(tmp_path, scenario)


def test_a_network_does_not_become_a_lan_under_its_vms(tmp_path: Path) -> None:
    async def scenario(lab: Lab) -> None:
        lab.define("web")
        await lab.start("web")
        lab.config["lab"] = replace(LAB, managed=False)
        await lab.networks.sync()
        assert lab.host.bridges["lab"].managed
        assert lab.networks.is_outdated("web")
        await lab.end("web")
        assert not lab.host.bridges["lab"].managed

    drive(tmp_path, scenario)
