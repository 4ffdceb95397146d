# SPDX-License-Identifier: Apache-2.0
"""The keys of a schema as a reference in Markdown, so that documents and parser cannot disagree.

`python3 -m hypemand.config.reference vm|host` prints what stands in docs/ between the `keys` markers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from hypemand.config.netparse import NetworkText
from hypemand.config.schema import load_schema

BEGIN = "<!-- keys: begin -->"
END = "<!-- keys: end -->"

_TYPES = {
    "string": "string",
    "integer": "integer",
    "number": "number",
    "boolean": "`true` or `false`",
    "array": "list",
    "object": "mapping",
}
_UNIT_TYPES = {
    "units": "names of units",
    "paths": "absolute paths",
    "uris": "references",
    "cpus": "CPUs and ranges of CPUs",
    "limit": "size, percentage or `infinity`",
    "duration": "time span",
    "text": "string",
}


def render_reference(name: str) -> str:
    """Tables of all keys of the schema `vm` or `host`, nested mappings after it."""
    return "\n".join(_render_tables(load_schema(name), ""))


def _render_tables(schema: Mapping[str, Any], prefix: str) -> Iterator[str]:
    required = schema.get("required", [])
    yield from ("| key | type | default | description |", "|---|---|---|---|")
    for key, rule in schema["properties"].items():
        shown = rule["examples"][0]
        example = "" if shown == rule.get("default") else f" Example: `{_code(shown)}`."
        default = "required" if key in required else _default(rule)
        yield f"| `{prefix}{key}` | {_describe_type(rule)} | {default} | {rule['description']}{example} |"
    for key, rule in schema["properties"].items():
        if "properties" in rule:
            yield from ("", f"Keys of `{prefix}{key}`:", "")
            yield from _render_tables(rule, f"{prefix}{key}.")
        if "properties" in rule.get("items", {}):
            yield from ("", f"Keys of each of `{prefix}{key}`:", "")
            yield from _render_tables(rule["items"], f"{prefix}{key}[].")
        if "properties" in (below := rule.get("additionalProperties") or {}):
            yield from ("", f"Keys of each of `{prefix}{key}`:", "")
            yield from _render_tables(below, f"{prefix}{key}.NAME.")


def _default(rule: Mapping[str, Any]) -> str:
    return f"`{_code(rule['default'])}`" if "default" in rule else ""


def _code(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _describe_type(rule: Mapping[str, Any]) -> str:
    if "enum" in rule:
        return ", ".join(f"`{choice}`" for choice in rule["enum"])
    if "x-size" in rule:
        return f"size, {rule['x-size']['minimum']} to {rule['x-size']['maximum']}"
    if "x-duration" in rule:
        return f"time span, at least {rule['x-duration']['minimum']}s, or `infinity`"
    if "x-unit" in rule:
        return _describe_unit(rule["x-unit"])
    if "x-rate" in rule:
        return f"rate, {rule['x-rate']['minimum']} to {rule['x-rate']['maximum']}"
    if "x-network" in rule:
        return NetworkText(rule["x-network"]).words
    words = "string or mapping" if rule["type"] == ["string", "object"] else _TYPES[rule["type"]]
    if "items" in rule:
        items = rule["items"]
        one = _describe_type(items) if "x-network" in items else _TYPES[items["type"]]
        words += f" of {one}es" if one.endswith("s") else f" of {one}s"
    if "minimum" in rule:
        words += f", {rule['minimum']} to {rule['maximum']}"
    return words


def _describe_unit(unit: Mapping[str, Any]) -> str:
    if "minimum" in unit:
        words = "".join(f" or `{word}`" for word in unit.get("words", []))
        return f"{unit['minimum']} to {unit['maximum']}{words}"
    return _UNIT_TYPES[unit["kind"]]


if __name__ == "__main__":
    print(render_reference(sys.argv[1]))
