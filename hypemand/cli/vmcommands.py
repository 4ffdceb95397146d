# SPDX-License-Identifier: Apache-2.0
"""Commands for VMs: show them, start and stop them, and run programs in them."""

from __future__ import annotations

from hypemand.cli.exitcode import ExitCode
from hypemand.cli.options import (
    COMPRESS_OPTIONS,
    EVENT_KINDS,
    FORK_OPTIONS,
    JSON,
    PULLS,
    SHOWS,
    SHOWS_EVENTS,
    SHOWS_TABLE,
    SOURCES,
)
from hypemand.cli.spec import Argument, Command, Completes, Kind, Option

_ONE_VM = Argument("NAME", "the VM: name, id, or unique prefix of the id", completes=Completes.VM)
_VMS = Argument("NAME", "the VMs: names, ids, or unique prefixes of ids", count="+", completes=Completes.VM)
_VMS_OR_ALL = Argument("NAME", "the VMs (default: all)", count="*", completes=Completes.VM)
_COMMAND = Argument("COMMAND", "program and its arguments", count="...")
_ENV = Option(
    ("-e", "--env"),
    "set an environment variable; KEY alone copies the value from hypemanctl's environment",
    "KEY[=VALUE]",
    repeat=True,
)
_WORKDIR = Option(("-w", "--workdir"), "working directory of the program", "DIR")
_USER = Option(("-u", "--user"), "run the program as this user: user, uid, user:group or uid:gid", "USER")
_WAIT = Option(("--wait",), "wait until the VM is Running")
_PULL = Option(
    ("--pull",),
    "when to pull the image (default: the VM's image_pull)",
    "WHEN",
    choices=PULLS,
)
_TIMEOUT_RUNNING = Option(
    ("--timeout",),
    "with --wait: give up after this time (default: the VM's boot_timeout plus 15 s)",
    "TIME",
    Kind.SPAN,
)
_TIMEOUT_STOP = Option(
    ("--timeout",),
    "kill the VM if it has not stopped after this time (default: the VM's stop_timeout)",
    "TIME",
    Kind.SPAN,
)

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
    _PULL,
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


INSPECT = (
    Command(
        ("list",),
        "list VMs",
        "show:list_vms",
        arguments=(_VMS_OR_ALL,),
        options=(
            Option(("-q", "--quiet"), "print names only"),
            Option(("--no-legend",), "do not print the header line"),
            Option(
                ("--state",),
                "list only VMs in this state",
                "STATE",
                Kind.STATE,
                repeat=True,
                completes=Completes.STATE,
            ),
            Option(
                ("--filter",),
                "list only VMs with tag=KEY[=VALUE], state=STATE or image=IMAGE",
                "FILTER",
                Kind.FILTER,
                repeat=True,
            ),
            *SHOWS_TABLE,
        ),
    ),
    Command(
        ("status",),
        "show the state of VMs and the last lines of their consoles",
        "show:show_status",
        arguments=(_VMS_OR_ALL,),
        options=(
            Option(("-n", "--lines"), "number of console lines to show (default: 10)", "N", Kind.COUNT),
            *SHOWS,
        ),
    ),
    Command(
        ("top",),
        "show CPU and memory usage of VMs, updated continuously",
        "top:top",
        "Press Ctrl-C to exit. When standard output is not a terminal, usage is shown once.",
        arguments=(_VMS_OR_ALL,),
        options=(
            Option(("-d", "--delay"), "update interval (default: 2 s)", "TIME", Kind.SPAN),
            Option(("-n", "--count"), "exit after N updates", "N", Kind.COUNT),
            Option(("--once",), "exit after one update, same as --count 1"),
            *SHOWS,
        ),
    ),
    Command(
        ("show",),
        "show all properties of a VM as key=value lines",
        "show:show_properties",
        arguments=(_ONE_VM,),
        options=(
            Option(("-p", "--property"), "show only this property and those below it", "KEY", repeat=True),
            Option(("--value",), "print values without keys"),
            Option(("--definition",), "print the definition as YAML, as in a definition file"),
            *SHOWS,
        ),
    ),
    Command(
        ("diff",),
        "show what a VM runs with, compared with its definition",
        "definition:diff",
        "Output and exit status are those of diff -u: 1 if there are differences.",
        arguments=(_ONE_VM,),
        options=SHOWS,
        failure=ExitCode.OWN_FAILURE,
    ),
    Command(
        ("edit",),
        "edit the definition file of a VM, check it, and reload",
        "edit:edit",
        "The editor is $EDITOR, else $VISUAL. The file is only replaced if the new text is valid.",
        arguments=(
            Argument("NAME", "the VM, or PREFIX@ of a template, or PREFIX@INSTANCE", completes=Completes.VM),
        ),
    ),
    Command(
        ("port",),
        "list the published ports of a VM",
        "port:list_ports",
        "Only those that lead to the VM now: none while it does not run.",
        arguments=(
            _ONE_VM,
            Argument("PORT", "only this port of the VM, such as 80 or 53/udp", count="?"),
        ),
        options=SHOWS,
    ),
)

