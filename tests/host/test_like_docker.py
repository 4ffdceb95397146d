# SPDX-License-Identifier: Apache-2.0
"""An image as docker save writes it, of a program that is not root, runs as it does under Docker; and what an
image brings that is not systemd, and a clock that is wrong."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import time
from collections.abc import Iterator

import pytest

from tests.host.faults import compile_static
from tests.host.machine import TestHost
from tests.host.vms import Vms, vms_of
from tests.hostclock import step_clock

pytestmark = pytest.mark.one_release

NAME = "likedocker"
ARCHIVE = "/srv/like-docker.tar"
APPLETS = (
    *("sh", "cat", "echo", "env", "grep", "id", "ls", "nc", "ps", "pwd", "setsid", "sleep", "stat", "touch"),
)
# As s6-overlay's: it is PID 1 or nothing. A signal that it does not catch would not end it.
INIT = """
#include <stdio.h>
#include <unistd.h>
int main(void)
{
    if (getpid() != 1)
        return puts("fatal: can only run as pid 1"), 100;
    (void)puts("init is up");
    (void)fflush(stdout);
    for (;;)
        (void)pause();
}
"""
# ping(8) of a user who is not root: what the kernel lets nobody have whose group is not in ping_group_range
PING = """
#include <netinet/in.h>
#include <stdio.h>
#include <sys/socket.h>
int main(void)
{
    int made = socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP);
    return puts(made < 0 ? "no ping" : "ping") < 0;
}
"""
SHOW = """
pwd; id -u; env | grep ^HOSTNAME=
stat -c '%n %a %u:%g' /run/app /data /data/seed; ls -A /data; cat /data/seed
touch /run/app/made /data/made && echo written
ulimit -Sn; ulimit -Hn; ping-socket; echo again >/dev/stdout
"""
SHOWN = """\
/data
1000
HOSTNAME=likedocker
/run/app 3777 0:1000
/data 750 1000:1000
/data/seed 640 1000:1000
seed
of the image
written
1024
524288
ping
again
"""


def make_member(name: str, data: bytes | None, mode: int, uid: int = 0, gid: int = 0) -> tarfile.TarInfo:
    """A file, or with None a directory."""
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE if data is None else tarfile.REGTYPE
    info.size, info.mode, info.uid, info.gid = len(data or b""), mode, uid, gid
    return info


def make_layer(busybox: bytes, ping: bytes, init: bytes) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as layer:

        def add(name: str, data: bytes | None, mode: int, uid: int = 0, gid: int = 0) -> None:
            layer.addfile(make_member(name, data, mode, uid, gid), io.BytesIO(data or b""))

        for folder in ("bin", "run", "sbin", "var"):
            add(folder, None, 0o755)
        add("bin/busybox", busybox, 0o755)
        add("bin/ping-socket", ping, 0o755)
        add("init", init, 0o755)
        for path in (*(f"bin/{applet}" for applet in APPLETS), "sbin/init"):
            link = tarfile.TarInfo(path)
            link.type, link.linkname = tarfile.SYMTYPE, "/bin/busybox"
            layer.addfile(link)
        add("run/app", None, 0o3777, gid=1000)
        add("data", None, 0o750, 1000, 1000)
        add("data/seed", b"of the image\n", 0o640, 1000, 1000)
        add("manifest.json", b'{"name": "a web application"}', 0o644)
    return packed.getvalue()


def make_save(layer: bytes) -> bytes:
    """What docker save writes of an image with two tags, since Docker 25."""
    files: dict[str, bytes] = {}

    def put(media_type: str, data: bytes) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        files[f"blobs/sha256/{digest}"] = data
        kind = f"application/vnd.oci.image.{media_type}"
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}

    packed = put("layer.v1.tar", layer)
    program = f"{SHOW}echo up; exec sleep infinity"
    config: dict[str, object] = {
        "Entrypoint": [""],
        "Cmd": ["sh", "-c", program],
        "User": "1000:1000",
        "WorkingDir": "data",
    }
    document = {
        "architecture": "amd64",
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [packed["digest"]]},
    }
    described = put("config.v1+json", json.dumps(document).encode())
    manifest = {"schemaVersion": 2, "config": described, "layers": [packed]}
    manifest["mediaType"] = "application/vnd.oci.image.manifest.v1+json"
    entry = put("manifest.v1+json", json.dumps(manifest).encode())
    tags = [{**entry, "annotations": {"org.opencontainers.image.ref.name": tag}} for tag in ("latest", "v1")]
    paths = [f"blobs/sha256/{str(part['digest'])[7:]}" for part in (described, packed)]
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": tags}).encode()
    files["oci-layout"] = b'{"imageLayoutVersion": "1.0.0"}'
    saved = {"Config": paths[0], "RepoTags": ["app:latest", "app:v1"], "Layers": paths[1:]}
    files["manifest.json"] = json.dumps([saved]).encode()
    packed_files = io.BytesIO()
    with tarfile.open(fileobj=packed_files, mode="w") as archive:
        for name, data in files.items():
            archive.addfile(make_member(name, data, 0o644), io.BytesIO(data))
    return packed_files.getvalue()


@pytest.fixture(scope="module")
def vms(host: TestHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vms]:
    """One VM of the image, Running, with a new volume in the place of its data."""
    folder = tmp_path_factory.mktemp("programs")
    ping, init = compile_static(PING, folder / "ping"), compile_static(INIT, folder / "init")
    host.push(ARCHIVE, make_save(make_layer(host.pull("/bin/busybox"), ping, init)))
    with vms_of(host) as made:
        made.ctl("image", "import", "like", f"docker-archive:{ARCHIVE}:app:v1")
        made.ctl("volume", "create", "--size", "64M", "like-data")
        made.define(NAME, None, image="like", volumes=[{"volume": "like-data", "mount_path": "/data"}])
        made.start(NAME)
        made.wait_console(NAME, "up")
        yield made
        made.remove(NAME)
        made.ctl("volume", "rm", "like-data")
        made.ctl("image", "rm", "like")
    host.run(["rm", ARCHIVE])


def test_the_program_finds_what_it_finds_under_docker(vms: Vms) -> None:
    console = vms.console(NAME)
    first = console.index("/data")
    assert console[first : first + len(SHOWN.splitlines())] == SHOWN.splitlines()


def test_a_command_finds_the_same(vms: Vms) -> None:
    shown = vms.execute(NAME, "sh", "-c", SHOW)
    assert shown == SHOWN.replace("seed\nof", "made\nseed\nof")


def test_who_is_not_root_may_serve_on_port_80(vms: Vms) -> None:
    ask = "until nc 127.0.0.1 80 </dev/null 2>/dev/null; do sleep 0.1; done"
    serve = f"echo served | nc -l -p 80 127.0.0.1 & {ask}; wait"
    assert vms.execute(NAME, "sh", "-c", serve) == "served\n"


def test_a_volume_gets_what_the_image_has_once(vms: Vms) -> None:
    vms.execute(NAME, "sh", "-c", "cd /; busybox rm /data/seed /data/made")
    starts = vms.console(NAME).count("up")
    vms.ctl("restart", "--wait", NAME)
    vms.wait_console(NAME, "up", starts + 1)
    assert vms.execute(NAME, "sh", "-c", "ls -A /data; stat -c '%a %u:%g' /data") == "made\n750 1000:1000\n"


def test_a_volume_with_an_owner_gets_nothing(vms: Vms) -> None:
    vms.ctl("volume", "create", "--size", "64M", "--owner", "1000:5", "--mode", "0700", "like-own")
    mount = {"volume": "like-own", "mount_path": "/data"}
    try:
        program = "stat -c '%a %u:%g' /data; ls -A /data; touch /data/x && echo written"
        name = vms.define("likeowned", program, image="like", volumes=[mount])
        vms.ctl("start", name)
        vms.wait_console(name, "written")
        console = vms.console(name)
        at = console.index("700 1000:5")
        assert console[at + 1] == "written"
        vms.remove("likeowned")
    finally:
        vms.ctl("volume", "rm", "like-own")


def test_what_insists_on_pid_1_is_and_reaches_nothing_else(vms: Vms) -> None:
    """With the keys that Docker has for a container's root, memory, parameters and capabilities."""
    keys = {
        "entrypoint": ["/init"],
        "user": "0",
        "read_only": True,
        "tmpfs": ["/scratch:size=64k,mode=0711"],
        "sysctls": {"net.core.somaxconn": 77},
        "cap_drop": ["all"],
        "cap_add": ["CAP_KILL"],
    }
    name = vms.define("likeinit", None, image="like", **keys)
    vms.start(name)
    try:
        vms.wait_console(name, "init is up")
        show = """
        cat /proc/1/comm /proc/sys/net/core/somaxconn; grep CapEff /proc/self/status
        touch /made 2>/dev/null || echo refused; touch /scratch/made && stat -c %a /scratch
        """
        shown = "init\n77\nCapEff:\t0000000000000020\nrefused\n711\n"
        assert vms.execute(name, "sh", "-c", show) == shown
        vms.ctl("exec", name, "--", "sh", "-c", "kill -KILL -1", check=False)
        assert "hypeman" not in vms.execute(name, "ps")
        assert vms.execute(name, "cat", "/proc/1/comm") == "init\n"
        vms.ctl("stop", name)
        assert vms.show(name)["exit_message"] == "stopped on request: killed by signal 15 (TERM)"
    finally:
        vms.remove("likeinit")


