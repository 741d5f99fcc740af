"""Dictionaries of RFC 8941 (Structured Fields): text to values, strictly; no meaning of any key."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

Item: TypeAlias = "bool | int | float | str | Token | bytes | tuple[Item, ...]"
"""A member's value; its parameters are checked and dropped."""


class Token(str):
    """A bare word, told from a String."""

    __slots__ = ()


class _Invalid(ValueError):
    pass


_KEY = re.compile(r"[a-z*][a-z0-9_\-.*]*")
_DECIMAL = re.compile(r"-?[0-9]{1,12}\.[0-9]{1,3}(?![0-9.])")
_INTEGER = re.compile(r"-?[0-9]{1,15}(?![0-9.])")
_STRING = re.compile(r'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"')
_TOKEN = re.compile(r"[A-Za-z*][!#$%&'*+\-.^_`|~0-9A-Za-z:/]*")
_BINARY = re.compile(r":[A-Za-z0-9+/=]*:")
_BOOLEAN = re.compile(r"\?[01]")
_COMMA = re.compile(r"[ \t]*,[ \t]*")


def parse_dictionary(text: str) -> Mapping[str, Item] | None:
    """Return a Dictionary's members; of a repeated key the last. None for what is none."""
    try:
        return _Parser(text.strip(" ")).dictionary()
    except _Invalid:
        return None


class _Parser:
    """Reads one text from left to right (RFC 8941 §4.2)."""

    __slots__ = ("_at", "_text")

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def dictionary(self) -> dict[str, Item]:
        """Return all members up to the end of the text."""
        found: dict[str, Item] = {}
        while self._at < len(self._text):
            key = self._take(_KEY)
            found.pop(key, None)
            found[key] = self._value() if self._skip("=") else True
            self._parameters()
            if self._at < len(self._text):
                self._take(_COMMA)
                if self._at == len(self._text):
                    raise _Invalid
        return found

    def _value(self) -> Item:
        if not self._skip("("):
            return self._bare()
        members: list[Item] = []
        while not self._skip(")"):
            if self._skip(" "):
                continue
            members.append(self._bare())
            self._parameters()
            if self._text[self._at : self._at + 1] not in {" ", ")"}:
                raise _Invalid
        return tuple(members)

    def _bare(self) -> Item:
        first = self._text[self._at : self._at + 1]
        if first == '"':
            return re.sub(r"\\(.)", r"\1", self._take(_STRING)[1:-1])
        if first == ":":
            return self._take(_BINARY).encode("ascii")
        if first == "?":
            return self._take(_BOOLEAN) == "?1"
        if first == "-" or first.isdigit():
            decimal = _DECIMAL.match(self._text, self._at)
            return float(self._take(_DECIMAL)) if decimal else int(self._take(_INTEGER))
        return Token(self._take(_TOKEN))

    def _parameters(self) -> None:
        while self._skip(";"):
            while self._skip(" "):
                pass
            self._take(_KEY)
            if self._skip("="):
                self._bare()

    def _take(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self._at)
        if found is None:
            raise _Invalid
        self._at = found.end()
        return found[0]

    def _skip(self, character: str) -> bool:
        if self._text.startswith(character, self._at):
            self._at += 1
            return True
        return False
