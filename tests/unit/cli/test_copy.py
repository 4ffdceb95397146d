# SPDX-License-Identifier: Apache-2.0
"""cp, against the real API server over files in memory."""

from __future__ import annotations

import asyncio
import io
import json
import os
import tarfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from hypemand.model.files import FileKind
from hypemand.model.state import State
from tests.fakes.files import MTIME, GuestFiles
from tests.unit.api.harness import Api
from tests.unit.cli.test_against_server import Run, run_both

Scenario = Callable[[GuestFiles, Run], Coroutine[Any, Any, None]]


def with_guest(folder: Path, scenario: Scenario) -> None:
    """A VM `web` that runs."""

    async def with_api(api: Api, run: Run) -> None:
        await api.host.put("web", State.RUNNING)
        files = api.host.guest("web").files
        await scenario(files, run)
        await api.host.until_true(lambda: files.copies_open == 0)

    run_both(folder, with_api)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree of this host."""
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "file").write_bytes(b"0123456789" * 100_000)
    (tree / "file").chmod(0o4750)
    os.utime(tree / "file", ns=(1, 1_600_000_000_123_456_789))
    (tree / "sub/holes").write_bytes(bytes(300_000) + b"end")
    (tree / "sub/link").symlink_to("../file")
    os.mkfifo(tree / "pipe")
    return tree


def test_a_tree_goes_in_with_modes_times_and_links_and_becomes_roots(tmp_path: Path, tree: Path) -> None:
    async def scenario(files: GuestFiles, run: Run) -> None:
        done = await run("cp", "--json", str(tree), "web:/srv")
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout) == {"bytes": 1_300_003}
        file = files.files["/srv/file"]
        assert (file.data, file.info.mode, file.info.uid) == (b"0123456789" * 100_000, 0o750, 0)
        assert file.info.mtime_ns == 1_600_000_000_123_456_789
        assert files.files["/srv/sub/holes"].data == bytes(300_000) + b"end"
        assert files.files["/srv/sub/link"].info.target == "../file"
        assert files.files["/srv/pipe"].info.kind is FileKind.FIFO
        assert (await run("cp", "-a", str(tree / "file"), "web:/srv/kept")).returncode == 0
        assert files.files["/srv/kept"].info.mode == 0o4750
        assert (await run("cp", "-L", str(tree / "sub/link"), "web:/srv/followed")).returncode == 0
        assert files.files["/srv/followed"].info.kind is FileKind.FILE

    with_guest(tmp_path, scenario)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("/proc/version", "has no known size"),
        ("/dev/null", "is a device, which cannot be copied"),
    ],
)
def test_what_cannot_be_copied_in_is_said(tmp_path: Path, source: str, words: str) -> None:
    async def scenario(files: GuestFiles, run: Run) -> None:
        done = await run("cp", source, "web:/tmp/new")
        assert done.returncode == 1
        assert words in done.stderr

    with_guest(tmp_path, scenario)


@pytest.mark.parametrize(
    ("source", "target", "made"),
    [
        ("file", "web:/tmp", "/tmp/file"),
        ("file", "web:/tmp/", "/tmp/file"),
        ("file", "web:/tmp/new", "/tmp/new"),
        ("file", "web:tmp/new", "/tmp/new"),
        ("file", "web:/etc/motd", "/etc/motd"),
        ("file", "web:/etc/link", "/etc/motd"),
        ("file", "web:/etc/tmp", "/etc/tmp/file"),
        ("sub", "web:/tmp", "/tmp/sub/holes"),
        ("sub/.", "web:/tmp", "/tmp/holes"),
        ("sub/", "web:/tmp", "/tmp/sub/holes"),
        ("sub", "web:/tmp/new", "/tmp/new/holes"),
        ("sub", "web:/tmp/new/", "/tmp/new/holes"),
        ("sub/.", "web:/tmp/new", "/tmp/new/holes"),
    ],
)
def test_where_things_go_in(tmp_path: Path, tree: Path, source: str, target: str, made: str) -> None:
    async def scenario(files: GuestFiles, run: Run) -> None:
        files.put("/etc/motd", data=b"old")
        files.put("/etc/link", FileKind.SYMLINK, target="motd")
        files.put("/etc/tmp", FileKind.SYMLINK, target="/tmp")
        done = await run("cp", f"{tree}/{source}", target)
        assert (done.returncode, done.stderr) == (0, "")
        assert files.files[made].data
        assert files.files["/etc/link"].info.kind is FileKind.SYMLINK

    with_guest(tmp_path, scenario)


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (["TREE/file", "web:/tmp/no/"], 10, "there is no directory web:/tmp/no/"),
        (["TREE/file", "web:/no/file"], 10, "there is no directory /no in the guest"),
        (["TREE/sub", "web:/etc/motd"], 8, "web:/etc/motd is not a directory, and"),
        (["TREE/file", "web:/etc/motd/"], 8, "web:/etc/motd/ is not a directory"),
        (["TREE/no", "web:/tmp"], 1, "No such file or directory"),
        (["TREE/file/", "web:/tmp"], 1, "TREE/file/ is not a directory"),
        (["TREE/file", "nope:/tmp"], 10, "there is no VM nope"),
        (["TREE/file", "/tmp"], 8, "exactly one of SRC and DST must be NAME:PATH"),
        (["web:/a", "web:/b"], 8, "exactly one of SRC and DST must be NAME:PATH"),
        (["-", "web:/etc/motd"], 8, "is not a directory in the guest"),
        (["web:/nothing", "TREE"], 10, "there is no web:/nothing"),
        (["web:/etc/motd/", "TREE"], 8, "web:/etc/motd/ is not a directory"),
        (["web:/etc/motd", "TREE/no/"], 1, "there is no directory TREE/no/"),
        (["web:/etc/motd", "TREE/no/x"], 1, "there is no directory TREE/no"),
        (["web:/etc", "TREE/file"], 1, "is not a directory, and web:/etc is one"),
    ],
)
def test_what_cannot_be_is_refused_in_words(
    tmp_path: Path, tree: Path, words: list[str], code: int, error: str
) -> None:
    async def scenario(files: GuestFiles, run: Run) -> None:
        files.put("/etc/motd")
        done = await run("cp", *(word.replace("TREE", str(tree)) for word in words))
        assert (done.returncode, done.stdout) == (code, "")
        assert error.replace("TREE", str(tree)) in done.stderr
        assert done.stderr.count("\n") == 1

    with_guest(tmp_path, scenario)


def test_a_vm_that_does_not_run_is_said_so(tmp_path: Path, tree: Path) -> None:
    async def scenario(api: Api, run: Run) -> None:
        await api.host.put("web")
        for words in ((str(tree), "web:/tmp"), ("web:/etc", str(tree)), ("-", "web:/tmp")):
            done = await run("cp", *words)
            assert (done.returncode, "Stopped" in done.stderr) == (11, True), words

    run_both(tmp_path, scenario)


def put_tree(files: GuestFiles) -> None:
    """A tree of the guest."""
    files.put("/srv/x", FileKind.DIRECTORY, mode=0o2750)
    files.put("/srv/x/file", data=b"abc" * 100_000, mode=0o4711, uid=12, gid=13)
    files.put("/srv/x/holes", data=bytes(10_000_000) + b"end")
    files.put("/srv/x/link", FileKind.SYMLINK, target="/etc/passwd")
    files.put("/srv/x/pipe", FileKind.FIFO)
    files.put("/srv/x/sub", FileKind.DIRECTORY, mode=0o500)
    files.put("/srv/x/sub/deep", data=b"deep")


def test_a_tree_comes_out_without_rights_that_nobody_asked_for(tmp_path: Path) -> None:
    async def scenario(files: GuestFiles, run: Run) -> None:
        put_tree(files)
        done = await run("cp", "web:/srv/x", str(tmp_path / "out"))
        assert (done.returncode, done.stdout) == (0, "")
        assert "pipe is a fifo, skipped" in done.stderr
        out = tmp_path / "out"
        assert (out / "file").read_bytes() == b"abc" * 100_000
        assert (out / "file").stat().st_mode & 0o7777 == 0o711
        assert (out / "file").stat().st_uid == os.geteuid()
        assert (out / "file").stat().st_mtime_ns == MTIME
        assert (out / "holes").read_bytes() == bytes(10_000_000) + b"end"
        assert (out / "holes").stat().st_blocks * 512 < 1_000_000
        assert (out / "link").readlink() == Path("/etc/passwd")
        assert (out / "sub/deep").read_bytes() == b"deep"
        assert (out / "sub").stat().st_mode & 0o7777 == 0o500
        assert (out.stat().st_mode & 0o7777, out.stat().st_mtime_ns) == (0o750, MTIME)
        assert sorted(os.listdir(out)) == ["file", "holes", "link", "sub"]

    with_guest(tmp_path, scenario)


def test_with_a_owners_and_all_bits_are_kept(tmp_path: Path) -> None:
    async def scenario(files: GuestFiles, run: Run) -> None:
        put_tree(files)
        assert (await run("cp", "-a", "web:/srv/x", str(tmp_path / "out"))).returncode == 0
        status = (tmp_path / "out/file").stat()
        assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o4711, 12, 13)
        assert (tmp_path / "out/pipe").is_fifo()
        assert (tmp_path / "out/pipe").stat().st_mtime_ns == MTIME
        assert (tmp_path / "out").stat().st_mode & 0o7777 == 0o2750

    with_guest(tmp_path, scenario)


@pytest.mark.parametrize(
    ("source", "target", "made"),
    [
        ("web:/srv/x/file", ".", "file"),
        ("web:/srv/x/file", "new", "new"),
        ("web:/srv/x/file", "there", "there/file"),
        ("web:/srv/x/file", "there/", "there/file"),
        ("web:/srv/x/file", "old", "old"),
        ("web:/srv/x", "there", "there/x/file"),
        ("web:/srv/x/", "there", "there/x/file"),
        ("web:/srv/x/.", "there", "there/file"),
        ("web:/srv/x/.", "new", "new/file"),
        ("web:srv/x", "new", "new/file"),
        ("web:/srv/x", "new/", "new/file"),
        ("web:/", "new", "new/srv/x/file"),
    ],
)
def test_where_things_come_out(tmp_path: Path, source: str, target: str, made: str) -> None:
    async def scenario(files: GuestFiles, run: Run) -> None:
        files.put("/srv", FileKind.DIRECTORY)
        put_tree(files)
        base = tmp_path / "base"
        (base / "there").mkdir(parents=True)
        (base / "old").write_bytes(b"old")
        done = await run("cp", source, f"{base}/{target}")
        assert done.returncode == 0, done.stderr
        assert (base / made).read_bytes() == b"abc" * 100_000

    with_guest(tmp_path, scenario)


def test_streams_of_tar_go_both_ways(tmp_path: Path) -> None:
    async def scenario(files: GuestFiles, run: Run) -> None:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w:") as archive:
            info = tarfile.TarInfo("a/b")
            info.size, info.uid = 5, 77
            archive.addfile(info, io.BytesIO(b"hello"))
        done = await run("cp", "--json", "-", "web:/tmp", input=stream.getvalue())
        assert json.loads(done.stdout) == {"bytes": 5}
        assert (files.files["/tmp/a/b"].data, files.files["/tmp/a/b"].info.uid) == (b"hello", 77)
        files.put("/tmp/a", FileKind.DIRECTORY)
        back = await run("cp", "web:/tmp/a", "-")
        with tarfile.open(fileobj=io.BytesIO(back.stdout.encode())) as archive:
            assert archive.getnames() == ["a", "a/b"]
        broken = await run("cp", "-", "web:/tmp", input=b"no archive" * 100)
        assert broken.returncode == 8
        assert "not a tar archive" in broken.stderr

    with_guest(tmp_path, scenario)


def test_a_copy_that_fails_says_why(tmp_path: Path, tree: Path) -> None:
    async def scenario(files: GuestFiles, run: Run) -> None:
        put_tree(files)
        files.failure, files.fails_after = "input/output error", 100_000
        done = await run("cp", "web:/srv/x", str(tmp_path / "out"))
        assert done.returncode == 1
        assert done.stderr.endswith("hypemanctl: input/output error\n")
        files.fails_after = 100_000
        done = await run("cp", str(tree), "web:/tmp")
        assert (done.returncode, done.stderr) == (1, "hypemanctl: input/output error\n")

    with_guest(tmp_path, scenario)


def test_a_copy_that_breaks_off_says_why_and_leaves_no_half_file(tmp_path: Path) -> None:
    async def scenario(api: Api, run: Run) -> None:
        await api.host.put("web", State.RUNNING)
        files = api.host.guest("web").files
        put_tree(files)
        files.gate = asyncio.Event()
        copying = asyncio.create_task(run("cp", "web:/srv/x", str(tmp_path / "out")))
        await api.host.until_true(lambda: any(path.name for path in tmp_path.glob("out/*")))
        api.host.vmm("web").power_off()
        done = await copying
        assert (done.returncode, done.stderr) == (1, "hypemanctl: the VMM closed the agent channel\n")
        assert os.listdir(tmp_path / "out") == []

    run_both(tmp_path, scenario)


def test_a_name_of_this_host_may_have_a_colon(tmp_path: Path) -> None:
    (tmp_path / "a:b").write_bytes(b"x")

    async def scenario(files: GuestFiles, run: Run) -> None:
        assert (await run("cp", f"{tmp_path}/a:b", "web:/tmp")).returncode == 0
        assert files.files["/tmp/a:b"].data == b"x"

    with_guest(tmp_path, scenario)


def test_a_link_that_leads_back_is_noticed(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.mkdir()
    (loop / "back").symlink_to(".")

    async def scenario(files: GuestFiles, run: Run) -> None:
        assert (await run("cp", str(loop), "web:/tmp")).returncode == 0
        done = await run("cp", "-L", str(loop), "web:/tmp")
        assert (done.returncode, "leads to a directory that contains it" in done.stderr) == (1, True)

    with_guest(tmp_path, scenario)
