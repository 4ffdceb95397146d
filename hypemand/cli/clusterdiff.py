# SPDX-License-Identifier: Apache-2.0
"""cluster diff: what differs between this host and others, each asked by hypemanctl over ssh."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hypemand.cli.check import inspect_host, load_config
from hypemand.cli.client import Client, Json, parse_all
from hypemand.cli.context import Context
from hypemand.cli.exitcode import ExitCode
from hypemand.cli.terminal import print_table
from hypemand.cli.values import escape_line
from hypemand.errors import HypemandError
from hypemand.model.answers.image import Image
from hypemand.model.answers.instance import Instance
from hypemand.model.answers.network import HostNetwork
from hypemand.model.answers.volume import Volume
from hypemand.run import CommandFailed, run
from hypemand.version import VERSION

_SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "--")
_SSH_TIME = 60.0
_SSH_FAILED = 255
# One document after the other, with NUL behind each. A check whose exit status is not 0 has one as well.
_COMMANDS = ("version", "check", "list", "image list", "volume list", "network list")
_SCRIPT = "".join(
    f"hypemanctl {words} --json || [ $? -lt 10 ] || exit; printf '\\0'; " for words in _COMMANDS
)
_COMPONENTS = ("QEMU", "kernel", "accelerator")
_NETWORK_KEYS = ("ipv4", "ipv6", "bridge", "mtu", "nat", "isolation")
_SHOWN = 48
_ABSENT = "-"
Facts = Mapping[str, str]
"""What is compared, each by a word such as vm/web/memory, as a word."""


@dataclass(frozen=True, slots=True)
class Documents:
    """What a host's hypemanctl prints, by `_COMMANDS`."""

    version: Json
    check: Json
    instances: Json
    images: Json
    volumes: Json
    networks: Json


def diff(context: Context) -> int:
    """A row for each thing that is not the same on all hosts. The exit status is that of diff(1)."""
    names = [platform.node(), *context.args.host]
    found = [derive_facts(_read_own(context.client)), *map(_read_other, context.args.host)]
    rows = list(compare(found))
    if context.wants_document:
        context.print_document({what: dict(zip(names, values, strict=True)) for what, values in rows})
    elif rows:
        header = ["WHAT", *map(escape_line, names)]
        cells = [[what, *(_shorten(value or _ABSENT) for value in values)] for what, values in rows]
        print_table(header, cells, [None] * len(cells))
    return ExitCode.FAILURE if rows else ExitCode.OK


def compare(found: Sequence[Facts]) -> Iterator[tuple[str, list[str | None]]]:
    """What is not the same everywhere, with its value of each host; None: it is not there. A VM, volume or
    network that a host has not is one row. Pure."""
    everything = sorted({what for facts in found for what in facts})
    missing: set[str] = set()
    for what in everything:
        values = [facts.get(what) for facts in found]
        if len(set(values)) == 1 or any(what.startswith(f"{parent}/") for parent in missing):
            continue
        if None in values:
            missing.add(what)
        yield what, values


def derive_facts(documents: Documents) -> Facts:
    """What is compared of a host. BadDocument, which is a HypemandError. Pure."""
    return {
        **{f"version/{name}": value for name, value in _list_versions(documents)},
        **{name: value for vm in parse_all(Instance, documents.instances) for name, value in _list_vm(vm)},
        **{f"image/{one.name}": one.digest or one.status for one in parse_all(Image, documents.images)},
        **{f"volume/{one.name}": _word(one.size_bytes) for one in parse_all(Volume, documents.volumes)},
        **{
            name: value
            for net in parse_all(HostNetwork, documents.networks)
            for name, value in _list_net(net)
        },
    }


def _list_versions(documents: Documents) -> Iterator[tuple[str, str]]:
    for name in ("hypemanctl", "hypemand"):
        yield name, _word(documents.version.get(name))
    findings = {row["what"]: str(row["text"]) for row in documents.check["host"]}
    for name in _COMPONENTS:
        text = findings.get(name, "")
        version = re.search(r"version (\S+)", text)
        yield name, version[1] if version else text.partition(":")[0].split(" ")[-1]


def _list_vm(vm: Instance) -> Iterator[tuple[str, str]]:
    """Those that were created with the API are of one host."""
    if vm.definition_file is None:
        return
    yield f"vm/{vm.name}", "defined"
    for key, value in vm.definition.items():
        yield f"vm/{vm.name}/{key}", _word(value)


def _list_net(network: HostNetwork) -> Iterator[tuple[str, str]]:
    yield f"network/{network.name}", "defined"
    for key in _NETWORK_KEYS:
        yield f"network/{network.name}/{key}", _word(getattr(network, key))


def _word(value: Any) -> str:
    """A value without blanks, as a cell of a table is."""
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), sort_keys=True)
    return re.sub(r"\s", "_", text) or '""'


def _shorten(text: str) -> str:
    return escape_line(text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}...")


def _read_own(client: Client) -> Documents:
    config, _ = load_config()
    findings = [{"what": one.what, "text": one.text} for one in inspect_host(config)]
    health = client.get("health")
    return Documents(
        {"hypemanctl": VERSION, "hypemand": health.get("version")},
        {"host": findings},
        *(client.get(what) for what in ("instances", "images", "volumes", "networks")),
    )


def _read_other(host: str) -> Facts:
    """Ask another host. Raises HypemandError, which names it."""
    try:
        done = run([*_SSH, host, _SCRIPT], timeout=_SSH_TIME, env=dict(os.environ))
        parts = done.stdout.split(b"\0")[: len(_COMMANDS)]
        return derive_facts(Documents(*(json.loads(part) for part in parts)))
    except CommandFailed as error:
        said = error.result.stderr.strip().splitlines()[-1:] or [f"exit status {error.result.code}"]
        what = "cannot be reached" if error.result.code == _SSH_FAILED else "cannot be asked"
        hint = f"try: ssh {host} hypemanctl version"
        raise HypemandError(f"{host} {what}: {escape_line(said[0])}", hint=hint) from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        hint = "it needs the same version of hypemanctl"
        raise HypemandError(f"{host} has answered what is not understood", hint=hint) from None
