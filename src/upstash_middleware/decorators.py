"""The decorators ``limit``, ``cached``, ``never_cached`` and ``exempt``, for every framework.

A framework supplies a HandlerCall, which reads the request of one call of a handler, makes the
response to a denied one, and attaches what a decorator adds to the handler's response.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import threading
import weakref
from collections.abc import MutableMapping
from contextlib import suppress
from functools import partial, wraps
from string import Formatter
from types import MethodType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, cast

from msgspec import structs

from upstash_middleware.arguments import passing_to
from upstash_middleware.core.clock import seconds_in
from upstash_middleware.core.engine import Engine, Part
from upstash_middleware.core.ratelimit import rule_from_mapping
from upstash_middleware.core.ratelimit.charges import read_scripts
from upstash_middleware.core.ratelimit.decision import UNCHECKED, Ledger, combined, completing
from upstash_middleware.errors import ConfigurationError
from upstash_middleware.logs import logger
from upstash_middleware.messages import ResponseHead
from upstash_middleware.runtime import Features, Runtime, run_soon

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from upstash_middleware.core.clock import Duration
    from upstash_middleware.core.engine import Exchange
    from upstash_middleware.core.identify import AnyExtractor
    from upstash_middleware.core.ratelimit import (
        Decision,
        RateLimiter,
        RateLimitExchange,
        RateLimitRule,
    )
    from upstash_middleware.core.ratelimit.rules import (
        AnyLease,
        AnyLimits,
        Cost,
        OnError,
        Predicate,
        Settle,
    )
    from upstash_middleware.messages import HTTPRequest, RequestBody, Response

H = TypeVar("H")
F = TypeVar("F", bound="Callable[..., Any]")
L = TypeVar("L")

MAX_NAME_LENGTH = 64
_LIMITS = "_upstash_middleware_limits"
"""Where a decorated handler has the limits in front of it, outermost first."""


# ------------------------------------------------------------------------------------------------
# The decorators


class HandlerCall:
    """One call of a decorated handler. Each framework has a subclass with its hooks.

    ``read`` reads the request and sets the attributes; ``deny`` makes the response to a denied
    request; ``enter``, ``attach`` and ``failed`` attach what a decorator adds to the response.
    """

    __slots__ = ("decorator", "handler", "method", "owner", "path", "path_params", "wrapper")

    expected: ClassVar[str]  # what should be decorated, for error messages
    method: str
    path: str  # that the rules of the middleware match
    path_params: Mapping[str, Any]

    def __init__(self, wrapper: object, handler: Any, decorator: Decorator) -> None:
        self.wrapper: object = wrapper
        self.handler: Any = handler
        self.decorator: Decorator = decorator
        self.owner: type | None = None  # the class on whose object a method is called

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raises ConfigurationError if the arguments contain no request."""
        raise NotImplementedError

    @staticmethod
    def is_async(handler: Any) -> bool:
        return inspect.iscoroutinefunction(handler)

    @staticmethod
    def decorated(wrapper: Any, decorator: Decorator) -> None:
        """Change a wrapper that has been made."""

    def to_call(self, handler: Any) -> Any:
        """Return the function to call in place of a handler."""
        return handler

    def runtime(self) -> Runtime:
        """Return the runtime whose client limits use."""
        raise NotImplementedError

    def cache_runtime(self) -> Runtime | None:
        """Return the runtime of the middleware that caches, if any."""
        raise NotImplementedError

    def request(self) -> HTTPRequest:
        raise NotImplementedError

    def body(self) -> RequestBody | None:
        """Return the request's body, for a limit that needs it; None if it has none."""
        raise NotImplementedError

    def decision(self) -> Decision:
        """Return the handler's decision: the combined one of the limits passed so far."""
        raise NotImplementedError

    def show(self, decision: Decision) -> None:
        """Show the handler another decision."""
        raise NotImplementedError

    def is_uncounted(self) -> bool:
        """Whether no limit applies: an exempt handler, or a background revalidation."""
        raise NotImplementedError

    def deny(self, pending: PendingExchange) -> Any:
        """Return the response to a denied request, or raise the framework's exception for it."""
        raise NotImplementedError

    async def adeny(self, pending: PendingExchange) -> Any:
        return self.deny(pending)

    def enter(self, attached: Attached) -> None:
        """Prepare before the handler is called."""

    def attach(self, attached: Attached, response: Any) -> Any:  # noqa: ARG002 - a hook
        """Return what to send for the handler's response."""
        return response

    def failed(self, attached: Attached, error: BaseException) -> None:
        """Note that the handler has raised."""


