"""In each framework a request's span is the parent of its calls to Upstash, until its last byte."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from django.http import HttpResponse
from django.test import AsyncClient, override_settings
from flask import Flask
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from tests.django.project import Urls
from upstash_middleware import CacheRule
from upstash_middleware.flask import EXTENSION
from upstash_middleware.flask import UpstashMiddleware as FlaskUpstashMiddleware
from upstash_middleware.opentelemetry import OpenTelemetryObserver
from upstash_middleware.starlette import UpstashMiddleware

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("upstash")


class Traced:
    """A tracer, an observer of it, and the spans of one request that have ended."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("the server")
        self.settings: dict[str, Any] = {
            "default_limit": "100/min",
            "cache": [CacheRule("/page", ttl=60)],
            "observers": [OpenTelemetryObserver(tracer_provider=self.provider)],
            "deadline": 10,
            "cache_deadline": 10,
        }

    def check(self) -> None:
        """One call looked up and counted, one stored; both are the server's children."""
        spans = self._exporter.get_finished_spans()
        (server,) = (span for span in spans if span.kind is SpanKind.SERVER)
        calls = [span for span in spans if span.kind is SpanKind.CLIENT]
        assert [name_of(call) for call in calls] == ["PIPELINE", "SET"]
        assert server.context is not None
        for call in calls:
            assert call.parent is not None
            assert call.parent.span_id == server.context.span_id


def name_of(call: ReadableSpan) -> Any:
    return (call.attributes or {})["db.operation.name"]


@pytest.fixture
def traced() -> Iterator[Traced]:
    traced = Traced()
    yield traced
    traced.provider.shutdown()


def test_in_starlette(traced: Traced):
    class Serving:
        """What an instrumentation of ASGI does."""

        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                await self.app(scope, receive, send)
                return
            with traced.tracer.start_as_current_span("server", kind=SpanKind.SERVER):
                await self.app(scope, receive, send)

    async def page(_: Any) -> PlainTextResponse:
        return PlainTextResponse("page")

    app = Starlette(routes=[Route("/page", page)])
    app.add_middleware(UpstashMiddleware, **traced.settings)
    app.add_middleware(Serving)
    with TestClient(app) as client:
        client.get("/page")
    traced.check()


def test_in_flask(traced: Traced):
    app = Flask("shop")
    app.add_url_rule("/page", view_func=lambda: "page")
    FlaskUpstashMiddleware(app, **traced.settings)
    with traced.tracer.start_as_current_span("server", kind=SpanKind.SERVER):
        app.test_client().get("/page", buffered=True)
    (middleware,) = app.extensions[EXTENSION].values()
    with closing(middleware.runtime):
        traced.check()


@pytest.mark.anyio
async def test_in_django_on_an_event_loop(traced: Traced):
    """Where Django closes the response, and the page is stored, in a thread."""

    async def page(_: Any) -> HttpResponse:
        return HttpResponse("page")

    settings = {
        "MIDDLEWARE": ["upstash_middleware.django.UpstashMiddleware"],
        "ROOT_URLCONF": Urls(page=page),
        "UPSTASH_MIDDLEWARE": traced.settings,
    }
    with override_settings(**settings):
        with traced.tracer.start_as_current_span("server", kind=SpanKind.SERVER):
            await AsyncClient().get("/page")
        traced.check()
