# SPDX-License-Identifier: Apache-2.0
"""Errors for users: a code for programs, a message, and a hint how to fix it.

Only the faces (API, command line, daemon main) turn them into output. Each kind carries the HTTP status
that the API answers with; the command line maps `code` to its exit status.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class HypemandError(Exception):
    """Base of all errors for users.

    Attributes: `message` (a sentence without its full stop), `hint` (what to do, may be empty), `code`
    (stable, for programs) and `status` (of the HTTP answer).
    """

    code = "internal_error"
    status = 500

    def __init__(self, message: str, *, hint: str = "", code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in a text that a user wrote.

    `line` and `column` count from 1; 0 where there is no place (a definition that came by the API).
    """

    file: str
    line: int
    column: int
    key: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        place = (
            f"{self.file}:{self.line}:{self.column}: " if self.line else f"{self.file}: " if self.file else ""
        )
        key = f"{self.key}: " if self.key else ""
        hint = f"; {self.hint}" if self.hint else ""
        return f"{place}{key}{self.message}{hint}"


class InvalidDefinition(HypemandError):
    """A definition, host config or request that breaks the schema. Holds every problem, not the first."""

    code = "invalid_definition"
    status = 400

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(p) for p in problems))
        self.problems = tuple(problems)


class InvalidRequest(HypemandError):
    """A request that cannot be understood. `code` may be narrowed: `invalid_timeout` and so on."""

    code = "invalid_request"
    status = 400


class Forbidden(HypemandError):
    """The client is not authorized for this."""

    code = "forbidden"
    status = 403


class NotFound(HypemandError):
    """There is no VM or image of that id or name."""

    code = "not_found"
    status = 404


class Ambiguous(HypemandError):
    """A prefix that fits more than one id."""

    code = "ambiguous"
    status = 409


class AlreadyExists(HypemandError):
    """A VM or image of that name is there. A 400, since the published client repeats what gets a 409."""

    code = "already_exists"
    status = 400


class WrongState(HypemandError):
    """The VM's state does not allow the operation. The message names both."""

    code = "invalid_state"
    status = 409


class InUse(HypemandError):
    """Something that is still needed by something else was to be removed."""

    code = "in_use"
    status = 409


class InsufficientResources(HypemandError):
    """The host cannot carry it. The message has the figures."""

    code = "insufficient_resources"
    status = 409


class ImageNotReady(HypemandError):
    """An image that is there but cannot be used: broken, or of another architecture."""

    code = "image_not_ready"
    status = 400


class HostNotReady(HypemandError):
    """The host lacks something: QEMU, the kernel, the guest files, systemd's bus."""

    code = "host_not_ready"
    status = 503


class Stopping(HostNotReady):
    """The daemon stops. Whoever asks again reaches the next one: the socket stays open."""

    code = "stopping"

    def __init__(self) -> None:
        super().__init__("the daemon stops", hint="ask again")


class StartFailed(HypemandError):
    """A VM did not get to Running. The message says what was missing or what the guest reported."""

    code = "start_failed"
    status = 502


class TimedOut(HypemandError):
    """A deadline passed."""

    code = "timed_out"
    status = 504


class GuestError(HypemandError):
    """The agent in the guest refused or broke the protocol."""

    code = "guest_error"
    status = 502
