# SPDX-License-Identifier: Apache-2.0
"""The key `ready` of a definition: plain values to a Ready and back, and what is wrong in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hypemand.config.durations import format_duration, parse_duration
from hypemand.config.mode import Mode
from hypemand.config.patterns import check_pattern
from hypemand.config.ready import Check, Ready
from hypemand.config.source import KeyPath, Source
from hypemand.config.unitprops import parse_unit_value
from hypemand.errors import Problem

_PORT = re.compile(r"[0-9]{1,5}")
_TEXT_FORMS = "tcp:PORT, http:PORT/PATH, exec:COMMAND, notify, notify:UNIT or log:REGEX"
MAX_ARGUMENTS = 64
MAX_ARGUMENT_BYTES = 4096


def parse_ready_text(text: str) -> dict[str, Any]:
    """The mapping that a short form means, as `tcp:5432`. Raises ValueError: what is wrong; what would be
    right."""
    kind, colon, rest = text.partition(":")
    match kind:
        case Check.TCP if _PORT.fullmatch(rest):
            return {"tcp": int(rest)}
        case Check.HTTP if _PORT.fullmatch(port := rest.partition("/")[0]):
            return {"http": {"port": int(port), "path": rest[len(port) :] or "/"}}
        case Check.EXEC if rest:
            try:
                return {"exec": shlex.split(rest)}
            except ValueError as error:
                raise ValueError(f"{rest[:80]!r} is not a command: {error}; close the quotes") from None
        case Check.NOTIFY if not colon or rest:
            return {"notify": rest or True}
        case Check.LOG if rest:
            return {"log": rest}
    raise ValueError(f"{text[:80]!r} is not a check; write {_TEXT_FORMS}")


def find_ready_problems(source: Source, data: Mapping[str, Any]) -> Iterator[Problem]:
    """What the schema cannot say of `ready`, whose types are right."""
    said = data.get("ready")
    problems = [] if said is None else list(find_check_problems(source, "ready", said, tuple(Check)))
    yield from problems
    if said is None or problems:
        return
    keys = read_check_keys(said)
    if isinstance(keys.get("notify"), str) and data.get("mode") == Mode.EXEC:
        what = f"names the unit {keys['notify']}, which there is only in systemd mode"
        place: KeyPath = ("ready",) if isinstance(said, str) else ("ready", "notify")
        yield source.problem(place, what, "write notify: true, or mode: systemd")


def read_check_keys(said: Any) -> Mapping[str, Any]:
    """The mapping that a check is, also one in its short form. ValueError as of `parse_ready_text`."""
    return parse_ready_text(said) if isinstance(said, str) else said


def find_check_problems(source: Source, key: str, said: Any, kinds: Sequence[Check]) -> Iterator[Problem]:
    """What the schema cannot say of a check of one of these kinds, the value of `key`."""
    try:
        keys = read_check_keys(said)
    except ValueError as error:
        yield _problem(source, (key,), error)
        return
    checks = [word for word in keys if word in set(Check)]
    if len(checks) != 1 or checks[0] not in kinds:
        what = f"has {' and '.join(checks)}, which are too many" if len(checks) > 1 else "has no check"
        what = f"cannot be {checks[0]}" if len(checks) == 1 else what
        yield source.problem((key,), what, f"write one of {', '.join(kinds)}")
        return
    place: KeyPath = (key,) if isinstance(said, str) else (key, checks[0])
    try:
        _check_value(Check(checks[0]), keys[checks[0]])
    except ValueError as error:
        yield _problem(source, place, error)


def _problem(source: Source, place: KeyPath, error: ValueError) -> Problem:
    what, _, hint = str(error).partition("; ")
    return source.problem(place, what, hint)


def _check_value(check: Check, value: Any) -> None:
    match check:
        case Check.TCP:
            _check_port(value)
        case Check.HTTP:
            _check_port(value["port"])
            if not re.fullmatch(r"/[!-~]{0,1023}", value.get("path", "/")):
                raise ValueError("has a path that cannot stand in a request; encode it, as /a%20b")
        case Check.EXEC:
            _check_argv(value)
        case Check.NOTIFY:
            if value is False:
                raise ValueError("is false; write notify: true, or remove ready")
            if isinstance(value, str) and len(parse_unit_value({"kind": "units"}, [value])) != 1:
                raise ValueError(f"{value[:80]!r} is more than one unit; write the name of one")
        case Check.LOG:
            check_pattern(value)


def _check_port(port: int) -> None:
    if not 1 <= port <= 65535:
        raise ValueError(f"{port} is not a port; write 1 to 65535")


def _check_argv(argv: list[str]) -> None:
    if not argv or not argv[0]:
        raise ValueError('has no command; write for example ["pg_isready", "-q"]')
    if len(argv) > MAX_ARGUMENTS or sum(len(word.encode("utf-8", "replace")) for word in argv) > (
        MAX_ARGUMENT_BYTES
    ):
        raise ValueError(
            f"is longer than {MAX_ARGUMENTS} words or {MAX_ARGUMENT_BYTES} bytes; put it into a script"
        )
    if any("\ud800" <= c <= "\udfff" for word in argv for c in word):
        raise ValueError("has an unpaired surrogate, which is not a character; remove it")


def make_ready(said: Any) -> Ready | None:
    """The value of `ready`, which has no problems. None: there is none."""
    return None if said is None else make_check(said)


def make_check(said: Any) -> Ready:
    """A check that has no problems."""
    keys = read_check_keys(said)
    check = next(check for check in Check if check in keys)
    value = keys[check]
    values: dict[str, Any] = {}
    if "interval" in keys:
        values["interval"] = parse_duration(keys["interval"])
    match check:
        case Check.TCP:
            values["port"] = int(value)
        case Check.HTTP:
            status = value.get("status")
            values |= {"port": int(value["port"]), "path": value.get("path", "/")}
            values["status"] = None if status is None else int(status)
        case Check.EXEC:
            values["argv"] = tuple(value)
        case Check.NOTIFY:
            values["unit"] = value.strip() if isinstance(value, str) else None
        case Check.LOG:
            values["pattern"] = value
    return Ready(check, **values)


def ready_to_json(ready: Ready) -> dict[str, object]:
    """As make_ready reads it."""
    value: object
    match ready.check:
        case Check.TCP:
            value = ready.port
        case Check.HTTP:
            status = {} if ready.status is None else {"status": ready.status}
            value = {"port": ready.port, "path": ready.path} | status
        case Check.EXEC:
            value = list(ready.argv)
        case Check.NOTIFY:
            value = True if ready.unit is None else ready.unit
        case Check.LOG:
            value = ready.pattern
    return {ready.check.value: value, "interval": format_duration(ready.interval)}
