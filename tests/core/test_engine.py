"""The engine joins the halves, orders their answers, and survives their faults."""

from __future__ import annotations

import pytest

from upstash_middleware.core.engine import Engine, PartExchange, Prepared
from upstash_middleware.core.engine import Part as EnginePart
from upstash_middleware.core.flow import Command, Pipeline
from upstash_middleware.drivers import run
from upstash_middleware.errors import ConfigurationError, ConnectionLost, MissingCredentials
from upstash_middleware.events import InternalError
from upstash_middleware.messages import Headers, HTTPRequest, Response, ResponseHead

REQUEST = HTTPRequest("GET", "/page")
PAGE = ResponseHead(200, Headers.of(content_type="text/plain"))


class Client:
    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def execute(self, pipeline: Pipeline):
        self.calls.append([str(command.args[0]) for command in pipeline.commands])
        return [None for _ in pipeline.commands]


class Part(PartExchange):
    """An exchange of a half that writes its name wherever it is asked."""

    decision = None
    holds = False
    watches = True

    def __init__(self, name: str, response: Response | None = None, fail: str = "") -> None:
        self.name = name
        self.response = response
        self.fail = fail
        self.chunks: list[bytes] = []
        self.finished: list[bool] = []

    def request_to_forward(self, request: HTTPRequest) -> HTTPRequest:
        self._perhaps_fail("request")
        return HTTPRequest("GET", request.path, request.headers.setting("x-by", self.name))

    def head(self, head: ResponseHead) -> ResponseHead | Response:
        self._perhaps_fail("head")
        fields = head.headers.adding((b"x-seen-by", self.name.encode()))
        return ResponseHead(head.status, fields)

    def chunk(self, data: bytes) -> None:
        self._perhaps_fail("chunk")
        self.chunks.append(data)

    def finish(self, *, complete: bool):
        self.finished.append(complete)
        return self._finish() if self.fail == "finish" else None

    async def _finish(self) -> None:
        raise ValueError(self.name)

    def _perhaps_fail(self, where: str) -> None:
        if self.fail == where:
            raise ValueError(self.name)


class Holder(Part):
    """One that holds something, which is due to be renewed once."""

    holds = True
    due = True

    def renewal(self):
        self._perhaps_fail("renewal")
        due, self.due = self.due, False
        return self._renewed() if due else None

    async def _renewed(self) -> None:
        await Command(("RENEW",))
        self._perhaps_fail("renewal later")


class Half(EnginePart):
    def __init__(self, part: Part | Exception) -> None:
        self.part = part

    async def prepare(self, request: HTTPRequest):
        if isinstance(self.part, Exception):
            raise self.part
        await Command((f"ASK-{self.part.name}",))
        return self.part


@pytest.fixture
def events():
    return []


@pytest.fixture
def begin(events):
    def begin(*parts, inner=None):
        engine = Engine([Half(part) for part in parts], observe=events.append)
        return run(engine.begin(REQUEST, inner), Client())

    return begin


def test_both_halves_and_the_engine_inside_ask_in_one_pipeline(events):
    client = Client()
    inner = Engine([Half(Part("inner"))], observe=events.append)
    outer = Engine([Half(Part("limit")), Half(Part("cache"))], observe=events.append)
    exchange = run(outer.begin(REQUEST, inner), client)
    assert client.calls == [["ASK-limit", "ASK-cache", "ASK-inner"]]
    handed = exchange.take_inner()
    assert handed is not None
    assert handed.engine is inner
    assert exchange.inner is None


def test_the_head_passes_from_the_inside_out_and_every_half_sees_the_body(begin):
    limit, cache = Part("limit"), Part("cache")
    exchange = begin(limit, cache)
    assert exchange.request.headers.get("x-by") == "cache"
    head = exchange.head(PAGE)
    assert head.headers.lines("x-seen-by") == ["cache", "limit"]
    exchange.chunk(b"page")
    assert limit.chunks == cache.chunks == [b"page"]
    assert exchange.finish(complete=True) is None
    assert limit.finished == cache.finished == [True]


