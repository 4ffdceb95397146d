# SPDX-License-Identifier: Apache-2.0
"""hypemanctl edit, with a daemon over a host that behaves; sed(1) and sh(1) are the editors."""

from __future__ import annotations

import asyncio
import json
import shlex
import subprocess
from pathlib import Path

import pytest

from hypemand.cli.edit import find_template_file
from hypemand.errors import Ambiguous, NotFound
from hypemand.model.state import State
from tests.fakes.api import Client
from tests.fakes.host import FakeHost
from tests.unit.cli.conftest import Cli
from tests.unit.cli.test_over_manager import Run, drive


async def edit(host: FakeHost, editor: str, name: str = "web") -> subprocess.CompletedProcess[str]:
    """Edit a VM with an editor."""
    environment = {"EDITOR": editor, "TMPDIR": str(host.folder), "VISUAL": "false"}
    return await asyncio.to_thread(Cli(host.folder.parent / "api.sock", environment).run, "edit", name)


def shell(script: str) -> str:
    """An editor that is a script; $0 is the file."""
    return f"sh -c {shlex.quote(script)}"


def find_copies(host: FakeHost) -> list[Path]:
    """What is left of edits."""
    return sorted(host.folder.glob("hypemanctl-edit-*/*"))


async def define(host: FakeHost, run: Run) -> Path:
    """A VM that runs, of a file."""
    host.write(autostart=True, memory="128M")
    assert (await run("reload")).returncode == 0
    await host.until(State.RUNNING)
    return host.config.vm_dir / "web.yaml"


def test_what_is_edited_is_written_and_reloaded() -> None:
    async def scenario(host: FakeHost, _: Client, run: Run) -> None:
        file = await define(host, run)
        file.chmod(0o640)
        seen = host.folder / "seen"
        script = f'stat -c %a "$0" $(dirname "$0") >{seen}; basename "$0" >>{seen}; sed -i s/128M/192M/ "$0"'
        done = await edit(host, shell(script))
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == (
            "Changed, needs a restart: web.\nA restart applies memory 128M → 192M: hypemanctl restart web\n"
        )
        # nobody else reads what may have secrets
        assert seen.read_text().split() == ["600", "700", "web.yaml"]
        assert json.loads(file.read_text())["memory"] == "192M"
        assert file.stat().st_mode & 0o777 == 0o640
        assert host.vm().record.definition.memory == 192 * 1024**2
        assert [path.name for path in host.config.vm_dir.iterdir()] == ["web.yaml"]
        assert list(host.folder.glob("hypemanctl-edit-*")) == []

    drive(scenario)


def test_what_is_not_valid_is_not_written_and_not_lost() -> None:
    async def scenario(host: FakeHost, _: Client, run: Run) -> None:
        file = await define(host, run)
        before = file.read_bytes()
        done = await edit(host, "sed -i s/128M/lots/")
        assert done.returncode == 8
        assert f"{file}:1:" in done.stderr
        assert "memory: " in done.stderr
        (copy,) = find_copies(host)
        assert f"{file} has not been changed; the edited text is in {copy}\n" in done.stderr
        assert b"lots" in copy.read_bytes()
        assert file.read_bytes() == before
        assert host.vm().record.definition.memory == 128 * 1024**2

    drive(scenario)


def test_a_file_that_another_program_has_changed_meanwhile_is_left_as_it_is() -> None:
    async def scenario(host: FakeHost, _: Client, run: Run) -> None:
        file = await define(host, run)
        other = b"image: builtin:busybox\n"
        script = f'sed -i s/128M/192M/ "$0"; printf %s {shlex.quote(other.decode())} >{file}'
        done = await edit(host, shell(script))
        assert (done.returncode, "by another program" in done.stderr) == (11, True)
        assert file.read_bytes() == other
        assert len(find_copies(host)) == 1

    drive(scenario)


@pytest.mark.parametrize(
    ("editor", "status", "words"),
    [
        ("true", 0, ""),
        ("false", 1, "the editor false has failed with status 1; nothing was changed"),
        (shell('sed -i s/128M/192M/ "$0"; exit 3'), 1, "has failed with status 3; nothing was changed"),
        ("/no/editor -x", 1, "cannot run the editor /no/editor: No such file or directory"),
        ("'vi", 1, "is no command: No closing quotation"),
    ],
)
def test_an_edit_that_was_given_up_changes_nothing(editor: str, status: int, words: str) -> None:
    async def scenario(host: FakeHost, _: Client, run: Run) -> None:
        file = await define(host, run)
        before = file.stat()
        done = await edit(host, editor)
        assert (done.returncode, words in done.stderr) == (status, True), done.stderr
        assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
        assert list(host.folder.glob("hypemanctl-edit-*")) == []

    drive(scenario)


def test_a_file_that_is_gone_is_an_error_and_what_was_edited_is_not_lost() -> None:
    async def scenario(host: FakeHost, _: Client, run: Run) -> None:
        file = await define(host, run)
        meanwhile = await edit(host, shell(f'echo >>"$0"; rm {file}'))
        message = f"cannot edit {file}: No such file or directory"
        assert (meanwhile.returncode, message in meanwhile.stderr) == (1, True), meanwhile.stderr
        assert len(find_copies(host)) == 1
        before = await edit(host, "touch /nothing")
        assert (before.returncode, message in before.stderr) == (1, True), before.stderr
        assert len(find_copies(host)) == 1

    drive(scenario)