class Attached:
    """The fields that a decorator adds to the response of one call of a handler."""

    __slots__ = ("_mark", "finished_elsewhere")

    finished_elsewhere: bool  # whether something other than the decorator finishes it
    denies: bool = False  # whether the handler is not to be called
    holding: Sequence[object] = ()  # what is held on Redis and has to be renewed

    def __init__(self, mark: Callable[[ResponseHead], ResponseHead]) -> None:
        self._mark = mark
        self.finished_elsewhere = True

    def head(self, head: ResponseHead) -> ResponseHead:
        """Return the response's head with its fields."""
        return self._mark(head)

    def failed(self) -> object:
        """Note that the application raised before its response began."""

    def renew(self) -> None:
        """Renew the slots on Redis, if that is due."""

    async def arenew(self) -> None:
        pass

    def finish(self, *, complete: bool = True) -> None:
        """Finish it, unless that has been done."""

    async def afinish(self, *, complete: bool = True) -> None:
        pass


def completed(head: ResponseHead, denial: Response) -> ResponseHead:
    """Return the head of an application's response to a denial, with the fields that it lacks."""
    missing = completing(denial.head.headers, head.headers.names())
    return ResponseHead(head.status, head.headers.adding(*missing)) if missing else head


class Decorator:
    """A decorator of handlers: a limit, or a rule for storing their responses."""

    name: str

    def __init__(self, hooks: type[HandlerCall] = HandlerCall) -> None:
        self._hooks = hooks

    def __call__(self, handler: F, /) -> F:
        """Put it in front of a handler.

        Args:
            handler: The handler.
        """
        hooks = self._hooks
        if inspect.isclass(handler) or not callable(handler):
            raise ConfigurationError(f"{self.name}: {handler!r} should be {hooks.expected}")
        wrapper = (_async_wrapper if hooks.is_async(handler) else _wrapper)(handler, self, hooks)
        if isinstance(self, HandlerLimit):
            mark_limits(wrapper, self, *_marked_limits(handler))
        hooks.decorated(wrapper, self)
        return cast("F", wrapper)

    def begin(self, call: HandlerCall) -> Attached | None:
        """Return what to attach to the response of a call, None for nothing."""
        raise NotImplementedError

    async def abegin(self, call: HandlerCall) -> Attached | None:
        return self.begin(call)


class LimitFactory(Generic[L]):
    """What makes limits in front of handlers, in each framework of its own kind."""

    @passing_to("_limit")
    def __call__(  # noqa: PLR0913 - the fields of a rule
        self,
        limits: AnyLimits,
        *,
        by: AnyExtractor | str = "ip",
        name: str = "",
        on_error: OnError = "open",
        cost: Cost = 1,
        when: Predicate | None = None,
        allow: Iterable[str] = (),
        deny: Iterable[str] = (),
        shadow: bool = False,
        shared_prefix: str | None = None,
        local_share: float = 1.0,
        settle: Settle | None = None,
        challenge: str | None = None,
        dynamic: bool = False,
        deadline: Duration | None = None,
        lease: AnyLease | None = None,
    ) -> L:
        """Limit the requests for a handler.

        It is a decorator, ``@limit("5/minute")``; in Flask also for ``before_request``; in FastAPI
        a dependency, ``Depends(limit("5/minute"))``, whose value is its own Decision; and in Django
        REST framework a throttle class, ``throttle_classes = [throttle("5/minute")]``.

        Args:
            limits: Text such as ``"5/minute"`` or ``"10/s burst 20; 1000/day"``; an algorithm such
                as ``SlidingWindow(5, per=60)``; several of these, of which a request takes from all
                or from none; a limiter of ``upstash_ratelimit``; or a function of the request that
                returns one of these, sync or async.
            by: Whose quota a request uses: an extractor such as ``header("X-API-Key")``, a function
                of the request, or text such as ``"user"`` or ``"header:X-API-Key"``; in FastAPI
                also a dependency, ``Depends(current_user)``. Default: the client's address.
            name: What the counters are named after; handlers with one name share a quota. Default:
                the handler's qualified name, so that each has its own.
            on_error: If Upstash is unreachable: ``"open"`` lets the request pass, ``"closed"``
                answers 503, ``"local"`` counts in this process. Default ``"open"``.
            cost: The units that a request takes, or a function of the request that returns them.
                Default 1.
            when: A function of the request that returns whether the limit applies; None for always.
            allow: Networks and identifiers that pass uncounted: ``10.0.0.0/8``, ``user=7``,
                ``alice``.
            deny: Networks and identifiers that get a 403.
            shadow: Whether to report denials only, and to deny nothing. Default False.
            shared_prefix: The prefix of an ``upstash_ratelimit``, in Python or JavaScript, whose
                counters this limit uses; None for its own.
            local_share: The part of the quota that this process has under ``on_error="local"``,
                above 0 and at most 1. Default 1.
            settle: A function of request and response that returns the final cost in units, in
                place of ``cost``, which is taken before; None for ``cost``.
            challenge: The challenge of a 401, such as ``"Bearer"``, for requests without an
                identifier; None counts these by their address.
            dynamic: Whether ``Limiter.set_limit`` can change the limit at run time. Default False.
            deadline: Seconds for the call to Upstash; None uses the setting ``deadline``.
            lease: Seconds for which this process reserves quota for a busy identifier, text such as
                ``"500ms"``, a Lease, a mapping of its fields, or False for none; None for the
                setting ``lease``.

        Raises:
            ConfigurationError: An argument is wrong.
        """
        raise NotImplementedError

    def _limit(self, limits: AnyLimits, **arguments: Any) -> L:
        raise NotImplementedError


