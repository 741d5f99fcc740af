"""``UpstashCache`` as a backend of CACHES: what Django's own tests do not look at."""

from __future__ import annotations

import asyncio
import warnings
from traceback import TracebackException
from typing import TYPE_CHECKING, Any

import pytest
from django.core.cache import cache, caches
from django.core.cache.backends.base import CacheKeyWarning
from django.core.checks import run_checks
from django.test import override_settings

from upstash_middleware.django import redis
from upstash_middleware.errors import ConfigurationError, NotStorable, UpstashError
from upstash_middleware.events import UpstashFailed
from upstash_middleware.local import Fault

if TYPE_CHECKING:
    from collections.abc import Iterator

    from upstash_middleware.local import LocalUpstash

BACKEND = "upstash_middleware.django.cache.UpstashCache"
PREFIX = "test-cache"


def alias(**params: Any) -> dict[str, Any]:
    return {"BACKEND": BACKEND, **params}


@pytest.fixture
def observed() -> list[Any]:
    return []


@pytest.fixture(autouse=True)
def project(upstash: LocalUpstash, observed: list[Any]) -> Iterator[None]:
    setting = {"redis": upstash, "prefix": PREFIX, "observers": [observed.append]}
    every = {
        "default": alias(),
        "shop": alias(KEY_PREFIX="shop"),
        "pickled": alias(OPTIONS={"serializer": "signed-pickle"}),
    }
    with override_settings(UPSTASH_MIDDLEWARE=setting, CACHES=every):
        yield


def cost(upstash: LocalUpstash, function: Any, *args: Any, **named: Any) -> tuple[int, int]:
    upstash.reset_bill()
    function(*args, **named)
    bill = upstash.bill()
    return bill.requests, bill.commands


# --- Values and their keys ------------------------------------------------------------------------


def test_an_integer_is_its_digits_on_redis():
    cache.set("visits", 41)
    assert redis.get(f"{PREFIX}:data#django::1:visits") == "41"


def test_a_key_prefix_has_its_own_keys_and_its_own_clear():
    cache.set("a", 1)
    caches["shop"].set("a", 2)
    caches["shop"].clear()
    assert (cache.get("a"), caches["shop"].get("a")) == (1, None)


def test_serializers_share_no_values():
    caches["pickled"].set("a", {1})
    assert cache.get("a") is None


def test_none_forever_is_400_days_or_the_option(upstash: LocalUpstash):
    cache.set("a", 1, timeout=None)
    key = f"{PREFIX}:data#django::1:a"
    assert 399 * 86400 < redis.ttl(key) <= 400 * 86400
    with override_settings(CACHES={"default": alias(OPTIONS={"forever": "2 hours"})}):
        cache.set("a", 1, timeout=None)
        cache.add("b", 1, timeout=None)
        cache.set("c", 1, timeout=60)
        cache.touch("c", timeout=None)
        for name in "abc":
            assert 7000 < redis.ttl(f"{PREFIX}:data#django::1:{name}") <= 7200


def test_a_timeout_longer_than_400_days_is_400_days():
    cache.set("a", 1, timeout=10**9)
    assert redis.ttl(f"{PREFIX}:data#django::1:a") <= 400 * 86400


@pytest.mark.parametrize("timeout", [0, -1, -10.5])
def test_a_timeout_of_zero_or_less_deletes(timeout: float):
    cache.set("a", 1)
    cache.set("a", 2, timeout=timeout)
    assert cache.get("a") is None
    assert cache.add("a", 1, timeout=timeout) is True
    assert cache.get("a") is None
    assert cache.set_many({"a": 1, "b": 2}, timeout=timeout) == []
    assert cache.set_many({"a": 1}, timeout=timeout) == []
    assert cache.get_many(["a", "b"]) == {}
    cache.set("a", 1)
    assert cache.touch("a", timeout=timeout) is True
    assert cache.get("a", "none") == "none"


def test_incr_keeps_the_timeout(upstash: LocalUpstash):
    cache.set("a", 1, timeout=100)
    upstash.advance(60)
    assert cache.incr("a", 5) == 6
    upstash.advance(39)
    assert cache.decr("a", 2) == 4
    upstash.advance(2)
    with pytest.raises(ValueError, match="Key 'a' not found"):
        cache.incr("a")


@pytest.mark.parametrize("value", [None, "text", 1.5, True, [1]])
def test_what_is_no_integer_is_not_counted(value: Any):
    cache.set("a", value)
    with pytest.raises(TypeError, match="is not an integer"):
        cache.incr("a")
    assert cache.get("a") == value


def test_counting_by_a_fraction_is_a_mistake():
    cache.set("a", 1)
    with pytest.raises(TypeError):
        cache.incr("a", 1.5)  # type: ignore[arg-type]


