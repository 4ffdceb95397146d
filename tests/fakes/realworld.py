# SPDX-License-Identifier: Apache-2.0
"""The scenarios of contract.py on the systemd of the host that this runs on.

``python3 -m tests.fakes.realworld FOLDER [NAME…]`` prints what was wrong in each scenario, as JSON. It needs
hypemand, and of the tests this file, contract.py and stage.py.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import traceback
from contextlib import suppress
from pathlib import Path

from hypemand.systemd.bus import SystemBus
from hypemand.systemd.notify import notify_for
from hypemand.systemd.port import Bus
from hypemand.systemd.units import Units
from tests.fakes.contract import SCENARIOS, play
from tests.fakes.stage import OTHER, Script, U, same


class RealWorld:
    """systemd of the host that this runs on. Scripts are sh's, and leave files in `folder`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self._system = SystemBus()
        self.bus: Bus = self._system

    def command(self, script: Script) -> tuple[str, list[str], bool]:
        """See World. `sleep` runs beside the shell, so that a signal is heard at once; both get it."""
        trap = {None: "", -1: "trap '' TERM"}.get(script.on_term, f"trap 'exit {script.on_term}' TERM")
        released = self.folder / f"{script.mark}.go"
        wait = f"until [ -e {released} ]; do sleep 0.01; done; rm {released}" if script.waits else ":"
        words = '"$SERVICE_RESULT $EXIT_CODE $EXIT_STATUS"'
        text = f"{trap or ':'}; echo {words} >>{self.folder / script.mark}; {wait}; exit {script.status}"
        return ("/bin/sh", ["/bin/sh", "-c", text.replace("$", "$$")], False)

    def marks(self, mark: str) -> list[str]:
        """See World."""
        with suppress(FileNotFoundError):
            return (self.folder / mark).read_text().splitlines()
        return []

    def release(self, mark: str) -> None:
        """See World."""
        (self.folder / f"{mark}.go").touch()

    def notify(self, pid: int, *assignments: str) -> None:
        """See World."""
        notify_for(pid, *assignments)

    async def reexecute(self) -> None:
        """See World."""
        process = await asyncio.create_subprocess_exec("systemctl", "daemon-reexec")
        same(await process.wait(), 0)

    async def clean(self) -> None:
        """See World."""
        units = Units(self.bus)
        for unit in (U, OTHER):
            await units.stop(unit)
            await units.kill(unit, signal.SIGKILL)
            kill = await asyncio.create_subprocess_exec("systemctl", "--quiet", "kill", "--signal=KILL", unit)
            await kill.wait()
            while (await units.status(unit)).is_live:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.005)
            await units.reset_failed(unit)
            while (await units.status(unit)).active_state is not None:  # noqa: ASYNC110 - likewise
                await asyncio.sleep(0.005)
        for path in self.folder.iterdir():
            path.unlink()


async def main(folder: str, *names: str) -> None:
    """Play scenarios on the real one; their failures as JSON, by name."""
    said: dict[str, str] = {}
    world = RealWorld(Path(folder))
    world.bus.start()
    try:
        for name in names or SCENARIOS:
            try:
                await play(world, SCENARIOS[name])
            except Exception:
                said[name] = traceback.format_exc()
            else:
                said[name] = ""
    finally:
        await world.bus.close()
    print(json.dumps(said))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
