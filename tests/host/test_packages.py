# SPDX-License-Identifier: Apache-2.0
"""The Debian packages on a real system: install, reinstall, remove, purge."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.host.faults import SMALL
from tests.host.lab import PACKAGES, find_packages, start_host
from tests.host.machine import TestHost
from tests.host.recipe import Suite

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


def find_runtime_files(host: TestHost) -> list[str]:
    """What is left in /run of ours."""
    found = host.run(
        [
            "find",
            "/run",
            "(",
            "-name",
            "hypeman*",
            "-o",
            "-lname",
            "hypeman*",
            ")",
            "-not",
            "-path",
            "/run/systemd/*",
        ]
    )
    return found.stdout.splitlines()


def show(host: TestHost, unit: str, name: str) -> str:
    return host.run(["systemctl", "show", "--value", "--property", name, unit]).stdout.strip()


def find_module() -> list[Path]:
    """The package with the module of names, whose scripts edit nsswitch.conf."""
    return [path for path in find_packages() if path.name.startswith("libnss-")]


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
    bare.install(find_module())
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

    assert find_runtime_files(bare) == []

    # what is installed again starts VMs as after boot
    bare.push("/etc/hypemand/vms.d/gone.yaml", DEFINITION + "autostart: true\n")
    bare.install(find_packages())
    # it is Stopped until the daemon has come to it, which is no end that `wait` would wait through
    bare.wait_until_succeeds(["hypemanctl", "wait", "gone", "--timeout", "120"])
    bare.run(["apt-get", "remove", "-y", *PACKAGES], timeout=120)
    assert find_runtime_files(bare) == []

    # state on a disk of its own, with another below it
    bare.shell("""
        mv /var/lib/hypemand /srv/state
        mkdir -p /var/lib/hypemand /srv/volumes; mount --bind /srv/state /var/lib/hypemand
        touch /srv/volumes/one; mount --bind /srv/volumes /var/lib/hypemand/volumes
    """)
    bare.run(["apt-get", "purge", "-y", *PACKAGES], timeout=120)
    assert not bare.run(["dpkg-query", "-W", "hypemand"], check=False).ok
    assert (
        bare.run(["ls", "-A", "/srv/state", "/srv/volumes"]).stdout
        == "/srv/state:\nvolumes\n\n/srv/volumes:\n"
    )
    bare.shell("""
        umount /var/lib/hypemand/volumes /var/lib/hypemand
        rmdir /var/lib/hypemand /srv/state/volumes /srv/state /srv/volumes
    """)
    assert sorted(list_files(bare) - before) == []


# what a host may have otherwise


@pytest.fixture(scope="module")
def other(suite: Suite) -> Iterator[TestHost]:
    """A host with our packages for tests that change what the daemon and its networks stand on; each of them
    restores it."""
    with start_host(suite) as host:
        yield host


@contextmanager
def example(host: TestHost, name: str) -> Iterator[None]:
    """A VM that runs in this block."""
    host.push(f"/etc/hypemand/vms.d/{name}.yaml", DEFINITION)
    host.run(["systemctl", "reload", "hypemand"])
    host.run(["systemctl", "start", f"hypeman@{name}.service"], timeout=120)
    try:
        yield
    finally:
        host.run(["rm", f"/etc/hypemand/vms.d/{name}.yaml"])
        host.run(["systemctl", "reload", "hypemand"])
        host.run(["hypemanctl", "rm", "-f", name])


def test_reinstall_leaves_running_vms_running(other: TestHost) -> None:
    with example(other, "kept"):
        vmm = show(other, "hypeman-vm-kept.service", "MainPID")
        daemon = show(other, "hypemand.service", "MainPID")
        words = ["hypemanctl", "exec", "kept", "--", "sh", "-c", "echo up; exec sleep 1000"]
        with other.popen(words) as session:
            assert session.stdout is not None
            assert session.stdout.readline() == b"up\n"
            other.install(find_packages(), reinstall=True)
            output, errors = session.communicate(timeout=180)

        assert (session.returncode, output) == (125, b"")
        assert b"restarted, for example by an upgrade; the command was terminated" in errors
        assert show(other, "hypemand.service", "MainPID") not in ("0", daemon)
        assert show(other, "hypeman-vm-kept.service", "MainPID") == vmm
        assert show(other, "hypeman-vm-kept.service", "ActiveState") == "active"
        assert show(other, "hypeman@kept.service", "ActiveState") == "active"
        assert "Running" in other.run(["hypemanctl", "status", "kept"]).stdout


def test_removal_of_the_daemon_alone_leaves_no_names(other: TestHost) -> None:
    with example(other, "named"):
        assert "named.hypeman" in other.run(["getent", "hosts", "named"]).stdout
        other.run(["apt-get", "remove", "-y", "hypemand"], timeout=120)
        try:
            assert not other.run(["getent", "ahosts", "named"], check=False).ok
        finally:
            other.install(find_packages())
        other.run(["systemctl", "start", "hypeman@named.service"], timeout=120)
        assert "named.hypeman" in other.run(["getent", "hosts", "named"]).stdout


STATE_DIR = "/etc/hypemand/hypemand.yaml.d/state.yaml"


def test_a_state_directory_elsewhere_is_answered_with_the_drop_in_that_makes_it_work(other: TestHost) -> None:
    other.push(STATE_DIR, "state_dir: /srv/hypemand\n")
    try:
        refused = other.run(["systemctl", "restart", "hypemand"], check=False)
        assert not refused.ok
        assert show(other, "hypemand.service", "ExecMainStatus") == "78"
        checked = other.run(["hypemanctl", "check"], check=False)
        assert checked.code == 8
        (told,) = [line for line in checked.stderr.splitlines() if "state_dir" in line]
        entries = other.journal("-u", "hypemand", "-n", "20")
        assert any(entry["MESSAGE"].endswith(told.partition(": ")[2]) for entry in entries)
        # it is done as it says
        found = re.fullmatch(r".*; (mkdir .*), write two lines to (\S+): (\S+) and (\S+), then: (.*)", told)
        assert found is not None, told
        make, dropin, *lines, restart = found.groups()
        other.run(["sh", "-c", make])
        other.push(dropin, "\n".join(lines) + "\n")
        other.run(["sh", "-ec", f"systemctl reset-failed hypemand; {restart}"])
        done = other.run(
            ["hypemanctl", "run", "--rm", *SMALL, "builtin:busybox", "echo", "works"], timeout=120
        )
        assert done.stdout == "works\n"
        assert other.run(["hypemanctl", "check"], check=False).stderr == ""
        assert other.run(["test", "-d", "/srv/hypemand/vms"]).ok
    finally:
        other.shell(f"rm -rf {STATE_DIR} /etc/systemd/system/hypemand.service.d; systemctl daemon-reload")
        other.run(["systemctl", "reset-failed", "hypemand.service", "hypemand.socket"], check=False)
        other.run(["systemctl", "restart", "hypemand.socket", "hypemand.service"])


NO_IPV6 = """[Service]
TemporaryFileSystem=/proc/sys/net/ipv6:ro
RestrictAddressFamilies=
RestrictAddressFamilies=AF_UNIX AF_INET AF_NETLINK
"""


def test_a_host_without_ipv6_has_the_default_network(other: TestHost) -> None:
    """As far as it can be had here: the services find no IPv6 in /proc/sys, and no sockets of it."""
    for unit in ("hypemand", "hypemand-network"):
        other.push(f"/etc/systemd/system/{unit}.service.d/no-ipv6.conf", NO_IPV6)
    try:
        other.shell("systemctl daemon-reload; systemctl restart hypemand-network hypemand")
        shown = other.run(["hypemanctl", "network", "list"]).stdout
        assert " ready " in shown, shown
        assert "the host has no IPv6 (ipv6.disable=1): the network has IPv4 only" in shown
        script = (
            "ip -o addr show eth0 | grep -v fe80 | awk '{print $3}';"
            " ping -c 1 -W 60 $(ip route | awk '/default/ {print $3}') >/dev/null && echo reached"
        )
        run = other.run(
            [
                "hypemanctl",
                "run",
                "--rm",
                "-m",
                "128M",
                "--disk",
                "64M",
                "builtin:busybox",
                "sh",
                "-c",
                script,
            ],
            check=False,
            timeout=120,
        )
        assert run.stdout == "inet\nreached\n", run.describe()
    finally:
        other.shell(
            "rm -r /etc/systemd/system/hypemand.service.d /etc/systemd/system/hypemand-network.service.d;"
            "systemctl daemon-reload; systemctl restart hypemand-network hypemand"
        )


EXAMPLES = "/usr/share/doc/hypemand/examples"
ALERT = """[Service]
Type=oneshot
ExecStart=/bin/sh -c 'echo "%i" >>/root/alerts'
"""


@pytest.mark.one_release
def test_every_example_starts_and_what_it_names_is_started(other: TestHost) -> None:
    files = map(Path, other.run(["ls", EXAMPLES]).stdout.split())
    names = sorted(file.stem for file in files if file.suffix == ".yaml")
    assert {"hello", "job", "web", "worker@"} <= set(names)
    names = [*(name for name in names if name != "worker@"), "worker-1", "worker-2"]
    other.push("/etc/systemd/system/alert@.service", ALERT)
    other.shell(f"cp {EXAMPLES}/*.yaml /etc/hypemand/vms.d/; systemctl daemon-reload")
    other.shell("cd /etc/hypemand/vms.d; for n in 1 2; do ln -s worker@.yaml worker@$n.yaml; done")
    job = other.pull(f"{EXAMPLES}/job.yaml").decode()
    failing = re.sub(r"(?m)^cmd: .*$", 'cmd: [sh, -c, "exit 3"]', job)
    assert failing != job
    other.push("/etc/hypemand/vms.d/failing.yaml", failing)
    try:
        checked = other.run(["hypemanctl", "check", *names])
        assert (checked.stdout, checked.stderr) == ("", "")
        other.run(["systemctl", "reload", "hypemand"])
        for name in (*names, "failing"):
            started = other.run(["systemctl", "start", f"hypeman@{name}"], check=False, timeout=180)
            assert started.ok or name in ("job", "failing"), started.describe()
        for name in set(names) - {"job"}:
            assert other.run(["hypemanctl", "show", name, "-p", "state", "--value"]).stdout == "Running\n"
        _check_instances(other)
        for name, code in (("job", "0"), ("failing", "3")):
            other.run(["hypemanctl", "wait", name, "--for=Stopped", "--timeout", "120"], timeout=130)
            shown = other.run(["hypemanctl", "show", name, "-p", "exit_code", "--value"]).stdout
            assert shown == f"{code}\n"
        other.wait_until_succeeds(["test", "-s", "/root/alerts"])
        # systemd starts it under the name that %n means
        assert other.pull("/root/alerts").decode() == "hypeman-vm-failing.service\n"
        _check_polkit(other)
    finally:
        other.shell("rm -f /etc/hypemand/vms.d/*.yaml /etc/systemd/system/alert@.service /root/alerts")
        other.run(["systemctl", "reload", "hypemand"])
        other.run(["hypemanctl", "rm", "-f", *names, "failing"])


def _check_instances(other: TestHost) -> None:
    """Each instance of the template has its own text and port, and goes with its link alone."""
    checked = other.run(["hypemanctl", "check", "worker@"])
    assert checked.stdout == "ok       template worker@  defines worker-1, worker-2\n"
    fetch = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1]).read().decode(), end='')"
    for n in ("1", "2"):
        page = other.run(["python3", "-c", fetch, f"http://127.0.0.1:809{n}/"])
        assert page.stdout == f"I am worker {n}\n"
        shown = other.run(["systemctl", "show", f"hypeman-vm-worker-{n}", "-P", "Description"])
        assert shown.stdout == f"Worker {n}\n"
    refused = other.run(["systemctl", "start", "hypeman@worker@1"], check=False)
    assert not refused.ok
    log = other.run(["journalctl", "-u", "hypeman@worker@1", "-o", "cat"]).stdout
    assert "there is no VM 'worker@1'; the VM that worker@1.yaml defines is named worker-1" in log
    other.shell("rm /etc/hypemand/vms.d/worker@1.yaml; systemctl reload hypemand")
    other.run(["hypemanctl", "wait", "worker-1", "--for=Stopped", "--timeout", "120"], timeout=130)
    assert other.run(["hypemanctl", "show", "worker-2", "-p", "state", "--value"]).stdout == "Running\n"


def _check_polkit(other: TestHost) -> None:
    """A member of the group uses systemctl for VMs, once root has turned it on, and for nothing else."""

    def systemctl(user: str, *words: str) -> bool:
        return other.run(["runuser", "-u", user, "--", "systemctl", *words], check=False).ok

    other.run(["useradd", "--groups=hypemand", "member"])
    other.run(["useradd", "stranger"])
    rule = "/etc/polkit-1/rules.d/50-hypemand.rules"
    try:
        assert not systemctl("member", "restart", "hypeman@hello")
        other.run(["ln", "-s", "/usr/share/hypemand/polkit.rules", rule])
        other.wait_until(lambda: systemctl("member", "restart", "hypeman@hello"), "polkit has it")
        assert other.run(["hypemanctl", "show", "hello", "-p", "state", "--value"]).stdout == "Running\n"
        assert not systemctl("stranger", "restart", "hypeman@hello")
        for words in (("restart", "hypemand"), ("stop", "dbus.socket"), ("kill", "hypeman@hello")):
            assert not systemctl("member", *words)
        assert not systemctl("member", "set-property", "--runtime", "hypeman-vm-hello", "MemoryMax=2G")
        assert systemctl("member", "stop", "hypeman-vm-hello")
        assert other.run(["hypemanctl", "show", "hello", "-p", "state", "--value"]).stdout == "Stopped\n"
        # the whole journal is another group's; the console of VMs is this one's
        logs = other.run(["runuser", "-u", "member", "--", "hypemanctl", "logs", "hello"])
        assert "Hello from" in logs.stdout
    finally:
        other.run(["rm", "-f", rule])
        other.run(["userdel", "member"])
        other.run(["userdel", "stranger"])
