# SPDX-License-Identifier: Apache-2.0
"""The program of a VM: its definition merged with the configuration of its image, as by Docker."""

from __future__ import annotations

import posixpath
import re
import signal
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType

from hypemand.config.definition import Definition
from hypemand.config.mode import Mode
from hypemand.config.vmdef import boot_settings_of, check_systemd_mode, settings_of
from hypemand.errors import ImageNotReady, InvalidDefinition, Problem
from hypemand.model.images import OciConfig
from hypemand.protocol.configdisk import GuestConfig, GuestSecret
from hypemand.storage.images import Image

# Where the init of a machine is; whether it is systemd the guest tells, which has the VM's root. Of other
# names only those of systemd itself mean it, and what an image has as links to that.
_MACHINE_INITS = frozenset({"/sbin/init", "/usr/sbin/init", "/usr/local/sbin/init"})
# Programs that reap orphans themselves, beside those that are called …-init.
_INITS = frozenset({"init", "tini", "tini-static", "catatonit", "runit", "s6-svscan", "s6-overlay-suexec"})
NO_VARIABLES: Mapping[str, str] = MappingProxyType({})
_RTMIN, _RTMAX = 34, 64  # signal(7): what C libraries leave to programs


def parse_signal(text: str) -> int:
    """The number of a signal that is written SIGTERM, TERM, 15, SIGRTMIN+3 or RTMAX-1. Else ValueError."""
    word = text.strip().upper().removeprefix("SIG")
    if word.isascii() and word.isdigit() and 1 <= int(word) <= _RTMAX:
        return int(word)
    real_time = re.fullmatch(r"RT(MIN|MAX)(?:([+-])([0-9]{1,2}))?", word)
    if real_time:
        base = _RTMIN if real_time[1] == "MIN" else _RTMAX
        offset = int(real_time[3] or 0)
        number = base - offset if real_time[2] == "-" else base + offset
        if _RTMIN <= number <= _RTMAX:
            return number
    known = signal.Signals.__members__.get(f"SIG{word}")
    if known is None or word in ("RTMIN", "RTMAX"):
        raise ValueError(f"{text!r} is not a signal")
    return int(known)


def derive_argv(definition: Definition, config: OciConfig) -> tuple[str, ...]:
    """The program and its arguments. An entrypoint of the definition makes the image's cmd mean nothing."""
    if definition.entrypoint is not None:
        return definition.entrypoint + (definition.cmd or ())
    # one empty string: how the entrypoint of a base image is reset in a Dockerfile
    entrypoint = () if config.entrypoint == ("",) else config.entrypoint
    return entrypoint + (config.cmd if definition.cmd is None else definition.cmd)


def derive_workdir(definition: Definition, config: OciConfig) -> str | None:
    """The directory that the program starts in. A relative one of an image is below /, as for Docker."""
    if definition.workdir or not config.working_dir:
        return definition.workdir or None
    return posixpath.normpath(f"/{config.working_dir.lstrip('/')}")


def derive_env(image: Iterable[str], *others: Mapping[str, str]) -> dict[str, str]:
    """The image's variables, those of the definition in their places, then what only it has."""
    merged = {}
    for item in image:
        key, equals, value = item.partition("=")
        if key and equals:
            merged[key] = value
    for variables in others:
        merged |= variables
    return merged


def derive_mode(definition: Definition, argv: tuple[str, ...], systemd_links: Collection[str] = ()) -> Mode:
    """How the guest runs `argv`: what the definition says, else systemd mode for an init, for systemd, and
    for `systemd_links`, the paths that lead to it in the image."""
    if definition.mode is not Mode.AUTO:
        return definition.mode
    if not argv[0].startswith("/"):
        return Mode.EXEC
    path = posixpath.normpath(f"/{argv[0].lstrip('/')}")
    is_systemd = path in _MACHINE_INITS or posixpath.basename(path) == "systemd" or path in systemd_links
    return Mode.SYSTEMD if is_systemd else Mode.EXEC


def is_init(program: str) -> bool:
    """Is a program made to be PID 1, by its name? It may insist on that, as s6-overlay's /init does."""
    name = posixpath.basename(program)
    return name in _INITS or name.endswith(("-init", "_init"))


def derive_boot_settings(
    definition: Definition, mode: Mode, argv: tuple[str, ...]
) -> tuple[tuple[str, str], ...]:
    """Those of the definition, and in exec mode whether there is an init beside the program."""
    settings = boot_settings_of(definition)
    if mode is Mode.SYSTEMD:
        check_systemd_mode(definition)
    elif definition.init is None and not is_init(argv[0]):
        settings = (*settings, ("init", "1"))
    return settings


def resolve_program(
    definition: Definition, image: Image, env_files: Mapping[str, str] = NO_VARIABLES
) -> GuestConfig:
    """The guest's configuration. InvalidDefinition if there is nothing to run. `env_files`: the variables of
    the definition's environment files."""
    argv = derive_argv(definition, image.config)
    if not argv or not argv[0]:
        what = f"there is no program to run: neither the VM nor its image {image.name} specifies one"
        hint = 'set one, for example cmd: ["/bin/sh", "-c", "echo hello"]'
        raise InvalidDefinition([Problem("", 0, 0, "cmd", what, hint)])
    try:
        stop_signal = parse_signal(image.config.stop_signal or "SIGTERM")
    except ValueError as error:
        raise ImageNotReady(f"the image {image.name} cannot be used: its StopSignal {error}") from error
    mode = derive_mode(definition, argv, image.systemd_links)
    terminal = ("TERM=xterm",) if definition.tty else ()
    return GuestConfig(
        name=definition.name,
        mode=mode,
        argv=argv,
        env=derive_env((*terminal, *image.config.env), env_files, definition.env),
        workdir=derive_workdir(definition, image.config),
        user=definition.user or image.config.user or None,
        stop_signal=stop_signal,
        agent=definition.guest_agent,
        headers=definition.wants_headers,
        settings=settings_of(definition),
        ready=definition.ready,
        boot_settings=derive_boot_settings(definition, mode, argv),
        files=bool(definition.files),
        secrets=tuple(GuestSecret(one.name, one.mode, one.owner) for one in definition.secrets),
    )
