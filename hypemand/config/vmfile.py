# SPDX-License-Identifier: Apache-2.0
"""VM definitions in files: vms.d/NAME.yaml."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from hypemand.config.definition import Definition, DefinitionDefaults
from hypemand.config.netdef import Networks
from hypemand.config.schema import sort_problems
from hypemand.config.source import read_source
from hypemand.config.vmdef import parse_source_definition
from hypemand.errors import InvalidDefinition, Problem

VM_DIR = Path("/etc/hypemand/vms.d")
SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class VmDir:
    """All that a directory defines.

    `broken`: VMs whose file is there but has problems. They are neither defined nor removed: what runs
    under such a name is left alone. `readable` False: what the directory defines is not known.
    """

    definitions: Mapping[str, Definition]
    problems: tuple[Problem, ...]
    broken: frozenset[str]
    readable: bool = True


def load_vm_file(
    path: Path, defaults: DefinitionDefaults | None = None, networks: Networks | None = None
) -> Definition:
    """The definition in one file; the VM's name is the file's. Raises InvalidDefinition.

    `networks`: those of the host; None: they are not checked.
    """
    if path.suffix not in SUFFIXES:
        raise InvalidDefinition(
            [
                Problem(
                    str(path), 0, 0, "", "is not a valid name for a definition file", "rename it to NAME.yaml"
                )
            ]
        )
    source = read_source(path)
    if source.data is None and not source.problems:
        problem = Problem(str(path), 1, 1, "", "is empty", "write at least image: builtin:busybox")
        raise InvalidDefinition([problem])
    return parse_source_definition(path.stem, source, defaults or DefinitionDefaults(), networks)


def load_vm_dir(
    path: Path = VM_DIR, defaults: DefinitionDefaults | None = None, networks: Networks | None = None
) -> VmDir:
    """Every NAME.yaml and NAME.yml in `path`. Never raises for what is in it; a missing directory is empty.

    `networks` as for load_vm_file. Hidden files, and what editors and dpkg leave behind, are passed over.
    """
    definitions: dict[str, Definition] = {}
    problems: list[Problem] = []
    broken: set[str] = set()
    try:
        files = [path / name for name in sorted(os.listdir(path)) if is_definition_file(name)]
    except FileNotFoundError:
        files = []
    except OSError as error:
        message = f"cannot be read: {error.strerror}"
        problem = Problem(str(path), 0, 0, "", message, "check its owner and mode")
        return VmDir({}, (problem,), frozenset(), readable=False)
    for file in files:
        try:
            definitions[file.stem] = load_vm_file(file, defaults, networks)
        except InvalidDefinition as error:
            problems += error.problems
            broken.add(file.stem)
    for name, twice in _find_twice(files).items():
        both = " and ".join(str(file) for file in twice)
        problems.append(
            Problem(str(twice[-1]), 0, 0, "", f"{name} is defined twice, in {both}", "remove one of them")
        )
        broken.add(name)
    good = {name: d for name, d in definitions.items() if name not in broken}
    return VmDir(MappingProxyType(good), tuple(sort_problems(problems)), frozenset(broken))


def is_definition_file(name: str) -> bool:
    """Is a file of this name in vms.d a definition?"""
    return name.endswith(SUFFIXES) and not name.startswith((".", "#"))


def _find_twice(files: list[Path]) -> dict[str, list[Path]]:
    by_name: dict[str, list[Path]] = {}
    for file in files:
        by_name.setdefault(file.stem, []).append(file)
    return {name: both for name, both in by_name.items() if len(both) > 1}
