# SPDX-License-Identifier: Apache-2.0
"""VMs as archives: what is written is read back, by GNU tar too, and nothing else is."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hypemand.errors import HypemandError, InsufficientResources, InUse
from hypemand.model.files import FileInfo, FileKind
from hypemand.storage.locks import hold_disk, lock_disk
from hypemand.storage.sparse import MAX_EXTENTS, SparseFile, list_extents
from hypemand.storage.vmarchive import (
    DEFINITION,
    DISK,
    IMAGE,
    MANIFEST,
    SUMS,
    ArchivedVolume,
    ArchiveReader,
    ArchiveWriter,
    Manifest,
    PlainFile,
    Source,
    Target,
    format_manifest,
    parse_manifest,
)
from hypemand.tar import (
    END,
    InvalidArchive,
    TarReader,
    format_member,
    format_sparse_map,
    format_sparse_member,
    padding,
)

SIZE = 16 * 1024 * 1024
TEXT = b'{"image": "app"}\n'
VOLUME = ArchivedVolume("ab" * 16, "data", SIZE, {"team": "x"})
WHOLE = Manifest("web", "12" * 16, "app", "", True, SIZE, (VOLUME,), {"network": "default"})
Parts = list[tuple[str, bytes, int | None]]


def write_disk(path: Path, *pieces: tuple[int, bytes], size: int = SIZE) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
        for at, data in pieces:
            file.seek(at)
            file.write(data)
    return path


def pack(
    disks: Mapping[str, Path], image: Path | None = None, manifest: Manifest = WHOLE, text: bytes = TEXT
) -> bytes:
    def make(sizes: Mapping[str, int]) -> Manifest:
        return replace(manifest, disk=sizes.get(DISK), has_image=image is not None)

    writer = ArchiveWriter(make, text, [Source(name, path) for name, path in disks.items()], image)
    writer.open()
    pieces = []
    while piece := writer.read():
        pieces.append(piece)
    writer.close()
    return b"".join(pieces)


@pytest.fixture
def archive(tmp_path: Path) -> bytes:
    disk = write_disk(tmp_path / "a", (0, b"first"), (SIZE // 2, os.urandom(70000)), (SIZE - 5, b"last!"))
    volume = write_disk(tmp_path / "b", (4096 * 3, b"x" * 4096))
    image = tmp_path / "c"
    image.write_bytes(os.urandom(300_001))
    return pack({DISK: disk, VOLUME.member: volume}, image)


def unpack(data: bytes, folder: Path, step: int = 65536) -> ArchiveReader:
    """Read an archive in pieces of that size into files of `folder`."""
    folder.mkdir()
    reader = ArchiveReader()
    try:
        for at in range(0, len(data), step):
            if reader.feed(data[at : at + step]):
                assert reader.manifest is not None
                targets: dict[str, Target] = {
                    name: SparseFile(folder / name.replace("/", "-"), size)
                    for name, size in reader.manifest.sizes().items()
                }
                if reader.manifest.has_image:
                    targets[IMAGE] = PlainFile(folder / IMAGE)
                reader.go_on(targets)
        reader.finish()
    finally:
        reader.close()
    return reader


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("step", [1013, 65536, 1 << 30])
def test_what_is_written_is_read_and_holes_stay_holes(archive: bytes, tmp_path: Path, step: int) -> None:
    reader = unpack(archive, tmp_path / "out", step)
    assert (reader.manifest, reader.definition) == (WHOLE, TEXT)
    names = {"a": DISK, "b": "volumes-data.ext4", "c": IMAGE}
    for old, new in names.items():
        assert digest(tmp_path / old) == digest(tmp_path / "out" / new)
        used = [path.stat().st_blocks for path in (tmp_path / old, tmp_path / "out" / new)]
        assert used[1] <= used[0] + 8
    assert len(archive) < 500_000


def test_gnu_tar_unpacks_it(archive: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(archive)
    out = tmp_path / "out"
    out.mkdir()
    done = subprocess.run(
        ["tar", "-xvf", "../x.tar"], cwd=out, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == [MANIFEST, DEFINITION, DISK, VOLUME.member, IMAGE, SUMS]
    assert done.stderr == ""
    for old, new in {"a": DISK, "b": VOLUME.member, "c": IMAGE}.items():
        assert digest(tmp_path / old) == digest(out / new)
    assert (out / DISK).stat().st_blocks * 512 < 1024 * 1024
    checked = subprocess.run(
        ["sha256sum", "--check", "--ignore-missing", SUMS],
        cwd=out,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert {f"{name}: OK" for name in (MANIFEST, DEFINITION, IMAGE)} <= set(checked.stdout.splitlines())


def test_an_empty_disk_and_no_disk_are_carried(tmp_path: Path) -> None:
    disk = write_disk(tmp_path / "a")
    data = pack({DISK: disk}, manifest=replace(WHOLE, volumes=()))
    assert len(data) < 8192
    unpack(data, tmp_path / "out")
    assert (tmp_path / "out" / DISK).stat().st_size == SIZE
    data = pack({DISK: tmp_path / "missing"}, manifest=replace(WHOLE, volumes=()))
    assert unpack(data, tmp_path / "none").manifest == replace(WHOLE, disk=None, volumes=(), has_image=False)


def test_an_archive_that_is_cut_off_anywhere_is_refused(archive: bytes, tmp_path: Path) -> None:
    cuts = [0, 1, 511, 512, 600, 1024, 4000, len(archive) - 1025, len(archive) - len(END) - 1]
    cuts += random.Random(1).sample(range(len(archive) - len(END)), 25)
    for number, cut in enumerate(cuts):
        with pytest.raises(InvalidArchive):
            unpack(archive[:cut], tmp_path / str(number))


def test_a_byte_that_is_another_one_is_noticed(archive: bytes, tmp_path: Path) -> None:
    """All bytes count but those of the tar's own headers that mean nothing here, and of padding."""
    where: dict[str, int] = {name: archive.index(text) for name, text in _find_texts(archive).items()}
    for number, (name, at) in enumerate(where.items()):
        damaged = bytearray(archive)
        damaged[at] ^= 1
        with pytest.raises(InvalidArchive) as refused:
            unpack(bytes(damaged), tmp_path / str(number))
        if name not in (MANIFEST, SUMS):
            assert f"the checksum of {name} is another one" in str(refused.value)


