# SPDX-License-Identifier: Apache-2.0
"""Components on the host that VMs need: QEMU, the guest kernel, the guest's initrd, the accelerator."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path

from hypemand.config.host import HostConfig, JournalPolicy
from hypemand.errors import HostNotReady
from hypemand.run import run
from hypemand.vmm.accel import Accel, find_accel, find_tsc_khz

_VERSION_DEADLINE = 10.0


@dataclass(frozen=True, slots=True)
class Kernel:
    """The guest kernel. `headers`: the disk with its headers; None where there is none."""

    path: Path
    release: str
    headers: Path | None = None


@dataclass(frozen=True, slots=True)
class VmmHost:
    """Everything that a VM is started with and that is the same for all VMs. `page_cache`: the bytes of it
    that its disks may have; `journal`: what the journal takes of each console."""

    binary: Path
    kernel: Kernel
    initrd: Path
    accel: Accel
    tsc_khz: int | None
    architecture: str
    page_cache: int
    journal: JournalPolicy


def find_vmm_host(config: HostConfig) -> VmmHost:
    """Look at the host now. Raises HostNotReady, which says what is missing and which package has it."""
    return VmmHost(
        binary=find_qemu(config),
        kernel=find_kernel(config.kernel_dir),
        initrd=find_initrd(config),
        accel=find_accel(config.accel),
        tsc_khz=find_tsc_khz(),
        architecture=platform.machine(),
        page_cache=config.memory.page_cache,
        journal=config.journal,
    )


def find_qemu(config: HostConfig) -> Path:
    """QEMU. Raises HostNotReady."""
    if not os.access(config.qemu, os.X_OK):
        raise HostNotReady(f"there is no QEMU at {config.qemu}", hint="install the package qemu-system-x86")
    return config.qemu


def read_qemu_version(binary: Path) -> str:
    """How it introduces itself. HypemandError."""
    done = run([str(binary), "--version"], timeout=_VERSION_DEADLINE)
    words = done.stdout.decode(errors="replace").splitlines()
    return words[0] if words else "of an unknown version"


def find_initrd(config: HostConfig) -> Path:
    """The guest's initrd. Raises HostNotReady."""
    initrd = config.guest_dir / "initrd.cpio"
    if not initrd.is_file():
        raise HostNotReady(f"there is no guest initrd at {initrd}", hint="install the package hypemand-guest")
    return initrd


def find_kernel(folder: Path) -> Kernel:
    """The guest kernel and what its build says of it. Raises HostNotReady."""
    path, headers = folder / "vmlinux", folder / "headers.erofs"
    try:
        facts = json.loads((folder / "kernel.json").read_text())
        kernel = Kernel(path, str(facts["release"]), headers if headers.is_file() else None)
    except (OSError, ValueError, KeyError, TypeError):
        kernel = None
    if kernel is None or not path.is_file():
        raise HostNotReady(
            f"there is no guest kernel in {folder}", hint="install the package hypemand-kernel"
        )
    return kernel
