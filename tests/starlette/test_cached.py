"""``@cached`` and ``@never_cached`` in Starlette and FastAPI, told to the middleware outside."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import Depends, FastAPI
from fastapi.responses import JSONResponse
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from upstash_middleware import ConfigurationError, fastapi
from upstash_middleware.starlette import UpstashMiddleware, cached, limit, never_cached

Serve = Callable[[Any], TestClient]

EVERYTHING = [{"path": "/{rest:path}"}]
PATIENT: Any = {"deadline": 20.0, "cache_deadline": 20.0}
BY_DEFAULT = [{"path": "/{rest:path}", "ttl": 60}]


async def plain(_: Request) -> Response:
    return PlainTextResponse("page")


def threaded(_: Request) -> Response:
    return PlainTextResponse("page")


async def own_freshness(_: Request) -> Response:
    return PlainTextResponse("page", headers={"Cache-Control": "no-store"})


async def missing(_: Request) -> Response:
    return PlainTextResponse("no page", 404)


async def purge(request: Request) -> Response:
    await request.state.cache.purge(tags=("product:7",))
    return PlainTextResponse("")


def starlette(cache: Any, **routes: Any) -> Starlette:
    return Starlette(
        routes=[Route(f"/{name}/{{id}}", endpoint) for name, endpoint in routes.items()],
        middleware=[Middleware(UpstashMiddleware, cache=cache, **PATIENT)],
    )


def second(client: TestClient, path: str) -> str:
    """Return the Cache-Status of the second of two requests."""
    client.get(path)
    status: str = client.get(path).headers["cache-status"]
    return status


@pytest.mark.parametrize("endpoint", [plain, threaded])
def test_what_says_so_is_stored_and_nothing_else(client: Serve, endpoint: Any):
    served = client(starlette(EVERYTHING, page=cached(60)(endpoint), other=endpoint))
    assert "; hit; ttl=" in second(served, "/page/1")
    assert "no freshness lifetime" in second(served, "/other/1")
    answers = [served.get("/page/1"), served.get("/page/2")]
    assert all("upstash-cache-control" not in answer.headers for answer in answers)
    assert all("cache-control" not in answer.headers for answer in answers)


def test_it_is_purged_by_tags_filled_from_the_path(client: Serve):
    routes = {"product": cached(60, tags=("product:{id}",))(plain), "purge": purge}
    served = client(starlette(EVERYTHING, **routes))
    assert "; hit" in second(served, "/product/7")
    assert "; hit" in second(served, "/product/8")
    served.get("/purge/1")
    assert "fwd=" in served.get("/product/7").headers["cache-status"]
    assert "; hit" in served.get("/product/8").headers["cache-status"]


def test_a_tag_that_cannot_be_written_keeps_the_response_from_being_stored(client: Serve):
    endpoint = cached(60, tags=("product:{id}", "{absent}"))(plain)
    served = client(starlette(EVERYTHING, page=endpoint))
    assert "no-store" in second(served, "/page/1")


def test_errors_and_responses_with_a_freshness_of_their_own_are_left_alone(client: Serve):
    served = client(
        starlette(EVERYTHING, own=cached(60)(own_freshness), missing=cached(60)(missing))
    )
    assert "no-store" in second(served, "/own/1")
    assert "no freshness lifetime" in second(served, "/missing/1")


def test_what_is_never_cached_goes_around_a_rule_that_stores_all(client: Serve):
    served = client(starlette(BY_DEFAULT, page=plain, never=never_cached(plain)))
    assert "; hit" in second(served, "/page/1")
    assert "no-store" in second(served, "/never/1")
    assert served.get("/never/1").headers["cache-control"] == "no-store"


def test_it_stands_with_a_limit_in_any_order(client: Serve):
    routes = {"a": cached(60)(limit("9/hour")(plain)), "b": limit("9/hour")(cached(60)(threaded))}
    served = client(starlette(EVERYTHING, **routes))
    for path in ("/a/1", "/b/1"):
        assert served.get(path).headers["x-ratelimit-remaining"] == "8"
        assert "; hit" in served.get(path).headers["cache-status"]


def test_in_fastapi_it_is_a_dependency(client: Serve):
    app = FastAPI()
    stored = Depends(fastapi.cached(60, tags=("product:{id}",)))

    @app.get("/model/{id}", dependencies=[stored])
    def model(id: int) -> dict[str, int]:  # noqa: A002 - as the path names it
        return {"id": id}

    @app.get("/own/{id}", dependencies=[stored])
    def own(id: int) -> JSONResponse:  # noqa: A002 - likewise
        return JSONResponse({"id": id})

    @app.get("/never/{id}", dependencies=[Depends(fastapi.never_cached)])
    def never(id: int) -> int:  # noqa: A002 - likewise
        return id

    @app.post("/purge")
    async def purge_one(request: Request) -> None:
        await request.state.cache.purge(tags=("product:7",))

    app.add_middleware(UpstashMiddleware, cache=EVERYTHING, **PATIENT)
    served = client(app)
    for path in ("/model/7", "/own/7"):
        assert "; hit" in second(served, path)
    served.post("/purge")
    assert "fwd=" in served.get("/model/7").headers["cache-status"]
    assert "no-store" in second(served, "/never/7")


@pytest.mark.parametrize(
    "middleware", [[], [Middleware(UpstashMiddleware, default_limit="9/hour")]]
)
def test_without_a_cache_outside_it_is_said_once(
    client: Serve, caplog: pytest.LogCaptureFixture, middleware: Any
):
    async def lonely(_: Request) -> Response:
        return PlainTextResponse("page")

    lonely.__qualname__ = lonely.__name__ = f"lonely{len(middleware)}"  # told once in a process
    app = Starlette(routes=[Route("/", cached(60)(lonely))], middleware=middleware)
    served = client(app)
    assert [served.get("/").status_code for _ in range(2)] == [200, 200]
    assert caplog.text.count(f"{lonely.__name__} stores nothing") == 1


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"ttl": 0}, "ttl=0"),
        ({"ttl": 0.5}, "ttl=0.5"),
        ({"ttl": 60, "tags": "product"}, "a sequence"),
        ({"ttl": 60, "tags": ("a,b",)}, "'a,b'"),
        ({"ttl": 60, "stale_if_error": -1}, "stale_if_error=-1"),
    ],
)
def test_a_wrong_argument_is_an_error_where_it_is_written(arguments: Any, problem: str):
    with pytest.raises(ConfigurationError, match=problem):
        cached(**arguments)


@pytest.mark.parametrize("framework", ["starlette", "fastapi"])
def test_a_part_of_the_path_that_makes_too_long_a_tag_is_stored_nowhere(
    client: Serve, framework: str
):
    """Which is known before the tag is expanded: each colon of it is an ancestor."""
    if framework == "starlette":
        app: Any = starlette(EVERYTHING, page=cached(60, tags=("product:{id}",))(plain))
    else:
        app = FastAPI()
        app.add_middleware(UpstashMiddleware, cache=EVERYTHING, **PATIENT)
        depends = Depends(fastapi.cached(60, tags=("product:{id}",)))
        app.get("/page/{id}", dependencies=[depends])(lambda: "page")
    served = client(app)
    began = time.process_time()
    assert "a tag of more than 1024 bytes" in second(served, "/page/" + ":" * 8000)
    assert time.process_time() - began < 1
