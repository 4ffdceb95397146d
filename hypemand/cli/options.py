# SPDX-License-Identifier: Apache-2.0
"""Options common to all commands, and the values that options accept."""

from __future__ import annotations

from hypemand.cli.spec import Completes, Option

STATES = ("Created", "Initializing", "Running", "Paused", "Shutdown", "Stopped", "Standby", "Unknown")
SOURCES = ("app", "vmm", "hypeman")
SCOPES = ("read", "operate", "admin")
PULLS = ("missing", "always", "never")

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
