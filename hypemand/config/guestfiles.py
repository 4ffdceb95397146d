# SPDX-License-Identifier: Apache-2.0
"""What of a definition becomes files of the guest: `files`, `secrets`, and directories of the host among
`volumes`; and the paths of the host that it names."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from hypemand.config.definition import (
    MAX_VOLUMES,
    Definition,
    DirectoryMount,
    GuestFile,
    Secret,
    VolumeMount,
)
from hypemand.config.source import Source
from hypemand.errors import Problem

SECRETS = "/run/secrets"
"""The tmpfs of the guest that has its secrets."""
# What init mounts over the root, and what is its own or the secrets'.
_RESERVED = ("/dev", "/proc", "/sys", "/run/hypeman", SECRETS)


def make_secrets(items: Sequence[Mapping[str, Any]]) -> tuple[Secret, ...]:
    """The value of `secrets`, which has no problems."""
    return tuple(Secret(**{"source": item["name"], **item}) for item in items)


def make_files(items: Sequence[Mapping[str, Any]]) -> tuple[GuestFile, ...]:
    """The value of `files`, which has no problems."""
    return tuple(GuestFile(**item) for item in items)


def make_volumes(
    items: Sequence[Mapping[str, Any]],
) -> tuple[tuple[VolumeMount, ...], tuple[DirectoryMount, ...]]:
    """The value of `volumes`, which has no problems: volumes and devices, and directories of the host."""
    unset = ("readonly", "overlay")
    directories = [{k: v for k, v in item.items() if k not in unset} for item in items if "source" in item]
    volumes = tuple(_make_mount(item) for item in items if "source" not in item)
    return volumes, tuple(DirectoryMount(**item) for item in directories)


def _make_mount(item: Mapping[str, Any]) -> VolumeMount:
    if "device" not in item:
        return VolumeMount(**item)
    others = {key: value for key, value in item.items() if key != "device"}
    return VolumeMount(volume=item["device"], is_device=True, **others)


def guest_files_to_json(definition: Definition, key: str) -> list[dict[str, object]]:
    """One of the keys `files`, `secrets` and `volumes`, as it is parsed."""
    values: tuple[Any, ...] = (*definition.volumes, *definition.directories)
    if key != "volumes":
        values = getattr(definition, key)
    rows: list[dict[str, object]] = [asdict(value) for value in values]
    for row in rows:
        if row.get("encrypted_content") is not None:
            del row["source"], row["encrypted"]
        if row.pop("is_device", False):
            row["device"] = row.pop("volume")
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def find_guest_file_problems(source: Source, data: Mapping[str, object]) -> Iterator[Problem]:
    """What the schema cannot say of these keys; passes over what has a wrong type."""
    yield from _find_kind_problems(source, data)
    yield from _find_secret_problems(source, data)
    yield from _find_file_problems(source, data)
    beside = [item for _, item in _items(data, "volumes") if item.get("mount_path") != "/"]
    drives = len(beside) + bool(_items(data, "files")) + bool(_items(data, "secrets"))
    if drives > MAX_VOLUMES:
        what = f"there are {drives} disks beside the VM's own; files and secrets count as one each"
        yield source.problem(("volumes",), what, f"use at most {MAX_VOLUMES} together")


def _items(data: Mapping[str, object], key: str) -> list[tuple[int, Mapping[str, object]]]:
    items = data.get(key)
    return [
        (i, item)
        for i, item in enumerate(items if isinstance(items, list) else [])
        if isinstance(item, Mapping)
    ]


def _find_kind_problems(source: Source, data: Mapping[str, object]) -> Iterator[Problem]:
    """Exactly one of some keys."""
    for key, kinds in (("volumes", ("volume", "source", "device")), ("files", ("content", "source"))):
        for i, item in _items(data, key):
            found = [kind for kind in kinds if kind in item]
            if len(found) > 1:
                hint = f"remove {found[0]} or {found[1]}"
                yield source.problem((key, i, found[1]), f"cannot be combined with {found[0]}", hint)
            elif not found:
                hint = f"write {', '.join(kinds[:-1])} or {kinds[-1]}"
                yield source.problem((key, i, kinds[0]), "is missing", hint)
    for i, item in _items(data, "volumes"):
        if item.get("mount_path") == "/":
            yield from _find_root_problems(source, i, item, data)
        if "source" in item and item.get("readonly") is False:
            what = "is false, but a source is always read-only"
            yield source.problem(("volumes", i, "readonly"), what, "remove it")
        if "source" in item and item.get("overlay") is True:
            what = "cannot be combined with source, which changes under the layer"
            yield source.problem(("volumes", i, "overlay"), what, "copy the files, or use a volume")


def _find_root_problems(
    source: Source, i: int, item: Mapping[str, object], data: Mapping[str, object]
) -> Iterator[Problem]:
    """Of what is the VM's own disk."""
    if "source" in item:
        yield source.problem(("volumes", i, "mount_path"), "is /, but a source is read-only", "use a volume")
    for key, value in (("readonly", True), ("overlay", True), ("required", False)):
        if item.get(key) is value:
            what = "cannot be combined with mount_path: /, by which it is the VM's own disk"
            yield source.problem(("volumes", i, key), what, "remove it")
    if data.get("persistent") is False:
        what = f"is false, but the VM's own disk is that of volumes[{i}]"
        yield source.problem(("persistent",), what, "remove it, or use another mount_path")


