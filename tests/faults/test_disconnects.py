"""Clients that leave, and requests that are cancelled, give back what they took, exactly once.

In every framework, for the middleware and for what stands in front of handlers. ``1 at once``
shows a slot that stays taken; the remaining quota shows a cost that is settled twice, or never.
"""

from __future__ import annotations

import asyncio
import gc
import re
import select
import socket
import struct
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import waitress  # type: ignore[import-untyped]
import waitress.wasyncore  # type: ignore[import-untyped]
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpResponse, StreamingHttpResponse
from django.test import override_settings
from fastapi import Depends, FastAPI
from flask import Flask, Response, g
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request  # noqa: TC002 - FastAPI reads annotations
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from tests.asgi.serving import served_by_uvicorn
from tests.django.project import Urls
from tests.upstash.support import pipeline
from upstash_middleware import RateLimitRule, django, fastapi, flask, starlette
from upstash_middleware.upstash import Client, Credentials

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator

    from upstash_middleware.local import LocalUpstash

PATIENCE = 20.0
QUOTA = 100_000
LIMITS = f"1 at once; {QUOTA}/hour"
COST = 3
"""Of a request that has reached its handler: a unit is taken, and the handler charges two."""
RULE: dict[str, Any] = {
    "rate_limits": [RateLimitRule(limits=LIMITS, name="r")],
    "default_limit": None,
    "deadline": PATIENCE,
}
NAMED: dict[str, Any] = {"name": "r", "deadline": PATIENCE}


