"""Django REST framework: throttle classes, and exceptions for denials.

Denials are raised as exceptions, so that the project's exception handler and the negotiated
renderer make the response. Only this module imports Django REST framework.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from rest_framework.exceptions import APIException, PermissionDenied, Throttled
from rest_framework.throttling import BaseThrottle

from upstash_middleware.core.ratelimit.decision import RETRY_UNAVAILABLE
from upstash_middleware.decorators import HandlerLimit, LimitFactory
from upstash_middleware.django.decorators import ViewCall
from upstash_middleware.django.requests import response_from
from upstash_middleware.django.signals import rate_limited

if TYPE_CHECKING:
    from django.http import HttpRequest
    from django.http.response import HttpResponseBase
    from rest_framework.request import Request
    from rest_framework.views import APIView

    from upstash_middleware.core.ratelimit import Decision
    from upstash_middleware.core.ratelimit.rules import AnyLimits
    from upstash_middleware.decorators import PendingExchange

__all__ = ["NotCounted", "RateLimitExceeded", "Throttle", "Unidentified", "denied", "throttle"]

_BODY_FIELDS = frozenset({"content-type", "content-length"})


class RateLimitExceeded(Throttled):
    """A limit has denied a request: 429. ``decision`` is the Decision."""

    def __init__(self, decision: Decision) -> None:
        super().__init__(decision.retry_after)
        self.decision = decision


class NotCounted(APIException):
    """A rule with ``on_error="closed"`` could not count a request: 503."""

    status_code: int = 503
    default_detail: str = "Requests cannot be counted at the moment."
    default_code: str = "temporary-reduced-capacity"
    wait: int = RETRY_UNAVAILABLE


class Unidentified(APIException):
    """A rule requires an identity, but the request has none: 401 (RFC 9110 §15.5.2)."""

    status_code: int = 401
    default_detail: str = "Authentication required."
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
    """A throttle class that uses this package's limits; made by ``throttle``."""

    limit: ClassVar[HandlerLimit]

    def allow_request(self, request: Request, view: APIView) -> bool:
        """Let a request pass, and add the limit's fields to its response.

        For a denial, this sends the signal ``rate_limited`` and raises RateLimitExceeded,
        NotCounted, Unidentified or PermissionDenied.
        """
        call = ViewCall(type(view), type(view), self.limit)
        call.read((request,), {})
        call.view_class = type(view)
        if (action := getattr(view, "action", None)) is not None:
            # Each action of a ViewSet has a separate quota.
            call.handler = call.wrapper = getattr(type(view), action)
            call.owner = type(view)
        pending = self.limit.begin(call)
        if pending is None:
            return True
        if pending.denies:
            decision = pending.exchange.decision
            own = response_from(pending.denial, without_body=True).headers.items()
            view.headers.update({k: v for k, v in own if k.lower() not in _BODY_FIELDS})
            rate_limited.send_robust(type(call.native), request=call.native, decision=decision)
            raise _exception_for(decision)
        call.enter(pending)
        _attach_when_finalized(call, view, pending)
        return True


class _Throttles(LimitFactory[type[Throttle]]):
    """Return a throttle class: ``throttle_classes = [throttle("5/minute", by=user)]``.

    The limit applies after authentication, so ``by=user`` is the authenticated user. It takes a
    separate round trip. Each view, and each action of a ViewSet, has a separate quota; with a
    ``name`` they share a quota. The view reads ``request.rate_limit``.
    """

    def _limit(self, limits: AnyLimits, **arguments: Any) -> type[Throttle]:
        return type("Throttle", (Throttle,), {"limit": HandlerLimit(limits, arguments)})


throttle: LimitFactory[type[Throttle]] = _Throttles()


def _attach_when_finalized(call: ViewCall, view: Any, pending: PendingExchange) -> None:
    """Attach a limit to the view's response, before those of earlier throttles."""
    attached: list[PendingExchange] = vars(view).setdefault("_upstash_attached", [])
    attached.append(pending)
    if len(attached) > 1:  # a view object serves one request
        return
    finalize = view.finalize_response

    def finalized(*args: Any, **kwargs: Any) -> HttpResponseBase:
        response: HttpResponseBase = finalize(*args, **kwargs)
        for each in reversed(attached):
            response = call.attach(each, response)
        return response

    view.finalize_response = finalized


@cache
def _denied_view() -> Any:
    # That module imports the configured throttle classes, which import this module.
    from rest_framework.views import APIView  # noqa: PLC0415

    class Denied(APIView):
        authentication_classes = ()
        permission_classes = ()
        throttle_classes = ()

        def perform_content_negotiation(self, request: Request, force: bool = True) -> Any:  # noqa: ARG002 - the base's
            return super().perform_content_negotiation(request, force=True)

        def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
            super().initial(request, *args, **kwargs)
            raise _exception_for(kwargs["decision"])

    return Denied.as_view()


def denied(request: HttpRequest, decision: Decision) -> HttpResponseBase:
    """Respond to a denial by the middleware as Django REST framework would.

    ``UPSTASH_MIDDLEWARE_DENIED_VIEW = "upstash_middleware.django.rest_framework.denied"``

    Args:
        request: The request, from the middleware.
        decision: The decision that denied it.
    """
    return _denied_view()(request, decision=decision)  # type: ignore[no-any-return]
