"""The middleware classes of WSGI: a request in, the gateway, the application's response out.

How an environ reads as a Request is in ``environ``, how a response passes is in ``passage``; no
framework's name stands here.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from upstash_middleware.events import UserCodeFailed
from upstash_middleware.gateway import Gateway, Halves
from upstash_middleware.wsgi.environ import forwarded, refresh_environ, request_of, to_nobody
from upstash_middleware.wsgi.passage import Passage

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Unpack
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from upstash_middleware.core.engine import Exchange
    from upstash_middleware.core.ratelimit import Decision
    from upstash_middleware.messages import Request, Response
    from upstash_middleware.settings import Arguments

RATE_LIMIT_KEY = "upstash_middleware.rate_limit"
CACHE_KEY = "upstash_middleware.cache"
_HANDED_KEY = "upstash_middleware.handed"


class Middleware:
    """A gateway around a WSGI application; the public classes differ in their gateway only.

    The application finds the rate limit's decision, or None, at
    ``environ["upstash_middleware.rate_limit"]``, and purges what is stored by
    ``environ["upstash_middleware.cache"].purge("/products/7", tags=("product",))``.
    """

    def __init__(self, app: WSGIApplication, gateway: Gateway) -> None:
        self.app = app
        self.gateway = gateway
        self._limits = Halves.RATE_LIMIT in gateway.halves
        self._caches = Halves.CACHE in gateway.halves

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request, by the application or in its place.

        Raises MissingCredentials, and what the application raises.
        """
        if self._limits:
            environ.setdefault(RATE_LIMIT_KEY, None)
        if self._caches:
            environ[CACHE_KEY] = self.gateway
        if not self.gateway.enabled:
            return self.app(environ, start_response)
        request, exchange = self._handed(environ) or self._begun(environ)
        passage = Passage(self.gateway, exchange, request.method, start_response)
        try:
            if exchange.response is not None:
                if (refresh := exchange.take_refresh()) is not None:
                    passage.then = partial(self._refresh, environ, refresh)
                passage.give(self.answer(environ, exchange.response, exchange.decision))
            else:
                environ = _shown(environ, request, exchange)
                passage.relay(self.app(environ, passage.start_response))
        except Exception as error:
            if not passage.stand_in(error):
                passage.close()
                raise
        except BaseException:
            passage.close()
            raise
        return passage

    def answer(
        self, _environ: WSGIEnvironment, response: Response, _decision: Decision | None, /
    ) -> Response:
        """Return what to send where this package has a response: here, that one."""
        return response

    def _refresh(self, environ: WSGIEnvironment, refresh: Exchange) -> None:
        """Ask the application anew for what was just sent stale, in nobody's name."""
        passage = Passage(self.gateway, refresh, refresh.request.method, to_nobody)
        try:
            passage.relay(
                self.app(refresh_environ(environ, refresh.request), passage.start_response)
            )
            for _piece in passage:
                pass
        except Exception as error:  # noqa: BLE001 - the client has its response
            self.gateway.observe(UserCodeFailed("background refresh", error))
        finally:
            passage.close()

    def _handed(self, environ: WSGIEnvironment) -> tuple[Request, Exchange] | None:
        """Take over what a rate limit directly outside has found out in its own round trip."""
        handed: tuple[Request, Exchange] | None = environ.pop(_HANDED_KEY, None)
        if handed is None:
            return None
        request, outer = handed
        if outer.inner is None or outer.inner.engine is not self.gateway.engine:
            return None
        inner = outer.take_inner()
        return None if inner is None else (request, inner)

    def _begun(self, environ: WSGIEnvironment) -> tuple[Request, Exchange]:
        request = request_of(environ)
        return request, self.gateway.begin(request, self._directly_inside())

    def _directly_inside(self) -> Gateway | None:
        # Any other pair must not be joined: what a limit denies, or a hit answers, asks no further.
        if self.gateway.halves is not Halves.RATE_LIMIT:
            return None
        inside: object = self.app
        # A Flask object, and our extension for it, call what stands at this name at the time.
        while (called := getattr(inside, "wsgi_app", None)) is not None:
            inside = called
        if isinstance(inside, Middleware) and inside.gateway.halves is Halves.CACHE:
            return inside.gateway
        return None


class UpstashMiddleware(Middleware):
    """Rate limit and response cache in one; a hit is charged to the limit."""

    def __init__(self, app: WSGIApplication, **arguments: Unpack[Arguments]) -> None:
        """Wrap ``app``. Raises ConfigurationError, which names the setting that is wrong."""
        super().__init__(app, Gateway.of(arguments, Halves.BOTH, refreshes=True))


class RateLimitMiddleware(Middleware):
    """The rate limit alone; directly outside a CacheMiddleware both take one round trip."""

    def __init__(self, app: WSGIApplication, **arguments: Unpack[Arguments]) -> None:
        """Wrap ``app``. Raises ConfigurationError, which names the setting that is wrong."""
        super().__init__(app, Gateway.of(arguments, Halves.RATE_LIMIT, refreshes=True))


class CacheMiddleware(Middleware):
    """The response cache alone; outside a RateLimitMiddleware its hits are not charged."""

    def __init__(self, app: WSGIApplication, **arguments: Unpack[Arguments]) -> None:
        """Wrap ``app``. Raises ConfigurationError, which names the setting that is wrong."""
        super().__init__(app, Gateway.of(arguments, Halves.CACHE, refreshes=True))


def _shown(environ: WSGIEnvironment, request: Request, exchange: Exchange) -> WSGIEnvironment:
    """Return the environ as the application shall see it."""
    if exchange.decision is not None:
        environ[RATE_LIMIT_KEY] = exchange.decision
    if exchange.inner is not None:
        environ[_HANDED_KEY] = request, exchange
    if exchange.request is request:
        return environ
    return forwarded(environ, request.headers, exchange.request.headers)
