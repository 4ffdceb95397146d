# SPDX-License-Identifier: Apache-2.0
"""Records last, and one that is not what it should be is told from one that is not there."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hypemand.errors import InvalidRequest
from hypemand.recordfile import MAX_RECORD, BadRecord, load_record, store_record
from tests.lint.sources import TOP


def keep(document: Any) -> Any:
    return document


def refuse(_document: Any) -> Any:
    raise InvalidRequest("this cannot be")


def test_a_record_is_read_as_it_was_written_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "vm.json"
    store_record(path, {"version": 2, "names": {"a": [1, None, "ä"]}}, indent=2)
    assert load_record(path, keep, versions=(1, 2)) == {"version": 2, "names": {"a": [1, None, "ä"]}}
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["vm.json"]


def test_a_record_that_is_not_there_is_not_a_bad_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_record(tmp_path / "none.json", keep)


@pytest.mark.parametrize(
    ("content", "parse", "problem"),
    [
        (b"{", keep, "Expecting property name"),
        (b"[" * 100_000, keep, "nested too deeply"),
        (b"\xff\xfe", keep, "Expecting value"),
        (b"{}", lambda document: document["id"], "'id' is missing"),
        (b"[]", lambda document: document["id"], "list indices"),
        (b"3", lambda document: document.items(), "has no attribute"),
        (b'{"id": "x"}', lambda document: int(document["id"]), "invalid literal"),
        (b"{}", refuse, "this cannot be"),
    ],
)
def test_what_cannot_be_understood_is_named_with_the_reason(
    tmp_path: Path, content: bytes, parse: Callable[[Any], Any], problem: str
) -> None:
    path = tmp_path / "vm.json"
    path.write_bytes(content)
    with pytest.raises(BadRecord, match=re.escape(problem)) as caught:
        load_record(path, parse)
    assert caught.value.path == path
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"version": 3}', "version is not 1 or 2"),
        (b'{"version": "2"}', "version is not 1 or 2"),
        (b"{}", "'version' is missing"),
        (b"null", "not subscriptable"),
    ],
)
def test_a_record_of_another_version_is_not_guessed_at(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "vm.json"
    path.write_bytes(content)
    with pytest.raises(BadRecord, match=problem):
        load_record(path, keep, versions=(1, 2))


def test_what_is_no_file_or_too_large_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(MAX_RECORD + 1)
    for path, problem in (
        (tmp_path / "fifo", "not a regular"),
        (tmp_path, "directory"),
        (large, "too large"),
    ):
        with pytest.raises(OSError, match=problem):
            load_record(path, keep)


def test_no_module_writes_a_record_by_itself() -> None:
    by_hand = re.compile(r"write_file\(.*json\.dumps|json\.dumps\(.*\)\.encode\(\) \+ b\"\\n\"")
    sources = {path.relative_to(TOP / "hypemand"): path for path in (TOP / "hypemand").rglob("*.py")}
    found = [str(name) for name, path in sources.items() if by_hand.search(path.read_text())]
    others = ["manager/transfer.py", "storage/vmarchive.py", "vmm/qmp.py"]
    assert sorted(found) == sorted(["recordfile.py", *others]), "a member of an archive is no record"