def test_a_response_from_the_inner_half_passes_the_outer_one(begin):
    limit = Part("limit")
    cache = Part("cache", response=Response(PAGE, b"stored"))
    exchange = begin(limit, cache)
    assert exchange.response.body == b"stored"
    assert exchange.response.head.headers.lines("x-seen-by") == ["limit"]
    exchange.finish(complete=True)
    assert limit.finished == cache.finished == [True]


def test_a_denial_leaves_what_is_inside_unreached(begin):
    limit = Part("limit", response=Response(ResponseHead(429, Headers())))
    cache = Part("cache", response=Response(PAGE, b"stored"))
    exchange = begin(limit, cache)
    assert exchange.response.head.status == 429
    exchange.finish(complete=True)
    assert limit.finished == [True]
    assert cache.finished == [False]


def test_what_a_half_answers_without_asking_anybody_costs_nothing_inside_of_it(events):
    class Remembered(Half):
        async def prepare(self, request: HTTPRequest):
            return self.part

    client = Client()
    denial = Part("limit", response=Response(ResponseHead(429, Headers())))
    inner = Engine([Half(Part("inner"))], observe=events.append)
    outer = Engine([Remembered(denial), Half(Part("cache"))], observe=events.append)
    exchange = run(outer.begin(REQUEST, inner), client)
    assert exchange.response is denial.response
    assert exchange.take_inner() is None
    assert client.calls == []


class Straight(EnginePart):
    """A half that needs one pipeline, and then perhaps another one."""

    def __init__(self, part: Part, *, reads_on: bool = False) -> None:
        self.part = part
        self.reads_on = reads_on

    def prepare(self, request: HTTPRequest):
        return Prepared(Pipeline((Command((f"ASK-{self.part.name}",)),)))

    def receive(self, prepared: Prepared, replies):
        return self._read_on() if self.reads_on else self.part

    async def _read_on(self):
        await Command((f"MORE-{self.part.name}",))
        return self.part


@pytest.mark.parametrize("denied", [False, True])
def test_a_denial_does_not_wait_for_what_is_inside(events, denied: bool):
    client = Client()
    denial = Response(ResponseHead(429, Headers())) if denied else None
    limit, cache = Part("limit", response=denial), Part("cache")
    halves = [Straight(limit), Straight(cache, reads_on=True)]
    exchange = run(Engine(halves, observe=events.append).begin(REQUEST), client)
    assert exchange.response is denial
    more = [] if denied else [["MORE-cache"]]
    assert client.calls == [["ASK-limit", "ASK-cache"], *more]
    exchange.finish(complete=True)
    assert cache.finished == ([] if denied else [True])


def test_a_client_that_fails_in_an_unforeseen_way_costs_nobody_the_response(events):
    class Broken(Client):
        def execute(self, pipeline: Pipeline):
            raise RuntimeError("a fault of the client's own")

    engine = Engine([Half(Part("limit")), Half(Part("cache"))], observe=events.append)
    exchange = run(engine.begin(REQUEST), Broken())
    assert exchange.response is None
    assert [event.where for event in events] == ["begin", "begin"]


def test_what_stands_in_for_a_response_that_failed_passes_the_outer_half(begin):
    class StandingIn(Part):
        def failed(self) -> Response:
            return Response(PAGE, b"stale")

    stale = begin(Part("limit"), StandingIn("cache")).failed()
    assert stale.body == b"stale"
    assert stale.head.headers.lines("x-seen-by") == ["limit"]
    assert begin(Part("limit"), Part("cache")).failed() is None


def test_a_half_that_fails_to_stand_in_is_left_out(begin, events):
    class StandingIn(Part):
        def failed(self) -> Response:
            raise ValueError

    assert begin(Part("limit"), StandingIn("cache")).failed() is None
    assert [event.where for event in events] == ["failed"]


