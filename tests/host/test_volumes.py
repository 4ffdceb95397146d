# SPDX-License-Identifier: Apache-2.0
"""Disks and volumes on a real host: who may have them, what lasts, what comes back to the host."""

import io
import json
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.host.faults import ctl, host_config
from tests.host.machine import TestHost
from tests.host.vms import Vms

pytestmark = pytest.mark.one_release

VOLUMES = "/var/lib/hypemand/volumes"
# Writes a number a line and makes each last, as a database does; tells of the last that does.
COUNTS = """
n=$(tail -n 1 /srv/log 2>/dev/null); n=${n:-0}
echo "found $n"
while :; do n=$((n + 1)); echo $n >>/srv/log; sync; echo "kept $n"; done
"""


@pytest.fixture(autouse=True)
def nothing_is_left(host: TestHost, vms: Vms) -> Iterator[None]:
    """No volume and no helper outlives its test."""
    yield
    vms.remove_all()
    names = ctl(host, "volume", "list", "-q").stdout.split()
    if names:
        ctl(host, "volume", "rm", *names)
    assert host.run(["find", VOLUMES, "-mindepth", "1"]).stdout == ""
    assert "volume-" not in ctl(host, "list", "-q").stdout


def at(volume: str, path: str = "/srv", **keys: Any) -> dict[str, Any]:
    return {"volume": volume, "mount_path": path, **keys}


def create(host: TestHost, *names: str, size: str = "64M") -> None:
    for name in names:
        ctl(host, "volume", "create", f"--size={size}", name)


def inspect(host: TestHost, name: str) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(ctl(host, "volume", "inspect", name).stdout)
    return shown


def check_file_system(host: TestHost, name: str) -> None:
    """Nothing is wrong with it, and there is no journal to replay."""
    disk = f"{VOLUMES}/{inspect(host, name)['id']}/volume.ext4"
    checked = host.run(["e2fsck", "-fn", disk], check=False)
    assert checked.code == 0, checked.describe()


def test_a_volume_outlives_its_vms_and_has_one_writer_or_many_readers(host: TestHost, vms: Vms) -> None:
    create(host, "data")
    vms.run("writer", volumes=[at("data")])
    vms.execute("writer", "sh", "-c", "echo kept >/srv/file && sync")
    vms.define("reader", volumes=[at("data", "/mnt/in", readonly=True)])
    vms.define("other", volumes=[at("data", "/mnt/in", readonly=True)])
    vms.define("without", volumes=[at("data", required=False)])
    for restart in (False, True):
        if restart:
            vms.restart_daemon()
        refused = ctl(host, "start", "reader", check=False)
        assert not refused.ok
        assert "VM writer writes to the volume data" in refused.stderr
    vms.start("without")
    assert vms.execute("without", "ls", "/srv") == ""
    vms.ctl("stop", "writer")
    vms.start("reader", "other")
    assert [vms.execute(name, "cat", "/mnt/in/file") for name in ("reader", "other")] == ["kept\n"] * 2
    assert "Read-only" in ctl(host, "exec", "reader", "--", "touch", "/mnt/in/x", check=False).stderr
    refused = ctl(host, "start", "writer", check=False)
    assert "VM other reads the volume data" in refused.stderr
    attached = {item["instance_name"]: item["running"] for item in inspect(host, "data")["attachments"]}
    assert attached == {"other": True, "reader": True, "without": False, "writer": False}
    kept = ctl(host, "volume", "rm", "data", check=False)
    assert (kept.code, "attached to other, reader, without, writer" in kept.stderr) == (11, True)
    busy = ctl(host, "volume", "resize", "data", "128M", check=False)
    assert (busy.code, "the volume data is in use by the running VM" in busy.stderr) == (11, True)


