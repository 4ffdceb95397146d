# SPDX-License-Identifier: Apache-2.0
"""The ids of VMs of a cluster: the same on each host, and another for each VM."""

from __future__ import annotations

import uuid
from ipaddress import IPv6Interface
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypemand.config.cluster import derive_vm_id
from hypemand.config.host import load_host_config
from hypemand.errors import InvalidDefinition
from hypemand.manager.net.leases import derive_ipv6, derive_mac
from hypemand.manager.vmrecords import is_id


def test_what_follows_from_a_cluster_and_a_name_never_changes() -> None:
    vm_id = derive_vm_id("prod", "web")
    mac = derive_mac(vm_id)
    suffix = derive_ipv6(mac, IPv6Interface("2001:db8::1/64"))
    assert (vm_id, mac, str(suffix)) == (
        "39bf12a3085d43afb977a49fe1eb3e48",
        "02:a4:e0:28:e9:d1",
        "2001:db8::a4:e0ff:fe28:e9d1",
    )


@given(st.tuples(st.text(), st.text()), st.tuples(st.text(), st.text()))
def test_each_vm_has_an_id_of_its_own(one: tuple[str, str], other: tuple[str, str]) -> None:
    if "\0" in "".join(one + other):
        return
    vm_id = derive_vm_id(*one)
    assert is_id(vm_id)
    assert uuid.UUID(vm_id).version == 4
    assert (vm_id == derive_vm_id(*other)) == (one == other)


def test_a_host_says_which_cluster_it_is_of(tmp_path: Path) -> None:
    path = tmp_path / "h.yaml"
    path.write_text("cluster: prod\n")
    assert load_host_config(path, ()).cluster == "prod"
    path.write_text("{}")
    assert load_host_config(path, ()).cluster is None
    path.write_text("cluster: Prod_1\n")
    with pytest.raises(InvalidDefinition, match="a name of 1 to 63 characters of a-z"):
        load_host_config(path, ())
