# SPDX-License-Identifier: Apache-2.0
"""docs/operations.md, command by command: one VM is backed up, restored, cloned, watched, and moved away."""

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import HostFactory
from tests.host.command import Result
from tests.host.faults import ctl
from tests.host.machine import TestHost
from tests.host.recipe import Suite

pytestmark = pytest.mark.one_release

PAGE = Path(__file__).parents[2] / "docs/operations.md"
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SECTION = re.compile(r"^## (.*)\n", re.MULTILINE)
_LANGUAGES = {"console", "yaml", "ini"}


@dataclass(frozen=True)
class Block:
    """A fenced block of the page: a file, or commands."""

    path: str
    text: str

    @property
    def commands(self) -> list[str]:
        assert not self.path, self.path
        lines = self.text.splitlines()
        assert all(line.startswith("# ") for line in lines), self.text
        return [line.removeprefix("# ") for line in lines]


def read_page() -> dict[str, list[Block]]:
    """The blocks of each section by its heading; "" for those before the first."""
    parts = _SECTION.split(PAGE.read_text())
    sections = dict(zip(["", *parts[1::2]], parts[0::2], strict=True))
    assert all(kind in _LANGUAGES for text in sections.values() for kind, _ in _FENCE.findall(text))
    return {heading: [_parse(*found) for found in _FENCE.findall(text)] for heading, text in sections.items()}


def _parse(kind: str, text: str) -> Block:
    if kind == "console":
        return Block("", text)
    head, _, rest = text.partition("\n")
    return Block(head.removeprefix("# "), rest)


SECTIONS = read_page()


def follow(host: TestHost, block: Block) -> list[Result]:
    """Do what a block says. /bin/sh of an administrator has no -e: each command is looked at."""
    if block.path:
        host.push(block.path, block.text)
        return []
    return [host.shell(command, timeout=300) for command in block.commands]


def follow_all(host: TestHost, heading: str) -> list[Result]:
    return [result for block in SECTIONS[heading] for result in follow(host, block)]


def read_log(host: TestHost, starts: int, name: str = "web") -> list[str]:
    """What the VM and those that had its data before have written to its volume at their starts: so many."""

    def look() -> list[str] | None:
        lines = ctl(host, "exec", name, "--", "cat", "/srv/log").stdout.splitlines()
        return lines if len(lines) >= starts else None

    return host.wait_until(look)


def show(host: TestHost, name: str = "web") -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(ctl(host, "show", "--json", name).stdout)
    return shown


def clean(host: TestHost) -> None:
    """Nothing of the page is left on a host, however its tests have ended."""
    host.run(["systemctl", "disable", "--now", "hypeman@web"], check=False)
    host.shell("rm -f /etc/hypemand/vms.d/*.yaml /etc/systemd/system/vm-failed@.service /var/backups/web*")
    host.run(["systemctl", "daemon-reload"])
    ctl(host, "reload", check=False)
    for remove, names in (
        (["rm", "-f"], ctl(host, "list", "-q").stdout.split()),
        (["volume", "rm"], ctl(host, "volume", "list", "-q").stdout.split()),
    ):
        if names:
            ctl(host, *remove, *names)
    assert (
        host.run(["find", "/var/lib/hypemand/vms", "/var/lib/hypemand/volumes", "-mindepth", "1"]).stdout
        == ""
    )


@pytest.fixture(scope="module")
def web(host: TestHost) -> Iterator[TestHost]:
    """The host with the VM that the page uses."""
    try:
        follow_all(host, "")
        yield host
    finally:
        clean(host)


def test_no_section_is_left_out() -> None:
    assert list(SECTIONS) == [
        "", "Back up and restore", "Clone", "Rename", "Move to another host", "Notification on failure",
        "Start at boot", "Monitoring",
    ]  # fmt: skip
    assert all(SECTIONS.values())


