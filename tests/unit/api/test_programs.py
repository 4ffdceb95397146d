# SPDX-License-Identifier: Apache-2.0
"""A start with another cmd or entrypoint."""

from pathlib import Path

from hypemand.model.state import State
from tests.unit.api.harness import Api, drive


def test_a_vm_is_started_with_another_program_and_keeps_it(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        await api.host.put("web", entrypoint=["a"], cmd=["b"])
        body = {"cmd": ["c", "d"]}
        started = await api.ask("POST", "/instances/web/start", body)
        assert (started.status, started.json["definition"]["cmd"]) == (200, ["c", "d"])
        await api.host.until(State.RUNNING)
        running = api.host.vm().runs.running.definition
        assert running is not None
        assert (running.entrypoint, running.cmd) == (("a",), ("c", "d"))
        assert not api.host.vm().needs_restart
        again = await api.ask("POST", "/instances/web/start", body)
        assert (again.code, "Running" in again.json["message"]) == ("invalid_state", True)
        await api.host.stop_for_good()
        # what is omitted keeps its last value
        await api.ask("POST", "/instances/web/start", {"entrypoint": ["e"], "cmd": None})
        definition = api.host.vm().record.definition
        assert (definition.entrypoint, definition.cmd) == (("e",), ("c", "d"))

    drive(tmp_path, scenario)


def test_a_program_that_does_not_start_is_not_kept(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        await api.host.put("web", entrypoint=["a"], cmd=["b"])
        before = api.host.vm().record
        empty = await api.ask("POST", "/instances/web/start", {"entrypoint": [], "cmd": []})
        assert (empty.status, empty.code) == (400, "invalid_definition")
        api.host.config.qemu.with_name("none")
        (api.host.folder / "guest/initrd.cpio").unlink()
        failed = await api.ask("POST", "/instances/web/start", {"cmd": ["c"]})
        assert failed.code == "host_not_ready"
        assert api.host.vm().record.definition == before.definition
        assert api.host.traces() == []

    drive(tmp_path, scenario)


def test_a_vm_of_a_file_keeps_its_program(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        api.host.write("web")
        await api.host.reload()
        refused = await api.ask("POST", "/instances/web/start", {"cmd": ["c"]})
        assert (refused.status, "web.yaml" in refused.json["message"]) == (409, True)
        assert api.host.vm().state is State.STOPPED

    drive(tmp_path, scenario)
