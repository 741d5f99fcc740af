"""The reasons why responses are not stored, as sentences, with the settings that change them."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from functools import lru_cache
from math import inf
from typing import TYPE_CHECKING, NamedTuple, cast

from msgspec import Struct

from upstash_middleware.core.cache.http.directives import is_token
from upstash_middleware.core.cache.rules import SUCCESSFUL
from upstash_middleware.events import CacheNotStored

if TYPE_CHECKING:
    from collections.abc import Sequence

    from upstash_middleware.core.cache.rules import CacheRule
    from upstash_middleware.core.clock import Clock
    from upstash_middleware.events import Observer
    from upstash_middleware.messages import Headers, HTTPRequest

_MAX_COOKIES = 3
_MAX_COOKIE_LENGTH = 40


class Reason(Struct, frozen=True):
    """Why a response was not stored."""

    kind: str
    """An identifier of the reason, by which log messages are limited."""
    why: str
    """The reason as text."""
    advice: str = ""
    """The setting or change that would help; empty if nothing has to change."""


_KINDS_SOLVED_BY_USER = frozenset({"cookies", "credentials", "private", "session"})
"""The kinds of reasons that no longer apply if ``user=`` finds a user."""
_KINDS_STATED_BY_RESPONSE = frozenset({"no-store", "private", "stale"})
"""The kinds of reasons for which the response itself states that it should not be stored."""


def reason_of(detail: str, case: Case, *, no_user: bool = False) -> Reason:
    """Return the reason for a ``detail`` of Cache-Status.

    Args:
        detail: The ``detail`` of Cache-Status.
        case: The response's status, the request and the rule.
        no_user: Whether the rule has ``user=``, but its function returned no user.
    """
    known = _match_kind(detail)
    if known is None:
        return Reason("other", detail)
    kind, found, why, advice = known
    if callable(why):
        why, advice = why(found, case)
    if no_user and kind in _KINDS_SOLVED_BY_USER:
        why = f"the function of user= returned no user for this request, and {why}"
        advice = "if the request has a user, return its id from the function of user="
    return Reason(kind, why, advice)


class Case(NamedTuple):
    """The request and response that a reason refers to."""

    status: int
    """The status of the response."""
    headers: Headers
    """The request's header fields, without the ignored cookies."""
    rule: CacheRule
    kept: Mapping[str, str]
    """Cookies that no rule may ignore, each with the setting that defines its name."""


def cookie_advice(case: Case, *, each_has_its_own: bool = False) -> str:
    """Return the settings to change for the cookies of a request.

    Args:
        case: The request.
        each_has_its_own: Whether each value of the Cookie field has its own response.
    """
    names, kept = cookie_names(case.headers), {unprefixed(n): s for n, s in case.kept.items()}
    of = {name: kept.get(unprefixed(name), "") for name in names}
    others = _quote_names([name for name in names if not of[name]])
    languages = _quote_names([name for name in names if of[name] == _LANGUAGE])
    tokens = _quote_names([name for name in names if of[name] == _CSRF])
    sessions = _quote_names([name for name in names if of[name] not in {"", _LANGUAGE, _CSRF}])
    advice = []
    if sessions:
        advice.append(
            f"for the session ({sessions}), set user= for a response for each user, or keep these "
            "pages out of the cache"
        )
    if languages or tokens:
        chosen = f"({languages},)" if languages else "()"
        advice.append(
            f"set vary_cookies={chosen} if views and templates read no other cookie themselves; "
            "Django adds Vary: Cookie to pages that use the session or a CSRF token"
        )
    if others or not names:
        setting = f"ignore_cookies=({others},)" if others else "ignore_cookies"
        if each_has_its_own:
            advice.append(
                f"set {setting} for cookies that the page does not depend on, and for the others "
                "vary_cookies and narrow_vary_cookie=True"
            )
        elif advice:
            advice.append(f"if the page does not depend on the others, set {setting}")
        else:
            advice.append(
                f"if it does not, set {setting}; name those on which it depends in vary_cookies"
            )
    return "; ".join(advice)


