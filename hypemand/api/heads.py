# SPDX-License-Identifier: Apache-2.0
"""Request headers: the limit of their size, and the response to `Expect`.

aiohttp limits each header by itself; only some versions limit all of them together (Debian 12's does, 3.11 of
Debian 13 does not). And it answers `Expect` (RFC 9110, section 10.1.1) before any middleware runs, so that a
client without a token would learn what another is not told.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiohttp import hdrs, web
from aiohttp.http_exceptions import BadHttpMessage
from aiohttp.web_protocol import RequestHandler

from hypemand.api.failures import Handler

# bytes of one head, request line and separators included; what browsers and proxies send is below 16 KiB
MAX_HEAD = 64 * 1024
_SEPARATORS = 4  # of one header: a colon, a blank, CR and LF
_EXPECT = "hypemand.expect"


class _BoundedParser:
    """A parser of aiohttp's that refuses a head of more than MAX_HEAD bytes, whole or still under way."""

    def __init__(self, parser: Any) -> None:
        self._parser = parser
        self._payload: Any = None
        self._pending = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parser, name)

    def feed_data(self, data: bytes) -> Any:
        """As aiohttp's. Raises BadHttpMessage, which aiohttp answers with 400 before it closes."""
        in_head = self._payload is None or self._payload.is_eof()
        messages, upgraded, tail = self._parser.feed_data(data)
        for message, payload in messages or ():
            self._pending, self._payload = 0, payload
            if sum(len(key) + len(value) + _SEPARATORS for key, value in message.raw_headers) > MAX_HEAD:
                raise BadHttpMessage("the head of the request is too large")
        if in_head and not messages:
            self._pending += len(data)
            if self._pending > MAX_HEAD:
                raise BadHttpMessage("the head of the request is too large")
        return messages, upgraded, tail


def bound_head(connection: RequestHandler) -> None:
    """Limit the request headers on a new connection to MAX_HEAD bytes."""
    # There is no public way: neither versions that limit heads nor others let the parser be chosen.
    inside: Any = connection
    inside._request_parser = _BoundedParser(inside._request_parser)


def defer_expectations(server: web.Server) -> None:
    """Hide `Expect` from aiohttp; `meet_expectation` answers it."""
    inside: Any = server
    make_request: Callable[..., web.Request] = inside.request_factory

    def make(message: Any, *others: Any) -> web.Request:
        expected = message.headers.get(hdrs.EXPECT)
        if expected is None:
            return make_request(message, *others)
        headers = message.headers.copy()
        headers.popall(hdrs.EXPECT)
        request = make_request(message._replace(headers=headers), *others)
        request[_EXPECT] = expected
        return request

    inside.request_factory = make


@web.middleware
async def meet_expectation(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Middleware after authentication: answer `Expect` with 100 Continue."""
    expected = request.get(_EXPECT)
    if expected is not None and request.match_info.http_exception is None:
        if str(expected).lower() != "100-continue":
            raise web.HTTPExpectationFailed(reason="the one expectation is 100-continue")
        assert request.transport is not None, "the client is there: its request was just read"
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    return await handler(request)
