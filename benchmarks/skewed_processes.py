"""One limit, eight processes whose clocks differ by up to a tenth of the window, 50,000 requests.

``python -m benchmarks.skewed_processes`` starts a local Upstash, lets the processes ask as fast as
they can, and checks for each algorithm that not one more was let through than its definition allows
on the leading clock, and none fewer than the skew explains. Ends with status 1 if that does not
hold. ``--requests 4000`` for a short run. With ``--leases`` the rule has a lease, and the processes
pause for a moment after a denial: not one more may be let through than the definition allows within
the time and a lease's seconds.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass
from math import floor
from typing import TYPE_CHECKING, cast

from upstash_middleware.core.ratelimit import (
    GCRA,
    FixedWindow,
    Lease,
    Limit,
    RateLimiter,
    RateLimitRule,
    SlidingLog,
    SlidingWindow,
    TokenBucket,
)
from upstash_middleware.drivers import run
from upstash_middleware.local import LocalUpstash
from upstash_middleware.messages import HTTPRequest
from upstash_middleware.upstash import Client, Credentials

if TYPE_CHECKING:
    from multiprocessing.queues import Queue

PROCESSES = 8
WINDOW = 1.0
SKEW = WINDOW / 10
LEASE = Lease(0.2)
PAUSE = 0.002


def limits_of(quota: int) -> tuple[Limit, ...]:
    """Return a limit for each algorithm, all with the same rate."""
    return (
        FixedWindow(quota, WINDOW),
        SlidingWindow(quota, WINDOW),
        TokenBucket(quota, quota // 10, WINDOW / 10),
        GCRA(quota, WINDOW),
        SlidingLog(quota, WINDOW),
    )


LIMITS = limits_of(100)
LEASED = limits_of(1000)


@dataclass(frozen=True)
class SkewedClock:
    """The machine's clock, wrong by so many seconds."""

    skew: float

    def wall(self) -> float:
        """Return the wrong time of day."""
        return time.time() + self.skew

    def monotonic(self) -> float:
        """Return seconds since some moment."""
        return time.monotonic()


@dataclass(frozen=True)
class Admitted:
    """A request that passed, between two moments of the true clock."""

    sent: float
    answered: float
    where: int
    """The window that it was counted in, or its time in the log, by the leading clock."""


def ask(
    url: str,
    token: str,
    limit: Limit,
    skew: float,
    requests: int,
    found: Queue[list[Admitted]],
    lease: Lease | None,
) -> None:
    """Make requests in this process and report those that passed."""
    client = Client(Credentials(url, token), deadline=30)
    limiter = RateLimiter(
        (RateLimitRule("/a", limit, name="a", lease=lease),),
        None,
        prefix=f"skewed-{type(limit).__name__}-{lease}",
        secret=lambda: b"",
        clock=SkewedClock(skew),
        observe=lambda _: None,
        deadline=30,
        remember_denials=60 if lease else 0,
    )
    run(limiter.begin(HTTPRequest("GET", "/a", peer="203.0.113.1")), client)  # learns the time
    admitted = []
    for _ in range(requests):
        sent = time.time()
        exchange = run(limiter.begin(HTTPRequest("GET", "/a", peer="203.0.113.7")), client)
        if exchange.response is None:
            (where,) = exchange.taken[0].state_parts or ()
            admitted.append(Admitted(sent, time.time(), where))
        elif lease:
            time.sleep(PAUSE)
    client.close()
    found.put(admitted)


def most_in_a_window(admitted: list[Admitted]) -> int:
    """Return the most that were counted in one fixed window."""
    return max(Counter(one.where for one in admitted).values())


def most_in_a_stretch(admitted: list[Admitted]) -> int:
    """Return the most that the log's own times hold in any stretch of a window's length."""
    times = sorted(one.where for one in admitted)
    return max(
        index + 1 - bisect_right(times, time - WINDOW * 1000) for index, time in enumerate(times)
    )