_LANGUAGE, _CSRF = "LANGUAGE_COOKIE_NAME", "CSRF_COOKIE_NAME"
"""Django's settings for cookie names other than the session's."""


def unprefixed(name: str) -> str:
    """Return a cookie's name without its prefix ``__Host-`` or ``__Secure-``."""
    return name.removeprefix("__Host-").removeprefix("__Secure-")


def cookie_names(headers: Headers) -> list[str]:
    """Return the names of a request's cookies that can be used in a setting.

    Names that are too long or not tokens are left out, so that nobody copies them.
    """
    pairs = [pair for line in headers.lines("cookie") for pair in line.split(";")]
    names = dict.fromkeys(pair.partition("=")[0].strip() for pair in pairs)
    return [name for name in names if is_token(name) and len(name) <= _MAX_COOKIE_LENGTH]


def _quote_names(names: Sequence[str]) -> str:
    """Return the first few names, quoted as in a setting."""
    return ", ".join(map(repr, names[:_MAX_COOKIES]))


_WhyAndAdvice = tuple[str, str]
_Explain = Callable[[re.Match[str], Case], _WhyAndAdvice]


def _cookies(_found: re.Match[str], case: Case) -> _WhyAndAdvice:
    names = _quote_names(cookie_names(case.headers))
    sent = f"cookies ({names})" if names else "cookies"
    return (
        (
            f"the request has {sent}, and neither the response's Vary nor the rule says whether "
            "the page depends on them"
        ),
        cookie_advice(case),
    )


_WORTH_STORING = SUCCESSFUL | {302, 307, 404, 410}
"""The statuses for which a ttl is suggested. Other statuses indicate an error."""


def _no_lifetime(_found: re.Match[str], case: Case) -> _WhyAndAdvice:
    status, ttl = case.status, case.rule.ttl
    why = f"neither the response nor the rule says for how long a response with status {status} "
    if status not in _WORTH_STORING:
        return f"{why}is fresh", ""
    if ttl is None and status in SUCCESSFUL:
        return f"{why}is fresh", "set ttl=60, or send Cache-Control: max-age=60"
    by_status = ttl if isinstance(ttl, Mapping) else {} if ttl is None else {200: ttl}
    by_status = {**by_status, status: 60 if status in SUCCESSFUL else 5}
    text = ", ".join(f"{key}: {_number(cast('float', each))}" for key, each in by_status.items())
    seconds = by_status[status]
    return f"{why}is fresh", f"set ttl={{{text}}}, or send Cache-Control: max-age={seconds}"


def _number(seconds: float) -> str:
    return str(int(seconds)) if seconds == int(seconds) else str(seconds)


def _credentials(found: re.Match[str], _case: Case) -> _WhyAndAdvice:
    return (
        f"the request has {found[1]}, so the response may be its user's own",
        (
            "set user= for a response for each user, or bypass for such requests; or send "
            "Cache-Control: public if it is the same for all"
        ),
    )


