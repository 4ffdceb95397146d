# SPDX-License-Identifier: Apache-2.0
"""VMs are found by name: on their host, and by the VMs of their group."""

from collections.abc import Mapping
from typing import Any

import pytest

from tests.host.faults import host_config
from tests.host.machine import TestHost
from tests.host.vms import Vms

pytestmark = pytest.mark.one_release

# tells everybody who connects how it is called; /bin/hostname is no program of its own there
SERVES = "echo up; exec nc -ll -p 80 -e hostname"
ASK = """
import socket, sys
with socket.create_connection((sys.argv[1], 80), timeout=60) as peer:
    print(peer.recv(100).decode(), end="")
"""
BEGIN, END = "# BEGIN hypemand", "# END hypemand"
DEFAULT: dict[str, Any] = {"network": "default"}


def group(name: str) -> dict[str, Any]:
    return {"network": {"group": name}}


def ask(host: TestHost, name: str) -> str:
    """What a VM's program says to a connection by this name, once it listens."""
    return host.wait_until_succeeds(["/usr/bin/python3", "-c", ASK, name]).stdout


def getent(host: TestHost, *arguments: str) -> list[list[str]]:
    """What the C library of the host finds: lines of words."""
    lines = host.run(["getent", *arguments], check=False).stdout.splitlines()
    return [line.split() for line in lines]


def addresses(vms: Vms, name: str) -> list[str]:
    network: Mapping[str, Any] = vms.show(name)["network"]
    return [network["ip"], network["ip6"]]


def read_block(vms: Vms, name: str) -> list[str]:
    """What the host has told a guest: the lines of its block, which stands there once."""
    lines = vms.execute(name, "cat", "/etc/hosts").splitlines()
    assert lines.count(BEGIN) == lines.count(END) == 1
    return lines[lines.index(BEGIN) + 1 : lines.index(END)]


def lines_of(vms: Vms, *names: str) -> list[str]:
    return [f"{address}\t{name} {name}.hypeman" for name in names for address in addresses(vms, name)]


def wait_told(vms: Vms, name: str, *known: str) -> None:
    """Wait until a guest knows itself and these."""
    wanted = lines_of(vms, name, *known)
    vms.host.wait_until(lambda: read_block(vms, name) == wanted, f"{name} knows {known}")


def inode(vms: Vms, path: str, *, guest: str = "") -> str:
    command = ["stat", "-c", "%i", path]
    return vms.execute(guest, *command) if guest else vms.host.run(command).stdout


def test_the_host_finds_a_vm_by_name_while_it_runs(vms: Vms) -> None:
    host = vms.host
    name = vms.define("named", SERVES, **DEFAULT)
    assert getent(host, "ahosts", name) == []
    vms.start(name)
    ip, ip6 = addresses(vms, name)
    known = [name, f"{name}.hypeman"]
    assert getent(host, "hosts", name) == [[ip6, *known]]
    assert getent(host, "hosts", f"{name.upper()}.hypeman") == [[ip6, *known]]
    assert {words[0] for words in getent(host, "ahosts", f"{name}.hypeman")} == {ip, ip6}
    assert {words[0] for words in getent(host, "ahostsv4", name)} == {ip}
    assert getent(host, "hosts", ip) == [[ip, *known]]
    assert getent(host, "hosts", ip6) == [[ip6, *known]]
    assert getent(host, "hosts", "nobody") == []
    assert ask(host, name) == f"{name}\n"
    # for everybody
    assert host.run(["stat", "-c", "%a %U", "/run/hypemand/hosts"]).stdout == "644 root\n"
    user = host.run(["setpriv", "--reuid=65534", "--clear-groups", "getent", "hosts", name])
    assert user.stdout.split() == [ip6, *known]

    before = inode(vms, "/run/hypemand/hosts")
    vms.restart_daemon()
    assert vms.state(name) == "Running"
    with vms.without_daemon():
        assert getent(host, "hosts", name) == [[ip6, *known]]
    assert inode(vms, "/run/hypemand/hosts") == before
    for end in ("stop", "kill"):
        vms.ctl(end, name)
        host.wait_until(lambda: getent(host, "ahosts", name) == [], f"no name after {end}")
        vms.start(name)
        assert {words[0] for words in getent(host, "ahosts", name)} == {ip, ip6}


def test_the_names_of_other_services_go_on(vms: Vms) -> None:
    """A name of /etc/hosts is asked for before, and nsswitch.conf still has all that was in it."""
    host = vms.host
    vms.run("localhost", SERVES, **DEFAULT)
    assert {words[0] for words in getent(host, "ahosts", "localhost")} <= {"127.0.0.1", "::1"}
    assert ask(host, "localhost.hypeman") == "localhost\n"


