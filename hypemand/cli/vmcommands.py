# SPDX-License-Identifier: Apache-2.0
"""Commands for VMs: show them, start and stop them."""

from __future__ import annotations

from hypemand.cli.exitcode import ExitCode
from hypemand.cli.options import (
    COMPRESS_OPTIONS,
    FORK_OPTIONS,
    JSON,
    ONE_VM,
    PULL,
    SHOWS,
    SHOWS_TABLE,
    VMS,
    VMS_OR_ALL,
)
from hypemand.cli.spec import Argument, Command, Completes, Kind, Option

_WAIT = Option(("--wait",), "wait until the VM is Running")
_TIMEOUT_RUNNING = Option(
    ("--timeout",),
    "with --wait: give up after this time (default: when the VM's boot_timeout has ended the start)",
    "TIME",
    Kind.SPAN,
)
_TIMEOUT_STOP = Option(
    ("--timeout",),
    "kill the VM if it has not stopped after this time (default: the VM's stop_timeout)",
    "TIME",
    Kind.SPAN,
)

INSPECT = (
    Command(
        ("list",),
        "list VMs",
        "show:list_vms",
        arguments=(VMS_OR_ALL,),
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
        arguments=(VMS_OR_ALL,),
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
        arguments=(VMS_OR_ALL,),
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
        arguments=(ONE_VM,),
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
        arguments=(ONE_VM,),
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
            ONE_VM,
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
        arguments=(VMS,),
        options=(
            _WAIT,
            _TIMEOUT_RUNNING,
            PULL,
            Option(("--cold",), "boot a VM in Standby, and discard its saved memory"),
            JSON,
        ),
    ),
    Command(
        ("stop",),
        "stop VMs gracefully",
        "lifecycle:stop",
        arguments=(VMS,),
        options=(_TIMEOUT_STOP, Option(("--result",), "exit with 1 if the last run of a VM failed"), JSON),
    ),
    Command(
        ("restart",),
        "stop, then start VMs",
        "lifecycle:restart",
        arguments=(VMS,),
        options=(_WAIT, _TIMEOUT_RUNNING, PULL, JSON),
    ),
    Command(
        ("kill",),
        "send a signal to the VMM (QEMU) of VMs",
        "lifecycle:kill",
        arguments=(VMS,),
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
        arguments=(VMS,),
        options=(JSON,),
    ),
    Command(
        ("resume",),
        "resume paused VMs",
        "lifecycle:resume",
        "A VM that was paused because of a full disk retries the write, and resumes by itself when there "
        "is space.",
        arguments=(VMS,),
        options=(JSON,),
    ),
    Command(
        ("standby",),
        "save the memory of running VMs to disk, and end their VMMs",
        "lifecycle:standby",
        "A VM in Standby keeps its disk, addresses and programs, and uses no memory. restore or start "
        "resumes it. If a VM cannot be saved, it continues to run.",
        arguments=(VMS,),
        options=(
            Option(
                ("--pool",),
                "move what is saved to a shared pool: a start on any host of the cluster resumes the VM",
                "POOL",
            ),
            *COMPRESS_OPTIONS,
            JSON,
        ),
    ),
    Command(
        ("restore",),
        "resume VMs in Standby",
        "lifecycle:restore",
        "Returns while the VM is Initializing, unless --wait is given. If a VM cannot be restored, it stays "
        "in Standby; start --cold boots it instead.",
        arguments=(VMS,),
        options=(_WAIT, _TIMEOUT_RUNNING, JSON),
    ),
    Command(
        ("set",),
        "change limits of a running VM",
        "limits:set_limits",
        "KEY is memory, cpu_limit, disk_io.read, disk_io.write, disk_io.total or disk_io.iops, with a value "
        "as in a definition, or none for what the VM was started with. Without KEY, shows the limits.",
        arguments=(
            ONE_VM,
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
        arguments=(ONE_VM, Argument("NEW", "the new name of the VM")),
        options=(JSON,),
    ),
    Command(
        ("fork",),
        "make a VM that begins as another one is",
        "snapshot:fork_vm",
        "Of a stopped VM: with its disk. Of a VM in Standby, or of a Running one with --from-running: also "
        "with its memory. Name, addresses, host name, machine id and random numbers are its own.",
        arguments=(ONE_VM, Argument("NEW", "the name of the fork")),
        options=(
            Option(("--from-running",), "the VM may be Running; it is paused meanwhile"),
            *FORK_OPTIONS,
        ),
    ),
    Command(
        ("rm",),
        "remove VMs and their data",
        "lifecycle:remove",
        arguments=(VMS,),
        options=(
            Option(("-f", "--force"), "kill a running VM first; do not fail if the VM does not exist"),
            JSON,
        ),
    ),
    Command(
        ("wait",),
        "wait until a VM reaches a state",
        "lifecycle:wait",
        arguments=(ONE_VM,),
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
