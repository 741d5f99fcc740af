"""Django's session engine by itself: its interface, and what is on Redis."""

from __future__ import annotations

import asyncio
import gc
import pickle
import re
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from django.conf import settings
from django.contrib.sessions.backends.base import UpdateError
from django.contrib.sessions.management.commands import clearsessions
from django.core.management import call_command
from django.test import override_settings

import tests.django.project  # noqa: F401 - it configures Django
from upstash_middleware import CommandError, NotStorable, Redis
from upstash_middleware.django.sessions import SessionStore
from upstash_middleware.errors import ConfigurationError, MissingCredentials, UpstashError
from upstash_middleware.events import UpstashFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from upstash_middleware.local import LocalUpstash

ENGINE = "upstash_middleware.django.sessions"


class Pickled:
    """A serializer of a project's own, whose bytes are no text."""

    def dumps(self, value: Any) -> bytes:
        return pickle.dumps(value)

    def loads(self, data: bytes) -> Any:
        return pickle.loads(data)


@pytest.fixture(autouse=True)
def project(upstash: LocalUpstash) -> Iterator[None]:
    mapping = {"breaker": False, "redis": upstash}
    with override_settings(SESSION_ENGINE=ENGINE, UPSTASH_MIDDLEWARE=mapping):
        yield


@pytest.fixture
def redis(upstash: LocalUpstash) -> Redis:
    return Redis(url=upstash.url, token=upstash.token)


def saved(**entries: Any) -> SessionStore:
    session = SessionStore()
    session.update(entries)
    session.save()
    return session


def entries(key: str | None) -> dict[str, Any]:
    return dict(SessionStore(key).items())


def test_entries_come_back_and_keys_have_django_s_32_characters() -> None:
    session = saved(cart=[1, {"a": None}], name="ada")
    assert re.fullmatch("[a-z0-9]{32}", session.session_key or "")
    assert entries(session.session_key) == {"cart": [1, {"a": None}], "name": "ada"}


def test_two_objects_that_change_different_entries_lose_nothing() -> None:
    first = saved(a=1, b=1, c=1)
    second = SessionStore(first.session_key)
    assert second["a"] == 1
    first["a"] = 2
    second["b"] = 2
    del second["c"]
    second.save()
    first.save()
    assert entries(first.session_key) == {"a": 2, "b": 2}


@pytest.mark.parametrize("end", ["delete", "flush", "cycle_key", "revoke", "regenerate"])
def test_whatever_ends_a_session_or_its_key_wins_over_older_requests(end: str) -> None:
    session = saved(a=1)
    older = SessionStore(session.session_key)
    older["b"] = 2
    getattr(SessionStore(session.session_key), end)()
    with pytest.raises(UpdateError):
        older.save()
    assert not older.exists(older.session_key)


def test_a_regeneration_of_a_session_that_has_ended_keeps_only_what_was_written_since() -> None:
    session = saved(secret=1)
    older = SessionStore(session.session_key)
    older["own"] = 2
    session.flush()
    older.cycle_key()
    assert entries(older.session_key) == {"own": 2}


def test_a_cleared_session_goes_on_under_another_key() -> None:
    session = saved(a=1)
    before = session.session_key
    session.clear()
    session["b"] = 2
    session.save()
    assert session.session_key != before
    assert entries(before) == {}
    assert entries(session.session_key) == {"b": 2}


def test_an_unknown_key_is_never_adopted() -> None:
    key = "a" * 32
    session = SessionStore(key)
    session["a"] = 1
    session.save()
    assert session.session_key not in {key, None}
    assert not session.exists(key)


def test_what_is_no_key_costs_nothing(upstash: LocalUpstash) -> None:
    upstash.reset_bill()
    assert entries("A" * 32) == entries("short") == entries("a" * 33) == {}
    SessionStore().delete("x" * 5000)
    assert upstash.bill().requests == 0


