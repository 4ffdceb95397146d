# SPDX-License-Identifier: Apache-2.0
"""What is asked of an export and of an import of a VM."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from hypemand.config.definition import Definition


@dataclass(frozen=True, slots=True)
class ExportWanted:
    """What an archive is to hold beside the definition and the disk. `volumes`: names or ids of volumes of
    the VM; `all_volumes`: all of them; `image`: the image itself."""

    volumes: tuple[str, ...] = ()
    all_volumes: bool = False
    image: bool = False


@dataclass(frozen=True, slots=True)
class ImportWanted:
    """What becomes of an archive. `name`: of the VM in place of the archive's; `keep_identity`: it keeps
    its id, and so its machine id, its MAC address and addresses; `volumes`: new names of volumes by the old
    ones."""

    name: str = ""
    keep_identity: bool = False
    volumes: Mapping[str, str] = field(default_factory=dict)


MakeDefinition = Callable[[str, Mapping[str, object]], Definition]
"""The definition of a VM of that name, of the keys of a definition file. InvalidDefinition, and Forbidden for
what the client may not ask for."""
