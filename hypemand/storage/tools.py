# SPDX-License-Identifier: Apache-2.0
"""Who runs skopeo, umoci and mkfs.erofs on what others made.

In the daemon each run is a transient unit of its own with no more rights than it needs and limits on what it
takes: what talks to a registry has no privileges and sees of our folders only the one that it writes to; what
unpacks layers is root with few capabilities, no network, and writes to one folder.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from hypemand.errors import HostNotReady, WrongState
from hypemand.run import ENVIRONMENT, CommandFailed, CommandMissing, Completed, run

UNIT_PREFIX = "hypeman-image-"
FETCH_USER = "hypemand-fetch"
CREDENTIAL = "auth.json"
_STOP_TIMEOUT = 60.0
# beyond our own deadline, for the case that we are not there to keep it
_UNIT_MARGIN = 30
_PROXIES = re.compile(r"(https?|no|all)_proxy", re.IGNORECASE)

_COMMON = (
    "NoNewPrivileges=yes",
    "ProtectSystem=strict",
    "ProtectKernelTunables=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelLogs=yes",
    "ProtectControlGroups=yes",
    "ProtectClock=yes",
    "ProtectHostname=yes",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "LockPersonality=yes",
    "MemoryDenyWriteExecute=yes",
    "KeyringMode=private",
    "SystemCallArchitectures=native",
    "SystemCallErrorNumber=EPERM",
    "UMask=0022",
    "LimitCORE=0",
    "MemoryMax=2G",
    "TasksMax=256",
    # VMs come first
    "CPUWeight=20",
    "IOWeight=20",
    "OOMScoreAdjust=500",
    "TimeoutStopSec=10s",
)
_FETCH = (
    f"User={FETCH_USER}",
    f"Group={FETCH_USER}",
    "CapabilityBoundingSet=",
    "ProtectHome=yes",
    "PrivateTmp=yes",
    "PrivateDevices=yes",
    "PrivateIPC=yes",
    "ProtectProc=invisible",
    "ProcSubset=pid",
    "RestrictSUIDSGID=yes",
    # netlink: how the C library finds out which addresses the host has
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
    "SystemCallFilter=@system-service",
    "SystemCallFilter=~@privileged @resources",
)
_BUILD = (
    "CapabilityBoundingSet=CAP_CHOWN CAP_FOWNER CAP_DAC_OVERRIDE CAP_FSETID CAP_MKNOD CAP_SETFCAP",
    "ProtectHome=read-only",
    "PrivateNetwork=yes",
    "RestrictAddressFamilies=AF_UNIX",
    # device nodes are made, and none is opened
    "DevicePolicy=closed",
    "DeviceAllow=char-* m",
    "DeviceAllow=block-* m",
    "SystemCallFilter=@system-service mknod mknodat",
    "SystemCallFilter=~@swap @reboot @raw-io @module @debug @clock @obsolete @cpu-emulation @mount",
)


class Tools(Protocol):
    """Runs programs for one piece of work, each to its end; only `folder` is written to. Raises what
    `hypemand.run.run` raises."""

    def fetch(
        self, argv: Sequence[str], *, folder: Path, timeout: float, credentials: Path | None = None
    ) -> Completed:
        """One that talks to registries, with `credentials` as containers-auth.json(5) has them."""

    def build(
        self, argv: Sequence[str], *, folder: Path, timeout: float, env: Mapping[str, str] | None = None
    ) -> Completed:
        """One that keeps owners and makes devices, and knows no network."""

    def cancel(self) -> None:
        """End what runs, called from another thread; what would come after it is not begun."""


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

    def fetch(
        self, argv: Sequence[str], *, folder: Path, timeout: float, credentials: Path | None = None
    ) -> Completed:
        """See `Tools`."""
        _check(self._cancelled)
        env = {} if credentials is None else {"REGISTRY_AUTH_FILE": os.fspath(credentials)}
        return run(argv, timeout=timeout, env={**_proxies(), **_environment(folder, env)})

    def build(
        self, argv: Sequence[str], *, folder: Path, timeout: float, env: Mapping[str, str] | None = None
    ) -> Completed:
        """See `Tools`."""
        _check(self._cancelled)
        return run(argv, timeout=timeout, env=_environment(folder, env))


class UnitTools:
    """Transient units. `key` names the work that they are for, in [a-z0-9]; `hidden`: our own folder, of
    which a fetch sees nothing but where it writes."""

    def __init__(self, key: str, hidden: Path) -> None:
        self.unit = f"{UNIT_PREFIX}{key}.service"
        self._hidden = hidden
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """See `Tools`."""
        self._cancelled.set()
        stop_units(self.unit)

    def fetch(
        self, argv: Sequence[str], *, folder: Path, timeout: float, credentials: Path | None = None
    ) -> Completed:
        """See `Tools`."""
        user = _find_fetch_user()
        os.chown(folder, user.pw_uid, user.pw_gid)
        bound = escape_path(folder)
        properties = [*_FETCH, f"TemporaryFileSystem={escape_path(self._hidden)}", f"BindPaths={bound}"]
        env = {**_proxies(), **_environment(folder)}
        if credentials is not None:
            properties.append(f"LoadCredential={CREDENTIAL}:{credentials}")
            env["REGISTRY_AUTH_FILE"] = f"/run/credentials/{self.unit}/{CREDENTIAL}"
        return self._run(argv, properties, timeout, env)

    def build(
        self, argv: Sequence[str], *, folder: Path, timeout: float, env: Mapping[str, str] | None = None
    ) -> Completed:
        """See `Tools`."""
        properties = [*_BUILD, f"ReadWritePaths={escape_path(folder)}"]
        return self._run(argv, properties, timeout, _environment(folder, env))

    def _run(
        self, argv: Sequence[str], properties: Sequence[str], timeout: float, env: Mapping[str, str]
    ) -> Completed:
        words = ["systemd-run", "--quiet", "--wait", "--collect", "--pipe", "--no-ask-password"]
        words += ["--service-type=exec", f"--unit={self.unit}", "--description=Image for hypemand"]
        for setting in (*_COMMON, f"RuntimeMaxSec={round(timeout) + _UNIT_MARGIN}", *properties):
            words += ["-p", setting]
        for key, value in {**ENVIRONMENT, **env}.items():
            words.append(f"--setenv={key}={value}")
        # a path of its own: systemd-run would look for it with our eyes
        program = shutil.which(argv[0], path=ENVIRONMENT["PATH"])
        if program is None:
            raise CommandMissing(argv[0], "it is not there")
        _check(self._cancelled)
        try:
            return replace(run([*words, "--", program, *argv[1:]], timeout=timeout), argv=tuple(argv))
        except CommandFailed as error:
            _check(self._cancelled)
            raise CommandFailed(replace(error.result, argv=tuple(argv))) from None
        except BaseException:
            stop_units(self.unit)
            raise


def _check(cancelled: threading.Event) -> None:
    if cancelled.is_set():
        raise WrongState("this was cancelled", hint="begin it again")


def _find_fetch_user() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(FETCH_USER)
    except KeyError:
        raise HostNotReady(
            f"there is no user {FETCH_USER}, as which images are fetched",
            hint="it comes with the package: systemd-sysusers",
        ) from None


def escape_path(path: Path) -> str:
    """A path as a setting of a unit has it: quoted, and with nothing in it that systemd would read."""
    text = os.fspath(path).replace("%", "%%").replace("\\", "\\\\").replace('"', '\\"').replace(":", "\\\\:")
    return f'"{text}"'


def stop_units(pattern: str = f"{UNIT_PREFIX}*.service") -> None:
    """Stop units that fetch or build, and wait for that."""
    run(["systemctl", "stop", "--quiet", pattern], timeout=_STOP_TIMEOUT, ok=(0, 5))
