# SPDX-License-Identifier: Apache-2.0
"""image, reload, version, check."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hypemand.cli.check import Verdict, inspect_bridges, inspect_definitions, resolve_file
from hypemand.config.host import HostConfig
from hypemand.config.network import NetworkConfig
from hypemand.config.vmfile import load_vm_dir
from hypemand.errors import InvalidDefinition
from hypemand.version import VERSION
from tests.unit.cli.canned import Archive, Canned, Each, Events, Failure
from tests.unit.cli.conftest import REPOSITORY, Cli

GONE = Failure(404, {"code": "image_not_found", "message": "there is no image"})
HEALTH = {
    "status": "ok",
    "version": "9.9",
    "loop": {"slow_turns": 0, "longest_ms": 0, "longest_cpu_ms": 0},
}
UNIT = REPOSITORY / "units/hypemand.service"
IMAGE = {
    "name": "team/app:1",
    "status": "ready",
    "size_bytes": 4 * 1024 * 1024,
    "platform": "linux/amd64",
    "created_at": "2026-03-01T10:00:00Z",
    "digest": "sha256:" + "a" * 64,
}


def test_images_are_listed(daemon: Canned, cli: Cli) -> None:
    daemon.answers["GET /images"] = [IMAGE]
    assert cli.run("image", "list").stdout.splitlines() == [
        "NAME        STATUS  SIZE  PLATFORM     CREATED           DIGEST",
        "team/app:1  ready   4M    linux/amd64  2026-03-01T10:00  sha256:aaaaaaaaaaaa",
    ]
    assert cli.run("image", "list", "-q").stdout == "team/app:1\n"
    assert json.loads(cli.run("image", "list", "--json").stdout) == [IMAGE]


def test_an_image_with_a_slash_in_its_name_is_found_and_removed(daemon: Canned, cli: Cli) -> None:
    daemon.answers["GET /images/team/app:1"] = IMAGE
    daemon.answers["DELETE /images/team/app:1"] = Each([None, GONE])
    assert json.loads(cli.run("image", "inspect", "team/app:1").stdout) == IMAGE
    assert cli.run("image", "rm", "team/app:1").returncode == 0
    assert cli.run("image", "rm", "team/app:1").returncode == 10


def test_an_import_names_the_path_as_the_daemon_sees_it(daemon: Canned, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    daemon.answers["POST /images/import"] = {"name": "app", "digest": "sha256:1234"}
    done = cli.run("image", "import", "app", f"{tmp_path}/x/../tree")
    assert (done.returncode, done.stdout) == (0, "app sha256:1234\n")
    assert daemon.requests[-1][3] == {"name": "app", "path": f"{tmp_path}/tree"}


def test_an_import_of_nothing_is_refused_here(daemon: Canned, cli: Cli, tmp_path: Path) -> None:
    done = cli.run("image", "import", "app", f"{tmp_path}/nope")
    assert done.returncode == 8
    assert f"there is no {tmp_path}/nope" in done.stderr
    assert daemon.requests == []


def test_a_source_may_say_what_it_is(daemon: Canned, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    daemon.answers["POST /images/import"] = {"name": "app", "digest": "sha256:1234"}
    assert cli.run("image", "import", "app", f"dir:{tmp_path}/tree").returncode == 0
    assert daemon.requests[-1][3] == {"name": "app", "path": f"dir:{tmp_path}/tree"}


def test_a_pull_waits_until_the_image_is_there(daemon: Canned, cli: Cli) -> None:
    name = "docker.io/app"
    progress = {"bytes": 5, "total_bytes": 10, "layers": 0, "total_layers": 1}
    ready = {"name": name, "status": "ready", "digest": "sha256:12"}
    events = (
        {"name": name, "status": "pending", "progress": None},
        {"name": name, "status": "pulling", "progress": progress},
        ready,
    )
    daemon.answers["POST /images"] = {"name": name, "status": "pending"}
    daemon.answers[f"GET /images/{name}/watch"] = Events(events)
    done = cli.run("image", "pull", "app")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{name} sha256:12\n", "")
    assert [request[:2] for request in daemon.requests] == [
        ("POST", "/images"),
        ("GET", "/images/docker.io/app/watch"),
    ]
    assert json.loads(cli.run("image", "pull", "--json", "app").stdout) == [ready]


@pytest.mark.parametrize(
    ("code", "status"), [("image_not_found", 10), ("pull_failed", 1), ("image_not_ready", 8)]
)
def test_a_pull_that_fails_says_why(daemon: Canned, cli: Cli, code: str, status: int) -> None:
    failed = {"name": "docker.io/app", "status": "failed", "error": "no such thing", "error_code": code}
    daemon.answers["POST /images"] = {"name": "docker.io/app", "status": "pending"}
    daemon.answers["GET /images/docker.io/app/watch"] = Events((failed,))
    done = cli.run("image", "pull", "app")
    assert (done.returncode, done.stdout) == (status, "")
    assert "no such thing" in done.stderr


def test_run_pulls_what_is_not_here_before_anything_is_made(daemon: Canned, cli: Cli) -> None:
    failed = {"name": "docker.io/app", "status": "failed", "error": "gone", "error_code": "x"}
    daemon.answers["GET /images/app"] = GONE
    daemon.answers["POST /images"] = {"name": "docker.io/app", "status": "pending"}
    daemon.answers["GET /images/docker.io/app/watch"] = Events((failed,))
    assert cli.run("run", "app").returncode == 125
    assert [request[0] for request in daemon.requests] == ["GET", "POST", "GET"]
    assert cli.run("run", "--pull", "never", "app").returncode != 0
    assert daemon.requests[3][:2] == ("POST", "/instances")


def test_images_are_tagged_and_pruned(daemon: Canned, cli: Cli) -> None:
    gone = {"names": ["a", "b"], "digest": "sha256:1", "size_bytes": 2097152}
    daemon.answers["POST /images/prune"] = {"images": [gone], "freed_bytes": 2097152}
    daemon.answers["POST /images/app/tag"] = {"name": "other:v1", "digest": "sha256:1234"}
    assert cli.run("image", "tag", "app", "other:v1").stdout == "other:v1 sha256:1234\n"
    assert daemon.requests[-1][1:4] == ("/images/app/tag", {}, {"target": "other:v1"})
    assert cli.run("image", "prune").stdout == "a, b  2M\n2M freed\n"
    assert daemon.requests[-1][3] == {"all": False, "dry_run": False}
    assert "would be freed" in cli.run("image", "prune", "-a", "--dry-run").stdout
    assert daemon.requests[-1][3] == {"all": True, "dry_run": True}


def test_an_export_is_whole_or_not_there(daemon: Canned, cli: Cli, tmp_path: Path) -> None:
    target = tmp_path / "out.tar"
    daemon.answers["GET /images/app/export"] = Archive(3, b"tar")
    assert cli.run("image", "export", "app", str(target)).returncode == 0
    assert target.read_bytes() == b"tar"
    daemon.answers["GET /images/app/export"] = Archive(30, b"half")
    assert cli.run("image", "export", "app", str(target)).returncode == 13
    assert (target.read_bytes(), len(list(tmp_path.glob("*out.tar*")))) == (b"tar", 1)
    daemon.answers["GET /images/app/export"] = Archive(3, b"tar")
    assert cli.run("image", "export", "app", "-").stdout == "tar"


def test_reload_tells_what_changed(daemon: Canned, cli: Cli) -> None:
    found = {"defined": ["a", "b"], "changed": ["c", "d"], "removed": ["e"], "problems": []}
    daemon.answers["POST /reload"] = found | {"needs_restart": ["c"]}
    done = cli.run("reload")
    assert (done.stdout.splitlines(), done.returncode) == (
        ["Defined: a, b.", "Changed: d.", "Changed, needs a restart: c.", "Removed, being stopped: e."],
        0,
    )


def test_reload_with_broken_files_is_8_and_names_them(daemon: Canned, cli: Cli) -> None:
    problem = {
        "file": "a.yaml",
        "line": 3,
        "column": 9,
        "key": "memory",
        "message": "is no size",
        "hint": "write 1G",
    }
    daemon.answers["POST /reload"] = {"defined": [], "changed": [], "removed": [], "problems": [problem]}
    done = cli.run("reload")
    assert done.returncode == 8
    assert done.stderr == "hypemanctl: a.yaml:3:9: memory: is no size; write 1G\n"
    assert json.loads(cli.run("reload", "--json").stdout)["problems"] == [problem]


def test_the_unit_reloads_without_a_word_since_the_daemon_tells_the_journal(daemon: Canned, cli: Cli) -> None:
    (line,) = (text for text in UNIT.read_text().splitlines() if text.startswith("ExecReload="))
    problem = {"file": "a.yaml", "line": 1, "column": 1, "key": "", "message": "is empty", "hint": ""}
    daemon.answers["POST /reload"] = {"defined": ["a"], "changed": [], "removed": [], "problems": [problem]}
    done = cli.run(*line.split()[1:])
    assert (done.returncode, done.stdout, done.stderr) == (8, "", "")


def test_version_tells_both_sides(daemon: Canned, cli: Cli) -> None:
    daemon.answers["GET /health"] = HEALTH
    assert cli.run("--version").stdout == f"hypemanctl {VERSION}\n"
    assert cli.run("version").stdout == f"hypemanctl {VERSION}\nhypemand 9.9\n"


def test_version_tells_how_long_the_daemon_stood_still(daemon: Canned, cli: Cli) -> None:
    loop = {"slow_turns": 3, "longest_ms": 2500, "longest_cpu_ms": 120}
    daemon.answers["GET /health"] = HEALTH | {"loop": loop}
    assert cli.run("version").stdout.splitlines()[2:] == [
        "event loop: 3 slow turns, the longest took 2500 ms, the most CPU time in one was 120 ms"
    ]
    assert json.loads(cli.run("version", "--json").stdout)["loop"] == loop


def test_version_does_not_need_the_daemon(cli: Cli) -> None:
    done = cli.run("version")
    assert done.returncode == 0
    assert "hypemand does not answer" in done.stdout
    assert json.loads(cli.run("version", "--json").stdout) == {
        "hypemanctl": VERSION,
        "hypemand": None,
        "loop": None,
    }


def test_check_tells_every_problem_with_its_place(cli: Cli, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("image: builtin:busybox\n")
    bad.write_text("image: builtin:busybox\nmemori: 1G\nvcpus: many\n")
    assert cli.run("check", str(good)).returncode == 0
    done = cli.run("check", str(good), str(bad))
    assert done.returncode == 8
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"{bad}:2:1: memori: ")
    assert lines[1].startswith(f"{bad}:3:8: vcpus: ")


def test_check_holds_a_definition_against_the_hosts_networks(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "web.yaml"
    file.write_text("image: builtin:busybox\nnetwork: no-such-network\n")
    done = cli.run("check", str(file))
    assert done.returncode == 8
    assert done.stderr.startswith(
        f"{file}:2:10: network: no-such-network is not a network of this host; write "
    )


def test_check_json_is_one_document(cli: Cli, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("image: 3\n")
    problems = json.loads(cli.run("check", "--json", str(bad)).stdout)["problems"]
    assert [(p["line"], p["column"], p["key"]) for p in problems] == [(1, 8, "image")]


@pytest.mark.parametrize("name", ["hypemand.yaml", "hypemand.yaml.d/10-mine.yaml"])
def test_check_knows_a_host_configuration_by_its_place(cli: Cli, tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("accel: warp\n")
    done = cli.run("check", str(file))
    assert done.returncode == 8
    assert f"{file}:1:8: accel: " in done.stderr
    file.write_text("accel: tcg\n")
    assert cli.run("check", str(file)).returncode == 0


def test_check_of_a_file_that_is_not_there_is_8(cli: Cli, tmp_path: Path) -> None:
    done = cli.run("check", f"{tmp_path}/nope.yaml")
    assert done.returncode == 8
    assert f"{tmp_path}/nope.yaml: " in done.stderr


def test_check_takes_the_name_of_a_vm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vm_dir, here = tmp_path / "vms.d", tmp_path / "here"
    vm_dir.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    for name in ("web.yaml", "db.yml", "both.yaml", "app@.yaml", "app@1.yaml"):
        (vm_dir / name).touch()
    (here / "web").mkdir()
    (here / "both").touch()
    assert resolve_file("web", vm_dir) == vm_dir / "web.yaml"
    assert resolve_file("db", vm_dir) == vm_dir / "db.yml"
    assert resolve_file("app@", vm_dir) == vm_dir / "app@.yaml"
    with pytest.raises(InvalidDefinition, match=r"app: is a template, .*; use app@"):
        resolve_file("app", vm_dir)
    (vm_dir / "shop@1.yaml").symlink_to(tmp_path / "shop@.yaml")
    (tmp_path / "shop@.yaml").touch()
    assert resolve_file("shop@", vm_dir) == tmp_path / "shop@.yaml"
    for name in ("app-1", "app@1"):
        assert resolve_file(name, vm_dir) == vm_dir / "app@1.yaml"
    for path in ("both", "web.yaml", "./db", f"{tmp_path}/web"):
        assert resolve_file(path, vm_dir) == Path(path)


@pytest.mark.parametrize("name", ["no-such-vm", "x" * 300])
def test_check_of_a_name_that_nothing_has_says_what_to_give(cli: Cli, name: str) -> None:
    done = cli.run("check", name)
    assert done.returncode == 8
    assert done.stderr == (
        f"{name}: is neither a file nor a VM that is defined in /etc/hypemand/vms.d;"
        " use the path of a file, or the NAME of a VM in that directory\n"
    )


def test_check_of_the_host_names_everything_that_a_vm_needs(cli: Cli) -> None:
    done = cli.run("check", "--json")
    host = json.loads(done.stdout)["host"]
    names = ["accelerator", "QEMU", "kernel", "guest files", "systemd", "machined", "definitions", "networks"]
    assert [finding["what"] for finding in host] == names
    for finding in host:
        assert finding["text"]
        if finding["verdict"] == "missing":
            assert done.returncode in (8, 9)


def inspect(folder: Path) -> list[tuple[str, str]]:
    config = HostConfig(vm_dir=folder)
    found = load_vm_dir(folder, config.defaults, config.networks)
    return [(str(one.verdict), one.text) for one in inspect_definitions(config, found)]


def test_definitions_are_ok_only_if_all_are(tmp_path: Path) -> None:
    assert inspect(tmp_path) == [("ok", f"0 in {tmp_path}")]
    for name in ("web", "db"):
        (tmp_path / f"{name}.yaml").write_text("image: x\nnetwork: {publish: ['80:80']}\n")
    clash = (
        "note",
        "db and web publish the same port of this host (80/tcp): only one of them can run",
    )
    assert inspect(tmp_path) == [("ok", f"2 in {tmp_path}"), clash]
    (tmp_path / "bad.yaml").write_text("image: x\nnetwork: nowhere\n")
    assert inspect(tmp_path) == [
        ("note", f"1 of 3 in {tmp_path} have errors: VMs keep their last valid definition"),
        clash,
    ]


def test_a_template_is_shown_with_its_vms_and_what_they_clash_for_with_the_cure(
    cli: Cli, tmp_path: Path
) -> None:
    template = tmp_path / "web@.yaml"
    template.write_text("image: x\nnetwork: {publish: ['80:80']}\n")
    how = f"has no instance; make an instance: ln -s web@.yaml {tmp_path}/web@1.yaml"
    assert inspect(tmp_path) == [("ok", f"0 in {tmp_path}"), ("note", how)]
    alone = cli.run("check", str(template))
    assert (alone.returncode, alone.stdout) == (0, f"note     template web@  {how}\n")
    for instance in ("1", "2", "3"):
        (tmp_path / f"web@{instance}.yaml").symlink_to("web@.yaml")
    clash = (
        "web-1, web-2 and web-3 publish the same port of this host (80/tcp): only one of them can run;"
        f" use %i in {template}"
    )
    found = [("ok", "defines web-1, web-2, web-3"), ("note", clash)]
    assert inspect(tmp_path) == [("ok", f"3 in {tmp_path}"), *found]
    checked = cli.run("check", "--json", str(template))
    assert [(one["verdict"], one["text"]) for one in json.loads(checked.stdout)["host"]] == found
    for n in range(4, 14):
        (tmp_path / f"web@{n}.yaml").symlink_to("web@.yaml")
    template.write_text("image: x\nmemroy: 1G\n")
    broken = cli.run("check", str(template))
    assert broken.stderr == f"{template}:2:1: memroy: is not known; did you mean memory?\n"
    assert broken.returncode == 8
    template.write_text("image: x\n")
    assert cli.run("check", str(template)).stdout.endswith("web-5, web-6 and 3 more\n")


def test_check_tells_how_the_networks_are(daemon: Canned, cli: Cli) -> None:
    daemon.answers["GET /health"] = HEALTH
    lab = {"name": "lab", "bridge": "lab0", "ipv4": "10.7.0.1/24", "ipv6": None}
    daemon.answers["GET /networks"] = [
        lab,
        lab | {"name": "dmz", "problem": "dmz0 is not ours"},
        lab | {"name": "odd", "warnings": ["ufw drops what is forwarded"]},
        lab | {"name": "lan", "bridge": "br0", "managed": False},
        {"name": "free", "bridge": "br1", "managed": False, "dhcp": True},
    ]
    done = cli.run("check", "--json")
    found = {f["what"]: (f["verdict"], f["text"]) for f in json.loads(done.stdout)["host"]}
    assert found["network lab"] == ("ok", "10.7.0.1/24 on lab0")
    assert found["network dmz"] == ("missing", "dmz0 is not ours")
    assert found["network odd"] == ("note", "ufw drops what is forwarded")
    assert found["network lan"] == ("ok", "10.7.0.1/24 on br0, not managed by hypemand")
    assert found["network free"] == ("ok", "addresses by DHCP on br1, not managed by hypemand")
    assert done.returncode != 0


def test_check_misses_a_bridge_of_the_administrators_without_the_daemon_too() -> None:
    lan = NetworkConfig("lan", "nobr0", None, None, managed=False, dhcp=True)
    networks = {"lan": lan, "lab": replace(lan, name="lab", managed=True)}
    (found,) = inspect_bridges(networks)
    assert (found.what, found.verdict) == ("network lan", Verdict.MISSING)
    assert found.text.startswith("there is no bridge nobr0; create it")


def test_check_works_without_the_daemon(cli: Cli) -> None:
    found = {f["what"]: f for f in json.loads(cli.run("check", "--json").stdout)["host"]}
    assert found["networks"]["verdict"] == "note"


def test_what_can_no_longer_be_restored_is_listed_and_checked(daemon: Canned, cli: Cli) -> None:
    why = "saved with QEMU 1.0, this host has 2.0"
    saved = {"saved_at": "2026-03-01T10:00:00.000Z", "size_bytes": 1048576, "restore_error": why}
    daemon.add("db", "Standby", standby=saved)
    daemon.add("web")
    one = {"name": "base", "kind": "Standby", "size_bytes": 1, "restore_error": why}
    daemon.answers["GET /networks"] = []
    daemon.answers["GET /snapshots"] = [
        one | {"id": "1a", "source_instance_id": "web-id", "source_instance_name": "web"},
        *(one | {"id": f"2{n}", "name": None, "source_instance_id": "x"} for n in range(12)),
        {"id": "3a", "kind": "Stopped", "restore_error": None},
    ]
    assert f"cannot be restored: {why}, saved, 1M on disk" in cli.run("list").stdout
    assert f"cannot be restored: {why}" in cli.run("status", "db").stdout
    lines = cli.run("snapshot", "list").stdout.splitlines()
    assert (lines[1].endswith(f"cannot be restored: {why}"), "restored" in lines[-1]) == (True, False)
    found = [f for f in json.loads(cli.run("check", "--json").stdout)["host"] if "restored" in f["text"]]
    assert (len(found), {f["verdict"] for f in found}) == (13, {"note"})
    assert [(f["what"], f["text"].partition("; ")[2]) for f in found[:3]] == [
        ("VM db", "hypemanctl start --cold db boots it anew, and gives up what was in its memory"),
        (
            "snapshot base",
            "restore its disk alone: target_state Stopped (hypemanctl snapshot restore --state Stopped 1a)",
        ),
        ("snapshot 20", "hypemanctl snapshot fork --state Standby 20 NEW, then hypemanctl start --cold NEW"),
    ]
    assert found[-1]["text"].startswith("2 more cannot be restored")
