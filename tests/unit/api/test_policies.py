# SPDX-License-Identifier: Apache-2.0
"""health_check and restart_policy of a VM that is there, changed by PATCH."""

from pathlib import Path

import pytest

from hypemand.model.health import HealthState
from hypemand.model.state import State
from tests.unit.api.harness import Api, Json, drive

PROBE = {"type": "exec", "exec": {"command": ["probe"]}, "interval": "30s"}
OFTEN = {"policy": "always", "backoff": "1s", "max_attempts": 2, "stable_after": "1m"}


async def patch(api: Api, body: Json) -> Json:
    """What the API shows of the VM then, with status 200."""
    answer = await api.ask("PATCH", "/instances/web", body)
    assert answer.status == 200, answer.json
    return answer.json


def test_a_policy_that_is_changed_outlasts_the_daemon_and_is_replaced_whole(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        await api.host.put("web", restart_backoff_max="5min", tags={"team": "shop"})
        changed = await patch(api, {"restart_policy": OFTEN, "health_check": PROBE, "ttl": "1h"})
        definition = api.host.vm().record.definition
        assert changed["restart_policy"] == OFTEN
        assert changed["health_check"]["interval"] == "30s"
        assert (changed["needs_restart"], changed["pending_changes"]) == (False, [])
        assert (definition.restart_backoff_max, definition.tags) == (0.0, {"team": "shop"})
        await api.host.restart_daemon()
        assert api.host.vm().record.definition == definition
        assert api.host.vm().record.expires_at is not None
        less = await patch(api, {"restart_policy": {"policy": "on_failure"}})
        defaults = {"policy": "on_failure", "backoff": "5s", "max_attempts": 0, "stable_after": "10m"}
        assert (less["restart_policy"], less["expires_at"]) == (defaults, changed["expires_at"])
        assert less["health_check"] == changed["health_check"]
        none = await patch(api, {"restart_policy": {}, "health_check": {"type": "none"}})
        assert (none["restart_policy"], none["health_check"]) == (defaults | {"policy": "never"}, None)

    drive(tmp_path, scenario)


def test_a_vm_that_runs_has_its_check_at_once_and_its_restart_policy_with_the_next_start(
    tmp_path: Path,
) -> None:
    async def scenario(api: Api) -> None:
        host = api.host
        await host.put("web", State.RUNNING)
        shown = await patch(api, {"health_check": PROBE, "restart_policy": {"policy": "always"}})
        assert shown["health_check"]["exec"]["command"] == ["probe"]
        await host.until_true(lambda: len(host.vmm().checks) == 1)
        await host.vmm().checks[0].report("healthy", successes=1)
        await host.until_true(lambda: host.vm().health.status.state is HealthState.HEALTHY)
        assert (shown["needs_restart"], shown["restart_policy"]["policy"]) == (True, "never")
        assert shown["pending_changes"] == ["restart no → always", "restart_backoff 100ms → 5s",
            "restart_max_attempts 4 → 0", "restart_stable_after 2min → 10min",
            "restart when unhealthy"]  # fmt: skip
        assert (await patch(api, {"health_check": {}}))["health_check"] is None
        await host.vmm().checks[0].ended.wait()
        await host.manager.restart_vm("web")
        await host.until(State.RUNNING)
        after = (await api.ask("GET", "/instances/web")).json
        assert (after["needs_restart"], after["restart_policy"]["policy"]) == (False, "always")

    drive(tmp_path, scenario)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"restart_policy": "always"}, "restart_policy: is not an object"),
        ({"restart_policy": {"policy": "sometimes"}}, "restart_policy.policy"),
        ({"restart_policy": {"backoff": "soon"}}, "restart_policy.backoff"),
        ({"restart_policy": {"retries": 1}}, "retries: is not supported here; allowed: policy, backoff,"),
        (
            {"restart_policy": {"backoff": 5}},
            "restart_policy.backoff: 5 is not a duration; write it like 10s",
        ),
        ({"health_check": PROBE | {"interval": "10"}}, "health_check.interval: '10' is not a duration"),
        ({"health_check": {"type": "http"}}, 'health_check.http: is missing; write "http": {"port": 80}'),
        ({"restart_policy": None, "health_check": None}, "nothing"),
        ({"health_check": {"interval": "5s"}}, "health_check.type"),
        ({"health_check": {"tcp": {"port": 80}}}, "health_check.tcp"),
        ({"health_check": {"exec": {"command": []}}}, "health_check.exec"),
        ({"health_check": PROBE | {"interval": "0s"}}, "health_check.interval"),
    ],
)
def test_a_wrong_policy_is_refused_by_the_clients_name_and_nothing_is_changed(
    tmp_path: Path, body: Json, words: str
) -> None:
    async def scenario(api: Api) -> None:
        await api.host.put("web")
        before = api.host.vm().record
        ttl = {} if words == "nothing" else {"ttl": "1h"}
        answer = await api.ask("PATCH", "/instances/web", body | ttl)
        text = f"{answer.json['message']} {[problem['key'] for problem in answer.json.get('problems', [])]}"
        assert (answer.status, words in text) == (400, True), answer.json
        assert api.host.vm().record == before

    drive(tmp_path, scenario)


def test_a_vm_without_agent_has_no_check_and_one_of_a_file_is_changed_there(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        await api.host.put("web", guest_agent=False)
        assert (await api.ask("PATCH", "/instances/web", {"health_check": PROBE})).status == 400
        api.host.write("filed")
        await api.host.reload()
        before = api.host.vm("filed").record
        answer = await api.ask("PATCH", "/instances/filed", {"restart_policy": OFTEN})
        assert answer.code == "invalid_state"
        assert "filed.yaml" in answer.json["message"]
        assert answer.json["hint"] == "change it in that file"
        answer = await api.ask("PATCH", "/instances/filed", {"ttl": "1h", "restart_policy": OFTEN})
        assert answer.json["hint"] == "a VM with a file does not expire; change the rest in that file"
        assert api.host.vm("filed").record == before
        answer = await api.ask("PATCH", "/instances/filed", {"autostart": True})
        assert answer.json["hint"] == "allowed: ttl, expires_at, health_check, restart_policy"

    drive(tmp_path, scenario)


def test_why_a_vm_is_not_restarted_stays_when_its_policy_is_changed(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        policy = {"restart": "on-failure", "restart_max_attempts": 1, "restart_backoff": "1ms"}
        await api.host.put("web", State.RUNNING, health={"exec": ["probe"], "start_period": "0s"}, **policy)
        for run in (1, 2):
            await api.host.until_true(lambda run=run: api.host.vmms.runs["web"] == run)  # type: ignore[misc]
            await api.host.until_true(lambda: "web" in api.host.vmms.live and len(api.host.vmm().checks) == 1)
            await api.host.vmm().checks[0].report("unhealthy", "down", failures=3)
        await api.host.until_ended()
        before = (await api.ask("GET", "/instances/web")).json["restart_status"]
        assert (before["attempts"], before["blocked_reason"]) == (1, "max_attempts_exceeded")
        assert before["last_attempt_at"] is not None
        for policy in ({}, {"policy": "always", "max_attempts": 9}):
            assert (await patch(api, {"restart_policy": policy}))["restart_status"] == before

    drive(tmp_path, scenario)
