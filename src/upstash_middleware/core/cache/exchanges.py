"""Exchanges: a request, its response in the cache, and the state shared by concurrent requests.

Each class of exchanges is a ``PartExchange``:

- ``Miss``: the request is forwarded, and its response is recorded and stored.
- ``Revalidation``: a miss with a stored response that must be validated before it is used.
- ``Invalidation``: an unsafe request, which invalidates stored responses. ``PostInvalidation``
  may store the request's own response in their place.
- ``Bypassed``: the request is forwarded without a lookup; Cache-Status contains the reason.
- ``Answered``: the cache has the response, and nothing is forwarded.
- ``Debugged``: one of the others, with an explanation for a developer.

``cache.py`` decides which one a request gets.
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
"""The methods registered as safe. All others may change stored resources (RFC 9111 §4.4)."""
# RFC 5861 §4: the statuses that stale-if-error applies to.
_STALE_IF_ERROR_STATUSES = frozenset({500, 502, 503, 504})
_MAX_CERTAIN_BYTES = 7_000_000
"""Bytes of a body that fits in one call of 10 MB, even in base64."""
BACK_OFF = 5.0
"""Seconds after a failed revalidation during which it is not repeated."""
_MAX_REMEMBERED = 10_000
_ABANDONED_AFTER = 60.0
"""Seconds after which a render, revalidation or invalidation counts as abandoned."""
_DEBUG_RESPONSE = "a response for debugging"
_BODY_NOT_SEEN = "the server sends the file itself"
_DEPENDS_ON_SESSION = "it depends on the session"


class Context(Struct, frozen=True):
    """Values that all exchanges share."""

    rules: tuple[CacheRule, ...]
    store: Store
    emit: Observer
    max_body: int
    """Bytes of the largest body that is stored."""
    grace: float
    """Seconds for which a stale response is kept so that it can be revalidated."""
    targets: tuple[str, ...]
    """The targeted Cache-Control fields that this cache obeys, the most specific first."""
    can_refresh: bool
    """Whether stale responses can be revalidated in the background."""
    flights: SingleFlight
    revalidations: Revalidations
    pending: PendingInvalidations
    collapse: float
    """Seconds for which a request waits for a concurrent one; 0 disables waiting."""
    shows_keys: bool
    """Whether Cache-Status contains cache keys."""
    fields: KnownFields
    has_groups: bool
    """Whether Cache-Groups and Cache-Group-Invalidation are obeyed."""
    cdn: CDN | None
    """The CDN in front of the application, from the setting ``cdn``."""
    errors: StoredErrors
    reasons: Reasons
    variations: Variations
    canonical: Callable[[HTTPRequest, Target, Variation], Target]
    """Returns the target of the canonical form of a request's URL, from the URL's own target."""


class RuleContext(Context, frozen=True, kw_only=True):
    """Values that all exchanges of one cache rule share."""

    rule: CacheRule
    setting: str
    """The rule's name in error messages, such as ``cache[0]``."""
    ignored: re.Pattern[str] | None
    """The pattern of the ignored cookies' names."""
    calls_user_code: bool
    """Whether the rule has functions that must be called."""

    def candidate(
        self,
        request: HTTPRequest,
        head: ResponseHead,
        control: Directives,
        vary: tuple[str, ...],
        *,
        private: bool,
    ) -> Candidate:
        """Return a response received now, with the values that decide whether it can be stored."""
        now, profile = self.store.clock.wall(), self.store.profile
        sent = request, self.rule, profile, head, control, vary, now, self.fields
        return Candidate(*sent, private, self.has_groups)


