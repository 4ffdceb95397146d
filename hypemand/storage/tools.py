# SPDX-License-Identifier: Apache-2.0
"""Runs skopeo, umoci, mkfs.erofs and zstd on untrusted data.

In the daemon each run is a transient unit of its own with no more rights than it needs and limits on what it
takes. Whoever executes code in one of them, by a fault of the tool, gets no further than its work:

- what talks to a registry has a user of its own, which no other pull has, no privileges, and sees of our
  folders only the one that it writes to. Link-local addresses, where clouds keep what a host is trusted with,
  are closed;
- what unpacks layers is uid 0, since it keeps owners, with few capabilities and in a root that has /usr and
  the folders of its work, and nothing else: no /run, and so no socket of PID 1 or D-Bus. It can make no
  socket of any kind, and signal no process;
- what compresses the memory of a guest is the user of the VM, has no privileges, and sees /usr and two open
  files.
"""

from __future__ import annotations

import grp
import os
import re
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Protocol

from hypemand.atomic import write_all
from hypemand.errors import HostNotReady, WrongState
from hypemand.run import ENVIRONMENT, CommandFailed, CommandMissing, Completed, run
from hypemand.sandbox import OWN_ROOT, derive_sandbox
from hypemand.storage.unitrun import run_in_unit, stop_units
from hypemand.unitnames import image_unit_name, key_of_image_unit

# Has the folder that a fetch writes to, and that no other fetch sees.
FETCH_GROUP = "hypemand-fetch"
CREDENTIAL = "auth.json"
_LIST_TIMEOUT = 60.0
# beyond our own deadline, for the case that we are not there to keep it
_UNIT_MARGIN = 30
_PROXIES = re.compile(r"(https?|no|all)_proxy", re.IGNORECASE)

_LIMITS = (
    "MemoryMax=2G",
    "TasksMax=256",
    # VMs come first
    "CPUWeight=20",
    "IOWeight=20",
    "OOMScoreAdjust=500",
    "TimeoutStopSec=10s",
)
_FETCH = derive_sandbox(
    # a user for this one unit: another pull's process could read its credentials and end it
    "DynamicUser=yes",
    f"SupplementaryGroups={FETCH_GROUP}",
    "ProtectSystem=strict",
    "ProtectHome=yes",
    "PrivateTmp=yes",
    # netlink: how the C library finds out which addresses the host has
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
    # the last: the metadata service of one cloud, which has no link-local address
    "IPAddressDeny=169.254.0.0/16 fe80::/64 fd00:ec2::254",
    "UMask=0022",
    *_LIMITS,
    without={"PrivateNetwork", "RestrictAddressFamilies", "UMask"},
)
_BUILD = derive_sandbox(
    "CapabilityBoundingSet=CAP_CHOWN CAP_FOWNER CAP_DAC_OVERRIDE CAP_FSETID CAP_MKNOD CAP_SETFCAP",
    *OWN_ROOT,
    # not PrivateDevices=yes, with which no device node could be made; so /dev is the host's
    "ReadOnlyPaths=/dev",
    "InaccessiblePaths=-/dev/pts -/dev/shm -/dev/mqueue -/dev/hugepages -/dev/net",
    # hidepid= hides nothing from group 0, and uid 0 may write to files of what else root runs (oom_score_adj)
    "ReadOnlyPaths=/proc",
    # device nodes are made, and none is opened
    "DevicePolicy=closed",
    "DeviceAllow=char-* m",
    "DeviceAllow=block-* m",
    "SystemCallFilter=~@mount @keyring @ipc",
    "SystemCallFilter=@chown mknod mknodat pipe pipe2",
    # no socket at all
    "SystemCallFilter=~@network-io",
    # as uid 0 it could signal whatever root runs, PID 1 too; the runtime of Go does without signals to itself
    "SystemCallFilter=~kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_open pidfd_send_signal",
    "SystemCallFilter=~process_vm_readv process_vm_writev process_madvise kcmp prlimit64",
    "UMask=0022",
    *_LIMITS,
    # it keeps set-user-ID bits
    without={"CapabilityBoundingSet", "PrivateDevices", "ProtectProc", "RestrictSUIDSGID", "UMask"},
)
_FILTER = derive_sandbox(*OWN_ROOT, "SystemCallFilter=~@network-io", *_LIMITS)
# when nothing else wants the CPU and the disk
_IDLE = ("CPUWeight=1", "IOWeight=1", "CPUSchedulingPolicy=idle", "IOSchedulingClass=idle", "Nice=19")
# The runtime of Go interrupts its own threads by signals, unless told not to.
_GO = {"GODEBUG": "asyncpreemptoff=1"}


@dataclass(frozen=True, slots=True)
class RegistryAuth:
    """A file with what a registry is shown: as containers-auth.json(5) has it, or a bearer token alone."""

    path: Path
    is_token: bool = False


