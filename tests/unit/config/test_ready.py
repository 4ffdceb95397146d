# SPDX-License-Identifier: Apache-2.0
"""The readiness check of a definition: what can be written, what it means, and what the guest is told."""

from __future__ import annotations

from typing import Any

import pytest

from hypemand.config.patterns import MAX_DEPTH, MAX_PATTERN, check_pattern
from hypemand.config.ready import Check, Ready, ready_fields
from hypemand.config.vmdef import definition_to_json, parse_definition
from hypemand.errors import InvalidDefinition


def read(ready: Any, **keys: Any) -> Ready | None:
    definition = parse_definition("web", {"image": "x", "ready": ready, **keys})
    assert parse_definition("web", definition_to_json(definition)) == definition
    return definition.ready


def problem(ready: Any, **keys: Any) -> str:
    with pytest.raises(InvalidDefinition) as raised:
        parse_definition("web", {"image": "x", "ready": ready, **keys})
    (one,) = raised.value.problems
    return f"{one.key}: {one.message}; {one.hint}"


@pytest.mark.parametrize(
    ("written", "ready", "words"),
    [
        ("tcp:5432", Ready(Check.TCP, port=5432), "tcp 5432"),
        ({"tcp": 5432, "interval": "200ms"}, Ready(Check.TCP, port=5432, interval=0.2), "tcp 5432"),
        ("http:80", Ready(Check.HTTP, port=80), "http 80/"),
        ("http:8080/a?b=c", Ready(Check.HTTP, port=8080, path="/a?b=c"), "http 8080/a?b=c"),
        (
            {"http": {"port": 8080, "path": "/up", "status": 204}},
            Ready(Check.HTTP, port=8080, path="/up", status=204),
            "http 8080/up",
        ),
        ('exec:sh -c "a b"', Ready(Check.EXEC, argv=("sh", "-c", "a b")), "exec sh -c a b"),
        ({"exec": ["check-it"]}, Ready(Check.EXEC, argv=("check-it",)), "exec check-it"),
        ("notify", Ready(Check.NOTIFY), "notify"),
        ({"notify": True}, Ready(Check.NOTIFY), "notify"),
        ("notify:db.service", Ready(Check.NOTIFY, unit="db.service"), "notify of db.service"),
        ("log:^ready: \\d+$", Ready(Check.LOG, pattern="^ready: \\d+$"), "log ^ready: \\d+$"),
        ({"log": "a|b"}, Ready(Check.LOG, pattern="a|b"), "log a|b"),
    ],
)
def test_what_can_be_written(written: Any, ready: Ready, words: str) -> None:
    assert read(written) == ready
    assert ready.words == words


def test_no_check_is_none_and_is_not_written() -> None:
    definition = parse_definition("web", {"image": "x"})
    assert definition.ready is None
    assert "ready" not in definition_to_json(definition)


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("udp:53", "ready: 'udp:53' is not a check; write tcp:PORT, http:PORT/PATH"),
        ("tcp:", "ready: 'tcp:' is not a check"),
        ("notify:", "ready: 'notify:' is not a check"),
        ("tcp:70000", "ready: 70000 is not a port; write 1 to 65535"),
        ("http:80/a b", "ready: has a path that cannot stand in a request"),
        ('exec:sh "a', "ready: 'sh \"a' is not a command: No closing quotation; close the quotes"),
        ({}, "ready: has no check; write one of tcp, http, exec, notify, log"),
        ({"interval": "1s"}, "ready: has no check"),
        ({"tcp": 1, "log": "x"}, "ready: has tcp and log, which are too many; write one of"),
        ({"tcp": 0}, "ready.tcp: 0 is too small; write 1 to 65535"),
        ({"tcp": "80"}, "ready.tcp: is the string '80', not an integer; write 80 without quotes"),
        ({"udp": 53}, "ready.udp: is not known; "),
        ({"http": {"path": "/"}}, "ready.http.port: is missing"),
        ({"http": {"port": 80, "path": "x"}}, "ready.http.path: 'x' is not valid"),
        ({"exec": []}, "ready.exec: has 0 items, fewer than 1"),
        ({"exec": [""]}, 'ready.exec: has no command; write for example ["pg_isready", "-q"]'),
        ({"exec": ["x" * 3000, "y" * 3000]}, "ready.exec: is longer than 64 words or 4096 bytes"),
        ({"notify": False}, "ready.notify: is false; write notify: true, or remove ready"),
        ({"notify": "db"}, "ready.notify: 'db' is not the name of a unit; write it with its suffix"),
        ({"notify": "a.service b.service"}, "ready.notify: 'a.service b.service' is more than one unit"),
        ({"log": "(a"}, "ready.log: has a '(' that is not closed; write \\( for ( itself"),
        ({"tcp": 1, "interval": "infinity"}, "ready.interval: infinity is not allowed here"),
        ({"tcp": 1, "interval": "1ms"}, "ready.interval: 1ms is too short"),
    ],
)
def test_what_is_wrong_is_named_with_its_cure(written: Any, words: str) -> None:
    assert words in problem(written)


