"""Reading, storing, counting and purging: one body for threads and event loops."""

from __future__ import annotations

import dataclasses
import math
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from upstash_middleware import ConfigurationError, Data, NotStorable, Redis, SyncData
from upstash_middleware.events import CacheEntryRefused

if TYPE_CHECKING:
    from tests.data.conftest import Make
    from upstash_middleware.local import LocalUpstash

KEYS = "k" * 32
DAY = 24 * 3600


@dataclasses.dataclass
class Product:
    id: int
    price: Decimal


def test_a_value_is_there_until_its_time_is_over(data: Any, upstash: LocalUpstash):
    assert data.set("a", {"x": (1, Decimal("1.10"))}, ttl=60)
    assert data.get("a") == {"x": (1, Decimal("1.10"))}
    upstash.advance(59)
    assert data.get("a") is not None
    upstash.advance(2)
    assert data.get("a") is None
    assert data.get("a", "default") == "default"


def test_a_stored_none_is_a_value(data: Any):
    data.set("a", None, ttl="5 minutes")
    assert data.get("a", "default") is None
    assert data.get_or_set("a", 60, lambda: "loaded") is None


def test_many_values_are_read_and_stored_at_once(data: Any):
    assert data.set_many({"a": 1, "b": "two"}, ttl=timedelta(minutes=1), tags=["x"])
    assert data.get_many(["a", "b", "c"]) == {"a": 1, "b": "two"}
    assert data.set_many({}, ttl=1)
    assert data.get_many([]) == {}
    data.purge(tags=["x"])
    assert data.get_many(["a", "b"]) == {}


def test_only_the_first_adds(data: Any, upstash: LocalUpstash):
    assert data.add("a", "first", ttl=60)
    assert not data.add("a", "second", ttl=60)
    assert data.get("a") == "first"
    data.clear()
    assert data.add("a", "third", ttl=60)
    assert not data.add("a", "fourth", ttl=60)
    assert data.get("a") == "third"
    upstash.advance(61)
    assert data.add("a", "fifth", ttl=60, tags=["x"])
    assert not data.add("a", "sixth", ttl=60)
    data.purge(tags=["x"])
    assert data.add("a", "seventh", ttl=60)


def test_an_addition_is_exact_where_another_process_has_cleared(make: Make):
    """What this process knows of epochs is old then."""
    data, other = make(), make()
    data.get("a")
    other.clear()
    assert data.add("a", 1, ttl=60)
    assert not other.add("a", 2, ttl=60)
    assert other.get("a") == 1


def test_delete_counts_a_value_that_a_purge_has_made_invalid(data: Any, upstash: LocalUpstash):
    """It takes one command, which does not tell."""
    data.set("a", 1, ttl=60, tags=["x"])
    data.purge(tags=["x"])
    upstash.reset_bill()
    assert data.delete("a")
    assert not data.delete("a")
    assert upstash.bill().commands == 2


def test_deleted_values_are_gone(data: Any):
    data.set_many({"a": 1, "b": 2}, ttl=60)
    assert data.delete("a", "b")
    assert not data.delete("a")
    assert not data.delete()
    assert data.get_many(["a", "b"]) == {}


def test_a_touch_keeps_a_value_for_longer(data: Any, upstash: LocalUpstash):
    data.set("a", "x", ttl=60)
    upstash.advance(50)
    assert data.touch("a", ttl=60)
    upstash.advance(50)
    assert data.get("a") == "x"
    assert not data.touch("b", ttl=60)
    data.clear()
    assert not data.touch("a", ttl=60)


def test_a_touch_keeps_a_value_that_becomes_stale_fresh(data: Any, upstash: LocalUpstash):
    data.get_or_set("a", 60, lambda: "x", stale=600)
    upstash.advance(50)
    assert data.touch("a", ttl=60)
    upstash.advance(50)
    assert data.get("a") == "x"
    upstash.advance(20)
    assert data.get("a") is None
    assert not data.touch("a", ttl=60)


