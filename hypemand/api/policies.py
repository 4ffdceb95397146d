# SPDX-License-Identifier: Apache-2.0
"""What the published client says of restarts, as keys of a definition: for a new VM, and for one that is
changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeGuard

from hypemand.config.definition import Restart
from hypemand.errors import Problem

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
CLIENT_NAMES = {"restart": "restart_policy.policy"} | {
    key: f"restart_policy.{field}" for field, (key, _) in _FIELDS.items()
}
"""Of keys of a definition, in the client's words."""


def read_restart_policy(value: object, problems: list[Problem]) -> dict[str, object]:
    """The keys of a definition that a `restart_policy` means: all of them, or none if it names no field. What
    is wrong is added to `problems`; what a duration or a number is, the schema of definitions says."""
    if not _is_object(value, "restart_policy", problems):
        return {}
    given = {field: said for field, said in value.items() if said is not None}
    problems += refuse_others("restart_policy", given, RESTART_FIELDS)
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


def _is_object(value: object, name: str, problems: list[Problem]) -> TypeGuard[Mapping[str, object]]:
    if isinstance(value, dict):
        return True
    problems.append(Problem("", 0, 0, name, "is not an object", ""))
    return False


def refuse_others(field: str, value: Mapping[str, object], known: tuple[str, ...]) -> list[Problem]:
    """Every key of an object but those that are known, unless it is null."""
    hint = "omit it, or use the form with `definition`, which supports more settings"
    return [
        Problem("", 0, 0, f"{field}.{key[:80]}", "is not supported here", hint)
        for key in sorted(value)
        if key not in known and value[key] is not None
    ]
