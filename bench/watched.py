# SPDX-License-Identifier: Apache-2.0
"""The daemon as ever, but that every turn of its event loop is measured: milliseconds, in a file at its end.

Runs in the test host, in place of /usr/bin/hypemand.
"""

from __future__ import annotations

import json
import sys
import time
from array import array
from pathlib import Path

from hypemand import turns

_FILE = Path("/run/hypemand/turns.json")
_lengths = array("d")


class Measured(turns.TurnWatch):
    """Notes each turn, and not only those that are too long."""

    def end(self) -> None:
        turn = self._turn
        if turn is not None:
            _lengths.append((time.monotonic() - turn[0]) * 1000)
        super().end()


def main() -> int:
    turns.TurnWatch = Measured  # type: ignore[misc]
    from hypemand.__main__ import main as run

    try:
        return run()
    finally:
        _FILE.write_text(json.dumps([round(length, 3) for length in _lengths]))


if __name__ == "__main__":
    sys.exit(main())
