# SPDX-License-Identifier: Apache-2.0
"""The API over TCP: who has no good token learns nothing, and the place changes while all else goes on."""

import asyncio
import contextlib
import io
import json
import logging
import re
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import hypeman
import pytest
from hypeman.lib import cp_from_instance, cp_to_instance
from hypeman.lib import exec as remote_exec

from hypemand.api.access import TokenGate
from hypemand.api.listener import Listener
from hypemand.api.server import HttpServer, make_app
from hypemand.api.services import Limits
from hypemand.api.unsupported import UNSUPPORTED
from hypemand.config.listen import ListenConfig
from hypemand.errors import HostNotReady
from hypemand.model.state import FromStandby, State
from hypemand.model.tokens import Scope
from tests.fakes.host import FakeHost
from tests.unit.api.harness import Api, Json, drive

PATIENT = Limits()


def find_port() -> int:
    """A port of loopback that is free now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@dataclass
class Place:
    """A listener, its gate, and what its clients use."""

    api: Api
    listener: Listener
    gate: TokenGate
    config: ListenConfig
    session: aiohttp.ClientSession

    def url(self, target: str, scheme: str = "http") -> str:
        return f"{scheme}://{self.config}{target}"

    async def token(
        self,
        name: str = "t",
        *,
        scope: Scope = Scope.ADMIN,
        vms: Sequence[str] = (),
        tags: Mapping[str, str] | None = None,
        expires_in: float | None = None,
    ) -> str:
        """A new one."""
        _, text = await self.api.services.tokens.create(
            name, scope=scope, vms=vms, tags=tags, expires_in=expires_in
        )
        return text

    async def ask(self, method: str, target: str, token: str | None, body: Json = None) -> int:
        """The status of the answer."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        async with self.session.request(method, self.url(target), headers=headers, json=body) as response:
            await response.read()
            return response.status

    async def ask_raw(self, *lines: str, body: bytes = b"") -> bytes:
        """All that comes back until the server closes."""
        reader, writer = await asyncio.open_connection(self.config.host, self.config.port)
        writer.write("".join(f"{line}\r\n" for line in (*lines, "")).encode() + body)
        await writer.drain()
        try:
            return await reader.read()
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


@asynccontextmanager
async def listen(api: Api, config: ListenConfig, limits: Limits = PATIENT) -> AsyncIterator[Place]:
    """Listen as long as the block lasts."""
    gate = TokenGate(api.services.tokens, api.manager)
    listener = Listener(lambda: HttpServer(make_app(api.services, limits, gate.check)))
    await listener.apply(config)
    connector = aiohttp.TCPConnector(ssl=False)
    async with aiohttp.ClientSession(connector=connector) as session:
        try:
            yield Place(api, listener, gate, config, session)
        finally:
            await listener.close()


def over_tcp(folder: Path, scenario: Callable[[Place], Awaitable[None]], limits: Limits = PATIENT) -> None:
    """Run `scenario` with a listener on loopback, and one VM `web` that runs."""

    async def with_api(api: Api) -> None:
        await restore(api.host)
        async with listen(api, ListenConfig("127.0.0.1", find_port()), limits) as place:
            await scenario(place)

    drive(folder, with_api)


async def restore(host: FakeHost) -> None:
    """Have a VM `web` that runs, whatever has been done to it."""
    vm = host.parts.fleet.find("web")
    if vm is None:
        await host.put("web", State.RUNNING)
        return
    await host.until_true(lambda: not vm.operations.is_busy)
    if vm.state is State.PAUSED:
        await host.manager.resume_vm("web")
    await host.manager.start_vm("web", standby=FromStandby.COLD)
    await host.until(State.RUNNING, "web")


UPGRADE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)


def strip_date(answer: bytes) -> bytes:
    return b"\r\n".join(line for line in answer.split(b"\r\n") if not line.startswith(b"Date: "))


