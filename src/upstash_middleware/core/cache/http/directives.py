"""Header fields that control caching: directives, dates, age and freshness.

RFC 9111 §4.2 and §5, RFC 9213 (targeted fields), RFC 5861 (stale responses). The functions are
pure.
"""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, cast

from msgspec import Struct

from upstash_middleware.core.cache.http.structured import FALSE, TRUE, parse_dictionary, unquote
from upstash_middleware.messages import LONGEST_VALUE, split_list

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from upstash_middleware.core.cache.rules import CacheRule, Profile
    from upstash_middleware.messages import Headers, ResponseHead

CDN_CACHE_CONTROL = "cdn-cache-control"
FROM_HANDLERS = "upstash-cache-control"
"""The field in which a handler's decorator sends directives to this cache. It is not sent on."""
MAX_DELTA = 2**31
"""The maximum of delta-seconds. Larger values count as this one (RFC 9111 §1.2.2)."""

# RFC 9110 §15.1: the final statuses that allow heuristic freshness.
_HEURISTICALLY_CACHEABLE = frozenset({200, 203, 204, 206, 300, 301, 308, 404, 405, 410, 414, 501})
_HEURISTIC_FRACTION = 0.1
_MAX_HEURISTIC_LIFETIME = 24 * 3600.0


# --- Directives (RFC 9111 §5.2) -----------------------------------------------------------------

# Quantifiers are possessive where a pattern could otherwise backtrack.
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_QUOTED = re.compile(r'"((?:[^"\\]++|\\.)*+)"')
_ESCAPE = re.compile(r"\\(.)")
_ARGUMENT = re.compile(rf"{_TOKEN.pattern}|{_QUOTED.pattern}|")
_WORD = re.compile(r"[a-z-]+")
_DIGITS = re.compile(r"[0-9]+")
_LIFETIMES = frozenset({"max-age", "s-maxage"})
_FORBIDDING = frozenset({"must-revalidate", "no-cache", "no-store", "private", "proxy-revalidate"})


class Directives(Struct, frozen=True):
    """Cache directives: a mapping of lower-case names to unquoted arguments.

    If a directive is repeated, the first applies (RFC 9111 §4.2.1). The fields named by several
    ``no-cache`` or ``private`` are combined; if one of these names no fields, it takes precedence.
    """

    arguments: Mapping[str, str | None]
    targeted: bool = False
    """Whether they are from a targeted field, so that Expires is ignored (RFC 9213 §2.2)."""

    @classmethod
    def parse(cls, lines: Iterable[str]) -> Directives:
        """Parse the lines of a Cache-Control field. Malformed members are skipped.

        If a malformed member contains a directive that forbids storing or reuse, the directive is
        obeyed, and a lifetime counts as 0: semicolons or spaces instead of commas are a common
        mistake.
        """
        given: dict[str, list[str | None]] = {}
        for member in members(lines):
            name, equals, argument = member.partition("=")
            name = name.lower()
            well_named = _TOKEN.fullmatch(name)
            if well_named:
                quoted = _QUOTED.fullmatch(argument)
                text = _ESCAPE.sub(r"\1", quoted[1]) if quoted else argument
                given.setdefault(name, []).append(text if equals else None)
            if not well_named or (equals and not _ARGUMENT.fullmatch(argument)):
                words = _WORD.findall(member.lower())
                for word in _FORBIDDING.intersection(words):
                    given.setdefault(word, []).append(None)
                if len(words) > 1 and (";" in member or " " in member):
                    for word in _LIFETIMES.intersection(words):
                        given.setdefault(word, []).append("")
        arguments = {name: values[0] for name, values in given.items()}
        for name in given.keys() & {"no-cache", "private"}:
            values = given[name]
            arguments[name] = ", ".join(filter(None, values)) if all(values) else None
        return cls(arguments)

    def __contains__(self, name: str) -> bool:
        return name in self.arguments

    def seconds(self, name: str) -> int | None:
        """Return the delta-seconds of a directive; None if it is absent.

        Invalid values count as 0, as recommended by RFC 9111 §4.2.1.
        """
        if name not in self.arguments:
            return None
        argument = self.arguments[name]
        return (delta_seconds(argument) if argument is not None else None) or 0

    def named_fields(self, name: str) -> tuple[str, ...] | None:
        """Return the fields named by ``no-cache`` or ``private``, in lower case; None if none."""
        argument = self.arguments.get(name)
        return field_names(argument) if argument else None

    def unqualified(self, name: str) -> bool:
        """Whether the directive is present and does not name fields."""
        return name in self.arguments and not self.named_fields(name)

    def without(self, name: str) -> Directives:
        """Return the directives except one."""
        arguments = {each: text for each, text in self.arguments.items() if each != name}
        return Directives(arguments, self.targeted)


