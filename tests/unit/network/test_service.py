# SPDX-License-Identifier: Apache-2.0
"""The client against the service itself, over a socket: requests, errors, and what both live through."""

import asyncio
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from hypemand.config.network import Publish
from hypemand.errors import HostNotReady, InUse, InvalidDefinition
from hypemand.model.counters import Connections
from hypemand.network.client import NetworkClient
from tests.host.command import run_command
from tests.unit.network.lab import DEADLINE, Namespace, make_bridge, make_port

TOP = Path(__file__).parents[3]
PLAN = make_bridge()
PORT = make_port(PLAN, 1, publish=(Publish(None, 8080, 80),))
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(TOP)}
PROGRAM = [sys.executable, "-m", "hypemand.network.service"]


class Service:
    """The service as a process, told to be ready by itself."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "network.sock"
        self.tap_path = folder / "tap.sock"
        self._notify = folder / "notify"
        self._environment = {**ENVIRONMENT, "NOTIFY_SOCKET": str(self._notify)}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *wrapper: str, **environment: str) -> None:
        """`wrapper`: a command to run it with."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.bind(str(self._notify))
            notify.settimeout(DEADLINE)
            self._process = subprocess.Popen(
                [*wrapper, *PROGRAM, "--socket", str(self.path), "--tap-socket", str(self.tap_path)],
                env={**self._environment, **environment},
            )
            while b"READY=1" not in notify.recv(1000):
                pass
        self._notify.unlink()

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self._process is not None
        self._process.send_signal(number)
        code = self._process.wait(DEADLINE)
        self._process = None
        return code

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(DEADLINE)


@pytest.fixture
def service(host_namespace: Namespace, open_folder: Path) -> Iterator[Service]:
    del host_namespace
    service = Service(open_folder)
    service.start()
    yield service
    service.close()


def talk(
    service: Service,
    talk_to: Callable[[NetworkClient], Coroutine[Any, Any, None]],
    *,
    timeout: float = DEADLINE,
) -> None:
    async def run() -> None:
        client = NetworkClient(service.path, timeout=timeout)
        try:
            await talk_to(client)
        finally:
            await client.close()

    asyncio.run(run())


def list_names() -> set[str]:
    lines = run_command(["ip", "-brief", "link"], timeout=DEADLINE).stdout.splitlines()
    return {line.split()[0] for line in lines} - {"lo"}


def test_a_vm_comes_and_goes(service: Service) -> None:
    async def run(client: NetworkClient) -> None:
        (status,) = await client.apply((PLAN,), (), prune=True)
        assert (status.network, status.problem) == ("default", "")
        assert await client.attach(PORT) == socket.if_nametoindex(PORT.tap)
        assert set(await client.counters()) == {PORT.tap}
        assert await client.connections() == {PORT.tap: Connections()}
        await client.detach(PORT)
        assert list_names() == {"hypeman0"}

    talk(service, run)


def test_errors_are_of_their_kinds(service: Service) -> None:
    async def run(client: NetworkClient) -> None:
        await client.apply((PLAN,), (), prune=True)
        await client.attach(PORT)
        with pytest.raises(InUse, match="published by VM vm1"):
            await client.attach(make_port(PLAN, 2, publish=PORT.publish))
        publish = (Publish(IPv4Address("127.0.0.1"), 80, 80),)
        with pytest.raises(InvalidDefinition) as caught:
            await client.attach(make_port(PLAN, 2, ipv4=None, publish=publish))
        assert caught.value.problems[0].key == "network.publish"
        with pytest.raises(HostNotReady, match="lo exists and does not belong to hypemand"):
            await client.attach(make_port(replace(PLAN, bridge="lo", ipv4=None, ipv6=None), 2))

    talk(service, run)


def test_requests_are_served_in_their_order(service: Service) -> None:
    async def run(client: NetworkClient) -> None:
        await client.apply((PLAN,), (), prune=True)
        ports = [make_port(PLAN, number) for number in range(1, 21)]
        asked = [ask for port in ports for ask in (client.attach(port), client.detach(port))]
        asked += [client.attach(port) for port in ports]
        indexes = (await asyncio.gather(*asked))[-len(ports) :]
        assert len(set(indexes)) == len(ports)
        assert list_names() == {"hypeman0", *(port.tap for port in ports)}

    talk(service, run)


