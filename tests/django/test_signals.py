"""The signal ``rate_limited``: when it is sent, with what, and what a receiver may do."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from asgiref.sync import async_to_sync
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client, override_settings

from tests.django.project import Urls
from upstash_middleware import Decision
from upstash_middleware.django import limit
from upstash_middleware.django.signals import rate_limited

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.usefixtures("upstash")


def tea(_: HttpRequest) -> HttpResponse:
    return HttpResponse("tea")


async def tea_async(_: HttpRequest) -> HttpResponse:
    return HttpResponse("tea")


@contextmanager
def project(view: Callable[..., Any], receiver: Callable[..., Any]) -> Iterator[None]:
    """Configure a project of a view at /tea, whose middleware limits all else to one request."""
    settings = {
        "MIDDLEWARE": ["upstash_middleware.django.RateLimitMiddleware"],
        "ROOT_URLCONF": Urls(tea=view, cake=tea),
        "UPSTASH_MIDDLEWARE": {
            "rate_limits": [
                {"path": "/tea", "limits": "100/hour"},
                {"path": "/cake", "limits": "1/hour", "name": "cake"},
            ],
            "default_limit": None,
        },
    }
    rate_limited.connect(receiver)
    try:
        with override_settings(**settings):
            yield
    finally:
        rate_limited.disconnect(receiver)


class Receiver:
    """Notes what it is sent, and on which thread."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.threads: list[str] = []

    def __call__(self, **sent: Any) -> None:
        self.sent.append(sent)
        self.threads.append(threading.current_thread().name)


@pytest.mark.parametrize(
    ("path", "rule"), [("/cake", "cake"), ("/tea", f"{__name__}.tea")], ids=["middleware", "view"]
)
def test_a_denial_is_sent_once_with_the_request_and_the_decision(path: str, rule: str):
    receiver = Receiver()
    with project(limit("1/hour")(tea), receiver):
        assert [Client().get(path).status_code for _ in range(2)] == [200, 429]
    (sent,) = receiver.sent
    assert isinstance(sent["request"], HttpRequest)
    assert issubclass(sent["sender"], HttpRequest)
    assert isinstance(sent["decision"], Decision)
    assert (sent["request"].path, sent["decision"].rule) == (path, rule)


@pytest.mark.parametrize("path", ["/cake", "/tea"])
@pytest.mark.anyio
async def test_on_an_event_loop_a_receiver_runs_in_a_thread_and_may_block(path: str):
    """As one does that writes to the database, which Django refuses on an event loop."""
    receiver = Receiver()

    def blocking(**sent: Any) -> None:
        async_to_sync(nothing)()  # raises where an event loop runs in this thread
        receiver(**sent)

    async def nothing() -> None:
        pass

    with project(limit("1/hour")(tea_async), blocking):
        for _ in range(2):
            await AsyncClient().get(path)
    assert len(receiver.sent) == 1
    assert receiver.threads != [threading.current_thread().name]


@pytest.mark.anyio
async def test_a_receiver_may_be_async():
    receiver = Receiver()

    async def receive(**sent: Any) -> None:
        receiver(**sent)

    with project(tea_async, receive):
        for _ in range(2):
            await AsyncClient().get("/cake")
    assert len(receiver.sent) == 1


def test_a_receiver_that_raises_costs_nobody_the_answer(caplog: pytest.LogCaptureFixture):
    def broken(**_: Any) -> None:
        raise ZeroDivisionError

    with project(tea, broken):
        answers = [Client().get("/cake") for _ in range(2)]
    assert answers[1].status_code == 429
    assert answers[1]["Content-Type"] == "application/problem+json"
    assert "ZeroDivisionError" in caplog.text
