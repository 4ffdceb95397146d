# SPDX-License-Identifier: Apache-2.0
"""Run on a test host in place of its daemon: speaks to the agent of a VM that runs.

Usage: agent_probe.py SOCKET BOOT ACT [FOLDER]. What an act finds is JSON on its standard output.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import stat
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from hypemand.agent.channel import AgentChannel
from hypemand.errors import GuestError
from hypemand.model.exec import ExecRequest, ExecStream
from hypemand.model.files import CopyIn, FileInfo, FileKind, Hole

MTIME = 1_600_000_000_123_456_789
SPARSE = 1 << 30
CHUNK = 65536
DEADLINE = 100.0
Described = dict[str, list[object]]


def info(path: str, kind: FileKind, mode: int = 0o644, size: int = 0, target: str | None = None) -> FileInfo:
    return FileInfo(path, kind, mode, -1, -1, size, MTIME, target)


async def run(channel: AgentChannel, script: str, **more: Any) -> tuple[str, int | None]:
    """A command's output, and its exit code."""
    session = await channel.exec(ExecRequest(("sh", "-c", script), {}, "/", None, 20.0, **more))
    output = b"".join([data async for _, data in session.output()])
    return output.decode(errors="replace"), (await session.wait()).code


# --- terminals ---


async def act_terminal(channel: AgentChannel) -> object:
    """What a shell in a terminal says, what its size becomes, and how its user ends it."""
    shell = ExecRequest(("sh", "-i"), {"TERM": "vt220", "PS1": "ready> "}, "/", None, 20.0, tty=True, rows=30)
    session = await channel.exec(shell)
    text = rest = ""
    output = session.output()

    async def until(words: str) -> None:
        nonlocal text, rest
        while words not in rest:
            stream, data = await anext(output)
            assert stream is ExecStream.STDOUT
            text += data.decode()
            rest += data.decode()
        rest = rest.partition(words)[2]

    await until("ready> ")
    await session.write(b"stty size; echo $TERM; tty\n")
    await until("/dev/pts/")
    await until("ready> ")
    await session.resize(50, 100)
    await session.write(b"sh -c 'echo asleep; exec sleep 100'\n")
    await until("\nasleep\r\n")
    await session.write(b"\x03")
    await until("ready> ")
    await session.write(b"stty size; exit 7\n")
    async for _, data in output:
        text += data.decode()
    return {"text": text, "code": (await session.wait()).code}


# --- copies ---


