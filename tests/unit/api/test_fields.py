# SPDX-License-Identifier: Apache-2.0
"""Values of bodies and queries: what each kind takes, and that the rest is refused, by name and in bounds."""

import gc
import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from hypemand.api.bodies.guest import ExecOpening
from hypemand.api.bodies.host import CreateImage, CreateToken, CreateVolume, ListVolumes, PruneImages
from hypemand.api.bodies.instances import ListInstances, ReadLogs, StopInstance
from hypemand.api.fields import list_rules, read_form, read_words
from hypemand.api.requests import parse_object
from hypemand.errors import InvalidRequest
from hypemand.model.logs import LogSource
from hypemand.model.state import State
from hypemand.model.tokens import Scope
from tests.unit.api.forms import BODIES


@pytest.mark.parametrize("operation", sorted(BODIES))
def test_every_default_is_valid(operation: str) -> None:
    for key, rule in list_rules(BODIES[operation]).items():
        if rule.default is not None:
            rule.kind.read(rule.default, key)


def test_omitted_fields_have_their_defaults() -> None:
    token = read_form(CreateToken, {"name": "ci", "expires": None})
    assert (token.scope, token.vms, token.tags, token.expires) == (Scope.ADMIN, (), {}, None)
    logs = read_words(ReadLogs, [])
    assert (logs.tail, logs.follow, logs.source) == (100, False, LogSource.APP)
    given = read_words(ReadLogs, [("tail", "all"), ("follow", "true"), ("source", "vmm")])
    assert (given.tail, given.follow, given.source) == (None, True, LogSource.VMM)


def test_tags_of_a_query_are_one_parameter_each() -> None:
    found = read_words(ListInstances, [("tags[team]", "x"), ("state", "Running"), ("tags[a[b]", "y")])
    assert (found.state, found.tags) == (State.RUNNING, {"team": "x", "a[b": "y"})


@pytest.mark.parametrize(
    ("form", "body", "message"),
    [
        (PruneImages, {"all": "yes"}, "all: 'yes' is neither true nor false"),
        (PruneImages, {"all": None}, "all: null is neither true nor false"),
        (PruneImages, {"all": 1}, "all: 1 is neither true nor false"),
        (PruneImages, {"alle": True, "b": 1}, "unknown field: alle, b; allowed: all, dry_run"),
        (CreateToken, {}, "name: must be a string that is not empty"),
        (CreateToken, {"name": "a\0"}, "name: must be a string that is not empty"),
        (CreateToken, {"name": "a", "scope": None}, "scope: is missing; one of read, operate, admin"),
        (CreateToken, {"name": "a", "scope": "x"}, "scope: 'x' is not known; one of read, operate, admin"),
        (CreateToken, {"name": "a", "scope": ["read"]}, 'scope: ["read"] is not known'),
        (CreateToken, {"name": "a", "vms": "x"}, "vms: must be a list of strings"),
        (CreateToken, {"name": "a", "vms": None}, "vms: must be a list of strings"),
        (CreateToken, {"name": "a", "vms": [5]}, "vms: 5 is not a string"),
        (CreateToken, {"name": "a", "tags": ["x"]}, "tags: must be an object of strings"),
        (CreateToken, {"name": "a", "tags": {"k": 1}}, "tags.k: 1 is not a string"),
        (CreateToken, {"name": "a", "expires": "0s"}, "expires: '0s' is not a time above zero"),
        (CreateImage, {"name": "a", "credentials": {"user": "x"}}, "unknown field of credentials: user"),
        (CreateImage, {"name": "a", "credentials": {"username": ""}}, "credentials.username: must be"),
        (CreateVolume, {"name": "a", "size_gb": "1"}, "size_gb: must be a whole number from 1 to 999999999"),
        (CreateVolume, {"name": "a", "size": True}, "size: is neither a string nor a number"),
        (ExecOpening, {"command": []}, "command: must be a list of at least one string"),
        (ExecOpening, {"command": [""]}, "command: its first word is empty"),
        (ExecOpening, {"command": ["a", "\0"]}, "command: a string contains a NUL byte"),
        (ExecOpening, {"command": ["a"], "env": {"A=": "b"}}, "env: 'A=' cannot be the name of a variable"),
        (
            ExecOpening,
            {"command": ["a"], "umask": 512},
            "umask: must be a whole number from 0 to 511, ",
        ),
        (ExecOpening, {"command": ["a"], "rows": 0}, "rows: must be a whole number from 1 to 65535"),
        (ExecOpening, {"command": ["a"], "timeout": -1}, "timeout: must be a non-negative number of seconds"),
        (StopInstance, {"timeout": True}, "timeout: true is not a time above zero"),
    ],
)
def test_what_is_not_valid_is_refused_by_name(form: type[Any], body: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_form(form, body)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("form", "words", "message"),
    [
        (ReadLogs, [("follow", "yes")], "follow: 'yes' is neither true nor false"),
        (ReadLogs, [("follow", "true"), ("follow", "true")], "follow: given more than once"),
        (ReadLogs, [("tail", "-1")], "tail: '-1' is not a number of lines"),
        (ReadLogs, [("source", "all")], "source: 'all' is not known; one of app, vmm, hypeman"),
        (ListVolumes, [("tags[a]", "1"), ("tags[a]", "2")], "tags[a]: given more than once"),
        (ListVolumes, [("tags", "1")], "unknown parameter: tags; allowed: tags[NAME]"),
        (ReadLogs, [("tags[a]", "1")], "unknown parameter: tags[a]; allowed: tail, follow"),
    ],
)
def test_a_wrong_query_is_refused_by_name(
    form: type[Any], words: list[tuple[str, str]], message: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_words(form, words)
    assert str(caught.value).startswith(message)


HOSTILE: dict[str, tuple[type[Any], Callable[[int], dict[str, object]]]] = {
    "unknown keys": (PruneImages, lambda size: {f"k{number}": 1 for number in range(size)}),
    "a long key": (PruneImages, lambda size: {"k" * size * 8: 1}),
    "a long value": (PruneImages, lambda size: {"all": "x" * size * 8}),
    "a deep value": (PruneImages, lambda size: {"all": [[1]] * size}),
    "a long list": (ExecOpening, lambda size: {"command": ["a"] * size + [5]}),
    "a large map": (
        CreateVolume,
        lambda size: {"name": "a", "tags": {f"k{n}": "v" for n in range(size)} | {"b": 5}},
    ),
    "a long time": (StopInstance, lambda size: {"timeout": "1s" * size * 4 + "?"}),
    "digits": (CreateVolume, lambda size: {"name": "a", "size": "0.1" + " " * size * 8}),
}


def _cost(form: type[Any], body: dict[str, object]) -> float:
    """Seconds of CPU, the best of some, without those of the garbage collector."""
    costs = []
    gc.disable()
    try:
        for _ in range(5):
            begun = time.process_time()
            with pytest.raises(InvalidRequest):
                read_form(form, body)
            costs.append(time.process_time() - begun)
    finally:
        gc.enable()
    return min(costs)


@pytest.mark.parametrize("kind", list(HOSTILE))
def test_a_hostile_body_costs_as_much_as_it_is_long_and_is_not_sent_back(kind: str) -> None:
    form, build = HOSTILE[kind]
    small, large = (parse_object(json.dumps(build(size))) for size in (10_000, 80_000))
    with pytest.raises(InvalidRequest) as caught:
        read_form(form, large)
    assert len(str(caught.value)) < 1500
    # what is quadratic costs 64 times as much
    assert _cost(form, large) < 32 * _cost(form, small) + 0.02
