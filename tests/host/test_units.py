# SPDX-License-Identifier: Apache-2.0
"""A VM is a unit like any other: systemctl, machinectl, the handle, ordering, limits, and its sandbox."""

import json
import re
from collections.abc import Iterator

import pytest

from tests.host.machine import TestHost
from tests.host.vms import HAS_LAST_WORDS, IS_DEAF, Vms, vms_of

# argv: uid, what to read. As the VMM's user and with nothing more than it.
READ_AS = 'exec setpriv --reuid "$1" --regid "$1" --clear-groups --inh-caps=-all -- cat "$2"'


@pytest.fixture(scope="module")
def pair(host: TestHost) -> Iterator[Vms]:
    """Two VMs that run, `left` and `right`, for tests that only look."""
    with vms_of(host) as vms:
        vms.write("left")
        vms.write("right", unit={"Description": "The other one", "CPUWeight": 50})
        vms.reload()
        vms.start("left", "right")
        yield vms


def test_systemctl_lists_and_shows_vms(pair: Vms) -> None:
    listed = pair.host.run(
        ["systemctl", "list-units", "--plain", "--no-legend", "--full", "hypeman-vm-*"]
    ).stdout
    assert [line.split(None, 4) for line in listed.splitlines()] == [
        ["hypeman-vm-left.service", "loaded", "active", "running", "Micro VM left"],
        ["hypeman-vm-right.service", "loaded", "active", "running", "The other one"],
    ]
    status = pair.host.run(["systemctl", "status", "--no-pager", "hypeman-vm-left"]).stdout
    assert re.search(r"Active: active \(running\)", status)
    assert re.search(r'Status: "Running: ready in [0-9]+ ms"', status)
    assert "CGroup: /hypeman.slice/hypeman-vm-left.service" in status


def test_control_groups_are_in_the_slice_with_limits_beyond_the_guests_own(pair: Vms) -> None:
    tree = pair.host.run(["systemd-cgls", "--no-pager", "--full", "--unit", "hypeman.slice"]).stdout
    for name in ("left", "right"):
        assert f"hypeman-vm-{name}.service" in tree
    limits = pair.unit("right", "MemoryMax", "CPUQuotaPerSecUSec", "TasksMax", "CPUWeight")
    assert int(limits["MemoryMax"]) > (128 << 20) + (1 << 30), "no room for its disks in the page cache"
    assert limits["CPUWeight"] == "50"
    assert limits["CPUQuotaPerSecUSec"] not in ("infinity", "1s")
    assert int(limits["TasksMax"]) < 100


def test_the_daemon_and_what_stands_beside_it_have_limits_of_their_own(pair: Vms) -> None:
    """A fault of the daemon that a guest, an image or a client can reach takes no more than that."""
    limits = pair.properties("hypemand.service", "MemoryMax", "ControlGroup")
    assert limits["MemoryMax"] == str(1 << 30)
    # and it is in force, where the kernel has it
    group = limits["ControlGroup"]
    shown = pair.host.shell(
        f"cat /sys/fs/cgroup/memory{group}/memory.limit_in_bytes /sys/fs/cgroup{group}/memory.max 2>/dev/null"
        " || true"
    )
    assert shown.stdout.split() == [str(1 << 30)]


def test_machinectl_knows_vms(pair: Vms) -> None:
    listed = pair.host.run(["machinectl", "list", "--no-legend"]).stdout
    assert {tuple(line.split()[:3]) for line in listed.splitlines()} >= {
        ("left", "vm", "hypemand"),
        ("right", "vm", "hypemand"),
    }
    status = pair.host.run(["machinectl", "status", "--no-pager", "left"]).stdout
    assert "Service: hypemand; class vm" in status
    assert "Unit: hypeman-vm-left.service" in status


def test_the_sandbox_is_as_tight_as_promised(pair: Vms) -> None:
    for unit, limit in (("hypeman-vm-left.service", 1.0), ("hypemand.service", 4.0)):
        judged = pair.host.run(["systemd-analyze", "security", "--no-pager", unit]).stdout
        found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", judged)
        assert found is not None, judged
        assert float(found[1]) <= limit, judged


