# SPDX-License-Identifier: Apache-2.0
"""The launcher, the network service and a VMM that was taken over: its own TAP device, and no right to it."""

import asyncio
import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hypemand.network.client import NetworkClient
from tests.host.command import run_command
from tests.unit.network.lab import (
    DEADLINE,
    IFF_NO_PI,
    IFF_TAP,
    TUNSETIFF,
    Namespace,
    make_bridge,
    make_port,
)
from tests.unit.network.test_service import Service

TOP = Path(__file__).parents[3]
PLAN = make_bridge()
ONE, TWO = make_port(PLAN, 1), make_port(PLAN, 2)
IFF_VNET_HDR, TUNSETOWNER = 0x4000, 0x400454CC
BOOT = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def built() -> None:
    run_command(["make", "-C", str(TOP / "launcher"), "build/launcher", "build/check/vmm"], timeout=120)


@pytest.fixture
def service(host_namespace: Namespace, open_folder: Path, built: None) -> Iterator[Service]:
    """With two VMs, into whose folders their VMMs get. The programs are copied: a checkout may be where no
    other user gets."""
    del host_namespace, built
    for program in ("launcher", "check/vmm"):
        shutil.copy(TOP / "launcher/build" / program, open_folder)
    service = Service(open_folder)
    service.start()
    asyncio.run(attach(service))
    service.tap_path.chmod(0o666)
    yield service
    service.close()


async def attach(service: Service) -> None:
    client = NetworkClient(service.path)
    await client.apply((PLAN,), (), prune=True)
    for port in (ONE, TWO):
        await client.attach(port)
    await client.close()


def launch(service: Service, uid: int, *words: str) -> subprocess.Popen[str]:
    """As systemd does: the VMM's user, no right, a network of its own, and none of the host's."""
    runtime = service.path.parent / f"vm{uid}"
    runtime.mkdir(exist_ok=True)
    for name in ("config", "disk"):
        (runtime / name).write_bytes(b"")
        os.chown(runtime / name, uid, uid)
    os.chown(runtime, uid, uid)
    argv = ["unshare", "--net", "setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
    programs = service.path.parent
    argv += [
        str(programs / "launcher"),
        str(runtime),
        str(service.tap_path),
        "quiet",
        str(programs / "vmm"),
        *words,
    ]
    return subprocess.Popen(
        argv,
        cwd=runtime,
        env={"INVOCATION_ID": BOOT, "PATH": os.environ["PATH"]},
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run_vmm(service: Service, uid: int) -> tuple[dict[str, str], str]:
    """What it tells of itself, and its errors."""
    process = launch(service, uid)
    told, errors = process.communicate(timeout=3 * DEADLINE)
    pairs = (line.partition(" ") for line in told.splitlines())
    return {name: value for name, _, value in pairs}, errors


def show_ports() -> tuple[dict[str, Any], list[str]]:
    """What a taken-over VMM could change: MACs, owners, what the bridge knows."""
    entries = run_command(["bridge", "fdb"], timeout=DEADLINE).stdout
    assert ONE.mac in entries
    listed = json.loads(run_command(["ip", "--json", "--details", "link"], timeout=DEADLINE).stdout)
    taps = {link["ifname"]: link for link in listed if link["ifname"].startswith("hv")}
    assert str(taps[ONE.tap]["linkinfo"]["info_data"]["user"]) == str(ONE.uid)
    shown = {name: (link["address"], link["linkinfo"]["info_data"]) for name, link in taps.items()}
    return shown, sorted(entries.splitlines())


def test_a_vmm_gets_the_device_of_its_own_user_and_cannot_change_it(service: Service) -> None:
    before = show_ports()
    for port in (ONE, TWO):
        told, errors = run_vmm(service, port.uid)
        assert errors == ""
        assert told["device"] == f"{port.tap} 1"
        uses = ("TUNGETFEATURES", "TUNGETIFF", "TUNGETVNETHDRSZ", "TUNSETVNETHDRSZ", "TUNSETOFFLOAD")
        assert {name: told[name] for name in uses} == dict.fromkeys(uses, "0")
        # nor have the leader do it
        assert told["leader-memory"] == str(errno.EACCES)
        for name in ("SIOCSIFHWADDR", "TUNSETOWNER", "TUNSETPERSIST", "TUNSETIFF", "TUNGETDEVNETNS"):
            assert {told[name], told[f"{name}-high"]} == {str(errno.EPERM)}
    assert show_ports() == before


def test_two_vmms_of_one_user_do_not_share_a_device(service: Service) -> None:
    first = launch(service, ONE.uid, "wait")
    try:
        assert first.stdout is not None
        told = ""
        while not told.endswith("done 0\n"):
            line = first.stdout.readline()
            assert line, f"the VMM ended: {told}"
            told += line
        _, errors = run_vmm(service, ONE.uid)
        assert errors == "launcher: no TAP device: hv61201: rejected by the kernel: Device or resource busy\n"
        assert run_vmm(service, TWO.uid)[0]["device"] == f"{TWO.tap} 1"
    finally:
        first.kill()
        first.communicate(timeout=DEADLINE)
    # a restart that systemd makes alone: the leader of the last run holds nothing
    assert run_vmm(service, ONE.uid)[0]["device"] == f"{ONE.tap} 1"


def tamper(how: str) -> None:
    """As a VMM without the launcher's filter can (or an administrator)."""
    if how == "mac":
        run_command(["ip", "link", "set", ONE.tap, "address", TWO.mac], timeout=DEADLINE)
        return
    with open("/dev/net/tun", "r+b", buffering=0) as tun:
        fcntl.ioctl(
            tun, TUNSETIFF, struct.pack("16sH22x", ONE.tap.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)
        )
        fcntl.ioctl(tun, TUNSETOWNER, TWO.uid)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (
            "mac",
            f"the MAC address of its interface {ONE.tap} was changed from fe:68:00:00:ef:11 to {TWO.mac}",
        ),
        ("owner", f"its interface {ONE.tap} had its owner changed from user {ONE.uid} to {TWO.uid}"),
    ],
)
@pytest.mark.parametrize("away", [False, True], ids=["daemon", "no daemon"])
def test_a_device_that_was_tampered_with_is_mended_and_its_vm_reported(
    service: Service, how: str, words: str, away: bool
) -> None:
    before = show_ports()

    async def run() -> None:
        reports: asyncio.Queue[tuple[str, str]] = asyncio.Queue()

        async def take(vm: str, what: str) -> None:
            reports.put_nowait((vm, what))

        client = NetworkClient(service.path, on_tampered=take)
        if not away:
            await client.counters()
        await asyncio.to_thread(tamper, how)
        if away:
            await asyncio.to_thread(wait_for_mend, how, before)
        await client.counters()
        assert await asyncio.wait_for(reports.get(), DEADLINE) == (ONE.vm, words)
        # the mend itself is no tampering
        await client.counters()
        await client.counters()
        assert reports.empty()
        await client.close()

    asyncio.run(run())
    # the owner is put back with the next VMM
    assert run_vmm(service, ONE.uid)[0]["device"] == f"{ONE.tap} 1"
    assert show_ports() == before


