# SPDX-License-Identifier: Apache-2.0
"""token create, list, revoke."""

from __future__ import annotations

import math
import sys

from hypemand.cli.client import parse, parse_all
from hypemand.cli.context import Context, for_each
from hypemand.cli.exitcode import ExitCode
from hypemand.cli.listing import Listing, show_list
from hypemand.cli.terminal import RED, print_json
from hypemand.cli.values import format_minute
from hypemand.model.answers.token import NewToken, TokenInfo
from hypemand.model.tokens import Scope

_HEADER = ("NAME", "SCOPE", "BEGINS", "CREATED", "EXPIRES", "USED", "VMS")


def create(context: Context) -> int:
    """Create a token, and print only its text, for use in scripts."""
    args = context.args
    scope = args.scope or Scope.ADMIN
    body: dict[str, object] = {
        "name": args.name, "scope": scope, "vms": args.vm, "tags": dict(args.tag)
    }  # fmt: skip
    if args.expires is not None and not math.isinf(args.expires):
        body["expires"] = f"{args.expires:.3f}s"
    answer = context.client.post("tokens", body=body)
    token = parse(NewToken, answer)
    if context.wants_json:
        print_json(answer)
    else:
        print(token.token)
        if sys.stdout.isatty():
            print("Store it now: it is not shown again.", file=sys.stderr)
    return ExitCode.OK


def list_tokens(context: Context) -> int:
    """A table of tokens, or JSON."""
    answer = context.client.get("tokens")
    show_list(context, _LISTING, parse_all(TokenInfo, answer), answer)
    return ExitCode.OK


def _row(token: TokenInfo, _wide: bool) -> list[str]:
    scope = token.scope or "-"
    tags = ",".join(f"{key}={value}" for key, value in token.tags.items())
    return [
        token.name,
        f"{scope},expired" if token.expired else scope,
        token.prefix or "-",
        format_minute(token.created_at),
        format_minute(token.expires_at, "never"),
        format_minute(token.last_used_at, "never"),
        " ".join([*token.vms, *([tags] if tags else [])]) or "all",
    ]


_LISTING = Listing("tokens", _HEADER, _row, colour=lambda token: RED if token.expired else None)


def revoke(context: Context) -> int:
    """Revoke tokens."""
    revoked: list[str] = []

    def revoke_one(name: str) -> None:
        context.client.delete("tokens", name)
        revoked.append(name)

    failure = for_each(context.args.name, revoke_one)
    if context.wants_json:
        print_json(revoked)
    return failure