def test_a_vm_is_backed_up_and_restored(web: TestHost) -> None:
    backup, copied, restored = SECTIONS["Back up and restore"]
    before = show(web)
    ctl(web, "exec", "web", "--", "sh", "-c", "echo mine >/etc/mine")
    assert read_log(web, 1) == ["started on web"]
    follow(web, backup)
    assert show(web)["state"] == "Running"
    size = int(web.run(["stat", "-c", "%s", "/var/backups/web.vm"]).stdout)
    assert size < 64 * 2**20  # of 1 GiB and 64 MiB
    follow(web, copied)
    assert "log" in web.run(["tar", "-tf", "/var/backups/web-srv.tar"]).stdout
    follow(web, restored)
    after = show(web)
    assert after["state"] == "Running"
    for key in ("id", "name", "origin", "definition"):
        assert after[key] == before[key], key
    for key in ("mac", "ip", "ip6"):
        assert after["network"][key] == before["network"][key]
    assert ctl(web, "exec", "web", "--", "cat", "/etc/mine").stdout == "mine\n"
    # its first start and the one after the restore, not the one after the backup
    assert read_log(web, 2) == ["started on web"] * 2


def test_a_vm_is_cloned(web: TestHost) -> None:
    follow_all(web, "Clone")
    try:
        assert read_log(web, 3, "web2") == [*["started on web"] * 2, "started on web2"]
        assert read_log(web, 3) == ["started on web"] * 3
        assert show(web)["id"] != show(web, "web2")["id"]
        macs = [shown["network"]["mac"] for shown in (show(web), show(web, "web2"))]
        assert macs[0] != macs[1]
    finally:
        ctl(web, "rm", "-f", "web2")
        ctl(web, "volume", "rm", "data2")


def test_a_vm_is_renamed(web: TestHost) -> None:
    before = show(web)
    follow_all(web, "Rename")
    assert read_log(web, 4, "shop") == [*["started on web"] * 3, "started on shop"]
    after = show(web, "shop")
    assert [after[key] for key in ("id", "state", "origin")] == [before["id"], "Running", "file"]
    for key in ("mac", "ip", "ip6"):
        assert after["network"][key] == before["network"][key]
    assert ctl(web, "exec", "shop", "--", "cat", "/etc/mine").stdout == "mine\n"
    assert len(json.loads(ctl(web, "history", "--json", "shop").stdout)) > 1
    assert "shop" in web.run(["getent", "hosts", "shop.hypeman"]).stdout
    assert not web.run(["getent", "hosts", "web.hypeman"], check=False).ok
    # and back, with the old unit enabled
    web.run(["systemctl", "stop", "hypeman@shop"])
    web.shell("mv /etc/hypemand/vms.d/shop.yaml /etc/hypemand/web.yaml; systemctl reload hypemand")
    told = ctl(web, "rename", "shop", "web").stderr
    assert "systemctl disable hypeman@shop.service; systemctl enable hypeman@web.service" in told
    web.shell("mv /etc/hypemand/web.yaml /etc/hypemand/vms.d/web.yaml; systemctl reload hypemand")
    web.run(["systemctl", "disable", "hypeman@shop"])
    web.run(["systemctl", "enable", "--now", "hypeman@web"])
    assert read_log(web, 5)[-1] == "started on web"
    assert ctl(web, "list", "-q").stdout.split() == ["web"]


