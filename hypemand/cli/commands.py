# SPDX-License-Identifier: Apache-2.0
"""The table of commands. The parser, the help, the completion files and the tests of the man page read it."""

from __future__ import annotations

from hypemand.cli.spec import Argument, Command, Completes, Kind, Option

STATES = ("Created", "Initializing", "Running", "Paused", "Shutdown", "Stopped", "Standby", "Unknown")
SOURCES = ("app", "vmm", "hypeman")
MODES = ("auto", "exec", "systemd")
PULLS = ("missing", "always", "never")
RESTARTS = ("no", "on-failure", "always")

SOCKET = Option(
    ("--socket",),
    "socket of hypemand's API (default: $HYPEMAN_SOCKET, else /run/hypemand/api.sock)",
    "PATH",
    completes=Completes.FILE,
)
HELP = Option(("-h", "--help"), "show this help")
VERSION = Option(("--version",), "show the version of hypemanctl")
GLOBAL_OPTIONS = (HELP, VERSION, SOCKET)
COMMON_OPTIONS = (HELP, SOCKET)

_JSON = Option(("--json",), "print one JSON document")
_ONE_VM = Argument(
    "NAME", "the VM: its name, its id, or an unambiguous start of its id", completes=Completes.VM
)
_VMS = Argument(
    "NAME", "the VMs: names, ids, or unambiguous starts of ids", count="+", completes=Completes.VM
)
_VMS_OR_ALL = Argument("NAME", "the VMs (default: all)", count="*", completes=Completes.VM)
_IMAGE = Argument("IMAGE", "name of the image", completes=Completes.IMAGE)
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
    completes=Completes.PULL,
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

_RUN_OPTIONS = (
    Option(("--name",), "name of the VM (default: one is made up)", "NAME"),
    Option(("-d", "--detach"), "print the name and leave the VM running"),
    Option(("--rm",), "remove the VM when the program has ended"),
    _ENV,
    Option(("-m", "--memory"), "memory of the guest, as 512M or 2G", "SIZE"),
    Option(("--vcpus",), "number of virtual CPUs", "N", Kind.COUNT),
    Option(("--disk",), "size of the writable layer", "SIZE"),
    _WORKDIR,
    _USER,
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
    Option(("--mode",), "how the guest runs the image", "MODE", choices=MODES, completes=Completes.MODE),
    Option(
        ("--restart",),
        "when systemd starts the VM again",
        "WHEN",
        choices=RESTARTS,
        completes=Completes.RESTART,
    ),
    Option(("--boot-timeout",), "give up a boot that is not Running by then", "TIME"),
    Option(("--stop-timeout",), "time for the guest to end by itself", "TIME"),
    Option(("--tag",), "tag of the VM", "KEY=VALUE", Kind.PAIR, repeat=True),
    Option(("--no-agent",), "start no agent: Running does not wait for it, and exec does not work"),
    Option(("--no-kernel-headers",), "set up no kernel headers in the guest"),
    Option(("--json",), "with -d: print the instance as JSON"),
)

_INSPECT = (
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
            _JSON,
        ),
    ),
    Command(
        ("status",),
        "show what VMs do, with their last lines",
        "show:show_status",
        arguments=(_VMS_OR_ALL,),
        options=(
            Option(("-n", "--lines"), "lines of the console to show (default: 10)", "N", Kind.COUNT),
            _JSON,
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
            _JSON,
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
            _JSON,
        ),
    ),
)

_LIFECYCLE = (
    Command(
        ("start",),
        "start VMs",
        "lifecycle:start",
        "Comes back at once, in Initializing, unless asked to wait.",
        arguments=(_VMS,),
        options=(_WAIT, _TIMEOUT_RUNNING, _PULL, _JSON),
    ),
    Command(
        ("stop",),
        "stop VMs gracefully",
        "lifecycle:stop",
        arguments=(_VMS,),
        options=(_TIMEOUT_STOP, Option(("--result",), "fail if the VM's last run has failed"), _JSON),
    ),
    Command(
        ("restart",),
        "stop, then start VMs",
        "lifecycle:restart",
        arguments=(_VMS,),
        options=(_WAIT, _TIMEOUT_RUNNING, _PULL, _JSON),
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
            _JSON,
        ),
    ),
    Command(
        ("rm",),
        "remove VMs and their data",
        "lifecycle:remove",
        arguments=(_VMS,),
        options=(Option(("-f", "--force"), "stop a VM that runs; be content if there is none"), _JSON),
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
            _JSON,
        ),
    ),
)

