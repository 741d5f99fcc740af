"""``Limiter`` and ``SyncLimiter``: rate limits for calls that are not HTTP requests.

Both are one class over the core's flows: ``Limiter`` runs the flows on an event loop,
``SyncLimiter`` in a thread. Rules, keys and policies are the same as in the middleware.
"""

from __future__ import annotations

import inspect
import os
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from functools import wraps
from importlib import import_module
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Protocol, Self, TypeVar, overload
from uuid import UUID
from weakref import WeakSet, WeakValueDictionary

from msgspec.structs import replace

from upstash_middleware.arguments import defaults_of, from_arguments, passing_to
from upstash_middleware.clock import SystemClock
from upstash_middleware.core.clock import seconds_in
from upstash_middleware.core.engine import Engine, Part
from upstash_middleware.core.flow import Sleep
from upstash_middleware.core.identify import Identifier
from upstash_middleware.core.ratelimit import Decision, RateLimiter, rule_from_mapping
from upstash_middleware.core.ratelimit.algorithms import Limit
from upstash_middleware.core.ratelimit.algorithms.limit import MAX_QUOTA
from upstash_middleware.core.ratelimit.decision import UNCHECKED, Ledger
from upstash_middleware.core.ratelimit.limiter import NO_REQUEST
from upstash_middleware.core.ratelimit.rules import FIELDS
from upstash_middleware.errors import ConfigurationError, UpstashMiddlewareError, unknown_name
from upstash_middleware.messages import HTTPRequest
from upstash_middleware.runtime import Features, Runtime
from upstash_middleware.settings import settings_from
from upstash_middleware.upstash.process import ForkSafeLock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from os import PathLike

    from upstash_middleware.core.clock import Duration
    from upstash_middleware.core.engine import Exchange
    from upstash_middleware.core.flow import Flow
    from upstash_middleware.core.ratelimit import RateLimitExchange, RateLimitRule
    from upstash_middleware.core.ratelimit.limiter import Who
    from upstash_middleware.core.ratelimit.rules import AnyLease, OnError
    from upstash_middleware.events import Observer
    from upstash_middleware.messages import RequestBody
    from upstash_middleware.settings import Settings

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

Limits = str | Limit | Sequence[str | Limit]
"""The limits of a limiter: text, an algorithm of this package, or several of these."""


class RateLimited(UpstashMiddlewareError):
    """A limiter has denied a call; ``decision`` has the limit and the time to wait."""

    def __init__(self, decision: Decision) -> None:
        super().__init__(f"{decision.rule!r} denies {decision.identifier!r}: {_why(decision)}")
        self.decision = decision

    @property
    def retry_after(self) -> float | None:
        """Seconds until the same call would pass; None if this is unknown or it never passes."""
        return self.decision.retry_after

    def __reduce__(self) -> tuple[type[RateLimited], tuple[Decision]]:
        # Task queues pickle exceptions; a ledger with late charges cannot be pickled.
        return type(self), (replace(self.decision, ledger=Ledger()),)


def _why(decision: Decision) -> str:
    if decision.retry_after is not None:
        return f"it would pass in {decision.retry_after:g} seconds"
    if decision.settled_by == "closed":
        return "Upstash is unreachable, and on_error is 'closed'"
    if decision.settled_by in {"deny list", "challenge"}:
        return f"by its {decision.settled_by}"
    if _never_passes(decision):
        return "it costs more than the limit, so waiting does not help"
    return "too many at once"


def _never_passes(decision: Decision) -> bool:
    listed = decision.settled_by in {"deny list", "challenge"}
    return listed or any(policy.never for policy in decision.policies)


class _HasScope(Protocol):
    """A request or WebSocket object of Starlette or FastAPI."""

    @property
    def scope(self) -> Any: ...


class _HasEnviron(Protocol):
    """A request object of Flask or Werkzeug."""

    @property
    def environ(self) -> Any: ...


class _HasMeta(Protocol):
    """A request object of Django."""

    @property
    def META(self) -> Any: ...  # noqa: N802 - Django's name


Caller = str | int | UUID | Identifier | Decision | HTTPRequest | _HasScope | _HasEnviron | _HasMeta
"""The caller whose quota a call uses.

Text, a number or a UUID is the value that the rule's ``by`` would find, such as the name in a form;
without such a ``by``, and for limits in code, it is an identifier of kind ``id``, which the
application chooses. A Decision stands for its identifier. For a request, ``by`` finds it.
"""


