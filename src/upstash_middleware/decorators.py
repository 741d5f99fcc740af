"""The decorators ``limit``, ``cached``, ``never_cached`` and ``exempt`` for all frameworks.

Each framework has a subclass of HandlerCall. It reads the request of a handler's call, makes the
response to a denied request, and adds the decorators' fields to the handler's response.
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
"""The attribute of a decorated handler that contains its limits, outermost first."""


# ------------------------------------------------------------------------------------------------
# The decorators


class HandlerCall:
    """One call of a decorated handler. Each framework has a subclass that defines these hooks.

    ``read`` reads the request and sets the attributes. ``deny`` makes the response to a denied
    request. ``enter``, ``attach`` and ``failed`` add a decorator's fields to the response.
    """

    __slots__ = ("decorator", "handler", "method", "owner", "path", "path_params", "wrapper")

    expected: ClassVar[str]  # the kind of handler to decorate, for error messages
    method: str
    path: str  # the path that the middleware's rules match
    path_params: Mapping[str, Any]

    def __init__(self, wrapper: object, handler: Any, decorator: Decorator) -> None:
        self.wrapper: object = wrapper
        self.handler: Any = handler
        self.decorator: Decorator = decorator
        self.owner: type | None = None  # the class of the object whose method is called

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Read the request. Raises ConfigurationError if the arguments contain no request."""
        raise NotImplementedError

    @staticmethod
    def is_async(handler: Any) -> bool:
        return inspect.iscoroutinefunction(handler)

    @staticmethod
    def decorated(wrapper: Any, decorator: Decorator) -> None:
        """Adjust a new wrapper."""

    def to_call(self, handler: Any) -> Any:
        """Return the function to call instead of the handler."""
        return handler

    def runtime(self) -> Runtime:
        """Return the runtime whose client the limits use."""
        raise NotImplementedError

    def cache_runtime(self) -> Runtime | None:
        """Return the runtime of the middleware with a cache, if there is one."""
        raise NotImplementedError

    def request(self) -> HTTPRequest:
        raise NotImplementedError

    def body(self) -> RequestBody | None:
        """Return the request's body for a limit that needs it; None if there is no body."""
        raise NotImplementedError

    def decision(self) -> Decision:
        """Return the decision so far, which combines all limits that the request has passed."""
        raise NotImplementedError

    def show(self, decision: Decision) -> None:
        """Set the decision that the handler sees."""
        raise NotImplementedError

    def is_uncounted(self) -> bool:
        """Whether no limit applies, because the handler is exempt or this is a revalidation."""
        raise NotImplementedError

    def deny(self, pending: PendingExchange) -> Any:
        """Return the response to a denied request, or raise the framework's exception for it."""
        raise NotImplementedError

    async def adeny(self, pending: PendingExchange) -> Any:
        return self.deny(pending)

    def enter(self, attached: Attached) -> None:
        """Prepare before the handler is called."""

    def attach(self, attached: Attached, response: Any) -> Any:  # noqa: ARG002 - a hook
        """Return the response to send for the handler's response."""
        return response

    def failed(self, attached: Attached, error: BaseException) -> None:
        """Note that the handler raised an exception."""


class Attached:
    """The header fields that a decorator adds to the response to one call of a handler."""

    __slots__ = ("_mark", "finished_elsewhere")

    finished_elsewhere: bool  # whether other code than the decorator finishes it
    denies: bool = False  # whether the handler must not be called
    holding: Sequence[object] = ()  # slots and locks on Redis that need renewal

    def __init__(self, mark: Callable[[ResponseHead], ResponseHead]) -> None:
        self._mark = mark
        self.finished_elsewhere = True

    def head(self, head: ResponseHead) -> ResponseHead:
        """Return the response's head with the decorator's fields."""
        return self._mark(head)

    def failed(self) -> object:
        """Note that the application raised before its response started."""

    def renew(self) -> None:
        """Renew the slots on Redis, if this is due."""

    async def arenew(self) -> None:
        pass

    def finish(self, *, complete: bool = True) -> None:
        """Finish the exchange, unless it is already finished."""

    async def afinish(self, *, complete: bool = True) -> None:
        pass


def completed(head: ResponseHead, denial: Response) -> ResponseHead:
    """Return the head of an application's response to a denial, with the missing fields added."""
    missing = completing(denial.head.headers, head.headers.names())
    return ResponseHead(head.status, head.headers.adding(*missing)) if missing else head


