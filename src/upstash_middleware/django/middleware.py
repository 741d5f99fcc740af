"""The middleware classes: translate in, ask the gateway, translate out; sync and async.

``finish`` runs when the request is closed. A handler closes it with whichever response it has
sent in the end, after the last byte, and also where a middleware further out has put another
response in place of ours, as ConditionalGetMiddleware does with its 304. Under ASGI Django
closes in a thread, so ``finish`` is the gateway's for threads there too.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, cast

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest

from upstash_middleware.django.configuration import Configured, limit_through, purge_through
from upstash_middleware.django.denying import is_for_the_project
from upstash_middleware.django.passage import Passage, handed_over
from upstash_middleware.django.refreshing import is_outermost, refresh
from upstash_middleware.django.translation import request_from
from upstash_middleware.errors import ConfigurationError
from upstash_middleware.gateway import Halves

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.http.response import HttpResponseBase

    from upstash_middleware.core.engine import Exchange
    from upstash_middleware.core.ratelimit import Decision
    from upstash_middleware.gateway import Gateway
    from upstash_middleware.messages import Request


class RateLimitedRequest(HttpRequest):
    """A request as views get it below a rate limit; for their annotations."""

    rate_limit: Decision | None
    """What was decided; None where no limit applies, or all is switched off."""


class Middleware:
    """What the three classes share; they differ in the halves that they switch on."""

    sync_capable = True
    async_capable = True
    halves: ClassVar[Halves]

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        """Take the next in line, as Django gives it.

        Raises ImproperlyConfigured where the setting UPSTASH_MIDDLEWARE is wrong.
        """
        self._get_response = get_response
        self._refreshes = is_outermost(type(self), RateLimitMiddleware)
        self.configured: Configured = Configured(self.halves, refreshes=self._refreshes)
        try:
            self.configured.gateway()
        except ConfigurationError as error:
            raise ImproperlyConfigured(str(error)) from error
        if Halves.CACHE in self.halves:
            purge_through(self.configured)
        self._limits = Halves.RATE_LIMIT in self.halves
        if self._limits:
            limit_through(self.configured)
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(cast("Any", self))

    def __call__(self, request: HttpRequest) -> Any:
        """Answer the request, or pass it on; on an event loop the result is to be awaited."""
        if self._is_async:
            return self._acall(request)
        if (gateway := self._switched_on(request)) is None:
            return self._get_response(request)
        asked, exchange = handed_over(request, gateway) or self._begun(request, gateway)
        passage = self._passage(request, asked, gateway, exchange)
        if (ready := passage.ready()) is not None:
            return ready
        try:
            with passage.forwarding():
                response = self._get_response(request)
        except BaseException:
            gateway.finish(exchange, complete=False)
            raise
        answer = passage.answer(response)
        if passage.ends_here:
            passage.finish()
        return answer

    async def _acall(self, request: HttpRequest) -> HttpResponseBase:
        if (gateway := self._switched_on(request)) is None:
            return cast("HttpResponseBase", await self._get_response(request))
        asked, exchange = handed_over(request, gateway) or await self._abegun(request, gateway)
        passage = self._passage(request, asked, gateway, exchange)
        if is_for_the_project(exchange):
            return cast("HttpResponseBase", await sync_to_async(passage.ready)())
        if (ready := passage.ready()) is not None:
            return ready
        try:
            with passage.forwarding():
                response = await self._get_response(request)
        except BaseException:
            await gateway.afinish(exchange, complete=False)
            raise
        answer = passage.answer(response)
        if passage.ends_here:
            await passage.afinish()
        return answer

    def _switched_on(self, request: HttpRequest) -> Gateway | None:
        """Return the gateway, or None where it is off; handlers can read the decision anyway."""
        if self._limits:
            request.rate_limit = None  # type: ignore[attr-defined] # see RateLimitedRequest
        gateway = self.configured.gateway()
        return gateway if gateway.enabled else None

    def _begun(self, request: HttpRequest, gateway: Gateway) -> tuple[Request, Exchange]:
        asked = request_from(request)
        return asked, gateway.begin(asked, self._directly_inside())

    async def _abegun(self, request: HttpRequest, gateway: Gateway) -> tuple[Request, Exchange]:
        asked = request_from(request)
        return asked, await gateway.abegin(asked, self._directly_inside())

    def _passage(
        self, request: HttpRequest, asked: Request, gateway: Gateway, exchange: Exchange
    ) -> Passage:
        if self._limits:
            request.rate_limit = exchange.decision  # type: ignore[attr-defined]
        passage = Passage(request, asked, gateway, exchange)
        if self._refreshes:
            passage.refresh = partial(refresh, gateway, self._get_response)
        return passage

    def _directly_inside(self) -> Gateway | None:
        return None


class UpstashMiddleware(Middleware):
    """Rate limiting and response caching; the limit stands outside the cache.

    Where both are wanted but in different places, a limit by user inside authentication and the
    cache outside it, take the two halves. The decision stands in ``request.rate_limit``.
    """

    halves = Halves.BOTH


class RateLimitMiddleware(Middleware):
    """Rate limiting alone; directly above CacheMiddleware the two share one round trip.

    The decision stands in ``request.rate_limit``.
    """

    halves = Halves.RATE_LIMIT

    def _directly_inside(self) -> Gateway | None:
        # Django hands each middleware on wrapped, by convert_exception_to_response.
        inside = getattr(self._get_response, "__wrapped__", self._get_response)
        return inside.configured.gateway() if isinstance(inside, CacheMiddleware) else None


class CacheMiddleware(Middleware):
    """Response caching alone; its place is above what makes pages personal, as sessions do."""

    halves = Halves.CACHE
