# SPDX-License-Identifier: Apache-2.0
"""ExecStop= of units that an earlier version of hypemand has made, and that still run: launcher/ending.

``python3 -I -m hypemand.unit.stop RUNTIME_DIR GRACE_SECONDS STATE_DIR [VM]``
"""

from __future__ import annotations

import os
import sys

_ENDING = "/usr/lib/hypemand/ending"

if __name__ == "__main__":
    os.execv(_ENDING, [_ENDING, "stop", *sys.argv[1:]])  # noqa: S606
