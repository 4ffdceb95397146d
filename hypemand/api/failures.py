# SPDX-License-Identifier: Apache-2.0
"""Errors as HTTP answers: always JSON, always the same four keys."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from hypemand.errors import HostNotReady, HypemandError, InvalidDefinition, InvalidRequest
from hypemand.fulldisk import derive_full_disk
from hypemand.model.answers.error import Error
from hypemand.model.document import encode
from hypemand.run import is_disk_full
from hypemand.workers import Pool, run_in

log = logging.getLogger(__name__)
# what is full where an error does not say so
_STATE = Path("/var/lib/hypemand")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class UnknownRoute(HypemandError):
    """The path does not exist."""

    code = "unknown_route"
    status = 404


class TooManyRequests(HypemandError):
    """The client has the maximum number of requests in progress."""

    code = "too_many_requests"
    status = 429


class MethodNotAllowed(HypemandError):
    """The path does not support the method."""

    code = "method_not_allowed"
    status = 405


def error_json(error: HypemandError) -> Any:
    """The body of an error answer, and the data of an `error` event in a stream."""
    problems = error.problems if isinstance(error, InvalidDefinition) else ()
    return encode(Error(error.code, error.message, error.hint, problems))


def error_response(error: HypemandError) -> web.Response:
    """The response to a request that failed."""
    response = web.Response(
        status=error.status, text=json.dumps(error_json(error)), content_type="application/json"
    )
    if not isinstance(error, HostNotReady | TooManyRequests):
        # The published client repeats what ended in 409 or 5xx. A state or a failed start does not mend
        # itself within its two seconds; a daemon that restarts does.
        response.headers["X-Should-Retry"] = "false"
    return response


def unexpected(error: Exception, what: str) -> HypemandError:
    """Log an unexpected error, and return one for the client that does not show details."""
    log.error("%s: unexpected %s", what, type(error).__name__, exc_info=error)
    return HypemandError("internal error of hypemand", hint="see journalctl -u hypemand")


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Middleware that turns each failure of a handler into a JSON response."""
    try:
        return await handler(request)
    except HypemandError as error:
        response = error_response(error)
    except web.HTTPException as error:
        response = _translate(request, error)
    except ConnectionError:
        raise  # the client has gone: there is nobody to answer
    except OSError as error:
        response = error_response(await _derive_os_error(error, f"{request.method} {request.path}"))
    except Exception as error:
        response = error_response(unexpected(error, f"{request.method} {request.path}"))
    if not request.content.is_eof():
        # what is left of a body that was refused half-read must not be taken for the next request
        response.force_close()
    return response


async def _derive_os_error(error: OSError, what: str) -> HypemandError:
    """A full disk has a cure; all else was not foreseen."""
    if not is_disk_full(error):
        return unexpected(error, what)
    full = await run_in(Pool.RECORDS, derive_full_disk, error, f"answer {what[:200]}", _STATE)
    log.error("%s", full)
    return full


def _translate(request: web.Request, error: web.HTTPException) -> web.Response:
    """aiohttp's own refusals in our words."""
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        response = error_response(
            MethodNotAllowed(f"{request.method} is not allowed here", hint=f"allowed: {allowed}")
        )
        response.headers["Allow"] = allowed
        return response
    if isinstance(error, web.HTTPNotFound):
        return error_response(
            UnknownRoute(f"there is no {request.path[:200]}", hint="GET /openapi.yaml describes the routes")
        )
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return error_response(InvalidRequest("the body of the request is larger than 1 MiB"))
    return error_response(InvalidRequest(f"the request cannot be parsed: {error.reason}"))