def test_a_link_stays_one() -> None:
    async def scenario(host: FakeHost, _: Client, run: Run) -> None:
        file = await define(host, run)
        real = host.folder / "web.real.yaml"
        file.rename(real)
        file.symlink_to(real)
        done = await edit(host, "sed -i s/128M/192M/")
        assert done.returncode == 0, done.stderr
        assert file.is_symlink()
        assert json.loads(real.read_text())["memory"] == "192M"
        assert host.vm().record.definition.memory == 192 * 1024**2

    drive(scenario)


def test_a_vm_without_a_file_is_refused_with_the_way_to_one() -> None:
    async def scenario(host: FakeHost, _: Client, run: Run) -> None:
        await host.create("api")
        refused = await edit(host, "true", "api")
        assert (refused.returncode, "hypemanctl show --definition api >" in refused.stderr) == (11, True)
        file = await define(host, run)
        file.unlink()
        assert (await run("reload")).returncode == 0
        gone = await edit(host, "true")
        assert (gone.returncode, "the definition file of web has been removed" in gone.stderr) == (11, True)
        assert (await edit(host, "true", "nope")).returncode == 10

    drive(scenario)


def test_an_edit_of_an_instance_is_one_of_its_template_and_says_so() -> None:
    async def scenario(host: FakeHost, _: Client, run: Run) -> None:
        host.write_template("1", "2", autostart=True, memory="128M", env={"ID": "%i"})
        assert (await run("reload")).returncode == 0
        for vm in ("web-1", "web-2"):
            await host.until(State.RUNNING, vm)
        template = host.config.vm_dir / "web@.yaml"
        done = await edit(host, "sed -i s/128M/192M/", "web@1")
        restarts = (f"A restart applies memory 128M → 192M: hypemanctl restart web-{n}\n" for n in (1, 2))
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == (
            f"{template} is the template of web-1, web-2.\n"
            f"Changed, needs a restart: web-1, web-2.\n{''.join(restarts)}"
        )
        assert json.loads(template.read_text())["memory"] == "192M"
        assert (host.config.vm_dir / "web@1.yaml").is_symlink()
        assert list(host.folder.glob("hypemanctl-edit-*")) == []

    drive(scenario)


def test_an_edit_of_an_instance_of_a_template_elsewhere_is_checked_for_all() -> None:
    async def scenario(host: FakeHost, _: Client, run: Run) -> None:
        host.write_template(memory="128M")
        template = host.folder / "web@.yaml"
        (host.config.vm_dir / "web@.yaml").rename(template)
        for instance in ("1", "blue"):
            (host.config.vm_dir / f"web@{instance}.yaml").symlink_to(template)
        assert (await run("reload")).returncode == 0
        refused = await edit(host, "sed -i s/128M/12%iM/", "web-1")
        assert (refused.returncode, "'12blueM'" in refused.stderr) == (8, True)
        done = await edit(host, "sed -i s/128M/192M/", "web-1")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == (f"{template} is the template of web-1, web-blue.\nChanged: web-1, web-blue.\n")
        assert "192M" in template.read_text()

    drive(scenario)


def test_an_instance_is_not_another_vm_of_that_name() -> None:
    async def scenario(host: FakeHost, _: Client, run: Run) -> None:
        host.write("web-1")
        assert (await run("reload")).returncode == 0
        done = await edit(host, "true", "web@1")
        assert (done.returncode, "VM web-1 is not defined by web@1.yaml" in done.stderr) == (10, True)

    drive(scenario)


def test_an_edit_that_is_not_valid_for_each_instance_is_refused() -> None:
    async def scenario(host: FakeHost, _: Client, run: Run) -> None:
        host.write_template("1", "blue", memory="128M")
        assert (await run("reload")).returncode == 0
        template = host.config.vm_dir / "web@.yaml"
        before = template.read_text()
        done = await edit(host, "sed -i s/128M/12%iM/", "web-1")
        assert done.returncode == 8
        assert f"{template}:1:" in done.stderr
        assert "'12blueM'" in done.stderr
        assert template.read_text() == before

    drive(scenario)


def test_a_copy_of_a_template_is_edited_by_itself() -> None:
    async def scenario(host: FakeHost, _: Client, run: Run) -> None:
        host.write_template("1", memory="128M", env={"ID": "%i"})
        copy = host.config.vm_dir / "web@2.yaml"
        copy.write_text((host.config.vm_dir / "web@.yaml").read_text())
        assert (await run("reload")).returncode == 0
        done = await edit(host, "sed -i s/128M/192M/", "web-2")
        assert (done.returncode, done.stdout) == (0, "Changed: web-2.\n")
        assert host.vm("web-2").record.definition.env == {"ID": "2"}
        assert "128M" in (host.config.vm_dir / "web@.yaml").read_text()

    drive(scenario)


def test_a_template_is_found_by_its_name(tmp_path: Path) -> None:
    for name in ("web@.yml", "web@1.yml", "web.yaml"):
        (tmp_path / name).touch()
    assert find_template_file("web@", tmp_path) == tmp_path / "web@.yml"
    other = tmp_path / "other"
    for folder in (other, tmp_path / "third"):
        folder.mkdir()
        (folder / "shop@.yaml").touch()
    (tmp_path / "shop@1.yaml").symlink_to(other / "shop@.yaml")
    assert find_template_file("shop@", tmp_path) == other / "shop@.yaml"
    (tmp_path / "shop@2.yaml").symlink_to(tmp_path / "third/shop@.yaml")
    with pytest.raises(Ambiguous, match=r"shop@ is the name of several templates, .*; edit one of its VMs"):
        find_template_file("shop@", tmp_path)
    with pytest.raises(NotFound, match=f"there is no template db@ in {tmp_path}; hypemanctl check"):
        find_template_file("db@", tmp_path)