def test_a_counter_keeps_its_time_to_live(data: Any, upstash: LocalUpstash):
    assert data.incr("a", ttl=60) == 1
    upstash.advance(50)
    assert data.incr("a", 4, ttl=60) == 5
    assert data.incr("a", -7, ttl=60) == -2
    assert data.get("a") == -2
    upstash.advance(11)
    assert data.get("a") is None
    assert data.incr("a", ttl=60) == 1


def test_an_integer_that_was_stored_or_loaded_counts(data: Any, upstash: LocalUpstash):
    data.set("a", 41, ttl=60)
    assert data.incr("a", ttl=60) == 42
    data.get_or_set("b", 60, lambda: 41)
    assert data.incr("b", ttl=60) == 42
    data.add("c", 41, ttl=60)
    assert data.incr("c", ttl=60) == 42
    assert data.get_many("abc") == {"a": 42, "b": 42, "c": 42}


def test_a_counter_is_purged_with_everything(data: Any, upstash: LocalUpstash):
    """Before and after the first purge, when it no longer consists of its digits alone."""
    for _ in range(3):
        assert data.incr("a", ttl=60) == 1
        assert data.incr("a", ttl=60) == 2
        assert data.get("a") == 2
        data.clear()
        assert data.get("a") is None
    upstash.advance(1)
    assert data.incr("a", ttl=60) == 1
    upstash.advance(60)
    assert data.get("a") is None


@pytest.mark.parametrize("value", ["text", 1.5, True, None, [1], {"1": 1}])
def test_what_is_no_integer_does_not_count(data: Any, value: Any):
    data.set("a", value, ttl=60)
    with pytest.raises(ValueError, match="'a' is not an integer"):
        data.incr("a", ttl=60)
    assert data.get("a") == value
    data.clear()
    assert data.incr("a", ttl=60) == 1


def test_a_value_with_tags_does_not_count(data: Any):
    data.set("a", 1, ttl=60, tags=["x"])
    with pytest.raises(ValueError, match="'a' has tags"):
        data.incr("a", ttl=60)
    data.purge(tags=["x"])
    assert data.incr("a", ttl=60) == 1
    assert data.incr("a", ttl=60) == 2


def test_counters_count_exactly_or_not_at_all(data: Any):
    data.set("a", 2**53 - 2, ttl=60)
    assert data.incr("a", ttl=60) == 2**53 - 1
    with pytest.raises(ValueError, match="beyond 2\\*\\*53"):
        data.incr("a", ttl=60)
    assert data.get("a") == 2**53 - 1
    assert data.incr("a", 1 - 2**53, ttl=60) == 0
    data.set("a", 10**30, ttl=60)
    with pytest.raises(ValueError, match="is not an integer below"):
        data.incr("a", ttl=60)
    with pytest.raises(ValueError, match="between"):
        data.incr("a", 2**60, ttl=60)


def test_a_purge_of_a_tag_takes_its_descendants(make: Make):
    """And one made by another process takes effect at once."""
    data, other = make(), make()

    def fill() -> None:
        data.set("a", 1, ttl=60, tags=["product:7:price"])
        data.set("b", 2, ttl=60, tags=["product:8", "x"])
        data.set("c", 3, ttl=60)

    for tags, left in [
        (["product:7"], "bc"),
        (["product"], "c"),
        (["x"], "ac"),
        (["y", "product:7:price:old"], "abc"),
    ]:
        fill()
        other.purge(tags=tags)
        assert "".join(data.get_many("abc")) == left
        assert "".join(other.get_many("abc")) == left


def test_a_kind_is_cleared_by_itself(make: Make):
    data, other = make(), make(kind="other")
    data.set("a", 1, ttl=60)
    other.set("a", 2, ttl=60, tags=["x"])
    data.clear()
    assert data.get("a") is None
    assert other.get("a") == 2
    data.purge(tags=["x"])
    assert other.get("a") is None
    with pytest.raises(ConfigurationError, match="kind='a:b' should be a name"):
        make(kind="a:b")


