# SPDX-License-Identifier: Apache-2.0
"""One table of fields: what the server reads is what openapi.yaml describes, and each route uses its row."""

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from hypemand.api.bodies.guest import FRAMES
from hypemand.api.bodies.instances import Nothing
from hypemand.api.create import CLIENT_FIELDS
from hypemand.api.fields import describe_form, describe_rule, list_rules
from tests.openapi_check import METHODS, Description
from tests.unit.api.forms import BODIES, QUERIES
from tests.unit.api.harness import Api, drive

Schema = dict[str, Any]
# They have no parameters, and are asked by monitors that add some.
LENIENT = {"checkHealth", "getDescription"}
_PROSE = ("description", "examples", "summary", "title")


def operations(description: Description) -> Iterator[tuple[str, str, Schema]]:
    """Method, path and description, with the parameters of its path, of each operation."""
    for path, item in description.document["paths"].items():
        for method in METHODS:
            if method in item:
                shared = item.get("parameters", [])
                yield (
                    method.upper(),
                    path,
                    item[method] | {"parameters": [*shared, *item[method].get("parameters", [])]},
                )


def plain(description: Description, schema: Schema) -> Schema:
    """A schema without prose and references, and with one way to say that it may be null."""
    if schema == {"$ref": "#/components/schemas/Definition"}:
        return schema
    schema = {key: value for key, value in schema.items() if key not in _PROSE}
    if "$ref" in schema:
        beside = {key: value for key, value in schema.items() if key != "$ref"}
        return plain(description, description.resolve(schema) | beside)
    choices = schema.get("oneOf", [])
    if {"type": "null"} in choices and len(choices) == 2:
        schema = next(choice for choice in choices if choice != {"type": "null"}) | {"null": True}
        return plain(description, schema)
    kinds = schema.get("type")
    if isinstance(kinds, list) and "null" in kinds:
        left = [kind for kind in kinds if kind != "null"]
        schema |= {"type": left[0] if len(left) == 1 else left, "null": True}
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            schema[key] = plain(description, schema[key])
    if "properties" in schema:
        schema["properties"] = {k: plain(description, v) for k, v in schema["properties"].items()}
    for key in ("required", "enum"):
        if key in schema:
            schema[key] = sorted(schema[key])
    return schema


def find_differences(description: Description) -> list[str]:
    """Where the table and openapi.yaml differ."""
    found = []
    for _, _, operation in operations(description):
        name = operation["operationId"]
        query = [p for p in map(description.resolve, operation["parameters"]) if p["in"] == "query"]
        table = list_rules(QUERIES.get(name, Nothing))
        found += _differ(f"{name}, parameters", [p["name"] for p in query], list(table))
        for parameter in query:
            key = parameter["name"]
            if key in table:
                rule, place = table[key], f"{name}, parameter {key}"
                found += _differ(place, parameter.get("required", False), rule.is_required)
                found += _differ(place, parameter.get("style") == "deepObject", rule.kind.is_map)
                found += _differ(place, *_plain_pair(description, parameter["schema"], describe_rule(rule)))
        body = (
            description.resolve(operation.get("requestBody", {})).get("content", {}).get("application/json")
        )
        found += _differ(f"{name}, has a body", body is not None, name in BODIES)
        if body is not None and name in BODIES:
            schema = body["schema"]["oneOf"][1] if name == "createInstance" else body["schema"]
            found += _differ(name, *_plain_pair(description, schema, describe_form(BODIES[name])))
    schemas = description.document["components"]["schemas"]
    for name, forms in FRAMES.items():
        described = schemas[name].get("oneOf", [schemas[name]])
        found += _differ(f"{name}, forms", len(described), len(forms))
        for schema, form in zip(described, forms, strict=False):
            found += _differ(name, *_plain_pair(description, schema, describe_form(form)))
    for name, keys in CLIENT_FIELDS.items():
        found += _differ(name, sorted(schemas[name]["properties"]), sorted(keys))
    return found


