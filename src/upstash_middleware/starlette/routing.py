"""Which endpoint a request will be routed to, asked before the application routes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.routing import Match

from upstash_middleware import asgi
from upstash_middleware.handlers import is_exempt

if TYPE_CHECKING:
    from starlette.types import Scope

    from upstash_middleware.messages import Request


def is_exempt_request(request: Request, app: object) -> bool:
    """Whether the endpoint that an application routes a request to is marked by ``exempt``."""
    return is_exempt(endpoint_of(request.native, app))


def application_of(scope: Scope, inside: object) -> object:
    """Return the application that a request goes to, as far as middleware can see it.

    That is the one whose middleware it is, or one that it was put around.
    """
    app: object = scope.get("app", inside)
    while isinstance(app, asgi.RateLimitMiddleware | asgi.CacheMiddleware):
        app = app.app
    return app


def endpoint_of(scope: Scope, app: object) -> object | None:
    """Return the endpoint, through routers, mounts and hosts; None where no route matches."""
    endpoint: object | None = None
    routes: Any = getattr(app, "routes", None)
    while routes:
        scope, endpoint, routes = _matched(routes, scope)
    return endpoint


def _matched(routes: Any, scope: Scope) -> tuple[Scope, object | None, Any]:
    for candidate in routes:
        route = getattr(candidate, "starlette_route", None) or candidate
        match, child = route.matches(scope)
        if match is Match.FULL:
            return {**scope, **child}, child.get("endpoint"), _routes_inside(route)
    return scope, None, None


def _routes_inside(route: Any) -> Any:
    """Return the routes of a mount or host, or those of a router that FastAPI has included."""
    if (included := getattr(route, "effective_candidates", None)) is not None:
        return included()
    return getattr(route, "routes", None)