class LookedUpRequest(Struct, frozen=True):
    """A request with the result of its cache lookup."""

    context: RuleContext
    request: HTTPRequest
    target: Target
    lookup: Lookup
    fwd: str
    """The reason if it is forwarded, as the ``fwd`` parameter of RFC 9211."""
    requested: Directives = NO_DIRECTIVES
    """The directives of the request, if the profile obeys them."""
    part: StoredResponse | None = None
    """A stored partial response without the requested range, to be combined with the new one."""

    @property
    def shown_key(self) -> str:
        """The key for Cache-Status; empty if keys are not shown."""
        return self.lookup.key if self.context.shows_keys else ""

    @property
    def now(self) -> float:
        """Seconds since 1970."""
        return self.context.store.clock.wall()

    @property
    def has_no_user(self) -> bool:
        """Whether the rule selects by user, and the request has no user."""
        return self.context.rule.user is not None and not self.target.private

    @property
    def varying(self) -> tuple[str, ...]:
        """The fields in the Vary of the resource's stored responses."""
        return self.lookup.index.vary if self.lookup.index is not None else ()

    @property
    def is_expected(self) -> bool:
        """Whether the response can probably be stored."""
        expected = self.context.rule.ttl_for(200) is not None or self.lookup.known
        return self.context.flights.expects(self.lookup.key, default=expected)

    def is_immutable(self, stored: StoredResponse) -> bool:
        """Whether a request's max-age is ignored because a stored response is immutable (RFC 8246).

        The directive ``immutable`` says that a fresh response does not change.
        """
        if "max-age" not in self.requested:
            return False
        return "immutable" in directives.control_of(stored.headers, self.context.targets)

    def target_of(self, stored: StoredResponse) -> tuple[Target, Lookup]:
        """Return the target under whose key a response is stored, and the lookup of that target.

        The key is that of the URL's canonical form according to the response's No-Vary-Search.
        """
        lookup, exact, variation = self.lookup, self.target.exact, variation_of(stored.headers)
        if exact is None and variation == EXACT:
            return self.target, lookup
        target = exact or self.target
        if variation != EXACT:
            target = self.context.canonical(self.request, target, variation)
        if target.key == self.target.key or (exact is None and lookup.epochs.url != ABSENT):
            return self.target, lookup  # a purged URL can only be answered by its own key
        # The epoch of this URL was not read before the application was called. If it is absent at
        # a later lookup, it was also absent then, because an epoch outlives this request.
        epochs = replace(lookup.epochs, url=ABSENT)
        return target, replace(lookup, key=target.key, entry=None, index=None, epochs=epochs)

    def head_of(self, stored: StoredResponse, age: float, /, **status: Any) -> ResponseHead:
        """Return the head of a stored response for the client; ``status`` is for Cache-Status."""
        field = cache_status(ttl=stored.lifetime - age, key=self.shown_key, **status)
        head = reuse.head_of(stored, age, self.context.store.profile, field)
        return _for_downstream(head, self, stored)

    def may_be_stored(self) -> bool:
        """Whether the response could be stored, according to the request alone."""
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
        """Whether the request lacks this cookie, and the cookie is not ignored."""
        if self.context.ignored is not None and self.context.ignored.fullmatch(name):
            return False
        return not any(name in line for line in self.request.headers.lines("cookie"))

    def selecting_fields(self, stored: StoredResponse) -> set[str]:
        """Return the request fields that select a stored response."""
        # An entry may list codings after an equals sign: accept-encoding=gzip,br.
        vary = {*vary_fields(stored.headers), *(name.partition("=")[0] for name in self.varying)}
        if self.context.rule.narrow_vary_cookie:
            vary.discard("cookie")  # only the cookies that the rule names select
        return vary | {*self.context.rule.vary_headers}


class Refresh(Struct, frozen=True):
    """A background revalidation of a stored response that was used stale (RFC 5861 §3)."""

    request: HTTPRequest
    """A request with only the client's fields that select the stored response."""
    exchange: Revalidation
    """The exchange for the response to ``request``."""


class CacheExchange(PartExchange, Struct, eq=False):
    """The exchange of a request that the cache ignores, and the base class of all others."""

    response: Response | None = None
    """The response to send without calling the application."""
    refresh: Refresh | None = None
    """The background revalidation to run after the response was sent."""
    outcome: str = "bypass"
    """``hit``, or why the request is forwarded, as the ``fwd`` parameter of RFC 9211."""


class Bypassed(CacheExchange, kw_only=True, eq=False):
    """A request under a cache rule that is forwarded without a lookup."""

    detail: str

    def head(self, head: ResponseHead) -> ResponseHead | Response:
        return _with_status(head, cache_status(fwd="bypass", detail=self.detail))


class Answered(CacheExchange, kw_only=True, eq=False):
    """A request that the cache answers without calling the application."""

    response: Response
    outcome: str = "hit"
    dropped: Revalidation | None = None

    def drop(self) -> None:
        """Cancel the background revalidation, so that another request can run it."""
        if self.refresh is not None:
            self.dropped = self.refresh.exchange
            self.dropped.drop()
            self.refresh: Refresh | None = None

    def finish(self, *, complete: bool) -> Flow[None] | None:  # noqa: ARG002
        return None if self.dropped is None else self.dropped.finish(complete=False)


