# SPDX-License-Identifier: Apache-2.0
"""The body of an answer that is a refusal or a failure."""

from __future__ import annotations

from dataclasses import dataclass

from hypemand.errors import Problem


@dataclass(frozen=True, slots=True)
class Error:
    """What went wrong: a code for programs, a sentence, what to do, and the problems of a definition."""

    code: str = ""
    message: str = ""
    hint: str = ""
    problems: tuple[Problem, ...] = ()
