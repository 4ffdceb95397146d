# SPDX-License-Identifier: Apache-2.0
"""Templates for warm starts, as users make, see and remove them."""

from __future__ import annotations

import time
from collections.abc import Sequence

from hypemand.errors import Ambiguous, NotFound
from hypemand.manager.parts import Parts
from hypemand.model.templates import TemplateView
from hypemand.vm.template import Template
from hypemand.workers import Pool, run_in


class ApiTemplates:
    """Implements `hypemand.model.services.TemplateService`."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def list_templates(self) -> Sequence[TemplateView]:
        """See `TemplateService`."""
        return await run_in(Pool.TOOLS, self._list)

    def _list(self) -> Sequence[TemplateView]:
        return [template.view(used_at) for template, used_at in self._parts.templates.store.list()]

    async def create_template(self, ref: str) -> tuple[TemplateView, bool]:
        """See `TemplateService`."""
        template, is_new = await self._parts.templates.create(self._parts.fleet.get(ref).record.definition)
        return await run_in(Pool.TOOLS, template.view, time.time()), is_new

    async def remove_template(self, key: str) -> None:
        """See `TemplateService`."""
        await run_in(Pool.TOOLS, self._remove, key)

    def _remove(self, key: str) -> None:
        store = self._parts.templates.store
        found = [template for template, _ in store.list() if template.key.startswith(key)]
        if not found:
            hint = "hypemanctl template list shows the templates"
            raise NotFound(f"there is no template {key}", hint=hint)
        if len(found) > 1:
            keys = ", ".join(_shorten(template) for template in found)
            raise Ambiguous(f"{key} is a prefix of the ids of {keys}", hint="use a longer prefix of the id")
        store.remove(found[0].key)


def _shorten(template: Template) -> str:
    return template.key[:12]
