"""FastAPI: ``Depends(limit("5/minute"))`` for routes, routers and applications.

All other names are Starlette's. This module does not import FastAPI.
"""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from upstash_middleware import starlette
from upstash_middleware.asgi import CacheHandle, CacheMiddleware, data_of, headers_of
from upstash_middleware.core.clock import Duration
from upstash_middleware.core.identify import Identifier
from upstash_middleware.core.ratelimit import Decision
from upstash_middleware.core.ratelimit.decision import LIMIT_FIELDS, UNCHECKED
from upstash_middleware.core.ratelimit.rules import AnyLimits
from upstash_middleware.decorators import (
    CachedAs,
    Decorator,
    HandlerLimit,
    LimitFactory,
    PendingExchange,
    exempt,
    mark_limits,
)
from upstash_middleware.errors import ConfigurationError
from upstash_middleware.messages import HTTPRequest, ResponseHead
from upstash_middleware.openapi import document
from upstash_middleware.runtime import Features
from upstash_middleware.starlette import (
    EndpointCall,
    RateLimitMiddleware,
    RequestDenied,
    SessionMiddleware,
    UpstashMiddleware,
    own_handler,
    session,
    user,
)

if TYPE_CHECKING:
    from upstash_middleware.data import Data

__all__ = [
    "CacheHandle",
    "CacheMiddleware",
    "RateLimitMiddleware",
    "RequestDenied",
    "SessionMiddleware",
    "UpstashMiddleware",
    "cached",
    "data",
    "document_limits",
    "exempt",
    "limit",
    "never_cached",
    "session",
    "user",
]

D = TypeVar("D", bound=Callable[..., Any])


def data(connection: HTTPConnection) -> "Data":
    """Return a cache for the application's own values: ``Annotated[Data, Depends(data)]``.

    Args:
        connection: The request or WebSocket, from FastAPI.

    Raises:
        ConfigurationError: The application has no middleware of this package.
    """
    return data_of(connection.scope)


class _DependencyLimits(LimitFactory[Callable[..., AsyncIterator[Decision]]]):
    """Return a dependency that limits requests; its value is the limit's Decision.

    Use ``Annotated[Decision, Depends(limit("5/minute"))]`` in a route, or ``dependencies=[…]`` of a
    route, a router or the application. Each route's function has a separate quota under its
    qualified name; with a ``name`` they share a quota. A denial raises RequestDenied.

    The Decision belongs to this limit only, and its ``charge`` charges only this limit;
    ``request.state.rate_limit`` combines all limits of the request. If the limit does not apply, it
    is a Decision without figures.

    A dependency does not see the response. An outer middleware of this package adds the limit's
    fields to each response, and settles the cost. Without such a middleware, a Response that the
    function returns has no fields, and ``settle`` raises ConfigurationError.

    In ``by=Depends(current_user)``, FastAPI calls the dependency once per request, even if it is
    used elsewhere. The identifier is its value if that is text, a number or a UUID, and otherwise
    the value's ``id``; for None the client's address is used. A request that the dependency rejects
    is not counted. A value from one of FastAPI's security schemes is always hashed. Text from other
    dependencies appears unchanged in keys and logs, unless they return
    ``Identifier("id", text, secret=True)``.
    """

    def _limit(self, limits: AnyLimits, **arguments: Any) -> Callable[..., AsyncIterator[Decision]]:
        return _dependency(limits, **arguments)


limit: LimitFactory[Callable[..., AsyncIterator[Decision]]] = _DependencyLimits()


