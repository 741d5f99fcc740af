"""What passes between application and server, message by message."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest

from tests.asgi.fakes import (
    REQUEST_BODY,
    FakeHalf,
    FakeRuntime,
    Server,
    adding,
    around,
    body,
    call,
    http_scope,
    never,
    sending,
    start,
    whole,
)
from tests.asgi.serving import PATIENCE
from upstash_middleware import RateLimitRule
from upstash_middleware.asgi import UpstashMiddleware
from upstash_middleware.core.engine import Engine
from upstash_middleware.messages import Headers

if TYPE_CHECKING:
    from upstash_middleware.asgi import Receive, Scope, Send

pytestmark = pytest.mark.anyio


async def test_the_head_passes_through_the_exchange_and_the_body_unchanged():
    half = FakeHalf(head=adding((b"age", b"3")))
    app = sending(start(203, (b"x-a", b"1"), (b"x-a", b"2")), body(b"one", more=True), body(b"two"))
    server = await call(around(app, FakeRuntime(half)))
    assert server.sent == [
        start(203, (b"x-a", b"1"), (b"x-a", b"2"), (b"age", b"3")),
        body(b"one", more=True),
        body(b"two"),
    ]
    assert half.chunks == [b"one", b"two"]
    assert half.finished == [True]


async def test_each_message_has_gone_out_before_the_next_is_asked_for():
    server = Server()
    seen: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in (start(), body(b"1", more=True), body(b"2", more=True), body()):
            await send(message)
            seen.append(len(server.sent))

    await around(app, FakeRuntime(FakeHalf()))(http_scope(), server.receive, server.send)
    assert seen == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("messages", "renewed_after"),
    [
        ([start(), body(b"1", more=True), body(b"2", more=True), body(b"3")], [2, 3]),
        ([start(), body(more=True), body(b"1", more=True), body()], [3]),
        ([start(), body(b"whole")], []),
        (
            [start(), {"type": "http.response.zerocopysend", "file": 3, "more_body": True}, body()],
            [2],
        ),
    ],
    ids=["between pieces", "not before the first", "not at the end", "after a part of a file"],
)
async def test_what_a_request_holds_is_renewed_once_a_piece_has_gone_out(messages, renewed_after):
    server = Server(REQUEST_BODY)
    renewed: list[int] = []
    half = FakeHalf(renews=lambda: renewed.append(len(server.sent)))
    app = around(sending(*messages), FakeRuntime(half))
    await app(http_scope(), server.receive, server.send)
    assert renewed == renewed_after
    assert len(half.finished) == 1


async def test_a_response_of_ours_goes_out_and_the_application_is_not_called():
    half = FakeHalf(response=whole(429, b"later", [(b"retry-after", b"7")]))
    server = await call(around(never, FakeRuntime(half)))
    assert server.sent == [start(429, (b"retry-after", b"7")), body(b"later")]
    assert half.finished == [True]


async def test_field_names_go_out_in_lower_case():
    """ASGI specification, Response Start: header names must be lowercased."""
    half = FakeHalf(response=whole(429, b"", [(b"Retry-After", b"7")]))
    server = await call(around(never, FakeRuntime(half)))
    assert server.sent[0]["headers"] == [(b"retry-after", b"7")]


async def test_a_response_of_ours_has_no_body_for_head_but_keeps_its_length_field():
    half = FakeHalf(response=whole(429, b"later", [(b"content-length", b"5")]))
    server = await call(around(never, FakeRuntime(half)), http_scope(method="HEAD"))
    assert server.sent == [start(429, (b"content-length", b"5")), body(b"")]


async def test_a_whole_response_in_place_of_the_head_swallows_all_that_the_application_sends():
    half = FakeHalf(head=lambda _: whole(200, b"stored"))
    app = sending(
        start(304, trailers=True),
        body(b"ignored", more=True),
        body(b"ignored"),
        {"type": "http.response.trailers", "headers": []},
    )
    server = await call(around(app, FakeRuntime(half)))
    assert server.sent == [start(200), body(b"stored")]
    assert half.chunks == []
    assert half.finished == [True]


async def test_a_whole_response_in_place_of_the_head_has_no_body_for_head():
    half = FakeHalf(head=lambda _: whole(200, b"stored"))
    app = around(sending(start(304), body()), FakeRuntime(half))
    server = await call(app, http_scope(method="HEAD"))
    assert server.body == b""


async def test_with_trailers_the_last_byte_is_theirs():
    half = FakeHalf()
    messages = [
        start(trailers=True),
        body(b"all"),
        {"type": "http.response.trailers", "headers": [(b"a", b"1")], "more_trailers": True},
        {"type": "http.response.trailers", "headers": [(b"b", b"2")]},
    ]
    finished: list[list[bool]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)
            finished.append(list(half.finished))

    server = await call(around(app, FakeRuntime(half)))
    assert server.sent == messages
    assert finished == [[], [], [], [True]]


BY_THE_SERVER = pytest.mark.parametrize(
    "unseen",
    [
        {"type": "http.response.pathsend", "path": "/srv/film.mp4"},
        {"type": "http.response.zerocopysend", "file": 3},
    ],
    ids=lambda message: message["type"],
)


@BY_THE_SERVER
async def test_a_body_that_the_server_reads_itself_passes_and_is_not_taken_for_whole(unseen):
    half = FakeHalf()
    server = await call(around(sending(start(), unseen), FakeRuntime(half)))
    assert server.sent == [start(), unseen]
    assert half.finished == [False]


@BY_THE_SERVER
@pytest.mark.usefixtures("upstash")
async def test_a_body_that_the_server_reads_itself_settles_as_the_response_that_it_is(unseen):
    """Not to be stored is no failure: what a rule settles by is the status that was sent."""
    costs = {200: 5, 500: 0}
    rule = RateLimitRule(limits="10/hour", settle=lambda _, response: costs[response.status])
    app = UpstashMiddleware(sending(start(), unseen), default_limit=rule, deadline=PATIENCE)
    left = [dict((await call(app)).sent[0]["headers"])[b"x-ratelimit-remaining"] for _ in range(2)]
    await app.runtime.aclose()
    assert left == [b"9", b"4"]


@pytest.mark.parametrize(
    "extension",
    [
        {"type": "http.response.debug", "info": {"template": "page.html"}},
        {"type": "http.response.early_hint", "links": [b"</style.css>; rel=preload"]},
        {"type": "http.response.push", "path": "/style.css", "headers": []},
    ],
    ids=lambda message: message["type"],
)
async def test_other_messages_pass_untouched_before_the_head(extension):
    half = FakeHalf()
    server = await call(around(sending(extension, start(), body(b"x")), FakeRuntime(half)))
    assert server.sent == [extension, start(), body(b"x")]
    assert half.chunks == [b"x"]
    assert half.finished == [True]


async def test_a_buffer_that_the_application_fills_again_is_recorded_as_it_was():
    half = FakeHalf()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        buffer = bytearray(b"first")
        await send(start())
        await send({"type": "http.response.body", "body": buffer, "more_body": True})
        buffer[:] = b"other"
        await send({"type": "http.response.body", "body": memoryview(buffer)})

    await call(around(app, FakeRuntime(half)))
    assert half.chunks == [b"first", b"other"]


async def test_a_message_that_middleware_outside_writes_into_is_recorded_as_it_was():
    """Starlette's GZipMiddleware puts the compressed body into the message that it gets."""

    async def send(message) -> None:
        message.update(body=b"compressed", headers=[(b"content-encoding", b"gzip")])

    half = FakeHalf()
    app = around(sending(start(), body(b"plain")), FakeRuntime(half))
    await app(http_scope(), Server().receive, send)
    assert half.chunks == [b"plain"]
    assert half.heads[0].headers == Headers()


