# SPDX-License-Identifier: Apache-2.0
"""The published client library against the server, unchanged."""

import asyncio
import gzip
import io
import os
import tarfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import httpx
import hypeman
import pytest
from hypeman.lib import cp_from_instance, cp_to_instance
from hypeman.lib import exec as remote_exec
from hypeman.lib._ws import SyncWebSocket
from hypeman.lib.cp import CopyProtocolError
from hypeman.types.restart_policy import RestartPolicy
from websockets.sync.client import unix_connect

from hypemand.api.platforms import host_platform
from hypemand.model.files import FileKind
from hypemand.model.images import derive_host_architecture
from hypemand.model.state import State
from tests.fakes.host import LAB
from tests.unit.api.harness import IMAGE, Api, drive
from tests.unit.storage.support import make_layout, make_tar, shell


def use_client(folder: Path, work: Callable[[hypeman.Hypeman, Api, asyncio.AbstractEventLoop], None]) -> None:
    """Run `work` with the published client in a thread beside the server."""

    async def scenario(api: Api) -> None:
        loop = asyncio.get_running_loop()

        def run() -> None:
            transport = httpx.HTTPTransport(uds=str(api.path))
            with hypeman.Hypeman(
                api_key="any", base_url="http://localhost", http_client=httpx.Client(transport=transport)
            ) as client:
                work(client, api, loop)

        await asyncio.to_thread(run)

    drive(folder, scenario)


def put(
    api: Api, loop: asyncio.AbstractEventLoop, name: str, state: State = State.STOPPED, **keys: object
) -> None:
    """A VM in that state, from the client's thread."""
    asyncio.run_coroutine_threadsafe(api.host.put(name, state, **keys), loop).result(20)


def come_up(api: Api) -> None:
    """Its guest boots, and says something."""
    api.host.vmm("web").come_up()
    for text in ("one", "two"):
        api.host.vmm("web").print(text)


def test_the_life_of_an_instance(tmp_path: Path) -> None:
    def work(client: hypeman.Hypeman, api: Api, loop: asyncio.AbstractEventLoop) -> None:
        assert client.health.check().status == "ok"
        api.host.guest("web").boots = False
        made = client.instances.create(
            image=IMAGE,
            name="web",
            size="512MB",
            overlay_size="1GB",
            disk_io_bps="20MB/s",
            vcpus=1,
            cmd=["sleep", "9"],
            env={"A": "b"},
            tags={"team": "x"},
            skip_kernel_headers=True,
            restart_policy={"policy": "on_failure"},
            network={"enabled": False},
        )
        assert (made.state, made.size, made.overlay_size, made.vcpus) == ("Initializing", "512MB", "1GB", 1)
        assert made.disk_io_bps == "20MB/s"
        assert abs(datetime.now(UTC) - made.created_at) < timedelta(seconds=30)
        assert made.restart_policy == RestartPolicy(
            policy="on_failure", backoff="5s", max_attempts=0, stable_after="10m"
        )
        assert made.network is not None
        assert (made.network.enabled, made.network.ip, made.network.mac) == (False, None, None)
        boot = threading.Timer(0.1, lambda: loop.call_soon_threadsafe(come_up, api))
        boot.start()
        waited = client.instances.wait(made.id, state="Running", api_timeout="10s")
        assert (waited.state, waited.timed_out) == ("Running", False)
        assert [i.name for i in client.instances.list(state="Running", tags={"team": "x"})] == ["web"]
        assert client.instances.list(tags={"team": "y"}) == []
        assert list(client.instances.logs("web", tail=1)) == ["two"]
        assert client.instances.start("web").state == "Running"
        stopped = client.instances.stop("web")
        assert (stopped.state, stopped.exit_code) == ("Stopped", 0)
        assert client.instances.get(made.id).exit_message is not None
        client.instances.delete("web", graceful_shutdown=False)
        with pytest.raises(hypeman.NotFoundError):
            client.instances.get("web")

    use_client(tmp_path, work)


