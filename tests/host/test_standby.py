# SPDX-License-Identifier: Apache-2.0
"""Standby and restore of real guests, and what befalls them on the way."""

import json
import re
import time
from collections.abc import Iterator
from subprocess import Popen
from typing import Any

import pytest

from tests.host.machine import TestHost
from tests.host.vms import Vms, vms_of

# counts, and checks what it has in memory and on its disk against each other
COUNTS = """
i=0
while :; do
    i=$((i+1)); echo $i >/var/count.new; mv /var/count.new /var/count; echo "count $i"; sleep 0.2
done
"""
# and gives back what it is sent, on a connection that outlives a standby
ECHOES = f"nc -l -p 7 -e cat &{COUNTS}"
# argv: an address. Sends lines to that, and prints what comes back.
TALKS = """
import socket, sys
with socket.create_connection((sys.argv[1], 7), 60) as to, to.makefile("r") as back:
    for line in sys.stdin:
        to.sendall(line.encode())
        print(back.readline(), end="", flush=True)
"""
STANDBY = "/var/lib/hypemand/vms/{}/standby"


@pytest.fixture(scope="module")
def vms(host: TestHost) -> Iterator[Vms]:
    with vms_of(host) as those:
        yield those


def count(vms: Vms, name: str) -> int:
    return int(vms.execute(name, "cat", "/var/count"))


def counted(vms: Vms, name: str) -> list[int]:
    """What it has said up to now, on its console."""
    return [int(number) for number in re.findall("count ([0-9]+)", "\n".join(vms.console(name)))]


def saves(vms: Vms, name: str) -> list[str]:
    found = vms.host.shell(f"cd /var/lib/hypemand/vms/{name} && ls -d standby* || true").stdout
    return found.split()


def put_away(vms: Vms, name: str) -> None:
    vms.ctl("standby", name)
    assert vms.state(name) == "Standby"


def bring_back(vms: Vms, name: str) -> dict[str, Any]:
    vms.ctl("restore", name)
    return vms.wait(name, "Running")


def check_taken_back(vms: Vms, name: str, said: int, first: int, last: int) -> None:
    """It has said `said` numbers before it was taken back, and the next is one of these: where it was saved,
    however long ago. Its disk is where its memory is."""
    vms.host.wait_until(lambda: len(counted(vms, name)) > said)
    assert first <= counted(vms, name)[said] <= last
    on_disk = count(vms, name)
    assert first <= on_disk <= counted(vms, name)[-1] + 1, "what it says is on its disk before that"


def check_snapshot(vms: Vms, name: str) -> None:
    """It runs on after a snapshot, and is taken back to it: in memory and on its disk."""
    run = vms.show(name)["invocation_id"]
    before = counted(vms, name)[-1]
    made = vms.ctl("snapshot", "create", "--name", "then", name).stdout.strip()
    then = counted(vms, name)[-1]
    vms.host.wait_until(lambda: count(vms, name) > then + 3)
    assert vms.show(name)["invocation_id"] == run
    files = f"/var/lib/hypemand/snapshots/{made}"
    size = vms.host.run(["du", "--block-size=1M", "-s", files]).stdout
    assert int(size.split()[0]) < 200, "sparse files"
    vms.ctl("stop", name)
    said = len(counted(vms, name))
    vms.ctl("snapshot", "restore", "--wait", "then")
    check_taken_back(vms, name, said, before + 1, then + 1)
    at = count(vms, name)
    vms.host.wait_until(lambda: count(vms, name) > at)
    assert saves(vms, name) == []
    vms.ctl("snapshot", "rm", "then")
    assert vms.host.run(["ls", "-A", "/var/lib/hypemand/snapshots"]).stdout == ""


