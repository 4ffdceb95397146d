# SPDX-License-Identifier: Apache-2.0
"""What can no longer be restored is told when the daemon starts, and when QEMU is another: by the rule that a
restore refuses by. Nothing is deleted for it."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from typing import Any

import pytest
from systemd import journal

from hypemand.errors import WrongState
from hypemand.manager.fork import ApiForks
from hypemand.manager.snapshots import ApiSnapshots
from hypemand.model.fork import ForkWanted
from hypemand.model.state import FromStandby, State
from hypemand.systemd.log import MessageId
from tests.fakes.host import FakeHost, drive

Sent = list[dict[str, Any]]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    """What the journal gets of it."""
    entries: Sent = []

    def send(text: str, **fields: Any) -> None:
        if fields["MESSAGE_ID"] == MessageId.NOT_RESTORABLE:
            entries.append({"text": text} | fields)

    monkeypatch.setattr(journal, "send", send)
    return entries


def snapshots(host: FakeHost) -> ApiSnapshots:
    return ApiSnapshots(host.parts, host.manager)


def install(host: FakeHost, version: str) -> None:
    """Another QEMU."""
    new = host.folder / "qemu.new"
    new.write_text(f"#!/bin/sh\necho 'QEMU emulator version {version}'\n")
    new.chmod(0o755)
    new.rename(host.folder / "qemu")


async def begin(host: FakeHost) -> None:
    """A daemon on QEMU 1.0."""
    install(host, "1.0")
    host.config = replace(host.config, qemu=host.folder / "qemu")
    await host.restart_daemon()


def test_another_qemu_is_told_with_both_versions_and_the_way_out(sent: Sent) -> None:
    async def scenario(host: FakeHost) -> None:
        await begin(host)
        for name in ("web", "db"):
            await host.run(name)
        made = await snapshots(host).create_snapshot("db", None, "base", {})
        await host.manager.standby_vm("web")
        await host.restart_daemon()
        await host.manager.restorables.tell()
        assert sent == []
        (vm,) = (view for view in await host.manager.list_vms() if view.name == "web")
        assert (vm.saved is not None, vm.saved and vm.saved.problem) == (True, None)
        install(host, "2.0")
        await host.restart_daemon()
        await host.manager.restorables.tell()
        why = "saved with QEMU 1.0, this host has 2.0"
        cold = "hypemanctl start --cold web boots it anew, and gives up what was in its memory"
        alone = f"target_state Stopped (hypemanctl snapshot restore --state Stopped {made.id})"
        assert [entry["HYPEMAN_VM"] for entry in sent] == ["web", "db"]
        assert [entry["text"] for entry in sent] == [
            f"VM web cannot be restored: {why}; {cold}",
            f"VM db cannot go on from the snapshot base: {why}; restore its disk alone: {alone}",
        ]
        # what a restore says, to the letter
        await host.manager.stop_vm("db")
        with pytest.raises(WrongState) as refused:
            await host.manager.restore_vm("web")
        with pytest.raises(WrongState) as of_snapshot:
            await snapshots(host).restore_snapshot("db", "base", None)
        assert [str(refused.value), str(of_snapshot.value)] == [entry["text"] for entry in sent]
        assert (await host.manager.get_vm("web")).saved == replace(host.vm().standby.view(), problem=why)
        assert [view.problem for view in await snapshots(host).list_snapshots()] == [why]
        assert (await snapshots(host).get_snapshot("base")).problem == why
        await host.manager.start_vm("web", standby=FromStandby.COLD)
        await host.until(State.RUNNING)

    drive(scenario)


def test_a_qemu_that_is_replaced_under_the_daemon_is_told_once(sent: Sent) -> None:
    async def scenario(host: FakeHost) -> None:
        await begin(host)
        await host.run()
        await host.manager.standby_vm("web")
        restorables = host.manager.restorables
        await restorables.tell()

        async def look() -> None:
            restorables.look_soon()
            assert restorables._task is not None
            await restorables._task

        await look()
        assert sent == []
        install(host, "2.0")
        await look()
        await look()
        assert len(sent) == 1
        assert "saved with QEMU 1.0, this host has 2.0" in sent[0]["text"]

    drive(scenario)


def test_no_more_than_a_dozen_have_a_line_of_their_own(sent: Sent, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(host: FakeHost) -> None:
        await begin(host)
        await host.run()
        made = await snapshots(host).create_snapshot("web", None, None, {})
        folder = host.config.state_dir / "snapshots"
        for number in range(14):
            # links: copies of sparse files would take all of their size in memory
            shutil.copytree(folder / made.id, folder / f"{number:032x}", copy_function=os.link)
        install(host, "2.0")
        await host.restart_daemon()
        await host.manager.restorables.tell()
        assert len(sent) == 12
        assert "3 more VMs and snapshots cannot be restored" in caplog.text

    drive(scenario)


def test_a_new_name_and_a_missing_image_are_told(sent: Sent) -> None:
    async def scenario(host: FakeHost) -> None:
        host.add_image("app:v1")
        await host.run()
        await host.run("db", image="app:v1")
        await snapshots(host).create_snapshot("web", None, "base", {})
        await host.manager.stop_vm("web")
        await host.manager.rename_vm("web", "new")
        await host.manager.standby_vm("db")
        shutil.rmtree(host.config.state_dir / "images")
        (host.config.state_dir / "images").mkdir()
        await host.restart_daemon()
        await host.manager.restorables.tell()
        texts = [entry["text"].partition(";")[0] for entry in sent]
        was = "the VM was called web then, and its guest knows that name"
        assert texts == [
            "VM db cannot be restored: its image app:v1 is gone",
            f"VM new cannot go on from the snapshot base: {was}",
        ]

    drive(scenario)


def test_what_is_left_of_a_vm_that_was_removed_has_a_way_out(sent: Sent) -> None:
    async def scenario(host: FakeHost) -> None:
        await begin(host)
        await host.run()
        made = await snapshots(host).create_snapshot("web", None, "base", {})
        await host.manager.delete_vm("web", kill=True)
        await host.restart_daemon()
        await host.manager.restorables.tell()
        assert sent == [], "it can be forked"
        install(host, "2.0")
        await host.manager.restorables.tell()
        (entry,) = sent
        cure = f"hypemanctl snapshot fork --state Standby {made.id} NEW, then hypemanctl start --cold NEW"
        assert "VM web, which was removed, cannot go on from the snapshot base: saved with" in entry["text"]
        assert entry["text"].endswith(f"; {cure}")
        forks = ApiForks(host.parts, host.manager, snapshots(host))
        await forks.fork_snapshot(made.id, ForkWanted("new", target=State.STANDBY))
        await host.manager.start_vm("new", standby=FromStandby.COLD)
        await host.until(State.RUNNING, "new")

    drive(scenario)


def test_what_cannot_be_read_is_told_and_a_host_without_qemu_says_nothing(sent: Sent) -> None:
    async def scenario(host: FakeHost) -> None:
        await begin(host)
        for name in ("web", "db"):
            await host.run(name)
            await host.manager.standby_vm(name)
        record = host.vm().places.standby / "snapshot.json"
        record.write_text(json.dumps({"version": 99}))
        host.config.qemu.unlink()
        await host.restart_daemon()
        await host.manager.restorables.tell()
        assert [entry["HYPEMAN_VM"] for entry in sent] == ["web"]
        assert "cannot be read: version is not 1" in sent[0]["text"]
        assert host.vm().standby.view().size is None

    drive(scenario)