@pytest.mark.usefixtures("upstash")
@pytest.mark.parametrize("settle", [None, lambda *_: 1], ids=["no settle", "settle"])
async def test_a_limit_adds_its_fields_to_a_head_whose_fields_can_be_read_once(settle):
    """The specification says that they are an iterable."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({**start(), "headers": iter([(b"x-page", b"1"), [b"x-page", b"2"]])})
        await send(body(b"page"))

    rule = RateLimitRule(limits="10/hour", settle=settle)
    served = UpstashMiddleware(app, default_limit=rule, deadline=PATIENCE)
    sent = (await call(served)).sent[0]["headers"]
    await served.runtime.aclose()
    assert [tuple(each) for each in sent[:2]] == [(b"x-page", b"1"), (b"x-page", b"2")]
    assert dict(sent[2:])[b"x-ratelimit-remaining"] == b"9"


class BrokenFields(FakeHalf):
    """A half that only adds field lines, and fails to."""

    only_adds = True

    def __init__(self) -> None:
        super().__init__()
        self.watches = False

    def added_lines(self, status, lines):
        raise ValueError("broken")


async def test_a_half_that_cannot_add_its_fields_costs_nobody_the_response():
    half = BrokenFields()
    runtime = FakeRuntime(half)
    reported: list[Any] = []
    runtime.engine = Engine([half], observe=reported.append)
    messages = [start(200, (b"x-page", b"1")), body(b"page")]
    server = await call(around(sending(*messages), runtime))
    assert server.sent == messages
    assert half.finished == [False]
    assert [(event.where, str(event.error)) for event in reported] == [("head", "broken")]


async def test_messages_without_their_optional_keys_are_read_as_the_specification_says():
    half = FakeHalf()
    app = sending({"type": "http.response.start", "status": 204}, {"type": "http.response.body"})
    await call(around(app, FakeRuntime(half)))
    assert half.heads[0].headers == Headers()
    assert half.finished == [True]


async def test_what_is_done_after_the_last_byte_delays_no_byte_and_no_background_task_delays_it():
    happened: list[str] = []

    async def wire() -> None:
        happened.append("upstash")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"page"))
        await anyio.lowlevel.checkpoint()
        happened.append("background task")

    async def send_to_client(message) -> None:
        happened.append(message["type"])

    runtime = FakeRuntime(FakeHalf(), waits=wire)
    await around(app, runtime)(http_scope(), Server().receive, send_to_client)
    assert happened == [
        "http.response.start",
        "http.response.body",
        "upstash",
        "background task",
    ]


async def test_scopes_of_a_kind_that_is_not_known_pass_untouched():
    scope = {"type": "something.new"}
    given: list[object] = []

    async def app(*arguments: object) -> None:
        given.extend(arguments)

    server = Server()
    receive, send = server.receive, server.send
    await around(app, FakeRuntime(FakeHalf()))(scope, receive, send)
    assert given == [scope, receive, send]
    assert given[0] is scope
    assert scope == {"type": "something.new"}


async def test_switched_off_the_application_talks_to_the_server_itself():
    given: list[object] = []

    async def app(*arguments: object) -> None:
        given.extend(arguments)

    half = FakeHalf(response=whole(429, b""))
    server, scope = Server(), http_scope()
    receive, send = server.receive, server.send
    await around(app, FakeRuntime(half, enabled=False))(scope, receive, send)
    assert given[0] is scope
    assert given[1:] == [receive, send]
    assert half.requests == []
