# SPDX-License-Identifier: Apache-2.0
"""Kernel headers in a guest that is a whole Debian: a module is built against them as by DKMS, and loaded.
So are the modules of the kernel itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.host.lab import start_host
from tests.host.recipe import Suite, guest_recipe
from tests.host.roots import ensure_root
from tests.host.vms import Vms, vms_of

# Nothing in these depends on the host's release. A guest of Debian 13 takes twice as long to boot.
pytestmark = pytest.mark.one_release(Suite.BOOKWORM)

NAME = "builder"
UNIT = "hypeman-kernel-headers.service"
SOURCE = r"""
#include <linux/init.h>
#include <linux/module.h>
static int __init hello_init(void) { pr_info("hello from a module\n"); return 0; }
static void __exit hello_exit(void) { }
module_init(hello_init);
module_exit(hello_exit);
MODULE_LICENSE("GPL");
"""
BUILD = """
mkdir -p /root/hello && cd /root/hello
printf '%s' "$1" >hello.c
echo 'obj-m := hello.o' >Makefile
make -C "/lib/modules/$(uname -r)/build" M="$PWD" modules
insmod hello.ko
grep '^hello ' /proc/modules
dmesg | grep -o 'hello from a module'
rmmod hello
"""


@pytest.fixture(scope="module")
def vms(suite: Suite) -> Iterator[Vms]:
    """A host with a VM of a Debian that has a compiler. Running when this is there, headers or not."""
    root = ensure_root(guest_recipe(suite))
    with start_host(suite, binds=[f"{root}:/srv/debian"]) as host, vms_of(host) as vms:
        vms.ctl("image", "import", "debian", "/srv/debian", timeout=300)
        vms.define(NAME, None, image="debian", memory="768M", vcpus=2, disk="2G", kernel_headers=True)
        vms.ctl("start", "--wait", NAME, timeout=180)
        yield vms


def test_the_headers_are_a_service_of_the_guest_that_nothing_waits_for(vms: Vms) -> None:
    vms.ctl("exec", NAME, "--", "systemctl", "is-system-running", "--wait", check=False, timeout=180)
    status = vms.execute(NAME, "systemctl", "status", "--no-pager", UNIT)
    assert "active (exited)" in status
    assert vms.execute(NAME, "cat", "/run/hypeman/kernel-headers.status") == "ready\n"
    shown = ("Before", "After", "Nice", "IOSchedulingClass", "CPUSchedulingPolicy")
    lines = vms.execute(NAME, "systemctl", "show", *(f"--property={key}" for key in shown), UNIT).splitlines()
    properties = dict(line.partition("=")[::2] for line in lines)
    assert properties["Before"] == "shutdown.target"
    assert "local-fs.target" in properties["After"]
    assert (properties["Nice"], properties["IOSchedulingClass"]) == ("19", "3")
    assert properties["CPUSchedulingPolicy"] == "5"
    console = [line.split()[0] for line in vms.console(NAME) if line.startswith("HYPEMAN-")]
    assert console.index("HYPEMAN-PROGRAM-START") < console.index("HYPEMAN-HEADERS-START")
    assert console.index("HYPEMAN-HEADERS-START") < console.index("HYPEMAN-HEADERS-READY")


def test_the_kernels_own_modules_are_loaded_by_kmod(vms: Vms) -> None:
    load = "modprobe -a ip_vs_rr vxlan nfsv4 squashfs && depmod && modprobe -n wireguard && lsmod"
    loaded = {line.split()[0] for line in vms.execute(NAME, "sh", "-euc", load).splitlines()}
    assert {"ip_vs", "ip_vs_rr", "vxlan", "nfs", "nfsv4", "squashfs"} <= loaded


def test_a_module_is_built_against_them_and_loaded(vms: Vms) -> None:
    built = vms.ctl("exec", NAME, "--", "sh", "-euc", BUILD, "build", SOURCE, timeout=300)
    assert "hello from a module" in built.stdout
