# SPDX-License-Identifier: Apache-2.0
"""Commands for volumes, networks, images, tokens and the host."""

from __future__ import annotations

from dataclasses import replace

from hypemand.cli.exitcode import ExitCode
from hypemand.cli.options import (
    CLUSTER_TOOLS,
    COMPRESS_OPTIONS,
    FORK_OPTIONS,
    JSON,
    SCOPES,
    SHOWS,
    SHOWS_TABLE,
    SNAPSHOT_KINDS,
    SNAPSHOT_TARGETS,
    WAITS,
)
from hypemand.cli.spec import Argument, Command, Completes, Kind, Option

_VOLUME = Argument("VOLUME", "the volume: name, id, or unique prefix of the id", completes=Completes.VOLUME)
_VM = Argument("NAME", "the VM: name, id, or unique prefix of the id", completes=Completes.VM)
_SNAPSHOTS = "snapshot"
_CLUSTER = "cluster"
_SOURCE = replace(_VM, attribute="vm")
_SNAPSHOT = Argument(
    "SNAPSHOT",
    "the snapshot: id, unique prefix of the id, or a name that only one snapshot has",
    completes=Completes.SNAPSHOT,
)
_SIZE = Option(("--size",), "size of the volume, such as 512M or 10G (default: 10G)", "SIZE")
_VOLUME_TAG = Option(("--tag",), "add a tag to the volume", "KEY=VALUE", Kind.PAIR, repeat=True)

