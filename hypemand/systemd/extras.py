# SPDX-License-Identifier: Apache-2.0
"""Extra unit properties of a definition, from the words of unit files to D-Bus.

systemd's D-Bus names and types differ from those of its unit files (systemd.unit(5) against
org.freedesktop.systemd1(5)): time spans are microseconds under another name, percentages have a property
of their own, sets of CPUs are bit masks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hypemand.config.durations import parse_duration
from hypemand.systemd.sandbox import Property

INFINITY = 2**64 - 1
_SCALE_OF_ALL = 2**32 - 1  # what 100% is to MemoryHighScale and its like
_WEIGHT_IDLE = 0

Words = tuple[str, ...]

_INTERVAL, _BURST = "LogRateLimitIntervalSec", "LogRateLimitBurst"
# what journald has where only one of both is given (journald.conf(5))
_JOURNALD_LIMIT: Mapping[str, Words] = {_INTERVAL: ("30",), _BURST: ("10000",)}
# Of a 0 systemd tells journald nothing (252, 257: unit_export_log_ratelimit_interval), so that its own limit
# would stay. No console reaches this one.
_NO_LIMIT: Mapping[str, Words] = {_INTERVAL: ("1",), _BURST: ("10000000",)}


def microseconds(seconds: float | None) -> int:
    """A time span for D-Bus; None is infinity."""
    return INFINITY if seconds is None else round(seconds * 1e6)


def _words(name: str, words: Words) -> Property:
    return (name, "as", list(words))


def _text(name: str, words: Words) -> Property:
    return (name, "s", words[0])


def _signed(name: str, words: Words) -> Property:
    return (name, "i", int(words[0]))


def _unsigned(name: str, words: Words) -> Property:
    return (name, "u", int(words[0]))


def _weight(name: str, words: Words) -> Property:
    return (name, "t", _WEIGHT_IDLE if words[0] == "idle" else int(words[0]))


def _limit(name: str, words: Words) -> Property:
    (word,) = words
    if word.endswith("%"):
        return (f"{name}Scale", "u", round(int(word[:-1]) * _SCALE_OF_ALL / 100))
    return (name, "t", INFINITY if word == "infinity" else int(word))


def _span(name: str, words: Words) -> Property:
    return (name.removesuffix("Sec") + "USec", "t", microseconds(parse_duration(words[0])))


def _cpus(name: str, words: Words) -> Property:
    mask = 0
    for word in words:
        first, _, last = word.partition("-")
        for cpu in range(int(first), int(last or first) + 1):
            mask |= 1 << cpu
    return (name, "ay", mask.to_bytes((mask.bit_length() + 7) // 8, "little"))


_LISTS = (
    "After",
    "Before",
    "Wants",
    "Requires",
    "Requisite",
    "BindsTo",
    "PartOf",
    "Conflicts",
    "OnFailure",
    "OnSuccess",
    "RequiresMountsFor",
    "Documentation",
)
_CONVERTERS: Mapping[str, Callable[[str, Words], Property]] = {
    **dict.fromkeys(_LISTS, _words),
    "Description": _text,
    "Nice": _signed,
    "OOMScoreAdjust": _signed,
    "StartLimitBurst": _unsigned,
    "LogRateLimitBurst": _unsigned,
    "CPUWeight": _weight,
    "IOWeight": _weight,
    "MemoryHigh": _limit,
    "MemorySwapMax": _limit,
    "RestartSec": _span,
    "StartLimitIntervalSec": _span,
    "LogRateLimitIntervalSec": _span,
    "AllowedCPUs": _cpus,
    "CPUAffinity": _cpus,
}
EXTRA_PROPERTIES = frozenset(_CONVERTERS)


def extra_properties(unit: Mapping[str, Words]) -> list[Property]:
    """The properties of a definition's `unit:`. KeyError for one that the schema does not allow either."""
    return [_CONVERTERS[name](name, words) for name, words in unit.items()]


def derive_log_limit(unit: Mapping[str, Words]) -> Mapping[str, Words]:
    """How many lines of the unit journald is to keep: all, unless the definition has a limit. What a guest
    may write is bounded before that (guest/console)."""
    given = {name: unit[name] for name in _JOURNALD_LIMIT if name in unit}
    limit = {**_JOURNALD_LIMIT, **given}
    if not given or parse_duration(limit[_INTERVAL][0]) == 0 or int(limit[_BURST][0]) == 0:
        return _NO_LIMIT
    return limit
