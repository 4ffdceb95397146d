# SPDX-License-Identifier: Apache-2.0
"""Bare VMs that are saved and restored by hand, by QMP: what standby and restore stand beside."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.inside.bare import BareVm, Recipe
from bench.inside.rounds import run
from hypemand.agent.channel import AgentChannel
from hypemand.protocol.thaw import Thaw
from hypemand.vmm.commandline import MEMORY_BLOCK, can_share

_DEADLINE = 60.0
_POLL = 0.001
_UNLIMITED = 2**60


class Control:
    """A QMP connection that does one thing after the other."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(_DEADLINE)
        end = time.monotonic() + _DEADLINE
        while self._socket.connect_ex(str(path)) != 0:
            if time.monotonic() > end:
                raise TimeoutError(f"nothing listens at {path}")
            time.sleep(_POLL)
        self._lines = self._socket.makefile("rb")
        self._events: list[dict[str, Any]] = []
        self._lines.readline()  # the greeting
        self.execute("qmp_capabilities")

    def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, fd: int | None = None
    ) -> Any:
        """Its result. RuntimeError for a refusal."""
        order = json.dumps({"execute": command, "arguments": arguments or {}}).encode() + b"\n"
        if fd is None:
            self._socket.sendall(order)
        else:
            socket.send_fds(self._socket, [order], [fd])
        while True:
            answer = json.loads(self._lines.readline())
            if "event" in answer:
                self._events.append(answer)
            elif "error" in answer:
                raise RuntimeError(f"{command}: {answer['error']}")
            else:
                return answer["return"]

    def wait_migrated(self) -> None:
        """Until a migration has ended. RuntimeError unless it has ended well."""
        while True:
            event = self._events.pop(0) if self._events else json.loads(self._lines.readline())
            status = event.get("data", {}).get("status") if event.get("event") == "MIGRATION" else None
            if status == "completed":
                return
            if status in ("failed", "cancelled"):
                raise RuntimeError(f"the migration has {status}")

    def wait_loaded(self) -> None:
        """Until a VMM that was started with -incoming has loaded all."""
        end = time.monotonic() + _DEADLINE
        while self.execute("query-status")["status"] == "inmigrate":
            if time.monotonic() > end:
                raise TimeoutError("the VMM does not load what was saved")
            time.sleep(_POLL)

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


@contextmanager
def _controlled(vm: BareVm, recipe: Recipe) -> Iterator[Control]:
    """A VM that is spawned, and not left running."""
    control = None
    try:
        control = Control(recipe.folder / "qmp.sock")
        yield control
    finally:
        if control is not None:
            control.close()
        vm.kill()


def _find_version(recipe: Recipe) -> str:
    return run(recipe.argv[0], "--version").split("version ")[1].split()[0]


def save_by_hand(vm: BareVm, recipe: Recipe, control: Control) -> dict[str, float]:
    """Have a guest stand still, migrate it to a file, and end its VMM. Milliseconds from the order to stop
    until all is written, is on the disk, and until the VMM has ended."""
    target = recipe.folder / "migrated"
    moments = {"began": time.monotonic()}
    control.execute("stop")
    with target.open("w+b") as file:
        events = {"capabilities": [{"capability": "events", "state": True}]}
        control.execute("migrate-set-capabilities", events)
        control.execute("migrate-set-parameters", {"max-bandwidth": _UNLIMITED})
        if can_share(_find_version(recipe)):
            control.execute("migrate", {"uri": f"file:{target}"})
        else:
            control.execute("getfd", {"fdname": "save"}, file.fileno())
            control.execute("migrate", {"uri": "fd:save"})
        control.wait_migrated()
        moments["written"] = time.monotonic()
        os.fsync(file.fileno())
        moments["durable"] = time.monotonic()
    control.execute("quit")
    vm.wait_end()
    moments["ended"] = time.monotonic()
    target.unlink()
    return {key: (moment - moments["began"]) * 1000 for key, moment in moments.items() if key != "began"}


def boot_and_save(recipe: Recipe, line: bytes) -> dict[str, float]:
    """Boot it, wait until its program has written a line, and save it."""
    vm = BareVm(recipe)
    with _controlled(vm, recipe) as control:
        vm.wait_console(line)
        return save_by_hand(vm, recipe, control)


def restore_and_save(recipe: Recipe, saved: Path, memory: str) -> tuple[dict[str, float], dict[str, float]]:
    """Restore a copy of what is in that folder of a managed VM, of so much memory, whose disk the recipe has
    a copy of; then save it. Milliseconds from the spawn until it has loaded, until the agent has spoken, and
    until the guest's processes go on; and those of `save_by_hand`."""
    boot = str(json.loads((saved / "snapshot.json").read_text())["boot"])
    shared = can_share(_find_version(recipe))
    # of its own, since the first to read the file's holes pays for the pages of both
    run("cp", "--sparse=always", f"{saved}/memory", f"{saved}/state", str(recipe.folder))
    run("sync")
    state = os.open(recipe.folder / "state", os.O_RDONLY)
    try:
        words = _restore_words(recipe.folder, memory, state, shared=shared)
        vm = BareVm(recipe, more=words, fds=[state])
    finally:
        os.close(state)
    took: dict[str, float] = {}

    def note(key: str) -> None:
        took[key] = (time.monotonic() - vm.spawned) * 1000

    async def speak() -> None:
        async with asyncio.timeout(_DEADLINE):
            channel = await AgentChannel.connect(recipe.folder / "agent.sock", boot)
            await channel.ready()
            note("hello")
            await channel.thaw(Thaw())
            note("thawed")
            await channel.close()

    with _controlled(vm, recipe) as control:
        control.wait_loaded()
        note("loaded")
        control.execute("cont")
        asyncio.run(speak())
        return took, save_by_hand(vm, recipe, control)


def _restore_words(saved: Path, memory: str, state: int, *, shared: bool) -> list[str]:
    """What hypemand adds to a VM's command line, by hand. QEMU before 8.2 opens the memory to write."""
    words = f"memory-backend-file,id={MEMORY_BLOCK},x-use-canonical-path-for-ramblock-id=off"
    words += f",mem-path={saved}/memory,size={memory},share=off"
    return [
        *("-object", words + (",readonly=on,rom=off" if shared else "")),
        *("-machine", f"memory-backend={MEMORY_BLOCK}"),
        *("-incoming", f"file:{saved}/state" if shared else f"fd:{state}"),
        "-S",
    ]
