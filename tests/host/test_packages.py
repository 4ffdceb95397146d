# SPDX-License-Identifier: Apache-2.0
"""The Debian packages on a real system: install, reinstall, remove, purge."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.host.lab import PACKAGES, find_packages
from tests.host.machine import TestHost

DEFINITION = "image: builtin:busybox\nmemory: 128 MiB\ncmd: [sleep, infinity]\n"

# What other packages write by themselves, and what Debian policy lets a purge leave: users, groups, logs.
NOT_OURS = (
    "/etc/group", "/etc/group-", "/etc/gshadow", "/etc/gshadow-", "/etc/passwd-", "/etc/shadow-",
    "/var/cache/", "/var/lib/apt/", "/var/lib/dpkg/", "/var/lib/systemd/", "/var/log/",
)  # fmt: skip


def list_files(host: TestHost) -> set[str]:
    """Every path on the host's disk that a package could be blamed for."""
    found = host.run(
        ["find", "/", "/run", "-xdev", "-not", "-path", "/run/systemd/*", "-not", "-path", "/tmp/*"]
    )
    return {path for path in found.stdout.splitlines() if not path.startswith(NOT_OURS)}


def show_network(host: TestHost) -> list[str]:
    """Interfaces, their addresses, routes and rules of the host."""
    shown = [
        host.run(["ip", "-json", "address", "show"]).stdout,
        host.run(["ip", "route", "show"]).stdout,
        host.run(["ip", "-6", "route", "show"]).stdout,
        host.run(["nft", "list", "ruleset"]).stdout,
    ]
    return [re.sub(r'"(valid|preferred)_life_time":[0-9]+', "", text) for text in shown]


def show(host: TestHost, unit: str, name: str) -> str:
    return host.run(["systemctl", "show", "--value", "--property", name, unit]).stdout.strip()


def find_module() -> list[Path]:
    """The package with the module of names, whose scripts edit nsswitch.conf."""
    return [path for path in find_packages() if path.name.startswith("libnss-")]


@pytest.fixture
def own(fresh_host: Callable[..., TestHost]) -> TestHost:
    """A host of the test's own with our packages, which were installed as `bare` would have them."""
    return fresh_host()


@pytest.fixture
def bare(fresh_host: Callable[..., TestHost]) -> TestHost:
    return fresh_host(installed=False)


def test_an_installed_daemon_runs_and_is_enabled(host: TestHost) -> None:
    for unit in ("hypemand.service", "hypemand.socket"):
        assert show(host, unit, "ActiveState") == "active"
        assert show(host, unit, "UnitFileState") == "enabled"
    assert host.run(["stat", "-c", "%a %G", "/run/hypemand/api.sock"]).stdout == "660 hypemand\n"
    assert host.run(["dpkg", "--audit"]).stdout == ""
    assert host.run(["dpkg", "--verify", *PACKAGES]).stdout == ""


def test_manuals_catalog_schema_and_completion_are_where_their_readers_look(host: TestHost) -> None:
    files = host.run(["dpkg", "--listfiles", *PACKAGES]).stdout.splitlines()
    for page in (
        "1/hypemanctl.1",
        "5/hypemand.vm.5",
        "5/hypemand.yaml.5",
        "8/hypemand.8",
        "8/hypeman@.service.8",
    ):
        assert f"/usr/share/man/man{page}.gz" in files
    assert "/usr/share/bash-completion/completions/hypemanctl" in files
    assert "/usr/share/zsh/vendor-completions/_hypemanctl" in files
    assert {"/usr/share/hypemand/vm.schema.json", "/usr/share/hypemand/host.schema.json"} <= set(files)
    catalog = host.pull("/usr/lib/systemd/catalog/hypemand.catalog").decode()
    ids = [line.split()[1] for line in catalog.splitlines() if line.startswith("-- ") and len(line) > 30]
    assert ids
    assert host.run(["journalctl", "--dump-catalog", *ids]).stdout.count("Subject:") == len(ids)


def find_services(nsswitch: bytes, database: str) -> list[str]:
    """Who is asked, in this order (nsswitch.conf(5))."""
    (line,) = (line for line in nsswitch.decode().splitlines() if line.startswith(f"{database}:"))
    return line.split()[1:]


