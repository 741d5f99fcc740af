"""Whatever a client sends: no exception of ours, no forged line or field, no long or shared key.

The adapters' edge and the core's, with the local Upstash behind them, so that what reaches Redis
can be looked at.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, assume, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.faults.hostile import (
    REQUESTS,
    SECRET,
    TOKEN_FIELDS,
    Hostile,
    OverASGI,
    OverWSGI,
    settings,
)
from tests.upstash.support import pipeline
from upstash_middleware.clock import SystemClock
from upstash_middleware.core.cache import Cache, CacheRule
from upstash_middleware.core.cache.http.vary import selected_values
from upstash_middleware.core.cache.keys import Names, origin_of, variant_key
from upstash_middleware.core.cache.rules import profile_named
from upstash_middleware.core.identify import Identifier, header, key_text
from upstash_middleware.core.ratelimit import RateLimiter, RateLimitRule
from upstash_middleware.drivers import run
from upstash_middleware.errors import ConnectionLost
from upstash_middleware.events import Event, InternalError, UpstashFailed, UserCodeFailed
from upstash_middleware.messages import Headers, HTTPRequest, ResponseHead
from upstash_middleware.runtime import Features, Runtime
from upstash_middleware.upstash import Client, Credentials

if TYPE_CHECKING:
    from collections.abc import Iterator

    from upstash_middleware.core.flow import Pipeline, Reply
    from upstash_middleware.local import LocalUpstash

LONGEST_KEY = 4096
"""Bytes; Upstash takes 32 KB."""

MANY = hypothesis_settings(
    max_examples=80,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class Edge:
    """The hostile application over one interface, what it told, and what it left on Redis."""

    def __init__(self, upstash: LocalUpstash, kind: str) -> None:
        self.events: list[Event] = []
        self._client = Client(Credentials(upstash.url, upstash.token), deadline=20.0)
        self._runner = asyncio.Runner()
        arguments = settings("hostile", self.events)
        self.app = OverASGI(self._runner, arguments) if kind == "asgi" else OverWSGI(arguments)

    def everything_on_redis(self) -> dict[bytes, bytes]:
        keys: Any = self._client.execute(pipeline(("KEYS", "*")))[0]
        if not keys:
            return {}
        values: Any = self._client.execute(pipeline(("MGET", *keys)))[0]
        return dict(zip(keys, [value or b"" for value in values], strict=True))

    def close(self) -> None:
        self.app.close()
        self._runner.close()
        self._client.close()


@pytest.fixture(params=["asgi", "wsgi"])
def edge(request: pytest.FixtureRequest, upstash: LocalUpstash) -> Iterator[Edge]:
    edge = Edge(upstash, request.param)
    yield edge
    edge.close()


@MANY
@given(hostile=REQUESTS)
def test_no_request_makes_us_fail_or_say_what_it_wants_us_to(
    edge: Edge, caplog: pytest.LogCaptureFixture, hostile: Hostile
) -> None:
    """No exception, no 500, no field or log line that a client has made up."""
    caplog.clear()
    edge.events.clear()
    status, fields = edge.app.send(hostile)
    assert status in {200, 206, 304, 400, 412, 416, 429, 504}
    assert not [event for event in edge.events if isinstance(event, _OURS)], edge.events
    for name, value in fields:
        assert not set(name + value) & set(b"\r\n\x00")
    assert b"set-cookie" not in {name.lower() for name, _ in fields}
    with caplog.at_level(logging.DEBUG, "upstash_middleware"):
        for record in caplog.records:
            assert "\n" not in record.getMessage()
            assert "\r" not in record.getMessage()


_OURS = (InternalError, UserCodeFailed, UpstashFailed)


NUMEROUS = {
    "20,000 fields": [(b"x-%d" % number, b"v") for number in range(20_000)],
    "10,000 lines of addresses": [(b"x-forwarded-for", b"198.51.100.7")] * 10_000,
    "10,000 lines of cookies": [(b"cookie", b"session=%d" % n) for n in range(10_000)],
    "10,000 lines of conditions": [(b"if-none-match", b'"a", W/"b"')] * 10_000,
    "10,000 lines of languages": [(b"accept-language", b"en;q=0.5")] * 10_000,
    "an identifier of a megabyte": [(b"x-api-key", b"k" * 1_000_000)],
    "a cookie of a megabyte": [(b"cookie", b"theme=" + b"t" * 1_000_000)],
    "a name of a megabyte": [(b"n" * 1_000_000, b"v")],
}


@pytest.mark.parametrize("name", NUMEROUS)
def test_fields_of_any_number_and_length_cost_time_that_grows_with_them(
    edge: Edge, name: str
) -> None:
    """More than any server lets through; none makes a long key."""
    began = time.process_time()
    status, _ = edge.app.send(Hostile("GET", b"/page/x", b"", NUMEROUS[name], "203.0.113.9"))
    assert status == 200
    assert time.process_time() - began < 5
    assert not [event for event in edge.events if isinstance(event, _OURS)]
    assert all(len(key) <= LONGEST_KEY for key in edge.everything_on_redis())


@MANY
@given(requests=st.lists(REQUESTS, min_size=1, max_size=5))
def test_keys_are_short_and_plain_text_whatever_is_asked(
    edge: Edge, requests: list[Hostile]
) -> None:
    for hostile in requests:
        edge.app.send(hostile)
    for key in edge.everything_on_redis():
        assert len(key) <= LONGEST_KEY
        assert key.isascii()
        assert key.decode().isprintable()


@pytest.mark.parametrize("size", [1_000, 1_000_000])
def test_an_identifier_of_any_size_makes_a_bounded_key(size: int) -> None:
    text = key_text(Identifier("header.x-api-key", "x" * size), lambda: b"key")
    assert len(text) < 256
    assert text != key_text(Identifier("header.x-api-key", "x" * (size - 1) + "y"), lambda: b"key")


TRICKY = st.text(st.sampled_from(":=#%/,|*é\ud800 ab0\n"), max_size=8)


@given(one=st.tuples(TRICKY, TRICKY, st.booleans()), other=st.tuples(TRICKY, TRICKY, st.booleans()))
@example(one=("a", "b=c", False), other=("a=b", "c", False))
@example(one=("a", "b:c", False), other=("a:b", "c", False))
def test_different_identifiers_have_different_keys(
    one: tuple[str, str, bool], other: tuple[str, str, bool]
) -> None:
    """However their parts concatenate, and whether they are hashed or not."""
    assume(one != other)
    assert key_text(Identifier(*one), lambda: b"k") != key_text(Identifier(*other), lambda: b"k")


URLS = st.text(st.sampled_from("/?&=#%:ab"), max_size=8).map(lambda tail: "/" + tail)
HOSTS = st.text(st.sampled_from("/?#%:@ab.é"), max_size=6)


@given(one=st.tuples(HOSTS, URLS), other=st.tuples(HOSTS, URLS))
@example(one=("a", "/b/c"), other=("a/b", "/c"))
def test_different_resources_have_different_keys(
    one: tuple[str, str], other: tuple[str, str]
) -> None:
    assume(one != other)
    keys = set()
    for host, path in (one, other):
        request = HTTPRequest("GET", "/", host=host, sent_path=path.partition("?")[0])
        url = f"{request.raw_path}?{path.partition('?')[2]}"
        keys.add((Names("p").resource(origin_of("http", host), url), url, host))
    assume(len({(url, host.removesuffix(":80")) for _, url, host in keys}) == 2)
    assert len({key for key, _, _ in keys}) == 2


SELECTING = st.dictionaries(
    st.sampled_from(["x-a", "x-b", "cookie"]),
    st.text(st.sampled_from('x-ab:\\",;= '), max_size=8),
)


@given(one=SELECTING, other=SELECTING)
@example(one={"x-a": "1,x-b:2"}, other={"x-a": "1", "x-b": "2"})
def test_different_selecting_fields_make_different_variants(
    one: dict[str, str], other: dict[str, str]
) -> None:
    """RFC 9111 §4.1; blanks around commas and empty members of lists are no difference."""
    profile = profile_named("safe")
    texts = []
    for fields in (one, other):
        headers = Headers((name.encode(), value.encode()) for name, value in fields.items())
        texts.append(selected_values(("x-a", "x-b", "cookie"), headers, profile))
    assume(_meaning(one) != _meaning(other))
    assert variant_key("k", texts[0], b"s") != variant_key("k", texts[1], b"s")


def _meaning(fields: dict[str, str]) -> dict[str, str]:
    """Return the fields without what the definition of a list makes meaningless."""
    return {name: value.replace(" ", "").replace(",", "") for name, value in fields.items()}


def test_no_secret_of_a_client_or_of_ours_is_left_anywhere(
    edge: Edge, upstash: LocalUpstash, caplog: pytest.LogCaptureFixture
) -> None:
    """Redis, the log, events and reprs are searched after requests that failed and that did not."""
    secrets = [SECRET, upstash.token.encode()]
    with caplog.at_level(logging.DEBUG):
        for fault in (None, "unauthorized", "bad-gateway", "quota", "drop-after", None):
            upstash.set_faults(fault=fault)
            for fields in (TOKEN_FIELDS, TOKEN_FIELDS[1:], TOKEN_FIELDS[:1], TOKEN_FIELDS[2:]):
                for path in (b"/page/x", b"/other"):
                    edge.app.send(Hostile("GET", path, b"q=1", fields, "203.0.113.9"))
    upstash.set_faults()
    runtime = Runtime.of(arguments_with_secrets(upstash), Features.BOTH)
    runtime.begin(HTTPRequest("GET", "/", Headers(TOKEN_FIELDS), peer="203.0.113.9"))
    native = {"headers": TOKEN_FIELDS}
    request = HTTPRequest("GET", "/", Headers(TOKEN_FIELDS), native=native)
    shown = [
        caplog.text,
        *map(repr, edge.events),
        *(f"{event.error!r} {event.error}" for event in edge.events if hasattr(event, "error")),
        repr(runtime.settings),
        repr(runtime.__dict__),
        repr(runtime.engine.__dict__),
        repr(request),
        repr(ResponseHead(200, Headers(TOKEN_FIELDS))),
    ]
    stored = edge.everything_on_redis()
    assert len(stored) > 3
    for secret in secrets:
        assert not [key for key, value in stored.items() if secret in key or secret in value]
        assert not [text[:200] for text in shown if secret.decode() in text]


def arguments_with_secrets(upstash: LocalUpstash) -> dict[str, Any]:
    return {
        **settings("hostile", []),
        "url": upstash.url,
        "token": upstash.token,
        "secret": SECRET.decode(),
    }


class Answering:
    """An executor that has one answer to everything, or none."""

    def __init__(self, reply: Reply | None) -> None:
        self.reply = reply

    def execute(self, asked: Pipeline) -> list[Reply]:
        if self.reply is None:
            raise ConnectionLost("nobody is there")
        return [self.reply if command.script else None for command in asked.commands]


DISTINCT = int(os.environ.get("DISTINCT", "11000"))
"""Of each, more than any bounded table holds; a million takes some minutes."""


def limited(reply: Reply | None, limits: Any = "1/day") -> Any:
    """Return what asks for a distinct identifier's quota."""
    rule = RateLimitRule(limits=limits, name="r", by=header("x-id"), on_error="local")
    limiter = RateLimiter(
        (rule,), None, prefix="p", secret=lambda: b"k", clock=SystemClock, observe=lambda _: None
    )
    client = Answering(reply)

    def ask(number: int) -> None:
        headers = Headers([(b"x-id", b"%032d" % number)])
        run(limiter.begin(HTTPRequest("GET", "/", headers)), client)

    return ask


