"""Where Valkey and Upstash differ, the local Upstash answers as Upstash does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from upstash_middleware.local import LocalUpstash

    Execute = Callable[..., Any]

LIBRARY = """#!lua name=lib
redis.register_function('read', function(keys, args) return {redis.call('GET', keys[1]), #args} end)
redis.register_function('write', function(keys, args) return redis.call('SET', keys[1], '1') end)
redis.register_function('try', function(keys, args) return redis.pcall('SET', keys[1], '1') end)
"""


@pytest.fixture
def execute(upstash: LocalUpstash) -> Iterator[Execute]:
    """Run a command; return its result, or the text of its error."""
    headers = {"Authorization": f"Bearer {upstash.token}"}
    with httpx.Client(base_url=upstash.url, headers=headers) as client:

        def execute(*command: object) -> Any:
            answer = client.post("/", json=command).json()
            return answer["result"] if "result" in answer else answer["error"]

        yield execute


@pytest.mark.parametrize("operation", ["DIFF", "DIFF1", "ANDOR"])
def test_bit_operations_that_compare_want_two_source_keys(execute: Execute, operation: str):
    error = f"ERR BITOP {operation} must be called with at least two source keys."
    assert execute("BITOP", operation, "d", "a") == error


def test_a_function_that_only_reads_needs_no_flag_to_be_called_read_only(execute: Execute):
    execute("SET", "k", "x")
    execute("FUNCTION", "LOAD", LIBRARY)
    assert execute("FCALL_RO", "read", 1, "k") == ["x", 0]
    assert execute("FCALL_RO", "read", 1, "k", "a", "b") == ["x", 2]


def test_a_function_that_writes_is_refused_when_it_is_called_read_only(execute: Execute):
    execute("FUNCTION", "LOAD", LIBRARY)
    for function in ("write", "try"):
        answer = execute("FCALL_RO", function, 1, "k")
        assert "commands are not allowed from read-only" in answer
    assert execute("EXISTS", "k") == 0
    assert execute("FCALL", "write", 1, "k") == "OK"


def test_an_acknowledged_entry_is_deleted(execute: Execute):
    execute("XGROUP", "CREATE", "s", "g", 0, "MKSTREAM")
    execute("XADD", "s", "1-1", "f", "v")
    execute("XADD", "s", "2-1", "f", "v")
    execute("XREADGROUP", "GROUP", "g", "c", "COUNT", 1, "STREAMS", "s", ">")
    execute("XACK", "s", "g", "1-1")
    assert execute("XACKDEL", "s", "g", "IDS", 2, "1-1", "2-1") == [1, -1]
    assert [entry for entry, _ in execute("XRANGE", "s", "-", "+")] == ["2-1"]


def test_a_group_that_does_not_exist_has_no_consumers(execute: Execute):
    execute("XADD", "s", "1-1", "f", "v")
    assert execute("XINFO", "CONSUMERS", "s", "nogroup") == []


def test_reading_without_acknowledgement_creates_no_consumer(execute: Execute):
    execute("XGROUP", "CREATE", "s", "g", 0, "MKSTREAM")
    execute("XADD", "s", "1-1", "f", "v")
    read = ("XREADGROUP", "GROUP", "g", "c", "NOACK", "STREAMS", "s", ">")
    assert execute(*read) == [["s", [["1-1", ["f", "v"]]]]]
    assert execute("XINFO", "CONSUMERS", "s", "g") == []
    assert execute(*read) is None


def test_reading_without_acknowledgement_keeps_a_consumer_that_exists(execute: Execute):
    execute("XGROUP", "CREATE", "s", "g", 0, "MKSTREAM")
    execute("XGROUP", "CREATECONSUMER", "s", "g", "c")
    execute("XADD", "s", "1-1", "f", "v")
    execute("XREADGROUP", "GROUP", "g", "c", "NOACK", "STREAMS", "s", ">")
    assert [consumer[1] for consumer in execute("XINFO", "CONSUMERS", "s", "g")] == ["c"]


def test_a_key_copied_to_itself_is_no_error(execute: Execute):
    execute("SET", "a", "x")
    assert execute("COPY", "a", "a") == 0
    assert execute("GET", "a") == "x"


@pytest.mark.parametrize(
    ("arguments", "stored"),
    [
        ((0, 2, "LIMIT", 1, 1), ["b"]),
        ((0, -1, "LIMIT", 1, -1), ["b", "c"]),
        ((0, -1, "REV", "LIMIT", 0, 2), ["b", "c"]),
        ((0, 2, "LIMIT", 5, 1), []),
    ],
)
def test_a_range_of_positions_is_stored_in_part(
    execute: Execute, arguments: tuple[object, ...], stored: list[str]
):
    execute("ZADD", "z", 1, "a", 2, "b", 3, "c")
    execute("ZADD", "d", 9, "old")
    assert execute("ZRANGESTORE", "d", "z", *arguments) == len(stored)
    assert execute("ZRANGE", "d", 0, -1) == stored


@pytest.mark.parametrize(
    "trim", [("XTRIM", "x", "MAXLEN", "~", 5), ("XADD", "x", "MAXLEN", "~", 5, "*", "~", "v")]
)
def test_approximate_trimming_leaves_about_as_many_as_were_asked_for(
    execute: Execute, trim: tuple[object, ...]
):
    for number in range(130):
        execute("XADD", "x", f"{number + 1}-1", "f", "v")
    execute(*trim)
    assert execute("XLEN", "x") == 5


def test_a_scan_may_name_a_type_of_upstashs_own(execute: Execute):
    execute("SET", "a", "x")
    assert execute("SCAN", 0, "TYPE", "search") == ["0", []]
