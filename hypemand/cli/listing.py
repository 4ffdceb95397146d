# SPDX-License-Identifier: Apache-2.0
"""How the things of a kind are listed: as a table, as names alone, as a document."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from hypemand.cli.client import Json
from hypemand.cli.context import Context
from hypemand.cli.spec import Format
from hypemand.cli.terminal import print_table
from hypemand.cli.values import escape_controls

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Listing(Generic[T]):
    """The table of a kind. `plural`: its things, in "No … ." on a terminal. `row`: the cells of one, those of
    `wide` if the second argument says so. `name`: what --quiet prints of one; None: there is no --quiet.
    `colour`: of the second cell. `optional`: a column that is left out where each cell of it is "-"."""

    plural: str
    header: tuple[str, ...]
    row: Callable[[T, bool], list[str]]
    name: Callable[[T], str] | None = None
    wide: tuple[str, ...] = ()
    colour: Callable[[T], str | None] = lambda _: None
    optional: str | None = None


def show_list(context: Context, listing: Listing[T], things: Sequence[T], document: Json) -> None:
    """Print them as it is asked for; `document` is all that the daemon says of them."""
    args = context.args
    if context.wants_document:
        context.print_document(document)
    elif listing.name is not None and args.quiet:
        for thing in things:
            print(escape_controls(listing.name(thing)))
    elif things:
        wide = context.output is Format.WIDE
        rows = [[escape_controls(cell) for cell in listing.row(thing, wide)] for thing in things]
        header, *rows = _drop_unused(
            listing.optional, [list(listing.wide if wide else listing.header), *rows]
        )
        print_table(None if args.no_legend else header, rows, [listing.colour(thing) for thing in things])
    elif sys.stdout.isatty():
        print(f"No {listing.plural}.")


def _drop_unused(column: str | None, table: list[list[str]]) -> list[list[str]]:
    if column is None:
        return table
    at = table[0].index(column)
    if any(row[at] != "-" for row in table[1:]):
        return table
    return [row[:at] + row[at + 1 :] for row in table]