def cached(**fields: str) -> Any:
    """Return what renders a distinct page with these fields, so that the process learns of it."""
    cache = Cache(
        [CacheRule("/{rest:path}", ttl=60)],
        prefix="p",
        secret=lambda: b"k",
        clock=SystemClock,
        observe=lambda _: None,
    )
    head = ResponseHead(200, Headers.of(**fields))

    class Stores:
        def execute(self, asked: Pipeline) -> list[Reply]:
            return [
                [None] * (len(command.args) - 1) if command.args[0] == "MGET" else b"OK"
                for command in asked.commands
            ]

    def ask(number: int) -> None:
        exchange: Any = run(cache.begin(HTTPRequest("GET", f"/{number:032}", host="h")), Stores())
        exchange.head(head)
        exchange.chunk(b"page")
        if (left := exchange.finish(complete=True)) is not None:
            run(left, Stores())

    return ask


def logged() -> Any:
    """Return what reports a distinct failure to a runtime's observers."""
    runtime = Runtime.of({"default_limit": "10/minute"}, Features.BOTH)
    return lambda number: runtime.observe(
        UpstashFailed("rate limit", ConnectionLost(f"reset {number}"))
    )


def _distinct_limit(request: HTTPRequest) -> str:
    return f"{int(request.headers.get('x-id') or 0) + 1}/h"


ASKING = {
    "denied": lambda: limited([0, 0, 60_000, 60_000, 1, 1]),
    "counted here": lambda: limited(None),
    "tiers": lambda: limited([1, 0, 60_000, 0, 1, 1], _distinct_limit),
    "pages": lambda: cached(vary="x-a", cache_tag="t", cache_control="max-age=9"),
    "pages that may not be stored": lambda: cached(cache_control="no-store"),
    "failures in the log": logged,
}


@pytest.mark.parametrize("name", ASKING)
def test_memory_is_bounded_however_many_ask(name: str, upstash: LocalUpstash) -> None:
    """Once the bounded tables are full, others take no more; DISTINCT=1000000 for all."""
    ask = ASKING[name]()
    for number in range(DISTINCT):
        ask(number)
    gc.collect()
    before = sys.getallocatedblocks()
    more = DISTINCT // 2
    for number in range(DISTINCT, DISTINCT + more):
        ask(number)
    gc.collect()
    assert sys.getallocatedblocks() - before < more, "nothing is kept of each"
