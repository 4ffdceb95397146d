# SPDX-License-Identifier: Apache-2.0
"""The man pages as they are installed: with what their sources leave to the schema and the table of commands.

    python3 -m hypemand.manual SOURCES TARGET

A page in SOURCES says where, by a comment of its own line:

    .\\" @keys vm            a paragraph for each key of vm.schema.json that the page has none for
    .\\" @keys vm unit       the same of those below the key unit
    .\\" @options run        the same of the options of a command, in its section

So a page says more of a key than the schema does where that is needed, and a key that needs no more is not
written twice.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Collection, Iterator
from pathlib import Path

from hypemand.cli.commands import find_command
from hypemand.cli.spec import Option
from hypemand.config.kinds import find_kind
from hypemand.config.schemafile import Schema, load_schema

_WIDTH = 78
_MARKER = re.compile(r'^\.\\" @(keys|options) (.+)\n', re.MULTILINE)
_HEADS = re.compile(r"^\.TP\n\.BI? (.*)$|^\.TP\n\.BR (.*)$", re.MULTILINE)
_WORDS = {
    "string": "STRING",
    "integer": "NUMBER",
    "number": "NUMBER",
    "boolean": "BOOLEAN",
    "array": "LIST",
    "object": "MAPPING",
}


def render_page(source: str) -> str:
    """The page whose source this is, whole."""
    parts, end = [], 0
    for marker in _MARKER.finditer(source):
        kind, subject = marker.groups()
        missing = _missing_keys if kind == "keys" else _missing_options
        parts += [source[end : marker.start()], *missing(source, marker, subject.split())]
        end = marker.end()
    return "".join([*parts, source[end:]])


def _heads(text: str) -> list[str]:
    return [(found[1] or found[2]).replace("\\-", "-") for found in _HEADS.finditer(text)]


def _missing_keys(page: str, _: re.Match[str], subject: list[str]) -> Iterator[str]:
    schema = load_schema(subject[0])
    for key in subject[1:]:
        schema = schema["properties"][key]
    written = {re.split(r"[: ]", head)[0] for head in _heads(page)}
    elsewhere = {found[2] for found in _MARKER.finditer(page)}
    for name, rule in _walk(schema, "", {words.split()[-1] for words in elsewhere}):
        if name not in written:
            yield _format_key(name, rule)


def _walk(schema: Schema, prefix: str, elsewhere: Collection[str]) -> Iterator[tuple[str, Schema]]:
    """Keys by their names, each followed by those below it, but for what has a marker of its own. Those of a
    list's items are for the paragraph of the list."""
    for key, rule in schema["properties"].items():
        yield f"{prefix}{key}", rule
        if "properties" in rule and key not in elsewhere:
            yield from _walk(rule, f"{prefix}{key}.", elsewhere)


def _format_key(name: str, rule: Schema) -> str:
    head = f".B {escape(name)}\n" if name[0].isupper() else f'.BI {escape(name)}: " {_word(rule)}"\n'
    default = rule.get("default")
    tail = ""
    if default is not None and not isinstance(default, dict):
        shown = str(default).lower() if isinstance(default, bool) else str(default)
        tail = f"Default:\n.BR {escape(shown)} .\n"
    return f".TP\n{head}{format_sentences(rule['description'])}{tail}"


def _word(rule: Schema) -> str:
    if "enum" in rule:
        return "WORD"
    found = find_kind(rule)
    if found is not None and found[0].placeholder:
        return found[0].placeholder
    types = [rule["type"]] if isinstance(rule["type"], str) else rule["type"]
    return "|".join(_WORDS[name] for name in types)


def _missing_options(page: str, marker: re.Match[str], words: list[str]) -> Iterator[str]:
    start = page.rindex("\n.SS ", 0, marker.start())
    end = re.compile(r"^\.S[SH] ", re.MULTILINE).search(page, marker.end())
    written = " ".join(_heads(page[start : end.start() if end else len(page)]))
    command = find_command(words)
    assert command is not None, words
    for option in command.all_options:
        if re.search(rf"(?<![\w-]){re.escape(option.flags[-1])}(?![\w-])", written) is None:
            yield _format_option(option)


def _format_option(option: Option) -> str:
    flags = ' ", " '.join(escape(flag) for flag in option.flags)
    value = "" if option.metavar is None else f' " \\fI{escape(option.metavar)}\\fR"'
    again = " May be given more than once." if option.repeat else ""
    text = f"{option.help[0].upper()}{option.help[1:]}.{again}"
    return f".TP\n.BR {flags}{value}\n{format_sentences(text)}"


def format_sentences(text: str) -> str:
    """Plain text as lines of roff: each sentence begins one."""
    lines = [
        line
        for sentence in re.split(r"(?<=[.:]) (?=[A-Z])", text)
        for line in textwrap.wrap(sentence, _WIDTH, break_long_words=False, break_on_hyphens=False)
    ]
    return "".join(f"{escape(line)}\n" for line in lines)


def escape(text: str) -> str:
    """Text as roff shows it, letter by letter."""
    shown = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{shown}" if shown[:1] in (".", "'") else shown


def main(argv: list[str]) -> int:
    """Write each page."""
    sources, target = map(Path, argv)
    target.mkdir(parents=True, exist_ok=True)
    for page in sorted(sources.glob("*.[1-8]")):
        (target / page.name).write_text(render_page(page.read_text("utf-8")), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