_PROGRAMS = (
    Command(
        ("run",),
        "create a VM, start it, follow its console, and exit as its program does",
        "run:run",
        "The first interrupt stops the VM gracefully, the second kills it.",
        arguments=(Argument("IMAGE", "image to run", completes=Completes.IMAGE), _COMMAND),
        options=_RUN_OPTIONS,
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
            _JSON,
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
                completes=Completes.SOURCE,
            ),
            Option(("--timestamps",), "time before each line"),
            Option(("--json",), "one JSON object a line: time, text, invocation_id"),
        ),
    ),
    Command(
        ("analyze",),
        "show where the time of the last boot went",
        "analyze:show_text",
        arguments=(_ONE_VM,),
        options=(_JSON,),
    ),
    Command(
        ("analyze", "plot"),
        "draw the last boot as an SVG on standard output",
        "analyze:show_plot",
        arguments=(_ONE_VM,),
    ),
)

_VOLUME = Argument(
    "VOLUME", "the volume: its name, its id, or an unambiguous start of its id", completes=Completes.VOLUME
)
_SIZE = Option(("--size",), "size of the volume, as 512M or 10G", "SIZE")
_VOLUME_TAG = Option(("--tag",), "tag of the volume", "KEY=VALUE", Kind.PAIR, repeat=True)

_SPACE = (
    Command(
        ("volume", "create"),
        "make an empty volume",
        "volume:create",
        arguments=(Argument("NAME", "what the volume is called"),),
        options=(_SIZE, _VOLUME_TAG, _JSON),
    ),
    Command(
        ("volume", "list"),
        "list volumes",
        "volume:list_volumes",
        options=(Option(("-q", "--quiet"), "names only"), Option(("--no-legend",), "no header line"), _JSON),
    ),
    Command(
        ("volume", "inspect"),
        "show all about a volume",
        "volume:inspect",
        arguments=(_VOLUME,),
        options=(_JSON,),
    ),
    Command(
        ("volume", "rm"),
        "remove volumes and all that is in them",
        "volume:remove",
        arguments=(Argument("VOLUME", "the volumes", count="+", completes=Completes.VOLUME),),
        options=(_JSON,),
    ),
    Command(
        ("volume", "resize"),
        "let a volume grow that no VM runs with",
        "volume:resize",
        arguments=(_VOLUME, Argument("SIZE", "its new size, as 20G")),
        options=(_JSON,),
    ),
    Command(
        ("volume", "import"),
        "make a volume of a tar archive, plain or with gzip",
        "volume:import_archive",
        arguments=(
            Argument("NAME", "what the volume is called"),
            Argument("ARCHIVE", "the archive, - for standard input", completes=Completes.FILE),
        ),
        options=(_SIZE, _VOLUME_TAG, _JSON),
    ),
    Command(
        ("volume", "export"),
        "write what is in a volume as a tar archive",
        "volume:export_archive",
        "A VM may read the volume meanwhile, but none may write to it.",
        arguments=(
            _VOLUME,
            Argument("ARCHIVE", "the new archive, - for standard output", completes=Completes.FILE),
        ),
    ),
    Command(
        ("df",),
        "show what hypemand keeps on this host's disk",
        "volume:show_space",
        options=(Option(("--no-legend",), "no header line"), _JSON),
    ),
)

_NETWORKS = (
    Command(
        ("network", "list"),
        "list networks",
        "network:list_networks",
        options=(Option(("-q", "--quiet"), "names only"), Option(("--no-legend",), "no header line"), _JSON),
    ),
    Command(
        ("network", "inspect"),
        "show all about a network, with the addresses of its VMs",
        "network:inspect",
        arguments=(Argument("NETWORK", "the network", completes=Completes.NETWORK),),
        options=(_JSON,),
    ),
)

