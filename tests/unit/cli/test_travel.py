# SPDX-License-Identifier: Apache-2.0
"""What check tells of VMs that would be other ones on another host of the cluster."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

import pytest

from hypemand.cli.travel import describe_differences, describe_other_ids
from hypemand.config.cluster import derive_vm_id
from hypemand.config.nethost import derive_default_ipv6, read_machine_id
from hypemand.config.network import NetworkConfig
from hypemand.config.pools import PoolConfig
from hypemand.config.vmdef import parse_definition
from hypemand.model.answers.instance import Instance

LAN = NetworkConfig("lan", "br0", IPv4Interface("192.0.2.1/24"), None, managed=False)
DIGEST = f"registry.example/app@sha256:{'0' * 64}"
SAME = {"image": DIGEST, "persistent": False, "network": {"name": "lan", "address": "192.0.2.7"}}


POOLS = {"san": PoolConfig(Path("/srv/san"), shared=True), "fast": PoolConfig(Path("/srv/fast"))}


def describe(lan: NetworkConfig = LAN, **keys: Any) -> list[str]:
    return list(describe_differences({"web": parse_definition("web", SAME | keys)}, {"lan": lan}, POOLS))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, []),
        ({"image": "builtin:busybox"}, []),
        ({"network": "none"}, []),
        ({"persistent": True}, ["the disk is on this host only"]),
        ({"image": "registry.example/app:v2"}, ["the image can have another content"]),
        ({"image": "dir:/srv/app"}, ["the image is made of a path of this host"]),
        ({"network": "lan"}, ["no fixed address"]),
        ({"volumes": [{"volume": "san/data", "mount_path": "/a"}]}, []),
        (
            {
                "volumes": [
                    {"volume": "data", "mount_path": "/a"},
                    {"volume": "fast/data", "mount_path": "/b"},
                    {"source": "/srv/www", "mount_path": "/c"},
                ]
            },
            [
                "the volume data is on this host only",
                "the volume fast/data is on this host only",
                "the directory /srv/www is read from each host",
            ],
        ),
        (
            {"network": "lan", "image": "app", "persistent": True},
            ["the disk", "the image", "no fixed address"],
        ),
    ],
)
def test_each_difference_is_told_with_its_vms(keys: dict[str, Any], said: list[str]) -> None:
    found = describe(**keys)
    assert len(found) == len(said)
    for text, beginning in zip(found, said, strict=True):
        assert text.startswith(beginning)
        assert text.endswith(": web")


def test_addresses_that_the_lan_gives_go_with_the_mac_address() -> None:
    assert describe(replace(LAN, dhcp=True), network="lan") == []


def test_a_subnet_that_is_made_of_the_machine_id_is_told() -> None:
    own = derive_default_ipv6(read_machine_id())
    if own is None:
        pytest.skip("this machine has no id")
    assert describe(replace(LAN, ipv6=own))[0].startswith(
        "the IPv6 subnet of network lan is of this host only"
    )


def test_many_vms_are_counted() -> None:
    definition = parse_definition("web", SAME | {"persistent": True})
    (text,) = describe_differences({f"vm{n:02}": definition for n in range(12)}, {"lan": LAN}, POOLS)
    assert text.endswith(": vm00, vm01, vm02, vm03, vm04, vm05, vm06, vm07, vm08, vm09 and 2 more")


def test_vms_that_were_there_before_the_cluster_are_told() -> None:
    vms = [Instance(id=derive_vm_id("prod", "web"), name="web"), Instance(id="0" * 32, name="old")]
    (text,) = describe_other_ids(vms, "prod", ("web", "old"))
    assert text.endswith(": old")
    assert list(describe_other_ids(vms, "prod", ("web",))) == []
