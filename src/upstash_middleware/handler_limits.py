"""Limits in front of single handlers: what the frameworks' decorators and dependencies share.

A limit here is one rule and takes a round trip of its own, for it stands behind the routing and,
where it is wanted, behind authentication. Nothing here knows a framework, or sends a response.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, TypedDict
from weakref import WeakKeyDictionary

from upstash_middleware.core.engine import Engine, Exchange
from upstash_middleware.core.ratelimit import rule_from_mapping
from upstash_middleware.core.ratelimit.decision import combined
from upstash_middleware.errors import ConfigurationError
from upstash_middleware.handlers import LONGEST_NAME, handler_name, identity
from upstash_middleware.values import dataclass, field, replace

if TYPE_CHECKING:
    from collections.abc import Iterable

    from upstash_middleware.core.identify import AnyExtractor
    from upstash_middleware.core.ratelimit import Decision, RateLimiter, RateLimitRule
    from upstash_middleware.core.ratelimit.answering import Answering
    from upstash_middleware.core.ratelimit.exchange import RateLimitExchange
    from upstash_middleware.core.ratelimit.rules import Cost, OnError, Predicate, Settle
    from upstash_middleware.gateway import Gateway
    from upstash_middleware.messages import Request
    from upstash_middleware.settings import Settings

TIGHTEST = ("x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset")
"""The fields of the tightest limit: those of a limit further in stand in place of others."""


class LimitArguments(TypedDict, total=False):
    """What a limit in front of a handler takes beside its limits: RateLimitRule's arguments.

    Those of the route, ``path`` and ``methods``, are the framework's.
    """

    by: AnyExtractor | str
    name: str
    on_error: OnError
    cost: Cost
    when: Predicate
    allow: Iterable[str]
    deny: Iterable[str]
    shadow: bool
    shared_prefix: str
    local_share: float
    settle: Settle
    challenge: str
    dynamic: bool
    jitter: float
    deadline: float


class HandlerLimit:
    """One rule in front of handlers; it counts for each by itself, unless it has a name.

    Raises ConfigurationError, as RateLimitRule does.
    """

    def __init__(self, limits: Any, arguments: LimitArguments) -> None:
        setting = f"limit({limits!r})"
        for name in ("path", "methods"):
            if name in arguments:
                raise ConfigurationError(
                    f"{setting}.{name}: a limit in front of a handler covers what the handler "
                    "is routed; use RateLimitRule for paths and methods"
                )
        self._named = "name" in arguments
        self.rule: RateLimitRule = rule_from_mapping({"limits": limits, **arguments}, setting)
        if self.rule.parsed is None:
            raise ConfigurationError(f"{setting}: to exempt a handler, mark it with @exempt")

    def begin(
        self, gateway: Gateway, place: Place, request: Request, prior: Decision | None
    ) -> Begun:
        """Decide about a request, in one round trip.

        ``prior`` is what limits further out have decided about the same request. Raises
        MissingCredentials, and ConfigurationError where another handler has this one's name.
        """
        engine = self._engine(gateway, place, prior)
        return _begun(gateway.begin_by(engine, request), prior)

    async def abegin(
        self, gateway: Gateway, place: Place, request: Request, prior: Decision | None
    ) -> Begun:
        """Do the same as ``begin`` on an event loop."""
        engine = self._engine(gateway, place, prior)
        return _begun(await gateway.abegin_by(engine, request), prior)

    def _engine(self, gateway: Gateway, place: Place, prior: Decision | None) -> Engine:
        limiter = gateway.answering(_of(gateway).limiter(gateway, self, place))
        return Engine([_Behind(limiter, prior)], observe=gateway.observe)

    def name_at(self, place: Place) -> str:
        """Return the name that the limit counts under in front of a handler."""
        return self.rule.name if self._named else handler_name(place.handler, place.owner)

    def shares(self) -> bool:
        """Whether all handlers that it stands before count together."""
        return self._named


@dataclass(frozen=True, slots=True)
class Place:
    """The handler that a limit stands before."""

    handler: object
    owner: type | None = None
    """The class on whose object it is called, if it is a method."""


@dataclass(frozen=True, slots=True)
class Begun:
    """A request behind one more limit."""

    exchange: Exchange
    decision: Decision | None
    """What the handler shall read: the tightest of all limits that the request has passed."""


def _begun(exchange: Exchange, prior: Decision | None) -> Begun:
    own = exchange.decision
    if own is None or prior is None:
        return Begun(exchange, own or prior)
    return Begun(exchange, combined([prior, own]))


@dataclass(frozen=True, slots=True)
class _Behind:
    """A rate limit behind others; implements ``core.exchange.Half``.

    What the handler charges counts in all of them, and ``X-RateLimit-*`` tell of the tightest;
    the draft's lists get a line from each.
    """

    limiter: RateLimiter | Answering
    prior: Decision | None

    async def begin(self, request: Request) -> RateLimitExchange:
        exchange = await self.limiter.begin(request)
        own = exchange.decision
        if self.prior is not None and own is not None:
            tightest = combined([self.prior, own])
            exchange.decision = replace(tightest, policies=own.policies, ledger=self.prior.ledger)
        return exchange


@dataclass(slots=True)
class _Limiters:
    """The limits of one gateway that stand before handlers: no two count under one name."""

    _lock: threading.Lock = field(default_factory=threading.Lock)
    _made: dict[tuple[HandlerLimit, object], RateLimiter] = field(default_factory=dict)
    _taken: dict[str, object] = field(default_factory=dict)

    def limiter(self, gateway: Gateway, limit: HandlerLimit, place: Place) -> RateLimiter:
        """Return the limiter of a limit in front of a handler, the same each time."""
        who = None if limit.shares() else identity(place.handler, place.owner)
        if (made := self._made.get((limit, who))) is not None:
            return made
        with self._lock:
            if (limit, who) not in self._made:
                name = self._free_name(limit, place, who)
                _refuse_a_rules_name(name, gateway.settings)
                self._made[limit, who] = gateway.limiter((replace(limit.rule, name=name),))
                self._taken[name] = who
            return self._made[limit, who]

    def _free_name(self, limit: HandlerLimit, place: Place, who: object) -> str:
        name = limit.name_at(place)
        if name not in self._taken:
            return name
        if limit.shares() or self._taken[name] != who:
            raise ConfigurationError(
                f"{limit.rule.setting}: another limit counts under the name {name!r} already, "
                "and the two would share their counters; give one of them another name=, or, if "
                "they shall share, put one limit object before both"
            )
        # Several limits before one handler; each request meets them in the same order.
        numbered = (f"{name[: LONGEST_NAME - 3]} {number}" for number in range(2, 100))
        return next(free for free in numbered if free not in self._taken)


def _refuse_a_rules_name(name: str, settings: Settings) -> None:
    for rule in (*settings.rate_limits, settings.default_limit):
        if rule is not None and rule.parsed is not None and rule.name == name:
            raise ConfigurationError(
                f"name={name!r}: {rule.setting} has this name already, and limits of one name "
                "would share their counters; give one of them another"
            )


_limiters: WeakKeyDictionary[Gateway, _Limiters] = WeakKeyDictionary()
_limiters_lock = threading.Lock()


def _of(gateway: Gateway) -> _Limiters:
    found = _limiters.get(gateway)
    if found is None:
        with _limiters_lock:
            found = _limiters.setdefault(gateway, _Limiters())
    return found