NO_DIRECTIVES = Directives({})
_UNREADABLE = {"no-store": None, "no-cache": None}


def cache_control(headers: Headers) -> Directives:
    """Return the Cache-Control directives of a message."""
    lines = headers.lines("cache-control")
    if not lines:
        return NO_DIRECTIVES
    # An unterminated quoted string could hide any directive.
    if sum(map(len, lines)) > LONGEST_VALUE or any(
        '"' in line and '"' in _QUOTED.sub("", line) for line in lines
    ):
        return Directives(_UNREADABLE)
    return Directives.parse(lines)


def client_control(headers: Headers) -> Directives:
    """Return a request's cache directives (§5.2.1); without Cache-Control, Pragma (§5.4)."""
    if "cache-control" in headers:
        return cache_control(headers)
    pragma = Directives.parse(headers.lines("pragma"))
    return Directives({"no-cache": None}) if "no-cache" in pragma else NO_DIRECTIVES


def control_of(headers: Headers, targets: Iterable[str]) -> Directives:
    """Return the directives of a response that apply to this cache (RFC 9213 §2.2).

    They are from the first valid, non-empty field of ``targets`` (lower-case names), otherwise from
    Cache-Control.
    """
    for name in targets:
        value = headers.combined(name)
        if value is not None and len(value) > LONGEST_VALUE:
            return Directives(_UNREADABLE, targeted=True)
        arguments = targeted_directives(value) if value is not None else None
        if arguments is not None:
            return Directives(arguments, targeted=True)
    return cache_control(headers)


_DIRECTIVES_IN_SECONDS = frozenset(
    {"max-age", "s-maxage", "stale-while-revalidate", "stale-if-error"}
)


def targeted_directives(value: str) -> dict[str, str | None] | None:
    """Return the directives of a targeted field (RFC 9213 §2.1); None if it is invalid or empty.

    The field is a Dictionary, so the last of several equal keys applies. If a directive with
    delta-seconds has another type, the field is invalid. The value False removes a directive.
    """
    given = parse_dictionary(value)
    if not given:
        return None
    found: dict[str, str | None] = {}
    for name, item in given.items():
        is_integer = item[0] in "-0123456789" and "." not in item
        if name in _DIRECTIVES_IN_SECONDS and not is_integer:
            return None
        if item == TRUE:
            found[name] = None
        elif item[0] == '"':
            found[name] = unquote(item)
        elif is_integer:
            found[name] = str(int(item))
        elif item != FALSE:
            found[name] = "" if item[0] in "@%:(-0123456789" else item
    return found


# --- Other field values -------------------------------------------------------------------------

# A backslash in an entity tag is not an escape (RFC 9110 §8.8.3), so lists of them are parsed here.
_TAG_MEMBER = re.compile(r'[ \t]*+((?:W/)?"[^"]*+"|[^",]*+)[ \t]*+(?:,|\Z)')
_ENTITY_TAG = re.compile(r'(W/)?("[\x21\x23-\x7e\x80-\xff]*")')


def is_token(text: str) -> bool:
    """Whether a text is a token (RFC 9110 §5.6.2), such as a field name."""
    return _TOKEN.fullmatch(text) is not None


