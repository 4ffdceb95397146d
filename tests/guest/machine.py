# SPDX-License-Identifier: Apache-2.0
"""What a test's guest boots on: the VMM's command line of hypemand itself, and what a test adds to it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from hypemand.config.mode import Mode
from hypemand.vmm.accel import AccelKind, find_tsc_khz
from hypemand.vmm.commandline import (
    PORT_FDS,
    TAP_FD,
    NetDevice,
    SavedFiles,
    VmmFiles,
    VmmPlan,
    VolumeFile,
    kernel_words,
    qemu_arguments,
    warm_arguments,
)
from hypemand.vmm.template import template_line

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
    plan = _plan(folder, machine, image, boot, memory, mode)
    arguments = [_listen_at(folder, argument) for argument in qemu_arguments(plan)]
    words = f"{kernel_words(plan)} hypeman.boot={boot} {machine.words}"
    return [*arguments, *machine.options, "-append", words]


def format_template(folder: Path, machine: Machine, memory: int) -> list[str]:
    """Of the template for such guests, with a network device, in a folder of its own."""
    plan = replace(_plan(folder, machine, folder / "image", "0" * 32, memory, "exec"), net=NetDevice(""))
    words, *arguments = template_line(plan, folder)
    arguments = [a.replace(f"tap,id=net,fd={TAP_FD},vhost=off", "hubport,id=net,hubid=0") for a in arguments]
    return [*(_listen_at(folder, argument) for argument in arguments), "-append", words]


def format_warm(folder: Path, machine: Machine, image: Path, memory: int, saved: SavedFiles) -> list[str]:
    """What makes a guest go on from its template: behind its command line."""
    return list(warm_arguments(_plan(folder, machine, image, "0" * 32, memory, "exec"), saved))


def _plan(folder: Path, machine: Machine, image: Path, boot: str, memory: int, mode: str) -> VmmPlan:
    files = VmmFiles(
        kernel=KERNEL,
        initrd=machine.initrd,
        config=folder / "config",
        image=machine.image or image,
        disk=machine.disk or folder / "disk",
        volumes=tuple(VolumeFile(path, serial, read_only) for serial, path, read_only in machine.drives),
    )
    return VmmPlan(
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


def _listen_at(folder: Path, argument: str) -> str:
    """The ports' sockets are made by the VMM here, and not by the launcher."""
    for name, fd in PORT_FDS.items():
        argument = argument.replace(f"socket,id={name},fd={fd},", f"socket,id={name},path={folder / name},")
    return argument
