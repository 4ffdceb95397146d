# SPDX-License-Identifier: Apache-2.0
"""Networks: what one costs a start, a TAP device for the first VM and for the 200th, and how fast it is
beside the same VMM on a TAP device that was made by hand."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.inside.api import request
from bench.inside.bare import TAP, BareVm, Recipe
from bench.inside.rounds import Series, run, start_and_stop
from hypemand.config.host import load_host_config
from hypemand.config.network import NetworkUse
from hypemand.manager.net.leases import AddressUse, allocate
from hypemand.manager.net.ports import make_bridge, make_port
from hypemand.network.client import NetworkClient

_VM_DIR = Path("/etc/hypemand/vms.d")
_DROPIN = Path("/etc/hypemand/hypemand.yaml.d/90-bench.yaml")
_PLAIN, _WIRED, _SENDER = "unwired", "wired", "sender"
_DEFINITION = """\
image: builtin:busybox
memory: 128M
vcpus: 1
disk: 1G
kernel_headers: false
cmd: [sleep, infinity]
network: {network}
"""
_SENDER_DEFINITION = """\
image: netbench
memory: 128M
vcpus: 1
disk: 1G
kernel_headers: false
network: bench
cmd: [/netbench, {address}, "{port}", "{seconds}"]
"""
_NETWORK = """\
networks:
  bench: {{bridge: bench0, ipv4: {address}/24, ipv6: none, host_ports: [{port}/tcp]}}
"""
# what the sender sends to, and where its network is while that is on a bridge made by hand
_ADDRESS, _ASIDE = "10.99.20.1", "10.99.21.1"
_PORT, _SECONDS = 9321, 4
_DEADLINE = 60.0
# VMs that there are beside the one that is measured, and the uids that they would have
_OTHERS, _FIRST_UID = 199, 200_000
_ATTACHES = 20


def measure_network(rounds: int, image: str, folder: Path) -> Series:
    """All of it. `image` is a folder with the program that sends."""
    series: Series = {}
    _measure_starts(series, rounds)
    asyncio.run(_measure_attach(series))
    run("hypemanctl", "image", "import", "netbench", image)
    _measure_throughput(series, max(rounds // 2, 3), folder)
    return series


def _define(name: str, text: str) -> None:
    (_VM_DIR / f"{name}.yaml").write_text(text)
    run("systemctl", "reload", "hypemand.service")


def _measure_starts(series: Series, rounds: int) -> None:
    """To Running, and to the spawn of the VMM: that is the host's part. The order turns with every round; the
    first start of each is not counted, since its disk is new."""
    kinds = ((_PLAIN, "none"), (_WIRED, "default"))
    for name, network in kinds:
        _define(name, _DEFINITION.format(network=network))
        start_and_stop(name)
    for number in range(rounds):
        for name, _network in kinds if number % 2 == 0 else kinds[::-1]:
            series.setdefault(name, []).append(start_and_stop(name))
            series.setdefault(f"{name}_host", []).append(_read_host_part(name))
        print(f"round {number + 1} of {rounds}, network", file=sys.stderr, flush=True)


def _read_host_part(name: str) -> float:
    """Milliseconds of the last start until systemd had spawned the VMM."""
    spans = request("GET", f"/instances/{name}/timeline")["spans"]
    return max(float(span["end_ms"]) for span in spans if span["name"] == "unit start")


async def _measure_attach(series: Series) -> None:
    """Lease, TAP device, rules and limits, with no other VM on the network and with many. They are nobody's,
    and the daemon's next `apply` would remove them; nothing asks for one meanwhile."""
    network = load_host_config().networks["default"]
    bridge, use = make_bridge(network), NetworkUse()
    client = NetworkClient()
    reserved: list[AddressUse] = []
    ports = []

    async def attach(number: int) -> float:
        start = time.monotonic()
        lease = allocate(f"vm{number}", f"id{number}", use, bridge, None, reserved)
        port = make_port(f"vm{number}", _FIRST_UID + number, use, lease, bridge, network)
        await client.attach(port)
        taken = (time.monotonic() - start) * 1000
        reserved.append(AddressUse(port.vm, port.mac, port.ipv4, port.ipv6))
        ports.append(port)
        return taken

    async def detach() -> None:
        reserved.pop()
        await client.detach(ports.pop())

    try:
        for key, others in (("attach_first", 0), ("attach_200th", _OTHERS)):
            while len(ports) < others:
                await attach(len(ports))
            for _ in range(_ATTACHES):
                series.setdefault(key, []).append(await attach(others))
                await detach()
        while ports:
            await detach()
    finally:
        await client.close()
        run("systemctl", "reload", "hypemand.service")


def _measure_throughput(series: Series, rounds: int, folder: Path) -> None:
    """MiB/s from the guest to the host, in turns."""
    _DROPIN.parent.mkdir(exist_ok=True)
    with _network():
        _define(_SENDER, _SENDER_DEFINITION.format(address=_ADDRESS, port=_PORT, seconds=_SECONDS))
        run("systemctl", "start", f"hypeman@{_SENDER}.service")
        recipe = Recipe.take(f"hypeman-vm-{_SENDER}.service", folder / _SENDER)
        run("hypemanctl", "stop", _SENDER)
        recipe.copy_disk()
    for number in range(rounds):
        for kind in ("bare", "managed") if number % 2 == 0 else ("managed", "bare"):
            rate = _run_bare(recipe) if kind == "bare" else _run_managed()
            series.setdefault(f"{kind}_send", []).append(rate)
        print(f"round {number + 1} of {rounds}, throughput", file=sys.stderr, flush=True)


@contextmanager
def _network() -> Iterator[None]:
    """The network of the VM that sends is where it sends to, in this block."""
    _move_network(_ADDRESS)
    try:
        yield
    finally:
        _move_network(_ASIDE)


def _move_network(address: str) -> None:
    _DROPIN.write_text(_NETWORK.format(address=address, port=_PORT))
    run("systemctl", "reload", "hypemand.service")


def _run_managed() -> float:
    with _network(), _listen() as listener:
        run("systemctl", "start", f"hypeman@{_SENDER}.service")
        rate = _receive(listener)
        run("hypemanctl", "stop", _SENDER)
    return rate


def _run_bare(recipe: Recipe) -> float:
    """On a bridge and a TAP device as ip(8) makes them."""
    run("ip", "link", "add", "bench1", "type", "bridge")
    try:
        run("ip", "address", "add", f"{_ADDRESS}/24", "dev", "bench1")
        run("ip", "link", "set", "bench1", "up")
        run("ip", "tuntap", "add", TAP, "mode", "tap")
        run("ip", "link", "set", TAP, "master", "bench1", "up")
        with _listen() as listener:
            vm = BareVm(recipe)
            try:
                return _receive(listener)
            finally:
                vm.stop()
    finally:
        run("ip", "link", "del", "bench1")
        run("ip", "link", "del", TAP)


@contextmanager
def _listen() -> Iterator[socket.socket]:
    with socket.create_server(("0.0.0.0", _PORT)) as listener:
        listener.settimeout(_DEADLINE)
        yield listener


def _receive(listener: socket.socket) -> float:
    """MiB/s from the first byte to the last, of one connection."""
    link, _peer = listener.accept()
    with link:
        link.settimeout(_DEADLINE)
        buffer = bytearray(1024 * 1024)
        total = link.recv_into(buffer)
        start = time.monotonic()
        while taken := link.recv_into(buffer):
            total += taken
        return total / (time.monotonic() - start) / 1024**2
