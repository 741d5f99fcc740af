"""An ASGI scope as an HTTPRequest, and what of it the application gets to see changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace
from starlette._utils import get_route_path

from tests.asgi.fakes import (
    REQUEST_BODY,
    FakeHalf,
    FakeRuntime,
    Server,
    around,
    body,
    call,
    http_scope,
    sending,
    start,
    whole,
)
from upstash_middleware.runtime import Features

if TYPE_CHECKING:
    from upstash_middleware.asgi import Message, Receive, Scope, Send
    from upstash_middleware.messages import HTTPRequest

pytestmark = pytest.mark.anyio

APP = sending(start(), body())


async def request_of(**changes: Any) -> HTTPRequest:
    half = FakeHalf()
    await call(around(APP, FakeRuntime(half)), http_scope(**changes))
    return half.requests[0]


async def test_a_request_is_told_as_it_was_sent():
    scope = http_scope(
        method="POST",
        scheme="https",
        path="/tea/grün",
        raw_path=b"/tea/gr%C3%BCn",
        query_string=b"size=2&q=%20",
        headers=[(b"host", b"Shop.Example:8443"), (b"x-a", b"1"), (b"x-a", b"\xff")],
    )
    half = FakeHalf()
    await call(around(APP, FakeRuntime(half)), scope)
    (request,) = half.requests
    assert (request.method, request.scheme) == ("POST", "https")
    assert (request.path, request.raw_path) == ("/tea/grün", "/tea/gr%C3%BCn")
    assert request.query == "size=2&q=%20"
    assert request.host == "shop.example:8443"
    assert request.headers.raw == tuple(scope["headers"])
    assert request.peer == "203.0.113.9"
    assert request.native is scope


async def test_an_encoded_slash_stays_apart_from_a_slash():
    request = await request_of(path="/a/b", raw_path=b"/a%2Fb")
    assert request.raw_path == "/a%2Fb"


@pytest.mark.parametrize(
    ("path", "raw_path"),
    [
        ("/shop/tea", b"/shop/tea"),  # uvicorn, Starlette's mounts; hypercorn where it was sent
        ("/tea", b"/tea"),  # hypercorn, granian and gunicorn, if a proxy removes the prefix
        ("/shop/tea", b"/tea"),
        ("/shop/tea", b""),
        ("/tea", b""),
    ],
)
async def test_the_path_is_what_is_below_root_path_and_the_url_has_both(path, raw_path):
    request = await request_of(path=path, raw_path=raw_path, root_path="/shop")
    assert (request.path, request.root_path) == ("/tea", "/shop")
    assert request.raw_path == "/shop/tea"


@pytest.mark.parametrize(
    ("root_path", "path", "below"),
    [
        ("/shop", "/shopping", "/shopping"),
        ("/shop", "/shop", ""),
        ("/shop", "/shop/", "/"),
        ("/shop/", "/shop//tea", "/tea"),  # uvicorn --root-path /shop/
        ("/", "/tea", "/tea"),
        ("", "/tea", "/tea"),
    ],
)
async def test_what_is_below_root_path_is_what_starlette_routes_on(root_path, path, below):
    scope = http_scope(path=path, raw_path=path.encode(), root_path=root_path)
    assert (await request_of(**scope)).path == below == get_route_path(scope)


async def test_an_encoded_slash_stays_apart_from_a_slash_below_a_prefix():
    for raw_path in (b"/a%2Fb", b"/shop/a%2Fb"):
        request = await request_of(path="/shop/a/b", raw_path=raw_path, root_path="/shop")
        assert (request.path, request.raw_path) == ("/a/b", "/shop/a%2Fb")


async def test_a_path_that_middleware_outside_has_rewritten_counts_as_it_is_now():
    """What was sent is about another resource then, and the two must not share an entry."""
    request = await request_of(path="/mobile/tea", raw_path=b"/tea")
    assert (request.path, request.raw_path) == ("/mobile/tea", "/mobile/tea")


async def test_a_path_that_is_no_utf_8_stays_apart_from_others():
    request = await request_of(path="/\ufffd", raw_path=b"/%ff")
    assert request.raw_path == "/%FF"


@pytest.mark.parametrize("raw_path", [None, b""])
async def test_without_a_raw_path_it_is_made_from_the_path(raw_path):
    request = await request_of(path="/tea/grün", raw_path=raw_path)
    assert request.raw_path == "/tea/gr%C3%BCn"


@pytest.mark.parametrize("client", [None, ("", 0), ["", None]])
async def test_a_connection_without_an_address_has_no_peer(client):
    assert (await request_of(client=client)).peer is None


async def test_a_scope_with_only_what_is_required_is_enough():
    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    half = FakeHalf()
    await call(around(APP, FakeRuntime(half)), scope)
    (request,) = half.requests
    assert (request.scheme, request.query, request.host, request.peer) == ("http", "", "", None)


async def test_the_host_is_found_however_a_server_spells_its_name():
    """Without it, hosts would share what is stored for one."""
    assert (await request_of(headers=[(b"Host", b"shop.example")])).host == "shop.example"


async def test_header_pairs_may_be_lists():
    request = await request_of(headers=[[b"host", b"shop.example"]])
    assert request.headers.raw == ((b"host", b"shop.example"),)


async def scope_seen(half: FakeHalf, scope: Scope, features: Features = Features.BOTH) -> Scope:
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)
        await APP(scope, receive, send)

    await call(around(app, FakeRuntime(half), features), scope)
    return seen[0]


async def test_the_application_gets_the_header_fields_that_the_engine_forwards():
    def with_validator(request: HTTPRequest) -> HTTPRequest:
        return replace(request, headers=request.headers.setting("if-none-match", '"1"'))

    scope = http_scope()
    inside: list[object] = []
    outside: list[object] = []

    async def app(shown: Scope, receive: Receive, send: Send) -> None:
        inside.append(shown["headers"])
        await send(start())
        inside.append(shown["headers"])
        await send(body(b"x"))
        shown["route"] = "what code outside reads"

    async def send(message: Message) -> None:
        outside.append(scope["headers"])

    served = around(app, FakeRuntime(FakeHalf(forward=with_validator)))
    await served(scope, Server(REQUEST_BODY).receive, send)
    assert inside == [[(b"host", b"shop.example"), (b"if-none-match", b'"1"')]] * 2
    assert outside == [[(b"host", b"shop.example")]] * 2
    assert scope["headers"] == [(b"host", b"shop.example")]
    assert scope["route"] == "what code outside reads"


async def test_else_it_gets_the_very_scope_so_that_what_it_writes_there_is_seen_outside():
    scope = http_scope()
    assert await scope_seen(FakeHalf(), scope) is scope


async def test_the_decision_stands_in_the_state():
    decision = object()
    scope = http_scope()
    seen = await scope_seen(FakeHalf(decision=decision), scope)
    assert seen["state"]["rate_limit"] is decision


async def test_without_a_limit_for_this_request_the_decision_has_no_figures():
    seen = await scope_seen(FakeHalf(), http_scope())
    assert seen["state"]["rate_limit"].settled_by == "unchecked"


async def test_a_server_that_keeps_no_state_gets_one():
    scope = http_scope()
    del scope["state"]
    seen = await scope_seen(FakeHalf(decision=1), scope)
    assert seen["state"]["rate_limit"] == 1


async def test_each_class_shows_the_handles_of_its_halves():
    limit = await scope_seen(FakeHalf(), http_scope(), Features.RATE_LIMIT)
    cache = await scope_seen(FakeHalf(), http_scope(), Features.CACHE)
    assert set(limit["state"]) == {"data", "rate_limit", "upstash"}
    assert set(cache["state"]) == {"cache", "data", "rate_limit", "upstash"}


NOTHING = {"tags": (), "directories": (), "rules": (), "everything": False, "soft": False}


@pytest.mark.parametrize("enabled", [True, False])
async def test_the_cache_handle_purges_in_tasks_and_in_threads_switched_off_too(enabled):
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["state"]["rate_limit"].settled_by == "unchecked"
        cache = scope["state"]["cache"]
        await cache.purge("/tea", tags=("product:7",))
        cache.purge_sync(everything=True, soft=True)
        await APP(scope, receive, send)

    runtime = FakeRuntime(FakeHalf(), enabled=enabled)
    await call(around(app, runtime))
    assert runtime.purged == [
        (("/tea",), {**NOTHING, "tags": ("product:7",)}),
        ((), {**NOTHING, "everything": True, "soft": True}),
    ]


async def test_a_limit_directly_outside_a_cache_begins_both_and_hands_the_cache_its_part():
    limit, cache = FakeHalf(decision="allowed"), FakeHalf()
    outer, inner = FakeRuntime(limit), FakeRuntime(cache)
    scope = http_scope()
    app = around(around(APP, inner, Features.CACHE), outer, Features.RATE_LIMIT)
    await call(app, scope)
    assert outer.inners == [inner]
    assert inner.inners == []
    assert len(limit.requests) == len(cache.requests) == 1
    assert limit.finished == cache.finished == [True]
    assert "upstash_middleware.handed" not in scope, "it has been taken over"


async def test_what_was_handed_over_and_what_it_forwards_reach_the_application():
    def with_validator(request: HTTPRequest) -> HTTPRequest:
        return replace(request, headers=request.headers.setting("if-none-match", '"1"'))

    seen: list[object] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend(scope["headers"])
        await APP(scope, receive, send)

    inner = around(app, FakeRuntime(FakeHalf(forward=with_validator)), Features.CACHE)
    await call(around(inner, FakeRuntime(FakeHalf()), Features.RATE_LIMIT))
    assert (b"if-none-match", b'"1"') in seen


async def test_a_denial_finishes_what_the_cache_inside_had_begun():
    limit, cache = FakeHalf(response=whole(429, b"later")), FakeHalf()
    inner = around(APP, FakeRuntime(cache), Features.CACHE)
    await call(around(inner, FakeRuntime(limit), Features.RATE_LIMIT))
    assert limit.finished == [True]
    assert cache.finished == [False]


@pytest.mark.parametrize(
    ("outside", "inside"),
    [
        (Features.CACHE, Features.RATE_LIMIT),
        (Features.RATE_LIMIT, Features.RATE_LIMIT),
        (Features.RATE_LIMIT, Features.BOTH),
        (Features.BOTH, Features.CACHE),
    ],
)
async def test_no_other_pair_is_joined(outside, inside):
    """What the outer one answers itself must cost nothing inside of it."""
    outer, inner = FakeRuntime(FakeHalf()), FakeRuntime(FakeHalf())
    await call(around(around(APP, inner, inside), outer, outside))
    assert outer.inners == [None]
    assert inner.inners == [None]


async def test_something_between_the_two_keeps_them_apart():
    outer, inner = FakeRuntime(FakeHalf()), FakeRuntime(FakeHalf())
    cache = around(APP, inner, Features.CACHE)

    async def between(scope: Scope, receive: Receive, send: Send) -> None:
        await cache(scope, receive, send)

    await call(around(between, outer, Features.RATE_LIMIT))
    assert outer.inners == inner.inners == [None]