def test_each_vmm_has_a_uid_of_its_own_and_no_capability(pair: Vms) -> None:
    uids = set()
    for name in ("left", "right"):
        shown = pair.show(name)
        status = pair.host.pull(f"/proc/{shown['main_pid']}/status").decode()
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert fields["Name"] == "qemu-system-x86"
        assert fields["Uid"].split() == [str(shown["uid"])] * 4
        assert fields["Gid"].split() == [str(shown["uid"])] * 4
        assert fields["NoNewPrivs"] == "1"
        assert fields["Seccomp"] == "2"
        for capabilities in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(fields[capabilities], 16) == 0, capabilities
        uids.add(shown["uid"])
        assert pair.host.run(["id", "--user", "--name", str(shown["uid"])]).stdout.startswith("hypeman-")
    assert len(uids) == 2


def test_a_vmm_sees_nothing_of_the_host_but_usr_and_its_own(pair: Vms) -> None:
    pid, host = pair.show("left")["main_pid"], pair.host
    root = f"/proc/{pid}/root"
    for folder in ("sys", "home", "root", "tmp", "run/credentials", "var"):
        listed = host.run(["sh", "-c", f"! [ -e {root}/{folder} ] || ls -A {root}/{folder}"])
        assert listed.stdout == "", folder
    mounts = host.pull(f"/proc/{pid}/mountinfo").decode().splitlines()
    assert not {"sysfs", "cgroup", "cgroup2"} & {mount.partition(" - ")[2].split()[0] for mount in mounts}
    # of what is mounted, what it may write to is nobody else's
    places = [mount.split()[4:6] for mount in mounts]
    writable = {place for place, how in places if "rw" in how.split(",") and not place.startswith("/dev/")}
    own = {"/run/hypemand/self/vm", "/run/hypemand/self/disk"}
    # its console's socket to journald: the VMM itself can make no socket to connect to it (launcher/filter.h)
    others = {"/proc", "/run", "/run/hypemand/self/journal.sock"}
    assert own <= writable <= own | others, writable
    # a list of libraries like the host's: else the linker looks for each in many places
    assert host.pull(f"{root}/etc/ld.so.cache") == host.pull("/etc/ld.so.cache")


def test_a_vmm_has_no_system_call_that_reaches_others(pair: Vms) -> None:
    allowed = pair.unit("left", "SystemCallFilter")["SystemCallFilter"].split()
    assert "ppoll" in allowed
    reaching = {"shmget", "semget", "msgget", "mq_open", "process_vm_readv", "ptrace", "keyctl", "add_key"}
    reaching |= {"sethostname", "setdomainname", "mount", "chroot", "setuid", "mlock"}
    assert not reaching & set(allowed)


def test_a_vmm_cannot_read_what_is_another_vms(pair: Vms) -> None:
    left, right = (pair.show(name)["uid"] for name in ("left", "right"))
    host = pair.host
    for path in ("/var/lib/hypemand/vms/right/disk.ext4", "/run/hypemand/vms/right/config.img"):
        assert host.run(["sh", "-c", f"{READ_AS} | head -c1", "read", str(right), path]).ok
        refused = host.run(["sh", "-c", READ_AS, "read", str(left), path], check=False)
        assert "Permission denied" in refused.stderr, path
    talk = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    for path in ("/run/hypemand/vms/right/qmp.sock", "/run/hypemand/api.sock"):
        become = ["setpriv", "--reuid", str(left), "--regid", str(left), "--clear-groups", "--"]
        refused = host.run([*become, "python3", "-c", talk, path], check=False)
        assert "Permission" in refused.stderr, path


def test_systemctl_stops_and_kills_by_pattern(vms: Vms) -> None:
    names = ["batch-1", "batch-2"]
    for name in names:
        vms.write(name, HAS_LAST_WORDS)
    vms.reload()
    vms.start(*names)
    for name in names:
        vms.wait_console(name, "up")
    vms.host.run(["systemctl", "stop", "hypeman-vm-batch-*"])
    for name in names:
        shown = vms.wait(name, "Stopped")
        assert shown["exit_code"] == 0
        assert vms.console(name).count("last words") == 1
    vms.start(*names)
    vms.host.run(["systemctl", "kill", "--signal=KILL", "hypeman-vm-batch-*"])
    for name in names:
        assert vms.wait(name, "Stopped")["exit_message"] == "the VMM was killed by SIGKILL"
        assert vms.unit(name, "Result")["Result"] == "signal"


