# SPDX-License-Identifier: Apache-2.0
"""Modules of a package without the package's own code, where that loads much that nothing here uses."""

from __future__ import annotations

import importlib.util
import sys
import types


def skip_package(name: str, **attributes: object) -> None:
    """Make `name` a mere place to find its modules in, with `attributes` for what they expect of it.

    Nothing happens where it is loaded already. ModuleNotFoundError if there is none.
    """
    if name in sys.modules:
        return
    spec = importlib.util.find_spec(name)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(f"no package named {name!r}", name=name)
    package = types.ModuleType(name)
    package.__path__ = list(spec.submodule_search_locations)
    vars(package).update(attributes)
    sys.modules[name] = package