DEBUG_FIELD = "upstash-cache-debug"
"""The request field with the secret, and the response field with the explanation."""


class Debugged(CacheExchange, kw_only=True, eq=False):
    """A request with the ``cache_debug`` secret; its response explains what the cache did.

    The explained response is stored neither here nor in other caches.
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
        """Remove the secret from the request to the application."""
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

    def forbid_storing(self, why: str, *, client_left: bool) -> None:
        self.within.forbid_storing(why, client_left=client_left)

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
        """Return a head with the explanation and with a Cache-Control that forbids storing it."""
        explained, within = self.explained, self.within
        reason, advice = explained.why, explained.advice
        if isinstance(within, Bypassed):
            reason = within.detail
        if isinstance(within, Miss) and explained.status is None:
            reason, advice = reason.partition("; ")[0], ""  # ``not-stored`` is more exact
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
    """Return the head of a stored response for clients and downstream caches.

    It gets the rule's ``downstream`` Cache-Control and the tags for purging the CDN. If the CDN
    cannot select responses as this cache does, it is told not to store them.
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
    """Return header fields with a Vary that includes the fields by which the rule selects.

    Downstream caches need them to select the same responses.
    """
    selecting = [*rule.vary_headers, *(["Cookie"] if rule.vary_cookies else [])]
    named = vary_fields(headers)
    added = [name for name in selecting if name.lower() not in named and "*" not in named]
    if not added:
        return headers
    before = headers.combined("vary")
    return headers.setting("vary", ", ".join([before, *added] if before else added))


_PAGES = SUCCESSFUL | {206}
"""The statuses to which the lifetimes of ``downstream`` and ``downstream_cdn`` apply."""
_LIFETIME = re.compile(
    r"\b((?:[a-z]+-)?max-?age|stale-while-revalidate|stale-if-error)"
    r"\s*=\s*\"?(\d+)([smhd]?)\"?(?:\+\d+)?",
    re.IGNORECASE,
)
"""A directive with seconds. Edge-Control (Akamai) has units, Surrogate-Control two numbers."""
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def _bound_lifetimes(control: str, seconds: float | None) -> str:
    """Return directives whose lifetimes are at most ``seconds``; None means no maximum."""
    if seconds is None:
        return control
    most = floor(seconds)

    def bounded(found: re.Match[str]) -> str:
        return f"{found[1]}={min(int(found[2]) * _UNITS[found[3].lower()], most)}"

    return _LIFETIME.sub(bounded, control)


# --- Forwarding and storing ---------------------------------------------------------------------