def check_compression(vms: Vms, name: str) -> None:
    """What it has in memory is the same when that was compressed, copied to a snapshot, and unpacked."""
    vms.execute(name, "sh", "-c", "head -c 8388608 /dev/urandom >/dev/shm/noise")
    noise = vms.execute(name, "sha256sum", "/dev/shm/noise")
    vms.ctl("standby", "--compress-level", "3", name)
    vms.host.wait_until(lambda: vms.show(name)["standby"]["compression_state"] == "compressed")
    assert vms.host.run(["ls", STANDBY.format(name)]).stdout.split() == [
        "memory.zst",
        "snapshot.json",
        "state",
    ]
    assert vms.host.run(["systemctl", "list-units", "--all", "--quiet", "hypeman-image-*"]).stdout == ""
    event = json.loads(vms.ctl("events", "--kind", "compression", "--json", name).stdout.splitlines()[-1])
    details = event["details"]
    assert details["compressed_size"] < 0.8 * details["size"], details
    vms.ctl("snapshot", "create", "--name", "packed", name)
    then = counted(vms, name)[-1]
    bring_back(vms, name)
    vms.host.wait_until(lambda: count(vms, name) > then)
    assert vms.execute(name, "sha256sum", "/dev/shm/noise") == noise
    vms.ctl("stop", name)
    said = len(counted(vms, name))
    vms.ctl("snapshot", "restore", "--state", "Standby", "packed")
    unpacked = f"{STANDBY.format(name)}/memory"
    used = int(vms.host.run(["stat", "--format=%b", unpacked]).stdout) * 512
    assert used < 1.5 * details["size"], "a sparse file"
    bring_back(vms, name)
    check_taken_back(vms, name, said, then + 1, then + 1)
    assert vms.execute(name, "sha256sum", "/dev/shm/noise") == noise
    vms.ctl("snapshot", "rm", "packed")
    # cut off: what was being written is gone, and who wrote it
    made = vms.ctl("snapshot", "create", "--compress-level", "19", "--name", "cut", name).stdout.strip()
    files = ["ls", f"/var/lib/hypemand/snapshots/{made}"]
    vms.host.wait_until(lambda: "memory.zst" in vms.host.run(files).stdout)
    vms.host.run(["systemctl", "kill", "--signal=KILL", "--kill-whom=main", "hypemand.service"])
    vms.host.wait_until(lambda: "memory.zst" not in vms.host.run(files).stdout)
    assert vms.host.run(["systemctl", "list-units", "--all", "--quiet", "hypeman-image-*"]).stdout == ""
    assert vms.host.run(files).stdout.split() == ["disk.ext4", "memory", "snapshot.json", "state"]
    vms.wait(name, "Running")
    vms.ctl("snapshot", "rm", "cut")


# as if a snapshot had been made before an upgrade of QEMU, and a schedule some time ago
AGE = """
import json, pathlib, sys, time
state = pathlib.Path("/var/lib/hypemand")
def change(path, at, **keys):
    document = json.loads(path.read_text())
    at(document).update(keys)
    path.write_text(json.dumps(document))

snapshot = state / "snapshots" / sys.argv[1] / "snapshot.json"
change(snapshot, lambda document: document["run"]["build"], version="0.1")
record = state / "vms" / sys.argv[2] / "vm.json"
change(record, lambda document: document["snapshot_schedule"], next_run_at=time.time() + float(sys.argv[3]))
"""
# seconds until the slot of a schedule, by which the next daemon has to be there
MARGINS = (8, 40, 120)
NOT_RESTORABLE = "MESSAGE_ID=5ed3ba3c6a6a43c1b1ee4b4a5b1f7d08"


def is_left_out(vms: Vms, name: str, since: float) -> bool:
    """Has the daemon come after the slot?"""
    entries = vms.host.journal(f"HYPEMAN_VM={name}", since=since)
    return any("was left out, since hypemand did not run" in entry.get("MESSAGE", "") for entry in entries)


