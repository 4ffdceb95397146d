# SPDX-License-Identifier: Apache-2.0
"""Health checks: the guest's agent makes them, and systemd restarts what is unhealthy."""

from __future__ import annotations

import pytest

from tests.host.vms import Vms

pytestmark = pytest.mark.one_release

# It is healthy as long as its file is there, and says when it is asked to end.
SERVES = """
mkdir -p /www; echo ok >/www/health; httpd -p 8080 -h /www
trap 'echo asked to end; exit 0' TERM; echo up
while :; do sleep 1 & wait $!; done
"""
CHECK = {
    "http": {"port": 8080, "path": "/health"},
    "interval": "200ms",
    "timeout": "10s",
    # until it has succeeded once
    "start_period": "5min",
    "failure_threshold": 2,
}


def wait_health(vms: Vms, name: str, wanted: str) -> None:
    vms.host.wait_until(lambda: vms.show(name)["health_status"]["status"] == wanted, f"{name}: {wanted}")


def test_an_unhealthy_vm_is_shut_down_and_restarted_by_systemd_until_it_gives_up(vms: Vms) -> None:
    limits = {"restart_max_attempts": 1, "restart_backoff": "200ms"}
    name = vms.run("sick", SERVES, restart="on-failure", health=CHECK, **limits)
    vms.wait_console(name, "up")
    wait_health(vms, name, "healthy")
    before = vms.show(name)
    assert before["health_check"]["http"]["port"] == 8080
    vms.execute(name, "rm", "/www/health")
    vms.host.wait_until(lambda: vms.unit(name, "NRestarts")["NRestarts"] == "1")
    assert "asked to end" in "\n".join(vms.console(name))
    after = vms.wait(name, "Running")
    assert after["invocation_id"] != before["invocation_id"]
    assert after["restart_status"]["last_reason"] == "health_check_failed"
    assert "unhealthy: http: status 404" in vms.ctl("history", name).stdout
    wait_health(vms, name, "healthy")
    # the lifecycle state is another matter, and a daemon that starts asks again
    vms.restart_daemon()
    wait_health(vms, name, "healthy")
    vms.execute(name, "rm", "/www/health")
    ended = vms.wait(name, "Stopped")
    assert ended["exit_message"] == "unhealthy: http: status 404"
    assert ended["restart_status"]["blocked_reason"] == "max_attempts_exceeded"
    assert vms.unit(name, "ActiveState", "Result") == {"ActiveState": "failed", "Result": "watchdog"}


def test_a_check_is_executed_where_the_program_is_and_follows_the_definition(vms: Vms) -> None:
    check = {"exec": ["sh", "-c", 'test "$A" = b && test -e mark'], "interval": "200ms", "workdir": "/srv"}
    script = "mkdir -p /srv; touch /srv/mark; echo up; exec sleep infinity"
    vms.define("well", script, env={"A": "b"}, health=check | {"start_period": "0s"})
    vms.ctl("start", "well")
    wait_health(vms, "well", "healthy")
    assert vms.show("well")["state"] == "Running"
    vms.define("well", script, env={"A": "b"}, health="tcp:9")
    assert not vms.show("well")["needs_restart"]
    # failures do not count in its start period
    wait_health(vms, "well", "starting")
    vms.host.wait_until(lambda: "listens" in (vms.show("well")["health_status"]["last_error"] or ""))
    assert vms.unit("well", "ActiveState", "NRestarts") == {"ActiveState": "active", "NRestarts": "0"}
