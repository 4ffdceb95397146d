# SPDX-License-Identifier: Apache-2.0
"""Definitions: what is accepted, what it becomes, and what is said of the rest."""

from __future__ import annotations

from ipaddress import IPv6Address
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypemand.config.definition import (
    GIB,
    MIB,
    Definition,
    DefinitionDefaults,
    ImagePull,
    Restart,
    Ulimit,
    VolumeMount,
)
from hypemand.config.mode import Mode
from hypemand.config.network import Bandwidth, NetworkUse, Publish, Transport
from hypemand.config.source import parse_source
from hypemand.config.templates import expand_instance, parse_file_name
from hypemand.config.vmdef import definition_to_json, parse_definition, parse_source_definition
from hypemand.errors import InvalidDefinition, Problem


def problems_of(text: str, name: str = "web") -> list[str]:
    with pytest.raises(InvalidDefinition) as caught:
        parse_source_definition(name, parse_source(text, "web.yaml"))
    return [str(problem).removeprefix("web.yaml:") for problem in caught.value.problems]


def test_of_any_number_of_unknown_keys_the_first_are_compared_with_those_that_there_are() -> None:
    said = problems_of("image: app\n" + "".join(f"memory{number}: 1\n" for number in range(60)))
    assert [text.partition("; ")[2] for text in said[:50]] == ["did you mean memory?"] * 50
    assert all(text.partition("; ")[2].startswith("allowed keys: ") for text in said[50:])
    assert len(said) == 60


def test_the_smallest_definition_has_the_defaults() -> None:
    assert parse_definition("web", {"image": "builtin:busybox"}) == Definition("web", "builtin:busybox")


def test_every_key_is_carried_over() -> None:
    data = {
        "name": "web",
        "image": "docker.io/library/alpine:3.20@sha256:abc",
        "memory": "256M",
        "vcpus": 4,
        "disk": "1G",
        "entrypoint": ["/bin/sh", "-c"],
        "cmd": ['echo "$HOME"', ""],
        "env": {"A": "1", "B": 2, "C": 1.5},
        "workdir": "/srv/a b",
        "user": "1000:www-data",
        "mode": "exec",
        "guest_agent": False,
        "kernel_headers": False,
        "autostart": True,
        "boot_timeout": "infinity",
        "stop_timeout": 5,
        "restart": "no",
        "tags": {"team": "shop"},
        "unit": {"After": "a.service b.service", "Nice": 5, "MemoryHigh": "1G"},
    }
    assert parse_definition("web", data) == Definition(
        name="web",
        image="docker.io/library/alpine:3.20@sha256:abc",
        memory=256 * MIB,
        vcpus=4,
        disk=GIB,
        entrypoint=("/bin/sh", "-c"),
        cmd=('echo "$HOME"', ""),
        env={"A": "1", "B": "2", "C": "1.5"},
        workdir="/srv/a b",
        user="1000:www-data",
        mode=Mode.EXEC,
        guest_agent=False,
        kernel_headers=False,
        autostart=True,
        boot_timeout=None,
        stop_timeout=5.0,
        restart=Restart.NO,
        tags={"team": "shop"},
        unit={"After": ("a.service", "b.service"), "Nice": ("5",), "MemoryHigh": ("1073741824",)},
    )


def test_defaults_of_the_host_hold_where_the_definition_does_not_say() -> None:
    defaults = DefinitionDefaults(256 * MIB, 1, GIB, None, 5.0, "lan")
    made = parse_definition("web", {"image": "x", "vcpus": 3}, defaults)
    assert (made.memory, made.vcpus, made.disk, made.boot_timeout, made.stop_timeout) == (
        256 * MIB,
        3,
        GIB,
        None,
        5.0,
    )
    assert made.network == NetworkUse("lan")


def test_numbers_in_env_are_taken_as_they_are_written() -> None:
    text = "image: x\nenv: {A: 1.10, B: 0x10, C: 007, D: 1e3}\n"
    made = parse_source_definition("web", parse_source(text, "f"))
    assert made.env == {"A": "1.10", "B": "0x10", "C": "007", "D": "1e3"}