class Decorator:
    """A decorator of handlers: a limit, or a rule for storing responses."""

    name: str

    def __init__(self, hooks: type[HandlerCall] = HandlerCall) -> None:
        self._hooks = hooks

    def __call__(self, handler: F, /) -> F:
        """Decorate a handler.

        Args:
            handler: The handler.
        """
        hooks = self._hooks
        if inspect.isclass(handler) or not callable(handler):
            raise ConfigurationError(f"{self.name}: {handler!r} should be {hooks.expected}")
        wrapper = (_async_wrapper if hooks.is_async(handler) else _wrapper)(handler, self, hooks)
        if isinstance(self, HandlerLimit):
            mark_limits(wrapper, self, *_attached_limits(handler))
        hooks.decorated(wrapper, self)
        return cast("F", wrapper)

    def begin(self, call: HandlerCall) -> Attached | None:
        """Return the fields to add to the response of a call; None to add nothing."""
        raise NotImplementedError

    async def abegin(self, call: HandlerCall) -> Attached | None:
        return self.begin(call)


class LimitFactory(Generic[L]):
    """Makes limits for handlers; each framework has a subclass that makes its kind of limit."""

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

        In most frameworks the result is a decorator, ``@limit("5/minute")``; in Flask also a
        function for ``before_request``; in FastAPI a dependency, ``Depends(limit("5/minute"))``,
        which gives the Decision; in Django REST framework a class, ``throttle_classes =
        [throttle("5/minute")]``.

        Args:
            limits: Text such as ``"5/minute"`` or ``"10/s burst 20; 1000/day"``; an algorithm such
                as ``SlidingWindow(5, per=60)``; several of these, of which a request is charged to
                all or none; a limiter of ``upstash_ratelimit``; or a function of the request, sync
                or async, that returns one of these.
            by: The identifier whose quota a request uses: an extractor such as
                ``header("X-API-Key")``, a function of the request, or text such as ``"user"`` or
                ``"header:X-API-Key"``; in FastAPI also ``Depends(...)``. Default: the client's
                address.
            name: The name of the counters; handlers with the same name share a quota. Default: the
                handler's qualified name, so that each handler has a separate quota.
            on_error: What to do if Upstash is unreachable: ``"open"`` lets the request pass,
                ``"closed"`` answers 503, ``"local"`` counts in this process. Default ``"open"``.
            cost: The units that a request uses, or a function of the request that returns them.
                Default 1.
            when: A function of the request that returns whether the limit applies; None for always.
            allow: Networks and identifiers that pass without being counted: ``10.0.0.0/8``,
                ``user=7``, ``alice``.
            deny: Networks and identifiers that get a 403.
            shadow: Whether to report denials without denying anything. Default False.
            shared_prefix: The prefix of an ``upstash_ratelimit`` limiter, in Python or JavaScript,
                to share its counters; None for separate counters.
            local_share: The share of the quota that this process has with ``on_error="local"``,
                above 0 and at most 1. Default 1.
            settle: A function of request and response that returns the final cost in units, which
                replaces ``cost`` after the response; None keeps ``cost``.
            challenge: The WWW-Authenticate challenge, such as ``"Bearer"``, of a 401 for requests
                without an identifier; None counts such requests by their address.
            dynamic: Whether ``Limiter.set_limit`` can change the limit at run time. Default False.
            deadline: Seconds that the call to Upstash may take; None for the setting ``deadline``.
            lease: Seconds for which this process reserves quota for a busy identifier, or text such
                as ``"500ms"``, a Lease, a mapping of its fields, or False for no lease; None for
                the setting ``lease``.

        Raises:
            ConfigurationError: An argument is wrong.
        """
        raise NotImplementedError

    def _limit(self, limits: AnyLimits, **arguments: Any) -> L:
        raise NotImplementedError


class LimitDecorator(LimitFactory["HandlerLimit"]):
    """Limit the requests for a handler: ``@limit("5/minute")``.

    The limit applies after routing and authentication, in a separate round trip. Each handler has
    a separate quota under its qualified name. Handlers that are decorated with the same limit
    object share a quota if the limit has a ``name``. A Starlette endpoint reads
    ``request.state.rate_limit``, and a denial raises RequestDenied. A Django view reads
    ``request.rate_limit``; a denied request gets a 429, or the response of the view in
    UPSTASH_MIDDLEWARE_DENIED_VIEW. Decorate a class-based view with
    ``@method_decorator(limit("5/minute"), name="dispatch")``.
    """

    def __init__(self, hooks: type[HandlerCall]) -> None:
        self._hooks = hooks

    def _limit(self, limits: AnyLimits, **arguments: Any) -> HandlerLimit:
        return HandlerLimit(limits, arguments, self._hooks)


class CachedDecorator:
    """Store a handler's successful responses in the middleware's cache.

    The middleware's rules decide which requests are looked up:
    ``cache=[CacheRule("/{rest:path}")]`` looks up all requests, and stores the responses of
    decorated handlers. If a response states a freshness lifetime itself, that lifetime applies.
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
            tags: Tags for purging. They may contain parameters of the route's path:
                ``product:{id}``.
            stale_while_revalidate: Seconds in which a stale response is used while it is
                revalidated in the background.
            stale_if_error: Seconds in which a stale response is used instead of an error.

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
# Limits of handlers


