# SPDX-License-Identifier: Apache-2.0
"""The program that passes on a console, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lint.sources import TOP
from tests.programs import build_program


@pytest.fixture(scope="session")
def console(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, with sanitizers."""
    target = tmp_path_factory.mktemp("console") / "hypeman-console"
    argv = ["gcc", "-std=c17", "-D_GNU_SOURCE", "-g", "-O1", "-Wall", "-Wextra", "-Werror"]
    argv += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    build_program(target, argv, sorted((TOP / "guest/console").glob("*.c")))
    return target
