# SPDX-License-Identifier: Apache-2.0
"""What stands in the way of a standby, a restore and a fork: it ends with the reason, and nothing is lost."""

from __future__ import annotations

import json
import re
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

COUNTS = 'i=0; while :; do i=$((i+1)); echo "count $i"; sleep 0.2; done'
FOLDER = "/var/lib/hypemand/vms/{}"
IMAGE = "/usr/lib/hypemand/images/busybox"
PORT = 18099
TRIES = 5
LISTENS = (
    "import socket, time; s = socket.create_server(('0.0.0.0', %d)); print('up', flush=True); time.sleep(600)"
)
# what is done to a saved VM, and what a restore says then
SPOILS = {
    "cd standby && truncate --size=-4096 memory": "is damaged, or was changed",
    "cd standby && touch memory": "is damaged, or was changed",
    "cd standby && printf changed | dd of=state bs=1 seek=5000 conv=notrunc status=none": "is damaged",
    """sed -i 's/"version": 1/"version": 99/' standby/snapshot.json""": "version is not 1",
    r"""sed -i 's/"vm_id": "[0-9a-f]*"/"vm_id": "'$(printf '0%.0s' $(seq 32))'"/' standby/snapshot.json""": (
        "it was saved of another VM"
    ),
    "rm standby/state": "standby/state cannot be read",
    "touch disk.ext4": "disk.ext4 was changed or removed",
}


def counted(vms: Vms, name: str) -> list[int]:
    return [int(number) for number in re.findall("count ([0-9]+)", "\n".join(vms.console(name)))]


def check_goes_on(vms: Vms, name: str, boot: str) -> None:
    """It is in the same boot, and nothing was done twice, or left out, as far as the console tells."""
    assert vms.show(name)["boot_id"] == boot
    at = counted(vms, name)[-1]
    vms.host.wait_until(lambda: counted(vms, name)[-1] > at)
    numbers = counted(vms, name)
    assert numbers == list(range(1, len(numbers) + 1))