def test_a_service_that_knows_nothing_is_told_all_before_it_does_anything(service: Service) -> None:
    async def run(client: NetworkClient) -> None:
        with pytest.raises(HostNotReady) as caught:
            await client.attach(PORT)
        assert caught.value.code == "not_applied"
        calls = []

        async def apply() -> None:
            calls.append(await client.apply((PLAN,), (), prune=True))

        client.on_reconnect = apply
        ports = [make_port(PLAN, number) for number in range(1, 6)]
        await asyncio.gather(*map(client.attach, ports))
        assert len(calls) == 1

    talk(service, run)


def test_a_service_that_was_killed_gets_the_whole_wish_again(service: Service) -> None:
    async def run(client: NetworkClient) -> None:
        await client.apply((PLAN,), (), prune=True)
        await client.attach(PORT)
        applied = asyncio.Event()

        async def apply() -> None:
            await client.apply((PLAN,), (PORT,), prune=True)
            applied.set()

        client.on_reconnect = apply
        before = list_names()
        await asyncio.to_thread(service.stop, signal.SIGKILL)
        assert list_names() == before
        await asyncio.to_thread(service.start)
        await asyncio.wait_for(applied.wait(), DEADLINE)
        with pytest.raises(InUse):
            await client.attach(make_port(PLAN, 2, publish=PORT.publish))

    talk(service, run)


def test_a_request_that_finds_the_connection_gone_is_asked_again(service: Service) -> None:
    async def run(client: NetworkClient) -> None:
        await client.apply((PLAN,), (), prune=True)
        # in one go, so that nothing of it has been noticed when the next request is made
        service.stop(signal.SIGKILL)
        service.start()
        (status,) = await client.apply((PLAN,), (), prune=True)
        assert status.problem == ""

    talk(service, run)


def test_without_a_service_the_error_says_where_it_should_be(service: Service) -> None:
    service.stop()

    async def run(client: NetworkClient) -> None:
        with pytest.raises(HostNotReady, match=r"network\.sock: Connection refused; systemctl status"):
            await client.apply((PLAN,), (), prune=True)

    talk(service, run)


def test_without_its_right_nothing_is_done_and_it_says_so(service: Service) -> None:
    service.stop()
    service.start("setpriv", "--bounding-set=-net_admin")

    async def run(client: NetworkClient) -> None:
        (status,) = await client.apply((PLAN,), (), prune=True)
        assert "Operation not permitted; the network service needs CAP_NET_ADMIN" in status.problem
        with pytest.raises(HostNotReady, match="CAP_NET_ADMIN"):
            await client.attach(PORT)

    talk(service, run)
    assert list_names() == set()


NO_LIBRARY = "raise ImportError('no such library')"
NO_RULES = """
class Nftables:
    def cmd(self, text):
        return (0, "", "") if text.startswith("list") else (1, "", "Error: Could not process rule")
    def set_json_output(self, value):
        pass
"""


@pytest.mark.parametrize(
    ("library", "told"),
    [
        (NO_LIBRARY, "nftables is not available: no such library; install python3-nftables"),
        (NO_RULES, "nftables rejected a rule: Error: Could not process rule"),
    ],
    ids=["absent", "refused"],
)
def test_without_rules_no_vm_is_on_a_network(
    service: Service, tmp_path: Path, library: str, told: str
) -> None:
    service.stop()
    (tmp_path / "nftables.py").write_text(library)
    service.start(PYTHONPATH=f"{tmp_path}:{TOP}")

    async def run(client: NetworkClient) -> None:
        (status,) = await client.apply((PLAN,), (), prune=True)
        assert status.problem.startswith(told)
        with pytest.raises(HostNotReady, match=told):
            await client.attach(PORT)
        assert list_names() == {"hypeman0"}

    talk(service, run)


def test_a_service_that_hangs_is_waited_for_no_longer_than_allowed(service: Service) -> None:
    async def run(client: NetworkClient) -> None:
        await client.apply((PLAN,), (), prune=True)
        service.signal(signal.SIGSTOP)
        with pytest.raises(HostNotReady, match=r"has not answered within 0\.3 s"):
            await client.attach(PORT)
        service.signal(signal.SIGCONT)
        # its late answer is nobody's
        await client.detach(PORT)
        assert list_names() == {"hypeman0"}

    talk(service, run, timeout=0.3)


