"""A half of the engine and a runtime that answer as a test says and remember what they saw.

The engine between them is the real one; nothing here speaks to Upstash.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from django.test import override_settings

from tests.django.project import Urls
from upstash_middleware.core.engine import Engine, Exchange, Part, PartExchange
from upstash_middleware.core.flow import Pipeline
from upstash_middleware.drivers import arun, run
from upstash_middleware.messages import Headers, HTTPRequest, Response, ResponseHead
from upstash_middleware.runtime import Features, Runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from upstash_middleware.core.flow import Flow


class FakeHalf(PartExchange, Part):
    """A half of the engine, and its own exchange: it serves one request at a time."""

    def __init__(
        self,
        *,
        response: Response | None = None,
        head: Callable[[ResponseHead], ResponseHead | Response] = lambda head: head,
        forward: Callable[[HTTPRequest], HTTPRequest] = lambda request: request,
        decision: object = None,
    ) -> None:
        self.response = response
        self.decision: Any = decision
        self.holds = False
        self.watches = True
        self._head = head
        self._forward = forward
        self.requests: list[HTTPRequest] = []
        self.heads: list[ResponseHead] = []
        self.chunks: list[bytes] = []
        self.finished: list[bool] = []

    async def prepare(self, request: HTTPRequest) -> FakeHalf:
        await Pipeline(())
        self.requests.append(request)
        return self

    def request_to_forward(self, request: HTTPRequest) -> HTTPRequest:
        return self._forward(request)

    def head(self, head: ResponseHead) -> ResponseHead | Response:
        self.heads.append(head)
        return self._head(head)

    def chunk(self, data: bytes) -> None:
        self.chunks.append(data)

    def finish(self, *, complete: bool) -> Flow[None]:
        return self._settle(complete)

    async def _settle(self, complete: bool) -> None:
        await Pipeline(())
        self.finished.append(complete)


class FakeRuntime:
    """A runtime over one fake half, and its own client."""

    reads_body = False
    finishes_first = False
    caches = True

    def __init__(self, half: FakeHalf, *, enabled: bool = True) -> None:
        self.enabled = enabled
        self.observe = _unexpected
        self.engine = Engine([half], observe=self.observe)
        self.threads: set[int] = set()
        """Those in which something was asked of the wire."""
        self.begun: list[HTTPRequest] = []
        """What it was asked itself, and not by way of another runtime."""
        self.closed = 0

    def begin(self, request: HTTPRequest, inner: FakeRuntime | None = None) -> Exchange:
        self.begun.append(request)
        return run(self.engine.begin(request, inner.engine if inner else None), _Sync(self))

    async def abegin(self, request: HTTPRequest, inner: FakeRuntime | None = None) -> Exchange:
        self.begun.append(request)
        return await arun(self.engine.begin(request, inner.engine if inner else None), _Async(self))

    def finish(self, exchange: Exchange, *, complete: bool) -> None:
        if (flow := exchange.finish(complete=complete)) is not None:
            run(flow, _Sync(self))

    async def afinish(self, exchange: Exchange, *, complete: bool) -> None:
        if (flow := exchange.finish(complete=complete)) is not None:
            await arun(flow, _Async(self))

    def close(self) -> None:
        self.closed += 1


class _Sync:
    def __init__(self, runtime: FakeRuntime) -> None:
        self._runtime = runtime

    def execute(self, pipeline: Pipeline) -> list[Any]:
        self._runtime.threads.add(threading.get_ident())
        return []


class _Async(_Sync):
    async def execute(self, pipeline: Pipeline) -> list[Any]:  # type: ignore[override]
        self._runtime.threads.add(threading.get_ident())
        return []


def _unexpected(event: object) -> None:
    raise AssertionError(event)


OURS = "upstash_middleware.django."
CONDITIONAL_GET = "django.middleware.http.ConditionalGetMiddleware"


@contextmanager
def project(
    *middleware: str, runtimes: dict[Features, FakeRuntime], **views: Callable[..., Any]
) -> Iterator[None]:
    """Configure a project whose middleware has fake runtimes, by the halves that it asks for."""

    def of(_mapping: object, halves: Features, **_: object) -> FakeRuntime:
        return runtimes[halves]

    settings = {"MIDDLEWARE": middleware, "ROOT_URLCONF": Urls(**views), "UPSTASH_MIDDLEWARE": {}}
    with patch.object(Runtime, "of", of), override_settings(**settings):
        yield


@contextmanager
def around(half: FakeHalf, *outside: str, **views: Callable[..., Any]) -> Iterator[FakeRuntime]:
    """Put UpstashMiddleware with one fake half around views, with other middleware outside."""
    runtime = FakeRuntime(half)
    with project(*outside, f"{OURS}UpstashMiddleware", runtimes={Features.BOTH: runtime}, **views):
        yield runtime


def whole(status: int, body: bytes = b"", **fields: str) -> Response:
    """Return a response that the engine gives itself."""
    return Response(ResponseHead(status, Headers.of(**fields)), body)
