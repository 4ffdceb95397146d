# SPDX-License-Identifier: Apache-2.0
"""The config disk, byte for byte as docs/protocol.md says."""

from __future__ import annotations

import dataclasses
import stat
import struct
import zlib
from pathlib import Path

import pytest

from hypemand.config.mode import Mode
from hypemand.errors import InvalidDefinition
from hypemand.protocol.configdisk import (
    MAX_RECORDS,
    GuestConfig,
    GuestHost,
    GuestInterface,
    GuestVolume,
    encode_config_disk,
    load_env,
    write_config_disk,
)
from hypemand.protocol.records import ProtocolError

CONFIG = GuestConfig(
    name="web",
    mode=Mode.EXEC,
    argv=("/bin/sh", "-c", "echo\n$X"),
    env={"X": "a=b c", "Y": ""},
    workdir="/srv",
    user="www-data",
    stop_signal=3,
    agent=True,
    headers=False,
)


def test_every_record_is_there_in_the_protocols_words() -> None:
    records = (
        b"version=1\0name=web\0mode=exec\0arg=/bin/sh\0arg=-c\0arg=echo\n$X\0env=X=a=b c\0env=Y=\0"
        b"workdir=/srv\0user=www-data\0stop_signal=3\0agent=1\0headers=0\0"
    )
    disk = encode_config_disk(CONFIG)
    magic, length, crc = struct.unpack_from("<8sII", disk)
    assert (magic, length, crc) == (b"HYPECFG1", len(records), zlib.crc32(records))
    assert disk[16 : 16 + length] == records
    assert len(disk) % 512 == 0
    assert not any(disk[16 + length :])


def test_settings_are_records_as_they_are() -> None:
    settings = (("umask", "18"), ("other", "a=1"), ("other", "b=2"))
    disk = encode_config_disk(dataclasses.replace(CONFIG, settings=settings))
    assert b"headers=0\0umask=18\0other=a=1\0other=b=2\0" in disk


def test_volumes_and_networks_are_fields_in_records() -> None:
    interface = GuestInterface(
        "52:54:00:ab:cd:01", "eth0", 1400, ("10.0.0.2/24", "fd00::2/64"), ("10.0.0.1", "fe80::1")
    )
    config = dataclasses.replace(
        CONFIG,
        volumes=(GuestVolume("v1", "/a,b%c"), GuestVolume("v2", "/x", True, False, "erofs")),
        interfaces=(interface, GuestInterface("52:54:00:ab:cd:02")),
        dns=("10.0.0.1", "fd00::1"),
        search=("example.org", "lan"),
        hosts=(GuestHost("10.0.0.3", ("db", "db.hypeman")), GuestHost("fd00::3", ("db",))),
    )
    disk = encode_config_disk(config)
    records = (
        b"volume=serial=v1,path=/a%2Cb%25c,readonly=0,required=1,fstype=ext4\0"
        b"volume=serial=v2,path=/x,readonly=1,required=0,fstype=erofs\0"
        b"net=mac=52:54:00:ab:cd:01,name=eth0,mtu=1400,address=10.0.0.2/24,address=fd00::2/64,"
        b"gateway=10.0.0.1,gateway=fe80::1\0net=mac=52:54:00:ab:cd:02\0"
        b"dns=10.0.0.1\0dns=fd00::1\0search=example.org\0search=lan\0"
        b"host=address=10.0.0.3,name=db,name=db.hypeman\0host=address=fd00::3,name=db\0"
    )
    length = struct.unpack_from("<I", disk, 8)[0]
    assert disk[16 : 16 + length].endswith(b"headers=0\0" + records)


def test_what_is_not_set_is_not_written() -> None:
    disk = encode_config_disk(dataclasses.replace(CONFIG, workdir=None, user=None))
    assert b"workdir=" not in disk
    assert b"user=" not in disk


def test_the_variables_are_read_again_from_a_disk_that_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "config.img"
    write_config_disk(path, CONFIG)
    assert load_env(path) == CONFIG.env
    disk = path.read_bytes()
    for damaged in (b"", disk[:20], b"x" + disk[1:], disk[:17] + b"x" + disk[18:], disk[:8] + b"\xff" * 4):
        (tmp_path / "damaged").write_bytes(damaged)
        with pytest.raises(ProtocolError):
            load_env(tmp_path / "damaged")
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(OSError, match="symbolic links"):
        load_env(tmp_path / "link")


def test_the_file_is_for_its_vmm_only(tmp_path: Path) -> None:
    path = tmp_path / "config.img"
    write_config_disk(path, CONFIG, uid=61234)
    assert stat.S_IMODE(path.stat().st_mode) == 0o400
    assert path.stat().st_uid == 61234
    assert path.read_bytes() == encode_config_disk(CONFIG)


def test_the_largest_fits_and_one_byte_more_is_told() -> None:
    spare = MAX_RECORDS - struct.unpack_from("<I", encode_config_disk(CONFIG), 8)[0]
    full = dataclasses.replace(CONFIG, env={"X": "a=b c" + "x" * spare, "Y": ""})
    assert struct.unpack_from("<I", encode_config_disk(full), 8)[0] == MAX_RECORDS
    over = dataclasses.replace(CONFIG, env={"X": "a=b c" + "x" * (spare + 1), "Y": ""})
    with pytest.raises(InvalidDefinition, match="1048577 bytes, at most 1048576"):
        encode_config_disk(over)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mode": Mode.AUTO}, "mode"),
        ({"argv": ()}, "no program"),
        ({"argv": ("a\0b",)}, "cmd: has a NUL"),
        ({"env": {"A": "\0"}}, "env: has a NUL"),
        ({"workdir": "/a\0"}, "workdir: has a NUL"),
        ({"volumes": (GuestVolume("v", "/a\0"),)}, "volume: has a NUL"),
    ],
)
def test_what_a_guest_cannot_be_told_is_refused(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    with pytest.raises(InvalidDefinition, match=words):
        write_config_disk(tmp_path / "config.img", dataclasses.replace(CONFIG, **change))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
