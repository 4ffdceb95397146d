# SPDX-License-Identifier: Apache-2.0
"""hypemanctl cp, shell, top and terminals, in a guest that runs."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator
from typing import Any

import pytest

from tests.host.faults import Vm, ctl, define_vm
from tests.host.machine import TestHost
from tests.host.test_cli import on_terminal

pytestmark = pytest.mark.one_release

MAKE_TREE = """
rm -rf /root/tree /root/out; mkdir -p /root/tree/sub; cd /root/tree
head -c 5000000 /dev/urandom >big; chown 12:13 big; chmod 4751 big; touch -d @1600000000.25 big
truncate -s 100M holes; printf end >>holes; ln -s ../big sub/link; mkfifo pipe
printf x >'sub/name with space'; chmod 2750 sub
"""


@pytest.fixture(scope="module")
def web(host: TestHost) -> Iterator[Vm]:
    """A VM that runs, with a tree on its host."""
    host.shell(MAKE_TREE)
    with define_vm(host, "web", cmd=["sleep", "infinity"], disk="512M") as vm:
        vm.ctl("start", "--wait")
        yield vm


def test_a_tree_goes_in_and_comes_back_the_same(host: TestHost, web: Vm) -> None:
    ctl(host, "cp", "-a", "/root/tree", "web:/root/in")
    shown = web.exec("stat", "-c", "%a %u %g %s %Y", "/root/in/big").stdout.split()
    assert shown == ["4751", "12", "13", "5000000", "1600000000"]
    assert web.exec("readlink", "/root/in/sub/link").stdout == "../big\n"
    used = int(web.exec("stat", "-c", "%b", "/root/in/holes").stdout) * 512
    assert used < 10_000_000
    ctl(host, "cp", "-a", "web:/root/in", "/root/out")
    host.run(["diff", "--recursive", "--no-dereference", "/root/tree/sub", "/root/out/sub"])
    host.run(["cmp", "/root/tree/big", "/root/out/big"])
    host.run(["cmp", "/root/tree/holes", "/root/out/holes"])
    listing = "cd {}; find . -printf '%p %y %m %U %G %T@ %l\\n' | sort"
    assert host.shell(listing.format("/root/tree")).stdout == host.shell(listing.format("/root/out")).stdout
    assert int(host.run(["stat", "-c", "%b", "/root/out/holes"]).stdout) * 512 < 10_000_000


def test_without_a_nothing_keeps_rights(host: TestHost, web: Vm) -> None:
    ctl(host, "cp", "/root/tree/big", "web:/root/plain")
    assert web.exec("stat", "-c", "%a %u", "/root/plain").stdout == "751 0\n"
    web.exec("sh", "-c", "printf x >/root/s; chown 5 /root/s; chmod 6755 /root/s")
    ctl(host, "cp", "web:/root/s", "/root/s")
    assert host.run(["stat", "-c", "%a %u", "/root/s"]).stdout == "755 0\n"


def test_a_guest_cannot_write_elsewhere_on_the_host(host: TestHost, web: Vm) -> None:
    host.shell("rm -rf /root/trap /root/aim; mkdir /root/trap /root/aim")
    web.exec("sh", "-c", "rm -rf /root/evil; ln -s /root/aim /root/evil")
    ctl(host, "cp", "web:/root/evil", "/root/trap")
    web.exec("sh", "-c", "rm /root/evil; mkdir /root/evil; echo x >/root/evil/x")
    refused = ctl(host, "cp", "web:/root/evil", "/root/trap", check=False)
    assert refused.code == 1
    assert "it is not followed" in refused.stderr
    assert host.run(["ls", "/root/aim"]).stdout == ""


def test_a_whole_guest_is_copied_without_the_kernels_own_file_systems(host: TestHost, web: Vm) -> None:
    listed = host.shell("hypemanctl cp web:/ - >/root/all.tar && tar -tf /root/all.tar; rm /root/all.tar")
    names = {name.removeprefix("./").strip("/") for name in listed.stdout.splitlines()}
    assert {"proc", "sys", "bin/busybox"} <= names
    assert [name for name in names if name.startswith(("proc/", "sys/"))] == []


def test_tar_streams_both_ways(host: TestHost, web: Vm) -> None:
    web.exec("mkdir", "-p", "/root/stream")
    host.shell("tar -C /root/tree -c sub | hypemanctl cp - web:/root/stream")
    assert web.exec("readlink", "/root/stream/sub/link").stdout == "../big\n"
    archive = ctl(host, "cp", "web:/root/stream/sub", "-").raw
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        assert sorted(tar.getnames()) == ["sub", "sub/link", "sub/name with space"]


def test_what_cannot_be_is_refused_in_words(host: TestHost, web: Vm) -> None:
    for words, text in (
        (["web:/nothing", "/root/x"], "there is no web:/nothing"),
        (["/root/tree/big", "web:/no/where"], "there is no directory /no in the guest"),
        (["/root/tree", "web:/etc/passwd"], "web:/etc/passwd is not a directory"),
        (["/nowhere", "web:/root"], "No such file or directory"),
    ):
        refused = ctl(host, "cp", *words, check=False)
        assert not refused.ok
        assert text in refused.stderr


def test_a_full_disk_is_told_and_leaves_no_half_file(host: TestHost, web: Vm) -> None:
    host.shell("head -c 700000000 /dev/urandom >/root/huge")
    try:
        refused = ctl(host, "cp", "/root/huge", "web:/root/huge", check=False, timeout=300)
        assert not refused.ok
        assert "No space left" in refused.stderr
        left = web.exec("sh", "-c", "ls -A /root | grep -c -e huge -e hypeman-", check=False)
        assert left.stdout == "0\n"
    finally:
        host.run(["rm", "-f", "/root/huge"])


def test_an_interrupt_ends_a_copy_and_leaves_no_half_file(host: TestHost, web: Vm) -> None:
    host.shell("head -c 300000000 /dev/urandom >/root/large")
    with on_terminal(host, "exec hypemanctl cp /root/large web:/root/large") as terminal:
        terminal.expect(b" of 286.1M ")
        terminal.type(b"\x03")
        assert terminal.end() == 130
    assert b"%" in terminal.seen
    listing = ["sh", "-c", "ls -A /root | grep -c -e large -e hypeman-"]
    host.wait_until(lambda: web.exec(*listing, check=False).stdout == "0\n")
    host.run(["rm", "/root/large"])


def test_many_copies_at_once_stay_whole(host: TestHost, web: Vm) -> None:
    script = "for i in 1 2 3 4; do hypemanctl cp /root/tree/big web:/root/copy$i & done; wait"
    host.shell(script, timeout=120)
    sums = web.exec("sh", "-c", "sha256sum /root/copy? | cut -d' ' -f1").stdout.split()
    wanted = hashlib.sha256((host.root / "root/tree/big").read_bytes()).hexdigest()
    assert sums == [wanted] * 4


def test_exec_on_a_terminal(host: TestHost, web: Vm) -> None:
    command = "stty rows 33 cols 99; hypemanctl exec -it web -- sh -c 'stty size; cat'; stty size; stty -a"
    with on_terminal(host, command) as terminal:
        terminal.expect(b"33 99\r\n")
        terminal.type(b"hello\r")
        terminal.expect(b"hello\r\nhello\r\n")
        terminal.type(b"\x03")
        terminal.expect(b" icanon ")
        terminal.end()
    assert b" echo " in terminal.seen


def test_a_shell_is_a_login_shell_in_the_users_home(host: TestHost, web: Vm) -> None:
    with on_terminal(host, "exec hypemanctl shell web") as terminal:
        terminal.type(b"echo shell=$SHELL home=$HOME; tty; exit 5\r")
        code = terminal.end()
    assert b"shell=/bin/sh home=/root" in terminal.seen
    assert b"/dev/pts/" in terminal.seen
    assert code == 5
    piped = ctl(host, "shell", "web", input="pwd; id -u; exit 4\n", check=False)
    assert (piped.stdout, piped.code) == ("/root\n0\n", 4)


def test_top_sees_who_is_busy(host: TestHost, web: Vm) -> None:
    with define_vm(host, "busy", cmd=["sh", "-c", "while :; do :; done"]) as busy:
        busy.ctl("start", "--wait")

        def look() -> list[dict[str, Any]] | None:
            rows: list[dict[str, Any]] = json.loads(ctl(host, "top", "--json", "-d", "2s").stdout)
            # as much as others leave it, which may be little for a while
            return rows if rows[0]["cpu_percent"] > 10 else None

        rows = host.wait_until(look, "a share of a CPU")
    assert [row["name"] for row in rows] == ["busy", "web"]
    assert rows[1]["cpu_percent"] < rows[0]["cpu_percent"]
    assert all(row["memory_current"] > 10_000_000 for row in rows)
    assert os.sep not in rows[0]["memory"]
