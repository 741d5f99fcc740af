"""Why a response was not stored, in plain words, and the setting that would change it."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from functools import lru_cache
from math import inf
from typing import TYPE_CHECKING

from msgspec import Struct

from upstash_middleware.core.cache.http.directives import is_token
from upstash_middleware.events import CacheNotStored

if TYPE_CHECKING:
    from collections.abc import Sequence

    from upstash_middleware.core.cache.rules import CacheRule
    from upstash_middleware.core.clock import Clock
    from upstash_middleware.events import Observer
    from upstash_middleware.messages import Headers, HTTPRequest

_MOST_COOKIES = 3
_LONGEST_COOKIE = 40


class Reason(Struct, frozen=True):
    """Why a response was not stored."""

    kind: str
    """What all responses that were not stored for this reason have in common."""
    why: str
    """The reason in plain words."""
    advice: str = ""
    """The setting that would change it, or what else would; empty if nothing has to change."""


_OF_USERS = frozenset({"cookies", "credentials", "private", "session"})
"""What is no reason where ``user=`` has found a user."""
_INTENDED = frozenset({"no-store", "private", "stale"})
"""What a response says itself, so that nothing suggests that it should be stored."""


def reason_of(detail: str, status: int, headers: Headers, *, no_user: bool = False) -> Reason:
    """Return the reason that a ``detail`` of Cache-Status stands for.

    Args:
        detail: why the response was not stored, as in Cache-Status.
        status: the response's status.
        headers: the request's header fields, without the ignored cookies.
        no_user: whether the rule has ``user=``, and that has found no user.
    """
    known = _kind_of(detail)
    if known is None:
        return Reason("other", detail)
    kind, found, make = known
    why, advice = make(found, status, headers)
    if no_user and kind in _OF_USERS:
        why = f"the function of user= returned no user for this request, and {why}"
        advice = "if the request has a user, return its id from the function of user="
    return Reason(kind, why, advice)


def cookie_names(headers: Headers) -> str:
    """Return a few names of a request's cookies, as they are written in a setting.

    Names that are not tokens, or too long, are left out: nobody should copy them into a setting.
    """
    pairs = [pair for line in headers.lines("cookie") for pair in line.split(";")]
    names = dict.fromkeys(pair.partition("=")[0].strip() for pair in pairs)
    known = [name for name in names if is_token(name) and len(name) <= _LONGEST_COOKIE]
    return ", ".join(map(repr, known[:_MOST_COOKIES]))


_Made = tuple[str, str]
_Make = Callable[[re.Match[str], int, "Headers"], _Made]


def _cookies(_found: re.Match[str], _status: int, headers: Headers) -> _Made:
    names = cookie_names(headers)
    sent = f"cookies ({names})" if names else "cookies"
    setting = f"ignore_cookies=({names},)" if names else "ignore_cookies"
    return (
        (
            f"the request has {sent}, and neither the response's Vary nor the rule says whether "
            "the page depends on them"
        ),
        f"if it does not, set {setting}; name those on which it depends in vary_cookies",
    )


def _no_lifetime(_found: re.Match[str], status: int, _headers: Headers) -> _Made:
    return (
        (
            f"neither the response nor the rule says for how long a response with status {status} "
            "is fresh"
        ),
        f"set ttl={{{status}: 60}}, or send Cache-Control: max-age=60",
    )


def _credentials(found: re.Match[str], _status: int, _headers: Headers) -> _Made:
    return (
        f"the request has {found[1]}, so the response may be its user's own",
        (
            "set user= for a response for each user, or bypass for such requests; or send "
            "Cache-Control: public if it is the same for all"
        ),
    )


def _said(why: str, advice: str = "") -> _Make:
    return lambda _found, _status, _headers: (why, advice)


_KINDS: Sequence[tuple[str, str, _Make]] = (
    ("cookies", "request with cookies, and no Vary: Cookie", _cookies),
    ("lifetime", "no freshness lifetime", _no_lifetime),
    ("credentials", r"request with (\S+)\Z", _credentials),
    (
        "Set-Cookie",
        "Set-Cookie",
        _said(
            "the response sets a cookie, which every other visitor would get",
            "do not set it on this page (in Flask and Django, do not change the session there), or "
            "set user= for a response for each user without cookies in it",
        ),
    ),
    (
        "session",
        "it depends on the session",
        _said("the handler has used the session", "set user= for a response for each user"),
    ),
    (
        "invalid session",
        "its session cookie is not valid",
        _said("the session cookie of the request is not valid, or has expired"),
    ),
    (
        "size",
        "body above",
        _said(
            "the body is larger than the largest one that is stored",
            "raise the rule's max_body, or the setting cache_max_body",
        ),
    ),
    (
        "redirect",
        "a redirect, and",
        _said(
            "it is a redirect, which may contain query parameters that do not select it",
            "set keep_query or ignore_query without these parameters for this path",
        ),
    ),
    (
        "address",
        "shows ",
        _said("the page shows the client's address", "exclude its path from the cache rules"),
    ),
    (
        "tags",
        "more than .* tags",
        _said("it has too many tags", "give it fewer tags, such as those of its parents"),
    ),
    (
        "errors",
        ".* errors of its rule",
        _said(
            "enough errors were stored in this minute",
            "raise the rule's errors_per_minute if these are responses that many visitors get, and "
            "not those to random paths",
        ),
    ),
    (
        "no-store",
        r"no-store\Z",
        _said(
            "the response says no-store in its Cache-Control",
            "send no no-store if it may be stored",
        ),
    ),
    (
        "private",
        r"private\Z",
        _said(
            "the response says private in its Cache-Control: it is for one user alone",
            "set user= for a response for each user, or send no private if it is the same for all",
        ),
    ),
    (
        "stale",
        "stale already",
        _said(
            "its own freshness is over when it arrives",
            "send a longer max-age, or no freshness, so that the rule's ttl counts",
        ),
    ),
    ("Vary", r"Vary: \*", _said("the response says Vary: *, so that no request selects it")),
)


@lru_cache(maxsize=256)
def _kind_of(detail: str) -> tuple[str, re.Match[str], _Make] | None:
    """Return the kind of a detail, what its pattern found, and what makes its reason, if known."""
    for kind, pattern, make in _KINDS:
        if (found := re.match(pattern, detail)) is not None:
            return kind, found, make
    return None


_HOUR = 3600.0
_PATHS = 3
"""How many paths of each rule and reason are reported in an hour."""


class FirstReasons:
    """Emits the first responses of each rule that were not stored for each reason, in each hour.

    Those of a few paths, so that one odd request does not use up the report of its rule.
    """

    def __init__(self, rules: Sequence[CacheRule], emit: Observer, clock: Clock) -> None:
        self._settings = {id(rule): f"cache[{index}]" for index, rule in enumerate(rules)}
        self._emit = emit
        self._clock = clock
        self._known: dict[tuple[int, str], tuple[float, frozenset[str]]] = {}
        """Until when, and for which paths, by rule and kind."""
        self._lock = threading.Lock()

    def note(
        self, rule: CacheRule, detail: str, status: int, request: HTTPRequest, *, no_user: bool
    ) -> None:
        """Emit CacheNotStored if this is among the first of its rule and kind."""
        known = _kind_of(detail)
        if known is None or not self._is_news((id(rule), known[0]), request.path):
            return
        reason = reason_of(detail, status, request.headers, no_user=no_user)
        advice = reason.advice
        # A rule without a ttl is for responses that state their own freshness.
        if reason.kind in _INTENDED or (rule.ttl is None and reason.kind == "lifetime"):
            advice = ""
        where = self._settings.get(id(rule), "cache")
        self._emit(CacheNotStored(where, reason.why, advice, request.path))

    def _is_news(self, place: tuple[int, str], path: str) -> bool:
        now, path = self._clock.monotonic(), path[:_LONGEST_PATH]
        with self._lock:
            until, paths = self._known.get(place, (-inf, frozenset()))
            if now >= until:
                until, paths = now + _HOUR, frozenset()
            if path in paths or len(paths) >= _PATHS:
                return False
            self._known[place] = until, paths | {path}
            return True


_LONGEST_PATH = 400
