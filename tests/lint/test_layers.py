# SPDX-License-Identifier: Apache-2.0
"""Each room of the program imports only what stands below it (docs/architecture.md, "Rooms")."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter
from itertools import chain
from pathlib import Path

import pytest

from tests.lint.sources import TOP

PACKAGE = "hypemand"
# From the top down. A room is a package, or a module that stands beside them; rooms of one row do not import
# each other, except those of the ground.
GROUND = frozenset(
    {"atomic", "budget", "config", "errors", "fulldisk", "inflate", "lean", "notify", "recordfile", "run"}
    | {"clocksteps", "histogram", "sandbox", "service", "sockets", "tasks", "turns", "unitnames", "version"}
    | {"workers"}
)
LAYERS = (
    frozenset({"__main__"}),
    frozenset({"daemon", "manual"}),
    frozenset({"api", "cli"}),
    frozenset({"manager"}),
    frozenset({"unit"}),
    frozenset({"vm"}),
    frozenset({"agent", "network", "storage", "systemd", "vmm"}),
    frozenset({"protocol", "tar"}),
    frozenset({"model"}),
    GROUND,
)
_HEIGHTS = {room: -row for row, rooms in enumerate(LAYERS) for room in rooms}

Imports = Mapping[str, set[str]]


def read_imports(top: Path) -> Imports:
    """What each module below the package `top` imports of that package, wherever in it: names of modules."""
    files = {_name(path, top): path for path in sorted(top.rglob("*.py"))}
    return {
        name: {_shorten(target, files) for target in _find_targets(name, path)} & set(files)
        for name, path in files.items()
    }


def _name(path: Path, top: Path) -> str:
    parts = path.relative_to(top.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _find_targets(name: str, path: Path) -> Iterator[str]:
    """Dotted names that are imported; of `from a import b` it is a.b, which may be a module or not."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _shorten(target: str, files: Mapping[str, Path]) -> str:
    """The module that has what `target` names."""
    return target if target in files else target.rpartition(".")[0]


def find_room(module: str) -> str:
    """`manager` of `hypemand.vm.vm`, `errors` of `hypemand.errors`; "" of the package itself."""
    return (*module.split("."), "")[1]


def find_strays(imports: Imports) -> list[str]:
    """Imports that do not run down. What no row names is no room, and counts as above all others."""
    return [
        f"{module} imports {target}"
        for module, targets in sorted(imports.items())
        for target in sorted(targets)
        if find_room(target) and not _runs_down(find_room(module), find_room(target))
    ]


def _runs_down(room: str, target: str) -> bool:
    if room == target or {room, target} <= GROUND:
        return True
    return room in _HEIGHTS and _HEIGHTS.get(target, 1) < _HEIGHTS[room]


IMPORTS = read_imports(TOP / PACKAGE)


def test_every_room_has_its_row() -> None:
    rooms = {find_room(module) for module in IMPORTS} - {""}
    named = list(chain.from_iterable(LAYERS))
    assert sorted(named) == sorted(rooms), "each room stands in LAYERS, and once"


def test_no_import_runs_up_or_to_a_neighbour() -> None:
    assert find_strays(IMPORTS) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    TopologicalSorter(IMPORTS).prepare()  # CycleError names them


def test_a_package_has_no_code_of_its_own() -> None:
    """Whoever imports one of its modules loads nothing that he did not ask for."""
    trees = {path: ast.parse(path.read_text()) for path in (TOP / PACKAGE).rglob("__init__.py")}
    assert [path for path, tree in trees.items() if len(tree.body) != 1 or not ast.get_docstring(tree)] == []


@pytest.mark.parametrize(
    ("module", "line", "strays"),
    [
        ("agent/channel.py", "from hypemand.vm.vm import VmView", 1),
        ("agent/channel.py", "from hypemand.manager import vm", 1),
        ("agent/channel.py", "import hypemand.vm.vm", 1),
        ("agent/channel.py", "from ..manager import vm", 1),
        ("agent/channel.py", "def late():\n    from hypemand.vm.vm import VmView", 1),
        ("agent/channel.py", "if False:\n    from hypemand.vm.vm import VmView", 1),
        ("agent/channel.py", "from hypemand.storage.store import Store", 1),
        ("agent/channel.py", "from hypemand.new.thing import Thing", 1),
        ("new/thing.py", "from hypemand.errors import NotFound", 1),
        ("errors.py", "from hypemand.model.vm import VmView", 1),
        ("agent/channel.py", "from hypemand.model.vm import VmView", 0),
        ("agent/channel.py", "from . import frames\nimport json", 0),
        ("run.py", "from hypemand.errors import NotFound", 0),
    ],
)
def test_a_stray_import_is_found(tmp_path: Path, module: str, line: str, strays: int) -> None:
    top = tmp_path / PACKAGE
    others = ("vm/vm", "manager/vm", "storage/store", "agent/frames", "new/thing", "errors", "model/vm")
    for name in (*(f"{other}.py" for other in others), module):
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(line if name == module else "")
    assert len(find_strays(read_imports(top))) == strays
