# SPDX-License-Identifier: Apache-2.0
"""Warm starts where something is wrong with a template, or with the making of one: VMs boot, and nothing is
left."""

import json
import os
import signal
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

import pytest

from hypemand.unitnames import template_unit_name
from tests.host.machine import TestHost
from tests.host.test_warm_start import DROPIN, FOLDER, check_steps, is_warm, templates
from tests.host.vms import KNOCKED, Vms, vms_of

QEMU = "/usr/bin/qemu-system-x86_64"
KERNEL = "/usr/lib/hypemand/kernel/vmlinux"
BUSY = 4
WARM_STARTS = 10
TRIES = 5
ENDED = ("inactive", "failed")
ENABLED = "warm_start: {mode: auto}\n"


@pytest.fixture(scope="module")
def vms(host: TestHost) -> Iterator[Vms]:
    host.push(DROPIN, ENABLED)
    host.run(["systemctl", "reload", "hypemand"])
    with vms_of(host) as those:
        yield those
    host.run(["rm", "-rf", DROPIN, FOLDER])
    host.run(["systemctl", "reload", "hypemand"])


def create(vms: Vms, name: str, memory: str) -> str:
    """Define a VM with a template of its own, and make that."""
    vms.define(name, network="default", memory=memory)
    key: str = vms.ctl("template", "create", name).stdout.strip()
    return key


def entries(vms: Vms) -> list[str]:
    """Also what is hidden."""
    return vms.host.shell(f"ls -A {FOLDER} 2>/dev/null || true").stdout.split()


def restart_alone(vms: Vms, name: str, times: int) -> None:
    """As systemd does: `times` is how often it has run then."""
    vms.host.run(["systemctl", "restart", "--no-block", f"hypeman-vm-{name}"])
    vms.wait_console(name, "up", times=times)


def said(vms: Vms, name: str, words: str) -> int:
    return "\n".join(vms.console(name)).count(words)


def test_a_vmm_that_dies_while_it_loads_is_replaced_in_the_same_unit(vms: Vms) -> None:
    """By what QEMU refuses, although it is what was written."""
    key = create(vms, "dies", "120M")
    state = vms.host.root / FOLDER[1:] / key / "state"
    state.chmod(0o644)
    state.write_bytes(b"XXXX" + state.read_bytes()[4:])
    record = state.with_name("template.json")
    document = json.loads(record.read_text())
    record.write_text(json.dumps({**document, "crc": zlib.crc32(state.read_bytes())}))
    vms.start("dies")
    assert not is_warm(vms, "dies")
    assert vms.unit("dies", "NRestarts", "Result", "NotifyAccess") == {
        "NRestarts": "0",
        "Result": "success",
        "NotifyAccess": "exec",
    }
    assert said(vms, "dies", "it has not continued from its template") == 1
    assert len(json.loads(vms.ctl("history", "--json", "dies").stdout)) == 1
    vms.host.wait_until(lambda: key not in templates(vms), "the template to be removed")
    vms.ctl("stop", "dies")
    vms.wait("dies", "Stopped")


def processes_of(vms: Vms, unit: str) -> list[int]:
    """Of the unit, as this test sees them. Control groups are v1, hybrid or v2."""
    found = vms.host.root.glob(f"sys/fs/cgroup/*/hypeman.slice/{unit}/cgroup.procs")
    paths = [*found, vms.host.root / f"sys/fs/cgroup/hypeman.slice/{unit}/cgroup.procs"]
    return [int(pid) for path in paths if path.exists() for pid in path.read_text().split()]


