# SPDX-License-Identifier: Apache-2.0
"""Images from registries: pulled, shared, kept to, and nothing left of what goes wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.host.faults import ctl, host_config
from tests.host.machine import TestHost
from tests.host.registries import (
    BOMB,
    HERE,
    SHUT,
    STORE,
    STUB,
    TLS,
    check_clean,
    digest_of,
    left,
    move,
    pull,
    remote_digest,
    run_registries,
)
from tests.host.vms import Vms

pytestmark = pytest.mark.one_release

# of the daemon, hypemand/manager/images/pulls.py
PULLS_AT_ONCE = 4


@pytest.fixture(scope="module", autouse=True)
def registry(host: TestHost) -> Iterator[None]:
    """Registries for all tests here."""
    with run_registries(host):
        yield


@pytest.fixture(autouse=True)
def clean(host: TestHost) -> Iterator[None]:
    """No image stays, and nothing that is no image."""
    yield
    check_clean(host)


@pytest.mark.both_releases
def test_by_tag_and_by_digest_it_is_one_content(host: TestHost) -> None:
    digest = remote_digest(host, f"{TLS}/app:v1")
    assert pull(host, f"{TLS}/app:v1").stdout == f"{TLS}/app:v1 {digest}\n"
    assert pull(host, f"{TLS}/app@{digest}").stdout == f"{TLS}/app@{digest} {digest}\n"
    ctl(host, "image", "tag", f"{TLS}/app:v1", "mine")
    listed = ctl(host, "image", "list", "-q").stdout.splitlines()
    assert listed == ["builtin:busybox", f"{TLS}/app:v1", f"{TLS}/app@{digest}", "mine"]
    assert host.shell(f"ls -d {STORE}/*/").stdout == f"{STORE}/{digest[7:]}/\n"


def test_a_vm_keeps_to_its_content_until_it_is_told(host: TestHost, vms: Vms) -> None:
    move(host, "app:v1", "moving:now")
    name = vms.define("keeper", None, image=f"{TLS}/moving:now")
    host.run(["systemctl", "start", "hypeman@keeper"])
    old = digest_of(host, f"{TLS}/moving:now")
    assert vms.execute(name, "cat", "/etc/version") == "one\n"
    assert vms.execute(name, "stat", "-c", "%u:%g", "/opt/below") == "1234:2345\n"
    move(host, "app:v2", "moving:now")
    new = pull(host, f"{TLS}/moving:now").stdout.split()[1]
    assert new != old
    vms.ctl("restart", "--wait", name)
    assert vms.execute(name, "cat", "/etc/version") == "one\n"
    assert f"{TLS}/moving@{old}" in ctl(host, "image", "list", "-q").stdout.splitlines()
    refused = ctl(host, "image", "rm", f"{TLS}/moving@{old}", check=False)
    assert (refused.code, "used by keeper" in refused.stderr) == (11, True)
    assert old not in ctl(host, "image", "prune", "--all", "--dry-run", "--json").stdout
    vms.ctl("restart", "--wait", "--pull", "always", name)
    assert vms.execute(name, "sh", "-c", "cat /etc/version /opt/*") == "two\nnew\n"
    assert [old] == [i["digest"] for i in json.loads(ctl(host, "image", "prune", "--json").stdout)["images"]]
    host.run(["systemctl", "stop", "hypeman@keeper"])


def test_never_is_not_to_ask_and_always_is_to_ask_each_time(host: TestHost, vms: Vms) -> None:
    vms.define("never", None, image=f"{TLS}/app:v1", image_pull="never")
    refused = vms.ctl("start", "never", check=False)
    assert (refused.code, f"there is no image {TLS}/app:v1" in refused.stderr) == (10, True)
    move(host, "app:v1", "moving:always")
    vms.start(vms.define("always", None, image=f"{TLS}/moving:always", image_pull="always"))
    move(host, "app:v2", "moving:always")
    vms.ctl("restart", "--wait", "always")
    assert vms.execute("always", "cat", "/etc/version") == "two\n"


def test_what_prune_frees_is_what_df_says(host: TestHost, vms: Vms) -> None:
    def images() -> dict[str, int]:
        space = json.loads(ctl(host, "df", "--json").stdout)
        found: dict[str, int] = next(kind for kind in space["kinds"] if kind["kind"] == "images")
        return found

    pull(host, f"{TLS}/app:v1")
    pull(host, f"{TLS}/app:v2")
    vms.define("user", None, image=f"{TLS}/app:v1")
    before = images()
    size = json.loads(ctl(host, "image", "inspect", f"{TLS}/app:v2").stdout)["size_bytes"]
    assert before["reclaimable_bytes"] >= size > 1_000_000
    assert before["reclaimable_bytes"] < before["used_bytes"]
    pruned = json.loads(ctl(host, "image", "prune", "--all", "--json").stdout)
    assert [image["names"] for image in pruned["images"]] == [[f"{TLS}/app:v2"]]
    after = images()
    assert after["reclaimable_bytes"] == 0
    # the folder of an image has a file with its metadata too
    assert 0 <= before["used_bytes"] - after["used_bytes"] - before["reclaimable_bytes"] <= 16384
    vms.remove("user")


def test_run_pulls_what_is_not_here(host: TestHost) -> None:
    words = ("run", "--rm", "-m", "128M", "--disk", "64M", "--no-kernel-headers", "--entrypoint=")
    assert ctl(host, *words, f"{TLS}/app:v1", "cat", "/etc/version").stdout == "one\n"


def test_a_password_is_needed_and_kept_from_others(host: TestHost) -> None:
    name = f"{SHUT}/team/secret:v1"
    refused = pull(host, name, check=False)
    assert (refused.code, "skopeo login --authfile /etc/hypemand/auth.json" in refused.stderr) == (1, True)
    login = ["skopeo", "login", "--authfile", "/etc/hypemand/auth.json", "-u", "user", "-p", "secret", SHUT]
    host.run(login)
    host.run(["chmod", "600", "/etc/hypemand/auth.json"])
    try:
        assert pull(host, name).ok
    finally:
        host.run(["rm", "/etc/hypemand/auth.json"])


def test_a_bearer_token_opens_a_registry_for_one_pull(host: TestHost) -> None:
    """It is in no property of the unit that pulls, and in no journal."""
    place, token = "localhost:5004", "ey.Jh~bG-c_iOi+J/Fz=="
    conf = "/etc/containers/registries.conf.d/bearer.conf"
    host.push(conf, f'[[registry]]\nlocation = "{place}"\ninsecure = true\n')
    stub = [f"{HERE}/stub.py", "5004", f"{HERE}/one", f"{HERE}/bearer.log", token]
    host.run(["systemd-run", "-q", "--unit=registry-bearer", "python3", *stub])
    socket = str(host.root / "run/hypemand/api.sock")
    try:
        host.wait_until(lambda: host.run(["ss", "-Hltn", "sport = 5004"]).stdout != "")
        transport = httpx.HTTPTransport(uds=socket)
        with httpx.Client(transport=transport, base_url="http://hypemand") as client:
            for given, status in (
                ({"registry_token": "wrong"}, "failed"),
                ({"registry_token": token}, "ready"),
            ):
                body = {"name": f"{place}/good/app:v1", "credentials": given, "tags": {"from": "bearer"}}
                assert client.post("/images", json=body).status_code == 202
                with client.stream("GET", f"/images/{quote(str(body['name']), safe='')}/watch") as events:
                    last = [line for line in events.iter_lines() if line.startswith("data: ")][-1]
                assert json.loads(last.removeprefix("data: "))["status"] == status, last
            named = client.get("/images", params={"tags[from]": "bearer"}).json()
        assert [image["name"] for image in named] == [f"{place}/good/app:v1"]
        assert token not in host.run(["journalctl", "--no-pager", "-o", "json", "-u", "hypem*"]).stdout
    finally:
        host.run(["systemctl", "stop", "registry-bearer"])
        host.run(["rm", "-f", conf])


def test_a_registry_that_nobody_vouches_for_is_refused(host: TestHost) -> None:
    host.run(["mv", "/etc/containers/certs.d", "/etc/containers/certs.d.away"])
    try:
        refused = pull(host, f"{TLS}/app:v1", check=False)
    finally:
        host.run(["mv", "/etc/containers/certs.d.away", "/etc/containers/certs.d"])
    assert (refused.code, "/etc/containers/certs.d/" in refused.stderr) == (1, True)


@pytest.mark.both_releases
def test_layers_that_are_packed_with_zstd_are_layers_too(host: TestHost, vms: Vms) -> None:
    name = f"{TLS}/app:zstd"
    kinds = host.run(["skopeo", "inspect", "--raw", f"docker://{name}"]).stdout
    assert "tar+zstd" in kinds
    assert pull(host, name).stdout == f"{name} {remote_digest(host, name)}\n"
    vms.run("zstd", image=name)
    assert vms.execute("zstd", "sh", "-c", "cat /etc/version /opt/*") == "two\nnew\n"
    vms.remove("zstd")
    ctl(host, "image", "rm", name)
    ctl(host, "image", "import", "local", f"oci:{HERE}/zstd:v2")


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        (f"{TLS}/app:none", 10, "there is no image"),
        (f"{TLS}/none", 10, "there is no image"),
        (f"{TLS}/app:arm", 8, "is for arm64, this host is amd64"),
        ("localhost:5999/app", 1, "connection refused"),
        ("Upper/case", 8, "cannot be the name of an image"),
    ],
)
def test_what_cannot_be_had_is_told(host: TestHost, name: str, code: int, words: str) -> None:
    refused = pull(host, name, check=False)
    assert (refused.code, words in refused.stderr) == (code, True), refused.describe()


def test_an_index_without_this_architecture_names_those_it_has(host: TestHost) -> None:
    script = """
