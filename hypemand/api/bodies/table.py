# SPDX-License-Identifier: Apache-2.0
"""Which form is of which route.

`BODIES` and `QUERIES` have them by the operationId of openapi.yaml, with which a test compares them, of all
modules that were imported. The body of the published client for a new VM has keys of a definition
instead: `hypemand.api.create`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=type)
BODIES: dict[str, type[Any]] = {}
QUERIES: dict[str, type[Any]] = {}


def body_of(*operations: str) -> Callable[[F], F]:
    """The class is the form of the body of these."""
    return lambda form: _register(BODIES, operations, form)


def query_of(*operations: str) -> Callable[[F], F]:
    """The class is the form of the query of these."""
    return lambda form: _register(QUERIES, operations, form)


def _register(table: dict[str, type[Any]], operations: tuple[str, ...], form: F) -> F:
    table |= dict.fromkeys(operations, form)
    return form