SPACE = (
    Command(
        ("volume", "create"),
        "create an empty volume",
        "volume:create",
        arguments=(Argument("NAME", "name of the volume; POOL/NAME in a pool of the host"),),
        options=(
            _SIZE,
            _VOLUME_TAG,
            Option(("--owner",), "owner of the volume's root directory", "UID:GID"),
            Option(("--mode",), "mode of the volume's root directory, such as 0750", "MODE"),
            JSON,
        ),
    ),
    Command(
        ("volume", "list"),
        "list volumes",
        "volume:list_volumes",
        options=(
            Option(("-q", "--quiet"), "print names only"),
            Option(("--no-legend",), "do not print the header line"),
            *SHOWS_TABLE,
        ),
    ),
    Command(
        ("volume", "inspect"),
        "show the details of a volume",
        "volume:inspect",
        arguments=(_VOLUME,),
        options=SHOWS,
    ),
    Command(
        ("volume", "rm"),
        "remove volumes and their data",
        "volume:remove",
        arguments=(Argument("VOLUME", "the volumes", count="+", completes=Completes.VOLUME),),
        options=(JSON,),
    ),
    Command(
        ("volume", "attach"),
        "attach a volume to a stopped VM",
        "volume:attach",
        "Only for VMs that were created with run or the API; the definition file of other VMs has volumes.",
        arguments=(
            _VM,
            _VOLUME,
            Argument("PATH", "absolute path in the VM"),
        ),
        options=(
            Option(("--readonly",), "mount the volume read-only"),
            Option(("--overlay",), "mount it read-only with a writable layer on the VM's disk"),
            JSON,
        ),
    ),
    Command(
        ("volume", "detach"),
        "detach a volume from a stopped VM; its data is kept",
        "volume:detach",
        arguments=(_VM, _VOLUME),
        options=(JSON,),
    ),
    Command(
        ("volume", "resize"),
        "grow a volume that is not in use",
        "volume:resize",
        arguments=(_VOLUME, Argument("SIZE", "new size, such as 20G")),
        options=(JSON,),
    ),
    Command(
        ("volume", "import"),
        "create a volume from a tar archive, optionally compressed with gzip",
        "volume:import_archive",
        arguments=(
            Argument("NAME", "name of the volume"),
            Argument("ARCHIVE", "the archive, - for standard input", completes=Completes.FILE),
        ),
        options=(_SIZE, _VOLUME_TAG, JSON),
    ),
    Command(
        ("volume", "export"),
        "write the contents of a volume to a tar archive",
        "volume:export_archive",
        "VMs may read the volume during the export, but no VM may write to it.",
        arguments=(
            _VOLUME,
            Argument("ARCHIVE", "archive to write, - for standard output", completes=Completes.FILE),
        ),
    ),
    Command(
        (_SNAPSHOTS, "create"),
        "make a snapshot of a VM, and print its id",
        "snapshot:create",
        "Of a VM that is Running or in Standby: memory, devices and disk; of a stopped VM: the disk. Volumes "
        "are not included. A VM that runs is paused meanwhile.",
        arguments=(_SOURCE,),
        options=(
            Option(("--name",), "name of the snapshot, unique for the VM", "NAME"),
            Option(
                ("--kind",),
                "Standby or Stopped (default: that of the VM's state)",
                "KIND",
                choices=SNAPSHOT_KINDS,
            ),
            Option(("--tag",), "add a tag to the snapshot", "KEY=VALUE", Kind.PAIR, repeat=True),
            Option(("--ttl",), "delete it after this time, such as 7d (default: never)", "TIME", Kind.SPAN),
            *COMPRESS_OPTIONS,
            JSON,
        ),
    ),
    Command(
        (_SNAPSHOTS, "list"),
        "list snapshots",
        "snapshot:list_snapshots",
        arguments=(replace(_SOURCE, count="?", help="only snapshots of this VM"),),
        options=(
            Option(("-q", "--quiet"), "print ids only"),
            Option(("--no-legend",), "do not print the header line"),
            *SHOWS_TABLE,
        ),
    ),
    Command(
        (_SNAPSHOTS, "show"),
        "show the details of a snapshot",
        "snapshot:show",
        arguments=(_SNAPSHOT,),
        options=SHOWS,
    ),
    Command(
        (_SNAPSHOTS, "restore"),
        "restore a VM from one of its snapshots",
        "snapshot:restore",
        "The VM must be Stopped or in Standby. What is on its disk, and in its saved memory, is lost. Its "
        "definition stays.",
        arguments=(_SNAPSHOT,),
        options=(
            Option(
                ("--state",),
                "state of the VM afterwards: Running, Standby or Stopped, which omits the memory "
                "(default: Running, for kind Stopped: Stopped)",
                "STATE",
                choices=SNAPSHOT_TARGETS,
            ),
            *WAITS,
            JSON,
        ),
    ),
    Command(
        (_SNAPSHOTS, "fork"),
        "make a VM of a snapshot",
        "snapshot:fork_snapshot",
        "The VM that the snapshot is of need not exist any more.",
        arguments=(_SNAPSHOT, Argument("NEW", "the name of the fork")),
        options=FORK_OPTIONS,
    ),
    Command(
        (_SNAPSHOTS, "rm"),
        "remove snapshots",
        "snapshot:remove",
        arguments=(replace(_SNAPSHOT, count="+", help="the snapshots"),),
        options=(JSON,),
    ),
    Command(
        (_SNAPSHOTS, "schedule", "set"),
        "have snapshots of a VM made regularly",
        "schedule:set_schedule",
        "They are made while the VM is Running, which pauses it meanwhile, or Stopped. --interval is "
        "required, and at least one of --max-count and --max-age. A changed schedule keeps its times unless "
        "the interval changes.",
        arguments=(_SOURCE,),
        options=(
            Option(("--interval",), "time between snapshots, at least 1min", "TIME", Kind.SPAN),
            Option(("--max-count",), "keep at most so many of them", "NUMBER", Kind.COUNT),
            Option(("--max-age",), "keep none that is older, such as 7d", "TIME", Kind.SPAN),
            Option(("--name-prefix",), "of their names, before the time (default: scheduled)", "PREFIX"),
            Option(("--tag",), "add a tag to them", "KEY=VALUE", Kind.PAIR, repeat=True),
            JSON,
        ),
    ),
    Command(
        (_SNAPSHOTS, "schedule", "show"),
        "show when snapshots of a VM are made",
        "schedule:show",
        arguments=(_SOURCE,),
        options=SHOWS,
    ),
    Command(
        (_SNAPSHOTS, "schedule", "rm"),
        "have no more snapshots of a VM made; those that exist are kept",
        "schedule:remove",
        arguments=(_SOURCE,),
        options=(JSON,),
    ),
    Command(
        ("df",),
        "show the disk usage of hypemand",
        "volume:show_space",
        options=(Option(("--no-legend",), "do not print the header line"), *SHOWS),
    ),
)

