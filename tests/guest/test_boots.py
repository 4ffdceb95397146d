# SPDX-License-Identifier: Apache-2.0
"""Real boots of the guest side, with the kernel of our packages: each module here is run as a program."""

import sys
from pathlib import Path

import pytest

from tests.host.command import run_command
from tests.host.guestbuild import GUEST, make_shared
from tests.host.lab import DIST

DEADLINE = 1800.0


@pytest.fixture(scope="session")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guest kernel, out of the package."""
    (package,) = DIST.glob("hypemand-kernel_*.deb")
    folder = tmp_path_factory.mktemp("kernel")
    run_command(["dpkg-deb", "-x", str(package), str(folder)], timeout=120)
    return folder / "usr/lib/hypemand/kernel/vmlinux"


@pytest.mark.parametrize(
    "module", ["boot_guest", "boot_setup", "boot_headers", "boot_ready", "boot_standby", "boot_warm"]
)
def test_guests_boot(module: str, kernel: Path) -> None:
    make_shared()
    make = ["make", "-C", str(GUEST), "boot-check", f"KERNEL={kernel}", f"MODULES={module}"]
    run_command([*make, f"PYTHON={sys.executable}"], timeout=DEADLINE)