class HandlerLimit(Decorator):
    """One rule for handlers; each handler has separate counters unless the rule has a name."""

    def __init__(
        self,
        limits: AnyLimits,
        arguments: Mapping[str, Any],
        hooks: type[HandlerCall] = HandlerCall,
    ) -> None:
        """Create the rule. Raises ConfigurationError, as RateLimitRule does."""
        super().__init__(hooks)
        self.name: str = f"limit({limits!r})"
        for name in ("path", "methods"):
            if name in arguments:
                raise ConfigurationError(
                    f"{self.name}.{name}: a limit on a handler covers all requests that are routed "
                    "to the handler; use RateLimitRule for paths and methods"
                )
        read_scripts()  # a runtime may be created on an event loop, at the first request
        self.shares: bool = "name" in arguments
        """Whether all handlers with this limit share its counters."""
        self.rule: RateLimitRule = rule_from_mapping({"limits": limits, **arguments}, self.name)
        if self.rule.parsed is None:
            raise ConfigurationError(f"{self.name}: to exempt a handler, mark it with @exempt")

    def begin(self, call: HandlerCall) -> PendingExchange | None:
        """Decide about a request in one round trip; return None if no limit applies.

        Raises MissingCredentials, and ConfigurationError if another limit has the same name.
        """
        runtime, prior = call.runtime(), call.decision()
        if (decides := self._engine(runtime, call, prior)) is None:
            return None
        engine, request = decides
        pending = PendingExchange(runtime, runtime.begin(request, engine=engine), prior)
        call.show(pending.decision)
        if pending.denies:  # refund the limits' costs if a deny list denied the request
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
            if id(limiter) not in counted:  # a limit may be on the application and on a view
                counted.add(id(limiter))
                parts = [limiter if prior is UNCHECKED else _LaterLimiter(limiter, prior)]
                if limiter.reads_body:
                    request = structs.replace(request, body=call.body())
                return Engine(parts, observe=runtime.observe), request
        call.show(prior)
        return None

    def _limiter(self, runtime: Runtime, call: HandlerCall, counted: set[int]) -> RateLimiter:
        """Return the limiter for a handler, which is the same for each call.

        ``counted`` contains the ids of the limiters that have counted this request.
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
        # Several limits on one handler all count the same request. Limits on two bound methods
        # of one function, or on two partials, belong to two handlers.
        if self.shares or other != who or id(first) not in counted:
            raise ConfigurationError(
                f"{self.name}: another limit already has the name {name!r}, and the two would "
                "share their counters; give one of them another name=, or, to share a quota, "
                "decorate both handlers with one limit object"
            )
        # Each request passes the limits in the same order, so the numbers are stable.
        return next(free for free in _candidate_names(name) if free not in known)

    def name_for(self, handler: object, owner: type | None) -> str:
        """Return the name of the limit's counters for a handler."""
        return self.rule.name if self.shares else handler_name(handler, owner)


