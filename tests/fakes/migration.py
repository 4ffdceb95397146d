# SPDX-License-Identifier: Apache-2.0
"""What QEMU writes when a guest is saved, a part at a time: launcher/intake/stream.h.

tests/launcher/intake.py uses it too, so there is nothing of pytest and its like."""

from __future__ import annotations

import struct
from collections.abc import Mapping

PAGE = 4096
BLOCK = "microvm.ram"
RAM = 2
# flags of a page
ZERO, SIZES, DATA, LAST, CONTINUE = 0x02, 0x04, 0x08, 0x10, 0x20
START, PART, END, FULL, CONFIGURATION, COMMAND, FOOTER = 1, 2, 3, 4, 7, 8, 0x7E


def name(text: str) -> bytes:
    """With its length."""
    return bytes([len(text)]) + text.encode()


def header(machine: str = "microvm") -> bytes:
    """Of the stream, up to the first section."""
    return b"QEVM" + struct.pack(">IBI", 3, CONFIGURATION, len(machine)) + machine.encode()


def sizes(blocks: Mapping[str, int]) -> bytes:
    """The blocks of memory, with their sizes."""
    listed = b"".join(name(block) + struct.pack(">Q", size) for block, size in blocks.items())
    return struct.pack(">Q", sum(blocks.values()) | SIZES) + listed


def page(offset: int, data: bytes | None, block: str | None = None) -> bytes:
    """One page; None: of zeros. `block` None: that of the page before."""
    flags = (ZERO if data is None else DATA) | (CONTINUE if block is None else 0)
    place = struct.pack(">Q", offset | flags) + (b"" if block is None else name(block))
    return place + (b"\0" if data is None else data)


def start(content: bytes, *, kind: int = START, section: str = "ram", number: int = RAM) -> bytes:
    """A section that names itself."""
    version = 4 if section == "ram" else 1
    return struct.pack(">BI", kind, number) + name(section) + struct.pack(">II", 0, version) + content


def part(content: bytes, *, kind: int = PART, number: int = RAM) -> bytes:
    """A later part of it."""
    return struct.pack(">BI", kind, number) + content


def end(number: int = RAM) -> bytes:
    """Of a part."""
    return struct.pack(">QBI", LAST, FOOTER, number)


def command(data: bytes, number: int = 11) -> bytes:
    """As QEMU 10 has some between its sections."""
    return struct.pack(">BHH", COMMAND, number, len(data)) + data


def device(content: bytes = b"state of a timer") -> bytes:
    """The first of those."""
    return start(content, kind=FULL, section="timer", number=7)


def format_stream(memory: bytes, size: int) -> bytes:
    """Of a guest with `size` bytes of memory, which begins with `memory`."""
    memory += bytes(-len(memory) % PAGE)
    pages = [page(at, memory[at : at + PAGE]) for at in range(0, len(memory), PAGE)]
    if pages:
        pages[0] = page(0, memory[:PAGE], BLOCK)
    content = b"".join(pages)
    return b"".join(
        (header(), start(sizes({BLOCK: size}) + end()), part(content + end(), kind=END), device())
    )
