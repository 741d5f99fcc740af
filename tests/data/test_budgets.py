"""What each call costs at Upstash, counted on the wire."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.data.conftest import Make
    from upstash_middleware.local import LocalUpstash


@pytest.fixture
def cost(upstash: LocalUpstash) -> Callable[..., tuple[int, int]]:
    """Return what a call costs: HTTP requests, and billed commands."""

    def cost(function: Callable[..., Any], *args: Any, **named: Any) -> tuple[int, int]:
        upstash.reset_bill()
        function(*args, **named)
        bill = upstash.bill()
        return bill.requests, bill.commands

    return cost


def test_reading_takes_one_command(data: Any, cost: Any):
    data.set("a", 1, ttl=60)
    assert cost(data.get, "a") == (1, 1)
    assert cost(data.get, "missing") == (1, 1)
    assert cost(data.get_many, [f"a{number}" for number in range(50)]) == (1, 1)


def test_reading_a_value_with_tags_takes_one_command(make: Make, cost: Any):
    """Also after a purge of another tag, once this process knows its tags."""
    data, other = make(), make()
    data.set("a", 1, ttl=60, tags=["product:7"])
    assert cost(data.get, "a") == (1, 1)
    other.purge(tags=["product:8"])
    assert cost(data.get, "a") == (1, 1)
    assert cost(other.get, "a") == (2, 2)
    assert cost(other.get, "a") == (1, 1)


def test_storing_takes_one_command_once_the_epochs_are_known(data: Any, cost: Any):
    assert cost(data.set, "a", 1, ttl=60) == (1, 2)
    assert cost(data.set, "b", 1, ttl=60) == (1, 1)
    data.get("a")
    assert cost(data.set, "a", 1, ttl=60) == (1, 1)
    assert cost(data.set, "a", 1, ttl=60, tags=["x"]) == (1, 2)
    assert cost(data.set, "b", 1, ttl=60, tags=["x"]) == (1, 1)
    assert cost(data.set_many, {"a": 1, "b": 2, "c": 3}, ttl=60) == (1, 3)


def test_what_was_learned_of_epochs_is_used_for_some_seconds(
    data: Any, cost: Any, upstash: LocalUpstash
):
    data.get("a")
    upstash.advance(11)
    assert cost(data.set, "a", 1, ttl=60) == (1, 2)


def test_a_missing_value_takes_two_commands_and_three_with_the_lock(data: Any, cost: Any):
    assert cost(data.get_or_set, "a", 60, lambda: 1, lock=False) == (2, 2)
    assert cost(data.get_or_set, "b", 60, lambda: 1, tags=["x", "y"], lock=False) == (2, 2)
    assert cost(data.get_or_set, "c", 60, lambda: 1) == (3, 3)
    assert cost(data.get_or_set, "d", 60, lambda: 1, tags=["x"], stale=60) == (3, 3)
    for key in "abcd":
        assert cost(data.get_or_set, key, 60, lambda: 1, tags=["x"]) == (1, 1)


def test_the_other_calls(data: Any, cost: Any):
    data.incr("warm", ttl=60)  # the server knows the script then
    data.get("a")
    assert cost(data.incr, "n", ttl=60) == (1, 3)
    assert cost(data.incr, "n", ttl=60) == (1, 3)
    assert cost(data.add, "a", 1, ttl=60) == (1, 2)
    assert cost(data.add, "a", 1, ttl=60) == (1, 2)
    assert cost(data.touch, "a", ttl=60) == (2, 2)
    assert cost(data.delete, "a") == (1, 1)
    assert cost(data.delete, "b", "c", "d") == (1, 1)
    assert cost(data.clear) == (1, 1)
    assert cost(data.purge, tags=["x"]) == (1, 2)
    assert cost(data.incr, "n", ttl=60) == (1, 3)