class PendingExchange(Attached):
    """The exchange of a limit on a handler, until it is finished.

    The first caller finishes it. If nothing finishes it, because the response of a cancelled
    request was dropped or replaced, it is finished when it is garbage-collected.
    """

    __slots__ = ("_unfinished", "decision", "denies", "exchange", "holding", "runtime")

    def __init__(self, runtime: Runtime, exchange: Exchange, prior: Decision = UNCHECKED) -> None:
        self._unfinished = [exchange]  # popped, because several threads may try to finish it
        self.runtime: Runtime = runtime
        self.exchange: Any = exchange
        self.decision: Decision = exchange.decision or prior
        """The handler's decision: the tightest of all limits that the request has passed."""
        self.denies: bool = exchange.response is not None
        self.holding: Sequence[object] = exchange.holding
        self.finished_elsewhere = False

    @property
    def denial(self) -> Response:
        """The response of an exchange that denies the request."""
        return cast("Response", self.exchange.response)

    def own_decision(self) -> Decision:
        """Return the decision of this limit only; charges to it count in no other limit."""
        part = next(iter(self.exchange.parts), None)
        if part is None or part.decision is None:
            return UNCHECKED
        if part.own is None:  # there is no outer limit, but there may be an inner one
            part.own = structs.replace(part.decision, ledger=Ledger())
        return cast("Decision", part.own)

    @property
    def finished(self) -> bool:
        """Whether the exchange has been finished or taken over."""
        return not self._unfinished

    def head(self, head: ResponseHead) -> ResponseHead:
        return cast("ResponseHead", self.exchange.head(head))  # a limit replaces no response

    def failed(self) -> object:
        return self.exchange.failed()

    def renew(self) -> None:
        self.runtime.perform(self.exchange.renewal())

    async def arenew(self) -> None:
        # This runs to the end, and so before ``afinish``: otherwise a slot that is renewed late
        # would not be released.
        await self.runtime.aperform_to_end(self.exchange.renewal())

    def take(self) -> Exchange | None:
        """Return the exchange for another owner to finish; None if it is taken or finished."""
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
    """A rate limiter that follows other limits and includes their decision.

    Charges by the handler count in all limits. This limiter adds the fields for all limits that the
    request has passed, so outer limits add no fields.
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
    """Yield possible names for the limits of one handler, in order."""
    yield name
    for number in range(2, 100):
        yield f"{name[: MAX_NAME_LENGTH - 3]} {number}"


_creating = threading.Lock()
_COUNTED_LIMITERS = "upstash_middleware.counted"


def _limiters_that_counted(request: HTTPRequest) -> set[int]:
    """Return the ids of the handlers' limiters that have counted a request."""
    native: Any = request.native
    held = native if isinstance(native, MutableMapping) else vars(native)
    counted: set[int] = held.setdefault(_COUNTED_LIMITERS, set())
    return counted


def mark_limits(function: Any, *limits: HandlerLimit) -> None:
    """Record the limits of a handler on a function, outermost first."""
    setattr(function, _LIMITS, limits)


def _attached_limits(function: Any) -> tuple[HandlerLimit, ...]:
    while function is not None:
        if isinstance(function, HandlerLimit):
            return (function,)
        if limits := getattr(function, _LIMITS, ()):
            return cast("tuple[HandlerLimit, ...]", limits)
        function = getattr(function, "__wrapped__", None)
    return ()


def limits_before(handler: Any, others: Iterable[Any] = ()) -> tuple[RateLimitRule, ...]:
    """Return the limits of a handler, outermost first, with their names in decisions.

    ``others`` are called by the framework before it: dependencies, ``before_request`` functions.
    """
    if handler is None:
        return ()
    methods = [
        getattr(handler, name)
        for name in ("get", "post", "put", "patch", "delete", "dispatch")
        if inspect.isclass(handler) and hasattr(handler, name)
    ]
    place = inspect.unwrap(handler)
    limits = [
        (limit, place, None) for each in (handler, *others) for limit in _attached_limits(each)
    ]
    limits += [(limit, each, handler) for each in methods for limit in _attached_limits(each)]
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
# Storing a handler's responses. A handler communicates with the outer cache through header
# fields of the response, because both see nothing else.

Fields = tuple[tuple[str, str], ...]

_FRESHNESS_FIELDS = ("cache-control", "cdn-cache-control", "expires")
_warned_of: set[str] = set()


