# SPDX-License-Identifier: Apache-2.0
"""vm export and vm import over the API and the manager as they are."""

from __future__ import annotations

import json
import os
import tarfile

from hypemand.cli.exitcode import ExitCode
from hypemand.config.definition import MIB
from hypemand.model.state import State
from tests.fakes.api import Client
from tests.fakes.host import FakeHost
from tests.unit.cli.test_over_manager import Run, drive


def test_a_vm_goes_into_a_file_and_comes_out_of_it() -> None:
    async def scenario(host: FakeHost, client: Client, run: Run) -> None:
        file = host.folder / "web.vm"
        await host.run(env={"SECRET": "x"})
        refused = await run("vm", "export", "web", str(file))
        assert (refused.returncode, file.exists()) == (ExitCode.WRONG_STATE, False)
        assert "web is Running; stop it first" in refused.stderr
        await host.stop_for_good()
        done = await run("vm", "export", "web", str(file))
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert file.stat().st_mode & 0o777 == 0o600
        assert file.stat().st_size < 8 * MIB
        with tarfile.open(file) as archive:
            names = [member.name for member in archive]
        assert names == ["manifest.json", "definition.yaml", "disk.ext4", "SHA256SUMS"]
        taken = await run("vm", "import", str(file))
        assert (taken.returncode != 0, "a VM web already exists" in taken.stderr) == (True, True)
        made = await run("vm", "import", "--name", "web2", str(file))
        assert (made.returncode, made.stdout, made.stderr) == (0, "web2\n", "")
        assert host.vm("web2").state is State.STOPPED
        assert (await client.ask("GET", "/instances/web2"))[1]["origin"] == "api"
        await host.manager.delete_vm("web")
        vm_id = host.vm("web2").record.id
        made = await run("vm", "import", "--keep-identity", "--json", str(file))
        assert json.loads(made.stdout)["name"] == "web"
        assert host.vm().record.id != vm_id

    drive(scenario)


def test_what_the_vm_lacks_here_is_told() -> None:
    async def scenario(host: FakeHost, client: Client, run: Run) -> None:
        file = host.folder / "web.vm"
        await client.ask("POST", "/volumes", {"name": "data", "size": "16M"})
        host.add_image("docker.io/library/app:1")
        mounts = [{"volume": "data", "mount_path": "/d"}]
        await host.create(image="docker.io/library/app:1", volumes=mounts)
        assert (await run("vm", "export", "--all-volumes", "web", str(file))).returncode == 0
        await host.manager.delete_vm("web")
        assert (await client.ask("DELETE", "/images/app:1"))[0] in (204, 404)
        made = await run("vm", "import", "--volume", "data=data2", "--name", "x", str(file))
        words = (
            "the image docker.io/library/app:1 is not on this host yet; hypemanctl start pulls it, if it can"
        )
        assert (made.returncode, made.stderr) == (0, f"hypemanctl: {words}\n")
        await host.manager.delete_vm("x")
        await host.create("none", volumes=mounts)
        assert (await run("vm", "export", "none", str(file))).returncode == 0
        await client.ask("DELETE", "/instances/none")
        await client.ask("DELETE", "/volumes/data")
        made = await run("vm", "import", str(file))
        assert made.returncode == 0
        assert "the volume data is not on this host; create or import it before the start" in made.stderr

    drive(scenario)


def test_a_damaged_file_and_one_that_is_none_are_refused() -> None:
    async def scenario(host: FakeHost, _: Client, run: Run) -> None:
        file = host.folder / "web.vm"
        await host.run()
        await host.stop_for_good()
        assert (await run("vm", "export", "web", str(file))).returncode == 0
        whole = file.read_bytes()
        for data, words in (
            (whole[:-1500], "the archive"),
            (whole.replace(b'"vcpus": 2', b'"vcpus": 3', 1), "checksum of definition.yaml"),
            (b"", "the archive is not complete"),
            (os.urandom(1024 * 1024), "not a tar archive"),
        ):
            file.write_bytes(data)
            refused = await run("vm", "import", "--name", "x", str(file))
            assert refused.returncode not in (0, 125)
            assert words in refused.stderr
            assert refused.stdout == ""
        assert [vm.name for vm in host.parts.fleet] == ["web"]
        missing = await run("vm", "import", str(host.folder / "nope"))
        assert (missing.returncode, "there is no" in missing.stderr) == (ExitCode.NOT_FOUND, True)
        bad = await run("vm", "export", "web", str(host.folder / "nope/x"))
        assert "cannot write" in bad.stderr
        assert not [name for name in os.listdir(host.folder) if name.startswith(".web.vm")]

    drive(scenario)