LIFECYCLE = (
    Command(
        ("start",),
        "start VMs",
        "lifecycle:start",
        "Returns while the VM is Initializing, unless --wait is given. A VM in Standby is restored.",
        arguments=(_VMS,),
        options=(
            _WAIT,
            _TIMEOUT_RUNNING,
            _PULL,
            Option(("--cold",), "boot a VM in Standby, and discard its saved memory"),
            JSON,
        ),
    ),
    Command(
        ("stop",),
        "stop VMs gracefully",
        "lifecycle:stop",
        arguments=(_VMS,),
        options=(_TIMEOUT_STOP, Option(("--result",), "exit with 1 if the last run of a VM failed"), JSON),
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
        "send a signal to the VMM (QEMU) of VMs",
        "lifecycle:kill",
        arguments=(_VMS,),
        options=(
            Option(
                ("-s", "--signal"),
                "signal name or number (default: KILL)",
                "SIGNAL",
                Kind.SIGNAL,
                completes=Completes.SIGNAL,
            ),
            JSON,
        ),
    ),
    Command(
        ("pause",),
        "pause VMs",
        "lifecycle:pause",
        "The virtual CPUs are halted; memory and all resources are kept until resume.",
        arguments=(_VMS,),
        options=(JSON,),
    ),
    Command(
        ("resume",),
        "resume paused VMs",
        "lifecycle:resume",
        "A VM that was paused because of a full disk retries the write, and resumes by itself when there "
        "is space.",
        arguments=(_VMS,),
        options=(JSON,),
    ),
    Command(
        ("standby",),
        "save the memory of running VMs to disk, and end their VMMs",
        "lifecycle:standby",
        "A VM in Standby keeps its disk, addresses and programs, and uses no memory. restore or start "
        "resumes it. If a VM cannot be saved, it continues to run.",
        arguments=(_VMS,),
        options=(*COMPRESS_OPTIONS, JSON),
    ),
    Command(
        ("restore",),
        "resume VMs in Standby",
        "lifecycle:restore",
        "Returns while the VM is Initializing, unless --wait is given. If a VM cannot be restored, it stays "
        "in Standby; start --cold boots it instead.",
        arguments=(_VMS,),
        options=(_WAIT, _TIMEOUT_RUNNING, JSON),
    ),
    Command(
        ("set",),
        "change limits of a running VM",
        "limits:set_limits",
        "KEY is memory, cpu_limit, disk_io.read, disk_io.write, disk_io.total or disk_io.iops, with a value "
        "as in a definition, or none for what the VM was started with. Without KEY, shows the limits.",
        arguments=(
            _ONE_VM,
            Argument(
                "KEY=VALUE", "limits to change, until the VM is started again", count="*", attribute="change"
            ),
        ),
        options=(JSON,),
    ),
    Command(
        ("rename",),
        "give a stopped VM another name",
        "lifecycle:rename",
        "The VM keeps its data, addresses and history. Its units have the new name: enable them again.",
        arguments=(_ONE_VM, Argument("NEW", "the new name of the VM")),
        options=(JSON,),
    ),
    Command(
        ("fork",),
        "make a VM that begins as another one is",
        "snapshot:fork_vm",
        "Of a stopped VM: with its disk. Of a VM in Standby, or of a Running one with --from-running: also "
        "with its memory. Name, addresses, host name, machine id and random numbers are its own.",
        arguments=(_ONE_VM, Argument("NEW", "the name of the fork")),
        options=(
            Option(("--from-running",), "the VM may be Running; it is paused meanwhile"),
            *FORK_OPTIONS,
        ),
    ),
    Command(
        ("rm",),
        "remove VMs and their data",
        "lifecycle:remove",
        arguments=(_VMS,),
        options=(
            Option(("-f", "--force"), "kill a running VM first; do not fail if the VM does not exist"),
            JSON,
        ),
    ),
    Command(
        ("wait",),
        "wait until a VM reaches a state",
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
        arguments=(_ONE_VM,),
        options=(Option(("--no-stdin",), "show output only"),),
        passes_exit_code=True,
    ),
    Command(
        ("exec",),
        "run a command in a Running VM",
        "execute:execute",
        "Signals are forwarded. With -- before the command, options may follow the name.",
        arguments=(_ONE_VM, _COMMAND),
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
        arguments=(_ONE_VM,),
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
        arguments=(_VMS,),
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
        arguments=(_VMS_OR_ALL,),
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
        arguments=(_ONE_VM,),
        options=(Option(("--no-legend",), "do not print the header line"), *SHOWS_TABLE),
    ),
    Command(
        ("analyze",),
        "show a timeline of the last boot",
        "analyze:show_text",
        arguments=(_ONE_VM,),
        options=SHOWS,
    ),
    Command(
        ("analyze", "plot"),
        "print the timeline of the last boot as SVG",
        "analyze:show_plot",
        arguments=(_ONE_VM,),
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
            _ONE_VM,
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
