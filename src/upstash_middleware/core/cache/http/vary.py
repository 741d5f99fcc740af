"""Selection of a URL's stored responses: Vary, codings and cookies (RFC 9111 §4.1)."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from upstash_middleware.core.cache.http.directives import is_token, members
from upstash_middleware.messages import LONGEST_VALUE

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from upstash_middleware.core.cache.rules import Profile
    from upstash_middleware.messages import Headers

# RFC 9111 §4.1 allows values of a selecting field to match if they mean the same by the field's
# definition. In a list, white space around commas and empty members are ignored (RFC 9110 §5.6.1).
# In other fields, a comma has no such meaning: "https://a.example," is not "https://a.example".


class ListField(NamedTuple):
    """Whether case and the order of members can be ignored when a list-valued field is compared."""

    case: bool
    order: bool


LIST_FIELDS: Mapping[str, ListField] = {
    # RFC 9110 §12.5.1; parameters of media types may be case-sensitive.
    "accept": ListField(case=False, order=True),
    "accept-charset": ListField(case=True, order=True),  # RFC 9110 §12.5.2, §8.3.2
    "accept-encoding": ListField(case=True, order=True),  # RFC 9110 §12.5.3, §8.4.1
    "accept-language": ListField(case=True, order=True),  # RFC 9110 §12.5.4, RFC 4647 §2
    "access-control-request-headers": ListField(case=True, order=True),  # names: Fetch §3.3.3
    "cache-control": ListField(case=False, order=True),  # RFC 9111 §5.2
    "prefer": ListField(case=False, order=False),  # RFC 7240 §2: the first of equal ones applies
    "te": ListField(case=True, order=True),  # RFC 9110 §10.1.4
    "via": ListField(case=False, order=False),  # RFC 9110 §7.6.3: the path of the message
}

# Clients write Accept-Encoding in many ways, but servers use few codings. A stored response is used
# for all clients that accept its coding. RFC 9110 §8.4.1.

CODINGS = frozenset(
    {
        "br",  # RFC 7932; often used for text
        "deflate",  # zlib; rarely used, but most clients name it
        "gzip",  # supported by all compression middleware
        "zstd",  # RFC 8878; used by newer servers
    }
)

_BY_CODINGS = "accept-encoding="
_WEIGHT = re.compile(r" ?q=(?:1(?:\.0{0,3})?|0\.(?!0{1,3}\Z)[0-9]{1,3})")
_MAX_ACCEPT_ENCODING_LENGTH = 256


def vary_fields(headers: Headers) -> tuple[str, ...]:
    """Return the fields named by a response's Vary, in lower case and without duplicates.

    If a member is not a valid field name, the result is the asterisk alone.
    """
    lines = headers.lines("vary")
    if sum(map(len, lines)) > LONGEST_VALUE:
        return ("*",)
    names = tuple(dict.fromkeys(member.lower() for member in members(lines)))
    return names if all(map(is_token, names)) else ("*",)


def selected_values(fields: Iterable[str], headers: Headers, profile: Profile) -> str:
    """Return the values of a request's selecting header fields as one text.

    A missing field differs from an empty one, and different values have different texts. In profile
    ``safe``, two values are equal only if no application can distinguish them. Otherwise, values
    are normalised as far as the fields' definitions allow.
    """
    return "\n".join([_selected_value(name, headers, profile) for name in sorted(set(fields))])


def _selected_value(selector: str, headers: Headers, profile: Profile) -> str:
    name, by_codings, codings = selector.partition("=")
    lines = headers.lines(name)
    if not lines:
        return name
    if by_codings and len(lines) == 1 and (accepted := accepted_codings(lines[0])) is not None:
        if not accepted:
            return f"{name}=identity"
        # A client that accepts gzip could get it, even if no such response is stored yet.
        return f"{name}={','.join(sorted(accepted & {'gzip', *codings.split(',')}))}"
    # The repr of a list is a single line, and differs between lists.
    return f"{name}:{_normalise_lines(name, lines) if profile.normalises else lines!r}"


def _normalise_lines(name: str, lines: list[str]) -> list[str]:
    """Return the lines of a field, combined and normalised as far as its definition allows."""
    if (field := LIST_FIELDS.get(name)) is None or sum(map(len, lines)) > LONGEST_VALUE:
        return [", ".join(lines)]
    values = [
        # RFC 9110 §5.6.6: white space around parameters is ignored.
        ";".join([part.strip(" \t") for part in member.split(";")]) if '"' not in member else member
        for member in members(lines)
    ]
    if field.case:
        values = [value.lower() for value in values]
    return sorted(values) if field.order else values


def selector_of_codings(headers: Headers, content_encoding: str) -> str:
    """Return the selector of a response with ``Vary: Accept-Encoding`` in profile ``safe``.

    Normally, the codings of stored responses that the client accepts select:
    ``accept-encoding=gzip``. If the response has a coding that was not requested, the whole field
    selects.
    """
    coding = content_encoding.strip().lower()
    if coding in {"", "identity"}:
        return "accept-encoding="
    lines = headers.lines("accept-encoding")
    accepted = accepted_codings(lines[0]) if len(lines) == 1 else None
    if coding in (CODINGS if accepted is None else accepted):
        return f"accept-encoding={coding}"
    return "accept-encoding"


def merge_selectors(one: Iterable[str], other: Iterable[str]) -> tuple[str, ...]:
    """Return all selectors. Those for Accept-Encoding are merged into one."""
    merged = {*one, *other}
    by_codings = [selector for selector in merged if selector.startswith(_BY_CODINGS)]
    if len(merged) > 1 and by_codings:
        merged.difference_update(by_codings)
        if "accept-encoding" not in merged:
            listed = ",".join(selector.removeprefix(_BY_CODINGS) for selector in by_codings)
            merged.add(_BY_CODINGS + ",".join(sorted({*listed.split(",")} - {""})))
    return tuple(sorted(merged))


def accepted_codings(line: str) -> frozenset[str] | None:
    """Return the codings in Accept-Encoding; None if applications may interpret it differently.

    Not all applications support a weight of 0, asterisks or capital letters.
    """
    return _accepted_codings(line) if len(line) <= _MAX_ACCEPT_ENCODING_LENGTH else None


@lru_cache(maxsize=256)
def _accepted_codings(line: str) -> frozenset[str] | None:
    codings = set()
    for member in line.split(","):
        coding, weighted, weight = member.strip(" ").partition(";")
        if coding not in CODINGS and coding != "identity":
            return None
        if weighted and not _WEIGHT.fullmatch(weight):
            return None
        codings.add(coding)
    return frozenset(codings - {"identity"})


# --- Cookies ------------------------------------------------------------------------------------

# A quoted value without an end before the next semicolon.
OPEN_QUOTE = re.compile(r'[ \t]*+"(?:[^"\\]|\\.)*+\\?+\Z', re.DOTALL)


def selected_cookies(names: Collection[str], headers: Headers) -> str | None:
    """Return a request's cookies with these names as one text, in a fixed order.

    None if two parsers could find different cookies. Starlette and Django split the field at each
    semicolon, strip all white space, and use the last cookie of a name. Werkzeug strips spaces and
    tabs, allows semicolons in quoted values, and uses the first. The text therefore contains every
    cookie of a name, as it was sent.
    """
    chosen: dict[str, list[str]] = {}
    for line in headers.lines("cookie"):
        for pair in line.split(";"):
            name, equals, value = pair.partition("=")
            bare = name.strip()
            if not equals and not bare:
                continue
            if OPEN_QUOTE.match(value):
                return None
            if bare in names:
                if not equals or name.lstrip(" \t") != bare:
                    return None
                chosen.setdefault(bare, []).append(value)
            elif not is_token(bare):
                return None
    return f"cookies:{sorted(chosen.items())!r}"


def chosen_cookies(names: Collection[str], headers: Headers) -> str:
    """Return a request's Cookie field with only the cookies of these names, unchanged."""
    pairs = [pair for line in headers.lines("cookie") for pair in line.split(";")]
    return "; ".join(pair.lstrip() for pair in pairs if pair.partition("=")[0].strip() in names)
