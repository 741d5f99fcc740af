"""Prefixes and mounts in Starlette and FastAPI: rules are written as the routes beside them are."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request  # noqa: TC002 - FastAPI reads annotations
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from upstash_middleware import CacheRule, RateLimitRule, fastapi
from upstash_middleware.starlette import UpstashMiddleware, cached, exempt, limit

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.websockets import WebSocket

    from upstash_middleware import HTTPRequest
    from upstash_middleware.local import LocalUpstash

Serve = Any
PATIENT: Any = {"deadline": 20.0, "cache_deadline": 20.0}
LOGIN = RateLimitRule("/login", "2/hour")


async def page(_: Request) -> PlainTextResponse:
    return PlainTextResponse("page")


async def healthy(_: Request) -> PlainTextResponse:
    return PlainTextResponse("well")


def statuses(client: TestClient, *paths: str) -> list[int]:
    return [client.get(path).status_code for path in paths]


@pytest.mark.filterwarnings("ignore:The `root_path` parameter is deprecated")
def test_a_middleware_around_fastapi_knows_the_root_path_that_fastapi_sets(client: Serve):
    """FastAPI puts its argument ``root_path`` into each scope; both paths reach the view."""
    app = FastAPI(root_path="/api")
    app.add_api_route("/login", page)
    app.add_api_route("/health", exempt(healthy))
    around = UpstashMiddleware(app, rate_limits=[LOGIN], default_limit="1/hour", **PATIENT)
    served = client(around)
    assert statuses(served, *["/api/login", "/login"] * 2) == [200, 200, 429, 429]
    assert statuses(served, *["/api/health", "/health"] * 2) == [200] * 4


@pytest.mark.parametrize("root_path", ["", "/api"])
def test_a_websocket_is_limited_by_the_path_below_the_prefix(upstash: LocalUpstash, root_path: str):
    async def talk(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.close()

    app = Starlette(routes=[WebSocketRoute("/login", talk)])
    app.add_middleware(UpstashMiddleware, rate_limits=[LOGIN], default_limit=None, **PATIENT)
    client = TestClient(app, root_path=root_path)
    for path in ("/login", f"{root_path}/login"):
        with client.websocket_connect(path):
            pass
    with pytest.raises(WebSocketDisconnect), client.websocket_connect(f"{root_path}/login"):
        pass


def counting(requests: list[HTTPRequest]) -> Callable[[HTTPRequest], bool]:
    def when(request: HTTPRequest) -> bool:
        requests.append(request)
        return True

    return when


def test_a_limit_of_an_endpoint_reads_the_path_that_its_application_routes_on(client: Serve):
    seen: list[HTTPRequest] = []

    @limit("9/hour", when=counting(seen))
    async def endpoint(_: Request) -> PlainTextResponse:
        return PlainTextResponse("page")

    client(Starlette(routes=[Mount("/shop", routes=[Route("/tea", endpoint)])])).get("/shop/tea")
    assert (seen[0].path, seen[0].root_path) == ("/tea", "/shop")
    assert seen[0].raw_path == "/shop/tea"


def test_what_a_mounted_application_stores_stale_is_refreshed_with_its_own_links(
    client: Serve, upstash: LocalUpstash
):
    """They depend on what the mount outside of the middleware has put into the scope."""
    pages = 0

    async def tea(request: Request) -> PlainTextResponse:
        nonlocal pages
        pages += 1
        link = request.url_for("outside")
        tenant = request.path_params["tenant"]
        return PlainTextResponse(f"{link} {request.base_url} {tenant} {pages}")

    rule = CacheRule("/tea", ttl=60, stale_while_revalidate=600)
    inner = Starlette(
        routes=[Route("/tea", tea)],
        middleware=[Middleware(UpstashMiddleware, cache=[rule], **PATIENT)],
    )
    outside = Route("/outside", page, name="outside")
    served = client(Starlette(routes=[Mount("/shops/{tenant}", inner), outside]))
    texts, fates = [], []
    for _ in range(3):
        response = served.get("/shops/ada/tea")
        texts.append(response.text)
        fates.append("hit" in response.headers["cache-status"])
        upstash.advance(90)
    assert fates == [False, True, True]
    links = "http://testserver/outside http://testserver/ ada"
    assert texts == [f"{links} 1", f"{links} 1", f"{links} 2"], (
        "the last was made in the background"
    )


def test_a_rule_below_a_mount_covers_what_is_marked_as_cached_there(
    client: Serve, caplog: pytest.LogCaptureFixture
):
    """Else the log would say that no cache rule covers it."""

    @cached(60)
    async def marked(_: Request) -> PlainTextResponse:
        return PlainTextResponse("page")

    inner = Starlette(
        routes=[Route("/tea", marked)],
        middleware=[Middleware(UpstashMiddleware, cache=[{"path": "/tea"}], **PATIENT)],
    )
    outer = Starlette(
        routes=[Mount("/shop", inner), Mount("/open", routes=[Route("/tea", marked)])],
        middleware=[Middleware(UpstashMiddleware, cache=[{"path": "/open/tea"}], **PATIENT)],
    )
    served = client(outer)
    with caplog.at_level(logging.WARNING, "upstash_middleware"):
        for path in ("/shop/tea", "/open/tea"):
            assert [served.get(path).text for _ in range(2)] == ["page", "page"]
            assert "hit" in served.get(path).headers["cache-status"]
    assert caplog.text == ""


@pytest.mark.filterwarnings("ignore:The `root_path` parameter is deprecated")
def test_the_document_names_the_limited_operations_of_an_application_with_a_prefix():
    app = FastAPI(root_path="/api")
    app.add_api_route("/login", page)
    app.add_api_route("/free", page)
    app.add_middleware(
        fastapi.UpstashMiddleware, rate_limits=[LOGIN], default_limit=None, **PATIENT
    )
    fastapi.document_limits(app)
    paths = app.openapi()["paths"]
    limited = {path for path in paths if "429" in paths[path]["get"]["responses"]}
    assert limited == {"/login"}


@pytest.mark.parametrize("inside", ["Starlette", "FastAPI"])
def test_a_line_feed_at_the_end_does_not_take_a_mounted_route_from_under_its_rule(
    upstash: LocalUpstash, inside: str
):
    """A mount cuts its prefix off wrongly then, so that its routes see the whole path."""
    routes = [Route("/{version}/login", page)]
    mounted: Any = Starlette(routes=routes)
    if inside == "FastAPI":
        mounted = FastAPI()
        mounted.router.routes.extend(routes)
    app = Starlette(
        routes=[Mount("/api", mounted)],
        middleware=[
            Middleware(
                UpstashMiddleware,
                rate_limits=[RateLimitRule("/api/{version}/login", "2/hour")],
                default_limit=None,
                **PATIENT,
            )
        ],
    )
    with TestClient(app, raise_server_exceptions=False) as client:
        paths = ["/api/v1/login", "/api/login%0A", "/api/login%0A", "/api/v1/login"]
        assert statuses(client, *paths) == [200, 200, 429, 429]