def test_all_problems_of_a_file_at_once_sorted_by_place() -> None:
    text = """\
memoy: 512M
vcpus: two
memory: 10M
entrypoint: /bin/sh -c true
cmd: [a, 5]
env: {A: true, "b c": x}
autostart: yes
mode: exce
boot_timeout: 1 fortnight
disk:
unit:
  CpuWeight: 5
  CPUWeight: 50000
  After: foo
  KillMode: /bin/sh
  Nice: high
"""
    said = problems_of(text)
    keys = (
        "After, AllowedCPUs, Before, BindsTo, CPUAffinity, CPUWeight, Conflicts, Description, Documentation, "
        "IOWeight, LogRateLimitBurst, LogRateLimitIntervalSec, "
        "MemoryHigh, MemorySwapMax, Nice, OOMScoreAdjust, OnFailure, OnSuccess, PartOf, Requires, "
        "RequiresMountsFor, Requisite, RestartSec, StartLimitBurst, StartLimitIntervalSec, Wants"
    )
    assert said == [
        "1:1: image: is missing; write for example image: builtin:busybox",
        "1:1: memoy: is not known; did you mean memory?",
        "2:8: vcpus: is the string 'two', not an integer; write 1 to 64",
        "3:9: memory: 10M is too small; write 64M to 1T",
        (
            "4:13: entrypoint: is the string '/bin/sh -c true', not a list; "
            'write a list of strings: ["/bin/sh", "-c", "true"]'
        ),
        '5:10: cmd[1]: is the number 5, not a string; quote it: "5"',
        (
            "6:10: env.A: is true, not a string or a number; "
            "write a string without NUL characters; quote true and false"
        ),
        "6:16: env.b c: is not a valid key: 'b c'; write the name of a variable, without spaces and '='",
        "7:12: autostart: is the string 'yes', not true or false; write true",
        "8:7: mode: 'exce' is not one of the allowed values; write auto, exec or systemd; did you mean exec?",
        (
            "9:15: boot_timeout: '1 fortnight' is not a time span; "
            "write 90s, 1min 30s, infinity or a number of seconds"
        ),
        "10:6: disk: has no value; write a size, for example 2G",
        "12:3: unit.CpuWeight: cannot be set here; did you mean CPUWeight?",
        "13:14: unit.CPUWeight: 50000 is out of range; write an integer from 1 to 10000 or idle",
        (
            "14:10: unit.After: 'foo' is not the name of a unit; "
            "write it with its suffix, for example nginx.service"
        ),
        f"15:3: unit.KillMode: cannot be set here; allowed keys: {keys}",
        "16:9: unit.Nice: is the string 'high', not an integer; write an integer, for example 5",
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("memory: 5X", "memory: '5X' is not a size; write 512M, 1.5G, 1GiB or a number of bytes"),
        ("memory: 1000M\ndisk: 100000001", "disk: 100000001 is not a multiple of 1M; write for example 64M"),
        ("memory: 2T", "memory: 2T is too large; write 64M to 1T"),
        ("memory: 2048GiB", "memory: 2048GiB is too large; write 64M to 1T"),
        ("memory: 2199023255552", "memory: 2T is too large; write 64M to 1T"),
        ("memory: [1]", "memory: is a list, not a size; write a size, for example 512M"),
        ("memory: true", "memory: is true, not a size; write a size, for example 512M"),
        ("vcpus: 0", "vcpus: 0 is too small; write 1 to 64"),
        ("disk: 17T", "disk: 17T is too large; write 64M to 16T"),
        ("vcpus: 65", "vcpus: 65 is too large; write 1 to 64"),
        ("vcpus: 1.5", "vcpus: is the number 1.5, not an integer; write 1 to 64"),
        ("vcpus: '2'", "vcpus: is the string '2', not an integer; write 2 without quotes"),
        ("boot_timeout: 0", "boot_timeout: 0 is too short; write 1s or more"),
        (
            "stop_timeout: -5s",
            "stop_timeout: '-5s' is not a time span; write 90s, 1min 30s, infinity or a number of seconds",
        ),
        ("workdir: srv", "workdir: 'srv' is not valid; write an absolute path, for example /srv"),
        ("user: 1000", 'user: is the number 1000, not a string; quote it: "1000"'),
        ("name: other", "name: is other, but the name of the VM is web; write the same name, or remove it"),
        (
            "name: Web",
            (
                "name: 'Web' is not valid; "
                "write 1 to 63 characters of a-z, 0-9 and '-', not "
                "starting or ending with '-', for example web-1"
            ),
        ),
        (
            'cmd: ["a\\0b"]',
            (
                "cmd[0]: 'a\\x00b' is not valid; write a string without NUL characters; "
                "quote numbers, true and false"
            ),
        ),
        (
            'env: {A: "a\\0b"}',
            "env.A: 'a\\x00b' is not valid; write a string without NUL characters; quote true and false",
        ),
        ("env: [A=1]", 'env: is a list, not a mapping; write a mapping, for example {"PORT": "8080"}'),
        (
            "entrypoint: []\ncmd: []",
            "cmd: is empty, and so is entrypoint: there is nothing to run; set one of them",
        ),
        ("entrypoint: ['', a]", "entrypoint[0]: is an empty program name; write its name or path"),
        (
            "restart: maybe",
            "restart: 'maybe' is not one of the allowed values; write no, on-failure or always",
        ),
        ("restart: true", "restart: true is not one of the allowed values; write no, on-failure or always"),
        (
            "tags: {'': x}",
            ("tags.: is not a valid key: ''; write 1 to 128 letters, digits, spaces and '_.:/=+@-'"),
        ),
        ("unit: {Environment: A=1}", "unit.Environment: cannot be set here"),
        ("unit: {nice: 5}", "unit.nice: cannot be set here; did you mean Nice?"),
        ("guest-agent: false", "guest-agent: is not known; did you mean guest_agent?"),
        ("<<: {memory: 1G}", "<<: is not known"),
    ],
)
def test_each_fault_names_key_and_cure(line: str, problem: str) -> None:
    (said,) = problems_of(f"image: x\n{line}\n")
    assert said.split(": ", 1)[1].startswith(problem)


