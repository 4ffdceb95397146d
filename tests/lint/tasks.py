# SPDX-License-Identifier: Apache-2.0
"""Tasks that have no owner: what starts one, and what shields work that is no task yet."""

from __future__ import annotations

import ast

# of asyncio, of a loop, and of an asyncio.TaskGroup, which nobody needs beside `Tasks`
_STARTERS = frozenset({"create_task", "ensure_future", "TaskGroup", "Task", "run_coroutine_threadsafe"})


def find_strays(source: str) -> list[int]:
    """The lines of a file."""
    nodes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom | ast.Call))
    return sorted(node.lineno for node in nodes if _is_stray(node))


def _is_stray(node: ast.ImportFrom | ast.Call) -> bool:
    if isinstance(node, ast.ImportFrom):
        return node.module == "asyncio" and any(alias.name in _STARTERS | {"shield"} for alias in node.names)
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    # shield(work()) makes a task of it that nobody has; of a task that has a name somebody does
    return name in _STARTERS or (name == "shield" and not isinstance(node.args[0], ast.Name | ast.Attribute))
