# SPDX-License-Identifier: Apache-2.0
"""What parses bytes of a guest, an archive, a registry or a client takes time linear in their number.

Each parser has inputs here that are as bad for it as its author could think of; four times the bytes may take
at most MARGIN times four times as long, where a quadratic parser takes sixteen. What is not in the table and
could be such a parser is found by its name and the types of what it takes: `test_no_parser_is_forgotten`.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import gc
import gzip
import io
import json
import re
import tarfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import BadHttpMessage
from aiohttp.http_parser import HttpRequestParser

import hypemand
from hypemand.agent.report import LineSplitter
from hypemand.agent.session import clean_message
from hypemand.api.attach import parse_opening as parse_attach
from hypemand.api.cp import parse_order
from hypemand.api.exec import parse_opening
from hypemand.api.heads import _BoundedParser
from hypemand.api.requests import parse_object
from hypemand.budget import Budget
from hypemand.config.durations import parse_duration
from hypemand.config.sizes import parse_size
from hypemand.errors import HypemandError
from hypemand.inflate import Inflater
from hypemand.manager.net.names import replace_block
from hypemand.manager.transfer import _parse_keys
from hypemand.model.files import FileInfo, FileKind
from hypemand.protocol.frames import FrameParser, HelloFinder
from hypemand.protocol.items import ItemParser, Tree, parse_entry
from hypemand.protocol.records import parse_records
from hypemand.protocol.sentinels import derive_user_text, is_sentinel_line, parse_sentinel
from hypemand.storage.images import parse_oci_config
from hypemand.storage.references import parse_image_name, parse_reference
from hypemand.storage.sparse import _Map
from hypemand.storage.vmarchive import ArchiveReader, Manifest, format_manifest, parse_manifest
from hypemand.systemd.journal import JournalLine
from hypemand.tar import (
    BLOCK,
    TarReader,
    clean_name,
    find_error,
    find_hole,
    parse_pax,
    read_headers,
)
from hypemand.unit.exit import Findings, scan_journal
from hypemand.vm.tracker import BootTracker
from hypemand.vmm.qmp import Qmp
from tests.unit.agent.support import BOOT, DATA, HELLO, HOLE, pack, records

MARGIN = 2.25
# of which the least counts: other work of the machine is in the rest
TRIES, CALL_TRIES = 15, 5
REFUSALS = (HypemandError, ValueError)
Work = Callable[[bytes], object]
Make = Callable[[int], bytes]


class Case(NamedTuple):
    """A parser, and how to make inputs of about so many bytes for it. `most`: more is refused at once;
    `calls`: of an empty function of Python, which take as long as a byte may."""

    work: Work
    inputs: tuple[Make, ...]
    most: int = 128 * 1024
    calls: int = 12


def repeat(unit: bytes, head: bytes = b"", tail: bytes = b"") -> Make:
    return lambda size: head + unit * max((size - len(head) - len(tail)) // len(unit), 1) + tail


def numbered(form: str, head: bytes = b"", tail: bytes = b"") -> Make:
    """The form with another number each time."""
    step = len(form % 10_000)
    return lambda size: (
        head + b"".join((form % n).encode() for n in range(10_000, 10_000 + size // step)) + tail
    )


def feed(make: Callable[[], object], step: int) -> Work:
    """Feed in pieces of `step` bytes, and ask for all that comes, up to what is the end of it."""

    def work(data: bytes) -> None:
        parser = make()
        for at in range(0, len(data), step):
            found = parser.feed(data[at : at + step])  # type: ignore[attr-defined]
            if isinstance(found, bytes):
                return
            for _ in found or ():
                pass

    return work


def both(*works: Work) -> Work:
    """One after the other, whatever the first makes of it."""

    def work(data: bytes) -> None:
        for one in works:
            with contextlib.suppress(*REFUSALS):
                one(data)

    return work


def member(name: str = "x", size: int = 0, kind: bytes = b"0") -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def global_header(data: bytes) -> bytes:
    return member("g", len(data), b"g") + data + bytes(-len(data) % BLOCK)


def pax_record(key: str, value: str) -> bytes:
    text = f" {key}={value}\n"
    length = len(text) + 3
    return f"{length}{text}".encode() if len(str(length)) == 3 else f"{length + 1}{text}".encode()


def take_map(data: bytes) -> None:
    for step in (65_536, 7):
        table = _Map()
        for at in range(0, len(data), step):
            table.feed(data[at : at + step])


def take_archive(data: bytes) -> None:
    for step in (65_536, 64):
        reader = ArchiveReader()
        for at in range(0, len(data), step):
            if reader.feed(data[at : at + step]):
                return


def archive_text(unit: bytes) -> Make:
    """An archive whose definition is this, again and again."""
    head = format_manifest(Manifest("a", "ab" * 16, "x", "", False, None))
    head = member("manifest.json", len(head)) + head + bytes(-len(head) % BLOCK)
    return lambda size: head + member("definition.yaml", size) + unit * (size // len(unit))


def take_qmp(data: bytes) -> None:
    async def take() -> None:
        reader = asyncio.StreamReader()
        qmp = Qmp(reader, None, lambda name, data: None, "web", Budget())  # type: ignore[arg-type]
        for line in data.split(b"\n"):
            qmp._take(line)

    asyncio.run(take())


def take_lines(data: bytes) -> None:
    tracker = BootTracker("e" * 32, lambda: BOOT)
    for line in data.split(b"\n"):
        tracker.take_line(line, 0.0)


def take_tree(data: bytes) -> None:
    tree = Tree()
    tree.take(FileInfo("", FileKind.DIRECTORY, 0, 0, 0, 0, 0))
    path = ""
    for at in range(0, len(data), 4000):
        path = data[at : at + 4000].decode()
        tree.take(FileInfo(path, FileKind.FILE, 0, 0, 0, 0, 0))


def take_heads(data: bytes) -> None:
    async def take() -> None:
        loop = asyncio.get_running_loop()
        for step in (4096, 64):
            parser = _BoundedParser(
                HttpRequestParser(BaseProtocol(loop), loop, 65536, max_line_size=8190, max_field_size=8190)
            )
            with contextlib.suppress(BadHttpMessage):
                for at in range(0, len(data), step):
                    parser.feed_data(data[at : at + step])

    asyncio.run(take())


HOSTILE_LINES = (
    repeat(b" a=HYPEMAN-EXIT", b"HYPEMAN-EXIT", b' "'),
    repeat(b" a=HYPEMAN-EXIT", b"HYPEMAN-EXIT"),
    numbered(" a%d=HYPEMAN-EXIT", b"HYPEMAN-EXIT", b' code=1 message="x" boot=' + BOOT.encode()),
    numbered(' a%d="HYPEMAN-EXIT"', b"HYPEMAN-EXIT", b' code=1 message="x" boot=' + BOOT.encode()),
    repeat(b'\\"', b'HYPEMAN-EXIT a="'),
    repeat(b'\\"', b'HYPEMAN-EXIT a="', b'"'),
    repeat(b"\\", b'HYPEMAN-EXIT a="', b'"'),
    repeat(b" ", b"HYPEMAN-EXIT", b"x"),
    repeat(b" ", b"HYPEMAN-EXIT", b'a="'),
    repeat(b"b", b"HYPEMAN-EXIT a", b'="'),
    repeat(b"HYPEMAN-"),
    repeat(b"HYPEMAN-EXIT "),
    repeat(b"="),
    repeat(b"\xff", b'HYPEMAN-EXIT code=1 message="', b'" boot=' + BOOT.encode()),
    repeat(b"\t \r\v"),
)
NOISE = b"\1" * 20
REQUEST = b"GET / HTTP/1.1\r\n"
LINE = b"HYPEMAN-EXIT" + b" a=HYPEMAN-EXIT" * 200 + b' "\n'

PARSERS: dict[str, Case] = {
    "protocol.sentinels:parse_sentinel": Case(parse_sentinel, HOSTILE_LINES, most=4000),
    "protocol.sentinels:is_sentinel_line": Case(is_sentinel_line, HOSTILE_LINES, most=4000),
    "protocol.sentinels:derive_user_text": Case(derive_user_text, HOSTILE_LINES, most=2000),
    "vm.tracker:BootTracker.take_line": Case(take_lines, (repeat(LINE), repeat(b"\n"))),
    "unit.exit:scan_journal": Case(
        lambda d: scan_journal(BOOT, (JournalLine(line, 0, 0) for line in d.split(b"\n")), Findings()),
        (repeat(LINE), repeat(b"qemu-system-x: \n"), repeat(b"Kernel panic")),
    ),
    "agent.report:LineSplitter.feed": Case(
        both(feed(LineSplitter, 16_384), feed(LineSplitter, 64)),
        (repeat(b"\n"), repeat(b"x"), repeat(b"x" * 4097 + b"\n"), repeat(b"x\r\n")),
    ),
    "protocol.frames:FrameParser.feed": Case(
        both(feed(FrameParser, 16_384), feed(FrameParser, 64)),
        (
            repeat(pack(DATA, 1, b"x", 1)),
            repeat(pack(DATA, 1, b"", 1)),
            repeat(pack(DATA, 1, bytes(65536), 1)),
        ),
    ),
    "protocol.frames:HelloFinder.feed": Case(
        both(feed(HelloFinder, 16_384), feed(HelloFinder, 64)),
        (
            repeat(b"\1"),
            repeat(pack(HELLO, 0, b"a=\0" * 300), NOISE),
            repeat(pack(HELLO, 0, bytes(4096))[:12], NOISE),
            repeat(pack(HELLO, 0, bytes(4096))[:12] + b"version=1\0boot", NOISE),
            repeat(pack(HELLO, 0, bytes(12))[:12], NOISE),
            repeat(pack(HELLO), NOISE),
        ),
    ),
    "protocol.items:ItemParser.feed": Case(
        feed(ItemParser, 16_384), (repeat(pack(HOLE, 0, bytes(8))), repeat(pack(DATA, 0, b"x")))
    ),
    "protocol.items:parse_entry": Case(
        parse_entry,
        (repeat(b"a=\0"), repeat(b"kind=x\0"), numbered("a%d=x\0", records(("kind", "file"), ("size", "1")))),
        most=65536,
    ),
    "protocol.items:Tree.take": Case(
        take_tree, (repeat(b"/" * 4000), repeat(b"a" * 4000), repeat(b"./" * 2000))
    ),
    "protocol.records:parse_records": Case(
        lambda d: parse_records(d).find("b"),
        (repeat(b"a=\0"), repeat(b"a", tail=b"=\0"), repeat(b"=", b"a", b"\0"), repeat(b"\0")),
        most=65536,
    ),
    "agent.session:clean_message": Case(
        lambda d: clean_message(d.decode("latin-1")), (repeat(b"\x1b"), repeat(b"x")), most=65536
    ),
    "vmm.qmp:Qmp._take": Case(
        take_qmp,
        (
            repeat(b'{"event":"STOP"}\n'),
            repeat(b"["),
            repeat(b'{"a":'),
            repeat(b"1"),
            repeat(b"9", b'{"return":1e'),
            numbered('"%d":1,', b"{", b'"a":1}'),
            repeat(b"\\", b'{"event":"', b'"}'),
            repeat(b"\\ud800", b'{"event":"', b'"}'),
        ),
        most=65536,
    ),
    "tar:parse_pax": Case(
        parse_pax, (repeat(b"6 a=b\n"), numbered("22 GNU.sparse.%d=x\n"), repeat(b"1 "), repeat(b"9"))
    ),
    "tar:TarReader.feed": Case(
        both(feed(TarReader, 65_536), feed(TarReader, 512)),
        (
            repeat(member()),
            repeat(member(), global_header(pax_record("path", "x" * 900) * 1000)),
            repeat(member(), global_header(pax_record("mtime", "1." + "0" * 900) * 1000)),
            repeat(global_header(b"22 GNU.sparse.12345=x\n" * 20)),
            repeat(member("x", 6, b"x") + b"6 a=b\n" + bytes(BLOCK - 6)),
            repeat(member("x", 1) + b"x" + bytes(BLOCK - 1)),
        ),
    ),
    "tar:read_headers": Case(
        lambda d: list(read_headers(io.BytesIO(d))),
        (
            repeat(member()),
            repeat(member("x", 6, b"x") + b"6 a=b\n" + bytes(BLOCK - 6)),
            repeat(member("x", 6, b"L") + b"abcdef" + bytes(BLOCK - 6)),
            repeat(b"\1" * 482 + b"\1" * 30, member("x", 0, b"S")[:482] + b"\1" + bytes(29)),
        ),
    ),
    "tar:find_error": Case(find_error, (repeat(b" HYPEMAN.error="), repeat(b"\n"))),
    "tar:find_hole": Case(find_hole, (repeat(b"\0"), repeat(b"x", b"\0", b"\0"))),
    "tar:clean_name": Case(lambda d: clean_name(d.decode()), (repeat(b"/"), repeat(b"./"), repeat(b"a/"))),
    "inflate:Inflater.feed": Case(
        both(feed(Inflater, 65_536), feed(Inflater, 16)),
        (
            repeat(gzip.compress(b"")),
            repeat(b"\0", gzip.compress(b"")),
            lambda n: gzip.compress(bytes(20 * n)),
        ),
        most=64 * 1024,
        calls=100,  # a byte stands for a thousand
    ),
    "storage.tarball:find_kind": Case(
        lambda d: list(read_headers(io.BytesIO(d))), (repeat(member("../x" * 20)), repeat(member()))
    ),
    "storage.vmarchive:ArchiveReader.feed": Case(
        take_archive, (archive_text(b"x"), archive_text(b"[1],"), repeat(member("manifest.json")))
    ),
    "storage.vmarchive:parse_manifest": Case(
        parse_manifest,
        (
            repeat(b"["),
            numbered('"%d":"x",', b'{"format":"hypemand-vm","version":1,', b'"a":1}'),
            repeat(b'{"id":"a"},', b'{"format":"hypemand-vm","version":1,"volumes":[', b"1]}"),
        ),
    ),
    "storage.sparse:_Map.feed": Case(
        take_map, (repeat(b"1\n", b"16384\n"), numbered("%d\n", b"16384\n"), repeat(b"1"), repeat(b"\n"))
    ),
    "manager.transfer:_parse_keys": Case(
        _parse_keys, (repeat(b"["), numbered('"%d":1,', b"{", b'"a":1}'), repeat(b"1"))
    ),
    "manager.net.names:replace_block": Case(
        lambda d: replace_block(d, ()),
        (
            repeat(b"# BEGIN hypemand\n"),
            repeat(b"# END hypemand\n"),
            repeat(b"# BEGIN hypemand\n# END hypemand\n"),
            repeat(b"\n"),
            repeat(b"#"),
        ),
    ),
    "api.requests:parse_object": Case(
        parse_object,
        (
            numbered('"%d":1,', b"{", b'"10000":1}'),
            numbered('"%d":1,', b'{"a":1,', b'"a":1}'),
            numbered('"%d":1,', b"{", b'"b":1,"b":1}'),
            repeat(b"["),
            repeat(b"[1],", b'{"a":[', b"1]}"),
            repeat(b"1"),
            repeat(b"\\ud800", b'{"a":"', b'"}'),
        ),
    ),
    "api.attach:parse_opening": Case(
        lambda d: parse_attach(d.decode()),
        (repeat(b'"x":1,', b"{", b'"stdin":true}'), repeat(b"[", b'{"rows":')),
    ),
    "api.exec:parse_opening": Case(
        lambda d: parse_opening(d.decode()),
        (
            repeat(b'"",', b'{"command":["a",', b'"b"]}'),
            numbered('"%d":"",', b'{"command":["a"],"env":{', b'"a":""}}'),
            numbered('"%d":1,', b"{", b'"a":1}'),
        ),
    ),
    "api.cp:parse_order": Case(
        lambda d: parse_order(d.decode()),
        (numbered('"%d":1,', b"{", b'"a":1}'), repeat(b"/", b'{"path":"', b'"}')),
    ),
    "api.heads:_BoundedParser.feed_data": Case(
        take_heads,
        (
            repeat(b"a:b\r\n", REQUEST),
            repeat(b"a:b\r\n", REQUEST, b"\r\n"),
            repeat(b"a" * 4000 + b":b\r\n", REQUEST),
            repeat(REQUEST + b"\r\n"),
            repeat(b"x", b"POST / HTTP/1.1\r\ncontent-length: 9999999\r\n\r\n"),
        ),
        most=60 * 1024,
    ),
    "storage.images:parse_oci_config": Case(
        lambda d: parse_oci_config(json.loads(d)),
        (repeat(b'"",', b'{"Cmd":[', b'""]}'), repeat(b"x", b'{"User":"', b'"}')),
    ),
    "storage.references:parse_image_name": Case(
        lambda d: parse_image_name(d.decode()),
        (repeat(b"a"), repeat(b"a/"), repeat(b"a:1/"), repeat(b"/", b"oci:/"), repeat(b"@", b"oci:/")),
    ),
    "storage.references:parse_reference": Case(
        lambda d: parse_reference(d.decode()), (repeat(b"a."), repeat(b"a", b"oci:/", b"@sha256:"))
    ),
    "config.durations:parse_duration": Case(
        lambda d: parse_duration(d.decode()),
        (repeat(b"1s"), repeat(b" "), repeat(b" ", b"1", b"x"), repeat(b"1")),
    ),
    "config.sizes:parse_size": Case(
        lambda d: parse_size(d.decode()), (repeat(b"1"), repeat(b" ", b"1", b"x"))
    ),
}

# Parts of a parser of the table, whose cost is in that one's.
PARTS = {
    "agent.channel:AgentChannel._take": "protocol.frames:FrameParser.feed",
    "agent.health:_parse_report": "protocol.records:parse_records",
    "protocol.frames:_parse_header": "protocol.frames:FrameParser.feed",
    "protocol.items:_parse_end": "protocol.records:parse_records",
    "protocol.items:_parse_item": "protocol.items:ItemParser.feed",
    "protocol.items:_parse_name": "protocol.items:parse_entry",
    "protocol.items:_parse_time": "protocol.items:parse_entry",
    "inflate:Inflater._begin_member": "inflate:Inflater.feed",
    "inflate:Inflater._feed_step": "inflate:Inflater.feed",
    "inflate:_inflate": "inflate:Inflater.feed",
    "protocol.sentinels:_find_sentinel": "protocol.sentinels:parse_sentinel",
    "protocol.sentinels:_is_beginning": "protocol.sentinels:is_sentinel_line",
    "protocol.sentinels:_make_sentinel": "protocol.sentinels:parse_sentinel",
    "protocol.sentinels:_match": "protocol.sentinels:parse_sentinel",
    "protocol.sentinels:_read_last_field": "protocol.sentinels:parse_sentinel",
    "protocol.sentinels:_to_bytes": "protocol.sentinels:parse_sentinel",
    "manager.transfer:Transfers._plan": "manager.transfer:_parse_keys",
    "manager.transfer:Transfers.import_vm": "storage.vmarchive:ArchiveReader.feed",
    "storage.store:parse_new_name": "storage.references:parse_image_name",
    "storage.sparse:SparseFile._store": "storage.sparse:_Map.feed",
    "storage.sparse:SparseFile.write": "storage.sparse:_Map.feed",
    "storage.vmarchive:_Text.write": "storage.vmarchive:ArchiveReader.feed",
    "tar:TarReader._parse_sparse": "tar:TarReader.feed",
    "tar:_pass_over": "tar:read_headers",
    "tar:_read_padded": "tar:read_headers",
    "tar:_Meta.add": "tar:TarReader.feed",
    "tar:_decode": "tar:parse_pax",
    "tar:_decode_value": "tar:parse_pax",
    "tar:_parse_block": "tar:TarReader.feed",
    "tar:_parse_number": "tar:TarReader.feed",
    "tar:_parse_time": "tar:TarReader.feed",
    "tar:TarReader._parse_header": "tar:TarReader.feed",
    "unit.exit:_take_other_line": "unit.exit:scan_journal",
    "unit.exit:_words": "unit.exit:scan_journal",
    **{f"protocol.sentinels:_parse_{what}": "protocol.sentinels:parse_sentinel" for what in (
        "boot", "code", "emergency", "mode", "seconds", "stage_name", "text", "timestamp", "value"
    )},
}  # fmt: skip

# Rooms, modules and functions that take nothing hostile, or do not look into what they take.
OTHERS = {
    "cli.": "a client's own process",
    "config.": "what the administrator writes; what the API takes of it is bounded by its body",
    "network.": "the kernel's and the network service's words",
    "systemd.": "systemd's words",
    "atomic:": "written",
    "run:": "given to a program",
    "model.": "of other classes",
    "agent.channel:AgentChannel._open": "written",
    "agent.channel:AgentChannel._order": "written",
    "agent.channel:AgentChannel.check_health": "written",
    "agent.files:IncomingCopy._send": "written",
    "agent.files:IncomingCopy.write": "written",
    "protocol.items:encode_data": "written",
    "agent.session:_Output.add": "kept as it is, in as many pieces as the window allows",
    "agent.session:Session.write": "written",
    "api.archive:": "passes on what hypemand.tar has parsed",
    "api.create:": "of an object that was parsed, with a bounded number of keys",
    "api.entries:": "of values that were parsed",
    "api.exec:feed": "passed on",
    "api.requests:parse_ref": "of a path of at most 8 KiB, by one regular expression without a choice",
    "api.spool:": "stored",
    "api.tokens:": "a file of ours",
    "api.snapshots:_parse_snapshot": "of a path of at most 8 KiB, by one regular expression without a choice",
    "api.volumes:_parse_volume": "of a path of at most 8 KiB, by one regular expression without a choice",
    "manager.net.names:_replace_host": "written",
    "manager.net.names:_write_file": "written",
    "vmm.qmp:Qmp._send": "written",
    "recordfile:": "files of ours, with a limit of their size",
    "vm.exitrecord:_parse": "a file of ours with a limit of its size",
    "manager.vmrecords:_parse_record": "a file of ours with a limit of its size",
    "storage.store:_parse_names": "a file of ours with a limit of its size",
    "storage.volume:_parse_record": "a file of ours with a limit of its size",
    "storage.volumelock:_parse": "json.loads of at most 64 KiB, in a thread",
    "storage.erofs:": "of images that mkfs.erofs of this host has made",
    "storage.images:": "of an object that was parsed, or a file of ours",
    "storage.references:split_name": "of a name that was parsed",
    "storage.program:parse_signal": "a word that is looked up",
    "storage.registry:Registry._parse": "json.loads of at most 4 MiB, in a thread",
    "storage.archives:": "json.loads of members with a limit of their size, in a thread",
    "vm.handover:_parse": "a file of hosts of ours, with a limit of its size",
    "vm.saved:_parse_packing": "a file of ours",
    "vm.saved:parse_saved": "a file of ours",
    "vm.snapshots:_parse": "a file of ours",
    "vm.template:_parse": "a file of ours",
    "vm.tracker:parse_notes": "a file of ours",
    "manager.net.ports:_decode_port": "a file of ours",
    "storage.vmarchive:ArchiveWriter": "written",
    "storage.vmarchive:Discarded.write": "not kept",
    "storage.vmarchive:PlainFile.write": "stored",
    "storage.vmarchive:Target.write": "of other classes",
    "storage.tarball:_open_plain": "looks at the first bytes",
}


def measure(work: Work, data: bytes) -> float:
    """Seconds of CPU for one call; of many if one is too quick to be measured."""

    def once() -> None:
        with contextlib.suppress(*REFUSALS):
            work(data)

    calls = 1
    while True:
        began = time.thread_time()
        for _ in range(calls):
            once()
        took = time.thread_time() - began
        if took > 0.002:
            return took / calls
        calls *= 4


def cases() -> Iterator[Any]:
    for name, case in PARSERS.items():
        for number, make in enumerate(case.inputs):
            yield pytest.param(case, make, id=f"{name}-{number}")


@pytest.mark.parametrize(("case", "make"), list(cases()))
def test_the_cost_of_a_byte_does_not_grow_with_the_bytes(case: Case, make: Make) -> None:
    large = case.most
    small = large // 4
    gc.disable()
    try:
        ratios: list[float] = []
        while not ratios or (min(ratios) > 4 * MARGIN and len(ratios) < TRIES):
            ratios.append(measure(case.work, make(large)) / measure(case.work, make(small)))
    finally:
        gc.enable()
    assert min(ratios) <= 4 * MARGIN, f"four times the bytes take {min(ratios):.1f} times as long"


def measure_call() -> float:
    """Seconds of CPU that this machine takes for a call of a function of Python that does nothing."""

    def nothing(_data: bytes) -> None:
        pass

    return min(measure(nothing, b"") for _ in range(CALL_TRIES))


@cache
def measure_call_once() -> float:
    """The same at the first of these tests: for what is within its limits by it. What is not may have met a
    machine that has become slower."""
    return measure_call()


@pytest.mark.parametrize(("case", "make"), list(cases()))
def test_a_byte_costs_no_more_than_some_calls(case: Case, make: Make) -> None:
    """What is linear, but reads each byte hundreds of times, is seen here."""
    data = make(case.most)
    costs = [measure(case.work, data) / len(data) / measure_call_once()]
    while min(costs) > case.calls and len(costs) < TRIES:
        costs.append(measure(case.work, data) / len(data) / measure_call())
    assert min(costs) <= case.calls, f"a byte costs as much as {min(costs):.1f} calls"


def test_a_quadratic_parser_would_be_seen() -> None:
    def work(data: bytes) -> None:
        while data:
            data = data[1:]

    case = Case(work, (), most=64 * 1024)
    with pytest.raises(AssertionError, match="as long"):
        test_the_cost_of_a_byte_does_not_grow_with_the_bytes(case, repeat(b"x" * 64))


_BYTES = re.compile(r"\b(bytes|bytearray|memoryview)\b")
_PARSER = re.compile(r"_?(parse|decode|feed|scan|split)(_|$)")


def find_parsers(tree: ast.AST, prefix: str) -> Iterator[str]:
    """Functions that take bytes, or are called as parsers are."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            yield from find_parsers(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            types = [ast.unparse(a.annotation) for a in arguments if a.annotation is not None]
            if _PARSER.match(node.name) or any(_BYTES.search(kind) for kind in types):
                yield f"{prefix}{node.name}"


def test_no_parser_is_forgotten() -> None:
    """Whoever adds one adds its worst inputs to the table, or says whose part it is or why it takes nothing
    hostile."""
    top = Path(hypemand.__file__).parent
    found: set[str] = set()
    for path in top.rglob("*.py"):
        module = ".".join(path.relative_to(top).with_suffix("").parts)
        found.update(find_parsers(ast.parse(path.read_text()), f"{module}:"))
    others = tuple(OTHERS)
    forgotten = {name for name in found if not name.startswith(others)} - {*PARSERS, *PARTS}
    assert forgotten == set()
    assert set(PARTS.values()) <= set(PARSERS)
    gone = {name for name in PARTS if name not in found}
    assert gone == set(), "of no function any more"
    useless = {other for other in others if not any(name.startswith(other) for name in found)}
    assert useless == set(), "of no function any more"
