# SPDX-License-Identifier: Apache-2.0
"""Which VMs a Pacemaker cluster runs, by the copy of its configuration (CIB) that each node keeps.

It is read whether or not Pacemaker runs: what starts VMs at boot must know before that does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hypemand.config.definition import Definition, HostShutdown
from hypemand.errors import HypemandError, Problem
from hypemand.unitnames import handle_name, vm_of_handle

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

CIB = Path("/var/lib/pacemaker/cib/cib.xml")
UNIT_DIR = Path("/etc/systemd/system")
AGENT = ("ocf", "hypemand", "vm")


def find_owned(cib: Path = CIB) -> Mapping[str, str]:
    """The resources that are VMs, by the VM's name; none where there is no cluster. HypemandError for a
    configuration that cannot be read."""
    from xml.etree import ElementTree

    try:
        root = ElementTree.parse(cib).getroot()  # noqa: S314 root's own file
    except FileNotFoundError:
        return {}
    except (OSError, ElementTree.ParseError) as error:
        raise HypemandError(f"the cluster's configuration {cib} cannot be read: {error}") from None
    templates = {template.get("id", ""): template for template in root.iter("template")}
    found = {}
    for primitive in root.iter("primitive"):
        template = templates.get(primitive.get("template", ""))
        vm = _find_vm([primitive] if template is None else [primitive, template])
        if vm is not None:
            found[vm] = primitive.get("id", "")
    return found


def _find_vm(elements: Sequence[Element]) -> str | None:
    """The VM of a resource, which has all that its template has and it has not. None: it is no VM."""
    kind = next((_read_kind(one) for one in elements if one.get("class")), ("", "", ""))
    if kind[0] == "systemd":
        return vm_of_handle(f"{kind[2].removesuffix('.service')}.service")
    if kind != AGENT:
        return None
    pairs = (pair for one in elements for pair in one.findall("instance_attributes/nvpair"))
    return next((pair.get("value") for pair in pairs if pair.get("name") == "name"), None)


def _read_kind(element: Element) -> tuple[str, str, str]:
    return (element.get("class", ""), element.get("provider", ""), element.get("type", ""))


def find_start_problems(
    definitions: Mapping[str, Definition],
    files: Mapping[str, Path],
    owned: Mapping[str, str],
    unit_dir: Path = UNIT_DIR,
) -> Iterator[Problem]:
    """What would start or stop a VM of the cluster beside the cluster; `files` are those of the definitions,
    `owned` is what `find_owned` has found."""
    for name in sorted(owned.keys() & definitions.keys()):
        definition, file = definitions[name], str(files.get(name, name))
        of = f"VM {name} is run by the cluster, as its resource {owned[name]}"
        if definition.autostart:
            yield Problem(file, 0, 0, "autostart", f"is true, but {of}, which alone starts it", "remove it")
        if definition.on_host_shutdown is HostShutdown.STANDBY:
            what = f"is standby, but {of}, and its saved memory would be on this host alone"
            yield Problem(file, 0, 0, "on_host_shutdown", what, "remove it")
        if any(os.path.lexists(folder / handle_name(name)) for folder in unit_dir.glob("*.*")):
            what = f"{handle_name(name)} is enabled, but {of}, which alone starts it"
            yield Problem(file, 0, 0, "", what, f"systemctl disable {handle_name(name)}")
