"""A denial as Django's response: this package's own, or that of a view that the project names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from django.conf import settings
from django.utils.module_loading import import_string

from upstash_middleware.django.signals import rate_limited
from upstash_middleware.django.translation import response_from
from upstash_middleware.events import UserCodeFailed

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponse
    from django.template.response import SimpleTemplateResponse

    from upstash_middleware.core.engine import Exchange
    from upstash_middleware.gateway import Gateway
    from upstash_middleware.messages import Response

DENIED_VIEW = "UPSTASH_MIDDLEWARE_DENIED_VIEW"
"""The setting that names a view ``(request, decision) -> HttpResponse``, by its dotted path."""


def is_for_the_project(exchange: Exchange) -> bool:
    """Whether a limit has stopped a request, and code of the project's is to hear of it.

    That is a view that it names, or receivers of the signal; neither belongs on an event loop.
    """
    return _is_denied(exchange) and (_view() is not None or rate_limited.has_listeners())


def _is_denied(exchange: Exchange) -> bool:
    return exchange.decision is not None and not exchange.decision.allowed


def _view() -> Any:
    return getattr(settings, DENIED_VIEW, None)


def denied_or_ready(request: HttpRequest, exchange: Exchange, gateway: Gateway) -> HttpResponse:
    """Return the response to a request for which an exchange has one ready.

    That is our own, and where a limit has stopped the request, what the project makes of it: the
    view that it names has its own status, and gets our fields where it has none of those names.
    A view that raises is told to the observers. The signal ``rate_limited`` is sent.
    """
    if _is_denied(exchange):
        rate_limited.send_robust(type(request), request=request, decision=exchange.decision)
    ready = cast("Response", exchange.response)
    own = response_from(ready, without_body=request.method == "HEAD")
    named = _view()
    if named is None or not _is_denied(exchange):
        return own
    try:
        view = import_string(named) if isinstance(named, str) else named
        response: HttpResponse = view(request, exchange.decision)
        if not getattr(response, "is_rendered", True):
            response = cast("SimpleTemplateResponse", response).render()
    except Exception as error:  # noqa: BLE001 - it is the project's, and the answer stands
        gateway.observe(UserCodeFailed(DENIED_VIEW, error))
        return own
    for name, value in own.headers.items():
        if name.lower() not in {"content-type", "content-length"}:
            response.headers.setdefault(name, value)
    return response
