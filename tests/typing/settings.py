"""Settings as keyword arguments and as a mapping, alike in every framework."""

from __future__ import annotations

from datetime import timedelta
from typing import assert_type
from wsgiref.types import StartResponse, WSGIEnvironment

from upstash_middleware import CacheRule, Decision, HTTPRequest, RateLimitRule
from upstash_middleware.asgi import CacheMiddleware, RateLimitMiddleware, UpstashMiddleware
from upstash_middleware.events import Event, Observer, RateLimitDecided
from upstash_middleware.opentelemetry import OpenTelemetryObserver
from upstash_middleware.prometheus import PrometheusObserver
from upstash_middleware.settings import Arguments
from upstash_middleware.wsgi import UpstashMiddleware as WSGIUpstashMiddleware


def note(event: Event) -> None:
    if isinstance(event, RateLimitDecided):
        assert_type(event.allowed, bool)
        assert_type(event.request, HTTPRequest | None)


async def denied(request: HTTPRequest, decision: Decision) -> tuple[int, dict[str, str], str]:
    return 429, {"Content-Type": "text/plain"}, f"{request.path}: {decision.rule}"


observers: list[Observer] = [note, PrometheusObserver(), OpenTelemetryObserver()]
arguments: Arguments = {
    "rate_limits": [RateLimitRule("/a", "1/min"), {"path": "/b", "limits": "2/min"}],
    "default_limit": "100/minute",
    "cache": [CacheRule("/p", ttl=60), {"path": "/q", "ttl": 60}],
    "deadline": 0.5,
    "lease": {"seconds": 1, "share": 0.2},
    "observers": observers,
    "on_denied": denied,
}
misspelt: Arguments = {"defualt_limit": "1/min"}  # type: ignore[typeddict-unknown-key]  # pyright: ignore[reportAssignmentType]


async def asgi(scope: object, receive: object, send: object) -> None: ...


def wsgi(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    start_response("200 OK", [])
    return []


assert_type(UpstashMiddleware(asgi, **arguments), UpstashMiddleware)
assert_type(RateLimitMiddleware(asgi, default_limit="1/min"), RateLimitMiddleware)
assert_type(CacheMiddleware(asgi, cache=[CacheRule("/p", ttl=60)]), CacheMiddleware)
assert_type(WSGIUpstashMiddleware(wsgi, **arguments), WSGIUpstashMiddleware)
UpstashMiddleware(asgi, deadline="500ms", cache_grace=timedelta(hours=1), default_limit="1/min")
UpstashMiddleware(asgi, deadline=[1])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
UpstashMiddleware(asgi, deadlien=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
WSGIUpstashMiddleware(wsgi, observers=note)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
