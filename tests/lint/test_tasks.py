# SPDX-License-Identifier: Apache-2.0
"""Each background task has an owner: hypemand/tasks.py alone starts them."""

from __future__ import annotations

import pytest

from tests.lint.sources import TOP
from tests.lint.tasks import find_strays

BAD = [
    "asyncio.create_task(work())",
    "task = asyncio.get_running_loop().create_task(work(), name='x')",
    "asyncio.ensure_future(work())",
    "async def run():\n    async with asyncio.TaskGroup() as group:\n        pass",
    "from asyncio import create_task as begin",
    "async def run():\n    await asyncio.shield(work())",
    "async def run():\n    await asyncio.shield(self._work(vm))",
]
GOOD = [
    "self._tasks.start('look', work())",
    "async def run():\n    await asyncio.shield(self._task)",
    "async def run():\n    await asyncio.shield(task)",
    "def wait(task: asyncio.Task[None]) -> None: ...",
]


@pytest.mark.parametrize("source", BAD)
def test_a_task_without_an_owner_is_found(source: str) -> None:
    assert find_strays(source) != []


@pytest.mark.parametrize("source", GOOD)
def test_other_calls_are_not(source: str) -> None:
    assert find_strays(source) == []


def test_only_the_owner_of_tasks_starts_them() -> None:
    strays = [
        f"{path.relative_to(TOP)}:{line}"
        for path in sorted((TOP / "hypemand").rglob("*.py"))
        if path != TOP / "hypemand/tasks.py"
        for line in find_strays(path.read_text())
    ]
    assert strays == [], "use hypemand.tasks.Tasks"
