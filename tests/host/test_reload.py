# SPDX-License-Identifier: Apache-2.0
"""`systemctl reload hypemand`: what new, changed, removed and broken files do, and what they leave alone.

More, over a host that behaves: tests/unit/cli/test_files.py and tests/unit/manager/test_reload.py.
"""

import pytest

from tests.host.vms import DEFINITION_BROKEN, HAS_LAST_WORDS, NEEDS_RESTART, Vms

pytestmark = pytest.mark.one_release

VM_DIR = "/etc/hypemand/vms.d"
SHOWS_COLOUR = 'echo "colour $COLOUR"; exec sleep infinity'


def test_a_new_file_defines_and_starts_only_what_says_autostart(vms: Vms) -> None:
    vms.write("new-manual")
    vms.write("new-auto", autostart=True)
    vms.reload()
    assert vms.wait("new-auto", "Running")["origin"] == "file"
    assert vms.state("new-manual") == "Stopped"


def test_a_changed_file_needs_a_restart_which_takes_it(vms: Vms) -> None:
    name = vms.run("changes", SHOWS_COLOUR, env={"COLOUR": "red"})
    vms.wait_console(name, "colour red")
    before = vms.unit(name, "InvocationID")
    vms.define(name, SHOWS_COLOUR, env={"COLOUR": "green"})
    shown = vms.show(name)
    assert shown["needs_restart"] is True
    assert shown["definition"]["env"] == {"COLOUR": "green"}
    assert "needs restart" in vms.ctl("list", name).stdout
    (entry,) = vms.host.journal(f"MESSAGE_ID={NEEDS_RESTART}", f"HYPEMAN_VM_ID={shown['id']}")
    assert f"hypemanctl restart {name}" in entry["MESSAGE"]

    vms.restart_daemon()
    assert vms.show(name)["needs_restart"] is True, "a daemon that is new has to know it too"
    assert vms.unit(name, "InvocationID") == before
    vms.ctl("restart", "--wait", name)
    assert vms.show(name)["needs_restart"] is False
    assert vms.unit(name, "InvocationID") != before
    vms.wait_console(name, "colour green")
    assert vms.execute(name, "sh", "-c", "echo $COLOUR") == "green\n"


def test_a_removed_file_stops_its_vm_and_keeps_its_data(vms: Vms) -> None:
    name = vms.run("leaves", f"cat /var/kept 2>/dev/null; {HAS_LAST_WORDS}")
    vms.wait_console(name, "up")
    vms.execute(name, "sh", "-c", "echo kept from before >/var/kept")
    vms.undefine(name)
    shown = vms.wait(name, "Stopped")
    assert shown["removed_from_config"] is True
    assert vms.console(name).count("last words") == 1
    assert "file removed" in vms.ctl("list", name).stdout

    vms.restart_daemon()
    assert vms.show(name)["removed_from_config"] is True
    vms.run(name, f"cat /var/kept 2>/dev/null; {HAS_LAST_WORDS}")
    vms.wait_console(name, "kept from before")
    assert vms.show(name)["removed_from_config"] is False
    assert vms.show(name)["id"] == shown["id"]


def test_a_broken_file_is_named_by_place_and_touches_no_vm(vms: Vms) -> None:
    name, other = vms.run("breaks"), vms.run("beside")
    before = {vm: vms.unit(vm, "InvocationID") for vm in (name, other)}
    broken = f"{VM_DIR}/{name}.yaml"
    vms.host.push(broken, "image: builtin:busybox\nmemory: 128M\nvcpu: 1\ndisk: lots\n")
    vms.write("fresh")
    # the daemon takes what is right, and the administrator is told of the rest
    vms.host.run(["systemctl", "reload", "hypemand"], check=False)
    assert vms.state("fresh") == "Stopped"
    for vm in (name, other):
        assert vms.state(vm) == "Running"
        assert vms.unit(vm, "InvocationID") == before[vm]
    assert vms.show(name)["removed_from_config"] is False

    told = [e["MESSAGE"] for e in vms.host.journal(f"MESSAGE_ID={DEFINITION_BROKEN}", f"CODE_FILE={broken}")]
    lines = [e["MESSAGE"] for e in vms.host.journal("_SYSTEMD_UNIT=hypemand.service")]
    checked = vms.ctl("check", broken, check=False)
    assert checked.code == 8
    assert vms.ctl("check", name, check=False).stderr == checked.stderr
    for place in (f"{broken}:3:1: vcpu: ", f"{broken}:4:7: disk: "):
        assert sum(place in line for line in lines) == 1, lines
        assert any(line.startswith(place) for line in told), told
        assert any(line.startswith(place) for line in checked.stderr.splitlines()), checked.stderr

    vms.restart_daemon()
    assert vms.show(name)["state"] == "Running"
    assert vms.execute(name, "hostname") == f"{name}\n"