def members(lines: Iterable[str]) -> list[str]:
    """Return the members of a list-valued field, in order, from its lines."""
    return [member for line in lines for member in split_list(line)]


def field_names(value: str) -> tuple[str, ...]:
    """Return the field names in a list such as Vary, Connection or no-cache, in lower case."""
    return tuple(member.lower() for member in split_list(value))


def delta_seconds(text: str) -> int | None:
    """Return delta-seconds (RFC 9111 §1.2.2), at most ``MAX_DELTA``; None if not only digits."""
    if not _DIGITS.fullmatch(text):
        return None
    return min(int(text), MAX_DELTA) if len(text.lstrip("0")) <= 10 else MAX_DELTA


def opaque_tag(etag: str) -> str:
    """Return an entity tag without ``W/``, for weak comparison (RFC 9110 §8.8.3.2).

    If an application sent the tag without quotes, they are added.
    """
    tag = etag.removeprefix("W/")
    return tag if tag.startswith('"') else f'"{tag}"'


def entity_tags(value: str) -> list[str] | None:
    """Return the entity tags of an If-None-Match list; None if it is invalid.

    Tags without quotes are accepted, because some applications create them.
    """
    if len(value) > LONGEST_VALUE:
        return None
    tags, at = [], 0
    while at < len(value):
        found = _TAG_MEMBER.match(value, at)
        if found is None:
            return None
        if tag := found[1].rstrip(" \t"):
            tags.append(tag)
        at = found.end()
    return tags or None


def is_strong(etag: str) -> bool:
    """Whether a text is a strong entity tag (RFC 9110 §8.8.3)."""
    found = _ENTITY_TAG.fullmatch(etag)
    return found is not None and found[1] is None


# --- HTTP-date (RFC 9110 §5.6.7) ----------------------------------------------------------------
#
# The three formats are parsed strictly except for case (§4.2), because RFC 9111 §5.3 treats all
# other values as a time in the past. Names do not depend on the locale of the process.

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_LONG_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTH = f"(?P<month>{'|'.join(_MONTHS)})"
_TIME = r"(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)"
_DATE_FORMATS = tuple(
    re.compile(text, re.IGNORECASE | re.ASCII)
    for text in (
        rf"(?:{'|'.join(_DAYS)}), (?P<day>\d\d) {_MONTH} (?P<year>\d{{4}}) {_TIME} GMT",
        rf"(?:{'|'.join(_LONG_DAYS)}), (?P<day>\d\d)-{_MONTH}-(?P<year>\d\d) {_TIME} GMT",
        rf"(?:{'|'.join(_DAYS)}) {_MONTH} (?P<day>[ \d]\d) {_TIME} (?P<year>\d{{4}})",
    )
)


def parse_date(text: str, now: float) -> float | None:
    """Return an HTTP-date as seconds since 1970; None if it is invalid.

    A two-digit year more than 50 years after ``now`` is interpreted as the most recent past year
    with these digits.
    """
    text = text.strip(" \t")
    found = next(filter(None, (pattern.fullmatch(text) for pattern in _DATE_FORMATS)), None)
    if found is None:
        return None
    year = int(found["year"])
    if len(found["year"]) == 2:
        this_year = time.gmtime(now).tm_year
        year += this_year - this_year % 100
        if year > this_year + 50:
            year -= 100
    # A leap second is valid, but not supported by datetime. It becomes the previous second.
    second = 59 if found["second"] == "60" else int(found["second"])
    month = _MONTHS.index(found["month"].title()) + 1
    try:
        at = (int(found["day"]), int(found["hour"]), int(found["minute"]), second)
        return datetime(year, month, *at, tzinfo=UTC).timestamp()
    except ValueError:
        return None


