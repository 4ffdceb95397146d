# SPDX-License-Identifier: Apache-2.0
"""The API of a real daemon, used from outside its host: as described, and with the published client."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from typing import Any

import httpx
import hypeman
import pytest

from tests.clientcalls import VM, Walk, read_table, render_table
from tests.host.faults import BUSYBOX, DROPIN, check_gone, write_definition
from tests.host.machine import TestHost
from tests.openapi_check import Description

pytestmark = pytest.mark.one_release

SMALL: dict[str, Any] = {
    "image": BUSYBOX, "size": "128MB", "overlay_size": "64MB", "vcpus": 1, "network": {"enabled": False}
}  # fmt: skip


@pytest.fixture(scope="module")
def http(host: TestHost) -> Iterator[httpx.Client]:
    """A client of the host's socket for which every answer must be as it is described."""
    description = Description()

    def check(response: httpx.Response) -> None:
        if response.request.url.params.get("follow") == "true" or response.url.path.endswith("/watch"):
            return
        response.read()
        request = response.request
        target = request.url.raw_path.decode()
        kind = response.headers.get("content-type")
        description.check_answer(request.method, target, response.status_code, kind, response.content)

    transport = httpx.HTTPTransport(uds=str(host.root / "run/hypemand/api.sock"))
    with httpx.Client(
        transport=transport, base_url="http://hypemand", event_hooks={"response": [check]}, timeout=200
    ) as client:
        yield client


@pytest.fixture(scope="module")
def client(http: httpx.Client) -> hypeman.Hypeman:
    """The published client, unchanged."""
    return hypeman.Hypeman(api_key="any", base_url="http://hypemand", http_client=http, max_retries=0)


def test_the_life_of_an_instance_with_the_published_client(host: TestHost, client: hypeman.Hypeman) -> None:
    assert client.health.check().status == "ok"
    made = client.instances.create(
        name="api-life", cmd=["sh", "-c", "echo up on $COLOUR; exec sleep infinity"], env={"COLOUR": "blue"},
        tags={"team": "x"}, **SMALL,
    )  # fmt: skip
    try:
        assert made.state in ("Created", "Initializing")
        waited = client.instances.wait(made.id, state="Running", api_timeout="180s")
        assert (waited.state, waited.timed_out) == ("Running", False)
        assert [found.name for found in client.instances.list(state="Running", tags={"team": "x"})] == [
            "api-life"
        ]
        host.wait_until(lambda: list(client.instances.logs(made.id)) == ["up on blue"])
        check: Any = {"exec": {"command": ["true"]}, "interval": "1s"}
        client.instances.update("api-life", health_check=check, restart_policy={"policy": "on_failure"})
        host.wait_until(lambda: _health(client, "api-life") == "healthy")
        assert _policies(host, client, "api-life") == ("never", "no")
        stopped = client.instances.stop("api-life")
        assert (stopped.state, stopped.exit_code) == ("Stopped", 143)
        assert list(client.instances.logs(made.id, follow=True, tail=1)) == ["up on blue"]
        assert client.instances.start("api-life").state in ("Created", "Initializing")
        assert client.instances.wait("api-life", state="Running", api_timeout="180s").state == "Running"
        assert client.instances.get("api-life").id == made.id
        assert _policies(host, client, "api-life") == ("on_failure", "on-failure")
        with pytest.raises(hypeman.BadRequestError, match="a VM api-life already exists"):
            client.instances.create(name="api-life", **SMALL)
    finally:
        client.instances.delete("api-life")
    with pytest.raises(hypeman.NotFoundError):
        client.instances.get("api-life")
    check_gone(host, "api-life")


def _health(client: hypeman.Hypeman, name: str) -> str | None:
    status = client.instances.get(name).health_status
    return None if status is None else status.status


def _policies(host: TestHost, client: hypeman.Hypeman, name: str) -> tuple[str | None, str]:
    """When it is restarted, as the API shows it and as systemd has it."""
    shown = client.instances.get(name).restart_policy
    unit = f"hypeman-vm-{name}.service"
    has = host.run(["systemctl", "show", "--value", "--property=Restart", unit]).stdout.strip()
    return None if shown is None else shown.policy, has


