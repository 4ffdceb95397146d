# SPDX-License-Identifier: Apache-2.0
"""Guests whose PID 1 is their own systemd: a whole Debian, from its root as debootstrap makes it. A module is
built in it against the kernel headers, and loaded; so are the modules of the kernel itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.host.lab import start_host
from tests.host.recipe import Suite, guest_recipe
from tests.host.roots import ensure_root
from tests.host.vms import KNOCK_PORT, Vms, hold_deadline, vms_of

NAME = "debian"
BOOT_DEADLINE = 240.0
ENVIRONMENT = {
    "SPACES": "  a  b ",
    "QUOTES": "\"double\" 'single' `back`",
    "DOLLAR": "$HOME ${HOME} $$ 100%",
    "BACKSLASH": "\\ \\n \\$",
    "LINES": "one\ntwo\n# three\nFOUR=4\n",
    "EMPTY": "",
    "LETTERS": "ä€",
}
# more than the 90 s after which the guest's systemd kills what does not stop
STOP_TIMEOUT = "120s"
STOP_DEADLINE = 240.0
GROUP: dict[str, Any] = {"network": {"group": "g"}}
WHOLE: dict[str, Any] = {
    "image": "debian",
    # rather than /sbin/init, which the image has for its program
    "cmd": ["/usr/sbin/init"],
    "memory": "768M",
    "vcpus": 2,
    "disk": "2G",
    "env": ENVIRONMENT,
    "kernel_headers": True,
    "ulimits": {"nofile": {"soft": 2048, "hard": 4000}, "core": 0},
    "stop_timeout": STOP_TIMEOUT,
    "boot_timeout": "220s",
    **GROUP,
}
# In a guest: a mount namespace of its own, and in that a root of its own, as container engines set them up.
PIVOT = """
mkdir -p /tmp/root && mount --bind / /tmp/root && mkdir -p /tmp/root/tmp/old
cd /tmp/root && pivot_root . tmp/old && cd / && echo pivoted && ls -d /etc/debian_version /tmp/old/etc
"""
NSPAWN = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--volatile=yes", "--private-network"]
OF_PROCESSES = "/proc/[0-9]*/status"
# A unit in the guest that tells whether it was stopped, rather than killed.
ENDS = "--property=ExecStop=/bin/sh -c 'sleep 1; echo stopped >>/var/tmp/witness'"
WITNESS = ["systemd-run", "--quiet", "--unit=witness", ENDS, "sleep", "infinity"]
# What is written of the guest's root: on its disk, as debugfs(8) names it.
DISK = f"/var/lib/hypemand/vms/{NAME}/disk.ext4"
UPPER = "/upper"
UNITS = f"{UPPER}/etc/systemd/system"
STUCK = "[Service]\nExecStartPre=/bin/sleep infinity\n"
# A service that the VM is for: it fails at first, and takes its time when it does not.
SLOW = """
[Service]
Type=oneshot
RemainAfterExit=yes
Restart=on-failure
RestartSec=1
ExecStart=/bin/sh -c '%ssleep 2; touch /run/slow'
"""
FAIL_ONCE = "test -e /run/tried || { touch /run/tried; exit 1; }; "
HEADERS_UNIT = "hypeman-kernel-headers.service"
# A module of a kernel, built as by DKMS.
SOURCE = r"""
#include <linux/init.h>
#include <linux/module.h>
static int __init hello_init(void) { pr_info("hello from a module\n"); return 0; }
static void __exit hello_exit(void) { }
module_init(hello_init);
module_exit(hello_exit);
MODULE_LICENSE("GPL");
"""
BUILD = """
mkdir -p /root/hello && cd /root/hello
printf '%s' "$1" >hello.c
echo 'obj-m := hello.o' >Makefile
make -C "/lib/modules/$(uname -r)/build" M="$PWD" modules
insmod hello.ko
grep '^hello ' /proc/modules
dmesg | grep -o 'hello from a module'
rmmod hello
"""


# Of our init and daemon, whichever systemd the guest has. A guest of Debian 13 takes twice as long to boot.
of_init = pytest.mark.one_release(Suite.BOOKWORM)


@pytest.fixture(scope="module")
def lab(suite: Suite) -> Iterator[Vms]:
    """VMs on a host that has the image."""
    root = ensure_root(guest_recipe(suite))
    with start_host(suite, binds=[f"{root}:/srv/debian"]) as host, vms_of(host) as vms:
        vms.ctl("image", "import", "debian", "/srv/debian", timeout=300)
        yield vms


def start(vms: Vms, **keys: Any) -> dict[str, Any]:
    """Start the VM with these keys beside its own, by its handle; what is known of it when it is Running."""
    vms.define(NAME, None, **{**WHOLE, **keys})
    vms.host.run(["systemctl", "start", f"hypeman@{NAME}"], timeout=BOOT_DEADLINE)
    shown = vms.show(NAME)
    assert shown["state"] == "Running"
    return shown


def released(vms: Vms) -> None:
    """Wait until its handle has ended with it."""
    handle = f"hypeman@{NAME}"
    vms.host.wait_until(lambda: vms.properties(handle, "ActiveState")["ActiveState"] == "inactive")


def stop(vms: Vms) -> None:
    """Stop the VM by its handle."""
    vms.host.run(["systemctl", "stop", f"hypeman@{NAME}"], timeout=STOP_DEADLINE)
    assert vms.state(NAME) == "Stopped"


@pytest.fixture
def debian(lab: Vms) -> Vms:
    """The VM, Running. One boot serves all the tests that leave it so."""
    shown = json.loads(lab.ctl("list", "--json").stdout)
    if [vm["state"] for vm in shown if vm["name"] == NAME] != ["Running"]:
        start(lab)
    return lab


@pytest.fixture
def stopped(lab: Vms) -> Vms:
    """The VM, Stopped in order, with the disk that it has."""
    if not lab.host.run(["test", "-e", DISK], check=False).ok:
        start(lab)
    if lab.state(NAME) != "Stopped":
        stop(lab)
    return lab


def write_file(vms: Vms, folder: str, name: str, text: str) -> None:
    """Put a file onto the disk of the VM, which is Stopped."""
    vms.host.push(f"/srv/{name}", text)
    change_disk(vms, *make_folder(folder), f"cd {folder}", f"write /srv/{name} {name}")


def make_folder(path: str) -> list[str]:
    """Requests that make it with those on the way to it; debugfs(8) goes on where there is one."""
    parts = path.split("/")[1:]
    return [f"mkdir /{'/'.join(parts[: number + 1])}" for number in range(len(parts))]


def change_disk(vms: Vms, *requests: str) -> None:
    """Change the disk of the VM, which is Stopped, by these requests."""
    text = "".join(f"{request}\n" for request in requests)
    vms.host.run(["debugfs", "-w", "-f", "-", DISK], input=text)


def read_file(vms: Vms, path: str) -> str:
    """A file of the guest's disk, while it is Stopped."""
    return vms.host.run(["debugfs", "-R", f"cat {UPPER}{path}", DISK]).stdout


