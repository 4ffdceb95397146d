# SPDX-License-Identifier: Apache-2.0
"""Arguments and options that several commands have, and the values that options accept."""

from __future__ import annotations

from dataclasses import replace

from hypemand.cli.spec import Argument, Completes, Format, Kind, Option
from hypemand.config.imagepull import ImagePull
from hypemand.model.compression import MAX_LEVEL, MIN_LEVEL
from hypemand.model.events import EventKind
from hypemand.model.logs import LogSource
from hypemand.model.snapshots import SnapshotKind
from hypemand.model.state import State
from hypemand.model.tokens import Scope

STATES = tuple(map(str, State))
SOURCES = tuple(map(str, LogSource))
EVENT_KINDS = tuple(map(str, EventKind))
SCOPES = tuple(map(str, Scope))
SNAPSHOT_KINDS = tuple(map(str, SnapshotKind))
SNAPSHOT_TARGETS = tuple(str(state) for state in State if state in SnapshotKind.STANDBY.targets)
PULLS = tuple(map(str, ImagePull))
CLUSTER_TOOLS = ("crm", "pcs")
# of list --filter
FILTERS = ("tag", "state", "image")

SOCKET = Option(
    ("--socket",),
    "API socket of hypemand (default: $HYPEMAN_SOCKET, else /run/hypemand/api.sock)",
    "PATH",
    completes=Completes.FILE,
)
HELP = Option(("-h", "--help"), "show this help")
VERSION = Option(("--version",), "show the version of hypemanctl")
GLOBAL_OPTIONS = (HELP, VERSION, SOCKET)
COMMON_OPTIONS = (HELP, SOCKET)

JSON = Option(("--json",), "print one JSON document")
_OUTPUT = Option(
    ("-o", "--output"), "print one document: json or yaml", "FORMAT", choices=(Format.JSON, Format.YAML)
)
WAITS = (
    Option(("--wait",), "wait until the VM is Running, if that is the state"),
    Option(
        ("--timeout",),
        "with --wait: give up after this time (default: when the VM's boot_timeout has ended the start)",
        "TIME",
        Kind.SPAN,
    ),
)
COMPRESS_OPTIONS = (
    Option(("--compress",), "compress the memory on the disk in the background; a restore takes longer"),
    Option(
        ("--compress-level",),
        f"the same with this level of zstd, {MIN_LEVEL} to {MAX_LEVEL} (default: {MIN_LEVEL})",
        "LEVEL",
        Kind.COUNT,
    ),
)
FORK_OPTIONS = (
    Option(
        ("--state",),
        "state of the fork: Running, Standby or Stopped (default: that of what it is made of)",
        "STATE",
        choices=SNAPSHOT_TARGETS,
    ),
    *WAITS,
    JSON,
)
# of commands that show something, of those whose table has more columns, and of those that print events
SHOWS = (_OUTPUT, JSON)
SHOWS_TABLE = (
    replace(
        _OUTPUT, help="print one document: json or yaml; wide: more columns", choices=tuple(map(str, Format))
    ),
    JSON,
)
SHOWS_EVENTS = (
    replace(
        _OUTPUT,
        help="print one document per event: json, each on one line, or yaml; wide: details and cursor, too",
        choices=tuple(map(str, Format)),
    ),
    Option(("--json",), "print one JSON object per event"),
)

ONE_VM = Argument("NAME", "the VM: name, id, or unique prefix of the id", completes=Completes.VM)
VMS = Argument("NAME", "the VMs: names, ids, or unique prefixes of ids", count="+", completes=Completes.VM)
VMS_OR_ALL = Argument("NAME", "the VMs (default: all)", count="*", completes=Completes.VM)
PULL = Option(
    ("--pull",),
    "when to pull the image (default: the VM's image_pull)",
    "WHEN",
    choices=PULLS,
)