def test_without_a_good_token_every_answer_is_the_same(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        expired = await place.token("old", expires_in=0.001)
        revoked = await place.token("gone")
        await place.api.services.tokens.revoke("gone")
        good = await place.token("good")
        bad: Sequence[Sequence[str]] = (
            (),
            ("Authorization: Bearer wrong",),
            (f"Authorization: Bearer {expired}",),
            (f"Authorization: Bearer {revoked}",),
            (f"Authorization: Basic {good}",),
            (f"Authorization: {good}",),
            ("Authorization: Bearer ",),
            (f"Authorization: Bearer {good}", f"Authorization: Bearer {good}"),
            (f"Authorization: Bearer {good}x",),
        )
        answers = set()
        for path in ("/instances", "/nothing", "/instances/web/exec", "/instances/nobody/exec", "/tokens"):
            for headers in bad:
                for method in ("GET", "PATCH"):
                    answers.add(await place.ask_raw(f"{method} {path} HTTP/1.1", "Host: x", *headers))
            answers.add(await place.ask_raw(f"GET {path} HTTP/1.1", "Host: x", *UPGRADE))
        answers.add(
            await place.ask_raw("POST /instances HTTP/1.1", "Host: x", "Content-Length: 5", body=b"{bad}")
        )
        (answer,) = {strip_date(a) for a in answers}
        assert answer.startswith(b"HTTP/1.1 401 Unauthorized\r\n")
        assert b"WWW-Authenticate: Bearer\r\n" in answer
        assert b"Server: hypemand\r\n" in answer
        assert b"aiohttp" not in answer
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["message"] == "a token is needed"
        assert place.gate.counts.refused == 5 * (len(bad) * 2 + 1) + 1

    over_tcp(tmp_path, scenario)


def test_what_is_no_request_at_all_tells_no_versions(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        for first in ("\x00\x01", "GET / HTTP/9.9", "GET /" + "x" * 20_000 + " HTTP/1.1"):
            answer = await place.ask_raw(first)
            assert b"aiohttp" not in answer
            assert b"Python" not in answer

    over_tcp(tmp_path, scenario)


def test_a_good_token_opens_everything_but_tokens_and_the_hosts_files(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        token = await place.token()
        assert await place.ask("GET", "/instances", token) == 200
        assert await place.ask("GET", "/nothing", token) == 404
        assert await place.ask("POST", "/instances/web/stop", token, {}) == 200
        for method, path in (("GET", "/tokens"), ("POST", "/tokens"), ("DELETE", "/tokens/t")):
            assert await place.ask(method, path, token, {"name": "x"} if method == "POST" else None) == 403
        assert await place.ask("POST", "/images/import", token, {"name": "x", "path": "/x"}) == 403
        assert [t.name for t in await place.api.services.tokens.list_tokens()] == ["t"]

    over_tcp(tmp_path, scenario)


def test_a_token_to_operate_starts_a_vm_with_its_own_program_alone(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        await place.api.host.put("off")
        token, mine = await place.token(scope=Scope.OPERATE), await place.token("mine")
        bodies: tuple[Json, ...] = ({"cmd": ["sh"]}, {"entrypoint": []})
        for body in bodies:
            assert await place.ask("POST", "/instances/off/start", token, body) == 403
        assert await place.ask("PATCH", "/instances/off", token, {"ttl": "1s"}) == 403
        assert place.api.host.vm("off").state is State.STOPPED
        assert await place.ask("POST", "/instances/off/start", mine, {"cmd": ["sh"]}) == 200

    over_tcp(tmp_path, scenario)


def test_a_revoked_token_is_refused_at_once_on_connections_that_are_open(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        token = await place.token()
        assert await place.ask("GET", "/health", token) == 200
        await place.api.services.tokens.revoke("t")
        assert await place.ask("GET", "/health", token) == 401

    over_tcp(tmp_path, scenario)


def test_a_token_to_read_changes_nothing_and_sees_nothing_of_a_guests_inside(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        place.api.host.add_image("spare")
        token = await place.token(scope=Scope.READ)
        for path in ("/instances", "/instances/web", "/instances/web/logs", "/images", "/health"):
            assert await place.ask("GET", path, token) == 200, path
        for path in ("exec", "attach", "cp", "archive?path=/etc", "stat?path=/etc"):
            assert await place.ask("GET", f"/instances/web/{path}", token) == 403, path
        for method, path in (
            ("POST", "/instances"), ("POST", "/instances/web/stop"), ("DELETE", "/instances/web"),
            ("PUT", "/instances/web/archive?path=/tmp"), ("POST", "/reload"), ("DELETE", "/images/spare"),
        ):  # fmt: skip
            assert await place.ask(method, path, token) == 403, path
        assert place.api.host.vm("web").state is State.RUNNING
        assert (await place.api.ask("GET", "/images/spare")).status == 200

    over_tcp(tmp_path, scenario)


VM = "/instances/{ref}"
READING = {
    ("GET", path)
    for path in (
        *(f"{VM}{part}" for part in ("", "/wait", "/logs", "/timeline", "/history", "/stats", "/watch")),
        f"{VM}/limits",
        f"{VM}/snapshot-schedule",
        "/health", "/openapi.yaml", "/instances", "/images", "/images/{name}", "/images/{name}/watch",
        # but not what is in them
        "/volumes", "/volumes/{volume}", "/df",
        "/networks", "/networks/{network}", "/capabilities", "/resources", "/metrics",
        "/events", "/snapshots", "/snapshots/{snapshot}", "/templates",
    )
} | set(UNSUPPORTED.values())  # fmt: skip
OPERATING = READING | {
    *(("POST", f"{VM}/{verb}") for verb in ("start", "stop", "restart", "kill", "pause", "resume")),
    *(("POST", f"{VM}/{verb}") for verb in ("standby", "restore")),
    *(("GET", f"{VM}/{part}") for part in ("exec", "attach", "cp", "archive", "stat")),
    ("PUT", f"{VM}/archive"),
}
OF_SOME_VMS = {
    route
    for route in OPERATING
    if VM in route[1]
    or route[1] in ("/health", "/openapi.yaml", "/instances", "/capabilities", "/events")
    or route in UNSUPPORTED.values()
}
ROOT_ONLY = {
    ("GET", "/tokens"),
    ("POST", "/tokens"),
    ("DELETE", "/tokens/{name}"),
    ("POST", "/images/import"),
}


@pytest.mark.parametrize(
    ("scope", "vms", "allowed"),
    [
        (Scope.READ, (), READING),
        (Scope.OPERATE, (), OPERATING),
        (Scope.OPERATE, ("web",), OF_SOME_VMS),
        (Scope.READ, ("web",), READING & OF_SOME_VMS),
        (Scope.ADMIN, (), None),
    ],
)
def test_every_route_is_open_or_shut_for_each_scope_by_decision(
    tmp_path: Path, scope: Scope, vms: Sequence[str], allowed: set[tuple[str, str]] | None
) -> None:
    async def scenario(place: Place) -> None:
        token = await place.token(scope=scope, vms=vms)
        every, found = set(), set()
        for route in make_app(place.api.services).router.routes():
            assert route.resource is not None
            await restore(place.api.host)
            path = route.resource.canonical.replace("{ref}", "web").replace("{name}", "spare")
            path = re.sub(r"{\w+}", "n", path.replace("{volume}", "data").replace("{network}", "lab"))
            every.add((route.method, route.resource.canonical))
            headers = {"Authorization": f"Bearer {token}"}
            # a stream is open once its status is there
            async with place.session.request(route.method, place.url(path), headers=headers) as response:
                if response.status != 403:
                    found.add((route.method, route.resource.canonical))
        assert found == (every - ROOT_ONLY if allowed is None else allowed)

    over_tcp(tmp_path, scenario)


def test_for_a_token_of_some_vms_there_are_no_others(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        host = place.api.host
        for name, tags in (("shop", {"team": "a", "x": "1"}), ("half", {"x": "1"}), ("db", {})):
            await host.put(name, State.RUNNING, tags=tags)
        token = await place.token(scope=Scope.OPERATE, vms=["db"], tags={"team": "a", "x": "1"})
        headers = {"Authorization": f"Bearer {token}"}
        async with place.session.get(place.url("/instances"), headers=headers) as response:
            assert [vm["name"] for vm in await response.json()] == ["db", "shop"]
        for ref, status in (("db", 200), ("shop", 200), ("half", 404), ("web", 404), ("nobody", 404)):
            assert await place.ask("GET", f"/instances/{ref}", token) == status, ref
            assert await place.ask("POST", f"/instances/{ref}/stop", token, {}) == status, ref
        # by an id that is another's, too
        assert await place.ask("GET", f"/instances/{host.vm('web').record.id}", token) == 404
        assert host.vm("web").state is State.RUNNING

    over_tcp(tmp_path, scenario)


def test_what_was_asked_of_a_vm_reaches_no_other_that_has_its_name_by_then(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        host = place.api.host
        token = await place.token(scope=Scope.OPERATE, vms=["web"])
        reader, writer = await asyncio.open_connection(place.config.host, place.config.port)
        lines = ("POST /instances/web/stop HTTP/1.1", "Host: x", f"Authorization: Bearer {token}")
        more = ("Content-Length: 2", "Expect: 100-continue", "Connection: close", "", "")
        writer.write("\r\n".join((*lines, *more)).encode())
        # it is let in, and for which VM is decided
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await host.manager.delete_vm("web")
        await restore(host)
        writer.write(b"{}")
        answer = await reader.read()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 404 ")
        assert host.vm("web").state is State.RUNNING

    over_tcp(tmp_path, scenario)


@pytest.mark.parametrize("end", ["revoked", "expired"])
def test_nothing_goes_on_under_a_token_that_has_ended(tmp_path: Path, end: str) -> None:
    async def scenario(place: Place) -> None:
        token = await place.token("t", scope=Scope.READ, expires_in=0.5 if end == "expired" else None)
        other = await place.token("other")
        streams = []
        for text in (token, other):
            headers = {"Authorization": f"Bearer {text}"}
            streams.append(await place.session.get(place.url("/instances/web/watch"), headers=headers))
            assert streams[-1].status == 200
        if end == "revoked":
            assert (await place.api.ask("DELETE", "/tokens/t")).status == 204
        with pytest.raises(aiohttp.ClientError):
            await streams[0].content.read()  # breaks off, and is not complete
        await place.api.manager.pause_vm("web")
        while b"Paused" not in await streams[1].content.readline():
            pass
        for stream in streams:
            stream.close()

    over_tcp(tmp_path, scenario)


def test_refusals_are_logged_with_the_peer_and_not_each(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(place: Place) -> None:
        now = 100.0
        place.gate._clock = lambda: now
        for _ in range(5):
            await place.ask("GET", "/secret", "hm-wrong-token")
        now = 111.0
        await place.ask("GET", "/", None)

    with caplog.at_level(logging.WARNING):
        over_tcp(tmp_path, scenario)
    lines = [record.getMessage() for record in caplog.records if "refused a request" in record.getMessage()]
    assert lines == [
        "refused a request from 127.0.0.1: an unknown, expired or revoked token",
        "refused a request from 127.0.0.1: no token; 4 other requests were refused before",
    ]


def test_changes_are_logged_with_who_made_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(place: Place) -> None:
        token = await place.token("ci")
        await place.ask("GET", "/instances", token)
        await place.ask("POST", "/instances/web/stop", token, {})
        await place.api.ask("POST", "/instances/web/start", {})
        await place.api.ask("POST", "/nothing", {})

    with caplog.at_level(logging.INFO):
        over_tcp(tmp_path, scenario)
    lines = [record.getMessage() for record in caplog.records if record.name == "hypemand.api.access"]
    assert lines[0] == "POST /instances/web/stop by token ci from 127.0.0.1"
    assert lines[1].startswith("POST /instances/web/start by uid 0, gid 0, pid ")
    assert len(lines) == 2


def make_certificate(folder: Path, name: str) -> ssl.SSLContext:
    """A certificate and its key in PEM; gives what trusts it."""
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    argv += ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    argv += ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run(argv, check=True, capture_output=True)
    return ssl.create_default_context(cafile=str(folder / "cert.pem"))


def test_tls_and_a_renewed_certificate(tmp_path: Path) -> None:
    first = make_certificate(tmp_path, "first")
    config = ListenConfig("127.0.0.1", find_port(), tmp_path / "cert.pem", tmp_path / "key.pem")

    async def names(trust: ssl.SSLContext) -> str:
        _, writer = await asyncio.open_connection(config.host, config.port, ssl=trust)
        (((_, name),),) = writer.get_extra_info("peercert")["subject"]
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return str(name)

    async def scenario(api: Api) -> None:
        async with listen(api, config) as place:
            token = await place.token()
            headers = {"Authorization": f"Bearer {token}"}
            url = place.url("/health", "https")
            async with place.session.get(url, headers=headers, ssl=first) as response:
                assert response.status == 200
            assert await names(first) == "first"
            second = await asyncio.to_thread(make_certificate, tmp_path, "second")
            await place.listener.apply(config)
            assert await names(second) == "second"
            (tmp_path / "key.pem").write_text("no key")
            with pytest.raises(HostNotReady, match="are not a certificate and its key"):
                await place.listener.apply(config)
            assert await names(second) == "second"
            with pytest.raises(aiohttp.ClientError):
                await place.ask("GET", "/health", token)

    drive(tmp_path, scenario)


def test_connections_that_are_still_about_their_tls_count(tmp_path: Path) -> None:
    make_certificate(tmp_path, "x")
    config = ListenConfig("127.0.0.1", find_port(), tmp_path / "cert.pem", tmp_path / "key.pem")

    async def scenario(api: Api) -> None:
        async with listen(api, config, Limits(connections=3, first_request=2.0)):
            silent = [await asyncio.open_connection(config.host, config.port) for _ in range(6)]
            for reader, _ in silent[:3]:  # the oldest, at once, and not when time is up
                with contextlib.suppress(ConnectionError):
                    assert await asyncio.wait_for(reader.read(), 1.0) == b""
            for reader, _ in silent[3:]:
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
            for _, writer in silent:
                writer.close()

    drive(tmp_path, scenario)


def test_the_place_moves_and_ends_and_requests_that_are_on_do_so_in_peace(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        token = await place.token()
        host = place.api.host
        host.guest("web").heeds = False
        stopping = asyncio.create_task(place.ask("POST", "/instances/web/stop", token, {}))
        await host.until_true(lambda: host.unit("web") == "deactivating/stop")
        old, place.config = place.config, ListenConfig("127.0.0.1", find_port())
        await place.listener.apply(place.config)
        assert place.listener.address == str(place.config)
        assert await place.ask("GET", "/health", token) == 200
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(old.host, old.port)
        host.vmm("web").power_off()
        assert await stopping == 200

    over_tcp(tmp_path, scenario)


def test_listening_ends_and_begins_again(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        request = ("GET /health HTTP/1.1", "Host: x", f"Authorization: Bearer {await place.token()}")
        await place.listener.apply(None)
        assert place.listener.address is None
        with pytest.raises(ConnectionRefusedError):
            await place.ask_raw(*request)
        await place.listener.apply(place.config)
        assert b"200 OK" in await place.ask_raw(*request, "Connection: close")

    over_tcp(tmp_path, scenario)


def test_a_place_that_is_taken_leaves_the_old_one_alone(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        token = await place.token()
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            with pytest.raises(HostNotReady, match="cannot listen on 127"):
                await place.listener.apply(ListenConfig("127.0.0.1", taken.getsockname()[1]))
        assert await place.ask("GET", "/health", token) == 200

    over_tcp(tmp_path, scenario)


def test_plain_http_becomes_tls_at_the_same_place(tmp_path: Path) -> None:
    trust = make_certificate(tmp_path, "x")

    async def scenario(place: Place) -> None:
        config = ListenConfig(
            place.config.host, place.config.port, tmp_path / "cert.pem", tmp_path / "key.pem"
        )
        await place.listener.apply(config)
        headers = {"Authorization": f"Bearer {await place.token()}"}
        url = place.url("/health", "https")
        async with place.session.get(url, headers=headers, ssl=trust) as response:
            assert response.status == 200

    over_tcp(tmp_path, scenario)


def test_the_published_client_works_with_its_environment_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "data").write_bytes(b"0123456789" * 40_000)

    def work(place: Place) -> None:
        with hypeman.Hypeman() as client:
            assert [vm.name for vm in client.instances.list()] == ["web"]
            result = remote_exec(client, "web", ["both"], tty=True, rows=40, cols=90, resize=[(41, 91)])
            assert (result.output, result.exit_code) == (b"outerr", 3)
            cp_to_instance(client, "web", source, "/tmp/in")
            cp_from_instance(client, "web", "/tmp/in", tmp_path / "out")
            assert (tmp_path / "out/in/data").read_bytes() == b"0123456789" * 40_000
            assert client.instances.stat("web", path="/tmp/in/data").size == 400_000
            assert list(client.instances.logs("web", tail=1)) == ["two"]
        with hypeman.Hypeman(api_key="wrong", max_retries=0) as stranger:
            with pytest.raises(hypeman.AuthenticationError):
                stranger.instances.list()
            with pytest.raises(Exception, match="401"):
                remote_exec(stranger, "web", ["both"])

    async def scenario(place: Place) -> None:
        place.api.host.vmm("web").print("two")
        monkeypatch.setenv("HYPEMAN_BASE_URL", place.url(""))
        monkeypatch.setenv("HYPEMAN_API_KEY", await place.token())
        await asyncio.to_thread(work, place)

    over_tcp(tmp_path, scenario)


def test_a_body_that_nobody_reads_is_not_waited_for(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        headers = {"Authorization": "Bearer no", "Content-Length": "100000000"}
        stream = io.BytesIO(b"x" * 1000)
        lines = [f"{key}: {value}" for key, value in headers.items()]
        answer = await place.ask_raw(
            "PUT /instances/web/archive HTTP/1.1", "Host: x", *lines, body=stream.getvalue()
        )
        assert answer.startswith(b"HTTP/1.1 401")

    over_tcp(tmp_path, scenario, Limits(lingering=0.05))


class SlowServer(HttpServer):
    """Takes its time until it serves, so that another change comes meanwhile."""

    async def start(self, sock: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        await asyncio.sleep(0.01)
        await super().start(sock, tls)


def test_changes_at_once_leave_one_place_open(tmp_path: Path) -> None:
    """The last of them stays, and what it replaces is closed."""

    async def scenario(place: Place) -> None:
        listener = Listener(lambda: SlowServer(make_app(place.api.services, PATIENT, place.gate.check)))
        configs = [ListenConfig("127.0.0.1", find_port()) for _ in range(3)]
        await asyncio.gather(*map(listener.apply, configs))
        assert listener.address == str(configs[-1])
        reached = []
        for config in configs:
            with socket.socket() as sock:
                if sock.connect_ex((config.host, config.port)) == 0:
                    reached.append(config)
        assert reached == configs[-1:]
        await listener.close()

    over_tcp(tmp_path, scenario)