# With a file and an option before a command: runs that with the option, whose value is in the file. So the
# token is in no property of a unit, which everybody can read, and in no journal.
_ADD_OPTION = 'file=$1 option=$2; shift 2; token=$(cat "$file") && exec "$@" "$option=$token"'


def _add_token(argv: Sequence[str], option: str, file: str) -> list[str]:
    return ["sh", "-c", _ADD_OPTION, "sh", file, option, *argv]


class Tools(Protocol):
    """Runs programs for one piece of work, each to its end; only `folder` is written to. Raises what
    `hypemand.run.run` raises."""

    def fetch(
        self,
        argv: Sequence[str],
        *,
        folder: Path,
        timeout: float,
        auth: RegistryAuth | None = None,
        token_option: str = "",
    ) -> Completed:
        """One that talks to registries, with `auth`; `token_option`: its option for a bearer token."""

    def build(
        self,
        argv: Sequence[str],
        *,
        folder: Path,
        timeout: float,
        env: Mapping[str, str] | None = None,
        readable: Sequence[Path] = (),
    ) -> Completed:
        """One that keeps owners and makes devices, and knows no network. `readable`: what it reads beside
        `folder`."""

    def filter(
        self,
        argv: Sequence[str],
        through: tuple[int, int],
        *,
        user: int,
        size: int,
        timeout: float,
        idle: bool = False,
    ) -> None:
        """One that reads an open file and writes at most `size` bytes to another, as that `user`. `idle`:
        when nothing else wants the CPU and the disk."""

    def cancel(self) -> None:
        """End what runs, called from another thread; what would come after it is not begun."""

    def check(self) -> None:
        """Raise WrongState if this was cancelled."""


def _environment(folder: Path, env: Mapping[str, str] | None = None) -> dict[str, str]:
    return {"TMPDIR": os.fspath(folder), "HOME": os.fspath(folder), **(env or {})}


def _proxies() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if _PROXIES.fullmatch(key)}


class DirectTools:
    """Children of this process, with all its rights. One that runs when they are cancelled runs on."""

    def __init__(self) -> None:
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """See `Tools`."""
        self._cancelled.set()

    def check(self) -> None:
        """See `Tools`."""
        _check(self._cancelled)

    def fetch(
        self,
        argv: Sequence[str],
        *,
        folder: Path,
        timeout: float,
        auth: RegistryAuth | None = None,
        token_option: str = "",
    ) -> Completed:
        """See `Tools`."""
        _check(self._cancelled)
        env = {}
        if auth is not None and auth.is_token:
            argv = _add_token(argv, token_option, os.fspath(auth.path))
        elif auth is not None:
            env["REGISTRY_AUTH_FILE"] = os.fspath(auth.path)
        return run(argv, timeout=timeout, env={**_proxies(), **_environment(folder, env)})

    def build(
        self,
        argv: Sequence[str],
        *,
        folder: Path,
        timeout: float,
        env: Mapping[str, str] | None = None,
        readable: Sequence[Path] = (),
    ) -> Completed:
        """See `Tools`."""
        _check(self._cancelled)
        return run(argv, timeout=timeout, env=_environment(folder, env))

    def filter(
        self,
        argv: Sequence[str],
        through: tuple[int, int],
        *,
        user: int,
        size: int,
        timeout: float,
        idle: bool = False,
    ) -> None:
        """See `Tools`. It writes as much as it will."""
        _check(self._cancelled)
        run(argv, timeout=timeout, through=through)


