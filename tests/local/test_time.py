"""The local Upstash's time can be moved, together with that of the middleware in this process."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from upstash_redis import Redis

from upstash_middleware import CacheRule
from upstash_middleware.local import LocalUpstash, LocalUpstashError
from upstash_middleware.starlette import UpstashMiddleware

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def redis(upstash: LocalUpstash) -> Iterator[Any]:
    with Redis.from_env() as redis:
        yield redis


def application(**settings: Any) -> Starlette:
    app = Starlette(routes=[Route("/", lambda _: PlainTextResponse("hello"))])
    settings = {"deadline": 20.0, "cache_deadline": 20.0, "prefix": "time", **settings}
    app.add_middleware(
        UpstashMiddleware,
        **settings,
    )
    return app


def statuses(client: TestClient, requests: int) -> list[int]:
    return [client.get("/").status_code for _ in range(requests)]


@pytest.mark.parametrize(
    "limit",
    ["2/hour", "fixed 2/hour", "log 2/hour", "gcra 2/hour", "2/hour burst 2"],
)
def test_a_denied_client_passes_again_after_retry_after(upstash: LocalUpstash, limit: str):
    with TestClient(application(default_limit=limit)) as client:
        assert statuses(client, 2) == [200, 200]
        denied = client.get("/")
        assert denied.status_code == 429
        wait = int(denied.headers["retry-after"])
        upstash.advance(wait - 2)
        assert client.get("/").status_code == 429
        upstash.advance(2)
        assert client.get("/").status_code == 200


def test_a_stored_page_becomes_stale_and_then_expires(upstash: LocalUpstash):
    with TestClient(application(cache=[CacheRule("/", ttl=60)])) as client:
        assert "stored" in client.get("/").headers["cache-status"]
        upstash.advance(59)
        hit = client.get("/")
        assert "; hit;" in hit.headers["cache-status"]
        assert int(hit.headers["age"]) >= 59
        upstash.advance(2)
        assert "fwd=" in client.get("/").headers["cache-status"]


def test_the_middleware_takes_no_offset_from_a_server_that_was_moved_with_it(
    upstash: LocalUpstash,
):
    """The first request of a process learns the server's time; both have moved alike."""
    upstash.advance(1000)
    with TestClient(application(default_limit="10/hour")) as client:
        reset = int(client.get("/").headers["x-ratelimit-reset"])
    assert reset >= time.time() + 1000


def test_keys_and_hash_fields_live_as_much_shorter(upstash: LocalUpstash, redis: Any):
    redis.set("short", "x", ex=10)
    redis.set("long", "x", ex=100)
    redis.set("forever", "x")
    redis.hset("hash", values={"short": "x", "long": "x"})
    redis.execute(["HEXPIRE", "hash", "10", "FIELDS", "1", "short"])
    redis.execute(["HEXPIRE", "hash", "100", "FIELDS", "1", "long"])
    upstash.advance(50)
    assert redis.get("short") is None
    assert 48 <= redis.ttl("long") <= 50
    assert redis.ttl("forever") == -1
    assert redis.hgetall("hash") == {"long": "x"}
    assert 48 <= redis.execute(["HTTL", "hash", "FIELDS", "1", "long"])[0] <= 50


def test_points_in_time_are_those_of_the_moved_clock(upstash: LocalUpstash, redis: Any):
    upstash.advance(1000)
    seconds, _ = redis.time()
    assert abs(seconds - time.time() - 1000) < 5
    at = int(time.time()) + 1000 + 60
    redis.set("a", "x", exat=at)
    redis.set("b", "x")
    redis.expireat("b", at)
    redis.set("c", "x", pxat=at * 1000)
    for key in ("a", "b", "c"):
        assert 50 <= redis.ttl(key) <= 61
        assert abs(redis.execute(["EXPIRETIME", key]) - at) <= 1
        assert abs(redis.execute(["PEXPIRETIME", key]) - at * 1000) <= 1000


def test_time_does_not_move_back(upstash: LocalUpstash):
    with pytest.raises(ValueError, match="0 or more"):
        upstash.advance(-1)


def test_reset_forgets_counters_denials_pages_and_time(upstash: LocalUpstash):
    app = application(default_limit="2/hour", cache=[CacheRule("/", ttl=60)], cache_l1_bytes=10**6)
    with TestClient(app) as client:
        assert statuses(client, 3) == [200, 200, 429]
        upstash.advance(10)
        upstash.reset()
        answer = client.get("/")
        assert answer.headers["x-ratelimit-remaining"] == "1"
        assert "stored" in answer.headers["cache-status"]
        assert int(answer.headers["x-ratelimit-reset"]) <= time.time() + 2 * 3600


def test_reset_closes_the_circuit_breaker_and_clears_faults(upstash: LocalUpstash):
    with TestClient(
        application(default_limit={"limits": "2/hour", "on_error": "closed"})
    ) as client:
        upstash.set_faults(fault="server-error")
        assert set(statuses(client, 20)) == {503}
        upstash.reset()
        assert statuses(client, 2) == [200, 200]


def test_reset_refuses_a_server_that_is_not_local(upstash: LocalUpstash):
    """A test that runs against a real database by mistake is to find out."""
    app = application(
        default_limit="2/hour", url="https://real-database.upstash.test", token="x", deadline=0.2
    )
    with Redis.from_env() as redis, TestClient(app) as client:
        redis.set("kept", "x")
        client.get("/")
        with pytest.raises(LocalUpstashError, match=r"https://real-database\.upstash\.test"):
            upstash.reset()
        assert redis.get("kept") == "x"


def test_reset_refuses_a_redis_server_of_yours(upstash: LocalUpstash):
    with (
        LocalUpstash(redis=upstash.redis_url) as over_yours,
        pytest.raises(LocalUpstashError, match="flush"),
    ):
        over_yours.reset()