class Handler:
    """What the handlers of all frameworks do: charge, wait for ``go``, stream until ``end``."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.go = threading.Event()
        self.go.set()
        self.end = threading.Event()
        self.end.set()

    def enter(self, decision: Any) -> None:
        decision.charge(COST - 1)
        self.entered.set()

    def wait(self) -> None:
        assert self.go.wait(PATIENCE)

    async def await_go(self) -> None:
        while not self.go.is_set():  # noqa: ASYNC110 - it is an event of threads
            await asyncio.sleep(0.001)
        await asyncio.sleep(0)

    def pieces(self) -> Iterator[bytes]:
        yield b"piece" * 10_000
        while not self.end.wait(0.001):
            yield b"piece" * 10_000

    async def apieces(self) -> AsyncIterator[bytes]:
        yield b"piece" * 10_000
        while not self.end.is_set():
            await asyncio.sleep(0.001)
            yield b"piece" * 10_000


def starlette_app(handler: Handler, guard: str) -> Any:
    async def whole(request: Request) -> PlainTextResponse:
        handler.enter(request.state.rate_limit)
        await handler.await_go()
        return PlainTextResponse("whole")

    async def stream(request: Request) -> StreamingResponse:
        handler.enter(request.state.rate_limit)
        return StreamingResponse(handler.apieces())

    def whole_sync(request: Request) -> PlainTextResponse:
        handler.enter(request.state.rate_limit)
        handler.wait()
        return PlainTextResponse("whole")

    def stream_sync(request: Request) -> StreamingResponse:
        handler.enter(request.state.rate_limit)
        return StreamingResponse(handler.pieces())

    endpoints: list[Any] = [whole, stream]
    if "sync" in guard.split():
        endpoints = [whole_sync, stream_sync]
    middleware = [Middleware(starlette.RateLimitMiddleware, **RULE)]
    if guard != "middleware":
        limited = starlette.limit(LIMITS, **NAMED)
        endpoints = [limited(endpoint) for endpoint in endpoints]
        bare = Middleware(starlette.RateLimitMiddleware, default_limit=None)
        middleware = [bare] if guard.endswith("inside") else []
    routes = [Route(*pair) for pair in zip(("/whole", "/stream"), endpoints, strict=True)]
    return Starlette(routes=routes, middleware=middleware)


def fastapi_app(handler: Handler, guard: str) -> Any:
    app = FastAPI()
    if guard.endswith("inside"):
        app.add_middleware(fastapi.RateLimitMiddleware, default_limit=None)
    dependencies = [Depends(fastapi.limit(LIMITS, **NAMED))]

    @app.get("/whole", dependencies=dependencies)
    async def whole(request: Request) -> str:
        handler.enter(request.state.rate_limit)
        await handler.await_go()
        return "whole"

    @app.get("/stream", dependencies=dependencies)
    async def stream(request: Request) -> StreamingResponse:
        handler.enter(request.state.rate_limit)
        return StreamingResponse(handler.apieces())

    return app


def flask_app(handler: Handler, guard: str) -> Any:
    app = Flask(__name__)

    def whole() -> str:
        handler.enter(g.rate_limit)
        handler.wait()
        return "whole"

    def stream() -> Response:
        handler.enter(g.rate_limit)
        return Response(handler.pieces())

    if guard == "middleware":
        flask.RateLimitMiddleware(app, **RULE)
    limited = flask.limit(LIMITS, **NAMED)
    if guard == "before_request":
        app.before_request(limited)
    for view in (whole, stream):
        app.add_url_rule(f"/{view.__name__}", view_func=limited(view) if guard == "limit" else view)
    return app


def django_views(handler: Handler, guard: str) -> dict[str, Any]:
    def whole(request: Any) -> HttpResponse:
        handler.enter(request.rate_limit)
        handler.wait()
        return HttpResponse(b"whole")

    def stream(request: Any) -> StreamingHttpResponse:
        handler.enter(request.rate_limit)
        return StreamingHttpResponse(handler.pieces())

    async def whole_async(request: Any) -> HttpResponse:
        handler.enter(request.rate_limit)
        await handler.await_go()
        return HttpResponse(b"whole")

    async def stream_async(request: Any) -> StreamingHttpResponse:
        handler.enter(request.rate_limit)
        return StreamingHttpResponse(handler.apieces())

    if "throttle" in guard:
        from rest_framework.views import APIView  # noqa: PLC0415 - once Django is configured

        from upstash_middleware.django.rest_framework import throttle  # noqa: PLC0415

        limiting = throttle(LIMITS, **NAMED)

        def throttled(view: Any) -> Any:
            kind = {"throttle_classes": [limiting], "get": lambda _, request: view(request)}
            made: Any = type("Throttled", (APIView,), kind)
            return made.as_view()

        return {"whole": throttled(whole), "stream": throttled(stream)}
    views: list[Any] = [whole_async, stream_async] if "async" in guard else [whole, stream]
    limited = django.limit(LIMITS, **NAMED)
    if "limit" in guard:
        views = [limited(view) for view in views]
    return dict(zip(("whole", "stream"), views, strict=True))


class Outside:
    """Middleware that awaits after the view, outside of all limits."""

    async_capable = True
    sync_capable = False

    def __init__(self, get_response: Callable[[Any], Awaitable[Any]]) -> None:
        self.get_response = get_response

    async def __call__(self, request: Any) -> Any:
        response = await self.get_response(request)
        await asyncio.sleep(0)
        return response


@contextmanager
def django_project(handler: Handler, guard: str) -> Iterator[None]:
    ours = ["upstash_middleware.django.RateLimitMiddleware"] if "middleware" in guard else []
    outside = [f"{__name__}.Outside"] if "outside" in guard else []
    with override_settings(
        MIDDLEWARE=outside + ours,
        ROOT_URLCONF=Urls(**django_views(handler, guard)),
        UPSTASH_MIDDLEWARE=RULE if ours else {"deadline": PATIENCE},
    ):
        yield


@contextmanager
def asgi_app(handler: Handler, guard: str) -> Iterator[Any]:
    framework, _, kind = guard.partition(" ")
    if framework == "django":
        with django_project(handler, kind):
            yield ASGIHandler()
    else:
        yield {"starlette": starlette_app, "fastapi": fastapi_app}[framework](handler, kind)


ASGI_GUARDS = [
    "starlette middleware",
    "starlette async limit",
    "starlette sync limit",
    "starlette async limit inside",
    "starlette sync limit inside",
    "fastapi dependency",
    "fastapi dependency inside",
    "django async middleware",
    "django sync middleware",
    "django async limit",
    "django sync limit",
    "django throttle",
    "django async limit outside",
    "django sync limit outside",
    "django async middleware outside",
]


def used_by(field: str) -> int:
    """Read how much of the quota is used from a RateLimit field."""
    found = re.search(r'"r 1h";r=(\d+)', field)
    assert found, field
    return QUOTA - int(found[1])


def streams(guard: str) -> bool:
    """Whether a response passes piece by piece: Django reads what is not async as a whole."""
    return "async" in guard or not guard.startswith("django")


# -- Cancelled at every point at which a request is suspended.


class Stopping:
    """Awaits a request's work; at its n-th suspension ``stop`` is called, and it is cancelled."""

    def __init__(self, work: Any, at: int, stop: Callable[[], None]) -> None:
        self.work = work
        self.left = at
        self.stop = stop

    def __await__(self) -> Generator[Any, Any, Any]:
        step, value = self.work.send, None
        while True:
            try:
                waiting = step(value)
            except StopIteration as end:
                return end.value
            self.left -= 1
            try:
                if self.left == 0:
                    if waiting is not None:
                        waiting._asyncio_future_blocking = False
                    self.stop()
                    try:
                        yield from asyncio.get_running_loop().create_future()
                    finally:
                        if waiting is not None:
                            waiting.cancel()
                step, value = self.work.send, (yield waiting)
            except BaseException as error:  # noqa: BLE001 - it is the work's
                step, value = self.work.throw, error

    async def run(self) -> Any:
        return await self


