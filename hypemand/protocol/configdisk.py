# SPDX-License-Identifier: Apache-2.0
"""The config disk: the guest's configuration, which it reads first of all (docs/protocol.md, "Config
disk")."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hypemand.atomic import write_file
from hypemand.config.mode import Mode
from hypemand.config.ready import Ready, ready_fields
from hypemand.errors import InvalidDefinition, Problem
from hypemand.protocol.records import ProtocolError, encode_fields, encode_records, parse_records

MAGIC = b"HYPECFG1"
VERSION = "1"
MAX_RECORDS = 1024 * 1024
MAX_HOSTS = 4096
RESET_SSH_HOST_KEYS = "ssh-host-keys"
SECTOR = 512
_HEADER = struct.Struct("<8sII")


@dataclass(frozen=True, slots=True)
class GuestVolume:
    """A disk with a place of its own in the guest's root: absolute, without `.`, `..` or an empty part.

    `serial` is its drive's, at most 20 bytes (virtio-blk has no room for more). Without one that is not
    `required` the guest boots all the same. `overlay`: it is read only, and what is written there goes to
    a layer on the VM's disk.
    """

    serial: str
    path: str
    readonly: bool = False
    required: bool = True
    fstype: str = "ext4"
    overlay: bool = False


@dataclass(frozen=True, slots=True)
class GuestInterface:
    """A network interface, found by its MAC address. `addresses` with their prefix, as `10.0.0.2/24`;
    `gateways` without; `name` and `mtu` None: as the kernel has them."""

    mac: str
    name: str | None = None
    mtu: int | None = None
    addresses: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GuestHost:
    """A line of the guest's /etc/hosts: an address, without a prefix, and 1 to 8 names of it."""

    address: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GuestSecret:
    """A file of the guest's /run/secrets, whose content comes by a disk of its own. `mode`: octal digits;
    `owner`: USER[:GROUP]."""

    name: str
    mode: str
    owner: str


@dataclass(frozen=True, slots=True)
class GuestConfig:
    """What the guest runs, and how. `mode` is EXEC or SYSTEMD; `user` and `workdir` None: root and /.
    `dns` are addresses, `search` domains; `hosts`, at most MAX_HOSTS, are the names of other VMs and
    its own. `settings`: records on how programs are started, as `settings_of` derives them;
    `boot_settings`: further ones, of the boot alone, as `boot_settings_of` does. `machine_id`: 32 hex digits,
    what a guest's systemd is given (machine-id(5)). `former_ids`: those that it does not keep if its disk
    has one of them, nor its SSH host keys then with `reset_ssh_host_keys`. `ready`: what is checked before
    the VM is Running. `files`: does it have a files disk (hypemand.protocol.filesdisk)?"""

    name: str
    mode: Mode
    argv: tuple[str, ...]
    env: Mapping[str, str]
    workdir: str | None
    user: str | None
    stop_signal: int
    agent: bool
    headers: bool
    volumes: tuple[GuestVolume, ...] = ()
    interfaces: tuple[GuestInterface, ...] = ()
    dns: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    hosts: tuple[GuestHost, ...] = ()
    settings: tuple[tuple[str, str], ...] = ()
    boot_settings: tuple[tuple[str, str], ...] = ()
    machine_id: str | None = None
    former_ids: tuple[str, ...] = ()
    reset_ssh_host_keys: bool = False
    ready: Ready | None = None
    files: bool = False
    secrets: tuple[GuestSecret, ...] = ()


