# SPDX-License-Identifier: Apache-2.0
"""Commands for what runs in VMs, and for VMs as archives."""

from __future__ import annotations

from hypemand.cli.options import (
    EVENT_KINDS,
    JSON,
    ONE_VM,
    PULL,
    SHOWS,
    SHOWS_EVENTS,
    SHOWS_TABLE,
    SOURCES,
    VMS,
    VMS_OR_ALL,
)
from hypemand.cli.spec import Argument, Command, Completes, Kind, Option

_COMMAND = Argument("COMMAND", "program and its arguments", count="...")
_ENV = Option(
    ("-e", "--env"),
    "set an environment variable; KEY alone copies the value from hypemanctl's environment",
    "KEY[=VALUE]",
    repeat=True,
)
_WORKDIR = Option(("-w", "--workdir"), "working directory of the program", "DIR")
_USER = Option(("-u", "--user"), "run the program as this user: user, uid, user:group or uid:gid", "USER")

# Beside those of the keys, see keyoptions.
_RUN_OPTIONS = (
    Option(("--name",), "name of the VM (default: generated)", "NAME"),
    Option(("-d", "--detach"), "run the VM in the background and print its name"),
    Option(("--rm",), "remove the VM when the program has exited"),
    _ENV,
    Option(
        ("--env-file",),
        "set the environment variables of this file, in the syntax of EnvironmentFile= of systemd",
        "FILE",
        repeat=True,
        completes=Completes.FILE,
    ),
    Option(
        ("-v", "--volume"),
        "mount a volume, or for root a directory of the host, which is always read-only",
        "NAME|DIR:PATH[:ro]",
        repeat=True,
        completes=Completes.VOLUME,
    ),
    Option(("--entrypoint",), "program to run instead of the image's entrypoint", "PROGRAM"),
    PULL,
    Option(
        ("--network",),
        "network to attach the VM to, or none (default: defaults.network of hypemand.yaml)",
        "NETWORK",
        completes=Completes.NETWORK,
    ),
    Option(
        ("-p", "--publish"),
        "publish a port of the VM on the host, such as 8080:80 or 53:53/udp",
        "PORTS",
        repeat=True,
    ),
    Option(
        ("--address",),
        "fixed IPv4 or IPv6 address of the VM in its network; one of each may be given",
        "ADDRESS",
        repeat=True,
    ),
    Option(
        ("--group",),
        "let VMs of the same network and group reach the VM, and resolve its name",
        "GROUP",
    ),
    Option(("--json",), "with -d: print the instance as JSON"),
)


def _list_key_options() -> tuple[Option, ...]:
    # Read where they are needed, since every command starts by this table.
    from hypemand.cli.keyoptions import list_key_options

    return list_key_options()