def http_scope(path: str) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"shop.example")],
        "client": ("203.0.113.9", 1),
        "server": ("127.0.0.1", 80),
    }


async def visit(app: Any, path: str, at: int = 0) -> tuple[bool, list[Any]]:
    """Send a request, and stop it at its n-th suspension; return whether it came to that."""
    loop = asyncio.get_running_loop()
    told = [{"type": "http.request", "body": b"", "more_body": False}]
    sent: list[Any] = []
    left = asyncio.Event()
    stopped = False

    async def receive() -> dict[str, Any]:
        if told:
            return told.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        await asyncio.sleep(0)
        sent.append(message)

    def stop() -> None:
        nonlocal stopped
        stopped = True
        left.set()  # Django cancels the task by itself
        if not isinstance(app, ASGIHandler):
            task.cancel()

    def in_tasks(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
        if "process_request" in getattr(work, "__qualname__", ""):
            work = Stopping(work, at, stop).run()
        return asyncio.Task(work, loop=loop, **options)

    scope = http_scope(path)
    work = app(scope, receive, send)
    if isinstance(app, ASGIHandler):
        loop.set_task_factory(in_tasks)
    else:
        work = Stopping(work, at, stop).run()
    task = loop.create_task(work)
    await asyncio.wait([task], timeout=PATIENCE)
    left.set()
    loop.set_task_factory(None)
    assert task.done()
    return stopped, sent


async def used(app: Any) -> int:
    """Return how much of the quota is used, asked with a request that waits for the only slot."""
    until = time.monotonic() + PATIENCE
    while True:
        _, (start, *_) = await visit(app, "/whole")
        if start["status"] == 200:
            fields = {name.lower(): value.decode() for name, value in start["headers"]}
            return used_by(fields[b"ratelimit"]) - 1
        assert start["status"] == 429
        assert time.monotonic() < until, "the slot stayed taken"
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("guard", "path"),
    [(guard, "/whole") for guard in ASGI_GUARDS]
    + [(guard, "/stream") for guard in ASGI_GUARDS if streams(guard)],
)
def test_a_request_cancelled_at_any_suspension_gives_back_its_slot_and_is_settled_once(
    upstash: LocalUpstash, guard: str, path: str
) -> None:
    handler = Handler()

    async def main(app: Any) -> int:
        before = await used(app)
        for at in range(1, 200):
            handler.entered.clear()
            stopped, _ = await visit(app, path, at)
            entered = handler.entered.is_set()
            after = await used(app)
            entered = entered or after - before - COST == COST  # in a thread, a little later
            cost = after - before - COST
            assert cost in ([COST] if entered else [0, 1]), f"at suspension {at}"
            before = after
            if not stopped:
                return at
        raise AssertionError("it never came to an end")

    with asgi_app(handler, guard) as app:
        assert asyncio.run(main(app)) > 3