class LimitDecorator(LimitFactory["HandlerLimit"]):
    """Limit the requests for a handler: ``@limit("5/minute")``.

    The limit applies after routing and authentication, and takes a separate round trip. Each
    handler has its own quota, under its qualified name; handlers that are decorated with one limit
    object that has a ``name`` share a quota. A Starlette endpoint reads
    ``request.state.rate_limit``, and a denial raises RequestDenied. A Django view reads
    ``request.rate_limit``, and a denial gets a 429, or the response of the view that
    UPSTASH_MIDDLEWARE_DENIED_VIEW names; a class is decorated by
    ``@method_decorator(limit("5/minute"), name="dispatch")``.
    """

    def __init__(self, hooks: type[HandlerCall]) -> None:
        self._hooks = hooks

    def _limit(self, limits: AnyLimits, **arguments: Any) -> HandlerLimit:
        return HandlerLimit(limits, arguments, self._hooks)


class CachedDecorator:
    """Store a handler's successful responses in the cache of the middleware outside.

    The rules of the middleware decide which requests are looked up:
    ``cache=[CacheRule("/{rest:path}")]`` looks up all of them, and stores the responses of
    decorated handlers. A response that states its own freshness keeps that.
    """

    def __init__(self, hooks: type[HandlerCall]) -> None:
        self._hooks = hooks

    def __call__(
        self,
        ttl: Duration,
        *,
        tags: Iterable[str] = (),
        stale_while_revalidate: Duration = 0,
        stale_if_error: Duration = 0,
    ) -> Callable[[F], F]:
        """Return a decorator that stores a handler's successful responses.

        Args:
            ttl: Seconds for which a response is fresh.
            tags: Tags to purge by, which may contain parts of the route's path:
                ``product:{id}``.
            stale_while_revalidate: Seconds for which a stale response is used while it is
                revalidated in the background.
            stale_if_error: Seconds for which a stale response is used in place of an error.

        Raises:
            ConfigurationError: An argument is wrong.
        """
        return CachedAs(ttl, tags, stale_while_revalidate, stale_if_error, self._hooks)


def _wrapper(handler: Any, decorator: Decorator, hooks: type[HandlerCall]) -> Any:
    @wraps(handler)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        call = hooks(wrapper, handler, decorator)
        call.read(args, kwargs)
        attached = decorator.begin(call)
        if attached is None:
            return call.to_call(handler)(*args, **kwargs)
        if attached.denies:
            return call.deny(cast("PendingExchange", attached))
        call.enter(attached)
        try:
            return call.attach(attached, call.to_call(handler)(*args, **kwargs))
        except BaseException as error:
            call.failed(attached, error)
            raise
        finally:
            if not attached.finished_elsewhere:
                attached.finish()

    return wrapper


def _async_wrapper(handler: Any, decorator: Decorator, hooks: type[HandlerCall]) -> Any:
    @wraps(handler)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        call = hooks(wrapper, handler, decorator)
        call.read(args, kwargs)
        attached = await decorator.abegin(call)
        if attached is None:
            return await call.to_call(handler)(*args, **kwargs)
        if attached.denies:
            return await call.adeny(cast("PendingExchange", attached))
        call.enter(attached)
        try:
            return call.attach(attached, await call.to_call(handler)(*args, **kwargs))
        except BaseException as error:
            call.failed(attached, error)
            raise
        finally:
            if not attached.finished_elsewhere:
                await attached.afinish()

    return wrapper


# ------------------------------------------------------------------------------------------------
# Limits in front of handlers


