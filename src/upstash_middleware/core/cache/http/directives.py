"""What messages say about caching: directives, dates, age and freshness.

RFC 9111 §4.2 and §5, RFC 9213 (targeted fields), RFC 5861 (stale responses). Pure functions of
header fields.
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
"""The field by which a handler's decorator addresses this cache alone; it is not sent on."""
MAX_DELTA = 2**31
"""The largest delta-seconds; anything above counts as this (RFC 9111 §1.2.2)."""

# RFC 9110 §15.1: final statuses whose definition allows heuristic freshness.
_HEURISTICALLY_CACHEABLE = frozenset({200, 203, 204, 206, 300, 301, 308, 404, 405, 410, 414, 501})
_HEURISTIC_FRACTION = 0.1
_MAX_HEURISTIC_LIFETIME = 24 * 3600.0


# --- Directives (RFC 9111 §5.2) -----------------------------------------------------------------

# Quantifiers are possessive where a pattern could backtrack otherwise.
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_QUOTED = re.compile(r'"((?:[^"\\]++|\\.)*+)"')
_ESCAPE = re.compile(r"\\(.)")
_ARGUMENT = re.compile(rf"{_TOKEN.pattern}|{_QUOTED.pattern}|")
_WORD = re.compile(r"[a-z-]+")
_DIGITS = re.compile(r"[0-9]+")
_LIFETIMES = frozenset({"max-age", "s-maxage"})
_FORBIDDING = frozenset({"must-revalidate", "no-cache", "no-store", "private", "proxy-revalidate"})


class Directives(Struct, frozen=True):
    """Cache directives: lower-case names to unquoted arguments.

    Of a repeated directive the first counts (RFC 9111 §4.2.1). The fields named by several
    ``no-cache`` or ``private`` are combined, and one without names outweighs those with names.
    """

    arguments: Mapping[str, str | None]
    targeted: bool = False
    """Whether they come from a targeted field, so that Expires is ignored (RFC 9213 §2.2)."""

    @classmethod
    def parse(cls, lines: Iterable[str]) -> Directives:
        """Parse the lines of a Cache-Control field; a malformed member is skipped.

        If it contains a word that forbids storing or using the response, that word is obeyed, and
        a lifetime in it counts as 0: writing a semicolon or space for a comma is a common mistake.
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
        """Return a directive's delta-seconds, None if it is absent.

        Invalid freshness information counts as 0, as RFC 9111 §4.2.1 encourages.
        """
        if name not in self.arguments:
            return None
        argument = self.arguments[name]
        return (delta_seconds(argument) if argument is not None else None) or 0

    def named_fields(self, name: str) -> tuple[str, ...] | None:
        """Return the fields that ``no-cache`` or ``private`` name, in lower case; None for none."""
        argument = self.arguments.get(name)
        return field_names(argument) if argument else None

    def unqualified(self, name: str) -> bool:
        """Whether the directive is present and names no fields."""
        return name in self.arguments and not self.named_fields(name)

    def without(self, name: str) -> Directives:
        """Return the directives but for one."""
        arguments = {each: text for each, text in self.arguments.items() if each != name}
        return Directives(arguments, self.targeted)


NO_DIRECTIVES = Directives({})
_UNREADABLE = {"no-store": None, "no-cache": None}


def cache_control(headers: Headers) -> Directives:
    """Return the Cache-Control directives of a message."""
    lines = headers.lines("cache-control")
    if not lines:
        return NO_DIRECTIVES
    # A quoted string without an end could hide any directive.
    if sum(map(len, lines)) > LONGEST_VALUE or any(
        '"' in line and '"' in _QUOTED.sub("", line) for line in lines
    ):
        return Directives(_UNREADABLE)
    return Directives.parse(lines)


def client_control(headers: Headers) -> Directives:
    """Return a request's cache directives (§5.2.1); Pragma counts without Cache-Control (§5.4)."""
    if "cache-control" in headers:
        return cache_control(headers)
    pragma = Directives.parse(headers.lines("pragma"))
    return Directives({"no-cache": None}) if "no-cache" in pragma else NO_DIRECTIVES


def control_of(headers: Headers, targets: Iterable[str]) -> Directives:
    """Return the directives that a response gives to this cache (RFC 9213 §2.2).

    Those of the first field of ``targets`` (lower-case names) that is valid and not empty, else
    those of Cache-Control.
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
    """Return the directives of a targeted field (RFC 9213 §2.1), None if it is invalid or empty.

    It is a Dictionary: of a repeated key the last counts. A directive of delta-seconds with a
    value of another type makes the field invalid; the value False means that it does not apply.
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

# In an entity tag a backslash is itself (RFC 9110 §8.8.3), so its lists have their own syntax.
_TAG_MEMBER = re.compile(r'[ \t]*+((?:W/)?"[^"]*+"|[^",]*+)[ \t]*+(?:,|\Z)')
_ENTITY_TAG = re.compile(r'(W/)?("[\x21\x23-\x7e\x80-\xff]*")')


def is_token(text: str) -> bool:
    """Whether a text is a token (RFC 9110 §5.6.2), as the name of a field is."""
    return _TOKEN.fullmatch(text) is not None


