"""What a warm process sends and receives for a request, in bytes of bodies: it must not grow.

Round trips and billed commands are counted in every framework by ``contract/test_budgets.py``.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from upstash_middleware import CacheRule, Headers, HTTPRequest, runtime
from upstash_middleware.messages import ResponseHead
from upstash_middleware.runtime import Features, Runtime
from upstash_middleware.upstash import Client
from upstash_middleware.upstash.client import open_transport

PAGE = b"A page that is long enough for its body to be more than its entry's head. " * 5
PAGE_FIELDS = Headers.of(content_type="text/html; charset=utf-8", etag='"1"')


class Counting:
    """A Transport that passes calls on and counts the bytes of their bodies."""

    def __init__(self, credentials):
        self._transport = open_transport(credentials, None)
        self.calls = 0
        self.sent = self.received = 0

    def send(self, call, seconds):
        answer = self._transport.send(call, seconds)
        self.calls += 1
        self.sent += len(call.body)
        self.received += len(answer.body)
        return answer

    def close(self):
        self._transport.close()


class Process:
    """A runtime whose transport counts."""

    def __init__(self, monkeypatch, **arguments):
        self.wire: Any = None
        monkeypatch.setattr(runtime, "Client", partial(Client, transport=self._transport))
        self._runtime = Runtime.of(arguments, Features.BOTH)

    def _transport(self, credentials):
        self.wire = Counting(credentials)
        return self.wire

    def serve(self, path="/products/7"):
        """Serve a request as an adapter would."""
        request = HTTPRequest("GET", path, host="shop.example", peer="203.0.113.7")
        exchange = self._runtime.begin(request)
        if exchange.response is None:
            exchange.head(ResponseHead(200, PAGE_FIELDS))
            exchange.chunk(PAGE)
        self._runtime.finish(exchange, complete=True)

    def cost(self, path="/products/7"):
        """Return what one more request takes: calls, bytes sent, bytes received."""
        before = self.wire.calls, self.wire.sent, self.wire.received
        self.serve(path)
        after = self.wire.calls, self.wire.sent, self.wire.received
        return tuple(now - then for now, then in zip(after, before, strict=True))


@pytest.fixture
def process(upstash, monkeypatch):
    """Start a process with these settings, and let it serve what warms it up."""
    started = []

    def start(**arguments):
        one = Process(monkeypatch, **arguments)
        started.append(one)
        for _ in range(2):
            one.serve()
        return one

    yield start
    for one in started:
        one._runtime.close()


CACHE = (CacheRule("/{page:path}", ttl=60, tags=("products",)),)


@pytest.mark.parametrize(
    ("arguments", "sent", "received"),
    [
        pytest.param({"default_limit": "1000/hour"}, 300, 50, id="one limit"),
        pytest.param(
            {"default_limit": "1000/hour; 100/minute; 10000/day"}, 720, 140, id="three limits"
        ),
        pytest.param({"cache": CACHE}, 260, len(PAGE) + 240, id="a hit"),
        pytest.param(
            {"default_limit": "1000/hour", "cache": CACHE}, 560, len(PAGE) + 300, id="both"
        ),
    ],
)
def test_a_warm_request_takes_one_call_and_no_more_bytes_than_this(
    process, arguments, sent, received
):
    calls, bytes_sent, bytes_received = process(**arguments).cost()
    assert calls == 1
    assert bytes_sent <= sent
    assert bytes_received <= received


def test_a_denial_that_is_remembered_takes_nothing(process):
    one = process(default_limit="1/hour")
    assert one.cost() == (0, 0, 0)


def test_a_miss_sends_the_page_once(process):
    one = process(cache=CACHE)
    calls, bytes_sent, _ = one.cost("/products/8")
    assert calls == 2
    assert bytes_sent <= len(PAGE) + 480


def test_a_second_limit_costs_less_than_the_first(process):
    _, one, _ = process(default_limit="1000/hour").cost()
    _, two, _ = process(default_limit="1000/hour; 100/minute").cost()
    assert two < 2 * one