def test_a_guest_has_its_name_its_address_and_its_name_servers(vms: Vms) -> None:
    host = vms.host
    networks = {"lan": {"bridge": "lan0", "ipv4": "10.98.3.1/24", "ipv6": "none", "dns": ["10.53.0.53"]}}
    with host_config(host, networks=networks):
        name = vms.run("own", network="lan")
        ip = vms.show(name)["network"]["ip"]
        assert vms.execute(name, "hostname") == f"{name}\n"
        assert vms.execute(name, "cat", "/etc/resolv.conf") == "nameserver 10.53.0.53\n"
        assert vms.execute(name, "cat", "/etc/hosts").splitlines() == [
            "127.0.0.1\tlocalhost",
            "::1\tlocalhost ip6-localhost ip6-loopback",
            BEGIN,
            f"{ip}\t{name} {name}.hypeman",
            END,
        ]
        assert f"PING {name} ({ip})" in vms.execute(name, "ping", "-c", "1", name)
        # without a network it is at home at itself
        vms.define(name, network="none")
        vms.ctl("restart", "--wait", name)
        assert vms.execute(name, "cat", "/etc/hosts").splitlines()[2:] == [f"127.0.1.1\t{name}"]
        vms.remove(name)


def test_vms_of_a_group_find_and_reach_each_other(vms: Vms) -> None:
    first = vms.run("first", **group("g"))
    vms.execute(
        first, "sh", "-c", "echo '192.0.2.1 mine' >>/etc/hosts; chmod 640 /etc/hosts; chown 7:8 /etc/hosts"
    )
    alone = inode(vms, "/etc/hosts", guest=first)
    outsider, lone = vms.run("outsider", **group("h")), vms.run("lone", **DEFAULT)
    assert inode(vms, "/etc/hosts", guest=first) == alone
    second = vms.run("second", **group("g"))
    assert read_block(vms, second) == lines_of(vms, second, first)
    wait_told(vms, first, second)
    for here, there in ((first, second), (second, first), (first, f"{second}.hypeman")):
        assert "1 packets received" in vms.execute(here, "ping", "-c", "1", "-W", "60", there)
    # what is not ours stays, and as it was
    assert vms.execute(first, "stat", "-c", "%a %u %g", "/etc/hosts") == "640 7 8\n"
    assert vms.execute(first, "cat", "/etc/hosts").endswith(f"{END}\n192.0.2.1 mine\n")
    for other in (outsider, lone):
        assert read_block(vms, other) == lines_of(vms, other)
        refused = vms.ctl("exec", other, "--", "ping", "-c", "1", "-W", "2", second, check=False)
        assert "bad address" in refused.stderr
        ip = addresses(vms, second)[0]
        assert not vms.ctl("exec", other, "--", "ping", "-c", "1", "-W", "2", ip, check=False).ok
    # one that has stopped keeps its address and its name; one that is gone does not
    vms.ctl("stop", second)
    assert read_block(vms, first) == lines_of(vms, first, second)
    vms.remove(second)
    wait_told(vms, first)


def test_a_vm_that_systemd_restarts_alone_knows_its_group_again(vms: Vms) -> None:
    """Its config disk is that of its start, when it was the only one."""
    first = vms.run("again", restart="always", unit={"RestartSec": "100ms"}, **group("g"))
    second = vms.run("later", **group("g"))
    wait_told(vms, first, second)
    with vms.without_daemon():
        vms.host.run(["kill", "-KILL", vms.unit(first, "MainPID")["MainPID"]])
        vms.wait_console(first, "up", 2)
    vms.wait(first, "Running")
    wait_told(vms, first, second)
    vms.host.run(["kill", "-KILL", vms.unit(first, "MainPID")["MainPID"]])
    vms.wait_console(first, "up", 3)
    vms.wait(first, "Running")
    wait_told(vms, first, second)


def test_what_a_group_has_become_while_no_daemon_was_there_is_told(vms: Vms) -> None:
    first, second = vms.run("stays", **group("g")), vms.run("goes", **group("g"))
    wait_told(vms, first, second)
    vms.execute(first, "sed", "-i", "/goes/d", "/etc/hosts")
    before = inode(vms, "/etc/hosts", guest=second)
    vms.restart_daemon()
    wait_told(vms, first, second)
    assert inode(vms, "/etc/hosts", guest=second) == before


def test_a_guest_that_does_not_take_names_harms_nobody(vms: Vms) -> None:
    broken = vms.run("broken", **group("g"))
    vms.execute(broken, "sh", "-c", "rm /etc/hosts; mkfifo /etc/hosts")
    vms.ctl("volume", "create", "--size", "64M", "frozen")
    mount = {"volume": "frozen", "mount_path": "/frozen"}
    stuck = vms.run("stuck", volumes=[mount], **group("g"))
    move = "cp /etc/hosts /frozen/hosts && ln -sf /frozen/hosts /etc/hosts"
    vms.execute(stuck, "sh", "-c", f"{move} && sync && fsfreeze --freeze /frozen")
    well = vms.run("well", **group("g"))
    wait_told(vms, well, broken, stuck)
    begin = "cannot update the names of its group:"
    for words in (
        f"VM broken: {begin} /etc/hosts is not a file but a fifo",
        f"VM stuck: {begin} its agent took more than 15 s",
    ):
        vms.host.wait_until(lambda words=words: words in said(vms), words)  # type: ignore[misc]
    assert vms.state(broken) == vms.state(stuck) == "Running"
    vms.execute(stuck, "fsfreeze", "--unfreeze", "/frozen")
    vms.remove("stuck")
    vms.ctl("volume", "rm", "frozen")


def said(vms: Vms) -> list[str]:
    """What the daemon has written to the journal."""
    return [entry.get("MESSAGE", "") for entry in vms.host.journal("_SYSTEMD_UNIT=hypemand.service")]
