"""Operations of django-ninja: limited, cached and exempt, by its ``decorate_view``."""

from __future__ import annotations

import itertools
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest
from django.test import AsyncClient, Client, override_settings
from django.urls import path

from upstash_middleware import ConfigurationError
from upstash_middleware.django import cached, exempt, limit, never_cached

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.usefixtures("upstash")

PATIENT = {"deadline": 20.0, "cache_deadline": 20.0}


_numbers = itertools.count()


def api() -> Any:
    ninja: Any = import_module("ninja")
    return ninja.NinjaAPI(urls_namespace=f"api-{next(_numbers)}")


def decorate_view(*decorators: Any) -> Callable[[Any], Any]:
    decorate: Callable[[Any], Any] = import_module("ninja.decorators").decorate_view(*decorators)
    return decorate


def get(api: Any, path: str) -> Callable[[Any], Any]:
    register: Callable[[Any], Any] = api.get(path)
    return register


def post(api: Any, path: str) -> Callable[[Any], Any]:
    register: Callable[[Any], Any] = api.post(path)
    return register


class Urls:
    """A URL configuration as an object, for ``ROOT_URLCONF``."""

    def __init__(self, api: Any) -> None:
        self.urlpatterns = [path("api/", api.urls)]


@contextmanager
def project(api: Any, *middleware: str, **mapping: Any) -> Iterator[Client]:
    with override_settings(
        MIDDLEWARE=[f"upstash_middleware.django.{name}" for name in middleware],
        ROOT_URLCONF=Urls(api),
        UPSTASH_MIDDLEWARE=PATIENT | mapping,
    ):
        yield Client(REMOTE_ADDR="203.0.113.9")


def statuses(client: Client, url: str, method: str = "GET") -> list[int]:
    return [client.generic(method, url).status_code for _ in range(3)]


@pytest.mark.parametrize(
    ("decorator", "instead"),
    [
        (limit("5/minute"), "@decorate_view(limit('5/minute'))"),
        (cached(60), "@decorate_view(cached(60))"),
        (never_cached, "@decorate_view(never_cached)"),
    ],
)
def test_a_decorator_on_an_operation_itself_is_refused_with_what_to_write(
    decorator: Callable[..., Any], instead: str
):
    def tea(request: Any) -> dict[str, str]:
        return {"tea": request.path}

    async def coffee(request: Any) -> dict[str, str]:
        return {"coffee": request.path}

    for operation in (tea, coffee):
        with pytest.raises(ConfigurationError) as raised:
            api().get("/tea")(decorator(operation))
        assert instead in str(raised.value)


def test_operations_are_limited_each_by_itself_and_say_so():
    app = api()

    @get(app, "/tea")
    @decorate_view(limit("2/hour"))
    def tea(request: Any, size: int = 1) -> dict[str, int]:
        return {"left": request.rate_limit.remaining, "size": size}

    @get(app, "/coffee")
    @decorate_view(limit("2/hour"))
    def coffee(request: Any) -> dict[str, int]:
        return {"left": request.rate_limit.remaining}

    @post(app, "/tea")
    def brew(request: Any) -> str:
        return "brewed"

    with project(app) as client:
        answers = [client.get("/api/tea?size=3") for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert answers[0].json() == {"left": 1, "size": 3}
        assert answers[0]["X-RateLimit-Remaining"] == "1"
        assert ".tea " in answers[0]["RateLimit"].partition(";")[0]
        assert answers[2]["Content-Type"] == "application/problem+json"
        assert statuses(client, "/api/coffee") == [200, 200, 429]
        assert statuses(client, "/api/tea", "POST") == [200, 200, 200]


@pytest.mark.anyio
async def test_async_operations_are_limited_on_the_event_loop():
    app = api()

    @get(app, "/tea")
    @decorate_view(limit("2/hour"))
    async def tea(request: Any) -> dict[str, int]:
        return {"left": request.rate_limit.remaining}

    with project(app):
        client = AsyncClient(REMOTE_ADDR="203.0.113.9")
        answers = [await client.get("/api/tea") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[1].json() == {"left": 0}


def test_an_operation_settles_by_its_response_and_may_have_several_limits():
    app = api()

    @get(app, "/tea")
    @decorate_view(
        limit("1/hour", settle=lambda _request, response: int(response.status == 404)),
        limit("9/hour"),
    )
    def tea(request: Any) -> dict[str, str]:
        return {"tea": request.path}

    with project(app) as client:
        assert statuses(client, "/api/tea") == [200, 200, 200]


def test_the_responses_of_an_operation_are_stored():
    app, rendered = api(), []

    @get(app, "/tea/{number}")
    @decorate_view(cached(60, tags=("tea:{number}",)))
    def tea(request: Any, number: int) -> int:
        rendered.append(number)
        return number

    rules = [{"path": "/{rest:path}"}]
    with project(app, "CacheMiddleware", cache=rules) as client:
        assert [client.get("/api/tea/7").json() for _ in range(3)] == [7, 7, 7]
    assert rendered == [7]


def test_an_exempt_operation_is_free_of_the_middleware_and_its_neighbours_are_not():
    app = api()

    @get(app, "/health")
    @exempt
    def health(request: Any) -> str:
        return "well"

    @post(app, "/health")
    def heal(request: Any) -> str:
        return "healed"

    with project(app, "UpstashMiddleware", default_limit="1/hour") as client:
        assert statuses(client, "/api/health") == [200, 200, 200]
        assert statuses(client, "/api/health", "POST") == [200, 429, 429]


def test_an_application_or_a_router_cannot_be_exempt():
    ninja: Any = import_module("ninja")
    for given in (api(), ninja.Router()):
        with pytest.raises(ConfigurationError, match="mark the functions of its operations"):
            exempt(given)