def test_an_instance_is_created_of_an_image_that_is_pulled_for_it(tmp_path: Path) -> None:
    tar = make_tar(tmp_path / "1.tar", [shell()])
    layout = make_layout(tmp_path / "layout", [tar], tag="v1", architecture=derive_host_architecture())

    def work(client: hypeman.Hypeman, api: Api, loop: asyncio.AbstractEventLoop) -> None:
        name = "registry.example/new:v1"
        api.host.registry.push(name, layout, "v1")
        small = {"size": "96MB", "overlay_size": "64MB", "network": {"enabled": False}, "cmd": ["x"]}
        made = client.instances.create(name="web", image=name, platform=host_platform(), **small)  # type: ignore[arg-type]
        assert (made.image, api.host.vm().record.definition.image_pull) == (name, "missing")
        with pytest.raises(hypeman.NotFoundError, match="in its registry"):
            client.instances.create(name="b", image="registry.example/none:v1", **small)  # type: ignore[arg-type]
        with pytest.raises(hypeman.BadRequestError, match="platform"):
            client.instances.create(name="b", image=name, platform="linux/s390x", **small)  # type: ignore[arg-type]
        assert [found.name for found in client.instances.list()] == ["web"]

    use_client(tmp_path, work)


def test_the_place_in_the_network_is_as_the_client_knows_it(tmp_path: Path) -> None:
    def work(client: hypeman.Hypeman, api: Api, loop: asyncio.AbstractEventLoop) -> None:
        rates = {"bandwidth": {"download": "1Gbit", "upload": "20Mbit"}}
        put(api, loop, "web", State.RUNNING, network={"name": "default", **rates})
        # that its memory can be read
        api.host.vmm("web").process.pid = os.getpid()
        network = client.instances.get("web").network
        assert network is not None
        lease = api.host.vm("web").record.lease
        assert lease is not None
        assert (network.enabled, network.name, network.ip) == (True, LAB.name, str(lease.ipv4))
        assert network.mac == lease.mac
        assert (network.bandwidth_download, network.bandwidth_upload) == ("1Gbps", "20Mbps")
        stats = client.instances.stats("web")
        assert (stats.network_rx_bytes, stats.network_tx_bytes) == (200, 100)

    use_client(tmp_path, work)


def test_logs_are_followed_to_the_end_of_the_run(tmp_path: Path) -> None:
    def work(client: hypeman.Hypeman, api: Api, loop: asyncio.AbstractEventLoop) -> None:
        put(api, loop, "web", State.RUNNING)
        for text in ("one", "two"):
            loop.call_soon_threadsafe(api.host.vmm("web").print, text)
        lines = []
        for line in client.instances.logs("web", follow=True, source="app"):
            lines.append(line)
            if line == "two":
                loop.call_soon_threadsafe(api.host.vmm("web").print, "last")
                asyncio.run_coroutine_threadsafe(api.manager.stop_vm("web"), loop).result()
        assert lines == ["one", "two", "last"]

    use_client(tmp_path, work)


def test_images(tmp_path: Path) -> None:
    def work(client: hypeman.Hypeman, api: Api, loop: asyncio.AbstractEventLoop) -> None:
        for name in ("example.org/team/app:v1", "spare"):
            api.host.add_image(name)
        put(api, loop, "web", image="example.org/team/app:v1")
        names = [image.name for image in client.images.list()]
        assert names == ["builtin:app", IMAGE, "example.org/team/app:v1", "spare"]
        image = client.images.get("example.org/team/app:v1")
        assert (image.status, image.size_bytes, image.platform) == ("ready", 4096, host_platform())
        client.images.delete("spare")
        with pytest.raises(hypeman.NotFoundError):
            client.images.get("spare")
        with pytest.raises(hypeman.ConflictError):
            client.images.delete("example.org/team/app:v1")

    use_client(tmp_path, work)


def test_volumes(tmp_path: Path) -> None:
    def work(client: hypeman.Hypeman, api: Api, loop: asyncio.AbstractEventLoop) -> None:
        made = client.volumes.create(name="data", size_gb=2, tags={"team": "x"})
        assert (made.name, made.size_gb, made.tags, made.attachments) == ("data", 2, {"team": "x"}, [])
        own = client.volumes.create(name="own", size_gb=1, id="my-id")
        assert own.id == "my-id"
        assert [volume.name for volume in client.volumes.list()] == ["data", "own"]
        assert [volume.name for volume in client.volumes.list(tags={"team": "x"})] == ["data"]
        instance = client.instances.create(
            image=IMAGE,
            name="web",
            overlay_size="64MB",
            volumes=[{"volume_id": "data", "mount_path": "/srv", "readonly": True}],
        )
        assert instance.volumes is not None
        assert (instance.volumes[0].volume_id, instance.volumes[0].readonly) == ("data", True)
        attachments = client.volumes.get("data").attachments
        assert attachments is not None
        attachment = attachments[0]
        assert (attachment.instance_id, attachment.mount_path) == (instance.id, "/srv")
        with pytest.raises(hypeman.ConflictError, match="attached to web"):
            client.volumes.delete("data")
        client.volumes.delete("own")
        with pytest.raises(hypeman.NotFoundError):
            client.volumes.get("own")

    use_client(tmp_path, work)


