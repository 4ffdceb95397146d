# SPDX-License-Identifier: Apache-2.0
"""Images: an import beside its tools run by hand, and what many VMs of one image take of the host."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from bench.inside.rounds import Series, run

_SIZE = 300 * 1024 * 1024
_NAME = "bench-import"
_VM_DIR = Path("/etc/hypemand/vms.d")
_STORE = Path("/var/lib/hypemand/images")
_DEFINITION = """\
image: {image}
memory: 128M
network: none
vcpus: 1
disk: 64M
kernel_headers: false
cmd: [/bin/sh, -c, {cmd}]
"""
# as much of the image as a program of some size reads
_READS = "cat /opt/* >/dev/null; exec sleep 100000"
_READ_SIZE = 8 * 1024 * 1024


def measure_import(root: Path, scratch: Path, rounds: int) -> Series:
    """Milliseconds of an import of an OCI layout with a root of 300 MiB, and of skopeo, umoci and mkfs.erofs
    in turn, each to a file that is synced."""
    layout = _make_layout(root, scratch)
    series: Series = {"import": [], "tools": []}
    for _ in range(rounds):
        by_hand = scratch / "by-hand"
        by_hand.mkdir()
        begun = time.monotonic()
        run("skopeo", "--insecure-policy", "copy", "--quiet", f"oci:{layout}:v1", f"oci:{by_hand}/oci:v1")
        run("umoci", "raw", "unpack", "--image", f"{by_hand}/oci:v1", f"{by_hand}/root")
        run("mkfs.erofs", "--quiet", f"{by_hand}/rootfs.erofs", f"{by_hand}/root")
        run("sync", f"{by_hand}/rootfs.erofs")
        shutil.rmtree(by_hand)
        series["tools"].append((time.monotonic() - begun) * 1000)
        begun = time.monotonic()
        run("hypemanctl", "image", "import", _NAME, f"{layout}:v1")
        series["import"].append((time.monotonic() - begun) * 1000)
        run("hypemanctl", "image", "rm", _NAME)
    return series


def _make_layout(root: Path, scratch: Path) -> Path:
    """An image of one layer: a Debian, and files that make it 300 MiB."""
    scratch.mkdir(parents=True, exist_ok=True)
    tree, layout = scratch / "tree", scratch / "layout"
    run("cp", "-a", "--one-file-system", str(root), str(tree))
    used = int(run("du", "-sxB1", str(tree)).split()[0])
    with (tree / "filling").open("wb") as file:
        for _ in range(max(0, _SIZE - used) // 65536):
            file.write(os.urandom(65536))
    run("tar", "--numeric-owner", "--xattrs", "-C", str(tree), "-cf", f"{scratch}/tree.tar", ".")
    run("umoci", "init", "--layout", str(layout))
    run("umoci", "new", "--image", f"{layout}:v1")
    run("umoci", "raw", "add-layer", "--image", f"{layout}:v1", f"{scratch}/tree.tar")
    shutil.rmtree(tree)
    (scratch / "tree.tar").unlink()
    return layout


def measure_shared(scratch: Path, count: int) -> Series:
    """MiB of disk and of page cache that the images of so many VMs take: of one that they share, and of one
    for each."""
    roots = [_make_root(scratch / f"root{number}", number) for number in range(count)]
    names = [f"shared{number}" for number in range(count)]
    series: Series = {}
    for kind, images in (("shared", roots[:1] * count), ("copies", roots)):
        for name, root in zip(names, images, strict=True):
            text = _DEFINITION.format(image=f"dir:{root}", cmd=f"'{_READS}'")
            (_VM_DIR / f"{name}.yaml").write_text(text)
        run("systemctl", "reload", "hypemand.service")
        run("hypemanctl", "start", "--wait", *names)
        _wait_until_read(names)
        files = [path for path in _STORE.glob("*/rootfs.erofs") if path.stat().st_size > _READ_SIZE]
        cached = sum(int(word) for word in run("fincore", "-nbo", "RES", *map(str, files)).split())
        disk = sum(path.stat().st_blocks * 512 for path in files)
        series[f"{kind}_cache"], series[f"{kind}_disk"] = [cached / 2**20], [disk / 2**20]
        run("systemctl", "stop", "hypeman-vm-*.service")
        for name in names:
            (_VM_DIR / f"{name}.yaml").unlink()
        run("systemctl", "reload", "hypemand.service")
        run("hypemanctl", "rm", "--force", *names)
        run("hypemanctl", "image", "prune", "--all")
    return series


def _make_root(root: Path, number: int) -> Path:
    """A busybox with something to read, and with something that makes it another image than the others."""
    for name in ("bin", "opt", "etc"):
        (root / name).mkdir(parents=True)
    shutil.copy2("/bin/busybox", root / "bin/busybox")
    for applet in ("sh", "cat", "sleep"):
        (root / "bin" / applet).symlink_to("busybox")
    (root / "etc/number").write_text(f"{number}\n")
    (root / "opt/read").write_bytes(os.urandom(_READ_SIZE))
    return root


def _wait_until_read(names: list[str]) -> None:
    """Until each VM's program sleeps: it has read all."""
    deadline = time.monotonic() + 120
    for name in names:
        while "sleep 100000" not in run("hypemanctl", "exec", name, "--", "/bin/busybox", "ps"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{name} still reads")
            time.sleep(0.1)
