# SPDX-License-Identifier: Apache-2.0
"""Make the image builtin:busybox when the package is built: `python3 -m hypemand.storage.builtin OUTDIR`.

Needs a static busybox and mkfs.erofs, no rights and no network. The same busybox gives the same bytes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

from hypemand.errors import HypemandError
from hypemand.model.images import OciConfig
from hypemand.run import run
from hypemand.storage.images import ROOTFS, Image, derive_id, store_metadata
from hypemand.storage.rootfs import find_architecture, hash_file, make_erofs
from hypemand.storage.tools import DirectTools

NAME = "builtin:busybox"
FOLDER = "busybox"

_FOLDERS = {
    "bin": 0o755, "dev": 0o755, "etc": 0o755, "home": 0o755, "mnt": 0o755, "opt": 0o755, "proc": 0o755,
    "root": 0o700, "run": 0o755, "sbin": 0o755, "srv": 0o755, "sys": 0o755, "tmp": 0o1777, "usr": 0o755,
    "usr/bin": 0o755, "usr/sbin": 0o755, "var": 0o755, "var/log": 0o755, "var/tmp": 0o1777,
}  # fmt: skip
_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n",
    "etc/profile": "export PS1='\\h:\\w\\$ '\numask 022\n",
    "etc/shells": "/bin/sh\n",
}
# The guest has an init of its own, and /sbin/init is read as the wish for systemd.
_LEFT_OUT = {"bin/busybox", "sbin/init", "linuxrc"}
_GREETING = 'echo "$(hostname): busybox is up, on Linux $(uname -r)"; exec sleep infinity'


def _make_tree(root: Path, busybox: Path) -> None:
    for name, mode in _FOLDERS.items():
        (root / name).mkdir()
        (root / name).chmod(mode)
    for name, text in _FILES.items():
        (root / name).write_text(text, encoding="utf-8")
        (root / name).chmod(0o644)
    shutil.copyfile(busybox, root / "bin/busybox")
    (root / "bin/busybox").chmod(0o755)
    applets = run([os.fspath(busybox), "--list-full"], timeout=10).stdout.decode().split()
    for applet in sorted(set(applets) - _LEFT_OUT):
        path = root / applet
        if not path.exists() and path.parent.is_dir():
            path.symlink_to("/bin/busybox")


def make_builtin(out: Path, busybox: Path, epoch: str) -> Image:
    """Make the image's folder in `out`; `epoch` (seconds) is the time of all that is in it."""
    folder = out / FOLDER
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch, "root")
        root.mkdir(mode=0o755)
        _make_tree(root, busybox.resolve(strict=True))
        make_erofs(root, folder / ROOTFS, DirectTools(), epoch=epoch, all_root=True)
        architecture = find_architecture(root)
    if architecture is None:
        raise HypemandError(f"{busybox} is no program for Linux", hint="give that of busybox-static")
    (folder / ROOTFS).chmod(0o644)
    digest = hash_file(folder / ROOTFS)
    image = Image(
        name=NAME,
        id=derive_id(digest),
        digest=digest,
        architecture=architecture,
        size=(folder / ROOTFS).stat().st_size,
        created_at=float(epoch),
        source="busybox-static",
        folder=folder,
        config=OciConfig(cmd=("/bin/sh", "-c", _GREETING), working_dir="/root"),
    )
    store_metadata(folder, image)
    return image


def main(argv: list[str] | None = None) -> int:
    """Command line; gives the exit status."""
    parser = argparse.ArgumentParser(prog="hypemand.storage.builtin", description=__doc__)
    parser.add_argument("outdir", type=Path, help="folder in which the image's folder is made")
    parser.add_argument("--busybox", type=Path, default=Path("/bin/busybox"), help="a static busybox")
    options = parser.parse_args(argv)
    try:
        image = make_builtin(options.outdir, options.busybox, os.environ.get("SOURCE_DATE_EPOCH", "0"))
    except (HypemandError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{image.name} {image.digest} {image.size} bytes in {image.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
