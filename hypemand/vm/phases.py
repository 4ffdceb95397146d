# SPDX-License-Identifier: Apache-2.0
"""Time that a VM spent in each state."""

from __future__ import annotations

from hypemand.model.state import State


class Phases:
    """The time in each state. `since`: when the one that it is in began, in seconds since the epoch."""

    def __init__(self, since: float) -> None:
        self.since = since
        self._spent: dict[State, float] = {}

    def end(self, state: State, at: float) -> None:
        """It was in `state`, and is in another one since then."""
        self._spent[state] = self._spent.get(state, 0.0) + max(at - self.since, 0.0)
        self.since = at

    def list_ms(self, state: State, now: float) -> dict[str, int]:
        """Milliseconds by the names of states; `state` is the one that it is in."""
        spent = {**self._spent, state: self._spent.get(state, 0.0) + now - self.since}
        return {state.value.lower(): round(seconds * 1000) for state, seconds in spent.items()}
