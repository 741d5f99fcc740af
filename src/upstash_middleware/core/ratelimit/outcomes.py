"""From asks to charges, and from what the script answers to decisions; values only."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from upstash_middleware.core.ratelimit.decision import Decision, PolicyState, decided
from upstash_middleware.core.ratelimit.limits import Concurrency
from upstash_middleware.core.ratelimit.local import share_of
from upstash_middleware.core.ratelimit.script import Charge, Verdict
from upstash_middleware.core.ratelimit.settling import Taken
from upstash_middleware.values import replace, value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from upstash_middleware.core.ratelimit.asking import Ask, Settled
    from upstash_middleware.core.ratelimit.compiled import Policy


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
    rest = iter(verdicts)
    own = [list(islice(rest, len(ask.rule.policies))) for ask in asks]
    decisions = [_decision(ask, its, now_ms) for ask, its in zip(asks, own, strict=True)]
    together = all(one.allowed for one in decisions if not one.shadow)
    outcomes = []
    for ask, its, decision in zip(asks, own, decisions, strict=True):
        takes = decision.allowed if decision.shadow else together
        outcomes.append(Outcome(decision, _taken(ask, its) if takes else None))
    return outcomes


def _taken(ask: Ask, verdicts: Sequence[Verdict]) -> Taken:
    return Taken(ask, tuple([verdict.where for verdict in verdicts]))


def _decision(ask: Ask, verdicts: Sequence[Verdict], now_ms: int) -> Decision:
    pairs = zip(ask.rule.policies, verdicts, strict=True)
    policies = tuple([_state(policy, verdict, now_ms) for policy, verdict in pairs])
    return stamped(ask, decided(ask.rule.rule.name, ask.identifier, policies))


def stamped(ask: Ask, decision: Decision) -> Decision:
    return replace(decision, shadow=True) if ask.rule.rule.shadow else decision


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
    unknown = isinstance(policy.limit, Concurrency) or verdict.retry_ms is None
    return PolicyState(
        name=policy.name,
        limit=policy.quota if verdict.quota is None else verdict.quota,
        window=policy.window,
        remaining=verdict.remaining,
        reset=(now_ms + verdict.reset_ms) / 1000,
        allowed=verdict.allowed,
        retry_after=None if verdict.allowed or unknown else (verdict.retry_ms or 0) / 1000,
        never=verdict.retry_ms is None,
    )