NETWORKS = (
    Command(
        ("network", "list"),
        "list networks",
        "network:list_networks",
        options=(
            Option(("-q", "--quiet"), "print names only"),
            Option(("--no-legend",), "do not print the header line"),
            *SHOWS,
        ),
    ),
    Command(
        ("network", "inspect"),
        "show the details of a network and the addresses of its VMs",
        "network:inspect",
        arguments=(Argument("NETWORK", "the network", completes=Completes.NETWORK),),
        options=SHOWS,
    ),
)

TEMPLATES = (
    Command(
        ("template", "create"),
        "make the template for warm starts of VMs, and print its id",
        "template:create",
        "VMs of the same kind share a template. If there is one, it is kept. The VM need not run.",
        arguments=(Argument("VM", "names of VMs", count="+", completes=Completes.VM),),
        options=(JSON,),
    ),
    Command(
        ("template", "list"),
        "list the templates for warm starts",
        "template:list_templates",
        options=(
            Option(("-q", "--quiet"), "print ids only"),
            Option(("--no-legend",), "do not print the header line"),
            *SHOWS,
        ),
    ),
    Command(
        ("template", "rm"),
        "remove templates for warm starts",
        "template:remove",
        "VMs that run from a template are not affected.",
        arguments=(Argument("TEMPLATE", "ids, or prefixes of ids", count="*", completes=Completes.TEMPLATE),),
        options=(Option(("-a", "--all"), "remove all of them"), JSON),
    ),
)

_IMAGE = Argument("IMAGE", "name of the image", completes=Completes.IMAGE)

IMAGES = (
    Command(
        ("image", "list"),
        "list images",
        "image:list_images",
        options=(
            Option(("-q", "--quiet"), "print names only"),
            Option(("--no-legend",), "do not print the header line"),
            *SHOWS_TABLE,
        ),
    ),
    Command(
        ("image", "inspect"),
        "show the details of an image",
        "image:inspect",
        arguments=(_IMAGE,),
        options=SHOWS,
    ),
    Command(
        ("image", "pull"),
        "pull images from a registry",
        "image:pull",
        "Updates the image if its tag has moved; layers that exist locally are not downloaded again. "
        "A pull continues after Ctrl-C; image rm cancels it.",
        arguments=(Argument("IMAGE", "references of images", count="+", completes=Completes.IMAGE),),
        options=(Option(("-q", "--quiet"), "do not show progress"), JSON),
    ),
    Command(
        ("image", "tag"),
        "add a name to an image",
        "image:tag",
        arguments=(_IMAGE, Argument("NAME", "new name; if another image has it, it is moved")),
        options=(JSON,),
    ),
    Command(
        ("image", "prune"),
        "remove unused images that have no name",
        "image:prune",
        options=(
            Option(("-a", "--all"), "also remove unused images that have names"),
            Option(("--dry-run",), "only show what would be removed"),
            JSON,
        ),
    ),
    Command(
        ("image", "export"),
        "export an image as an OCI archive, for skopeo, podman and others",
        "image:export",
        arguments=(
            _IMAGE,
            Argument("FILE", "archive to write, - for standard output", completes=Completes.FILE),
        ),
    ),
    Command(
        ("image", "rm"),
        "remove images",
        "image:remove",
        arguments=(Argument("IMAGE", "names of the images", count="+", completes=Completes.IMAGE),),
        options=(JSON,),
    ),
    Command(
        ("image", "import"),
        "create an image from a directory, a tar archive or an OCI layout (root only)",
        "image:import_image",
        arguments=(
            Argument("IMAGE", "name of the new image"),
            Argument(
                "PATH",
                "directory, tar archive or OCI layout on this host; oci:, docker-archive: or dir: before it",
                completes=Completes.FILE,
            ),
        ),
        options=(JSON,),
    ),
)

