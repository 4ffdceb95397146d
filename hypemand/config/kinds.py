# SPDX-License-Identifier: Apache-2.0
"""The kinds of value that the schemas name beside JSON's own: how each is read, written and described.

A key of a schema with `x-size: {…}` has a value of the kind `x-size`, and that is its rule:

    x-size      {minimum, maximum, multiple}: a size as hypemand.config.sizes reads it
    x-duration  {minimum, infinity}: a time span as hypemand.config.durations reads it, minimum in seconds
    x-unit      {kind, …}: a unit property as hypemand.config.unitprops reads it
    x-rate      {minimum, maximum}: a rate as hypemand.config.rates reads it
    x-io-rate   {minimum, maximum}: likewise, written in bytes
    x-iops      {minimum, maximum}: a number of operations, also as a text
    x-cpus      {minimum, maximum}: a number of CPUs, also as a text
    x-ulimit    {maximum, unlimited}: a Ulimit, both limits at once or apart as Docker has them
    x-capability {}: a capability as hypemand.config.capabilities reads it
    x-network   a text of this kind as hypemand.config.netparse reads it
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hypemand.config.capabilities import parse_capability
from hypemand.config.definition import Ulimit
from hypemand.config.durations import format_duration, parse_duration
from hypemand.config.netparse import NetworkText, parse_network_text
from hypemand.config.rates import RATE_EXAMPLES, format_byte_rate, format_rate, parse_rate
from hypemand.config.sizes import format_size, parse_size
from hypemand.config.unitprops import UnitKind, parse_unit_value

Rule = Any

_WHOLE = re.compile(r"[0-9]{1,19}")


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of value.

    `parse(rule, value)`: a value of JSON, of a type that its schema allows, as the daemon has it; raises
    ValueError: what is wrong; what would be right. `write(rule, value)`: the shortest exact JSON of what
    `parse` gave. `describe(rule)`: the values in words, for the reference. `wanted`: the kind in words, for
    errors. `placeholder`: the value's name in a man page.
    """

    parse: Callable[[Rule, Any], object]
    write: Callable[[Rule, Any], object]
    describe: Callable[[Rule], str]
    wanted: str = ""
    placeholder: str = ""


def find_kind(schema: Mapping[str, Any]) -> tuple[Kind, Rule] | None:
    """The kind that the values of a schema have, and its rule; None: one of JSON's own."""
    return next(((kind, schema[key]) for key, kind in KINDS.items() if key in schema), None)


def _parse_size(rule: Rule, value: Any) -> int:
    size = parse_size(int(value) if isinstance(value, float) else value)
    low, high, multiple = (parse_size(rule[key]) for key in ("minimum", "maximum", "multiple"))
    # as written, but a size of ten digits is hard to read
    shown = value if isinstance(value, str) else format_size(size)
    if not low <= size <= high:
        kind = "small" if size < low else "large"
        raise ValueError(f"{shown} is too {kind}; write {format_size(low)} to {format_size(high)}")
    if size % multiple:
        raise ValueError(
            f"{shown} is not a multiple of {format_size(multiple)}; write for example {rule['minimum']}"
        )
    return size


def _parse_duration(rule: Rule, value: Any) -> float | None:
    seconds = parse_duration(value)
    if seconds is None and not rule["infinity"]:
        raise ValueError("infinity is not allowed here; write for example 90s")
    if seconds is not None and seconds < rule["minimum"]:
        raise ValueError(f"{value} is too short; write {rule['minimum']}s or more")
    return seconds


def _parse_io_rate(rule: Rule, value: str) -> int:
    return _parse_rate(rule, value, _describe_range(rule))


def _parse_rate(rule: Rule, value: str, examples: str = RATE_EXAMPLES) -> int:
    rate = parse_rate(value, examples)
    if not parse_rate(rule["minimum"]) <= rate <= parse_rate(rule["maximum"]):
        kind = "slow" if rate < parse_rate(rule["minimum"]) else "fast"
        raise ValueError(f"{value} is too {kind}; write {rule['minimum']} to {rule['maximum']}")
    return rate


def _parse_number(rule: Rule, value: Any) -> float:
    """A number, also as a text, as an option has it."""
    example = rule["minimum"]
    try:
        number = float(value)
    except ValueError:
        raise ValueError(f"{value[:40]!r} is not a number; write for example {example}") from None
    if not example <= number <= rule["maximum"]:
        kind = "large" if number > example else "small"
        raise ValueError(f"{value} is too {kind}; write {example} to {rule['maximum']}")
    return number


def _parse_iops(rule: Rule, value: Any) -> int:
    number = _parse_number(rule, value)
    if not number.is_integer():
        raise ValueError(f"{value} is not a whole number; write for example {rule['minimum']}")
    return int(number)


def _describe_range(rule: Rule) -> str:
    return f"{rule['minimum']} to {rule['maximum']}"