def boot_id(vms: Vms) -> str:
    return vms.execute(NAME, "cat", "/proc/cmdline").split("hypeman.boot=")[1].split()[0]


def guest_environment(vms: Vms, pid: str) -> dict[str, str]:
    data = vms.execute(NAME, "cat", f"/proc/{pid}/environ")
    return dict(item.partition("=")[::2] for item in data.split("\0") if item)


def wait_rebooted(vms: Vms, before: str) -> dict[str, Any]:
    """Wait until another boot of the VM is Running."""

    def look() -> dict[str, Any] | None:
        shown = vms.show(NAME)
        return shown if shown["state"] == "Running" and shown["invocation_id"] != before else None

    return vms.host.wait_until(look, "it is Running again")


# a guest that runs

# The order of the tests saves boots: what one leaves Running, or Stopped, is what the next one needs.


@of_init
def test_a_debian_knows_its_group_and_its_group_knows_it(lab: Vms) -> None:
    peer = lab.run("peer", **GROUP)
    own = start(lab)["network"]["ip"]
    peers = lab.show(peer)["network"]["ip"]
    assert lab.execute(NAME, "hostname", "--ip-address").split()[-1] == own
    assert lab.execute(NAME, "getent", "ahostsv4", peer).split()[0] == peers
    lab.host.wait_until(lambda: NAME in lab.execute(peer, "cat", "/etc/hosts"), "its peer knows it")
    assert "1 packets received" in lab.execute(peer, "ping", "-c", "1", "-W", "60", NAME)
    lab.run("newcomer", **GROUP)
    lab.host.wait_until(lambda: "newcomer" in lab.execute(NAME, "cat", "/etc/hosts"), "it knows another")
    assert lab.execute(NAME, "cat", "/etc/hosts").count("BEGIN hypemand") == 1
    for name in (peer, "newcomer"):
        lab.remove(name)


