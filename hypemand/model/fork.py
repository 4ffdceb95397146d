# SPDX-License-Identifier: Apache-2.0
"""Forks: VMs that begin as what another one is."""

from __future__ import annotations

from dataclasses import dataclass

from hypemand.model.state import State


@dataclass(frozen=True, slots=True)
class ForkWanted:
    """A fork of that `name`, to be in the state `target`; None: in that of what it is made of. `short_name`:
    see `Manager.create_vm`."""

    name: str
    from_running: bool = False
    target: State | None = None
    short_name: bool = True
