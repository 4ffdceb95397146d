# SPDX-License-Identifier: Apache-2.0
"""What of a changed definition a VM that runs does not have yet, in words. Pure."""

from __future__ import annotations

from hypemand.config.definition import Definition
from hypemand.config.vmdef import definition_to_json
from hypemand.vm.running import lacks_watchdog, runtime_part

# a longer value is not shown: it is in both documents
_MAX_VALUE = 40
_UNSET = "unset"
_WATCHDOG = "restart when unhealthy"


def describe_changes(running: Definition, defined: Definition) -> tuple[str, ...]:
    """`memory 128M → 192M` for each key that a restart would change, in the order of the schema; of a list, a
    mapping or a long text the key alone. Also what its unit cannot do for a health check that it has taken.
    """
    before, after = (definition_to_json(runtime_part(each)) for each in (running, defined))
    # each has the keys in the schema's order, less those that are not set
    keys = [key for key in {**after, **before} if before.get(key) != after.get(key)]
    changes = tuple(_describe(key, before.get(key), after.get(key)) for key in keys)
    return (*changes, _WATCHDOG) if lacks_watchdog(running, defined) else changes


def _describe(key: str, before: object, after: object) -> str:
    words = [_format(value) for value in (before, after)]
    old, new = words
    return key if old is None or new is None else f"{key} {old} → {new}"


def _format(value: object) -> str | None:
    if value is None:
        return _UNSET
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float) and len(str(value)) <= _MAX_VALUE and str(value).isprintable():
        return str(value)
    return None
