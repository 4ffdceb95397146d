# SPDX-License-Identifier: Apache-2.0
"""Limits of processes: how they may be written, what the guest is told, and what is said of the rest."""

from __future__ import annotations

import pytest

from hypemand.config.definition import Ulimit
from hypemand.config.source import parse_source
from hypemand.config.vmdef import (
    definition_to_json,
    parse_definition,
    parse_source_definition,
    settings_of,
)
from hypemand.errors import InvalidDefinition


@pytest.mark.parametrize(
    ("written", "limit"),
    [
        ("1024", Ulimit(1024, 1024)),
        ('"1024"', Ulimit(1024, 1024)),
        ("0", Ulimit(0, 0)),
        ("unlimited", Ulimit(None, None)),
        ("-1", Ulimit(None, None)),
        ('"-1:-1"', Ulimit(None, None)),
        ('"5:unlimited"', Ulimit(5, None)),
        ("512:1024", Ulimit(512, 1024)),
        ("{soft: 1, hard: 2}", Ulimit(1, 2)),
        ('{soft: "1", hard: unlimited}', Ulimit(1, None)),
        ("9223372036854775807", Ulimit(2**63 - 1, 2**63 - 1)),
    ],
)
def test_a_limit_is_written_as_for_docker_compose_or_systemd(written: str, limit: Ulimit) -> None:
    text = f"image: x\nulimits:\n  core: {written}\n"
    made = parse_source_definition("web", parse_source(text, "web.yaml"))
    assert made.ulimits == {"core": limit}
    assert parse_definition("web", definition_to_json(made)) == made


def test_each_limit_is_a_record_for_the_guest() -> None:
    limits = {"nofile": {"soft": 1024, "hard": 524288}, "nproc": 50, "memlock": "unlimited"}
    made = parse_definition("web", {"image": "x", "ulimits": limits})
    assert settings_of(made) == (
        ("ulimit", "nofile=1024:524288"),
        ("ulimit", "nproc=50:50"),
        ("ulimit", "memlock=unlimited:unlimited"),
    )
    assert settings_of(parse_definition("web", {"image": "x"})) == ()
    assert definition_to_json(made)["ulimits"] == limits


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("nofiles: 1", "3:3: ulimits.nofiles: is not known; did you mean nofile?"),
        ("nofile: 1048577", "3:11: ulimits.nofile: 1048577 is too large; write 0 to 1048576"),
        (
            "nofile: unlimited",
            "3:11: ulimits.nofile: unlimited is more than the guest's kernel allows; write 0 to 1048576",
        ),
        ("core: -2", "3:9: ulimits.core: '-2' is not a limit; write a number or unlimited"),
        ('core: ""', "3:9: ulimits.core: '' is not a limit; write a number or unlimited"),
        ("core: 1:2:3", "3:9: ulimits.core: '2:3' is not a limit; write a number or unlimited"),
        ("core: true", "3:9: ulimits.core: is true, not a limit; write a limit, for example 0"),
        ("core: 1.5", "3:9: ulimits.core: is the number 1.5, not a limit; write a limit, for example 0"),
        (
            "core: {soft: 1.5, hard: 2}",
            "3:9: ulimits.core: '1.5' is not a limit; write a number or unlimited",
        ),
        (
            "nproc: {soft: 9, hard: 8}",
            "3:10: ulimits.nproc: the soft limit 9 is above the hard limit 8; swap them",
        ),
        (
            "nproc: {soft: 9}",
            (
                "3:10: ulimits.nproc: must have exactly the keys soft and hard; "
                "write for example {soft: 1024, hard: 4096}"
            ),
        ),
    ],
)
def test_what_is_no_limit_is_told_with_its_place_and_the_cure(written: str, said: str) -> None:
    with pytest.raises(InvalidDefinition) as caught:
        parse_source_definition("web", parse_source(f"image: x\nulimits:\n  {written}\n", "web.yaml"))
    assert [str(problem) for problem in caught.value.problems] == [f"web.yaml:{said}"]
