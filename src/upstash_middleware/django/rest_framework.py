"""Limits in Django REST framework's own manner: throttle classes, and denials as its exceptions.

Denials are raised, so that the project's exception handler and the negotiated renderer answer
them. Only this module imports Django REST framework.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from rest_framework.exceptions import APIException, PermissionDenied, Throttled
from rest_framework.throttling import BaseThrottle
from rest_framework.views import APIView

from upstash_middleware.core.ratelimit.denial import RETRY_UNAVAILABLE
from upstash_middleware.django.configuration import gateway_for_handlers
from upstash_middleware.django.limiting import finish_when_closed, is_free, shown
from upstash_middleware.django.signals import rate_limited
from upstash_middleware.django.translation import request_from, response_from
from upstash_middleware.handler_limits import HandlerLimit, Place

if TYPE_CHECKING:
    from typing import Unpack

    from django.http import HttpRequest
    from django.http.response import HttpResponseBase
    from rest_framework.request import Request

    from upstash_middleware.core.engine import Exchange
    from upstash_middleware.core.ratelimit import Decision
    from upstash_middleware.gateway import Gateway
    from upstash_middleware.handler_limits import LimitArguments

__all__ = ["NotCounted", "RateLimitExceeded", "Throttle", "Unidentified", "denied", "throttle"]

_OF_THE_BODY = frozenset({"content-type", "content-length"})


class RateLimitExceeded(Throttled):
    """A limit has stopped a request: 429. ``decision`` tells which, and for how long."""

    def __init__(self, decision: Decision) -> None:
        super().__init__(decision.retry_after)
        self.decision = decision


class NotCounted(APIException):
    """A rule that lets nothing pass uncounted, while nothing can be counted: 503."""

    status_code: int = 503
    default_detail: str = "Requests cannot be counted at the moment."
    default_code: str = "temporary-reduced-capacity"
    wait: int = RETRY_UNAVAILABLE


class Unidentified(APIException):
    """A rule demands an identity that the request does not have: 401 (RFC 9110 §15.5.2)."""

    status_code: int = 401
    default_detail: str = "Say who you are."
    default_code: str = "not_authenticated"

    def __init__(self, challenge: str) -> None:
        super().__init__()
        self.auth_header = challenge


def _exception_for(decision: Decision) -> APIException:
    match decision.settled_by:
        case "closed":
            return NotCounted()
        case "deny list":
            return PermissionDenied("Access is denied.")
        case "challenge":
            return Unidentified(decision.challenge or "")
        case _:
            return RateLimitExceeded(decision)


class Throttle(BaseThrottle):
    """A throttle class that counts by this package; made by ``throttle``."""

    limit: ClassVar[HandlerLimit]

    def allow_request(self, request: Request, view: APIView) -> bool:
        """Let a request pass, with the limit's fields on its response.

        Where not, the signal ``rate_limited`` is sent. Raises RateLimitExceeded, NotCounted,
        Unidentified or PermissionDenied.
        """
        asked: Any = request._request  # noqa: SLF001 - Django REST framework has no other name
        gateway, place = gateway_for_handlers(), _place(view)
        prior = asked.rate_limit = getattr(asked, "rate_limit", None)
        if not gateway.enabled or is_free(place.handler, place, asked):
            return True
        begun = self.limit.begin(gateway, place, request_from(asked), prior)
        asked.rate_limit = begun.decision
        exchange = begun.exchange
        if exchange.response is not None and exchange.decision is not None:
            own = response_from(exchange.response, without_body=True).headers.items()
            view.headers.update({k: v for k, v in own if k.lower() not in _OF_THE_BODY})
            rate_limited.send_robust(type(asked), request=asked, decision=exchange.decision)
            raise _exception_for(exchange.decision)
        finish_when_closed(asked, gateway, exchange)
        _show_when_finalised(view, gateway, exchange)
        return True


def throttle(limits: Any, **arguments: Unpack[LimitArguments]) -> type[Throttle]:
    """Return a throttle class: ``throttle_classes = [throttle("5/minute", by=user)]``.

    ``limits`` and the arguments are those of RateLimitRule. It stands behind authentication, so
    ``by=user`` is whom that has found, and takes a round trip of its own. Each view, and each
    action of a ViewSet, counts by itself; with a ``name`` all of them count together. The view
    reads ``request.rate_limit``. Raises ConfigurationError.
    """
    return type("Throttle", (Throttle,), {"limit": HandlerLimit(limits, arguments)})


def _place(view: APIView) -> Place:
    """Return what counts by itself: an action of a ViewSet, else the view."""
    action: str | None = getattr(view, "action", None)
    if action is None:  # the class stands for the function that @api_view has made it of
        return Place(type(view))
    return Place(getattr(type(view), action), type(view))


def _show_when_finalised(view: Any, gateway: Gateway, exchange: Exchange) -> None:
    """Show an exchange whatever the view's request is answered with; a view serves one."""
    finalise = view.finalize_response

    def finalised(*args: Any, **kwargs: Any) -> HttpResponseBase:
        return shown(gateway, exchange, finalise(*args, **kwargs))

    view.finalize_response = finalised


class _Denied(APIView):
    """Answers a request that something further out has stopped."""

    authentication_classes = ()
    permission_classes = ()
    throttle_classes = ()

    def perform_content_negotiation(self, request: Request, force: bool = True) -> Any:  # noqa: ARG002 - the base's
        return super().perform_content_negotiation(request, force=True)

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        raise _exception_for(kwargs["decision"])


def denied(request: HttpRequest, decision: Decision) -> HttpResponseBase:
    """Answer a denial by the middleware as Django REST framework would.

    ``UPSTASH_MIDDLEWARE_DENIED_VIEW = "upstash_middleware.django.rest_framework.denied"``
    """
    return _Denied.as_view()(request, decision=decision)
