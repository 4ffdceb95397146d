# SPDX-License-Identifier: Apache-2.0
"""What hypemand asks of a running VMM, whichever that is. The only one is QEMU (`qemu`).

A start line is `commandline.start_line`; what a host must have for it, `host`. Nothing outside this folder
names an option, a command, an event or a run state of QEMU (tests/lint/test_vmm_words.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from hypemand.budget import Budget
from hypemand.model.evidence import RunState
from hypemand.model.limits import DiskLimits
from hypemand.vmm.shutdown import Shutdown


class VmmError(Exception):
    """The VMM refused what was asked of it, answered nonsense, or is gone."""


class VmmTimeout(VmmError):
    """The VMM did not answer in time."""


@dataclass(frozen=True, slots=True)
class Drive:
    """A disk of the VM that it may write to: its volume of that number, counted from 0 in the order of the
    start line. None: its own disk."""

    volume: int | None = None


@dataclass(frozen=True, slots=True)
class Ending:
    """The VMM ends right after this, unless it is held (`Vmm.hold_end`). `reason` None: the guest has not
    asked for it."""

    reason: Shutdown | None


@dataclass(frozen=True, slots=True)
class RunStateChanged:
    """The run state may be another one: ask for it."""


VmmEvent: TypeAlias = Ending | RunStateChanged
OnEvent: TypeAlias = Callable[[VmmEvent], None]


class Vmm(Protocol):
    """A connection to a running VMM. It may have been taken over by its guest: what it says is bounded, and
    proves nothing."""

    @property
    def is_closed(self) -> bool:
        """Has the connection ended, from whichever side?"""

    async def wait_closed(self) -> None:
        """Until the connection ends."""

    async def query_run_state(self) -> RunState:
        """Whenever it answers; ABSENT when the connection ends before. Never raises."""

    async def list_full_drives(self) -> tuple[Drive, ...]:
        """The disks that could not be written since the host had no space left for it, while the run state is
        IO_ERROR; until `resume`. VmmError."""

    async def pause(self) -> None:
        """Stop the guest's CPUs. VmmError."""

    async def resume(self) -> None:
        """Let the guest go on, whatever it was stopped for, and have what could not be written tried again.
        VmmError."""

    async def save(
        self,
        memory: int,
        state: int,
        *,
        size: int,
        user: int,
        deadline: float,
        ready: Awaitable[object] | None = None,
    ) -> None:
        """Write the guest to the files of two descriptors, which remain the caller's: its memory, of `size`
        bytes, to `memory`, where pages of zeros are holes; its devices, but not its disks, to `state`, at
        most `intake.STATE_SIZE` bytes. Both are on the disk afterwards. A process of the uid `user` writes
        them. It takes at most `deadline` seconds, in which the VMM may answer nothing else. It is for a VMM
        of the same start line and build.

        `ready`: what is awaited, for as long as it takes, before anything of the guest is written, and beside
        which all else is prepared. What it raises ends the save.

        The guest stands still from then on (HALTED), to be ended by `quit`, or to go on by `resume`. One that
        was not paused before runs while it is saved, and what it changes meanwhile is saved again.

        VmmError, VmmTimeout; OSError when a file cannot be written, or that process cannot be started. Then,
        and when this is cancelled, what the files have is worthless; a guest that was running runs on, or
        `resume` has it do so.

        A VMM that is started from such files is NOT_STARTED while it loads them, then PAUSED: `resume` has
        the guest go on.
        """

    async def renew_disks(self) -> None:
        """Have the guest of a template, which is paused, learn when it goes on that its disks are others.
        VmmError."""

    async def query_memory(self) -> int:
        """Bytes of memory that the guest has, less what is in its balloon. VmmError; also without one."""

    async def set_memory(self, size: int, deadline: float) -> int:
        """Have the guest give memory back until it has `size` bytes, or take it again: what it has then, or
        after `deadline` seconds. The guest continues as far as it can. VmmError; also without a balloon."""

    async def query_disk_limits(self) -> DiskLimits:
        """The limits of its disks. VmmError."""

    async def set_disk_limits(self, limits: DiskLimits) -> None:
        """Other limits for all disks of the start line that have any. VmmError."""

    async def announce(self) -> None:
        """Have the guest tell all on its network where it is (gratuitous ARP, unsolicited neighbour
        advertisements), several times within two seconds. VmmError; not known whether the guest does so."""

    async def hold_end(self, hold: bool) -> None:
        """Shall the VMM stay, in SHUTDOWN, when its guest has shut down, until `quit` or SIGTERM? One that
        stays already is not ended by this. VmmError."""

    async def quit(self) -> None:
        """End the VMM at once, whatever its guest does. Back when it has closed its socket. VmmError."""

    async def close(self) -> None:
        """End the connection; the VMM goes on."""


# Path of the control socket, what takes events, the VM's name for logs, and what all that the VMM says on its
# own is paid from. OSError while nothing listens yet; VmmError when it does not answer.
Connect: TypeAlias = Callable[[str, OnEvent, str, Budget], Coroutine[Any, Any, Vmm]]