def _plain_pair(description: Description, described: Schema, table: Schema) -> tuple[Schema, Schema]:
    return plain(description, described), plain(description, table)


def _differ(place: str, described: object, table: object) -> list[str]:
    return [] if described == table else [f"{place}: openapi.yaml has {described}, the table {table}"]


def test_the_table_and_the_description_are_the_same() -> None:
    assert find_differences(Description()) == []


def test_every_row_is_of_an_operation() -> None:
    known = {operation["operationId"] for _, _, operation in operations(Description())}
    assert known >= {*BODIES, *QUERIES}


def _schema(document: Schema, name: str) -> Schema:
    found: Schema = document["components"]["schemas"][name]
    return found


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: _schema(d, "PruneImages")["properties"].pop("all"),
        lambda d: _schema(d, "PruneImages")["properties"].update(new={"type": "string"}),
        lambda d: _schema(d, "PruneImages")["properties"]["all"].update(type="string"),
        lambda d: _schema(d, "PruneImages")["properties"]["all"].update(default=True),
        lambda d: _schema(d, "CreateToken").pop("required"),
        lambda d: _schema(d, "TokenScope")["enum"].append("root"),
        lambda d: _schema(d, "CreateImage")["properties"]["credentials"]["properties"].pop("password"),
        lambda d: _schema(d, "ExecRequest")["properties"]["umask"].update(maximum=512),
        lambda d: _schema(d, "ExecRequest")["properties"]["cwd"].update(type="string"),
        lambda d: _schema(d, "CopyOrder")["oneOf"].pop(),
        lambda d: _schema(d, "VolumeMount")["properties"].pop("overlay"),
        lambda d: d["paths"]["/instances/{ref}/pause"]["post"].pop("requestBody"),
        lambda d: d["paths"]["/instances/{ref}/wait"]["get"]["parameters"].pop(),
        lambda d: d["paths"]["/instances/{ref}/wait"]["get"]["parameters"][0].pop("required"),
        lambda d: d["paths"]["/instances/{ref}/logs"]["get"]["parameters"][2]["schema"].pop("enum"),
        lambda d: d["paths"]["/volumes"]["get"]["parameters"][0].pop("style"),
    ],
)
def test_a_difference_is_found(spoil: Callable[[Schema], object]) -> None:
    description = Description()
    description.document = copy.deepcopy(description.document)
    spoil(description.document)
    assert find_differences(description)


def _allowed(form: type[Any]) -> str:
    keys = [f"{key}[NAME]" if rule.kind.is_map else key for key, rule in list_rules(form).items()]
    return ", ".join(keys)


def test_each_route_reads_its_row(tmp_path: Path) -> None:
    """An unknown field, or parameter, is refused with the names of those in the row."""

    async def scenario(api: Api) -> None:
        for method, path, operation in operations(Description()):
            name = operation["operationId"]
            target = path.replace("{ref}", "a").replace("{volume}", "v").replace("{name}", "n")
            target = re.sub(r"{\w+}", "n", target)
            if "501" in operation["responses"]:
                assert (await api.ask(method, target)).code == "not_supported", name
                continue
            if name in BODIES:
                answer = await api.ask(method, f"{target}?zzz=1", {})
                assert (answer.status, "zzz" in answer.json["message"]) == (400, True), name
                extra: Mapping[str, object] = {"definition": {}} if name == "createInstance" else {}
                answer = await api.ask(method, target, {**extra, "zzz": 1})
                rules = list_rules(BODIES[name])
                hint = ", ".join(key for key, rule in rules.items() if not rule.kind.is_refused)
            elif name in LENIENT:
                continue
            else:
                answer = await api.ask(method, f"{target}?zzz=1")
                hint = _allowed(QUERIES.get(name, Nothing))
            assert (answer.status, "zzz" in answer.json["message"]) == (400, True), name
            assert answer.json["hint"].startswith(f"allowed: {hint}" if hint else "none is allowed"), name

    drive(tmp_path, scenario)
