# SPDX-License-Identifier: Apache-2.0
"""Readiness checks of definitions: Running means usable, and says until then what it waits for."""

from __future__ import annotations

import json

import pytest

from tests.host.vms import BOOT_DEADLINE, KNOCKED, Vms, hold_deadline

pytestmark = pytest.mark.one_release

SERVES_LATE = f"{KNOCKED}; echo listening; exec nc -ll -p 5432 -e hostname"
HTTP_LATE = f"mkdir /www; httpd -p 8080 -h /www; {KNOCKED}; echo ok >/www/health; exec sleep infinity"
MARK_LATE = "sleep 1; touch /tmp/mark; exec sleep infinity"
LOG_LATE = "echo starting; sleep 1; echo up on port 80; echo after; exec sleep infinity"
ADDRESS = "10.83.112.77"
# A unit of the host that is the server's client. One attempt, and no wait.
CLIENT = """
[Unit]
Requires=hypeman@server.service
After=hypeman@server.service
[Service]
Type=oneshot
ExecStart=/usr/bin/python3 -c "import socket; s = socket.create_connection(('10.83.112.77', 5432), 60); \\
    print('got', s.recv(100).decode(), flush=True)"
"""


def waits_for(vms: Vms, name: str, words: str) -> None:
    """Wait until systemd knows what it waits for."""
    wanted = f"Initializing: program started, waiting for {words}"
    vms.host.wait_until(lambda: vms.unit(name, "StatusText")["StatusText"] == wanted, f"{name}: {wanted}")


def markers(vms: Vms, name: str) -> list[str]:
    """The guest's markers, in their order."""
    words = ("HYPEMAN-PROGRAM-START", "HYPEMAN-AGENT-READY", "HYPEMAN-READY", "listening", "up on port 80")
    return [line.split()[0] for line in vms.console(name) if line.startswith(words)]


def test_a_unit_that_is_ordered_after_a_vm_connects_at_its_first_attempt(vms: Vms) -> None:
    network = {"name": "default", "address": ADDRESS}
    vms.define("server", SERVES_LATE, network=network, ready="tcp:5432")
    vms.host.push("/run/systemd/system/client.service", CLIENT)
    vms.host.run(["systemctl", "daemon-reload"])
    try:
        with vms.host.popen(["systemctl", "start", "client.service"]) as client:
            waits_for(vms, "server", "tcp 5432 (nothing listens on port 5432)")
            assert vms.state("server") == "Initializing"
            assert vms.unit("server", "ActiveState")["ActiveState"] == "activating"
            vms.knock(ADDRESS)
            assert client.wait(BOOT_DEADLINE) == 0
        assert vms.state("server") == "Running"
        found = markers(vms, "server")
        assert found.index("listening") < found.index("HYPEMAN-READY")
        spans = [span["name"] for span in json.loads(vms.ctl("analyze", "--json", "server").stdout)["spans"]]
        assert "ready" in spans
        assert "HYPEMAN" not in vms.ctl("logs", "server").stdout
    finally:
        vms.host.run(["rm", "/run/systemd/system/client.service"])
        vms.host.run(["systemctl", "daemon-reload"])


def test_each_check_is_waited_for_and_a_boot_that_is_too_late_names_it(vms: Vms) -> None:
    check = {"http": {"port": 8080, "path": "/health", "status": 200}}
    vms.write("http", HTTP_LATE, ready=check, network={"name": "default", "address": ADDRESS})
    vms.write("mark", MARK_LATE, ready={"exec": ["test", "-e", "/tmp/mark"], "interval": "100ms"})
    vms.write("log", LOG_LATE, ready="log:^up on port \\d+$")
    vms.write("never", "exec sleep infinity", ready="tcp:9", boot_timeout="25s", stop_timeout="1s")
    vms.write("ends", "sleep 1; exit 3", ready="tcp:9")
    vms.reload()
    vms.ctl("start", "http")
    vms.host.wait_until(lambda: any('reason="http: status 404"' in line for line in vms.console("http")))
    vms.knock(ADDRESS)
    vms.start("mark", "log")
    vms.wait("http", "Running")
    assert {vms.state(name) for name in ("http", "mark", "log")} == {"Running"}
    vms.ctl("start", "never", "ends")
    waits = "waiting for tcp 9 (nothing listens on port 9)"
    hold_deadline(vms.host, "never", lambda: waits in vms.unit("never", "StatusText")["StatusText"], waits)
    vms.wait_console("log", "after")
    found = markers(vms, "log")
    assert found.index("up") < found.index("HYPEMAN-READY")
    assert vms.ctl("logs", "log").stdout.splitlines() == ["starting", "up on port 80", "after"]
    ended = vms.wait("ends", "Stopped")
    assert (ended["exit_code"], ended["exit_message"]) == (3, "exited with code 3")
    late = vms.wait("never", "Stopped")
    assert late["exit_message"] == f"boot timed out: program started, {waits}"
    assert vms.unit("never", "ActiveState", "Result") == {"ActiveState": "failed", "Result": "timeout"}


def test_a_check_that_succeeds_while_the_daemon_is_away_is_found(vms: Vms) -> None:
    late, network = (
        f"{KNOCKED}; touch /tmp/mark; exec sleep infinity",
        {"name": "default", "address": ADDRESS},
    )
    vms.define("away", late, ready="exec:test -e /tmp/mark", network=network)
    vms.ctl("start", "away")
    waits_for(vms, "away", "exec test -e /tmp/mark (exec: exited with code 1)")
    with vms.without_daemon():
        vms.knock(ADDRESS)
        vms.host.wait_until(lambda: "HYPEMAN-READY" in markers(vms, "away"))
        assert vms.unit("away", "ActiveState")["ActiveState"] == "activating"
    vms.wait("away", "Running")


def test_run_waits_for_a_check(vms: Vms) -> None:
    vms.ctl("run", "-d", "--name", "ran", "--no-kernel-headers", "--network", "none", "-m", "128M",
            "--ready", "exec:test -e /tmp/mark", "builtin:busybox", "sh", "-c", MARK_LATE)  # fmt: skip
    try:
        vms.ctl("wait", "--timeout", "180s", "ran", timeout=200)
        assert "HYPEMAN-READY" in markers(vms, "ran")
    finally:
        vms.ctl("rm", "--force", "ran")
