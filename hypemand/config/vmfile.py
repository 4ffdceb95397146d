# SPDX-License-Identifier: Apache-2.0
"""VM definitions in files: vms.d/NAME.yaml, and templates of them, see hypemand.config.templates."""

from __future__ import annotations

import errno
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
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
    template are the template's, and name the VM where they depend on the instance.
    """
    name = _parse_path(path)
    if name.is_template:
        raise _invalid(path, "is a template, which defines no VM", say_how_to_link(path))
    _check_link(path, name)
    template = find_template(path)
    source = _read(template or path)
    if name.instance is not None:
        source = expand_instance(source, name.instance)
    try:
        return parse_source_definition(name.vm, source, defaults or DefinitionDefaults(), networks)
    except InvalidDefinition as error:
        if template is None:
            raise
        raise InvalidDefinition([_name_vm(problem, name.vm, source) for problem in error.problems]) from None


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


def load_template(
    path: Path, folder: Path, defaults: DefinitionDefaults | None, networks: Networks | None
) -> VmDir:
    """What the instances of a template in `folder` define. Without one: what is wrong with it whatever the
    instance. Raises InvalidDefinition if it cannot be read."""
    name = _parse_path(path)
    _check_link(path, name)
    source = _read(path)
    files = list_definition_files(folder)
    vms = {one.vm for one, file in files if _is_instance(file, one, path)}
    if vms:
        of_them = [(one, file) for one, file in files if one.vm in vms or _is_twin(one, name)]
        return _load_files(of_them, defaults, networks)
    source = expand_instance(source, "1")
    expanded = _list_expanded(source)
    problems: tuple[Problem, ...] = ()
    try:
        parse_source_definition(f"{name.prefix}-1", source, defaults or DefinitionDefaults(), networks)
    except InvalidDefinition as error:
        problems = tuple(problem for problem in error.problems if problem.key not in expanded)
    twins = _find_twins([file for one, file in list_definition_files(path.parent) if _is_twin(one, name)])
    return VmDir({}, (*problems, *twins), frozenset(), {path: ()})


def list_definition_files(folder: Path) -> list[tuple[FileName, Path]]:
    """All that are in a directory, sorted; a missing one has none. OSError."""
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    return [(parse_file_name(Path(name).stem), folder / name) for name in names if is_definition_file(name)]


def find_template(path: Path) -> Path | None:
    """The template that the file of an instance is a link to: one beside it, or else one elsewhere."""
    name = parse_file_name(path.stem)
    if not name.instance or not path.is_symlink():
        return None
    for suffix in SUFFIXES:
        template = path.with_name(f"{name.prefix}@{suffix}")
        with suppress(OSError):
            if path.samefile(template):
                return template
    target = Path(os.path.realpath(path))
    is_template = target.suffix in SUFFIXES and parse_file_name(target.stem) == FileName(name.prefix, "")
    return target if is_template and target.is_file() else None


def list_templates(folder: Path) -> list[Path]:
    """The templates in a directory, and those elsewhere that instances in it are links to. OSError."""
    files = list_definition_files(folder)
    found = dict.fromkeys(file for name, file in files if name.is_template)
    elsewhere = (find_template(file) for _, file in files)
    return [*(found | dict.fromkeys(file for file in elsewhere if file is not None))]


def list_links(template: Path, folder: Path) -> list[tuple[FileName, Path]]:
    """The instances in `folder` that are links to a template, wherever that is. OSError."""
    return [(name, file) for name, file in list_definition_files(folder) if _is_link_to(file, template)]


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
    instances: dict[Path, list[str]] = defaultdict(list)
    own = {name.prefix: file for name, file in reversed(files) if name.is_template}
    for name, file in files:
        if name.is_template:
            try:
                _check_link(file, _parse_path(file))
            except InvalidDefinition as error:
                problems |= dict.fromkeys(error.problems)
            instances[file] += ()
            continue
        by_vm[name.vm].append(file)
        # a copy belongs to the template beside it
        if name.instance and (template := find_template(file) or own.get(name.prefix)) is not None:
            instances[template].append(name.vm)
        try:
            definitions[name.vm] = load_vm_file(file, defaults, networks)
        except InvalidDefinition as error:
            problems |= dict.fromkeys(error.problems)  # instances of a template share them
    for vm, twice in by_vm.items():
        if len(twice) > 1:
            what = f"{vm} is defined twice, in {' and '.join(str(file) for file in twice)}"
            problems[Problem(str(twice[-1]), 0, 0, "", what, "remove one of them")] = None
            definitions.pop(vm, None)
    problems |= dict.fromkeys(_find_twins([file for name, file in files if name.is_template]))
    return VmDir(
        MappingProxyType(definitions),
        tuple(sort_problems(problems)),
        frozenset(by_vm.keys() - definitions.keys()),
        MappingProxyType({file: tuple(vms) for file, vms in instances.items()}),
    )


def _find_twins(templates: Sequence[Path]) -> Iterator[Problem]:
    """Templates of one name, with both suffixes."""
    for before, file in pairwise(templates):
        if before.stem == file.stem:
            what = f"template {file.stem} is there twice, in {before} and {file}"
            yield Problem(str(file), 0, 0, "", what, "remove one of them")


def _is_twin(name: FileName, template: FileName) -> bool:
    return name.is_template and name.prefix == template.prefix


def _is_link_to(file: Path, template: Path) -> bool:
    found = find_template(file)
    return found is not None and os.path.realpath(found) == os.path.realpath(template)


def _is_instance(file: Path, name: FileName, template: Path) -> bool:
    """Is it a link to the template, or beside it in place of one?"""
    if not name.instance:
        return False
    if find_template(file) is not None:
        return _is_link_to(file, template)
    is_beside = os.path.realpath(file.parent) == os.path.realpath(template.parent)
    return is_beside and name.prefix == parse_file_name(template.stem).prefix


def _list_expanded(source: Source) -> set[str]:
    return {format_path(where) for where in source.expanded}


def _name_vm(problem: Problem, vm: str, source: Source) -> Problem:
    """The problem of a template, with the VM if another instance may not have it."""
    if problem.key not in _list_expanded(source):
        return problem
    return replace(problem, message=f"{problem.message} (VM {vm})")


def _parse_path(path: Path) -> FileName:
    """Raises InvalidDefinition if the name of a file is wrong whatever it defines."""
    if path.suffix not in SUFFIXES:
        raise _invalid(path, "is not a valid name for a definition file", "rename it to NAME.yaml")
    name = parse_file_name(path.stem)
    if (found := find_file_name_problem(name)) is not None:
        raise _invalid(path, *found)
    return name


def _check_link(path: Path, name: FileName) -> None:
    """Raise InvalidDefinition for a link that leads to nothing, or to a template from a name that is not one
    of its instances."""
    try:
        target = os.readlink(path)
    except OSError:
        return
    template = Path(target)
    if name.instance is None and parse_file_name(template.stem).is_template:
        what = f"is a link to the template {target}, and has no instance in its name"
        example = template.with_stem(f"{template.stem}1").name
        raise _invalid(path, what, f"rename it as an instance, for example {example}")
    real = Path(os.path.realpath(path))
    if name.instance is not None and _is_other_template(real, name):
        what = f"is a link to the template {real}, and has another name before its @"
        raise _invalid(path, what, f"rename it to {real.stem}{name.instance}{path.suffix}")
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


def _is_other_template(path: Path, name: FileName) -> bool:
    found = parse_file_name(path.stem)
    return path.suffix in SUFFIXES and found.is_template and found.prefix != name.prefix


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
