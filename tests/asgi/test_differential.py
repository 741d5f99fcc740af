"""Applications behind the middleware exchange the same messages with the server as without it.

Each scripted application is played against each scripted client twice: alone, and through the
middleware. What the server was sent and asked for, what the application was given and raised, and
in which order, must be equal, but for the header fields that the middleware adds.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from upstash_middleware import CacheRule
from upstash_middleware.asgi import UpstashMiddleware

if TYPE_CHECKING:
    from upstash_middleware.local import LocalUpstash

pytestmark = pytest.mark.anyio

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[dict[str, Any], Receive, Send], Awaitable[None]]

_PATIENT: dict[str, Any] = {"deadline": 20.0, "cache_deadline": 20.0}
_LIMIT: dict[str, Any] = {"default_limit": "100000/minute; 1000 at once"}
_CACHE: dict[str, Any] = {"cache": [CacheRule("/{rest:path}", ttl=60, stale_if_error=60)]}
MODES: dict[str, dict[str, Any]] = {
    "no rule": {"default_limit": None, "cache": [CacheRule("/elsewhere", ttl=60)], **_PATIENT},
    "limits": {**_LIMIT, **_PATIENT},
    "limits and cache": {**_LIMIT, **_CACHE, **_PATIENT},
    "stored first": {**_LIMIT, **_CACHE, **_PATIENT, "cache_store_first": True},
    "conforming": {**_LIMIT, **_CACHE, **_PATIENT, "cache_profile": "conforming"},
    "dead Upstash": {**_LIMIT, **_CACHE, "url": "http://127.0.0.1:9", "token": "none"},
}
ADDED = {
    b"age",
    b"cache-status",
    b"ratelimit",
    b"ratelimit-policy",
    b"x-ratelimit-limit",
    b"x-ratelimit-remaining",
    b"x-ratelimit-reset",
}


class Broken(Exception):
    """What the applications raise."""


# -- The two sides.


@dataclass
class Client:
    """What the server tells the application, and when it has had enough."""

    told: list[Message]
    leaves_after: int = 1000
    """After so many messages of the application ``http.disconnect`` is received."""
    refuses_after: int = 1000
    """After so many ``send`` raises, as the ASGI specification's version 2.4 wants."""
    method: str = "GET"


def request(*pieces: bytes) -> list[Message]:
    last = len(pieces) - 1
    return [
        {"type": "http.request", "body": piece, "more_body": number < last}
        for number, piece in enumerate(pieces)
    ]


CLIENTS: dict[str, Client] = {
    "GET": Client(request(b"")),
    "HEAD": Client(request(b""), method="HEAD"),
    "POST": Client(request(b"one ", b"two ", b"three"), method="POST"),
    "leaves before the body": Client([{"type": "http.disconnect"}], method="POST"),
    "leaves after the head": Client(request(b""), leaves_after=1),
    "leaves after a piece": Client(request(b""), leaves_after=2),
    "refuses the head": Client(request(b""), refuses_after=0),
    "refuses a piece": Client(request(b""), refuses_after=2),
}


@dataclass
class Played:
    """All that has happened, in order, as both sides have seen it."""

    events: list[tuple[str, Any]] = field(default_factory=list)

    def log(self, what: str, of: Any = None) -> None:
        self.events.append((what, without_added(of)))


def without_added(of: Any) -> Any:
    """Return a message with no field that the middleware adds, and as bytes what may be any."""
    if not isinstance(of, dict):
        return of
    plain: dict[str, Any] = {name: bytes(v) if name == "body" else v for name, v in of.items()}
    if "headers" in plain:
        pairs = [tuple(pair) for pair in plain["headers"]]
        plain["headers"] = [pair for pair in pairs if pair[0] not in ADDED]
        if not plain["headers"]:
            del plain["headers"]  # no headers are none
    return plain