class HandlerLimit(Decorator):
    """One rule in front of handlers; each has its own counters, unless the rule has a name."""

    def __init__(
        self,
        limits: AnyLimits,
        arguments: Mapping[str, Any],
        hooks: type[HandlerCall] = HandlerCall,
    ) -> None:
        """Raises ConfigurationError, as RateLimitRule does."""
        super().__init__(hooks)
        self.name: str = f"limit({limits!r})"
        for name in ("path", "methods"):
            if name in arguments:
                raise ConfigurationError(
                    f"{self.name}.{name}: a limit in front of a handler covers the requests that "
                    "are routed to the handler; use RateLimitRule for paths and methods"
                )
        read_scripts()  # a runtime may be created on an event loop, at the first request
        self.shares: bool = "name" in arguments
        """Whether all handlers that it is in front of share its counters."""
        self.rule: RateLimitRule = rule_from_mapping({"limits": limits, **arguments}, self.name)
        if self.rule.parsed is None:
            raise ConfigurationError(f"{self.name}: to exempt a handler, mark it with @exempt")

    def begin(self, call: HandlerCall) -> PendingExchange | None:
        """Decide about a request in one round trip; None if no limit applies.

        Raises MissingCredentials, and ConfigurationError if another limit has the same name.
        """
        runtime, prior = call.runtime(), call.decision()
        if (decides := self._engine(runtime, call, prior)) is None:
            return None
        engine, request = decides
        pending = PendingExchange(runtime, runtime.begin(request, engine=engine), prior)
        call.show(pending.decision)
        if pending.denies:  # what a deny list overruled is given back
            pending.finish()
        return pending

    async def abegin(self, call: HandlerCall) -> PendingExchange | None:
        runtime, prior = call.runtime(), call.decision()
        if (decides := self._engine(runtime, call, prior)) is None:
            return None
        engine, request = decides
        pending = PendingExchange(runtime, await runtime.abegin(request, engine=engine), prior)
        call.show(pending.decision)
        if pending.denies:
            await pending.afinish()
        return pending

    def _engine(
        self, runtime: Runtime, call: HandlerCall, prior: Decision
    ) -> tuple[Engine, HTTPRequest] | None:
        if runtime.enabled and not call.is_uncounted():
            request = call.request()
            counted = _limiters_that_counted(request)
            limiter = self._limiter(runtime, call, counted)
            if id(limiter) not in counted:  # one may be in front of the application and of a view
                counted.add(id(limiter))
                parts = [limiter if prior is UNCHECKED else _LaterLimiter(limiter, prior)]
                if limiter.reads_body:
                    request = structs.replace(request, body=call.body())
                return Engine(parts, observe=runtime.observe), request
        call.show(prior)
        return None

    def _limiter(self, runtime: Runtime, call: HandlerCall, counted: set[int]) -> RateLimiter:
        """Return the limiter in front of a handler, the same for each call.

        ``counted`` contains the ids of those that have counted this request.
        """
        key = self, None if self.shares else identity(call.handler, call.owner)
        if (known := runtime.handler_limiters.get(key)) is not None:
            return known[1]
        with _creating:
            if key not in runtime.handler_limiters:
                name = self._unused_name(runtime, call, key[1], counted)
                for rule in (*runtime.settings.rate_limits, runtime.settings.default_limit):
                    if rule is not None and rule.parsed is not None and rule.name == name:
                        raise ConfigurationError(
                            f"name={name!r}: {rule.setting} has this name already, and limits of "
                            "the same name would share their counters; rename one of them"
                        )
                setting = f"{self.name[:-1]}, name={name!r})"
                rule = structs.replace(self.rule, name=name, setting=setting)
                limiter = runtime.limiter((rule,), at_handler=True)
                runtime.handler_limiters[key] = name, limiter
            return runtime.handler_limiters[key][1]

    def _unused_name(
        self, runtime: Runtime, call: HandlerCall, who: object, counted: set[int]
    ) -> str:
        """Return a name that no other limit has. Raises ConfigurationError."""
        name = self.name_for(call.handler, call.owner)
        known = {
            name: (other, limiter)
            for (_, other), (name, limiter) in runtime.handler_limiters.items()
        }
        if name not in known and name not in runtime.limiters:
            return name
        other, first = known.get(name, (None, None))
        # Several limits in front of one handler all count the same request. Those in front of two
        # bound methods of one function, or of two partials, belong to two handlers.
        if self.shares or other != who or id(first) not in counted:
            raise ConfigurationError(
                f"{self.name}: another limit has the name {name!r} already, and the two would "
                "share their counters; give one of them another name=, or, to share a quota, "
                "decorate both handlers with one limit object"
            )
        # Each request passes them in the same order, so the numbers are stable.
        return next(free for free in _candidate_names(name) if free not in known)

    def name_for(self, handler: object, owner: type | None) -> str:
        """Return the name of the limit's counters in front of a handler."""
        return self.rule.name if self.shares else handler_name(handler, owner)


