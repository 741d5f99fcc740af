"""Why a response was not stored, in plain words, and the setting that would change it."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

from msgspec import Struct

from upstash_middleware.core.cache.http.directives import is_token
from upstash_middleware.events import CacheNotStored

if TYPE_CHECKING:
    from collections.abc import Sequence

    from upstash_middleware.core.cache.rules import CacheRule
    from upstash_middleware.events import Observer
    from upstash_middleware.messages import Headers

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


def reason_of(detail: str, status: int, headers: Headers) -> Reason:
    """Return the reason that a ``detail`` of Cache-Status stands for.

    Args:
        detail: why the response was not stored, as in Cache-Status.
        status: the response's status.
        headers: the request's header fields, without the ignored cookies.
    """
    known = _kind_of(detail)
    if known is None:
        return Reason("other", detail)
    kind, found, make = known
    return Reason(kind, *make(found, status, headers))


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
    ("no-store", r"no-store\Z", _said("the response says no-store")),
    ("private", r"private\Z", _said("the response says private: it is for one user alone")),
    ("stale", "stale already", _said("its own freshness is over when it arrives")),
    ("Vary", r"Vary: \*", _said("the response says Vary: *, so that no request selects it")),
)


@lru_cache(maxsize=256)
def _kind_of(detail: str) -> tuple[str, re.Match[str], _Make] | None:
    """Return the kind of a detail, what its pattern found, and what makes its reason, if known."""
    for kind, pattern, make in _KINDS:
        if (found := re.match(pattern, detail)) is not None:
            return kind, found, make
    return None


class FirstReasons:
    """Emits the first response of each rule that was not stored for each reason."""

    def __init__(self, rules: Sequence[CacheRule], emit: Observer) -> None:
        self._settings = {id(rule): f"cache[{index}]" for index, rule in enumerate(rules)}
        self._emit = emit
        self._known: set[tuple[int, str]] = set()
        self._lock = threading.Lock()

    def note(self, rule: CacheRule, detail: str, status: int, headers: Headers) -> None:
        """Emit CacheNotStored if this is the first of its rule and kind."""
        known = _kind_of(detail)
        if known is None or (id(rule), known[0]) in self._known:
            return
        with self._lock:
            if (id(rule), known[0]) in self._known:
                return
            self._known.add((id(rule), known[0]))
        reason = reason_of(detail, status, headers)
        # A rule without a ttl is for responses that state their own freshness.
        advice = "" if rule.ttl is None and reason.kind == "lifetime" else reason.advice
        self._emit(CacheNotStored(self._settings.get(id(rule), "cache"), reason.why, advice))