def begin_archive(name: str, size: int, count: int) -> bytes:
    """An archive up to so many bytes of a file of that size."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf() + bytes(count)


def refuse(vms: Vms, name: str) -> str:
    """What a restore says that fails. It is in Standby as before."""
    refused = vms.ctl("restore", name, check=False)
    assert refused.code != 0, refused.describe()
    shown = vms.show(name)
    assert (shown["state"], shown["has_snapshot"]) == ("Standby", True)
    assert vms.unit(name, "ActiveState")["ActiveState"] in ("inactive", "failed")
    return refused.stderr


@contextmanager
def kept(host: TestHost, name: str) -> Iterator[None]:
    """The files of the VM are at the end of this block what they were before it."""
    folder = FOLDER.format(name)
    host.shell(
        f"rm -rf /srv/kept; cp -a --sparse=always {folder} /srv/kept; touch -r {folder}/disk.ext4 /srv/mark"
    )
    try:
        yield
    finally:
        host.shell(f"""
            rm -rf {folder}/standby; cp -a --sparse=always /srv/kept/standby {folder}/standby
            touch -r /srv/mark {folder}/disk.ext4; rm -rf /srv/kept
        """)


@pytest.fixture(scope="module")
def saved(host: TestHost) -> Iterator[tuple[Vms, str, str]]:
    """A VM in Standby that has a volume and a published port; its boot id."""
    vms = Vms(host)
    ctl(host, "volume", "create", "--size=16M", "standby-data")
    try:
        name = vms.run(
            "saved",
            COUNTS,
            network={"name": "default", "publish": [f"{PORT}:80"]},
            volumes=[{"volume": "standby-data", "mount_path": "/data"}],
        )
        boot = vms.show(name)["boot_id"]
        vms.wait_console(name, "count 3")
        vms.ctl("standby", name)
        yield vms, name, boot
    finally:
        vms.remove_all()
        ctl(host, "volume", "rm", "standby-data")


def test_what_cannot_be_restored_is_refused_with_the_reason(
    host: TestHost, saved: tuple[Vms, str, str]
) -> None:
    vms, name, _boot = saved
    for spoil, words in SPOILS.items():
        with kept(host, name):
            host.shell(f"cd {FOLDER.format(name)} && {spoil}")
            # a daemon that comes later reads it anew
            vms.restart_daemon()
            said = refuse(vms, name)
            assert words in said, spoil
            assert f"hypemanctl start --cold {name}" in said, spoil


def test_what_is_taken_or_gone_meanwhile_is_named(host: TestHost, saved: tuple[Vms, str, str]) -> None:
    vms, name, boot = saved
    with host.popen(["python3", "-c", LISTENS % PORT]) as listener:
        assert listener.stdout is not None
        listener.stdout.readline()
        assert f"{PORT}" in refuse(vms, name)
        listener.terminate()
    host.run(["pkill", "-f", "create_server"], check=False)
    with host_config(host, memory={"reserve": "1T"}):
        assert "memory" in refuse(vms, name)
    (disk,) = host.shell("ls /var/lib/hypemand/volumes/*/*.ext4").stdout.split()
    host.run(["mv", disk, f"{disk}.away"])
    assert "standby-data" in refuse(vms, name) or disk in refuse(vms, name)
    host.run(["mv", f"{disk}.away", disk])
    host.run(["mv", IMAGE, f"{IMAGE}.away"])
    try:
        assert f"{IMAGE}/rootfs.erofs was changed or removed" in refuse(vms, name)
    finally:
        host.run(["mv", f"{IMAGE}.away", IMAGE])
    # its address stays its own
    address = vms.show(name)["network"]["ip"]
    other = vms.define("wants-it", network={"name": "default", "address": address})
    refused = vms.ctl("start", other, check=False)
    assert refused.code != 0
    assert address in refused.stderr
    assert name in refused.stderr
    for used in (["volume", "rm", "standby-data"], ["fork", name, "copy"]):
        refused = ctl(host, *used, check=False)
        assert refused.code != 0, used
        assert "standby-data" in refused.stderr
    vms.ctl("restore", name)
    vms.wait(name, "Running")
    check_goes_on(vms, name, boot)


def test_a_command_and_a_copy_end_with_words_and_a_standby_twice_is_one(saved: tuple[Vms, str, str]) -> None:
    vms, name, boot = saved
    vms.ctl("start", name)
    vms.wait(name, "Running")
    with (
        vms.host.popen(["hypemanctl", "exec", name, "--", "sleep", "600"]) as command,
        vms.host.popen(
            ["sh", "-c", f"cat /dev/zero | hypemanctl exec -i {name} -- sh -c 'cat >/dev/null'"]
        ) as fed,
        vms.host.popen(["hypemanctl", "cp", "-", f"{name}:/run"]) as copy,
    ):
        assert copy.stdin is not None
        copy.stdin.write(begin_archive("copied", 20_000_000, 4_000_000))
        copy.stdin.flush()

        def run() -> bool:
            shown = vms.execute(name, "sh", "-c", "ps -o args; ls -A /run")
            # a file has another name until it is whole
            return "sleep 600" in shown and "\ncat\n" in shown and "\n.hypeman-" in shown

        vms.host.wait_until(run, "all three run")
        with vms.host.popen(["hypemanctl", "standby", name]) as first:
            second = vms.ctl("standby", name, check=False)
            first.communicate(timeout=180)
        assert first.returncode == 0
        assert second.ok or "standby" in second.stderr.lower(), second.describe()
        assert vms.state(name) == "Standby"
        assert vms.ctl("standby", name).ok
        for client in (command, fed, copy):
            _said, words = client.communicate(timeout=180)
            assert client.returncode != 0
            assert b"standby" in words.lower(), words
    vms.ctl("restore", name)
    vms.wait(name, "Running")
    check_goes_on(vms, name, boot)


def test_a_vm_that_boots_is_not_put_away(vms: Vms) -> None:
    name = vms.define("boots", ready={"exec": ["false"]})
    vms.ctl("start", name)
    vms.host.wait_until(lambda: vms.show(name)["status_text"].startswith("Initializing: program started"))
    refused = vms.ctl("standby", name, check=False)
    assert refused.code != 0
    assert "Initializing" in refused.stderr
    assert vms.state(name) == "Initializing"
    assert vms.host.shell(f"ls -d {FOLDER.format(name)}/standby* || true").stdout == ""


def test_a_disk_that_is_full_leaves_a_vm_that_runs_on(host: TestHost, vms: Vms) -> None:
    with vms.without_daemon():
        host.shell("""
            mkdir /srv/tight; mount -t tmpfs -o size=24M,mode=711 tight /srv/tight
            for place in vms snapshots; do
                mkdir -m 711 -p /srv/tight/$place /var/lib/hypemand/$place
                mount --bind /srv/tight/$place /var/lib/hypemand/$place
            done
        """)
    try:
        with host_config(host, disk={"reserve": "0"}):
            name = vms.run("no-room", COUNTS)
            boot = vms.show(name)["boot_id"]
            vms.wait_console(name, "count 3")
            for order in (["standby", name], ["snapshot", "create", name]):
                refused = vms.ctl(*order, check=False)
                assert refused.code != 0, order
                assert "no space left" in refused.stderr
                vms.wait(name, "Running")
                assert host.shell(f"ls {FOLDER.format(name)}").stdout.split().count("standby.new") == 0
                assert host.run(["ls", "-A", "/var/lib/hypemand/snapshots"]).stdout == ""
                check_goes_on(vms, name, boot)
            vms.remove_all()
    finally:
        vms.remove_all()
        with vms.without_daemon():
            host.shell(
                "umount /var/lib/hypemand/vms /var/lib/hypemand/snapshots /srv/tight; rmdir /srv/tight"
            )


def test_a_source_that_is_deleted_and_a_vmm_that_is_killed_meanwhile(host: TestHost, vms: Vms) -> None:
    """A fork is whole, or is not there; a save whose VMM dies is the end of that run."""
    name = vms.run("source", COUNTS)
    vms.wait_console(name, "count 3")
    with host.popen(["hypemanctl", "fork", "--from-running", name, "copy"]) as fork:
        time.sleep(0.3)
        vms.remove(name)
        fork.communicate(timeout=180)
    found = {vm["name"]: vm for vm in json.loads(ctl(host, "list", "--json").stdout)}
    if fork.returncode == 0:
        # of a source that ran, or of one that had been stopped by then
        vms.host.wait_until(lambda: vms.state("copy") in ("Running", "Stopped"))
    else:
        assert "copy" not in found
    ctl(host, "rm", "-f", "copy", check=False)
    left = host.run(["ls", "-A", "/var/lib/hypemand/vms"]).stdout.split()
    assert not [folder for folder in left if folder.startswith((".", "copy", "source"))]
    name = vms.run(
        "dies", "head -c 60000000 /dev/urandom >/run/blob; echo up; exec sleep infinity", memory="256M"
    )
    vms.wait_console(name, "up")
    for _ in range(TRIES):
        pid = vms.unit(name, "MainPID")["MainPID"]
        kill = f"until [ -d {FOLDER.format(name)}/standby.new ]; do :; done; kill -KILL {pid}"
        with host.popen(["timeout", "180", "sh", "-c", kill]) as killer:
            refused = vms.ctl("standby", name, check=False)
            if not refused.ok:
                killer.communicate(timeout=180)
                break
        # all was saved before the one that kills had its turn
        vms.ctl("restore", "--wait", name)
    assert refused.code != 0
    shown: dict[str, Any] = vms.wait(name, "Stopped")
    assert "SIGKILL" in shown["exit_message"]
    host.wait_until(lambda: host.shell(f"ls -d {FOLDER.format(name)}/standby* || true").stdout == "")
