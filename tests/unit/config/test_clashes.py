# SPDX-License-Identifier: Apache-2.0
"""What two definitions ask for and only one VM can have is found before the second is started."""

from __future__ import annotations

import pytest

from hypemand.config.clashes import find_clashes
from hypemand.config.vmdef import parse_definition


def clashes(**networks: object) -> list[str]:
    definitions = {
        name: parse_definition(name, {"image": "x", "network": network}) for name, network in networks.items()
    }
    return [str(clash) for clash in find_clashes(definitions, "host1.example.org")]


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("address", "10.87.0.9", "address 10.87.0.9"),
        ("address6", "fd00::9", "address fd00::9"),
        ("mac", "02:00:00:00:00:09", "MAC address 02:00:00:00:00:09"),
    ],
)
def test_an_address_of_two_is_named_with_both(key: str, value: str, what: str) -> None:
    one = {key: value}
    assert clashes(web=one, db=one, shop="default") == [
        f"db and web have the same {what} of network default: only one of them can run"
    ]
    assert clashes(web=one, db=one, app=one)[0].startswith("app, db and web have ")
    assert clashes(web=one, db={**one, "name": "lab"}) == [], "another network has addresses of its own"


def test_published_ports_clash_as_they_do_at_a_start() -> None:
    assert clashes(
        web={"publish": ["8080-8082:80-82", "53:53/udp"]}, db={"publish": ["8081:1", "8082:2"]}
    ) == ["db and web publish the same port of this host (8081/tcp, 8082/tcp): only one of them can run"]
    assert clashes(web={"publish": ["53:53/udp"]}, db={"publish": ["53:53/tcp"]}) == []
    assert clashes(web={"publish": ["127.0.0.1:80:80"]}, db={"publish": ["127.0.0.2:80:80"]}) == []
    assert len(clashes(web={"publish": ["127.0.0.1:80:80"]}, db={"publish": ["80:80"]})) == 1
    same = {"publish": ["80:80", "443:443"]}
    assert clashes(a=same, b=same, c=same) == [
        "a, b and c publish the same port of this host (80/tcp, 443/tcp): only one of them can run"
    ]
    local = clashes(a={"publish": ["127.0.0.1:80:80"]}, b={"publish": ["127.0.0.2:80:80"]}, c=same)
    assert [clash.partition(" publish")[0] for clash in local] == ["a and c", "b and c"]


def test_a_vm_that_is_called_as_the_host_is_named() -> None:
    assert clashes(host1="none", web="none") == [
        "host1 has the name of this host, which knows the VM as host1.hypeman only"
    ]