class PendingExchange(Attached):
    """The exchange of a limit in front of a handler, until it is finished.

    It is finished once, by whoever comes first. If nobody does, because the response of a
    cancelled request was dropped or replaced, it is finished when it is garbage-collected.
    """

    __slots__ = ("_unfinished", "decision", "denies", "exchange", "holding", "runtime")

    def __init__(self, runtime: Runtime, exchange: Exchange, prior: Decision = UNCHECKED) -> None:
        self._unfinished = [exchange]  # popped, since several threads may try to finish it
        self.runtime: Runtime = runtime
        self.exchange: Any = exchange
        self.decision: Decision = exchange.decision or prior
        """What the handler reads: the tightest of all limits that the request has passed."""
        self.denies: bool = exchange.response is not None
        self.holding: Sequence[object] = exchange.holding
        self.finished_elsewhere = False

    @property
    def denial(self) -> Response:
        """The response of an exchange that denies."""
        return cast("Response", self.exchange.response)

    def own_decision(self) -> Decision:
        """Return the decision of this limit alone, whose charges count in no other limit."""
        part = next(iter(self.exchange.parts), None)
        if part is None or part.decision is None:
            return UNCHECKED
        if part.own is None:  # there is no limit further out, but there may be one further in
            part.own = structs.replace(part.decision, ledger=Ledger())
        return cast("Decision", part.own)

    @property
    def finished(self) -> bool:
        """Whether the exchange has been finished or taken."""
        return not self._unfinished

    def head(self, head: ResponseHead) -> ResponseHead:
        return cast("ResponseHead", self.exchange.head(head))  # a limit replaces no response

    def failed(self) -> object:
        return self.exchange.failed()

    def renew(self) -> None:
        self.runtime.perform(self.exchange.renewal())

    async def arenew(self) -> None:
        # To the end, and so before ``afinish``: otherwise what is renewed late would not be given
        # back.
        await self.runtime.aperform_to_end(self.exchange.renewal())

    def take(self) -> Exchange | None:
        """Return the exchange for another owner to finish; None if it was taken or finished."""
        try:
            return self._unfinished.pop()
        except IndexError:
            return None

    def finish(self, *, complete: bool = True) -> None:
        if (exchange := self.take()) is not None:
            self.runtime.finish(exchange, complete=complete)

    async def afinish(self, *, complete: bool = True) -> None:
        if (exchange := self.take()) is not None:
            await self.runtime.afinish(exchange, complete=complete)

    def __del__(self) -> None:
        if (exchange := self.take()) is not None:
            run_soon(partial(self.runtime.finish, exchange, complete=False))


class _LaterLimiter(Part):
    """A rate limiter after others, whose decisions it includes.

    What the handler charges counts in all of them. The fields are those of all limits that the
    request has passed, so those further out add none.
    """

    __slots__ = ("_limiter", "_prior")

    def __init__(self, limiter: RateLimiter, prior: Decision) -> None:
        self._limiter = limiter
        self._prior = prior

    async def prepare(self, request: HTTPRequest) -> RateLimitExchange:
        exchange = await self._limiter.begin(request)
        if exchange.decision is not None:
            exchange.own = exchange.decision
            both = combined([self._prior, exchange.own])
            exchange.decision = structs.replace(both, ledger=self._prior.ledger)
        return exchange


def _candidate_names(name: str) -> Iterator[str]:
    """Yield names for the limits in front of one handler, in order."""
    yield name
    for number in range(2, 100):
        yield f"{name[: MAX_NAME_LENGTH - 3]} {number}"


_creating = threading.Lock()
_COUNTED_LIMITERS = "upstash_middleware.counted"


def _limiters_that_counted(request: HTTPRequest) -> set[int]:
    """Return the ids of the limiters in front of handlers that have counted a request."""
    native: Any = request.native
    held = native if isinstance(native, MutableMapping) else vars(native)
    counted: set[int] = held.setdefault(_COUNTED_LIMITERS, set())
    return counted


def mark_limits(function: Any, *limits: HandlerLimit) -> None:
    """Note on a function the limits that are in front of a handler with it, outermost first."""
    setattr(function, _LIMITS, limits)


def _marked_limits(function: Any) -> tuple[HandlerLimit, ...]:
    while function is not None:
        if isinstance(function, HandlerLimit):
            return (function,)
        if limits := getattr(function, _LIMITS, ()):
            return cast("tuple[HandlerLimit, ...]", limits)
        function = getattr(function, "__wrapped__", None)
    return ()


