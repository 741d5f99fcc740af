"""What is FastAPI's own: ``Depends(limit("5/minute"))`` for routes, routers and applications.

All else is Starlette's. Nothing here imports FastAPI: it reads what it is given.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, Unpack

from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from upstash_middleware.asgi import CacheHandle, CacheMiddleware
from upstash_middleware.asgi.middleware import PASSAGE
from upstash_middleware.asgi.protocol import headers_of, request_of
from upstash_middleware.core.engine import Exchange
from upstash_middleware.core.ratelimit import Decision
from upstash_middleware.errors import ConfigurationError
from upstash_middleware.gateway import Halves
from upstash_middleware.handler_caching import CachedAs
from upstash_middleware.handler_limits import TIGHTEST, HandlerLimit, LimitArguments, Place
from upstash_middleware.handlers import exempt, is_exempt
from upstash_middleware.messages import ResponseHead
from upstash_middleware.openapi import document
from upstash_middleware.starlette import (
    RateLimitMiddleware,
    RequestDenied,
    UpstashMiddleware,
    user,
)
from upstash_middleware.starlette.caching import mark
from upstash_middleware.starlette.denying import own_handler
from upstash_middleware.starlette.limiting import (
    counts,
    entered,
    gateway_of,
    prior_decision,
    show_failure,
)

__all__ = [
    "CacheHandle",
    "CacheMiddleware",
    "RateLimitMiddleware",
    "RequestDenied",
    "UpstashMiddleware",
    "cached",
    "document_limits",
    "exempt",
    "limit",
    "never_cached",
    "user",
]


def limit(
    limits: Any, **arguments: Unpack[LimitArguments]
) -> Callable[..., AsyncIterator[Decision | None]]:
    """Return a dependency that limits requests, and gives who asks for it the Decision.

    ``Annotated[Decision, Depends(limit("5/minute"))]`` in a route, ``dependencies=[…]`` of a
    route, a router or the application. ``limits`` and the arguments are those of RateLimitRule.
    Each route's function counts by itself, under its qualified name; with a ``name`` all count
    together. What is above the quota raises RequestDenied. A dependency sees no response: where
    an UpstashMiddleware or one of its halves stands outside, that adds the fields to each
    response and settles; else a function that returns a Response of its own goes without the
    fields, and ``settle`` is refused. Raises ConfigurationError.
    """
    handler_limit = HandlerLimit(limits, arguments)

    async def rate_limit(
        connection: HTTPConnection, response: Response
    ) -> AsyncIterator[Decision | None]:
        scope = connection.scope
        gateway, endpoint = gateway_of(scope), scope.get("endpoint")
        if not counts(scope, gateway) or is_exempt(endpoint):
            yield prior_decision(scope)
            return
        passage = scope.get(PASSAGE)
        if passage is None:
            _refuse_settling(handler_limit)
        begun = await handler_limit.abegin(
            gateway, Place(endpoint), request_of(scope), prior_decision(scope)
        )
        exchange = entered(scope, begun)
        if passage is not None:
            passage.join(gateway, exchange)
            yield begun.decision
            return
        _add_fields(exchange, response)
        complete = False
        try:
            yield begun.decision
            complete = True
        except BaseException as error:
            show_failure(exchange, error)
            raise
        finally:
            await gateway.afinish(exchange, complete=complete)

    return rate_limit


def cached(
    ttl: int,
    *,
    tags: Iterable[str] = (),
    stale_while_revalidate: int = 0,
    stale_if_error: int = 0,
) -> Callable[[Request], Awaitable[None]]:
    """Return a dependency that has a route's successful responses stored, as a CacheRule has.

    ``dependencies=[Depends(cached(ttl=60, tags=("product:{id}",)))]``; see ``cached`` of
    ``upstash_middleware.starlette``. Raises ConfigurationError.
    """
    cached_as = CachedAs(ttl, tags, stale_while_revalidate, stale_if_error)

    async def cached_as_said(request: Request) -> None:
        mark(request.scope, cached_as, request.scope.get("endpoint"))

    return cached_as_said


async def never_cached(request: Request) -> None:
    """Have a route's responses stored nowhere: ``dependencies=[Depends(never_cached)]``."""
    mark(request.scope, None, request.scope.get("endpoint"))


def document_limits(app: Any) -> None:
    """Have a FastAPI application's OpenAPI document tell which operations may answer 429.

    Those are the ones with a limit among their dependencies, and those that a rule of the
    application's UpstashMiddleware or RateLimitMiddleware covers, or its default limit; not the
    exempt ones. The answer comes with its fields and its body; where the application makes the
    body itself, by an exception handler or ``on_denied``, without one. What an operation declares
    for 429 stays. To be called once, at any place: the document is made when it is asked for.
    """
    describe: Callable[[], dict[str, Any]] = app.openapi

    def openapi() -> dict[str, Any]:
        known = app.openapi_schema
        described = describe()
        if described is not known:
            settings = [
                entry.cls(app, *entry.args, **entry.kwargs).gateway.settings
                for entry in app.user_middleware
                if Halves.RATE_LIMIT in getattr(entry.cls, "halves", Halves(0))
            ]
            own = own_handler(app.exception_handlers, 429) is None
            own = own and all(each.on_denied is None for each in settings)
            document(described, app, settings, own)
        return described

    app.openapi = openapi


def _add_fields(exchange: Exchange, response: Response) -> None:
    """Add the limit's fields to the response that FastAPI merges into the route's."""
    present = headers_of(response.raw_headers).without(*TIGHTEST)
    head = exchange.head(ResponseHead(response.status_code or 200, present))
    if isinstance(head, ResponseHead):  # a limit replaces no response
        response.raw_headers[:] = [(name.lower(), value) for name, value in head.headers.raw]


def _refuse_settling(limit: HandlerLimit) -> None:
    if limit.rule.settle is not None:
        raise ConfigurationError(
            f"{limit.rule.setting}.settle: a dependency does not see the response; add "
            "UpstashMiddleware to the application (with default_limit=None, if it is to limit "
            "nothing itself), which shows it"
        )
