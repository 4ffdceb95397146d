# SPDX-License-Identifier: Apache-2.0
"""Where a VM's files are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hypemand.storage.disks import DISK
from hypemand.systemd.rootdir import Own
from hypemand.vm.folders import STANDBY

CONFIG_DISK = "config.img"
FILES_DISK = "files.img"


@dataclass(frozen=True, slots=True)
class Places:
    """Folders on the host: what lasts of the VM, what is there while it runs, the root of all VMMs; and where
    in that root a VMM finds its own."""

    state: Path
    runtime: Path
    root: Path
    own: Own

    @property
    def handles(self) -> Path:
        """Of all VMs: what `hypemand.vm.handle` keeps."""
        return self.runtime.parent.parent / "handles"

    @property
    def disk(self) -> Path:
        """The VM's disk."""
        return self.state / DISK

    @property
    def standby(self) -> Path:
        """What a VM in Standby goes on from."""
        return self.state / STANDBY

    @property
    def templates(self) -> Path:
        """What disks are made from, of all VMs."""
        return self.state.parent.parent / "templates"

    @property
    def config(self) -> Path:
        """The config disk."""
        return self.runtime / CONFIG_DISK

    @property
    def files(self) -> Path:
        """The files disk."""
        return self.runtime / FILES_DISK
