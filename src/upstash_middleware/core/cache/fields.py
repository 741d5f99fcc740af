"""Parsing of header field values that several rules share: lists, directives, entity tags.

Syntax only (RFC 9110 §5.6, RFC 9111 §5.2); what a directive means stands with the rule that
obeys it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from upstash_middleware.values import dataclass

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from upstash_middleware.messages import Headers

MAX_DELTA = 2**31
"""The greatest delta-seconds that are told apart (RFC 9111 §1.2.2)."""

_MEMBER = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*"?)+')
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(r"\\(.)")
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_DIGITS = re.compile(r"[0-9]+")
# In an entity tag a backslash is itself (RFC 9110 §8.8.3), so these lists are split by themselves.
_TAG_MEMBER = re.compile(r'[ \t]*((?:W/)?"[^"]*"|[^",]*?)[ \t]*(?:,|\Z)')
_ENTITY_TAG = re.compile(r'(W/)?("[\x21\x23-\x7e\x80-\xff]*")')


def split_list(value: str) -> list[str]:
    """Return a list's members without surrounding blanks; commas in quotes do not part them."""
    members = (member.strip(" \t") for member in _MEMBER.findall(value))
    return [member for member in members if member]


def members(lines: Iterable[str]) -> list[str]:
    """Return the members of a list-valued field's lines, in order."""
    return [member for line in lines for member in split_list(line)]


def field_names(value: str) -> tuple[str, ...]:
    """Return a list of field names in lower case, as Vary, Connection and no-cache carry."""
    return tuple(member.lower() for member in split_list(value))


def delta_seconds(text: str) -> int | None:
    """Return delta-seconds (RFC 9111 §1.2.2), capped; None where it is not digits alone."""
    if not _DIGITS.fullmatch(text):
        return None
    # A number with more digits than the cap would only cost time to convert.
    return min(int(text), MAX_DELTA) if len(text.lstrip("0")) <= 10 else MAX_DELTA


@dataclass(frozen=True, slots=True)
class Directives:
    """The directives of a Cache-Control field: lower-case names to arguments, unquoted.

    Of a repeated directive the first counts (RFC 9111 §4.2.1); the fields named by several
    ``no-cache`` or ``private`` come together, and one without names outweighs those.
    """

    arguments: Mapping[str, str | None]

    @classmethod
    def parse(cls, lines: Iterable[str]) -> Directives:
        """Parse a field's lines; a member that is no directive is passed over."""
        arguments: dict[str, str | None] = {}
        for member in members(lines):
            name, _, argument = member.partition("=")
            name = name.lower()
            if not _TOKEN.fullmatch(name):
                continue
            value = _unquoted(argument) if _ else None
            arguments[name] = _with_earlier(arguments, name, value)
        return cls(arguments)

    def __contains__(self, name: str) -> bool:
        return name in self.arguments

    def seconds(self, name: str) -> int | None:
        """Return a directive's delta-seconds; None where it is absent, 0 where it is invalid.

        RFC 9111 §4.2.1 encourages to take invalid freshness information as stale.
        """
        if name not in self.arguments:
            return None
        argument = self.arguments[name]
        return (delta_seconds(argument) if argument is not None else None) or 0

    def named_fields(self, name: str) -> tuple[str, ...] | None:
        """Return the fields that ``no-cache`` or ``private`` name, in lower case.

        None where the directive is absent or names none, and so means the whole response.
        """
        argument = self.arguments.get(name)
        return field_names(argument) if argument else None

    def unqualified(self, name: str) -> bool:
        """Whether the directive is there without naming fields."""
        return name in self.arguments and not self.named_fields(name)


NO_DIRECTIVES = Directives({})


def _with_earlier(earlier: Mapping[str, str | None], name: str, value: str | None) -> str | None:
    if name not in earlier:
        return value
    first = earlier[name]
    if name not in {"no-cache", "private"}:
        return first
    return f"{first}, {value}" if first and value else None


def _unquoted(argument: str) -> str:
    quoted = _QUOTED.fullmatch(argument)
    return _ESCAPE.sub(r"\1", quoted[1]) if quoted else argument


def cache_control(headers: Headers) -> Directives:
    """Return the Cache-Control directives of a message."""
    lines = headers.lines("cache-control")
    return Directives.parse(lines) if lines else NO_DIRECTIVES


def opaque_tag(etag: str) -> str:
    """Return an entity tag without its weakness, for weak comparison (RFC 9110 §8.8.3.2).

    One that an application left without quotes counts as if it had them.
    """
    tag = etag.removeprefix("W/")
    return tag if tag.startswith('"') else f'"{tag}"'


def entity_tags(value: str) -> list[str] | None:
    """Return the entity tags of an If-None-Match list; None where it is not such a list.

    Tags without quotes are let pass: applications make them, and clients send them back.
    """
    tags, at = [], 0
    while at < len(value):
        found = _TAG_MEMBER.match(value, at)
        if found is None:
            return None
        tags += [found[1]] if found[1] else []
        at = found.end()
    return tags or None


def is_strong(etag: str) -> bool:
    """Whether this is a strong entity tag (RFC 9110 §8.8.3)."""
    found = _ENTITY_TAG.fullmatch(etag)
    return found is not None and found[1] is None
