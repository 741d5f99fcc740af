"""A request goes through Django's handlers: nothing is held up, and each exchange ends once."""

from __future__ import annotations

import asyncio
import gc
import io
import tempfile
import threading
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import FileResponse, HttpResponse, StreamingHttpResponse
from django.test import AsyncClient, Client, RequestFactory, override_settings

from tests.django.fakes import CONDITIONAL_GET, FakeHalf, around, whole
from upstash_middleware.django import UpstashMiddleware
from upstash_middleware.messages import HTTPRequest, Response, ResponseHead

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from django.http import HttpRequest
    from django.http.response import HttpResponseBase


def hello(request: HttpRequest) -> HttpResponse:
    return HttpResponse(b"hello", headers={"ETag": '"v"', "Content-Type": "text/plain"})


async def ahello(request: HttpRequest) -> HttpResponse:
    return hello(request)


def unused(request: HttpRequest) -> HttpResponse:
    raise AssertionError("the view was called")


Get = Any
"""Sends a GET through a test client, sync or async, and answers the response."""


@pytest.fixture(params=["sync", "async"])
def get(request: pytest.FixtureRequest) -> Get:
    def get_sync(path: str, **headers: str) -> Any:
        return Client(raise_request_exception=False).get(path, headers=headers)

    def get_async(path: str, **headers: str) -> Any:
        return asyncio.run(AsyncClient(raise_request_exception=False).get(path, headers=headers))

    return get_sync if request.param == "sync" else get_async


def called(path: str, method: str = "GET", wrapper: Any = None) -> Any:
    """Call the WSGI handler as a server does and return its iterable, which is still to close."""
    handler: Any = WSGIHandler()
    environ = RequestFactory().generic(method, path).environ
    if wrapper is not None:
        environ["wsgi.file_wrapper"] = wrapper
    return handler(environ, lambda *_: None)


def adding(name: str, value: str) -> Callable[[ResponseHead], ResponseHead]:
    return lambda head: ResponseHead(head.status, head.headers.setting(name, value))


def test_the_response_passes_with_what_the_engine_adds(get: Get) -> None:
    half = FakeHalf(head=adding("Cache-Status", "seen"))
    with around(half, hello=hello):
        response = get("/hello")
    assert (response.status_code, response.content) == (200, b"hello")
    assert response["Cache-Status"] == "seen"
    assert (half.heads[0].status, half.heads[0].headers.get("etag")) == (200, '"v"')
    assert half.chunks == [b"hello"]
    assert half.finished == [True]


def test_a_response_of_the_engine_s_own_is_given_and_the_view_not_called(get: Get) -> None:
    half = FakeHalf(response=whole(429, b"later", retry_after="3"))
    with around(half, page=unused):
        response = get("/page")
    assert (response.status_code, response.content) == (429, b"later")
    assert response["Retry-After"] == "3"
    assert half.finished == [True]


def test_a_head_request_gets_no_body_of_ours_even_from_a_server_that_would_send_it() -> None:
    half = FakeHalf(response=whole(200, b"stored", content_length="6"))
    with around(half, page=unused):
        assert b"".join(called("/page", "HEAD")) == b""


def test_the_engine_is_finished_after_the_last_byte_and_not_before() -> None:
    half = FakeHalf()
    with around(half, hello=hello):
        response = called("/hello")
        assert list(response) == [b"hello"]
        assert half.finished == []
        response.close()
        assert half.finished == [True]
        response.close()
        assert half.finished == [True]


def test_a_body_is_passed_on_piece_by_piece_while_it_is_made() -> None:
    half, made = FakeHalf(), list[int]()

    def pieces() -> Iterator[str]:
        for number in range(3):
            made.append(number)
            yield str(number)

    with around(half, stream=lambda _: StreamingHttpResponse(pieces())):
        response = called("/stream")
        body = iter(response)
        assert (next(body), made, half.chunks) == (b"0", [0], [b"0"])
        assert list(body) == [b"1", b"2"]
        assert half.finished == [True]
        response.close()
    assert half.chunks == [b"0", b"1", b"2"]
    assert half.finished == [True]


