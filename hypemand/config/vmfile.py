# SPDX-License-Identifier: Apache-2.0
"""VM definitions in files: vms.d/NAME.yaml, and templates of them, see hypemand.config.templates."""

from __future__ import annotations

import errno
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from hypemand.config.definition import Definition, DefinitionDefaults
from hypemand.config.netdef import Networks
from hypemand.config.schema import sort_problems
from hypemand.config.source import Source, format_path, read_source
from hypemand.config.templates import FileName, expand_instance, find_file_name_problem, parse_file_name
from hypemand.config.vmdef import parse_source_definition
from hypemand.errors import InvalidDefinition, Problem

VM_DIR = Path("/etc/hypemand/vms.d")
SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class VmDir:
    """All that a directory defines.

    `broken`: VMs whose file is there but has problems. They are neither defined nor removed: what runs
    under such a name is left alone. `templates`: the VMs of each template. `readable` False: what the
    directory defines is not known.
    """

    definitions: Mapping[str, Definition]
    problems: tuple[Problem, ...]
    broken: frozenset[str]
    templates: Mapping[Path, tuple[str, ...]] = field(default_factory=dict)
    readable: bool = True


def load_vm_file(
    path: Path, defaults: DefinitionDefaults | None = None, networks: Networks | None = None
) -> Definition:
    """The definition in one file; the VM's name is the file's. Raises InvalidDefinition.

    `networks`: those of the host; None: they are not checked. Problems of an instance that is a link to its
    template are the template's.
    """
    name = _parse_path(path)
    if name.is_template:
        raise _invalid(path, "is a template, which defines no VM", say_how_to_link(path))
    _check_link(path, name)
    source = _read(find_template(path) or path)
    if name.instance is not None:
        source = expand_instance(source, name.instance)
    return parse_source_definition(name.vm, source, defaults or DefinitionDefaults(), networks)


def load_vm_dir(
    path: Path = VM_DIR, defaults: DefinitionDefaults | None = None, networks: Networks | None = None
) -> VmDir:
    """Every NAME.yaml and NAME.yml in `path`. Never raises for what is in it; a missing directory is empty.

    `networks` as for load_vm_file. Hidden files, and what editors and dpkg leave behind, are passed over.
    """
    try:
        files = list_definition_files(path)
    except OSError as error:
        message = f"cannot be read: {error.strerror}"
        problem = Problem(str(path), 0, 0, "", message, "check its owner and mode")
        return VmDir({}, (problem,), frozenset(), readable=False)
    return _load_files(files, defaults, networks)


def load_template(path: Path, defaults: DefinitionDefaults | None, networks: Networks | None) -> VmDir:
    """What the instances beside a template define. Without one: what is wrong with it whatever the instance.
    Raises InvalidDefinition if it cannot be read."""
    prefix = _parse_path(path).prefix
    source = _read(path)
    files = list_definition_files(path.parent)
    vms = {name.vm for name, _ in files if name.prefix == prefix and name.instance}
    if vms:
        of_them = [(name, file) for name, file in files if name.vm in vms or file.name == path.name]
        return _load_files(of_them, defaults, networks)
    source = expand_instance(source, "1")
    expanded = {format_path(where) for where in source.expanded}
    problems: tuple[Problem, ...] = ()
    try:
        parse_source_definition(f"{prefix}-1", source, defaults or DefinitionDefaults(), networks)
    except InvalidDefinition as error:
        problems = tuple(problem for problem in error.problems if problem.key not in expanded)
    return VmDir({}, problems, frozenset(), {path: ()})


def list_definition_files(folder: Path) -> list[tuple[FileName, Path]]:
    """All that are in a directory, sorted; a missing one has none. OSError."""
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    return [(parse_file_name(Path(name).stem), folder / name) for name in names if is_definition_file(name)]