def test_what_is_wrong_in_the_text_hides_no_other_mistake() -> None:
    assert problems_of(
        "image: x\nmemory: 1G\nmemory: 2G\nvcpus: many\n5: x\nnetwork: {publish: [x]}\ndisk: !a 1G\n"
    ) == [
        "3:1: memory: is there twice, first in line 2; remove one of the two",
        "4:8: vcpus: is the string 'many', not an integer; write 1 to 64",
        '5:1: 5: is a key that is not a string; quote it: "5"',
        (
            "6:21: network.publish[0]: 'x' has no host port; write HOST_PORT:PORT, such as 8080:80, "
            "127.0.0.1:53:53/udp or [2001:db8::1]:8080:80"
        ),
        "7:7: disk: has the tag !a, which is not valid here; remove the tag",
    ]


def test_a_document_that_is_no_mapping_is_refused() -> None:
    assert problems_of("- image\n") == ["1:1: is a list, not a mapping; write a mapping"]


def test_arguments_and_environment_fit_the_config_disk_and_execve() -> None:
    (said,) = problems_of(f"image: x\ncmd: [{'a' * 131071}, {'é' * 65536}]\n")
    assert "cmd[1]: has 131073 bytes; use at most 131071, or a file" in said
    env = "".join(f"  V{i}: {'a' * 100_000}\n" for i in range(10))
    (said,) = problems_of(f"image: x\nenv:\n{env}")
    assert "entrypoint, cmd and env have a total of 1000040 bytes; use at most 983040" in said


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(InvalidDefinition, match=r"cmd\[0\]: has an unpaired surrogate"):
        parse_definition("web", {"image": "x", "cmd": ["\ud800"]})


def test_problems_of_a_request_have_key_paths_and_no_place() -> None:
    with pytest.raises(InvalidDefinition) as caught:
        parse_definition("Web!", {"image": "x", "unit": {"Nice": 99}})
    assert [str(problem) for problem in caught.value.problems] == [
        (
            "'Web!' cannot be the name of a VM; "
            "use 1 to 63 characters of a-z, 0-9 and '-', "
            "not starting or ending with '-', for example web-1"
        ),
        "unit.Nice: 99 is out of range; write an integer from -20 to 19",
    ]


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
units: dict[str, st.SearchStrategy[tuple[str, ...]]] = {
    "After": st.just(("a.service", "b.target")),
    "Nice": st.integers(min_value=-20, max_value=19).map(lambda n: (str(n),)),
    "CPUWeight": st.sampled_from([("idle",), ("100",)]),
    "AllowedCPUs": st.just(("0-3", "7")),
    "MemoryHigh": st.sampled_from([("infinity",), ("80%",), ("1048576",)]),
    "RestartSec": st.sampled_from([("5s",), ("1min 30s",), ("infinity",)]),
    "Description": st.just(("The shop",)),
}
spans = st.one_of(st.none(), st.integers(min_value=10, max_value=10**6).map(lambda n: n / 10))
mounts = st.builds(
    VolumeMount,
    st.from_regex(r"[a-z0-9]([a-z0-9-]{0,9}[a-z0-9])?", fullmatch=True),
    st.from_regex(r"/srv(/[a-z]{1,9}){0,3}", fullmatch=True),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
ports = st.integers(min_value=1, max_value=65535)
networks = st.builds(
    NetworkUse,
    st.just("lan"),
    st.one_of(st.none(), st.ip_addresses(v=4)),
    st.one_of(st.none(), st.integers(min_value=0xFD << 120, max_value=2**128 - 1).map(IPv6Address)),
    st.one_of(st.none(), st.just("52:54:00:ab:cd:ef")),
    st.lists(
        st.builds(
            Publish,
            st.sampled_from([None, IPv6Address("2001:db8::1")]),
            ports,
            ports,
            st.sampled_from(Transport),
        ),
        max_size=9,
        unique_by=lambda p: p.host_port,
    ).map(tuple),
    st.builds(
        Bandwidth,
        *[st.one_of(st.none(), st.integers(min_value=1000, max_value=4 * 10**9)) for _ in range(2)],
    ),
    st.one_of(st.none(), st.just("shop")),
    st.one_of(st.none(), st.booleans()),
)
limits = st.one_of(
    st.integers(0, 2**63 - 1).map(lambda hard: Ulimit(hard, hard)),
    st.tuples(st.integers(0, 5), st.one_of(st.none(), st.integers(5, 9))).map(lambda pair: Ulimit(*pair)),
    st.just(Ulimit(None, None)),
)
definitions = st.builds(
    Definition,
    st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True),
    st.sampled_from(["builtin:busybox", "docker.io/library/alpine:3.20"]),
    st.integers(min_value=64, max_value=2**20).map(lambda n: n * MIB),
    st.integers(min_value=1, max_value=64),
    st.integers(min_value=64, max_value=2**24).map(lambda n: n * MIB),
    st.booleans(),
    st.lists(mounts, max_size=16, unique_by=(lambda m: m.volume, lambda m: m.mount_path)).map(tuple),
    st.one_of(st.none(), st.lists(words.map(lambda w: f"/{w}"), max_size=4).map(tuple)),
    st.one_of(st.none(), st.lists(words, min_size=1, max_size=4).map(lambda w: ("sh", *w))),
    st.dictionaries(st.from_regex(r"[A-Za-z_]{1,9}", fullmatch=True), words).map(MappingProxyType),
    st.one_of(st.none(), st.just("/srv")),
    st.one_of(st.none(), st.just("1000:users")),
    st.sampled_from(Mode),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    spans,
    spans,
    st.sampled_from(Restart),
    st.just(MappingProxyType({"team": "shop"})),
    st.fixed_dictionaries({}, optional=units).map(MappingProxyType),
    st.sampled_from(ImagePull),
    st.one_of(st.none(), networks),
    st.fixed_dictionaries({}, optional=dict.fromkeys(("nproc", "memlock", "core"), limits)).map(
        MappingProxyType
    ),
)