def test_a_body_that_the_server_gives_up_on_is_not_complete() -> None:
    half, closed = FakeHalf(), list[bool]()

    def pieces() -> Iterator[bytes]:
        try:
            yield b"0"
            yield b"1"
        finally:
            closed.append(True)

    with around(half, stream=lambda _: StreamingHttpResponse(pieces())):
        response = called("/stream")
        next(iter(response))
        response.close()
    assert half.finished == [False]
    assert closed == [True]


def test_a_body_that_raises_half_way_raises_the_same_and_is_not_complete() -> None:
    half = FakeHalf()

    def pieces() -> Iterator[bytes]:
        yield b"0"
        raise LookupError("no more")

    with around(half, stream=lambda _: StreamingHttpResponse(pieces())):
        response = called("/stream")
        with pytest.raises(LookupError, match="no more"):
            list(response)
        response.close()
    assert half.finished == [False]


class Server:
    """The server's side of one ASGI request, whose client can leave."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.arrived = asyncio.Event()
        self.gone = asyncio.Event()
        self._messages = [{"type": "http.request"}]

    async def receive(self) -> Any:
        if self._messages:
            return self._messages.pop()
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)
        if message.get("body"):
            self.arrived.set()

    async def serve(self, path: str) -> None:
        scope = {"type": "http", "method": "GET", "path": path, "headers": []}
        await ASGIHandler()(scope, self.receive, self.send)


@pytest.mark.anyio
async def test_an_async_body_is_passed_on_while_it_is_made() -> None:
    half, go_on = FakeHalf(), asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield b"0"
        await go_on.wait()
        yield b"1"

    async def stream(request: HttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(pieces())

    with around(half, stream=stream):
        server = Server()
        serving = asyncio.create_task(server.serve("/stream"))
        await asyncio.wait_for(server.arrived.wait(), 30)
        assert [message.get("body") for message in server.sent] == [None, b"0"]
        assert half.finished == []
        go_on.set()
        await serving
    assert half.chunks == [b"0", b"1"]
    assert half.finished == [True]


@pytest.mark.anyio
async def test_a_client_that_leaves_during_an_async_body_leaves_it_incomplete() -> None:
    half = FakeHalf()

    async def pieces() -> AsyncIterator[bytes]:
        yield b"0"
        await asyncio.Event().wait()

    async def stream(request: HttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(pieces())

    with around(half, stream=stream):
        server = Server()
        serving = asyncio.create_task(server.serve("/stream"))
        await asyncio.wait_for(server.arrived.wait(), 30)
        server.gone.set()
        await serving
    assert half.finished == [False]


@pytest.mark.anyio
async def test_a_client_that_leaves_while_the_view_runs_ends_the_exchange() -> None:
    half, running = FakeHalf(), asyncio.Event()

    async def slow(request: HttpRequest) -> HttpResponse:
        running.set()
        await asyncio.Event().wait()
        return HttpResponse()

    with around(half, slow=slow):
        server = Server()
        serving = asyncio.create_task(server.serve("/slow"))
        await asyncio.wait_for(running.wait(), 30)
        server.gone.set()
        await serving
    assert server.sent == []
    assert half.finished == [False]


def test_a_view_that_raises_is_answered_as_without_us(get: Get) -> None:
    half = FakeHalf()

    def broken(request: HttpRequest) -> HttpResponse:
        raise LookupError("broken")

    with around(half, broken=broken):
        response = get("/broken")
    assert response.status_code == 500
    assert half.heads[0].status == 500
    assert half.finished == [True]


@pytest.mark.parametrize("error", [LookupError("broken"), SystemExit(3)])
def test_what_is_raised_past_us_passes_unchanged_and_ends_the_exchange(
    error: BaseException,
) -> None:
    half = FakeHalf()

    def get_response(request: HttpRequest) -> HttpResponse:
        raise error

    with around(half), pytest.raises(type(error)) as raised:
        UpstashMiddleware(get_response)(RequestFactory().get("/"))
    assert raised.value is error
    assert half.finished == [False]


def test_a_response_that_is_replaced_further_out_still_ends_its_exchange(get: Get) -> None:
    half = FakeHalf()
    with around(half, CONDITIONAL_GET, hello=hello):
        response = get("/hello", if_none_match='"v"')
    assert response.status_code == 304
    assert half.finished == [True]


def test_a_validator_of_ours_is_seen_by_the_view_and_by_nothing_outside(get: Get) -> None:
    seen = list[Any]()

    def validating(request: HTTPRequest) -> HTTPRequest:
        headers = request.headers.setting("if-none-match", '"v"')
        return HTTPRequest(method="GET", path=request.path, headers=headers)

    def view(request: HttpRequest) -> HttpResponse:
        seen.append(request.headers.get("If-None-Match"))
        return hello(request)

    with around(FakeHalf(forward=validating), CONDITIONAL_GET, hello=view):
        response = get("/hello")
    assert seen == ['"v"']
    assert (response.status_code, response.content) == (200, b"hello")


def test_a_whole_response_stands_in_for_the_application_s(get: Get) -> None:
    stored = whole(200, b"stored", etag='"v"', content_type="text/plain")
    half = FakeHalf(head=lambda head: stored if head.status == 304 else head)

    def not_modified(request: HttpRequest) -> HttpResponse:
        return HttpResponse(status=304)

    with around(half, page=not_modified):
        response = get("/page")
    assert (response.status_code, response.content) == (200, b"stored")
    assert half.chunks == []
    assert half.finished == [True]


def test_cookies_are_shown_to_the_engine_and_reach_the_client(get: Get) -> None:
    def cookie(request: HttpRequest) -> HttpResponse:
        response = HttpResponse()
        response.set_cookie("a", "1")
        return response

    half = FakeHalf(head=adding("X-Seen", "1"))
    with around(half, cookie=cookie):
        response = get("/cookie")
    assert half.heads[0].headers.lines("set-cookie") == ["a=1; Path=/"]
    assert response.cookies.output() == "Set-Cookie: a=1; Path=/"
    assert response["X-Seen"] == "1"


def test_a_file_that_the_server_reads_itself_is_left_to_it() -> None:
    half = FakeHalf()
    with tempfile.TemporaryFile() as file, around(half, file=lambda _: FileResponse(file)):
        given = called("/file", wrapper=lambda given, _size: given)
        assert given is file
        assert half.finished == []
        given.close()
    assert half.finished == [False]


def test_a_file_that_django_reads_is_seen() -> None:
    half = FakeHalf()
    with around(half, file=lambda _: FileResponse(io.BytesIO(b"file"))):
        response = Client().get("/file")
        assert b"".join(response) == b"file"
    assert half.chunks == [b"file"]
    assert half.finished == [True]


def test_a_request_that_was_closed_is_in_no_cycle_which_would_keep_the_body_seen() -> None:
    half = FakeHalf()
    with around(half) as runtime:
        request = RequestFactory().get("/hello")
        UpstashMiddleware(hello)(request)
    half.requests.clear()
    runtime.begun.clear()
    gone = weakref.ref(request)
    gc.disable()
    try:
        request.close()
        del request
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.anyio
async def test_nothing_hops_to_a_thread_on_the_event_loop() -> None:
    half, threads = FakeHalf(), set[int]()

    async def get_response(request: HttpRequest) -> HttpResponseBase:
        threads.update(runtime.threads)
        return HttpResponse()

    with around(half) as runtime:
        middleware = UpstashMiddleware(get_response)
        await middleware(RequestFactory().get("/"))
    assert threads == {threading.get_ident()}


@pytest.mark.anyio
async def test_django_takes_the_middleware_as_async_without_an_adapter(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG", "django.request")
    with around(FakeHalf(), hello=ahello), override_settings(DEBUG=True):
        response = await AsyncClient().get("/hello")
    assert response.status_code == 200
    assert "adapted" not in caplog.text


def test_a_gateway_that_is_off_is_asked_nothing(get: Get) -> None:
    half = FakeHalf()
    with around(half, hello=hello) as runtime:
        runtime.enabled = False
        response = get("/hello")
    assert response.content == b"hello"
    assert (half.requests, half.heads, half.finished) == ([], [], [])


@pytest.mark.parametrize("enabled", [True, False])
def test_the_view_reads_the_decision_also_where_limits_are_off(enabled: bool) -> None:
    seen = list[Any]()

    def view(request: Any) -> HttpResponse:
        seen.append(getattr(request.rate_limit, "settled_by", request.rate_limit))
        return HttpResponse()

    decision = object()
    with around(FakeHalf(decision=decision), page=view) as runtime:
        runtime.enabled = enabled
        Client().get("/page")
    assert seen == [decision if enabled else "unchecked"]


@pytest.mark.parametrize("length", ["", "7"], ids=["without Content-Length", "with"])
def test_a_gateway_that_finishes_first_does_so_before_the_end_of_a_stream(length: str) -> None:
    """Of a length that is known it holds back the last piece, else the end."""
    half = FakeHalf()

    def pieces(request: HttpRequest) -> StreamingHttpResponse:
        response = StreamingHttpResponse(iter([b"one ", b"two"]))
        if length:
            response["Content-Length"] = length
        return response

    with around(half, page=pieces) as runtime:
        runtime.finishes_first = True
        iterable = called("/page")
        stream = iter(iterable)
        assert next(stream) == b"one "
        assert half.finished == []
        assert next(stream) == b"two"
        assert half.finished == [True] * bool(length)
        assert list(stream) == []
        assert half.finished == [True]
        iterable.close()
        assert half.finished == [True]


@pytest.mark.parametrize(
    ("method", "status", "length"), [("HEAD", 200, "3"), ("GET", 204, ""), ("GET", 200, "0")]
)
def test_a_gateway_that_finishes_first_does_so_before_a_stream_that_nobody_reads(
    method: str, status: int, length: str
) -> None:
    """A client may ask again as soon as it has the head."""
    half = FakeHalf()

    def pieces(request: HttpRequest) -> StreamingHttpResponse:
        response = StreamingHttpResponse(iter([b"one"] if length != "0" else []), status=status)
        if length:
            response["Content-Length"] = length
        return response

    with around(half, page=pieces) as runtime:
        runtime.finishes_first = True
        iterable = called("/page", method)
        assert half.finished == [True]
        iterable.close()
        assert half.finished == [True]


def test_a_gateway_that_finishes_first_has_a_whole_body_stored_before_it_goes_out() -> None:
    half = FakeHalf()
    with around(half, page=hello) as runtime:
        runtime.finishes_first = True
        iterable = called("/page")
        assert half.finished == [True]
        iterable.close()
        assert half.finished == [True]


def test_cookies_of_a_response_of_ours_are_sent_as_they_stand(get: Get) -> None:
    lines = ["a=1; HttpOnly; Path=/x; foo", 'b="2, 3"; Expires=Thu, 01 Jan 2099 00:00:00 GMT']
    lines += ["a=4; Path=/y"]
    stored = whole(200, b"stored")
    raw = [(b"Set-Cookie", line.encode()) for line in lines]
    stored = Response(ResponseHead(200, stored.head.headers.adding(*raw)), stored.body)
    with around(FakeHalf(response=stored), page=unused):
        response = get("/page")
    assert [cookie.output(header="").strip() for cookie in response.cookies.values()] == lines
    assert response.cookies["a"].value == "1"
