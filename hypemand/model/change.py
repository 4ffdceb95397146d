# SPDX-License-Identifier: Apache-2.0
"""What a request changes of a VM that is defined."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hypemand.config.definition import Definition
from hypemand.model.lifetime import Lifetime


@dataclass(frozen=True, slots=True)
class VmChange:
    """All of it, or nothing if that fails; None: stays as it is. `redefine`: the new definition, made of the
    one that the VM has; raises InvalidDefinition."""

    lifetime: Lifetime | None = None
    redefine: Callable[[Definition], Definition] | None = None
