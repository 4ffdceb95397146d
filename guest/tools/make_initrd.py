#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Write the initrd: an uncompressed cpio archive ("newc") that is the same bytes for the same binaries.

Usage: make_initrd.py OUTPUT HYPEMAN-INIT HYPEMAN-AGENT
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ALIGNMENT = 4
# QEMU places an initrd in the last pages of memory after its firmware has put the ACPI tables, a KiB or two,
# at the very end: what ends in the middle of a page overwrites them, and the kernel hangs in the DSDT. One of
# whole pages is placed a page lower.
PAGE = 4096


@dataclass(frozen=True)
class Entry:
    """One member of the archive: owner root, modification time 0."""

    name: str
    mode: int
    content: bytes = b""
    device: tuple[int, int] = (0, 0)


def pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % ALIGNMENT)


def format_entry(number: int, entry: Entry) -> bytes:
    """Format a member as newc wants it: thirteen hexadecimal fields, the name, the content."""
    name = entry.name.encode() + b"\0"
    major, minor = entry.device
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (number, entry.mode, 0, 0, links, 0, len(entry.content), 0, 0, major, minor, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return pad(header + name) + pad(entry.content)


def format_archive(entries: Iterable[Entry]) -> bytes:
    members = [*entries, Entry("TRAILER!!!", 0)]
    archive = b"".join(format_entry(number, entry) for number, entry in enumerate(members, 1))
    return archive + bytes(-len(archive) % PAGE)


def main(arguments: list[str]) -> None:
    output, init, agent = (Path(argument) for argument in arguments)
    archive = format_archive(
        (
            Entry("dev", stat.S_IFDIR | 0o755),
            Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
            Entry("hypeman-agent", stat.S_IFREG | 0o755, agent.read_bytes()),
            Entry("init", stat.S_IFREG | 0o755, init.read_bytes()),
        )
    )
    temporary = output.with_suffix(".new")
    temporary.write_bytes(archive)
    os.replace(temporary, output)


if __name__ == "__main__":
    main(sys.argv[1:])