class CachedAs(Decorator):
    """Rules for storing a handler's responses; the arguments are those of ``cached``."""

    def __init__(
        self,
        ttl: Duration,
        tags: Iterable[str] = (),
        stale_while_revalidate: Duration = 0,
        stale_if_error: Duration = 0,
        hooks: type[HandlerCall] = HandlerCall,
    ) -> None:
        """Check the arguments. Raises ConfigurationError, which names the argument."""
        super().__init__(hooks)
        self.name: str = f"cached({ttl!r})"
        self._directives = f"max-age={_seconds('ttl', ttl, at_least=1)}"
        if stale := _seconds("stale_while_revalidate", stale_while_revalidate):
            self._directives += f", stale-while-revalidate={stale}"
        if stale := _seconds("stale_if_error", stale_if_error):
            self._directives += f", stale-if-error={stale}"
        if isinstance(tags, str):
            raise ConfigurationError(f"cached: tags={tags!r} should be a sequence of strings")
        self._tags = tuple(tags)
        for tag in self._tags:
            if not is_tag(tag):
                raise ConfigurationError(f"cached: the tag {tag!r} should be text without commas")

    def begin(self, call: HandlerCall) -> Attached:
        if call.method in {"GET", "HEAD"}:
            warn_if_not_looked_up("cached", call)
        return Attached(partial(self._mark, call.path_params))

    def _mark(self, path_params: Mapping[str, Any], head: ResponseHead) -> ResponseHead:
        """Return a response's head with the fields that make the cache store it.

        The response's own freshness takes precedence over ``ttl``. Errors are not stored.
        """
        from upstash_middleware.core.cache.http.directives import FROM_HANDLERS  # noqa: PLC0415
        from upstash_middleware.core.cache.rules import SUCCESSFUL  # noqa: PLC0415

        if head.status not in SUCCESSFUL:
            return head
        tags = [_fill_tag(tag, path_params) for tag in self._tags]
        if None in tags:  # a response without its tag could not be purged
            return with_fields(head, ((FROM_HANDLERS, "no-store"),))
        named = ", ".join(filter(None, tags))
        fields: Fields = (("cache-tag", named),) if named else ()
        if not any(name in head.headers for name in _FRESHNESS_FIELDS):
            fields = (*fields, (FROM_HANDLERS, self._directives))
        return with_fields(head, fields)


class NeverCached(Decorator):
    """Keep a handler's responses out of all caches: ``Cache-Control: no-store``."""

    name = "never_cached"

    def begin(self, _call: HandlerCall) -> Attached:
        return Attached(self._mark)

    def _mark(self, head: ResponseHead) -> ResponseHead:
        rest = ResponseHead(head.status, head.headers.without("cache-control", "expires"))
        fields: Fields = (("cache-control", "no-store"),)
        if any(name.endswith("control") for name in rest.headers.names()):
            # A targeted field (RFC 9213) would take precedence in the cache.
            from upstash_middleware.core.cache.http.directives import FROM_HANDLERS  # noqa: PLC0415

            fields = (*fields, (FROM_HANDLERS, "no-store"))
        return with_fields(rest, fields)


def with_fields(head: ResponseHead, fields: Fields) -> ResponseHead:
    if not fields:
        return head
    lines = ((name.encode("latin-1"), value.encode("latin-1")) for name, value in fields)
    return ResponseHead(head.status, head.headers.adding(*lines))


def warn_if_not_looked_up(decorator: str, call: HandlerCall) -> None:
    """Warn, once per handler, that no outer cache has looked up a request for it."""
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
    """Whether a tag can be a member of a list field: printable ASCII without commas."""
    is_plain = isinstance(tag, str) and tag.isascii() and tag.isprintable()
    return is_plain and bool(tag) and "," not in str(tag)