def test_a_session_ends_after_its_age_and_a_save_extends_it(upstash: LocalUpstash) -> None:
    session = saved(a=1)
    session.set_expiry(100)
    session.save()
    upstash.advance(60)
    session.save()
    upstash.advance(60)
    session = SessionStore(session.session_key)
    session["a"] = 2
    session.save()
    upstash.advance(101)
    assert entries(session.session_key) == {}


def test_an_age_is_django_s_and_may_be_of_any_length(redis: Redis) -> None:
    with override_settings(SESSION_COOKIE_AGE=5000):
        saved(a=1)
    [key] = redis.keys("*:session:*")
    assert 4900 < redis.ttl(key) <= 5000
    endless = saved()
    endless.set_expiry(10**12)
    endless.save()
    assert endless.exists(endless.session_key)


def test_only_hashes_of_keys_are_on_redis_and_only_changed_entries_are_written(
    redis: Redis, upstash: LocalUpstash
) -> None:
    session = saved(a=1, b=2)
    [key] = redis.keys("*")
    assert str(session.session_key) not in key
    assert set(redis.hgetall(key)) == {".", "=a", "=b"}
    redis.hset(key, "=b", "3")
    session["a"] = 5
    saved().save()  # the script is there
    upstash.reset_bill()
    session.save()
    assert upstash.bill().commands == 3
    assert entries(session.session_key) == {"a": 5, "b": 3}


def test_whole_numbers_become_text_as_in_json_and_other_names_are_refused() -> None:
    session = saved(a=1)
    session[7] = "seven"  # type: ignore[index] # what projects do
    session.save()
    session.save()
    assert entries(session.session_key)["7"] == "seven"
    session[7.5] = 1  # type: ignore[index]
    with pytest.raises(NotStorable, match=r"request.session\[7.5\]: the names of entries are text"):
        session.save()


def test_what_cannot_be_serialized_is_said_by_name() -> None:
    session = SessionStore()
    session["when"] = object()
    with pytest.raises(TypeError) as caught:
        session.save()
    assert caught.value.__notes__ == ["It is the value of request.session['when']."]


def test_a_session_above_max_size_is_refused(upstash: LocalUpstash) -> None:
    mapping = {"sessions": {"max_size": 100}, "redis": upstash}
    with override_settings(UPSTASH_MIDDLEWARE=mapping):
        session = SessionStore()
        session["text"] = "a" * 100
        with pytest.raises(NotStorable, match=r"max_size is 100; the largest entry is 'text'"):
            session.save()


def test_an_entry_that_is_nested_too_deep_to_be_read_again_is_refused() -> None:
    value: Any = {}
    for level in range(300):
        value = [value] if level % 2 else {"a": value}
    with pytest.raises(NotStorable, match="nested more than 200 levels deep") as raised:
        saved(deep=value)
    assert "request.session['deep']" in str(raised.value.__notes__)
    session = saved(wide=[{"a": [1]}] * 300, text="[" * 300)
    assert entries(session.session_key)["text"] == "[" * 300


@override_settings(SESSION_SERIALIZER=f"{__name__}.Pickled")
def test_another_serializer_s_entries_are_signed(redis: Redis) -> None:
    session = saved(numbers={1, 2}, raw=b"\xff")
    other = SessionStore(session.session_key)
    assert other["numbers"] == {1, 2}
    assert other["raw"] == b"\xff"
    [key] = redis.keys("*")
    value = redis.hget(key, "=raw")
    assert value is not None
    redis.hset(key, "=numbers", value)  # of another entry
    redis.hset(key, "=raw", "gASVBAAAAAAAAABDAP+ULg:")
    assert entries(session.session_key) == {}


@override_settings(SESSION_SERIALIZER=f"{__name__}.Pickled")
def test_an_entry_that_is_pickled_in_other_bytes_has_not_changed() -> None:
    text = "".join(["a", "b"])
    session = saved(pair=[text, text, "".join(["a", "b"])])
    other = SessionStore(session.session_key)
    other["mine"] = 1
    session["pair"] = ["new"]
    session.save()
    other.save()
    assert entries(session.session_key) == {"pair": ["new"], "mine": 1}


