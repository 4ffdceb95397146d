# SPDX-License-Identifier: Apache-2.0
"""Restarts: those that systemd makes alone, and those of the host with its VMs."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from tests.host.machine import TestHost
from tests.host.vms import HAS_LAST_WORDS, KNOCKED, STAYS, Vms

# Fails once for each `fail` that is asked for; its disk remembers how often it has been started.
FAILS_ON_DEMAND = """
echo >>/var/starts; echo "start $(wc -l </var/starts)"
mkfifo /tmp/fail 2>/dev/null; read -r code </tmp/fail; exit "$code"
"""
# What differs from one look at a running unit to the next, whatever happens to it.
RESTLESS = ("CPUUsageNSec", "Memory", "Tasks", "IOReadBytes", "IOWriteBytes", "EffectiveMemory")
# What systemd 257 itself does not keep of a command that runs: when it was started.
RUN_OF_COMMAND = re.compile(r"start_time=\[[^]]*\] ; stop_time=\[[^]]*\] ; pid=[0-9]+ ;")


def normal(value: str | None) -> list[str] | None:
    """A property's words: systemd keeps no order in lists of units."""
    return None if value is None else sorted(RUN_OF_COMMAND.sub("", value).split())


def fail(vms: Vms, name: str, code: int = 7) -> None:
    """Have the program end. The guest may be gone before it has told of this command's own end."""
    vms.ctl("exec", name, "--", "sh", "-c", f"echo {code} >/tmp/fail", check=False)


def test_a_failed_program_is_restarted_by_systemd_and_boots_anew_until_that_gives_up(vms: Vms) -> None:
    limit = {"StartLimitBurst": 2, "StartLimitIntervalSec": "10min"}
    name = vms.run("comes-back", FAILS_ON_DEMAND, restart="on-failure", unit=limit)
    before = vms.show(name)
    vms.wait_console(name, "start 1")
    fail(vms, name)
    vms.wait_console(name, "start 2")
    after = vms.wait(name, "Running")
    assert after["invocation_id"] != before["invocation_id"]
    assert after["boot_id"] not in (before["boot_id"], after["invocation_id"])
    assert vms.execute(name, "cat", "/proc/cmdline").split()[-1] == f"hypeman.boot={after['boot_id']}"
    assert vms.unit(name, "NRestarts")["NRestarts"] == "1"
    states = vms.states(name)
    assert states[:3] == ["Stopped", "Initializing", "Running"]
    assert states[-2:] == ["Initializing", "Running"]
    assert "Stopped" not in states[1:], "systemd had it all the time"
    assert after["restart_status"]["text"] == "restarted: exited with code 7, 2nd of 2"
    fail(vms, name, 9)
    ended = vms.wait(name, "Stopped")
    words = "gave up after 2 starts: exited with code 9"
    assert (ended["exit_code"], ended["status_text"]) == (9, f"Stopped: {words}")
    assert ended["restart_status"]["blocked_reason"] == "max_attempts_exceeded"
    assert vms.ctl("list", "--no-legend", name).stdout.split(maxsplit=9)[7:] == ["1", "9", f"{words}\n"]
    # of systemd's own view, the status of the main process is QEMU's
    wanted = {"Result": "exit-code", "StatusText": "Stopped: exited with code 9", "ExecMainStatus": "0"}
    assert vms.unit(name, *wanted) == wanted
    codes = [e.get("HYPEMAN_EXIT_CODE") for e in vms.host.journal(f"HYPEMAN_VM_ID={ended['id']}")]
    assert [code for code in codes if code] == ["7", "9"]
    vms.restart_daemon()
    history = [line.split(maxsplit=4)[3:] for line in vms.ctl("history", name).stdout.splitlines()[1:]]
    assert history == [["7", "exited with code 7"], ["9", "exited with code 9"]]
    assert vms.show(name)["status_text"] == f"Stopped: {words}"


def test_restart_always_restarts_after_success_but_not_after_a_stop(vms: Vms) -> None:
    name = vms.run("goes-on", FAILS_ON_DEMAND, restart="always")
    vms.wait_console(name, "start 1")
    fail(vms, name, 0)
    vms.wait_console(name, "start 2")
    vms.wait(name, "Running")
    vms.ctl("stop", name)
    assert vms.state(name) == "Stopped"
    assert vms.unit(name, "ActiveState")["ActiveState"] == "inactive"