def test_a_value_that_is_set_after_the_purge_of_another_process_is_there(
    make: Make, upstash: LocalUpstash
):
    """Whenever this process has last read the epochs."""
    data, other = make(), make()
    data.set("a", 1, ttl=60)
    upstash.advance(11)
    other.clear()
    data.set("a", 2, ttl=60)
    assert (data.get("a"), other.get("a")) == (2, 2)


def test_values_of_another_type_are_left_out_of_many(make: Make):
    data = make()
    data.set_many({"a": 1, "b": "text"}, ttl=60)
    assert data.get_many(["a", "b", "c"], type=int) == {"a": 1}


def test_a_value_that_another_process_sets_is_seen_after_a_purge(make: Make):
    data, other = make(), make()
    data.set("a", 1, ttl=60)
    other.clear()
    assert data.get("a") is None
    data.set("a", 2, ttl=60)
    assert other.get("a") == 2
    assert data.get("a") == 2


@pytest.mark.parametrize(
    "key",
    ["a:b", "data", "#", "#lock:a", "#data#epoch", "é ü", "{a}", "x" * 5000, "#" + "0" * 64, "\n"],
)
def test_keys_are_any_text(data: Any, key: str):
    data.set("a", "another", ttl=60)
    data.get_or_set(key, 60, lambda: "value")
    data.incr(f"{key}+", ttl=60)
    assert data.get(key) == "value"
    assert data.get("a") == "another"
    data.clear()
    assert data.get(key) is None


def test_a_key_that_is_none_is_an_error_of_the_caller(data: Any):
    with pytest.raises(TypeError, match=r"a key should be text, not a int"):
        data.get(7)
    with pytest.raises(ValueError, match="empty"):
        data.set("", 1, ttl=60)
    with pytest.raises(ValueError, match="Unicode"):
        data.get("\ud800")


@pytest.mark.parametrize("ttl", [0, -1, math.nan, math.inf, "soon", None, 401 * DAY, True])
def test_a_time_to_live_is_above_0_and_at_most_400_days(data: Any, ttl: Any):
    with pytest.raises(ValueError, match="ttl="):
        data.set("a", 1, ttl=ttl)
    with pytest.raises(ValueError, match="ttl="):
        data.get_or_set("a", ttl, lambda: 1)


def test_a_value_with_tags_is_not_kept_for_longer_than_purges_are_remembered(make: Make):
    data = make(cache_max_keep="1 day")
    assert data.set("a", 1, ttl="1 day", tags=["x"])
    assert data.set("a", 1, ttl="400 days")
    with pytest.raises(ValueError, match="cache_max_keep"):
        data.set("a", 1, ttl=DAY + 1, tags=["x"])
    with pytest.raises(ValueError, match="stale=1: a value with tags"):
        data.get_or_set("a", DAY, lambda: 1, stale=1, tags=["x"])


@pytest.mark.parametrize(
    ("tags", "error"),
    [("abc", TypeError), ([7], TypeError), ([""], TypeError), (["x" * 2000], ValueError)],
)
def test_tags_are_text(data: Any, tags: Any, error: type[Exception]):
    with pytest.raises(error, match="tag"):
        data.set("a", 1, ttl=60, tags=tags)


def test_a_misspelt_argument_is_an_error(data: Any, make: Make):
    with pytest.raises(TypeError, match="unexpected keyword argument 'tag'"):
        data.set("a", 1, ttl=60, tag="x")
    with pytest.raises(TypeError, match="unexpected keyword argument 'beta'"):
        data.get_or_set("a", 60, lambda: 1, beta=1)
    with pytest.raises(ConfigurationError, match=r"Data.prefx: .* did you mean 'prefix'"):
        make(prefx="a")


def test_a_value_that_would_come_back_different_is_refused(data: Any):
    with pytest.raises(NotStorable, match=r"value\['a'\]"):
        data.set("a", {"a": object()}, ttl=60)
    with pytest.raises(NotStorable, match=r"value\[1\]"):
        data.get_or_set("a", 60, lambda: [1, object()])
    assert data.get("a") is None