@given(definitions)
def test_definitions_are_read_back_from_json(definition: Definition) -> None:
    data = definition_to_json(definition)
    assert parse_definition(definition.name, data) == definition
    assert definition_to_json(parse_definition(definition.name, data)) == data


json_values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9)),
    lambda below: st.one_of(
        st.lists(below, max_size=3), st.dictionaries(st.text(max_size=9), below, max_size=3)
    ),
    max_leaves=6,
)
KEYS = sorted(definition_to_json(Definition("a", "x", entrypoint=(), cmd=("a",), workdir="/", user="a")))


@given(st.dictionaries(st.one_of(st.sampled_from(KEYS), st.text(max_size=9)), json_values, max_size=6))
def test_any_request_is_a_definition_or_has_problems(data: dict[str, Any]) -> None:
    made: Definition | None = None
    problems: tuple[Problem, ...] = ()
    try:
        made = parse_definition("web", data)
    except InvalidDefinition as error:
        problems = error.problems
    if made is not None:
        assert parse_definition("web", definition_to_json(made)) == made
    else:
        assert problems
        assert all(problem.message and problem.hint for problem in problems)


def test_the_examples_are_valid(examples: list[Path]) -> None:
    for path in examples:
        source = parse_source(path.read_text("utf-8"), str(path))
        name = parse_file_name(path.stem)
        if name.is_template:
            parse_source_definition(f"{name.prefix}-1", expand_instance(source, "1"))
        else:
            parse_source_definition(name.vm, source)


VOLUMES = """\
image: app
volumes:
  - volume: data
    mount_path: /srv
  - {volume: data, mount_path: /srv}
  - {volume: Up, mount_path: srv/}
  - {volume: a, mount_path: /proc/x, read_only: true}
  - {mount_path: /a/../b}
"""


def test_every_mistake_in_volumes_is_told_with_its_place() -> None:
    with pytest.raises(InvalidDefinition) as caught:
        parse_source_definition("web", parse_source(VOLUMES, "web.yaml"))
    told = [str(problem) for problem in caught.value.problems]
    for place, words in (
        ("web.yaml:5:", "data is already used in volumes[0]"),
        ("web.yaml:5:", "/srv is already used in volumes[0]"),
        ("web.yaml:6:", "volumes[2].volume: 'Up' is not valid; write the name or id of a volume"),
        ("web.yaml:6:", "volumes[2].mount_path: 'srv/' is not valid; write an absolute path below /"),
        ("web.yaml:7:", "/proc/x is hidden by a file system of the guest"),
        ("web.yaml:7:", "volumes[3].read_only: is not known; did you mean readonly?"),
        ("web.yaml:8:", "volumes[4].volume: is missing"),
        ("web.yaml:8:", "'/a/../b' is not valid"),
    ):
        assert any(line.startswith(place) and words in line for line in told), (words, told)