def format_date(seconds: float) -> str:
    """Return a time in seconds since 1970 as IMF-fixdate: ``Sun, 06 Nov 1994 08:49:37 GMT``."""
    at = time.gmtime(seconds)
    return (
        f"{_DAYS[at.tm_wday]}, {at.tm_mday:02} {_MONTHS[at.tm_mon - 1]} {at.tm_year:04} "
        f"{at.tm_hour:02}:{at.tm_min:02}:{at.tm_sec:02} GMT"
    )


def date_of(headers: Headers, now: float) -> float:
    """Return a response's Date; if it is missing or invalid, ``now``, the time of receipt."""
    date = parse_date(headers.get("date") or "", now)
    return now if date is None else date


# --- Age and freshness (RFC 9111 §4.2) ----------------------------------------------------------


class Staleness(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How a response may be used after it has become stale."""

    while_revalidate: float = 0.0
    """The seconds of staleness in which the response may be used while it is revalidated."""
    if_error: float = 0.0
    """The seconds of staleness in which the response may be used instead of an error."""
    forbidden: bool = False
    """Whether the stale response must never be used, even if the client accepts it (§4.2.4)."""


_NEVER_STALE = Staleness(forbidden=True)


def staleness(control: Directives, rule: CacheRule, profile: Profile) -> Staleness:
    """Return how a response may be used when it is stale (§4.2.4, RFC 5861).

    The rule's values apply if the response does not state its own.
    """
    if control.unqualified("no-cache") or not control.arguments.keys().isdisjoint(
        ("must-revalidate", "proxy-revalidate")
    ):
        return _NEVER_STALE
    while_revalidate: float | None = control.seconds("stale-while-revalidate")
    if "s-maxage" in control:  # §5.2.2.10: it implies proxy-revalidate
        if while_revalidate is None or profile.s_maxage_revalidates:
            return _NEVER_STALE
        return Staleness(float(while_revalidate))
    if_error: float | None = control.seconds("stale-if-error")
    if while_revalidate is None:
        while_revalidate = cast("float", rule.stale_while_revalidate)
    if if_error is None:
        if_error = cast("float", rule.stale_if_error)
    return Staleness(float(while_revalidate), float(if_error))


def explicit_lifetime(head: ResponseHead, control: Directives, now: float) -> float | None:
    """Return the freshness lifetime in seconds that a response states (§4.2.1), or None.

    ``now`` is the time of receipt. The lifetime is 0 if it is invalid, or if there is ``no-cache``,
    which requires validation before each use (§5.2.2.4).
    """
    if control.unqualified("no-cache"):
        return 0.0
    for name in ("s-maxage", "max-age"):
        if (seconds := control.seconds(name)) is not None:
            return float(seconds)
    if control.targeted or (expires := head.headers.get("expires")) is None:
        return None
    at = parse_date(expires, now)
    return 0.0 if at is None else max(0.0, at - date_of(head.headers, now))


def heuristic_lifetime(head: ResponseHead, control: Directives, now: float) -> float | None:
    """Return the heuristic lifetime: a tenth of the time since Last-Modified (§4.2.2), or None.

    It is at most a day, and only used for heuristically cacheable statuses or with ``public``.
    """
    if head.status not in _HEURISTICALLY_CACHEABLE and "public" not in control:
        return None
    modified = parse_date(head.headers.get("last-modified") or "", now)
    if modified is None:
        return None
    since = max(0.0, date_of(head.headers, now) - modified)
    return min(since * _HEURISTIC_FRACTION, _MAX_HEURISTIC_LIFETIME)


def age_value(headers: Headers) -> int:
    """Return the first member of the Age field (§5.1); 0 if it is missing or invalid."""
    first = (headers.get("age") or "").split(",")[0].strip(" \t")
    return delta_seconds(first) or 0


def initial_age(headers: Headers, requested_at: float, received_at: float) -> float:
    """Return a response's corrected initial age in seconds (§4.2.3).

    Date has whole seconds, so the fraction of the current second is not counted as age.
    """
    apparent = max(0.0, received_at // 1 - date_of(headers, received_at))
    return max(apparent, age_value(headers) + max(0.0, received_at - requested_at))