def test_what_an_overlay_takes_stays_with_its_vm(host: TestHost, vms: Vms) -> None:
    create(host, "base")
    vms.run("maker", volumes=[at("base")])
    vms.execute("maker", "sh", "-c", "echo base >/srv/a; chown 7:8 /srv; chmod 750 /srv; sync")
    vms.ctl("stop", "maker")
    for name in ("one", "two"):
        vms.run(name, volumes=[at("base", overlay=True)])
        vms.execute(name, "sh", "-c", f"echo {name} >>/srv/a")
    vms.ctl("restart", "--wait", "one")
    assert vms.execute("one", "cat", "/srv/a") == "base\none\n"
    assert vms.execute("one", "stat", "-c", "%u:%g %a", "/srv") == "7:8 750\n"
    assert vms.execute("two", "cat", "/srv/a") == "base\ntwo\n"
    vms.ctl("stop", "one", "two")
    vms.start("maker")
    assert vms.execute("maker", "cat", "/srv/a") == "base\n"


def test_the_order_of_volumes_does_not_matter_and_sixteen_are_carried(host: TestHost, vms: Vms) -> None:
    names = [f"v{number:02}" for number in range(17)]
    create(host, *names)
    mounts = [at(name, f"/srv/{name}") for name in names[:16]]
    vms.run("many", volumes=mounts)
    vms.execute("many", "sh", "-c", "for v in /srv/*; do basename $v >$v/name; done; sync")
    vms.ctl("stop", "many")
    vms.define("many", volumes=mounts[::-1])
    vms.start("many")
    told = vms.execute("many", "sh", "-c", "for v in /srv/*; do cat $v/name; done")
    assert told.split() == names[:16]
    vms.write("toomany", volumes=[*mounts, at("v16", "/srv/v16")])
    broken = ctl(host, "check", "/etc/hypemand/vms.d/toomany.yaml", check=False)
    host.run(["rm", "/etc/hypemand/vms.d/toomany.yaml"])
    assert "volumes: has 17 items, more than 16" in broken.stdout + broken.stderr
    assert "toomany.yaml:" in broken.stdout + broken.stderr


def test_what_was_kept_is_there_after_the_vmm_was_killed_at_any_time(host: TestHost, vms: Vms) -> None:
    create(host, "log")
    vms.define("counter", COUNTS, volumes=[at("log")])
    kept = 0
    for moment in (0.0, 0.05, 0.15, 0.4):
        vms.start("counter")
        lines = len(vms.console("counter"))
        host.wait_until(lambda lines=lines: len(vms.console("counter")) > lines + 4)  # type: ignore[misc]
        time.sleep(moment)  # the moment of the kill is what varies
        vms.ctl("kill", "counter")
        told = [int(line.split()[1]) for line in vms.console("counter") if line.startswith("kept ")]
        found = [int(line.split()[1]) for line in vms.console("counter") if line.startswith("found ")]
        assert found[-1] >= kept
        kept = told[-1]
    # a reader cannot replay the journal that the kill has left; the host has done it, as the reader's user
    disk = f"{VOLUMES}/{inspect(host, 'log')['id']}/volume.ext4"
    assert "needs_recovery" in host.run(["dumpe2fs", "-h", disk]).stdout
    vms.run("reader", volumes=[at("log", readonly=True)])
    assert "needs_recovery" not in host.run(["dumpe2fs", "-h", disk]).stdout
    replays = [e for e in host.journal() if e.get("UNIT", "").startswith("hypeman-replay-")]
    assert any("Started" in e["MESSAGE"] for e in replays)
    assert int(vms.execute("reader", "tail", "-n", "1", "/srv/log")) >= kept
    vms.ctl("stop", "reader")
    check_file_system(host, "log")


@pytest.mark.both_releases
def test_a_volume_that_cannot_be_mended_keeps_readers_away_and_says_so(host: TestHost, vms: Vms) -> None:
    create(host, "bad")
    disk = f"{VOLUMES}/{inspect(host, 'bad')['id']}/volume.ext4"
    # as a guest may leave it: with a journal to be replayed, and blocks of no possible size
    host.run(["debugfs", "-w", "-R", "feature +needs_recovery", disk])
    host.shell(f"printf '\\377' | dd of={disk} bs=1 seek={1024 + 0x18} conv=notrunc")
    vms.define("reader", volumes=[at("bad", readonly=True)])
    refused = ctl(host, "start", "--wait", "reader", check=False)
    assert not refused.ok
    assert "cannot be repaired for a read-only VM" in refused.stderr, refused.describe()
    assert "internal error of hypemand" not in refused.stderr
    assert vms.state("reader") == "Stopped"
    units = host.run(["systemctl", "list-units", "--all", "--plain", "-q", "hypeman-replay-*"]).stdout
    assert units == ""


