# SPDX-License-Identifier: Apache-2.0
"""The files of the JSON Schemas, apart from validation, so that the command line reads them cheaply."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

Schema = Mapping[str, Any]


@cache
def load_schema(name: str) -> Schema:
    """`vm` or `host`."""
    path = Path(__file__).with_name(f"{name}.schema.json")
    schema: Schema = json.loads(path.read_text("utf-8"))
    return schema
