# SPDX-License-Identifier: Apache-2.0
"""What the published client says of restarts and of health checks, as keys of a definition: for a new VM, and
for one that is changed. A changed policy is replaced whole, as by the client's own server."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TypeGuard

from hypemand.api.fields import show, without_nulls
from hypemand.config.definition import Definition, Restart
from hypemand.config.ready import Check
from hypemand.config.vmdef import definition_to_json, parse_definition
from hypemand.errors import InvalidDefinition, Problem

# restart_policy.policy in the client's words.
RESTART_POLICIES = {"never": Restart.NO, "always": Restart.ALWAYS, "on_failure": Restart.ON_FAILURE}
POLICY_WORDS = {restart: word for word, restart in RESTART_POLICIES.items()}
# The other fields: their keys in a definition, and what they are where the client does not say.
_FIELDS: Mapping[str, tuple[str, object]] = {
    "backoff": ("restart_backoff", "5s"),
    "max_attempts": ("restart_max_attempts", 0),
    "stable_after": ("restart_stable_after", "10m"),
}
RESTART_FIELDS = ("policy", *_FIELDS)
HEALTH_FAILED = "health_check_failed"
"""restart_status.last_reason of a VM that was restarted because it was unhealthy."""
_OTHER_FORM = "omit it, or use the form with `definition`, which supports more settings"
_CHECK_KINDS = ("http", "tcp", "exec")
_EXAMPLES = {"http": '{"port": 80}', "tcp": '{"port": 80}', "exec": '{"command": ["PROGRAM"]}'}
_CHECK_SETTINGS = ("interval", "timeout", "start_period", "failure_threshold", "success_threshold")
_RESTART_SPANS = ("backoff", "stable_after")
_CHECK_SPANS = ("interval", "timeout", "start_period")
# As Go writes a duration: each number has a unit.
_SPAN = re.compile(r"0|([0-9]+(\.[0-9]+)?(us|ms|s|m|h))+", re.ASCII)
HEALTH_FIELDS = ("type", *_CHECK_KINDS, *_CHECK_SETTINGS)
# The fields of a kind of check: the key of a definition's check that each is.
CHECK_FIELDS: Mapping[str, Mapping[str, str]] = {
    "http": {"port": "port", "path": "path", "expected_status": "status", "scheme": ""},
    "tcp": {"port": ""},
    "exec": {"command": "", "working_dir": ""},
}
CLIENT_NAMES = {"restart": "restart_policy.policy", "health": "health_check"} | {
    key: f"restart_policy.{field}" for field, (key, _) in _FIELDS.items()
}
"""Of keys of a definition, in the client's words."""


def read_restart_policy(value: object, problems: list[Problem]) -> dict[str, object]:
    """The keys of a definition that a `restart_policy` means: all of them, or none if it names no field. What
    is wrong is added to `problems`; what a duration or a number is, the schema of definitions says."""
    if not _is_object(value, "restart_policy", problems):
        return {}
    given = {field: said for field, said in value.items() if said is not None}
    problems += _refuse_unknown("restart_policy", given, RESTART_FIELDS)
    given = _take_spans("restart_policy", given, _RESTART_SPANS, problems)
    known = {field: said for field, said in given.items() if field in RESTART_FIELDS}
    if not known:
        return {}
    word = known.get("policy", "never")
    policy = RESTART_POLICIES.get(word) if isinstance(word, str) else None
    if policy is None:
        hint = "one of " + ", ".join(RESTART_POLICIES)
        problems.append(Problem("", 0, 0, "restart_policy.policy", "is not known", hint))
        return {}
    others = {key: known.get(field, default) for field, (key, default) in _FIELDS.items()}
    return {"restart": policy.value, **others}


def read_health_check(value: object, problems: list[Problem]) -> dict[str, object] | None:
    """The key `health` of a definition that a `health_check` means; None: there is to be no check. What is
    wrong is added to `problems`, and None then."""
    if not _is_object(value, "health_check", problems):
        return None
    given = {field: said for field, said in value.items() if said is not None}
    problems += _refuse_unknown("health_check", given, HEALTH_FIELDS)
    given = _take_spans("health_check", given, _CHECK_SPANS, problems)
    kinds = [kind for kind in _CHECK_KINDS if kind in given]
    if given and not kinds and "type" not in given:
        hint = "http, tcp or exec, with the check itself; none: no check"
        problems.append(Problem("", 0, 0, "health_check.type", "is missing", hint))
        return None
    kind = given.get("type", kinds[0] if len(kinds) == 1 else "none")
    if kind not in ("none", *_CHECK_KINDS):
        problems.append(Problem("", 0, 0, "health_check.type", "is not known", "none, http, tcp or exec"))
        return None
    if kind in _CHECK_KINDS and not kinds:
        hint = f'write "{kind}": {_EXAMPLES[str(kind)]}'
        problems.append(Problem("", 0, 0, f"health_check.{kind}", "is missing", hint))
        return None
    if kinds != [kind] * (kind != "none"):
        what = f"has {' and '.join(kinds) or 'no check'}, and its type is {kind}"
        problems.append(Problem("", 0, 0, "health_check", what, f"give it {kind} alone"))
        return None
    if kind == "none":
        return None
    check = _read_check(str(kind), given[str(kind)], problems)
    if not check:
        return None
    return {key: given[key] for key in _CHECK_SETTINGS if key in given} | check