def test_a_new_secret_key_keeps_sessions_while_the_old_one_is_a_fallback() -> None:
    session = saved(a=1)
    old = settings.SECRET_KEY
    with override_settings(SECRET_KEY="new"):
        assert entries(session.session_key) == {}
    with override_settings(SECRET_KEY="new", SECRET_KEY_FALLBACKS=[old]):
        assert entries(session.session_key) == {"a": 1}
        session = SessionStore(session.session_key)
        session.cycle_key()
    with override_settings(SECRET_KEY="new"):
        assert entries(session.session_key) == {"a": 1}


def test_without_credentials_nothing_is_left_unawaited(monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning about a coroutine would be an error here, and hides the reason."""
    for name in ("URL", "TOKEN"):
        monkeypatch.delenv(f"UPSTASH_REDIS_REST_{name}", raising=False)
    with override_settings(UPSTASH_MIDDLEWARE={}):
        session = SessionStore()
        session["a"] = 1
        with pytest.raises(MissingCredentials):
            session.save()
        with pytest.raises(MissingCredentials):
            asyncio.run(session.asave())
        gc.collect()


def test_revoke_all_ends_all_sessions_of_a_user_and_no_others() -> None:
    here, there, others = saved(a=1), saved(a=2), saved(a=3)
    here.bind(7)
    there.bind("7")
    others.bind(8)
    assert re.fullmatch("0[a-z0-9]{31}", here.session_key or "")
    assert entries(there.session_key) == {"a": 2}
    SessionStore().revoke_all(7)
    assert entries(here.session_key) == entries(there.session_key) == {}
    assert entries(others.session_key) == {"a": 3}


def test_a_session_that_is_bound_again_survives_revoke_all() -> None:
    session = saved(a=1)
    session.bind(7)
    session.revoke_all(7)
    session.bind(7)
    assert entries(session.session_key) == {"a": 1}


def test_a_bound_session_ends_after_400_days_however_it_is_used(upstash: LocalUpstash) -> None:
    session = saved(a=1)
    session.set_expiry(300 * 86400)
    session.bind(7)
    upstash.advance(250 * 86400)
    session = SessionStore(session.session_key)
    session["a"] = 2
    session.save()
    upstash.advance(149 * 86400)
    assert entries(session.session_key)["a"] == 2
    upstash.advance(2 * 86400)
    assert entries(session.session_key) == {}


def test_clearsessions_and_clear_expired_do_nothing() -> None:
    session = saved(a=1)
    call_command(clearsessions.Command())
    SessionStore.clear_expired()
    assert entries(session.session_key) == {"a": 1}


def test_during_an_outage_a_session_reads_as_empty_and_keeps_its_key(upstash: LocalUpstash) -> None:
    session = saved(a=1)
    key = session.session_key
    with upstash.faults(fault="refuse"):
        read = SessionStore(key)
        assert dict(read.items()) == {}
        assert not read.available
        read["b"] = 2
        read.save()
        assert read.session_key == key
        assert not read.exists(key)
    assert entries(key) == {"a": 1}


def test_during_an_outage_a_new_session_is_dropped_and_has_a_key_all_the_same(
    upstash: LocalUpstash,
) -> None:
    with upstash.faults(fault="refuse"):
        session = SessionStore()
        session["a"] = 1
        session.create()
        assert session.session_key
        assert not session.available
        session.save()
    assert entries(session.session_key) == {}


@pytest.mark.parametrize("change", ["cycle_key", "flush", "regenerate", "revoke"])
def test_a_change_of_its_key_that_failed_is_never_saved_over(
    upstash: LocalUpstash, change: str
) -> None:
    """Django's own middleware then sends a 400, since it cannot send a 503."""
    session = saved(a=1)
    with upstash.faults(fault="refuse"):
        with suppress(UpstashError):
            getattr(session, change)()
        session["user"] = 7
    assert not session.available
    with pytest.raises(UpdateError):
        session.save()
    assert entries(session.session_key) == {"a": 1}


def test_outside_of_requests_a_failed_revocation_is_raised(upstash: LocalUpstash) -> None:
    other = saved(a=1)
    with upstash.faults(fault="refuse"):
        with pytest.raises(UpstashError):
            SessionStore().revoke_all(7)
        with pytest.raises(UpstashError):
            SessionStore().delete(other.session_key)
    assert entries(other.session_key) == {"a": 1}


@pytest.mark.parametrize(
    "change",
    [
        lambda session: session.bind(7),
        lambda session: session.regenerate(),
        lambda session: session.revoke(),
        lambda session: session.revoke_all(7),
    ],
    ids=["bind", "regenerate", "revoke", "revoke_all"],
)
def test_a_change_of_a_session_that_fails_is_reported_once(
    upstash: LocalUpstash, change: Callable[[SessionStore], None]
) -> None:
    events: list[object] = []
    mapping = {"breaker": False, "redis": upstash, "observers": [events.append]}
    with override_settings(UPSTASH_MIDDLEWARE=mapping):
        session = saved(a=1)
        with upstash.faults(fault="refuse"), pytest.raises(UpstashError):
            change(session)
    failed = [event for event in events if isinstance(event, UpstashFailed)]
    assert [event.during for event in failed] == ["session save"]


def test_a_damaged_entry_is_as_if_it_was_not_there(redis: Redis) -> None:
    session = saved(a=1, b=2)
    [key] = redis.keys("*")
    redis.hset(key, "=a", "{")
    assert entries(session.session_key) == {"b": 2}
    redis.hset(key, ".", "?")
    assert entries(session.session_key) == {}


def test_a_key_of_another_kind_is_an_outage_and_no_exception(redis: Redis) -> None:
    session = saved(a=1)
    [key] = redis.keys("*")
    redis.set(key, "text")
    read = SessionStore(session.session_key)
    assert dict(read.items()) == {}
    assert isinstance(read._error, CommandError)


@pytest.mark.parametrize("field", ["session_cookie", "max_age", "same_site"])
def test_what_django_has_settings_for_is_refused(field: str) -> None:
    value = {"session_cookie": "sid", "max_age": 60, "same_site": "strict"}[field]
    said = pytest.raises(ConfigurationError, match=rf"{field}.*: in Django, set SESSION_COOKIE_")
    with override_settings(UPSTASH_MIDDLEWARE={"sessions": {field: value}}), said:
        SessionStore("a" * 32).load()


@pytest.mark.anyio
async def test_the_async_forms_do_the_same(upstash: LocalUpstash) -> None:
    session = SessionStore()
    await session.aset("a", 1)
    await session.asave()
    key = session.session_key
    await session.acycle_key()
    assert not await session.aexists(key)
    await session.abind(7)
    other = SessionStore(session.session_key)
    assert await other.aget("a") == 1
    await other.arevoke_all(7)
    assert await SessionStore(session.session_key).aload() == {}
    await other.aregenerate()
    assert await SessionStore(other.session_key).aload() == {}
    fresh = SessionStore()
    await fresh.acreate()
    assert await fresh.aexists(fresh.session_key)
    await fresh.aset("b", 2)
    await fresh.arevoke()
    assert fresh.session_key is None
    await SessionStore.aclear_expired()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def test_threads_that_write_different_entries_of_one_session_lose_nothing() -> None:
    session = saved(a=0)

    def write(number: int) -> None:
        own = SessionStore(session.session_key)
        own.load()
        barrier.wait()
        own[f"entry-{number}"] = number
        own.save()

    barrier = threading.Barrier(8)
    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(entries(session.session_key)) == 9