def test_every_call_of_the_published_client_is_answered(host: TestHost, client: hypeman.Hypeman) -> None:
    host.shell("mkdir -p /srv/api-calls/bin && cp /bin/busybox /srv/api-calls/bin/sleep")
    image = "dir:/srv/api-calls"
    try:
        client.images.create(name=image)
        host.wait_until(lambda: client.images.get(image).status == "ready")
        found = Walk(client, image, SMALL | {"cmd": ["/bin/sleep", "100"]}).run()
        client.images.delete("calls")
    finally:
        host.run(["rm", "-rf", "/srv/api-calls"])
    assert set(found.values()) == {"yes", "not_supported"}, found
    assert render_table(found) == read_table()
    check_gone(host, VM)


def test_a_log_is_followed_to_the_end_of_the_run(client: hypeman.Hypeman) -> None:
    client.instances.create(
        name="api-log", cmd=["sh", "-c", "for i in 1 2 3; do echo $i; sleep 0.2; done"], **SMALL
    )
    try:
        assert list(client.instances.logs("api-log", follow=True)) == ["1", "2", "3"]
        assert client.instances.wait("api-log", state="Stopped", api_timeout="180s").state == "Stopped"
        assert client.instances.get("api-log").exit_code == 0
    finally:
        client.instances.delete("api-log")


def test_images_with_the_published_client(client: hypeman.Hypeman) -> None:
    (image,) = client.images.list()
    assert (image.name, image.status, image.platform) == (BUSYBOX, "ready", "linux/amd64")
    assert client.images.get(BUSYBOX).digest == image.digest
    with pytest.raises(hypeman.ConflictError):
        client.images.delete(BUSYBOX)
    with pytest.raises(hypeman.NotFoundError):
        client.images.get("nosuch")


def test_an_image_is_made_named_and_used_with_the_published_client(
    host: TestHost, client: hypeman.Hypeman
) -> None:
    host.shell("mkdir -p /srv/api-image/bin && cp /bin/busybox /srv/api-image/bin/sleep")
    name = "dir:/srv/api-image"
    try:
        assert client.images.create(name=name).status in ("pending", "converting")
        host.wait_until(lambda: client.images.get(name).status == "ready")
        tagged = client.images.tag(name, target="api/app:v1")
        assert (tagged.name, tagged.digest) == ("api/app:v1", client.images.get(name).digest)
        client.images.delete(name)
        client.instances.create(name="api-image", cmd=["/bin/sleep", "100"], **SMALL | {"image": tagged.name})
        waited = client.instances.wait("api-image", state="Running", api_timeout="180s")
        assert waited.state == "Running"
        with pytest.raises(hypeman.ConflictError, match="used by api-image"):
            client.images.delete(tagged.name)
        client.instances.delete("api-image")
        client.images.delete(tagged.name)
        with pytest.raises(hypeman.InternalServerError, match="pull_failed"):  # the host has no way out
            client.instances.create(name="api-image", **SMALL | {"image": "never/there"})
        with pytest.raises(hypeman.BadRequestError, match="platform"):
            client.images.create(name="app", platform="linux/arm64")
    finally:
        host.run(["rm", "-rf", "/srv/api-image"])