def check_ends_of_snapshots(vms: Vms, name: str) -> None:
    """One expires, one is of no use after an upgrade, which the daemon says, and one is made by schedule."""
    made = vms.ctl("snapshot", "create", "--name", "old", name).stdout.strip()
    vms.ctl("snapshot", "create", "--name", "short", "--ttl", "2s", name)
    vms.ctl("snapshot", "schedule", "set", "--interval", "1h", "--max-count", "1", name)
    run = vms.show(name)["invocation_id"]

    def list_names() -> list[str]:
        return [one["name"] for one in json.loads(vms.ctl("snapshot", "list", "--json", name).stdout)]

    def is_made() -> bool:
        return re.fullmatch("old scheduled-20[0-9-]+", " ".join(list_names())) is not None

    for margin in MARGINS:
        since = time.time()
        vms.host.run(["python3", "-c", AGE, made, name, str(margin)])
        vms.restart_daemon()
        vms.host.wait_until(lambda since=since: is_made() or is_left_out(vms, name, since))  # type: ignore[misc]
        if is_made():
            break
    else:
        raise AssertionError(f"no daemon was there within {margin} s")
    entries = vms.host.wait_until(lambda: vms.host.journal(NOT_RESTORABLE, f"HYPEMAN_VM={name}"))
    assert "cannot go on from the snapshot old: saved with QEMU 0.1, this host has " in entries[-1]["MESSAGE"]
    assert f"snapshot restore --state Stopped {made}" in vms.ctl("check").stdout
    assert vms.wait(name, "Running")["invocation_id"] == run
    vms.ctl("snapshot", "schedule", "rm", name)
    vms.ctl("snapshot", "rm", *list_names())


def test_a_vm_goes_on_where_it_was_with_all_that_it_had(vms: Vms) -> None:
    name = vms.run("sleeper", ECHOES, network="default", restart="always")
    before = vms.show(name)
    vms.wait_console(name, "count 3")
    with vms.host.popen(["python3", "-uc", TALKS, before["network"]["ip"]]) as peer:
        assert say(peer, b"before") == b"before"
        check_standby(vms, name, before)
        assert say(peer, b"after") == b"after", "the peer has waited for it"
    check_snapshot(vms, name)
    check_compression(vms, name)
    check_ends_of_snapshots(vms, name)
    # it is what any VM is
    vms.ctl("stop", name)
    assert vms.state(name) == "Stopped"


def say(peer: Popen[bytes], word: bytes) -> bytes:
    """What the guest says to that."""
    assert peer.stdin is not None
    assert peer.stdout is not None
    peer.stdin.write(word + b"\n")
    peer.stdin.flush()
    return peer.stdout.readline().strip()


def check_standby(vms: Vms, name: str, before: dict[str, Any]) -> None:
    """It is put away, and brought back."""
    # as if the host's clock were set while it is away
    vms.execute(name, "date", "-s", "@1700000000")
    put_away(vms, name)
    # systemd's view: it has ended with success, and is not started again; nothing of it is left
    assert vms.unit(name, "ActiveState")["ActiveState"] == "inactive"
    assert vms.host.run(["systemctl", "is-active", f"hypeman@{name}"], check=False).stdout == "inactive\n"
    taps = vms.host.run(["ip", "-br", "link"]).stdout
    assert before["network"]["interface"] not in taps.split()
    stopped = vms.show(name)
    assert (stopped["exit_code"], stopped["has_snapshot"]) == (0, True)
    assert [stopped["network"][key] for key in ("ip", "mac")] == [
        before["network"][key] for key in ("ip", "mac")
    ]
    size = vms.host.run(["du", "--block-size=1M", "-s", STANDBY.format(name)]).stdout
    assert int(size.split()[0]) < 100, "a sparse file"
    at = counted(vms, name)[-1]
    time.sleep(2)  # what it must not notice is that time goes by
    after = bring_back(vms, name)
    assert [after[key] for key in ("boot_id", "started_at")] == [
        before[key] for key in ("boot_id", "started_at")
    ]
    assert after["invocation_id"] != before["invocation_id"]
    assert after["network"]["ip"] == before["network"]["ip"]
    assert vms.unit(name, "ActiveState")["ActiveState"] == "active"
    vms.host.wait_until(lambda: count(vms, name) > at)
    assert vms.execute(name, "cat", "/sys/kernel/rcu_expedited") == "1\n", "its processes are moved at once"
    numbers = counted(vms, name)
    assert numbers == list(range(1, len(numbers) + 1)), "none is missing, none comes twice"
    asked = time.time()
    clock = int(vms.execute(name, "date", "+%s"))
    assert asked - 2 < clock < time.time() + 1
    vms.host.wait_until(lambda: saves(vms, name) == [])