def limits_before(handler: Any, others: Iterable[Any] = ()) -> tuple[RateLimitRule, ...]:
    """Return the limits in front of a handler, outermost first, named as in decisions.

    ``others`` are what the framework calls before it: dependencies, ``before_request`` functions.
    """
    if handler is None:
        return ()
    methods = [
        getattr(handler, name)
        for name in ("get", "post", "put", "patch", "delete", "dispatch")
        if inspect.isclass(handler) and hasattr(handler, name)
    ]
    place = inspect.unwrap(handler)
    limits = [(limit, place, None) for each in (handler, *others) for limit in _marked_limits(each)]
    limits += [(limit, each, handler) for each in methods for limit in _marked_limits(each)]
    found: dict[str, RateLimitRule] = {}
    known: set[tuple[HandlerLimit, str]] = set()
    for limit, function, owner in limits:
        name = limit.name_for(function, owner)
        if (limit, name) not in known:
            known.add((limit, name))
            if not limit.shares:
                name = next(free for free in _candidate_names(name) if free not in found)
            found.setdefault(name, structs.replace(limit.rule, name=name))
    return tuple(found.values())


# ------------------------------------------------------------------------------------------------
# How a handler's responses are stored. A handler says it to the cache outside by fields of the
# response, the only thing that both see.

Fields = tuple[tuple[str, str], ...]

_FRESHNESS_FIELDS = ("cache-control", "cdn-cache-control", "expires")
_warned_of: set[str] = set()


class CachedAs(Decorator):
    """How a handler's responses are stored; the arguments of ``cached``."""

    def __init__(
        self,
        ttl: Duration,
        tags: Iterable[str] = (),
        stale_while_revalidate: Duration = 0,
        stale_if_error: Duration = 0,
        hooks: type[HandlerCall] = HandlerCall,
    ) -> None:
        """Raises ConfigurationError, naming the argument."""
        super().__init__(hooks)
        self.name: str = f"cached({ttl!r})"
        self._directives = f"max-age={_seconds('ttl', ttl, at_least=1)}"
        if stale := _seconds("stale_while_revalidate", stale_while_revalidate):
            self._directives += f", stale-while-revalidate={stale}"
        if stale := _seconds("stale_if_error", stale_if_error):
            self._directives += f", stale-if-error={stale}"
        if isinstance(tags, str):
            raise ConfigurationError(f"cached: tags={tags!r} should be a sequence of texts")
        self._tags = tuple(tags)
        for tag in self._tags:
            if not is_tag(tag):
                raise ConfigurationError(f"cached: the tag {tag!r} should be text without commas")

    def begin(self, call: HandlerCall) -> Attached:
        if call.method in {"GET", "HEAD"}:
            warn_if_not_looked_up("cached", call)
        return Attached(partial(self._mark, call.path_params))

    def _mark(self, path_params: Mapping[str, Any], head: ResponseHead) -> ResponseHead:
        """Return a response's head with the fields that have it stored.

        Its own freshness takes precedence over ``ttl``, and errors are not stored.
        """
        from upstash_middleware.core.cache.http.directives import FROM_HANDLERS  # noqa: PLC0415
        from upstash_middleware.core.cache.rules import SUCCESSFUL  # noqa: PLC0415

        if head.status not in SUCCESSFUL:
            return head
        tags = [_fill_tag(tag, path_params) for tag in self._tags]
        if None in tags:  # without its tag, no purge would find it
            return with_fields(head, ((FROM_HANDLERS, "no-store"),))
        named = ", ".join(filter(None, tags))
        fields: Fields = (("cache-tag", named),) if named else ()
        if not any(name in head.headers for name in _FRESHNESS_FIELDS):
            fields = (*fields, (FROM_HANDLERS, self._directives))
        return with_fields(head, fields)


class NeverCached(Decorator):
    """Keep a handler's responses out of every cache: ``Cache-Control: no-store``."""

    name = "never_cached"

    def begin(self, _call: HandlerCall) -> Attached:
        return Attached(self._mark)

    def _mark(self, head: ResponseHead) -> ResponseHead:
        rest = ResponseHead(head.status, head.headers.without("cache-control", "expires"))
        fields: Fields = (("cache-control", "no-store"),)
        if any(name.endswith("control") for name in rest.headers.names()):
            # A targeted field (RFC 9213), which would take precedence in the cache.
            from upstash_middleware.core.cache.http.directives import FROM_HANDLERS  # noqa: PLC0415

            fields = (*fields, (FROM_HANDLERS, "no-store"))
        return with_fields(rest, fields)


def with_fields(head: ResponseHead, fields: Fields) -> ResponseHead:
    if not fields:
        return head
    lines = ((name.encode("latin-1"), value.encode("latin-1")) for name, value in fields)
    return ResponseHead(head.status, head.headers.adding(*lines))