TOKENS = (
    Command(
        ("token", "create"),
        "create a token for the API over TCP and print it (root only)",
        "token:create",
        "The token is shown only once; hypemand stores only a hash. Scopes: read: show VMs, images and logs; "
        "operate: also start and stop VMs, run commands and copy files in them; admin: also create and "
        "remove VMs, images and volumes.",
        arguments=(Argument("NAME", "name of the token"),),
        options=(
            Option(("--expires",), "validity, such as 30d (default: until revoked)", "TIME", Kind.SPAN),
            Option(
                ("--scope",),
                "scope: read, operate or admin (default: admin)",
                "SCOPE",
                choices=SCOPES,
            ),
            Option(
                ("--vm",),
                "restrict the token to this VM (scopes read and operate)",
                "VM",
                repeat=True,
                completes=Completes.VM,
            ),
            Option(
                ("--tag",),
                "restrict the token to VMs that have all given tags",
                "KEY=VALUE",
                Kind.PAIR,
                repeat=True,
            ),
            JSON,
        ),
    ),
    Command(
        ("token", "list"),
        "list tokens",
        "token:list_tokens",
        options=(Option(("--no-legend",), "do not print the header line"), *SHOWS),
    ),
    Command(
        ("token", "revoke"),
        "revoke tokens and end requests that use them (root only)",
        "token:revoke",
        arguments=(Argument("NAME", "names of the tokens", count="+"),),
        options=(JSON,),
    ),
)

CLUSTER = (
    Command(
        (_CLUSTER, "show"),
        "print the commands that make VMs resources of a Pacemaker cluster",
        "cluster:show",
        "For VMs with a definition file. Nothing is changed. Memory is in MiB: of a VM with what its VMM "
        "takes, of the node what admission gives to VMs.",
        arguments=(
            Argument("NAME", "the VMs (default: all that have a definition file)", "*", Completes.VM),
        ),
        options=(
            Option(
                ("--tool",),
                "the program whose commands are printed: crm or pcs (default: crm)",
                "TOOL",
                choices=CLUSTER_TOOLS,
            ),
            *SHOWS,
        ),
    ),
    Command(
        (_CLUSTER, "diff"),
        "show what differs between this host and others",
        "clusterdiff:diff",
        "Compares definitions, images, volumes, networks and versions. The other hosts are asked with ssh, "
        "without a password. The exit status is 1 if there are differences.",
        arguments=(Argument("HOST", "the other hosts, as for ssh", "+"),),
        options=SHOWS,
        failure=ExitCode.OWN_FAILURE,
    ),
)

HOST = (
    Command(
        ("check",),
        "check VM definitions, the host configuration and the host",
        "check:check",
        "Without FILE: checks all of them. Only the check of networks needs the running daemon.",
        arguments=(
            Argument(
                "FILE",
                "VM definition or template, NAME of one in /etc/hypemand/vms.d, or host configuration",
                count="*",
                completes=Completes.DEFINITION,
            ),
        ),
        options=SHOWS,
    ),
    Command(
        ("reload",),
        "reload VM definitions and host configuration",
        "host:reload",
        options=(Option(("-q", "--quiet"), "print nothing; see the journal of hypemand.service"), JSON),
    ),
    Command(("version",), "show the versions of hypemanctl and hypemand", "host:show_version", options=SHOWS),
)
