# SPDX-License-Identifier: Apache-2.0
"""How images are called."""

from __future__ import annotations

import pytest

from hypemand.errors import InvalidRequest
from hypemand.storage.references import (
    Reference,
    Transport,
    derive_digest_name,
    derive_registry_name,
    parse_image_name,
    parse_reference,
    split_name,
)

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("nginx", "docker.io/library/nginx"),
        ("nginx:1.27", "docker.io/library/nginx:1.27"),
        ("team/app", "docker.io/team/app"),
        ("docker.io/nginx", "docker.io/library/nginx"),
        ("index.docker.io/team/app:v1", "docker.io/team/app:v1"),
        ("localhost/app", "localhost/app"),
        ("localhost:5000/app:v1", "localhost:5000/app:v1"),
        ("registry.example/app", "registry.example/app"),
        (f"nginx@{DIGEST}", f"docker.io/library/nginx@{DIGEST}"),
    ],
)
def test_names_are_read_as_docker_does(short: str, full: str) -> None:
    assert derive_registry_name(short) == full


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("app:latest", "app"),
        (f"app:v1@{DIGEST}", f"app@{DIGEST}"),
        (f"localhost:5000/app@{DIGEST}", f"localhost:5000/app@{DIGEST}"),
        ("oci:/srv/x:v1", "oci:/srv/x:v1"),
        ("dir:/srv/Root FS", "dir:/srv/Root FS"),
        ("oci:v1", "oci:v1"),
    ],
)
def test_a_name_has_one_spelling(text: str, name: str) -> None:
    assert parse_image_name(text) == name
    assert parse_image_name(name) == name


@pytest.mark.parametrize(
    "text",
    ["app@sha256:12", "app@md5:" + "0" * 32, "dir:/srv/../etc", "dir:/a\nb", "oci:/" + "x" * 300, "Dir:/x"],
)
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_image_name(text)


def test_where_images_come_from() -> None:
    assert parse_reference("app:latest") == Reference(Transport.REGISTRY, "docker.io/library/app")
    assert parse_reference("oci:/srv/x:v1") == Reference(Transport.OCI, "oci:/srv/x:v1", "/srv/x:v1")
    assert parse_reference("docker-archive:/a.tar").transport is Transport.DOCKER_ARCHIVE
    assert parse_reference("dir:/srv").path == "/srv"
    assert parse_reference("builtin:busybox").transport is Transport.BUILTIN
    assert [t for t in Transport if t.is_local] == [Transport.OCI, Transport.DOCKER_ARCHIVE, Transport.DIR]


@pytest.mark.parametrize("name", ["app", "app:v2", f"app@{DIGEST}"])
def test_a_content_is_called_by_its_digest(name: str) -> None:
    assert split_name(name)[0] == "app"
    assert derive_digest_name(name, DIGEST) == f"app@{DIGEST}"
    local = derive_digest_name("dir:/srv", DIGEST)
    assert (parse_image_name(local), split_name(local)) == (local, ("dir:/srv", f"@{DIGEST}"))
    assert parse_reference(local).path == "/srv"
