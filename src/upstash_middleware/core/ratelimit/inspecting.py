"""Looking without taking, and giving back all: for people who ask why a request was denied."""

from __future__ import annotations

from typing import TYPE_CHECKING

from upstash_middleware.core.effects import Command, Pipeline
from upstash_middleware.core.identify import Identifier, key_text
from upstash_middleware.core.ratelimit.asking import Ask
from upstash_middleware.core.ratelimit.keys import limit_keys
from upstash_middleware.core.ratelimit.limits import MAX_QUOTA
from upstash_middleware.core.ratelimit.outcomes import charges_for, outcomes_of
from upstash_middleware.core.ratelimit.script import charge_command, read_verdicts
from upstash_middleware.errors import CommandError
from upstash_middleware.values import dataclass

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from upstash_middleware.core.effects import Reply
    from upstash_middleware.core.ratelimit.compiled import CompiledRule
    from upstash_middleware.core.ratelimit.decision import Decision
    from upstash_middleware.core.ratelimit.server_clock import ServerClock


@dataclass(frozen=True, slots=True)
class Explanation:
    """What one rule would say to a request."""

    rule: str
    setting: str
    """Where the rule was set: ``rate_limits[0]``."""
    identifier: str
    cost: int
    keys: tuple[str, ...]
    """Where its counters are on Redis at this time."""
    shadow: bool
    decision: Decision


@dataclass(frozen=True, slots=True)
class Inspecting:
    """Asks Upstash about limits without taking from them; ``deadline`` is in seconds."""

    rules: tuple[CompiledRule, ...]
    time: ServerClock
    secret: Callable[[], bytes]
    deadline: float

    async def explain(self, asks: Sequence[Ask]) -> tuple[Explanation, ...]:
        """Tell what would be decided, for the rules with limits of this package. A flow."""
        own = [ask for ask in asks if ask.rule.policies]
        if not own:
            return ()
        now_ms, charges = self.time.now_ms(), charges_for(own)
        reply = await self._send(charge_command(charges, now_ms, peek=True))
        outcomes = outcomes_of(own, read_verdicts(reply, charges), now_ms)
        return tuple(
            Explanation(
                rule=ask.rule.rule.name,
                setting=ask.rule.setting,
                identifier=ask.identifier,
                cost=ask.cost,
                keys=_keys(ask.rule, ask.base, now_ms),
                shadow=ask.rule.rule.shadow,
                decision=outcome.decision,
            )
            for ask, outcome in zip(own, outcomes, strict=True)
        )

    async def look(
        self, name: str, identifier: str | Identifier, cost: int, token: int
    ) -> Explanation:
        """Tell what a rule would say to an identifier. A flow."""
        rule, text = self._rule(name), self._text(identifier)
        (told,) = await self.explain([Ask(rule, text, rule.key_base(text), cost, token)])
        return told

    async def reset(self, name: str, identifier: str | Identifier) -> str:
        """Delete an identifier's counters of a rule; return what its keys begin with. A flow."""
        rule = self._rule(name)
        base = rule.key_base(self._text(identifier))
        await self._send(Command(("DEL", *_keys(rule, base, self.time.now_ms()))))
        return base

    async def set_limit(self, name: str, limit: int | None) -> None:
        """Set what a dynamic rule allows, everywhere; None gives it back its own. A flow."""
        rule = self._rule(name)
        if rule.changed_at is None:
            raise ValueError(f"rule {name!r} is not dynamic; set dynamic=True where it is made")
        given: object = limit
        if given is None:
            await self._send(Command(("DEL", rule.changed_at)))
            return
        if isinstance(given, bool) or not isinstance(given, int) or not 0 <= given <= MAX_QUOTA:
            raise ValueError(f"limit={limit!r} should be a whole number from 0, or None")
        await self._send(Command(("SET", rule.changed_at, given)))

    def _text(self, identifier: str | Identifier) -> str:
        if isinstance(identifier, Identifier):
            return key_text(identifier, self.secret)
        return identifier

    async def _send(self, command: Command) -> Reply:
        (reply,) = await Pipeline((command,), self.deadline)
        if isinstance(reply, CommandError):
            raise reply
        return reply

    def _rule(self, name: str) -> CompiledRule:
        known = {rule.rule.name: rule for rule in self.rules if rule.policies}
        if name not in known:
            raise ValueError(
                f"no rule with limits of this package is called {name!r}; there are: "
                + (", ".join(map(repr, known)) or "none")
            )
        return known[name]


def _keys(rule: CompiledRule, base: str, now_ms: int) -> tuple[str, ...]:
    return tuple(key for policy in rule.policies for key in limit_keys(base, policy.limit, now_ms))
