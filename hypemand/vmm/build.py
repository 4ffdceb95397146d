# SPDX-License-Identifier: Apache-2.0
"""What a saved VM is bound to: another QEMU, or another CPU, cannot restore it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from hypemand.vmm.accel import CPUINFO, AccelKind
from hypemand.vmm.commandline import MACHINE, cpu_model
from hypemand.vmm.host import read_qemu_version
from hypemand.workers import Pool, run_in

# QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)
_VERSION = re.compile(r"QEMU emulator version (.+)")
# of a CPU, as /proc/cpuinfo has them: what a guest sees of one that it shares
_CPU_KEYS = ("vendor_id", "cpu family", "model", "stepping", "flags")
_MODEL_NAME = "model name"


@dataclass(frozen=True, slots=True)
class VmmBuild:
    """`version`: QEMU's, with its package's; `machine` and `cpu`: what it emulates. `cpu_digest`: of a CPU
    that guests share with the host; "" of one that is emulated. All are text that lasts in a file."""

    version: str
    machine: str
    accel: str
    cpu: str
    cpu_digest: str

    def to_json(self) -> dict[str, str]:
        """For a record."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: object) -> VmmBuild:
        """ValueError."""
        if not isinstance(data, dict):
            raise ValueError("is no object")
        values = {field.name: data.get(field.name) for field in fields(cls)}
        for key, value in values.items():
            if not isinstance(value, str):
                raise ValueError(f"{key} is no text")
        return cls(**values)  # type: ignore[arg-type]


def list_differences(saved: VmmBuild, host: VmmBuild) -> tuple[str, ...]:
    """Why a VM that was saved by the one cannot be restored by the other, in words; nothing if it can."""
    return tuple(_list_differences(saved, host))


def _list_differences(saved: VmmBuild, host: VmmBuild) -> Iterator[str]:
    if saved.version != host.version:
        yield f"saved with QEMU {saved.version}, this host has {host.version}"
    if saved.machine != host.machine:
        yield f"saved as machine {saved.machine}, this version has {host.machine}"
    if saved.accel != host.accel:
        yield f"saved with the accelerator {saved.accel}, this host has {host.accel}"
    elif saved.cpu != host.cpu:
        yield f"saved on the CPU {saved.cpu}, this host has {host.cpu}"
    elif saved.cpu_digest != host.cpu_digest:
        yield f"saved on the CPU {saved.cpu} of another stepping, or with other flags, than this host has"


class BuildFinder:
    """What VMs are saved with now. A QEMU is asked for its version once, until it is another file."""

    def __init__(
        self, read_version: Callable[[Path], str] = read_qemu_version, cpuinfo: Path = CPUINFO
    ) -> None:
        self._read_version = read_version
        self._cpuinfo = cpuinfo
        self._known: tuple[Path, tuple[int, ...], str] | None = None

    async def find(self, binary: Path, accel: AccelKind) -> VmmBuild:
        """HypemandError, OSError."""
        return await run_in(Pool.STARTS, self._find, binary, accel)

    def _find(self, binary: Path, accel: AccelKind) -> VmmBuild:
        cpu, digest = cpu_model(accel), ""
        if accel is AccelKind.KVM:
            cpu, digest = _read_cpu(self._cpuinfo)
        return VmmBuild(self._find_version(binary), MACHINE, accel.value, cpu, digest)

    def _find_version(self, binary: Path) -> str:
        found = binary.stat()
        identity = (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
        if self._known is None or self._known[:2] != (binary, identity):
            words = self._read_version(binary)
            known = _VERSION.match(words)
            self._known = (binary, identity, known[1] if known else words)
        return self._known[2]


def _read_cpu(cpuinfo: Path) -> tuple[str, str]:
    """The name of the first CPU, and a digest of what it is. OSError."""
    first = cpuinfo.read_text(errors="replace").partition("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    values = {key.strip(): value.strip() for key, _, value in pairs}
    flags = " ".join(sorted(values.get("flags", "").split()))
    facts = "\n".join(flags if key == "flags" else values.get(key, "") for key in _CPU_KEYS)
    return values.get(_MODEL_NAME, "of an unknown model"), hashlib.sha256(facts.encode()).hexdigest()
