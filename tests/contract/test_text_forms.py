"""Settings in the forms that a file or a framework's settings can hold: text, lists, timedelta."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from tests.contract.neutral import Reply, Seen
from upstash_middleware import CacheRule, ConfigurationError, RateLimitRule, SlidingWindow

if TYPE_CHECKING:
    from tests.contract.conftest import Serve
    from upstash_middleware.local import LocalUpstash


def counted() -> Any:
    rendered: list[str] = []

    def handler(request: Seen) -> Reply:
        rendered.append(request.path)
        return Reply(b"%d" % len(rendered))

    return handler


@pytest.mark.parametrize("ttl", [60, timedelta(minutes=1), "60s", "1 minute"], ids=str)
def test_a_ttl_may_be_a_number_a_timedelta_or_text(serve: Serve, upstash: LocalUpstash, ttl: Any):
    served = serve(counted(), ("CacheMiddleware", {"cache": [{"path": "/page", "ttl": ttl}]}))
    assert [served.request("GET", "/page").body for _ in range(2)] == [b"1", b"1"]
    upstash.advance(58)
    assert served.request("GET", "/page").body == b"1"
    upstash.advance(3)
    assert served.request("GET", "/page").body == b"2"


@pytest.mark.parametrize("per", [60, timedelta(minutes=1), "60s", "1 minute"], ids=str)
def test_a_window_may_be_a_number_a_timedelta_or_text(serve: Serve, per: Any):
    layer = ("RateLimitMiddleware", {"default_limit": SlidingWindow(2, per)})
    served = serve(lambda _: Reply(), layer)
    answers = [served.request("GET", "/") for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]
    assert answers[0].header("ratelimit-policy") == '"default";q=2;w=60'


@pytest.mark.parametrize("remember", [30, timedelta(seconds=30), "30s"], ids=str)
def test_other_durations_may_be_text_too(serve: Serve, upstash: LocalUpstash, remember: Any):
    """Those of settings and of rules."""
    rule = {"path": "/", "limits": "1/hour", "name": "a", "deadline": "20s"}
    layer: dict[str, Any] = {"rate_limits": [rule], "default_limit": None}
    served = serve(
        lambda _: Reply(),
        ("RateLimitMiddleware", {**layer, "remember_denials": remember, "deadline": "20s"}),
    )
    assert [served.request("GET", "/").status for _ in range(2)] == [200, 429]
    costs = []
    for seconds in (0, 29, 2):
        upstash.advance(seconds)
        upstash.reset_bill()
        assert served.request("GET", "/").status == 429
        costs.append(upstash.bill().requests)
    assert costs == [0, 0, 1]


DURATIONS: list[Any] = [
    lambda value: CacheRule("/a", ttl=value),
    lambda value: CacheRule("/a", ttl={404: value}),
    lambda value: CacheRule("/a", grace=value),
    lambda value: CacheRule("/a", stale_while_revalidate=value),
    lambda value: CacheRule("/a", stale_if_error=value),
    lambda value: CacheRule("/a", deadline=value),
    lambda value: RateLimitRule("/a", "1/s", deadline=value),
    lambda value: SlidingWindow(1, value),
]


@pytest.mark.parametrize("make", DURATIONS)
@pytest.mark.parametrize("wrong", ["60", "s", "1 fortnight", "-5s", "5s 3s", -1, [60], True, ""])
def test_what_is_no_duration_is_refused_with_an_example(make: Any, wrong: Any):
    with pytest.raises(ConfigurationError, match=r"'(60s|5s|500ms)'"):
        make(wrong)


@pytest.mark.parametrize("make", DURATIONS)
@pytest.mark.parametrize("right", ["60s", "1 minute", timedelta(seconds=60), 60, "60000ms"])
def test_every_duration_takes_each_form(make: Any, right: Any):
    make(right)
