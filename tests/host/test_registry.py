# SPDX-License-Identifier: Apache-2.0
"""Images from registries: pulled, shared, kept to, and nothing left of what goes wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.command import Result
from tests.host.faults import ctl
from tests.host.machine import TestHost
from tests.host.vms import Vms

HERE = "/srv/registry-test"
STORE = "/var/lib/hypemand/images"
TLS, SHUT, STUB = "localhost:5001", "localhost:5002", "localhost:5003"
# the registry's htpasswd: user, with the password secret
HTPASSWD = "user:$2b$05$dgX5wplhJLi.AljfrKj3IeFeBaUaKscyeQsg.w5WMDouQ8PVFf0fu\n"

CONFIG = """\
version: 0.1
storage: {filesystem: {rootdirectory: /srv/registry-test/store}, delete: {enabled: true}}
http:
  addr: 127.0.0.1:PORT
  tls: {certificate: /srv/registry-test/cert.pem, key: /srv/registry-test/key.pem}
"""
AUTH = "auth: {htpasswd: {realm: test, path: /srv/registry-test/htpasswd}}\n"

# argv: the folder. Images of busybox in a layout: v1, v2 (another content), arm, escapes by name and by link.
SETUP = r"""
cd "$1"
openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test-ca -keyout ca.key -out ca.pem
openssl req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout key.pem -out cert.csr
printf 'subjectAltName=DNS:localhost\n' >san
openssl x509 -req -in cert.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile san -out cert.pem
mkdir -p root/bin root/etc root/opt store
cp /bin/busybox root/bin/busybox
for applet in sh cat sleep echo stat ls true; do ln -s busybox root/bin/$applet; done
echo one >root/etc/version; echo below >root/opt/below
head -c 3000000 /dev/urandom >root/opt/noise
chown 1234:2345 root/opt/below
tar --numeric-owner -C root -cf v1.tar .
mkdir -p above/etc above/opt; echo two >above/etc/version; : >above/opt/.wh..wh..opq; echo new >above/opt/new
tar -C above -cf above.tar .
python3 - <<'PY'
import io, tarfile
def make(name, members):
    with tarfile.open(name, "w") as archive:
        for member, kind, link, data in members:
            info = tarfile.TarInfo(member)
            info.type, info.linkname, info.size = kind, link, len(data)
            archive.addfile(info, io.BytesIO(data))
make("dots.tar", [("../../../../../../../../srv/registry-test/escaped", b"0", "", b"x")])
make("link.tar", [("out", b"2", "/srv/registry-test", b""), ("out/escaped", b"0", "", b"x")])
PY
umoci init --layout oci
umoci new --image oci:v1
umoci raw add-layer --image oci:v1 v1.tar
umoci config --image oci:v1 --config.cmd /bin/sh --config.cmd -c \
    --config.cmd 'cat /etc/version; exec sleep 1000'
for tag in v2 dots link arm; do umoci tag --image oci:v1 $tag; done
umoci raw add-layer --image oci:v2 above.tar
umoci raw add-layer --image oci:dots dots.tar
umoci raw add-layer --image oci:link link.tar
umoci config --image oci:arm --architecture arm64
skopeo --insecure-policy copy -q oci:oci:v1 oci:one:v1
skopeo --insecure-policy copy -q oci:oci:v1 docker-archive:docker.tar:app:v1
mkdir -p /etc/containers/certs.d/localhost:5001 /etc/containers/certs.d/localhost:5002
cp ca.pem /etc/containers/certs.d/localhost:5001/ca.crt
cp ca.pem /etc/containers/certs.d/localhost:5002/ca.crt
printf '[[registry]]\nlocation = "localhost:5003"\ninsecure = true\n' \
    >/etc/containers/registries.conf.d/stub.conf
cp /etc/containers/policy.json policy.json.before
for unit in tls shut; do
    systemd-run -q --unit=registry-$unit docker-registry serve "$1/$unit.yaml"