def test_a_killed_vmm_is_restarted(vms: Vms) -> None:
    delays = {"restart_backoff": "200ms", "restart_backoff_max": "1min", "restart_stable_after": "3s"}
    name = vms.run("vmm-comes-back", STAYS, restart="on-failure", **delays)
    first = vms.show(name)
    vms.host.run(["kill", "-KILL", str(first["main_pid"])])
    vms.host.wait_until(lambda: vms.unit(name, "NRestarts")["NRestarts"] == "1")
    second = vms.wait(name, "Running")
    assert second["main_pid"] != first["main_pid"]
    assert vms.execute(name, "echo", "here") == "here\n"
    assert vms.unit(name, "RestartUSec", "StartLimitBurst") == {
        "RestartUSec": "200ms",
        "StartLimitBurst": "5",
    }
    if "RestartMaxDelayUSec" in vms.unit(name):
        assert vms.unit(name, "RestartMaxDelayUSec")["RestartMaxDelayUSec"] == "1min"
    # it has been stable for long enough: systemd begins to count anew, and the VM goes on
    vms.host.wait_until(lambda: vms.unit(name, "NRestarts")["NRestarts"] == "0")
    assert vms.show(name)["restart_status"]["attempts"] == 0
    assert vms.show(name)["main_pid"] == second["main_pid"]


def test_systemd_restarts_a_vm_while_the_daemon_is_away(vms: Vms) -> None:
    name = vms.run("alone", FAILS_ON_DEMAND, restart="on-failure", network="default")
    vms.wait_console(name, "start 1")
    address = vms.show(name)["network"]["ip"]
    # the exec ends before the program does, and the daemon before that
    vms.execute(name, "sh", "-c", f"({KNOCKED}; echo 7 >/tmp/fail) >/dev/null 2>&1 </dev/null &")
    with vms.without_daemon():
        vms.knock(address)
        vms.wait_console(name, "start 2")
        # nobody is there who could say that it is ready
        assert vms.unit(name, "ActiveState", "NRestarts") == {"ActiveState": "activating", "NRestarts": "1"}
    assert vms.wait(name, "Running")["status_text"].startswith("Running")
    assert vms.unit(name, "ActiveState")["ActiveState"] == "active"
    assert vms.execute(name, "echo", "here") == "here\n"


def test_a_daemon_reload_changes_nothing_of_a_running_vm(vms: Vms) -> None:
    vms.write("reloaded", FAILS_ON_DEMAND, restart="on-failure")
    vms.write(
        "adorned",
        HAS_LAST_WORDS,
        unit={"Description": "100% of $HOME", "CPUWeight": 20, "AllowedCPUs": "0", "RestartSec": "2s"},
    )
    vms.reload()
    names = ("reloaded", "adorned")
    vms.start(*names)
    vms.wait_console("reloaded", "start 1")
    vms.wait_console("adorned", "up")

    before = {name: vms.unit(name) for name in names}
    vms.host.run(["systemctl", "daemon-reload"])
    for name in names:
        after = vms.unit(name)
        changed = [
            f"{key}: {before[name].get(key)} -> {after.get(key)}"
            for key in sorted(after.keys() | before[name].keys())
            if not key.startswith(RESTLESS) and normal(before[name].get(key)) != normal(after.get(key))
        ]
        assert not changed, "\n".join(changed)
    fail(vms, "reloaded")
    vms.wait_console("reloaded", "start 2")
    vms.wait("reloaded", "Running")
    assert vms.execute("reloaded", "hostname") == "reloaded\n"
    vms.ctl("stop", "--result", "adorned")
    assert vms.console("adorned").count("last words") == 1


def test_systemd_executes_itself_anew_while_vms_start_run_and_stop(vms: Vms) -> None:
    name = vms.define("reexecuted", HAS_LAST_WORDS)
    # it leaves the bus for some 100 ms, before it has answered what was asked meanwhile
    vms.host.shell(f"systemctl daemon-reexec & hypemanctl start --wait {name}; wait")
    assert vms.states(name) == ["Stopped", "Initializing", "Running"]
    vms.wait_console(name, "up")
    vms.host.shell(f"systemctl daemon-reexec & hypemanctl show {name} >/dev/null; wait")
    assert vms.state(name) == "Running"
    vms.host.shell(f"systemctl daemon-reexec & hypemanctl stop {name}; wait")
    assert vms.states(name)[-2:] == ["Shutdown", "Stopped"]
    assert vms.console(name).count("last words") == 1


