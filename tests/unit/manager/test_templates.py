# SPDX-License-Identifier: Apache-2.0
"""Warm starts: templates are made after a boot, used, and passed over where they are of no use."""

import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from hypemand.model.evidence import Marker
from hypemand.model.state import State
from hypemand.systemd.sandbox import sandbox_properties
from hypemand.unit.exit import set_aside_template
from hypemand.unitnames import template_unit_name
from hypemand.vm.exitrecord import Ending
from tests.fakes.host import FakeHost, drive


def drive_warm(scenario: Callable[[FakeHost], Awaitable[None]]) -> None:
    """On a host that has them."""

    async def enabled(host: FakeHost) -> None:
        host.enable_warm_starts()
        await scenario(host)

    drive(enabled)


def templates(host: FakeHost) -> list[Path]:
    """Those that are whole."""
    return sorted((host.config.state_dir / "templates/warm").glob("[!.]*/template.json"))


async def make_template(host: FakeHost, name: str = "first", **keys: object) -> Path:
    """By the boot of a VM; its folder."""
    runs = host.template_vmms.runs
    before = {template: template.read_bytes() for template in templates(host)}
    await host.run(name, **keys)
    assert not host.vmm(name).is_warm

    def list_new() -> list[Path]:
        return [template for template in templates(host) if template.read_bytes() != before.get(template)]

    await host.until_true(lambda: host.template_vmms.runs == runs + 1 and len(list_new()) == 1)
    await host.until_true(lambda: template_unit_name() not in host.systemd.units)
    return list_new()[0].parent


def test_a_boot_leaves_a_template_from_which_others_go_on() -> None:
    async def scenario(host: FakeHost) -> None:
        folder = await make_template(host)
        assert (folder / "memory").read_bytes().startswith(b"a template")
        assert [(folder / name).stat().st_mode & 0o777 for name in ("memory", "state")] == [0o444, 0o444]
        orders = host.template_vmms.orders
        assert orders.index("stop") < orders.index("block_resize") < orders.index("migrate")
        assert orders.count("block_resize") == 3, "of config, image and disk"
        for name in ("a", "b"):
            await host.run(name)
            assert host.vmm(name).is_warm
        assert host.vmm("a").boot != host.vmm("b").boot
        assert host.template_vmms.runs == 1
        # systemd alone
        run = host.vm("a").run
        await host.order("RestartUnit", "hypeman-vm-a.service")
        await host.until_true(lambda: host.vm("a").run != run and host.vm("a").state is State.RUNNING)
        assert host.vmm("a").is_warm

    drive_warm(scenario)


def test_nothing_of_a_vm_is_in_its_template() -> None:
    async def scenario(host: FakeHost) -> None:
        await make_template(host, name="secretive", memory="128M")
        line = " ".join(host.template_vmms.argv)
        for word in (
            "secretive",
            host.vm("secretive").record.id,
            str(host.config.state_dir),
            "hypeman.boot=",
        ):
            assert word not in line
        assert "hypeman.template" in line

    drive_warm(scenario)


def test_it_is_made_beside_a_vm_that_runs_at_idle_priority_in_the_sandbox_of_a_vmm() -> None:
    """So it is on the way of no start: that VM and others are Running while it boots, and without it."""

    async def scenario(host: FakeHost) -> None:
        host.template_vmms.boots = False
        await host.run("first")
        await host.until_true(lambda: host.template_vmms.runs == 1)
        await host.run("second")
        assert not host.vmm("second").is_warm
        assert templates(host) == []
        unit = host.systemd.units[template_unit_name()].properties
        assert (unit["CPUSchedulingPolicy"], unit["IOSchedulingClass"]) == (os.SCHED_IDLE, 3)
        of_vm = host.systemd.units["hypeman-vm-first.service"].properties
        sandbox = {key for key, _, _ in sandbox_properties(kvm=False)}
        assert len(sandbox) > 20
        assert {key: unit[key] for key in sandbox} == {key: of_vm[key] for key in sandbox}
        assert unit["RootDirectory"] != "/"

    drive_warm(scenario)


def test_another_shape_gets_a_template_of_its_own() -> None:
    async def scenario(host: FakeHost) -> None:
        await make_template(host)
        await make_template(host, name="larger", memory="128M")
        await make_template(host, name="connected", network="default")
        await host.run("second", network="default", memory="96M", disk="80M")
        assert host.vmm("second").is_warm

    drive_warm(scenario)


def test_it_is_off_by_default_and_for_those_that_want_no_share() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run("cold")
        assert host.template_vmms.runs == 0
        host.enable_warm_starts()
        await make_template(host)
        await host.run("alone", warm_start="off")
        await host.run("shrinks", balloon=True)
        assert not host.vmm("alone").is_warm
        assert not host.vmm("shrinks").is_warm

    drive(scenario)


