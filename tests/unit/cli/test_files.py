# SPDX-License-Identifier: Apache-2.0
"""VMs of files: what changes in them do, and what hypemanctl says of them, over a host that behaves."""

from __future__ import annotations

import json
import os
from typing import Any

from hypemand.model.state import State
from tests.fakes.api import Client
from tests.fakes.host import FakeHost
from tests.unit.cli.test_over_manager import Run, drive


async def show(run: Run, name: str = "web") -> dict[str, Any]:
    """What `hypemanctl show` says of it."""
    shown: dict[str, Any] = json.loads((await run("show", "--json", name)).stdout)
    return shown


async def run_from_file(host: FakeHost, run: Run, **keys: object) -> str:
    """A VM of a file, Running; gives the id of its run."""
    host.write("web", autostart=True, **keys)
    assert (await run("reload")).returncode == 0
    await host.until(State.RUNNING)
    return host.vmm().run_id


def test_what_makes_no_difference_to_a_running_vm_needs_no_restart() -> None:
    async def scenario(host: FakeHost, _: Client, run: Run) -> None:
        await run_from_file(host, run)
        host.write(autostart=True, tags={"team": "shop"})
        assert (await run("reload")).returncode == 0
        shown = await show(run)
        assert (shown["needs_restart"], shown["tags"]) == (False, {"team": "shop"})

    drive(scenario)


def test_a_change_that_is_taken_back_needs_no_restart() -> None:
    async def scenario(host: FakeHost, _: Client, run: Run) -> None:
        await run_from_file(host, run, memory="128M")
        for memory, needs_restart in (("192M", True), ("128M", False)):
            host.write(autostart=True, memory=memory)
            assert (await run("reload")).returncode == 0
            assert (await show(run))["needs_restart"] is needs_restart

    drive(scenario)


def test_after_a_reload_it_is_shown_what_the_guest_has_and_what_a_restart_changes() -> None:
    async def scenario(host: FakeHost, _: Client, run: Run) -> None:
        await run_from_file(host, run, memory="128M", env={"A": "1"})
        host.write(autostart=True, memory="192M", env={"A": "2"}, user="1000")
        assert (await run("reload")).returncode == 0
        note = "needs restart: memory 128M → 192M, env, user unset → 1000"
        row = (await run("list", "--no-legend")).stdout
        assert (" 128M " in row, " 192M " in row, note in row) == (True, False, True)
        assert "128M for the guest" in (await run("status", "web")).stdout
        shown = await show(run)
        assert (shown["size"], shown["env"], shown["definition"]["memory"]) == ("128MB", {"A": "1"}, "192M")
        assert shown["running_definition"]["memory"] == "128M"
        await host.restart_daemon()
        assert (await host.manager.get_vm("web")).changes == (
            "memory 128M → 192M",
            "env",
            "user unset → 1000",
        )
        await host.manager.restart_vm("web")
        await host.until(State.RUNNING)
        view = await host.manager.get_vm("web")
        assert (view.changes, view.effective.memory) == ((), 192 * 1024**2)

    drive(scenario)


def test_a_file_that_was_changed_and_not_loaded_is_told_of() -> None:
    note = "definition changed on disk, run hypemanctl reload"

    async def scenario(host: FakeHost, _: Client, run: Run) -> None:
        await run_from_file(host, run, memory="128M")
        assert note not in (await run("list")).stdout
        file = host.config.vm_dir / "web.yaml"
        os.utime(file, (1, 1))
        assert note not in (await run("list")).stdout, "only touched"
        before = file.read_text()
        host.write(autostart=True, memory="192M")
        assert note in (await run("list")).stdout
        assert note in (await run("status", "web")).stdout
        for command in ("restart", "start"):
            done = await run(command, "web")
            assert (done.returncode, note in done.stderr) == (0, True), done.stderr
        assert host.vm().runs.definition.memory == 128 * 1024**2
        file.write_text(before)
        assert note not in (await run("start", "web")).stderr
        file.unlink()
        assert note in (await run("list")).stdout
        file.write_text(before)
        host.write(autostart=True, memory="192M")
        assert (await run("reload")).returncode == 0
        assert note not in (await run("list")).stdout

    drive(scenario)


def test_a_file_that_was_not_loaded_for_its_errors_stays_told_of() -> None:
    note = "definition changed on disk, run hypemanctl reload"

    async def scenario(host: FakeHost, _: Client, run: Run) -> None:
        await run_from_file(host, run, memory="128M")
        file = host.config.vm_dir / "web.yaml"
        before = file.read_text()
        for _attempt in range(2):
            host.write(autostart=True, memory="lots")
            assert (await run("reload")).returncode == 8
            assert note in (await run("list")).stdout
            assert note in (await run("status", "web")).stdout
        await host.restart_daemon()
        assert (await run("reload")).returncode == 8
        assert note in (await run("list")).stdout
        file.unlink()
        file.symlink_to("nowhere.yaml")
        assert (await run("reload")).returncode == 8
        assert note in (await run("list")).stdout
        file.unlink()
        file.write_text(before)
        assert (await run("reload")).returncode == 0
        assert note not in (await run("list")).stdout
        host.write(autostart=True, memory="lots")
        assert (await run("reload")).returncode == 8
        file.write_text(before)
        assert note not in (await run("list")).stdout, "as it was loaded"

    drive(scenario)


