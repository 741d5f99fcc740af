"""What selects among the stored responses of a URL: Vary, codings and cookies (RFC 9111 §4.1)."""

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

# RFC 9111 §4.1 lets values of a selecting field match as far as the field's definition says that
# they mean the same: in a list, white space around commas and empty members (RFC 9110 §5.6.1). In
# any other field a comma has no meaning: "https://a.example," is not "https://a.example".


class ListField(NamedTuple):
    """Whether case, and the order of its members, make no difference to a list-valued field."""

    case: bool
    order: bool


LIST_FIELDS: Mapping[str, ListField] = {
    # RFC 9110 §12.5.1; the value of a media type's parameter may depend on case.
    "accept": ListField(case=False, order=True),
    "accept-charset": ListField(case=True, order=True),  # RFC 9110 §12.5.2, §8.3.2
    "accept-encoding": ListField(case=True, order=True),  # RFC 9110 §12.5.3, §8.4.1
    "accept-language": ListField(case=True, order=True),  # RFC 9110 §12.5.4, RFC 4647 §2
    "access-control-request-headers": ListField(case=True, order=True),  # names: Fetch §3.3.3
    "cache-control": ListField(case=False, order=True),  # RFC 9111 §5.2
    "prefer": ListField(case=False, order=False),  # RFC 7240 §2: of a repeated one the first counts
    "te": ListField(case=True, order=True),  # RFC 9110 §10.1.4
    "via": ListField(case=False, order=False),  # RFC 9110 §7.6.3: the way that a message took
}

# Clients spell Accept-Encoding in many ways, and a server has few codings: a response is stored for
# all clients that accept its coding. RFC 9110 §8.4.1.

CODINGS = frozenset(
    {
        "br",  # RFC 7932; servers compress text with it
        "deflate",  # zlib; rarely used, but nearly every client names it
        "gzip",  # what each compression middleware can do
        "zstd",  # RFC 8878; newer servers
    }
)

_BY_CODINGS = "accept-encoding="
_WEIGHT = re.compile(r" ?q=(?:1(?:\.0{0,3})?|0\.(?!0{1,3}\Z)[0-9]{1,3})")
_MAX_ACCEPT_ENCODING_LENGTH = 256


def vary_fields(headers: Headers) -> tuple[str, ...]:
    """Return the fields that a response's Vary names, in lower case, each once.

    Only the asterisk if any of them is not the name of a field.
    """
    lines = headers.lines("vary")
    if sum(map(len, lines)) > LONGEST_VALUE:
        return ("*",)
    names = tuple(dict.fromkeys(member.lower() for member in members(lines)))
    return names if all(map(is_token, names)) else ("*",)


def selected_values(fields: Iterable[str], headers: Headers, profile: Profile) -> str:
    """Return a request's values of selecting header fields as one text.

    An absent field differs from an empty one, and different values never make the same text. In
    profile ``safe`` two values are the same only if no application can distinguish them; otherwise
    values are normalised as far as their definitions allow.
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
        # A client that accepts gzip could get it even if no such response is stored yet.
        return f"{name}={','.join(sorted(accepted & {'gzip', *codings.split(',')}))}"
    # The repr of a list of texts is one line, and is different for each list.
    return f"{name}:{_normalise_lines(name, lines) if profile.normalises else lines!r}"


def _normalise_lines(name: str, lines: list[str]) -> list[str]:
    """Return the lines of a field combined and normalised as its definition allows."""
    if (field := LIST_FIELDS.get(name)) is None or sum(map(len, lines)) > LONGEST_VALUE:
        return [", ".join(lines)]
    values = [
        # Without white space around parameters (RFC 9110 §5.6.6).
        ";".join([part.strip(" \t") for part in member.split(";")]) if '"' not in member else member
        for member in members(lines)
    ]
    if field.case:
        values = [value.lower() for value in values]
    return sorted(values) if field.order else values


def selector_of_codings(headers: Headers, content_encoding: str) -> str:
    """Return how a response with ``Vary: Accept-Encoding`` is selected in profile ``safe``.

    By which of the codings that stored responses have a client accepts: ``accept-encoding=gzip``.
    By the whole field if the response has a coding that was not requested.
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
    """Return all selectors, with those for Accept-Encoding merged into one."""
    merged = {*one, *other}
    by_codings = [selector for selector in merged if selector.startswith(_BY_CODINGS)]
    if len(merged) > 1 and by_codings:
        merged.difference_update(by_codings)
        if "accept-encoding" not in merged:
            listed = ",".join(selector.removeprefix(_BY_CODINGS) for selector in by_codings)
            merged.add(_BY_CODINGS + ",".join(sorted({*listed.split(",")} - {""})))
    return tuple(sorted(merged))


def accepted_codings(line: str) -> frozenset[str] | None:
    """Return the codings named by an Accept-Encoding, None unless all applications agree on it.

    They do not all know weights of zero, asterisks or capital letters.
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

# A quoted value that does not end before the next semicolon.
OPEN_QUOTE = re.compile(r'[ \t]*+"(?:[^"\\]|\\.)*+\\?+\Z', re.DOTALL)


def selected_cookies(names: Collection[str], headers: Headers) -> str | None:
    """Return a request's cookies of these names as one text, independent of the names' order.

    None if two parsers could find different cookies of these names. Starlette and Django split the
    field at each semicolon, strip all white space, and use the last cookie of a name. Werkzeug
    strips spaces and tabs, allows semicolons in quoted values, and uses the first. So the text
    contains every cookie of a name, as it was sent.
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
    """Return a request's Cookie field with only the cookies of these names, as they were sent."""
    pairs = [pair for line in headers.lines("cookie") for pair in line.split(";")]
    return "; ".join(pair.lstrip() for pair in pairs if pair.partition("=")[0].strip() in names)
