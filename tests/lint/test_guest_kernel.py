# SPDX-License-Identifier: Apache-2.0
"""The guest kernel's options, as the documentation lists them, are those of its configuration."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECTION = re.compile(r"^## The guest's kernel$(.*?)^## ", re.MULTILINE | re.DOTALL)


def read_config(name: str, value: str) -> set[str]:
    text = (ROOT / "guest/kernel" / name).read_text()
    return set(re.findall(rf"^CONFIG_(\w+)={value}$", text, re.MULTILINE))


def read_table(heading: str) -> set[str]:
    """The options in the rows of the table with this heading."""
    section = SECTION.search((ROOT / "docs/images.md").read_text())
    assert section is not None
    table = section[1].split(f"| | {heading} (`CONFIG_`) |\n")[1].split("\n\n")[0]
    return set(re.findall(r"`(\w+)`", table))


def test_every_module_is_documented_and_there_are_no_others() -> None:
    assert read_table("modules") == read_config("config-modules", "m")


def test_what_is_documented_as_built_in_is() -> None:
    assert read_table("built in") - read_config("config-common", "y") == set()
    assert "IA32_EMULATION" in read_config("config-common", "y")
    assert read_config("config-common", "m") == set()
