"""Observers themselves: what they are told of a request, and what they cost who has none."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from starlette.applications import Starlette
from starlette.requests import HTTPConnection
from starlette.requests import Request as StarletteRequest
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from tests.observing.conftest import request_by
from upstash_middleware import CacheRule
from upstash_middleware.events import CacheLookedUp, Event, RateLimitDecided, UpstashCalled
from upstash_middleware.messages import HTTPRequest
from upstash_middleware.starlette import UpstashMiddleware

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from upstash_middleware.local import LocalUpstash
    from upstash_middleware.runtime import Runtime

    Opened = Callable[..., AbstractContextManager[Runtime]]


@pytest.mark.usefixtures("upstash")
def test_in_starlette_an_observer_gets_the_request_as_starlette_has_it():
    """The decision and the lookup bring the scope; what they are printed as has nothing of it."""
    seen: list[Event] = []

    async def page(_: StarletteRequest) -> PlainTextResponse:
        return PlainTextResponse("page")

    app = Starlette(routes=[Route("/pages/{id}", page)])
    app.add_middleware(
        UpstashMiddleware,
        default_limit="1/min",
        cache=[CacheRule("/pages/{id}", ttl=60)],
        observers=[seen.append],
    )
    with TestClient(app) as client:
        for _ in range(2):
            client.get("/pages/7", headers={"X-Tenant": "tea"})
    told = [event for event in seen if isinstance(event, RateLimitDecided | CacheLookedUp)]
    assert len(told) == 4
    for event in told:
        assert event.request is not None
        asked = HTTPConnection(event.request.native)
        assert (asked.url.path, asked.headers["x-tenant"]) == ("/pages/7", "tea")
        assert "request" not in repr(event)


def test_a_call_is_told_in_the_commands_names_with_neither_keys_nor_values(
    opened: Opened, upstash: LocalUpstash
):
    seen: list[Event] = []
    with opened(seen.append) as runtime:
        runtime.begin(request_by(0))
    (call,) = (event for event in seen if isinstance(event, UpstashCalled))
    assert call.commands == ("EVALSHA", "TIME")
    assert (call.server, call.port) == ("127.0.0.1", int(upstash.url.rpartition(":")[2]))
    assert call.seconds > 0
    assert call.error is None


class Choosy:
    """An observer that says what it has no use for, and notes what it is told."""

    def __init__(self, *ignored: type[Event]) -> None:
        self.ignores = frozenset(ignored)
        self.seen: list[type[Event]] = []

    def __call__(self, event: Event) -> None:
        self.seen.append(type(event))


def test_what_every_observer_ignores_is_not_even_made(opened: Opened):
    """The log ignores both; one who hears of either has it told to all."""
    page = HTTPRequest("GET", "/pages/7", host="shop.example", peer="203.0.113.9")
    for ignored, other in (
        (CacheLookedUp, RateLimitDecided),
        (RateLimitDecided, CacheLookedUp),
    ):
        choosy = Choosy(ignored)
        with opened(choosy, default_limit="9/min") as runtime:
            for _ in range(2):
                runtime.finish(runtime.begin(page), complete=True)
        assert choosy.seen.count(ignored) == 0
        assert choosy.seen.count(other) == 2


def test_an_observer_that_raises_costs_nobody_anything(
    opened: Opened, caplog: pytest.LogCaptureFixture
):
    def broken(_: Event) -> None:
        raise ZeroDivisionError

    with opened(broken) as runtime:
        assert runtime.begin(request_by(0)).response is None
        assert runtime.begin(request_by(0)).response is not None
    assert "an observer raised on UpstashCalled" in caplog.text


@pytest.mark.parametrize(
    ("module", "needs"), [("prometheus", "prometheus_client"), ("opentelemetry", "opentelemetry")]
)
def test_an_exporter_without_its_extra_says_what_to_install(module: str, needs: str):
    script = f"import sys; sys.modules[{needs!r}] = None; import upstash_middleware.{module}"
    command = [sys.executable, "-c", script]
    failed = subprocess.run(command, text=True, capture_output=True, check=False)
    assert failed.stderr.strip().endswith(f'pip install "upstash-middleware[{module}]"')


def test_opentelemetry_is_met_by_its_api_alone():
    script = "import upstash_middleware.opentelemetry, sys; assert not {'opentelemetry.sdk', "
    script += "'opentelemetry.semconv'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