def test_everything_stays_when_the_service_ends_and_goes_when_it_is_cleaned(service: Service) -> None:
    async def run(client: NetworkClient) -> None:
        await client.apply((PLAN,), (), prune=True)
        await client.attach(PORT)

    talk(service, run)
    before = run_command(["nft", "list", "ruleset"], timeout=DEADLINE).stdout
    assert service.stop() == 0
    assert list_names() == {"hypeman0", PORT.tap}
    assert run_command(["nft", "list", "ruleset"], timeout=DEADLINE).stdout == before
    run_command([*PROGRAM, "--clean"], timeout=DEADLINE, env=ENVIRONMENT)
    assert list_names() == set()
    assert run_command(["nft", "list", "ruleset"], timeout=DEADLINE).stdout == ""


def test_rules_that_are_flushed_are_there_again_at_once(service: Service) -> None:
    def read_rules() -> str:
        return run_command(["nft", "list", "ruleset"], timeout=DEADLINE).stdout

    async def run(client: NetworkClient) -> None:
        await client.apply((PLAN,), (), prune=True)
        await client.attach(PORT)
        before = read_rules()
        await asyncio.to_thread(run_command, ["nft", "flush", "ruleset"], timeout=DEADLINE)
        # the event is there before the command has ended, and the service serves it before or after this
        await client.counters()
        await client.counters()
        assert read_rules() == before

    talk(service, run)


def show_network() -> tuple[bool, bool]:
    """Is the VM on the bridge, and has that its address?"""
    tap = run_command(["ip", "link", "show", PORT.tap], timeout=DEADLINE).stdout
    addresses = run_command(["ip", "-brief", "addr"], timeout=DEADLINE).stdout
    return "master hypeman0" in tap, "10.77.0.1/24" in addresses


