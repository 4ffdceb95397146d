# SPDX-License-Identifier: Apache-2.0
"""The routes of images."""

import asyncio
import os
import socket
from pathlib import Path

from tests.unit.api.fakes import IMAGE
from tests.unit.api.harness import Api, description, drive

NOBODY = 65534


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


def connect_as(uid: int, path: Path) -> socket.socket:
    """A connection that the kernel knows to be of `uid`: it takes down who connects."""
    for folder in list(path.parents)[:4]:
        if folder.stat().st_mode & 0o005 != 0o005:
            folder.chmod(0o755)
    path.chmod(0o666)
    connection = socket.socket(socket.AF_UNIX)
    os.seteuid(uid)
    try:
        connection.connect(str(path))
    finally:
        os.seteuid(0)
    return connection


def test_a_path_of_the_host_is_read_for_root_alone(tmp_path: Path) -> None:
    assert os.geteuid() == 0, "run this as root: it has to become somebody else"

    async def scenario(api: Api) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=connect_as(NOBODY, api.path))
        body = b'{"name":"new","path":"/etc/shadow"}'
        head = f"POST /images/import HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        head_lines, _, answer = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        assert head_lines.startswith(b"HTTP/1.0 403")
        description().check_answer("POST", "/images/import", 403, "application/json", answer)
        assert b'"forbidden"' in answer
        assert "new" not in api.images.images

    drive(tmp_path, scenario)
