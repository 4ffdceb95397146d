# SPDX-License-Identifier: Apache-2.0
"""The agent's program, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.agent.real import build_agent


@pytest.fixture(scope="session")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guest's real agent, which serves one connection of a socket that it is given."""
    target = tmp_path_factory.mktemp("agent") / "agent"
    build_agent(target)
    return target
