# SPDX-License-Identifier: Apache-2.0
"""The driver saves a VM whose VMM is in its sandbox, where that can open and create nothing, and ends it.

What was saved is restored in tests/unit/vmm/test_qemu.py.
"""

import json
from collections.abc import Iterator

import pytest

from tests.host.machine import TestHost
from tests.host.vms import Vms, vms_of

# argv: the VM's control socket, then its memory and the folder to save to, or nothing: the VMM is ended
DRIVE = """
import asyncio, json, os, sys
from hypemand.budget import Budget
from hypemand.vmm.qemu import connect_qemu

async def main(path, size=0, target=None):
    vmm = await connect_qemu(path, lambda event: None, "saved", Budget())
    if target is None:
        await vmm.quit()
        return []
    states = []
    with open(target + "/memory", "xb") as memory, open(target + "/state", "xb") as state:
        def save():
            files = memory.fileno(), state.fileno()
            return vmm.save(*files, size=int(size), user=os.stat(path).st_uid, deadline=60)
        for order in (vmm.pause, save, vmm.resume):
            await order()
            states.append((await vmm.query_run_state()).name)
    await vmm.close()
    return states

print(json.dumps(asyncio.run(main(*sys.argv[1:]))))
"""
FOLDER = "/srv/saved"
MIB = 1024**2
# of the daemon's unit, those of its process
SETTINGS = (
    *("CapabilityBoundingSet=", "NoNewPrivileges=", "RestrictAddressFamilies=", "RestrictNamespaces="),
    *("LockPersonality=", "MemoryDenyWriteExecute=", "SystemCall", "DevicePolicy=", "DeviceAllow="),
)


@pytest.fixture(scope="module")
def vms(host: TestHost) -> Iterator[Vms]:
    with vms_of(host) as those:
        yield those


def in_daemons_sandbox(host: TestHost) -> list[str]:
    """What runs a program with no more rights than the daemon has: it starts one of another user."""
    lines = host.run(["systemctl", "cat", "hypemand.service"]).stdout.splitlines()
    settings = [line for line in lines if line.startswith(SETTINGS)]
    assert len(settings) >= len(SETTINGS)
    return ["systemd-run", "--quiet", "--wait", "--pipe", *(f"--property={line}" for line in settings)]


def test_a_vm_is_saved_goes_on_and_is_ended_by_the_driver(host: TestHost, vms: Vms) -> None:
    def drive(*arguments: str) -> list[str]:
        argv = ["python3", "-c", DRIVE, f"/run/hypemand/vms/{name}/qmp.sock", *arguments]
        return list(json.loads(host.run([*in_daemons_sandbox(host), *argv], timeout=90).stdout))

    name = vms.run("saved")
    memory = 128 * MIB
    vms.execute(name, "sh", "-c", "echo kept > /tmp/mark")
    host.run(["mkdir", FOLDER])
    with vms.without_daemon():
        assert drive(str(memory), FOLDER) == ["PAUSED", "HALTED", "RUNNING"]
    stat = ["stat", "--format=%s %b", f"{FOLDER}/memory", f"{FOLDER}/state"]
    sizes = [int(word) for word in host.run(stat).stdout.split()]
    assert sizes[0] == memory
    assert 8 * MIB < sizes[1] * 512 < 0.8 * memory, "the memory that a guest has used"
    assert 16 * 1024 < sizes[2] < MIB
    assert host.run(["head", "--bytes=4", f"{FOLDER}/state"]).stdout == "QEVM"
    host.run(["rm", "-r", FOLDER])
    # the guest has noticed nothing
    host.wait_until(lambda: vms.state(name) == "Running", "it is seen again")
    assert vms.execute(name, "cat", "/tmp/mark").strip() == "kept"
    with vms.without_daemon():
        drive()
        vms.wait_unit(name, "failed")  # nobody has reported how the program ended
    assert vms.state(name) == "Stopped"
