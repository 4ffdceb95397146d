# SPDX-License-Identifier: Apache-2.0
"""Requests before the list of VMs is available."""

from __future__ import annotations

from aiohttp import web

from hypemand.api.failures import Handler
from hypemand.errors import HostNotReady

_ALWAYS = ("/health", "/openapi.yaml")


class Hold:
    """While `reason` is not "", requests are refused with it: a list without its VMs would be a lie, and a VM
    could be made whose name another has."""

    def __init__(self) -> None:
        self.reason = ""

    @web.middleware
    async def check(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let in, or refuse with HostNotReady."""
        if self.reason and request.path not in _ALWAYS:
            raise HostNotReady(
                self.reason, hint="try again later; see journalctl -u hypemand for what it waits for"
            )
        return await handler(request)
