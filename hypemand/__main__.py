# SPDX-License-Identifier: Apache-2.0
"""The command `hypemand`: the daemon, without loading modules that it does not use."""

from __future__ import annotations

import sys

from hypemand.lean import skip_package


def main() -> int:
    """Run the daemon; see `hypemand.daemon.main`."""
    # the client: 2 MiB and 20 ms of a daemon that only serves
    skip_package("aiohttp", __version__="")
    from hypemand.daemon import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
