"""The site that cases are played on: each kind of server once, with the profile ``conforming``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.clocks import MovableClock, use_clock
from tests.conformance.playing import Origin, play
from tests.conformance.serving import SERVERS
from upstash_middleware import CacheRule
from upstash_middleware.local import LocalUpstash

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conformance.telling import Case


@dataclass(frozen=True)
class Site:
    """A running server."""

    interface: str
    origin: Origin
    port: int
    clock: MovableClock

    def play(self, case: Case) -> None:
        """Play a case; what the interface cannot express is not played."""
        if self.interface in case.not_in:
            return
        play(case, self.origin, self.port, self.clock)


@pytest.fixture(scope="module")
def upstash_of_module() -> Iterator[LocalUpstash]:
    """A local Upstash for all cases: each has a path of its own."""
    with LocalUpstash() as upstash:
        yield upstash


@pytest.fixture(scope="module", params=SERVERS)
def site(request: pytest.FixtureRequest, upstash_of_module: LocalUpstash) -> Iterator[Site]:
    """Each interface in turn."""
    origin, clock = Origin(), MovableClock()
    settings = {
        "cache": [CacheRule("/{rest:path}")],
        "cache_profile": "conforming",
        "cache_deadline": 20.0,
        "prefix": f"conformance-{request.param}",
        "url": upstash_of_module.url,
        "token": upstash_of_module.token,
    }
    with pytest.MonkeyPatch.context() as patched:
        use_clock(clock, patched)
        with SERVERS[request.param](origin, settings) as port:
            yield Site(request.param, origin, port, clock)
