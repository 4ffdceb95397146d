# SPDX-License-Identifier: Apache-2.0
"""Stat and copies: the host's channel and the guest's real agent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import stat
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest

from hypemand.agent.channel import AgentChannel
from hypemand.errors import GuestError, InvalidRequest, NotFound
from hypemand.model.files import CopyIn, CopyOut, FileInfo, FileKind, Hole
from tests.unit.agent.real import serving
from tests.unit.agent.support import WINDOW, in_loop

MTIME = 1_600_000_000_123_456_789


def entry(path: str, kind: FileKind = FileKind.FILE, size: int = 0, **more: object) -> FileInfo:
    values = {"mode": 0o644, "uid": -1, "gid": -1, "mtime_ns": MTIME, "target": None} | more
    return FileInfo(path, kind, size=size, **values)  # type: ignore[arg-type]


async def collect(copy: CopyOut) -> dict[str, tuple[FileInfo, bytes]]:
    """All that comes, holes as zeros."""
    got: dict[str, tuple[FileInfo, bytes]] = {}
    path = ""
    async for event in copy.events():
        if isinstance(event, FileInfo):
            path = event.path
            assert path not in got
            got[path] = (event, b"")
        else:
            info, data = got[path]
            got[path] = (info, data + (bytes(event.size) if isinstance(event, Hole) else event))
    return got


def make_tree(top: Path) -> None:
    """Files of all kinds that can be copied."""
    (top / "a" / "deep").mkdir(parents=True)
    (top / "a" / "data").write_bytes(random.Random(1).randbytes(300_000))
    (top / "a" / "empty").touch()
    (top / "a" / "deep" / "tool").write_bytes(b"#!/bin/sh\n")
    (top / "a" / "deep" / "tool").chmod(0o4755)
    (top / "link").symlink_to("a/../nowhere")
    os.mkfifo(top / "fifo", 0o640)
    (top / os.fsdecode(b"b\xffd \n")).write_bytes(b"odd name")
    os.chown(top / "a" / "data", 1234, 4321)
    os.chown(top / "link", 77, 78, follow_symlinks=False)
    (top / "a" / "deep").chmod(0o2711)
    for path in (top / "link", top / "a" / "data", top / "a" / "deep", top / "a"):
        os.utime(path, ns=(1, MTIME), follow_symlinks=False)
    (top / "a").chmod(0o500)


def describe(path: Path) -> tuple[object, ...]:
    """All that a copy keeps of a file."""
    status = path.lstat()
    kind = stat.S_IFMT(status.st_mode)
    content: object = None
    if kind == stat.S_IFREG:
        content = path.read_bytes()
    elif kind == stat.S_IFLNK:
        content = os.readlink(path)
    return kind, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns, content


def describe_tree(top: Path) -> dict[str, tuple[object, ...]]:
    return {str(path.relative_to(top)): describe(path) for path in sorted(top.rglob("*"))}


async def put_into(copy: CopyIn, events: Sequence[FileInfo | bytes | Hole]) -> int:
    """All of a copy into a guest."""
    for event in events:
        if isinstance(event, FileInfo):
            await copy.add(event)
        elif isinstance(event, Hole):
            await copy.skip(event)
        else:
            await copy.write(event)
    return await copy.finish()


async def put(channel: AgentChannel, target: Path, events: Sequence[FileInfo | bytes | Hole]) -> int:
    """One whole copy into a guest."""
    copy = await channel.copy_in(str(target))
    try:
        return await put_into(copy, events)
    finally:
        await copy.close()


@contextlib.contextmanager
def mounted(kind: str, folder: Path) -> Iterator[None]:
    folder.mkdir()
    subprocess.run(["mount", "-t", kind, kind, folder], check=True, timeout=10)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True, timeout=10)


@in_loop
async def test_a_copy_of_a_whole_guest_is_without_the_kernels_own_file_systems(
    agent: Path, tmp_path: Path
) -> None:
    top = tmp_path / "guest"
    top.mkdir()
    with mounted("proc", top / "proc"), mounted("sysfs", top / "sys"), mounted("tmpfs", top / "run"):
        (top / "run" / "kept").write_text("mine")
        (top / "file").write_text("mine")
        async with serving(agent, tmp_path) as channel:
            got = await collect(await channel.copy_out(str(top), follow=False))
            assert set(got) == {"", "proc", "sys", "run", "run/kept", "file"}
            asked = await collect(await channel.copy_out(str(top / "proc" / "self" / "ns"), follow=False))
            assert "mnt" in asked


@in_loop
async def test_stat_tells_what_a_file_is(agent: Path, tmp_path: Path) -> None:
    make_tree(tmp_path / "tree")
    async with serving(agent, tmp_path) as channel:
        data = str(tmp_path / "tree/a/data")
        assert await channel.stat(data) == FileInfo(
            data, FileKind.FILE, 0o644, 1234, 4321, 300_000, MTIME, None
        )
        link = await channel.stat(str(tmp_path / "tree/link"))
        assert link is not None
        assert (link.kind, link.target, link.size) == (FileKind.SYMLINK, "a/../nowhere", 0)
        folder = await channel.stat(str(tmp_path / "tree/a/deep"))
        assert folder is not None
        assert (folder.kind, folder.mode) == (FileKind.DIRECTORY, 0o2711)
        (tmp_path / "way").symlink_to("tree/a/data")
        followed = await channel.stat(str(tmp_path / "way"), follow=True)
        assert followed is not None
        assert (followed.kind, followed.size) == (FileKind.FILE, 300_000)
        null = await channel.stat("/dev/null")
        assert null is not None
        assert null.kind is FileKind.CHARACTER


@pytest.mark.parametrize("path", ["nothing", "tree/link/x", "file/x"])
@in_loop
async def test_stat_of_what_is_not_there_is_none(agent: Path, tmp_path: Path, path: str) -> None:
    (tmp_path / "file").touch()
    async with serving(agent, tmp_path) as channel:
        assert await channel.stat(str(tmp_path / path)) is None


@in_loop
async def test_a_path_that_is_none_is_refused_before_it_is_sent(agent: Path, tmp_path: Path) -> None:
    async with serving(agent, tmp_path) as channel:
        for path in ("relative", "", "/a\0b", "/" + "x" * 5000):
            with pytest.raises(InvalidRequest):
                await channel.stat(path)


@in_loop
async def test_a_tree_comes_out_and_goes_in_as_it_is(agent: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "tree", tmp_path / "far" / "off" / "copy"
    make_tree(source)
    (source / "a").chmod(0o700)
    os.utime(source / "a", ns=(1, MTIME))
    os.utime(source, ns=(1, MTIME))
    async with serving(agent, tmp_path) as channel:
        out = await channel.copy_out(str(source))
        copy = await channel.copy_in(str(target))
        async for event in out.events():
            if isinstance(event, FileInfo):
                await copy.add(event)
            elif isinstance(event, Hole):
                await copy.skip(event)
            else:
                await copy.write(event)
        assert await copy.finish() == 300_000 + 10 + 8
    assert describe_tree(target) == describe_tree(source)
    assert describe(target) == describe(source)


@in_loop
async def test_a_single_file_and_a_single_link_are_trees_of_one(agent: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 70_000)
    (tmp_path / "link").symlink_to("file")
    async with serving(agent, tmp_path) as channel:
        got = await collect(await channel.copy_out(str(tmp_path / "file")))
        assert list(got) == [""]
        assert got[""][1] == b"x" * 70_000
        link = (await collect(await channel.copy_out(str(tmp_path / "link"))))[""][0]
        assert (link.kind, link.target) == (FileKind.SYMLINK, "file")
        followed = await collect(await channel.copy_out(str(tmp_path / "link"), follow=True))
        assert followed[""][1] == b"x" * 70_000
        await put(channel, tmp_path / "new", [entry("", size=3), b"abc"])
        await put(channel, tmp_path / "newlink", [entry("", FileKind.SYMLINK, target="there")])
    assert (tmp_path / "new").read_bytes() == b"abc"
    assert os.readlink(tmp_path / "newlink") == "there"


@in_loop
async def test_what_is_not_there_is_not_found(agent: Path, tmp_path: Path) -> None:
    async with serving(agent, tmp_path) as channel:
        with pytest.raises(NotFound, match="nothing"):
            await channel.copy_out(str(tmp_path / "nothing"))


@in_loop
async def test_holes_stay_holes_both_ways(agent: Path, tmp_path: Path) -> None:
    size = 1 << 30
    with (tmp_path / "sparse").open("wb") as file:
        file.seek(64 << 20)
        file.write(b"middle")
        file.truncate(size)
    async with serving(agent, tmp_path) as channel:
        out = await channel.copy_out(str(tmp_path / "sparse"))
        copy = await channel.copy_in(str(tmp_path / "again"))
        moved = 0
        async for event in out.events():
            if isinstance(event, FileInfo):
                await copy.add(event)
            elif isinstance(event, Hole):
                await copy.skip(event)
            else:
                moved += len(event)
                await copy.write(event)
        assert await copy.finish() == moved
    assert moved <= 1 << 20
    again = (tmp_path / "again").stat()
    assert (again.st_size, again.st_blocks * 512 <= 1 << 20) == (size, True)
    with (tmp_path / "again").open("rb") as file:
        file.seek(64 << 20)
        assert file.read(8) == b"middle\0\0"


@in_loop
async def test_followed_links_come_as_what_they_point_to_and_loops_end(agent: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "in").mkdir(parents=True)
    (tmp_path / "outside").write_bytes(b"seen")
    (tree / "in" / "file").symlink_to(tmp_path / "outside")
    (tree / "in" / "dangling").symlink_to("nowhere")
    async with serving(agent, tmp_path) as channel:
        got = await collect(await channel.copy_out(str(tree), follow=True))
        assert got["in/file"][1] == b"seen"
        assert got["in/dangling"][0].kind is FileKind.SYMLINK
        (tree / "in" / "up").symlink_to("..")
        with pytest.raises(GuestError, match="in/up: a link leads back"):
            await collect(await channel.copy_out(str(tree), follow=True))


@in_loop
async def test_a_copy_replaces_files_and_merges_into_folders(agent: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    (target / "sub").mkdir(parents=True)
    target.chmod(0o1777)
    (target / "kept").write_bytes(b"kept")
    (target / "sub" / "old").write_bytes(b"old old old")
    (target / "sub" / "link").symlink_to("/etc/passwd")
    async with serving(agent, tmp_path) as channel:
        folder = entry("sub", FileKind.DIRECTORY, mode=0o750)
        await put(
            channel,
            target,
            [
                entry("", FileKind.DIRECTORY, mode=0o700),
                folder,
                entry("sub/old", size=3),
                b"new",
                entry("sub/link", size=1),
                b"!",
            ],
        )
    assert stat.S_IMODE(target.stat().st_mode) == 0o1777, "a folder that was there keeps its own"
    assert stat.S_IMODE((target / "sub").stat().st_mode) == 0o750
    assert (target / "sub").stat().st_mtime_ns == MTIME
    assert (target / "kept").read_bytes() == b"kept"
    assert (target / "sub" / "old").read_bytes() == b"new"
    assert (target / "sub" / "link").read_bytes() == b"!"
    assert not (target / "sub" / "link").is_symlink()


@in_loop
async def test_entries_without_their_folders_make_them(agent: Path, tmp_path: Path) -> None:
    async with serving(agent, tmp_path) as channel:
        await put(channel, tmp_path / "t", [entry("x/y/z", size=1), b"z", entry("x/w"), entry("v")])
    assert (tmp_path / "t/x/y/z").read_bytes() == b"z"
    assert (tmp_path / "t/v").exists()


TOP = entry("", FileKind.DIRECTORY)
ESCAPES: dict[str, list[FileInfo | bytes]] = {
    "dots": [TOP, entry("../evil", size=1), b"x"],
    "dots inside": [TOP, entry("a/../../evil", size=1), b"x"],
    "absolute": [TOP, entry("/evil", size=1), b"x"],
    "absolute first": [entry("/evil", size=1), b"x"],
    "empty component": [TOP, entry("a//b", size=1), b"x"],
    "planted link, given as a folder": [TOP, entry("out", FileKind.DIRECTORY)],
    "planted link, gone through": [TOP, entry("out/evil", size=1), b"x"],
    "own link, gone through": [
        TOP,
        entry("own", FileKind.SYMLINK, target="/"),
        entry("own/evil", size=1),
        b"x",
    ],
    "below a file": [entry("", size=0), entry("x")],
    "below a link": [entry("", FileKind.SYMLINK, target="/tmp"), entry("x")],
    "root again": [TOP, entry("", size=1), b"x"],
}


@pytest.mark.parametrize("events", ESCAPES.values(), ids=ESCAPES.keys())
@in_loop
async def test_what_leads_out_is_refused(agent: Path, tmp_path: Path, events: list[FileInfo | bytes]) -> None:
    outside, target = tmp_path / "outside", tmp_path / "target"
    outside.mkdir()
    if events[0] == TOP:
        target.mkdir()
        (target / "out").symlink_to(outside)
    async with serving(agent, tmp_path) as channel:
        with pytest.raises(GuestError):
            await put(channel, target, events)
        assert await channel.ping() < 5
    assert list(outside.iterdir()) == []
    assert not (tmp_path / "evil").exists()
    assert "evil" not in os.listdir("/")
    assert find_temporary(tmp_path) == []


def swap(folder: Path, outside: Path, over: threading.Event) -> None:
    """Again and again put a link that leads out in a folder's place, and a folder back. The copy may make one
    in between."""
    aside = folder.with_name("aside")
    while not over.is_set():
        shutil.rmtree(aside, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.rename(aside)
        with contextlib.suppress(FileExistsError):
            folder.symlink_to(outside)
            folder.unlink()
            folder.mkdir()


@in_loop
async def test_a_link_that_is_raced_in_leads_nowhere(agent: Path, tmp_path: Path) -> None:
    outside, target = tmp_path / "outside", tmp_path / "target"
    outside.mkdir()
    (target / "sub").mkdir(parents=True)
    over = threading.Event()
    swapping = asyncio.create_task(asyncio.to_thread(swap, target / "sub", outside, over))
    refused = 0
    async with serving(agent, tmp_path) as channel:
        for _ in range(100):
            # the folder is entered anew for each file of it: the others are elsewhere
            events = [TOP, *(entry(path) for n in range(20) for path in (f"sub/{n}", f"other{n}"))]
            try:
                await put(channel, target, events)
            except GuestError:
                refused += 1
    over.set()
    await swapping
    assert refused > 0, "the race was none"
    assert list(outside.iterdir()) == []


REFUSED: dict[str, tuple[list[FileInfo | bytes | Hole], str]] = {
    "too much": ([entry("", size=2), b"abc"], "beyond the size"),
    "too little": ([entry("", size=9), b"abc"], "shorter than its size"),
    "hole beyond": ([entry("", size=9), Hole(10)], "hole beyond the size"),
    "data without a file": ([entry("", FileKind.DIRECTORY), b"abc"], "beyond the size"),
    "link without target": ([entry("", FileKind.SYMLINK)], "no target"),
    "a folder in the way": ([entry("", FileKind.DIRECTORY), entry("folder", size=1), b"x"], "Is a directory"),
    "a file in the way": (
        [entry("", FileKind.DIRECTORY), entry("file", FileKind.DIRECTORY)],
        "Not a directory",
    ),
}


@pytest.mark.parametrize(("events", "words"), REFUSED.values(), ids=REFUSED.keys())
@in_loop
async def test_what_cannot_be_is_said_and_leaves_no_half_file(
    agent: Path, tmp_path: Path, events: list[FileInfo | bytes | Hole], words: str
) -> None:
    target = tmp_path / "target"
    if words in ("Is a directory", "Not a directory"):
        (target / "folder").mkdir(parents=True)
        (target / "file").touch()
    async with serving(agent, tmp_path) as channel:
        with pytest.raises(GuestError, match=words):
            await put(channel, target, events)
    assert find_temporary(tmp_path) == []
    assert not target.is_file()


@in_loop
async def test_a_device_is_not_copied_in(agent: Path, tmp_path: Path) -> None:
    async with serving(agent, tmp_path) as channel:
        with pytest.raises(InvalidRequest, match="block"):
            await put(channel, tmp_path / "disk", [entry("", FileKind.BLOCK)])


@in_loop
async def test_what_fails_is_said_while_the_host_still_sends(agent: Path, tmp_path: Path) -> None:
    async with serving(agent, tmp_path) as channel:
        copy = await channel.copy_in("/dev/null/x")
        flood = put_into(copy, [entry("", size=1 << 40), *([bytes(65536)] * 1000)])
        with pytest.raises(GuestError, match="Not a directory"):
            await flood
        await copy.close()


def find_temporary(top: Path) -> list[str]:
    """What a copy has not finished."""
    return [path.name for path in top.rglob(".hypeman*")]


async def await_empty(folder: Path) -> None:
    """Wait until nothing is in a folder: the copy ends in its own time."""

    def watch() -> None:
        while list(folder.iterdir()):
            time.sleep(0.01)

    await asyncio.to_thread(watch)


async def half_a_file(channel: AgentChannel, folder: Path) -> CopyIn:
    """A copy that is more than a window on its way: so some of it has been taken."""
    os.mkdir(folder)
    copy = await channel.copy_in(str(folder / "file"))
    await copy.add(entry("", size=1 << 20))
    await copy.write(bytes(2 * WINDOW))
    assert find_temporary(folder) != []
    return copy


@in_loop
async def test_a_copy_that_is_given_up_leaves_nothing(agent: Path, tmp_path: Path) -> None:
    async with serving(agent, tmp_path) as channel:
        copy = await half_a_file(channel, tmp_path / "target")
        await copy.close()
        with pytest.raises(GuestError):
            await copy.finish()
        await await_empty(tmp_path / "target")
        assert await channel.ping() < 5


@in_loop
async def test_a_lost_connection_leaves_nothing(agent: Path, tmp_path: Path) -> None:
    async with serving(agent, tmp_path) as channel:
        await half_a_file(channel, tmp_path / "target")
        await channel.close()
        await await_empty(tmp_path / "target")


@in_loop
async def test_a_copy_out_that_nobody_reads_holds_up_nobody(agent: Path, tmp_path: Path) -> None:
    with (tmp_path / "big").open("wb") as file:
        for _ in range(64):
            file.write(random.Random(2).randbytes(1 << 16))
    async with serving(agent, tmp_path) as channel:
        stuck = await channel.copy_out(str(tmp_path / "big"))
        assert len((await collect(await channel.copy_out(str(tmp_path / "big"))))[""][1]) == 1 << 22
        await stuck.close()
        assert await channel.ping() < 5


async def first(events: AsyncIterator[FileInfo | bytes | Hole], size: int) -> None:
    """Read until so many bytes have come."""
    async for event in events:
        size -= len(event) if isinstance(event, bytes) else 0
        if size <= 0:
            return


async def read_into(
    events: list[FileInfo | bytes | Hole], coming: AsyncIterator[FileInfo | bytes | Hole]
) -> None:
    """Keep what comes, also when it ends badly."""
    async for event in coming:
        events.append(event)  # noqa: PERF401


@in_loop
async def test_a_file_that_shrinks_meanwhile_keeps_its_size_and_is_said(agent: Path, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * (4 << 20))
    async with serving(agent, tmp_path) as channel:
        out = await channel.copy_out(str(path))
        events = out.events()
        await first(events, 65536)
        os.truncate(path, 1 << 20)
        rest: list[FileInfo | bytes | Hole] = []
        with pytest.raises(GuestError, match="shorter meanwhile"):
            await read_into(rest, events)
        got = sum(event.size if isinstance(event, Hole | FileInfo) else len(event) for event in rest)
        assert got > 3 << 20


@in_loop
async def test_a_deep_tree(agent: Path, tmp_path: Path) -> None:
    top = path = tmp_path / "deep"
    for _ in range(300):
        path = path / "d"
    path.mkdir(parents=True)
    async with serving(agent, tmp_path) as channel:
        got = await collect(await channel.copy_out(str(top)))
        assert len(got) == 301
        await put(channel, tmp_path / "again", [info for info, _ in got.values()])
    assert (tmp_path / "again" / path.relative_to(top)).is_dir()