def test_a_disk_that_does_not_persist_is_fresh_at_every_start(host: TestHost, vms: Vms) -> None:
    vms.run("fresh", persistent=False, restart="always", unit={"RestartSec": 0})
    for again in (["restart", "--wait", "fresh"], ["kill", "fresh"]):
        before = vms.show("fresh")["invocation_id"]
        vms.execute("fresh", "sh", "-c", "echo old >/mark; sync")
        vms.ctl(*again)
        host.wait_until(
            lambda before=before: (  # type: ignore[misc]
                (shown := vms.show("fresh"))["state"] == "Running" and shown["invocation_id"] != before
            ),
        )
        assert not ctl(host, "exec", "fresh", "--", "test", "-e", "/mark", check=False).ok


@pytest.mark.both_releases
def test_removed_files_come_back_to_the_host_and_disks_grow(host: TestHost, vms: Vms) -> None:
    create(host, "data", size="256M")
    vms.run("filler", volumes=[at("data")])
    before = inspect(host, "data")["used_bytes"]
    vms.execute("filler", "sh", "-c", "dd if=/dev/zero of=/srv/big bs=1M count=64 && sync")
    assert inspect(host, "data")["used_bytes"] - before > 60 * 2**20
    vms.execute("filler", "sh", "-c", "rm /srv/big; sync")
    host.wait_until(lambda: inspect(host, "data")["used_bytes"] - before < 8 * 2**20, "it is back")
    vms.ctl("stop", "filler")
    ctl(host, "volume", "resize", "data", "512M")
    smaller = ctl(host, "volume", "resize", "data", "128M", check=False)
    assert "cannot shrink" in smaller.stderr
    vms.define("filler", volumes=[at("data")], disk="128M")
    vms.start("filler")
    assert inspect(host, "data")["size_bytes"] == 512 * 2**20
    blocks = [
        int(vms.execute("filler", "df", "-m", path).splitlines()[-1].split()[1]) for path in ("/srv", "/")
    ]
    assert blocks[0] > 400
    assert blocks[1] > 100
    vms.ctl("stop", "filler")
    check_file_system(host, "data")