def test_names_are_asked_for_behind_files_and_before_the_dns(bare: TestHost) -> None:
    before = bare.pull("/etc/nsswitch.conf")
    bare.install(find_packages())
    with_module = bare.pull("/etc/nsswitch.conf")
    services = find_services(with_module, "hosts")
    assert services.index("files") < services.index("hypemand") < services.index("dns")
    bare.install(find_module(), reinstall=True)
    assert bare.pull("/etc/nsswitch.conf") == with_module
    # its place is the administrator's
    bare.run(["sed", "-i", "s/^hosts:.*/hosts: hypemand files dns # mine/", "/etc/nsswitch.conf"])
    bare.install(find_module(), reinstall=True)
    assert find_services(bare.pull("/etc/nsswitch.conf"), "hosts")[:3] == ["hypemand", "files", "dns"]
    bare.push("/etc/nsswitch.conf", with_module.decode())
    bare.run(["apt-get", "remove", "-y", "libnss-hypemand"], timeout=120)
    assert bare.pull("/etc/nsswitch.conf") == before


def test_reinstall_leaves_running_vms_running(own: TestHost) -> None:
    own.push("/etc/hypemand/vms.d/kept.yaml", DEFINITION)
    own.run(["systemctl", "reload", "hypemand"])
    own.run(["systemctl", "start", "hypeman@kept.service"], timeout=120)
    vmm, daemon = show(own, "hypeman-vm-kept.service", "MainPID"), show(own, "hypemand.service", "MainPID")

    with own.popen(["hypemanctl", "exec", "kept", "--", "sh", "-c", "echo up; exec sleep 1000"]) as session:
        assert session.stdout is not None
        assert session.stdout.readline() == b"up\n"
        own.install(find_packages(), reinstall=True)
        output, errors = session.communicate(timeout=60)

    assert (session.returncode, output) == (125, b"")
    assert b"restarted, for example by an upgrade; the command was terminated" in errors
    assert show(own, "hypemand.service", "MainPID") not in ("0", daemon)
    assert show(own, "hypeman-vm-kept.service", "MainPID") == vmm
    assert show(own, "hypeman-vm-kept.service", "ActiveState") == "active"
    assert show(own, "hypeman@kept.service", "ActiveState") == "active"
    assert "Running" in own.run(["hypemanctl", "status", "kept"]).stdout


def test_removal_of_the_daemon_alone_leaves_no_names(own: TestHost) -> None:
    own.push("/etc/hypemand/vms.d/named.yaml", DEFINITION)
    own.run(["systemctl", "reload", "hypemand"])
    own.run(["systemctl", "start", "hypeman@named.service"], timeout=120)
    assert "named.hypeman" in own.run(["getent", "hosts", "named"]).stdout
    own.run(["apt-get", "remove", "-y", "hypemand"], timeout=120)
    assert not own.run(["getent", "ahosts", "named"], check=False).ok
    own.install(find_packages())
    own.run(["systemctl", "start", "hypeman@named.service"], timeout=120)
    assert "named.hypeman" in own.run(["getent", "hosts", "named"]).stdout


def test_removal_stops_the_vms_and_purge_leaves_nothing(bare: TestHost) -> None:
    before, network, nsswitch = list_files(bare), show_network(bare), bare.pull("/etc/nsswitch.conf")
    bare.install(find_packages())
    bare.push("/etc/hypemand/vms.d/gone.yaml", DEFINITION + 'network: {publish: ["8080:80"]}\n')
    bare.run(["systemctl", "reload", "hypemand"])
    bare.run(["systemctl", "enable", "--now", "hypeman@gone.service"], timeout=120)
    vmm = show(bare, "hypeman-vm-gone.service", "MainPID")
    assert bare.run(["test", "-d", f"/proc/{vmm}"]).ok
    assert "gone.hypeman" in bare.run(["getent", "hosts", "gone"]).stdout
    assert "hypeman0" in bare.run(["ip", "link", "show"]).stdout
    assert "table inet hypemand" in bare.run(["nft", "list", "ruleset"]).stdout

    bare.run(["apt-get", "remove", "-y", *PACKAGES], timeout=120)
    assert not bare.run(["test", "-d", f"/proc/{vmm}"], check=False).ok
    assert bare.run(["systemctl", "list-units", "--plain", "--no-legend", "hypeman*"]).stdout == ""
    assert bare.run(["test", "-e", "/etc/hypemand/vms.d/gone.yaml"]).ok
    assert show_network(bare) == network
    assert bare.pull("/etc/nsswitch.conf") == nsswitch

    bare.run(["apt-get", "purge", "-y", *PACKAGES], timeout=120)
    assert sorted(list_files(bare) - before) == []
