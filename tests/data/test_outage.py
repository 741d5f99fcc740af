"""When Upstash fails: reads find nothing, writes are reported, and raise if they are strict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from upstash_middleware import Redis, UpstashError
from upstash_middleware.events import UpstashAnswered, UpstashFailed
from upstash_middleware.local.faults import Fault

if TYPE_CHECKING:
    from tests.data.conftest import Make
    from upstash_middleware.local import LocalUpstash

DOWN = {"fault": "bad-gateway"}
SHORT = 0.4
"""Seconds of deadline where a fault costs the whole of it."""
FAULTS: list[dict[str, Any]] = [{"fault": fault.value} for fault in Fault]
FAULTS += [{"latency_ms": 50}, {"latency_ms": 2000 * SHORT}]


@pytest.fixture
def events() -> list[Any]:
    return []


@pytest.fixture
def data(make: Make, events: list[Any]) -> Any:
    return make(observers=[events.append], breaker=False)


def failures(events: list[Any]) -> list[str]:
    found = [event.during for event in events if isinstance(event, UpstashFailed)]
    events.clear()
    return found


def test_a_read_finds_nothing(data: Any, events: list[Any], upstash: LocalUpstash):
    data.set("a", 1, ttl=60)
    with upstash.faults(**DOWN):
        assert data.get("a", "default") == "default"
        assert data.get_many(["a"]) == {}
    assert failures(events) == ["data read"] * 2
    assert data.get("a") == 1


def test_a_missing_value_is_loaded_and_not_stored(
    data: Any, events: list[Any], upstash: LocalUpstash
):
    with upstash.faults(**DOWN):
        assert data.get_or_set("a", 60, lambda: 1) == 1
        assert data.get_or_set("a", 60, lambda: 2, stale=60) == 2
    assert failures(events) == ["data read"] * 2
    assert data.get("a") is None


def test_writes_are_reported_and_raise_if_they_are_strict(
    data: Any, events: list[Any], upstash: LocalUpstash
):
    writes: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = [
        (data.set, ("a", 1), {"ttl": 60}, False),
        (data.set, ("a", 1), {"ttl": 60, "tags": ["x"]}, False),
        (data.set_many, ({"a": 1, "b": 2},), {"ttl": 60}, False),
        (data.add, ("a", 1), {"ttl": 60}, False),
        (data.touch, ("a",), {"ttl": 60}, False),
        (data.incr, ("a",), {"ttl": 60}, None),
        (data.delete, ("a",), {}, False),
    ]
    with upstash.faults(**DOWN):
        for write, args, named, result in writes:
            assert write(*args, **named) is result
            assert failures(events) == ["data write"]
            with pytest.raises(UpstashError):
                write(*args, **named, strict=True)
            assert failures(events) == ["data write"]


def test_a_write_that_succeeds_reports_that_upstash_answers_again(
    data: Any, events: list[Any], upstash: LocalUpstash
):
    upstash.set_faults(**DOWN)
    data.set("a", 1, ttl=60)
    upstash.set_faults()
    data.set("a", 1, ttl=60)
    found = [event for event in events if isinstance(event, UpstashFailed | UpstashAnswered)]
    assert [type(event) for event in found] == [UpstashFailed, UpstashAnswered]


def test_a_purge_that_may_not_have_happened_raises(data: Any, upstash: LocalUpstash):
    with upstash.faults(**DOWN):
        with pytest.raises(UpstashError):
            data.clear()
        with pytest.raises(UpstashError):
            data.purge(tags=["x"])


def test_a_value_that_cannot_be_stored_is_returned(
    data: Any, events: list[Any], upstash: LocalUpstash
):
    def load() -> int:
        upstash.set_faults(**DOWN)
        return 1

    assert data.get_or_set("a", 60, load) == 1
    upstash.set_faults()
    assert failures(events) == ["data write"]


def test_a_value_larger_than_a_call_is_reported_without_sending_it(
    data: Any, events: list[Any], upstash: LocalUpstash
):
    large = "x" * 10_000_000
    assert not data.set("a", large, ttl=60)
    assert failures(events) == ["data write"]
    with pytest.raises(UpstashError, match="10000002 bytes"):
        data.set("a", large, ttl=60, strict=True)
    assert data.get_or_set("a", 60, lambda: large) == large
    assert data.get("a") is None


def test_values_that_do_not_fit_in_one_call_are_stored_in_several(data: Any, upstash: LocalUpstash):
    values = {f"a{number}": "x" * 2_000_000 for number in range(6)}
    data.get("a")
    upstash.reset_bill()
    assert data.set_many(values, ttl=60)
    assert upstash.bill().commands == 6
    assert data.get("a5") == values["a5"]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: "-".join(map(str, fault.values())))
def test_no_fault_raises_and_none_is_taken_for_success(
    make: Make, upstash: LocalUpstash, fault: dict[str, Any]
):
    """A call either has its result, or finds nothing and is reported."""
    events: list[Any] = []
    settings = {"deadline": SHORT, "cache_deadline": SHORT, "breaker": False}
    data, patient = make(observers=[events.append], **settings), make()
    patient.set("a", [1], ttl=600)
    patient.incr("n", ttl=600)
    with upstash.faults(**fault):
        assert data.get("a") in ([1], None)
        assert data.get_many(["a", "b"]) in ({"a": [1]}, {})
        assert data.get_or_set("b", 600, lambda: [2]) == [2]
        failures(events)
        for write in (
            lambda: data.set("c", 3, ttl=600),
            lambda: data.set("d", 4, ttl=600, tags=["x"]),
            lambda: data.incr("n", ttl=600),
        ):
            reported = not write()
            assert bool(failures(events)) == reported
    if set(fault) == {"latency_ms"} and fault["latency_ms"] < 1000 * SHORT:
        assert patient.get_many("bcd") == {"b": [2], "c": 3, "d": 4}
    assert patient.get("a") == [1]
    assert patient.get("n") in {1, 2}


def test_keys_of_another_type_count_as_missing(make: Make):
    data = make(prefix="other")
    with Redis() as redis:
        for key in ("data:a", "data:b", "data:c", "data#data#epoch", "data#data#lock:a"):
            redis.hset(f"other:{key}", "field", "value")
    assert data.get("a") is None
    assert data.set("a", 1, ttl=60)
    assert data.get("a") == 1
    assert data.get_or_set("b", 60, lambda: 2) == 2
    assert data.incr("c", ttl=60) == 1