def test_volumes_are_attached_and_detached_while_the_instance_is_stopped(tmp_path: Path) -> None:
    def work(client: hypeman.Hypeman, api: Api, loop: asyncio.AbstractEventLoop) -> None:
        put(api, loop, "web")
        put(api, loop, "busy", State.RUNNING)
        client.volumes.create(name="data", size_gb=1)
        with_it = client.instances.volumes.attach("data", id="web", mount_path="/srv", readonly=True)
        assert with_it.volumes is not None
        assert (with_it.volumes[0].mount_path, with_it.volumes[0].readonly) == ("/srv", True)
        without = client.instances.volumes.detach("data", id="web")
        assert without.volumes == []
        with pytest.raises(hypeman.ConflictError):
            client.instances.volumes.attach("data", id="busy", mount_path="/srv")

    use_client(tmp_path, work)


def test_a_volume_of_an_archive(tmp_path: Path) -> None:
    def work(client: hypeman.Hypeman, api: Api, loop: asyncio.AbstractEventLoop) -> None:
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w:gz") as tar:
            root = tarfile.TarInfo("./")
            root.type, root.mode, root.uid = tarfile.DIRTYPE, 0o700, 70
            tar.addfile(root)
            big = tarfile.TarInfo("./big")
            big.size = 3 * 1024 * 1024
            tar.addfile(big, io.BytesIO(bytes(range(256)) * (big.size // 256)))
        made = client.volumes.create_from_archive(
            data.getvalue(), name="filled", size_gb=1, tags={"team": "x"}
        )
        assert (made.name, made.tags) == ("filled", {"team": "x"})
        files = api.host.volume_files("filled")
        assert len(files["big"].data) == big.size
        assert (files["."].info.mode, files["."].info.uid) == (0o700, 70)
        # several members in a row are one stream
        plain = gzip.decompress(data.getvalue()) if data.getvalue()[:2] == b"\x1f\x8b" else data.getvalue()
        parts = b"".join(gzip.compress(plain[at : at + 1_000_000]) for at in range(0, len(plain), 1_000_000))
        client.volumes.create_from_archive(parts, name="parts", size_gb=1)
        assert len(api.host.volume_files("parts")["big"].data) == big.size
        for broken in (data.getvalue()[:-1000], parts[:-20], parts + b"x", b"\x1f\x8bno gzip", b"x" * 1024):
            with pytest.raises(hypeman.BadRequestError):
                client.volumes.create_from_archive(broken, name="bad", size_gb=1)
            assert [volume.name for volume in client.volumes.list()] == ["filled", "parts"]

    use_client(tmp_path, work)


def test_refusals_come_as_the_clients_own_errors_and_are_not_repeated(tmp_path: Path) -> None:
    def work(client: hypeman.Hypeman, api: Api, loop: asyncio.AbstractEventLoop) -> None:
        put(api, loop, "web", State.PAUSED)
        with pytest.raises(hypeman.BadRequestError) as unsupported:
            client.instances.create(image=IMAGE, name="x", gpu={"profile": "p"})
        body = unsupported.value.body
        assert isinstance(body, dict)
        assert body["problems"][0]["key"] == "gpu"
        with pytest.raises(hypeman.BadRequestError):
            client.instances.wait("web", state="Running", api_timeout="0s")
        with pytest.raises(hypeman.ConflictError) as conflict:
            client.instances.start("web")
        assert conflict.value.response.headers["x-should-retry"] == "false"

    use_client(tmp_path, work)


def connect_to(api: Api) -> Callable[..., SyncWebSocket]:
    """What the client's WebSockets use instead of TCP."""

    def connector(url: str, *, additional_headers: dict[str, str], max_size: int) -> SyncWebSocket:
        socket = unix_connect(str(api.path), url, additional_headers=additional_headers, max_size=max_size)
        return cast(SyncWebSocket, socket)

    return connector


def test_exec(tmp_path: Path) -> None:
    def work(client: hypeman.Hypeman, api: Api, loop: asyncio.AbstractEventLoop) -> None:
        put(api, loop, "web", State.RUNNING)
        result = remote_exec(
            client,
            "web",
            ["both"],
            env={"A": "b"},
            timeout=5,
            wait_for_agent=5,
            stdin=b"in",
            connector=connect_to(api),
        )
        assert (result.output, result.exit_code) == (b"outerr", 3)

    use_client(tmp_path, work)


def test_exec_on_a_terminal(tmp_path: Path) -> None:
    def work(client: hypeman.Hypeman, api: Api, loop: asyncio.AbstractEventLoop) -> None:
        put(api, loop, "web", State.RUNNING)
        result = remote_exec(
            client,
            "web",
            ["both"],
            tty=True,
            rows=50,
            cols=100,
            resize=[(51, 101)],
            connector=connect_to(api),
        )
        assert result.exit_code == 3
        values = api.host.vmm("web").commands[0].values
        assert (values["tty"], values["rows"], values["cols"]) == ("1", "50", "100")

    use_client(tmp_path, work)


def test_files_go_there_and_back_whole(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub/big").write_bytes(b"0123456789" * 50_000)
    (source / "empty").touch(0o600)

    def work(client: hypeman.Hypeman, api: Api, loop: asyncio.AbstractEventLoop) -> None:
        put(api, loop, "web", State.RUNNING)
        cp_to_instance(client, "web", source, "/tmp/in", archive=True, connector=connect_to(api))
        assert api.host.guest("web").files.files["/tmp/in/sub/big"].data == b"0123456789" * 50_000
        api.host.guest("web").files.put("/tmp/in/link", FileKind.SYMLINK, target="empty")
        cp_from_instance(client, "web", "/tmp/in", tmp_path / "out", archive=True, connector=connect_to(api))
        back = tmp_path / "out/in"
        assert (back / "sub/big").read_bytes() == b"0123456789" * 50_000
        assert (back / "empty").stat().st_mode & 0o777 == 0o600
        assert (back / "link").readlink() == Path("empty")
        cp_from_instance(client, "web", "/tmp/in/empty", tmp_path / "one", connector=connect_to(api))
        assert (tmp_path / "one/empty").read_bytes() == b""
        with pytest.raises(CopyProtocolError, match="there is no /nowhere"):
            cp_from_instance(client, "web", "/nowhere", tmp_path / "no", connector=connect_to(api))

    use_client(tmp_path, work)


def test_an_upload_that_fails_is_the_clients_own_error(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(20_000_000))

    def work(client: hypeman.Hypeman, api: Api, loop: asyncio.AbstractEventLoop) -> None:
        put(api, loop, "web", State.RUNNING)
        api.host.guest("web").files.failure = "no space left"
        with pytest.raises(CopyProtocolError, match="no space left"):
            cp_to_instance(client, "web", tmp_path / "big", "/tmp/big", connector=connect_to(api))

    use_client(tmp_path, work)


def test_stat_and_stats(tmp_path: Path) -> None:
    def work(client: hypeman.Hypeman, api: Api, loop: asyncio.AbstractEventLoop) -> None:
        put(api, loop, "web", State.RUNNING)
        api.host.vmm("web").process.pid = os.getpid()
        api.host.guest("web").files.put("/etc/motd", data=b"hi", mode=0o640)
        found = client.instances.stat("web", path="/etc/motd", follow_links=True)
        assert (found.exists, found.is_file, found.mode, found.size, found.error) == (
            True,
            True,
            0o640,
            2,
            None,
        )
        assert not client.instances.stat("web", path="/nothing").exists
        stats = client.instances.stats("web")
        assert (stats.instance_name, stats.allocated_vcpus) == ("web", 2)
        assert 0 < stats.cpu_seconds <= time.process_time() + 1
        assert 0 < stats.memory_rss_bytes <= stats.memory_vms_bytes
        put(api, loop, "off")
        with pytest.raises(hypeman.ConflictError):
            client.instances.stats("off")

    use_client(tmp_path, work)
