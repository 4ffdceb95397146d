# SPDX-License-Identifier: Apache-2.0
"""Registries on the loopback of a test host, and images in them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.host.command import Result
from tests.host.faults import ctl
from tests.host.machine import TestHost

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

# argv: the folder. Images of busybox in a layout: v1, v2 (another content), arm, escapes by name
# and by link, and v2 packed with zstd.
SETUP = r"""
cd "$1"
key="ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
openssl req -x509 -newkey $key -days 2 -subj /CN=test-ca -keyout ca.key -out ca.pem
openssl req -newkey $key -subj /CN=localhost -keyout key.pem -out cert.csr
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
skopeo --insecure-policy copy -q --dest-compress-format zstd oci:oci:v2 oci:zstd:v2
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
skopeo --insecure-policy copy -q oci:zstd:v2 docker://localhost:5001/app:zstd
skopeo --insecure-policy copy -q --dest-creds user:secret oci:oci:v1 docker://localhost:5002/team/secret:v1
"""
# argv: the folder. An image with a layer that is small until it is unpacked, beside those, and that layer.
BOMB = """
cd "$1"
umoci tag --image oci:v1 bomb
truncate -s 320M zeros; tar -cf bomb.tar zeros; umoci raw add-layer --image oci:bomb bomb.tar
gzip bomb.tar; rm zeros
skopeo --insecure-policy copy -q oci:oci:bomb docker://localhost:5001/app:bomb
"""
TEARDOWN = """
systemctl stop registry-tls registry-shut registry-stub
rm -rf "$1" /etc/containers/certs.d /etc/containers/registries.conf.d/stub.conf /etc/hypemand/auth.json
"""


@contextmanager
def run_registries(host: TestHost) -> Iterator[None]:
    """Registries on loopback: with TLS, with TLS and a password, and one that misbehaves. No image is left in
    the store at the end."""
    host.push(f"{HERE}/tls.yaml", CONFIG.replace("PORT", "5001"))
    host.push(f"{HERE}/shut.yaml", CONFIG.replace("PORT", "5002") + AUTH)
    host.push(f"{HERE}/htpasswd", HTPASSWD)
    host.push(f"{HERE}/stub.py", Path(__file__).with_name("registry_stub.py").read_text())
    host.run(["sh", "-euc", SETUP, "setup", HERE])
    yield
    host.run(["sh", "-uc", TEARDOWN, "teardown", HERE])
    assert left(host) == []


def check_clean(host: TestHost) -> None:
    """After images were pruned: nothing is left, nothing was written elsewhere, and no tool runs."""
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
