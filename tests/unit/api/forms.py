# SPDX-License-Identifier: Apache-2.0
"""The tables of forms, with the modules imported that fill them."""

import importlib
import pkgutil

import hypemand.api.bodies
from hypemand.api.bodies.table import BODIES, QUERIES

__all__ = ["BODIES", "QUERIES"]
for _module in pkgutil.iter_modules(hypemand.api.bodies.__path__, "hypemand.api.bodies."):
    importlib.import_module(_module.name)