def _derive_pairs(config: GuestConfig) -> Iterator[tuple[str, str]]:
    yield "version", VERSION
    yield "name", config.name
    yield "mode", config.mode.value
    for arg in config.argv:
        yield "arg", arg
    for key, value in config.env.items():
        yield "env", f"{key}={value}"
    if config.workdir is not None:
        yield "workdir", config.workdir
    if config.user is not None:
        yield "user", config.user
    yield "stop_signal", str(config.stop_signal)
    yield "agent", "1" if config.agent else "0"
    yield "headers", "1" if config.headers else "0"
    for volume in config.volumes:
        yield "volume", encode_fields(_volume_fields(volume))
    for interface in config.interfaces:
        yield "net", encode_fields(interface_fields(interface))
    for address in config.dns:
        yield "dns", address
    for domain in config.search:
        yield "search", domain
    for host in config.hosts:
        yield "host", encode_fields(host_fields(host))
    if config.machine_id is not None:
        yield "machine_id", config.machine_id
    for former in config.former_ids:
        yield "former_machine_id", former
    if config.reset_ssh_host_keys:
        yield "reset", RESET_SSH_HOST_KEYS
    if config.ready is not None:
        yield "ready", encode_fields(ready_fields(config.ready))
    if config.files:
        yield "files", "1"
    for secret in config.secrets:
        fields = (("name", secret.name), ("mode", secret.mode), ("owner", secret.owner))
        yield "secret", encode_fields(fields)
    yield from config.settings
    yield from config.boot_settings


def _volume_fields(volume: GuestVolume) -> Iterator[tuple[str, str]]:
    yield "serial", volume.serial
    yield "path", volume.path
    yield "readonly", "1" if volume.readonly else "0"
    yield "required", "1" if volume.required else "0"
    yield "fstype", volume.fstype
    if volume.overlay:
        yield "overlay", "1"


def interface_fields(interface: GuestInterface) -> Iterator[tuple[str, str]]:
    """Of a `net` record."""
    yield "mac", interface.mac
    if interface.name is not None:
        yield "name", interface.name
    if interface.mtu is not None:
        yield "mtu", str(interface.mtu)
    for address in interface.addresses:
        yield "address", address
    for gateway in interface.gateways:
        yield "gateway", gateway


def host_fields(host: GuestHost) -> Iterator[tuple[str, str]]:
    """Of a `host` record."""
    yield "address", host.address
    for name in host.names:
        yield "name", name


def _find_problem(config: GuestConfig) -> Problem | None:
    """A value that the format cannot represent, whatever its size."""
    if config.mode is Mode.AUTO:
        return Problem("", 0, 0, "mode", "auto was not decided", "exec or systemd")
    if not config.argv:
        return Problem("", 0, 0, "cmd", "there is no program to run", "set entrypoint or cmd")
    for key, value in _derive_pairs(config):
        if "\0" in value:
            shown = {"arg": "cmd"}.get(key, key)
            return Problem("", 0, 0, shown, "has a NUL byte, which no program can be given", "remove it")
    return None


def encode_config_disk(config: GuestConfig) -> bytes:
    """The bytes of the disk. InvalidDefinition for a value that the format cannot represent."""
    problem = _find_problem(config)
    if problem is not None:
        raise InvalidDefinition([problem])
    records = encode_records(_derive_pairs(config))
    if len(records) > MAX_RECORDS:
        what = f"entrypoint, cmd and env together take {len(records)} bytes, at most {MAX_RECORDS} fit"
        hint = "put large values into a file of the image"
        raise InvalidDefinition([Problem("", 0, 0, "env", what, hint)])
    data = _HEADER.pack(MAGIC, len(records), zlib.crc32(records)) + records
    return data + bytes(-len(data) % SECTOR)


def load_env(path: Path) -> dict[str, str]:
    """The program's variables on a config disk. A VMM may have written to the folder that it is in, so it is
    read with care. OSError, ProtocolError. Blocks."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        disk = file.read(_HEADER.size + MAX_RECORDS)
    if len(disk) < _HEADER.size:
        raise ProtocolError("the config disk is too short")
    magic, length, checksum = _HEADER.unpack_from(disk)
    records = disk[_HEADER.size : _HEADER.size + length]
    if magic != MAGIC or len(records) != length or zlib.crc32(records) != checksum:
        raise ProtocolError("the config disk is damaged")
    pairs = (value.decode(errors="replace").partition("=") for value in parse_records(records).all("env"))
    return {key: value for key, _, value in pairs}


def write_config_disk(path: Path, config: GuestConfig, *, uid: int = -1) -> None:
    """Write the disk to `path`, atomically: mode 0400, owned by `uid`, the user of the VM's VMM.

    It may hold secrets of the definition's env, so nobody else reads it.
    """
    write_file(path, encode_config_disk(config), mode=0o400, uid=uid)
