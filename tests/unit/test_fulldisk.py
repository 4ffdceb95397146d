# SPDX-License-Identifier: Apache-2.0
"""A full disk is named, with its cure."""

import asyncio
import errno
import json
import os
import subprocess
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from hypemand.api.failures import errors_as_json
from hypemand.atomic import write_file
from hypemand.errors import InsufficientResources
from hypemand.fulldisk import find_mount_point, name_full_disk


def test_the_full_file_system_is_named(tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "none", full], check=True)
    try:
        with (
            pytest.raises(
                InsufficientResources, match=rf"to keep it: the file system {full} is full"
            ) as told,
            name_full_disk("keep it", Path("/")),
        ):
            write_file(full / "record", bytes(65536))
        assert "free space there" in told.value.hint
        assert list(full.iterdir()) == []
        assert find_mount_point(full / "not/there") == full
    finally:
        subprocess.run(["umount", full], check=True)


def test_other_failures_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), name_full_disk("keep it", tmp_path):
        write_file(tmp_path / "missing/record", b"")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_request_that_a_full_disk_ends_is_told_so(tmp_path: Path, number: int) -> None:
    async def handler(_request: web.Request) -> web.StreamResponse:
        raise OSError(number, os.strerror(number), os.fspath(tmp_path / "vm.json"))

    async def main() -> web.StreamResponse:
        return await errors_as_json(make_mocked_request("POST", "/instances"), handler)

    answer = asyncio.run(main())
    assert isinstance(answer, web.Response)
    assert answer.status == 409
    told = json.loads(answer.text or "")
    assert told["code"] == "insufficient_resources"
    assert str(find_mount_point(tmp_path)) in told["message"]