def test_the_images_init_is_found_and_becomes_pid_1(debian: Vms) -> None:
    assert debian.execute(NAME, "cat", "/proc/1/comm") == "systemd\n"
    assert debian.execute(NAME, "hostname") == f"{NAME}\n"
    console = debian.console(NAME)
    (started,) = [line for line in console if line.startswith("HYPEMAN-PROGRAM-START")]
    (ready,) = [line for line in console if line.startswith("HYPEMAN-AGENT-READY")]
    assert "mode=systemd" in started
    assert console.index(started) < console.index(ready)
    assert boot_id(debian) == debian.show(NAME)["boot_id"]


def test_its_machine_id_is_the_vms_own_and_stays(debian: Vms) -> None:
    show = "cat /etc/machine-id; readlink -f /var/lib/dbus/machine-id; [ -e /etc/machine-id ] && echo there"
    expected = f"{debian.show(NAME)['id']}\n/etc/machine-id\nthere\n"
    assert debian.execute(NAME, "sh", "-c", show) == expected


def test_it_comes_up_whole_and_asks_for_no_login_on_the_console(debian: Vms) -> None:
    waited = debian.ctl("exec", NAME, "--", "systemctl", "is-system-running", "--wait", check=False)
    assert waited.stdout == "running\n", debian.execute(NAME, "systemctl", "--failed", "--no-pager")
    assert not any("login:" in line for line in debian.console(NAME))
    status = debian.execute(NAME, "systemctl", "status", "--no-pager", "hypeman-agent")
    assert "active (running)" in status


def test_variables_are_exact_for_the_agent_and_for_pid_1(debian: Vms) -> None:
    pid = debian.execute(NAME, "systemctl", "show", "--property=MainPID", "--value", "hypeman-agent").strip()
    for environment in (guest_environment(debian, pid), guest_environment(debian, "1")):
        assert {key: environment.get(key) for key in ENVIRONMENT} == ENVIRONMENT


def test_limits_are_of_the_guests_services_and_of_commands(debian: Vms) -> None:
    script = "ulimit -Sn; ulimit -Hn; ulimit -Hc"
    assert debian.execute(NAME, "sh", "-c", script) == "2048\n4000\n0\n"
    # Running is earlier than the guest's D-Bus
    debian.ctl("exec", NAME, "--", "systemctl", "is-system-running", "--wait", check=False)
    service = ["systemd-run", "--wait", "--pipe", "--quiet", "sh", "-c", script]
    assert debian.execute(NAME, *service) == "2048\n4000\n0\n"


def test_the_root_is_a_real_one_so_containers_can_have_roots_of_their_own(debian: Vms) -> None:
    seen = debian.execute(NAME, "unshare", "--mount", "--pid", "--fork", "--mount-proc", "sh", "-euc", PIVOT)
    assert seen == "pivoted\n/etc/debian_version\n/tmp/old/etc\n"
    command = [*NSPAWN, "--directory=/", "--pipe", "--", "/bin/sh", "-c", "echo $$; ls -d /usr/bin/env"]
    assert debian.execute(NAME, *command) == "1\n/usr/bin/env\n"


@of_init
def test_what_is_left_of_init_and_the_agent_take_little_memory(debian: Vms) -> None:
    status = debian.execute(NAME, "sh", "-c", f"cat $(grep -l hypeman- {OF_PROCESSES})")
    names = [line.split()[1] for line in status.splitlines() if line.startswith("Name:")]
    sizes = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")]
    assert len(names) == len(sizes) == 2
    assert sum(sizes) < 2048, status


def test_emergency_mode_is_told_and_so_is_its_end(debian: Vms) -> None:
    debian.ctl("exec", NAME, "--", "systemctl", "--no-block", "emergency")
    words = "the guest's systemd is in emergency mode"
    debian.host.wait_until(lambda: debian.show(NAME)["state_error"] == words, "emergency mode is told")
    assert debian.state(NAME) == "Running"
    debian.ctl("exec", NAME, "--", "systemctl", "--no-block", "default")
    debian.host.wait_until(lambda: debian.show(NAME)["state_error"] is None, "its end is told")


# kernel headers in it, and the modules of its kernel