def find_template(path: Path) -> Path | None:
    """The template beside a file of an instance, if that is a link to it."""
    name = parse_file_name(path.stem)
    if not name.instance or not path.is_symlink():
        return None
    for suffix in SUFFIXES:
        template = path.with_name(f"{name.prefix}@{suffix}")
        with suppress(OSError):
            if path.samefile(template):
                return template
    return None


def list_links(template: Path) -> list[tuple[FileName, Path]]:
    """The instances of a template that are links to it."""
    return [
        (name, file)
        for name, file in list_definition_files(template.parent)
        if find_template(file) == template
    ]


def is_definition_file(name: str) -> bool:
    """Is a file of this name in vms.d a definition, or a template?"""
    return name.endswith(SUFFIXES) and not name.startswith((".", "#"))


def _load_files(
    files: Sequence[tuple[FileName, Path]], defaults: DefinitionDefaults | None, networks: Networks | None
) -> VmDir:
    """What they define together."""
    definitions: dict[str, Definition] = {}
    problems: dict[Problem, None] = {}
    by_vm: dict[str, list[Path]] = defaultdict(list)
    instances: dict[str, list[str]] = defaultdict(list)
    for name, file in files:
        if name.is_template:
            if (found := find_file_name_problem(name)) is not None:
                problems[Problem(str(file), 0, 0, "", *found)] = None
            continue
        by_vm[name.vm].append(file)
        if name.instance:
            instances[name.prefix].append(name.vm)
        try:
            definitions[name.vm] = load_vm_file(file, defaults, networks)
        except InvalidDefinition as error:
            problems |= dict.fromkeys(error.problems)  # instances of a template share them
    for vm, twice in by_vm.items():
        if len(twice) > 1:
            what = f"{vm} is defined twice, in {' and '.join(str(file) for file in twice)}"
            problems[Problem(str(twice[-1]), 0, 0, "", what, "remove one of them")] = None
            definitions.pop(vm, None)
    templates = {file: tuple(instances[name.prefix]) for name, file in files if name.is_template}
    return VmDir(
        MappingProxyType(definitions),
        tuple(sort_problems(problems)),
        frozenset(by_vm.keys() - definitions.keys()),
        MappingProxyType(templates),
    )


def _parse_path(path: Path) -> FileName:
    """Raises InvalidDefinition if the name of a file is wrong whatever it defines."""
    if path.suffix not in SUFFIXES:
        raise _invalid(path, "is not a valid name for a definition file", "rename it to NAME.yaml")
    name = parse_file_name(path.stem)
    if (found := find_file_name_problem(name)) is not None:
        raise _invalid(path, *found)
    return name


def _check_link(path: Path, name: FileName) -> None:
    """Raise InvalidDefinition for a link that leads to nothing, or to a template from a plain name."""
    try:
        target = os.readlink(path)
    except OSError:
        return
    template = Path(target)
    if name.instance is None and parse_file_name(template.stem).is_template:
        what = f"is a link to the template {target}, and has no instance in its name"
        example = template.with_stem(f"{template.stem}1").name
        raise _invalid(path, what, f"rename it as an instance, for example {example}")
    try:
        path.stat()
    except FileNotFoundError:
        raise _invalid(
            path, f"is a link to {target}, which does not exist", "write that file, or remove the link"
        ) from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _invalid(
                path, f"is a link to {target}, which leads back to it", "link it to a file"
            ) from None


def _read(path: Path) -> Source:
    source = read_source(path)
    if source.data is None and not source.problems:
        problem = Problem(str(path), 1, 1, "", "is empty", "write at least image: builtin:busybox")
        raise InvalidDefinition([problem])
    return source


def say_how_to_link(template: Path) -> str:
    return f"make an instance: ln -s {template.name} {template.with_stem(template.stem + '1')}"


def _invalid(path: Path, message: str, hint: str) -> InvalidDefinition:
    return InvalidDefinition([Problem(str(path), 0, 0, "", message, hint)])