def test_a_typed_value_comes_back_as_its_type(data: Any):
    product = Product(7, Decimal("1.10"))
    data.set("a", product, ttl=60, type=Product)
    assert data.get("a", type=Product) == product
    assert data.get_many(["a"], type=Product) == {"a": product}
    assert data.get_or_set("a", 60, lambda: None, type=Product) == product
    loaded = data.get_or_set("b", 60, lambda: [product], type=list[Product])
    assert loaded == [product] == data.get("b", type=list[Product])


def test_what_is_not_of_the_type_counts_as_missing(make: Make):
    """As after a deployment that has changed the type."""
    events: list[Any] = []
    data = make(observers=[events.append])
    data.set("a", "text", ttl=60)
    assert data.get("a", type=Product) is None
    assert [event.key for event in events if isinstance(event, CacheEntryRefused)] != []
    product = Product(7, Decimal(1))
    assert data.get_or_set("a", 60, lambda: product, type=Product) == product
    assert data.get("a", type=Product) == product


@pytest.mark.parametrize("garbage", ["", "~", "!", "~:\n\n", "x", "~a|b\n[]\n1", "~a\n[1]\n1", "{"])
def test_bytes_that_are_no_value_count_as_missing(make: Make, garbage: str):
    data = make(prefix="garbage")
    with Redis() as redis:
        redis.set("garbage:data:a", garbage)
    assert data.get("a", "default") == "default"
    assert data.get_or_set("a", 60, lambda: 1) == 1
    assert data.get("a") == 1


@pytest.mark.parametrize("encrypt", [False, True])
def test_sealed_values_are_opened_with_the_key_alone(make: Make, encrypt: bool):
    sealed = make(cache_keys=[KEYS], cache_encrypt=encrypt)
    sealed.set("a", "secret", ttl=60, tags=["x"])
    sealed.set_many({"b": 1, "c": [2]}, ttl=60)
    assert sealed.get_many("abc") == {"a": "secret", "b": 1, "c": [2]}
    assert sealed.get_or_set("d", 60, lambda: {"x": b"\xff"}, stale=60) == {"x": b"\xff"}
    assert sealed.touch("d", ttl=60)
    assert sealed.get("d") == {"x": b"\xff"}
    assert not sealed.add("d", 1, ttl=60)
    for other in (make(), make(cache_keys=["o" * 32], cache_encrypt=encrypt)):
        assert other.get_many("abcd") == {}
    rotated = make(cache_keys=["n" * 32, KEYS], cache_encrypt=encrypt)
    assert rotated.get("a") == "secret"
    sealed.purge(tags=["x"])
    assert rotated.get("a") is None
    with pytest.raises(ConfigurationError, match="incr: cache_keys is set"):
        sealed.incr("n", ttl=60)
    unsealed = make()
    unsealed.set("e", "written by somebody else", ttl=60)
    assert sealed.get("e") is None


def test_a_sealed_value_cannot_be_moved_to_another_key(make: Make):
    data = make(prefix="moved", cache_keys=[KEYS])
    data.set("a", "for a", ttl=60)
    with Redis() as redis:
        redis.set("moved:data:b", str(redis.get("moved:data:a")))
    assert data.get("b") is None
    assert data.get("a") == "for a"


def test_switched_off_nothing_is_stored_and_everything_is_loaded(make: Make):
    data = make(enabled=False, url="http://localhost:1", token="none")
    assert not data.set("a", 1, ttl=60)
    assert data.get("a", 2) == 2
    assert data.get_many(["a"]) == {}
    assert not data.add("a", 1, ttl=60)
    assert data.incr("a", ttl=60) is None
    assert data.get_or_set("a", 60, lambda: 3) == 3
    data.clear()
    data.purge(tags=["x"])
    with pytest.raises(NotStorable):
        data.set("a", object(), ttl=60)


def test_a_closed_one_opens_new_connections(upstash: LocalUpstash):
    with SyncData() as data:
        data.set("a", 1, ttl=60)
    assert data.get("a") == 1
    data.close()