done
systemd-run -q --unit=registry-stub python3 "$1/stub.py" 5003 "$1/one" "$1/stub.log"
for port in 5001 5002 5003; do
    timeout 20 sh -c "until socat -u OPEN:/dev/null TCP:127.0.0.1:$port 2>/dev/null; do sleep 0.1; done"
done
for tag in v1 v2 dots link arm; do
    skopeo --insecure-policy copy -q oci:oci:$tag docker://localhost:5001/app:$tag
done
skopeo --insecure-policy copy -q --dest-creds user:secret oci:oci:v1 docker://localhost:5002/team/secret:v1
"""
TEARDOWN = """
systemctl stop registry-tls registry-shut registry-stub
rm -rf "$1" /etc/containers/certs.d /etc/containers/registries.conf.d/stub.conf /etc/hypemand/auth.json
"""


@pytest.fixture(scope="module", autouse=True)
def registry(host: TestHost) -> Iterator[None]:
    """Registries on loopback: with TLS, with TLS and a password, and one that misbehaves."""
    host.push(f"{HERE}/tls.yaml", CONFIG.replace("PORT", "5001"))
    host.push(f"{HERE}/shut.yaml", CONFIG.replace("PORT", "5002") + AUTH)
    host.push(f"{HERE}/htpasswd", HTPASSWD)
    host.push(f"{HERE}/stub.py", Path(__file__).with_name("registry_stub.py").read_text())
    host.run(["sh", "-euc", SETUP, "setup", HERE])
    yield
    host.run(["sh", "-uc", TEARDOWN, "teardown", HERE])
    assert left(host) == []


@pytest.fixture(autouse=True)
def clean(host: TestHost) -> Iterator[None]:
    """No image stays, and nothing that is no image."""
    yield
    ctl(host, "image", "prune", "--all")
    assert left(host) == []
    assert host.run(["ls", HERE]).stdout.find("escaped") < 0
    assert host.run(["systemctl", "list-units", "--all", "--plain", "-q", "hypeman-image-*"]).stdout == ""


def left(host: TestHost) -> list[str]:
    """What is in the store."""
    words = ["find", STORE, "-mindepth", "1", "-not", "-name", ".staging", "-not", "-name", "names.json"]
    return host.run(words).stdout.splitlines()


def pull(host: TestHost, name: str, *, check: bool = True) -> Result:
    return ctl(host, "image", "pull", name, check=check)


def digest_of(host: TestHost, name: str) -> str:
    return str(json.loads(ctl(host, "image", "inspect", name).stdout)["digest"])


def move(host: TestHost, source: str, target: str) -> None:
    """Have a tag stand for something else."""
    host.run(
        ["skopeo", "--insecure-policy", "copy", "-q", f"docker://{TLS}/{source}", f"docker://{TLS}/{target}"]
    )


def remote_digest(host: TestHost, name: str) -> str:
    told = host.run(["skopeo", "inspect", "--format", "{{.Digest}}", f"docker://{name}"])
    return told.stdout.strip()


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
    assert (refused.code, "used by keeper" in refused.stderr) == (5, True)
    assert old not in ctl(host, "image", "prune", "--all", "--dry-run", "--json").stdout
    vms.ctl("restart", "--wait", "--pull", "always", name)
    assert vms.execute(name, "sh", "-c", "cat /etc/version /opt/*") == "two\nnew\n"
    assert [old] == [i["digest"] for i in json.loads(ctl(host, "image", "prune", "--json").stdout)["images"]]
    host.run(["systemctl", "stop", "hypeman@keeper"])


def test_never_is_not_to_ask_and_always_is_to_ask_each_time(host: TestHost, vms: Vms) -> None:
    vms.define("never", None, image=f"{TLS}/app:v1", image_pull="never")
    refused = vms.ctl("start", "never", check=False)
    assert (refused.code, f"there is no image {TLS}/app:v1" in refused.stderr) == (4, True)
    move(host, "app:v1", "moving:always")
    vms.start(vms.define("always", None, image=f"{TLS}/moving:always", image_pull="always"))
    move(host, "app:v2", "moving:always")
    vms.ctl("restart", "--wait", "always")
    assert vms.execute("always", "cat", "/etc/version") == "two\n"


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


def test_a_registry_that_nobody_vouches_for_is_refused(host: TestHost) -> None:
    host.run(["mv", "/etc/containers/certs.d", "/etc/containers/certs.d.away"])
    try:
        refused = pull(host, f"{TLS}/app:v1", check=False)
    finally:
        host.run(["mv", "/etc/containers/certs.d.away", "/etc/containers/certs.d"])
    assert (refused.code, "/etc/containers/certs.d/" in refused.stderr) == (1, True)


def test_the_hosts_policy_is_followed(host: TestHost) -> None:
    policy = {"default": [{"type": "insecureAcceptAnything"}]}
    rejecting = {**policy, "transports": {"docker": {TLS: [{"type": "reject"}]}}}
    host.push("/etc/containers/policy.json", json.dumps(rejecting))
    try:
        refused = pull(host, f"{TLS}/app:v1", check=False)
    finally:
        host.run(["cp", f"{HERE}/policy.json.before", "/etc/containers/policy.json"])
    assert (refused.code, "/etc/containers/policy.json" in refused.stderr) == (1, True)


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        (f"{TLS}/app:none", 4, "there is no image"),
        (f"{TLS}/none", 4, "there is no image"),
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


def test_a_full_disk_leaves_nothing(host: TestHost) -> None:
    host.run(["mount", "-t", "tmpfs", "-o", "size=5m,mode=711", "none", STORE])
    try:
        refused = pull(host, f"{TLS}/app:v1", check=False)
        assert (refused.code, "no space left" in refused.stderr) == (9, True), refused.describe()
        assert left(host) == []
    finally:
        host.run(["umount", STORE])


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
    host.wait_until(lambda: words in vms.properties("hypeman@waits", status)[status], 20, "systemd is told")
    assert words in vms.ctl("status", "waits", check=False).stdout

    def look() -> dict[str, int] | None:
        image = json.loads(ctl(host, "image", "inspect", f"{STUB}/hang/app:v1").stdout)
        progress: dict[str, int] = image["progress"]
        return progress if image["status"] == "pulling" and progress["bytes"] else None

    progress = host.wait_until(look, 20, "something has come")
    assert (progress["layers"], progress["total_layers"]) == (0, 1)
    assert progress["bytes"] < progress["total_bytes"]
    host.run(["systemctl", "stop", "hypeman@waits"])
    assert vms.state("waits") == "Stopped"
    ctl(host, "image", "rm", f"{STUB}/hang/app:v1")


def test_a_daemon_that_is_killed_leaves_nothing_of_a_pull(host: TestHost) -> None:
    host.shell(f"hypemanctl image pull {STUB}/hang/app:v1 >/dev/null 2>&1 &")
    unit = "systemctl list-units --plain -q 'hypeman-image-*'"
    host.wait_until(lambda: left(host) and host.shell(unit).stdout, 20, "a pull is on")
    host.run(["systemctl", "kill", "--signal=KILL", "hypemand.service"])
    host.wait_until(lambda: not left(host), 20, "nothing is left")


def test_an_orderly_stop_of_the_daemon_ends_a_pull(host: TestHost) -> None:
    host.shell(f"hypemanctl image pull {STUB}/hang/app:v1 >/dev/null 2>&1 &")
    host.wait_until(lambda: left(host), 20, "a pull is on")
    host.run(["systemctl", "restart", "hypemand.service"])
    assert left(host) == []


def test_paths_of_the_host_are_images_too(host: TestHost, vms: Vms) -> None:
    for source in (f"oci:{HERE}/oci:v1", f"docker-archive:{HERE}/docker.tar", f"dir:{HERE}/root"):
        name = vms.define("local", "cat /etc/version", image=source)
        vms.ctl("start", "--wait", name)
        host.wait_until(lambda: "one" in vms.console("local"), 20, source)
        vms.remove(name)
    assert len(ctl(host, "image", "list", "-q").stdout.splitlines()) == 4


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