def _read_check(kind: str, value: object, problems: list[Problem]) -> dict[str, object]:
    """The keys of `health` that a check of this kind means."""
    name = f"health_check.{kind}"
    if not _is_object(value, name, problems):
        return {}
    problems += _refuse_unknown(name, value, tuple(CHECK_FIELDS[kind]))
    given = {field: said for field, said in value.items() if said is not None}
    needed = "command" if kind == Check.EXEC else "port"
    if needed not in given:
        problems.append(Problem("", 0, 0, f"{name}.{needed}", "is missing", ""))
        return {}
    if given.get("scheme", "http") != "http":
        hint = "use an exec, with a client that is in the image"
        problems.append(Problem("", 0, 0, f"{name}.scheme", "is not supported: only http is", hint))
    if kind == Check.TCP:
        return {"tcp": given["port"]}
    if kind == Check.EXEC:
        workdir = {"workdir": given["working_dir"]} if "working_dir" in given else {}
        return {"exec": given["command"], **workdir}
    return {
        "http": {key: given[field] for field, key in CHECK_FIELDS["http"].items() if key and field in given}
    }


def read_changes(
    restart_policy: Mapping[str, object] | None, health_check: Mapping[str, object] | None
) -> dict[str, object]:
    """The keys of a definition that policies change, with their values; a value None: the key is omitted from
    then on. A policy None: it stays as it is. Raises InvalidDefinition."""
    problems: list[Problem] = []
    changes: dict[str, object] = {}
    if restart_policy is not None:
        policy = {"policy": "never", **without_nulls(restart_policy)}
        # a delay that grows cannot be said there: the one that is given holds
        changes = {"restart_backoff_max": None, **read_restart_policy(policy, problems)}
    if health_check is not None:
        changes["health"] = read_health_check(health_check, problems)
    if problems:
        raise InvalidDefinition(problems)
    return changes


def replace_policies(definition: Definition, changes: Mapping[str, object]) -> Definition:
    """The definition with what `read_changes` gave. Raises InvalidDefinition, in the client's words."""
    data = without_nulls({**definition_to_json(definition), **changes})
    try:
        changed = parse_definition(definition.name, data)
    except InvalidDefinition as error:
        raise InvalidDefinition([rename(problem, CLIENT_NAMES) for problem in error.problems]) from None
    if "health" in changes:
        check_health_reach(changed)
    return changed


def rename(problem: Problem, names: Mapping[str, str]) -> Problem:
    """A problem of a key of a definition, by the name that this has elsewhere."""
    head = problem.key.split(".", 1)[0].split("[", 1)[0]
    return replace(problem, key=names.get(head, head) + problem.key[len(head) :])


def check_health_reach(definition: Definition) -> None:
    """InvalidDefinition if the guest could not be reached as its check says, by the rules of the client's own
    server: over a network. (A definition file may have a check of a VM without one.)"""
    health = definition.health
    if health is not None and health.check.check is not Check.EXEC and definition.network is None:
        what, hint = "needs a network, and the VM has none", "enable the network, or use an exec"
        raise InvalidDefinition([Problem("", 0, 0, f"health_check.{health.check.check}", what, hint)])


def _is_object(value: object, name: str, problems: list[Problem]) -> TypeGuard[Mapping[str, object]]:
    if isinstance(value, dict):
        return True
    problems.append(Problem("", 0, 0, name, "is not an object", ""))
    return False


def _take_spans(
    field: str, given: dict[str, object], spans: tuple[str, ...], problems: list[Problem]
) -> dict[str, object]:
    """Without every duration that is not one of Go; how long it may be, the schema of definitions says."""
    taken = dict(given)
    for key in spans:
        said = given.get(key)
        if said is not None and not (isinstance(said, str) and _SPAN.fullmatch(said)):
            del taken[key]
            words = f"{show(said)} is not a duration"
            problems.append(Problem("", 0, 0, f"{field}.{key}", words, "write it like 10s or 1m30s"))
    return taken


def _refuse_unknown(field: str, value: Mapping[str, object], known: tuple[str, ...]) -> list[Problem]:
    return refuse_others(field, value, known, f"allowed: {', '.join(known)}")


def refuse_others(
    field: str, value: Mapping[str, object], known: tuple[str, ...], hint: str = _OTHER_FORM
) -> list[Problem]:
    """Every key of an object but those that are known, unless it is null."""
    return [
        Problem("", 0, 0, f"{field}.{key[:80]}", "is not supported here", hint)
        for key in sorted(value)
        if key not in known and value[key] is not None
    ]
