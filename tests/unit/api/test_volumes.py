# SPDX-License-Identifier: Apache-2.0
"""Volumes and df over HTTP: what is refused, and what our own command line needs."""

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from hypemand.config.pools import PoolConfig
from hypemand.model.files import FileInfo, FileKind
from hypemand.model.volumes import VolumeRoot
from tests.fakes.files import GuestFile
from tests.unit.api.harness import Api, Json, drive


def test_a_volume_by_our_own_words(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        made = await api.ask("POST", "/volumes", {"name": "data", "size": "512M"})
        assert (made.status, made.json["size_bytes"], made.json["size_gb"]) == (201, 512 * 2**20, 1)
        grown = await api.ask("POST", "/volumes/data/resize", {"size_gb": 3})
        assert (grown.status, grown.json["size_gb"]) == (200, 3)
        again = await api.ask("POST", "/volumes", {"name": "data", "size_gb": 1})
        assert (again.status, again.code) == (400, "already_exists")
        info = FileInfo("file", FileKind.FILE, 0o644, 0, 0, 6, 0)
        api.host.volume_files("data")["file"] = GuestFile(info, b"inside")
        archive = await api.ask("GET", "/volumes/data/archive")
        with tarfile.open(fileobj=io.BytesIO(archive.body)) as tar:
            (member,) = (m for m in tar if m.isfile())
            assert tar.extractfile(member).read() == b"inside"  # type: ignore[union-attr]
        assert (await api.ask("DELETE", "/volumes/data")).status == 204
        assert (await api.ask("GET", "/volumes/data")).status == 404

    drive(tmp_path, scenario)


def test_a_volume_of_a_pool_by_its_name_with_the_slash_encoded(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        (directory := api.host.folder / "fast").mkdir()
        api.host.config = replace(api.host.config, pools={"fast": PoolConfig(directory)})
        await api.host.daemon.reloader.reload()
        made = await api.ask("POST", "/volumes", {"name": "fast/data", "size": "512M"})
        assert (made.status, made.json["name"]) == (201, "fast/data")
        grown = await api.ask("POST", "/volumes/fast%2Fdata/resize", {"size_gb": 3})
        assert (grown.status, grown.json["size_gb"]) == (200, 3)
        web = {"name": "web", "image": "builtin:app", "network": {"enabled": False}}
        volumes = [{"volume_id": "fast/data", "mount_path": "/srv"}]
        assert (await api.ask("POST", "/instances", {**web, "volumes": volumes})).status == 201
        attached = await api.ask("GET", "/volumes/fast%2Fdata")
        assert attached.json["attachments"][0]["instance_name"] == "web"
        (pool,) = (await api.ask("GET", "/df")).json["pools"]
        assert (pool["name"], pool["volumes"], pool["problem"]) == ("fast", 1, None)
        assert (await api.ask("POST", "/volumes", {"name": "lun/data", "size_gb": 1})).code == "not_found"
        for ref in ("fast%2F..", "fast%2Fdata%2Fx", "%2Fdata"):
            assert (await api.ask("GET", f"/volumes/{ref}")).status == 404

    drive(tmp_path, scenario)


def test_a_volume_has_the_owner_and_the_mode_that_were_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots: list[VolumeRoot] = []
    monkeypatch.setattr("hypemand.storage.volumes.set_root", lambda _path, root: roots.append(root))

    async def scenario(api: Api) -> None:
        for name, keys, root in (
            ("neither", {}, None),
            ("owned", {"owner": "1000:4294967294"}, VolumeRoot(1000, 4294967294, 0o755)),
            ("moded", {"mode": "1777"}, VolumeRoot(0, 0, 0o1777)),
            ("both", {"owner": "5:6", "mode": "0750"}, VolumeRoot(5, 6, 0o750)),
        ):
            assert (await api.ask("POST", "/volumes", {"name": name, "size_gb": 1, **keys})).status == 201
            assert roots == ([] if root is None else [root])
            roots.clear()

    drive(tmp_path, scenario)


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({}, "name"),
        ({"name": "a"}, "size_gb"),
        ({"name": "a", "size_gb": 1, "size": "1G"}, "size_gb"),
        ({"name": "a", "size_gb": True}, "size_gb"),
        ({"name": "a", "size_gb": 1.5}, "size_gb"),
        ({"name": "a", "size_gb": 10**12}, "size_gb"),
        ({"name": "a", "size": "much"}, "size"),
        ({"name": "a", "size_gb": 1, "tags": {"a": 1}}, "tags"),
        ({"name": "a", "size_gb": 1, "tags": ["x"]}, "tags"),
        ({"name": "a", "size_gb": 1, "colour": "blue"}, "colour"),
        ({"name": "a", "size_gb": 1, "owner": "app"}, "owner"),
        ({"name": "a", "size_gb": 1, "owner": 1000}, "owner"),
        ({"name": "a", "size_gb": 1, "owner": "4294967295:0"}, "owner"),
        ({"name": "a", "size_gb": 1, "mode": 750}, "mode"),
        ({"name": "a", "size_gb": 1, "mode": "17777"}, "mode"),
        ({"name": "a", "size_gb": 1, "mode": "rwx"}, "mode"),
    ],
)
def test_what_cannot_be_a_volume_is_refused_by_name(tmp_path: Path, body: Json, word: str) -> None:
    async def scenario(api: Api) -> None:
        answer = await api.ask("POST", "/volumes", body)
        assert (answer.status, word in answer.json["message"]) == (400, True), answer.json
        assert (await api.ask("GET", "/volumes")).json == []

    drive(tmp_path, scenario)


@pytest.mark.parametrize("ref", ["UP", "a..b", "-a", "%2e%2e"])
def test_what_no_volume_can_be_called_is_not_found(tmp_path: Path, ref: str) -> None:
    async def scenario(api: Api) -> None:
        assert (await api.ask("GET", f"/volumes/{ref}")).status == 404

    drive(tmp_path, scenario)


def test_what_the_host_keeps(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        space = (await api.ask("GET", "/df")).json
        assert [kind["kind"] for kind in space["kinds"]][:3] == ["images", "disks", "volumes"]
        assert space["filesystem"]["path"] == str(api.host.config.state_dir)

    drive(tmp_path, scenario)