def _identify_caller(caller: object, limiter: RateLimiter, rule: str, *, waits: bool) -> Who:
    """Return a caller as the core's request or identifier. ``waits`` allows waiting for a body,
    on an event loop only.

    Raises TypeError for other types, and ValueError for an identifier that all callers would share.
    """
    found: Who | None
    if isinstance(caller, str | int | UUID) and not isinstance(caller, bool):
        found = limiter.identifier(rule, str(caller))
    elif isinstance(caller, Decision):
        found = caller.identifier
    else:
        found = caller if isinstance(caller, Identifier | HTTPRequest) else _request_from(caller)
        if isinstance(found, HTTPRequest) and limiter.needs_body(rule) and found is not caller:
            found = replace(found, body=_body_of(caller, rule, waits=waits))
    if found is None:
        raise TypeError(
            "an identifier should be text, a whole number, a UUID, an Identifier, a Decision or a "
            f"request, not a {type(caller).__name__}"
        )
    if not (found.value if isinstance(found, Identifier) else found):
        raise ValueError(
            "an identifier should not be empty, as the text of an unknown user is, and a "
            "Decision's where no limit was checked: all such callers would share one quota; give a "
            "request, or an Identifier such as Identifier('ip', address)"
        )
    return found


def _request_from(given: Any) -> HTTPRequest | None:
    """Return a framework's request as the core's HTTPRequest; None for other objects."""
    if isinstance(getattr(given, "scope", None), Mapping) and not hasattr(given, "META"):
        from upstash_middleware import asgi  # noqa: PLC0415 - if it is used

        return asgi.request_of(given.scope)
    if hasattr(given, "META"):
        from upstash_middleware.django import requests  # noqa: PLC0415 - as above

        return requests.request_from(given)
    if isinstance(getattr(given, "environ", None), Mapping):
        from upstash_middleware import wsgi  # noqa: PLC0415 - as above

        return wsgi.request_of(given.environ)
    return None


def _body_of(given: Any, rule: str, *, waits: bool) -> RequestBody | None:
    """Return the body of a framework's request. Raises ValueError if it cannot be read."""
    kinds = {base.__module__.partition(".")[0] for base in type(given).__mro__}
    body: RequestBody | None = None
    if "django" in kinds:
        from upstash_middleware.django.requests import DjangoBody  # noqa: PLC0415 - if it is used

        body = DjangoBody(given)
    elif "flask" in kinds or type(given).__module__ == "werkzeug.local":
        from upstash_middleware.flask import ViewBody  # noqa: PLC0415 - as above

        body = ViewBody(given)
    elif "starlette" in kinds and given.scope["type"] == "websocket":
        return None  # a handshake has no body
    elif "starlette" in kinds and hasattr(given, "stream"):
        from upstash_middleware.starlette import EndpointBody  # noqa: PLC0415 - as above

        body = EndpointBody(given)
    if body is None or not body.is_available(waits=waits):
        raise ValueError(
            f"rule {rule!r} finds its identifier in the request's body, which is not available in "
            "this request: pass the value as text, an Identifier, or the request's decision; or "
            "read the body before by a method that keeps it, as `await request.body()`"
        )
    return body


# ------------------------------------------------------------------------------------------------
# The base class of both classes


class _Decorator(Protocol):
    def __call__(self, function: Callable[P, R], /) -> Callable[P, R]: ...


class _AsyncDecorator(Protocol):
    def __call__(
        self, function: Callable[P, Awaitable[R]], /
    ) -> Callable[P, Coroutine[Any, Any, R]]: ...


B = TypeVar("B")  # the object that limits a block
D = TypeVar("D")  # the object that limits a function


