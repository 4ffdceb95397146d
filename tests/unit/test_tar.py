# SPDX-License-Identifier: Apache-2.0
"""Tar streams, against the archives that tar(1) and Python's own module make."""

import io
import os
import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypemand.model.files import FileInfo, FileKind, Hole
from hypemand.tar import (
    BLOCK,
    END,
    Header,
    InvalidArchive,
    TarReader,
    find_error,
    find_hole,
    format_error,
    format_member,
    padding,
    read_headers,
)

Found = list[tuple[FileInfo, bytes]]


def info(path: str, kind: FileKind = FileKind.FILE, size: int = 0, **parts: object) -> FileInfo:
    base = {"mode": 0o644, "uid": 0, "gid": 0, "mtime_ns": 0}
    return FileInfo(path, kind, size=size, **(base | parts))  # type: ignore[arg-type]


def write(members: Iterable[tuple[FileInfo, bytes]]) -> bytes:
    return b"".join(
        format_member(entry.path, entry) + data + padding(len(data)) for entry, data in members
    ) + END  # fmt: skip


def read(archive: bytes, step: int | None = None) -> Found:
    reader = TarReader()
    found: Found = []
    for start in range(0, len(archive), step or max(len(archive), 1)):
        for event in reader.feed(archive[start : start + (step or len(archive))]):
            if isinstance(event, FileInfo):
                found.append((event, b""))
            else:
                found[-1] = (found[-1][0], found[-1][1] + event)
    reader.finish()
    return found


MEMBERS: Found = [
    (info("d", FileKind.DIRECTORY, mode=0o2750, uid=5, gid=6), b""),
    (info("d/file", size=1000, mode=0o4711, mtime_ns=1_700_000_000_123_456_789), b"x" * 1000),
    (info("d/" + "long" * 60, size=512), b"y" * 512),
    (info("d/ünï", size=3, uid=2**31, gid=2**32 - 2, mtime_ns=-1_500_000_000), b"abc"),
    (info("d/\udcff", FileKind.SYMLINK, target="t" * 200), b""),
    (info("d/pipe", FileKind.FIFO), b""),
    (info("d/empty"), b""),
]


@pytest.mark.parametrize("step", [1, 7, 512, 10_000, None])
def test_what_is_written_is_read_again_however_it_is_cut(step: int | None) -> None:
    assert read(write(MEMBERS), step) == MEMBERS


def test_python_reads_what_is_written() -> None:
    with tarfile.open(fileobj=io.BytesIO(write(MEMBERS))) as archive:
        found = archive.getmembers()
    assert [m.name for m in found] == [entry.path for entry, _ in MEMBERS]
    assert [m.uid for m in found][3] == 2**31
    assert found[4].linkname == "t" * 200


def test_a_file_larger_than_the_old_format_can_say() -> None:
    entry = info("big", size=2**40)
    (found,) = TarReader().feed(format_member("big", entry))
    assert found == entry


@pytest.mark.parametrize("form", ["gnu", "pax", "ustar", "v7"])
def test_archives_of_tar_are_read(tmp_path: Path, form: str) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "file").write_bytes(b"data" * 1000)
    (tree / "sub/link").symlink_to("../file")
    if form not in ("ustar", "v7"):
        (tree / ("n" * 200)).write_bytes(b"long")
        (tree / "far").symlink_to("t" * 300)
    os.mkfifo(tree / "pipe")
    names = ["--exclude=./pipe"] if form == "v7" else []
    argv = ["tar", f"--format={form}", *names, "-C", str(tree), "-c", "."]
    found = read(subprocess.run(argv, capture_output=True, check=True).stdout, 333)
    by_path = {entry.path: (entry, data) for entry, data in found}
    assert by_path["file"][1] == b"data" * 1000
    assert by_path["sub/link"][0].target == "../file"
    assert by_path[""][0].kind is FileKind.DIRECTORY
    if form == "pax":
        assert by_path["file"][0].mtime_ns == (tree / "file").stat().st_mtime_ns
    if form in ("gnu", "pax"):
        assert (by_path["n" * 200][1], by_path["far"][0].target) == (b"long", "t" * 300)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "..", "a/.."])
def test_names_that_lead_out_are_refused_and_absolute_ones_are_taken_as_relative(name: str) -> None:
    with pytest.raises(InvalidArchive, match="leads out"):
        read(write([(info(name), b"")]))
    assert read(write([(info("/etc//./x"), b"")]))[0][0].path == "etc/x"


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (tarfile.LNKTYPE, "hard link"),
        (tarfile.CHRTYPE, "device"),
        (tarfile.BLKTYPE, "device"),
        (tarfile.GNUTYPE_SPARSE, "sparse"),
        (b"Z", "unknown type"),
    ],
)
def test_what_cannot_be_copied_is_refused_in_words(kind: bytes, words: str) -> None:
    member = tarfile.TarInfo("x")
    member.type = kind
    with pytest.raises(InvalidArchive, match=words):
        read(member.tobuf(tarfile.GNU_FORMAT) + END)


def test_sparse_members_of_pax_are_refused(tmp_path: Path) -> None:
    with (tmp_path / "holes").open("wb") as file:
        file.truncate(10_000_000)
    argv = ["tar", "--format=pax", "--sparse", "-C", str(tmp_path), "-c", "holes"]
    with pytest.raises(InvalidArchive, match="sparse"):
        read(subprocess.run(argv, capture_output=True, check=True).stdout)