def make_tree(top: Path) -> None:
    (top / "sub" / "empty").mkdir(parents=True)
    (top / "data").write_bytes(random.Random(3).randbytes(1_000_000))
    (top / "sub" / "tool").write_bytes(b"#!/bin/sh\nexec true\n")
    (top / "sub" / "tool").chmod(0o4755)
    (top / "link").symlink_to("../elsewhere")
    os.mkfifo(top / "fifo", 0o640)
    (top / "\udcff odd\n").write_bytes(b"name")
    with (top / "sparse").open("wb") as file:
        file.seek(SPARSE // 2)
        file.write(b"middle")
        file.truncate(SPARSE)
    os.chown(top / "data", 1234, 4321)
    os.chown(top / "link", 77, 78, follow_symlinks=False)
    (top / "sub").chmod(0o2711)
    for path in (*top.rglob("*"), top):
        os.utime(path, ns=(1, MTIME), follow_symlinks=False)


def describe(info: FileInfo, content: str) -> list[object]:
    """What a copy keeps of a file."""
    return [info.kind, info.mode, info.uid, info.gid, info.size, info.mtime_ns, info.target, content]


def look_at(path: Path, relative: str) -> FileInfo:
    status = path.lstat()
    kinds = {
        stat.S_IFREG: FileKind.FILE,
        stat.S_IFDIR: FileKind.DIRECTORY,
        stat.S_IFLNK: FileKind.SYMLINK,
        stat.S_IFIFO: FileKind.FIFO,
    }
    kind = kinds[stat.S_IFMT(status.st_mode)]
    return FileInfo(
        path=relative,
        kind=kind,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        size=status.st_size if kind is FileKind.FILE else 0,
        mtime_ns=status.st_mtime_ns,
        target=os.readlink(path) if kind is FileKind.SYMLINK else None,
    )


def list_tree(top: Path) -> list[Path]:
    """Parents first."""
    return [top, *sorted(top.rglob("*"))]


async def push(copy: CopyIn, top: Path) -> Described:
    """Copy a tree of this host; what it consists of."""
    described: Described = {}
    for path in list_tree(top):
        entry = look_at(path, "" if path == top else str(path.relative_to(top)))
        await copy.add(entry)
        digest = hashlib.sha256()
        at = 0
        while at < entry.size:
            with path.open("rb") as file:
                file.seek(at)
                data = file.read(CHUNK)
            at += len(data)
            digest.update(data)
            await (copy.write(data) if data.strip(b"\0") else copy.skip(Hole(len(data))))
        described[entry.path] = describe(entry, digest.hexdigest())
    return described


async def pull(events: AsyncIterator[FileInfo | bytes | Hole]) -> tuple[Described, int]:
    """What comes of a tree, and how many bytes of it were no holes."""
    described: Described = {}
    last: tuple[FileInfo, Any] | None = None
    moved = 0
    async for event in events:
        if isinstance(event, FileInfo):
            if last is not None:
                described[last[0].path] = describe(last[0], last[1].hexdigest())
            last = event, hashlib.sha256()
            continue
        assert last is not None
        if isinstance(event, bytes):
            moved += len(event)
            last[1].update(event)
        else:
            for at in range(0, event.size, 1 << 20):
                last[1].update(bytes(min(1 << 20, event.size - at)))
    if last is not None:
        described[last[0].path] = describe(last[0], last[1].hexdigest())
    return described, moved


async def act_tree(channel: AgentChannel, folder: str) -> object:
    """A tree goes in and comes out again."""
    top = Path(folder)
    make_tree(top)
    copy = await channel.copy_in("/srv/far/tree")
    sent = await push(copy, top)
    written = await copy.finish()
    await copy.close()
    back, moved = await pull((await channel.copy_out("/srv/far/tree")).events())
    listing, _ = await run(channel, "cd /srv/far/tree && ls -ln data sub/tool link && du -k sparse")
    found = await channel.stat("/srv/far/tree/link")
    return {
        "same": back == sent,
        "differs": [key for key in sent.keys() | back.keys() if sent.get(key) != back.get(key)],
        "entries": len(sent),
        "written": written,
        "moved": moved,
        "listing": listing,
        "link": None if found is None else found.target,
        "missing": await channel.stat("/srv/far/nothing") is None,
    }


async def refused(work: Awaitable[object]) -> str:
    try:
        await work
    except GuestError as error:
        return error.message
    raise AssertionError("was not refused")


async def act_escape(channel: AgentChannel) -> object:
    """Links that were planted where a copy goes lead nowhere."""
    await run(channel, "mkdir -p /srv/trap /srv/safe; ln -s /srv/safe /srv/trap/out")

    async def through(*entries: FileInfo) -> None:
        copy = await channel.copy_in("/srv/trap")
        try:
            for entry in (info("", FileKind.DIRECTORY, 0o755), *entries):
                await copy.add(entry)
            await copy.finish()
        finally:
            await copy.close()

    words = [
        await refused(through(info("out", FileKind.DIRECTORY), info("out/evil", FileKind.FILE))),
        await refused(through(info("out/evil", FileKind.FILE))),
        await refused(through(info("../safe/evil", FileKind.FILE))),
        await refused(
            through(info("own", FileKind.SYMLINK, target="/srv/safe"), info("own/evil", FileKind.FILE))
        ),
    ]
    return {"words": words, "safe": (await run(channel, "ls -A /srv/safe"))[0]}


async def act_half(channel: AgentChannel) -> object:
    """Say that a copy is half way, and stay in it until this process is killed."""
    copy = await channel.copy_in("/srv/half/file")
    await copy.add(info("", FileKind.FILE, size=1 << 30))
    for _ in range(64):
        await copy.write(b"x" * CHUNK)
    listing, _ = await run(channel, "ls -A /srv/half")
    print(json.dumps(listing.split()), flush=True)
    await asyncio.sleep(DEADLINE)
    return None


async def act_clock(channel: AgentChannel) -> object:
    """The guest's clock, set to another time and back."""
    began = time.time()
    await channel.set_clock(1_700_000_000 * 10**9)
    then, _ = await run(channel, "date +%s")
    took = time.time() - began
    await channel.set_clock()
    now, _ = await run(channel, "date +%s")
    return {"then": int(then), "took": took, "back": began - 5 <= int(now) <= time.time() + 5}


async def main(path: str, boot: str, act: str, *arguments: str) -> None:
    acts: dict[str, Callable[..., Awaitable[object]]] = {
        name.removeprefix("act_"): value for name, value in globals().items() if name.startswith("act_")
    }
    async with asyncio.timeout(DEADLINE):
        channel = await AgentChannel.connect(Path(path), boot)
        await channel.ready()
        print(json.dumps(await acts[act](channel, *arguments)))
        await channel.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