def _dependency(limits: AnyLimits, **arguments: Any) -> Callable[..., AsyncIterator[Decision]]:
    by = arguments.get("by")
    depends = "fastapi.params.Depends" in _classes(by)
    if depends:
        arguments["by"] = _Resolved(by)
    handler_limit = HandlerLimit(limits, arguments)
    settles = handler_limit.rule.settle is not None

    async def rate_limit(
        connection: HTTPConnection, response: Response, resolved: Any = by
    ) -> AsyncIterator[Decision]:
        if depends:
            known = connection.scope.setdefault(_RESOLVED_DEPENDENCIES, {})
            known[arguments["by"]] = resolved
        call = _call(connection, handler_limit)
        if settles and call.stream is None and call.runtime().enabled and not call.is_uncounted():
            raise ConfigurationError(
                f"{handler_limit.name}.settle: a dependency does not see the response; add "
                "UpstashMiddleware to the application, which does (with default_limit=None, if it "
                "should have no limits of its own)"
            )
        own: dict[HandlerLimit, Decision] = connection.scope.setdefault(_DECISIONS, {})
        pending = await handler_limit.abegin(call)
        if pending is None:
            yield own.get(handler_limit, UNCHECKED)  # an outer application may have set it
            return
        if pending.denies:
            call.deny(pending)
        call.enter(pending)
        own[handler_limit] = decision = pending.own_decision()
        if pending.finished_elsewhere:
            yield decision
            return
        _add_fields(pending, response)
        complete = False
        try:
            yield decision
            complete = True
        except BaseException as error:
            call.failed(pending, error)
            raise
        finally:
            await pending.afinish(complete=complete)

    if not depends:  # otherwise FastAPI would read the parameter from the query
        signature = inspect.signature(rate_limit)
        others = [each for name, each in signature.parameters.items() if name != "resolved"]
        vars(rate_limit)["__signature__"] = signature.replace(parameters=others)
    mark_limits(rate_limit, handler_limit)
    return _no_decorator(rate_limit, handler_limit.name)


def cached(
    ttl: Duration,
    *,
    tags: Iterable[str] = (),
    stale_while_revalidate: Duration = 0,
    stale_if_error: Duration = 0,
) -> Callable[..., Awaitable[None]]:
    """Return a dependency that stores a route's successful responses.

    Use ``dependencies=[Depends(cached(ttl=60, tags=("product:{id}",)))]``. The middleware's rules
    decide which requests are looked up.

    Args:
        ttl: Seconds for which a response is fresh.
        tags: Tags for purging, with parameters of the route's path: ``product:{id}``.
        stale_while_revalidate: Seconds in which a stale response is used while it is revalidated
            in the background.
        stale_if_error: Seconds in which a stale response is used instead of an error.

    Raises:
        ConfigurationError: An argument is wrong.
    """
    stored = CachedAs(ttl, tags, stale_while_revalidate, stale_if_error)

    async def mark_response(request: Request, response: Response) -> None:
        del response  # see _no_decorator
        _mark(request, stored)

    return _no_decorator(mark_response, stored.name)


async def never_cached(request: Request, response: Response) -> None:
    """Keep a route's responses out of all caches: ``dependencies=[Depends(never_cached)]``.

    Args:
        request: The request, from FastAPI.
        response: The response, from FastAPI.
    """
    if _mark(request, starlette.never_cached).stream is None:  # no middleware sees the response
        response.headers["cache-control"] = "no-store"


def document_limits(app: Any) -> None:
    """Add the response 429 to the limited operations in a FastAPI application's OpenAPI document.

    An operation is limited if a limit is among its dependencies, or if a rule or the default limit
    of the application's middleware covers it, unless it is exempt. The response has the fields, and
    the body unless an exception handler or ``on_denied`` makes it. A 429 that an operation declares
    itself is kept. Call this function once, at any time: the document is made when it is first
    requested.

    Args:
        app: The FastAPI application.
    """
    describe: Callable[[], dict[str, Any]] = app.openapi

    def openapi() -> dict[str, Any]:
        known = app.openapi_schema
        described = describe()
        if described is not known:
            settings = [
                entry.cls(app, *entry.args, **entry.kwargs).runtime.settings
                for entry in app.user_middleware
                if Features.RATE_LIMIT in getattr(entry.cls, "features", Features(0))
            ]
            own_body = own_handler(app.exception_handlers, 429) is None
            own_body = own_body and all(each.on_denied is None for each in settings)
            document(described, app, settings, own_body=own_body)
        return described

    app.openapi = openapi


_RESOLVED_DEPENDENCIES = "upstash_middleware.resolved"
"""The scope's key for the values of dependencies that identify the client."""
_DECISIONS = "upstash_middleware.decisions"
"""The scope's key for the decisions of limits that are dependencies."""

