# SPDX-License-Identifier: Apache-2.0
"""Whoever executes code in a tool that makes images gets no further than its work."""

from __future__ import annotations

import json
from typing import Any

from tests.host.machine import TestHost

HERE = "/srv/image-units"
# argv: which way, and what to run. Runs a program as the daemon runs skopeo and umoci; the folder is empty.
RUN = """
import secrets, sys
from pathlib import Path
from hypemand.storage.tools import UnitTools
key = secrets.token_hex(6)
folder = Path("/var/lib/hypemand/units-test", key, "work")
folder.mkdir(parents=True)
tools = UnitTools(key, Path("/var/lib/hypemand"))
argv = ["python3", "-c", sys.argv[2], str(folder), tools.unit]
if sys.argv[1] == "build":
    done = tools.build(argv, folder=folder, timeout=180, readable=[Path("/srv/image-units")])
else:
    done = tools.fetch(argv, folder=folder, timeout=180)
sys.stdout.write(done.stdout.decode())
"""
# What code in the unit tries, and what came of it: an error number, or 0.
PROBE = """
import ctypes, json, os, socket, sys
folder = sys.argv[1]
libc = ctypes.CDLL(None, use_errno=True)
found = {}
def attempt(name, what):
    try:
        found[name] = what()
    except OSError as error:
        found[name] = -error.errno
def call(*arguments):
    return 0 if libc.syscall(*arguments) >= 0 else -ctypes.get_errno()
def is_open(*arguments):
    with socket.socket(*arguments):
        return 1
def write(path):
    with open(path, "w") as file:
        file.write("x")
    return 1
def mount_points():
    return [line.split()[4] for line in open("/proc/self/mountinfo")]
attempt("uid", os.geteuid)
attempt("run", lambda: {top: folders + files for top, folders, files in os.walk("/run")})
attempt("root", lambda: sorted(os.listdir("/")))
for family in ("AF_UNIX", "AF_INET", "AF_NETLINK"):
    attempt(family, lambda: is_open(getattr(socket, family), socket.SOCK_DGRAM))
attempt("pair", lambda: call(53, 1, 1, 0, 0))  # socketpair
attempt("signal PID 1", lambda: os.kill(1, 0) or 1)
attempt("tgkill PID 1", lambda: call(234, 1, 1, 0))
attempt("limits of PID 1", lambda: call(302, 1, 7, 0, 0))  # prlimit64, RLIMIT_NOFILE
attempt("score of PID 1", lambda: write("/proc/1/oom_score_adj"))
attempt("memory of PID 1", lambda: len(open("/proc/1/environ", "rb").read()))
attempt("/dev", lambda: write("/dev/owned"))
attempt("terminals", lambda: os.listdir("/dev/pts"))
attempt("shadow", lambda: len(open("/etc/shadow").read()))
attempt("records", lambda: os.listdir("/var/lib/hypemand/vms"))
attempt("read", lambda: open("/srv/image-units/file").read())
attempt("write to what is read", lambda: write("/srv/image-units/file"))
attempt("write elsewhere", lambda: write("/usr/owned"))
attempt("write", lambda: write(folder + "/file"))
attempt("chown", lambda: os.chown(folder + "/file", 1234, 2345) or 1)
attempt("mknod", lambda: os.mknod(folder + "/mem", 0o20600, os.makedev(1, 1)) or 1)
attempt("open a device", lambda: os.close(os.open(folder + "/mem", os.O_RDONLY)) or 1)
attempt("mount", lambda: 1 if libc.mount(b"/", b"/tmp", None, 4096, None) == 0 else -ctypes.get_errno())
print(json.dumps(found))
"""
# Tells what it sees of another of its kind, until `met` says that both are there.
MEET = """
import json, os, sys, time
mine = {os.getpid(), os.getppid()}
seen = set()
end = time.monotonic() + 120
met = False
while not met and time.monotonic() < end:
    met = os.path.exists(sys.argv[1] + "/met")
    seen |= {int(pid) for pid in os.listdir("/proc") if pid.isdigit()} - mine
    time.sleep(0.1)
assert met
found = {"uid": os.getuid(), "others": sorted(seen), "folders": os.listdir("/var/lib/hypemand/units-test")}
print(json.dumps(found | {"proxy": os.environ.get("https_proxy"), "folder": sys.argv[1].split("/")[5]}))
"""
BOTH = """
half=sword
for number in 1 2; do
    https_proxy=http://user:${half}fish@proxy.invalid python3 -c "$1" fetch "$2" &
done
for try in $(seq 500); do
    [ $(systemctl list-units --plain -q 'hypeman-image-*' | wc -l) = 2 ] && break
    sleep 0.1
done
systemctl show -p IPAddressDeny -p Environment 'hypeman-image-*'
cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c "[s]wordfish" || true
for folder in /var/lib/hypemand/units-test/*/work; do touch $folder/met; done
wait
"""