def warn_if_not_looked_up(decorator: str, call: HandlerCall) -> None:
    """Warn, once for each handler, that no cache outside has looked up a request for it."""
    if (runtime := call.cache_runtime()) is not None:
        if not runtime.enabled:
            return
        has_cache = Features.CACHE in runtime.features
        if has_cache and any(rule.covers(call.path) for rule in runtime.settings.cache):
            return
    name = handler_name(call.handler)
    if name not in _warned_of:
        _warned_of.add(name)
        logger.warning(
            "@%s on %s stores nothing: no cache rule covers %s; add the middleware with "
            "cache=[CacheRule('/{rest:path}')], which stores the responses of decorated handlers",
            decorator,
            name,
            call.path,
        )


def _seconds(name: str, value: object, *, at_least: int = 0) -> int:
    seconds = seconds_in(value)
    if seconds is None or not at_least <= seconds < 2**31 or seconds != int(seconds):
        raise ConfigurationError(
            f"cached: {name}={value!r} should be a whole number of seconds, a timedelta, or text "
            "such as '60s' or '5 minutes'"
        )
    return int(seconds)


def is_tag(tag: object) -> bool:
    """Whether a tag can be a member of a list in a field: printable ASCII without commas."""
    is_plain = isinstance(tag, str) and tag.isascii() and tag.isprintable()
    return is_plain and bool(tag) and "," not in str(tag)


def _fill_tag(tag: str, path_params: Mapping[str, Any]) -> str | None:
    """Return a tag with the path's parameters, None where one is missing or breaks the field."""
    try:
        text = Formatter().vformat(tag, (), path_params)
    except (KeyError, IndexError, ValueError):
        return None
    return text if is_tag(text) else None


# ------------------------------------------------------------------------------------------------
# Exempt handlers

REROUTED = (
    "another middleware reroutes requests after this one, here to {}, so from now on this "
    "middleware's limits also count requests to exempt handlers; to exempt those, write a rule: "
    'RateLimitRule("/health", "unlimited")'
)
"""The log message if another handler was called than the exempt one that was looked up."""
_EXEMPT = "_upstash_middleware_exempt"
_RULE = 'write a rule for its paths: RateLimitRule("/path/{rest:path}", "unlimited")'
_GROUPS = frozenset(
    {
        "flask.sansio.blueprints.Blueprint",
        "starlette.applications.Starlette",
        "starlette.routing.Router",
    }
)
"""Classes whose objects contain handlers, which are all exempt with them."""
_REFUSED = {
    "builtins.str": "give the handler itself",
    "builtins.list": f"mark each view of the list, or {_RULE}",
    "builtins.tuple": f"mark each view that include() lists, or {_RULE}",
    "builtins.method": "mark the function in its class",
    "django.urls.resolvers.URLPattern": "mark its view",
    "django.urls.resolvers.URLResolver": f"mark each of its views, or {_RULE}",
    "flask.sansio.app.App": f"mark its views or blueprints, or {_RULE}",
    "ninja.main.NinjaAPI": f"mark the functions of its operations, or {_RULE}",
    "ninja.router.Router": f"mark the functions of its operations, or {_RULE}",
    "starlette.routing.BaseRoute": "mark its endpoint, or the application that it mounts",
}
"""What to mark in place of objects that no limit could recognise in a request."""
exempt_types: set[str] = set()
"""The types of what is exempt in this process; where it is empty, no route has to be looked up."""
_exempt_groups: list[weakref.ref[Any]] = []
"""References and not a set: routers compare by their routes, and are not hashable."""
_is_in_group: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()
"""Whether an endpoint is in an exempt group, for those that were looked up."""


def exempt(handler: H) -> H:
    """Mark a handler as exempt: no limit of this package counts a request for it.

    This applies to limits in front of the handler and, with the framework's own middleware
    classes, to those of the middleware, which look up a request's route before they count. A
    handler is a function, a class or a method of a class. Flask's blueprints, FastAPI's routers,
    and applications and routers that Starlette mounts are exempt with all handlers in them.

    Args:
        handler: The handler, or the blueprint, router or application.

    Raises:
        ConfigurationError: The object is none of these, such as a list of Django's URL patterns.
    """
    kinds = {f"{base.__module__}.{base.__qualname__}" for base in type(handler).__mro__}
    for kind, instead in _REFUSED.items():
        if kind in kinds:
            raise ConfigurationError(
                f"exempt({handler!r}): a {type(handler).__name__} cannot be exempt; {instead}"
            )
    is_group = not kinds.isdisjoint(_GROUPS)
    if not (is_group or callable(handler)):
        raise ConfigurationError(
            f"exempt({handler!r}): a {type(handler).__name__} is not a handler; mark functions or "
            f"classes that handle requests, or {_RULE}"
        )
    try:
        setattr(handler, _EXEMPT, True)
    except AttributeError as error:
        raise ConfigurationError(
            f"exempt({handler!r}): this object cannot be marked ({error}); {_RULE}"
        ) from error
    if is_group:
        _exempt_groups.append(weakref.ref(handler))
        _is_in_group.clear()
    exempt_types.add(type(handler).__name__)
    return handler