_HOST = (
    Command(
        ("image", "list"),
        "list images",
        "image:list_images",
        options=(
            Option(("-q", "--quiet"), "names only"),
            Option(("--no-legend",), "no header line"),
            _JSON,
        ),
    ),
    Command(
        ("image", "inspect"),
        "show all about an image",
        "image:inspect",
        arguments=(_IMAGE,),
        options=(_JSON,),
    ),
    Command(
        ("image", "pull"),
        "get images from their registries, as their tags are now",
        "image:pull",
        "What is here already is not fetched again. After an interrupt a pull goes on; image rm ends it.",
        arguments=(Argument("IMAGE", "references", count="+", completes=Completes.IMAGE),),
        options=(Option(("-q", "--quiet"), "no progress"), _JSON),
    ),
    Command(
        ("image", "tag"),
        "give an image one more name",
        "image:tag",
        arguments=(_IMAGE, Argument("NAME", "the new name; another image may have had it")),
        options=(_JSON,),
    ),
    Command(
        ("image", "prune"),
        "remove images that no VM needs and no name stands for",
        "image:prune",
        options=(
            Option(("-a", "--all"), "those with names too"),
            Option(("--dry-run",), "only show what would be removed"),
            _JSON,
        ),
    ),
    Command(
        ("image", "export"),
        "write an image to an OCI archive, as skopeo and podman read it",
        "image:export",
        arguments=(
            _IMAGE,
            Argument("FILE", "archive to write; - is standard output", completes=Completes.FILE),
        ),
    ),
    Command(
        ("image", "rm"),
        "remove images",
        "image:remove",
        arguments=(Argument("IMAGE", "names of the images", count="+", completes=Completes.IMAGE),),
        options=(_JSON,),
    ),
    Command(
        ("image", "import"),
        "make an image of a directory, a tar archive or an OCI layout (root only)",
        "image:import_image",
        arguments=(
            Argument("IMAGE", "name that the image gets"),
            Argument(
                "PATH",
                "directory, tar archive or OCI layout on this host; oci:, docker-archive: or dir: before it",
                completes=Completes.FILE,
            ),
        ),
        options=(_JSON,),
    ),
    Command(
        ("token", "create"),
        "make a token for the API over TCP, and print it",
        "token:create",
        "It is shown this once; hypemand keeps a hash of it alone.",
        arguments=(Argument("NAME", "what the token is called"),),
        options=(
            Option(("--expires",), "good for this time, as 30d (default: until revoked)", "TIME", Kind.SPAN),
            Option(("--read-only",), "good for looking alone; not for exec, shell and cp"),
            _JSON,
        ),
    ),
    Command(
        ("token", "list"),
        "list tokens",
        "token:list_tokens",
        options=(Option(("--no-legend",), "no header line"), _JSON),
    ),
    Command(
        ("token", "revoke"),
        "make tokens good no more, at once",
        "token:revoke",
        arguments=(Argument("NAME", "names of the tokens", count="+"),),
        options=(_JSON,),
    ),
    Command(
        ("check",),
        "check definitions and this host; for most of it the daemon need not run",
        "check:check",
        "Without FILE: all definitions, the host configuration, and what this host offers.",
        arguments=(
            Argument(
                "FILE",
                "VM definition, or NAME of one in /etc/hypemand/vms.d, or a host configuration",
                count="*",
                completes=Completes.DEFINITION,
            ),
        ),
        options=(_JSON,),
    ),
    Command(
        ("reload",),
        "read the definitions and the configuration again",
        "host:reload",
        options=(Option(("-q", "--quiet"), "print nothing; the journal of hypemand tells of it"), _JSON),
    ),
    Command(
        ("version",), "show the versions of hypemanctl and hypemand", "host:show_version", options=(_JSON,)
    ),
)

COMMANDS: tuple[Command, ...] = (
    *_INSPECT,
    *_LIFECYCLE,
    *_PROGRAMS,
    *_SPACE,
    *_NETWORKS,
    *_HOST,
)


def find_command(words: list[str]) -> Command | None:
    """The command with the longest path that `words` begins with."""
    fitting = [c for c in COMMANDS if tuple(words[: len(c.path)]) == c.path]
    return max(fitting, key=lambda c: len(c.path), default=None)


def list_group(word: str) -> list[Command]:
    """The commands below a first word."""
    return [c for c in COMMANDS if c.path[0] == word]
