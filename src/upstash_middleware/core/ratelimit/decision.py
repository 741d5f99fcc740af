"""What was decided about one request, as the application reads it; not how it was decided."""

from __future__ import annotations

from typing import TYPE_CHECKING

from upstash_middleware.core.ratelimit.limits import MAX_QUOTA
from upstash_middleware.values import dataclass, field, replace

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class PolicyState:
    """How one limit of a rule stands after the decision."""

    name: str
    """The rule's name; with the window's length where the rule has several limits."""
    limit: int
    window: int | None
    """Seconds within which the quota is given; None if it is not a whole number of them."""
    remaining: int
    reset: float
    """When the whole quota is there again if nobody asks: seconds since 1970, UTC."""
    allowed: bool
    retry_after: float | None = None
    """Seconds, to the millisecond, until this limit would let the same request pass.

    None where it allows, where it never will, and where nobody knows: for a slot to be free.
    """
    never: bool = False
    """Whether the cost is above the limit, so that no wait would help."""


class Ledger(list[int]):
    """What the application has charged on top while it handled a request; safe under threads.

    Units, one charge after another; below 0 they are given back.
    """

    __slots__ = ()

    def total(self) -> int:
        """Return the sum of all."""
        return sum(self)


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a request may pass, and how its limits stand; read as ``request.state.rate_limit``.

    ``limit``, ``remaining`` and ``reset`` are the tightest limit's, and None where Upstash could
    not be asked and the rule's policy decided instead.
    """

    allowed: bool
    rule: str
    identifier: str
    """As it stands in keys: secrets are hashed."""
    limit: int | None = None
    remaining: int | None = None
    reset: float | None = None
    """Seconds since 1970, UTC."""
    retry_after: float | None = None
    """Seconds until the same request would pass if nobody else asked.

    None if it passed, and if it never will.
    """
    policies: tuple[PolicyState, ...] = ()
    shadow: bool = False
    """Whether the rule only reports, so that a denial stopped nothing."""
    settled_by: str = "upstash"
    """What the decision rests on.

    ``upstash``; ``memory``, where this process remembers a denial; ``deny list``;
    ``challenge``, where nobody was identified; or, where Upstash could not be asked, the rule's
    policy: ``open``, ``closed`` or ``local``.
    """
    challenge: str | None = field(default=None, repr=False)
    """What a request without an identity is asked for."""
    ledger: Ledger = field(default_factory=Ledger, repr=False, compare=False)

    @property
    def stops(self) -> bool:
        """Whether the request goes no further."""
        return not (self.allowed or self.shadow)

    def charge(self, units: int) -> None:
        """Take this many units more, or give some back, when the response has been sent.

        They are taken from every limit that the request was counted under.
        For costs that show only while a request is handled, such as a language model's tokens.
        Whatever is left, it is taken: what is above the limit is paid off by waiting. May be
        called any number of times, also while streaming, until the last byte is sent. Without
        effect where Upstash did not decide. Raises ValueError for what is no whole number.
        """
        given: object = units
        if isinstance(given, bool) or not isinstance(given, int) or abs(given) > MAX_QUOTA:
            raise ValueError(f"charge({units!r}): units should be a whole number up to {MAX_QUOTA}")
        self.ledger.append(units)


def tightest(policies: tuple[PolicyState, ...]) -> PolicyState:
    """Return the limit that decides: of those that deny the last to pass, else the fullest."""
    return max(policies, key=_tightness)


def _tightness(policy: PolicyState) -> tuple[bool, float, int, float]:
    wait = policy.retry_after
    never = not policy.allowed and wait is None
    return (
        not policy.allowed,
        float("inf") if never else wait or 0.0,
        -policy.remaining,
        policy.reset,
    )


def decided(
    rule: str, identifier: str, policies: tuple[PolicyState, ...], *, shadow: bool = False
) -> Decision:
    """Return the decision that these limits together make."""
    leading = policies[0] if len(policies) == 1 else tightest(policies)
    return Decision(
        leading.allowed,
        rule,
        identifier,
        leading.limit,
        leading.remaining,
        leading.reset,
        leading.retry_after,
        policies,
        shadow,
    )


def combined(decisions: Sequence[Decision]) -> Decision:
    """Return what several rules together decide: the strictest one's, with all their limits."""
    if len(decisions) == 1:
        return decisions[0]
    leading = max(decisions, key=_strictness)
    policies = tuple(policy for decision in decisions for policy in decision.policies)
    return replace(leading, policies=policies)


def later(decision: Decision, milliseconds: int) -> Decision:
    """Return a denial whose waits are so much longer."""

    def put_off(wait: float | None) -> float | None:
        return None if wait is None else (round(wait * 1000) + milliseconds) / 1000

    return replace(
        decision,
        retry_after=put_off(decision.retry_after),
        reset=None if decision.reset is None else decision.reset + milliseconds / 1000,
        policies=tuple(
            replace(policy, retry_after=put_off(policy.retry_after)) for policy in decision.policies
        ),
    )


def _strictness(decision: Decision) -> tuple[bool, bool, float, int]:
    known = decision.remaining is not None
    # A denial that no wait ends comes first, then the longest wait, then the least left.
    wait = float("inf") if decision.retry_after is None else decision.retry_after
    denied = not decision.allowed
    return (denied, known or denied, wait if denied else 0.0, -(decision.remaining or 0))