class Player:
    """An application, alone or inside of the middleware, played against one client at a time."""

    def __init__(self, app: Application, mode: str | None) -> None:
        self._app = app
        self._played = Played()
        self._outermost: Any = self._watched
        if mode is not None:
            watched: Any = self._watched
            self._outermost = UpstashMiddleware(watched, **MODES[mode])

    async def play(self, client: Client, scope: dict[str, Any]) -> Played:
        """Play the server's side."""
        played = self._played = Played()
        told = list(client.told)
        sent = 0
        gone = anyio.Event()

        async def receive() -> Message:
            played.log("asked")
            if told:
                return told.pop(0)
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            nonlocal sent
            await anyio.lowlevel.checkpoint()
            if sent >= client.refuses_after:
                raise OSError("the client has left")
            if "headers" in message:  # they may be given by an iterator, which only one can read
                message = {**message, "headers": list(message["headers"])}
            played.log("sent", message)
            sent += 1
            ended = message["type"] == "http.response.body" and not message.get("more_body")
            if sent >= client.leaves_after or ended:
                gone.set()

        with anyio.fail_after(30):
            try:
                await self._outermost(scope, receive, send)
            except Exception as error:  # noqa: BLE001 - as a server does
                played.log("raised", repr(error))
        return played

    async def _watched(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Be the application, and log what it does."""
        played = self._played

        async def watched_receive() -> Message:
            message = await receive()
            played.log("given", message)
            return message

        async def watched_send(message: Message) -> None:
            try:
                await send(message)
            except BaseException as error:
                played.log("refused", repr(error))
                raise
            played.log("passed on", message["type"])

        try:
            await self._app(scope, watched_receive, watched_send)
        except BaseException as error:
            played.log("raised inside", repr(error))
            raise
        played.log("returned")

    async def aclose(self) -> None:
        """Close what the middleware has opened."""
        if self._outermost != self._watched:
            await self._outermost.runtime.aclose()


def http_scope(client: Client, path: str) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": client.method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"shop.example"), (b"accept", b"*/*")],
        "client": ("203.0.113.9", 50000),
        "server": ("127.0.0.1", 8000),
        "state": {},
        "extensions": {"http.response.trailers": {}, "http.response.early_hint": {}},
    }


# -- The applications.

TEXT = (b"content-type", b"text/plain")


def start(*fields: tuple[bytes, bytes], status: int = 200, **more: Any) -> Message:
    headers = list(fields) if status in {204, 304} else [TEXT, *fields]
    return {"type": "http.response.start", "status": status, "headers": headers, **more}


def body(data: Any = b"", *, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


def length(count: int) -> tuple[bytes, bytes]:
    return (b"content-length", b"%d" % count)


def sending(*messages: Message | Exception) -> Application:
    """Return an application that reads the request, and sends messages or raises."""

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        await receive()
        for message in messages:
            if isinstance(message, Exception):
                raise message
            await send(dict(message))

    return app


async def echoes(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Answer what it is given, while it is given."""
    await send(start())
    more = True
    while more:
        message = await receive()
        more = message.get("more_body", False)
        await send(body(message.get("body", b""), more=more))


async def reads_nothing(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    await send(start(length(3)))
    await send(body(b"all"))


async def listens(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Stream until the client leaves, as Starlette does."""
    async with anyio.create_task_group() as tasks:

        async def listen() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            tasks.cancel_scope.cancel()

        tasks.start_soon(listen)
        await send(start())
        await send(body(b"tick ", more=True))
        await anyio.sleep_forever()


async def goes_on_in_the_background(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    await send(start(length(3)))
    await send(body(b"all"))
    await anyio.lowlevel.checkpoint()
    await receive()
    raise Broken("in the background")


async def goes_on_without_its_client(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    for message in (start(), body(b"one", more=True), body(b"two", more=True), body()):
        try:
            await send(message)
        except OSError:
            continue


async def fills_a_buffer_again(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    buffer = bytearray(b"first")
    await send(start())
    await send({"type": "http.response.body", "body": buffer, "more_body": True})
    buffer[:] = b"other"
    await send({"type": "http.response.body", "body": memoryview(buffer)})


async def gives_headers_by_an_iterator(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    pairs = ([name, value] for name, value in [TEXT, (b"x-a", b"1"), (b"x-a", b"2")])
    await send({"type": "http.response.start", "status": 200, "headers": pairs})
    await send({"type": "http.response.body"})


async def puts_into_the_scope(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    scope["route"] = "what code outside reads"
    scope["state"]["user"] = "ada"
    await sending(start(), body(b"x"))(scope, receive, send)


HTTP: dict[str, Application] = {
    "a text": sending(start(length(4)), body(b"text")),
    "without a length": sending(start(), body(b"text")),
    "pieces": sending(start(), body(b"one ", more=True), body(b"two")),
    "announced pieces": sending(
        start(length(7)), body(b"one ", more=True), body(b"two", more=True), body()
    ),
    "empty pieces": sending(
        start(), body(more=True), body(b"x", more=True), body(more=True), body()
    ),
    "nothing": sending(start(length(0)), body()),
    "no content": sending(start(status=204), body()),
    "not modified": sending(start((b"etag", b'"1"'), status=304), body()),
    "not found": sending(start(status=404), body(b"not found")),
    "an error": sending(start(status=500), body(b"sorry")),
    "cookies": sending(
        start((b"set-cookie", b"a=1"), (b"set-cookie", b"b=2"), (b"vary", b"cookie")), body(b"x")
    ),
    "a validator": sending(start((b"etag", b'"1"'), (b"cache-control", b"max-age=9")), body(b"x")),
    "private": sending(start((b"cache-control", b"private")), body(b"x")),
    "an event stream": sending(
        start((b"content-type", b"text/event-stream")), body(b"data: 1\n\n", more=True), body()
    ),
    "trailers": sending(
        start(trailers=True),
        body(b"x"),
        {"type": "http.response.trailers", "headers": [(b"a", b"1")], "more_trailers": True},
        {"type": "http.response.trailers", "headers": [(b"b", b"2")]},
    ),
    "an early hint": sending(
        {"type": "http.response.early_hint", "links": [b"</a.css>"]}, start(), body(b"x")
    ),
    "a file": sending(start(), {"type": "http.response.pathsend", "path": "/srv/film.mp4"}),
    "parts of a file": sending(
        start(),
        {"type": "http.response.zerocopysend", "file": 3, "count": 5, "more_body": True},
        {"type": "http.response.zerocopysend", "file": 3},
    ),
    "debugging": sending(
        start(), {"type": "http.response.debug", "info": {"template": "page.html"}}, body(b"x")
    ),
    "no headers": sending({"type": "http.response.start", "status": 200}, body(b"x")),
    "no head": sending(body(b"x")),
    "two heads": sending(start(), start(status=201), body(b"x")),
    "more than announced": sending(start(length(1)), body(b"xy")),
    "more after the end": sending(start(), body(b"x"), body(b"y")),
    "less than announced": sending(start(length(9)), body(b"x")),
    "no end": sending(start(), body(b"x", more=True)),
    "a head alone": sending(start()),
    "no answer": sending(),
    "raises": sending(Broken("before the head")),
    "raises after the head": sending(start(), Broken("after the head")),
    "raises after a piece": sending(start(), body(b"one ", more=True), Broken("after a piece")),
    "raises after the length": sending(
        start(length(4)), body(b"one ", more=True), Broken("after the length")
    ),
    "raises after the end": sending(start(), body(b"one"), Broken("after the end")),
    "echoes": echoes,
    "reads nothing": reads_nothing,
    "goes on in the background": goes_on_in_the_background,
    "goes on without its client": goes_on_without_its_client,
    "fills a buffer again": fills_a_buffer_again,
    "headers by an iterator": gives_headers_by_an_iterator,
    "puts into the scope": puts_into_the_scope,
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("app", HTTP)
async def test_http_passes_as_without_the_middleware(upstash: LocalUpstash, app: str, mode: str):
    alone, through = Player(HTTP[app], None), Player(HTTP[app], mode)
    for name, client in CLIENTS.items():
        path = f"/page/{name.replace(' ', '-')}"  # of which nothing is stored
        scopes = [http_scope(client, path) for _ in range(2)]
        expected = await alone.play(client, scopes[0])
        played = await through.play(client, scopes[1])
        assert played.events == expected.events, name
        for scope in scopes:
            scope["state"].pop("rate_limit", None)
            scope["state"].pop("cache", None)
            scope["state"].pop("upstash", None)
            scope["state"].pop("data", None)
        assert scopes[1].get("route") == scopes[0].get("route")
        assert scopes[1]["state"] == scopes[0]["state"]
        assert scopes[1]["headers"] == scopes[0]["headers"]
    await through.aclose()


@pytest.mark.parametrize("mode", MODES)
async def test_an_application_that_listens_hears_that_its_client_has_left(
    upstash: LocalUpstash, mode: str
):
    """It does two things at once, of which only each has an order."""
    client = CLIENTS["leaves after a piece"]
    heard, sent = [], []
    for each in (None, mode):
        player = Player(listens, each)
        events = (await player.play(client, http_scope(client, "/page"))).events
        heard.append([event for event in events if event[0] in {"asked", "given"}])
        sent.append([event for event in events if event[0] not in {"asked", "given"}])
        await player.aclose()
    assert heard[0] == heard[1]
    assert sent[0] == sent[1]


# -- WebSockets.


async def talks(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.accept", "subprotocol": "chat", "headers": [(b"x-a", b"1")]})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message.get("text") or "bytes"})
    await send({"type": "websocket.send", "text": "to nobody"})


async def closes(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.close", "code": 4000, "reason": "enough"})


async def refuses(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.close", "code": 4003})


async def refuses_with_a_response(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    await receive()
    headers = [(b"content-type", b"text/plain")]
    await send({"type": "websocket.http.response.start", "status": 403, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": b"n", "more_body": True})
    await send({"type": "websocket.http.response.body", "body": b"o"})


async def raises_before_accepting(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    await receive()
    raise Broken("before accepting")


async def raises_after_accepting(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    raise Broken("after accepting")


async def says_nothing(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    await receive()


async def listens_and_speaks(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    async with anyio.create_task_group() as tasks:

        async def speak() -> None:
            for number in range(3):
                await send({"type": "websocket.send", "bytes": b"%d" % number})

        tasks.start_soon(speak)
        while (await receive())["type"] != "websocket.disconnect":
            pass


WEBSOCKETS: dict[str, Application] = {
    "talks": talks,
    "closes": closes,
    "refuses": refuses,
    "refuses with a response": refuses_with_a_response,
    "raises before accepting": raises_before_accepting,
    "raises after accepting": raises_after_accepting,
    "says nothing": says_nothing,
    "listens and speaks": listens_and_speaks,
}
_CONNECT: Message = {"type": "websocket.connect"}
_GONE: Message = {"type": "websocket.disconnect", "code": 1001, "reason": "away"}
_SAID: list[Message] = [
    {"type": "websocket.receive", "text": "hello", "bytes": None},
    {"type": "websocket.receive", "bytes": b"\x00"},
]
WEBSOCKET_CLIENTS: dict[str, Client] = {
    "talks": Client([_CONNECT, *_SAID, _GONE]),
    "leaves at once": Client([_CONNECT, _GONE]),
    "leaves before": Client([_GONE, _GONE]),
    "refuses what comes": Client([_CONNECT, *_SAID, _GONE], refuses_after=2),
    "refuses all": Client([_CONNECT, _GONE], refuses_after=0),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("app", WEBSOCKETS)
async def test_websockets_pass_as_without_the_middleware(
    upstash: LocalUpstash, app: str, mode: str
):
    alone, through = Player(WEBSOCKETS[app], None), Player(WEBSOCKETS[app], mode)
    for name, client in WEBSOCKET_CLIENTS.items():
        expected = await alone.play(client, websocket_scope())
        played = await through.play(client, websocket_scope())
        assert played.events == expected.events, name
    await through.aclose()


def websocket_scope() -> dict[str, Any]:
    scope = http_scope(CLIENTS["GET"], "/chat")
    del scope["method"]
    extensions: dict[str, Any] = {"websocket.http.response": {}}
    return scope | {"type": "websocket", "scheme": "ws", "extensions": extensions}


# -- The lifespan.


async def lives(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    for kind in ("startup", "shutdown"):
        assert (await receive())["type"] == f"lifespan.{kind}"
        scope["state"][kind] = "done"
        await send({"type": f"lifespan.{kind}.complete"})


async def fails_to_start(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no database"})


async def knows_no_lifespan(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    raise Broken("lifespan is not supported")


LIFESPANS: dict[str, Application] = {
    "lives": lives,
    "fails to start": fails_to_start,
    "knows no lifespan": knows_no_lifespan,
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("app", LIFESPANS)
async def test_the_lifespan_passes_as_without_the_middleware(
    upstash: LocalUpstash, app: str, mode: str
):
    client = Client([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    scopes = [{"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}} for _ in range(2)]
    expected = await Player(LIFESPANS[app], None).play(client, scopes[0])
    played = await Player(LIFESPANS[app], mode).play(client, scopes[1])
    assert played.events == expected.events
    assert scopes[1] == scopes[0]
