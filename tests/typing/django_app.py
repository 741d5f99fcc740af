"""Django: views under decorators, the request that they read, purging, and the signal."""

from __future__ import annotations

from typing import Any, assert_type

from django.dispatch import receiver
from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.utils.decorators import method_decorator
from django.views import View
from rest_framework.views import APIView

from upstash_middleware import Decision, HTTPRequest
from upstash_middleware.django import (
    RateLimitedRequest,
    apurge,
    cached,
    exempt,
    limit,
    never_cached,
    purge,
    user,
)
from upstash_middleware.django.rest_framework import Throttle, throttle
from upstash_middleware.django.signals import rate_limited


def session(request: HTTPRequest) -> str | None:
    native: HttpRequest = request.native
    assert_type(native, HttpRequest)
    return native.session.session_key


@limit("5/minute", by=session)
def visited(request: HttpRequest) -> HttpResponse:
    return HttpResponse()


@limit("5/minute", by="post:username")
def login(request: HttpRequest) -> HttpResponse:
    return HttpResponse()


@limit("5/minute", by=user)
def tea(request: RateLimitedRequest, size: int) -> HttpResponse:
    assert_type(request.rate_limit, Decision)
    return HttpResponse(str(size))


@limit("5/minute")
async def cake(request: HttpRequest) -> HttpResponse:
    return HttpResponse()


@exempt
@cached(60, tags=("page",))
def page(request: HttpRequest) -> HttpResponse:
    return HttpResponse()


async def calls(request: HttpRequest, limited: RateLimitedRequest) -> None:
    assert_type(tea(limited, size=1), HttpResponse)
    assert_type(await cake(request), HttpResponse)
    assert_type(page(request), HttpResponse)
    assert_type(never_cached(page)(request), HttpResponse)
    tea(limited, size="large")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


urlpatterns = [path("cake", cake), path("page", page)]


@method_decorator(limit("5/minute"), name="dispatch")
class Shop(View): ...


class Teas(APIView):
    throttle_classes = (throttle("5/minute", by=user),)


assert_type(throttle("5/minute"), type[Throttle])
throttle("5/minute", path="/tea")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


@receiver(rate_limited)
def note(sender: type[HttpRequest], request: HttpRequest, **kwargs: Any) -> None: ...


async def edited() -> None:
    assert_type(purge("/tea", tags=["tea"], everything=False, soft=True), None)
    assert_type(await apurge(tags=("tea",)), None)
    purge(7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


limit("5/minute", path="/tea")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
