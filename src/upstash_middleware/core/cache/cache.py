"""The cache as one half of the engine: which passage a request takes, and purging."""

from __future__ import annotations

from os import urandom
from typing import TYPE_CHECKING
from urllib.parse import quote

from upstash_middleware.core.cache.agreeing import agree, agree_on_refresh
from upstash_middleware.core.cache.changing import Changing
from upstash_middleware.core.cache.collapsing import Flights, Outcome, may_be_shared
from upstash_middleware.core.cache.collapsing import collapse as collapsed
from upstash_middleware.core.cache.decoded import Decoded
from upstash_middleware.core.cache.directives import CDN_CACHE_CONTROL
from upstash_middleware.core.cache.exchanges import (
    Answering,
    Bypassing,
    Context,
    Invalidating,
    Passing,
)
from upstash_middleware.core.cache.explaining import CacheExplanation, explain
from upstash_middleware.core.cache.invalidation import SAFE_METHODS
from upstash_middleware.core.cache.keys import (
    Names,
    keyed,
    selected_cookies,
    selected_values,
)
from upstash_middleware.core.cache.l1 import L1
from upstash_middleware.core.cache.lookup import look_back, look_up, recall
from upstash_middleware.core.cache.memory import Memory
from upstash_middleware.core.cache.passage import at_hand, instead_of_store, passage
from upstash_middleware.core.cache.places import Places
from upstash_middleware.core.cache.posting import Posting
from upstash_middleware.core.cache.profiles import profile_named
from upstash_middleware.core.cache.purging import Purge, purge
from upstash_middleware.core.cache.recording import Forwarded, Recording
from upstash_middleware.core.cache.sealing import Sealing
from upstash_middleware.core.cache.status import CacheStatus
from upstash_middleware.core.cache.store import Store, Target
from upstash_middleware.core.cache.validation import is_for_the_origin
from upstash_middleware.core.effects import call
from upstash_middleware.errors import ConfigurationError, UpstashError
from upstash_middleware.events import (
    CacheLookedUp,
    UpstashAnswered,
    UpstashFailed,
    UserCodeFailed,
    hears,
)
from upstash_middleware.values import replace

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from upstash_middleware.core.cache.places import Place
    from upstash_middleware.core.cache.rules import CacheRule
    from upstash_middleware.core.clock import Clock
    from upstash_middleware.core.exchange import Exchange
    from upstash_middleware.events import Observer
    from upstash_middleware.messages import Request

_PASSING = Passing()
_ANSWERED = UpstashAnswered("cache lookup")
_DAY = 24 * 3600.0


