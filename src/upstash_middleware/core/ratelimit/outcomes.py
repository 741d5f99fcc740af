"""From asks to charges, and from what the script answers to decisions; values only."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING

from upstash_middleware.core.ratelimit.decision import Decision, PolicyState, decided
from upstash_middleware.core.ratelimit.limits import Concurrency
from upstash_middleware.core.ratelimit.local import share_of
from upstash_middleware.core.ratelimit.script import Charge, Verdict
from upstash_middleware.core.ratelimit.settling import Taken
from upstash_middleware.values import value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from upstash_middleware.core.ratelimit.asking import Ask, Settled
    from upstash_middleware.core.ratelimit.compiled import Policy


_where = attrgetter("where")


@value(frozen=True, slots=True)
class Outcome:
    """What came of one rule, and what was taken, if the rules that limit together all allow."""

    decision: Decision
    taken: Taken | None = None


def charges_for(asks: Sequence[Ask], *, local: bool = False) -> list[Charge]:
    """Return what the asks would take from each of their limits; ``local``, from their shares.

    Rules that limit together are one group; each shadow is one by itself.
    """
    return [
        Charge(
            ask.base,
            share_of(policy.limit, ask.rule.rule.local_share) if local else policy.limit,
            ask.cost,
            index + 1 if ask.rule.rule.shadow else 0,
            ask.token,
            None if local else ask.rule.changed_at,
        )
        for index, ask in enumerate(asks)
        for policy in ask.rule.policies
    ]


def outcomes_of(asks: Sequence[Ask], verdicts: Sequence[Verdict], now_ms: int) -> list[Outcome]:
    """Return what the verdicts on these charges, by a call at ``now_ms``, mean for each ask."""
    outcomes: list[Outcome] = []
    denies, end = False, 0
    for ask in asks:
        begin, end = end, end + len(ask.rule.policies)
        own = verdicts[begin:end]
        decision = _decision(ask, own, now_ms)
        taken = Taken(ask, tuple(map(_where, own))) if decision.allowed else None
        outcomes.append(Outcome(decision, taken))
        denies = denies or not (decision.allowed or decision.shadow)
    if denies:  # the others that limit together have taken nothing either
        return [one if one.decision.shadow else Outcome(one.decision) for one in outcomes]
    return outcomes


def _decision(ask: Ask, verdicts: Sequence[Verdict], now_ms: int) -> Decision:
    pairs = zip(ask.rule.policies, verdicts, strict=True)
    policies = tuple([_state(policy, verdict, now_ms) for policy, verdict in pairs])
    rule = ask.rule.rule
    return decided(rule.name, ask.identifier, policies, shadow=rule.shadow)


def settled_outcome(settled: Settled) -> Outcome:
    rule = settled.rule.rule
    # A local policy without a cost to count, after code of the application's has failed, is open.
    by = "open" if settled.by == "local" else settled.by
    return Outcome(
        Decision(
            allowed=by == "open",
            rule=rule.name,
            identifier=settled.identifier,
            settled_by=by,
            shadow=rule.shadow,
            challenge=rule.challenge,
        )
    )


def _state(policy: Policy, verdict: Verdict, now_ms: int) -> PolicyState:
    wait = verdict.retry_ms
    known = not (verdict.allowed or wait is None or isinstance(policy.limit, Concurrency))
    return PolicyState(
        policy.name,
        policy.quota if verdict.quota is None else verdict.quota,
        policy.window,
        verdict.remaining,
        (now_ms + verdict.reset_ms) / 1000,
        verdict.allowed,
        (wait or 0) / 1000 if known else None,
        wait is None,
    )
