# SPDX-License-Identifier: Apache-2.0
"""The commands on VMs: what there is, what happens to them, and what runs in them."""

from __future__ import annotations

from hypemand.cli.options import JSON, PULLS, SOURCES
from hypemand.cli.spec import Argument, Command, Completes, Kind, Option

_ONE_VM = Argument(
    "NAME", "the VM: its name, its id, or an unambiguous start of its id", completes=Completes.VM
)
_VMS = Argument(
    "NAME", "the VMs: names, ids, or unambiguous starts of ids", count="+", completes=Completes.VM
)
_VMS_OR_ALL = Argument("NAME", "the VMs (default: all)", count="*", completes=Completes.VM)
_COMMAND = Argument("COMMAND", "program and its arguments", count="...")
_ENV = Option(
    ("-e", "--env"),
    "set a variable for the program; KEY alone takes its value from here",
    "KEY[=VALUE]",
    repeat=True,
)
_WORKDIR = Option(("-w", "--workdir"), "working directory of the program", "DIR")
_USER = Option(("-u", "--user"), "user of the program: user, uid, user:group or uid:gid", "USER")
_WAIT = Option(("--wait",), "wait until Running")
_PULL = Option(
    ("--pull",),
    "when to ask the registry for the image (default: as the VM's image_pull says)",
    "WHEN",
    choices=PULLS,
)
_TIMEOUT_RUNNING = Option(
    ("--timeout",),
    "with --wait: give up after this time (default: the VM's boot timeout and 15 s)",
    "TIME",
    Kind.SPAN,
)
_TIMEOUT_STOP = Option(
    ("--timeout",),
    "time for the guest to end by itself, then it is killed (default: the VM's stop_timeout)",
    "TIME",
    Kind.SPAN,
)

# Beside those of the keys, see keyoptions.
_RUN_OPTIONS = (
    Option(("--name",), "name of the VM (default: one is made up)", "NAME"),
    Option(("-d", "--detach"), "print the name and leave the VM running"),
    Option(("--rm",), "remove the VM when the program has ended"),
    _ENV,
    Option(("--entrypoint",), "program to run instead of the image's entrypoint", "PROGRAM"),
    _PULL,
    Option(
        ("--network",),
        "network that the VM is on, or none (default: as the host's configuration says)",
        "NETWORK",
        completes=Completes.NETWORK,
    ),
    Option(
        ("-p", "--publish"),
        "let a port of this host lead to one of the VM's, as 8080:80 or 53:53/udp",
        "PORTS",
        repeat=True,
    ),
    Option(("--json",), "with -d: print the instance as JSON"),
)


def _list_key_options() -> tuple[Option, ...]:
    # Read where they are needed, since every command starts by this table.
    from hypemand.cli.keyoptions import list_key_options

    return list_key_options()


INSPECT = (
    Command(
        ("list",),
        "list VMs",
        "show:list_vms",
        arguments=(_VMS_OR_ALL,),
        options=(
            Option(("-q", "--quiet"), "names only"),
            Option(("--no-legend",), "no header line"),
            Option(
                ("--state",),
                "only VMs in this state",
                "STATE",
                Kind.STATE,
                repeat=True,
                completes=Completes.STATE,
            ),
            JSON,
        ),
    ),
    Command(
        ("status",),
        "show what VMs do, with their last lines",
        "show:show_status",
        arguments=(_VMS_OR_ALL,),
        options=(
            Option(("-n", "--lines"), "lines of the console to show (default: 10)", "N", Kind.COUNT),
            JSON,
        ),
    ),
    Command(
        ("top",),
        "show what VMs use of the host, again and again",
        "top:top",
        "Without a terminal: once. Interrupt it to leave.",
        arguments=(_VMS_OR_ALL,),
        options=(
            Option(("-d", "--delay"), "time between two looks (default: 2 s)", "TIME", Kind.SPAN),
            Option(("-n", "--count"), "end after so many looks", "N", Kind.COUNT),
            Option(("--once",), "look once, as --count 1"),
            JSON,
        ),
    ),
    Command(
        ("show",),
        "show all properties of a VM, one key=value a line",
        "show:show_properties",
        arguments=(_ONE_VM,),
        options=(
            Option(("-p", "--property"), "only this property, or those below it", "KEY", repeat=True),
            Option(("--value",), "values without their keys"),
            JSON,
        ),
    ),
)

