# SPDX-License-Identifier: Apache-2.0
"""Every call of the published client, made on a daemon: what is supported, and what is refused by its name.

The calls are found in the client's classes, so that those of a newer client are seen: one that is not in
`_ARGUMENTS` is made with arguments of the right types.
"""

from __future__ import annotations

import inspect
import io
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import hypeman
from hypeman._resource import SyncAPIResource

API_DOC = Path(__file__).resolve().parents[1] / "docs/api.md"
BEGIN, END = "<!-- calls of the client -->\n", "<!-- end of the calls -->\n"
VM, VOLUME, ARCHIVED, SNAPSHOT = "calls", "calls-data", "calls-files", "calls-now"
FORK = "calls-fork"
_SHARED = ("extra_headers", "extra_query", "extra_body", "timeout")
# What exists for the calls below: in this order they are made.
_ORDER = (
    "health.check",
    "capabilities.get",
    "resources.get",
    "volumes.create",
    "volumes.create_from_archive",
    "instances.create",
    "instances.wait",
)
_LAST = (
    "instances.snapshot_schedule.update",
    "instances.snapshot_schedule.get",
    "instances.snapshot_schedule.delete",
    "instances.snapshots.create",
    "snapshots.get",
    "snapshots.list",
    "snapshots.fork",
    "instances.standby",
    "instances.restore",
    "instances.stop",
    "instances.snapshots.restore",
    "snapshots.delete",
    "instances.volumes.attach",
    "instances.volumes.detach",
    "instances.start",
    "instances.delete",
    "volumes.delete",
    "images.delete",
)


def _archive() -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w"):
        pass
    return data.getvalue()


def list_calls(client: hypeman.Hypeman) -> Mapping[str, Callable[..., Any]]:
    """Every method of the client that makes a request, by its name."""
    return dict(sorted(_list_calls(client, ""), key=lambda call: _rank(call[0])))


def _rank(name: str) -> tuple[int, int, str]:
    if name in _ORDER:
        return 0, _ORDER.index(name), name
    return (2, _LAST.index(name), name) if name in _LAST else (1, 0, name)


def _list_calls(of: object, prefix: str) -> Iterator[tuple[str, Callable[..., Any]]]:
    for name in vars(type(of)):
        if name.startswith(("_", "with_")):
            continue
        value = getattr(of, name)
        if isinstance(value, SyncAPIResource):
            yield from _list_calls(value, f"{prefix}{name}.")
        elif prefix and inspect.ismethod(value):
            yield f"{prefix}{name}", value


class Walk:
    """The calls on one daemon. `image`: one that is there; `small`: what else VMs are created with."""

    def __init__(self, client: hypeman.Hypeman, image: str, small: Mapping[str, Any]) -> None:
        self._client = client
        self._image = image
        vm, volume, snapshot = {"id": VM}, {"id": VOLUME}, {"snapshot_id": SNAPSHOT}
        self._arguments: Mapping[str, Mapping[str, Any]] = {
            "volumes.create": {"name": VOLUME, "size_gb": 1},
            "volumes.create_from_archive": {"body": _archive(), "name": ARCHIVED, "size_gb": 1},
            "volumes.get": volume,
            "volumes.delete": volume,
            "instances.create": {"name": VM, "image": image, **small},
            "instances.wait": {**vm, "state": "Running", "api_timeout": "60s"},
            "instances.stat": {**vm, "path": "/"},
            "instances.update": {
                **vm, "ttl": "1h", "restart_policy": {"policy": "never"}, "health_check": {"type": "none"}
            },
            "instances.snapshot_schedule.update": {**vm, "interval": "1h", "retention": {"max_count": 3}},
            "instances.volumes.attach": {"volume_id": VOLUME, **vm, "mount_path": "/data"},
            "instances.volumes.detach": {"volume_id": VOLUME, **vm},
            "instances.fork": {**vm, "name": FORK, "from_running": True, "target_state": "Standby"},
            "snapshots.fork": {**snapshot, "name": FORK, "target_state": "Standby"},
            "instances.snapshots.create": {**vm, "kind": "Standby", "name": SNAPSHOT},
            "instances.snapshots.restore": {**vm, **snapshot, "target_state": "Stopped"},
            **dict.fromkeys(("snapshots.get", "snapshots.delete"), snapshot),
            **dict.fromkeys(
                ("instances.get", "instances.logs", "instances.stats", "instances.standby",
                 "instances.restore", "instances.stop", "instances.start", "instances.delete",
                 "instances.snapshot_schedule.get", "instances.snapshot_schedule.delete"), vm
            ),
            "images.create": {"name": image},
            "images.get": {"name": image},
            "images.tag": {"name": image, "target": "calls"},
            "images.delete": {"name": image},
        }  # fmt: skip

    def run(self) -> Mapping[str, str]:
        """What comes of each call, by its name: "yes", "not_supported", or the code of another error."""
        try:
            return {name: self._make(name, call) for name, call in list_calls(self._client).items()}
        finally:
            for volume in (VOLUME, ARCHIVED):
                try:
                    self._client.volumes.delete(volume)
                except hypeman.NotFoundError:
                    continue

    def _make(self, name: str, call: Callable[..., Any]) -> str:
        given = self._arguments.get(name)
        try:
            answer = call(**(_invent(call) if given is None else given))
            if isinstance(answer, hypeman.Stream):
                list(answer)
            if name.endswith(".fork"):
                self._client.instances.delete(answer.id)
        except hypeman.APIStatusError as error:
            found: Any = error.body
            code = str(found["code"])
            assert code != "not_supported" or name in found["message"], found
            return code
        return "yes"


def _invent(call: Callable[..., Any]) -> Mapping[str, Any]:
    """Arguments for what must be given."""
    kinds: Mapping[str, Any] = {"str": "x", "int": 1, "bool": True, "FileTypes": b"x"}
    needed = {
        name: parameter.annotation
        for name, parameter in inspect.signature(call).parameters.items()
        if parameter.default is parameter.empty and name not in _SHARED
    }
    return {
        name: kinds.get(
            str(kind).removeprefix("'"),
            []
            if "Iterable" in str(kind)
            else {"x": "x"}
            if "Dict" in str(kind) or "Param" in str(kind)
            else "x",
        )
        for name, kind in needed.items()
    }


def render_table(found: Mapping[str, str]) -> str:
    """The table of docs/api.md."""
    rows = [f"| `{name}` | {_words(found[name])} |" for name in sorted(found)]
    return "\n".join(["| call | supported |", "|---|---|", *rows]) + "\n"


def _words(code: str) -> str:
    return {"yes": "yes", "not_supported": "no: 501"}.get(code, code)


def read_table() -> str:
    """The table that docs/api.md has."""
    return API_DOC.read_text().partition(BEGIN)[2].partition(END)[0]