PROGRAMS = (
    Command(
        ("run",),
        "create and start a VM, follow its console, and exit with the status of its program",
        "run:run",
        "The first Ctrl-C stops the VM gracefully, the second kills it. With -it it goes to the program, and "
        "Ctrl-P Ctrl-Q leaves that running.",
        arguments=(Argument("IMAGE", "image to run", completes=Completes.IMAGE), _COMMAND),
        options=_RUN_OPTIONS,
        more_options=_list_key_options,
        passes_exit_code=True,
    ),
    Command(
        ("attach",),
        "attach to the program of a Running VM, and exit with its status",
        "attach:attach",
        "The program needs stdin or tty in its definition, or -i or -t of run. Ctrl-P Ctrl-Q detaches from "
        "a terminal, Ctrl-C from a program without one. The program goes on.",
        arguments=(ONE_VM,),
        options=(Option(("--no-stdin",), "show output only"),),
        passes_exit_code=True,
    ),
    Command(
        ("exec",),
        "run a command in a Running VM",
        "execute:execute",
        "Signals are forwarded. With -- before the command, options may follow the name.",
        arguments=(ONE_VM, _COMMAND),
        options=(
            _ENV,
            _WORKDIR,
            _USER,
            Option(("-i", "--interactive"), "forward standard input"),
            Option(("-t", "--tty"), "allocate a terminal for the command, with the size of this one"),
            Option(("--timeout",), "end the command after this time", "TIME", Kind.SPAN),
        ),
        passes_exit_code=True,
    ),
    Command(
        ("shell",),
        "open a shell in a Running VM",
        "execute:open_shell",
        "Runs the user's login shell, else /bin/bash or /bin/sh. When standard input is not a terminal, "
        "the shell reads commands from it.",
        arguments=(ONE_VM,),
        options=(_ENV, _WORKDIR, _USER),
        passes_exit_code=True,
    ),
    Command(
        ("cp",),
        "copy files and directories to and from a Running VM",
        "copy:copy",
        "Either SRC or DST is NAME:PATH. - as SRC reads a tar archive from standard input, - as DST writes "
        "one to standard output.",
        arguments=(
            Argument("SRC", "what to copy; DIR/. means the contents of DIR", completes=Completes.FILE),
            Argument("DST", "destination: an existing directory, or the new name", completes=Completes.FILE),
        ),
        options=(
            Option(("-a", "--archive"), "preserve owners and the set-user-ID, set-group-ID and sticky bits"),
            Option(("-L", "--follow-link"), "copy the targets of symbolic links"),
            JSON,
        ),
    ),
    Command(
        ("logs",),
        "show the console logs of VMs",
        "logs:show_logs",
        "Lines of several VMs are shown in the order of their time, each with the name of its VM.",
        arguments=(VMS,),
        options=(
            Option(("-f", "--follow"), "follow the log until the VM stops"),
            Option(("-n", "--lines"), "show only the last N lines (default: all)", "N", Kind.LINES),
            Option(
                ("--since",),
                "show only lines since this time: 2026-03-01T10:00, or 10min for so long ago",
                "TIME",
                Kind.SINCE,
            ),
            Option(("--all",), "include hypemand's marker lines (HYPEMAN-...)"),
            Option(
                ("--source",),
                "app: the console; vmm: messages of QEMU; hypeman: messages of hypemand (default: app)",
                "SOURCE",
                choices=SOURCES,
            ),
            Option(("--timestamps",), "show the time of each line"),
            Option(("--raw",), "do not escape control characters on a terminal"),
            Option(("--json",), "print one JSON object per line: time, text, invocation_id"),
        ),
    ),
    Command(
        ("events",),
        "show events: states, starts, failures, restarts and ends of VMs, pulls of images",
        "events:show_events",
        "The daemon keeps the last 1000 events since its start.",
        arguments=(VMS_OR_ALL,),
        options=(
            Option(("-f", "--follow"), "continue with new events"),
            Option(
                ("--since",),
                "show only events since this time: 2026-03-01T10:00, or 10min for so long ago; "
                "or after the event with this cursor",
                "TIME",
                Kind.POSITION,
            ),
            Option(("--kind",), "show only events of this kind", "KIND", repeat=True, choices=EVENT_KINDS),
            *SHOWS_EVENTS,
        ),
    ),
    Command(
        ("history",),
        "show the last runs of a VM",
        "history:show_history",
        "At most 20, the last one below: start, time to Running, end, and why it ended.",
        arguments=(ONE_VM,),
        options=(Option(("--no-legend",), "do not print the header line"), *SHOWS_TABLE),
    ),
    Command(
        ("analyze",),
        "show a timeline of the last boot",
        "analyze:show_text",
        arguments=(ONE_VM,),
        options=SHOWS,
    ),
    Command(
        ("analyze", "plot"),
        "print the timeline of the last boot as SVG",
        "analyze:show_plot",
        arguments=(ONE_VM,),
    ),
)

ARCHIVES = (
    Command(
        ("vm", "export"),
        "write a stopped VM to one file: definition, disk, and more if asked for",
        "archive:export_vm",
        "The file contains the definition with its environment, and all data of the VM: only its owner can "
        "read it.",
        arguments=(
            ONE_VM,
            Argument("FILE", "archive to write, - for standard output", completes=Completes.FILE),
        ),
        options=(
            Option(
                ("--volume",),
                "include this volume of the VM",
                "VOLUME",
                repeat=True,
                completes=Completes.VOLUME,
            ),
            Option(("--all-volumes",), "include all volumes of the VM"),
            Option(("--image",), "include the image, for a host that cannot pull it"),
        ),
    ),
    Command(
        ("vm", "import"),
        "create a stopped VM from a file of vm export, and print its name",
        "archive:import_vm",
        "The VM gets a new id, MAC address and addresses. If the file is damaged, nothing is created.",
        arguments=(Argument("FILE", "archive to read, - for standard input", completes=Completes.FILE),),
        options=(
            Option(("--name",), "name of the VM (default: its name in the archive)", "NAME"),
            Option(
                ("--keep-identity",),
                "keep the id, machine id, MAC address and addresses, for a VM that moves",
            ),
            Option(
                ("--volume",),
                "use the name NEW for the volume OLD of the archive",
                "OLD=NEW",
                Kind.PAIR,
                repeat=True,
            ),
            JSON,
        ),
    ),
)
