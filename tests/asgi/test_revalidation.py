"""RFC 5861 §3: a background revalidation's scope and context have nothing of the visitor."""

from __future__ import annotations

from contextvars import ContextVar
from functools import partial
from itertools import chain, count, repeat
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from tests.asgi.fakes import body, call, http_scope, start
from tests.asgi.serving import PATIENCE
from upstash_middleware import CacheRule
from upstash_middleware.asgi import CacheMiddleware, RateLimitMiddleware
from upstash_middleware.starlette import CacheMiddleware as StarletteCache

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from upstash_middleware.asgi import ASGIApp, Scope
    from upstash_middleware.local import LocalUpstash

PAGE = CacheRule("/{rest:path}", ttl=10, stale_while_revalidate=60)
PATIENT: Any = {"deadline": PATIENCE, "cache_deadline": PATIENCE}
visitor: ContextVar[str] = ContextVar("visitor", default="nobody")


def knowing(name: str, app: ASGIApp) -> ASGIApp:
    """Stand outside of an application and tell it who the visitor is, wherever that is done."""

    async def middleware(scope: Scope, receive: Any, send: Any) -> None:
        visitor.set(name)
        scope["state"]["user"] = scope["user"] = scope["auth"] = scope["session"] = name
        await app({**scope, "client": (name, 1), "extensions": {name: {}}}, receive, send)

    return middleware


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_its_scope_and_its_context_variables_are_nobodys(upstash: LocalUpstash):
    scopes: list[dict[str, Any]] = []

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        scopes.append({**scope, "state": {**scope["state"]}, "variable": visitor.get()})
        await send(start(200))
        await send(body(b"page"))

    cache = CacheMiddleware(app, cache=[PAGE], **PATIENT)
    limited = RateLimitMiddleware(cache, default_limit="9/minute", **PATIENT)
    await call(knowing("ada", limited), http_scope(path="/tea", raw_path=b"/tea"))
    upstash.advance(20)
    await call(knowing("bob", limited), http_scope(path="/tea", raw_path=b"/tea"))
    await cache.runtime.aclose()
    await limited.runtime.aclose()
    first, second = scopes
    assert first["variable"] == first["user"] == "ada"
    assert second["variable"] == "nobody"
    assert second["client"] is None
    assert not {"user", "auth", "session", "extensions"} & set(second)
    assert set(second["state"]) == {"cache", "data", "rate_limit", "upstash"}
    assert second["state"]["rate_limit"].settled_by == "unchecked"
    same = ("type", "scheme", "path", "raw_path", "root_path", "query_string", "server")
    assert [second[name] for name in same] == [first[name] for name in same]
    assert "bob" not in repr(second)


def test_inside_a_mount_it_has_what_the_mount_says(upstash: LocalUpstash):
    """The parts of the path that the mount has named, and URLs as they were."""
    seen: list[str] = []

    async def page(request: Request) -> Response:
        seen.append(f"{request.path_params['shop']} {request.url_for('shops:page', shop=7)}")
        return PlainTextResponse(seen[-1])

    inner = Starlette(
        routes=[Route("/page", page, name="page")],
        middleware=[Middleware(StarletteCache, cache=[PAGE], **PATIENT)],
    )
    app = Starlette(routes=[Mount("/shops/{shop}", inner, name="shops")])
    with TestClient(app) as client:
        for _ in range(2):
            client.get("/shops/4/page")
            upstash.advance(20)
    assert seen == ["4 http://testserver/shops/7/page"] * 2


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
@pytest.mark.parametrize("version", ["2.0", "2.3", "2.4"])
@pytest.mark.parametrize("ends", [True, False])
async def test_a_stream_is_read_to_its_end_or_until_it_will_not_be_stored(
    upstash: LocalUpstash, version: str, ends: bool
):
    """Whichever way the application learns that a client has left; none holds the event loop."""
    renders = count(1)

    async def page(_: Request) -> Response:
        number = next(renders)
        return StreamingResponse(Pieces(number, endless=number > 1 and not ends))

    inner = Starlette(routes=[Route("/tea", page)])
    cache = StarletteCache(inner, cache=[PAGE], cache_max_body=1000, **PATIENT)
    asgi = {"version": "3.0", "spec_version": version}
    bodies = []
    for _ in range(3):
        sent: list[dict[str, Any]] = []
        messages = [{"type": "http.request", "body": b"", "more_body": False}]
        receive, send = partial(_from_a_patient_client, messages), partial(_append, sent)
        with anyio.fail_after(PATIENCE):
            await cache(http_scope(asgi=asgi, path="/tea", raw_path=b"/tea"), receive, send)
        bodies.append(b"".join(message.get("body", b"") for message in sent))
        upstash.advance(0 if len(bodies) == 2 else 20)
    await cache.runtime.aclose()
    assert bodies == [b"page 1", b"page 1", b"page 2" if ends else b"page 1"]


class Pieces:
    """The body of a page; no generator, which trio wants to be read to its end or closed."""

    def __init__(self, number: int, *, endless: bool) -> None:
        self.pieces = chain([b"page %d" % number], repeat(b"a" * 100) if endless else ())

    def __aiter__(self) -> Pieces:
        return self

    async def __anext__(self) -> bytes:
        for piece in self.pieces:
            return piece
        raise StopAsyncIteration


async def _from_a_patient_client(messages: list[dict[str, Any]]) -> dict[str, Any]:
    if not messages:
        await anyio.sleep_forever()
    return messages.pop()


async def _append(sent: list[dict[str, Any]], message: Any) -> None:
    sent.append(message)