def most_above_the_definition(limit: Limit, admitted: list[Admitted]) -> int:
    """Return by how much the definition was exceeded most, over all times of whole tenths."""
    excess, first = -limit.quota, min(one.sent for one in admitted)
    for start in range(1200):
        answered = sorted(one.answered for one in admitted if one.sent >= first + start / 10)
        if not answered:
            break
        for end in range(start, start + 30):
            seconds = (end + 1 - start) / 10 + cast("float", LEASE.seconds) + 2 * SKEW
            count = bisect_right(answered, first + (end + 1) / 10)
            excess = max(excess, count - floor(limit.quota * seconds / WINDOW) - limit.quota)
    return excess


def check_leased(limit: Limit, admitted: list[Admitted]) -> bool:
    """Print one line and return whether what it says is as it should be."""
    seconds = max(one.answered for one in admitted) - min(one.sent for one in admitted)
    excess, counted = most_above_the_definition(limit, admitted), "time"
    if isinstance(limit, FixedWindow | SlidingWindow):
        excess, counted = most_in_a_window(admitted) - limit.quota, "window"
    elif isinstance(limit, SlidingLog):  # by when they were taken, there are no more at all
        excess, counted = most_in_a_stretch(admitted) - limit.quota, "second of taking"
    rate = len(admitted) / seconds
    print(
        f"{limit!s:56} {len(admitted):6} passed in {seconds:5.1f} s, {rate:5.0f} a second; at most "
        f"{excess:+} in any {counted}{'' if excess <= 0 else '  WRONG'}"
    )
    return excess <= 0


def check(limit: Limit, admitted: list[Admitted]) -> bool:
    """Print one line and return whether what it says is as it should be."""
    quota = limit.quota
    first, last = min(one.sent for one in admitted), max(one.answered for one in admitted)
    # The leading clock is ahead by the skew at most, so it has seen that much more time.
    seconds = last - first + 2 * SKEW
    most = floor(quota * seconds / WINDOW) + quota
    if isinstance(limit, FixedWindow | SlidingWindow):  # it may touch two windows more
        most = quota * (floor(seconds / WINDOW) + 2)
    least = floor(quota * (last - first) / WINDOW * (1 - 2 * SKEW / WINDOW)) - quota
    good = least <= len(admitted) <= most
    detail = ""
    if isinstance(limit, FixedWindow | SlidingLog):
        counted = (
            most_in_a_window(admitted)
            if isinstance(limit, FixedWindow)
            else most_in_a_stretch(admitted)
        )
        detail = f"; {counted} at most in a window, {quota} by the definition"
        good = good and counted <= quota
    print(
        f"{limit!s:56} {len(admitted):6} passed in {last - first:5.1f} s, "
        f"{least} to {most} by the definition{detail}{'' if good else '  WRONG'}"
    )
    return good


def measure(server: LocalUpstash, limit: Limit, requests: int, lease: Lease | None = None) -> bool:
    """Let the processes loose on one limit."""
    found: Queue[list[Admitted]] = multiprocessing.get_context("spawn").Queue()
    skews = [(index / (PROCESSES - 1) * 2 - 1) * SKEW for index in range(PROCESSES)]
    processes = [
        multiprocessing.get_context("spawn").Process(
            target=ask,
            args=(server.url, server.token, limit, skew, requests // PROCESSES, found, lease),
        )
        for skew in skews
    ]
    for process in processes:
        process.start()
    admitted = [one for _ in processes for one in found.get(timeout=600)]
    for process in processes:
        process.join()
    return check_leased(limit, admitted) if lease else check(limit, admitted)


def main() -> int:
    """Measure every algorithm; return the status to end with."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=50_000, help="for each algorithm")
    parser.add_argument("--leases", action="store_true", help="reserve quota for the identifier")
    given = parser.parse_args()
    limits, lease = (LEASED, LEASE) if given.leases else (LIMITS, None)
    with LocalUpstash() as server:
        results = [measure(server, limit, given.requests, lease) for limit in limits]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
