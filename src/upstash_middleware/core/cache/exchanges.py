"""A forwarded request and its response in the cache, and what concurrent requests share.

Each of these exchanges is a ``PartExchange``:

- ``Miss``: the request is forwarded, and its response is recorded and stored.
- ``Revalidation``: the same with a stored response that may not be used as it is.
- ``Invalidation``: an unsafe request, which makes stored responses invalid. ``PostInvalidation``
  may store its own response in their place.
- ``Bypassed``: the request is forwarded, and the cache only says why.
- ``Answered``: the cache answers itself, and nothing is forwarded.
- ``Debugged``: any of these, for somebody who debugs the cache.

``cache.py`` decides which.
"""

from __future__ import annotations

import re
import threading
from enum import Enum, auto
from math import floor
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urljoin, urlsplit

from msgspec import Struct, field
from msgspec.structs import replace

from upstash_middleware.core.cache import keys
from upstash_middleware.core.cache.entries import ABSENT
from upstash_middleware.core.cache.http import directives, reuse, storing
from upstash_middleware.core.cache.http.directives import NO_DIRECTIVES
from upstash_middleware.core.cache.http.fields import shows_any
from upstash_middleware.core.cache.http.no_vary_search import EXACT, variation_of
from upstash_middleware.core.cache.http.reuse import CONDITIONS, cache_status, current_age, quoted
from upstash_middleware.core.cache.http.storing import Candidate, Plan
from upstash_middleware.core.cache.http.vary import vary_fields
from upstash_middleware.core.cache.reasons import reason_of
from upstash_middleware.core.cache.redis_store import FAILED, UNSHARED
from upstash_middleware.core.cache.rules import SUCCESSFUL
from upstash_middleware.core.cache.store import UNSHARED_SECONDS, Purge
from upstash_middleware.core.engine import PartExchange
from upstash_middleware.core.flow import Latch
from upstash_middleware.core.lru import LRU
from upstash_middleware.errors import UpstashError
from upstash_middleware.events import CacheStored, UpstashAnswered, UpstashFailed
from upstash_middleware.messages import (
    LONGEST_VALUE,
    WITHOUT_BODY,
    Response,
    ResponseHead,
    content_length,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from upstash_middleware.core.cache.cdn import CDN
    from upstash_middleware.core.cache.entries import StoredResponse
    from upstash_middleware.core.cache.explanation import CacheExplanation
    from upstash_middleware.core.cache.http.directives import Directives
    from upstash_middleware.core.cache.http.fields import KnownFields
    from upstash_middleware.core.cache.http.no_vary_search import Variation
    from upstash_middleware.core.cache.reasons import Reasons
    from upstash_middleware.core.cache.rules import CacheRule
    from upstash_middleware.core.cache.store import Lookup, Store, Target
    from upstash_middleware.core.clock import Clock
    from upstash_middleware.core.flow import Flow
    from upstash_middleware.events import Observer
    from upstash_middleware.messages import Headers, HTTPRequest

SAFE_METHODS = frozenset(
    {"GET", "HEAD", "OPTIONS", "PRI", "PROPFIND", "QUERY", "REPORT", "SEARCH", "TRACE"}
)
"""The methods registered as safe; all others may change what is stored (RFC 9111 §4.4)."""
# RFC 5861 §4: the statuses that stale-if-error is about.
_STALE_IF_ERROR_STATUSES = frozenset({500, 502, 503, 504})
_MAX_CERTAIN_BYTES = 7_000_000
"""Bytes of a body that fits in one call of 10 MB, even in base64."""
BACK_OFF = 5.0
"""Seconds for which a revalidation that has failed is not repeated."""
_MAX_REMEMBERED = 10_000
_ABANDONED_AFTER = 60.0
"""Seconds after which a render, revalidation or invalidation counts as dropped by its owner."""
_DEBUGGED = "a response for debugging"
_BODY_NOT_SEEN = "the server sends the file itself"
_DEPENDS_ON_SESSION = "it depends on the session"


class Context(Struct, frozen=True):
    """What all exchanges share."""

    rules: tuple[CacheRule, ...]
    store: Store
    emit: Observer
    max_body: int
    """Bytes of the largest body that is stored."""
    grace: float
    """Seconds for which a response is kept to be validated after it has become stale."""
    targets: tuple[str, ...]
    """The targeted fields that are meant for this cache, the most specific first."""
    can_refresh: bool
    """Whether stale responses can be revalidated in the background."""
    flights: SingleFlight
    revalidations: Revalidations
    pending: PendingInvalidations
    collapse: float
    """Seconds for which a request waits for another one like it; 0 for not at all."""
    shows_keys: bool
    """Whether Cache-Status contains the keys of responses."""
    fields: KnownFields
    has_groups: bool
    """Whether Cache-Groups and Cache-Group-Invalidation count."""
    cdn: CDN | None
    """The CDN in front, by the setting ``cdn``."""
    errors: StoredErrors
    reasons: Reasons
    variations: Variations
    canonical: Callable[[HTTPRequest, Target, Variation], Target]
    """Returns the target of the canonical form of a request's URL, from the URL's own target."""


class RuleContext(Context, frozen=True, kw_only=True):
    """What all exchanges under one rule share."""

    rule: CacheRule
    setting: str
    """What errors call the rule: ``cache[0]``."""
    ignored: re.Pattern[str] | None
    """What matches the cookies that are ignored."""
    calls_user_code: bool
    """Whether the rule has functions to call."""

    def candidate(
        self,
        request: HTTPRequest,
        head: ResponseHead,
        control: Directives,
        vary: tuple[str, ...],
        *,
        private: bool,
    ) -> Candidate:
        """Return a response that was received now, and what decides whether it is stored."""
        now, profile = self.store.clock.wall(), self.store.profile
        sent = request, self.rule, profile, head, control, vary, now, self.fields
        return Candidate(*sent, private, self.has_groups)


class LookedUpRequest(Struct, frozen=True):
    """A request with the result of its lookup."""

    context: RuleContext
    request: HTTPRequest
    target: Target
    lookup: Lookup
    fwd: str
    """Why it is forwarded, if it is: an RFC 9211 ``fwd`` reason."""
    requested: Directives = NO_DIRECTIVES
    """The request's directives, if they are obeyed."""
    part: StoredResponse | None = None
    """A stored part that lacks the requested range, to be combined with the response."""

    @property
    def shown_key(self) -> str:
        """The key that Cache-Status contains."""
        return self.lookup.key if self.context.shows_keys else ""

    @property
    def now(self) -> float:
        """Seconds since 1970."""
        return self.context.store.clock.wall()

    @property
    def has_no_user(self) -> bool:
        """Whether its rule selects by user, and the request has none."""
        return self.context.rule.user is not None and not self.target.private

    @property
    def varying(self) -> tuple[str, ...]:
        """The fields named by the Vary of the resource's stored responses."""
        return self.lookup.index.vary if self.lookup.index is not None else ()

    @property
    def is_expected(self) -> bool:
        """Whether a response that may be stored is expected, as far as is known."""
        expected = self.context.rule.ttl_for(200) is not None or self.lookup.known
        return self.context.flights.expects(self.lookup.key, default=expected)

    def is_immutable(self, stored: StoredResponse) -> bool:
        """Whether a stored response does not change while it is fresh (RFC 8246), if that counts.

        It counts where the client asks for a younger response.
        """
        if "max-age" not in self.requested:
            return False
        return "immutable" in directives.control_of(stored.headers, self.context.targets)

    def target_of(self, stored: StoredResponse) -> tuple[Target, Lookup]:
        """Return the target under whose key a response is stored, and its lookup.

        That is the canonical form of the requested URL by the response's own No-Vary-Search.
        """
        lookup, exact, variation = self.lookup, self.target.exact, variation_of(stored.headers)
        if exact is None and variation == EXACT:
            return self.target, lookup
        target = exact or self.target
        if variation != EXACT:
            target = self.context.canonical(self.request, target, variation)
        if target.key == self.target.key or (exact is None and lookup.epochs.url != ABSENT):
            return self.target, lookup  # where the URL was purged, only its own key answers it
        # The epoch of this URL was not read before the application was called. That it is absent
        # when the response is found says that it was absent then: it would not have expired since.
        epochs = replace(lookup.epochs, url=ABSENT)
        return target, replace(lookup, key=target.key, entry=None, index=None, epochs=epochs)

    def head_of(self, stored: StoredResponse, age: float, /, **status: Any) -> ResponseHead:
        """Return the head of a stored response as it is sent, with these parts of Cache-Status."""
        field = cache_status(ttl=stored.lifetime - age, key=self.shown_key, **status)
        head = reuse.head_of(stored, age, self.context.store.profile, field)
        return _for_downstream(head, self, stored)

    def may_be_stored(self) -> bool:
        """Whether the response could be stored, as far as the request decides."""
        headers, rule, profile = self.request.headers, self.context.rule, self.context.store.profile
        if self.request.method != "GET" or "no-store" in directives.cache_control(headers):
            return False
        if self.target.private:
            return True
        barring = {"authorization"} - {*self.varying}
        if rule.vary_cookies is None and not profile.stores_for_cookies:
            barring |= {"cookie"} - {*self.varying}
        if not barring.isdisjoint(headers.names()):
            return False
        selecting = (*self.varying, *rule.vary_headers)
        known = self.context.fields
        return profile.stores_for_credentials or known.credential_of(headers, selecting) is None

    def lacks_cookie(self, name: str) -> bool:
        """Whether the request has no cookie of this name, and its absence can select responses."""
        if self.context.ignored is not None and self.context.ignored.fullmatch(name):
            return False
        return not any(name in line for line in self.request.headers.lines("cookie"))

    def selecting_fields(self, stored: StoredResponse) -> set[str]:
        """Return the request fields that select a stored response."""
        # The selector of Accept-Encoding may list codings.
        vary = {*vary_fields(stored.headers), *(name.partition("=")[0] for name in self.varying)}
        if self.context.rule.narrow_vary_cookie:
            vary.discard("cookie")  # it means the cookies that the rule names
        return vary | {*self.context.rule.vary_headers}


class Refresh(Struct, frozen=True):
    """A background revalidation of a stored response that was used stale (RFC 5861 §3)."""

    request: HTTPRequest
    """It contains what selects the stored response, and nothing else of the client's request."""
    exchange: Revalidation
    """It sees the response and is finished like any other exchange."""


class CacheExchange(PartExchange, Struct, eq=False):
    """A request that the cache ignores, and the base of all others."""

    response: Response | None = None
    """The response to send at once."""
    refresh: Refresh | None = None
    """The background revalidation to carry out once this request has its response."""
    outcome: str = "bypass"
    """``hit``, or why the request is forwarded: an RFC 9211 ``fwd`` reason."""


class Bypassed(CacheExchange, kw_only=True, eq=False):
    """A request under a cache rule that is forwarded without a lookup."""

    detail: str

    def head(self, head: ResponseHead) -> ResponseHead | Response:
        return _with_status(head, cache_status(fwd="bypass", detail=self.detail))


class Answered(CacheExchange, kw_only=True, eq=False):
    """A request that the cache answers itself."""

    response: Response
    outcome: str = "hit"
    dropped: Revalidation | None = None

    def drop(self) -> None:
        """Leave the background revalidation to another request."""
        if self.refresh is not None:
            self.dropped = self.refresh.exchange
            self.dropped.drop()
            self.refresh: Refresh | None = None

    def finish(self, *, complete: bool) -> Flow[None] | None:  # noqa: ARG002
        return None if self.dropped is None else self.dropped.finish(complete=False)


DEBUG_FIELD = "upstash-cache-debug"
"""The request field that contains the secret, and the response field with the explanation."""


class Debugged(CacheExchange, kw_only=True, eq=False):
    """A request with the ``cache_debug`` secret; its response explains what the cache did.

    Neither this cache nor another one stores that response.
    """

    watches = True
    within: CacheExchange
    explained: CacheExplanation

    def __post_init__(self) -> None:
        within = self.within
        self.outcome: str = within.outcome
        self.refresh: Refresh | None = within.refresh
        if isinstance(within, Miss):
            within.debug()
        self.response: Response | None = self._response_with_explanation(within.response)

    @property
    def locks(self) -> bool:
        return self.within.locks

    @property
    def keeps(self) -> bool:
        return self.within.watches and self.within.keeps

    def request_to_forward(self, request: HTTPRequest) -> HTTPRequest:
        """Withhold the secret from the application."""
        request = replace(request, headers=request.headers.without(DEBUG_FIELD))
        return self.within.request_to_forward(request)

    def head(self, head: ResponseHead) -> ResponseHead | Response:
        not_stored = self.within.refusal(head) if isinstance(self.within, Miss) else ""
        sent = self.within.head(head)
        if isinstance(sent, Response):
            return Response(self._with_explanation(sent.head), sent.body)
        return self._with_explanation(sent, not_stored)

    def failed(self) -> Response | None:
        return self._response_with_explanation(self.within.failed())

    def chunk(self, data: bytes) -> None:
        self.within.chunk(data)

    def unseen(self, *, certainly: bool) -> None:
        self.within.unseen(certainly=certainly)

    def forbid(self, why: str, *, client_left: bool) -> None:
        self.within.forbid(why, client_left=client_left)

    def forbid_sharing(self, *, sets_cookie: bool, absent_cookie: str = "") -> None:
        self.within.forbid_sharing(sets_cookie=sets_cookie, absent_cookie=absent_cookie)

    def release(self) -> Flow[None] | None:
        return self.within.release()

    def drop(self) -> None:
        self.refresh = None
        self.within.drop()

    def finish(self, *, complete: bool) -> Flow[None] | None:
        return self.within.finish(complete=complete)

    def _response_with_explanation(self, sent: Response | None) -> Response | None:
        return None if sent is None else Response(self._with_explanation(sent.head), sent.body)

    def _with_explanation(self, head: ResponseHead, not_stored: str = "") -> ResponseHead:
        """Return a head with the explanation, and so that no cache stores the response."""
        explained, within = self.explained, self.within
        reason, advice = explained.why, explained.advice
        if isinstance(within, Bypassed):
            reason = within.detail
        if isinstance(within, Miss) and explained.status is None:
            reason, advice = reason.partition("; ")[0], ""  # the response says more
        if explained.outcome == "hit" and within.outcome != "hit":
            reason = "it was stored meanwhile"
        explanation = {
            "outcome": within.outcome,
            "reason": reason,
            "advice": advice,
            "rule": explained.rule or "",
            "key": explained.variant or explained.key,
            "not-stored": not_stored,
        }
        text = ", ".join(f"{name}={quoted(value)}" for name, value in explanation.items() if value)
        names = [name for name in head.headers.names() if name.endswith("-cache-control")]
        headers = head.headers.without(
            "expires", "surrogate-control", "edge-control", DEBUG_FIELD, *names
        )
        headers = headers.setting("cache-control", "private, no-store")
        return ResponseHead(head.status, headers.setting(DEBUG_FIELD, text))


def _with_status(head: ResponseHead, status: tuple[bytes, bytes]) -> ResponseHead:
    """Return a response head with Cache-Status."""
    headers = head.headers
    if directives.FROM_HANDLERS in headers:
        headers = headers.without(directives.FROM_HANDLERS)
    return ResponseHead(head.status, headers.adding(status))


def _for_downstream(
    head: ResponseHead, found: LookedUpRequest, stored: StoredResponse
) -> ResponseHead:
    """Return the head of a stored response as clients and other caches get it.

    With the rule's own Cache-Control, and the tags by which a CDN finds it. A CDN that would send
    it to other visitors than this cache does may not store it.
    """
    rule, cdn, headers = found.context.rule, found.context.cdn, head.headers
    most = None if head.status in _PAGES else stored.lifetime
    if rule.downstream is not None:
        control = _bound_lifetimes(rule.downstream, most)
        headers = headers.without("expires").setting("cache-control", control)
    if rule.downstream is not None or cdn is not None:
        headers = _with_selecting_vary(headers, rule)
    if cdn is not None and (rule.user is not None or not cdn.distinguishes(vary_fields(headers))):
        headers = cdn.forbid_storing(headers)
    elif cdn is not None and (rule.downstream_cdn is not None or not rule.forbids_downstream):
        for_cdn = rule.downstream_cdn and _bound_lifetimes(rule.downstream_cdn, most)
        headers = cdn.add_cdn_fields(headers, cdn.tags_of(found.target, rule, stored.tags), for_cdn)
    return head if headers is head.headers else ResponseHead(head.status, headers)


def _with_selecting_vary(headers: Headers, rule: CacheRule) -> Headers:
    """Return a response's fields with a Vary that names the fields by which its rule selects.

    Other caches cannot know that otherwise.
    """
    selecting = [*rule.vary_headers, *(["Cookie"] if rule.vary_cookies else [])]
    named = vary_fields(headers)
    added = [name for name in selecting if name.lower() not in named and "*" not in named]
    if not added:
        return headers
    before = headers.combined("vary")
    return headers.setting("vary", ", ".join([before, *added] if before else added))


_PAGES = SUCCESSFUL | {206}
"""The statuses for which the lifetimes of ``downstream`` and ``downstream_cdn`` are meant."""
_LIFETIME = re.compile(
    r"\b((?:[a-z]+-)?max-?age|stale-while-revalidate|stale-if-error)"
    r"\s*=\s*\"?(\d+)([smhd]?)\"?(?:\+\d+)?",
    re.IGNORECASE,
)
"""A directive with seconds; Akamai's Edge-Control also has units, Surrogate-Control two numbers."""
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def _bound_lifetimes(control: str, seconds: float | None) -> str:
    """Return directives in which no lifetime is above ``seconds``; None changes nothing."""
    if seconds is None:
        return control
    most = floor(seconds)

    def bounded(found: re.Match[str]) -> str:
        return f"{found[1]}={min(int(found[2]) * _UNITS[found[3].lower()], most)}"

    return _LIFETIME.sub(bounded, control)


# --- Forwarding and storing ---------------------------------------------------------------------


class Miss(CacheExchange, kw_only=True, eq=False):
    """A request that is forwarded, and whose response is stored if it may be."""

    watches = True
    found: LookedUpRequest
    flight: Flight | None = None
    """What other requests of this process wait for."""
    lock: tuple[str, str] | None = None
    """Key and token of the lock for which other processes wait."""
    candidate: Candidate | None = None
    planned: Plan | None = None
    """What is to be stored; None before the head, and if nothing is."""
    body: list[bytes] = []
    length: int = 0
    announced: int | None = None
    """Content-Length, None if there is none."""
    in_one_piece: bool = False
    passes: bool | None = True
    """Whether ``chunk`` will see the body; None if that is not known."""
    evaluates: bool = False
    """Whether the client's conditions are evaluated here instead of by the application."""
    forbidden: str = ""
    """Why the adapter forbids storing the response."""
    is_debugged: bool = False
    """Whether the client debugs the cache, so that the response is for it alone."""
    unshared: NotShared | None = None
    """Why the response is not shared with those who wait."""
    sets_cookie: bool = False
    """Whether the response sets the session's cookie, so that no stored one may replace it."""
    is_without_session: bool = False
    """Whether it depends on an empty session, so that the Cookie field has to select it."""

    @property
    def locks(self) -> bool:
        """Whether other processes wait for the response."""
        return self.lock is not None

    @property
    def keeps(self) -> bool:
        """Whether the body may still be stored."""
        return self.planned is not None or self.unshared is None

    @property
    def withholds_conditions(self) -> bool:
        """Whether the client's conditions are withheld from the application.

        Its 304 could not be stored, so if a response that may be stored is expected, the whole
        response is requested.
        """
        found = self.found
        return (
            not found.request.headers.names().isdisjoint(CONDITIONS)
            and found.context.store.profile.fills_despite_conditions
            and found.is_expected
            and found.may_be_stored()
        )

    def request_to_forward(self, request: HTTPRequest) -> HTTPRequest:
        headers = self.found.request.headers  # without the ignored cookies
        if self.withholds_conditions:
            self.evaluates = True
            headers = headers.without(*CONDITIONS)
        return request if headers is request.headers else replace(request, headers=headers)

    def unseen(self, *, certainly: bool) -> None:
        """Note that ``chunk`` will not see the body, or may not see it."""
        self.passes = False if certainly else None
        if certainly and self.planned is not None:
            self._drop(_BODY_NOT_SEEN)

    def forbid(self, why: str, *, client_left: bool) -> None:
        """Forbid storing the response; if the client left, another request is to be forwarded."""
        self.forbidden = why
        if client_left:
            self.resolve(NotShared.INTERRUPTED)
        if self.planned is not None:
            self._drop(why)

    def forbid_sharing(self, *, sets_cookie: bool, absent_cookie: str = "") -> None:
        """Store no response that depends on a session, except under a rule that selects by user.

        And except one that depends on an empty session and is selected by the Cookie field, if
        the request does not have the session's cookie: then no request that has it is answered.
        """
        self.sets_cookie = self.sets_cookie or sets_cookie
        if self.forbidden or (self.found.target.private and not sets_cookie):
            return
        if not sets_cookie and absent_cookie and self.found.lacks_cookie(absent_cookie):
            self.is_without_session = True
            if self.planned is None or "cookie" in self.planned.vary:
                return
        self.forbid(_DEPENDS_ON_SESSION, client_left=False)

    def head(self, head: ResponseHead) -> ResponseHead | Response:
        """Decide whether the response is to be stored; say so in Cache-Status if it is certain."""
        found, length = self.found, content_length(head.headers)
        planned = self.plan(found.request, head)
        if isinstance(planned, Plan) and self.passes is False:
            planned = _BODY_NOT_SEEN
        if isinstance(planned, Plan) and (length or 0) > found.context.max_body:
            planned = self._why_too_large
        if isinstance(planned, Plan) and not found.context.errors.admits(
            found.context.rule, head.status
        ):
            planned = (
                f"{found.context.rule.errors_per_minute} errors of its rule were stored this minute"
            )
        if isinstance(planned, str):
            self._note_reason(planned, head.status)
            self.resolve(NotShared.UNSHAREABLE)
            candidate = self.candidate
            if head.status == 304 and candidate and storing.states_freshness(candidate):
                found.context.flights.expect(found.lookup.key)  # next time, request the whole
            return self._head_to_send(head, head, detail=planned)
        self.planned, self.announced = planned, length
        if length == 0:
            self._finish_body()
        elif length is None and head.status not in WITHOUT_BODY:  # it streams, perhaps for ever
            self.resolve(NotShared.UNSHAREABLE)
        sent = _for_downstream(head, found, planned.stored)
        return self._head_to_send(head, sent, stored=self._is_certain(planned))

    def chunk(self, data: bytes) -> None:
        if self.planned is None or not data:
            return
        self.length += len(data)
        if self.length > self.found.context.max_body:
            self._drop(self._why_too_large)
            return
        self.body.append(data)
        if len(self.body) > 1:
            return
        # Other requests do not wait while this client reads the body, which may be slow.
        if self.length == self.announced:
            self._finish_body()
        else:
            self.resolve(NotShared.UNSHAREABLE)

    def failed(self) -> Response | None:
        """Return a response to send if the application raised before its own."""
        self.resolve(NotShared.UNSHAREABLE)
        return None

    def finish(self, *, complete: bool) -> Flow[None] | None:
        """Store the response, or release the lock if there is none to store."""
        if (whole := self.whole(complete=complete)) is not None:
            return self._store(whole)
        self.resolve(NotShared.INTERRUPTED)
        self._note_end(stored=False)
        return self._unlock() if self.lock is not None else None

    def drop(self) -> None:
        """Have another request forwarded, since this one is not."""
        self.resolve(NotShared.INTERRUPTED)

    def release(self) -> Flow[None] | None:
        """Return the flow that releases the lock; None while other processes may wait for it."""
        return None if self.lock is None or self.unshared is None else self._unlock()

    def debug(self) -> None:
        """Neither store nor share the response, since the client debugs the cache."""
        self.is_debugged = True
        self.resolve(NotShared.INTERRUPTED)

    def refusal(self, head: ResponseHead) -> str:
        """Return why the response would not be stored if its client did not debug the cache."""
        found = self.found
        planned = self._make_plan(found.request, head)
        if isinstance(planned, Plan):
            is_large = (content_length(head.headers) or 0) > found.context.max_body
            planned = self._why_too_large if is_large else ""
        if not planned:
            return ""
        case = found.context.reasons.case(found.context.rule, head.status, found.request.headers)
        reason = reason_of(planned, case, no_user=found.has_no_user)
        return f"{reason.why}; {reason.advice}" if reason.advice else reason.why

    def resolve(self, result: Shared | NotShared) -> None:
        """Wake the requests that wait for this one; only the first call counts."""
        if self.unshared is None and isinstance(result, NotShared):
            self.unshared = result
        if self.flight is not None:
            self.found.context.flights.resolve(self.flight, result, in_time=self._others_may_wait())

    def plan(self, request: HTTPRequest, head: ResponseHead) -> Plan | str:
        """Return what to store of a response with this head, or the reason why nothing is."""
        planned = self._make_plan(request, head)
        return _DEBUGGED if self.is_debugged else planned

    def _make_plan(self, request: HTTPRequest, head: ResponseHead) -> Plan | str:
        if self.forbidden:
            return self.forbidden
        found, context = self.found, self.found.context
        control = directives.control_of(head.headers, context.targets)
        named, private = vary_fields(head.headers), found.target.private
        self.candidate = context.candidate(request, head, control, named, private=private)
        planned = storing.plan(self.candidate, found.lookup.wall, context.grace, found.target.tags)
        if isinstance(planned, Plan) and self.is_without_session and "cookie" not in planned.vary:
            return _DEPENDS_ON_SESSION
        return planned

    def whole(self, *, complete: bool) -> Plan | None:
        """Return the plan of what to store, if the response is complete (RFC 9111 §3.3)."""
        if self.planned is None:
            return None
        if not complete or self.announced not in {None, self.length}:
            self.resolve(NotShared.INTERRUPTED)
            self._drop("the response was cut short")
            return None
        return self._complete_and_share(self.planned)

    def _head_to_send(
        self, head: ResponseHead, sent: ResponseHead, *, stored: bool = False, detail: str = ""
    ) -> ResponseHead:
        """Return the head to send, which is a 304's if the client has the response (§4.3.2)."""
        found, fwd_status = self.found, None
        if (
            self.evaluates
            and head.status == 200
            # A response of unknown length may never end, and the client would not get the 304.
            and content_length(head.headers) is not None
            and reuse.makes_304(found.request.headers, head.headers, found.now)
        ):
            sent = ResponseHead(304, reuse.headers_of_304(sent.headers))
            fwd_status = head.status
        key = found.shown_key
        status = cache_status(
            fwd=found.fwd, fwd_status=fwd_status, stored=stored, key=key, detail=detail
        )
        return _with_status(sent, status)

    def _is_certain(self, planned: Plan) -> bool:
        """Whether nothing but a failure can prevent storing the response (RFC 9211 §2.5)."""
        if self.announced is None or self.announced > _MAX_CERTAIN_BYTES or not self.passes:
            return False
        if not self.found.lookup.epochs.tags.keys() >= {*planned.stored.tags}:
            return False  # one of its tags may be purged meanwhile
        return not planned.addresses  # otherwise the body has to be searched for them

    def _finish_body(self) -> None:
        self.in_one_piece = True
        if self.flight is not None and self.planned is not None:
            self._complete_and_share(self.planned)

    def _complete_and_share(self, planned: Plan) -> Plan | None:
        """Share and return the response with its body, None if it may not be stored after all."""
        found, body = self.found, b"".join(self.body)
        if (shown := shows_any(planned.addresses, planned.stored.headers, body)) is not None:
            self._drop(shown)
            return None
        whole = planned.with_body(body)
        if found.part is not None and whole.stored.status == 206:
            both = reuse.combine_parts(found.part, whole.stored, found.context.max_body)
            whole = replace(whole, stored=both or whole.stored)
        if found.context.rule.etag:
            whole = whole.with_etag()
        self.resolve(Shared(whole, found))
        return whole

    @property
    def _why_too_large(self) -> str:
        return f"body above {self.found.context.max_body} bytes"

    def _note_reason(self, detail: str, status: int) -> None:
        found, context = self.found, self.found.context
        no_user = found.has_no_user
        context.reasons.note(context.rule, detail, status, found.request, no_user=no_user)

    def _drop(self, detail: str) -> None:
        if self.planned is not None:
            self._note_reason(detail, self.planned.stored.status)
        self.planned, self.body = None, []
        self.resolve(NotShared.UNSHAREABLE)
        self._forget_flight()
        self.found.context.emit(CacheStored(self.found.target.url, stored=False, detail=detail))

    def _forget_flight(self) -> None:
        if self.flight is not None:
            self.found.context.flights.forget(self.flight)

    def _others_may_wait(self) -> bool:
        """Whether concurrent requests may still wait for this one."""
        context = self.found.context
        return context.store.clock.monotonic() - self.found.lookup.monotonic < context.collapse

    def _note_end(self, *, stored: bool) -> None:
        """Remember for later requests whether the response could be shared."""
        if stored and self.in_one_piece and self._others_may_wait():
            self.found.context.flights.expect(self.found.lookup.key)

    async def _store(self, planned: Plan) -> None:
        found = self.found
        variation = variation_of(planned.stored.headers)
        if variation != EXACT or planned.stored.status == 200:
            found.context.variations.learn(found.context.rule, found.target.url, variation)
        if self.lock is not None:
            stored = replace(planned.stored, token=self.lock[1])
            planned = replace(planned, stored=stored)
        try:
            target, lookup = found.target_of(planned.stored)
            flow = found.context.store.put(target, lookup, planned)
            stores = await _store(found, "cache store", flow)
        finally:
            self._forget_flight()
        self._note_end(stored=stores)
        # The entry shows that the lock is done with, as long as there is an entry at its key.
        is_shown = stores and target.key == found.target.key
        if not is_shown or planned.keep < found.context.collapse / 2:
            await self._unlock()

    async def _unlock(self) -> None:
        if self.lock is None:
            return
        (key, token), self.lock = self.lock, None
        mark, seconds = "", 0.0
        if self._has_failed():  # no process is to forward the same request again at once
            mark, seconds = FAILED, BACK_OFF
        elif self.unshared is NotShared.UNSHAREABLE:
            mark, seconds = UNSHARED, UNSHARED_SECONDS
        try:
            await self.found.context.store.release(key, token, mark, seconds)
        except UpstashError as error:  # then it expires
            self.found.context.emit(UpstashFailed("cache store", error))

    def _has_failed(self) -> bool:
        return self.unshared is NotShared.FAILED


async def _store(found: LookedUpRequest, during: str, flow: Flow[str | None]) -> bool:
    """Store a response and emit how that ended; return whether it is stored."""
    emit = found.context.emit
    try:
        detail = await flow
    except UpstashError as error:
        emit(UpstashFailed(during, error))
        detail = "the store failed"
    else:
        emit(UpstashAnswered(during))
    emit(CacheStored(found.target.url, stored=detail is None, detail=detail or ""))
    return detail is None


class Revalidation(Miss, kw_only=True, eq=False):
    """A forwarded request with a stored response that may not be used as it is.

    The application gets the stored validators. Its response confirms the stored response, replaces
    it, or is an error in place of which the stored response may be used.
    """

    stored: StoredResponse
    """With its body opened, since it is sent if it is confirmed."""
    in_background: bool = False
    confirmed: Plan | None = None
    contradicted: bool = False

    @property
    def withholds_conditions(self) -> bool:
        """Whether the client's conditions are withheld; otherwise ours are sent in addition."""
        return self.found.lookup.outdated and super().withholds_conditions

    def request_to_forward(self, request: HTTPRequest) -> HTTPRequest:
        """Add the stored validators (§4.3.1), unless another version made the response."""
        if self.found.lookup.outdated:
            return super().request_to_forward(request)
        headers = reuse.with_validators(self.found.request.headers, self.stored.headers)
        return replace(request, headers=headers)

    def head(self, head: ResponseHead) -> ResponseHead | Response:
        """Decide what happens to the stored response (§4.3.3)."""
        found, stored = self.found, self.stored
        if head.status in _STALE_IF_ERROR_STATUSES:
            return self._fallback_for_error(head.status) or super().head(head)
        if not self.in_background:
            found.context.revalidations.end(found.lookup.key, failed=False)
        if head.status == 206 and stored.status != 206:  # the stored whole is kept
            self.resolve(NotShared.UNSHAREABLE)
            return self._head_to_send(head, head, detail="partial content")
        if found.lookup.outdated:
            return super().head(head)
        if head.status == 304:
            return self._not_modified(head)
        if found.request.method == "HEAD":  # §4.3.5
            if head.status == 200 and reuse.confirms_head(stored, head.headers):
                self._freshen(head.headers)
            elif head.status in {200, 404, 410}:
                self.contradicted = found.fwd == "request"  # otherwise it is stale already
        return super().head(head)

    def failed(self) -> Response | None:
        return self._fallback_for_error(None) or super().failed()

    def whole(self, *, complete: bool) -> Plan | None:
        """Return the confirmed response, or the one recorded in its place."""
        return self.confirmed or super().whole(complete=complete)

    def finish(self, *, complete: bool) -> Flow[None] | None:
        """Store the response; a stored one that a HEAD contradicts becomes stale (§4.3.5)."""
        flow = super().finish(complete=complete)
        return self._store_then_mark_stale(flow) if self.contradicted else flow

    def drop(self) -> None:
        super().drop()
        if self.in_background:
            self.in_background = False  # so that ``finish`` does not count it as failed
            self.found.context.revalidations.end(self.found.lookup.key, failed=False)

    async def _store_then_mark_stale(self, flow: Flow[None] | None) -> None:
        if flow is not None:
            await flow
        await _purge(self.found.context, Purge((self.found.target.url,), soft=True))

    def _note_end(self, *, stored: bool) -> None:
        super()._note_end(stored=stored)
        if self.in_background:
            self.found.context.revalidations.end(self.found.lookup.key, failed=not stored)

    def _has_failed(self) -> bool:
        return self.in_background or super()._has_failed()

    def _not_modified(self, head: ResponseHead) -> ResponseHead | Response:
        own = any(name in self.found.request.headers for name in CONDITIONS)
        # One without validators does not say whose condition matched, if there were two.
        if reuse.confirms(self.stored.headers, head.headers) and (
            not own or reuse.has_validator(head.headers)
        ):
            return self._answer(self._freshen(head.headers), head.status)
        return super().head(head) if own else self._answer(self.stored, head.status)

    def _freshen(self, received: Headers) -> StoredResponse:
        """Return the stored response updated by newer header fields, to be stored (§4.3.4)."""
        found, stored = self.found, self.stored
        now = found.now
        headers = reuse.update_fields(stored.headers, received, now, found.context.store.profile)
        merged = ResponseHead(stored.status, headers)
        planned = self.plan(replace(found.request, method="GET"), merged)
        if not isinstance(planned, Plan):
            age = directives.initial_age(headers, found.lookup.wall, now)
            return replace(stored, headers=headers, stored_at=now, initial_age=age)
        self.confirmed = planned.with_body(stored.packed)
        self.announced: int | None = stored.length
        self.in_one_piece = True
        self.resolve(Shared(self.confirmed, found))
        return self.confirmed.stored

    def _fallback_for_error(self, status: int | None) -> Response | None:
        """Return the stored response if it may be used in place of an error (RFC 5861 §4)."""
        if self.sets_cookie or not reuse.usable_for_error(self.stored, self.found.now):
            return None
        if not self.in_background:
            self.found.context.revalidations.end(self.found.lookup.key, failed=True)
        self.resolve(NotShared.FAILED)
        return self._answer(self.stored, status, "stale-if-error")

    def _answer(self, stored: StoredResponse, fwd_status: int | None, detail: str = "") -> Response:
        if self.confirmed is None:
            self.resolve(NotShared.UNSHAREABLE)
        found = self.found
        age = current_age(stored, found.now)
        certain = self.confirmed is not None and self._is_certain(self.confirmed)
        head = found.head_of(
            stored, age, fwd=found.fwd, fwd_status=fwd_status, stored=certain, detail=detail
        )
        return reuse.answer(found.request, stored, head)


# --- Invalidation (RFC 9111 §4.4) ---------------------------------------------------------------


class Invalidation(CacheExchange, kw_only=True, eq=False):
    """An unsafe request, which may have changed what is stored."""

    context: Context
    request: HTTPRequest
    urls: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    """The cache groups that its response invalidates, as tags."""
    pending: list[str] = []

    def head(self, head: ResponseHead) -> ResponseHead | Response:
        """Determine what the request has changed: no URLs if the response is an error."""
        own, rules = _url_of_target(self.request), self.context.rules
        covered = self._covers(self.request.path)
        if 200 <= head.status < 400:
            # The target's, and those of the same origin in Location and Content-Location.
            named = (head.headers.get(name) for name in ("location", "content-location"))
            urls = dict.fromkeys([own, *filter(None, map(self._resolve_reference, named))])
            self.urls = tuple(
                url for url in urls if (covered if url == own else self._is_covered(url))
            )
        detail = ""
        if self.context.has_groups:  # RFC 9875 §3
            field = storing.CACHE_GROUP_INVALIDATION
            groups = storing.groups_in(field, head.headers, self.request)
            self.groups, detail = ((), groups) if isinstance(groups, str) else (groups, "")
        names = keys.urls_to_purge(self.urls, rules)
        self.urls += tuple(self.context.variations.canonical(names, rules))
        self.pending = [*keys.urls_to_purge(self.urls, rules), *self.groups]
        self.context.pending.begin(self.pending)
        status = cache_status(fwd="method", detail=detail)
        return _with_status(head, status) if covered else head

    def finish(self, *, complete: bool) -> Flow[None] | None:
        """Invalidate, even if the client did not wait for the response."""
        del complete
        if not self.urls and not self.groups:
            return None
        return self._carry_out(_purge(self.context, Purge(self.urls), self.groups))

    async def _carry_out(self, flow: Flow[None]) -> None:
        try:
            await flow
        finally:
            self.context.pending.end(self.pending)

    def _is_covered(self, url: str) -> bool:
        """Whether a URL in the response belongs to the application and is covered by a rule."""
        path, root_path = unquote(url.partition("?")[0]), self.request.root_path
        if root_path and not path.startswith(f"{root_path}/"):
            return False
        return self._covers(path.removeprefix(root_path))

    def _covers(self, path: str) -> bool:
        return any(rule.covers(path) for rule in self.context.rules)

    def _resolve_reference(self, reference: str | None) -> str | None:
        """Return a URI reference's path and query; None if invalid or of another origin."""
        if reference is None or len(reference) > LONGEST_VALUE:
            return None
        request = self.request
        origin = keys.origin_of(request.scheme, request.host)
        try:
            parts = urlsplit(urljoin(f"{origin}{_url_of_target(request)}", reference.strip()))
        except ValueError:
            return None
        if keys.origin_of(parts.scheme, parts.netloc.lower()) != origin:
            return None
        return f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"


class PostInvalidation(Invalidation, kw_only=True, eq=False):
    """A POST whose response may become its target's stored state (RFC 9110 §9.3.3).

    With explicit freshness, and its target's URL in Content-Location, it answers later requests.
    """

    watches = True
    found: LookedUpRequest
    miss: Miss | None = None

    def head(self, head: ResponseHead) -> ResponseHead | Response:
        """Decide what the request has changed, and whether its response is the new state."""
        sent, request = super().head(head), self.request
        location = self._resolve_reference(head.headers.get("content-location"))
        if not self.urls or location != _url_of_target(request):
            return sent
        miss = Miss(found=replace(self.found, request=replace(request, method="GET")))
        miss.head(head)
        if miss.planned and miss.candidate and storing.states_freshness(miss.candidate):
            self.miss = miss
        return sent

    def chunk(self, data: bytes) -> None:
        if self.miss is not None:
            self.miss.chunk(data)

    def finish(self, *, complete: bool) -> Flow[None] | None:
        """Invalidate, and store the response as the new state."""
        whole = self.miss.whole(complete=complete) if self.miss is not None else None
        if whole is None:
            return super().finish(complete=complete)
        return self._carry_out(self._supersede(whole))

    async def _supersede(self, whole: Plan) -> None:
        found = self.found
        flow = found.context.store.supersede(found.target, found.lookup, whole)
        await _store(found, "invalidation", flow)
        if self.urls[1:] or self.groups:  # others in Location, and canonical forms
            await _purge(self.context, Purge(self.urls[1:]), self.groups)


async def purge(context: Context, what: Purge, groups: tuple[str, ...] = ()) -> None:
    """Carry out a purge, also of the canonical forms of its URLs; ``groups`` as tags.

    Raises as ``Store.purge``.
    """
    store, rules, variations = context.store, context.rules, context.variations
    names = keys.urls_to_purge(what.urls, rules)
    known = variations.canonical(names, rules)
    what = replace(what, urls=(*what.urls, *known))
    unread = variations.unread(names)
    records = await store.purge(what, rules, groups, unread)
    others = dict.fromkeys(map(canonical_url, unread, records))
    if more := tuple(url for url in others if url not in {*names, *known}):
        await store.purge(Purge(more, soft=what.soft), rules)


async def _purge(context: Context, what: Purge, groups: tuple[str, ...] = ()) -> None:
    try:
        await purge(context, what, groups)
    except UpstashError as error:
        context.emit(UpstashFailed("invalidation", error))
    else:
        context.emit(UpstashAnswered("invalidation"))


def _url_of_target(request: HTTPRequest) -> str:
    return f"{request.raw_path}?{request.query}" if request.query else request.raw_path


# --- What concurrent requests of one process know of each other ---------------------------------


class Shared(Struct, frozen=True):
    """A response for the waiting requests, and the request that it answers."""

    plan: Plan
    found: LookedUpRequest


class NotShared(Enum):
    """Why a response does not answer the waiting requests."""

    UNSHAREABLE = auto()
    """It may not be stored, or it streams: so would the next one."""
    FAILED = auto()
    """It is an error, and a stale response is used in its place."""
    INTERRUPTED = auto()
    """Its client left: another request has to be forwarded."""


class Flight(Struct, eq=False):
    """A forwarded request for which others may wait."""

    key: str
    started_at: float
    """When it was forwarded, by the monotonic clock."""
    latch: Latch = field(default_factory=Latch)
    result: object = None
    """``NotShared``, or what its leader shares."""


class SingleFlight:
    """The requests of this process that are forwarded, and how earlier ones ended.

    Safe under threads. What is remembered of how they ended is bounded, and only a guess.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._flights: dict[str, Flight] = {}
        self._shareable: LRU[str, bool] = LRU(_MAX_REMEMBERED)
        """Whether the last response under a key could be shared with those who waited."""
        self._lock = threading.Lock()

    def join(
        self, key: str, *, expected: bool = True, may_lead: bool = True
    ) -> tuple[Flight | None, bool]:
        """Return the flight for a key, and whether the caller leads it.

        None if there is none and the caller may not lead, and if no response is ``expected`` that
        can be shared; how the last one ended takes precedence over that.
        """
        with self._lock:
            if not self.expects(key, default=expected):
                return None, False
            flight, now = self._flights.get(key), self._clock.monotonic()
            if flight is not None and now < flight.started_at + _ABANDONED_AFTER:
                return flight, False
            if not may_lead:
                return None, False
            self._flights[key] = flight = Flight(key, now)
            if len(self._flights) > _MAX_REMEMBERED:
                del self._flights[next(iter(self._flights))]
            return flight, True

    def resolve(self, flight: Flight, result: object, *, in_time: bool) -> None:
        """Wake those who wait for a flight; only the first call counts.

        A shared result also answers those who come until the flight is forgotten. ``in_time`` says
        whether those who have waited from the beginning still do.
        """
        with self._lock:
            if flight.result is not None:
                return
            flight.result = result
            shared = not isinstance(result, NotShared)
            if not shared and self._flights.get(flight.key) is flight:
                del self._flights[flight.key]
            if shared or result is NotShared.UNSHAREABLE:
                self._shareable.put(flight.key, shared and in_time)
        flight.latch.open()

    def forget(self, flight: Flight) -> None:
        """Remove a flight, so that no more requests join it: it is stored, or takes too long."""
        with self._lock:
            if self._flights.get(flight.key) is flight:
                del self._flights[flight.key]

    def expects(self, key: str, *, default: bool) -> bool:
        """Whether a response under a key is expected that can be shared; a default if unknown."""
        shareable = self._shareable.get(key)
        return default if shareable is None else shareable

    def expect(self, key: str) -> None:
        """Expect that the next response under a key can be shared, as this one could."""
        self._shareable.put(key, True)

    def clear(self) -> None:
        """Forget how requests have ended."""
        self._shareable.clear()


class Revalidations:
    """Which stored responses are being revalidated, and which revalidations have just failed."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._known: LRU[str, tuple[float, bool]] = LRU(_MAX_REMEMBERED)
        """When the next one under a key may begin, and whether the last one failed."""
        self._lock = threading.Lock()

    def begin(self, key: str) -> bool:
        """Return whether the caller is to revalidate a stored response, and then end it.

        One at a time, and none for ``BACK_OFF`` seconds after one has failed.
        """
        with self._lock:
            until, failed = self._known.get(key) or (0.0, False)
            now = self._clock.monotonic()
            if now < until:
                return False
            self._known.put(key, (now + (BACK_OFF if failed else _ABANDONED_AFTER), failed))
            return True

    def end(self, key: str, *, failed: bool) -> None:
        """Remember how a revalidation ended."""
        with self._lock:
            if failed:
                self._known.put(key, (self._clock.monotonic() + BACK_OFF, True))
            else:
                self._known.remove(key)

    def failing(self, key: str) -> bool:
        """Whether the last revalidation has just failed; after a while one caller is to retry."""
        known = self._known.get(key)
        return known is not None and known[1] and not self.begin(key)

    def clear(self) -> None:
        """Forget all of them."""
        self._known.clear()


class StoredErrors:
    """How many errors of each rule this process has stored in the current minute.

    Nearly every request for a random path ends in an error, so each could cause a write.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._minute = 0.0
        self._counts: dict[int, int] = {}
        """Errors stored in this minute, by the id of the rule, which lives as long as the cache."""
        self._lock = threading.Lock()

    def admits(self, rule: CacheRule, status: int) -> bool:
        """Whether a response that may be stored is stored; if it is an error, it is counted."""
        if status < 400:
            return True
        with self._lock:
            if (minute := self._clock.monotonic() // 60) != self._minute:
                self._minute = minute
                self._counts.clear()
            stored = self._counts.get(id(rule), 0)
            if stored >= rule.errors_per_minute:
                return False
            self._counts[id(rule)] = stored + 1
            return True


def canonical_url(url: str, variation: Variation) -> str:
    """Return a path and query with the canonical form of the query."""
    path, _, query = url.partition("?")
    canonical = variation.canonical(query)
    return f"{path}?{canonical}" if canonical else path


def _path_of(url: str) -> str:
    return url.partition("?")[0]


class Variations:
    """How the queries of paths select responses (No-Vary-Search), as far as this process knows.

    A rule none of whose responses has had the field costs nothing: nothing more is read for it.
    Otherwise the record of each path is read with its responses; until it is known, the path counts
    as if it had what was seen last under its rule.
    """

    def __init__(self) -> None:
        self.by_rule: dict[str, Variation] = {}
        """What was seen last, by the paths of rules; nearly always empty."""
        self._by_path: LRU[str, Variation] = LRU(_MAX_REMEMBERED)
        self.informed: bool = False
        """Whether this process has looked anything up; otherwise it knows of no rule."""

    def of(self, rule: CacheRule, url: str) -> Variation | None:
        """Return how queries of a URL's path select; None if no response of the rule tells."""
        if rule.path not in self.by_rule:
            return None
        return self._by_path.use(_path_of(url)) or self.by_rule[rule.path]

    def learn(self, rule: CacheRule, url: str, variation: Variation) -> None:
        """Remember the variation from a response for this URL, or from the record of its path."""
        if variation != EXACT:
            self.by_rule[rule.path] = variation
        elif rule.path not in self.by_rule:
            return
        self._by_path.put(_path_of(url), variation)

    def canonical(self, urls: Sequence[str], rules: Iterable[CacheRule]) -> list[str]:
        """Return the canonical forms of URLs that are not among them, as far as they are known."""
        if not self.by_rule:
            return []
        found = []
        for rule in rules:
            for url in urls:
                variation = self.of(rule, url)
                if variation is not None and rule.pattern.matches_end(unquote(_path_of(url))):
                    found.append(canonical_url(url, variation))
        return [url for url in dict.fromkeys(found) if url not in urls]

    def unread(self, urls: Iterable[str]) -> list[str]:
        """Return the URLs whose canonical form depends on a path's record that was not read."""
        if self.informed and not self.by_rule:
            return []
        return [url for url in urls if "?" in url and _path_of(url) not in self._by_path]

    def clear(self) -> None:
        """Forget all of them."""
        self.by_rule.clear()
        self._by_path.clear()
        self.informed = False


class PendingInvalidations:
    """What this process is about to invalidate: URLs and cache groups. What is stored is not used.

    An invalidation reaches Redis after its response was sent, and the client's next request must
    see its own change. Safe under threads.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.until: dict[str, list[float]] = {}
        """When each counts as dropped, by URL or group; nearly always empty."""
        self._lock = threading.Lock()

    def begin(self, names: Iterable[str]) -> None:
        """Add URLs, as in the names of epochs, and groups, as tags."""
        until = self._clock.monotonic() + _ABANDONED_AFTER
        with self._lock:
            for name in names:
                self.until.setdefault(name, []).append(until)

    def end(self, names: Iterable[str]) -> None:
        """Remove URLs and groups, unless another request is invalidating them as well."""
        with self._lock:
            for name in names:
                if pending := self.until.pop(name, [])[1:]:
                    self.until[name] = pending

    def concern(self, *names: str) -> bool:
        """Whether stored responses of these URLs or groups are about to be invalidated."""
        if not self.until:
            return False
        now = self._clock.monotonic()
        with self._lock:
            found = [self.until[name][-1] for name in names if name in self.until]
        return any(until > now for until in found)
