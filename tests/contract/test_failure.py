"""What Upstash does wrong is settled by policy; what the application set wrong is said."""

from __future__ import annotations

import logging
import re
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from tests.contract.neutral import Reply, Seen
from upstash_middleware.core.cache import CacheRule
from upstash_middleware.core.ratelimit import RateLimitRule
from upstash_middleware.errors import ConfigurationError, MissingCredentials
from upstash_middleware.local import LocalUpstash

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.contract.conftest import Serve

BOTH = ("UpstashMiddleware", {"default_limit": "1/hour", "cache": [CacheRule("/page", ttl=60)]})


def plain(_: Seen) -> Reply:
    return Reply(b"page")


@pytest.fixture
def nobody_listens(upstash: LocalUpstash, monkeypatch: pytest.MonkeyPatch) -> None:
    """Upstash at an address that refuses connections."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("UPSTASH_REDIS_REST_URL", f"http://127.0.0.1:{port}")


@pytest.fixture
def nobody_answers(upstash: LocalUpstash, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Upstash at an address that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("UPSTASH_REDIS_REST_URL", f"http://127.0.0.1:{port}")
        yield


@pytest.fixture
def wrong_token(upstash: LocalUpstash, monkeypatch: pytest.MonkeyPatch) -> None:
    """Upstash refuses the token."""
    monkeypatch.setenv("UPSTASH_REDIS_REST_TOKEN", "not-the-token")


OUTAGES = ["nobody_listens", "wrong_token"]


@pytest.mark.parametrize("outage", OUTAGES)
def test_an_open_rule_and_the_cache_let_requests_pass_and_the_log_says_so_once(
    serve: Serve, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture, outage: str
):
    request.getfixturevalue(outage)
    served = serve(plain, BOTH)
    with caplog.at_level(logging.INFO, "upstash_middleware"):
        for _ in range(4):
            answer = served.request("GET", "/page")
            assert (answer.status, answer.body) == (200, b"page")
            assert answer.header("x-ratelimit-remaining") is None
    lines = [record for record in caplog.records if record.name == "upstash_middleware"]
    assert len(lines) == 1
    assert lines[0].levelno == logging.WARNING


@pytest.mark.parametrize("outage", OUTAGES)
def test_a_closed_rule_answers_503_and_never_a_false_429(
    serve: Serve, request: pytest.FixtureRequest, outage: str
):
    request.getfixturevalue(outage)
    rule = RateLimitRule(limits="1/hour", name="strict", on_error="closed")
    served = serve(plain, ("RateLimitMiddleware", {"rate_limits": [rule], "default_limit": None}))
    for _ in range(3):
        answer = served.request("GET", "/")
        assert answer.status == 503
        assert int(answer.header("retry-after") or 0) >= 1
        assert answer.header("cache-control") == "no-store"


def test_an_upstash_that_says_nothing_costs_the_deadline_and_no_more(
    serve: Serve, nobody_answers: None
):
    name, arguments = BOTH
    served = serve(plain, (name, {**arguments, "deadline": 0.3, "cache_deadline": 0.3}))
    started = time.monotonic()
    assert served.request("GET", "/other").status == 200
    assert 0.2 < time.monotonic() - started < 15


def test_after_an_outage_requests_are_counted_again_and_the_log_says_so(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    upstash = LocalUpstash()
    with upstash:
        for name, value in upstash.env.items():
            monkeypatch.setenv(name, value)
        served = serve(plain, ("RateLimitMiddleware", {"default_limit": "9/hour"}))
        assert served.request("GET", "/").header("x-ratelimit-remaining") == "8"
    # WARNING is what Python shows where nothing is configured, as under uvicorn.
    with caplog.at_level(logging.WARNING, "upstash_middleware"):
        assert served.request("GET", "/").header("x-ratelimit-remaining") is None
        with upstash:
            remaining = _first(
                lambda: served.request("GET", "/").header("x-ratelimit-remaining"), within=20
            )
    assert remaining == "8"
    begun, over = (each for each in caplog.records if each.name == "upstash_middleware")
    assert "Upstash failed" in begun.getMessage()
    assert "Upstash is reachable again" in over.getMessage()


def _first(ask: Callable[[], str | None], *, within: float) -> str | None:
    """Return the first answer that is not None, asked for so many seconds at most."""
    end = time.monotonic() + within
    while (answer := ask()) is None and time.monotonic() < end:
        time.sleep(0.05)
    return answer


def without_credentials(upstash: LocalUpstash, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in upstash.env:
        monkeypatch.delenv(name)


def test_missing_credentials_are_named_at_the_start_or_at_the_first_request(
    serve: Serve,
    upstash: LocalUpstash,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    without_credentials(upstash, monkeypatch)
    try:
        answer = serve(plain, BOTH).request("GET", "/page")
    except MissingCredentials as error:
        said = str(error)
    else:
        assert answer.status == 500  # the framework has made it one, and logged the reason
        said = caplog.text
    assert "UPSTASH_REDIS_REST_URL" in said
    assert "UPSTASH_REDIS_REST_TOKEN" in said


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"default_limt": "1/hour"}, "default_limit"),
    "limit": ({"default_limit": "many"}, "many"),
    "path": ({"default_limit": "1/hour", "cache": [{"path": "page"}]}, "'page' can never match"),
    "nothing to do": ({}, "default_limit"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_setting_is_refused_at_construction_and_named(serve: Serve, name: str):
    arguments, named = WRONG[name]
    with pytest.raises((ConfigurationError, ImproperlyConfigured)) as raised:
        serve(plain, ("UpstashMiddleware", arguments)).request("GET", "/")
    assert named in str(raised.value)
    if name == "path":  # where it stands, in the syntax of keyword arguments or of Django's dict
        assert re.search(r"\[0\](\.path|\['path'\])", str(raised.value))
