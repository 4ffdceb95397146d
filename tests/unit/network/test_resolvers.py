# SPDX-License-Identifier: Apache-2.0
"""The name servers that VMs are told of."""

from ipaddress import ip_address
from pathlib import Path

from hypemand.network.resolvers import MAX_SERVERS, choose_servers, find_host_servers, parse_servers

TEXT = """\
# nameserver 192.0.2.9
search example.org
nameserver 127.0.0.53
nameserver   192.0.2.1   # office
nameserver ::1
nameserver fe80::1%eth0
nameserver nonsense
nameserver
nameserver 2001:db8::53
"""


def test_only_what_another_host_can_reach() -> None:
    assert [str(server) for server in parse_servers(TEXT)] == ["192.0.2.1", "2001:db8::53"]


def test_a_file_that_names_only_the_hosts_own_resolver_is_passed_over(tmp_path: Path) -> None:
    stub, behind = tmp_path / "resolv.conf", tmp_path / "behind.conf"
    stub.write_text("nameserver 127.0.0.53\n")
    paths = (tmp_path / "missing", stub, behind)
    assert find_host_servers(paths) == ()
    behind.write_text("nameserver 192.0.2.7\n")
    assert find_host_servers(paths) == (ip_address("192.0.2.7"),)


def test_a_vm_is_told_what_it_can_reach_and_takes() -> None:
    servers = [ip_address(word) for word in ("192.0.2.1", "2001:db8::53", "192.0.2.1", "192.0.2.2")]
    both = choose_servers(servers, ipv4=True, ipv6=True)
    assert list(map(str, both)) == ["192.0.2.1", "2001:db8::53", "192.0.2.2"]
    assert list(map(str, choose_servers(servers, ipv4=False, ipv6=True))) == ["2001:db8::53"]
    many = [ip_address(f"192.0.2.{number}") for number in range(1, 20)]
    assert len(choose_servers(many, ipv4=True, ipv6=False)) == MAX_SERVERS
