# SPDX-License-Identifier: Apache-2.0
"""Directories of definitions: one broken file stops no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from hypemand.config.vmfile import load_vm_dir, load_vm_file
from hypemand.errors import InvalidDefinition


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "web.yaml").write_text("image: x\n")
    return tmp_path


def test_a_directory_is_read_whole(folder: Path) -> None:
    (folder / "db.yml").write_text("name: db\nimage: y\n")
    found = load_vm_dir(folder)
    assert sorted(found.definitions) == ["db", "web"]
    assert found.definitions["db"].name == "db"
    assert (found.problems, found.broken) == ((), frozenset())


def test_a_missing_directory_is_empty(tmp_path: Path) -> None:
    found = load_vm_dir(tmp_path / "none")
    assert (dict(found.definitions), found.problems) == ({}, ())


def test_a_path_that_is_no_directory_is_a_problem(folder: Path) -> None:
    found = load_vm_dir(folder / "web.yaml")
    (problem,) = found.problems
    assert "cannot be read" in problem.message
    assert not found.readable
    assert load_vm_dir(folder).readable


def test_leftovers_of_editors_and_dpkg_are_passed_over(folder: Path) -> None:
    leftovers = (
        ".#web.yaml",
        ".web.yaml.swp",
        ".x.yaml",
        "#web.yaml#",
        "#x.yaml",
        "web.yaml~",
        "web.yaml.bak",
    )
    dpkg = ("web.yaml.dpkg-new", "web.yaml.dpkg-old", "web.yaml.dpkg-dist", "web.yaml.ucf-dist", "README")
    for name in (*leftovers, *dpkg):
        (folder / name).write_text("broken: [")
    found = load_vm_dir(folder)
    assert (list(found.definitions), found.problems) == (["web"], ())


def test_a_broken_file_stops_no_other(folder: Path) -> None:
    (folder / "bad.yaml").write_text("image: x\nvcpus: 0\n")
    (folder / "worse.yaml").write_text("image: [")
    (folder / "gone.yaml").symlink_to("nowhere")
    (folder / "dir.yaml").mkdir()
    (folder / "Not a name.yaml").write_text("image: x\n")
    found = load_vm_dir(folder)
    assert list(found.definitions) == ["web"]
    assert found.broken == {"bad", "worse", "gone", "dir", "Not a name"}
    assert {Path(problem.file).stem for problem in found.problems} == found.broken
    assert list(found.problems) == sorted(found.problems, key=lambda p: (p.file, p.line))


def test_two_definitions_of_one_name_are_a_problem_that_names_both(folder: Path) -> None:
    (folder / "web.yml").write_text("image: y\n")
    found = load_vm_dir(folder)
    assert dict(found.definitions) == {}
    assert found.broken == {"web"}
    (problem,) = found.problems
    assert str(folder / "web.yaml") in problem.message
    assert str(folder / "web.yml") in problem.message


def test_a_file_of_another_kind_is_refused(folder: Path) -> None:
    path = folder / "web.json"
    path.write_text("{}")
    with pytest.raises(
        InvalidDefinition,
        match=r"web\.json: is not a valid name for a definition file; rename it to NAME\.yaml",
    ):
        load_vm_file(path)


def test_an_empty_file_says_what_to_write(folder: Path) -> None:
    path = folder / "web.yaml"
    path.write_text("# later\n")
    with pytest.raises(
        InvalidDefinition, match=r"web\.yaml:1:1: is empty; write at least image: builtin:busybox"
    ):
        load_vm_file(path)


def test_a_problem_reads_as_a_compiler_would_say_it(folder: Path) -> None:
    path = folder / "web.yaml"
    path.write_text("image: x\nmemroy: 1G\n")
    with pytest.raises(InvalidDefinition) as caught:
        load_vm_file(path)
    assert str(caught.value) == f"{path}:2:1: memroy: is not known; did you mean memory?"
