# SPDX-License-Identifier: Apache-2.0
"""The routes of images."""

import io
import json
import tarfile
from pathlib import Path
from urllib.parse import quote

import pytest

from hypemand.model.images import derive_host_architecture
from tests.unit.api.harness import IMAGE, NOBODY, Api, Json, ask_as, description, drive
from tests.unit.storage.support import make_layout, make_tar, member, shell

APP = "example.org/team/app:v1"
NEW = "registry.example/new:v1"


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a registry has of one image."""
    folder = tmp_path_factory.mktemp("layout")
    tar = make_tar(folder / "1.tar", [shell()])
    return make_layout(folder / "layout", [tar], tag="v1", architecture=derive_host_architecture())


def test_images_are_listed_shown_and_removed(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        for name in (APP, "spare"):
            api.host.add_image(name)
        await api.host.put("web", image=APP)
        names = [image["name"] for image in (await api.ask("GET", "/images")).json]
        assert names == ["builtin:app", IMAGE, APP, "spare"]
        shown = (await api.ask("GET", "/images/builtin%3Abusybox")).json
        assert (shown["status"], shown["builtin"], shown["env"]) == (
            "ready",
            True,
            {"PATH": "/bin", "A": "b=c"},
        )
        assert shown["created_at"] == "1970-01-01T00:00:00.000Z"
        used = "/images/example.org%2Fteam%2Fapp:v1"
        assert (await api.ask("GET", used)).json["in_use_by"] == ["web"]
        assert (await api.ask("DELETE", used)).code == "in_use"
        assert (await api.ask("DELETE", "/images/spare")).status == 204
        assert (await api.ask("GET", "/images/spare")).code == "image_not_found"
        assert (await api.ask("GET", "/images?tags=b")).status == 400

    drive(tmp_path, scenario)


def test_images_have_tags_by_which_they_are_selected(tmp_path: Path, layout: Path) -> None:
    async def scenario(api: Api) -> None:
        async def select(*pairs: tuple[str, str]) -> list[str]:
            query = "&".join(f"tags%5B{quote(key, safe='')}%5D={quote(value)}" for key, value in pairs)
            return [image["name"] for image in (await api.ask("GET", f"/images?{query}")).json]

        api.host.registry.push(NEW, layout, "v1")
        tags = {"team": "shop", "a b_.:/=+@-": "1"}
        api.host.registry.gate.clear()
        asked = await api.ask("POST", "/images", {"name": NEW, "tags": tags})
        assert asked.json["tags"] == tags
        # already while it is being pulled
        assert await select(("team", "shop")) == [NEW]
        api.host.registry.gate.set()
        assert (await follow(api, NEW))[-1]["tags"] == tags
        assert (await api.ask("GET", "/images/registry.example%2Fnew:v1")).json["tags"] == tags
        assert await select(*tags.items()) == [NEW]
        assert await select(("team", "other")) == []
        # they are the name's: another name has none, and a pull without tags changes none
        await api.ask("POST", "/images/registry.example%2Fnew:v1/tag", {"target": "other:v1"})
        assert await select(("team", "shop")) == [NEW]
        await api.ask("POST", "/images", {"name": NEW})
        assert (await follow(api, NEW))[-1]["tags"] == tags
        await api.ask("POST", "/images", {"name": NEW, "tags": {}})
        assert (await follow(api, NEW))[-1]["tags"] == {}
        assert await select(("team", "shop")) == []

    drive(tmp_path, scenario)


def test_an_image_is_imported_from_an_absolute_path(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        body = {"name": "new", "path": str(make_tar(tmp_path / "root.tar", [shell()]))}
        description().check_request("POST", "/images/import", body)
        made = await api.ask("POST", "/images/import", body)
        assert (made.status, made.json["name"]) == (201, "new")
        assert (await api.ask("GET", "/images/new")).json == made.json
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


async def follow(api: Api, name: str) -> list[Json]:
    """All that is told of a pull."""
    target = f"/images/{name.replace('/', '%2F')}/watch"
    return [image for _, image in (await api.ask("GET", target)).events]


def test_an_image_is_pulled_and_followed_by_events(tmp_path: Path, layout: Path) -> None:
    async def scenario(api: Api) -> None:
        registry = api.host.registry
        registry.push(NEW, layout, "v1")
        registry.gate.clear()
        body = {"name": NEW, "credentials": {"username": "me", "password": "secret"}}
        description().check_request("POST", "/images", body)
        begun = await api.ask("POST", "/images", body)
        assert (begun.status, begun.json["status"], begun.json["size_bytes"]) == (202, "pending", None)
        seen = []
        async with api.session.get(api.url("/images/registry.example%2Fnew:v1/watch")) as response:
            async for line in response.content:
                if line.startswith(b"data: "):
                    seen.append(json.loads(line[6:]))
                    description().check_schema("Image", seen[-1])
                    if (seen[-1]["progress"] or {}).get("total_layers"):
                        registry.gate.set()
        assert [image["status"] for image in seen][-1] == "ready"
        pulling = next(image for image in seen if (image["progress"] or {}).get("total_layers"))
        assert (pulling["status"], pulling["progress"]["total_layers"]) == ("pulling", 1)
        (secrets,) = {json.dumps(json.loads(text)) for text in registry.credentials}
        assert "bWU6c2VjcmV0" in secrets  # me:secret
        assert (await api.ask("GET", "/images/nothing/watch")).code == "image_not_found"

    drive(tmp_path, scenario)


def test_a_pull_that_fails_says_why(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        api.host.registry.failure = "it was cut off"
        assert (await api.ask("POST", "/images", {"name": NEW})).status == 202
        last = (await follow(api, NEW))[-1]
        assert (last["status"], last["error_code"]) == ("failed", "pull_failed")
        assert "it was cut off" in last["error"]

    drive(tmp_path, scenario)


def test_what_cannot_be_pulled_is_refused_by_name(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        for wrong, words in (
            ({}, "name"),
            ({"name": "Upper"}, "Upper"),
            ({"name": "app", "platform": "linux/s390x"}, "platform"),
            ({"name": "app", "tags": {"a!": "b"}}, "tags"),
            ({"name": "app", "tags": {"a": "b" * 257}}, "tags"),
            ({"name": "app", "credentials": {"registry_token": "x y"}}, "registry_token"),
            ({"name": "app", "credentials": {"registry_token": "x", "username": "y"}}, "registry_token"),
            ({"name": "app", "credentials": {"password": "x"}}, "username"),
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
        path = make_tar(tmp_path / "root.tar", [shell(), member("etc/motd", b"hi")])
        await api.ask("POST", "/images/import", {"name": "spare", "path": str(path)})
        tagged = await api.ask("POST", "/images/spare/tag", {"target": "other:v1"})
        assert (tagged.status, tagged.json["name"]) == (201, "other:v1")
        async with api.session.get(api.url("/images/spare/export")) as response:
            assert response.content_type == "application/x-tar"
            with tarfile.open(fileobj=io.BytesIO(await response.read())) as archive:
                assert "oci-layout" in [name.removeprefix("./") for name in archive.getnames()]
        assert (await api.ask("GET", "/images/none/export")).code == "image_not_found"
        dry = await api.ask("POST", "/images/prune", {"all": True, "dry_run": True})
        assert [image["names"] for image in dry.json["images"]] == [["other:v1", "spare"]]
        assert dry.json["freed_bytes"] == sum(image["size_bytes"] for image in dry.json["images"]) > 0
        assert (await api.ask("POST", "/images/prune", {})).json["images"] == []
        assert (await api.ask("GET", "/images/spare")).status == 200
        await api.ask("POST", "/images/prune", {"all": True})
        assert (await api.ask("GET", "/images/spare")).status == 404
        assert (await api.ask("POST", "/images/prune", {"all": 1})).status == 400

    drive(tmp_path, scenario)


def test_a_start_may_say_when_to_pull(tmp_path: Path, layout: Path) -> None:
    async def scenario(api: Api) -> None:
        registry = api.host.registry
        registry.push(NEW, layout, "v1")
        await api.host.put("web", image=NEW)
        for action in ("start", "restart"):
            registry.asked.clear()
            assert (await api.ask("POST", f"/instances/web/{action}", {"image_pull": "always"})).status == 200
            assert registry.asked[0] == f"inspect {NEW}"
            for wrong in ("sometimes", 3, ["always"]):
                answer = await api.ask("POST", f"/instances/web/{action}", {"image_pull": wrong})
                assert "image_pull" in answer.json["message"]
            registry.asked.clear()
            assert (await api.ask("POST", f"/instances/web/{action}", {"image_pull": "never"})).status == 200
            assert registry.asked == []

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
        assert [image.name for image in await api.services.images.list_images()] == ["builtin:app", IMAGE]
        assert not list(api.host.parts.fleet)

    drive(tmp_path, scenario)
