# SPDX-License-Identifier: Apache-2.0
"""The programs in C, built with sanitizers in this checkout."""

import pytest

from tests.host.command import run_command
from tests.host.guestbuild import make_shared
from tests.lint.sources import TOP

TIMEOUT = 600.0


@pytest.mark.parametrize("folder", ["guest", "nss", "launcher"])
def test_programs_in_c_pass_their_own_tests_under_sanitizers(folder: str) -> None:
    if folder == "guest":
        make_shared()
    run_command(["make", "-C", str(TOP / folder), "check"], timeout=TIMEOUT)