LIFECYCLE = (
    Command(
        ("start",),
        "start VMs",
        "lifecycle:start",
        "Comes back at once, in Initializing, unless asked to wait.",
        arguments=(_VMS,),
        options=(_WAIT, _TIMEOUT_RUNNING, _PULL, JSON),
    ),
    Command(
        ("stop",),
        "stop VMs gracefully",
        "lifecycle:stop",
        arguments=(_VMS,),
        options=(_TIMEOUT_STOP, Option(("--result",), "fail if the VM's last run has failed"), JSON),
    ),
    Command(
        ("restart",),
        "stop, then start VMs",
        "lifecycle:restart",
        arguments=(_VMS,),
        options=(_WAIT, _TIMEOUT_RUNNING, _PULL, JSON),
    ),
    Command(
        ("kill",),
        "send a signal to the VMM of VMs",
        "lifecycle:kill",
        arguments=(_VMS,),
        options=(
            Option(
                ("-s", "--signal"),
                "name or number of the signal (default: KILL)",
                "SIGNAL",
                Kind.SIGNAL,
                completes=Completes.SIGNAL,
            ),
            JSON,
        ),
    ),
    Command(
        ("pause",),
        "stop the CPUs of VMs",
        "lifecycle:pause",
        "They keep their memory and all else, and go on with resume.",
        arguments=(_VMS,),
        options=(JSON,),
    ),
    Command(
        ("resume",),
        "let paused VMs go on",
        "lifecycle:resume",
        "One that a full disk has paused tries to write again. It goes on by itself when there is space.",
        arguments=(_VMS,),
        options=(JSON,),
    ),
    Command(
        ("rm",),
        "remove VMs and their data",
        "lifecycle:remove",
        arguments=(_VMS,),
        options=(Option(("-f", "--force"), "stop a VM that runs; be content if there is none"), JSON),
    ),
    Command(
        ("wait",),
        "wait until a VM is in a state",
        "lifecycle:wait",
        arguments=(_ONE_VM,),
        options=(
            Option(
                ("--for",),
                "state to wait for (default: Running)",
                "STATE",
                Kind.STATE,
                completes=Completes.STATE,
            ),
            Option(("--timeout",), "give up after this time, or infinity (default: 60 s)", "TIME", Kind.SPAN),
            JSON,
        ),
    ),
)

PROGRAMS = (
    Command(
        ("run",),
        "create a VM, start it, follow its console, and exit as its program does",
        "run:run",
        "The first interrupt stops the VM gracefully, the second kills it.",
        arguments=(Argument("IMAGE", "image to run", completes=Completes.IMAGE), _COMMAND),
        options=_RUN_OPTIONS,
        more_options=_list_key_options,
        passes_exit_code=True,
    ),
    Command(
        ("exec",),
        "run a command in a Running VM",
        "execute:execute",
        "Options may follow the name if -- stands before the command. Signals are forwarded.",
        arguments=(_ONE_VM, _COMMAND),
        options=(
            _ENV,
            _WORKDIR,
            _USER,
            Option(("-i", "--interactive"), "pass on standard input"),
            Option(("-t", "--tty"), "give the command a terminal, of the size of ours"),
            Option(("--timeout",), "end the command after this time", "TIME", Kind.SPAN),
        ),
        passes_exit_code=True,
    ),
    Command(
        ("shell",),
        "open a shell in a Running VM",
        "execute:open_shell",
        "It is the user's login shell, else /bin/bash or /bin/sh. Off a terminal it reads commands here.",
        arguments=(_ONE_VM,),
        options=(_ENV, _WORKDIR, _USER),
        passes_exit_code=True,
    ),
    Command(
        ("cp",),
        "copy files and directories to and from a Running VM",
        "copy:copy",
        "One of the two is NAME:PATH. - is a tar archive: as SRC standard input, as DST standard output.",
        arguments=(
            Argument("SRC", "what to copy; DIR/. is the contents of DIR", completes=Completes.FILE),
            Argument("DST", "where to: a directory that is there, or the new name", completes=Completes.FILE),
        ),
        options=(
            Option(("-a", "--archive"), "keep owners, and set-user-id and the like"),
            Option(("-L", "--follow-link"), "copy what symbolic links point to"),
            JSON,
        ),
    ),
    Command(
        ("logs",),
        "show the console of a VM",
        "logs:show_logs",
        arguments=(_ONE_VM,),
        options=(
            Option(("-f", "--follow"), "go on until the VM's run has ended"),
            Option(("-n", "--lines"), "show the last N lines only (default: all of them)", "N", Kind.LINES),
            Option(("--all",), "show hypemand's own marker lines too"),
            Option(
                ("--source",),
                "app: the console; vmm: QEMU's words; hypeman: hypemand's entries (default: app)",
                "SOURCE",
                choices=SOURCES,
            ),
            Option(("--timestamps",), "time before each line"),
            Option(("--raw",), "on a terminal too, write control characters as they are"),
            Option(("--json",), "one JSON object a line: time, text, invocation_id"),
        ),
    ),
    Command(
        ("analyze",),
        "show where the time of the last boot went",
        "analyze:show_text",
        arguments=(_ONE_VM,),
        options=(JSON,),
    ),
    Command(
        ("analyze", "plot"),
        "draw the last boot as an SVG on standard output",
        "analyze:show_plot",
        arguments=(_ONE_VM,),
    ),
)