# It stops a VM that is ordered before it, and so is stopped after it, as a cluster manager may.
KEEPER = """
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=true
ExecStop=systemctl stop hypeman@by-hand
TimeoutStopSec=infinity
"""


def test_a_reboot_of_the_host_stops_vms_in_order_and_starts_those_that_are_to_start(vms: Vms) -> None:
    host = vms.host
    vms.write("auto", HAS_LAST_WORDS, autostart=True)
    vms.write("enabled", HAS_LAST_WORDS)
    vms.write("by-hand", HAS_LAST_WORDS, unit={"Before": "keeper.service"})
    vms.reload()
    vms.wait("auto", "Running")  # its file is new
    vms.start("by-hand")
    host.run(["systemctl", "enable", "--now", "hypeman@enabled"])
    for name in ("auto", "enabled", "by-hand"):
        vms.wait_console(name, "up")
        host.wait_until(lambda name=name: vms.is_active(f"hypeman@{name}"))  # type: ignore[misc]
    host.push("/run/systemd/system/keeper.service", KEEPER)
    host.shell("systemctl daemon-reload; systemctl start keeper")
    try:
        host.reboot()
        for name in ("auto", "enabled"):
            vms.wait(name, "Running")
            host.wait_until(lambda name=name: vms.is_active(f"hypeman@{name}"))  # type: ignore[misc]
            assert vms.console(name).count("last words") == 1, "it was not stopped in order"
        by_hand = vms.show("by-hand")
        assert (by_hand["state"], by_hand["exit_code"]) == ("Stopped", 0)
        assert not vms.is_active("hypeman@by-hand")

        vms.ctl("stop", "auto")
        vms.restart_daemon()
        vms.reload()
        assert vms.state("auto") == "Stopped", "only the daemon was restarted"
        assert vms.state("enabled") == "Running"
    finally:
        host.run(["systemctl", "disable", "--now", "hypeman@enabled"])


# A DHCP client with a script in place of a server.
CLIENT = """
[Unit]
Before=network-online.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=sh -ec '{script}'
TimeoutStartSec=250
[Install]
WantedBy=network-online.target
"""
ANSWERS = """until systemctl is-active -q hypeman-vm-on-none; do sleep 0.1; done; \
  systemctl show --value -p ActiveState hypeman-vm-on-one >/srv/was; \
  echo "nameserver 10.53.0.53" >/etc/resolv.conf"""
DAEMON_ENDS = """until systemctl is-active -q hypeman-vm-on-none; do sleep 0.1; done; \
  systemctl restart hypemand; \
  systemctl show --value -p ActiveState hypeman-vm-on-one >/srv/was; \
  echo "nameserver 10.53.0.54" >/etc/resolv.conf"""


@contextmanager
def dhcp_client(host: TestHost, script: str) -> Iterator[None]:
    host.push("/etc/systemd/system/client.service", CLIENT.format(script=script))
    host.shell("systemctl enable client; : >/etc/resolv.conf")
    try:
        yield
    finally:
        host.shell(
            "systemctl disable --now client; : >/etc/resolv.conf; rm /etc/systemd/system/client.service"
        )
        host.run(["systemctl", "daemon-reload"])


def test_who_starts_with_the_host_has_the_name_servers_that_it_gets_by_dhcp(vms: Vms) -> None:
    host = vms.host
    vms.write("on-none", autostart=True)
    vms.write("on-one", autostart=True, network={"name": "default"})
    vms.reload()
    for name in ("on-none", "on-one"):
        vms.wait(name, "Running")  # nobody waits on a host that is up
    with dhcp_client(host, ANSWERS):
        host.reboot()
        vms.wait("on-one", "Running")
        assert host.run(["cat", "/srv/was"]).stdout == "inactive\n"
        assert vms.execute("on-one", "cat", "/etc/resolv.conf") == "nameserver 10.53.0.53\n"
    with dhcp_client(host, DAEMON_ENDS):
        host.reboot()
        # the next daemon waits for the network in the place of the one that has ended
        vms.wait("on-one", "Running")
        assert host.run(["systemctl", "is-active", "client"]).stdout == "active\n", "it had to wait in vain"
        assert host.run(["cat", "/srv/was"]).stdout == "inactive\n"
        assert vms.execute("on-one", "cat", "/etc/resolv.conf") == "nameserver 10.53.0.54\n"
