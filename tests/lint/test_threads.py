# SPDX-License-Identifier: Apache-2.0
"""No thread works on what the same scope closes, but through the helper that owns this."""

from __future__ import annotations

from textwrap import dedent

import pytest

from tests.lint.sources import TOP
from tests.lint.threads import find_strays

BAD = {
    "a method of what is closed": """
        async def read(path):
            file = path.open()
            try:
                return await run_in(Pool.LOGS, file.read, 10)
            finally:
                file.close()
        """,
    "what a `with` closes": """
        async def read(path):
            with path.open() as file:
                return await asyncio.to_thread(file.read)
        """,
    "what an asynchronous `with` closes": """
        async def read(journal):
            async with journal:
                return await loop.run_in_executor(None, journal.read)
        """,
    "a descriptor": """
        async def sync(path):
            fd = os.open(path, os.O_RDWR)
            await run_in(Pool.RECORDS, os.fsync, fd)
            os.close(fd)
        """,
    "in a lambda": """
        async def read(path):
            with path.open() as file:
                return await workers.run_in(Pool.LOGS, lambda: file.read(10))
        """,
    "in a function beside it": """
        async def read(path):
            with path.open() as file:
                def work():
                    return file.read()
                return await run_in(Pool.LOGS, work)
        """,
    "in a partial": """
        async def read(path):
            file = path.open()
            pool.submit(partial(parse, source=file))
            file.close()
        """,
    "closed by an ExitStack": """
        async def read(path, stack):
            file = path.open()
            stack.callback(file.close)
            return await run_in(Pool.LOGS, file.read)
        """,
    "what an object keeps": """
        class Log:
            async def read(self):
                return await run_in(Pool.LOGS, self._reader.read)

            def close(self):
                self._reader.close()
        """,
    "what an object keeps a descriptor of": """
        class Spool:
            async def write(self, data):
                await run_in(Pool.SPOOL, write_all, self._fd, data)

            def __exit__(self, *_):
                os.close(self._fd)
        """,
}
GOOD = {
    "closed by the helper that owns this": """
        async def read(path):
            lent = Lent(Pool.LOGS, await run_in(Pool.LOGS, path.open), close)
            try:
                return await lent.run(lambda file: file.read())
            finally:
                lent.close()
        """,
    "opened and closed in the thread": """
        async def read(path):
            def work():
                with path.open() as file:
                    return file.read()
            return await run_in(Pool.LOGS, work)
        """,
    "of another function": """
        async def read(file):
            return await run_in(Pool.LOGS, file.read)

        def close(file):
            file.close()
        """,
    "another thing": """
        async def read(path, store):
            with path.open() as file:
                return await run_in(Pool.IMAGES, store.find, "name")
        """,
}


@pytest.mark.parametrize("source", BAD.values(), ids=BAD)
def test_work_on_what_is_closed_is_found(source: str) -> None:
    assert len(find_strays(dedent(source))) == 1


@pytest.mark.parametrize("source", GOOD.values(), ids=GOOD)
def test_other_work_is_not(source: str) -> None:
    assert find_strays(dedent(source)) == []


def test_no_thread_works_on_what_its_caller_closes() -> None:
    strays = [
        f"{path.relative_to(TOP)}:{stray.line}: {stray.thing} is closed in the same scope"
        for path in sorted((TOP / "hypemand").rglob("*.py"))
        if path != TOP / "hypemand/workers.py"
        for stray in find_strays(path.read_text())
    ]
    assert strays == [], "use hypemand.workers.Lent, or open and close it in the thread"
