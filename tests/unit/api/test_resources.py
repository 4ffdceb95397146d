# SPDX-License-Identifier: Apache-2.0
"""GET /resources and GET /capabilities, and creations that the host has room for or not."""

import asyncio
import os
from dataclasses import replace
from pathlib import Path

from hypemand.config.definition import MIB
from hypemand.config.host import MemoryPolicy
from hypemand.manager.resources.admission import read_total_memory
from hypemand.model.state import State
from tests.unit.api.harness import IMAGE, Api, Json, drive

SIZE = 96 * MIB
SMALL = {"image": IMAGE, "size": "96MB", "overlay_size": "64MB", "vcpus": 1, "network": {"enabled": False}}


def leave_room_for(api: Api, count: int) -> None:
    """Of memory, for so many VMs of that size."""
    config = api.host.parts.config()
    memory = MemoryPolicy(reserve=read_total_memory() - count * SIZE - SIZE // 2)
    api.host.parts.config.replace(replace(config, memory=memory))


async def read(api: Api) -> Json:
    return (await api.ask("GET", "/resources")).json


def test_of_ten_creations_at_once_with_room_for_five_five_stay(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        leave_room_for(api, 5)
        bodies = [SMALL | {"name": f"vm-{n}"} for n in range(10)]
        answers = await asyncio.gather(*(api.ask("POST", "/instances", body) for body in bodies))
        found = sorted(answer.status for answer in answers)
        assert found == [201] * 5 + [409] * 5
        refused = [answer for answer in answers if answer.status == 409]
        assert {answer.code for answer in refused} == {"insufficient_resources"}
        # else the published client would repeat them
        assert {answer.headers["X-Should-Retry"] for answer in refused} == {"false"}
        made = {answer.json["name"] for answer in answers if answer.status == 201}
        assert {vm.name for vm in api.host.parts.fleet} == made
        resources = await read(api)
        assert {one["instance_name"] for one in resources["allocations"]} == made
        assert resources["memory"]["allocated"] == 5 * SIZE
        assert resources["memory"]["available"] < SIZE

    drive(tmp_path, scenario)


def test_what_is_being_started_is_allocated(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        taken, go_on = asyncio.Event(), asyncio.Event()

        async def wait() -> None:
            taken.set()
            await go_on.wait()

        assert (await read(api))["memory"]["allocated"] == 0
        api.host.systemd.hooks["StartTransientUnit"] = wait
        creation = asyncio.create_task(api.ask("POST", "/instances", SMALL | {"name": "web"}))
        await taken.wait()
        found = await read(api)
        assert (found["memory"]["allocated"], found["cpu"]["allocated"]) == (SIZE, 1)
        (one,) = found["allocations"]
        assert (one["instance_name"], one["memory_bytes"], one["disk_bytes"]) == ("web", SIZE, 64 * MIB)
        go_on.set()
        assert (await creation).status == 201

    drive(tmp_path, scenario)


def test_a_stopped_vm_has_its_disk_and_volumes_and_no_memory(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        total = (await read(api))["disk"]["allocated"]
        await api.ask("POST", "/volumes", {"name": "data", "size": "64M"})
        rates = {"bandwidth": {"download": "80Mbit", "upload": "8Mbit"}}
        volumes = [{"volume": "data", "mount_path": "/data"}]
        network = {"name": "default", **rates}
        limits = {"network": network, "disk_io": {"total": "5MB/s"}}
        await api.host.put("web", State.RUNNING, volumes=volumes, **limits)
        await api.host.put("never")
        found = await read(api)
        (one,) = found["allocations"]
        assert (one["network_download_bps"], one["network_upload_bps"]) == (10_000_000, 1_000_000)
        assert one["disk_io_bps"] == 5_000_000
        assert found["network"]["allocated"] == 11_000_000
        await api.host.stop_for_good()
        found = await read(api)
        (one,) = found["allocations"]
        assert (one["cpu"], one["memory_bytes"], one["disk_bytes"]) == (0, 0, 128 * MIB)
        assert found["disk"]["allocated"] == total + 128 * MIB
        assert found["memory"]["capacity"] == read_total_memory()
        assert found["cpu"]["capacity"] == os.cpu_count()
        for one in (found["memory"], found["disk"]):
            assert one["available"] == one["effective_limit"] - one["allocated"]

    drive(tmp_path, scenario)


def test_the_capabilities_are_those_of_the_host(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        found = (await api.ask("GET", "/capabilities")).json
        assert found["default_runtime"] == {"name": "qemu-microvm", "available": True}
        assert found["network"] == {
            "model": "bridge", "gateway": "10.7.0.1", "subnet": "10.7.0.0/24", "guest_to_guest": False
        }  # fmt: skip
        (api.host.folder / "kernel/vmlinux").unlink()
        found = (await api.ask("GET", "/capabilities")).json
        assert not found["default_runtime"]["available"]
        assert "kernel" in found["runtimes"][0]["problem"]

    drive(tmp_path, scenario)
