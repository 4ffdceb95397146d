# SPDX-License-Identifier: Apache-2.0
"""Events of this host, passed on to those who follow them."""

from __future__ import annotations

from hypemand.model.events import Event, Tell


class Events:
    """Passes each event on at once. Whoever follows does little, and raises nothing."""

    def __init__(self) -> None:
        self._followers: list[Tell] = []

    def follow(self, tell: Tell) -> None:
        """Call this with each event from now on."""
        self._followers.append(tell)

    def tell(self, event: Event) -> None:
        """Something has happened."""
        for follower in self._followers:
            follower(event)
