"""Structured fields (RFC 9651): parsers for Dictionaries, and for lists of Strings.

Parsing is strict: if any part of a value is invalid, the result is None. Quantifiers are possessive
where a pattern could otherwise backtrack, so the work is linear in the length.
"""

from __future__ import annotations

import re
from typing import Final

_KEY = r"[a-z*][a-z0-9_\-.*]*+"
_STRING = r'"(?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*+"'
_BARE_ITEM = (
    r"(?:-?[0-9]{1,12}\.[0-9]{1,3}(?![0-9.])|@?-?[0-9]{1,15}(?![0-9.])"
    rf"|{_STRING}|[A-Za-z*][!#$%&'*+\-.^_`|~0-9A-Za-z:/]*+|:[A-Za-z0-9+/=]*+:|\?[01]"
    r'|%"(?:[\x20\x21\x23\x24\x26-\x7e]|%[0-9a-f]{2})*+")'
)
_PARAMETERS = rf"(?:; *+{_KEY}(?:={_BARE_ITEM})?+)*+"
_INNER_LIST = rf"\( *+(?:{_BARE_ITEM}{_PARAMETERS}(?: ++|(?=\))))*+\)"
_END = r"(?:[ \t]*+(?P<comma>,)[ \t]*+|\Z)"
_DICTIONARY_MEMBER = re.compile(rf"({_KEY})(?:=({_BARE_ITEM}|{_INNER_LIST}))?+{_PARAMETERS}{_END}")
_STRING_MEMBER = re.compile(rf"({_STRING}){_PARAMETERS}{_END}")
_INNER_STRING = re.compile(rf"({_STRING}){_PARAMETERS}(?: ++|(?=\)))")
_ESCAPE = re.compile(r"\\(.)")

TRUE: Final = "?1"
FALSE: Final = "?0"


def parse_dictionary(value: str) -> dict[str, str] | None:
    """Return a Dictionary's members as written, without their parameters (§4.2.2).

    A member without a value is true. The last of several equal keys applies.
    """
    members = _members(_DICTIONARY_MEMBER, value)
    return None if members is None else {each[1]: each[2] or TRUE for each in members}


def parse_strings(value: str) -> tuple[str, ...] | None:
    """Return the members of a List of Strings (§4.2.1); None if it has other members."""
    members = _members(_STRING_MEMBER, value)
    return None if members is None else tuple(unquote(each[1]) for each in members)


def _members(pattern: re.Pattern[str], value: str) -> list[re.Match[str]] | None:
    """Return the matches of members separated by commas; None if any member does not match."""
    text = value.strip(" ")
    found = []
    at = 0
    while at < len(text):
        member = pattern.match(text, at)
        if member is None or (member["comma"] and member.end() == len(text)):
            return None
        found.append(member)
        at = member.end()
    return found


def parse_inner_list(item: str) -> tuple[str, ...] | None:
    """Return the Strings of an Inner List, given as written; None for other items."""
    if not item.startswith("("):
        return None
    found = []
    at = 1 + len(item[1:]) - len(item[1:].lstrip(" "))
    while item[at] != ")":
        member = _INNER_STRING.match(item, at)
        if member is None:
            return None
        found.append(unquote(member[1]))
        at = member.end()
    return tuple(found)


def unquote(string: str) -> str:
    """Return the text of a String, given as written."""
    return _ESCAPE.sub(r"\1", string[1:-1])