def _fill_tag(tag: str, path_params: Mapping[str, Any]) -> str | None:
    """Return a tag with path parameters; None if one is missing or breaks the field."""
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
"""The log message if the handler that was called is not the exempt one from the lookup."""
_EXEMPT = "_upstash_middleware_exempt"
_RULE = 'write a rule for its paths: RateLimitRule("/path/{rest:path}", "unlimited")'
_GROUPS = frozenset(
    {
        "flask.sansio.blueprints.Blueprint",
        "starlette.applications.Starlette",
        "starlette.routing.Router",
    }
)
"""Classes of objects that contain handlers. Exempting an object exempts its handlers."""
_REFUSED = {
    "builtins.str": "pass the handler itself",
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
"""What to mark instead, for objects that a limit could not recognize in a request."""
exempt_types: set[str] = set()
"""The types of the exempt objects in this process; if empty, routes need no lookup."""
_exempt_groups: list[weakref.ref[Any]] = []
"""A list of references and not a set, because routers compare by routes and are unhashable."""
_is_in_group: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()
"""Whether an endpoint is in an exempt group, for the endpoints looked up so far."""


def exempt(handler: H) -> H:
    """Mark a handler as exempt: no limit of this package counts its requests.

    This applies to limits on the handler. With the framework's own middleware classes, it also
    applies to the middleware's limits, because they look up a request's route before they count. A
    handler is a function, a class or a method of a class. For Flask's blueprints, FastAPI's
    routers, and applications and routers that Starlette mounts, all handlers in them are exempt.

    Args:
        handler: The handler, or the blueprint, router or application.

    Raises:
        ConfigurationError: The object cannot be exempt, such as a list of Django's URL patterns.
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
    """Whether a handler, or a function that it wraps, is marked; a wrapper may lack the mark."""
    while handler is not None:
        if getattr(handler, _EXEMPT, False):
            return True
        handler = getattr(handler, "__wrapped__", None)
    return False


def is_exempt_class(owner: Any, method: str) -> bool:
    """Whether a class of handlers is marked, or its method for this HTTP method."""
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
    # Django REST framework's @api_view makes the class from a function.
    return any(is_exempt(cell.cell_contents) for cell in handler.__closure__ or ())


def is_in_exempt_group(endpoint: object) -> bool:
    """Whether a Starlette or FastAPI endpoint is in a marked router or application.

    The routes are searched once for each endpoint.
    """
    if not _exempt_groups or endpoint is None:
        return False
    try:
        if (known := _is_in_group.get(endpoint)) is not None:
            return known
    except TypeError:  # the endpoint is not hashable
        pass
    found = any(endpoint is each for group in _exempt_groups for each in _endpoints(group()))
    with suppress(TypeError):
        _is_in_group[endpoint] = found
    return found


def _endpoints(group: Any) -> Iterator[object]:
    for route in getattr(group, "routes", None) or ():
        if (router := getattr(route, "original_router", None)) is not None:  # FastAPI's include
            yield from _endpoints(router)
        elif getattr(route, "routes", None):
            yield from _endpoints(route)
        else:
            yield getattr(route, "endpoint", None)


def handler_name(handler: object, owner: type | None = None) -> str:
    """Return the name of the counters of a handler's limit: ``shop.views.login``.

    ``owner`` is the class of the object whose method is called, so an inherited method has a name
    for each class. The name is printable ASCII without colons, at most 64 characters.
    """
    handler, owner = _unwrap_partial(handler, owner)
    name = getattr(handler, "__name__", type(handler).__name__)
    if owner is not None:
        text = f"{owner.__module__}.{owner.__qualname__}.{name}"
    else:
        if name == "view":  # Django's as_view gives this name to all its views
            made_of = getattr(handler, "view_class", None) or getattr(handler, "cls", None)
            handler = made_of or handler
        text = f"{getattr(handler, '__module__', '')}.{_own_name(handler)}"
    plain = text.encode("unicode_escape").decode("ascii").replace(":", "_")
    if len(plain) <= MAX_NAME_LENGTH:
        return plain
    digest = hashlib.sha256(plain.encode()).hexdigest()[:12]
    return f"{plain[-(MAX_NAME_LENGTH - 13) :]} {digest}"


def _own_name(handler: Any) -> str:
    """Return the qualified name; frameworks change only the `__name__` of their functions."""
    name: str = getattr(handler, "__name__", type(handler).__name__)
    qualified: str = getattr(handler, "__qualname__", name)
    return qualified if qualified.rpartition(".")[2] == name else name


def identity(handler: object, owner: type | None = None) -> object:
    """Return a value that distinguishes a handler from others with the same name."""
    handler, owner = _unwrap_partial(handler, owner)
    function = inspect.unwrap(handler) if callable(handler) else handler
    return function if owner is None else (owner, function)


def owner_of(handler: object, args: tuple[Any, ...]) -> type | None:
    """Return the class of the object whose method is called; None for a plain function."""
    name = getattr(handler, "__name__", "")
    if args and name and hasattr(type(args[0]), name):
        return type(args[0])
    return None


def _unwrap_partial(handler: object, owner: type | None) -> tuple[object, type | None]:
    """Return the function of a partial of a bound method, as ``method_decorator`` makes it."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    if isinstance(handler, MethodType):
        return handler.__func__, owner or type(handler.__self__)
    return handler, owner
