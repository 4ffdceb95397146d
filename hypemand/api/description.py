# SPDX-License-Identifier: Apache-2.0
"""The API's description as it is served: openapi.yaml, with the keys of a definition from their schema, and
with the calls of the published client that are not supported from their table."""

from __future__ import annotations

import json
import textwrap
from functools import cache
from importlib import resources
from typing import Any

from hypemand.api.unsupported import describe_unsupported
from hypemand.config.schemafile import load_schema

_PLACE = "      properties: {} # those of vm.schema.json, when this is served\n"
_PATHS_PLACE = "  # and those of hypemand.api.unsupported, when this is served\n"


@cache
def read_description() -> str:
    """YAML of OpenAPI 3.1."""
    text = resources.files("hypemand.api").joinpath("openapi.yaml").read_text(encoding="utf-8")
    # JSON is YAML too
    keys = json.dumps({"properties": _without_own_words(load_schema("vm")["properties"])}, indent=2)
    text = _insert(text, _PLACE, textwrap.indent(keys[2:-2], "    "))
    paths = (f"  {json.dumps(path)}: {json.dumps(item)}" for path, item in describe_unsupported().items())
    return _insert(text, _PATHS_PLACE, "\n".join(paths))


def _insert(text: str, place: str, lines: str) -> str:
    """Put lines in the place of one."""
    before, found, after = text.partition(place)
    assert found
    return f"{before}{lines}\n{after}"


def _without_own_words(value: Any) -> Any:
    """A schema without what hypemand alone understands."""
    if isinstance(value, dict):
        return {key: _without_own_words(below) for key, below in value.items() if not key.startswith("x-")}
    return [_without_own_words(item) for item in value] if isinstance(value, list) else value