def test_no_secret_is_in_its_repr():
    assert repr(SyncData(url="http://localhost:1", token="secret")) == "SyncData(kind='data')"
    assert repr(Data(url="http://localhost:1", token="secret", kind="x")) == "Data(kind='x')"


def test_everything_has_a_time_to_live(data: Any, upstash: LocalUpstash):
    data.set("a", 1, ttl=60)
    data.set("b", 1, ttl=60, tags=["x"])
    data.incr("c", ttl=60)
    data.add("d", 1, ttl=60)
    data.get_or_set("e", 60, lambda: 1, stale=60)
    data.clear()
    data.purge(tags=["x:y"])
    data.incr("c", ttl=60)
    data.incr("c", ttl=60)
    with Redis() as redis:
        assert all(redis.pttl(key) > 0 for key in redis.keys("*"))


class TestL1:
    """``data_l1_bytes``: what was read is used again for some seconds without a call."""

    @pytest.fixture
    def remembering(self, make: Make) -> Any:
        return make(data_l1_bytes=1_000_000, data_l1_seconds=5)

    def test_a_second_read_costs_nothing(self, remembering: Any, upstash: LocalUpstash):
        remembering.set("a", [1], ttl=60, tags=["x"])
        assert remembering.get("a") == [1]
        upstash.reset_bill()
        assert remembering.get("a") == [1]
        assert remembering.get_many(["a"]) == {"a": [1]}
        assert remembering.get_or_set("a", 60, lambda: 2) == [1]
        assert upstash.bill().requests == 0
        upstash.advance(6)
        assert remembering.get("a") == [1]
        assert upstash.bill().requests == 1

    def test_a_value_that_was_read_while_another_was_being_written_is_not_used_again(
        self, upstash: LocalUpstash
    ):
        def read_first(request: httpx.Request) -> None:
            if b'"SET"' in request.content and old:
                with ThreadPoolExecutor(1) as threads:
                    assert threads.submit(data.get, "a").result() == old.pop()

        old: list[int] = []
        with httpx.Client(event_hooks={"request": [read_first]}) as client:
            data = SyncData(
                transport=client, data_l1_bytes=1_000_000, deadline=20, cache_deadline=20
            )
            data.set("a", 1, ttl=60)
            old.append(1)
            data.set("a", 2, ttl=60)
            assert (old, data.get("a")) == ([], 2)

    def test_every_reader_gets_a_copy(self, remembering: Any):
        remembering.set("a", [1], ttl=60)
        remembering.get("a")
        remembering.get("a").append(2)
        assert remembering.get("a") == [1]

    @pytest.mark.parametrize("change", ["set", "delete", "incr", "clear", "purge", "again"])
    def test_what_this_process_changes_takes_effect_at_once(self, remembering: Any, change: str):
        remembering.set("a", 1, ttl=60, tags=["x"] if change == "purge" else [])
        assert remembering.get("a") == 1
        if change == "set":
            remembering.set("a", 2, ttl=60)
        elif change == "delete":
            remembering.delete("a")
        elif change == "incr":
            remembering.incr("a", ttl=60)
        elif change == "clear":
            remembering.clear()
        elif change == "purge":
            remembering.purge(tags=["x"])
        else:
            remembering.delete("a")
            remembering.get_or_set("a", 60, lambda: 2)
        expected = {"set": 2, "incr": 2, "again": 2}.get(change)
        assert remembering.get("a") == expected

    def test_what_another_process_changes_takes_effect_within_its_seconds(
        self, remembering: Any, data: Any, upstash: LocalUpstash
    ):
        remembering.set("a", 1, ttl=60)
        remembering.get("a")
        data.set("a", 2, ttl=60)
        upstash.advance(6)
        assert remembering.get("a") == 2


@pytest.mark.parametrize("delta", [1.5, True, "1", None])
def test_a_counter_counts_with_integers_alone(data: Any, delta: Any):
    with pytest.raises(TypeError, match="should be an integer"):
        data.incr("n", delta, ttl=60)
    assert data.get("n") is None