def test_what_a_dropped_command_has_started_ends_with_it(vms: Vms) -> None:
    """Also what has a session of its own."""
    script = f"""
    hypemanctl exec {NAME} -- sh -c 'setsid sleep 4242 & exec sleep 4243' </dev/null &
    until hypemanctl exec {NAME} -- ps | grep -q 'sleep 4242'; do :; done; kill -KILL $!
    """
    vms.host.run(["sh", "-c", script])

    def look() -> bool:
        return "sleep 424" not in vms.execute(NAME, "ps")

    vms.host.wait_until(look, "processes of the command end")


@pytest.mark.parametrize(("path", "mode"), [("/sbin/init", "auto"), ("/bin/sh", "systemd")])
def test_an_image_whose_init_is_not_systemd_is_refused_with_the_ways_out(
    vms: Vms, path: str, mode: str
) -> None:
    name = vms.define("likeinit", None, image="like", cmd=[path], mode=mode)
    vms.ctl("start", name)
    shown = vms.wait(name, "Stopped")
    reason = f"{path} is /bin/busybox, not systemd; use mode: exec to run it as a program, or another cmd"
    assert (shown["exit_code"], shown["exit_message"]) == (125, reason)
    assert reason in vms.ctl("status", name, check=False).stdout
    vms.remove(name)


def test_the_clock_of_a_guest_follows_the_hosts(vms: Vms) -> None:
    date = ("/bin/busybox", "date")

    def is_right() -> bool:
        before = time.time()
        return before - 5 < int(vms.execute(NAME, *date, "+%s")) < time.time() + 5

    def make_wrong() -> None:
        vms.ctl("exec", "-u", "0", NAME, "--", *date, "-s", "@1000000000")
        assert not is_right()

    assert is_right()
    make_wrong()
    step_clock()
    vms.host.wait_until(is_right, "the clock of a guest after a step of the host's")
    make_wrong()
    vms.restart_daemon()
    vms.host.wait_until(is_right, "the clock of a guest after the daemon was restarted")