class _Limiter(Generic[B, D]):
    """The base class of ``Limiter`` and ``SyncLimiter``: it finds the limits, and has the flows."""

    @passing_to("_configure")
    def __init__(  # noqa: PLR0913 - fields of a rule, and settings
        self,
        limits: Limits,
        /,
        *,
        name: str,
        app: object = None,
        on_error: OnError = "open",
        bucket: str = "",
        allow: Iterable[str] = (),
        deny: Iterable[str] = (),
        shadow: bool = False,
        shared_prefix: str | None = None,
        local_share: float = 1.0,
        dynamic: bool = False,
        deadline: Duration | None = None,
        lease: AnyLease | None = None,
        url: str | None = None,
        token: str | None = None,
        redis: Any = None,
        transport: Any = None,
        prefix: str = "upstash-middleware",
        secret: str | None = None,
        config: str | PathLike[str] | None = None,
        enabled: bool = True,
        remember_denials: Duration = 60.0,
        analytics: str | None = None,
        deny_list: str | None = None,
        breaker: bool = True,
        breaker_slow: Duration | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        """Create a limiter; this opens no connection.

        The arguments from ``url`` on are settings for a limiter without ``app``.

        Args:
            limits: Text such as ``"5/minute"``, an algorithm such as ``SlidingWindow(5, per=60)``,
                or several of these; a call is charged to all of them or to none.
            name: The name of the counters. Limiters with the same name and the same limits share
                their counters.
            app: The application whose middleware's settings, connections and events the limiter
                uses: an object of Starlette, FastAPI or Flask, an application wrapped by a
                middleware, or ``django.conf.settings``; or its location, ``"shop.main:app"``, which
                is imported at the first call. Without ``app``, the environment names the database.
            on_error: What to do if Upstash is unreachable: ``"open"`` lets the call pass,
                ``"closed"`` denies it, ``"local"`` counts in this process. Default ``"open"``.
            bucket: Rules and limiters with the same bucket share their counters.
            allow: Networks and identifiers that pass without counting: ``10.0.0.0/8``, ``user=7``.
            deny: Networks and identifiers that are denied.
            shadow: Whether to report denials without denying anything. Default False.
            shared_prefix: The prefix of an ``upstash_ratelimit`` limiter, in Python or JavaScript,
                to share its counters; None for separate counters.
            local_share: The share of the quota that this process has with ``on_error="local"``,
                above 0 and at most 1. Default 1.
            dynamic: Whether ``set_limit`` can change the limit at run time. Default False.
            deadline: Seconds that a call to Upstash may take in total; default 1, or the setting of
                ``app``.
            lease: Seconds for which this process reserves quota for a busy identifier, or text such
                as ``"500ms"``, a Lease, a mapping of its fields, or False for no lease; None for
                the setting of ``app``.
            url: The database's REST URL; default UPSTASH_REDIS_REST_URL, then KV_REST_API_URL.
            token: The REST token; default UPSTASH_REDIS_REST_TOKEN, then KV_REST_API_TOKEN.
            redis: A client of this package or of upstash_redis, or a LocalUpstash, instead of both.
            transport: The HTTP client: ``"sockets"``, ``"httpx"``, or an httpx client object.
            prefix: The prefix of every key on Redis; use a different one for each application.
            secret: The key that hashes identifiers; default: derived from the token.
            config: The path of a rule file: these settings in TOML.
            enabled: False lets every call pass, as does UPSTASH_MIDDLEWARE_ENABLED=0.
            remember_denials: The longest time in seconds for which this process repeats a denial
                without a call to Upstash; default 60, 0 to always call.
            analytics: The prefix of the counts for the Rate Limit dashboard in Upstash's console;
                None for no counts.
            deny_list: The prefix of the JavaScript upstash-ratelimit whose deny list applies; None
                for no deny list.
            breaker: Whether a circuit breaker stops calls if half of the recent ones fail.
            breaker_slow: Seconds after which the circuit breaker counts a call as failed; default
                half of ``deadline``.
            observers: Functions that are called with every event, in addition to the log.

        Raises:
            ConfigurationError: An argument is wrong.
        """

    def _configure(
        self,
        limits: Limits,
        /,
        *,
        name: str,
        app: object = None,
        **arguments: Any,
    ) -> None:
        setting = f"{type(self).__name__}({limits!r}, name={name!r})"
        known = [each for each in defaults_of(_Limiter.__init__) if each != "app"]
        for each in arguments:
            if each not in known:
                raise unknown_name(setting, each, known)
        of_rule = {key: value for key, value in arguments.items() if key in FIELDS}
        others = {key: value for key, value in arguments.items() if key not in FIELDS}
        rule = rule_from_mapping({"limits": limits, "name": name, **of_rule}, setting)
        if not isinstance(rule.parsed, tuple):
            raise ConfigurationError(
                f"{setting}: a limiter takes limits of this package, such as '5/minute', but not a "
                "function of a request"
            )
        if not name:
            raise ConfigurationError(f"{setting}: its counters need a name, such as 'messages'")
        if app is not None and others:
            raise ConfigurationError(
                f"{setting}: {', '.join(others)} would be ignored, since the middleware of app "
                "has its own; leave out one of the two"
            )
        self._set_fields(
            name, app, rule, settings_from(others, os.environ) if app is None else None
        )
        _created.add(self)

    def _set_fields(
        self, name: str, app: object, rule: RateLimitRule | None, settings: Settings | None
    ) -> None:
        self.name: str = name
        self._app = app
        self._rule = rule
        self._settings = settings
        self._alone: Runtime | None = None
        self._found: tuple[Runtime, RateLimiter] | None = None

    @classmethod
    def of(cls, app: object, name: str) -> Self:
        """Return the limiter of an existing rule of an application, by the rule's name.

        The rule belongs to the middleware, to a decorator, or to another limiter. Its name is in
        decisions, in logs and in ``upstash-middleware limits list``.

        Args:
            app: The application, or its location: ``"shop.main:app"``.
            name: The name of the rule.

        Raises:
            ConfigurationError: At the first call, if the application has no such rule.
        """
        made = cls.__new__(cls)
        made._set_fields(name, app, None, None)  # noqa: SLF001 - an object of this class
        _created.add(made)
        return made

    def __repr__(self) -> str:
        limits = "" if self._rule is None else f"{self._rule.limits!r}, "
        return f"{type(self).__name__}({limits}name={self.name!r})"

    @overload
    def __call__(self, caller: Caller, /, *, cost: int = 1, timeout: Duration = 0) -> B: ...
    @overload
    def __call__(
        self,
        /,
        *,
        by: Caller | Callable[..., Caller],
        cost: int | Callable[..., int] = 1,
        timeout: Duration = 0,
    ) -> D: ...
    def __call__(
        self, caller: Any = None, /, *, by: Any = None, cost: Any = 1, timeout: Duration = 0
    ) -> Any:
        """Limit a block, ``with limiter("alice"):``, or a function, ``@limiter(by="alice")``.

        For a Limiter, use ``async with`` and an async function.

        Args:
            caller: The caller whose quota the block uses.
            by: The caller whose quota a call of the function uses; or a function that takes some
                of the limited function's parameters and returns the caller.
            cost: The units that a call uses; or a function that returns them, as for ``by``.
            timeout: The longest time to wait for quota, in seconds.

        Raises:
            RateLimited: The call is denied; the block or the function does not run.
        """
        if by is None:
            return self._within(caller, cost, timeout)

        def decorate(function: Any) -> Any:
            _check_function(self, function, is_async=isinstance(self, Limiter))
            find, weigh = from_arguments(by, function), from_arguments(cost, function)
            return self._limited(function, find, weigh, timeout)

        return decorate

    def _within(self, caller: Caller, cost: int, max_wait: Duration) -> Any:
        raise NotImplementedError

    def _limited(self, function: Any, find: Any, weigh: Any, max_wait: Duration) -> Any:
        """Return a limited function; ``find`` and ``weigh`` get the arguments of each call."""
        raise NotImplementedError

    # What it works on.

    def _runtime_and_limiter(self) -> tuple[Runtime, RateLimiter]:
        runtime = self._runtime()
        if self._found is None or self._found[0] is not runtime:
            limiter = (
                _find_limiter(runtime, self._app, self.name)
                if self._rule is None
                else _limiter_for(runtime, self._rule)
            )
            self._found = runtime, limiter
        return self._found

    def _uses(self, limiter: RateLimiter) -> bool:
        """Whether this object uses ``limiter``, even while another thread is creating it."""
        found = self._found is not None and self._found[1] is limiter
        return found or any(self._rule is rule for rule in limiter.rules.values())

    def _runtime(self) -> Runtime:
        if self._settings is None:
            if isinstance(self._app, str):
                self._app = _import_application(self._app)
            return _runtime_of(self._app)
        if self._alone is None:
            self._alone = _standalone(self._settings)
        return self._alone

    def _identify_caller(self, caller: Caller, limiter: RateLimiter) -> Who:
        return _identify_caller(caller, limiter, self.name, waits=isinstance(self, Limiter))

    # Flows.

    async def _enter(self, caller: Caller, cost: int, max_wait: Duration) -> Exchange:
        """Charge the cost, waiting for at most ``max_wait`` seconds.

        Raises RateLimited.
        """
        runtime, limiter = self._runtime_and_limiter()
        who = self._identify_caller(caller, limiter)
        cost, seconds = _check_cost(cost), _seconds(max_wait)
        engine = Engine([_Call(limiter, self.name, who, cost)], observe=runtime.observe)
        begun, attempts = SystemClock.monotonic(), 0
        while True:
            exchange = await engine.begin(NO_REQUEST)
            decision = exchange.decision
            if decision is None or not decision.stops:
                return exchange
            if (flow := exchange.finish(complete=False)) is not None:
                await flow
            left = seconds - (SystemClock.monotonic() - begun)
            delay = _delay(decision, attempts)
            if delay is None or delay > left:
                raise RateLimited(decision)
            # Callers that wait for the same quota should not all retry at once. The longer a caller
            # has waited, the earlier it retries.
            spread = min(delay, _WIDEST_SPREAD) / (2 + attempts)
            await Sleep(min(left, delay + random.random() * spread))  # noqa: S311 - no secret
            attempts += 1

    async def _take(self, caller: Caller, cost: int, max_wait: Duration = 0) -> Decision:
        if self._runtime_and_limiter()[1].holds(self.name):
            raise ConfigurationError(
                f"{self!r} limits how many calls run at once, so it has to know when each ends; "
                "enter it with the word `with`, or decorate a function"
            )
        exchange = await self._enter(caller, cost, max_wait)
        if (flow := exchange.finish(complete=True)) is not None:
            await flow
        return exchange.decision or UNCHECKED

    async def _try(self, caller: Caller, cost: int) -> Decision:
        try:
            return await self._take(caller, cost)
        except RateLimited as denied:
            return denied.decision

    async def _peek(self, caller: Caller, cost: int) -> Decision:
        limiter = self._runtime_and_limiter()[1]
        who = self._identify_caller(caller, limiter)
        return await limiter.peek_call(self.name, who, _check_cost(cost)) or UNCHECKED

    async def _reset(self, caller: Caller) -> None:
        limiter = self._runtime_and_limiter()[1]
        await limiter.reset(self.name, self._identify_caller(caller, limiter))

    async def _set_limit(self, limit: int | None) -> None:
        await self._runtime_and_limiter()[1].set_limit(self.name, limit)

    async def _charge(self, caller: Caller, units: int) -> None:
        limiter = self._runtime_and_limiter()[1]
        await limiter.add(self.name, self._identify_caller(caller, limiter), _check_cost(units))


class _Call(Part):
    """One call, used in place of a request."""

    __slots__ = ("_caller", "_cost", "_limiter", "_name")

    def __init__(self, limiter: RateLimiter, name: str, who: Who, cost: int) -> None:
        self._limiter = limiter
        self._name = name
        self._caller = who
        self._cost = cost

    async def prepare(self, _request: HTTPRequest) -> RateLimitExchange:
        return await self._limiter.begin_call(self._name, self._caller, self._cost)


_WIDEST_SPREAD = 1.0
"""Seconds."""
_FIRST_TRY, _LAST_TRY = 0.05, 2.0
"""Seconds until the next attempt if it is not known when the call would pass."""


def _delay(decision: Decision, attempts: int) -> float | None:
    """Return the seconds until the next attempt; None if retrying does not help."""
    if _never_passes(decision):
        return None
    if decision.retry_after is not None:
        return decision.retry_after
    return float(min(_LAST_TRY, _FIRST_TRY * 2 ** min(attempts, 10)))


def _check_cost(cost: int) -> int:
    given: object = cost
    if isinstance(given, bool) or not isinstance(given, int) or not 1 <= given <= MAX_QUOTA:
        raise ValueError(f"a cost should be a whole number from 1 to {MAX_QUOTA}, not {cost!r}")
    return cost


def _seconds(timeout: Duration) -> float:
    seconds = seconds_in(timeout)
    if seconds is None or not seconds >= 0:
        raise ValueError(
            f"timeout={timeout!r} should be a number of seconds from 0, or text such as '30s'"
        )
    return seconds


# ------------------------------------------------------------------------------------------------
# The two classes


class SyncLimiter(_Limiter[AbstractContextManager[Decision], _Decorator]):
    """A rate limit for calls in synchronous code: ``SyncLimiter("5/hour", name="passwords")``.

    With an application of Starlette or FastAPI, use it in handlers that run in threads. ``Limiter``
    has the same methods for event loops.
    """

    def hit(self, caller: Caller, /, cost: int = 1) -> Decision:
        """Charge a cost to an identifier's quota.

        Args:
            caller: Whose quota is used: text, a number, an Identifier, a Decision or a request.
            cost: The units that the call uses.

        Raises:
            RateLimited: Not enough of the quota remains; nothing was charged.
        """
        return self._run(self._take(caller, cost), UNCHECKED)

    def try_hit(self, caller: Caller, /, cost: int = 1) -> Decision:
        """Do the same as ``hit``, but return the decision even if the call is denied.

        Args:
            caller: Whose quota is used: text, a number, an Identifier, a Decision or a request.
            cost: The units that the call uses.
        """
        return self._run(self._try(caller, cost), UNCHECKED)

    def peek(self, caller: Caller, /, cost: int = 1) -> Decision:
        """Return the decision that ``try_hit`` would make, without charging the cost.

        Args:
            caller: Whose quota is used: text, a number, an Identifier, a Decision or a request.
            cost: The units that the call would use.
        """
        return self._run(self._peek(caller, cost), UNCHECKED)

    def wait(self, caller: Caller, /, timeout: Duration, cost: int = 1) -> Decision:
        """Wait for quota for at most ``timeout`` seconds, and charge the cost.

        Args:
            caller: Whose quota is used: text, a number, an Identifier, a Decision or a request.
            timeout: The longest time to wait: seconds, a timedelta, or text such as ``"30s"``.
            cost: The units that the call uses.

        Raises:
            RateLimited: The call would not pass in this time; raised at once if this is known.
        """
        return self._run(self._take(caller, cost, timeout), UNCHECKED)

    def charge(self, caller: Caller, /, units: int) -> None:
        """Charge units even if fewer remain, for a cost that is known only after the call.

        Units beyond the limit delay later calls. If Upstash is unreachable, the charge is lost.

        Args:
            caller: Whose quota is used: text, a number, an Identifier, a Decision or a request.
            units: The number of units, at least 1.
        """
        self._run(self._charge(caller, units), None)

    def reset(self, caller: Caller, /) -> None:
        """Restore an identifier's full quota.

        Args:
            caller: Whose quota is used: text, a number, an Identifier, a Decision or a request.

        Raises:
            UpstashError: Upstash cannot be reached.
        """
        self._run(self._reset(caller), None)

    def set_limit(self, limit: int | None) -> None:
        """Change the limit in all processes until the next change; requires ``dynamic=True``.

        Args:
            limit: Units per window, at least 0; None restores the limit from the code.

        Raises:
            ValueError: The limiter is not dynamic, or ``limit`` is wrong.
            UpstashError: Upstash cannot be reached.
        """
        self._run(self._set_limit(limit), None)

    def _limited(self, function: Any, find: Any, weigh: Any, max_wait: Duration) -> Any:
        @wraps(function)
        def limited(*args: Any, **kwargs: Any) -> Any:
            with self._within(find(args, kwargs), weigh(args, kwargs), max_wait):
                return function(*args, **kwargs)

        return limited

    @contextmanager
    def _within(self, caller: Caller, cost: int, max_wait: Duration) -> Iterator[Decision]:
        runtime = self._runtime()
        exchange = self._run(self._enter(caller, cost, max_wait), None)
        if exchange is None:
            yield UNCHECKED
            return
        try:
            yield exchange.decision or UNCHECKED
        finally:
            runtime.finish(exchange, complete=True)

    def _run(self, flow: Flow[R], otherwise: T) -> R | T:
        """Run a flow and return its result, or ``otherwise`` if the middleware is disabled."""
        try:
            runtime = self._runtime()
            return runtime.perform(flow) if runtime.enabled else otherwise
        finally:
            flow.close()  # if it has not started


class Limiter(_Limiter[AbstractAsyncContextManager[Decision], _AsyncDecorator]):
    """A rate limit for calls in async code: ``Limiter("5/minute", name="messages", app=app)``.

    Use it for calls that are not HTTP requests, such as WebSocket messages, jobs or outgoing calls,
    and for limits that depend on values that only a handler knows. As with a rule of the
    middleware, a call takes one round trip, and ``on_error`` applies if Upstash is unreachable.
    ``SyncLimiter`` is the same for threads. Limiters with the same name and limits share a quota.
    """

    async def hit(self, caller: Caller, /, cost: int = 1) -> Decision:
        """Charge a cost to an identifier's quota.

        Args:
            caller: Whose quota is used: text, a number, an Identifier, a Decision or a request.
            cost: The units that the call uses.

        Raises:
            RateLimited: Not enough of the quota remains; nothing was charged.
        """
        return await self._run(self._take(caller, cost), UNCHECKED)

    async def try_hit(self, caller: Caller, /, cost: int = 1) -> Decision:
        """Do the same as ``hit``, but return the decision even if the call is denied.

        Args:
            caller: Whose quota is used: text, a number, an Identifier, a Decision or a request.
            cost: The units that the call uses.
        """
        return await self._run(self._try(caller, cost), UNCHECKED)

    async def peek(self, caller: Caller, /, cost: int = 1) -> Decision:
        """Return the decision that ``try_hit`` would make, without charging the cost.

        Args:
            caller: Whose quota is used: text, a number, an Identifier, a Decision or a request.
            cost: The units that the call would use.
        """
        return await self._run(self._peek(caller, cost), UNCHECKED)

    async def wait(
        self,
        caller: Caller,
        /,
        timeout: Duration,  # noqa: ASYNC109 - it bounds the waiting alone
        cost: int = 1,
    ) -> Decision:
        """Wait for quota for at most ``timeout`` seconds, and charge the cost.

        Args:
            caller: Whose quota is used: text, a number, an Identifier, a Decision or a request.
            timeout: The longest time to wait: seconds, a timedelta, or text such as ``"30s"``.
            cost: The units that the call uses.

        Raises:
            RateLimited: The call would not pass in this time; raised at once if this is known.
        """
        return await self._run(self._take(caller, cost, timeout), UNCHECKED)

    async def charge(self, caller: Caller, /, units: int) -> None:
        """Charge units even if fewer remain, for a cost that is known only after the call.

        Units beyond the limit delay later calls. If Upstash is unreachable, the charge is lost.

        Args:
            caller: Whose quota is used: text, a number, an Identifier, a Decision or a request.
            units: The number of units, at least 1.
        """
        await self._run(self._charge(caller, units), None)

    async def reset(self, caller: Caller, /) -> None:
        """Restore an identifier's full quota.

        Args:
            caller: Whose quota is used: text, a number, an Identifier, a Decision or a request.

        Raises:
            UpstashError: Upstash cannot be reached.
        """
        await self._run(self._reset(caller), None)

    async def set_limit(self, limit: int | None) -> None:
        """Change the limit in all processes until the next change; requires ``dynamic=True``.

        Args:
            limit: Units per window, at least 0; None restores the limit from the code.

        Raises:
            ValueError: The limiter is not dynamic, or ``limit`` is wrong.
            UpstashError: Upstash cannot be reached.
        """
        await self._run(self._set_limit(limit), None)

    def _limited(self, function: Any, find: Any, weigh: Any, max_wait: Duration) -> Any:
        @wraps(function)
        async def limited(*args: Any, **kwargs: Any) -> Any:
            async with self._within(find(args, kwargs), weigh(args, kwargs), max_wait):
                return await function(*args, **kwargs)

        return limited

    @asynccontextmanager
    async def _within(
        self, caller: Caller, cost: int, max_wait: Duration
    ) -> AsyncIterator[Decision]:
        runtime = self._runtime()
        exchange = await self._run(self._enter(caller, cost, max_wait), None)
        if exchange is None:
            yield UNCHECKED
            return
        try:
            yield exchange.decision or UNCHECKED
        finally:
            await runtime.afinish(exchange, complete=True)

    async def _run(self, flow: Flow[R], otherwise: T) -> R | T:
        """Run a flow and return its result, or ``otherwise`` if the middleware is disabled."""
        try:
            runtime = self._runtime()
            return await runtime.aperform(flow) if runtime.enabled else otherwise
        finally:
            flow.close()  # if it has not started


def _check_function(limiter: _Limiter[Any, Any], function: Any, *, is_async: bool) -> None:
    """Raise ConfigurationError for a function whose work continues after its call returns."""
    called = function if inspect.isclass(function) else getattr(function, "__call__", None)  # noqa: B004
    for each in (function, called):
        if inspect.isasyncgenfunction(each) or inspect.isgeneratorfunction(each):
            wants = (
                "async with a Limiter" if inspect.isasyncgenfunction(each) else "with a SyncLimiter"
            )
            raise ConfigurationError(
                f"{limiter!r}: {function!r} is a generator function, which runs after its call; "
                f"limit a block inside it, {wants}"
            )
    if any(map(inspect.iscoroutinefunction, (function, called))) != is_async:
        problem = "not an async function; use a SyncLimiter" if is_async else "async; use a Limiter"
        raise ConfigurationError(f"{limiter!r}: {function!r} is {problem}")


# ------------------------------------------------------------------------------------------------
# Where limits are counted


_created: WeakSet[_Limiter[Any, Any]] = WeakSet()
_making = ForkSafeLock()
_shared: WeakValueDictionary[object, Runtime] = WeakValueDictionary()
_VARIABLES = (
    *("UPSTASH_REDIS_REST_URL", "UPSTASH_REDIS_REST_TOKEN"),
    *("KV_REST_API_URL", "KV_REST_API_TOKEN"),
)
_NOT_STARTED = "_upstash_middleware_not_started"
"""An attribute of Starlette applications that this process does not serve, or not yet.

It contains the runtimes, which refer to the application; so only the application may keep them.
"""


def limits_in_code() -> Iterable[tuple[RateLimitRule, object, Settings | None]]:
    """Yield the limits of all limiters, each with its application or else its settings."""
    for limiter in list(_created):
        rule, app, settings = limiter._rule, limiter._app, limiter._settings  # noqa: SLF001 - of a class of this module
        if rule is not None:
            yield rule, app, settings


def _standalone(settings: Settings) -> Runtime:
    """Return the runtime of limiters without an application; equal settings share a runtime."""
    key = (settings, *map(os.environ.get, _VARIABLES))
    try:
        hash(key)
    except TypeError:  # a setting is not hashable
        return Runtime(settings, Features(0))
    with _making.lock:
        if (known := _shared.get(key)) is None:
            known = _shared[key] = Runtime(settings, Features(0))
        return known


def _import_application(path: str) -> object:
    """Return the application at ``MODULE:NAME``. Raises ConfigurationError."""
    module, _, name = path.partition(":")
    try:
        return attrgetter(name or "app")(import_module(module))
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(
            f"app={path!r}: there is no such application ({error}); write MODULE:NAME, as in "
            "'shop.main:app'"
        ) from error


def _runtime_of(app: Any) -> Runtime:
    """Return the runtime of an application's middleware. Raises ConfigurationError."""
    kinds = {base.__module__.partition(".")[0] for base in type(app).__mro__}
    if "django" in kinds:
        from upstash_middleware.django import conf  # noqa: PLC0415 - if it is used

        return conf.runtime_for_handlers()
    if isinstance(getattr(app, "extensions", None), dict) and hasattr(app, "wsgi_app"):
        from upstash_middleware import flask  # noqa: PLC0415 - as above

        return flask.runtime_for_handlers(app)
    found = list(_runtimes_in(app))
    if found:  # prefer a runtime with its own limits
        return max(found, key=lambda one: (one.has_limits, Features.RATE_LIMIT in one.features))
    if hasattr(app, "user_middleware"):
        from upstash_middleware import starlette  # noqa: PLC0415 - as above

        return starlette.runtime_by_environment(app)
    raise ConfigurationError(
        f"app={app!r} has no middleware of this package; pass an application that has, or leave "
        "out app to use the database from the environment"
    )


def _runtimes_in(app: Any) -> Iterable[Runtime]:
    """Yield the runtimes of the middleware in and around an ASGI or WSGI application."""
    layer, seen = app, set[int]()
    while layer is not None and id(layer) not in seen:
        seen.add(id(layer))
        if isinstance(runtime := getattr(layer, "runtime", None), Runtime):
            yield runtime
        if hasattr(layer, "user_middleware") and layer.middleware_stack is None:
            yield from _unstarted_runtimes(layer)
            return
        names = ("middleware_stack", "app", "wsgi_app")
        inside = (getattr(layer, name, None) for name in names)
        layer = next((each for each in inside if each is not None), None)


def _unstarted_runtimes(app: Any) -> list[Runtime]:
    with _making.lock:
        runtimes: list[Runtime] | None = vars(app).get(_NOT_STARTED)
        if runtimes is None:
            runtimes = [
                entry.cls(app, *entry.args, **entry.kwargs).runtime
                for entry in app.user_middleware
                if hasattr(entry.cls, "features")
            ]
            vars(app)[_NOT_STARTED] = runtimes
        return runtimes


def _limiter_for(runtime: Runtime, rule: RateLimitRule) -> RateLimiter:
    """Return the limiter for a rule; equal rules with the same name share a limiter.

    Raises ConfigurationError if another limit has the name.
    """
    name = rule.name
    with _making.lock:
        known = runtime.limiters.get(name)
        differences = [] if known is None else _differences(known.rules[name], rule)
        if known is not None and not differences:
            return known
        if known is not None and not any(each._uses(known) for each in list(_created)):  # noqa: SLF001 - as above
            del runtime.limiters[name]  # no limiter uses it any more, for instance after a test
        for other in _rules_of(runtime):
            if other.name == name and other.parsed is not None:
                # The error message already shows the limits.
                shown = [each for each in differences if each != "limits"][:1]
                other_has = "".join(f" with {each}={getattr(other, each)!r}" for each in shown)
                raise ConfigurationError(
                    f"{rule.setting}: {other.setting}{other_has} has this name already, and the "
                    "two would share their counters; rename one of them, or reach the other by "
                    f"Limiter.of(app, {name!r})"
                )
        limiter = runtime.limiters[name] = runtime.limiter((rule,), at_handler=True)
        return limiter


def _differences(one: RateLimitRule, other: RateLimitRule) -> list[str]:
    """Return the fields in which two rules differ; limits last, compared after parsing."""
    fields = [each for each in FIELDS if each != "limits"]
    differ = [each for each in fields if getattr(one, each) != getattr(other, each)]
    return differ if one.parsed == other.parsed else [*differ, "limits"]


def _rules_of(runtime: Runtime) -> Iterable[RateLimitRule]:
    """Yield the rules whose names are already taken."""
    settings = runtime.settings
    yield from settings.rate_limits
    if settings.default_limit is not None:
        yield settings.default_limit
    for _, limiter in tuple(runtime.handler_limiters.values()):
        yield from limiter.rules.values()
    for limiter in tuple(runtime.limiters.values()):
        yield from limiter.rules.values()


def _find_limiter(runtime: Runtime, app: Any, name: str) -> RateLimiter:
    """Return the limiter that has the rule with this name. Raises ConfigurationError."""
    known: list[str] = []
    limiters = [
        *(part for part in runtime.engine.parts if isinstance(part, RateLimiter)),
        *(limiter for _, limiter in tuple(runtime.handler_limiters.values())),
        *runtime.limiters.values(),
    ]
    for limiter in limiters:
        if name in limiter.rules:
            return limiter
        known += limiter.rules
    for rule in _handler_limits(app):
        if rule.name == name and isinstance(rule.parsed, tuple):
            return runtime.limiter((rule,), at_handler=True)
        known.append(rule.name)
    for rule in (*_rules_of(runtime), *_handler_limits(app)):
        if rule.name == name and rule.parsed is not None:
            raise ConfigurationError(
                f"{name!r}: the limits of this rule depend on the request, or are counted by "
                "another package; read a request's own decision, which its handler gets"
            )
    raise ConfigurationError(
        f"{name!r}: the application has no limit of this name; it has "
        + (", ".join(map(repr, dict.fromkeys(known))) or "none")
    )


def _handler_limits(app: Any) -> Iterable[RateLimitRule]:
    """Yield the limits of an application's decorated handlers, named as in decisions."""
    from upstash_middleware import routes  # noqa: PLC0415 - only if found by name

    if "django" in {base.__module__.partition(".")[0] for base in type(app).__mro__}:
        found = routes.django_routes()
    else:
        layer = app
        while not (layer is None or hasattr(layer, "url_map") or hasattr(layer, "user_middleware")):
            inside = (getattr(layer, name, None) for name in ("wsgi_app", "app", "__self__"))
            layer = next((each for each in inside if each is not None), None)
        of = routes.flask_routes if hasattr(layer, "url_map") else routes.starlette_routes
        found = of(layer)
    for route in found:
        yield from route.limits