def test_what_is_no_archive_or_cut_off_is_refused() -> None:
    with pytest.raises(InvalidArchive, match="not a tar archive"):
        read(b"\x1f\x8b" + b"x" * 600)
    whole = write(MEMBERS)
    for cut in (100, BLOCK * 3, BLOCK * 4 + 100, BLOCK * 2):
        with pytest.raises(InvalidArchive, match="ends in"):
            read(whole[:cut])
    assert read(b"") == []
    assert read(END) == []
    assert read(whole[: -len(END)]) == MEMBERS


def test_values_that_no_filesystem_has_are_refused() -> None:
    member = tarfile.TarInfo("x")
    for key, value in (("mtime", 2**70), ("size", 2**64), ("uid", 2**40), ("gid", 2**32 - 1)):
        setattr(member, key, value)
        with pytest.raises(InvalidArchive, match="time" if key == "mtime" else key):
            read(member.tobuf(tarfile.GNU_FORMAT))
        setattr(member, key, 0)
    member.type = tarfile.SYMTYPE
    member.pax_headers = {"linkpath": "a\0b"}
    with pytest.raises(InvalidArchive, match="NUL"):
        read(member.tobuf(tarfile.PAX_FORMAT))


def test_extended_headers_are_bounded() -> None:
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.XHDTYPE, 2_000_000
    with pytest.raises(InvalidArchive, match="extended header"):
        read(member.tobuf(tarfile.GNU_FORMAT))


@given(st.binary(max_size=3000), st.integers(0, 2000), st.integers(1, 700))
def test_no_input_does_more_than_be_refused(noise: bytes, at: int, step: int) -> None:
    whole = bytearray(write(MEMBERS))
    whole[at : at + len(noise)] = noise
    for archive in (noise, bytes(whole)):
        try:
            found = read(archive, step)
        except InvalidArchive:
            continue
        for entry, _ in found:
            assert not entry.path.startswith("/")
            assert ".." not in entry.path.split("/")


def test_zeros_are_a_hole_and_nothing_else_is() -> None:
    assert find_hole(bytes(4096)) == Hole(4096)
    assert find_hole(bytes(4095)) is None
    assert find_hole(bytes(5000) + b"x") is None
    assert find_hole(b"\0" + b"x" * 4096 + b"\0") is None


def test_the_last_words_are_found_wherever_the_stream_broke_off() -> None:
    words = "the guest went away; start it — again"
    assert find_error((write(MEMBERS)[:1234] + format_error(words))[-8192:]) == words
    assert find_error(write(MEMBERS)) is None
    assert find_error(format_error("ä" * 3000)[-8192:]) == "ä" * 1000


def headers(archive: bytes) -> list[Header]:
    return list(read_headers(io.BytesIO(archive)))


def test_the_headers_of_any_archive_of_tar_are_read(tmp_path: Path) -> None:
    """Hard links, sparse members and long names too, of which `tarfile` says the same."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / ("long" * 50)).write_bytes(b"x" * 5000)
    os.link(tmp_path / "d" / ("long" * 50), tmp_path / "d/zlink")
    (tmp_path / "d/symlink").symlink_to("t" * 150)
    with (tmp_path / "d/holes").open("wb") as file:
        for at in range(40):
            file.seek(at * 100_000)
            file.write(b"x" * 5000)
    for form in ("gnu", "pax", "posix"):
        argv = ["tar", f"--format={form}", "--sparse", "-C", str(tmp_path), "-c", "d"]
        archive = subprocess.run(argv, capture_output=True, check=True).stdout
        with tarfile.open(fileobj=io.BytesIO(archive)) as known:
            expected = [(m.name, m.linkname, m.isreg(), m.islnk()) for m in known]
        found = headers(archive)
        assert [(h.name.rstrip("/"), h.linkname, h.is_file, h.is_hard_link) for h in found] == expected
        # of the two names of one file the first that tar has met
        (plain,) = [header for header in found if header.is_file and "holes" not in header.name]
        assert archive[plain.offset : plain.offset + plain.size] == b"x" * 5000


def test_headers_of_what_is_cut_off_or_none_are_refused() -> None:
    whole = write(MEMBERS)
    for cut in (100, BLOCK * 2 + 100, len(whole) - len(END) - 1):
        with pytest.raises(InvalidArchive):
            headers(whole[:cut])
    with pytest.raises(InvalidArchive):
        headers(b"x" * 1024)


def test_extended_headers_one_after_the_other_are_no_recursion_and_have_bounds() -> None:
    one = tarfile.TarInfo("x")
    one.type, one.size = tarfile.XHDTYPE, 6
    block = one.tobuf(tarfile.GNU_FORMAT) + b"6 a=b\n" + bytes(BLOCK - 6)
    assert [header.name for header in headers(block * 5000 + write(MEMBERS[:1]))] == ["d"]
    one.size = 2 * 1024 * 1024
    with pytest.raises(InvalidArchive, match="extended header"):
        headers(one.tobuf(tarfile.GNU_FORMAT) + bytes(one.size))
    one.size = 6000
    value = b"6000 path=" + b"x" * 5989 + b"\n"
    with pytest.raises(InvalidArchive, match="value of 5989 bytes"):
        headers(one.tobuf(tarfile.GNU_FORMAT) + value.ljust(6144, b"\0"))