def _find_secret_problems(source: Source, data: Mapping[str, object]) -> Iterator[Problem]:
    seen: dict[object, int] = {}
    for i, item in _items(data, "secrets"):
        name, content = item.get("name"), item.get("encrypted_content")
        if seen.setdefault(name, i) != i:
            what = f"{name} is already used in secrets[{seen[name]}]"
            yield source.problem(("secrets", i, "name"), what, "write each once")
        if content is not None and ("source" in item or "encrypted" in item):
            other = "source" if "source" in item else "encrypted"
            what = "cannot be combined with encrypted_content"
            yield source.problem(("secrets", i, other), what, "remove it")
        if isinstance(content, str):
            try:
                decode_encrypted(content)
            except ValueError:
                yield source.problem(
                    ("secrets", i, "encrypted_content"),
                    "is not Base64",
                    "write what systemd-creds encrypt gave",
                )


def _find_file_problems(source: Source, data: Mapping[str, object]) -> Iterator[Problem]:
    seen: dict[object, int] = {}
    for i, item in _items(data, "files"):
        path, content = item.get("path"), item.get("content")
        if not isinstance(path, str):
            continue
        if seen.setdefault(path, i) != i:
            what = f"{path} is already used in files[{seen[path]}]"
            yield source.problem(("files", i, "path"), what, "write each once")
        if any(path == folder or path.startswith(f"{folder}/") for folder in _RESERVED):
            what = f"{path} is in a file system that the guest has for itself"
            hint = f"use a path that is not in {', '.join(_RESERVED)}"
            yield source.problem(("files", i, "path"), what, hint)
        if isinstance(content, str) and any("\ud800" <= c <= "\udfff" for c in content):
            yield source.problem(
                ("files", i, "content"), "has an unpaired surrogate, which is not a character", "remove it"
            )


def decode_encrypted(text: str) -> bytes:
    """The bytes of an `encrypted_content`. ValueError."""
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from error


def find_host_paths(definition: Definition) -> Iterator[str]:
    """Each key by which the guest gets what the host has, with what it names."""
    for path in definition.env_file:
        yield f"env_file ({path.removeprefix('-')})"
    for file in definition.files:
        if file.source is not None:
            yield f"files.source ({file.source})"
    for directory in definition.directories:
        yield f"volumes.source ({directory.source})"
    for mount in definition.volumes:
        if mount.is_device:
            yield f"volumes.device ({mount.volume})"
    for secret in definition.secrets:
        yield f"secrets ({secret.name})"