@of_init
def test_the_headers_are_a_service_of_the_guest_that_nothing_waits_for(debian: Vms) -> None:
    # the guest's systemd need not wait for them to be `running`
    show = ["exec", NAME, "--", "systemctl", "status", "--no-pager", HEADERS_UNIT]
    debian.host.wait_until(lambda: "active (exited)" in debian.ctl(*show, check=False).stdout, "it is done")
    assert debian.execute(NAME, "cat", "/run/hypeman/kernel-headers.status") == "ready\n"
    shown = ("Before", "After", "Nice", "IOSchedulingClass", "CPUSchedulingPolicy")
    lines = debian.execute(
        NAME, "systemctl", "show", *(f"--property={key}" for key in shown), HEADERS_UNIT
    ).splitlines()
    properties = dict(line.partition("=")[::2] for line in lines)
    assert properties["Before"] == "shutdown.target"
    assert "local-fs.target" in properties["After"]
    assert (properties["Nice"], properties["IOSchedulingClass"]) == ("19", "3")
    assert properties["CPUSchedulingPolicy"] == "5"
    console = [line.split()[0] for line in debian.console(NAME) if line.startswith("HYPEMAN-")]
    assert console.index("HYPEMAN-PROGRAM-START") < console.index("HYPEMAN-HEADERS-START")
    assert console.index("HYPEMAN-HEADERS-START") < console.index("HYPEMAN-HEADERS-READY")


@of_init
def test_the_kernels_own_modules_are_loaded_by_kmod(debian: Vms) -> None:
    load = "modprobe -a ip_vs_rr vxlan nfsv4 squashfs && depmod && modprobe -n wireguard && lsmod"
    loaded = {line.split()[0] for line in debian.execute(NAME, "sh", "-euc", load).splitlines()}
    assert {"ip_vs", "ip_vs_rr", "vxlan", "nfs", "nfsv4", "squashfs"} <= loaded


@of_init
def test_a_module_is_built_against_them_and_loaded(debian: Vms) -> None:
    built = debian.ctl("exec", NAME, "--", "sh", "-euc", BUILD, "build", SOURCE, timeout=300)
    assert "hello from a module" in built.stdout


# its new beginnings, and its ends


def test_a_reboot_from_inside_is_a_new_boot_of_the_same_unit(debian: Vms) -> None:
    shown = debian.show(NAME)
    before, before_boot = shown["invocation_id"], shown["boot_id"]
    debian.execute(NAME, *WITNESS)
    debian.define(NAME, None, **{**WHOLE, "memory": "640M"})
    debian.ctl("exec", NAME, "--", "systemctl", "reboot", check=False)
    after = wait_rebooted(debian, before)
    assert after["needs_restart"], "the guest has not taken the new definition by itself"
    debian.define(NAME, None, **WHOLE)
    assert not debian.show(NAME)["needs_restart"]
    assert boot_id(debian) == after["boot_id"] != before_boot
    assert debian.execute(NAME, "cat", "/var/tmp/witness") == "stopped\n"
    states = debian.states(NAME)
    assert states[-2:] == ["Initializing", "Running"]
    assert "Stopped" not in states[states.index("Running") :], "systemd had it all the time"
    assert debian.properties(f"hypeman@{NAME}", "ActiveState")["ActiveState"] == "active"
    assert after["exit_code"] is None
    (report,) = [line for line in debian.console(NAME) if line.startswith("HYPEMAN-EXIT")]
    assert report == f'HYPEMAN-EXIT code=0 message="rebooted from inside" boot={before_boot}'


@of_init
def test_a_guest_reboots_while_the_daemon_is_away(debian: Vms) -> None:
    before = debian.show(NAME)["invocation_id"]
    address = debian.show(NAME)["network"]["ip"]
    knocked = ["systemd-socket-activate", f"--listen={KNOCK_PORT}", "--", "/usr/bin/systemctl", "reboot"]
    debian.execute(NAME, "systemd-run", "--quiet", *knocked)
    with debian.without_daemon():
        debian.knock(address)
        debian.host.wait_until(lambda: debian.unit(NAME, "InvocationID")["InvocationID"] not in ("", before))
        assert debian.unit(NAME, "ActiveState")["ActiveState"] == "activating"
    assert wait_rebooted(debian, before)["status_text"].startswith("Running")