_KINDS: Sequence[tuple[str, str, str | _Explain, str]] = (
    ("cookies", "request with cookies, and no Vary: Cookie", _cookies, ""),
    ("lifetime", "no freshness lifetime", _no_lifetime, ""),
    ("credentials", r"request with (\S+)\Z", _credentials, ""),
    (
        "Set-Cookie",
        "Set-Cookie",
        "the response sets a cookie, which every other visitor would get",
        (
            "do not set it on this page (in Flask and Django, do not change the session there), or "
            "set user= for a response for each user without cookies in it"
        ),
    ),
    (
        "session",
        "it depends on the session",
        "the response depends on the session",
        (
            "set user= for a response for each user; one for clients without a session is stored "
            "if the whole Cookie field selects it"
        ),
    ),
    (
        "invalid session",
        "its session cookie is not valid",
        "the session cookie of the request is invalid or has expired",
        "",
    ),
    (
        "size",
        "body above",
        "the body is larger than the maximum",
        "raise the rule's max_body, or the setting cache_max_body",
    ),
    (
        "redirect",
        "a redirect, and",
        "it is a redirect, which may contain query parameters that do not select it",
        "set keep_query or ignore_query without these parameters for this path",
    ),
    (
        "address",
        "shows ",
        "the page shows the client's address",
        "exclude its path from the cache rules",
    ),
    (
        "tags",
        "more than .* tags",
        "it has too many tags",
        "use fewer tags, such as those of its parents",
    ),
    (
        "errors",
        ".* errors of its rule",
        "enough errors were stored in this minute",
        (
            "increase the rule's errors_per_minute if many visitors get these responses, and they "
            "are not for random paths"
        ),
    ),
    (
        "no-store",
        r"no-store\Z",
        "the response says no-store in its Cache-Control",
        "leave out no-store if the response may be stored",
    ),
    (
        "private",
        r"private\Z",
        "the response says private in its Cache-Control: it is for a single user",
        "set user= for a response for each user, or leave out private if it is the same for all",
    ),
    (
        "stale",
        "stale already",
        "it was already stale when it arrived",
        "send a longer max-age, or none, so that the rule's ttl applies",
    ),
    ("method", "only responses to GET", "only responses to GET are stored", "request it with GET"),
    ("Vary", r"Vary: \*", "the response says Vary: *, so no request can select it", ""),
)
"""Kind, pattern of the detail, reason and advice; a function may return the last two."""


@lru_cache(maxsize=256)
def _match_kind(detail: str) -> tuple[str, re.Match[str], str | _Explain, str] | None:
    """Return kind, match, reason and advice for a detail; None if it is unknown."""
    for kind, pattern, why, advice in _KINDS:
        if (found := re.match(pattern, detail)) is not None:
            return kind, found, why, advice
    return None


_HOUR = 3600.0
_PATHS = 3
"""The maximum number of paths reported in an hour for each rule and reason."""


class Reasons:
    """Emits why responses are not stored: a few paths in each hour, for each rule and reason.

    With a single path, an unusual request could prevent more useful reports about its rule.
    """

    def __init__(
        self, rules: Sequence[CacheRule], kept: Mapping[str, str], emit: Observer, clock: Clock
    ) -> None:
        """``kept`` are cookies that no rule may ignore, each with the setting of its name."""
        self._settings = {id(rule): f"cache[{index}]" for index, rule in enumerate(rules)}
        self._kept = kept
        self._emit = emit
        self._clock = clock
        self._known: dict[tuple[int, str], tuple[float, frozenset[str]]] = {}
        """By rule and kind, the end of the hour and the paths reported in it."""
        self._lock = threading.Lock()

    def case(self, rule: CacheRule, status: int, headers: Headers) -> Case:
        """Return the case for a response's status and the request's header fields."""
        return Case(status, headers, rule, self._kept)

    def note(
        self, rule: CacheRule, detail: str, status: int, request: HTTPRequest, *, no_user: bool
    ) -> None:
        """Emit CacheNotStored if this is one of the first of its rule and kind in an hour."""
        known = _match_kind(detail)
        if known is None or not self._is_first((id(rule), known[0]), request.path):
            return
        reason = reason_of(detail, self.case(rule, status, request.headers), no_user=no_user)
        advice = reason.advice
        # A rule without ttl is meant for responses that state their own lifetime.
        if reason.kind in _KINDS_STATED_BY_RESPONSE or (
            rule.ttl is None and reason.kind == "lifetime"
        ):
            advice = ""
        where = self._settings.get(id(rule), "cache")
        self._emit(CacheNotStored(where, reason.why, advice, request.path))

    def _is_first(self, place: tuple[int, str], path: str) -> bool:
        now, path = self._clock.monotonic(), path[:_MAX_PATH_LENGTH]
        with self._lock:
            until, paths = self._known.get(place, (-inf, frozenset()))
            if now >= until:
                until, paths = now + _HOUR, frozenset()
            if path in paths or len(paths) >= _PATHS:
                return False
            self._known[place] = until, paths | {path}
            return True


_MAX_PATH_LENGTH = 400