def probe(host: TestHost, way: str, program: str) -> dict[str, Any]:
    """What a program has found out in such a unit."""
    found: dict[str, Any] = json.loads(host.run(["python3", "-c", RUN, way, program]).stdout)
    return found


def test_what_unpacks_reaches_neither_the_host_nor_its_service_manager(host: TestHost) -> None:
    host.push(f"{HERE}/file", "there")
    found = probe(host, "build", PROBE)
    eperm = -1
    assert found.pop("uid") == 0
    # srv and var: what the folders of the work stand in; run: an empty folder of systemd's own
    assert set(found.pop("root")) <= {
        "bin", "dev", "etc", "lib", "lib64", "proc", "run", "sbin", "srv", "sys", "usr", "var",
    }  # fmt: skip
    assert found.pop("run") == {
        "/run": ["systemd"],
        "/run/systemd": ["incoming"],
        "/run/systemd/incoming": [],
    }
    for key in (
        "AF_UNIX",
        "AF_INET",
        "AF_NETLINK",
        "pair",
        "signal PID 1",
        "tgkill PID 1",
        "limits of PID 1",
    ):
        assert found.pop(key) == eperm, key
    for key in ("shadow", "records"):
        assert found.pop(key) == -2, key
    assert found.pop("read") == "there"
    for key in ("write to what is read", "write elsewhere", "score of PID 1", "/dev"):
        assert found.pop(key) == -30, key
    for key in ("write", "chown", "mknod"):
        assert found.pop(key) == 1, key
    for key in ("open a device", "mount", "memory of PID 1"):
        assert found.pop(key) in (eperm, -13), key
    assert found.pop("terminals") in (eperm, -13, [])
    assert found == {}


def test_pulls_see_nothing_of_each_other_nor_of_link_local_addresses(host: TestHost) -> None:
    lines = host.run(["sh", "-euc", BOTH, "both", RUN, MEET]).stdout.splitlines()
    found = [json.loads(line) for line in lines if line.startswith("{")]
    told = [line for line in lines if not line.startswith("{")]
    assert len({one["uid"] for one in found} - {0}) == 2
    for one in found:
        assert one["others"] == [], "no process of another user is to be seen"
        assert one["folders"] == [one["folder"]], "nor are the folders of others"
        assert one["proxy"] == "http://user:swordfish@proxy.invalid"
    denied = [line for line in told if line.startswith("IPAddressDeny=")]
    assert len(denied) == 2
    for line in denied:
        assert {"169.254.0.0/16", "fe80::/64", "fd00:ec2::254/128"} <= set(line.partition("=")[2].split())
    # nor does anybody read a proxy's password off a command line, or off a unit
    assert not any("swordfish" in line for line in told)
    assert told[-1] == "0"


# What the replay of a file system has in view; it can write to nothing but the disk, and so tells there.
REPLAY = """
import os, sys
from pathlib import Path
from hypemand.storage import replay
disk = Path("/srv/image-units/disk")
disk.write_bytes(b"")
os.chown(disk, 65534, 65534)
look = "import json, os; open('/disk', 'w').write(json.dumps([sorted(os.listdir('/')), os.listdir('/run')]))"
replay._command = lambda disk: ["/usr/bin/python3", "-c", look]
replay.replay_in_unit(disk, 65534)
print(disk.read_text())
"""


def test_the_replay_of_a_guests_file_system_sees_the_host_no_more_than_that(host: TestHost) -> None:
    host.push(f"{HERE}/file", "there")
    root, run = json.loads(host.run(["python3", "-c", REPLAY]).stdout)
    assert set(root) <= {"bin", "dev", "disk", "etc", "lib", "lib64", "proc", "run", "sbin", "sys", "usr"}
    assert run == ["systemd"]