def _find_texts(archive: bytes) -> dict[str, bytes]:
    reader, current, found = TarReader(sparse=True), "", dict[str, bytes]()
    for event in reader.feed(archive):
        if isinstance(event, FileInfo):
            current = event.path
        else:
            found[current] = event[-40:] if current in (DISK, VOLUME.member, IMAGE, DEFINITION) else event[5:]
    return found


def make(parts: Parts) -> bytes:
    """An archive of these members, with right checksums. The number: the real size of a file with holes."""
    sums, out = "", b""
    for name, data, real in parts:
        entry = FileInfo(name, FileKind.FILE, 0o600, 0, 0, len(data), 0)
        out += format_member(name, entry) if real is None else format_sparse_member(name, len(data), real, 0)
        out += data + padding(len(data))
        sums += f"{hashlib.sha256(data).hexdigest()}  {name}\n"
    entry = FileInfo(SUMS, FileKind.FILE, 0o600, 0, 0, len(sums), 0)
    return out + format_member(SUMS, entry) + sums.encode() + padding(len(sums)) + END


ONE = replace(WHOLE, volumes=(), has_image=False)
TABLE = format_sparse_map([(0, 4096)], SIZE)


def whole(manifest: Manifest = ONE, contents: bytes = TABLE + bytes(4096), size: int | None = SIZE) -> Parts:
    return [(MANIFEST, format_manifest(manifest), None), (DEFINITION, TEXT, None), (DISK, contents, size)]


def changed(**keys: Any) -> bytes:
    return json.dumps({**json.loads(format_manifest(ONE)), **keys}).encode()


def numbers(*values: int) -> bytes:
    text = "".join(f"{value}\n" for value in values).encode()
    return text + padding(len(text))


def test_the_archive_that_the_hostile_ones_are_made_of_is_right(tmp_path: Path) -> None:
    assert unpack(make(whole()), tmp_path / "out").manifest == ONE


