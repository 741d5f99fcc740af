"""What FastAPI's OpenAPI document tells of limits."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi import APIRouter, Depends, FastAPI
from fastapi.responses import JSONResponse
from openapi_spec_validator import validate
from starlette.requests import Request
from starlette.testclient import TestClient

from upstash_middleware import Concurrency, RateLimitRule
from upstash_middleware.fastapi import (
    CacheMiddleware,
    RateLimitMiddleware,
    RequestDenied,
    UpstashMiddleware,
    document_limits,
    exempt,
    limit,
)

Serve = Callable[[Any], TestClient]


def plain() -> str:
    return "here"


def named(thing: str) -> str:
    return thing


def shop(*paths: str, **arguments: Any) -> FastAPI:
    """Return an application with GET and POST at paths, and a middleware if it has arguments."""
    app = FastAPI()
    for path in paths:
        app.get(path)(plain)
        app.post(path)(plain)
    if arguments:
        app.add_middleware(UpstashMiddleware, **arguments)
    document_limits(app)
    return app


def limited(app: FastAPI) -> set[str]:
    """Return the operations that may answer 429, in a document that is a valid one."""
    schema = app.openapi()
    validate(schema)
    return {
        f"{method.upper()} {path}"
        for path, operations in schema["paths"].items()
        for method, operation in operations.items()
        if "429" in operation["responses"]
    }


def test_an_operation_with_a_limit_among_its_dependencies_is_told():
    app = FastAPI()
    router = APIRouter(prefix="/api", dependencies=[Depends(limit("9/hour"))])
    router.get("/routers")(plain)
    app.get("/own", dependencies=[Depends(limit("9/hour"))])(plain)
    app.get("/free")(plain)
    app.include_router(router)
    document_limits(app)
    assert limited(app) == {"GET /own", "GET /api/routers"}


def test_an_operation_that_a_rule_of_the_middleware_covers_is_told():
    rules = [
        RateLimitRule("/a/{id}", "9/hour", methods=["POST"]),
        RateLimitRule("/b/{rest:path}", "9/hour"),
    ]
    app = shop("/c", rate_limits=rules, default_limit=None)
    app.get("/a/{thing}")(named)
    app.post("/a/{thing}")(named)
    app.get("/b/{thing:path}")(named)
    assert limited(app) == {"POST /a/{thing}", "GET /b/{thing}"}


def test_the_default_limit_covers_what_no_rule_frees():
    rules = [RateLimitRule("/health", "unlimited"), RateLimitRule("/try", "1/hour", shadow=True)]
    app = shop("/health", "/try", "/c", rate_limits=rules, default_limit="9/hour")
    app.get("/exempt")(exempt(lambda: "well"))
    assert limited(app) == {"GET /try", "POST /try", "GET /c", "POST /c"}


@pytest.mark.parametrize(
    "arguments", [{}, {"default_limit": "9/hour", "enabled": False}, {"default_limit": None}]
)
def test_where_nothing_is_limited_the_document_is_as_it_was(arguments: dict[str, Any]):
    app = shop("/a", **arguments)
    assert limited(app) == set()
    assert "responses" not in app.openapi().get("components", {})


def test_both_halves_count_and_a_cache_does_not():
    app = shop("/a")
    app.add_middleware(CacheMiddleware, cache=[{"path": "/a", "ttl": 60}])
    assert limited(app) == set()
    app = shop("/a")
    app.add_middleware(RateLimitMiddleware, default_limit=Concurrency(3))
    assert limited(app) == {"GET /a", "POST /a"}


def test_a_denial_is_what_the_document_says(client: Serve):
    app = shop("/a", default_limit="1/hour")
    served = client(app)
    schema = served.get("/openapi.json")
    denied = served.get("/a")
    assert (schema.status_code, denied.status_code) == (200, 429)
    components = schema.json()["components"]
    answer = components["responses"]["TooManyRequests"]
    assert all(name in denied.headers for name in answer["headers"])
    assert list(answer["content"]) == [denied.headers["content-type"]]
    problem = components["schemas"]["TooManyRequests"]
    assert sorted(problem["required"]) == sorted(problem["properties"]) == sorted(denied.json())


def own_answer(_: Request, __: Exception) -> JSONResponse:
    return JSONResponse("slow down", 429)


def test_a_body_that_the_application_makes_is_not_described():
    for app in (
        shop("/a", default_limit="9/hour", on_denied=lambda *_: (429, {}, "slow down")),
        shop("/a", default_limit="9/hour"),
    ):
        if not app.user_middleware[0].kwargs.get("on_denied"):
            app.add_exception_handler(RequestDenied, own_answer)
        assert limited(app) == {"GET /a", "POST /a"}
        assert "content" not in app.openapi()["components"]["responses"]["TooManyRequests"]


def test_what_an_operation_says_itself_stays():
    app = shop(default_limit="9/hour")
    app.get("/a", responses={429: {"description": "Too fast"}})(plain)
    assert limited(app) == {"GET /a"}
    assert app.openapi()["paths"]["/a"]["get"]["responses"]["429"]["description"] == "Too fast"


def test_it_is_made_once():
    app = shop("/a", default_limit="9/hour")
    assert app.openapi() is app.openapi()
