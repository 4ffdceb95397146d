# SPDX-License-Identifier: Apache-2.0
"""A missing record is never permission to delete, nor is a record that says a VM has ended: every place that
deletes a folder or changes a disk is known, with what gives it leave."""

import re

from tests.lint.sources import TOP

_DELETES = re.compile(r"\brmtree\b(?! *import)|\bos\.(?:truncate|removedirs)\(|e2fsck\b.*\"-p\"")
# by file: what it deletes or changes, and why it may
_LEAVE = {
    "hypemand/manager/inventory.py": "VMs: marked, by a rename while their disk is held",
    "hypemand/vm/runfiles.py": "runtime folders: systemd knows no unit, no VMM has the config disk",
    "hypemand/manager/starts.py": "the runtime folder of a VM that starts: its disk was held since",
    "hypemand/manager/fork.py": "what this very fork has made, and no VM has taken",
    "hypemand/manager/transfer.py": "what this very import has made, and no VM or volume has taken",
    "hypemand/vm/standbyfiles.py": "saves that were cut off, discarded on request, or are behind their disks",
    "hypemand/vm/handover.py": "saves in pools: marked, by a rename under a lock, or what a move has made",
    "hypemand/vm/revert.py": "what a snapshot takes the place of: the VM's disk is held",
    "hypemand/vm/template.py": "templates, from which VMs run by files that they have open",
    "hypemand/manager/templates.py": "what the making of a template has made, whose unit has ended",
    "hypemand/vm/snapshots.py": "snapshots: marked, by a rename",
    "hypemand/storage/disks.py": "grows a disk while it is held",
    "hypemand/storage/ocilayout.py": "what this very import has made",
    "hypemand/storage/importer.py": "what this very import has made",
    "hypemand/storage/replay.py": "a journal, while prepare_volume holds the disk",
    "hypemand/storage/store.py": "images: marked, by a rename while their root file system is held",
    "hypemand/storage/pools.py": "volumes: marked, by a rename while their disk is held, and locked",
}


def test_every_place_that_deletes_folders_or_changes_disks_has_leave() -> None:
    found = {
        str(path.relative_to(TOP))
        for path in (TOP / "hypemand").rglob("*.py")
        if path.relative_to(TOP).parts[1] != "cli" and _DELETES.search(path.read_text())
    }
    assert found == set(_LEAVE), "say in _LEAVE what gives it leave; hypemand/storage/locks.py holds disks"
