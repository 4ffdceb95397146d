# SPDX-License-Identifier: Apache-2.0
"""Networks over HTTP: of the host, and what an instance has of one."""

from dataclasses import replace
from pathlib import Path

import pytest

from hypemand.api.networks import network_json
from hypemand.api.render import instance_json
from hypemand.model.networks import OPEN_GROUP
from hypemand.model.state import State
from tests.unit.api.harness import Api, Json, description, drive
from tests.unit.api.values import PLACE, make_network, make_view


def test_networks_are_listed_and_shown(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        await api.host.put("web", State.RUNNING, network="default")
        api.host.network.problems["default"] = "the bridge lab0 is not ours"
        await api.host.parts.networks.sync()
        (listed,) = (await api.ask("GET", "/networks")).json
        assert listed == (await api.ask("GET", "/networks/default")).json
        assert (listed["name"], listed["bridge"], listed["ipv4"]) == ("default", "lab0", "10.7.0.1/24")
        assert listed["problem"] == "the bridge lab0 is not ours"
        (member,) = listed["members"]
        assert (member["instance_name"], member["attached"]) == ("web", True)
        assert member["ip"] == (await api.ask("GET", "/instances/web")).json["network"]["ip"]
        for name in ("none", "a%2Fb", "%00"):
            assert (await api.ask("GET", f"/networks/{name}")).status == 404
        assert (await api.ask("GET", "/networks?x=1")).status == 400

    drive(tmp_path, scenario)


def show(**changes: object) -> Json:
    """A network, as it is described."""
    shown = network_json(make_network("lab", **changes))
    description().check_schema("HostNetwork", shown)
    return shown


def test_all_of_a_network_is_told() -> None:
    shown = show(problem="the bridge lab0 is not ours")
    assert (shown["ipv4"], shown["host_ports"], shown["dns"]) == ("10.7.0.1/24", ["53/udp"], ["192.0.2.1"])
    assert (shown["connections"], shown["egress"], shown["link_local"]) == (
        4096, ["192.0.2.0/24 443"], False,
    )  # fmt: skip
    assert shown["problem"] == "the bridge lab0 is not ours"
    (member,) = shown["members"]
    assert (member["instance_name"], member["ip"], member["attached"]) == ("web", "10.7.0.2", True)
    dropped = show(ipv6=None, warnings=("firewalld drops it",))
    assert (dropped["problem"], dropped["warnings"], dropped["ipv6"]) == (None, ["firewalld drops it"], None)


@pytest.mark.parametrize(
    ("group", "told"), [("db", ("db", False)), (OPEN_GROUP, (None, False)), (None, (None, True))]
)
def test_it_is_told_whom_a_vm_reaches(group: str | None, told: tuple[str | None, bool]) -> None:
    place = replace(PLACE, group=group)
    network = instance_json(make_view(state=State.RUNNING, network=place))["network"]
    members = tuple(
        replace(member, group=group, publish=place.publish) for member in make_network("lab").members
    )
    (member,) = show(members=members)["members"]
    for shown in (network, member):
        assert (shown["group"], shown["isolated"]) == told
        assert shown["publish"] == ["8080:80", "127.0.0.1:53:53/udp"]


def test_an_instance_tells_its_place_in_the_clients_words() -> None:
    assert instance_json(make_view())["network"]["enabled"] is False
    instance = instance_json(make_view(state=State.RUNNING, network=PLACE))
    description().check_schema("Instance", instance)
    told = instance["network"]
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
