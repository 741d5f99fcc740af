"""The middleware classes as Starlette's: they ask the application that stands in the scope."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from starlette.middleware.cors import CORSMiddleware

from upstash_middleware import asgi
from upstash_middleware.events import SettingDoubted, UserCodeFailed
from upstash_middleware.gateway import Halves
from upstash_middleware.handlers import any_exempt
from upstash_middleware.starlette.denying import RequestDenied, handled, own_handler
from upstash_middleware.starlette.routing import application_of, is_exempt_request

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Unpack

    from starlette.types import ASGIApp, Receive, Scope

    from upstash_middleware.core.ratelimit import Decision
    from upstash_middleware.gateway import Gateway
    from upstash_middleware.messages import Request, Response
    from upstash_middleware.settings import Arguments


_CORS_INSIDE = (
    "CORSMiddleware stands inside of the rate limit, so that browsers show a script of another "
    "origin no denial; add it after this one: what is added last is outermost"
)


class _AsksTheApplication:
    """A denial goes to the application's exception handler, and an exempt endpoint is free."""

    app: ASGIApp
    gateway: Gateway
    halves: ClassVar[Halves]

    def __init__(self, app: ASGIApp, **arguments: Unpack[Arguments]) -> None:
        super().__init__(app, **arguments)  # type: ignore[call-arg, misc]
        if Halves.RATE_LIMIT in self.halves and _answers_cors(app):
            self.gateway.observe(SettingDoubted("the order of middleware", _CORS_INSIDE))

    def exempting(self) -> Callable[[Request], bool]:
        """Return what tells whether the endpoint that a request goes to is exempt.

        It costs nothing in a process where none is.
        """
        return lambda request: (
            any_exempt() and is_exempt_request(request, application_of(request.native, self.app))
        )

    async def answer(
        self, scope: Scope, receive: Receive, response: Response, decision: Decision | None, /
    ) -> Response:
        """Return what the application's exception handler answers to a denial, if it has one.

        In FastAPI's and Starlette's own, which every application has, the response would lose
        what it says.
        """
        if decision is None or decision.allowed:
            return response
        handlers = getattr(application_of(scope, self.app), "exception_handlers", {})
        handler = own_handler(handlers, response.head.status)
        if handler is None:
            return response
        try:
            return await handled(handler, scope, receive, RequestDenied(response, decision))
        except Exception as error:  # noqa: BLE001 - it is the application's, and the answer stands
            self.gateway.observe(UserCodeFailed("the exception handler for a denial", error))
            return response


def _answers_cors(app: object) -> bool:
    """Whether CORSMiddleware stands inside, where it does not see our denials."""
    while app is not None:
        if isinstance(app, CORSMiddleware):
            return True
        app = getattr(app, "app", None)
    return False


class UpstashMiddleware(_AsksTheApplication, asgi.UpstashMiddleware):
    """Rate limit and response cache in one; a hit is charged to the limit."""


class RateLimitMiddleware(_AsksTheApplication, asgi.RateLimitMiddleware):
    """The rate limit alone; directly outside a CacheMiddleware both take one round trip."""
