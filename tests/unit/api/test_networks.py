# SPDX-License-Identifier: Apache-2.0
"""Networks over HTTP: of the host, and what an instance has of one."""

from dataclasses import replace
from pathlib import Path

import pytest

from hypemand.model.networks import OPEN_GROUP
from hypemand.model.state import State
from tests.unit.api.fakenetworks import PLACE, make_network
from tests.unit.api.harness import Api, drive


def test_networks_are_listed_and_shown(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        assert (await api.ask("GET", "/networks")).json == []
        api.networks.networks["lab"] = make_network("lab", problem="the bridge lab0 is not ours")
        api.networks.networks["dmz"] = make_network("dmz", ipv6=None, warnings=("firewalld drops it",))
        listed = (await api.ask("GET", "/networks")).json
        assert [network["name"] for network in listed] == ["dmz", "lab"]
        assert (listed[0]["problem"], listed[0]["warnings"], listed[0]["ipv6"]) == (
            None, ["firewalld drops it"], None,
        )  # fmt: skip
        shown = (await api.ask("GET", "/networks/lab")).json
        assert shown == listed[1]
        assert (shown["ipv4"], shown["host_ports"], shown["dns"]) == (
            "10.7.0.1/24",
            ["53/udp"],
            ["192.0.2.1"],
        )
        assert (shown["connections"], shown["egress"], shown["link_local"]) == (
            4096, ["192.0.2.0/24 443"], False,
        )  # fmt: skip
        assert shown["problem"] == "the bridge lab0 is not ours"
        (member,) = shown["members"]
        assert (member["instance_name"], member["ip"], member["attached"]) == ("web", "10.7.0.2", True)
        for name in ("none", "a%2Fb", "%00"):
            assert (await api.ask("GET", f"/networks/{name}")).status == 404
        assert (await api.ask("GET", "/networks?x=1")).status == 400

    drive(tmp_path, scenario)


@pytest.mark.parametrize(
    ("group", "told"), [("db", ("db", False)), (OPEN_GROUP, (None, False)), (None, (None, True))]
)
def test_it_is_told_whom_a_vm_reaches(
    tmp_path: Path, group: str | None, told: tuple[str | None, bool]
) -> None:
    async def scenario(api: Api) -> None:
        place = replace(PLACE, group=group)
        api.manager.add("web", state=State.RUNNING, network=place)
        info = make_network("lab")
        members = tuple(replace(m, group=group, publish=place.publish) for m in info.members)
        api.networks.networks["lab"] = replace(info, members=members)
        network = (await api.ask("GET", "/instances/web")).json["network"]
        (member,) = (await api.ask("GET", "/networks/lab")).json["members"]
        for shown in (network, member):
            assert (shown["group"], shown["isolated"]) == told
            assert shown["publish"] == ["8080:80", "127.0.0.1:53:53/udp"]

    drive(tmp_path, scenario)


def test_an_instance_tells_its_place_in_the_clients_words(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        api.manager.add("plain")
        api.manager.add("web", state=State.RUNNING, network=PLACE)
        assert (await api.ask("GET", "/instances/plain")).json["network"]["enabled"] is False
        told = (await api.ask("GET", "/instances/web")).json["network"]
        assert told == {
            "enabled": True,
            "name": "lab",
            "ip": "10.7.0.2",
            "mac": "52:54:00:12:34:56",
            "bandwidth_download": "1Gbps",
            "bandwidth_upload": "20Mbps",
            "ip6": "fd00:7::5054:ff:fe12:3456",
            "group": "db",
            "isolated": False,
            "publish": ["8080:80", "127.0.0.1:53:53/udp"],
            "interface": "hv61200",
            "counters": {
                "sent_bytes": 100,
                "sent_packets": 1,
                "received_bytes": 200,
                "received_packets": 2,
                "dropped_packets": 3,
            },
        }

    drive(tmp_path, scenario)