@contextmanager
def archive(host: TestHost, *members: tuple[tarfile.TarInfo, bytes], mode: str = "w:gz") -> Iterator[str]:
    """An archive in the host."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=mode) as tar:  # type: ignore[call-overload]
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    host.push("/srv/archive.tar", data.getvalue())
    try:
        yield "/srv/archive.tar"
    finally:
        host.run(["rm", "-f", "/srv/archive.tar", "/srv/out.tar"])


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", **keys: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    info.mode, info.uid, info.gid = keys.get("mode", 0o644), keys.get("uid", 0), keys.get("gid", 0)
    return info


def test_an_archive_goes_in_and_comes_out_again(host: TestHost, vms: Vms) -> None:
    members = (
        (member(".", tarfile.DIRTYPE, mode=0o711, uid=70, gid=71), b""),
        (member("./d", tarfile.DIRTYPE, mode=0o1777), b""),
        (member("./d/owned", mode=0o4640, uid=1234, gid=2345), b"content\n"),
        (member("./d/link", tarfile.SYMTYPE, "owned"), b""),
    )
    with archive(host, *members) as path:
        ctl(host, "volume", "import", "--size=64M", "--tag=from=tar", "filled", path)
        assert inspect(host, "filled")["tags"] == {"from": "tar"}
        ctl(host, "volume", "export", "filled", "/srv/out.tar")
        with tarfile.open(fileobj=io.BytesIO(host.pull("/srv/out.tar"))) as tar:
            found = {info.name.lstrip("./"): info for info in tar if "lost+found" not in info.name}
            owned = found["d/owned"]
            assert (owned.mode, owned.uid, owned.gid) == (0o4640, 1234, 2345)
            assert tar.extractfile(owned).read() == b"content\n"  # type: ignore[union-attr]
            assert (found["d"].mode, found["d/link"].linkname) == (0o1777, "owned")
    vms.run("user", volumes=[at("filled")])
    assert vms.execute("user", "stat", "-c", "%u:%g %a", "/srv") == "70:71 711\n"
    refused = ctl(host, "volume", "export", "filled", "/srv/out.tar", check=False)
    assert "VM user writes to the volume filled" in refused.stderr
    assert not host.run(["test", "-e", "/srv/out.tar"], check=False).ok


@pytest.mark.parametrize(
    ("members", "words"),
    [
        (((member("../out"), b"x"),), ".."),
        (((member("l", tarfile.SYMTYPE, "/etc"), b""), (member("l/passwd"), b"x")), "l"),
        (((member("big"), bytes(range(256)) * (24 * 2**12)),), "space"),
        (((member("h", tarfile.LNKTYPE, "/etc/passwd"), b""),), "hard link"),
    ],
    ids=["dots", "through a link", "too large", "hard link"],
)
def test_an_archive_that_cannot_be_taken_leaves_nothing(
    host: TestHost, members: tuple[tuple[tarfile.TarInfo, bytes], ...], words: str
) -> None:
    with archive(host, *members) as path:
        refused = ctl(host, "volume", "import", "--size=16M", "bad", path, check=False)
    assert not refused.ok
    assert words in refused.stderr, refused.describe()
    assert "internal error of hypemand" not in refused.stderr
    assert not ctl(host, "volume", "inspect", "bad", check=False).ok


def test_an_import_that_the_daemon_does_not_survive_leaves_nothing(host: TestHost) -> None:
    script = "(tar -c -C / etc/hypemand; sleep 60) | hypemanctl volume import --size=64M half -"
    host.run(["systemd-run", "--unit=importing", "--collect", "sh", "-c", script])
    try:
        host.wait_until(lambda: "volume-" in ctl(host, "list", "-q").stdout, "the helper is there")
        host.run(["systemctl", "kill", "--signal=KILL", "--kill-whom=main", "hypemand.service"])
        host.wait_until(lambda: ctl(host, "list", "-q", check=False).ok, "the daemon is back")
        host.wait_until(lambda: ctl(host, "volume", "list", "-q").stdout == "", "nothing is left")
        warnings = host.journal("--unit=hypemand", "--priority=err")
        assert not any("cannot remove the volume" in e["MESSAGE"] for e in warnings)
    finally:
        host.run(["systemctl", "stop", "importing.service"], check=False)


def test_every_byte_is_shown_and_the_host_promises_no_more_than_it_has(host: TestHost, vms: Vms) -> None:
    create(host, "data")
    vms.define("web", volumes=[at("data")])
    space = json.loads(ctl(host, "df", "--json").stdout)
    used = {kind["kind"]: kind["used_bytes"] for kind in space["kinds"]}
    script = "du -sk /var/lib/hypemand /run/hypemand | cut -f1"
    real = sum(int(line) for line in host.shell(script).stdout.split()) * 1024
    assert abs(sum(used.values()) - real) <= 64 * 1024
    assert used["volumes"] == inspect(host, "data")["used_bytes"]
    assert "volumes" in ctl(host, "df").stdout
    total = space["filesystem"]["total_bytes"]
    with host_config(host, disk={"overcommit": 0.1}):
        size = f"{total // 2**30}G"
        refused = ctl(host, "volume", "create", f"--size={size}", "huge", check=False)
        assert "the volume huge needs" in refused.stderr
        assert "at an overcommit of 0.1" in refused.stderr
        vms.define("web", disk=size)
        assert "of disk space, but" in ctl(host, "start", "web", check=False).stderr
    with host_config(host, disk={"reserve": "64T"}):
        assert "are reserved" in ctl(host, "volume", "create", "--size=16M", "x", check=False).stderr


def test_a_vm_that_is_removed_leaves_its_volumes(host: TestHost, vms: Vms) -> None:
    create(host, "data")
    vms.run("web", volumes=[at("data")])
    vms.remove("web")
    assert inspect(host, "data")["attachments"] == []
    missing = at("nowhere")
    vms.define("lost", volumes=[missing])
    refused = ctl(host, "start", "lost", check=False)
    assert "does not exist; hypemanctl volume create" in refused.stderr
