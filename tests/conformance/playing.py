"""Carries out a case against a running server: a raw client, and the application's part."""

from __future__ import annotations

import http.client
import itertools
import socket
import threading
import time
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.conformance.telling import Date, Reply, Use

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tests.clocks import MovableClock
    from tests.conformance.telling import Case, Fields, Step, Value

PATIENCE = 20.0
_CASES = itertools.count(1)


@dataclass(frozen=True)
class Message:
    """A request as the application saw it, or a response as the client got it."""

    start: str
    """The method, or the status."""
    fields: tuple[tuple[str, str], ...]
    body: bytes = b""
    whole: bool = True

    def lines(self, name: str) -> tuple[str, ...]:
        return tuple(value for field, value in self.fields if field.lower() == name.lower())


@dataclass
class Given:
    """What the application gives: a reply whose dates and body are settled."""

    status: int
    fields: list[tuple[str, str]]
    pieces: list[bytes]
    fault: str = ""


@dataclass
class Play:
    """One case on its way."""

    next: Given
    seen: list[Message] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)


class Origin:
    """The application behind the cache: it answers as the case on its way tells it."""

    def __init__(self) -> None:
        self.plays: dict[str, Play] = {}

    def answer(self, method: str, path: str, fields: Iterable[tuple[str, str]]) -> Given:
        """Answer a request for a path, whose first segment says to which case it belongs."""
        play = self.plays[path.split("/")[1]]
        with play.changed:
            play.seen.append(Message(method, tuple(fields)))
            play.changed.notify_all()
            given = play.next
        if given.fault == "raises":
            raise RuntimeError("as the case wants it")
        return given


def play(case: Case, origin: Origin, port: int, clock: MovableClock) -> None:
    """Take a case's steps one by one, and fail where one does not come out as it says."""
    name = f"c{next(_CASES)}"
    origin.plays[name] = running = Play(Given(200, [], []))
    answers: list[Given] = []
    last = 0
    for number, step in enumerate(case.steps):
        clock.advance(step.after)
        given = _settled(step.reply, f"{name} {number}".encode(), clock.wall(), f"/{name}")
        answers.append(given)
        running.next = given
        before = len(running.seen)
        target = f"/{name}{step.at}"
        got = ask(port, step.method, target, step.host, _fields(step.sends, clock.wall(), name))
        where = f"step {number} of {case.name!r}: {got}"
        _check_use(step, running, before, where)
        if step.use in {Use.FORWARDED, Use.EITHER} and len(running.seen) > before:
            last = number if given.status != 304 or step.status == 304 else last
        _check_answer(step, got, answers[last if step.of is None else step.of], where)
        if step.saw:
            _check_fields(step.saw, running.seen[-1], f"seen {running.seen[-1]} at {where}")


def _check_use(step: Step, running: Play, before: int, where: str) -> None:
    asked = len(running.seen) - before
    match step.use:
        case Use.CACHED:
            assert asked == 0, f"the application was asked: {where}"
        case Use.FORWARDED | Use.VALIDATED:
            assert asked == 1, f"the application was asked {asked} times: {where}"
        case Use.REFRESHED:
            end = time.monotonic() + PATIENCE
            with running.changed:
                while len(running.seen) == before and time.monotonic() < end:
                    running.changed.wait(0.1)
            assert len(running.seen) > before, f"the application was not asked: {where}"
        case Use.EITHER:
            pass


def _check_answer(step: Step, got: Message, given: Given, where: str) -> None:
    status = step.status or given.status
    if step.use is not Use.EITHER:
        assert got.start == str(status), f"not {status}: {where}"
    if step.use is not Use.EITHER and not given.fault and step.status in {None, 200, 206}:
        bodiless = step.method == "HEAD" or status in {204, 304}
        body = b"".join(given.pieces) if step.body is None else step.body
        assert got.body == (b"" if bodiless else body), f"not {body!r}: {where}"
    if given.fault == "breaks":
        assert not got.whole, f"whole: {where}"
    _check_fields(step.got, got, where)


def _check_fields(wanted: Mapping[str, Any], message: Message, where: str) -> None:
    for name, want in wanted.items():
        lines = message.lines(name)
        if want is None:
            assert not lines, f"{name} is there: {where}"
        elif callable(want):
            assert [want(line) for line in lines] == [True], f"{name} is {lines}: {where}"
        else:
            assert lines == (want if isinstance(want, tuple) else (want,)), f"{name}: {where}"


def _settled(reply: Reply, text: bytes, now: float, base: str) -> Given:
    body = text if reply.body is None else reply.body
    pieces = [body] if isinstance(body, bytes) else list(body)
    if reply.status in {204, 304}:
        pieces = []
    fields = [(name, _text(value, now, base)) for name, value in reply.fields]
    return Given(reply.status, fields, pieces, reply.fault)


def _fields(fields: Fields, now: float, base: str) -> list[tuple[str, bytes]]:
    return [(name, _text(value, now, f"/{base}").encode("latin-1")) for name, value in fields]


def _text(value: Value, now: float, base: str) -> str:
    """Return a field's value; ``{base}`` in it is the case's own path."""
    if isinstance(value, Date):
        return time.strftime(value.form, time.gmtime(int(now) + value.offset))
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    return text.replace("{base}", base)


def ask(port: int, method: str, target: str, host: str, fields: list[tuple[str, bytes]]) -> Message:
    """Send a request over a connection of its own, byte by byte as it stands, and read all."""
    lines = [f"{method} {target} HTTP/1.1".encode(), b"Host: " + host.encode()]
    lines += [name.encode() + b": " + value for name, value in fields]
    lines += [b"Content-Length: 0"] if method not in {"GET", "HEAD"} else []
    lines += [b"Connection: close", b"", b""]
    with closing(socket.create_connection(("127.0.0.1", port), PATIENCE)) as connection:
        connection.sendall(b"\r\n".join(lines))
        response = http.client.HTTPResponse(connection, method=method)
        try:
            response.begin()
            body, whole = response.read(), True
        except http.client.IncompleteRead as error:
            body, whole = error.partial, False
        except (http.client.RemoteDisconnected, ConnectionError):
            return Message("nothing", (), whole=False)
        return Message(str(response.status), tuple(response.headers.items()), body, whole)
