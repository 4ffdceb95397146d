# SPDX-License-Identifier: Apache-2.0
"""Extended attributes of layers that what unpacks them may not set.

An image of a distribution that signs its files has security.ima, for example. To set it takes a right over
the host; a guest that has no keys does nothing with it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from hypemand.tar import read_headers

_XATTR = b"SCHILY.xattr."
# of the same length, and known to nobody
_DROPPED = b"HYPEMAN.none."
# all names of these two but file capabilities, see xattr(7)
_FORBIDDEN = re.compile(rb"SCHILY\.xattr\.(trusted\.|security\.(?!capability=))")


def drop_forbidden(tar: Path) -> None:
    """Rename such attributes in an uncompressed tar, so that nobody takes them for any. InvalidArchive."""
    with open(tar, "r+b") as archive:

        def look(offset: int, data: bytes) -> None:
            at = 0
            while at < len(data):
                # read_headers has found this right
                head, _, _ = data[at : at + 32].partition(b" ")
                key = at + len(head) + 1
                if _FORBIDDEN.match(data, key):
                    os.pwrite(archive.fileno(), _DROPPED, offset + key)
                at += int(head)

        for _ in read_headers(archive, look):
            pass


assert len(_DROPPED) == len(_XATTR)
