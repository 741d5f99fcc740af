"""The local Upstash, and what the fixtures of the pytest plugin give."""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_type

from upstash_middleware.local import Bill, Fault, Faults, LocalUpstash


def started() -> None:
    with LocalUpstash() as server:
        assert_type(server, LocalUpstash)
        assert_type(server.url, str)
        assert_type(server.env, dict[str, str])
        assert_type(server.bill(), Bill)
        assert_type(server.bill().commands, int)
        assert_type(server.flush(), None)
        with server.faults(latency_ms=50, fault=Fault.QUOTA):
            server.set_faults(Faults(latency_ms=5))


async def started_on_a_loop() -> None:
    async with LocalUpstash() as server:
        assert_type(server, LocalUpstash)


def test_with_fixtures(upstash: LocalUpstash, upstash_faults: Callable[..., None]) -> None:
    assert_type(upstash.bill().requests, int)
    assert_type(upstash_faults(latency_ms=50), None)
