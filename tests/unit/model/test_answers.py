# SPDX-License-Identifier: Apache-2.0
"""What the API answers has the keys of openapi.yaml, and is understood of daemons of other versions."""

from __future__ import annotations

from dataclasses import fields
from types import NoneType
from typing import Any, get_args, get_type_hints

import pytest

from hypemand.errors import Problem
from hypemand.model.answers.copy import CopyEnd, CopyError, CopyHeader, CopyResult
from hypemand.model.answers.error import Error
from hypemand.model.answers.event import HostEvent
from hypemand.model.answers.exec import ExecCommand, ExecExit
from hypemand.model.answers.guest import ArchiveResult, LogEntry, PathInfo
from hypemand.model.answers.host import Health, ReloadReport
from hypemand.model.answers.image import Image, PruneReport
from hypemand.model.answers.instance import (
    Instance,
    InstanceHeaders,
    InstanceNetwork,
    RestartPolicy,
    Stats,
    WaitResult,
)
from hypemand.model.answers.network import HostNetwork
from hypemand.model.answers.token import NewToken, TokenInfo
from hypemand.model.answers.volume import Space, Volume
from hypemand.model.counters import Counters
from hypemand.model.document import SOURCE, decode, encode
from hypemand.model.state import HeadersState, State
from hypemand.model.timeline import Timeline
from tests.openapi_check import Description

DESCRIBED = Description().document["components"]["schemas"]
SCHEMAS: dict[str, Any] = {
    "ArchiveResult": ArchiveResult,
    "Counters": Counters,
    "Error": Error,
    "ExecExit": ExecExit,
    "ExecRequest": ExecCommand,
    "Health": Health,
    "HostEvent": HostEvent,
    "HostNetwork": HostNetwork,
    "Image": Image,
    "Instance": Instance,
    "KernelHeaders": InstanceHeaders,
    "LogLine": LogEntry,
    "Network": InstanceNetwork,
    "NewToken": NewToken,
    "PathInfo": PathInfo,
    "Problem": Problem,
    "Pruned": PruneReport,
    "ReloadReport": ReloadReport,
    "RestartPolicy": RestartPolicy,
    "Space": Space,
    "Stats": Stats,
    "Timeline": Timeline,
    "Token": TokenInfo,
    "Volume": Volume,
    "WaitResult": WaitResult,
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_keys_are_those_of_the_description(name: str) -> None:
    keys = {key.name for key in fields(SCHEMAS[name]) if key.metadata != SOURCE}
    assert keys == set(DESCRIBED[name]["properties"])


def test_frames_of_a_copy_are_those_of_the_description() -> None:
    frames = (CopyHeader, CopyEnd, CopyResult, CopyError)
    described = [set(schema["properties"]) for schema in DESCRIBED["CopyFrame"]["oneOf"]]
    assert [{key.name for key in fields(frame)} for frame in frames] == described


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_may_be_null_is_understood(name: str) -> None:
    hints = get_type_hints(SCHEMAS[name])
    nullable = {key for key, schema in DESCRIBED[name]["properties"].items() if may_be_null(schema)}
    assert {
        key for key in nullable if NoneType not in get_args(hints[key]) and hints[key] is not Any
    } == set()


def may_be_null(schema: dict[str, Any]) -> bool:
    if "$ref" in schema:
        return may_be_null(DESCRIBED[schema["$ref"].rpartition("/")[2]])
    kinds = schema.get("type", [])
    return "null" in ([kinds] if isinstance(kinds, str) else kinds) or any(
        may_be_null(one) for one in (*schema.get("oneOf", ()), *schema.get("anyOf", ()))
    )


def test_a_daemon_with_more_than_we_know_is_understood() -> None:
    answer = {
        "id": "x",
        "name": "web",
        "state": "Migrating",
        "kernel_headers": {"state": "unpacking", "error": None, "since": 1},
        "volumes": [{"volume_id": "v", "mount_path": "/v", "cache": "none"}],
        "colour": {"of": ["the", "sky"]},
    }
    instance = decode(Instance, answer)
    assert (instance.state, instance.kernel_headers) == ("Migrating", InstanceHeaders("unpacking"))
    assert instance.document == answer
    assert "colour" not in encode(instance)


def test_a_daemon_with_less_than_we_know_is_understood() -> None:
    instance = decode(Instance, {"id": "x", "name": "web"})
    assert (instance.state, instance.volumes, instance.definition) == (State.UNKNOWN, (), {})


def test_words_that_are_known_are_those_of_the_enum() -> None:
    instance = decode(
        Instance, {"id": "x", "name": "web", "state": "Running", "kernel_headers": {"state": "ready"}}
    )
    assert instance.state is State.RUNNING
    assert instance.kernel_headers is not None
    assert instance.kernel_headers.state is HeadersState.READY


def test_an_instance_comes_out_as_it_went_in() -> None:
    instance = Instance(
        id="x",
        name="web",
        state=State.RUNNING,
        ready_ms=612.4,
        network=InstanceNetwork(enabled=True, ip="10.0.0.2", counters=Counters(1, 2, 3, 4, 5)),
        kernel_headers=InstanceHeaders(HeadersState.FAILED, "no space"),
        restart_policy=RestartPolicy("never"),
        definition={"memory": "512M", "cmd": ["a"]},
    )
    assert decode(Instance, encode(instance)) == instance
