"""RFC 5861 §3: a background revalidation's request and context have nothing of the visitor."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from asgiref.sync import sync_to_async
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpRequest, HttpResponse
from django.middleware.security import SecurityMiddleware
from django.test import Client, override_settings
from django.urls import path, reverse

from tests.asgi.fakes import REQUEST_BODY, http_scope
from tests.wsgi.fakes import environ_of, served
from upstash_middleware import CacheRule
from upstash_middleware.django.middleware import at_end

if TYPE_CHECKING:
    from upstash_middleware.local import LocalUpstash

MAPPING = {
    "cache": [CacheRule("/{rest:path}", ttl=10, stale_while_revalidate=60, ignore_query=("who",))],
    "default_limit": "9/minute",
    "deadline": 20.0,
    "cache_deadline": 20.0,
}
visitor: ContextVar[str] = ContextVar("visitor", default="nobody")


class Named:
    """A URL configuration whose only view has a name."""

    def __init__(self, view: Any) -> None:
        self.urlpatterns = [path("tea", view, name="tea")]


class OwnSecurity(SecurityMiddleware):
    """Middleware of a project, which may do more."""


class Seen:
    """Remembers each request with what was around it."""

    def __init__(self) -> None:
        self.requests: list[HttpRequest] = []
        self.variables: list[str] = []
        self.urls: list[str] = []

    def view(self, request: HttpRequest) -> HttpResponse:
        self.requests.append(request)
        self.variables.append(visitor.get())
        self.urls.append(reverse("tea"))
        return HttpResponse("page")

    async def async_view(self, request: HttpRequest) -> HttpResponse:
        return await sync_to_async(self.view)(request)


def project(view: Any, *above: str) -> Any:
    return override_settings(
        MIDDLEWARE=[
            *above,
            "upstash_middleware.django.RateLimitMiddleware",
            "upstash_middleware.django.CacheMiddleware",
        ],
        ROOT_URLCONF=Named(view),
        UPSTASH_MIDDLEWARE=MAPPING,
    )


class Staying:
    """A client that stays until it is answered."""

    def __init__(self) -> None:
        self._messages = [REQUEST_BODY]

    async def receive(self) -> dict[str, Any]:
        if not self._messages:
            await anyio.sleep_forever()
        return self._messages.pop()


async def ignore(_: Any) -> None:
    """Take what the application sends."""


def check(seen: Seen) -> None:
    """Check the second request that was seen, which is a revalidation."""
    first, second = seen.requests
    assert first.META["REMOTE_ADDR"]
    assert second.META["REMOTE_ADDR"] == ""
    assert second.META["QUERY_STRING"] == "size=2"
    assert not second.COOKIES
    assert {name: value for name, value in second.headers.items() if value} == {
        "Host": "shop.example"
    }
    assert second.rate_limit.settled_by == "unchecked"  # type: ignore[attr-defined]
    assert seen.variables == ["ada", "nobody"]
    assert seen.urls == ["/shop/tea"] * 2, "with the site's prefix"
    assert "bob" not in repr(second.META)


def test_its_request_and_its_context_variables_are_nobodys(upstash: LocalUpstash):
    seen = Seen()
    with project(seen.view), override_settings(FORCE_SCRIPT_NAME="/shop"):
        handler = WSGIHandler()
        for name in ("ada", "bob"):
            visitor.set(name)
            extras = {"REMOTE_ADDR": f"address of {name}", "SSL_CLIENT_S_DN": name}
            cookie = {} if name == "ada" else {"HTTP_COOKIE": f"name={name}"}
            query = {"QUERY_STRING": f"who={name}&size=2", "HTTP_X_ANYTHING": name}
            served(handler, environ_of(path="/tea", **extras, **cookie, **query))
            upstash.advance(20)
    visitor.set("nobody")
    check(seen)


@pytest.mark.parametrize(
    ("above", "in_background"),
    [
        ("django.middleware.security.SecurityMiddleware", True),
        ("django.middleware.clickjacking.XFrameOptionsMiddleware", True),
        ("django.middleware.common.CommonMiddleware", False),
        (f"{__name__}.OwnSecurity", False),
    ],
)
def test_middleware_above_that_leaves_requests_as_they_are_prevents_none(
    upstash: LocalUpstash, above: str, *, in_background: bool
):
    """SecurityMiddleware is above in the documented order. Other middleware may add to requests."""
    seen = Seen()
    with project(seen.view, above):
        handler = WSGIHandler()
        environ = {"path": "/tea", "REMOTE_ADDR": "192.0.2.7"}
        served(handler, environ_of(**environ))
        upstash.advance(20)
        answer = served(handler, environ_of(**environ))
    assert len(seen.requests) == 2
    assert ("; hit" in (answer.field("cache-status") or "")) is in_background
    assert (seen.requests[1].META["REMOTE_ADDR"] == "") is in_background


@pytest.mark.anyio
async def test_under_asgi_too(upstash: LocalUpstash):
    seen = Seen()
    with project(seen.async_view), override_settings(FORCE_SCRIPT_NAME="/shop"):
        handler = ASGIHandler()
        for name in ("ada", "bob"):
            visitor.set(name)
            headers = [(b"host", b"shop.example"), (b"x-anything", name.encode())]
            headers += [] if name == "ada" else [(b"cookie", b"name=bob")]
            query = f"who={name}&size=2".encode()
            scope = {"path": "/tea", "query_string": query, "headers": headers}
            whole = http_scope(**scope, client=(f"address of {name}", 1))
            await handler(whole, Staying().receive, ignore)
            upstash.advance(20)
    visitor.set("nobody")
    check(seen)


def test_a_page_for_a_user_whom_the_server_has_authenticated_is_sent_to_nobody_else(
    upstash: LocalUpstash,
):
    """REMOTE_USER (RFC 3875 §4.1.11), as Django's RemoteUserMiddleware reads it."""

    def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse(request.META.get("REMOTE_USER", "nobody"))

    with project(view):
        answer = Client(REMOTE_USER="ada").get("/tea")
        assert "request with Remote-User" in answer["Cache-Status"]
        assert Client().get("/tea").content == b"nobody"


def test_a_file_that_does_not_close_prevents_no_revalidation():
    class WithFile(HttpRequest):
        def close(self) -> None:
            raise OSError("no space left")

    request, done = WithFile(), list[str]()
    at_end(request, lambda: done.append("finished"), lambda: done.append("revalidated"))
    with pytest.raises(OSError, match="no space left"):
        request.close()
    assert done == ["finished", "revalidated"]