def test_incr_is_atomic():
    cache.set("a", 0)

    async def count() -> None:
        await asyncio.gather(*(cache.aincr("a") for _ in range(50)))

    asyncio.run(count())
    assert cache.get("a") == 50


def test_what_the_default_serializer_refuses_names_the_one_that_does_not():
    with pytest.raises(NotStorable, match=r"store list\(value\).*'serializer': 'signed-pickle'"):
        cache.set("a", range(3))
    caches["pickled"].set("a", range(3))
    assert caches["pickled"].get("a") == range(3)


def test_keys_that_memcached_refuses_are_warned_of():
    with pytest.warns(CacheKeyWarning, match="characters"):
        cache.set("with a space", 1)


def test_keys_may_be_of_any_kind():
    cache.set(7, "seven")
    assert cache.get_many([7]) == {7: "seven"}


def test_one_thread_of_many_gets_the_lock():
    async def lock() -> list[bool]:
        return await asyncio.gather(*(cache.aadd("lock", 1, 10) for _ in range(20)))

    assert sorted(asyncio.run(lock())) == [False] * 19 + [True]


def test_all_methods_have_their_async_form():
    async def use() -> None:
        await cache.aset("a", 1)
        assert await cache.aget("a") == 1
        assert await cache.aadd("a", 2) is False
        assert await cache.aset_many({"b": None, "c": (1, 2)}) == []
        assert await cache.aget_many(["a", "b", "c", "d"]) == {"a": 1, "b": None, "c": (1, 2)}
        assert await cache.ahas_key("b")
        assert await cache.atouch("a", 5)
        assert await cache.aincr("a", 2) == 3
        assert await cache.adecr("a") == 2
        assert await cache.aincr_version("a") == 2
        assert await cache.aget("a", version=2) == 2
        assert await cache.adecr_version("a", version=2) == 1
        assert await cache.adelete("a") is True
        await cache.adelete_many(["b", "c"])
        assert await cache.aget_or_set("e", lambda: "loaded") == "loaded"
        assert await cache.aget("e", "default") == "loaded"
        await cache.aclear()
        assert await cache.aget("e") is None

    asyncio.run(use())


def test_a_pickle_that_the_secret_key_has_not_signed_is_not_loaded():
    key = f"{PREFIX}:data#django-pickle::1:a"
    pickled = caches["pickled"]
    pickled.set("a", {"loaded"})
    stored = redis.get(key)
    with override_settings(SECRET_KEY="another"):
        assert pickled.get("a") is None
        with override_settings(SECRET_KEY_FALLBACKS=["for tests alone"]):
            assert pickled.get("a") == {"loaded"}
    redis.set(key, stored[:-8] + "AAAAAAA=")
    assert pickled.get("a") is None


# --- What it costs --------------------------------------------------------------------------------


def test_each_call_takes_one_round_trip(upstash: LocalUpstash):
    many = {f"key{number}": number for number in range(40)}
    cache.set("a", 1)
    cache.incr("a")  # the server knows the script then
    assert cost(upstash, cache.get, "a") == (1, 1)
    assert cost(upstash, cache.set, "a", 1) == (1, 1)
    assert cost(upstash, cache.set_many, many) == (1, 40)
    assert cost(upstash, cache.get_many, many) == (1, 1)
    assert cost(upstash, cache.delete_many, many) == (1, 1)
    assert cost(upstash, cache.delete, "b") == (1, 1)
    assert cost(upstash, cache.has_key, "a") == (1, 1)
    assert cost(upstash, cache.add, "a", 1) == (1, 2)
    assert cost(upstash, cache.incr, "a") == (1, 3)
    assert cost(upstash, cache.touch, "a") == (2, 2)
    assert cost(upstash, cache.clear) == (1, 1)
    assert cost(upstash, cache.get_or_set, "c", 1) == (2, 3)


def test_what_reads_no_key_calls_nobody(upstash: LocalUpstash):
    for call in (cache.get_many, cache.delete_many):
        assert cost(upstash, call, []) == (0, 0)
    assert cost(upstash, cache.set_many, {}) == (0, 0)


# --- An outage ------------------------------------------------------------------------------------


@pytest.fixture
def outage(upstash: LocalUpstash) -> Iterator[None]:
    cache.set("a", 1)
    with upstash.faults(fault=Fault.DROP_BEFORE):
        yield


