# SPDX-License-Identifier: Apache-2.0
"""pystemd's binding to sd-bus, without the rest of pystemd.

``import pystemd`` also loads lxml, to introspect objects, which nothing here does: 6 MB of memory and
20 ms. So the package is given to Python as a mere place to find its modules in.
"""

from __future__ import annotations

import importlib.util
import sys
import types

from hypemand.errors import HostNotReady


def _skip_package() -> None:
    if "pystemd" in sys.modules:
        return
    spec = importlib.util.find_spec("pystemd")
    if spec is None or spec.submodule_search_locations is None:
        raise HostNotReady("Python has no pystemd", hint="install the package python3-pystemd")
    package = types.ModuleType("pystemd")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["pystemd"] = package


_skip_package()

from pystemd.dbusexc import DBusBaseError  # noqa: E402
from pystemd.dbuslib import DBus, apply_signature, path_encode  # noqa: E402

__all__ = ["DBus", "DBusBaseError", "apply_signature", "path_encode"]
