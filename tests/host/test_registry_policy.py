# SPDX-License-Identifier: Apache-2.0
"""What an administrator says of registries in /etc/containers is followed: mirrors, blocks, signatures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.host.machine import TestHost
from tests.host.registries import HERE, TLS, check_clean, pull, remote_digest, run_registries
from tests.host.vms import Vms

pytestmark = pytest.mark.one_release

POLICY = "/etc/containers/policy.json"
ANYTHING = {"type": "insecureAcceptAnything"}
# argv: the folder. Two keys, and an image that is signed with the first; its signature lies in sigs/, as a
# server beside the registry would have it.
SIGN = """
cd "$1"
export GNUPGHOME="$1/gnupg"
mkdir -m 700 gnupg
for who in maker other; do
    gpg --batch --quiet --passphrase '' --quick-generate-key $who@example.org rsa2048 sign never
    gpg --batch --quiet --armor --export $who@example.org >$who.asc
done
skopeo --insecure-policy copy -q --sign-by maker@example.org oci:oci:v1 docker://localhost:5001/signed:v1
skopeo --insecure-policy copy -q oci:oci:v2 docker://localhost:5001/signed:v2
gpgconf --kill all
"""
LOOKASIDE = f"""
docker:
  {TLS}:
    lookaside: file://{HERE}/sigs
    lookaside-staging: file://{HERE}/sigs
"""


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


@contextmanager
def config_file(host: TestHost, path: str, content: str) -> Iterator[None]:
    """A file that says so, as long as the block lasts."""
    host.push(path, content)
    try:
        yield
    finally:
        host.run(["rm", path])


@contextmanager
def policy(host: TestHost, of_registry: list[dict[str, object]]) -> Iterator[None]:
    """What is asked of images from the registry, in this block."""
    document = {"default": [ANYTHING], "transports": {"docker": {TLS: of_registry}}}
    host.push(POLICY, json.dumps(document))
    try:
        yield
    finally:
        host.run(["cp", f"{HERE}/policy.json.before", POLICY])


def registries(text: str) -> str:
    return f"[[registry]]\n{text}\n"


def test_a_mirror_stands_in_for_a_registry_that_is_not_there(host: TestHost, vms: Vms) -> None:
    mirror = registries(
        'location = "upstream.invalid/team"\n[[registry.mirror]]\nlocation = "localhost:5001"'
    )
    name = "upstream.invalid/team/app:v1"
    unreachable = pull(host, name, check=False)
    assert unreachable.code == 1, unreachable.describe()
    with config_file(host, "/etc/containers/registries.conf.d/mirror.conf", mirror):
        digest = remote_digest(host, f"{TLS}/app:v1")
        assert pull(host, name).stdout == f"{name} {digest}\n"
        assert pull(host, f"upstream.invalid/team/app@{digest}").ok
    # it is that image by its own name, wherever it came from
    vms.run("mirrored", image=name, image_pull="never")
    assert vms.execute("mirrored", "cat", "/etc/version") == "one\n"
    vms.remove("mirrored")


def test_a_registry_that_is_elsewhere_or_blocked(host: TestHost) -> None:
    elsewhere = registries('prefix = "*.house.invalid"\nlocation = "localhost:5001"')
    blocked = registries('location = "localhost:5001/app"\nblocked = true')
    conf = "/etc/containers/registries.conf.d/house.conf"
    with config_file(host, conf, elsewhere):
        assert pull(host, "a.house.invalid/app:v1").ok
    with config_file(host, conf, blocked):
        refused = pull(host, f"{TLS}/app:v1", check=False)
    assert (refused.code, "blocked in" in refused.stderr) == (1, True), refused.describe()


def test_a_registry_that_the_policy_rejects_is_refused(host: TestHost) -> None:
    with policy(host, [{"type": "reject"}]):
        refused = pull(host, f"{TLS}/app:v1", check=False)
    assert (refused.code, POLICY in refused.stderr) == (1, True), refused.describe()
    assert pull(host, f"{TLS}/app:v1").ok


@pytest.mark.both_releases
def test_an_image_is_had_if_it_is_signed_with_the_key_that_the_policy_names(host: TestHost) -> None:
    wanted: dict[str, object] = {"type": "signedBy", "keyType": "GPGKeys"}
    with config_file(host, "/etc/containers/registries.d/signed.yaml", LOOKASIDE):
        host.run(["sh", "-euc", SIGN, "sign", HERE])
        with policy(host, [{**wanted, "keyPath": f"{HERE}/other.asc"}]):
            forged = pull(host, f"{TLS}/signed:v1", check=False)
        with policy(host, [{**wanted, "keyPath": f"{HERE}/maker.asc"}]):
            unsigned = pull(host, f"{TLS}/signed:v2", check=False)
            assert pull(host, f"{TLS}/signed:v1").ok
    for refused in (forged, unsigned):
        assert (refused.code, POLICY in refused.stderr) == (1, True), refused.describe()
