# SPDX-License-Identifier: Apache-2.0
"""The journal, read while journald writes to it."""

from __future__ import annotations

from tests.host.machine import TestHost

LINES = 3000
# Each line is sent when the one before has been seen, so that one that is passed over has none after it. Who
# looks without a pause looks at some while journald is between counting and linking them.
FOLLOW = """
import socket, sys, time
from systemd._reader import _Reader
from hypemand.systemd.journal import seek_behind

writer = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
reader = _Reader()
reader.add_match("FOLLOWED=yes")
cursor = None
for number in range(int(sys.argv[1])):
    fields = "".join(f"FIELD_{at}={number}-{at}\\n" for at in range(20))
    writer.sendto(f"MESSAGE={number}\\n{fields}FOLLOWED=yes\\n".encode(), "/run/systemd/journal/socket")
    deadline = time.monotonic() + 60
    seek_behind(reader, cursor)
    while not reader._next():
        if time.monotonic() > deadline:
            sys.exit(f"line {number} has not been seen")
        seek_behind(reader, cursor)
    cursor = reader._get_cursor()
    assert reader._get("MESSAGE") == str(number).encode()
print("all")
"""


def test_who_looks_while_a_line_is_being_written_sees_it_without_another_one(host: TestHost) -> None:
    assert host.run(["python3", "-c", FOLLOW, str(LINES)], timeout=300).stdout == "all\n"