HOSTILE: dict[str, tuple[Callable[[], Parts], str]] = {
    "nothing": (list, "in place of manifest.json"),
    "another format": (lambda: [(MANIFEST, b'{"format": "x"}', None)], "not the archive of a VM"),
    "no object": (lambda: [(MANIFEST, b"[]", None)], "not the archive of a VM"),
    "deep": (lambda: [(MANIFEST, b"[" * 100_000, None)], "nested too deeply"),
    "newer": (lambda: [(MANIFEST, changed(version=2), None)], "format version 2"),
    "large": (lambda: [(MANIFEST, bytes(2_000_000), None)], "2000000 bytes, more than"),
    "no id": (lambda: [(MANIFEST, changed(id=7), None)], "has another type"),
    "digest": (
        lambda: [(MANIFEST, changed(image={"name": "x", "digest": "../x", "included": False}), None)],
        "digest",
    ),
    "negative size": (lambda: [(MANIFEST, changed(disk={"size": -1}), None)], "size of a disk"),
    "huge size": (lambda: [(MANIFEST, changed(disk={"size": 10**30}), None)], "size of a disk"),
    "size is true": (lambda: [(MANIFEST, changed(disk={"size": True}), None)], "size of a disk"),
    "many volumes": (
        lambda: [
            (
                MANIFEST,
                changed(
                    volumes=[{"id": f"v{n}", "name": f"v{n}", "size": SIZE, "tags": {}} for n in range(99)]
                ),
                None,
            )
        ],
        "volumes are not valid",
    ),
    "a volume twice": (
        lambda: [(MANIFEST, changed(volumes=[{"id": "a", "name": "a", "size": SIZE, "tags": {}}] * 2), None)],
        "volumes are not valid",
    ),
    "no definition": (lambda: whole()[:1], "in place of definition.yaml"),
    "a member more": (lambda: [*whole(), ("x", b"x", None)], "'x' in place of SHA256SUMS"),
    "a path": (lambda: [*whole()[:2], ("../../etc/shadow", b"x", None)], "leads out of it"),
    "other order": (lambda: [whole()[0], whole()[2], whole()[1]], "in place of definition.yaml"),
    "no disk": (lambda: whole()[:2], "'SHA256SUMS' in place of disk.ext4"),
    "another size": (lambda: whole(size=SIZE * 1000), "the size of disk.ext4"),
    "not sparse": (lambda: whole(size=None), "the size of disk.ext4"),
    "beyond the end": (
        lambda: whole(contents=numbers(1, SIZE, 4096) + bytes(4096)),
        "does not fit its size",
    ),
    "overlap": (
        lambda: whole(contents=numbers(2, 4096, 4096, 0, 4096) + bytes(8192)),
        "does not fit its size",
    ),
    "less data": (lambda: whole(contents=numbers(1, 0, 8192) + bytes(4096)), "does not fit its data"),
    "more data": (lambda: whole(contents=numbers(1, 0, 4096) + bytes(8192)), "does not fit its data"),
    "no number": (lambda: whole(contents=b"x\n" + bytes(510)), "cannot be read"),
    "negative": (lambda: whole(contents=numbers(1, -4096, 4096) + bytes(4096)), "cannot be read"),
    "no end of a number": (lambda: whole(contents=b"1" * 1024), "cannot be read"),
    "many extents": (lambda: whole(contents=numbers(MAX_EXTENTS + 1)), "more than 16384"),
    "short map": (lambda: whole(contents=b"2\n0\n"), "not complete"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_is_no_archive_of_a_vm_is_refused(tmp_path: Path, what: str) -> None:
    parts, words = HOSTILE[what]
    with pytest.raises(InvalidArchive, match=words):
        unpack(make(parts()), tmp_path / "out")


def test_what_follows_the_checksums_is_refused(tmp_path: Path) -> None:
    data = make(whole()).removesuffix(END) + make(whole())
    with pytest.raises(InvalidArchive, match="in place of its end"):
        unpack(data, tmp_path / "out")


def test_a_manifest_survives_keys_of_a_later_version() -> None:
    assert parse_manifest(changed(more={"a": 1})) == ONE


def test_a_disk_with_any_number_of_holes_has_a_map_of_bounded_size(tmp_path: Path) -> None:
    count = 3 * 700
    disk = write_disk(tmp_path / "a", *((n * 8192, b"x" * 4096) for n in range(count)), size=count * 8192)
    with disk.open("rb") as file:
        every = list_extents(file.fileno(), count * 8192)
        few = list_extents(file.fileno(), count * 8192, 700)
    assert len(every) == count
    assert len(few) < 700
    covered = iter(few)
    start, end = next(covered)
    for extent in every:  # no byte of data is lost
        while extent[1] > end:
            start, end = next(covered)
        assert start <= extent[0] < extent[1] <= end


def test_no_vmm_writes_to_a_disk_while_it_is_exported(tmp_path: Path) -> None:
    disk = write_disk(tmp_path / "a", (0, b"x"))
    volume = write_disk(tmp_path / "b", (0, b"x"))
    writer = ArchiveWriter(
        lambda _: ONE, TEXT, [Source(DISK, disk), Source(VOLUME.member, volume, shared=True)], None
    )
    writer.open()
    with pytest.raises(InUse), hold_disk(disk, "read", beside_readers=True):
        pass
    with pytest.raises(InUse), hold_disk(volume, "written"):
        pass
    with hold_disk(volume, "read", beside_readers=True):
        pass
    writer.close()
    with hold_disk(disk, "written"), hold_disk(volume, "written"):
        pass
    fd = os.open(disk, os.O_RDWR)
    lock_disk(fd, disk, "written")
    busy = ArchiveWriter(lambda _: ONE, TEXT, [Source(DISK, disk)], None)
    with pytest.raises(InUse, match="cannot be exported"):
        busy.open()
    busy.close()
    os.close(fd)


@pytest.mark.parametrize("kind", ["disk", "image"])
def test_the_hosts_free_space_is_looked_at_again_and_again(tmp_path: Path, kind: str) -> None:
    looks = 0

    def check() -> None:
        nonlocal looks
        looks += 1
        if looks == 2:
            raise InsufficientResources("full")

    size = 128 * 1024 * 1024
    target: SparseFile | PlainFile
    target = SparseFile(tmp_path / "x", size, check) if kind == "disk" else PlainFile(tmp_path / "x", check)
    table = format_sparse_map([(0, size)], size) if kind == "disk" else b""
    target.begin(len(table) + size)

    def pieces() -> Iterator[bytes]:
        yield table
        for _ in range(size // (1024 * 1024)):
            yield bytes(1024 * 1024)

    def write() -> None:
        for piece in pieces():
            target.write(piece)

    with pytest.raises(HypemandError, match="full"):
        write()
    target.close()
    assert (tmp_path / "x").stat().st_blocks * 512 <= 48 * 1024 * 1024
