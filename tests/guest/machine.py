# SPDX-License-Identifier: Apache-2.0
"""What a test's guest boots on: the VMM's command line of hypemand itself, and what a test adds to it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from hypemand.config.definition import Mode
from hypemand.vmm.accel import AccelKind, find_tsc_khz
from hypemand.vmm.commandline import (
    PORT_FDS,
    VmmFiles,
    VmmPlan,
    VolumeFile,
    kernel_words,
    qemu_arguments,
)

KERNEL = Path(os.environ["HYPEMAN_KERNEL"])
INITRD = Path(os.environ["HYPEMAN_INITRD"])
QEMU = Path("/usr/bin/qemu-system-x86_64")


@dataclass(frozen=True)
class Machine:
    """What a test's guest has beside, or instead of, what all have. `drives`: serial, path, and whether it is
    read-only."""

    image: Path | None = None
    disk: Path | None = None
    initrd: Path = INITRD
    words: str = ""
    drives: Sequence[tuple[str, Path, bool]] = ()
    options: Sequence[str] = ()
    records: Sequence[tuple[str, str]] = ()


PLAIN = Machine()


def format_command(
    folder: Path, machine: Machine, image: Path, boot: str, memory: int, mode: str
) -> list[str]:
    """Memory in MiB. `folder` has the configuration and a disk, and gets the ports' sockets."""
    files = VmmFiles(
        kernel=KERNEL,
        initrd=machine.initrd,
        config=folder / "config",
        image=machine.image or image,
        disk=machine.disk or folder / "disk",
        volumes=tuple(VolumeFile(path, serial, read_only) for serial, path, read_only in machine.drives),
    )
    plan = VmmPlan(
        vm="vm1",
        vm_id=boot,
        binary=QEMU,
        accel=AccelKind.TCG,
        memory=memory << 20,
        vcpus=1,
        tsc_khz=find_tsc_khz(),
        mode=Mode(mode),
        files=files,
    )
    arguments = [_listen_at(folder, argument) for argument in qemu_arguments(plan)]
    words = f"{kernel_words(plan)} hypeman.boot={boot} {machine.words}"
    return [*arguments, *machine.options, "-append", words]


def _listen_at(folder: Path, argument: str) -> str:
    """The ports' sockets are made by the VMM here, and not by the launcher."""
    for name, fd in PORT_FDS.items():
        argument = argument.replace(f"socket,id={name},fd={fd},", f"socket,id={name},path={folder / name},")
    return argument
