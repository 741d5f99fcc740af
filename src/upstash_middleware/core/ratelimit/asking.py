"""What a request asks of the rate limit: which rules cover it, whose quota, and how much of it.

The application's own functions are called here, and here alone; when one raises, an event tells
of it and the rule's policy decides. Nothing here asks Upstash.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, cast

from upstash_middleware.core.effects import call
from upstash_middleware.core.identify import Identifier, key_text, peer_address
from upstash_middleware.core.identify.several import identified
from upstash_middleware.core.ratelimit.compiled import CompiledRule, tier_of
from upstash_middleware.core.ratelimit.limits import MAX_QUOTA
from upstash_middleware.events import UserCodeFailed
from upstash_middleware.values import field, value

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from upstash_middleware.core.ratelimit.advising import Advising
    from upstash_middleware.core.ratelimit.memory import Asked
    from upstash_middleware.core.ratelimit.rule_values import Predicate, Tiers
    from upstash_middleware.events import Observer
    from upstash_middleware.messages import Request

Match = Literal["first", "all"]
MOST_TIERS = 256


@value(frozen=True, slots=True)
class Ask:
    """May this identifier take this much under this rule?"""

    rule: CompiledRule
    identifier: str
    base: str
    """What the keys begin with: ``PREFIX:RULE:IDENTIFIER``."""
    cost: int
    token: int = 0
    """What a slot is taken under, where the rule limits how many are in flight."""

    @property
    def asked(self) -> Asked:
        """What makes two asks the same question."""
        return (self.base, self.cost, self.rule.tier)


@value(frozen=True, slots=True)
class Settled:
    """A rule that decides without asking: its policy, its deny list, its challenge."""

    rule: CompiledRule
    identifier: str
    by: str


class BrokenError(Exception):
    """Code of the application's has raised, and an event tells of it."""


@value(frozen=True, slots=True)
class Asking:
    """Finds out what requests ask, by rules in their order."""

    rules: tuple[CompiledRule, ...]
    match: Match
    secret: Callable[[], bytes]
    observe: Observer
    advising: Advising
    random: Callable[[], int]
    tiers: dict[tuple[str, Any], CompiledRule] = field(default_factory=dict)
    """Rules with limits that functions have answered, by where they were set and the answer."""

    async def asks(self, request: Request) -> list[Ask | Settled]:
        """Return what is asked about a request, nothing if it is exempt. A flow."""
        asks: list[Ask | Settled] = []
        covered = False
        for rule in self.rules:
            if not rule.covers(request) or (rule.is_default and covered):
                continue
            try:
                if rule.rule.when is not None and not await self._wanted(rule, request):
                    continue
                tier = await self._tier(rule, request) if rule.is_tiered else rule
                if tier.rule.parsed is None:
                    return []
                ask = await self._ask(tier, request)
            except BrokenError:
                ask = Settled(rule, "", rule.rule.on_error)
            if ask is not None and not (asks and _is_asked(ask, asks)):
                asks.append(ask)
            covered = covered or not rule.rule.shadow
            if covered and self.match == "first":
                break
        return asks

    async def _ask(self, rule: CompiledRule, request: Request) -> Ask | Settled | None:
        identifier = await self._identifier(rule, request)
        if identifier is None:
            return Settled(rule, "", "challenge")
        text = key_text(identifier, self.secret)
        if rule.has_lists:
            if identifier in rule.rule.denied:
                return Settled(rule, text, "deny list")
            if identifier in rule.rule.allowed:
                return None
        cost = rule.rule.cost
        if not isinstance(cost, int):
            try:
                cost = await self._cost(rule, cost, request)
            except BrokenError:
                return Settled(rule, text, rule.rule.on_error)
        token = self.random() if rule.has_slots else 0
        base = rule.base + text if rule.rule.shared_prefix is None else rule.key_base(text)
        return Ask(rule, text, base, cost, token) if cost else None

    async def _wanted(self, rule: CompiledRule, request: Request) -> bool:
        try:
            return bool(await call(cast("Predicate", rule.rule.when), request))
        except Exception as error:
            raise self.broken(rule, "when", error) from error

    async def _tier(self, rule: CompiledRule, request: Request) -> CompiledRule:
        """Return the rule with the limits that its function answers."""
        try:
            answer = await call(cast("Tiers", rule.rule.parsed).of, request)
            limits = tuple(answer) if isinstance(answer, list) else answer
            return self._known_tier(rule, limits)
        except Exception as error:
            raise self.broken(rule, "limits", error) from error

    def _known_tier(self, rule: CompiledRule, limits: Any) -> CompiledRule:
        key = (rule.setting, limits)
        tier = self.tiers.get(key)
        if tier is None:
            tier = tier_of(rule, limits)
            if len(self.tiers) >= MOST_TIERS:
                self.tiers.clear()
            self.tiers[key] = tier
        return tier

    async def _cost(self, rule: CompiledRule, of: Callable[..., Any], request: Request) -> int:
        try:
            return checked_cost(await call(of, request))
        except Exception as error:
            raise self.broken(rule, "cost", error) from error

    async def _identifier(self, rule: CompiledRule, request: Request) -> Identifier | None:
        """Find whose quota it is, at last the peer's; never one that strangers share.

        None where the rule demands that its extractor finds somebody.
        """
        found: Identifier | None = None
        by: Any = rule.rule.by
        try:
            if rule.asks_finder:
                found = await by.find(request)
            else:
                answer = by(request)
                # An Identifier, as the package's own extractors answer, needs no looking at.
                found = answer if type(answer) is Identifier else await identified(answer)
        except Exception as error:  # noqa: BLE001 - whatever the application's function raises
            self.broken(rule, "by", error)
        if found is not None:
            self.advising.look(rule, found, request)
            return found
        if rule.rule.challenge is not None:
            return None
        found = peer_address(request)
        if found is None:
            missing = LookupError(
                "nothing tells this request's client from others: the server gives no peer "
                "address, as behind a Unix socket; say who does, for instance "
                "client_ip(trusted_hops=1)"
            )
            raise self.broken(rule, "by", missing)
        return found

    def broken(self, rule: CompiledRule, part: str, error: Exception) -> BrokenError:
        """Tell of a failure of the application's code, and return what to raise."""
        self.observe(UserCodeFailed(f"{rule.setting}.{part}", error))
        return BrokenError()


def longest_deadline(asks: Sequence[Ask], default: float) -> float:
    """Return the seconds that one call about all of these may take."""
    return max([ask.rule.rule.deadline or default for ask in asks], default=default)


def _is_asked(ask: Ask | Settled, asks: list[Ask | Settled]) -> bool:
    """Whether a rule that shares its bucket with this one is asked already."""
    return isinstance(ask, Ask) and any(
        isinstance(other, Ask) and other.base == ask.base and not other.rule.rule.shadow
        for other in asks
    )


def checked_cost(cost: object) -> int:
    """Return what a function of the application's gave as a cost; raises ValueError."""
    if isinstance(cost, bool) or not isinstance(cost, int) or not 0 <= cost <= MAX_QUOTA:
        raise ValueError(f"a cost should be a whole number from 0, not {cost!r}")
    return cost
