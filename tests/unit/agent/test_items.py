# SPDX-License-Identifier: Apache-2.0
"""Items of stat and copies, from a guest that may send anything."""

from __future__ import annotations

import asyncio
import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypemand.agent.channel import AgentChannel
from hypemand.errors import GuestError, NotFound
from hypemand.model.files import CopyOut, FileInfo, FileKind, Hole
from hypemand.protocol.frames import WINDOW
from hypemand.protocol.items import End, ItemParser, Tree, encode_data, encode_entry, encode_hole
from hypemand.protocol.records import ProtocolError
from tests.unit.agent.support import (
    CLOSE,
    DATA,
    END,
    ENTRY,
    EXEC,
    EXIT,
    FILES,
    HOLE,
    STARTED,
    Guest,
    greeted,
    in_loop,
    pack,
    records,
)

NAMES = st.binary(min_size=1, max_size=40).map(lambda raw: os.fsdecode(raw.replace(b"\0", b"0")))
ENTRIES = st.builds(
    FileInfo,
    path=NAMES,
    kind=st.sampled_from([kind for kind in FileKind if kind is not FileKind.SYMLINK]),
    mode=st.integers(0, 0o7777),
    uid=st.integers(0, 2**32 - 1),
    gid=st.integers(0, 2**32 - 1),
    size=st.just(0),
    mtime_ns=st.integers(-(2**62), 2**62),
) | st.builds(
    FileInfo,
    path=NAMES,
    kind=st.just(FileKind.SYMLINK),
    mode=st.just(0o777),
    uid=st.just(0),
    gid=st.just(0),
    size=st.just(0),
    mtime_ns=st.just(0),
    target=NAMES,
)
A_FILE = b"path=\0kind=file\0mode=1\0uid=0\0gid=0\0size=3\0mtime=-1\0"
ITEM_BYTES = st.lists(
    st.builds(
        pack,
        st.sampled_from([ENTRY, DATA, HOLE, END, EXEC]),
        st.sampled_from([0, 0, 0, 1]),
        st.binary(max_size=60) | st.sampled_from([A_FILE, b"code=ok\0bytes=0\0"]),
    )
).map(b"".join)


@given(ENTRIES)
def test_an_entry_comes_back_as_it_was(entry: FileInfo) -> None:
    assert ItemParser().feed(encode_entry(entry)) == [entry]


@given(st.lists(st.binary(max_size=200)) | ITEM_BYTES.map(lambda data: [data]))
def test_any_bytes_are_items_or_a_protocol_error(pieces: list[bytes]) -> None:
    parser = ItemParser()
    try:
        for piece in pieces:
            for item in parser.feed(piece):
                assert isinstance(item, FileInfo | bytes | int | End)
    except ProtocolError:
        pass


@given(
    st.lists(
        ENTRIES
        | st.builds(FileInfo, st.text("ab/.", max_size=6), st.sampled_from(FileKind), *[st.just(0)] * 5)
    )
)
def test_no_order_of_entries_leads_out_or_below_what_is_no_folder(entries: list[FileInfo]) -> None:
    tree = Tree()
    folders: set[str] = set()
    for number, entry in enumerate(entries):
        try:
            tree.take(entry)
        except ProtocolError:
            return
        if number == 0:
            assert entry.path == ""
        else:
            assert not {"", ".", ".."} & set(entry.path.split("/"))
            assert entry.path.rpartition("/")[0] in folders
        if entry.kind is FileKind.DIRECTORY:
            folders.add(entry.path)
        else:
            folders.discard(entry.path)


def entry(path: str, kind: str = "file", **more: object) -> bytes:
    values = {"mode": 420, "uid": 0, "gid": 0, "size": 0, "mtime": 0} | more
    pairs = [("path", path), ("kind", kind), *((key, str(value)) for key, value in values.items())]
    return pack(ENTRY, 0, records(*pairs))


def end(code: str = "ok", **more: object) -> bytes:
    values = {"bytes": 0} | more
    return pack(END, 0, records(("code", code), *((key, str(value)) for key, value in values.items())))


async def answer(guest: Guest, items: bytes, code: int = 0) -> int:
    """Answer a FILES with these bytes and the stream's end; gives the stream."""
    stream, _, _ = await guest.expect(FILES)
    guest.send(pack(STARTED, stream, records(("pid", "42"))))
    for at in range(0, len(items), 1000):
        guest.send(pack(DATA, stream, items[at : at + 1000], 1))
    guest.exit(stream, code, "killed by signal 9 (KILL)" if code else "")
    return stream


async def copy_out(channel: AgentChannel, guest: Guest, items: bytes, code: int = 0) -> CopyOut:
    asking = asyncio.create_task(channel.copy_out("/tree"))
    await answer(guest, items, code)
    return await asking


async def read(copy: CopyOut) -> list[FileInfo | bytes | Hole]:
    return [event async for event in copy.events()]


