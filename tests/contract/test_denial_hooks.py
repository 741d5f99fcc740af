"""The application's own words for a denial: each kind of callable works, and no mistake is a 500.

``on_denied`` in every framework and in front of handlers; exception handlers of Starlette and
Flask; the view that a Django project names.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from django.http import HttpResponse, StreamingHttpResponse
from django.test import override_settings
from django.views import View
from flask import Flask
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from tests.contract.conftest import GUARDS
from tests.contract.neutral import Reply, Seen
from upstash_middleware import flask, starlette

if TYPE_CHECKING:
    from tests.contract.conftest import Guarded, Serve
    from upstash_middleware import Decision, HTTPRequest
    from upstash_middleware.local import LocalUpstash

Words = tuple[int, dict[str, str], str]
NOT_OF_REST_FRAMEWORK = [name for name in GUARDS if not name.startswith("rest-framework")]
"""Its own exception handler words what a throttle denies."""
WORDS: Words = (429, {"X-Own": "yes"}, "slow down")


def plain(_: Seen) -> Reply:
    return Reply(b"page")


def words(_request: HTTPRequest, _decision: Decision) -> Words:
    return WORDS


async def words_async(_request: HTTPRequest, _decision: Decision) -> Words:
    return WORDS


class Sync:
    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def __call__(self, *_: Any, **__: Any) -> Any:
        return self.answer


class Async(Sync):
    async def __call__(self, *_: Any, **__: Any) -> Any:
        return self.answer


def raising(*_: Any, **__: Any) -> Any:
    raise KeyError("template")


async def raising_async(*_: Any, **__: Any) -> Any:
    raise KeyError("template")


KINDS: dict[str, Any] = {
    "function": words,
    "async function": words_async,
    "object": Sync(WORDS),
    "object with async __call__": Async(WORDS),
    "partial": functools.partial(words),
    "async partial": functools.partial(words_async),
}
MISTAKES: dict[str, Any] = {
    "raises": raising,
    "async, raises": raising_async,
    "text": Sync("slow down"),
    "async text": Async("slow down"),
    "dict": Sync({"detail": "slow down"}),
    "pair": Sync((429, {})),
    "status as text": Sync(("429", {}, "")),
    "status of no response": Sync((100, {}, "")),
    "status as truth": Sync((True, {}, "")),
    "no fields": Sync((429, None, "")),
    "no body": Sync((429, {}, None)),
    "number as body": Sync((429, {}, 12)),
    "number as value": Sync((429, {"X-Own": 5}, "")),
    "line break in a value": Sync((429, {"X-Own": "yes\r\nSet-Cookie: a=b"}, "")),
    "no name": Sync((429, {"": "yes"}, "")),
    "space in a name": Sync((429, {"X Own": "yes"}, "")),
    "characters beyond Latin-1": Sync((429, {"X-Own": "naïve ☕"}, "")),
}


def denied_by(served: Any) -> Any:
    first, second = (served.request("GET", "/page") for _ in range(2))
    assert first.status == 200
    return second


def check_words(answer: Any) -> None:
    assert (answer.status, answer.body) == (429, b"slow down")
    assert answer.header("x-own") == "yes"
    assert int(answer.header("retry-after") or 0) > 0


def check_own(answer: Any) -> None:
    assert answer.status == 429
    assert answer.header("content-type") == "application/problem+json"
    assert int(answer.header("retry-after") or 0) > 0
    assert answer.header("x-own") is None


@pytest.mark.parametrize("kind", KINDS)
def test_on_denied_may_be_any_kind_of_callable(serve: Serve, kind: str):
    layer = {"default_limit": "1/hour", "on_denied": KINDS[kind]}
    check_words(denied_by(serve(plain, ("RateLimitMiddleware", layer))))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_of_on_denied_leaves_the_packages_own_answer(serve: Serve, mistake: str):
    layer = {"default_limit": "1/hour", "on_denied": MISTAKES[mistake]}
    check_own(denied_by(serve(plain, ("RateLimitMiddleware", layer))))


def test_a_status_without_a_body_goes_out_without_one(serve: Serve):
    """RFC 9110 §6.4.1."""
    layer = {"default_limit": "1/hour", "on_denied": Sync((204, {}, "slow down"))}
    answer = denied_by(serve(plain, ("RateLimitMiddleware", layer)))
    assert (answer.status, answer.body) == (204, b"")
    assert answer.header("content-length") in {None, "0"}


@pytest.mark.parametrize("kind", ["function", "async function", "object with async __call__"])
@pytest.mark.parametrize("guarded", NOT_OF_REST_FRAMEWORK, indirect=True)
def test_on_denied_words_the_denials_of_guards(guarded: Guarded, kind: str):
    layer = {"default_limit": None, "on_denied": KINDS[kind]}
    check_words(denied_by(guarded(plain, "1/hour", ("RateLimitMiddleware", layer))))


@pytest.mark.parametrize("mistake", ["async, raises", "text", "line break in a value"])
@pytest.mark.parametrize("guarded", NOT_OF_REST_FRAMEWORK, indirect=True)
def test_a_mistake_of_on_denied_leaves_the_own_answer_of_guards(guarded: Guarded, mistake: str):
    layer = {"default_limit": None, "on_denied": MISTAKES[mistake]}
    check_own(denied_by(guarded(plain, "1/hour", ("RateLimitMiddleware", layer))))


# -- The view that a Django project names.

NamedView = Callable[[Any], None]


@pytest.fixture
def named_view() -> Iterator[NamedView]:
    """Name the view for denials until the test ends.

    To be requested before what serves: that overrides settings too, and the last to do so has to
    be the first to restore them.
    """
    with ExitStack() as settings:

        def name(view: Any) -> None:
            settings.enter_context(override_settings(UPSTASH_MIDDLEWARE_DENIED_VIEW=view))

        yield name


def view(_request: Any, _decision: Decision) -> HttpResponse:
    return HttpResponse("slow down", status=429, headers={"X-Own": "yes"})


async def view_async(_request: Any, _decision: Decision) -> HttpResponse:
    return view(_request, _decision)


class Viewed(View):
    def get(self, request: Any, decision: Decision) -> HttpResponse:
        return view(request, decision)


class ViewedAsync(View):
    async def get(self, request: Any, decision: Decision) -> HttpResponse:
        return view(request, decision)


class Calling:
    def __call__(self, request: Any, decision: Decision) -> HttpResponse:
        return view(request, decision)


class CallingAsync:
    async def __call__(self, request: Any, decision: Decision) -> HttpResponse:
        return view(request, decision)


class SlowDown(HttpResponse):
    def __init__(self, _request: Any, _decision: Decision) -> None:
        super().__init__("slow down", status=429, headers={"X-Own": "yes"})


def streaming(_request: Any, _decision: Decision) -> StreamingHttpResponse:
    return StreamingHttpResponse([b"slow ", b"down"], status=429, headers={"X-Own": "yes"})


calling_async = CallingAsync()

VIEWS: dict[str, Any] = {
    "function": view,
    "async function": view_async,
    "dotted path of an async function": f"{__name__}.view_async",
    "dotted path of an object": f"{__name__}.calling_async",
    "object": Calling(),
    "object with async __call__": CallingAsync(),
    "partial of an async function": functools.partial(view_async),
    "class-based view": Viewed.as_view(),
    "async class-based view": ViewedAsync.as_view(),
    "class of responses": SlowDown,
}
VIEWS_MISTAKEN: dict[str, Any] = {
    "raises": raising,
    "async, raises": raising_async,
    "nothing": Sync(None),
    "async nothing": Async(None),
    "text": Sync("slow down"),
    "async text": Async("slow down"),
    "dict": Sync({"detail": "slow down"}),
    "async of async": Async(view_async(None, None)),  # type: ignore[arg-type]
    "class-based view without as_view": Viewed,
    "another signature": lambda request: view(request, request),
    "unknown dotted path": "shop.views.no_such_view",
    "no view": 5,
}
DJANGOS = ["django-wsgi", "django-asgi"]
DJANGO_GUARDS = [name for name in GUARDS if name.startswith("django")]
LIMIT = ("RateLimitMiddleware", {"default_limit": "1/hour"})
NO_LIMIT = ("RateLimitMiddleware", {"default_limit": None})


@pytest.mark.parametrize("kind", VIEWS)
@pytest.mark.parametrize("backend", DJANGOS, indirect=True)
def test_a_named_view_of_any_kind_answers_what_the_middleware_denies(
    named_view: NamedView, serve: Serve, kind: str
):
    named_view(VIEWS[kind])
    check_words(denied_by(serve(plain, LIMIT)))


@pytest.mark.parametrize("mistake", VIEWS_MISTAKEN)
@pytest.mark.parametrize("backend", DJANGOS, indirect=True)
def test_a_mistake_of_a_named_view_leaves_the_own_answer(
    named_view: NamedView, serve: Serve, mistake: str
):
    named_view(VIEWS_MISTAKEN[mistake])
    check_own(denied_by(serve(plain, LIMIT)))


@pytest.mark.parametrize("kind", ["function", "async function", "object with async __call__"])
@pytest.mark.parametrize("guarded", DJANGO_GUARDS, indirect=True)
def test_a_named_view_of_any_kind_answers_what_guards_deny(
    named_view: NamedView, guarded: Guarded, kind: str
):
    named_view(VIEWS[kind])
    check_words(denied_by(guarded(plain, "1/hour", NO_LIMIT)))


@pytest.mark.parametrize("mistake", ["async, raises", "nothing", "async text"])
@pytest.mark.parametrize("guarded", DJANGO_GUARDS, indirect=True)
def test_a_mistake_of_a_named_view_leaves_the_own_answer_of_guards(
    named_view: NamedView, guarded: Guarded, mistake: str
):
    named_view(VIEWS_MISTAKEN[mistake])
    check_own(denied_by(guarded(plain, "1/hour", NO_LIMIT)))


@pytest.mark.parametrize("backend", DJANGOS, indirect=True)
def test_a_named_view_that_gives_no_status_answers_with_the_denials(
    named_view: NamedView, serve: Serve
):
    """HttpResponse's default is 200, and a denial is no success."""
    silent = Sync(HttpResponse("slow down"))
    named_view(silent)
    denied = denied_by(serve(plain, LIMIT))
    assert (denied.status, denied.body) == (429, b"slow down")


