# SPDX-License-Identifier: Apache-2.0
"""pystemd's binding to sd-bus, without the rest of pystemd.

``import pystemd`` also loads lxml, to introspect objects, which nothing here does: 6 MiB of memory and
10 ms. So the package is given to Python as a mere place to find its modules in.
"""

from __future__ import annotations

from hypemand.errors import HostNotReady
from hypemand.lean import skip_package

try:
    skip_package("pystemd")
except ModuleNotFoundError:
    raise HostNotReady("Python has no pystemd", hint="install the package python3-pystemd") from None

from pystemd.dbusexc import DBusBaseError, DBusNoReplyError
from pystemd.dbuslib import DBus, apply_signature

__all__ = ["DBus", "DBusBaseError", "DBusNoReplyError", "apply_signature"]
