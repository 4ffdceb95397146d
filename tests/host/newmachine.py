# SPDX-License-Identifier: Apache-2.0
"""A new machine: a clean Debian root with nothing installed but `make`, for running a command of the README.

What this machine has installed cannot be seen in it: its root is a fresh copy of a base, its mounts and
processes are its own. From outside come the files that git knows of this checkout (as they are, committed or
not), the build cache, and how package clients reach their archives: configuration, variables, certificates.
Network and control groups are those of this machine.

All of it hangs on one process that ends with the one that started it, however that ends: then the kernel
kills what runs inside and drops the mounts. The directory is removed at the end, or by the next run.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.host import cgroups
from tests.host.cache import CACHE
from tests.host.command import ENVIRONMENT, kill_group, run_command
from tests.host.leftovers import HostDirectory, remove_leftovers
from tests.host.machine import JOIN
from tests.host.mirror import read_acquire_settings
from tests.host.recipe import Recipe, Suite
from tests.host.roots import DEBS, ensure_root

TOP = Path(__file__).parents[2]
CHECKOUT = "root/hypemand"
CACHE_INSIDE = Path("/var/cache/hypemand-build")
ARCHIVES = "var/cache/apt/archives"
COPY_TIMEOUT = 300.0
# From an interrupt until what runs inside is killed: hosts and networks are taken down in that time.
INTERRUPT_GRACE = 60.0

# How this machine reaches its package archives, below / and below $HOME.
SETTINGS = (
    "etc/hosts",
    "etc/resolv.conf",
    "etc/apt/auth.conf",
    "etc/apt/auth.conf.d",
    "etc/pip.conf",
    "etc/xdg/pip",
    "etc/ssl/certs/ca-certificates.crt",
    "usr/local/share/ca-certificates",
)
HOME_SETTINGS = (".config/pip", ".pip")
VARIABLES = ("CI", "TERM", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_DIR", "SSL_CERT_FILE")
VARIABLE_PREFIXES = ("PIP_",)
VARIABLE_SUFFIXES = ("_proxy", "_PROXY")

# argv: root, build cache on this machine and inside, folder to start in, then what to run. A chroot alone
# will not do: the mount namespaces of test hosts need a root that is a mount point.
ENTER = r"""
root=$1 cache=$2 inside=$3 folder=$4; shift 4
mount --bind "$root" "$root" && cd "$root" &&
mount -t proc proc proc &&
mount --rbind /sys sys &&
mount --rbind /dev dev &&
mount -t tmpfs -o mode=1777 tmpfs dev/shm &&
mount -t tmpfs -o mode=755 tmpfs run && mkdir -m 1777 run/lock &&
mkdir -p ".$inside" before && mount --bind "$cache" ".$inside" &&
pivot_root . before && cd / && umount -l /before && rmdir /before && cd "$folder" || exit 125
# the first process of a PID namespace hears the signals alone that it has asked for
trap : INT TERM
"$@"
exit $?
"""


class NewMachine:
    """One new machine, used as a context manager around run()."""

    def __init__(self, suite: Suite) -> None:
        self.suite = suite
        self._directory = HostDirectory.make(f"new-{suite}")
        self.root = self._directory.path / "root"

    def __enter__(self) -> NewMachine:
        try:
            self._make_root()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def run(self, argv: Sequence[str], environment: Mapping[str, str] = os.environ) -> int:
        """Run a command in the copy of the checkout; gives back its exit status.

        An interrupt is passed on, and what has not ended after INTERRUPT_GRACE seconds is killed.
        """
        groups = [str(group) for group in cgroups.make_group(self._directory.name)]
        unshare = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--ipc", "--pid", "--fork"]
        paths = [str(self.root), str(CACHE), str(CACHE_INSIDE), f"/{CHECKOUT}"]
        enter = ["sh", "-c", ENTER, "sh", *paths]
        process = subprocess.Popen(
            ["sh", "-c", JOIN, "sh", *groups, "--", *unshare, "--kill-child=KILL", *enter, *argv],
            stdin=subprocess.DEVNULL,
            env=derive_environment(environment),
            start_new_session=True,
        )
        try:
            return _wait(process)
        finally:
            kill_group(process)
            process.wait()

    def _make_root(self) -> None:
        base = ensure_root(Recipe(self.suite, ("make",), (), ()))
        run_command(["cp", "-a", f"{base}/.", str(self.root)], timeout=COPY_TIMEOUT)
        for name in SETTINGS:
            _copy(Path("/") / name, self.root / name)
        for name in HOME_SETTINGS:
            _copy(Path.home() / name, self.root / "root" / name)
        keep = 'APT::Keep-Downloaded-Packages "true";\n'
        (self.root / "etc/apt/apt.conf.d/99new-machine").write_text(read_acquire_settings() + keep)
        _link_packages(DEBS / self.suite, self.root / ARCHIVES)
        copy_checkout(self.root / CHECKOUT)

    def _remove(self) -> None:
        if (self.root / ARCHIVES).is_dir():
            _link_packages(self.root / ARCHIVES, DEBS / self.suite)
        cgroups.remove_group(self._directory.name)
        self._directory.remove()


def derive_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The stated environment, and of the caller's what says how package clients reach their archives."""
    stated = {key: value for key, value in ENVIRONMENT.items() if key in {"PATH", "HOME", "LANG", "TERM"}}
    passed = {
        key: value
        for key, value in environment.items()
        if key in VARIABLES or key.startswith(VARIABLE_PREFIXES) or key.endswith(VARIABLE_SUFFIXES)
    }
    return {**stated, **passed}


