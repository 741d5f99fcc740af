"""Flask's test client reads a body without closing the response: that is the exchange's end."""

from __future__ import annotations

import gc
import io
import itertools
import re
import time
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask, Response, g, send_file

from upstash_middleware import CacheRule, RateLimitRule, flask

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from flask.testing import FlaskClient

    from upstash_middleware.local import LocalUpstash

PATIENCE = 20.0
QUOTA = 1000
LIMITS = f"1 at once; {QUOTA}/hour"
_numbers = itertools.count()
COST = 5


def _streamed() -> Iterator[bytes]:
    yield b"one "
    yield b"two"


def text() -> str:
    g.rate_limit.charge(COST - 1)
    return "one two"


def stream() -> Response:
    g.rate_limit.charge(COST - 1)
    return Response(_streamed(), mimetype="text/plain")


def file() -> Response:
    g.rate_limit.charge(COST - 1)
    content = io.BytesIO(b"0123456789" * 5_000)
    return send_file(content, mimetype="text/plain", max_age=600)


def empty() -> Response:
    g.rate_limit.charge(COST - 1)
    return Response(status=204)


VIEWS: list[Callable[[], Any]] = [text, stream, file, empty]
_GIVEN: dict[str, Any] = {
    "default_limit": None,
    "cache": [CacheRule("/{rest:path}", ttl=60)],
    "deadline": PATIENCE,
    "cache_deadline": PATIENCE,
}
guards = pytest.mark.parametrize("guard", ["middleware", "limit", "before_request"])
views = pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.__name__)


def client_of(guard: str, **given: Any) -> FlaskClient:
    """Its counts are its own: a response of an earlier test may still be settled."""
    app = Flask(__name__)
    name = f"r{next(_numbers)}"
    limited = flask.limit(LIMITS, name=name, deadline=PATIENCE)
    for view in VIEWS:
        guarded = limited(view) if guard == "limit" else view
        app.add_url_rule(f"/{view.__name__}", view.__name__, guarded, methods=["GET", "PUT"])
    if guard == "middleware":
        rules = [RateLimitRule(limits=LIMITS, name=name)]
        flask.UpstashMiddleware(app, rate_limits=rules, **{**_GIVEN, **given})
    elif guard == "before_request":
        app.before_request(limited)
    return app.test_client()


def used(response: Any) -> int:
    """Return how much of the quota was used before the request."""
    (remaining,) = re.findall(r'"r\d+ 1h";r=(\d+)', response.headers["RateLimit"])
    return QUOTA - int(remaining) - 1


@views
@guards
@pytest.mark.parametrize("method", ["get", "put", "head"])
def test_a_response_that_was_read_gives_its_slot_back_and_is_settled(
    upstash: LocalUpstash, guard: str, view: Callable[[], Any], method: str
):
    client = client_of(guard)
    kept = []  # so that nothing ends because it is deleted
    for number in range(3):
        response = getattr(client, method)(f"/{view.__name__}")
        # A page that may be shared tells nobody's quota.
        if response.headers.get("RateLimit"):
            assert used(response) == number * COST
        assert response.status_code in {200, 204}
        assert isinstance(response.data, bytes)
        kept.append(response)


@views
@pytest.mark.parametrize("first", [False, True], ids=["stored after", "stored first"])
def test_a_page_that_was_read_is_stored_and_read_again_the_same(
    upstash: LocalUpstash, view: Callable[[], Any], first: bool
):
    client = client_of("middleware", cache_store_first=first)
    pages = [client.get(f"/{view.__name__}")]
    pages[0].get_data()
    pages.append(client.get(f"/{view.__name__}"))
    assert pages[0].data == pages[1].data
    assert [("; hit;" in page.headers["Cache-Status"]) for page in pages] == [False, True]


@pytest.mark.parametrize("first", [False, True], ids=["stored after", "stored first"])
def test_a_change_that_was_answered_has_invalidated_the_page(upstash: LocalUpstash, first: bool):
    """RFC 9111 §4.4."""
    client = client_of("middleware", cache_store_first=first)
    assert client.get("/text").text == "one two"
    change = client.put("/text")
    assert change.text == "one two"
    assert "; hit;" not in client.get("/text").headers["Cache-Status"]


@guards
def test_a_response_that_nobody_reads_gives_its_slot_back_when_it_is_dropped(
    upstash: LocalUpstash, guard: str
):
    client = client_of(guard)
    assert client.get("/stream").status_code == 200
    until = time.monotonic() + PATIENCE
    while client.put("/stream").status_code == 429:
        gc.collect()
        assert time.monotonic() < until, "the slot stayed taken"
        time.sleep(0.01)


@guards
@views
def test_a_response_that_is_closed_unread_gives_its_slot_back(
    upstash: LocalUpstash, guard: str, view: Callable[[], Any]
):
    client = client_of(guard)
    for _ in range(3):
        with client.put(f"/{view.__name__}") as response:
            assert response.status_code in {200, 204}


def test_what_an_application_does_on_close_happens_once_and_before_an_invalidation(
    upstash: LocalUpstash,
):
    app = Flask(__name__)
    content = ["old"]
    closed: list[str] = []

    @app.get("/page")
    def page() -> str:
        return content[0]

    @app.put("/page")
    def change() -> Response:
        response = Response("changed")

        def commit() -> None:
            closed.append("closed")
            content[0] = "new"

        response.call_on_close(commit)
        return response

    flask.UpstashMiddleware(app, **_GIVEN)
    client = app.test_client()
    assert client.get("/page").text == "old"
    response = client.put("/page")
    assert response.text == "changed"
    response.close()
    assert closed == ["closed"]
    assert client.get("/page").text == "new"