def test_volumes_with_the_published_client(host: TestHost, client: hypeman.Hypeman) -> None:
    """Made, filled, attached and detached while the instance is stopped, and seen by it when it runs."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        member = tarfile.TarInfo("greeting")
        member.size = 6
        archive.addfile(member, io.BytesIO(b"hello\n"))
    script = "cat /data/greeting /data/more 2>&1; echo more >/data/more; exec sleep infinity"
    client.volumes.create_from_archive(data.getvalue(), name="api-data", size_gb=1)
    client.volumes.create(name="api-spare", size_gb=1, tags={"team": "x"})
    try:
        assert [volume.name for volume in client.volumes.list(tags={"team": "x"})] == ["api-spare"]
        made = client.instances.create(name="api-user", cmd=["sh", "-c", script], **SMALL)
        client.instances.wait(made.id, state="Running", api_timeout="180s")
        with pytest.raises(hypeman.ConflictError, match="Running"):
            client.instances.volumes.attach("api-data", id="api-user", mount_path="/data")
        client.instances.stop("api-user")
        with_it = client.instances.volumes.attach("api-data", id="api-user", mount_path="/data")
        assert [(v.volume_id, v.mount_path) for v in with_it.volumes or []] == [("api-data", "/data")]
        with pytest.raises(hypeman.ConflictError, match="attached to api-user"):
            client.volumes.delete("api-data")
        client.instances.start("api-user")
        assert client.instances.wait(made.id, state="Running", api_timeout="180s").state == "Running"
        host.wait_until(lambda: "hello" in list(client.instances.logs("api-user")))
        with pytest.raises(hypeman.ConflictError, match="Running"):
            client.instances.volumes.detach("api-data", id="api-user")
        client.instances.stop("api-user")
        assert client.instances.volumes.detach("api-data", id="api-user").volumes == []
        assert client.volumes.get("api-data").attachments == []
        client.instances.start("api-user")
        gone = "cat: can't open '/data/greeting': No such file or directory"
        host.wait_until(lambda: gone in list(client.instances.logs("api-user")))
        client.instances.delete("api-user")
    finally:
        for name in ("api-data", "api-spare"):
            client.volumes.delete(name)
    with pytest.raises(hypeman.NotFoundError):
        client.volumes.get("api-data")


def test_every_question_is_answered_as_described(host: TestHost, http: httpx.Client) -> None:
    created = http.post(
        "/instances", json={"definition": {"image": BUSYBOX, "memory": "128M"}, "start": False}
    )
    assert created.status_code == 201
    name = created.json()["name"]
    try:
        for path in (
            "/health",
            "/openapi.yaml",
            "/instances",
            f"/instances/{name}",
            "/images",
            f"/images/{BUSYBOX}",
        ):
            assert http.get(path).status_code == 200, path
        assert http.get(f"/instances/{name}/timeline").status_code == 409
        assert http.get(f"/instances/{name}/logs").text == ""
        assert (
            http.get(f"/instances/{name}/wait", params={"state": "Running", "timeout": "1s"}).status_code
            == 200
        )
        assert http.post(f"/instances/{name}/kill", json={}).status_code == 409
        assert http.post(f"/instances/{name}/start", json={}).status_code == 200
        assert http.get(f"/instances/{name}/wait", params={"state": "Running"}).json()["state"] == "Running"
        assert http.get(f"/instances/{name}/timeline").status_code == 200
        assert http.post(f"/instances/{name}/restart", json={}).status_code == 200
        assert http.post(f"/instances/{name}/stop", json={"timeout": "20s"}).json()["state"] == "Stopped"
    finally:
        assert http.delete(f"/instances/{name}").status_code == 204
    check_gone(host, name)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "/instances", {"image": BUSYBOX, "name": "x", "frob": 1}, 400, "invalid_definition"),
        ("POST", "/instances", {"name": "x"}, 400, "invalid_definition"),
        ("POST", "/instances", {"image": "nosuch", "name": "x"}, 502, "pull_failed"),
        ("POST", "/instances", {"image": BUSYBOX, "name": "x", "size": "1TB"}, 409, "insufficient_resources"),
        ("POST", "/instances", [1], 400, "invalid_request"),
        ("GET", "/instances/nobody", None, 404, "not_found"),
        ("POST", "/instances/nobody/start", {}, 404, "not_found"),
        ("GET", "/nowhere", None, 404, "unknown_route"),
        ("PUT", "/instances", {}, 405, "method_not_allowed"),
        ("POST", "/images/import", {"name": "x", "path": "relative"}, 400, "invalid_request"),
    ],
)
def test_a_refusal_has_code_and_words_and_makes_nothing(
    host: TestHost, http: httpx.Client, method: str, path: str, body: Any, status: int, code: str
) -> None:
    answer = http.request(method, path, json=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.json()["message"]
    assert http.get("/instances").json() == []
    check_gone(host, "x")


def test_a_reload_tells_of_broken_files(host: TestHost, http: httpx.Client) -> None:
    write_definition(host, "broken", "image: [\n")
    try:
        answer = http.post("/reload", json={})
        assert answer.status_code == 200
        assert {problem["file"] for problem in answer.json()["problems"]} == {
            "/etc/hypemand/vms.d/broken.yaml"
        }
    finally:
        host.run(["rm", "-f", "/etc/hypemand/vms.d/broken.yaml", DROPIN])
        http.post("/reload", json={})
