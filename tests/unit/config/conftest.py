# SPDX-License-Identifier: Apache-2.0
"""The files that are shipped beside the code."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def source_root() -> Path:
    """The root of the source tree."""
    return Path(__file__).resolve().parents[3]


@pytest.fixture
def examples(source_root: Path) -> list[Path]:
    """The example definitions; at least one."""
    found = sorted((source_root / "config" / "examples").glob("*.yaml"))
    assert found
    return found