def test_a_unit_is_only_in_systemd_mode() -> None:
    words = "names the unit db.service, which there is only in systemd mode; write notify: true"
    assert words in problem({"notify": "db.service"}, mode="exec")
    assert read("notify:db.service", mode="systemd") == Ready(Check.NOTIFY, unit="db.service")


def test_words_are_one_short_line() -> None:
    assert Ready(Check.EXEC, argv=("a\nb\x1b", "c")).words == "exec a?b? c"
    assert len(Ready(Check.LOG, pattern="x" * 250).words) == 80


def test_the_guest_is_told_what_it_needs() -> None:
    assert ready_fields(Ready(Check.TCP, port=80)) == [
        ("check", "tcp"),
        ("interval", "1000"),
        ("port", "80"),
    ]
    http = Ready(Check.HTTP, port=80, status=204, interval=0.0101)
    assert ready_fields(http)[1:] == [("interval", "10"), ("port", "80"), ("path", "/"), ("status", "204")]
    assert ready_fields(Ready(Check.EXEC, argv=("a", "b,c")))[2:] == [("arg", "a"), ("arg", "b,c")]
    assert ready_fields(Ready(Check.NOTIFY, unit="db.service"))[2:] == [("unit", "db.service")]
    assert ready_fields(Ready(Check.LOG, pattern="a"))[2:] == [("pattern", "a")]


# the same as tests/guest/probes.c has
@pytest.mark.parametrize(
    "pattern",
    [
        *("ready", "^ready", "ready$", "^$", "a.c", "a\\.c", "ab*c", "ab+c", "ab?c", "cat|dog|bird"),
        *("(ab|cd)+e", "x(a|)y", "((a*)*)*b", "[0-9]+ ms", "[^0-9]x", "[]x]y", "[a-]b", "[\\]]b"),
        *("\\d\\d:\\d\\d", "\\w+\\s\\w+$", "\\t", "\\(x\\)", "grüß", "a\\|b", "[\\d.]", "a||b"),
    ],
)
def test_patterns_that_are_known(pattern: str) -> None:
    check_pattern(pattern)


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("", "has 0 bytes; write a pattern of 1 to 256 bytes"),
        ("x" * (MAX_PATTERN + 1), "has 257 bytes"),
        ("a\nb", "has a control character; write a pattern of one line"),
        ("*a", "'*' at 1 repeats nothing; write \\* for * itself"),
        ("a**", "'*' at 3 repeats nothing"),
        ("^*", "repeats nothing"),
        ("(*a)", "repeats nothing"),
        ("|*a", "repeats nothing"),
        ("(a", "has a '(' that is not closed"),
        ("a)", "')' at 2 closes nothing"),
        ("[a", "has a '[' that is not closed"),
        ("a{2}", "'{' at 2 is not known here; write \\{ for { itself"),
        ("a]", "']' at 2 is not known here"),
        ("\\n", "\\n is not known; write \\d, \\w, \\s, \\t or"),
        ("\\1", "\\1 is not known"),
        ("a\\", "ends with a backslash; write \\\\ for a backslash itself"),
        ("[z-a]", "has a range that is none"),
        ("[a-\\d]", "has a range that is none"),
        ("[ä]", "ä cannot stand in brackets; write (ä|…) instead"),
        ("(" * (MAX_DEPTH + 1) + "a" + ")" * (MAX_DEPTH + 1), "has more than 16 groups in each other"),
    ],
)
def test_patterns_that_are_not(pattern: str, words: str) -> None:
    with pytest.raises(ValueError, match="; ") as raised:
        check_pattern(pattern)
    assert words in str(raised.value)