# prints how a port of an address refuses, at which nobody listens: it is there
KNOCK = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], 9), 60)
except ConnectionRefusedError:
    print("refused")
"""


def test_forks_of_a_vm_that_runs_are_vms_of_their_own(vms: Vms) -> None:
    name, forks = vms.run("origin", COUNTS, network="default"), ("fork-1", "fork-2")
    vms.wait_console(name, "count 3")
    at = count(vms, name)
    for fork in forks:
        vms.ctl("fork", "--from-running", "--wait", name, fork)
    views = [vms.show(each) for each in (name, *forks)]
    for key in ("id", "boot_id", "uid"):
        assert len({view[key] for view in views}) == 3, key
    for key in ("ip", "mac"):
        assert len({view["network"][key] for view in views}) == 3, key
    for each, view in zip((name, *forks), views, strict=True):
        assert vms.execute(each, "hostname").strip() == each
        links = vms.execute(each, "ip", "addr")
        assert view["network"]["mac"] in links
        assert f"inet {view['network']['ip']}/" in links
        assert links.count("inet ") == 2, "its own address, and that of the loopback device"
        knock = vms.host.run(["python3", "-c", KNOCK, view["network"]["ip"]])
        assert knock.stdout == "refused\n"
    boots = [vms.execute(each, "cat", "/proc/sys/kernel/random/boot_id") for each in (name, *forks)]
    randoms = [vms.execute(each, "head", "-c", "16", "/dev/urandom") for each in (name, *forks)]
    assert len(set(boots)) == len(set(randoms)) == 3
    for each in (name, *forks):
        vms.host.wait_until(lambda each=each: count(vms, each) > at + 3)  # type: ignore[misc]
    # it is saved and restored as any other
    put_away(vms, forks[0])
    vms.ctl("rm", "-f", forks[1])
    assert bring_back(vms, forks[0])["boot_id"] == views[1]["boot_id"]
    assert vms.execute(forks[0], "hostname").strip() == forks[0]
    vms.ctl("rm", "-f", forks[0])


def test_a_reboot_of_the_host_puts_a_vm_into_standby_and_leaves_one_that_is_there(vms: Vms) -> None:
    name = vms.run("sleeps-over", COUNTS, on_host_shutdown="standby", autostart=True)
    away = vms.run("is-away", COUNTS, network="default")
    for each in (name, away):
        vms.wait_console(each, "count 3")
    before, kept = vms.show(name), vms.show(away)
    put_away(vms, away)
    at = counted(vms, away)[-1]
    vms.host.reboot()
    after = vms.wait(name, "Running")
    assert (after["boot_id"], after["started_at"]) == (before["boot_id"], before["started_at"])
    vms.ctl("stop", name)  # no shutdown of the host: a stop
    assert vms.state(name) == "Stopped"
    assert vms.state(away) == "Standby"
    restored = bring_back(vms, away)
    for key in ("boot_id", "started_at"):
        assert restored[key] == kept[key], key
    for key in ("ip", "mac"):
        assert restored["network"][key] == kept["network"][key], key
    vms.host.wait_until(lambda: count(vms, away) > at)
    numbers = counted(vms, away)
    assert numbers == list(range(1, len(numbers) + 1)), "none is missing, none comes twice"
