# SPDX-License-Identifier: Apache-2.0
"""Options common to all commands, and the values that options accept."""

from __future__ import annotations

from hypemand.cli.spec import Completes, Option
from hypemand.config.imagepull import ImagePull
from hypemand.model.logs import LogSource
from hypemand.model.state import State
from hypemand.model.tokens import Scope

STATES = tuple(map(str, State))
SOURCES = tuple(map(str, LogSource))
SCOPES = tuple(map(str, Scope))
PULLS = tuple(map(str, ImagePull))

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