def test_a_machined_that_was_away_when_a_run_ended_does_not_stop_the_next_one(vms: Vms) -> None:
    """It goes with D-Bus, and comes back when the next run is registered."""
    name = vms.run("again")
    vms.host.wait_until_succeeds(["machinectl", "show", name])
    vms.host.run(["systemctl", "kill", "--signal=KILL", "systemd-machined.service"])
    vms.host.wait_until(
        lambda: vms.properties("systemd-machined.service", "ActiveState")["ActiveState"] == "failed"
    )
    vms.ctl("restart", "--wait", name)
    run = vms.unit(name, "InvocationID", "ActiveState")
    leader = vms.host.wait_until_succeeds(["machinectl", "show", "--value", "--property=Leader", name])
    assert vms.unit(name, "InvocationID", "ActiveState") == run
    assert run["ActiveState"] == "active"
    assert vms.state(name) == "Running"
    assert vms.host.run(["test", "-d", f"/proc/{leader.stdout.strip()}"]).ok, "it is the leader of this run"


def test_machinectl_poweroff_is_an_orderly_end(vms: Vms) -> None:
    name = vms.run("powered-off", HAS_LAST_WORDS)
    vms.host.wait_until_succeeds(["machinectl", "show", name])
    vms.host.run(["machinectl", "poweroff", name])
    shown = vms.wait(name, "Stopped")
    assert (shown["exit_code"], shown["exit_message"][:18]) == (0, "stopped on request")
    assert vms.console(name).count("last words") == 1
    assert vms.unit(name, "ActiveState")["ActiveState"] == "inactive"
    vms.host.wait_until(lambda: not vms.host.run(["machinectl", "show", name], check=False).ok)