def test_one_that_is_damaged_is_passed_over_and_made_anew() -> None:
    async def scenario(host: FakeHost) -> None:
        folder = await make_template(host)
        await host.run("a")
        # systemd alone
        content = (folder / "state").read_bytes()
        (folder / "state").write_bytes(content[:-1] + b"?")
        run = host.vm("a").run
        await host.order("RestartUnit", "hypeman-vm-a.service")
        await host.until_true(lambda: host.vm("a").run != run and host.vm("a").state is State.RUNNING)
        assert not host.vmm("a").is_warm
        # the daemon
        await make_template(host, name="b")
        # a memory that was changed
        (folder / "memory").chmod(0o600)
        os.utime(folder / "memory", (1, 1))
        await make_template(host, name="c")
        (folder / "template.json").write_text("{}")
        await make_template(host, name="d")
        await host.run("e")
        assert host.vmm("e").is_warm

    drive_warm(scenario)


def test_a_guest_that_does_not_go_on_from_its_template_boots() -> None:
    async def scenario(host: FakeHost) -> None:
        folder = await make_template(host)
        await host.put("a")
        host.guest("a").loads = False
        await host.start("a")
        await host.until(State.RUNNING, "a")
        assert host.vmms.runs["a"] == 2
        assert not host.vmm("a").is_warm
        assert not folder.exists()
        # one that is stopped while it starts, or has shown a sign, says nothing against its template
        folder = await make_template(host, name="b")
        host.guest("c").boots = False
        await host.put("c")
        await host.manager.start_vm("c")
        await host.until(State.INITIALIZING, "c")
        await host.manager.stop_vm("c")
        host.guest("d").ends = 1
        await host.put("d")
        await host.manager.start_vm("d")
        await host.until(State.STOPPED, "d")
        assert folder.exists()

    drive_warm(scenario)


def _is_gone(folder: Path) -> bool:
    return not folder.exists()


def test_one_from_which_a_guest_does_not_continue_is_set_aside_and_made_once_more() -> None:
    async def scenario(host: FakeHost) -> None:
        for name in ("first", "second"):
            folder = await make_template(host, name=name)
            await host.put(f"after-{name}")
            host.guest(f"after-{name}").continues = False
            await host.start(f"after-{name}")
            await host.until(State.RUNNING, f"after-{name}")
            assert host.vmms.runs[f"after-{name}"] == 1, "in the same run"
            await host.until_true(partial(_is_gone, folder))
        await host.run("third")
        await host.run("fourth")
        assert not host.vmm("fourth").is_warm
        assert templates(host) == []

    drive_warm(scenario)


def test_one_that_a_run_did_not_continue_from_is_set_aside_at_its_end(tmp_path: Path) -> None:
    state, runtime, run = tmp_path / "vms/a", tmp_path / "run", "5" * 32
    folder = tmp_path / "templates/warm/key"
    runtime.mkdir()
    folder.mkdir(parents=True)
    ending = Ending("success", "exited", "0", None, (), None, None, stop_job=False, stop_signal=15)
    (runtime / "stalled").write_text("6" * 32)
    assert not set_aside_template(run, "1@key", state, runtime, ending)
    assert folder.exists(), "that was another run"
    (runtime / "stalled").write_text(run)
    assert not set_aside_template(run, "1@key", state, runtime, ending)
    assert not folder.exists()
    # before its program has begun
    folder.mkdir()
    (runtime / "stalled").unlink()
    (runtime / "warm").write_text(run)
    ending = replace(ending, result="signal", exit_code="killed", missing=(Marker.PROGRAM,))
    assert not set_aside_template(run, "1@key", state, runtime, replace(ending, exit_status="KILL"))
    assert folder.exists(), "it was killed on request, and is not started again"
    assert set_aside_template(run, "1@key", state, runtime, replace(ending, exit_status="BUS"))
    assert not folder.exists()


def test_one_of_another_kernel_is_removed() -> None:
    async def scenario(host: FakeHost) -> None:
        folder = await make_template(host)
        os.utime(host.config.kernel_dir / "vmlinux", (1, 1))
        await host.run("a")
        assert not host.vmm("a").is_warm
        await host.until_true(lambda: not folder.exists() and len(templates(host)) == 1)

    drive_warm(scenario)


def test_those_that_were_not_used_go_first_when_there_is_no_room() -> None:
    async def scenario(host: FakeHost) -> None:
        first = await make_template(host)
        os.utime(first / "template.json", (1, 1))
        host.enable_warm_starts(room=10000)
        await host.run("larger", memory="128M")
        await host.until_true(lambda: templates(host) != [] and not first.exists())

    drive_warm(scenario)


def test_a_template_that_cannot_be_made_leaves_nothing_and_harms_nobody() -> None:
    async def scenario(host: FakeHost) -> None:
        host.template_vmms.boots = False
        await host.run("a")
        await host.until_true(lambda: host.template_vmms.runs == 1)
        await host.restart_daemon()
        host.enable_warm_starts()
        await host.daemon.recovery.clean_up()
        await host.until_true(lambda: template_unit_name() not in host.systemd.units)
        assert list((host.config.state_dir / "templates/warm").iterdir()) == []
        assert host.vm("a").state is State.RUNNING
        host.template_vmms.boots = True
        await make_template(host, name="b")

    drive_warm(scenario)