def test_a_daemon_that_goes_before_it_has_ended_the_vm_leaves_that_to_the_next(service: Service) -> None:
    async def run() -> None:
        heard: asyncio.Queue[str] = asyncio.Queue()

        async def never(vm: str, what: str) -> None:
            heard.put_nowait(vm)
            await asyncio.Event().wait()

        async def end(vm: str, what: str) -> None:
            heard.put_nowait(vm)

        first = NetworkClient(service.path, on_tampered=never)
        await first.counters()
        await asyncio.to_thread(tamper, "owner")
        assert await asyncio.wait_for(heard.get(), DEADLINE) == ONE.vm
        await first.close()
        second = NetworkClient(service.path, on_tampered=end)
        await second.counters()
        assert await asyncio.wait_for(heard.get(), DEADLINE) == ONE.vm
        await second.counters()
        await second.close()
        third = NetworkClient(service.path, on_tampered=end)
        await third.counters()
        assert heard.empty()
        await third.close()

    asyncio.run(run())


def wait_for_mend(how: str, before: tuple[dict[str, Any], list[str]]) -> None:
    """The service has seen it, with nobody to tell."""
    deadline = time.monotonic() + DEADLINE
    while how == "mac" and show_ports() != before:
        assert time.monotonic() < deadline, (show_ports(), before)
        time.sleep(0.01)


def test_who_is_no_vm_gets_no_device(service: Service) -> None:
    run_command(["ip", "tuntap", "add", "dev", "hv61777", "mode", "tap", "user", "61777"], timeout=DEADLINE)
    for uid in (61700, 61777):
        told, errors = run_vmm(service, uid)
        assert told == {}
        assert errors.startswith(f"launcher: no TAP device: hv{uid} does not exist")


def test_a_service_that_has_just_started_gives_devices_before_it_is_told_anything(service: Service) -> None:
    service.stop(signal.SIGKILL)
    service.start()
    service.tap_path.chmod(0o666)
    assert run_vmm(service, ONE.uid)[0]["device"] == f"{ONE.tap} 1"


def test_a_service_without_its_right_says_so(service: Service) -> None:
    service.stop()
    service.start("setpriv", "--bounding-set=-net_admin")
    service.tap_path.chmod(0o666)
    _, errors = run_vmm(service, ONE.uid)
    assert errors.startswith(
        "launcher: no TAP device: hv61201: rejected by the kernel: Operation not permitted"
    )


def test_a_request_that_ends_early_holds_up_nobody(service: Service) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as hasty:
        hasty.connect(str(service.tap_path))
    idle = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(10)]
    for one in idle:
        one.settimeout(DEADLINE)
        one.connect(str(service.tap_path))
    assert run_vmm(service, ONE.uid)[0]["device"] == f"{ONE.tap} 1"
    for one in idle:
        assert one.recv(100) == b"Ehv0 does not exist: user 0 has no VM with a network"
        one.close()