class Cache:
    """A shared cache (RFC 9111) over stored responses on Redis."""

    def __init__(  # noqa: PLR0913 - keyword arguments, each a setting of its own
        self,
        rules: Sequence[CacheRule],
        *,
        prefix: str,
        secret: Callable[[], bytes],
        clock: Clock,
        observe: Observer,
        deadline: float = 0.25,
        profile: str = "safe",
        max_body: int = 1024 * 1024,
        max_variants: int = 100,
        grace: float = 3600.0,
        targets: tuple[str, ...] = (CDN_CACHE_CONTROL,),
        background_refresh: bool = False,
        collapse: float = 5.0,
        lock: bool = False,
        max_keep: float = 7 * _DAY,
        remember: int = 10_000,
        l1_bytes: int = 0,
        l1_seconds: float = 5.0,
        version: str = "",
        previous_version: str = "",
        tells_keys: bool = False,
        keys: Sequence[str] = (),
        encrypt: bool = False,
        randomness: Callable[[int], bytes] = urandom,
    ) -> None:
        """Make a cache; nothing is asked of Upstash or of ``secret`` before a request is.

        ``deadline`` seconds are the most that one call for the cache alone may take, where a rule
        says no other. A response that
        can be validated is kept ``grace`` seconds beyond its freshness, none more than
        ``max_keep`` in all, nor one whose body has more than ``max_body`` bytes; of a resource
        at most ``max_variants`` are kept at a time. ``targets`` name the targeted fields (RFC
        9213) that are obeyed, the most specific first. ``background_refresh`` says that whoever
        runs this follows an exchange's ``refresh``. For ``collapse`` seconds a request waits
        for another of this process that is on its way for the same response; 0 has none wait.
        ``lock`` has it wait for other processes too, at one more command for each miss. What
        this process learns is remembered of ``remember`` URLs. ``l1_bytes`` of what it finds are
        held in its memory, and used for ``l1_seconds`` without asking; 0 for none.
        What is stored belongs to the application's ``version``; where that has nothing, what its
        ``previous_version`` has stored is used while it is refreshed. ``tells_keys`` has
        Cache-Status say where each response stands. With ``keys``, entries are signed under
        the first of them, or encrypted, and nothing is used that is under none.
        """
        self._rules = tuple(rules)
        self._observe = observe
        self._tells = hears(observe, CacheLookedUp)
        """Whether anybody wants to know of every lookup."""
        self._store = Store(
            Names(prefix),
            secret,
            clock,
            randomness,
            observe,
            Sealing.under(keys, encrypt=encrypt, randomness=randomness),
            deadline,
            max_keep,
            profile_named(profile),
            Memory(remember),
            Decoded(),
            L1(l1_bytes, l1_seconds, clock),
            max_variants,
            lock,
        )
        self._context = Context(
            self._rules,
            self._store,
            observe,
            max_body,
            grace,
            tuple(name.lower() for name in targets),
            background_refresh,
            Flights(clock),
            Changing(clock),
            collapse,
            tells_keys,
        )
        covering = [(rule, self._under(rule)) for rule in self._rules]
        self._places = Places(covering, self._store.names, version, previous_version)

    async def begin(self, request: Request) -> Exchange:
        """Look a request up, if a rule covers it. Never raises an UpstashError."""
        if request.method not in SAFE_METHODS:
            return await self._begin_unsafe(request) if self._rules else _PASSING
        if (place := self._places.of(request, request.method)) is None:
            return _PASSING
        if is_for_the_origin(request.headers):
            return Bypassing(CacheStatus(fwd="bypass", detail="condition for the application"))
        asks = place.rule.bypass is not None or place.rule.user is not None
        target = await self._asked(place, request) if asks else self._target(place, request)
        if isinstance(target, CacheStatus):
            return Bypassing(target)
        held = self._held(place, request, target, at_hand)
        return await self._begin_stored(place, request, target) if held is None else held

    async def _begin_stored(self, place: Place, request: Request, target: Target) -> Exchange:
        asked = await self._looked_up(place, request, target)
        if isinstance(asked, CacheStatus):
            if (answering := self._held(place, request, target, instead_of_store)) is not None:
                return answering
            self._tell(target, "bypass", request)
            return Bypassing(asked)
        exchange, outcome = passage(place.context, asked)
        self._tell(target, outcome, request)
        if isinstance(exchange, Answering) and exchange.refresh is None:
            return exchange
        return await _together_with_others(place.context, exchange, asked)

    async def _begin_unsafe(self, request: Request) -> Exchange:
        stores = request.method == "POST" and self._store.profile.stores_posts
        if stores and (place := self._places.of(request, "GET")) is not None:
            target = await self._asked(place, request)
            if isinstance(target, CacheStatus):
                return Invalidating(self._context, request)
            asked = await self._looked_up(place, request, target)
            if isinstance(asked, Forwarded):
                return Posting(place.context, asked)
            self._tell(target, "bypass", request)
        return Invalidating(self._context, request)

    async def purge(self, what: Purge) -> None:
        """Make stored responses unusable, at once and for all processes.

        Raises UpstashError where it is not certain that all of it was carried out, ValueError
        for a URL that is none.
        """
        await purge(self._store, what, self._rules)

    async def explain(self, request: Request) -> CacheExplanation:
        """Tell what a lookup would find for a request, and why it would not answer it.

        A flow. Raises UpstashError.
        """
        place = self._places.of(request, request.method)
        if place is None:
            return CacheExplanation("bypass", "no rule of the cache covers it")
        rule, setting = place.rule, self._setting(place)
        if is_for_the_origin(request.headers):
            why = "it carries a condition that only the application can answer"
            return CacheExplanation("bypass", why, setting)
        try:
            if rule.bypass is not None and await call(rule.bypass, request):
                return CacheExplanation("bypass", "the rule's own bypass takes it out", setting)
            target = self._target(place, request, await _user(rule, request))
        except ConfigurationError:  # of credentials that are missing
            raise
        except Exception as error:  # noqa: BLE001 - it is the application's code
            why = f"a function of the rule raised {type(error).__name__}: {error}"
            return CacheExplanation("bypass", why, setting)
        told = await explain(self._store, target, can_refresh=self._context.can_refresh)
        return replace(told, rule=setting)

    def _setting(self, place: Place) -> str:
        return f"cache[{self._rules.index(place.rule)}]"

    async def _asked(self, place: Place, request: Request) -> Target | CacheStatus:
        """Return what a request is about, or why its rule's functions send it past the cache."""
        rule = place.rule
        try:
            if rule.bypass is not None and await call(rule.bypass, request):
                return CacheStatus(fwd="bypass")
            return self._target(place, request, await _user(rule, request))
        except ConfigurationError:  # of credentials that are missing: nothing here can help
            raise
        except Exception as error:  # noqa: BLE001 - it is the application's code
            self._observe(UserCodeFailed(self._setting(place), error))
            return CacheStatus(fwd="bypass", detail="a function of the rule failed")

    def _held(
        self,
        place: Place,
        request: Request,
        target: Target,
        answering: Callable[[Context, Forwarded], Answering | None],
    ) -> Answering | None:
        """Return the answer of what this process holds, if that may be used."""
        lookup = recall(self._store, target)
        if lookup is None or target.url in self._context.changing:
            return None
        answer = answering(
            place.context, Forwarded(request, place.rule, target, lookup, "uri-miss")
        )
        if answer is not None:
            self._tell(target, "hit", request)
        return answer

    def _tell(self, target: Target, outcome: str, request: Request) -> None:
        if self._tells:
            self._observe(CacheLookedUp(target.url, outcome, request))

    async def _looked_up(
        self, place: Place, request: Request, target: Target
    ) -> Forwarded | CacheStatus:
        """Return a request with what is stored for it, or why it goes past the cache."""
        store = place.context.store
        changes = store.l1.changes
        try:
            found = await look_up(store, target)
            store.l1.put(target, found, changes)
            lookup = await look_back(store, target, found) if target.previous else found
        except UpstashError as error:
            self._observe(UpstashFailed("cache lookup", error))
            return CacheStatus(fwd="bypass", detail="the store did not answer")
        self._observe(_ANSWERED)
        fwd = "uri-miss" if lookup.stub is None else "vary-miss"
        if target.url in self._context.changing:
            lookup = replace(lookup, entry=None)
        return Forwarded(request, place.rule, target, lookup, fwd)

    def _target(self, place: Place, request: Request, user: str | None = None) -> Target:
        key, previous = place.key, place.previous
        if user is not None or place.narrows:
            selecting, secret = self._selecting(place.rule, request, user), self._store.secret()
            key = keyed(key, selecting, secret)
            previous = previous and keyed(previous, selecting, secret)
        headers, private = request.headers, user is not None
        return Target(key, place.url, headers, place.tags, place.epochs, previous, private)

    def _selecting(self, rule: CacheRule, request: Request, user: str | None) -> str:
        """Return what of a request selects its resource besides the URL, as one text."""
        parts = [] if user is None else [f"user={quote(user)}"]
        if rule.vary_cookies:
            parts.append(selected_cookies(rule.vary_cookies, request.headers))
        if rule.vary_headers:
            profile = self._store.profile
            parts.append(selected_values(rule.vary_headers, request.headers, profile))
        return "\n\n".join(parts)

    def _under(self, rule: CacheRule) -> Context:
        """Return what passages under a rule share: all, but for a deadline of its own."""
        if rule.deadline is None:
            return self._context
        return replace(self._context, store=replace(self._store, deadline=rule.deadline))


async def _user(rule: CacheRule, request: Request) -> str | None:
    """Return who asks, as the rule's own function tells."""
    user = None if rule.user is None else await call(rule.user, request)
    return None if user is None else str(user)


async def _together_with_others(context: Context, exchange: Passing, asked: Forwarded) -> Exchange:
    """Have only one of those who ask for the same thing at once go forward."""
    if isinstance(exchange, Answering):
        return await agree_on_refresh(context, exchange, asked)
    if not isinstance(exchange, Recording) or not may_be_shared(context, asked):
        return exchange
    try:
        chosen = await collapsed(context, exchange, asked)
        if chosen is exchange and exchange.leads:
            return await agree(context, exchange, asked)
    except BaseException:  # nobody will finish it, so nobody shall wait for it
        exchange.land(Outcome.INTERRUPTED)
        raise
    return chosen
