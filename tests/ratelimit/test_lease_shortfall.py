"""How many fewer requests pass with leases, at most: the figures of docs/leases.md."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.ratelimit.test_lease_units import by_the_counter
from tests.ratelimit.test_limiter import Make, get, passed
from upstash_middleware.core.ratelimit import FixedWindow, Lease, RateLimitRule

if TYPE_CHECKING:
    from tests.ratelimit.store import FakeClock, ValkeyStore

LIMIT = FixedWindow(1000, 60)
PAGE = Path(__file__).parents[2] / "docs" / "leases.md"


def admitted_after(
    limiter_of: Make,
    store: ValkeyStore,
    clock: FakeClock,
    share: float,
    processes: int,
    units: int,
) -> int:
    """Return what passes in a window in which all processes but one fall silent with a slice.

    Each has used so many units in the second before the window began, and makes one request in it.
    """
    rule = RateLimitRule("/a", LIMIT, name="r", lease=Lease(share=share))
    limiters = [limiter_of(rule, remember_denials=0) for _ in range(processes)]
    clock.move(60 - clock.time % 60 - 0.5)
    for limiter in limiters:
        passed(limiter, store, *[get("/a")] * units)
    clock.move(0.5)
    admitted = sum(sum(passed(limiter, store, get("/a"))) for limiter in limiters)
    left = by_the_counter(limiter_of, store, LIMIT)
    clock.move(1)
    return admitted + sum(passed(limiters[-1], store, *[get("/a")] * (left + 1000)))


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
@pytest.mark.parametrize("share", [0.05, 0.1, 0.3])
def test_silent_processes_keep_no_more_than_the_share_of_what_remains(
    limiter_of: Make, store: ValkeyStore, clock: FakeClock, share: float, processes: int
) -> None:
    """The page has the figure of each case."""
    admitted = admitted_after(limiter_of, store, clock, share, processes, 1200)
    missing = LIMIT.limit - admitted
    silent = processes - 1
    # Slices are rounded up.
    assert missing <= LIMIT.limit * (1 - (1 - share) ** silent) + silent
    assert row_of(share)[processes] == f"{missing}"


@pytest.mark.parametrize("units", [20, 60])
def test_silent_processes_keep_no_more_than_they_used_within_the_leases_seconds(
    limiter_of: Make, store: ValkeyStore, clock: FakeClock, units: int
) -> None:
    admitted = admitted_after(limiter_of, store, clock, 0.3, 8, units)
    assert 0 < LIMIT.limit - admitted <= 7 * (units + 1)


def row_of(share: float) -> dict[int, str]:
    """Return a row of the page's table, by the number of processes."""
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith(f"| `{share:g}` |")]
    assert len(rows) == 1
    cells = [cell.strip() for cell in rows[0].strip("|").split("|")]
    return dict(zip([1, 2, 4, 8], cells[1:], strict=True))
