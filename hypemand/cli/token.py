# SPDX-License-Identifier: Apache-2.0
"""token create, list, revoke."""

from __future__ import annotations

import math
import sys
from typing import Any

from hypemand.cli.context import Context, for_each
from hypemand.cli.exitcode import ExitCode
from hypemand.cli.terminal import RED, print_json, print_table
from hypemand.cli.values import escape_controls, parse_moment

_HEADER = ("NAME", "SCOPE", "BEGINS", "CREATED", "EXPIRES", "LAST USED", "VMS")


def create(context: Context) -> int:
    """Make a token, and print it alone, for a script to take."""
    args = context.args
    body: dict[str, Any] = {
        "name": args.name, "scope": args.scope or "admin", "vms": args.vm, "tags": dict(args.tag)
    }  # fmt: skip
    if args.expires is not None and not math.isinf(args.expires):
        body["expires"] = f"{args.expires:.3f}s"
    token = context.client.post("tokens", body=body)
    if context.wants_json:
        print_json(token)
    else:
        print(token["token"])
        if sys.stdout.isatty():
            print("Store it now: it is not shown again.", file=sys.stderr)
    return ExitCode.OK


def list_tokens(context: Context) -> int:
    """A table of tokens, or JSON."""
    tokens: list[dict[str, Any]] = context.client.get("tokens")
    if context.wants_json:
        print_json(tokens)
    elif tokens:
        colours = [RED if token.get("expired") else None for token in tokens]
        print_table(None if context.args.no_legend else _HEADER, [_row(token) for token in tokens], colours)
    elif sys.stdout.isatty():
        print("No tokens.")
    return ExitCode.OK


def _row(token: dict[str, Any]) -> list[str]:
    scope = str(token.get("scope"))
    expires = _format_moment(token.get("expires_at"), "never")
    tags = [f"{key}={value}" for key, value in dict(token.get("tags") or {}).items()]
    vms = [*map(str, token.get("vms") or ()), *([",".join(tags)] if tags else [])]
    cells = [
        str(token.get("name")),
        f"{scope}, expired" if token.get("expired") else scope,
        str(token.get("prefix")),
        _format_moment(token.get("created_at"), "-"),
        expires,
        _format_moment(token.get("last_used_at"), "never"),
        " ".join(vms) or "all",
    ]
    return [escape_controls(cell) for cell in cells]


def _format_moment(value: object, otherwise: str) -> str:
    moment = parse_moment(value)
    return f"{moment.astimezone():%Y-%m-%d %H:%M}" if moment else otherwise


def revoke(context: Context) -> int:
    """Make tokens good no more."""
    revoked: list[str] = []

    def revoke_one(name: str) -> None:
        context.client.delete("tokens", name)
        revoked.append(name)

    failure = for_each(context.args.name, revoke_one)
    if context.wants_json:
        print_json(revoked)
    return failure