@pytest.mark.parametrize(
    "guard",
    [
        "starlette middleware",
        "starlette async limit",
        "starlette async limit inside",
        "django async middleware",
        "django async limit",
        "django async limit outside",
        "django async middleware outside",
    ],
)
def test_a_request_cancelled_before_its_response_costs_what_was_taken(
    upstash: LocalUpstash, guard: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where only failed logins count, a client that never waits for the answer has to pay."""

    def settle(_request: Any, response: Any) -> int:
        return int(response.status == 401)

    rule = RateLimitRule(limits=LIMITS, name="r", settle=settle)
    monkeypatch.setitem(RULE, "rate_limits", [rule])
    monkeypatch.setitem(NAMED, "settle", settle)
    handler = Handler()
    handler.enter = lambda decision: handler.entered.set()  # type: ignore[method-assign]

    async def main(app: Any) -> tuple[int, int]:
        before = await used(app)
        handler.go.clear()
        handler.entered.clear()
        stopped, sent = await visit(app, "/whole", at=50)
        assert (stopped, sent, handler.entered.is_set()) == (True, [], True)
        handler.go.set()
        return before, await used(app)

    with asgi_app(handler, guard) as app:
        assert asyncio.run(main(app)) == (0, 1)


@pytest.mark.parametrize(
    "guard", ["django sync middleware", "django sync limit", "django throttle"]
)
def test_a_sync_view_that_its_client_has_left_keeps_its_slot_while_it_runs(
    upstash: LocalUpstash, guard: str
) -> None:
    """Django cancels the request, and the view goes on in its thread."""
    handler = Handler()

    async def main(app: Any) -> int:
        handler.go.clear()
        left = asyncio.Event()
        messages = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(_: Any) -> None:
            pass

        work = asyncio.ensure_future(app(http_scope("/whole"), receive, send))
        await asyncio.to_thread(handler.entered.wait, PATIENCE)
        left.set()
        await asyncio.wait([work], timeout=0.05)
        _, (start, *_) = await asyncio.to_thread(asyncio.run, visit(app, "/whole"))
        handler.go.set()
        await asyncio.wait([work], timeout=PATIENCE)
        await used(app)  # the slot is free
        return int(start["status"])

    with asgi_app(handler, guard) as app:
        assert asyncio.run(main(app)) == 429


# -- Clients that leave real servers.


@contextmanager
def wsgi_app(handler: Handler, guard: str) -> Iterator[Any]:
    framework, _, kind = guard.partition(" ")
    if framework == "django":
        with django_project(handler, kind):
            yield WSGIHandler()
    else:
        yield flask_app(handler, kind)


@contextmanager
def served_by_waitress(app: Any) -> Iterator[int]:
    listening = socket.create_server(("127.0.0.1", 0))
    channels: dict[int, Any] = {}
    server = waitress.create_server(app, sockets=[listening], threads=4, map=channels)
    ended = threading.Event()

    def run() -> None:
        # Until the clients have left: only the server and its trigger remain.
        while len(channels) > 2 or not ended.is_set():
            waitress.wasyncore.loop(timeout=0.05, map=channels, count=1)
        server.close()  # in this thread, which alone uses its sockets

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        ended.set()
        thread.join(PATIENCE)
        server.task_dispatcher.shutdown()


@contextmanager
def served(handler: Handler, guard: str) -> Iterator[int]:
    if guard in ASGI_GUARDS:
        with asgi_app(handler, guard) as app, served_by_uvicorn(app, lifespan="off") as port:
            yield port
    else:
        with wsgi_app(handler, guard) as app, served_by_waitress(app) as port:
            yield port


WSGI_GUARDS = ["flask middleware", "flask limit", "flask before_request"]
WSGI_GUARDS += ["django middleware", "django limit", "django throttle of WSGI"]


@contextmanager
def entering(handler: Handler, port: int, path: str) -> Iterator[socket.socket]:
    """Send a request that reaches its handler, once the slot of the one before is free."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            request = f"GET {path} HTTP/1.1\r\nHost: shop.example\r\n\r\n"
            connection.sendall(request.encode())
            while not handler.entered.wait(0.005):
                answered = select.select([connection], [], [], 0)[0]
                if answered and not handler.entered.is_set():  # denied
                    break
            else:
                yield connection
                return
    raise AssertionError("no request has reached its handler")


def used_by_now(port: int) -> int:
    """Return how much of the quota is used, once the only slot is free."""
    until = time.monotonic() + PATIENCE
    url = f"http://127.0.0.1:{port}/whole"
    while (answer := httpx.get(url, timeout=PATIENCE, trust_env=False)).status_code != 200:
        assert answer.status_code == 429
        assert time.monotonic() < until, "the slot stayed taken"
        time.sleep(0.01)
    return used_by(answer.headers["ratelimit"]) - 1


@pytest.mark.parametrize(
    ("guard", "moment"),
    [(guard, "before the head") for guard in ASGI_GUARDS + WSGI_GUARDS]
    + [(guard, "in the body") for guard in ASGI_GUARDS if streams(guard)]
    + [(guard, "in the body") for guard in WSGI_GUARDS],
)
def test_a_client_that_leaves_a_server_gives_back_its_slot_and_is_settled_once(
    upstash: LocalUpstash, guard: str, moment: str
) -> None:
    handler = Handler()
    with served(handler, guard) as port:
        before = used_by_now(port)
        handler.entered.clear()
        waited_for = handler.go if moment == "before the head" else handler.end
        waited_for.clear()
        with entering(handler, port, "/whole" if waited_for is handler.go else "/stream") as client:
            if waited_for is handler.end:
                assert client.recv(1000).startswith(b"HTTP/1.1 200")
            # A client that is gone: its connection is reset.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if waited_for is handler.go:
            time.sleep(0.02)  # a server that tells its application does so meanwhile
            handler.go.set()
        try:
            assert used_by_now(port) - before == 2 * COST
        finally:
            handler.end.set()


# -- Responses that are thrown away, and servers that cancel by themselves.


def test_a_flask_response_that_another_one_replaces_gives_its_slot_back(
    upstash: LocalUpstash,
) -> None:
    app: Flask = flask_app(Handler(), "limit")

    @app.after_request
    def replace(_response: Response) -> Response:
        return Response("another")

    client = app.test_client()
    for _ in range(5):
        response = client.get("/whole", buffered=True)
        assert (response.status_code, response.text) == (200, "another")
        assert slots_are_free(upstash)


def test_a_flask_response_that_after_request_spoils_gives_its_slot_back(
    upstash: LocalUpstash,
) -> None:
    app: Flask = flask_app(Handler(), "limit")

    @app.after_request
    def spoil(response: Response) -> Response:
        if response.status_code == 200:
            raise KeyError("spoiled")
        return response

    client = app.test_client()
    for _ in range(5):
        assert client.get("/whole", buffered=True).status_code == 500
        assert slots_are_free(upstash)


@pytest.mark.parametrize("guard", ["async limit", "sync limit"])
def test_a_starlette_response_that_a_decorator_replaces_gives_its_slot_back(
    upstash: LocalUpstash, guard: str
) -> None:
    inside = starlette_app(Handler(), guard)
    endpoint = inside.routes[0].endpoint

    async def replacing(request: Request) -> PlainTextResponse:
        if asyncio.iscoroutinefunction(endpoint):
            await endpoint(request)
        else:
            await run_in_threadpool(endpoint, request)
        return PlainTextResponse("another")

    async def main() -> None:
        app = Starlette(routes=[Route("/whole", replacing)])
        for _ in range(5):
            _, (start, *_) = await visit(app, "/whole")
            assert start["status"] == 200
            assert slots_are_free(upstash)

    asyncio.run(main())


# Django closes neither the request nor its body then.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "guard", ["async limit", "sync limit", "throttle", "async middleware", "sync middleware"]
)
def test_a_django_request_whose_handler_the_server_cancels_gives_its_slot_back(
    upstash: LocalUpstash, guard: str
) -> None:
    """As daphne does with one that takes too long to end, and any server when it shuts down."""
    handler = Handler()

    async def main(app: Any) -> None:
        before = await used(app)
        handler.go.clear()
        handler.entered.clear()
        request = asyncio.create_task(visit(app, "/whole"))
        while not handler.entered.is_set():  # noqa: ASYNC110 - it is an event of threads
            await asyncio.sleep(0.001)
        threading.Timer(0.05, handler.go.set).start()  # Django waits for a view in a thread
        cancel_tasks_of("ASGIHandler.__call__")
        await request
        await handler.await_go()
        await asyncio.sleep(0.02)
        gc.collect()  # as happens by itself at times
        assert await used(app) - before == 2 * COST

    with django_project(handler, guard):
        asyncio.run(main(ASGIHandler()))


def cancel_tasks_of(coroutine: str) -> None:
    for task in asyncio.all_tasks():
        if coroutine in repr(task.get_coro()):
            task.cancel()


def slots_are_free(upstash: LocalUpstash) -> bool:
    """Whether no slot is held, be it after a moment."""
    client = Client(Credentials(upstash.url, upstash.token), deadline=PATIENCE)
    held: Any = True
    until = time.monotonic() + PATIENCE
    while held and time.monotonic() < until:
        keys: Any = client.execute(pipeline(("KEYS", "*:slots")))[0]
        held = any(client.execute(pipeline(("MGET", *keys)))[0])  # type: ignore[arg-type]
    client.close()
    return not held
