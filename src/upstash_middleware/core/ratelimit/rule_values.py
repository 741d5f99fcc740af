"""What the fields of a rule may hold; what of it is right is checked in ``rule_checks``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Literal, Protocol, runtime_checkable

from upstash_middleware.messages import Request, ResponseHead
from upstash_middleware.values import dataclass

UNLIMITED = "unlimited"
"""As a rule's ``limits``: requests that it matches are exempt."""

OnError = Literal["open", "closed", "local"]
Cost = int | Callable[[Request], int | Awaitable[int]]
Settle = Callable[[Request, ResponseHead], int | Awaitable[int]]
"""The response's head is that of a 500 where the application raised before it had one."""
Predicate = Callable[[Request], bool | Awaitable[bool]]


@runtime_checkable
class SdkLimiter(Protocol):
    """What a limiter of ``upstash_ratelimit`` looks like, whoever wrote it."""

    def limit_async(self, redis: Any, identifier: str, rate: int = 1) -> Awaitable[Any]:
        """Decide, with the client that it is given."""
        ...


@dataclass(frozen=True, slots=True)
class Tiers:
    """Limits that a function of the request answers."""

    of: Callable[[Request], Any]


def is_unlimited(value: object) -> bool:
    """Whether a rule's ``limits`` exempts."""
    return isinstance(value, str) and value.strip().lower() == UNLIMITED