def signal_all(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in set(pids):
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def start_held(vms: Vms, name: str, unit: str) -> bool:
    """Start it warm. Its processes stand still, and the daemon knows of its main process. True: that was
    before the guest's first line."""
    lines = vms.console(name)
    vms.api.post("instances", name, "start")
    vms.host.wait_until((vms.host.root / f"run/hypemand/vms/{name}/warm").exists, "the VMM")
    signal_all(processes_of(vms, unit), signal.SIGSTOP)
    main_pid = vms.host.wait_until(lambda: vms.show(name)["main_pid"], "its main process")
    comm = vms.host.run(["cat", f"/proc/{main_pid}/comm"], check=False).stdout
    return comm == "hypeman-console\n" and vms.console(name) == lines


def is_notified(vms: Vms, name: str) -> bool:
    """Has the daemon told systemd that it is ready?"""
    notes = vms.host.run(["cat", f"/var/lib/hypemand/vms/{name}/boot.json"], check=False)
    return '"notified"' in notes.stdout


def test_a_vm_that_ends_before_systemd_has_read_of_its_main_process_has_ended_well(vms: Vms) -> None:
    """systemd stands still from before the guest's first line until the VMM has gone. In between it is sent
    that the VM is ready: a unit that has ended without that has failed."""
    name = vms.define("short", f"{KNOCKED}; echo done", network="default", memory="132M")
    unit = f"hypeman-vm-{name}.service"
    vms.ctl("template", "create", name)
    for _ in range(TRIES):
        is_held = start_held(vms, name, unit)
        if is_held:
            break
        signal_all(processes_of(vms, unit), signal.SIGCONT)
        vms.ctl("kill", name)
        vms.wait(name, "Stopped")
    assert is_held, "the guest was faster than this test"
    address = vms.show(name)["network"]["ip"]
    lines = len(vms.console(name))
    os.kill(vms.host.leader, signal.SIGSTOP)
    try:
        signal_all(processes_of(vms, unit), signal.SIGCONT)
        vms.host.wait_until(lambda: is_notified(vms, name), "the message that it is ready")
        vms.knock(address)
        vms.host.wait_until(lambda: not processes_of(vms, unit), "its end")
    finally:
        os.kill(vms.host.leader, signal.SIGCONT)
    vms.host.wait_until(lambda: vms.unit(name, "ActiveState")["ActiveState"] in ENDED, "the unit's end")
    assert vms.console(name)[lines:].count("done") == 1
    assert vms.unit(name, "ActiveState", "NRestarts") == {"ActiveState": "inactive", "NRestarts": "0"}
    assert vms.wait(name, "Stopped")["exit_code"] == 0


def test_a_template_that_is_not_what_it_was_is_passed_over_by_systemd_alone(vms: Vms) -> None:
    key = create(vms, "passes", "124M")
    vms.start("passes")
    vms.wait_console("passes", "up")
    assert is_warm(vms, "passes")
    memory, kept = f"{FOLDER}/{key}/memory", "/root/kept"
    vms.host.run(["cp", "-a", "--sparse=always", f"{FOLDER}/{key}", kept])
    # in the place of the one that the VM runs from
    vms.host.shell(f"cp -a --sparse=always {memory} {memory}.new; mv {memory}.new {memory}")
    faults = (
        f"truncate -s -4096 {memory}",
        f"printf X | dd of={memory} bs=1 seek=9000000 conv=notrunc status=none",
    )
    with vms.without_daemon():
        for number, fault in enumerate(faults, start=1):
            vms.host.shell(fault)
            restart_alone(vms, "passes", number + 1)
            assert not is_warm(vms, "passes"), fault
            assert said(vms, "passes", "/memory is another file than it was") == number
            vms.host.shell(f"rm -rf {FOLDER}/{key}; cp -a --sparse=always {kept} {FOLDER}/{key}")
        restart_alone(vms, "passes", len(faults) + 2)
        assert is_warm(vms, "passes")
    vms.host.run(["rm", "-r", kept])
    # one that runs from it goes on without it, to its end
    vms.wait("passes", "Running")
    vms.ctl("template", "rm", "--all")
    assert vms.execute("passes", "cat", "/etc/hostname").strip() == "passes"
    vms.ctl("stop", "passes")
    vms.wait("passes", "Stopped")


@pytest.mark.parametrize("path", [QEMU, KERNEL], ids=["QEMU", "kernel"])
def test_an_upgrade_leads_to_another_template(vms: Vms, path: str) -> None:
    """Which is another file with the same name."""
    key = create(vms, "upgraded", "116M")
    try:
        vms.host.run(["cp", "-a", path, f"{path}.new"])
        vms.host.shell(f"touch {path}.new; mv {path} {path}.old; mv {path}.new {path}")
        listed = vms.ctl("template", "list", "--no-legend").stdout
        assert f"{key[:12]} outdated" in " ".join(listed.split())
        vms.start("upgraded")
        assert not is_warm(vms, "upgraded")
        vms.host.wait_until(lambda: set(templates(vms)) - {key}, "another template")
        vms.host.wait_until(lambda: key not in templates(vms), "the first one to be removed")
        vms.ctl("restart", "upgraded")
        vms.wait("upgraded", "Running")
        assert is_warm(vms, "upgraded")
    finally:
        vms.host.shell(f"mv {path}.old {path}")
        vms.remove("upgraded")
        vms.ctl("template", "rm", "--all")


def template_state(vms: Vms) -> str:
    return vms.properties(template_unit_name(), "ActiveState")["ActiveState"]


def is_being_made(vms: Vms) -> bool:
    return any(entry.startswith(".") for entry in entries(vms))


def kill_vmm(vms: Vms) -> None:
    vms.host.run(["systemctl", "kill", "--signal=KILL", template_unit_name()])


def kill_daemon(vms: Vms) -> None:
    vms.host.run(["systemctl", "kill", "--signal=KILL", "--kill-who=main", "hypemand.service"])


@pytest.mark.one_release
@pytest.mark.parametrize("kill", [kill_vmm, kill_daemon])
def test_a_kill_while_one_is_made_leaves_nothing(vms: Vms, kill: Callable[[Vms], None]) -> None:
    before = entries(vms)
    vms.define("killed", network="default", memory="92M")
    command = "hypemanctl template create killed"
    vms.host.shell(f"systemd-run --quiet --unit=creates --collect {command}")
    vms.host.wait_until(
        lambda: template_state(vms) == "activating" and is_being_made(vms),
        "a template's VMM",
    )
    kill(vms)
    vms.host.wait_until(lambda: not vms.is_active("creates.service"), "the end of the command")
    vms.host.wait_until(lambda: template_state(vms) == "inactive", "the end of its VMM")
    vms.host.wait_until(lambda: not is_being_made(vms), "nothing to be left")
    key = vms.ctl("template", "create", "killed").stdout.strip()
    vms.start("killed")
    assert is_warm(vms, "killed")
    vms.remove("killed")
    vms.ctl("template", "rm", key)
    assert entries(vms) == before


@pytest.mark.one_release
def test_a_disk_that_is_full_leaves_no_template_and_the_vm_boots(vms: Vms) -> None:
    vms.define("full", network="default", memory="88M")
    vms.host.shell(f"mkdir -p {FOLDER}; mount -t tmpfs -o size=64M,mode=700 small {FOLDER}")
    try:
        vms.host.run(["fallocate", "-l", "60M", f"{FOLDER}/.ballast"])
        refused = vms.ctl("template", "create", "full", check=False)
        assert refused.code != 0
        assert "No space left on device" in refused.stderr
        assert entries(vms) == [".ballast"]
        vms.start("full")
        assert not is_warm(vms, "full")
        told = f"journalctl -u hypemand --since=@{time.time() - 60:.0f} -g 'cannot make a template' -o cat"
        vms.host.wait_until(lambda: vms.host.shell(f"{told} || true").stdout, "that none could be made")
        assert entries(vms) == [".ballast"]
        vms.host.run(["rm", f"{FOLDER}/.ballast"])
        vms.ctl("template", "create", "full")
        vms.ctl("restart", "full")
        vms.wait("full", "Running")
        assert is_warm(vms, "full")
    finally:
        vms.remove("full")
        vms.host.run(["umount", FOLDER])


@pytest.mark.one_release
def test_templates_of_two_shapes_that_are_asked_for_at_once_are_both_made(vms: Vms) -> None:
    names = {"one": "84M", "other": "108M"}
    for name, memory in names.items():
        vms.define(name, network="default", memory=memory)
    before = set(templates(vms))
    vms.host.shell(
        'p=; for n in one other; do hypemanctl template create $n & p="$p $!"; done; '
        "for p in $p; do wait $p || exit; done"
    )
    assert len(set(templates(vms)) - before) == len(names)
    vms.start(*names)
    assert all(is_warm(vms, name) for name in names)


@pytest.mark.long
@pytest.mark.one_release
def test_on_a_busy_host_all_starts_are_warm(vms: Vms) -> None:
    create(vms, "busy", "76M")
    loops = f"for n in $(seq {BUSY}); do timeout 300 sh -c 'while :; do :; done' & done; wait"
    vms.host.run(["systemd-run", "--quiet", "--unit=busy-loops", "sh", "-c", loops])
    try:
        for _ in range(WARM_STARTS):
            vms.start("busy")
            assert is_warm(vms, "busy")
            check_steps(vms, "busy")
            vms.ctl("stop", "busy")
            vms.wait("busy", "Stopped")
    finally:
        vms.host.run(["systemctl", "stop", "busy-loops.service"])