# -- Exception handlers of Starlette, which the middleware asks.

ANSWER = PlainTextResponse("slow down", 429, {"X-Own": "yes"})


async def handler_async(_request: Any, _error: Any) -> PlainTextResponse:
    return ANSWER


HANDLERS: dict[str, Any] = {
    "function": lambda _request, _error: ANSWER,
    "async function": handler_async,
    "object": Sync(ANSWER),
    "object with async __call__": Async(ANSWER),
    "async partial": functools.partial(handler_async),
}
HANDLERS_MISTAKEN: dict[str, Any] = {
    "raises": raising,
    "async, raises": raising_async,
    "nothing": Sync(None),
    "async nothing": Async(None),
    "text": Sync("slow down"),
    "tuple": Sync((429, {}, "slow down")),
}


def starlette_denial(handler: Any) -> Any:
    async def page(_: Any) -> PlainTextResponse:
        return PlainTextResponse("page")

    app = Starlette(
        routes=[Route("/page", page)],
        exception_handlers={429: handler},
        middleware=[Middleware(starlette.RateLimitMiddleware, default_limit="1/hour")],
    )
    with TestClient(app, client=("203.0.113.9", 1)) as client:
        assert client.get("/page").status_code == 200
        return client.get("/page")


@pytest.mark.parametrize("kind", HANDLERS)
def test_starlettes_exception_handler_may_be_any_kind_of_callable(upstash: LocalUpstash, kind: str):
    denied = starlette_denial(HANDLERS[kind])
    assert (denied.status_code, denied.text, denied.headers["x-own"]) == (429, "slow down", "yes")
    assert int(denied.headers["retry-after"]) > 0


@pytest.mark.parametrize("mistake", HANDLERS_MISTAKEN)
def test_a_mistake_of_starlettes_exception_handler_leaves_the_own_answer(
    upstash: LocalUpstash, mistake: str
):
    denied = starlette_denial(HANDLERS_MISTAKEN[mistake])
    assert denied.status_code == 429
    assert denied.headers["content-type"] == "application/problem+json"


# -- Error handlers of Flask, which the middleware asks.


@pytest.mark.parametrize("mistake", ["raises", "async, raises", "nothing", "dict"])
def test_a_mistake_of_flasks_error_handler_leaves_the_own_answer(
    upstash: LocalUpstash, mistake: str
):
    app = Flask("shop")
    app.add_url_rule("/page", view_func=lambda: "page")
    handlers = {**HANDLERS_MISTAKEN, "dict": Sync({1: object()})}
    app.register_error_handler(429, handlers[mistake])
    flask.RateLimitMiddleware(app, default_limit="1/hour")
    client = app.test_client()
    assert client.get("/page", buffered=True).status_code == 200
    denied = client.get("/page", buffered=True)
    assert denied.status_code == 429
    assert denied.content_type == "application/problem+json"