class UnitTools:
    """Transient units. `key` names the work that they are for, in [a-z0-9]; `hidden`: our own folder, of
    which a fetch sees nothing but where it writes."""

    def __init__(self, key: str, hidden: Path) -> None:
        self.unit = image_unit_name(key)
        self._hidden = hidden
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """See `Tools`."""
        self._cancelled.set()
        stop_units(self.unit)

    def check(self) -> None:
        """See `Tools`."""
        _check(self._cancelled)

    def fetch(
        self,
        argv: Sequence[str],
        *,
        folder: Path,
        timeout: float,
        auth: RegistryAuth | None = None,
        token_option: str = "",
    ) -> Completed:
        """See `Tools`."""
        os.chown(folder, 0, _find_fetch_group())
        folder.chmod(0o770)
        bound = escape_path(folder)
        properties = [*_FETCH, f"TemporaryFileSystem={escape_path(self._hidden)}", f"BindPaths={bound}"]
        properties += [f"IPAddressAllow={address}" for address in find_link_local_servers()]
        env = _environment(folder)
        if auth is not None:
            properties.append(f"LoadCredential={CREDENTIAL}:{auth.path}")
            file = f"/run/credentials/{self.unit}/{CREDENTIAL}"
            if auth.is_token:
                argv = _add_token(argv, token_option, file)
            else:
                env["REGISTRY_AUTH_FILE"] = file
        with _secret_environment(_proxies()) as file:
            properties += [f"EnvironmentFile={file}"] if file else []
            return self._run(argv, properties, timeout, env)

    def build(
        self,
        argv: Sequence[str],
        *,
        folder: Path,
        timeout: float,
        env: Mapping[str, str] | None = None,
        readable: Sequence[Path] = (),
    ) -> Completed:
        """See `Tools`."""
        properties = [*_BUILD, f"BindPaths={escape_path(folder)}", f"ReadWritePaths=+{escape_path(folder)}"]
        properties += [
            f"BindReadOnlyPaths={escape_path(path)}" for path in readable if not path.is_relative_to(folder)
        ]
        return self._run(argv, properties, timeout, _environment(folder, {**_GO, **(env or {})}))

    def filter(
        self,
        argv: Sequence[str],
        through: tuple[int, int],
        *,
        user: int,
        size: int,
        timeout: float,
        idle: bool = False,
    ) -> None:
        """See `Tools`."""
        own = (f"User={user}", f"Group={user}", f"LimitFSIZE={size}")
        self._run(argv, [*_FILTER, *own, *(_IDLE if idle else ())], timeout, {}, through)

    def _run(
        self,
        argv: Sequence[str],
        properties: Sequence[str],
        timeout: float,
        env: Mapping[str, str],
        through: tuple[int, int] | None = None,
    ) -> Completed:
        # a path of its own: systemd-run would look for it with our eyes
        program = shutil.which(argv[0], path=ENVIRONMENT["PATH"])
        if program is None:
            raise CommandMissing(argv[0], "it is not there")
        _check(self._cancelled)
        try:
            done = run_in_unit(
                self.unit,
                [program, *argv[1:]],
                [*properties, f"RuntimeMaxSec={round(timeout) + _UNIT_MARGIN}"],
                description="Image for hypemand" if through is None else "Saved memory for hypemand",
                timeout=timeout,
                env={**ENVIRONMENT, **env},
                through=through,
            )
        except CommandFailed as error:
            _check(self._cancelled)
            raise CommandFailed(replace(error.result, argv=tuple(argv))) from None
        return replace(done, argv=tuple(argv))


def _check(cancelled: threading.Event) -> None:
    if cancelled.is_set():
        raise WrongState("this was cancelled", hint="start it again")


def _find_fetch_group() -> int:
    try:
        return grp.getgrnam(FETCH_GROUP).gr_gid
    except KeyError:
        raise HostNotReady(
            f"there is no group {FETCH_GROUP}, which is needed to pull images",
            hint="create it with systemd-sysusers",
        ) from None


@contextmanager
def _secret_environment(variables: Mapping[str, str]) -> Iterator[str]:
    """A file for EnvironmentFile=, in memory; "" for none. A proxy's address may have a password in it, which
    anybody could read from a command line, or from Environment= of a unit."""
    if not variables:
        yield ""
        return
    fd = os.memfd_create("hypemand-environment", os.MFD_CLOEXEC)
    try:
        lines = (f"{key}={_quote_value(value)}\n" for key, value in variables.items() if "\n" not in value)
        write_all(fd, "".join(lines).encode(errors="surrogateescape"))
        yield f"/proc/{os.getpid()}/fd/{fd}"
    finally:
        os.close(fd)


def _quote_value(value: str) -> str:
    """As EnvironmentFile= reads it (systemd.exec(5))."""
    return '"' + re.sub(r'([\\"$`])', r"\\\1", value) + '"'


def find_link_local_servers(path: Path = Path("/etc/resolv.conf")) -> list[str]:
    """Name servers of the host that have a link-local address: without them no registry has one."""
    try:
        words = [line.split() for line in path.read_text(errors="replace").splitlines()]
    except OSError:
        return []
    found = []
    for server in (line[1] for line in words if len(line) > 1 and line[0] == "nameserver"):
        with suppress(ValueError):
            address = ip_address(server.partition("%")[0])
            found += [str(address)] if address.is_link_local else []
    return found


def escape_path(path: Path) -> str:
    """A path as a setting of a unit has it: quoted, and with nothing in it that systemd would read."""
    text = os.fspath(path).replace("%", "%%").replace("\\", "\\\\").replace('"', '\\"').replace(":", "\\\\:")
    return f'"{text}"'


def stop_foreign_units(own: str) -> None:
    """Stop units that fetch or build and are not of the daemon whose keys begin with `own`."""
    argv = ["systemctl", "list-units", "--all", "--plain", "--no-legend", "--full", image_unit_name("*")]
    lines = run(argv, timeout=_LIST_TIMEOUT).stdout.decode(errors="replace").splitlines()
    units = [line.split()[0] for line in lines if line.split()]
    foreign = [unit for unit in units if not (key_of_image_unit(unit) or "").startswith(own)]
    if foreign:
        stop_units(*foreign)
