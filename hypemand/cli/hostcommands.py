# SPDX-License-Identifier: Apache-2.0
"""The commands on what the host has beside VMs: volumes, networks, images, tokens, hypemand itself."""

from __future__ import annotations

from hypemand.cli.options import JSON, SCOPES
from hypemand.cli.spec import Argument, Command, Completes, Kind, Option

_VOLUME = Argument(
    "VOLUME", "the volume: its name, its id, or an unambiguous start of its id", completes=Completes.VOLUME
)
_SIZE = Option(("--size",), "size of the volume, as 512M or 10G", "SIZE")
_VOLUME_TAG = Option(("--tag",), "tag of the volume", "KEY=VALUE", Kind.PAIR, repeat=True)

SPACE = (
    Command(
        ("volume", "create"),
        "make an empty volume",
        "volume:create",
        arguments=(Argument("NAME", "what the volume is called"),),
        options=(_SIZE, _VOLUME_TAG, JSON),
    ),
    Command(
        ("volume", "list"),
        "list volumes",
        "volume:list_volumes",
        options=(Option(("-q", "--quiet"), "names only"), Option(("--no-legend",), "no header line"), JSON),
    ),
    Command(
        ("volume", "inspect"),
        "show all about a volume",
        "volume:inspect",
        arguments=(_VOLUME,),
        options=(JSON,),
    ),
    Command(
        ("volume", "rm"),
        "remove volumes and all that is in them",
        "volume:remove",
        arguments=(Argument("VOLUME", "the volumes", count="+", completes=Completes.VOLUME),),
        options=(JSON,),
    ),
    Command(
        ("volume", "resize"),
        "let a volume grow that no VM runs with",
        "volume:resize",
        arguments=(_VOLUME, Argument("SIZE", "its new size, as 20G")),
        options=(JSON,),
    ),
    Command(
        ("volume", "import"),
        "make a volume of a tar archive, plain or with gzip",
        "volume:import_archive",
        arguments=(
            Argument("NAME", "what the volume is called"),
            Argument("ARCHIVE", "the archive, - for standard input", completes=Completes.FILE),
        ),
        options=(_SIZE, _VOLUME_TAG, JSON),
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
        options=(Option(("--no-legend",), "no header line"), JSON),
    ),
)

NETWORKS = (
    Command(
        ("network", "list"),
        "list networks",
        "network:list_networks",
        options=(Option(("-q", "--quiet"), "names only"), Option(("--no-legend",), "no header line"), JSON),
    ),
    Command(
        ("network", "inspect"),
        "show all about a network, with the addresses of its VMs",
        "network:inspect",
        arguments=(Argument("NETWORK", "the network", completes=Completes.NETWORK),),
        options=(JSON,),
    ),
)

_IMAGE = Argument("IMAGE", "name of the image", completes=Completes.IMAGE)

IMAGES = (
    Command(
        ("image", "list"),
        "list images",
        "image:list_images",
        options=(
            Option(("-q", "--quiet"), "names only"),
            Option(("--no-legend",), "no header line"),
            JSON,
        ),
    ),
    Command(
        ("image", "inspect"),
        "show all about an image",
        "image:inspect",
        arguments=(_IMAGE,),
        options=(JSON,),
    ),
    Command(
        ("image", "pull"),
        "get images from their registries, as their tags are now",
        "image:pull",
        "What is here already is not fetched again. After an interrupt a pull goes on; image rm ends it.",
        arguments=(Argument("IMAGE", "references", count="+", completes=Completes.IMAGE),),
        options=(Option(("-q", "--quiet"), "no progress"), JSON),
    ),
    Command(
        ("image", "tag"),
        "give an image one more name",
        "image:tag",
        arguments=(_IMAGE, Argument("NAME", "the new name; another image may have had it")),
        options=(JSON,),
    ),
    Command(
        ("image", "prune"),
        "remove images that no VM needs and no name stands for",
        "image:prune",
        options=(
            Option(("-a", "--all"), "those with names too"),
            Option(("--dry-run",), "only show what would be removed"),
            JSON,
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
        options=(JSON,),
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
        options=(JSON,),
    ),
)

TOKENS = (
    Command(
        ("token", "create"),
        "make a token for the API over TCP, and print it (root only)",
        "token:create",
        "It is shown this once; hypemand keeps a hash of it alone. read: look at VMs, images and logs; "
        "operate: also start and stop VMs, run commands and copy files in them; admin: also create and "
        "remove VMs, images and volumes.",
        arguments=(Argument("NAME", "what the token is called"),),
        options=(
            Option(("--expires",), "good for this time, as 30d (default: until revoked)", "TIME", Kind.SPAN),
            Option(
                ("--scope",),
                "read, operate or admin (default: admin)",
                "SCOPE",
                choices=SCOPES,
            ),
            Option(
                ("--vm",),
                "for this VM alone (with read and operate)",
                "VM",
                repeat=True,
                completes=Completes.VM,
            ),
            Option(
                ("--tag",),
                "for VMs with this tag, and with all others that are given",
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
        options=(Option(("--no-legend",), "no header line"), JSON),
    ),
    Command(
        ("token", "revoke"),
        "end tokens and what goes on under them, at once (root only)",
        "token:revoke",
        arguments=(Argument("NAME", "names of the tokens", count="+"),),
        options=(JSON,),
    ),
)

HOST = (
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
        options=(JSON,),
    ),
    Command(
        ("reload",),
        "read the definitions and the configuration again",
        "host:reload",
        options=(Option(("-q", "--quiet"), "print nothing; the journal of hypemand tells of it"), JSON),
    ),
    Command(
        ("version",), "show the versions of hypemanctl and hypemand", "host:show_version", options=(JSON,)
    ),
)