def is_exempt(handler: object) -> bool:
    """Whether a handler, or what it wraps, is marked; what wraps it may lack the mark."""
    while handler is not None:
        if getattr(handler, _EXEMPT, False):
            return True
        handler = getattr(handler, "__wrapped__", None)
    return False


def is_exempt_class(owner: Any, method: str) -> bool:
    """Whether a class of handlers is marked, or its method for requests of this HTTP method."""
    if owner is None:
        return False
    name = method.lower()
    if name == "head" and not hasattr(owner, "head"):
        name = "get"
    handler = getattr(owner, name, None)
    if is_exempt(owner) or is_exempt(handler):
        return True
    if handler is None or owner.__qualname__ != "WrappedAPIView":
        return False
    # Django REST framework's @api_view has made the class of a function.
    return any(is_exempt(cell.cell_contents) for cell in handler.__closure__ or ())


def is_in_exempt_group(endpoint: object) -> bool:
    """Whether an endpoint of Starlette's or FastAPI's is routed in a marked router or application.

    The routes are searched once for each endpoint.
    """
    if not _exempt_groups or endpoint is None:
        return False
    try:
        if (known := _is_in_group.get(endpoint)) is not None:
            return known
    except TypeError:  # an object that is not hashable
        pass
    found = any(endpoint is each for group in _exempt_groups for each in _endpoints(group()))
    with suppress(TypeError):
        _is_in_group[endpoint] = found
    return found


def _endpoints(group: Any) -> Iterator[object]:
    for route in getattr(group, "routes", None) or ():
        if (router := getattr(route, "original_router", None)) is not None:  # FastAPI's, included
            yield from _endpoints(router)
        elif getattr(route, "routes", None):
            yield from _endpoints(route)
        else:
            yield getattr(route, "endpoint", None)


def handler_name(handler: object, owner: type | None = None) -> str:
    """Return the name of the counters of a limit in front of a handler: ``shop.views.login``.

    ``owner`` is the class on whose object a method is called; an inherited method has a name for
    each class. Printable ASCII without colons, at most 64 characters.
    """
    handler, owner = _unwrap_partial(handler, owner)
    name = getattr(handler, "__name__", type(handler).__name__)
    if owner is not None:
        text = f"{owner.__module__}.{owner.__qualname__}.{name}"
    else:
        if name == "view":  # Django's as_view gives this name to all that it makes
            made_of = getattr(handler, "view_class", None) or getattr(handler, "cls", None)
            handler = made_of or handler
        text = f"{getattr(handler, '__module__', '')}.{_own_name(handler)}"
    plain = text.encode("unicode_escape").decode("ascii").replace(":", "_")
    if len(plain) <= MAX_NAME_LENGTH:
        return plain
    digest = hashlib.sha256(plain.encode()).hexdigest()[:12]
    return f"{plain[-(MAX_NAME_LENGTH - 13) :]} {digest}"


def _own_name(handler: Any) -> str:
    """Return a qualified name. Frameworks rename what they have made, in `__name__` alone."""
    name: str = getattr(handler, "__name__", type(handler).__name__)
    qualified: str = getattr(handler, "__qualname__", name)
    return qualified if qualified.rpartition(".")[2] == name else name


def identity(handler: object, owner: type | None = None) -> object:
    """Return what distinguishes a handler from others of the same name."""
    handler, owner = _unwrap_partial(handler, owner)
    function = inspect.unwrap(handler) if callable(handler) else handler
    return function if owner is None else (owner, function)


def owner_of(handler: object, args: tuple[Any, ...]) -> type | None:
    """Return the class on whose object a method is called, None for a plain function."""
    name = getattr(handler, "__name__", "")
    if args and name and hasattr(type(args[0]), name):
        return type(args[0])
    return None


def _unwrap_partial(handler: object, owner: type | None) -> tuple[object, type | None]:
    """Return the function of a partial bound method, as Django's ``method_decorator`` makes."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    if isinstance(handler, MethodType):
        return handler.__func__, owner or type(handler.__self__)
    return handler, owner
