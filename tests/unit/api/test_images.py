# SPDX-License-Identifier: Apache-2.0
"""The routes of images."""

import json
from pathlib import Path

import pytest

from hypemand.config.definition import ImagePull
from hypemand.model.images import Credentials, Progress, PullStatus
from tests.unit.api.fakes import IMAGE
from tests.unit.api.harness import NOBODY, Api, ask_as, description, drive


def test_images_are_listed_shown_and_removed(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        names = [image["name"] for image in (await api.ask("GET", "/images")).json]
        assert names == [IMAGE, "example.org/team/app:v1", "spare"]
        shown = (await api.ask("GET", "/images/builtin%3Abusybox")).json
        assert (shown["status"], shown["builtin"], shown["env"]) == (
            "ready",
            True,
            {"PATH": "/bin", "A": "b=c"},
        )
        assert shown["created_at"] == "2023-11-14T22:13:20.000Z"
        used = "/images/example.org%2Fteam%2Fapp:v1"
        assert (await api.ask("GET", used)).json["in_use_by"] == ["web"]
        assert (await api.ask("DELETE", used)).code == "in_use"
        assert (await api.ask("DELETE", "/images/spare")).status == 204
        assert (await api.ask("GET", "/images/spare")).code == "image_not_found"
        assert (await api.ask("GET", "/images?tags[a]=b")).status == 400

    drive(tmp_path, scenario)


def test_an_image_is_imported_from_an_absolute_path(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        body = {"name": "new", "path": "/srv/root.tar"}
        description().check_request("POST", "/images/import", body)
        made = await api.ask("POST", "/images/import", body)
        assert (made.status, made.json["name"]) == (201, "new")
        for wrong, words in (
            ({"name": "x"}, "path"),
            ({"path": "/x"}, "name"),
            ({"name": "x", "path": "relative"}, "path"),
            ({"name": "x", "path": "/a\0b"}, "path"),
            ({"name": "", "path": "/x"}, "name"),
            ({"name": 5, "path": "/x"}, "name"),
            ({"name": "x", "path": "/x", "tag": "y"}, "tag"),
        ):
            answer = await api.ask("POST", "/images/import", wrong)
            assert answer.status == 400
            assert words in answer.json["message"]

    drive(tmp_path, scenario)


def test_an_image_is_pulled_and_followed_by_events(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        name = "registry.example/new:v1"
        body = {"name": name, "credentials": {"username": "me", "password": "secret"}}
        description().check_request("POST", "/images", body)
        begun = await api.ask("POST", "/images", body)
        assert (begun.status, begun.json["status"], begun.json["size_bytes"]) == (202, "pending", None)
        assert api.images.credentials == [Credentials("me", "secret")]
        target = "/images/registry.example%2Fnew:v1"
        async with api.session.get(api.url(f"{target}/watch")) as response:
            seen = []
            for status, progress in (
                (None, None),
                (PullStatus.PULLING, Progress(5, 10, 0, 1)),
                (PullStatus.FAILED, None),
            ):
                if status is not None:
                    await api.images.step(
                        name, status, progress=progress, error="cut off", error_code="pull_failed"
                    )
                seen.append(json.loads((await response.content.readline()).removeprefix(b"data: ")))
                await response.content.readline()
            assert await response.content.read() == b""
        assert [image["status"] for image in seen] == ["pending", "pulling", "failed"]
        assert seen[1]["progress"] == {"bytes": 5, "total_bytes": 10, "layers": 0, "total_layers": 1}
        assert (seen[2]["error"], seen[2]["error_code"]) == ("cut off", "pull_failed")
        assert (await api.ask("GET", "/images/nothing/watch")).code == "image_not_found"

    drive(tmp_path, scenario)


def test_what_cannot_be_pulled_is_refused_by_name(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        for wrong, words in (
            ({}, "name"),
            ({"name": "Upper"}, "Upper"),
            ({"name": "app", "platform": "linux/s390x"}, "platform"),
            ({"name": "app", "tags": {"a": "b"}}, "tags"),
            ({"name": "app", "credentials": {"registry_token": "x"}}, "registry_token"),
            ({"name": "app", "credentials": {"username": "x"}}, "password"),
            ({"name": "app", "credentials": "x"}, "credentials"),
        ):
            answer = await api.ask("POST", "/images", wrong)
            assert answer.status == 400, wrong
            assert words in answer.json["message"]
        assert (
            await api.ask("POST", "/images", {"name": "app", "tags": {}, "credentials": {}})
        ).status == 202

    drive(tmp_path, scenario)


def test_images_are_tagged_pruned_and_exported(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        tagged = await api.ask("POST", "/images/spare/tag", {"target": "other:v1"})
        assert (tagged.status, tagged.json["name"]) == (201, "other:v1")
        async with api.session.get(api.url("/images/spare/export")) as response:
            assert response.content_type == "application/x-tar"
            assert await response.read() == api.images.archive
        assert (await api.ask("GET", "/images/none/export")).code == "image_not_found"
        dry = await api.ask("POST", "/images/prune", {"all": True, "dry_run": True})
        assert [image["names"] for image in dry.json["images"]] == [["spare"], ["other:v1"]]
        assert dry.json["freed_bytes"] == 8192
        assert (await api.ask("POST", "/images/prune", {})).json["images"] == []
        assert "spare" in api.images.images
        await api.ask("POST", "/images/prune", {"all": True})
        assert "spare" not in api.images.images
        assert (await api.ask("POST", "/images/prune", {"all": 1})).status == 400

    drive(tmp_path, scenario)


def test_a_start_may_say_when_to_pull(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        api.manager.add("web")
        for action in ("start", "restart"):
            assert (await api.ask("POST", f"/instances/web/{action}", {"image_pull": "always"})).status == 200
            for wrong in ("sometimes", 3, ["always"]):
                answer = await api.ask("POST", f"/instances/web/{action}", {"image_pull": wrong})
                assert "image_pull" in answer.json["message"]
        assert api.manager.pulls == [ImagePull.ALWAYS, ImagePull.ALWAYS]

    drive(tmp_path, scenario)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/images/import", '{"name":"new","path":"/etc/shadow"}'),
        ("/images", '{"name":"dir:/etc"}'),
        ("/instances", '{"name":"new","definition":{"image":"dir:/etc"}}'),
    ],
)
def test_a_path_of_the_host_is_read_for_root_alone(tmp_path: Path, path: str, text: str) -> None:
    async def scenario(api: Api) -> None:
        answer = await ask_as(NOBODY, api.path, "POST", path, json.loads(text))
        assert answer.startswith(b"HTTP/1.0 403")
        assert b'"forbidden"' in answer
        assert "new" not in api.images.images
        assert "new" not in api.manager.vms

    drive(tmp_path, scenario)
