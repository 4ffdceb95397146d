# SPDX-License-Identifier: Apache-2.0
"""The keys of a schema as a reference in Markdown, so that documents and parser cannot disagree.

`python3 -m hypemand.config.reference vm|host` prints the text between the `keys` markers in docs/.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from hypemand.config.kinds import find_kind
from hypemand.config.schemafile import load_schema

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
    if (found := find_kind(rule)) is not None:
        kind, kind_rule = found
        return kind.describe(kind_rule)
    types = rule["type"]
    words = " or ".join(_TYPES[one] for one in ([types] if isinstance(types, str) else types))
    if "items" in rule:
        items = rule["items"]
        one = _describe_type(items) if "x-network" in items else _TYPES[items["type"]]
        words += f" of {one}es" if one.endswith("s") else f" of {one}s"
    if "minimum" in rule:
        words += f", {rule['minimum']} to {rule['maximum']}"
    return words


if __name__ == "__main__":
    print(render_reference(sys.argv[1]))