@pytest.mark.usefixtures("outage")
def test_in_an_outage_reads_are_misses_and_writes_are_dropped_with_an_event(observed: list[Any]):
    del observed[:]
    assert cache.get("a", "default") == "default"
    assert cache.get_many(["a"]) == {}
    assert cache.get_or_set("a", lambda: 2) == 2
    cache.set("a", 2)
    assert cache.set_many({"a": 1, "b": 2}) == ["a", "b"]
    assert cache.set_many({"a": 1, "b": 2}, timeout=0) == ["a", "b"]
    assert cache.add("lock", 1) is False
    assert cache.touch("a") is False
    assert cache.delete("a") is False
    cache.delete_many(["a"])
    cache.clear()
    with pytest.raises(ValueError, match="not found"):
        cache.incr("a")
    assert {type(event) for event in observed if isinstance(event, UpstashFailed)}


@pytest.mark.usefixtures("outage")
@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("set", ("a", 1)),
        ("set_many", ({"a": 1},)),
        ("add", ("a", 1)),
        ("touch", ("a",)),
        ("delete", ("a",)),
        ("incr", ("a",)),
        ("clear", ()),
    ],
)
def test_in_an_outage_a_strict_cache_raises_where_it_writes(method: str, arguments: Any):
    with override_settings(CACHES={"default": alias(OPTIONS={"strict": True})}):
        assert cache.get("a") is None
        with pytest.raises(UpstashError):
            getattr(cache, method)(*arguments)


def test_where_all_is_switched_off_it_is_as_djangos_dummy_cache():
    with override_settings(UPSTASH_MIDDLEWARE={"enabled": False}):
        cache.set("a", 1)
        assert cache.get("a") is None
        assert cache.add("a", 1) is True
        assert cache.get_or_set("a", 2) == 2
        assert cache.set_many({"a": 1}) == []
        assert cache.touch("a") is False
        cache.clear()


# --- Settings -------------------------------------------------------------------------------------


def test_an_alias_may_have_a_database_of_its_own(upstash: LocalUpstash):
    own = alias(LOCATION=upstash.url, OPTIONS={"token": upstash.token, "prefix": "own"})
    with override_settings(UPSTASH_MIDDLEWARE={}, CACHES={"default": own}):
        cache.set("a", 1)
    assert redis.get("own:data#django::1:a") == "1"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"OPTIONS": {"serialiser": "json"}}, "did you mean 'serializer'"),
        ({"OPTIONS": {"serializer": "pickle"}}, "'pickle' should be 'json' or 'signed-pickle'"),
        ({"OPTIONS": {"MAX_ENTRIES": 9}}, "leave it out"),
        ({"OPTIONS": {"forever": "2 years"}}, "'2 years' should be a number of seconds"),
        ({"OPTIONS": {"forever": 0}}, "0 should be a number of seconds"),
        ({"OPTIONS": {"strict": "no"}}, "'no' should be True or False"),
        ({"LOCATION": "redis://:secret@cache:6379"}, "LOCATION: 'redis://…' should be"),
        ({"LOCATION": "https://a.example"}, "token.*: it is missing"),
        ({"LOCATION": "https://a.example", "OPTIONS": {"url": "https://b"}}, "leave out one"),
    ],
)
def test_a_wrong_setting_says_what_is_wrong_and_is_found_by_the_system_check(
    params: dict[str, Any], message: str
):
    with override_settings(CACHES={"default": alias(**params)}):
        with pytest.raises(ConfigurationError, match=message) as raised:
            caches["default"]
        (found,) = run_checks(tags=["upstash_middleware"])
    assert (found.id, found.msg) == (
        "upstash_middleware.E007",
        f"CACHES['default']: {raised.value}",
    )
    assert "secret" not in found.msg


@pytest.mark.parametrize("engine", ["cache", "cached_db"])
def test_sessions_of_djangos_in_this_cache_are_warned_of(engine: str):
    with override_settings(SESSION_ENGINE=f"django.contrib.sessions.backends.{engine}"):
        (found,) = run_checks(tags=["upstash_middleware"])
        assert found.id == "upstash_middleware.W008"
        other = alias(BACKEND="django.core.cache.backends.locmem.LocMemCache")
        with override_settings(CACHES={"default": other, "other": alias()}):
            assert not run_checks(tags=["upstash_middleware"])


def test_a_cache_shows_no_secret():
    options = {"url": "https://a.example", "token": "the-secret"}
    with override_settings(CACHES={"default": alias(OPTIONS=options)}), warnings.catch_warnings():
        assert "the-secret" not in repr(caches["default"])


def test_an_error_report_with_local_variables_shows_no_secret():
    options = {"url": "https://a.example", "token": "the-secret"}
    with override_settings(CACHES={"default": alias(OPTIONS=options)}):
        with pytest.raises(NotStorable) as raised:
            cache.set("a", range(3))
        inside = raised.tb.tb_next
        report = TracebackException(NotStorable, raised.value, inside, capture_locals=True)
        text = "".join(report.format())
    assert "_Alias" in text
    assert "the-secret" not in text