def _write_unit(rule: Rule, words: tuple[str, ...]) -> object:
    kind = UnitKind(rule["kind"])
    if kind.is_list:
        return list(words)
    return int(words[0]) if kind is UnitKind.INTEGER else words[0]


_UNIT_WORDS = {
    "units": "names of units",
    "paths": "absolute paths",
    "uris": "references",
    "cpus": "CPUs and ranges of CPUs",
    "limit": "size, percentage or `infinity`",
    "duration": "time span",
    "text": "string",
}


def _describe_unit(rule: Rule) -> str:
    if "minimum" in rule:
        words = "".join(f" or `{word}`" for word in rule.get("words", []))
        return f"{rule['minimum']} to {rule['maximum']}{words}"
    return _UNIT_WORDS[rule["kind"]]


def _parse_ulimit(rule: Rule, value: Any) -> Ulimit:
    if isinstance(value, Mapping):
        if set(value) != {"soft", "hard"}:
            raise ValueError(
                "must have exactly the keys soft and hard; write for example {soft: 1024, hard: 4096}"
            )
        soft, hard = value["soft"], value["hard"]
    else:
        soft, colon, hard = value.partition(":") if isinstance(value, str) else (value, "", "")
        hard = hard if colon else soft
    made = Ulimit(_parse_limit(rule, soft), _parse_limit(rule, hard))
    if made.hard is not None and (made.soft is None or made.soft > made.hard):
        shown = "unlimited" if made.soft is None else made.soft
        raise ValueError(f"the soft limit {shown} is above the hard limit {made.hard}; swap them")
    return made


def _parse_limit(rule: Rule, value: Any) -> int | None:
    """One limit; -1 is Docker's other word for unlimited."""
    whole = isinstance(value, float) and value.is_integer()
    text = str(int(value) if whole else value).strip()
    cure = "write a number or unlimited" if rule["unlimited"] else f"write 0 to {rule['maximum']}"
    if text in ("unlimited", "-1"):
        if not rule["unlimited"]:
            raise ValueError(f"{text} is more than the guest's kernel allows; {cure}")
        return None
    if isinstance(value, bool) or _WHOLE.fullmatch(text) is None:
        raise ValueError(f"{text[:40]!r} is not a limit; {cure}")
    if int(text) > rule["maximum"]:
        raise ValueError(f"{text} is too large; {cure}")
    return int(text)


def _write_ulimit(_: Rule, limit: Ulimit) -> object:
    soft, hard = (word if word == "unlimited" else int(word) for word in str(limit).split(":"))
    return hard if soft == hard else {"soft": soft, "hard": hard}


KINDS: Mapping[str, Kind] = {
    "x-size": Kind(
        parse=_parse_size,
        write=lambda _, size: format_size(size),
        describe=lambda rule: f"size, {_describe_range(rule)}",
        wanted="a size",
        placeholder="SIZE",
    ),
    "x-duration": Kind(
        parse=_parse_duration,
        write=lambda _, seconds: format_duration(seconds),
        describe=lambda rule: (
            f"time span, at least {rule['minimum']}s" + (", or `infinity`" if rule["infinity"] else "")
        ),
        wanted="a time span",
        placeholder="TIME",
    ),
    "x-rate": Kind(
        parse=_parse_rate,
        write=lambda _, rate: format_rate(rate),
        describe=lambda rule: f"rate, {_describe_range(rule)}",
        wanted="a rate",
        placeholder="RATE",
    ),
    "x-io-rate": Kind(
        parse=_parse_io_rate,
        write=lambda _, rate: format_byte_rate(rate),
        describe=lambda rule: f"rate, {_describe_range(rule)}",
        wanted="a rate",
        placeholder="RATE",
    ),
    "x-iops": Kind(
        parse=_parse_iops,
        write=lambda _, number: number,
        describe=_describe_range,
        wanted="a number",
        placeholder="N",
    ),
    "x-cpus": Kind(
        parse=_parse_number,
        write=lambda _, number: int(number) if number.is_integer() else number,
        describe=_describe_range,
        wanted="a number",
        placeholder="CPUS",
    ),
    "x-ulimit": Kind(
        parse=_parse_ulimit,
        write=_write_ulimit,
        describe=lambda rule: (
            ("number, " + ("`unlimited`, " if rule["unlimited"] else f"at most {rule['maximum']}, "))
            + "`SOFT:HARD`, or a mapping with `soft` and `hard`"
        ),
        wanted="a limit",
        placeholder="LIMIT",
    ),
    "x-capability": Kind(
        parse=lambda _, text: parse_capability(text),
        write=lambda _, text: text,
        describe=lambda _: "name of capabilities(7), or `ALL`",
        wanted="a capability",
        placeholder="CAP",
    ),
    "x-unit": Kind(parse=parse_unit_value, write=_write_unit, describe=_describe_unit),
    "x-network": Kind(
        parse=parse_network_text,
        write=lambda _, text: text,
        describe=lambda rule: NetworkText(rule).words,
    ),
}
