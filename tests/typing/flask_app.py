"""Flask: the extensions, the decorators, purging, and the signal."""

from __future__ import annotations

from typing import assert_type
from wsgiref.types import WSGIEnvironment

from flask import Blueprint, Flask, Request, Response
from flask.views import MethodView

from upstash_middleware import Decision, HTTPRequest
from upstash_middleware.flask import (
    CacheMiddleware,
    RateLimitExceeded,
    RateLimitMiddleware,
    UpstashMiddleware,
    cached,
    exempt,
    limit,
    never_cached,
    purge,
    rate_limited,
)

app = Flask(__name__)
assert_type(UpstashMiddleware(app, default_limit="1/min"), UpstashMiddleware)
assert_type(RateLimitMiddleware(default_limit="1/min").init_app(app), None)
app.wsgi_app = CacheMiddleware(app.wsgi_app)  # type: ignore[method-assign]
UpstashMiddleware(app, defualt_limit="1/min")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def session(request: HTTPRequest) -> str | None:
    environ: WSGIEnvironment = request.native
    assert_type(environ, WSGIEnvironment)
    return Request(environ).cookies.get("session")


@app.get("/visited")
@limit("5/minute", by=session)
def visited() -> str:
    return "visited"


@app.get("/tea/<int:size>")
@limit("5/minute", by=lambda request: request.peer)
def tea(size: int) -> str:
    return f"{size}"


@app.get("/cake")
@limit("5/minute")
async def cake() -> Response:
    return Response()


@app.get("/page")
@exempt
@cached(60, tags=("page",))
def page() -> str:
    return "page"


async def calls() -> None:
    assert_type(tea(size=1), str)
    assert_type(await cake(), Response)
    assert_type(page(), str)
    assert_type(never_cached(page)(), str)
    tea("large")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


blueprint = Blueprint("shop", __name__)
blueprint.before_request(limit("100/minute", name="shop"))
assert_type(limit("100/minute")(), None)


class Shop(MethodView):
    decorators = [limit("5/minute")]  # noqa: RUF012 - as Flask's documentation has it


@app.errorhandler(RateLimitExceeded)
def denied(error: RateLimitExceeded) -> str:
    assert_type(error.decision, Decision)
    return "later"


@rate_limited.connect
def note(sender: Flask, decision: Decision) -> None: ...


assert_type(purge("/tea?size=2", tags=("tea",), everything=False, soft=True), None)
purge(tags=["tea"])
purge(tags=7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