def test_a_whole_response_from_inside_keeps_its_body_on_the_way_out(begin):
    class Confirmed(Part):
        def head(self, head: ResponseHead) -> ResponseHead | Response:
            return Response(PAGE, b"stored")

    exchange = begin(Part("limit"), Confirmed("cache"))
    answer = exchange.head(ResponseHead(304, Headers()))
    assert isinstance(answer, Response)
    assert answer.body == b"stored"
    assert answer.head.headers.lines("x-seen-by") == ["limit"]


@pytest.mark.parametrize("where", ["request", "head", "chunk", "finish"])
def test_a_half_that_fails_costs_nobody_the_response(begin, events, where):
    broken, sound = Part("broken", fail=where), Part("sound")
    exchange = begin(broken, sound)
    assert exchange.head(PAGE).headers.lines("x-seen-by")[0] == "sound"
    exchange.chunk(b"page")
    flow = exchange.finish(complete=True)
    if flow is not None:
        run(flow, Client())
    assert sound.chunks == [b"page"]
    assert sound.finished == [True]
    assert broken.finished == [where == "finish"]
    assert [(event.where, str(event.error)) for event in events] == [(where, "broken")]


def test_a_half_that_fails_at_the_beginning_is_left_out(begin, events):
    sound = Part("sound")
    exchange = begin(ValueError("broken"), sound)
    assert exchange.head(PAGE).headers.lines("x-seen-by") == ["sound"]
    assert isinstance(events[0], InternalError)


class Asking(EnginePart):
    """A half that notes what it receives for its command."""

    def __init__(self) -> None:
        self.received: list[object] = []

    def prepare(self, request: HTTPRequest):
        return Prepared(Pipeline((Command(("ASK",)),)))

    def receive(self, prepared, replies):
        self.received.append(replies)


class Failing(Client):
    def __init__(self, error: Exception) -> None:
        self.error = error

    def execute(self, pipeline: Pipeline):
        raise self.error


def test_a_transports_own_error_is_reported_and_reaches_each_half_as_an_upstash_error(events):
    halves = [Asking(), Asking()]
    run(Engine(halves, observe=events.append).begin(REQUEST), Failing(ValueError("odd")))
    for half in halves:
        (received,) = half.received
        assert isinstance(received, ConnectionLost)
    assert [str(event.error) for event in events] == ["odd"]


def test_a_wrong_configuration_that_a_call_finds_is_the_applications_to_hear_of(events):
    half = Asking()
    with pytest.raises(ConfigurationError):
        run(Engine([half], observe=events.append).begin(REQUEST), Failing(ConfigurationError("x")))
    assert events == half.received == []


def test_missing_credentials_are_the_applications_to_hear_of(begin):
    with pytest.raises(MissingCredentials):
        begin(MissingCredentials("no URL"), Part("cache"))


def test_what_nobody_took_over_inside_is_finished_as_incomplete(begin, events):
    part = Part("inner")
    exchange = begin(Part("limit"), inner=Engine([Half(part)], observe=events.append))
    exchange.finish(complete=True)
    assert part.finished == [False]


def test_what_is_held_is_renewed_when_it_is_due(begin):
    holder, client = Holder("limit"), Client()
    exchange = begin(holder, Part("cache"))
    assert exchange.holding == (holder,)
    run(exchange.renewal(), client)
    assert client.calls == [["RENEW"]]
    assert exchange.renewal() is None


def test_a_request_that_holds_nothing_has_nothing_to_renew(begin):
    exchange = begin(Part("limit"), Part("cache"))
    assert exchange.holding == ()
    assert exchange.renewal() is None


@pytest.mark.parametrize("where", ["renewal", "renewal later"])
def test_a_renewal_that_fails_costs_nobody_the_response(begin, events, where):
    holder = Holder("broken", fail=where)
    exchange = begin(holder)
    if (flow := exchange.renewal()) is not None:
        run(flow, Client())
    exchange.finish(complete=True)
    assert holder.finished == [True]
    assert [(event.where, str(event.error)) for event in events] == [("renewal", "broken")]