@pytest.mark.parametrize(
    "harm", [("link", "del", "hypeman0"), ("addr", "del", "10.77.0.1/24", "dev", "hypeman0")], ids=" ".join
)
def test_a_bridge_that_is_taken_away_is_there_again_at_once(
    service: Service, harm: tuple[str, ...], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    service.stop()
    service.start("sh", "-c", 'exec "$@" 2> "$0"', str(log))

    async def run(client: NetworkClient) -> None:
        told = asyncio.Event()
        await client.apply((PLAN,), (), prune=True)
        await client.attach(PORT)

        async def reapply() -> None:
            told.set()

        client.on_reconnect = reapply
        await asyncio.to_thread(run_command, ["ip", *harm], timeout=DEADLINE)
        # the event is there before the command has ended; it is served before or after this, as is the mend
        for _ in range(3):
            await client.counters()
        assert show_network() == (True, True)
        # and the daemon looks how it is now
        await asyncio.wait_for(told.wait(), DEADLINE)

    talk(service, run)
    assert "network default was removed by another program; restored" in log.read_text()


def test_a_bridge_that_cannot_be_there_again_is_a_problem_in_the_next_answer(service: Service) -> None:
    async def run(client: NetworkClient) -> None:
        told = asyncio.Event()
        await client.apply((PLAN,), (), prune=True)

        async def reapply() -> None:
            (status,) = await client.apply((PLAN,), (), prune=True)
            if "does not belong to hypemand" in status.problem:
                told.set()

        client.on_reconnect = reapply
        script = "ip link del hypeman0; ip link add hypeman0 type bridge"
        service.signal(signal.SIGSTOP)  # so that it sees both at once
        await asyncio.to_thread(run_command, ["sh", "-c", script], timeout=DEADLINE)
        service.signal(signal.SIGCONT)
        await asyncio.wait_for(told.wait(), DEADLINE)

    talk(service, run)


def test_a_bridge_that_others_make_is_seen_when_it_comes_and_when_it_comes_again(service: Service) -> None:
    plan = make_bridge("lan", "br0", nat=False, managed=False)
    make = "ip link add br0 type bridge; ip link set br0 up"

    async def run(client: NetworkClient) -> None:
        problems: asyncio.Queue[str] = asyncio.Queue()

        async def reapply() -> None:
            (status,) = await client.apply((plan,), (), prune=True)
            problems.put_nowait(status.problem)

        async def until(is_wanted: Callable[[str], bool]) -> None:
            while not is_wanted(await asyncio.wait_for(problems.get(), DEADLINE)):
                pass

        await reapply()
        assert "br0 does not exist" in problems.get_nowait()
        client.on_reconnect = reapply
        for _ in range(2):
            await asyncio.to_thread(run_command, ["sh", "-c", make], timeout=DEADLINE)
            await until(lambda problem: not problem)
            for harm, cure in ((("down",), ("up",)), (("mtu", "1400"), ("mtu", "1500"))):
                await asyncio.to_thread(run_command, ["ip", "link", "set", "br0", *harm], timeout=DEADLINE)
                # of an MTU nobody is told until there is something to do
                await reapply()
                await until(bool)
                await asyncio.to_thread(run_command, ["ip", "link", "set", "br0", *cure], timeout=DEADLINE)
                await until(lambda problem: not problem)
            await asyncio.to_thread(run_command, ["ip", "link", "del", "br0"], timeout=DEADLINE)
            await until(lambda problem: "br0 does not exist" in problem)

    talk(service, run)


FOREIGN = (
    "add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy accept; }"
)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            ["nft", "chain ip filter FORWARD { policy drop; }"],
            "another firewall drops packets of VMs on hypeman0",
        ),
        (["ip", "addr", "add", "10.77.0.7/25", "dev", "eth7"], "10.77.0.0/25 dev eth7"),
        (["ip", "route", "add", "10.77.0.8/29", "dev", "eth7"], "10.77.0.8/29 dev eth7"),
        (["sysctl", "-q", "net.ipv4.ip_forward=0"], ""),
        (["sysctl", "-q", "net.ipv6.conf.all.forwarding=0"], ""),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_changes_on_the_rest_of_the_host_is_noticed(
    service: Service, change: list[str], told: str
) -> None:
    for words in (["nft", FOREIGN], ["ip", "link", "add", "eth7", "up", "type", "bridge"]):
        run_command(words, timeout=DEADLINE)

    async def run(client: NetworkClient) -> None:
        noticed = asyncio.Event()
        await client.apply((PLAN,), (), prune=True)
        await client.attach(PORT)

        async def reapply() -> None:
            (status,) = await client.apply((PLAN,), (PORT,), prune=True)
            assert told in " ".join(status.warnings)
            noticed.set()

        (status,) = await client.apply((PLAN,), (PORT,), prune=True)
        assert status.warnings == ()
        client.on_reconnect = reapply
        await asyncio.to_thread(run_command, change, timeout=DEADLINE)
        await asyncio.wait_for(noticed.wait(), DEADLINE)
        for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            assert read_sysctl(name) == "1"

    talk(service, run)


def read_sysctl(name: str) -> str:
    return Path("/proc/sys/net", name).read_text().strip()


@pytest.mark.parametrize(
    "nonsense", [b"GET / HTTP/1.1\r\n\r\n", struct.pack(">I", 2) + b"{}", struct.pack(">I", 9) + b"{}"]
)
def test_nonsense_ends_a_connection_and_nothing_else(service: Service, nonsense: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.settimeout(DEADLINE)
        stranger.connect(str(service.path))
        stranger.sendall(nonsense)
        stranger.shutdown(socket.SHUT_WR)
        while stranger.recv(1000):
            pass

    async def run(client: NetworkClient) -> None:
        await client.apply((PLAN,), (), prune=True)

    talk(service, run)


def test_another_user_is_not_served(service: Service) -> None:
    service.path.chmod(0o666)
    program = (
        "import os, socket, struct, sys\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "s = socket.socket(socket.AF_UNIX); s.settimeout(10); s.connect(sys.argv[1])\n"
        'request = b\'{"id": 1, "op": "counters"}\'\n'
        "try:\n    s.sendall(struct.pack('>I', len(request)) + request)\n    print(s.recv(100))\n"
        "except ConnectionError:\n    print(b'')\n"
    )
    told = run_command(["/usr/bin/python3", "-c", program, str(service.path)], timeout=DEADLINE)
    assert told.stdout == "b''\n"


def test_the_client_loads_nothing_that_talks_to_the_kernel() -> None:
    program = "import sys, hypemand.network.client; print({'pyroute2', 'nftables'} & set(sys.modules))"
    assert run_command([sys.executable, "-c", program], timeout=DEADLINE, env=ENVIRONMENT).stdout == "set()\n"