def copy_checkout(to: Path) -> None:
    """Copy what git knows, or would know, of this checkout, and make a repository of it."""
    git = ["git", "-c", "safe.directory=*", "-C"]
    listing = run_command(
        [*git, str(TOP), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        timeout=COPY_TIMEOUT,
    )
    names = [
        name for name in listing.raw.split(b"\0") if name and os.path.lexists(os.fsencode(TOP) + b"/" + name)
    ]
    to.mkdir(parents=True)
    tar = ["tar", "-C", str(TOP), "--null", "--files-from=-", "--create", "--file=-"]
    packed = run_command(tar, input=b"".join(name + b"\0" for name in names), timeout=COPY_TIMEOUT)
    run_command(["tar", "-C", str(to), "-x"], input=packed.raw, timeout=COPY_TIMEOUT)
    run_command([*git, str(to), "init", "--quiet"], timeout=COPY_TIMEOUT)
    run_command([*git, str(to), "add", "--all"], timeout=COPY_TIMEOUT)


def _link_packages(source: Path, target: Path) -> None:
    """Have all packages of a folder in another one too. apt holds a lock on its own while it works."""
    target.mkdir(parents=True, exist_ok=True)
    for package in source.glob("*.deb"):
        with contextlib.suppress(FileExistsError):
            (target / package.name).hardlink_to(package)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    elif source.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        shutil.copy2(source, target)


def _wait(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait()
    except KeyboardInterrupt:
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(INTERRUPT_GRACE)
        except subprocess.TimeoutExpired:
            print(f"not ended {INTERRUPT_GRACE:g} s after the interrupt: killed", file=sys.stderr)
        raise


def main() -> int:
    """Run a command in a new machine; the exit status is the command's, or 130 after an interrupt."""
    parser = argparse.ArgumentParser(prog="new-machine", description="Run a command in a clean Debian root.")
    parser.add_argument("suite", choices=[str(suite) for suite in Suite], help="the Debian release")
    parser.add_argument(
        "command", nargs=argparse.REMAINDER, help="with its arguments; run in a copy of the checkout"
    )
    options = parser.parse_args()
    if not options.command:
        parser.error("a command is missing")
    # what stops a run in order is one thing inside: an interrupt
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    remove_leftovers()
    try:
        with NewMachine(Suite(options.suite)) as machine:
            return machine.run(options.command)
    except KeyboardInterrupt:
        return 130
    finally:
        # the control groups of hosts that were killed in there
        remove_leftovers()


if __name__ == "__main__":
    sys.exit(main())
