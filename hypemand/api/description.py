# SPDX-License-Identifier: Apache-2.0
"""The API's description as it is served: openapi.yaml, with the keys of a definition from their schema."""

from __future__ import annotations

import json
import textwrap
from functools import cache
from importlib import resources
from typing import Any

from hypemand.config.schemafile import load_schema

_PLACE = "      properties: {} # those of vm.schema.json, when this is served\n"


@cache
def read_description() -> str:
    """YAML of OpenAPI 3.1."""
    text = resources.files("hypemand.api").joinpath("openapi.yaml").read_text(encoding="utf-8")
    # JSON is YAML too
    keys = json.dumps({"properties": _without_own_words(load_schema("vm")["properties"])}, indent=2)
    before, place, after = text.partition(_PLACE)
    assert place
    return f"{before}{textwrap.indent(keys[2:-2], '    ')}\n{after}"


def _without_own_words(value: Any) -> Any:
    """A schema without what hypemand alone understands."""
    if isinstance(value, dict):
        return {key: _without_own_words(below) for key, below in value.items() if not key.startswith("x-")}
    return [_without_own_words(item) for item in value] if isinstance(value, list) else value
