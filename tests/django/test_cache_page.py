"""``cache_page`` of this package beside Django's: what is stored, for whom, and what is sent."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from asgiref.sync import iscoroutinefunction
from django.http import HttpResponse, StreamingHttpResponse
from django.test import AsyncClient, Client, override_settings
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators import cache as djangos
from django.views.decorators.cache import cache_control, never_cache
from django.views.decorators.vary import vary_on_cookie, vary_on_headers

from tests.django.project import Urls
from upstash_middleware.django import cache_page, purge
from upstash_middleware.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.http import HttpRequest

    Decorate = Callable[[Any], Any]

pytestmark = pytest.mark.usefixtures("upstash")

SENT = ("Cache-Control", "Vary", "Content-Type")
OURS: dict[str, Any] = {
    "MIDDLEWARE": ["upstash_middleware.django.CacheMiddleware"],
    "UPSTASH_MIDDLEWARE": {
        "cache": [{"path": "/{rest:path}"}],
        "deadline": 20.0,
        "cache_deadline": 20.0,
    },
}
DJANGOS: dict[str, Any] = {
    "MIDDLEWARE": [],
    "CACHES": {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}},
}


class Page:
    """A view that counts how often it is called."""

    def __init__(self, *, is_async: bool, **arguments: Any) -> None:
        self.calls = 0

        def respond(_request: HttpRequest) -> HttpResponse:
            self.calls += 1
            response = HttpResponse(
                str(self.calls),
                status=arguments.get("status", 200),
                headers=arguments.get("headers"),
            )
            if arguments.get("cookie"):
                response.set_cookie("seen", "1")
            return response

        async def respond_async(request: HttpRequest) -> HttpResponse:
            return respond(request)

        self.view: Any = respond_async if is_async else respond


def visits(
    decorate: Decorate, ours: bool, is_async: bool, *requests: dict[str, Any], **arguments: Any
) -> tuple[int, list[dict[str, str | None]]]:
    """Return how often a view was called for these requests, and what was sent."""
    page = Page(is_async=is_async, **arguments)
    view = decorate(page.view)
    assert iscoroutinefunction(view) == is_async
    answers = []
    with override_settings(ROOT_URLCONF=Urls(page=view), **(OURS if ours else DJANGOS)):
        from django.core.cache import caches  # noqa: PLC0415 - of these settings

        if not ours:
            caches["default"].clear()
        for given in requests or ({}, {}):
            method, headers = given.get("method", "get"), given.get("headers", {})
            if is_async:
                answer = asyncio.run(_answer(method, headers))
            else:
                answer = getattr(Client(), method)("/page", headers=headers)
            sent: dict[str, str | None] = {name: answer.get(name) for name in SENT}
            sent["Expires"] = str("Expires" in answer)
            sent["content"] = answer.content.decode()
            answers.append(sent)
    return page.calls, answers


async def _answer(method: str, headers: dict[str, str]) -> Any:
    return await getattr(AsyncClient(), method)("/page", headers=headers)


STACKS: dict[str, tuple[Callable[[Any], Decorate], int]] = {
    "plain": (lambda page: page(60), 1),
    "none": (lambda page: page(None), 1),
    "zero": (lambda page: page(0), 2),
    "never_cache inside": (lambda page: lambda view: page(60)(never_cache(view)), 2),
    "never_cache outside": (lambda page: lambda view: never_cache(page(60)(view)), 1),
    "private": (lambda page: lambda view: page(60)(cache_control(private=True)(view)), 2),
    "no-cache": (lambda page: lambda view: page(60)(cache_control(no_cache=True)(view)), 2),
    "no-store": (lambda page: lambda view: page(60)(cache_control(no_store=True)(view)), 2),
    "max-age inside": (lambda page: lambda view: page(60)(cache_control(max_age=10)(view)), 1),
    "max-age 0 inside": (lambda page: lambda view: page(60)(cache_control(max_age=0)(view)), 1),
    "own max-age": (lambda page: lambda view: page(None)(cache_control(max_age=10)(view)), 1),
    "own max-age 0": (lambda page: lambda view: page(None)(cache_control(max_age=0)(view)), 2),
    "vary": (lambda page: lambda view: page(60)(vary_on_headers("X-Sort")(view)), 1),
    "vary *": (lambda page: lambda view: page(60)(vary_on_headers("*")(view)), 2),
    "key_prefix": (lambda page: page(60, key_prefix="shop", cache="default"), 1),
}


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("stack", STACKS)
def test_a_page_is_stored_and_sent_as_by_djangos(stack: str, *, is_async: bool):
    make, calls = STACKS[stack]
    ours = visits(make(cache_page), True, is_async)
    assert ours == visits(make(djangos.cache_page), False, is_async)
    assert ours[0] == calls


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    ("requests", "arguments", "calls"),
    [
        ([{"method": "post"}, {"method": "post"}], {}, 2),
        ([{"method": "get"}, {"method": "head"}], {}, 1),
        ([{}, {}], {"status": 404}, 2),
        ([{}, {}], {"status": 301}, 2),
        ([{}, {}], {"headers": {"Expires": "0"}}, 1),
        ([{}, {}], {"cookie": True, "headers": {"Vary": "Cookie"}}, 2),
    ],
)
def test_methods_and_statuses_are_as_in_djangos(
    requests: list[Any], arguments: Any, calls: int, *, is_async: bool
):
    ours = visits(cache_page(60), True, is_async, *requests, **arguments)
    assert ours == visits(djangos.cache_page(60), False, is_async, *requests, **arguments)
    assert ours[0] == calls


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    ("vary", "name"), [(vary_on_headers("X-Sort"), "X-Sort"), (vary_on_cookie, "Cookie")]
)
def test_what_varies_is_selected_as_in_djangos(vary: Decorate, name: str, *, is_async: bool):
    requests = [{"headers": {name: f"a={each}"}} for each in ("a", "b", "a")]
    ours = visits(lambda view: cache_page(60)(vary(view)), True, is_async, *requests)
    assert ours == visits(
        lambda view: djangos.cache_page(60)(vary(view)), False, is_async, *requests
    )
    assert ours[0] == 2


@pytest.mark.parametrize(
    ("requests", "arguments", "calls", "djangos_calls"),
    [
        # One visitor's cookie would be sent to all others.
        ([{}, {}], {"cookie": True}, 2, 1),
        # What a visitor with cookies was sent may depend on them.
        ([{"headers": {"Cookie": "session=1"}}, {"headers": {"Cookie": "session=2"}}], {}, 2, 1),
        # Django's keeps such a page for each value of the field.
        ([{"headers": {"Authorization": "Basic YTpi"}}] * 2, {}, 2, 1),
    ],
)
def test_what_may_be_personal_is_not_stored_where_djangos_stores_it(
    requests: list[Any], arguments: Any, calls: int, djangos_calls: int
):
    assert visits(cache_page(60), True, False, *requests, **arguments)[0] == calls
    others = visits(djangos.cache_page(60), False, False, *requests, **arguments)
    assert others[0] == djangos_calls


def test_vary_above_the_decorator_counts_too():
    """Django's does not see it, and gives one visitor's page to another."""
    requests = [{"headers": {"X-Sort": each}} for each in ("a", "b", "a")]
    calls, _ = visits(
        lambda view: vary_on_headers("X-Sort")(cache_page(60)(view)), True, False, *requests
    )
    assert calls == 2


def test_a_key_prefix_is_purged_as_a_tag():
    page = Page(is_async=False)
    view = cache_page(60, key_prefix="shop")(page.view)
    with override_settings(ROOT_URLCONF=Urls(page=view), **OURS):
        client = Client()
        for expected in (b"1", b"1"):
            assert client.get("/page").content == expected
        purge(tags=["other"])
        assert client.get("/page").content == b"1"
        purge(tags=["shop"])
        assert client.get("/page").content == b"2"


@method_decorator(cache_page(60), name="dispatch")
class Shop(View):
    """Cached as a class."""

    calls = 0

    def get(self, _request: HttpRequest) -> HttpResponse:
        Shop.calls += 1
        return HttpResponse("shop")


def test_a_class_is_stored_and_a_stream_is_not():
    def stream(_request: HttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(iter([b"a", b"b"]))

    views = {"shop": Shop.as_view(), "stream": cache_page(60)(stream)}
    with override_settings(ROOT_URLCONF=Urls(**views), **OURS):
        client = Client()
        assert [client.get("/shop").content for _ in range(2)] == [b"shop"] * 2
        assert Shop.calls == 1
        client.get("/stream").getvalue()
        assert "; hit" not in client.get("/stream")["Cache-Status"]


def test_no_client_sees_the_field_for_the_cache():
    with override_settings(
        ROOT_URLCONF=Urls(page=cache_page(60)(Page(is_async=False).view)), **OURS
    ):
        answers = [Client().get("/page") for _ in range(2)]
    assert not any("Upstash-Cache-Control" in answer for answer in answers)
    assert answers[1]["Age"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"timeout": -1}, "timeout=-1 should be a whole number of seconds"),
        ({"timeout": "60"}, "timeout='60' should be a whole number of seconds"),
        ({"timeout": True}, "timeout=True should be a whole number of seconds"),
        ({"timeout": 60, "cache": "pages"}, "cache='pages': pages are on the database of"),
        ({"timeout": 60, "key_prefix": "a,b"}, "key_prefix='a,b' should be ASCII text"),
    ],
)
def test_a_wrong_argument_is_refused(arguments: dict[str, Any], problem: str):
    with pytest.raises(ConfigurationError, match=problem):
        cache_page(**arguments)


def test_without_a_rule_it_is_said(caplog: pytest.LogCaptureFixture):
    def uncovered(_request: HttpRequest) -> HttpResponse:
        return HttpResponse("page")

    with override_settings(ROOT_URLCONF=Urls(page=cache_page(60)(uncovered)), MIDDLEWARE=[]):
        Client().get("/page")
    assert "@cache_page on" in caplog.text
    assert "stores nothing" in caplog.text
