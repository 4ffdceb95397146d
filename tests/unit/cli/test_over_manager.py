# SPDX-License-Identifier: Apache-2.0
"""hypemanctl, the API and the manager as they are, over a host that behaves."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from hypemand.cli.exitcode import ExitCode
from hypemand.config.pools import PoolConfig
from hypemand.config.source import parse_source
from hypemand.model.state import State
from hypemand.protocol.configdisk import load_env
from hypemand.storage.tools import DirectTools
from tests.fakes.api import Client, serving
from tests.fakes.host import FakeHost, folder_in_memory, running
from tests.unit.cli.conftest import Cli

DEADLINE = 60.0
Run = Callable[..., Coroutine[Any, Any, "subprocess.CompletedProcess[str]"]]
SMALL = ("-m", "96M", "--disk", "64M", "--network", "none")


def drive(scenario: Callable[[FakeHost, Client, Run], Awaitable[None]]) -> None:
    """Run a scenario with a host, its API, and hypemanctl."""

    async def main(folder: Path) -> None:
        path = folder / "api.sock"
        cli = Cli(path)

        async def run(*words: str) -> subprocess.CompletedProcess[str]:
            return await asyncio.to_thread(cli.run, *words)

        async with asyncio.timeout(DEADLINE), running(folder / "host") as host, serving(host, path) as client:
            await scenario(host, client, run)

    with folder_in_memory() as folder:
        asyncio.run(main(folder))


def test_a_vm_is_created_listed_shown_and_removed() -> None:
    async def scenario(host: FakeHost, _: Client, run: Run) -> None:
        done = await run("run", "-d", "--name", "web", *SMALL, "-e", "A=1", "builtin:app", "sleep", "9")
        assert (done.stdout, done.returncode) == ("web\n", 0), done.stderr
        definition = host.vm().record.definition
        assert (definition.memory, definition.cmd, dict(definition.env)) == (
            96 * 1024**2,
            ("sleep", "9"),
            {"A": "1"},
        )
        await host.until(State.RUNNING)
        assert (await run("list", "-q")).stdout == "web\n"
        assert "Running" in (await run("list")).stdout
        assert "builtin:app sleep 9" in (await run("status", "web")).stdout
        shown = json.loads((await run("show", "--json", "web")).stdout)
        assert (shown["state"], shown["invocation_id"]) == ("Running", host.vmm().run_id)
        assert shown["operation"] is None
        assert (await run("rm", "-f", "web")).returncode == 0
        assert (await run("show", "web")).returncode == 10
        assert host.traces() == []

    drive(scenario)


def test_a_start_is_waited_for_and_a_failed_one_says_why() -> None:
    async def scenario(host: FakeHost, _: Client, run: Run) -> None:
        host.guest().boots = False
        await host.create()
        await host.create("db")
        host.guest("db").ends = 7
        starting = asyncio.create_task(run("start", "--wait", "web"))
        await host.until_true(lambda: "web" in host.vmms.live and bool(host.vmm().monitor.orders))
        host.vmm().come_up()
        assert (await starting).returncode == 0
        assert (await run("wait", "web")).returncode == 0
        failed = await run("start", "--wait", "db")
        assert failed.returncode == 1
        assert "db did not start: exited with code 7" in failed.stderr
        assert (await run("start", "nope")).returncode == 10

    drive(scenario)


def test_who_waits_for_a_vm_that_is_removed_meanwhile_is_told_so() -> None:
    async def scenario(host: FakeHost, _: Client, run: Run) -> None:
        host.guest().boots = False
        await host.create()
        await host.manager.start_vm("web")
        await host.until_true(lambda: "web" in host.vmms.live)
        wait = asyncio.create_task(run("wait", "web"))
        await host.until_true(lambda: host.watchers("web") == 1)
        assert (await run("rm", "-f", "web")).returncode == 0
        done = await wait
        assert (done.returncode, "web was removed while waiting" in done.stderr) == (10, True), done.stderr

    drive(scenario)


def test_status_shows_the_operation_and_who_has_asked_for_it() -> None:
    async def scenario(host: FakeHost, _: Client, run: Run) -> None:
        await host.run()
        host.guest().heeds = False
        stop = asyncio.create_task(run("stop", "web"))
        await host.until_true(lambda: host.unit() == "deactivating/stop")
        shown = (await run("status", "web")).stdout
        assert re.search(rf"^ Operation: stop since \d+s, by uid {os.getuid()}$", shown, re.MULTILINE), shown
        host.vmm().power_off()
        assert (await stop).returncode == 0
        assert "Operation" not in (await run("status", "web")).stdout

    drive(scenario)


def test_stop_restart_and_kill_do_what_they_say() -> None:
    async def scenario(host: FakeHost, _: Client, run: Run) -> None:
        await host.run()
        first = host.vmm().run_id
        assert (await run("restart", "--wait", "web")).returncode == 0
        assert host.vmm().run_id != first
        stopped = json.loads((await run("stop", "--json", "web")).stdout)
        assert (stopped[0]["state"], stopped[0]["exit_message"]) == ("Stopped", "stopped on request")
        assert (await run("stop", "--result", "web")).returncode == 0
        assert (await run("kill", "web")).returncode == 11
        await host.manager.start_vm("web")
        await host.until(State.RUNNING)
        assert (await run("kill", "web")).returncode == 0
        result = await run("stop", "--result", "web")
        assert result.returncode == 1
        assert "the VMM was killed by SIGKILL" in result.stderr

    drive(scenario)


def test_pause_and_resume_reach_the_vmm() -> None:
    async def scenario(host: FakeHost, _: Client, run: Run) -> None:
        await host.run()
        await host.create("off")
        done = await run("pause", "--json", "web", "off")
        assert [shown["state"] for shown in json.loads(done.stdout)] == ["Paused"]
        assert done.returncode == 11
        assert "pause needs state Running, and off is Stopped" in done.stderr
        assert host.vmm().monitor.status == "paused"
        refused = await run("exec", "web", "true")
        assert "resume" in refused.stderr
        assert (await run("resume", "web")).returncode == 0
        assert host.vmm().monitor.status == "running"

    drive(scenario)


def test_a_vm_goes_to_standby_and_comes_back() -> None:
    async def scenario(host: FakeHost, _: Client, run: Run) -> None:
        await host.run()
        await host.create("off")
        boot = host.vm().boot
        done = await run("standby", "--json", "web", "off")
        assert [shown["state"] for shown in json.loads(done.stdout)] == ["Standby"]
        assert done.returncode == 11
        assert "standby needs state Running or Paused or Standby, and off is Stopped" in done.stderr
        assert re.search(r"web +Standby .* saved, \S+ on disk$", (await run("list")).stdout, re.MULTILINE)
        status = await run("status", "web")
        assert status.returncode == 3
        assert re.search(r"State: Standby since .*; \d+s ago$", status.stdout, re.MULTILINE), status.stdout
        assert re.search(r"Saved: memory and devices, \S+ on disk$", status.stdout, re.MULTILINE)
        assert (await run("show", "-p", "standby.size_bytes", "--value", "web")).stdout.strip().isdecimal()
        refused = await run("exec", "web", "true")
        assert "restore it first" in refused.stderr
        assert (await run("restore", "--wait", "web")).returncode == 0
        assert host.vm().boot == boot
        for words, same in ((("start",), True), (("start", "--cold"), False)):
            assert (await run("standby", "web")).returncode == 0
            assert (await run(*words, "--wait", "web")).returncode == 0
            assert (host.vm().boot == boot) is same
        assert (await run("restore", "off")).returncode == 11

    drive(scenario)


def test_memory_is_compressed_on_request_and_the_notes_say_so() -> None:
    async def scenario(host: FakeHost, _: Client, run: Run) -> None:
        host.make_tools = DirectTools
        await host.run()
        host.vmm().monitor.memory = b"what it has in memory" * 1000
        refused = await run("standby", "--pool", "san", "web")
        assert (refused.returncode, "in no cluster" in refused.stderr) == (11, True), refused.stderr
        refused = await run("standby", "--compress-level", "20", "web")
        assert (refused.returncode, "compression.level" in refused.stderr) == (8, True), refused.stderr
        made = await run("snapshot", "create", "--compress-level", "3", "--json", "web")
        assert json.loads(made.stdout)["compression"]["level"] == 3
        async with asyncio.timeout(DEADLINE):
            while "  compressed" not in (await run("snapshot", "list")).stdout:
                pass
        assert (await run("standby", "--compress", "web")).returncode == 0
        async with asyncio.timeout(DEADLINE):
            while " on disk (compressed)\n" not in (await run("list")).stdout:
                pass
        assert "memory and devices, " in (status := (await run("status", "web")).stdout)
        assert " on disk (compressed)\n" in status

    drive(scenario)


def test_snapshots_are_made_listed_restored_and_removed() -> None:
    async def scenario(host: FakeHost, _: Client, run: Run) -> None:
        await host.run()
        made = await run("snapshot", "create", "--name", "base", "--tag", "x=1", "web")
        assert re.fullmatch(r"[0-9a-f]{32}\n", made.stdout), made.stderr
        number = made.stdout.strip()
        shown = json.loads((await run("snapshot", "create", "--ttl", "1d", "--json", "web")).stdout)
        ttl = datetime.fromisoformat(shown["expires_at"]) - datetime.fromisoformat(shown["created_at"])
        assert ttl == timedelta(days=1)
        assert "  expires 20" in (await run("snapshot", "list")).stdout
        assert (await run("snapshot", "rm", shown["id"])).returncode == 0
        again = await run("snapshot", "create", "--name", "base", "web")
        assert (again.returncode, "has a snapshot base already" in again.stderr) == (11, True)
        listed = (await run("snapshot", "list")).stdout.splitlines()
        assert listed[0].split() == ["ID", "NAME", "VM", "KIND", "SIZE", "CREATED", "NOTE"]
        assert listed[1].split()[:4] == [number[:12], "base", "web", "Standby"]
        assert (await run("snapshot", "list", "-q", "web")).stdout == made.stdout
        shown = json.loads((await run("snapshot", "show", "base")).stdout)
        assert (shown["id"], shown["source_instance_name"], shown["tags"]) == (number, "web", {"x": "1"})
        running = await run("snapshot", "restore", "base")
        assert (running.returncode, "stop it first" in running.stderr) == (11, True)
        boot = host.vm().boot
        await host.manager.stop_vm("web")
        assert (await run("snapshot", "restore", "--wait", "base")).returncode == 0
        assert (host.vm().state, host.vm().boot) == (State.RUNNING, boot)
        assert re.search("^snapshots +", (await run("df")).stdout, re.MULTILINE)
        await host.manager.delete_vm("web", kill=True)
        assert (await run("snapshot", "list", "-q", "web")).stdout == made.stdout
        gone = await run("snapshot", "restore", number)
        assert (gone.returncode, "VM web of the snapshot does not exist any more" in gone.stderr) == (
            10,
            True,
        )
        assert (await run("snapshot", "rm", "base", "nothing")).returncode == 10
        assert (await run("snapshot", "list", "--no-legend")).stdout == ""

    drive(scenario)


def test_limits_are_set_and_shown() -> None:
    async def scenario(host: FakeHost, _: Client, run: Run) -> None:
        await host.run(vcpus=1, memory="128M", balloon=True, disk_io={"total": "5MB/s"})
        shown = (
            "memory=128M\ncpu_limit=2\ndisk_io.read=-\ndisk_io.write=-\ndisk_io.total=5MB/s\ndisk_io.iops=-\n"
        )
        assert (await run("set", "web")).stdout == shown
        done = await run("set", "web", "memory=96M", "cpu_limit=0.5", "disk_io.total=", "disk_io.iops=100")
        changed = (
            "memory=96M\ncpu_limit=0.5\ndisk_io.read=-\ndisk_io.write=-\ndisk_io.total=-\ndisk_io.iops=100\n"
        )
        assert done.stdout == changed
        assert (await run("set", "web", "memory=", "cpu_limit=", "disk_io=")).stdout == shown
        answer = json.loads((await run("set", "--json", "web")).stdout)
        assert answer["disk_io"] == {"read": None, "write": None, "total": 5_000_000, "iops": None}
        for words, problem in (
            (["cpu_limit"], "'cpu_limit' is not KEY=VALUE"),
            (["disk_io=1", "disk_io.iops=5"], "disk_io is given twice"),
            (["vcpus=3"], "vcpus: cannot be changed while the VM runs"),
        ):
            refused = await run("set", "web", *words)
            assert (refused.returncode != 0, problem in refused.stderr) == (True, True), refused.stderr

    drive(scenario)


def test_exec_runs_in_the_guest() -> None:
    async def scenario(host: FakeHost, _: Client, run: Run) -> None:
        await host.run()
        done = await run("exec", "web", "--", "both", "-x")
        assert (done.stdout, done.stderr, done.returncode) == ("out", "err", 3)
        assert [command.argv for command in host.vmm().commands] == [["both", "-x"]]
        assert (await run("exec", "web", "--", "none")).returncode == 127
        await host.manager.stop_vm("web")
        off = await run("exec", "web", "true")
        assert off.returncode == 125
        assert "start it first" in off.stderr

    drive(scenario)


def test_a_command_has_the_variables_that_the_program_was_started_with() -> None:
    async def scenario(host: FakeHost, _: Client, run: Run) -> None:
        file = host.config.vm_dir / "a.env"
        file.write_text("A=file\nB=file\n")
        host.write(env_file=[str(file)], env={"B": "definition"}, files=[{"path": "/a", "content": "x"}])
        assert (await run("reload")).returncode == 0
        assert (await run("start", "--wait", "web")).returncode == 0
        folder = host.config.runtime_dir / "vms" / "web"
        assert load_env(folder / "config.img") == {"PATH": "/bin", "A": "file", "B": "definition"}
        assert (folder / "files.img").read_bytes().startswith(b"HYPEFIL1")
        file.write_text("A=1\nB\n")
        assert (await run("exec", "web", "--", "both")).returncode == 3
        env = host.vmm().commands[0].env
        assert (env["A"], env["B"]) == ("file", "definition")
        refused = await run("restart", "web")
        assert f"{file}:2:1: has no '=' after 'B'; write NAME=VALUE" in refused.stderr
        assert host.vm().state is State.RUNNING
        shown = await run("show", "--json", "web")
        assert '"A"' not in shown.stdout

    drive(scenario)


def test_files_define_vms_and_a_reload_says_what_is_wrong() -> None:
    async def scenario(host: FakeHost, _: Client, run: Run) -> None:
        host.write(autostart=True)
        (host.config.vm_dir / "bad.yaml").write_text("image: builtin:app\nmemory: lots\n")
        reload = await run("reload")
        assert reload.returncode == 8
        assert "bad.yaml:2:" in reload.stderr
        await host.until(State.RUNNING)
        kept = await run("rm", "-f", "web")
        assert kept.returncode == 11
        assert "remove that file" in kept.stderr
        assert host.vm().state is State.RUNNING
        assert "kernel" in (await run("analyze", "web")).stdout

    drive(scenario)


def test_every_answer_of_a_vms_life_is_as_described() -> None:
    async def scenario(host: FakeHost, api: Client, _: Run) -> None:
        body = {"name": "web", "image": "builtin:app", "cmd": ["x"], "size": "96MB", "overlay_size": "64MB"}
        status, made = await api.ask("POST", "/instances", body)
        assert status in (200, 201), made
        await host.until(State.RUNNING)
        for target in ("/instances", "/instances/web", "/instances/web/timeline", "/networks", "/images"):
            assert (await api.ask("GET", target))[0] == 200, target
        for action in ("pause", "resume", "restart", "stop", "start", "kill"):
            if action in ("kill", "pause"):
                await host.until(State.RUNNING)
            assert (await api.ask("POST", f"/instances/web/{action}", {}))[0] == 200, action
        assert (await api.ask("POST", "/instances", body))[1]["code"] == "already_exists"
        assert (await api.ask("DELETE", "/instances/web"))[0] == 204
        assert (await api.ask("GET", "/instances/web"))[0] == 404
        assert host.traces() == []

    drive(scenario)


def test_the_hints_of_volumes_are_commands_that_do_it() -> None:
    async def scenario(host: FakeHost, _: Client, run: Run) -> None:
        await host.create()
        for name in ("data", "more"):
            assert (await run("volume", "create", "--size", "64M", name)).returncode == 0
        done = await run("volume", "attach", "--readonly", "web", "data", "/data")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        (mount,) = host.vm().record.definition.volumes
        assert (mount.volume, mount.mount_path, mount.readonly) == ("data", "/data", True)
        twice = await run("volume", "attach", "web", "data", "/other")
        assert "; hypemanctl volume detach web data" in twice.stderr
        host.write("db", volumes=[{"volume": "data", "mount_path": "/data", "readonly": True}])
        await host.reload()
        refused = await run("volume", "rm", "data")
        assert refused.returncode == ExitCode.WRONG_STATE
        message, _sep, hint = refused.stderr.strip().partition("; ")
        assert message.endswith("the volume data is attached to db, web")
        file = host.config.vm_dir / "db.yaml"
        assert hint == (
            f"remove it from volumes: in {file}, then: hypemanctl reload; hypemanctl volume detach web data"
        )
        file.unlink()
        assert (await run("reload")).returncode == 0
        # its data are kept, and it has no file to change any more
        again = await run("volume", "rm", "data")
        for words in re.findall(r"hypemanctl (volume detach \w+ \w+)", again.stderr):
            assert (await run(*words.split())).returncode == 0
        assert (await run("volume", "rm", "data")).returncode == 0

    drive(scenario)


def test_events_are_shown_and_followed_behind_a_cursor() -> None:
    async def scenario(host: FakeHost, _: Client, run: Run) -> None:
        await host.run()
        await host.run("db")
        lines = (await run("events", "web")).stdout.splitlines()
        assert any(re.fullmatch(r"\S+T\S+ web start: started on request", line) for line in lines)
        assert any(" web ready: Running after " in line for line in lines)
        assert not any(" db " in line for line in lines)
        documents = [json.loads(line) for line in (await run("events", "--json")).stdout.splitlines()]
        assert {document["vm"] for document in documents} == {"web", "db"}
        only = (await run("events", "--kind", "start", "--kind", "ready", "--json")).stdout.splitlines()
        assert [json.loads(line) for line in only] == [
            document for document in documents if document["kind"] in ("start", "ready")
        ]
        assert (await run("events", "-o", "json")).stdout.splitlines() == list(map(json.dumps, documents))
        parts = (await run("events", "-o", "yaml")).stdout.split("---\n")
        assert [parse_source(part, "").data for part in parts[1:]] == documents
        assert parts[0] == ""
        wide = (await run("events", "-o", "wide", "web")).stdout.splitlines()
        assert [line.rpartition(" (")[0] for line in wide] == lines
        told = re.compile(r"started on request \(start=request,run=[0-9a-f]{32},cursor=[^ ,]+\)")
        assert len([line for line in wide if told.fullmatch(line.partition("start: ")[2])]) == 1
        assert (await run("events", "--json", "-o", "wide")).returncode == 8
        after = await run("events", "--since", documents[4]["cursor"], "--json")
        assert [json.loads(line) for line in after.stdout.splitlines()] == documents[5:]
        assert (await run("events", "--since", "1h")).stdout.count("\n") == len(documents)
        assert (await run("events", "--since", "2100-01-01")).stdout == ""
        for words in (("--since", "soon"), ("--kind", "frob")):
            assert (await run("events", *words)).returncode == ExitCode.USAGE

    drive(scenario)


def test_events_of_a_vm_that_never_was_are_refused_and_of_one_that_has_gone_shown() -> None:
    async def scenario(host: FakeHost, _: Client, run: Run) -> None:
        await host.create()
        for words in ((), ("--kind", "failure"), ("--since", "2100-01-01")):
            assert (await run("events", *words, "web")).returncode == 0
        for options in ([], ["-f"]):
            done = await run("events", *options, "nosuch")
            assert (done.returncode, done.stdout, "there is no VM nosuch" in done.stderr) == (10, "", True)
        await host.start()
        await host.manager.delete_vm("web", kill=True)
        gone = await run("events", "web")
        assert (gone.returncode, gone.stderr, "start" in gone.stdout) == (0, "", True)
        assert (await run("events", "--since", "2100-01-01", "web")).returncode == 0

    drive(scenario)


def test_logs_of_several_vms_are_one_log_in_order_and_begin_where_they_are_asked_to() -> None:
    async def scenario(host: FakeHost, _: Client, run: Run) -> None:
        for name in ("web", "db-1"):
            await host.create(name)
        for number in range(4):
            host.log("web", f"w{number}", realtime=1000.0 + 2 * number)
            host.log("db-1", f"d{number}", realtime=1001.0 + 2 * number)
        shown = (await run("logs", "web", "db-1")).stdout.splitlines()
        assert shown == [line for number in range(4) for line in (f"web  | w{number}", f"db-1 | d{number}")]
        documents = [
            json.loads(line) for line in (await run("logs", "--json", "web", "db-1")).stdout.splitlines()
        ]
        assert [document["vm"] for document in documents] == ["web", "db-1"] * 4
        followed = await run("logs", "-f", "-n", "1", "web", "db-1")
        assert sorted(followed.stdout.splitlines()) == ["db-1 | d3", "web  | w3"]
        since = (await run("logs", "--since", "1970-01-01T00:16:43+00:00", "web", "db-1")).stdout.splitlines()
        assert since == ["db-1 | d1", "web  | w2", "db-1 | d2", "web  | w3", "db-1 | d3"]
        both = await run("logs", "--since", "1970-01-01T00:16:43+00:00", "-n", "9", "web")
        assert both.stdout == "w2\nw3\n"
        assert (await run("logs", "--since", "1970-01-01T00:16:43+00:00", "-n", "1", "web")).stdout == "w3\n"
        assert (await run("logs", "web", "web")).stdout == "w0\nw1\nw2\nw3\n"
        missing = await run("logs", "-f", "web", "none")
        assert missing.returncode == 10
        assert "there is no VM none" in missing.stderr

    drive(scenario)


def test_a_schedule_of_snapshots_is_set_shown_and_removed() -> None:
    async def scenario(host: FakeHost, _: Client, run: Run) -> None:
        await host.create()
        words = ("snapshot", "schedule")
        missing = await run(*words, "show", "web")
        assert (missing.returncode, "has no snapshot schedule; hypemanctl snapshot" in missing.stderr) == (
            10,
            True,
        )
        options = ("--interval", "1h", "--max-count", "24", "--max-age", "7d", "--name-prefix", "nightly")
        done = await run(*words, "set", *options, "--tag", "team=a", "web")
        assert re.fullmatch(r"next snapshot: 20[0-9T:-]+\n", done.stdout), done.stderr
        shown = json.loads((await run(*words, "show", "web")).stdout)
        assert (shown["interval"], shown["retention"]) == ("1h", {"max_count": 24, "max_age": "168h"})
        assert (shown["name_prefix"], shown["metadata"]) == ("nightly", {"team": "a"})
        again = await run(*words, "set", "--json", "--interval", "1h", "--max-count", "9", "web")
        assert json.loads(again.stdout)["next_run_at"] == shown["next_run_at"]
        for wrong in (("set", "web"), ("set", "--interval", "1h", "web"), ("set", "--interval", "5s", "web")):
            refused = await run(*words, *wrong)
            assert (refused.returncode, bool(refused.stderr)) == (8, True), refused
        assert (await run(*words, "rm", "web")).returncode == 0
        assert host.vm().record.schedule is None
        assert (await run(*words, "rm", "web")).returncode == 10

    drive(scenario)


def test_templates_for_warm_starts_are_made_listed_and_removed() -> None:
    async def scenario(host: FakeHost, _: Client, run: Run) -> None:
        host.enable_warm_starts()
        await host.create()
        await host.create("large", memory="112M")
        made = (await run("template", "create", "web", "large", "web")).stdout.split()
        assert made == [made[0], made[1], made[0]]
        assert (await run("template", "list", "-q")).stdout.split() == [made[0], made[1]]
        header, row, _other = (await run("template", "list")).stdout.splitlines()
        assert re.fullmatch(r"ID +STATE +MEMORY +CPUS +DISKS +NETWORK +SIZE +CREATED +USED", header)
        assert row.split()[:6] == [made[0][:12], "ready", "96M", "2", "3", "no"]
        refused = await run("template", "create", "nobody")
        assert (refused.returncode, "no VM nobody" in refused.stderr) == (10, True), refused.stderr
        for wrong in ((), ("--all", made[0])):
            assert (await run("template", "rm", *wrong)).returncode == 8
        assert (await run("template", "rm", "f00d")).returncode == 10
        assert (await run("template", "rm", made[0][:6])).returncode == 0
        assert json.loads((await run("template", "rm", "--all", "--json")).stdout) == [made[1]]
        assert (await run("template", "list", "-q")).stdout == ""

    drive(scenario)


def test_volumes_of_a_pool_go_by_their_names_in_every_command() -> None:
    async def scenario(host: FakeHost, _: Client, run: Run) -> None:
        (fast := host.folder / "fast").mkdir()
        pools = {"fast": PoolConfig(fast), "san": PoolConfig(Path("/nowhere"), shared=True)}
        host.config = replace(host.config, pools=pools)
        assert (await run("reload")).returncode == 0
        assert (await run("volume", "create", "--size", "16M", "fast/data")).returncode == 0
        refused = await run("volume", "create", "--size", "16M", "san/data")
        assert "the pool san is not available: /nowhere does not exist" in refused.stderr
        assert (await run("volume", "list", "-q")).stdout == "fast/data\n"
        assert (await run("volume", "resize", "fast/data", "32M")).returncode == 0
        created = await run("run", "--name", "web", *SMALL, "-v", "fast/data:/srv", "-d", "builtin:app")
        assert created.returncode == 0, created.stderr
        await host.manager.stop_vm("web")
        assert (await run("volume", "detach", "web", "fast/data")).returncode == 0
        assert (await run("volume", "attach", "web", "fast/data", "/data")).returncode == 0
        shown = (await run("df")).stdout.splitlines()
        figures = r"\S+ free of \S+; volumes: 1, which have allocated 32M of \S+"
        assert re.fullmatch(rf"pool fast \({fast}\): {figures}", shown[-2]), shown
        assert shown[-1] == "pool san, shared: not available: /nowhere does not exist; create or mount it"
        assert (await run("volume", "detach", "web", "fast/data")).returncode == 0
        assert (await run("volume", "rm", "fast/data")).returncode == 0

    drive(scenario)
