# SPDX-License-Identifier: Apache-2.0
"""The key `health` of definitions."""

from __future__ import annotations

from typing import Any

import pytest

from hypemand.config.definition import Restart
from hypemand.config.health import Health, OnFailure, health_fields
from hypemand.config.ready import Check, Ready
from hypemand.config.vmdef import definition_to_json, parse_definition
from hypemand.errors import InvalidDefinition


def parse(health: Any, **keys: object) -> Health | None:
    """It, as it is read, and read again."""
    made = parse_definition("web", {"image": "alpine", "health": health, **keys})
    assert parse_definition("web", definition_to_json(made)) == made
    return made.health


def test_short_forms_and_defaults() -> None:
    assert parse("tcp:5432") == Health(Ready(Check.TCP, port=5432, interval=10.0))
    made = parse("http:8080/health")
    assert made == Health(Ready(Check.HTTP, port=8080, path="/health", interval=10.0), 2.0, 30.0, 3, 1)
    assert parse("exec:test -e mark") == Health(Ready(Check.EXEC, argv=("test", "-e", "mark"), interval=10.0))


def test_every_key_is_carried_over() -> None:
    made = parse(
        {
            "exec": ["x"],
            "workdir": "/srv",
            "interval": "1s",
            "timeout": "500ms",
            "start_period": "0s",
            "failure_threshold": 5,
            "success_threshold": 2,
            "on_failure": "restart",
        }
    )
    check = Ready(Check.EXEC, argv=("x",), interval=1.0)
    assert made == Health(check, 0.5, 0.0, 5, 2, "/srv", OnFailure.RESTART)
    assert health_fields(made)[-1] == ("timeout", "500")


@pytest.mark.parametrize(
    ("health", "words"),
    [
        ("notify", "health: cannot be notify; write one of tcp, http, exec"),
        ("log:x", "health: cannot be log; write one of tcp, http, exec"),
        ({"interval": "1s"}, "health: has no check; write one of tcp, http, exec"),
        (
            {"tcp": 1, "exec": ["x"]},
            "health: has tcp and exec, which are too many; write one of tcp, http, exec",
        ),
        ({"tcp": 80, "workdir": "/x"}, "health.workdir: is of an exec; remove it"),
        ("tcp:70000", "health: 70000 is not a port; write 1 to 65535"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(health: Any, words: str) -> None:
    with pytest.raises(InvalidDefinition) as caught:
        parse(health)
    assert [f"{p.key}: {p.message}; {p.hint}" for p in caught.value.problems] == [words]


def test_what_the_schema_refuses() -> None:
    for health in ({"tcp": 1, "failure_threshold": 0}, {"tcp": 1, "on_failure": "stop"}, {"notify": True}, 5):
        with pytest.raises(InvalidDefinition):
            parse(health)


def test_it_needs_the_agent() -> None:
    with pytest.raises(InvalidDefinition, match="needs the guest agent"):
        parse("tcp:80", guest_agent=False)


def test_on_failure_is_the_restart_policys_unless_it_says_otherwise() -> None:
    check = Ready(Check.TCP, port=1)
    assert [Health(check).restarts(policy) for policy in Restart] == [False, True, True]
    assert not Health(check, on_failure=OnFailure.NONE).restarts(Restart.ALWAYS)
    assert Health(check, on_failure=OnFailure.RESTART).restarts(Restart.NO)