import hashlib, json, ssl, urllib.request
base = "https://localhost:5001/v2/app/manifests/"
context = ssl.create_default_context(cafile="/srv/registry-test/ca.pem")
context.verify_flags &= ~ssl.VERIFY_X509_STRICT
kind = "application/vnd.oci.image.manifest.v1+json"
def ask(tag, data=None, kind=kind):
    header = {"Content-Type": kind} if data else {"Accept": kind}
    request = urllib.request.Request(base + tag, data, header, method="PUT" if data else "GET")
    return urllib.request.urlopen(request, context=context).read()
raw = ask("arm")
about = {"mediaType": kind, "size": len(raw), "digest": "sha256:" + hashlib.sha256(raw).hexdigest()}
there = [{**about, "platform": {"os": "linux", "architecture": a}} for a in ("arm64", "s390x")]
kind = "application/vnd.oci.image.index.v1+json"
ask("index", json.dumps({"schemaVersion": 2, "mediaType": kind, "manifests": there}).encode(), kind)
"""
    host.run(["python3", "-c", script])
    refused = pull(host, f"{TLS}/app:index", check=False)
    assert (refused.code, "is for arm64, s390x, this host is amd64" in refused.stderr) == (8, True)


@pytest.mark.parametrize("tag", ["dots", "link"])
def test_a_layer_writes_nowhere_else(host: TestHost, tag: str) -> None:
    pulled = pull(host, f"{TLS}/app:{tag}", check=False)
    assert pulled.code in (0, 8), pulled.describe()


def test_a_layer_that_is_not_what_its_digest_says_is_refused(host: TestHost) -> None:
    find = "find store -name data -size +1000k -path '*blobs*' -newer v1.tar"
    lie = "cp $f $f.whole; printf lie | dd of=$f seek=1000 conv=notrunc"
    host.shell(f"cd {HERE}; for f in $({find}); do {lie}; done")
    try:
        refused = pull(host, f"{TLS}/app:v1", check=False)
    finally:
        host.shell(f"cd {HERE}; for f in $(find store -name data.whole); do mv $f ${{f%.whole}}; done")
    assert refused.code == 1, refused.describe()
    assert "igest" in refused.stderr


def test_a_registry_that_dies_in_the_middle_leaves_nothing(host: TestHost) -> None:
    refused = pull(host, f"{STUB}/half/app:v1", check=False)
    assert (refused.code, f"{STUB}/half/app:v1" in refused.stderr) == (1, True), refused.describe()


@contextmanager
def small_store(host: TestHost, size: str, reserve: str) -> Iterator[None]:
    """A file system of `size` for the store, of which `reserve` stays free."""
    host.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=711", "none", STORE])
    try:
        with host_config(host, disk={"reserve": reserve}):
            yield
        assert left(host) == []
    finally:
        host.run(["umount", STORE])


def test_what_cannot_fit_is_refused_with_the_figures(host: TestHost) -> None:
    with small_store(host, "5m", "4M"):
        refused = pull(host, f"{TLS}/app:v1", check=False)
    assert refused.code == 9, refused.describe()
    assert "needs at least" in refused.stderr
    assert f"{STORE} has 5M free, of which 4M are kept" in refused.stderr


def test_a_full_disk_leaves_nothing(host: TestHost) -> None:
    with small_store(host, "5m", "0"):
        refused = pull(host, f"{TLS}/app:v1", check=False)
    assert (refused.code, "no space left" in refused.stderr) == (9, True), refused.describe()


def test_a_small_layer_that_would_fill_the_disk_is_ended_and_leaves_nothing(host: TestHost) -> None:
    host.run(["sh", "-euc", BOMB, "bomb", HERE])
    assert int(host.shell(f"du -sb {HERE}/bomb.tar.gz | cut -f1").stdout) < 3 * 2**20
    with small_store(host, "256m", "96M"):
        lowest = f"{HERE}/lowest"
        script = f"while :; do df --output=avail -k {STORE} | tail -n 1 >>{lowest}; sleep 0.05; done"
        host.run(["systemd-run", "-q", "--unit=lowest", "sh", "-c", script])
        try:
            for refused in (
                pull(host, f"{TLS}/app:bomb", check=False),
                ctl(host, "image", "import", "bomb", f"{HERE}/bomb.tar.gz", check=False),
            ):
                assert refused.code == 9, refused.describe()
                assert "needs more disk space than available" in refused.stderr
                assert "96M are kept" in refused.stderr
                assert left(host) == []
        finally:
            host.run(["systemctl", "stop", "lowest"])
    free = [int(line) for line in host.pull(lowest).decode().split()]
    assert min(free) > 0, "the disk was never full"
    # they are seen every 50 ms alone
    assert min(free) < 128 * 1024, "it was ended when it took what is kept, and not before"


def test_a_registry_that_drips_holds_no_place_that_another_image_waits_for(host: TestHost) -> None:
    """In the time that the daemon gives a pull to get somewhere: a minute and a half."""
    drips = [f"{STUB}/drip/app{number}:v1" for number in range(PULLS_AT_ONCE)]

    def is_dripping(name: str) -> bool:
        found = ctl(host, "image", "inspect", name, check=False)
        image: dict[str, Any] = json.loads(found.stdout) if found.ok else {"status": "unknown"}
        return bool(image["status"] == "pulling" and image["progress"]["bytes"])

    with host.popen(["hypemanctl", "image", "pull", drips[0]]) as waiting:
        host.wait_until(partial(is_dripping, drips[0]))
        for name in drips[1:]:
            host.shell(f"hypemanctl image pull {name} >/dev/null 2>&1 &")
        for name in drips[1:]:
            host.wait_until(partial(is_dripping, name))
        # there is no place for it, until one of them has to go
        good = pull(host, f"{STUB}/good/app:v1")
        assert good.stdout.startswith(f"{STUB}/good/app:v1 sha256:")
        _, said = waiting.communicate(timeout=180)
        assert waiting.returncode == 1
    told = f"{drips[0]}: the registry has sent [0-9]+ bytes in 90 s, and other pulls are waiting\n"
    assert re.search(told, said.decode()), said
    assert pull(host, f"{TLS}/app:v1").ok, "the place is free for any other"
    for name in drips[1:]:
        ctl(host, "image", "rm", name, check=False)
    assert pull(host, f"{STUB}/good/app:v1").ok


def test_many_who_ask_at_once_get_it_once(host: TestHost) -> None:
    host.run(["rm", "-f", f"{HERE}/stub.log"])
    host.shell(f"for i in 1 2 3 4 5; do hypemanctl image pull {STUB}/good/app:v1 & done; wait")
    asked = [line for line in host.pull(f"{HERE}/stub.log").decode().splitlines() if "GET" in line]
    blobs = [line for line in asked if "/blobs/" in line]
    assert len(blobs) == len(set(blobs)) + 1, "the config twice, each layer once"
    assert pull(host, f"{STUB}/good/app:v1").ok
    again = host.pull(f"{HERE}/stub.log").decode().splitlines()[len(asked) :]
    assert [line for line in again if "GET" in line and "/blobs/" in line] == []


def test_a_start_says_that_it_waits_for_its_image_and_a_stop_ends_that(host: TestHost, vms: Vms) -> None:
    vms.define("waits", None, image=f"{STUB}/hang/app:v1")
    host.run(["systemctl", "start", "--no-block", "hypeman@waits"])
    words = f"pulling {STUB}/hang/app:v1"
    status = "StatusText"
    host.wait_until(lambda: words in vms.properties("hypeman@waits", status)[status], "systemd is told")
    assert words in vms.ctl("status", "waits", check=False).stdout

    def look() -> dict[str, int] | None:
        image = json.loads(ctl(host, "image", "inspect", f"{STUB}/hang/app:v1").stdout)
        progress: dict[str, int] = image["progress"]
        return progress if image["status"] == "pulling" and progress["bytes"] else None

    progress = host.wait_until(look, "something has come")
    assert (progress["layers"], progress["total_layers"]) == (0, 1)
    assert progress["bytes"] < progress["total_bytes"]
    host.run(["systemctl", "stop", "hypeman@waits"])
    assert vms.state("waits") == "Stopped"
    ctl(host, "image", "rm", f"{STUB}/hang/app:v1")


def test_a_pull_is_told_step_by_step_in_events(host: TestHost) -> None:
    name = f"{TLS}/app:v1"
    transport = httpx.HTTPTransport(uds=str(host.root / "run/hypemand/api.sock"))
    with httpx.Client(transport=transport, base_url="http://hypemand", timeout=180) as client:
        assert client.post("/images", json={"name": name}).status_code == 202
        with client.stream("GET", f"/images/{quote(name, safe='')}/watch") as answer:
            told = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]
    steps = [key for key, _ in groupby(image["status"] for image in told)]
    assert steps[-3:] == ["pulling", "converting", "ready"], steps
    pulling = [image["progress"] for image in told if image["status"] == "pulling"]
    assert (pulling[0]["layers"], pulling[0]["total_layers"]) == (0, 1)
    assert pulling[0]["total_bytes"] > 3_000_000
    done = [image["progress"] for image in told if image["status"] == "converting"][-1]
    assert (done["bytes"], done["layers"]) == (done["total_bytes"], 1)
    assert told[-1]["digest"] == remote_digest(host, name)


def test_a_daemon_that_is_killed_leaves_nothing_of_a_pull(host: TestHost) -> None:
    host.shell(f"hypemanctl image pull {STUB}/hang/app:v1 >/dev/null 2>&1 &")
    unit = "systemctl list-units --plain -q 'hypeman-image-*'"
    host.wait_until(lambda: left(host) and host.shell(unit).stdout, "a pull is on")
    host.run(["systemctl", "kill", "--signal=KILL", "hypemand.service"])
    host.wait_until(lambda: not left(host), "nothing is left")


def test_an_orderly_stop_of_the_daemon_ends_a_pull(host: TestHost) -> None:
    host.shell(f"hypemanctl image pull {STUB}/hang/app:v1 >/dev/null 2>&1 &")
    host.wait_until(lambda: left(host), "a pull is on")
    host.run(["systemctl", "restart", "hypemand.service"])
    assert left(host) == []


def test_paths_of_the_host_are_images_too(host: TestHost, vms: Vms) -> None:
    for source in (f"oci:{HERE}/oci:v1", f"docker-archive:{HERE}/docker.tar", f"dir:{HERE}/root"):
        name = vms.define("local", "cat /etc/version", image=source)
        vms.ctl("start", "--wait", name)
        host.wait_until(lambda: "one" in vms.console("local"), source)
        vms.remove(name)
    assert len(ctl(host, "image", "list", "-q").stdout.splitlines()) == 4


@pytest.mark.both_releases
def test_an_exported_image_is_one_for_skopeo_and_for_us(host: TestHost, vms: Vms) -> None:
    pull(host, f"{TLS}/app:v1")
    ctl(host, "image", "export", f"{TLS}/app:v1", f"{HERE}/out.tar")
    about = json.loads(host.run(["skopeo", "inspect", "--config", f"oci-archive:{HERE}/out.tar"]).stdout)
    assert about["config"]["Cmd"][0] == "/bin/sh"
    refused = ctl(host, "image", "import", "again", f"docker-archive:{HERE}/out.tar", check=False)
    assert (refused.code, "is no Docker archive" in refused.stderr) == (8, True)
    ctl(host, "image", "import", "again", f"{HERE}/out.tar")
    name = vms.define("again", None, image="again")
    vms.start(name)
    assert vms.execute(name, "stat", "-c", "%u:%g", "/opt/below") == "1234:2345\n"
