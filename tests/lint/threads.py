# SPDX-License-Identifier: Apache-2.0
"""Work in threads on something that the same scope closes: the caller may be cancelled, and then the thread
works on what is closed under it.

A thing counts as closed in a function that calls its `close()`, `release()`, `terminate()` or `__exit__()`,
hands it to `os.close()` or `closing()`, has an ExitStack do so, or has it in a `with`. What an object keeps
(`self.x`) counts as closed in all methods of a class if one of them closes it. Work on it in a thread is a
call that has it, a method of it, or a function of the same scope that uses it, among the arguments of
`run_in`, `to_thread`, `run_in_executor` or `submit`. A function that opens and closes it by itself may do so
anywhere. A `Lent` (hypemand/workers.py) is asked by its own `run`, and is none of these.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeGuard

# where the work begins among the arguments
_LENDERS = {"run_in": 1, "to_thread": 0, "run_in_executor": 1, "submit": 0}
_ENDS = frozenset({"close", "release", "terminate", "__exit__", "__aexit__"})
_CLOSERS = frozenset({"close", "closing", "aclosing", "closerange"})
# of an ExitStack
_STACKED = frozenset(
    {"callback", "push", "enter_context", "push_async_callback", "push_async_exit", "enter_async_context"}
)

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


@dataclass(frozen=True, slots=True, order=True)
class Stray:
    """Work in a thread, at a line, on something that is closed in the same scope."""

    line: int
    thing: str


def find_strays(source: str) -> list[Stray]:
    """All of a file."""
    strays: set[Stray] = set()
    for scope in ast.walk(ast.parse(source)):
        if isinstance(scope, ast.ClassDef):
            own = {thing for thing in _find_closed(scope) if thing.startswith("self.")}
            strays |= set(_find_lent(scope, own))
        elif isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef):
            strays |= set(_find_lent(scope, _find_closed(scope)))
    return sorted(strays)


def _find_closed(scope: ast.AST) -> set[str]:
    """The things that are closed there, as they are written: `x`, `self._x`. Not those of functions in it."""
    closed: set[str] = set()
    for node in ast.iter_child_nodes(scope):
        if isinstance(node, ast.With | ast.AsyncWith):
            for item in node.items:
                closed |= set(map(_name, (item.context_expr, item.optional_vars)))
        elif isinstance(node, ast.Call):
            closed |= _find_ended(node)
        inner = _find_closed(node)
        closed |= inner - _find_bound(node) if isinstance(node, _FUNCTIONS) else inner
    return closed - {""}


def _find_ended(call: ast.Call) -> set[str]:
    """What a call closes."""
    if _is_end(call.func) and _name(call.func.value) not in ("os", ""):
        return {_name(call.func.value)}
    if _called(call) in _CLOSERS:
        return set(map(_name, call.args))
    if _called(call) in _STACKED:
        return {_name(part.value) if _is_end(part) else _name(part) for part in call.args}
    return set()


def _find_bound(function: ast.AST) -> set[str]:
    """The names that are a function's own."""
    return {
        node.arg if isinstance(node, ast.arg) else node.id
        for node in ast.walk(function)
        if isinstance(node, ast.arg) or (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
    }


def _find_lent(scope: ast.AST, closed: set[str]) -> Iterator[Stray]:
    """Work in threads there that uses one of these."""
    bodies = {node.name: node for node in ast.walk(scope) if isinstance(node, ast.FunctionDef)}
    for call in ast.walk(scope):
        if not isinstance(call, ast.Call) or _called(call) not in _LENDERS:
            continue
        work: list[ast.AST] = [*call.args[_LENDERS[_called(call)] :], *(part.value for part in call.keywords)]
        # a function that stands in the same scope works on what it sees there
        work += [bodies[name.id] for name in work if isinstance(name, ast.Name) and name.id in bodies]
        for thing in sorted(closed & {name for part in work for name in _find_used(part)}):
            yield Stray(call.lineno, thing)


def _find_used(work: ast.AST) -> set[str]:
    used = set(map(_name, ast.walk(work)))
    return used - _find_bound(work) if isinstance(work, _FUNCTIONS) else used


def _is_end(node: ast.AST) -> TypeGuard[ast.Attribute]:
    return isinstance(node, ast.Attribute) and node.attr in _ENDS


def _called(call: ast.Call) -> str:
    """The last word of what is called."""
    function = call.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _name(node: ast.AST | None) -> str:
    """`x` or `self.x`; "" for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
        return f"self.{node.attr}"
    return ""
