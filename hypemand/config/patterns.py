# SPDX-License-Identifier: Apache-2.0
"""The patterns of `ready: log`: a small dialect of extended regular expressions that takes time linear in
what it is matched against, whatever the pattern (guest/probe/pattern.c matches it, in the guest).

Literals, `.`, `[a-z]` and `[^a-z]`, `\\d` `\\w` `\\s` `\\t`, `\\` before any other character that is no
letter or digit, `(…)`, `|`, `*`, `+`, `?`, and `^` and `$` for the beginning and the end of a line. It is
matched against bytes: a character beyond ASCII is a sequence of them, and is not allowed in brackets.
"""

from __future__ import annotations

MAX_PATTERN = 256
MAX_DEPTH = 16
_CLASSES = "dwst"


def check_pattern(text: str) -> None:
    """Raises ValueError: what is wrong; what would be right."""
    size = len(text.encode("utf-8", "surrogatepass"))
    if not 1 <= size <= MAX_PATTERN:
        raise ValueError(f"has {size} bytes; write a pattern of 1 to {MAX_PATTERN} bytes")
    if any((ord(c) < 32 and c != "\t") or ord(c) == 127 or 0xD800 <= ord(c) < 0xE000 for c in text):
        raise ValueError("has a control character; write a pattern of one line")
    _Parser(text).check()


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def check(self) -> None:
        depth, repeatable = 0, False
        while self._at < len(self._text):
            c = self._text[self._at]
            if c in "*+?":
                if not repeatable:
                    raise ValueError(f"{c!r} at {self._at + 1} repeats nothing; write \\{c} for {c} itself")
                self._at += 1
                repeatable = False
                continue
            if c == "(":
                depth += 1
                if depth > MAX_DEPTH:
                    raise ValueError(f"has more than {MAX_DEPTH} groups in each other; write fewer")
            elif c == ")":
                depth -= 1
                if depth < 0:
                    raise ValueError(f"')' at {self._at + 1} closes nothing; write \\) for ) itself")
            elif c in "]{}":
                raise ValueError(f"{c!r} at {self._at + 1} is not known here; write \\{c} for {c} itself")
            repeatable = c not in "(|^$"
            self._skip_atom(c)
        if depth:
            raise ValueError("has a '(' that is not closed; write \\( for ( itself")

    def _skip_atom(self, c: str) -> None:
        if c == "[":
            self._skip_bracket()
        elif c == "\\":
            self._skip_escape(in_bracket=False)
        else:
            self._at += 1

    def _skip_escape(self, *, in_bracket: bool) -> None:
        """What is escaped; in brackets also the classes."""
        where = " in brackets" if in_bracket else ""
        if self._at + 1 >= len(self._text):
            raise ValueError("ends with a backslash; write \\\\ for a backslash itself")
        c = self._text[self._at + 1]
        if c not in _CLASSES and (c.isalnum() or not c.isascii()):
            raise ValueError(
                f"\\{c}{where} is not known; write \\d, \\w, \\s, \\t or \\ before a punctuation character"
            )
        self._at += 2

    def _skip_bracket(self) -> None:
        begin, text = self._at, self._text
        self._at += 1
        if text[self._at : self._at + 1] == "^":
            self._at += 1
        first = True
        while self._at < len(text) and (text[self._at] != "]" or first):
            first = False
            low = self._bracket_item()
            if text[self._at : self._at + 1] == "-" and text[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                high = self._bracket_item()
                if low is None or high is None or high < low:
                    raise ValueError(f"has a range that is none in the brackets at {begin + 1}; write [a-z]")
        if self._at >= len(text):
            raise ValueError("has a '[' that is not closed; write \\[ for [ itself")
        self._at += 1

    def _bracket_item(self) -> str | None:
        """One character of a set; None: a class."""
        c = self._text[self._at]
        if c == "\\":
            self._skip_escape(in_bracket=True)
            escaped = self._text[self._at - 1]
            return "\t" if escaped == "t" else None if escaped in _CLASSES else escaped
        if not c.isascii():
            raise ValueError(f"{c} cannot stand in brackets; write ({c}|…) instead")
        self._at += 1
        return c
