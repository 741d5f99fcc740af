"""The signal ``rate_limited``: when it is sent, with what, and what a receiver cannot break."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask, g, request

from upstash_middleware import RateLimitRule
from upstash_middleware.events import Event, UserCodeFailed
from upstash_middleware.flask import EXTENSION, UpstashMiddleware, limit, rate_limited

if TYPE_CHECKING:
    from collections.abc import Iterator

    from upstash_middleware import Decision

pytestmark = pytest.mark.usefixtures("upstash")


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def app(events: list[Event]) -> Iterator[Flask]:
    """An application with a limit outside of /cake, and one in front of the view of /tea."""
    app = Flask("shop")
    rule = RateLimitRule("/cake", "1/hour", name="cake")
    observers = [events.append]
    UpstashMiddleware(app, rate_limits=[rule], default_limit=None, observers=observers)

    @app.get("/tea")
    @limit("1/hour", name="tea")
    def tea() -> str:
        return "tea"

    @app.get("/cake")
    def cake() -> str:
        return "cake"

    yield app
    for middleware in app.extensions[EXTENSION].values():
        middleware.runtime.close()


def statuses(app: Flask, path: str) -> list[int]:
    client = app.test_client()
    return [client.get(path, buffered=True).status_code for _ in range(2)]


@pytest.mark.parametrize("name", ["cake", "tea"])
def test_a_denial_is_sent_once_by_the_application_within_the_request(app: Flask, name: str):
    sent: list[tuple[Any, ...]] = []

    def receive(sender: Flask, decision: Decision) -> None:
        sent.append((sender, decision.rule, request.path, g.rate_limit.rule))

    with rate_limited.connected_to(receive, app):
        assert statuses(app, f"/{name}") == [200, 429]
    assert sent == [(app, name, f"/{name}", name)]


def test_another_applications_receivers_hear_nothing(app: Flask):
    def receive(_sender: Flask, decision: Decision) -> None:
        pytest.fail(f"told of {decision}")

    with rate_limited.connected_to(receive, Flask("other")):
        statuses(app, "/cake")


@pytest.mark.parametrize("path", ["/cake", "/tea"])
def test_a_receiver_that_raises_is_told_to_the_observers_and_the_others_hear(
    app: Flask, events: list[Event], path: str
):
    heard: list[str] = []

    def broken(_sender: Flask, **_: Any) -> None:
        raise ZeroDivisionError

    def receive(_sender: Flask, decision: Decision) -> None:
        heard.append(decision.rule)

    with rate_limited.connected_to(broken), rate_limited.connected_to(receive):
        assert statuses(app, path) == [200, 429]
    assert heard == [path[1:]]
    (fault,) = (event for event in events if isinstance(event, UserCodeFailed))
    assert fault.where == "a receiver of rate_limited"
