# SPDX-License-Identifier: Apache-2.0
"""VMMs whose guests are saved as templates for warm starts."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

from tests.fakes.process import Process
from tests.fakes.qmp import QmpServer

_TELL_AGAIN = 0.02


class TemplateVmms:
    """`runs`: how many there were; `orders`: what the last one was asked; `boots`: they reach the point at
    which they are saved; `fails`: they end at once; `memory`: what they have in memory;
    `argv`: of the last one."""

    def __init__(self, runtime: Path) -> None:
        self.runs = 0
        self.boots = True
        self.fails = False
        self.memory = b"a template"
        self.orders: list[str] = []
        self.argv: tuple[str, ...] = ()
        self._runtime = runtime

    async def run(self, process: Process) -> int:
        """What its unit executes."""
        if "/bin/true" in process.argv[:1]:
            return 0
        self.runs += 1
        self.argv = tuple(process.argv)
        if self.fails:
            return 1
        server = QmpServer()
        server.monitor.take_start_line(process.argv)
        server.monitor.memory = self.memory
        self.orders = server.monitor.orders
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(server.serve(self._runtime / "qmp.sock"))
            reports = await asyncio.start_unix_server(self._report, self._runtime / "report.sock")
            stack.callback(reports.close)
            await server.ended.wait()
        return 0

    async def _report(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A guest that does not boot says nothing, to whoever listens until it leaves."""
        try:
            if not self.boots:
                await reader.read()
            while self.boots and not writer.is_closing():
                writer.write(b"HYPEMAN-TEMPLATE\n")
                await writer.drain()
                await asyncio.sleep(_TELL_AGAIN)
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()