class Miss(CacheExchange, kw_only=True, eq=False):
    """A request that is forwarded. Its response is stored if that is allowed."""

    watches = True
    found: LookedUpRequest
    flight: Flight | None = None
    """The flight that other requests of this process wait for."""
    lock: tuple[str, str] | None = None
    """Key and token of the lock that other processes wait for."""
    candidate: Candidate | None = None
    planned: Plan | None = None
    """The plan for storing the response; None before the head and if it is not stored."""
    body: list[bytes] = []
    length: int = 0
    announced: int | None = None
    """Content-Length; None if the response has none."""
    in_one_piece: bool = False
    passes: bool | None = True
    """Whether ``chunk`` is called with the body; None if unknown."""
    evaluates: bool = False
    """Whether this cache evaluates the client's conditions in place of the application."""
    forbidden: str = ""
    """Why the adapter forbids storing the response; empty if it does not."""
    is_debugged: bool = False
    """Whether the client debugs the cache, so that the response must not be stored."""
    unshared: NotShared | None = None
    """Why the response does not answer the waiting requests."""
    sets_cookie: bool = False
    """Whether the response sets the session's cookie and must not be replaced by a stored one."""
    is_without_session: bool = False
    """Whether the response depends on an empty session, so that Vary must include Cookie."""

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

        The application's 304 could not be stored. Without the conditions, it sends the whole
        response, so they are withheld if that can probably be stored.
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
        """Note that ``chunk`` is not called with the body, or may not be called."""
        self.passes = False if certainly else None
        if certainly and self.planned is not None:
            self._drop(_BODY_NOT_SEEN)

    def forbid_storing(self, why: str, *, client_left: bool) -> None:
        """Forbid storing the response; if the client left, a waiting request is forwarded."""
        self.forbidden = why
        if client_left:
            self.resolve(NotShared.INTERRUPTED)
        if self.planned is not None:
            self._drop(why)

    def forbid_sharing(self, *, sets_cookie: bool, absent_cookie: str = "") -> None:
        """Forbid storing a response that depends on a session, unless its rule selects by user.

        Another exception is a response that depends on an empty session and is selected by the
        Cookie field, for a request without the session's cookie. It never answers requests with the
        cookie.
        """
        self.sets_cookie = self.sets_cookie or sets_cookie
        if self.forbidden or (self.found.target.private and not sets_cookie):
            return
        if not sets_cookie and absent_cookie and self.found.lacks_cookie(absent_cookie):
            self.is_without_session = True
            if self.planned is None or "cookie" in self.planned.vary:
                return
        self.forbid_storing(_DEPENDS_ON_SESSION, client_left=False)

    def head(self, head: ResponseHead) -> ResponseHead | Response:
        """Decide whether to store the response, and add Cache-Status."""
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
                found.context.flights.expect(found.lookup.key)  # request the whole next time
            return self._head_to_send(head, head, detail=planned)
        self.planned, self.announced = planned, length
        if length == 0:
            self._finish_body()
        elif length is None and head.status not in WITHOUT_BODY:  # a stream may never end
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
        # A slow client must not delay the other requests while it reads the body.
        if self.length == self.announced:
            self._finish_body()
        else:
            self.resolve(NotShared.UNSHAREABLE)

    def failed(self) -> Response | None:
        """Return the response to send if the application raised an exception before its head."""
        self.resolve(NotShared.UNSHAREABLE)
        return None

    def finish(self, *, complete: bool) -> Flow[None] | None:
        """Store the response, or release the lock if nothing is stored."""
        if (whole := self.whole(complete=complete)) is not None:
            return self._store(whole)
        self.resolve(NotShared.INTERRUPTED)
        self._note_end(stored=False)
        return self._unlock() if self.lock is not None else None

    def drop(self) -> None:
        """Let another request be forwarded, because this one is not."""
        self.resolve(NotShared.INTERRUPTED)

    def release(self) -> Flow[None] | None:
        """Return the flow that releases the lock; None while other processes may still wait."""
        return None if self.lock is None or self.unshared is None else self._unlock()

    def debug(self) -> None:
        """Prevent storing and sharing the response, because the client debugs the cache."""
        self.is_debugged = True
        self.resolve(NotShared.INTERRUPTED)

    def refusal(self, head: ResponseHead) -> str:
        """Return why the response would not be stored if the client did not debug the cache."""
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
        """Wake the requests that wait for this one. Only the first call has an effect."""
        if self.unshared is None and isinstance(result, NotShared):
            self.unshared = result
        if self.flight is not None:
            self.found.context.flights.resolve(self.flight, result, in_time=self._others_may_wait())

    def plan(self, request: HTTPRequest, head: ResponseHead) -> Plan | str:
        """Return the plan for storing a response with this head, or why it is not stored."""
        planned = self._make_plan(request, head)
        return _DEBUG_RESPONSE if self.is_debugged else planned

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
        """Return the plan with the body if the response is complete (RFC 9111 §3.3), else None."""
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
        """Return the head to send: a 304 if the client's conditions match (RFC 9111 §4.3.2)."""
        found, fwd_status = self.found, None
        if (
            self.evaluates
            and head.status == 200
            # A response of unknown length may never end, which would delay the 304.
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
        """Whether only a failure can prevent storing the response (RFC 9211 §2.5)."""
        if self.announced is None or self.announced > _MAX_CERTAIN_BYTES or not self.passes:
            return False
        if not self.found.lookup.epochs.tags.keys() >= {*planned.stored.tags}:
            return False  # one of its tags may be purged before the response is stored
        return not planned.addresses  # the body may contain a client's address

    def _finish_body(self) -> None:
        self.in_one_piece = True
        if self.flight is not None and self.planned is not None:
            self._complete_and_share(self.planned)

    def _complete_and_share(self, planned: Plan) -> Plan | None:
        """Share the response with waiting requests and return it; None if it must not be stored."""
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
        """Whether concurrent requests may still be waiting for this one."""
        context = self.found.context
        return context.store.clock.monotonic() - self.found.lookup.monotonic < context.collapse

    def _note_end(self, *, stored: bool) -> None:
        """Remember for later requests that the response could be shared."""
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
        # An entry at the same key shows other processes that the lock is released.
        is_shown = stores and target.key == found.target.key
        if not is_shown or planned.keep < found.context.collapse / 2:
            await self._unlock()

    async def _unlock(self) -> None:
        if self.lock is None:
            return
        (key, token), self.lock = self.lock, None
        mark, seconds = "", 0.0
        if self._has_failed():  # prevents other processes from repeating the request at once
            mark, seconds = FAILED, BACK_OFF
        elif self.unshared is NotShared.UNSHAREABLE:
            mark, seconds = UNSHARED, UNSHARED_SECONDS
        try:
            await self.found.context.store.release(key, token, mark, seconds)
        except UpstashError as error:  # the lock expires
            self.found.context.emit(UpstashFailed("cache store", error))

    def _has_failed(self) -> bool:
        return self.unshared is NotShared.FAILED


async def _store(found: LookedUpRequest, during: str, flow: Flow[str | None]) -> bool:
    """Store a response and emit the result; return whether it was stored."""
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
    """A forwarded request with a stored response that must be validated before it is used.

    The validators of the stored response are sent to the application. The new response confirms the
    stored one, replaces it, or is an error, for which the stored one may be sent instead.
    """

    stored: StoredResponse
    """The stored response with its body decrypted and decompressed."""
    in_background: bool = False
    confirmed: Plan | None = None
    contradicted: bool = False

    @property
    def withholds_conditions(self) -> bool:
        """Whether the client's conditions are withheld; otherwise stored validators are added."""
        return self.found.lookup.outdated and super().withholds_conditions

    def request_to_forward(self, request: HTTPRequest) -> HTTPRequest:
        """Add the stored validators (§4.3.1), unless another version made the stored response."""
        if self.found.lookup.outdated:
            return super().request_to_forward(request)
        headers = reuse.with_validators(self.found.request.headers, self.stored.headers)
        return replace(request, headers=headers)

    def head(self, head: ResponseHead) -> ResponseHead | Response:
        """Decide whether the stored response is confirmed or replaced (§4.3.3)."""
        found, stored = self.found, self.stored
        if head.status in _STALE_IF_ERROR_STATUSES:
            return self._fallback_for_error(head.status) or super().head(head)
        if not self.in_background:
            found.context.revalidations.end(found.lookup.key, failed=False)
        if head.status == 206 and stored.status != 206:  # keep the complete stored response
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
                self.contradicted = found.fwd == "request"  # otherwise it is already stale
        return super().head(head)

    def failed(self) -> Response | None:
        return self._fallback_for_error(None) or super().failed()

    def whole(self, *, complete: bool) -> Plan | None:
        """Return the confirmed response, or the new one that replaces it."""
        return self.confirmed or super().whole(complete=complete)

    def finish(self, *, complete: bool) -> Flow[None] | None:
        """Store the response. If a HEAD contradicts the stored response, mark it stale (§4.3.5)."""
        flow = super().finish(complete=complete)
        return self._store_then_mark_stale(flow) if self.contradicted else flow

    def drop(self) -> None:
        super().drop()
        if self.in_background:
            self.in_background = False  # so that ``finish`` does not count a failure
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
        # If two conditions were sent, a 304 without validators does not show which one matched.
        if reuse.confirms(self.stored.headers, head.headers) and (
            not own or reuse.has_validator(head.headers)
        ):
            return self._answer(self._freshen(head.headers), head.status)
        return super().head(head) if own else self._answer(self.stored, head.status)

    def _freshen(self, received: Headers) -> StoredResponse:
        """Return the stored response with updated header fields, and plan to store it (§4.3.4)."""
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
        """Return the stored response if it may replace an error (RFC 5861 §4), else None."""
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
    """An unsafe request, which may have changed resources whose responses are stored."""

    context: Context
    request: HTTPRequest
    urls: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    """The cache groups that the response invalidates, as tags."""
    pending: list[str] = []

    def head(self, head: ResponseHead) -> ResponseHead | Response:
        """Determine the URLs and groups to invalidate; an error response invalidates no URLs."""
        own, rules = _url_of_target(self.request), self.context.rules
        covered = self._covers(self.request.path)
        if 200 <= head.status < 400:
            # The target URL, and URLs of the same origin in Location and Content-Location.
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
        """Invalidate, even if the client left before the end of the response."""
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
        """Whether a URL in the response belongs to the application, and a rule covers it."""
        path, root_path = unquote(url.partition("?")[0]), self.request.root_path
        if root_path and not path.startswith(f"{root_path}/"):
            return False
        return self._covers(path.removeprefix(root_path))

    def _covers(self, path: str) -> bool:
        return any(rule.covers(path) for rule in self.context.rules)

    def _resolve_reference(self, reference: str | None) -> str | None:
        """Return the path and query of a URI reference; None if invalid or of another origin."""
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
    """A POST whose response may be stored as the state of its target (RFC 9110 §9.3.3).

    The response must have explicit freshness, and the target URL in Content-Location.
    """

    watches = True
    found: LookedUpRequest
    miss: Miss | None = None

    def head(self, head: ResponseHead) -> ResponseHead | Response:
        """Determine what to invalidate, and whether the response is the target's new state."""
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
        """Invalidate, and store the response as the target's new state."""
        whole = self.miss.whole(complete=complete) if self.miss is not None else None
        if whole is None:
            return super().finish(complete=complete)
        return self._carry_out(self._supersede(whole))

    async def _supersede(self, whole: Plan) -> None:
        found = self.found
        flow = found.context.store.supersede(found.target, found.lookup, whole)
        await _store(found, "invalidation", flow)
        if self.urls[1:] or self.groups:  # the URL in Location, and canonical forms
            await _purge(self.context, Purge(self.urls[1:]), self.groups)


async def purge(context: Context, what: Purge, groups: tuple[str, ...] = ()) -> None:
    """Purge, including the canonical forms of the URLs; ``groups`` are given as tags.

    Raises the same exceptions as ``Store.purge``.
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


# --- State shared by the concurrent requests of one process --------------------------------------


class Shared(Struct, frozen=True):
    """A response for the waiting requests, with the request that caused it."""

    plan: Plan
    found: LookedUpRequest


class NotShared(Enum):
    """Why the waiting requests do not get the response."""

    UNSHAREABLE = auto()
    """The response may not be stored, or it is a stream. The next one probably is as well."""
    FAILED = auto()
    """The response is an error, and a stale stored response is sent instead."""
    INTERRUPTED = auto()
    """The client disconnected, so another of the waiting requests must be forwarded."""


class Flight(Struct, eq=False):
    """A forwarded request that others may wait for."""

    key: str
    started_at: float
    """The monotonic time at which it was forwarded."""
    latch: Latch = field(default_factory=Latch)
    result: object = None
    """``NotShared``, or the result of the leader."""


class SingleFlight:
    """The forwarded requests of this process, and whether earlier responses could be shared.

    Thread-safe. The memory of earlier responses is bounded, and is used only for predictions.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._flights: dict[str, Flight] = {}
        self._shareable: LRU[str, bool] = LRU(_MAX_REMEMBERED)
        """Whether the last response under a key could be shared with waiting requests."""
        self._lock = threading.Lock()

    def join(
        self, key: str, *, expected: bool = True, may_lead: bool = True
    ) -> tuple[Flight | None, bool]:
        """Return the flight for a key, and whether the caller is its leader.

        The flight is None if the caller may not lead and there is none, or if no response that can
        be shared is expected. ``expected`` is the prediction if no earlier response is known.
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
        """Wake the requests that wait for a flight. Only the first call has an effect.

        A shared result also answers requests that join before the flight is forgotten. ``in_time``
        is whether the first waiting requests have not timed out.
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
        """Remove a flight that is stored or takes too long, so that no more requests join it."""
        with self._lock:
            if self._flights.get(flight.key) is flight:
                del self._flights[flight.key]

    def expects(self, key: str, *, default: bool) -> bool:
        """Whether the response under a key can probably be shared; ``default`` if unknown."""
        shareable = self._shareable.get(key)
        return default if shareable is None else shareable

    def expect(self, key: str) -> None:
        """Predict that the next response under a key can be shared."""
        self._shareable.put(key, True)

    def clear(self) -> None:
        """Forget all predictions."""
        self._shareable.clear()


class Revalidations:
    """The revalidations that are running, and those that have failed recently."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._known: LRU[str, tuple[float, bool]] = LRU(_MAX_REMEMBERED)
        """When the next revalidation of a key may begin, and whether the last one failed."""
        self._lock = threading.Lock()

    def begin(self, key: str) -> bool:
        """Return whether the caller should revalidate a stored response; it must then call ``end``.

        Only one runs at a time, and none begins within ``BACK_OFF`` seconds after a failure.
        """
        with self._lock:
            until, failed = self._known.get(key) or (0.0, False)
            now = self._clock.monotonic()
            if now < until:
                return False
            self._known.put(key, (now + (BACK_OFF if failed else _ABANDONED_AFTER), failed))
            return True

    def end(self, key: str, *, failed: bool) -> None:
        """Record the end of a revalidation."""
        with self._lock:
            if failed:
                self._known.put(key, (self._clock.monotonic() + BACK_OFF, True))
            else:
                self._known.remove(key)

    def failing(self, key: str) -> bool:
        """Whether the last revalidation failed recently. Later, one caller gets False, to retry."""
        known = self._known.get(key)
        return known is not None and known[1] and not self.begin(key)

    def clear(self) -> None:
        """Forget all of them."""
        self._known.clear()


class StoredErrors:
    """The number of errors that this process has stored for each rule in the current minute.

    Requests for random paths mostly end in errors. The limit bounds the writes that they cause.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._minute = 0.0
        self._counts: dict[int, int] = {}
        """The errors stored in this minute, by ``id(rule)``; rules outlive this object."""
        self._lock = threading.Lock()

    def admits(self, rule: CacheRule, status: int) -> bool:
        """Return whether to store a response that may be stored; an error is counted."""
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
    """Return a path and query with the query in its canonical form."""
    path, _, query = url.partition("?")
    canonical = variation.canonical(query)
    return f"{path}?{canonical}" if canonical else path


def _path_of(url: str) -> str:
    return url.partition("?")[0]


class Variations:
    """Which query parameters select responses (No-Vary-Search), as far as this process knows.

    If no response of a rule has had the field, nothing is read. Otherwise the record of each path
    is read together with its responses. Until a path's record is known, the last value seen under
    its rule is used.
    """

    def __init__(self) -> None:
        self.by_rule: dict[str, Variation] = {}
        """The last value seen, by the path of the rule. Usually empty."""
        self._by_path: LRU[str, Variation] = LRU(_MAX_REMEMBERED)
        self.informed: bool = False
        """Whether this process has done any lookup; before that, nothing is known of the rules."""

    def of(self, rule: CacheRule, url: str) -> Variation | None:
        """Return how the queries of a URL's path select; None if no response of the rule says."""
        if rule.path not in self.by_rule:
            return None
        return self._by_path.use(_path_of(url)) or self.by_rule[rule.path]

    def learn(self, rule: CacheRule, url: str, variation: Variation) -> None:
        """Record the variation of a response for this URL, or of the record of its path."""
        if variation != EXACT:
            self.by_rule[rule.path] = variation
        elif rule.path not in self.by_rule:
            return
        self._by_path.put(_path_of(url), variation)

    def canonical(self, urls: Sequence[str], rules: Iterable[CacheRule]) -> list[str]:
        """Return the known canonical forms of URLs, without those that are among the URLs."""
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
        """Return the URLs whose canonical form depends on a record that was not read."""
        if self.informed and not self.by_rule:
            return []
        return [url for url in urls if "?" in url and _path_of(url) not in self._by_path]

    def clear(self) -> None:
        """Forget all of them."""
        self.by_rule.clear()
        self._by_path.clear()
        self.informed = False


class PendingInvalidations:
    """The URLs and cache groups that this process is about to invalidate.

    An invalidation reaches Redis after its response was sent, but the client's next request must
    see the change. Until then, the stored responses are not used. Thread-safe.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.until: dict[str, list[float]] = {}
        """When each entry expires, by URL or group. Usually empty."""
        self._lock = threading.Lock()

    def begin(self, names: Iterable[str]) -> None:
        """Add URLs, as in the names of epochs, and groups, as tags."""
        until = self._clock.monotonic() + _ABANDONED_AFTER
        with self._lock:
            for name in names:
                self.until.setdefault(name, []).append(until)

    def end(self, names: Iterable[str]) -> None:
        """Remove URLs and groups that no other request is invalidating."""
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