_CREDENTIALS = {
    "fastapi.security.http.HTTPAuthorizationCredentials": "credentials",
    "fastapi.security.http.HTTPBasicCredentials": "username",
}
"""Value classes of FastAPI's security schemes, with the attribute that identifies the client."""


def _classes(value: object) -> Iterator[str]:
    return (f"{base.__module__}.{base.__qualname__}" for base in type(value).__mro__)


class _Resolved:
    """The extractor for a dependency's value, which FastAPI resolves before the limit."""

    def __init__(self, dependency: Any) -> None:
        self._dependency = dependency
        scheme = dependency.dependency
        self._is_secret = "fastapi.security.base.SecurityBase" in _classes(scheme)

    def __repr__(self) -> str:
        return repr(self._dependency)

    def __call__(self, request: HTTPRequest) -> Identifier | str | int | None:
        value: Any = request.native[_RESOLVED_DEPENDENCIES][self]
        if value is None or isinstance(value, Identifier | bool):
            return value
        if isinstance(value, str | int):
            secret = self._is_secret and value != ""
            return Identifier("id", str(value), secret=True) if secret else value
        if isinstance(value, UUID):
            return Identifier("user", str(value), secret=self._is_secret)
        if attribute := next(filter(None, map(_CREDENTIALS.get, _classes(value))), None):
            sent = str(getattr(value, attribute))
            return Identifier("id", sent, secret=True) if sent else None
        try:
            value = value.id
        except AttributeError:
            raise TypeError(
                f"{self._dependency!r} returned a {type(value).__name__}; it should return "
                "text, a whole number, a UUID, an Identifier, an object with an id, or None"
            ) from None
        return None if value is None else Identifier("user", str(value), secret=self._is_secret)


def _call(connection: HTTPConnection, decorator: Decorator) -> EndpointCall:
    endpoint = connection.scope.get("endpoint")
    call = EndpointCall(endpoint, endpoint, decorator)
    call.read((connection,), {})
    return call


def _mark(request: Request, decorator: Decorator) -> EndpointCall:
    call = _call(request, decorator)
    if (marking := decorator.begin(call)) is not None:
        call.enter(marking)
    return call


def _no_decorator(dependency: D, name: str) -> D:
    """Make Python's own error explain how to use a dependency that was used as a decorator.

    The error begins with the function's qualified name. FastAPI inspects the function's kind and
    signature, so no wrapper with a check works in all versions of FastAPI.
    """
    dependency.__qualname__ = (
        f"{name} is a dependency and no decorator; write dependencies=[Depends({name})] in the "
        f"route, the router or the application: {dependency.__name__}"
    )
    return dependency


_no_decorator(never_cached, "never_cached")


def _add_fields(pending: PendingExchange, response: Response) -> None:
    """Add a limit's fields to the response that FastAPI merges into the route's response.

    They replace the fields of an outer limit, because they include it.
    """
    before = getattr(response, "_headers", None)
    ours = before.ours if isinstance(before, _Headers) else ()
    present = [line for line in response.raw_headers if line not in ours]
    head = pending.head(ResponseHead(response.status_code or 200, headers_of(present)))
    added = head.headers.lowered()[len(present) :]
    response.raw_headers[:] = [*present, *added]
    response._headers = _Headers(response.raw_headers, added)  # noqa: SLF001 - Starlette creates it when it is first used


class _Headers(MutableHeaders):
    """A response's header fields; a field that the route's function sets replaces the limit's."""

    def __init__(self, raw: list[tuple[bytes, bytes]], ours: list[tuple[bytes, bytes]]) -> None:
        super().__init__(raw=raw)
        self.ours = ours

    def __setitem__(self, key: str, value: str) -> None:
        self._remove_ours(key)
        super().__setitem__(key, value)

    def append(self, key: str, value: str) -> None:
        self._remove_ours(key)
        super().append(key, value)

    def _remove_ours(self, key: str) -> None:
        if key.lower() in LIMIT_FIELDS:
            self.raw[:] = [line for line in self.raw if line not in self.ours]
            self.ours = []
