# SPDX-License-Identifier: Apache-2.0
"""Files of the host that a definition names, as a start reads them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from hypemand.config.definition import Definition
from hypemand.config.vmdef import parse_definition
from hypemand.errors import InvalidDefinition
from hypemand.protocol.filesdisk import MAX_CONTENT, DiskFile, encode_files_disk
from hypemand.storage.hostfiles import read_host_files


def define(**keys: Any) -> Definition:
    return parse_definition("web", {"image": "x", **keys})


def problems_of(definition: Definition, root: Path = Path("/")) -> list[str]:
    with pytest.raises(InvalidDefinition) as caught:
        read_host_files(definition, root)
    return [str(problem) for problem in caught.value.problems]


def test_later_environment_files_win_and_one_may_be_missing(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("A=1\nB=1\n")
    (tmp_path / "b").write_text("B=2\n")
    found = read_host_files(define(env_file=[f"{tmp_path}/a", f"-{tmp_path}/none", f"{tmp_path}/b"]))
    assert found.env == {"A": "1", "B": "2"}


def test_all_that_is_wrong_is_told_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("A=1\nB\n")
    os.mkfifo(tmp_path / "pipe")
    told = problems_of(
        define(
            env_file=[f"{tmp_path}/a", f"{tmp_path}/none", f"-{tmp_path}/pipe"],
            files=[{"path": "/a", "source": f"{tmp_path}/gone"}, {"path": "/b", "source": str(tmp_path)}],
            secrets=[{"name": "key", "source": f"{tmp_path}/key"}],
        )
    )
    assert [line.partition(";")[0] for line in told] == [
        f"{tmp_path}/a:2:1: has no '=' after 'B'",
        f"env_file[1]: {tmp_path}/none cannot be read: No such file or directory",
        f"env_file[2]: {tmp_path}/pipe cannot be read: it is not a regular file",
        f"files[0].source: {tmp_path}/gone cannot be read: No such file or directory",
        f"files[1].source: {tmp_path} cannot be read: Is a directory",
        f"secrets[0].source: {tmp_path}/key does not exist",
    ]


def test_files_are_read_at_the_start_with_their_owner_and_mode(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\0\xff\n")
    files = [
        {"path": "/a", "source": f"{tmp_path}/a", "mode": "0600", "owner": "app"},
        {"path": "/b", "content": "ö"},
    ]
    assert read_host_files(define(files=files)).files == (
        DiskFile({"path": "/a", "mode": "0600", "owner": "app"}, b"\0\xff\n"),
        DiskFile({"path": "/b", "mode": "0644", "owner": "0:0"}, "ö".encode()),
    )


def test_files_are_bounded_all_together(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    os.truncate(tmp_path / "a", MAX_CONTENT)
    whole: list[dict[str, str]] = [{"path": "/a", "source": f"{tmp_path}/a"}]
    assert len(read_host_files(define(files=whole)).files[0].content) == MAX_CONTENT
    (told,) = problems_of(define(files=[*whole, {"path": "/b", "content": "x"}]))
    assert told.startswith("files[1]: the files have more than 8M together; use a volume")
    # a device has no end
    (told,) = problems_of(define(files=[{"path": "/z", "source": "/dev/zero"}]))
    assert "it is not a regular file" in told


@pytest.mark.parametrize(
    ("store", "encrypted"), [("etc/credstore", False), ("etc/credstore.encrypted", True)]
)
def test_a_credential_is_looked_for_in_systemds_stores(tmp_path: Path, store: str, encrypted: bool) -> None:
    definition = define(secrets=[{"name": "key", "encrypted": encrypted}])
    (told,) = problems_of(definition, tmp_path)
    assert told == f"secrets[0].source: there is no credential key; create it as a file in /{store}"
    (tmp_path / store).mkdir(parents=True)
    (tmp_path / store / "key").touch()
    assert read_host_files(definition, tmp_path).files == ()


def test_the_disk_has_its_files_and_whole_sectors() -> None:
    disk = encode_files_disk([DiskFile({"path": "/a,b%"}, b"x" * 1000), DiskFile({"path": "/c"}, b"")])
    fields = b"path=/a%2Cb%25\0"
    body = len(fields).to_bytes(4, "little") + (1000).to_bytes(4, "little") + fields + b"x" * 1000
    body += b"\x08\0\0\0\0\0\0\0path=/c\0"
    assert disk[:16] == b"HYPEFIL1" + len(body).to_bytes(4, "little") + b"\2\0\0\0"
    assert disk[16 : 16 + len(body)] == body
    assert len(disk) % 512 == 0
    assert not disk[16 + len(body) :].strip(b"\0")
