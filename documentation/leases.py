"""What a million requests of one client cost with and without leases, by the local Upstash's bill.

The processes are middlewares of this process, which share nothing but the database, and their clock
moves with the requests.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final
from wsgiref.util import setup_testing_defaults

from documentation.site import table
from upstash_middleware.clock import SystemClock
from upstash_middleware.local import LocalUpstash
from upstash_middleware.local.billing import DOLLARS_PER_COMMAND
from upstash_middleware.wsgi import RateLimitMiddleware

if TYPE_CHECKING:
    from collections.abc import Iterator

_QUOTAS: Final = (1_000, 10_000)
"""Units per minute, of which the client uses half."""
_PROCESSES: Final = (1, 8)
_LEASES: Final = (None, "1s", "10s")
_WITHOUT: Final = 50
"""Requests that are counted without a lease, where each costs the same."""


def lease_costs() -> str:
    """Return the table of what a million requests of a client cost."""
    heading = ("limit", ">processes", ">without a lease", ">`lease 1s`", ">`lease 10s`")
    with LocalUpstash() as upstash:
        rows = [
            (
                f"{quota:,} per minute",
                str(processes),
                *(_price(upstash, quota, processes, lease) for lease in _LEASES),
            )
            for quota in _QUOTAS
            for processes in _PROCESSES
        ]
    return table(heading, rows)


def _price(upstash: LocalUpstash, quota: int, processes: int, lease: str | None) -> str:
    """Return the price of a million requests, by those of the second of two minutes."""
    upstash.flush()
    environ: dict[str, Any] = {"REMOTE_ADDR": "203.0.113.7"}
    setup_testing_defaults(environ)
    workers: list[Any] = [
        RateLimitMiddleware(
            _page,
            default_limit=f"{quota}/minute",
            lease=lease,
            url=upstash.url,
            token=upstash.token,
            deadline=20.0,
        )
        for _ in range(processes)
    ]
    count = _WITHOUT if lease is None else quota // 2
    with _moving_clock(upstash) as clock:
        for number in range(2 * count):
            if number == count:
                upstash.reset_bill()
            workers[number % processes](environ, lambda *_: None).close()
            clock.now += 60 / (quota // 2)
        commands = upstash.bill().commands
    return f"${commands / count * 1_000_000 * DOLLARS_PER_COMMAND:.2f}"


def _page(_environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return [b"page"]


class _Clock:
    def __init__(self, now: float) -> None:
        self.now = now

    def read(self) -> float:
        return self.now


@contextmanager
def _moving_clock(upstash: LocalUpstash) -> Iterator[_Clock]:
    """Let this process and the database begin a second into a minute, and move the clock here."""
    upstash.restore_time()
    upstash.advance(61 - time.time() % 60)
    before = SystemClock.wall, SystemClock.monotonic
    clock = _Clock(SystemClock.wall())
    SystemClock.wall = SystemClock.monotonic = staticmethod(clock.read)
    try:
        yield clock
    finally:
        SystemClock.wall, SystemClock.monotonic = map(staticmethod, before)
        upstash.restore_time()