def test_a_daemon_that_dies_in_an_import_leaves_nothing_of_it(web: TestHost) -> None:
    """The archive has come but for its end; the same one is imported by the next daemon."""
    folders = ["find", "/var/lib/hypemand", "-path", "*/records", "-prune", "-o", "-type", "d", "-print"]
    before = sorted(web.run(folders).stdout.splitlines())
    size = int(web.run(["stat", "-c", "%s", "/var/backups/web.vm"]).stdout)
    web.shell("rm -f /root/slow; mkfifo /root/slow")
    importing = "hypemanctl vm import --name web3 --volume data=data3 /root/slow"
    for command in (
        f"{importing} && echo 0 >/root/status || echo 1 >/root/status",
        f"(head -c {size - 100_000}; exec sleep 301) </var/backups/web.vm >/root/slow",
    ):
        web.shell(f"({command}) >>/root/told 2>&1 </dev/null &")
    staged = web.wait_until(
        lambda: [line for line in web.run(folders).stdout.splitlines() if line not in before]
    )
    assert staged
    # a boot's notes are written at most once a second: the next daemon knows what is in them
    notes = "/var/lib/hypemand/vms/web/boot.json"
    web.wait_until(lambda: '"running"' in web.run(["cat", notes]).stdout)
    web.run(["systemctl", "kill", "--kill-whom=main", "--signal=KILL", "hypemand"])
    web.shell("pkill -f '[s]leep 301'; rm /root/slow")
    assert web.wait_until(lambda: web.run(["cat", "/root/status"], check=False).stdout) != "0\n"
    web.wait_until(lambda: sorted(web.run(folders).stdout.splitlines()) == before)
    assert ctl(web, "list", "-q").stdout.split() == ["web"]
    ctl(web, "vm", "import", "--name", "web3", "--volume", "data=data3", "/var/backups/web.vm")
    ctl(web, "rm", "web3")
    ctl(web, "volume", "rm", "data3")


def test_a_failure_is_reported(web: TestHost) -> None:
    follow_all(web, "Notification on failure")
    journal = ["journalctl", "--no-pager", "-o", "cat", "-t", "vm-failed"]
    told = web.wait_until(lambda: "no input" in web.run(journal, check=False).stdout)
    assert told
    report = web.run(journal).stdout
    assert "exited with code 3" in report, report
    web.shell("rm /etc/hypemand/vms.d/job.yaml; systemctl reload hypemand")
    ctl(web, "rm", "-f", "job")
    web.run(["systemctl", "reset-failed"])


def test_a_vm_is_started_at_boot(web: TestHost) -> None:
    assert follow_all(web, "Start at boot")[-1].stdout == "enabled\n"


def test_vms_are_monitored(web: TestHost) -> None:
    checks, figures, journal = SECTIONS["Monitoring"]
    active, answers, failed, unknown = follow(web, checks)
    assert active.stdout == "active\n"
    assert answers.stdout == "web\n"
    assert (failed.stdout, unknown.stdout) == ("", "")
    listed, top, _space, version = [json.loads(result.stdout) for result in follow(web, figures)]
    assert listed[0]["ready_ms"] > 0
    assert "web" in json.dumps(top)
    assert "slow_turns" in json.dumps(version)
    changes, errors = follow(web, journal)
    assert "Initializing" in changes.stdout
    assert "Running" in changes.stdout
    assert errors.ok


def test_a_vm_moves_to_a_host_of_the_other_release(
    web: TestHost, suite: Suite, fresh_host: HostFactory
) -> None:
    """With an image that the other host does not have."""
    new = fresh_host(suite=next(other for other in Suite if other is not suite))
    ctl(web, "image", "export", "builtin:busybox", "/root/app.tar")
    ctl(web, "image", "import", "app", "/root/app.tar")
    web.shell("sed -i 's/builtin:busybox/app/' /etc/hypemand/vms.d/web.yaml; systemctl reload hypemand")
    before, log = show(web), read_log(web, 5)
    leave, arrive, remove = SECTIONS["Move to another host"]
    for command in leave.commands:
        if not command.startswith("scp "):
            web.shell(command, timeout=300)
            continue
        _, source, target = shlex.split(command)
        new.push(target.partition(":")[2], web.pull(source), 0o600)
    follow(new, arrive)
    after = show(new)
    assert [after[key] for key in ("state", "id", "image", "origin")] == [
        "Running",
        before["id"],
        "app",
        "file",
    ]
    assert after["network"]["mac"] == before["network"]["mac"]
    assert read_log(new, 6) == [*log, "started on web"]
    follow(web, remove)
    assert ctl(web, "list", "-q").stdout == ""
    ctl(web, "image", "rm", "app")