def test_the_handle_starts_restarts_and_stops_the_vm(vms: Vms) -> None:
    name, host = vms.define("held", HAS_LAST_WORDS), vms.host
    handle = f"hypeman@{name}"
    host.run(["systemctl", "start", handle])
    shown = vms.show(name)
    assert shown["state"] == "Running"
    assert host.run(["systemctl", "is-active", handle]).stdout == "active\n"

    vms.wait_console(name, "up")
    host.run(["systemctl", "restart", handle])
    again = vms.show(name)
    assert again["state"] == "Running"
    assert again["invocation_id"] != shown["invocation_id"]

    vms.wait_console(name, "up", 2)
    host.run(["systemctl", "stop", handle])
    assert vms.state(name) == "Stopped"
    assert vms.console(name).count("last words") == 2
    assert vms.properties(handle, "ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}


@pytest.mark.parametrize("by", ["autostart", "hypemanctl"])
def test_whoever_starts_a_vm_its_handle_is_active_and_stops_it(vms: Vms, by: str) -> None:
    name, host = f"held-by-{by}", vms.host
    handle = f"hypeman@{name}"
    vms.define(name, HAS_LAST_WORDS, autostart=by == "autostart")
    if by == "hypemanctl":
        vms.start(name)
    vms.wait(name, "Running")
    host.wait_until(lambda: vms.is_active(handle), "its handle is active")
    host.run(["systemctl", "stop", handle])
    assert vms.state(name) == "Stopped"
    assert vms.properties(handle, "ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}


def test_the_handle_of_a_vm_that_boots_stops_it(vms: Vms) -> None:
    name, host = vms.define("held-early"), vms.host
    vms.ctl("start", name)
    assert vms.state(name) == "Initializing"
    host.run(["systemctl", "stop", f"hypeman@{name}"])
    assert vms.state(name) == "Stopped"
    assert "Running" not in vms.states(name), "it was too quick for this test"


def test_the_handle_ends_with_the_vm_without_a_daemon(vms: Vms) -> None:
    name, host = vms.run("held-alone"), vms.host
    handle = f"hypeman@{name}"
    host.wait_until(lambda: vms.is_active(handle), "its handle is active")
    pid = vms.show(name)["main_pid"]
    with vms.without_daemon():
        host.run(["kill", "-KILL", str(pid)])
        host.wait_until(lambda: not vms.is_active(handle), "its handle has ended")
    assert vms.state(name) == "Stopped"
    host.run(["systemctl", "reset-failed", handle])


def test_the_handle_stays_while_systemd_starts_the_vm_again(vms: Vms) -> None:
    name, host = vms.run("held-again", restart="on-failure", unit={"RestartSec": "1s"}), vms.host
    handle = f"hypeman@{name}"
    host.wait_until(lambda: vms.is_active(handle), "its handle is active")
    held = vms.properties(handle, "InvocationID")
    with vms.without_daemon():
        host.run(["kill", "-KILL", vms.unit(name, "MainPID")["MainPID"]])
        host.wait_until(lambda: vms.unit(name, "NRestarts")["NRestarts"] == "1", "it is started again")
        assert vms.is_active(handle)
    vms.wait(name, "Running")
    assert vms.properties(handle, "InvocationID") == held


def test_a_masked_unit_is_an_error_with_the_cure(vms: Vms) -> None:
    name = vms.define("masked")
    unit = f"hypeman-vm-{name}.service"
    vms.host.run(["systemctl", "mask", "--runtime", unit])
    try:
        refused = vms.ctl("start", name, check=False)
    finally:
        vms.host.run(["systemctl", "unmask", "--runtime", unit])
    assert (refused.code, f"the unit {unit} is masked; systemctl unmask {unit}" in refused.stderr) == (
        11,
        True,
    )
    vms.start(name)


# prints those of its arguments that needrestart is not to restart
OVERRIDDEN = r"""
our %nrconf;
do "/etc/needrestart/conf.d/hypemand.conf" or die;
foreach my $unit (@ARGV) { print "$unit\n" if grep { $unit =~ /$_/ } keys %{$nrconf{override_rc}} }
"""


def test_needrestart_restarts_no_vm(vms: Vms) -> None:
    vms_units = ["hypeman-vm-web.service", "hypeman@web.service"]
    found = vms.host.run(["perl", "-e", OVERRIDDEN, *vms_units, "hypemand.service", "ssh.service"]).stdout
    assert found.split() == vms_units


def test_an_isolated_target_leaves_vms_running(vms: Vms) -> None:
    name = vms.run("not-isolated")
    handle, run = f"hypeman@{name}", vms.unit(name, "InvocationID")
    vms.host.wait_until(lambda: vms.is_active(handle), "its handle is active")
    vms.host.run(["systemctl", "isolate", "multi-user.target"])
    assert vms.state(name) == "Running"
    assert (vms.unit(name, "InvocationID"), vms.is_active(handle)) == (run, True)


def test_the_handle_ends_with_the_vm_and_fails_with_it(vms: Vms) -> None:
    host = vms.host
    vms.write("ends-badly", "mkfifo /tmp/go; echo up; read -r _ </tmp/go; exit 3")
    vms.write("ends-later", "mkfifo /tmp/go; echo up; read -r _ </tmp/go; exit 0")
    vms.reload()
    host.run(["systemctl", "start", "hypeman@ends-badly", "hypeman@ends-later"])
    for name, active in (("ends-badly", "failed"), ("ends-later", "inactive")):
        vms.wait_console(name, "up")
        vms.ctl("exec", name, "--", "sh", "-c", "echo >/tmp/go", check=False)  # the guest may be quicker
        host.wait_until(
            lambda name=name, active=active: (  # type: ignore[misc]
                vms.properties(f"hypeman@{name}", "ActiveState")["ActiveState"] == active
            ),
            f"the handle of {name} is {active}",
        )
        assert vms.state(name) == "Stopped"
    host.run(["systemctl", "reset-failed", "hypeman@ends-badly"])


def test_a_start_of_the_handle_when_the_vm_has_just_ended_starts_it_again(vms: Vms) -> None:
    """To systemd the handle is active until it has learned of that end."""
    name = vms.run("at-once")
    handle = f"hypeman@{name}.service"
    vms.host.wait_until(lambda: vms.is_active(handle), "the handle")
    vms.host.run(["systemctl", "kill", "--signal=STOP", "--kill-who=main", handle])
    try:
        vms.host.run(["systemctl", "stop", f"hypeman-vm-{name}"])
        assert vms.is_active(handle)
        vms.host.run(["systemctl", "start", "--no-block", handle])
    finally:
        vms.host.run(["systemctl", "kill", "--signal=CONT", "--kill-who=main", handle])
    vms.wait_console(name, "up", times=2)
    vms.wait(name, "Running")
    vms.host.wait_until(lambda: vms.is_active(handle), "the handle")


def test_the_handle_fails_when_the_vm_does_not_start(vms: Vms) -> None:
    name = vms.define("no-image", image="missing:v1")
    failed = vms.host.run(["systemctl", "start", f"hypeman@{name}"], check=False)
    assert not failed.ok
    said = [entry["MESSAGE"] for entry in vms.host.journal(f"--unit=hypeman@{name}")]
    assert any("missing:v1" in message for message in said)
    vms.host.run(["systemctl", "reset-failed", f"hypeman@{name}"])


def test_ordering_from_the_definition_holds(vms: Vms) -> None:
    unit = "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/sh -c 'read -r _ </run/first.go'\n"
    vms.host.push("/run/systemd/system/first.service", unit)
    vms.host.shell("mkfifo /run/first.go; systemctl daemon-reload")
    try:
        name = vms.define("ordered", unit={"After": ["first.service"], "Wants": "first.service", "Nice": 5})
        (answer,) = json.loads(vms.ctl("start", "--json", name).stdout)
        assert answer["state"] == "Initializing"
        vms.host.wait_until(
            lambda: vms.properties("first.service", "ActiveState")["ActiveState"] == "activating"
        )
        assert vms.unit(name, "ActiveState", "MainPID") == {"ActiveState": "inactive", "MainPID": "0"}
        assert vms.state(name) == "Initializing"
        vms.host.shell("echo >/run/first.go")
        vms.wait(name, "Running")
        properties = vms.unit(name, "After", "Wants", "Nice")
        assert "first.service" in properties["After"].split()
        assert "first.service" in properties["Wants"].split()
        assert properties["Nice"] == "5"
    finally:
        vms.host.shell(
            "systemctl stop first.service; rm -f /run/systemd/system/first.service /run/first.go;"
            " systemctl daemon-reload"
        )


def test_a_start_that_waits_for_its_turn_can_be_called_off(vms: Vms) -> None:
    unit = "[Service]\nType=oneshot\nExecStart=/bin/sleep infinity\n"
    vms.host.push("/run/systemd/system/never.service", unit)
    vms.host.run(["systemctl", "daemon-reload"])
    try:
        name = vms.define("called-off", unit={"After": "never.service", "Wants": "never.service"})
        vms.ctl("start", name)
        assert vms.state(name) == "Initializing"
        vms.ctl("stop", name)
        assert vms.state(name) == "Stopped"
        assert vms.console(name) == []
    finally:
        vms.host.shell(
            "systemctl stop never.service; rm -f /run/systemd/system/never.service; systemctl daemon-reload"
        )


@pytest.mark.parametrize("way", ["running", "failed", "never-started", "start-failed"])
def test_nothing_is_left_of_a_vm_that_is_removed(vms: Vms, way: str) -> None:
    name = vms.define(f"gone-{way}", IS_DEAF if way == "running" else "exit 3")
    uid = vms.show(name)["uid"]
    if way == "running":
        vms.start(name)
        vms.host.wait_until_succeeds(["machinectl", "show", name])
        for expected in ("hypeman-vm-", "/run/hypemand", "/var/lib", "/run/userdb", "machine ", "qemu"):
            assert expected in vms.traces(name, uid)
    elif way == "failed":
        vms.ctl("start", "--wait", name, check=False)
        vms.wait(name, "Stopped")
        assert "failed" in vms.traces(name, uid)
    elif way == "start-failed":
        vms.host.run(["mv", "/usr/lib/hypemand/kernel/vmlinux", "/usr/lib/hypemand/kernel/vmlinux.off"])
        try:
            refused = vms.ctl("start", name, check=False)
        finally:
            vms.host.run(["mv", "/usr/lib/hypemand/kernel/vmlinux.off", "/usr/lib/hypemand/kernel/vmlinux"])
        assert refused.code == 9
        traces = vms.traces(name, uid)
        assert "hypeman-vm-" not in traces
        assert "/run/hypemand/vms" not in traces
        assert not vms.host.run(["test", "-e", f"/var/lib/hypemand/vms/{name}/disk.ext4"], check=False).ok
    vms.remove(name)