def members(lines: Iterable[str]) -> list[str]:
    """Return the members of a list-valued field's lines, in order."""
    return [member for line in lines for member in split_list(line)]


def field_names(value: str) -> tuple[str, ...]:
    """Return a list of field names in lower case, as in Vary, Connection and no-cache."""
    return tuple(member.lower() for member in split_list(value))


def delta_seconds(text: str) -> int | None:
    """Return delta-seconds (RFC 9111 §1.2.2), capped; None for anything but digits."""
    if not _DIGITS.fullmatch(text):
        return None
    return min(int(text), MAX_DELTA) if len(text.lstrip("0")) <= 10 else MAX_DELTA


def opaque_tag(etag: str) -> str:
    """Return an entity tag without its weakness, for weak comparison (RFC 9110 §8.8.3.2).

    A tag that an application sent without quotes counts as if it had them.
    """
    tag = etag.removeprefix("W/")
    return tag if tag.startswith('"') else f'"{tag}"'


def entity_tags(value: str) -> list[str] | None:
    """Return the entity tags of an If-None-Match list, None if it is not such a list.

    Tags without quotes are accepted: applications make them, and clients send them back.
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
    """Whether this is a strong entity tag (RFC 9110 §8.8.3)."""
    found = _ENTITY_TAG.fullmatch(etag)
    return found is not None and found[1] is None


# --- HTTP-date (RFC 9110 §5.6.7) ----------------------------------------------------------------
#
# The three formats are read strictly, since RFC 9111 §5.3 counts anything else as a time in the
# past; only case makes no difference (§4.2). Names do not depend on the process's locale.

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
    """Return an HTTP-date as seconds since 1970, None for anything else.

    A two-digit year that appears to be more than 50 years after ``now`` is the most recent past
    year with these digits.
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
    # A leap second is a valid time, but not to datetime: it counts as the second before.
    second = 59 if found["second"] == "60" else int(found["second"])
    month = _MONTHS.index(found["month"].title()) + 1
    try:
        at = (int(found["day"]), int(found["hour"]), int(found["minute"]), second)
        return datetime(year, month, *at, tzinfo=UTC).timestamp()
    except ValueError:
        return None


def format_date(seconds: float) -> str:
    """Return seconds since 1970 as an IMF-fixdate: ``Sun, 06 Nov 1994 08:49:37 GMT``."""
    at = time.gmtime(seconds)
    return (
        f"{_DAYS[at.tm_wday]}, {at.tm_mday:02} {_MONTHS[at.tm_mon - 1]} {at.tm_year:04} "
        f"{at.tm_hour:02}:{at.tm_min:02}:{at.tm_sec:02} GMT"
    )


def date_of(headers: Headers, now: float) -> float:
    """Return a response's Date, or ``now``, when it was received, if it has no valid one."""
    date = parse_date(headers.get("date") or "", now)
    return now if date is None else date


# --- Age and freshness (RFC 9111 §4.2) ----------------------------------------------------------


class Staleness(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How a response may be used after it has become stale."""

    while_revalidate: float = 0.0
    """Seconds of staleness during which it may be used while it is revalidated."""
    if_error: float = 0.0
    """Seconds of staleness during which it may be used in place of an error."""
    forbidden: bool = False
    """Whether it must never be used stale, whatever the client accepts (§4.2.4)."""


_NEVER_STALE = Staleness(forbidden=True)


def staleness(control: Directives, rule: CacheRule, profile: Profile) -> Staleness:
    """Return how a response may be used stale (§4.2.4, RFC 5861).

    The rule's windows apply where the response does not state its own.
    """
    if control.unqualified("no-cache") or not control.arguments.keys().isdisjoint(
        ("must-revalidate", "proxy-revalidate")
    ):
        return _NEVER_STALE
    while_revalidate: float | None = control.seconds("stale-while-revalidate")
    if "s-maxage" in control:  # §5.2.2.10: it incorporates proxy-revalidate
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
    """Return the freshness lifetime in seconds that a response states (§4.2.1), None for none.

    ``now`` is when it was received. Invalid information means stale, and so does ``no-cache``:
    the response must not be used without validation (§5.2.2.4).
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
    """Return a tenth of the time since Last-Modified, at most a day (§4.2.2); None for none.

    Only for statuses defined as heuristically cacheable, and responses marked as public.
    """
    if head.status not in _HEURISTICALLY_CACHEABLE and "public" not in control:
        return None
    modified = parse_date(head.headers.get("last-modified") or "", now)
    if modified is None:
        return None
    since = max(0.0, date_of(head.headers, now) - modified)
    return min(since * _HEURISTIC_FRACTION, _MAX_HEURISTIC_LIFETIME)


def age_value(headers: Headers) -> int:
    """Return the Age field: its first member (§5.1), 0 if that is absent or invalid."""
    first = (headers.get("age") or "").split(",")[0].strip(" \t")
    return delta_seconds(first) or 0


def initial_age(headers: Headers, requested_at: float, received_at: float) -> float:
    """Return a response's corrected initial age in seconds (§4.2.3).

    Date has whole seconds, so the fraction of a second that has passed since is no age.
    """
    apparent = max(0.0, received_at // 1 - date_of(headers, received_at))
    return max(apparent, age_value(headers) + max(0.0, received_at - requested_at))
