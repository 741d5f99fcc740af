"""In Starlette and FastAPI: nothing escapes the limit, and other middleware gets along with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request  # noqa: TC002 - FastAPI reads annotations
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from tests.asgi.serving import PATIENCE
from upstash_middleware import CacheRule, HTTPRequest, Identifier, RateLimitRule
from upstash_middleware.starlette import UpstashMiddleware, user

if TYPE_CHECKING:
    from starlette.responses import Response


pytestmark = pytest.mark.usefixtures("upstash")

PEER = ("203.0.113.9", 50000)


def limited(limits: str) -> Middleware:
    return Middleware(UpstashMiddleware, default_limit=limits, deadline=PATIENCE)


def cached(path: str = "/page") -> Middleware:
    rules = [CacheRule(path, ttl=60)]
    return Middleware(UpstashMiddleware, cache=rules, cache_deadline=PATIENCE)


async def page(_: Request) -> Response:
    return PlainTextResponse("page " * 200)


async def streamed(_: Request) -> Response:
    return StreamingResponse(iter(["page "] * 200), media_type="text/plain")


def fastapi_app() -> FastAPI:
    """An application with a route, a router, a mounted application and nothing else."""
    app, router, mounted = FastAPI(), APIRouter(prefix="/router"), FastAPI()

    @app.get("/route")
    @router.get("/route")
    @mounted.get("/route")
    def route() -> str:
        return "here"

    app.include_router(router)
    app.mount("/mounted", mounted)
    app.mount("/pure", Starlette(routes=[Route("/route", page)]))
    app.add_middleware(UpstashMiddleware, default_limit="2/hour", deadline=PATIENCE)
    return app


@pytest.mark.parametrize(
    "path",
    ["/route", "/router/route", "/mounted/route", "/pure/route", "/absent", "/mounted/absent"],
)
def test_routes_routers_mounts_and_404s_fall_under_the_default_limit(path: str):
    with TestClient(fastapi_app(), client=PEER) as client:
        statuses = [client.get(path).status_code for _ in range(3)]
    found = 404 if path.endswith("absent") else 200
    assert statuses == [found, found, 429]


def test_inside_a_mount_rules_are_matched_against_the_path_below_it():
    inside = Starlette(routes=[Route("/page", page)], middleware=[cached("/page")])
    with TestClient(Starlette(routes=[Mount("/shop", inside)]), client=PEER) as client:
        assert "fwd=uri-miss" in client.get("/shop/page").headers["cache-status"]
        assert "; hit" in client.get("/shop/page").headers["cache-status"]


def test_a_denial_carries_the_cors_fields_where_the_cors_middleware_stands_outside():
    app = Starlette(
        routes=[Route("/page", page)],
        middleware=[
            Middleware(CORSMiddleware, allow_origins=["https://app.example"]),
            limited("1/hour"),
        ],
    )
    with TestClient(app, client=PEER) as client:
        origin = {"origin": "https://app.example"}
        statuses = [client.get("/page", headers=origin) for _ in range(2)]
        denied = statuses[-1]
        preflight = client.options(
            "/page", headers={**origin, "access-control-request-method": "GET"}
        )
    assert denied.status_code == 429
    assert denied.headers["access-control-allow-origin"] == "https://app.example"
    assert preflight.status_code == 200, "a preflight is not limited"


async def add_field(request: Request, call_next: Any) -> Response:
    response: Response = await call_next(request)
    response.headers["x-outside"] = str(request.state.rate_limit.limit)
    return response


def test_middleware_outside_sees_the_decision_and_may_add_to_a_response_of_ours():
    app = Starlette(
        routes=[Route("/page", page)],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=add_field), limited("1/hour")],
    )
    with TestClient(app, client=PEER) as client:
        allowed, denied = client.get("/page"), client.get("/page")
    assert (allowed.status_code, denied.status_code) == (200, 429)
    assert allowed.headers["x-outside"] == denied.headers["x-outside"] == "1"


@pytest.mark.parametrize("endpoint", [page, streamed])
@pytest.mark.parametrize("outside", [True, False])
@pytest.mark.parametrize(
    "between",
    [Middleware(GZipMiddleware), Middleware(BaseHTTPMiddleware, dispatch=lambda r, n: n(r))],
    ids=["gzip", "base"],
)
def test_middleware_on_either_side_gives_the_same_page_on_miss_and_hit(
    between: Middleware, outside: bool, endpoint: Any
):
    stack = [between, cached()] if outside else [cached(), between]
    app = Starlette(routes=[Route("/page", endpoint)], middleware=stack)
    with TestClient(app, client=PEER) as client:
        miss, hit = client.get("/page"), client.get("/page")
        plain = client.get("/page", headers={"accept-encoding": "identity"})
    assert "; hit" in hit.headers["cache-status"]
    assert miss.text == hit.text == plain.text == "page " * 200
    assert "content-encoding" not in plain.headers


def test_a_page_that_gzip_middleware_compresses_inside_of_the_cache_is_compressed_once():
    spellings = ["gzip, deflate, br, zstd", "gzip", "deflate, gzip;q=0.5"]
    app = Starlette(
        routes=[Route("/page", page)], middleware=[cached(), Middleware(GZipMiddleware)]
    )
    with TestClient(app, client=PEER) as client:
        answers = [client.get("/page", headers={"accept-encoding": each}) for each in spellings]
    assert [answer.headers["content-encoding"] for answer in answers] == ["gzip"] * 3
    assert ["; hit" in answer.headers["cache-status"] for answer in answers] == [False, True, True]


def test_handlers_purge_in_tasks_and_in_threads():
    app = FastAPI()
    app.add_middleware(
        UpstashMiddleware, cache=[CacheRule("/page", ttl=60)], cache_deadline=PATIENCE
    )

    @app.get("/page")
    def read() -> str:
        return "page"

    @app.put("/in-task")
    async def edit_in_task(request: Request) -> None:
        await request.state.cache.purge("/page")

    @app.put("/in-thread")
    def edit_in_thread(request: Request) -> None:
        request.state.cache.purge_sync("/page")

    with TestClient(app, client=PEER) as client:
        for path in ("/in-task", "/in-thread"):
            client.get("/page")
            assert "; hit" in client.get("/page").headers["cache-status"]
            client.put(path)
            assert "; hit" not in client.get("/page").headers["cache-status"]


def test_a_test_client_that_runs_each_request_in_a_loop_of_its_own_works():
    app = Starlette(routes=[Route("/page", page)], middleware=[limited("9/hour")])
    client = TestClient(app, client=PEER)
    remaining = [client.get("/page").headers["x-ratelimit-remaining"] for _ in range(3)]
    assert remaining == ["8", "7", "6"]


class Visitors(AuthenticationBackend):
    """Believes whatever name a request gives."""

    async def authenticate(self, conn: Any) -> tuple[AuthCredentials, SimpleUser] | None:
        name = conn.headers.get("x-name")
        return (AuthCredentials(), SimpleUser(name)) if name else None


class Numbered(SimpleUser):
    """A user with an identity beside the name."""

    @property
    def identity(self) -> str:
        return "7"


def counting_by_user() -> Middleware:
    rule = RateLimitRule(limits="1/hour", by=user, name="users")
    return Middleware(UpstashMiddleware, rate_limits=[rule], default_limit=None, deadline=PATIENCE)


def test_a_rule_can_count_by_the_authenticated_user_and_others_by_address():
    app = Starlette(
        routes=[Route("/page", page)],
        middleware=[
            Middleware(AuthenticationMiddleware, backend=Visitors()),
            counting_by_user(),
        ],
    )
    with TestClient(app, client=PEER) as client:
        names = ["ada", "bob", "ada", None, None]
        statuses = [
            client.get("/page", headers={"x-name": name} if name else {}).status_code
            for name in names
        ]
    assert statuses == [200, 200, 429, 200, 429]


def test_a_user_is_known_by_identity_before_name():
    asked = HTTPRequest("GET", "/", native={"user": Numbered("ada")})
    assert user(asked) == Identifier("user", "7")


def test_without_authentication_outside_it_is_said_and_the_address_counts(
    caplog: pytest.LogCaptureFixture,
):
    app = Starlette(
        routes=[Route("/page", page)],
        middleware=[counting_by_user()],
    )
    with TestClient(app, client=PEER) as client:
        statuses = [client.get("/page").status_code for _ in range(2)]
    assert statuses == [200, 429]
    assert "AuthenticationMiddleware" in caplog.text