def test_the_host_stops_the_guests_units_in_order(debian: Vms) -> None:
    debian.execute(NAME, "rm", "-f", "/var/tmp/witness")
    debian.execute(NAME, *WITNESS)
    stop(debian)
    shown = debian.show(NAME)
    assert (shown["exit_code"], shown["exit_message"]) == (0, "stopped on request: powered off in order")
    assert read_file(debian, "/var/tmp/witness") == "stopped\n"


@of_init
def test_a_unit_of_the_guest_makes_it_ready(stopped: Vms) -> None:
    enable_slow(stopped, FAIL_ONCE)
    start(stopped, ready="notify:slow.service")
    stopped.execute(NAME, "test", "-e", "/run/slow")


def enable_slow(vms: Vms, before: str = "") -> None:
    write_file(vms, UNITS, "slow.service", SLOW % before)
    wants = f"{UNITS}/multi-user.target.wants"
    link = f"symlink {wants}/slow.service /etc/systemd/system/slow.service"
    change_disk(vms, f"mkdir {wants}", link)


@of_init
def test_a_power_off_from_inside_is_success(debian: Vms) -> None:
    debian.ctl("exec", NAME, "--", "systemctl", "poweroff", check=False)
    shown = debian.wait(NAME, "Stopped")
    assert (shown["exit_code"], shown["exit_message"]) == (0, "powered off from inside")
    assert debian.unit(NAME, "ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}
    released(debian)


@of_init
def test_a_fork_of_it_has_a_machine_id_of_its_own(stopped: Vms) -> None:
    """Also if it has no memory from which it is resumed."""
    # as after a first boot; systemd writes it when that is over, which may be after Running
    change_disk(stopped, f"rm {UPPER}/etc/machine-id")
    write_file(stopped, f"{UPPER}/etc", "machine-id", f"{stopped.show(NAME)['id']}\n")
    try:
        stopped.ctl("fork", "--state=Running", "--wait", NAME, "copy")
        found = stopped.execute("copy", "sh", "-c", "cat /etc/machine-id /var/lib/dbus/machine-id")
        assert found == f"{stopped.show('copy')['id']}\n" * 2
    finally:
        stopped.ctl("rm", "-f", "copy", check=False)


@of_init
def test_the_guests_systemd_is_ready_once_all_is_started(stopped: Vms) -> None:
    enable_slow(stopped)
    start(stopped, ready={"notify": True})
    assert stopped.execute(NAME, "systemctl", "is-active", "default.target", "slow.service") == "active\n" * 2


@of_init
def test_a_stop_is_stronger_than_a_reboot(debian: Vms) -> None:
    debian.ctl("exec", NAME, "--", "systemctl", "--no-block", "reboot", check=False)
    end_rebooting(debian, NAME)
    released(debian)


def end_rebooting(vms: Vms, name: str) -> None:
    vms.host.run(["systemctl", "stop", f"hypeman-vm-{name}"], timeout=STOP_DEADLINE)
    shown = vms.wait(name, "Stopped")
    assert shown["exit_message"].startswith(("stopped", "rebooted"))
    assert vms.unit(name, "ActiveState", "Job") == {"ActiveState": "inactive", "Job": ""}


# what can stand in the way


@of_init
def test_a_unit_of_the_image_is_respected_and_the_boot_ends_with_words(stopped: Vms) -> None:
    change_disk(stopped, *make_folder(UNITS), f"symlink {UNITS}/hypeman-agent.service /dev/null")
    stopped.ctl("start", "--wait", NAME, check=False)
    shown = stopped.wait(NAME, "Stopped")
    assert shown["exit_code"] == 125
    assert "the image has masked hypeman-agent.service" in shown["exit_message"]
    assert "set guest_agent: false" in shown["exit_message"]
    # without an agent the guest still follows the order to stop
    start(stopped, guest_agent=False)
    stopped.host.run(["systemctl", "stop", f"hypeman-vm-{NAME}"], timeout=STOP_DEADLINE)
    assert stopped.wait(NAME, "Stopped")["exit_message"] == "stopped on request: powered off in order"
    released(stopped)
    assert not any("AGENT-READY" in line for line in boot_lines(stopped))
    change_disk(stopped, f"rm {UNITS}/hypeman-agent.service")
    stopped.define(NAME, None, **WHOLE)


def boot_lines(vms: Vms) -> list[str]:
    """The console of the last boot."""
    console = vms.console(NAME)
    starts = [number for number, line in enumerate(console) if "HYPEMAN-PROGRAM-START" in line]
    return console[starts[-1] :]


def is_in_emergency(vms: Vms) -> bool:
    """Has the guest of the boot that is on said so?"""
    run = vms.unit(NAME, "InvocationID")["InvocationID"]
    entries = vms.host.journal(f"_SYSTEMD_INVOCATION_ID={run}") if run else []
    return any("HYPEMAN-EMERGENCY" in entry.get("MESSAGE", "") for entry in entries)


@of_init
def test_a_boot_that_ends_in_emergency_mode_without_an_agent_times_out_saying_so(stopped: Vms) -> None:
    write_file(stopped, f"{UNITS}/hypeman-agent.service.d", "stuck.conf", STUCK)
    change_disk(stopped, f"symlink {UNITS}/default.target /usr/lib/systemd/system/emergency.target")
    stopped.define(NAME, None, **{**WHOLE, "boot_timeout": "15s", "stop_timeout": "20s"})
    words = "boot timed out: HYPEMAN-AGENT-READY was not seen; the guest's systemd is in emergency mode"
    with stopped.host.popen(["hypemanctl", "start", "--wait", "--timeout=5m", NAME]) as late:
        hold_deadline(stopped.host, NAME, lambda: is_in_emergency(stopped), "emergency mode")
        _, told = late.communicate(timeout=STOP_DEADLINE)
    assert late.returncode == 1
    assert words in told.decode()
    assert stopped.wait(NAME, "Stopped")["exit_message"] == words
    stopped.remove(NAME)  # and the disk, with what was put into it


# other inits


@of_init
def test_an_init_that_ends_is_a_panic_with_words(lab: Vms) -> None:
    # not of busybox, which is refused: nothing of it can lead to systemd
    lab.define("ends", None, image="debian", entrypoint=["/bin/true"], mode="systemd", guest_agent=False)
    lab.ctl("start", "ends")
    shown = lab.wait("ends", "Stopped")
    assert shown["exit_message"].startswith("Kernel panic - not syncing: Attempted to kill init!")
    assert lab.unit("ends", "ActiveState")["ActiveState"] == "failed"


@of_init
def test_an_init_that_is_not_there_is_127(lab: Vms) -> None:
    lab.define("nothing", None, entrypoint=["/sbin/nothing"], mode="systemd", guest_agent=False)
    lab.ctl("start", "nothing")
    shown = lab.wait("nothing", "Stopped")
    assert shown["exit_code"] == 127
    assert "program /sbin/nothing cannot be executed: No such file" in shown["exit_message"]


def define_rebooting(vms: Vms, name: str, script: str, **keys: Any) -> None:
    """A guest whose PID 1 is a shell, past which a reboot is: nothing of it is asked."""
    program = {"image": "debian", "entrypoint": ["/bin/sh", "-c", script], "mode": "systemd"}
    vms.define(name, None, **program, guest_agent=False, **keys)


@of_init
def test_a_guest_that_does_nothing_but_reboot_is_left_alone_after_a_while(lab: Vms) -> None:
    limit = {"StartLimitIntervalSec": "10min", "StartLimitBurst": 3}
    define_rebooting(lab, "loops", "reboot -f", unit=limit)
    lab.ctl("start", "loops")
    shown = lab.wait("loops", "Stopped")
    assert "rebooted from inside" in shown["exit_message"]
    assert "too often in a short time: systemd did not restart it" in shown["exit_message"]
    assert lab.unit("loops", "ActiveState")["ActiveState"] == "failed"
    boots = [line for line in lab.console("loops") if line.startswith("HYPEMAN-PROGRAM-START")]
    assert len(boots) == 3, "a reboot past its init is one too"


@of_init
def test_a_stop_is_stronger_than_a_reboot_past_the_init(lab: Vms) -> None:
    define_rebooting(lab, "goes", "echo now; exec reboot -f", stop_timeout="5s")
    lab.ctl("start", "goes")
    lab.wait_console("goes", "now")
    end_rebooting(lab, "goes")


@of_init
def test_a_program_notifies_as_of_systemd(lab: Vms) -> None:
    script = "sleep 1; systemd-notify --status=half; sleep 3; systemd-notify --ready; exec sleep infinity"
    keys = {**WHOLE, "mode": "exec", "entrypoint": ["sh", "-c", script], "ready": "notify"}
    lab.define("notifies", None, **keys)
    lab.ctl("start", "--wait", "notifies")
    assert lab.state("notifies") == "Running"
    assert any('reason="half"' in line for line in lab.console("notifies"))
    lab.remove("notifies")
