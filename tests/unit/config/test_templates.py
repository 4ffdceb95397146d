# SPDX-License-Identifier: Apache-2.0
"""Templates of definitions: PREFIX@.yaml, and PREFIX@INSTANCE.yaml that define VMs by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hypemand.config.definition import DefinitionDefaults
from hypemand.config.nethost import make_networks
from hypemand.config.source import MAX_BYTES
from hypemand.config.vmdef import definition_to_json
from hypemand.config.vmfile import (
    VmDir,
    list_links,
    list_templates,
    load_template,
    load_vm_dir,
    load_vm_file,
)
from hypemand.errors import InvalidDefinition

TEXT = """\
name: web-%i
image: app
memory: 1%i8M
cmd: [serve, --id, "%i", "100%", "50%%", "%%i"]
env: {ID: "%i", SHARE: /srv/%I}
ready: tcp:80%i
network: {publish: ["808%i:80"], mac: "52:54:00:00:00:0%i"}
unit: {Description: "web %i of 2, %n", After: hypeman@db-%i.service}
"""
NETWORKS = make_networks({}, "")
MANY = "is larger than 1M with its specifiers expanded; make it smaller"
GONE = "which does not exist; write that file, or remove the link"
LOOP = "which leads back to it; link it to a file"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "web@.yaml").write_text(TEXT)
    return tmp_path


def link(folder: Path, *instances: str) -> None:
    for instance in instances:
        (folder / f"web@{instance}.yaml").symlink_to("web@.yaml")


def write(folder: Path, text: str, *instances: str) -> VmDir:
    (folder / "web@.yaml").write_text(text)
    link(folder, *instances)
    return load_vm_dir(folder, networks=NETWORKS)


def say(found: VmDir) -> list[str]:
    return [str(problem) for problem in found.problems]


def test_a_template_defines_no_vm_and_each_link_to_it_defines_one(folder: Path) -> None:
    alone = load_vm_dir(folder, networks=NETWORKS)
    assert (dict(alone.definitions), alone.problems, alone.broken) == ({}, (), frozenset())
    assert alone.templates == {folder / "web@.yaml": ()}
    link(folder, "1", "2")
    found = load_vm_dir(folder, networks=NETWORKS)
    assert (list(found.definitions), found.problems) == (["web-1", "web-2"], ())
    assert found.templates == {folder / "web@.yaml": ("web-1", "web-2")}
    two: Any = definition_to_json(found.definitions["web-2"])
    assert two["memory"] == "128M"
    assert two["cmd"] == ["serve", "--id", "2", "100%", "50%", "%i"]
    assert two["env"] == {"ID": "2", "SHARE": "/srv/2"}
    assert two["ready"] == {"tcp": 802, "interval": "1s"}
    assert two["network"]["publish"] == ["8082:80"]
    assert two["network"]["mac"] == "52:54:00:00:00:02"
    # what else systemd knows is expanded for the VM's unit
    assert two["unit"] == {"Description": "web 2 of 2, %n", "After": ["hypeman@db-2.service"]}


def test_an_instance_may_be_a_copy_or_a_link_to_elsewhere(folder: Path, tmp_path: Path) -> None:
    (folder / "web@copy.yml").write_text("image: own\nenv: {ID: '%i'}\n")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "any.yaml").write_text("image: other\nenv: {ID: '%i', PATH: /%I}\n")
    (folder / "web@a-b.yaml").symlink_to(outside / "any.yaml")
    found = load_vm_dir(folder)
    assert (found.problems, found.broken) == ((), frozenset())
    assert {vm: (d.image, d.env["ID"]) for vm, d in found.definitions.items()} == {
        "web-a-b": ("other", "a-b"),
        "web-copy": ("own", "copy"),
    }
    assert found.definitions["web-a-b"].env["PATH"] == "/a/b"


def test_a_file_without_an_instance_has_no_specifiers(tmp_path: Path) -> None:
    (tmp_path / "web-1.yaml").write_text("image: app\ncmd: [date, '+%i %% %Y']\n")
    assert load_vm_dir(tmp_path).definitions["web-1"].cmd == ("date", "+%i %% %Y")


def test_another_specifier_is_refused_with_its_place(folder: Path) -> None:
    found = write(folder, "image: app\ncmd: [date, '+%Y']\nenv: {A: '%n'}\n", "1", "2")
    cure = "is not a specifier that can be used here; use one of %i, %I, or %% for a percent sign"
    assert say(found) == [
        f"{folder}/web@.yaml:2:13: cmd[1]: %Y in '+%Y' {cure}",
        f"{folder}/web@.yaml:3:10: env.A: %n in '%n' {cure}",
    ], "once, however many instances have it"
    assert found.broken == {"web-1", "web-2"}


def test_what_is_wrong_with_one_instance_alone_stops_no_other(folder: Path) -> None:
    found = write(folder, "image: app\nnetwork: {publish: ['80%i:80']}\n", "1", "blue")
    (problem,) = say(found)
    assert problem.startswith(f"{folder}/web@.yaml:2:21: network.publish[0]: '80blue' is not a port")
    assert " (VM web-blue); " in problem
    assert (list(found.definitions), set(found.broken)) == (["web-1"], {"web-blue"})


def test_a_number_is_not_made_of_a_text(folder: Path) -> None:
    (problem,) = say(write(folder, "image: app\nvcpus: '%i'\n", "1"))
    assert problem.startswith(
        f"{folder}/web@.yaml:2:8: vcpus: is the string '1', not an integer (VM web-1); "
    )
    assert problem.endswith("specifiers are only for texts: write the value itself")


def test_a_text_that_begins_with_a_specifier_has_to_be_quoted(folder: Path) -> None:
    (problem,) = say(write(folder, "image: app\nuser: %i\n", "1"))
    assert problem.startswith(f"{folder}/web@.yaml:2:7: ")
    assert problem.endswith("; quote the text when it begins with '%'")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("web@A", "'A' cannot be the name of an instance of a template; use 1 to 63 characters"),
        ("web@1@2", "'1@2' cannot be the name of an instance of a template; use 1 to 63 characters"),
        ("web@-1", "'-1' cannot be the name of an instance of a template; use "),
        ("web@%i", "'%i' cannot be the name of an instance of a template; use "),
        ("Web@1", "'Web' cannot be the name of a template; use "),
        ("@1", "'' cannot be the name of a template; use "),
        ("Web@", "'Web' cannot be the name of a template; use "),
        (f"web@{'a' * 60}", f"'web-{'a' * 60}' cannot be the name of a VM; use "),
    ],
)
def test_a_name_that_is_not_valid_is_refused(folder: Path, name: str, problem: str) -> None:
    file = folder / f"{name}.yaml"
    file.symlink_to("web@.yaml")
    link(folder, "1")
    found = load_vm_dir(folder)
    (said,) = say(found)
    assert said.startswith(f"{file}: {problem}")
    assert list(found.definitions) == ["web-1"]


def test_a_link_that_leads_nowhere_names_the_cure(folder: Path) -> None:
    link(folder, "1")
    (folder / "web@.yaml").unlink()
    (folder / "db.yaml").symlink_to("/nowhere/db.yaml")
    (folder / "a.yaml").symlink_to("b.yaml")
    (folder / "b.yaml").symlink_to("a.yaml")
    (folder / "web@dir.yaml").symlink_to(".")
    found = load_vm_dir(folder)
    assert say(found) == [
        f"{folder}/a.yaml: is a link to b.yaml, {LOOP}",
        f"{folder}/b.yaml: is a link to a.yaml, {LOOP}",
        f"{folder}/db.yaml: is a link to /nowhere/db.yaml, {GONE}",
        f"{folder}/web@1.yaml: is a link to web@.yaml, {GONE}",
        f"{folder}/web@dir.yaml: cannot be read: Is a directory; check its owner, mode and file type",
    ]
    assert found.broken == {"a", "b", "db", "web-1", "web-dir"}, "what runs under these names is left alone"


def test_a_link_to_a_template_needs_an_instance_in_its_name(folder: Path) -> None:
    (folder / "shop.yaml").symlink_to("web@.yaml")
    (problem,) = say(load_vm_dir(folder))
    assert problem.startswith(f"{folder}/shop.yaml: is a link to the template web@.yaml, and has no instance")
    assert problem.endswith("; rename it as an instance, for example web@1.yaml")


def test_an_instance_and_a_file_of_the_same_vm_are_named_both(folder: Path) -> None:
    link(folder, "1", "2")
    (folder / "web-1.yaml").write_text("image: app\n")
    for found in (load_vm_dir(folder), load_template(folder / "web@.yaml", folder, None, None)):
        both = f"{folder}/web-1.yaml and {folder}/web@1.yaml"
        assert say(found) == [f"{folder}/web@1.yaml: web-1 is defined twice, in {both}; remove one of them"]
        assert (list(found.definitions), set(found.broken)) == (["web-2"], {"web-1"})


def test_a_template_is_no_file_of_a_vm(folder: Path) -> None:
    with pytest.raises(InvalidDefinition) as caught:
        load_vm_file(folder / "web@.yaml")
    assert str(caught.value) == (
        f"{folder}/web@.yaml: is a template, which defines no VM;"
        f" make an instance: ln -s web@.yaml {folder}/web@1.yaml"
    )


def test_a_template_without_an_instance_is_checked_but_for_what_the_instance_decides(folder: Path) -> None:
    path = folder / "web@.yaml"
    assert load_template(path, folder, DefinitionDefaults(), NETWORKS).problems == ()
    path.write_text("image: app\nmemroy: 1G\nnetwork: {mac: '52:54:00:00:00:%i'}\ncmd: [date, '+%Y']\n")
    found = load_template(path, folder, DefinitionDefaults(), NETWORKS)
    assert [problem.key for problem in found.problems] == ["memroy", "cmd[1]"]
    assert found.templates == {path: ()}


def test_what_specifiers_become_is_bounded(folder: Path) -> None:
    instance = "a" * 59
    many = "%i" * (MAX_BYTES // 20)
    aliases = ", ".join(["*long"] * 50)
    (problem,) = say(write(folder, f"image: app\nfiles: [{{path: /a, content: '{many}'}}]\n", instance))
    assert problem == f"{folder}/web@.yaml:1:1: {MANY}"
    short = "%i" * (MAX_BYTES // 2000)
    (problem,) = say(write(folder, f"image: app\nenv: {{A: &long '{short}'}}\ncmd: [{aliases}]\n"))
    assert "entrypoint, cmd and env have a total of" in problem, "each text is expanded once"


def test_the_name_of_an_instance_begins_with_that_of_its_template(folder: Path) -> None:
    link(folder, "1")
    (folder / "shop@x.yaml").symlink_to("web@.yaml")
    (folder / "db@.yaml").symlink_to("web@.yaml")
    found = load_vm_dir(folder, networks=NETWORKS)
    what = f"is a link to the template {folder}/web@.yaml, and has another name before its @"
    assert say(found) == [
        f"{folder}/db@.yaml: {what}; rename it to web@.yaml",
        f"{folder}/shop@x.yaml: {what}; rename it to web@x.yaml",
    ]
    assert (list(found.definitions), set(found.broken)) == (["web-1"], {"shop-x"})
    with pytest.raises(InvalidDefinition, match="has another name before its @"):
        load_template(folder / "db@.yaml", folder, None, NETWORKS)


def test_a_template_may_be_in_another_directory(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "vms.d", tmp_path / "defs"
    for each in (folder, elsewhere):
        each.mkdir()
    template = elsewhere / "web@.yaml"
    template.write_text("image: app\nnetwork: {publish: ['80%i:80']}\n")
    for instance in ("1", "eu"):
        (folder / f"web@{instance}.yaml").symlink_to(template)
    (folder / "web@2.yaml").write_text("image: app\n")
    assert list_templates(folder) == [template]
    assert [name.vm for name, _ in list_links(template, folder)] == ["web-1", "web-eu"]
    for found in (load_vm_dir(folder, networks=NETWORKS), load_template(template, folder, None, NETWORKS)):
        (problem,) = say(found)
        assert problem.startswith(f"{template}:2:21: network.publish[0]: '80eu' is not a port")
        assert found.templates == {template: ("web-1", "web-eu")}


def test_a_template_cannot_have_both_files(folder: Path) -> None:
    (folder / "web@.yml").write_text(TEXT)
    what = f"template web@ is there twice, in {folder}/web@.yaml and {folder}/web@.yml; remove one of them"
    both = [f"{folder}/web@.yml: {what}"]
    assert say(load_vm_dir(folder, networks=NETWORKS)) == both
    assert say(load_template(folder / "web@.yaml", folder, None, NETWORKS)) == both
    link(folder, "1")
    assert say(load_vm_dir(folder, networks=NETWORKS)) == both
    assert say(load_template(folder / "web@.yaml", folder, None, NETWORKS)) == both