FOLDER = entry("", "directory")
HOSTILE = {
    "root not first": entry("x"),
    "root twice": FOLDER + entry("", "directory"),
    "dots": FOLDER + entry("../x"),
    "dots inside": FOLDER + entry("a/../../x"),
    "absolute": FOLDER + entry("/etc/passwd"),
    "empty part": FOLDER + entry("a//x"),
    "dot": FOLDER + entry("./x"),
    "below a link": FOLDER + entry("a", "symlink", target="/etc") + entry("a/passwd"),
    "below a file": entry("") + entry("x"),
    "below what comes later": FOLDER + entry("a/x") + entry("a", "directory"),
    "back in a folder that was left": FOLDER + entry("a", "directory") + entry("b") + entry("a/x"),
    "data of nothing": FOLDER + pack(DATA, 0, b"x"),
    "data beyond the size": entry("", size=2) + pack(DATA, 0, b"abc"),
    "hole beyond the size": entry("", size=2) + encode_hole(3),
    "hole of nothing": entry("", size=2) + encode_hole(0),
    "data of no size": entry("", size=2) + pack(DATA, 0),
    "too short": entry("", size=2) + pack(DATA, 0, b"a") + end(),
    "no such kind": entry("", "door"),
    "a link to nowhere": entry("", "symlink"),
    "a file with a target": entry("", target="x"),
    "mode": entry("", mode=4096),
    "owner": entry("", uid=1 << 32),
    "negative owner": entry("", uid=-1),
    "size": entry("", size=1 << 63),
    "time": entry("", mtime="later"),
    "long time": entry("", mtime="9" * 5000),
    "long path": FOLDER + entry("x" * 4096),
    "path twice": pack(ENTRY, 0, records(("path", ""), ("path", ""), ("kind", "file"))),
    "an unknown end": FOLDER + end("fine"),
    "an item of a stream": pack(END, 1, b"code=ok\0bytes=0\0"),
    "no item": FOLDER + pack(EXIT, 0, b""),
    "a short hole": entry("", size=9) + pack(HOLE, 0, b"x"),
    "no frame": FOLDER + struct.pack("<IIBBH", 1 << 31, 0, DATA, 0, 0),
}


@pytest.mark.parametrize("items", HOSTILE.values(), ids=HOSTILE.keys())
@in_loop
async def test_a_hostile_copy_ends_with_a_reason_and_harms_no_other(tmp_path: Path, items: bytes) -> None:
    async with greeted(tmp_path) as (channel, guest):
        reading = asyncio.create_task(_copy_and_read(channel, guest, items + end()))
        with pytest.raises(ProtocolError):
            await reading
        asking = asyncio.create_task(channel.stat("/"))
        while (frame := await guest.receive())[0] == CLOSE:
            pass
        guest.send(pack(DATA, frame[1], entry("/") + end(), 1))
        guest.exit(frame[1])
        assert (await asking) is not None


async def _copy_and_read(channel: AgentChannel, guest: Guest, items: bytes) -> list[FileInfo | bytes | Hole]:
    return await read(await copy_out(channel, guest, items))


@in_loop
async def test_a_copy_gives_entries_data_and_holes_in_order(tmp_path: Path) -> None:
    async with greeted(tmp_path) as (channel, guest):
        items = (
            FOLDER + entry("a", size=12) + encode_data(b"ab") + encode_hole(10) + entry("b", "socket") + end()
        )
        events = await read(await copy_out(channel, guest, items))
        names = [event.path if isinstance(event, FileInfo) else event for event in events]
        assert names == ["", "a", b"ab", Hole(10), "b"]


@in_loop
async def test_what_went_wrong_in_the_guest_is_said_after_the_rest(tmp_path: Path) -> None:
    async with greeted(tmp_path) as (channel, guest):
        copy = await copy_out(
            channel, guest, FOLDER + entry("a") + end("failed", message="cannot open b: \033[1m")
        )
        events = copy.events()
        assert [(await anext(events)), (await anext(events))] != []
        with pytest.raises(GuestError, match=r"cannot open b: \?\[1m"):
            await anext(events)


@in_loop
async def test_a_copy_whose_process_dies_is_told(tmp_path: Path) -> None:
    async with greeted(tmp_path) as (channel, guest):
        copy = await copy_out(channel, guest, FOLDER, code=137)
        with pytest.raises(GuestError, match="killed by signal 9"):
            await read(copy)


@in_loop
async def test_what_is_missing_is_not_found(tmp_path: Path) -> None:
    async with greeted(tmp_path) as (channel, guest):
        with pytest.raises(NotFound, match="no such file"):
            await copy_out(channel, guest, end("missing", message="no such file"))
        asking = asyncio.create_task(channel.stat("/x"))
        await answer(guest, end("missing", message="no such file"))
        assert await asking is None


@in_loop
async def test_a_copy_in_that_is_called_whole_too_early_is_not(tmp_path: Path) -> None:
    async with greeted(tmp_path) as (channel, guest):
        asking = asyncio.create_task(channel.copy_in("/x"))
        stream, _, _ = await guest.expect(FILES)
        guest.send(pack(STARTED, stream, records(("pid", "42"))))
        copy = await asking
        await copy.add(FileInfo("", FileKind.FILE, 0o644, -1, -1, 1 << 40, 0))
        guest.send(pack(DATA, stream, end(), 1))
        guest.exit(stream)
        with pytest.raises(ProtocolError, match="called a copy whole"):
            await copy.write(bytes(2 * WINDOW))
        with pytest.raises(ProtocolError):
            await copy.finish()
        await copy.close()


@in_loop
async def test_a_copy_in_learns_at_once_what_failed(tmp_path: Path) -> None:
    async with greeted(tmp_path) as (channel, guest):
        asking = asyncio.create_task(channel.copy_in("/x"))
        stream, _, _ = await guest.expect(FILES)
        guest.send(pack(STARTED, stream, records(("pid", "42"))))
        copy = await asking
        await copy.add(FileInfo("", FileKind.FILE, 0o644, -1, -1, 1 << 40, 0))
        guest.send(pack(DATA, stream, end("failed", message="disk full"), 1))
        guest.exit(stream)
        with pytest.raises(GuestError, match="disk full"):
            await copy.write(bytes(2 * WINDOW))
        with pytest.raises(GuestError, match="disk full"):
            await copy.finish()
        await copy.close()
