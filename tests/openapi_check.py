# SPDX-License-Identifier: Apache-2.0
"""Checks what a server answers, and what it is asked, against hypemand's openapi.yaml.

For tests of any server that speaks the API: `Description().check_answer(...)` raises AssertionError that
says what differs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import jsonschema
import yaml

from hypemand.api.description import read_description

Json: TypeAlias = Any

METHODS = ("get", "put", "post", "delete", "patch", "head", "options")


@cache
def _parse(text: str) -> dict[str, Json]:
    document: dict[str, Json] = yaml.load(text, yaml.CSafeLoader)
    return document


@cache
def _make_validator(text: str, schema: str) -> Any:
    """Of a schema, as JSON, in this document. It keeps what it has looked up there: most of the work."""
    whole = {"allOf": [json.loads(schema)], "components": _parse(text)["components"]}
    return jsonschema.Draft202012Validator(whole)


class Description:
    """openapi.yaml, read. All of the same text share one document, which nobody changes."""

    def __init__(self, text: str | None = None) -> None:
        if text is None:
            text = read_description()
        self._text = text
        self.document: dict[str, Json] = _parse(text)
        self._paths = [(re.compile(re.sub(r"\{[^}]+\}", "[^/]+", p)), p) for p in self.document["paths"]]
        # /images/import is also an /images/{name}: what is spelled out comes first.
        self._paths.sort(key=lambda entry: entry[1].count("{"))

    def routes(self) -> set[tuple[str, str]]:
        """Every method, in upper case, and path that is described."""
        return {
            (method.upper(), path)
            for path, item in self.document["paths"].items()
            for method in METHODS
            if method in item
        }

    def find_operation(self, method: str, target: str) -> Mapping[str, Json] | None:
        """The description of a request to `target`, a path with or without its query."""
        path = urlsplit(target).path
        for pattern, template in self._paths:
            if pattern.fullmatch(path) and method.lower() in self.document["paths"][template]:
                operation: Mapping[str, Json] = self.document["paths"][template][method.lower()]
                return operation
        return None

    def resolve(self, value: Json) -> Json:
        """`value`, or what its $ref points to."""
        while isinstance(value, dict) and "$ref" in value:
            found: Json = self.document
            for part in value["$ref"].removeprefix("#/").split("/"):
                found = found[part]
            value = found
        return value

    def check_value(self, value: Json, schema: Json, what: str) -> None:
        """Raise AssertionError when `value` breaks `schema`."""
        errors = list(_make_validator(self._text, json.dumps(schema)).iter_errors(value))
        assert not errors, f"{what}: " + "; ".join(f"{e.json_path}: {e.message[:400]}" for e in errors)

    def check_schema(self, name: str, value: Json) -> None:
        """Raise AssertionError when `value` breaks the named schema."""
        self.check_value(value, {"$ref": f"#/components/schemas/{name}"}, name)

    def check_answer(
        self, method: str, target: str, status: int, content_type: str | None, body: bytes | str
    ) -> None:
        """Raise AssertionError when an answer is not as described.

        A path or method that is not described must be answered with an Error and 404 or 405.
        """
        what = f"{method} {target}: {status}"
        operation = self.find_operation(method, target)
        if operation is None:
            assert status in (404, 405), f"{what}, though it is not described"
            return self.check_schema("Error", json.loads(body))
        responses = operation["responses"]
        assert str(status) in responses or status >= 500, f"{what} is not described"
        content = self.resolve(responses.get(str(status), responses["default"])).get("content")
        if content is None:
            assert not body, f"{what} has a body, though none is described"
            return None
        media = (content_type or "").split(";")[0]
        assert media in content, f"{what} is {media}, not {' or '.join(content)}"
        self._check_content(content[media], media, body, what)
        return None

    def _check_content(self, described: Json, media: str, body: bytes | str, what: str) -> None:
        if media == "text/event-stream":
            for name, data in parse_events(body):
                schema = described["x-event-data"] if name is None else {"$ref": "#/components/schemas/Error"}
                self.check_value(data, schema, f"{what}, event {name or 'message'}")
        elif media == "application/json":
            self.check_value(json.loads(body), described["schema"], what)

    def check_request(self, method: str, target: str, body: Json) -> None:
        """Raise AssertionError when a request's body is not as described."""
        operation = self.find_operation(method, target)
        assert operation is not None, f"{method} {target} is not described"
        described = self.resolve(operation["requestBody"])["content"]["application/json"]["schema"]
        self.check_value(body, described, f"{method} {target}")


def parse_events(stream: bytes | str) -> Iterator[tuple[str | None, Json]]:
    """Name (None where it has none) and data of each event of a whole stream, without its comments."""
    text = stream.decode() if isinstance(stream, bytes) else stream
    for block in text.split("\n\n")[:-1]:
        if block.startswith(":"):
            continue
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        yield fields.get("event"), json.loads(fields["data"])