def test_an_instance_of_a_template_comes_back_for_another_name() -> None:
    async def scenario(host: FakeHost, _: Client, run: Run) -> None:
        host.write_template("2", name="web-app")
        host.write("web")
        assert (await run("reload")).returncode == 0
        for old, new, words in (
            ("web-app-2", "web-app-x-7", "put the file back as web-app@x-7.yaml,"),
            ("web-app-2", "shop", "write its definition to shop.yaml (hypemanctl show --definition shop),"),
            ("web", "shop", "put the file back as shop.yaml,"),
        ):
            refused = await run("rename", old, new)
            assert (refused.returncode, words in refused.stderr) == (11, True), refused.stderr

    drive(scenario)


def test_the_name_of_a_template_is_answered_with_where_its_vms_are() -> None:
    async def scenario(host: FakeHost, _: Client, run: Run) -> None:
        host.write_template("1")
        assert (await run("reload")).returncode == 0
        for command in ("start", "edit"):
            done = await run(command, "web")
            words = (
                "there is no VM web: web@ is a template of definitions; hypemanctl check web@ shows its VMs"
            )
            assert (done.returncode, words in done.stderr) == (10, True), done.stderr

    drive(scenario)


def test_a_vm_with_a_file_is_not_removed_by_command() -> None:
    async def scenario(host: FakeHost, _: Client, run: Run) -> None:
        host.write()
        assert (await run("reload")).returncode == 0
        refused = await run("rm", "web")
        assert refused.returncode == 11
        assert str(host.config.vm_dir / "web.yaml") in refused.stderr
        assert (await show(run))["state"] == "Stopped"

    drive(scenario)


def test_a_directory_that_cannot_be_read_stops_no_vm() -> None:
    async def scenario(host: FakeHost, _: Client, run: Run) -> None:
        before = await run_from_file(host, run)
        folder = host.config.vm_dir
        folder.rename(f"{folder}.aside")
        folder.touch()
        refused = await run("reload")
        assert refused.returncode == 8
        assert f"{folder}: cannot be read: Not a directory" in refused.stderr
        folder.unlink()
        folder.with_name(f"{folder.name}.aside").rename(folder)
        assert (await run("reload")).returncode == 0
        shown = await show(run)
        assert (shown["state"], shown["invocation_id"]) == ("Running", before)

    drive(scenario)


def test_a_name_that_is_defined_twice_is_neither_defined_nor_removed() -> None:
    async def scenario(host: FakeHost, _: Client, run: Run) -> None:
        before = await run_from_file(host, run)
        first = host.config.vm_dir / "web.yaml"
        second = first.with_suffix(".yml")
        second.write_text(first.read_text())
        refused = await run("reload")
        assert refused.returncode == 8
        for words in ("web is defined twice", str(first), str(second)):
            assert words in refused.stderr
        shown = await show(run)
        assert (shown["state"], shown["removed_from_config"]) == ("Running", False)
        second.unlink()
        assert (await run("reload")).returncode == 0
        assert (await show(run))["invocation_id"] == before

    drive(scenario)


def test_a_file_does_not_take_a_vm_that_was_made_by_command_unless_it_is_the_same() -> None:
    async def scenario(host: FakeHost, _: Client, run: Run) -> None:
        await host.run()
        host.write(memory="64M")
        refused = await run("reload")
        assert refused.returncode == 8
        (told,) = [line for line in refused.stderr.splitlines() if "web.yaml" in line]
        assert "already created with the API" in told
        shown = await show(run)
        assert (shown["origin"], shown["state"]) == ("api", "Running")
        (host.config.vm_dir / "web.yaml").unlink()
        assert (await run("reload")).returncode == 0
        assert (await show(run))["state"] == "Running"
        host.write()
        assert (await run("reload")).returncode == 0
        taken = await show(run)
        assert (taken["origin"], taken["invocation_id"]) == ("file", shown["invocation_id"])

    drive(scenario)


def test_a_restart_that_cannot_be_is_refused_while_the_vm_runs() -> None:
    async def scenario(host: FakeHost, _: Client, run: Run) -> None:
        before = await run_from_file(host, run, disk="1G")
        keys = ((9, "memory", "900G"), (8, "disk", "64M"), (10, "image", "builtin:none-such"))
        for code, key, value in keys:
            host.write("web", autostart=True, **{"disk": "1G", key: value})
            await run("reload")
            refused = await run("restart", "web")
            assert (refused.returncode, host.vmm().run_id) == (code, before), refused.stderr
            assert (await show(run))["state"] == "Running"

    drive(scenario)


def test_the_name_of_an_instance_is_answered_with_that_of_its_vm() -> None:
    async def scenario(host: FakeHost, _: Client, run: Run) -> None:
        host.write_template("1")
        assert (await run("reload")).returncode == 0
        for command in ("status", "start", "rm"):
            done = await run(command, "web@1")
            words = "there is no VM 'web@1'; the VM that web@1.yaml defines is named web-1"
            assert (done.returncode, words in done.stderr) == (10, True), done.stderr
        assert "an id or a name has only" in (await run("status", "web@1@2")).stderr

    drive(scenario)
