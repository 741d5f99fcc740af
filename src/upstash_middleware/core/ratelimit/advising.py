"""What looks like a wrong setting: told once, in words that say what to set.

A forwarded address that nobody is trusted to have written, and one identifier that nearly all
requests have: behind a proxy that is not trusted, all clients share its address, and a header
field that a gateway sets may be the same for all. What the application's own function answers is
taken as meant: one quota for everybody may be.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from upstash_middleware.core.identify import Identifier, identity_list
from upstash_middleware.events import SettingDoubted

if TYPE_CHECKING:
    from upstash_middleware.core.ratelimit.compiled import CompiledRule
    from upstash_middleware.events import Observer
    from upstash_middleware.messages import Request

SAMPLE = 1000
"""Requests that are looked at together."""
LOOKED_INTO = 50
"""The first so many of them tell whether a proxy stands in front."""
DOMINATING = 0.9

_PRIVATE = identity_list(
    (
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "fc00::/7",
        "fe80::/10",
        "::/64",
    )
)
_REMEDY = (
    "; if that is a proxy, say so: client_ip(trusted_hops=1) counts the proxies in front, "
    "client_ip(trusted=('10.0.0.0/8',)) names their networks, client_ip(platform=...) the platform"
)


class Advising:
    """Looks at who is found; used by threads at once, where a lost count does no harm."""

    __slots__ = ("_candidate", "_count", "_observe", "_seen", "_told")

    def __init__(self, observe: Observer) -> None:
        self._observe = observe
        self._told: set[str] = set()
        self._candidate: Identifier | None = None
        self._count = self._seen = 0

    def look(self, rule: CompiledRule, found: Identifier, request: Request) -> None:
        """Look at one request whose client was found by one of this package's extractors."""
        if found.kind == "id" or len(self._told) == 2:
            return
        if self._seen < LOOKED_INTO:
            self._look_into(rule, found, request)
        candidate = self._candidate = self._candidate or found
        self._seen += 1
        self._count += found is candidate or found == candidate  # the same is remembered for it
        if self._seen >= SAMPLE:
            if self._count >= SAMPLE * DOMINATING:
                self._tell(rule, "dominating", _dominating(candidate))
            self._candidate = None
            self._seen = self._count = 0

    def _look_into(self, rule: CompiledRule, found: Identifier, request: Request) -> None:
        by_peer = found.kind == "ip" and found.value == request.peer
        if by_peer and _is_private(found.value) and _is_forwarded(request):
            self._tell(
                rule,
                "proxy",
                f"requests come from the private address {found.value} and carry a forwarded "
                f"address that nobody is trusted to have written{_REMEDY}",
            )

    def _tell(self, rule: CompiledRule, what: str, advice: str) -> None:
        if what not in self._told:
            self._told.add(what)
            self._observe(SettingDoubted(f"{rule.setting}.by", advice))


def _is_forwarded(request: Request) -> bool:
    return "x-forwarded-for" in request.headers or "forwarded" in request.headers


def _dominating(found: Identifier) -> str:
    most = f"nearly all of {SAMPLE} requests"
    if found.kind == "ip":
        return f"{most} came from {found.value} and share one quota{_REMEDY}"
    return (
        f"{most} have the same {found.kind} and share one quota; if they are not one client's, "
        "identify by something that tells clients apart, or by several things: "
        "combine(..., client_ip())"
    )


@lru_cache(maxsize=4096)
def _is_private(address: str) -> bool:
    return Identifier("ip", address) in _PRIVATE
