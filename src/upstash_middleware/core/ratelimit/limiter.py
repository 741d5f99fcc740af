"""The rate limit's half of the engine: what Upstash says to what a request asks.

Everything is one flow with one pipeline. What algorithms, keys, fields and bodies are is
elsewhere; here is what happens in which order, and when any of it fails.
"""

from __future__ import annotations

from os import urandom
from typing import TYPE_CHECKING, cast

from upstash_middleware.core.effects import Pipeline, together
from upstash_middleware.core.ratelimit.advising import Advising
from upstash_middleware.core.ratelimit.asking import Ask, Asking, Match, Settled, longest_deadline
from upstash_middleware.core.ratelimit.compiled import compile_rules
from upstash_middleware.core.ratelimit.decision import combined, decided, later
from upstash_middleware.core.ratelimit.denial import denial
from upstash_middleware.core.ratelimit.exchange import RateLimitExchange
from upstash_middleware.core.ratelimit.limits import MAX_QUOTA
from upstash_middleware.core.ratelimit.local import LocalCounters
from upstash_middleware.core.ratelimit.memory import Denials
from upstash_middleware.core.ratelimit.outcomes import (
    Outcome,
    charges_for,
    outcomes_of,
    settled_outcome,
)
from upstash_middleware.core.ratelimit.script import charge_command, read_verdicts
from upstash_middleware.core.ratelimit.server_clock import TIME, ServerClock
from upstash_middleware.core.ratelimit.settling import Settling
from upstash_middleware.errors import CommandError, UpstashError
from upstash_middleware.events import (
    RateLimitDecided,
    SettingDoubted,
    UpstashAnswered,
    UpstashFailed,
    hears,
)
from upstash_middleware.values import dataclass, field, replace

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from upstash_middleware.core.clock import Clock
    from upstash_middleware.core.effects import Flow
    from upstash_middleware.core.identify import Identifier
    from upstash_middleware.core.ratelimit.analytics import Analytics, Counts
    from upstash_middleware.core.ratelimit.compiled import CompiledRule
    from upstash_middleware.core.ratelimit.decision import Decision
    from upstash_middleware.core.ratelimit.deny_list import DenyList
    from upstash_middleware.core.ratelimit.inspecting import Explanation, Inspecting
    from upstash_middleware.core.ratelimit.rules import RateLimitRule, SdkLimiter
    from upstash_middleware.core.ratelimit.settling import Taken
    from upstash_middleware.events import Observer
    from upstash_middleware.messages import Request

_DURING = "rate limit"
_ANSWERED = UpstashAnswered(_DURING)


def _token() -> int:
    return int.from_bytes(urandom(8), "big") % MAX_QUOTA + 1


@dataclass(frozen=True)
class RateLimiter:
    """Decides about requests by rules; implements ``core.exchange.Half``.

    ``rules`` match in order; the first one that covers a request decides, or, with ``match`` set
    to ``"all"``, all that cover it, and then all or none is taken. ``default`` is for every
    request that no rule covers; None leaves those unlimited. ``secret`` answers the key under
    which credentials are hashed; it is asked when the first is. ``deadline`` is in seconds, for
    the whole call; so is ``remember_denials``, for how long a denial is remembered at most.
    ``deny_list`` and ``analytics`` are prefixes of the JavaScript SDK, ``"@upstash/ratelimit"``
    by its default: its deny list is obeyed, the dashboard of Upstash's console shows this traffic.
    ``random`` answers whole numbers from 1 that are unlike each other.
    Making one needs neither credentials nor network. Raises ConfigurationError.
    """

    rules: tuple[RateLimitRule, ...]
    default: RateLimitRule | None
    prefix: str = field(kw_only=True)
    secret: Callable[[], bytes] = field(kw_only=True, repr=False)
    clock: Clock = field(kw_only=True, repr=False)
    observe: Observer = field(kw_only=True, repr=False)
    deadline: float = field(default=1.0, kw_only=True)
    match: Match = field(default="first", kw_only=True)
    remember_denials: float = field(default=60.0, kw_only=True)
    deny_list: str | None = field(default=None, kw_only=True)
    analytics: str | None = field(default=None, kw_only=True)
    random: Callable[[], int] = field(default=_token, kw_only=True, repr=False)
    _asking: Asking = field(init=False, repr=False)
    _time: ServerClock = field(init=False, repr=False)
    _denials: Denials = field(init=False, repr=False)
    _local: LocalCounters = field(init=False, repr=False)
    _settling: Settling = field(init=False, repr=False)
    _listed: DenyList | None = field(init=False, repr=False)
    _analytics: Analytics | None = field(init=False, repr=False)
    _asks_alone: bool = field(init=False, repr=False)
    """Whether a question about one rule is all that a request sends."""
    _tells: bool = field(init=False, repr=False)
    """Whether anybody wants to know of every decision."""

    def __post_init__(self) -> None:
        rules = compile_rules(tuple(self.rules), self.default, self.prefix)
        time, advising = ServerClock(self.clock), Advising(self.observe)
        asking = Asking(rules, self.match, self.secret, self.observe, advising, self.random)
        for name, value in (
            ("_asking", asking),
            ("_time", time),
            ("_denials", Denials(time, self.remember_denials)),
            ("_local", LocalCounters()),
            ("_settling", Settling(time, self.observe, self.deadline)),
            ("_listed", _deny_list(self.deny_list, time, rules) if self.deny_list else None),
            ("_analytics", _analytics(self.analytics, time) if self.analytics else None),
            ("_asks_alone", not (self.deny_list or self.analytics)),
            ("_tells", bool(self.analytics) or hears(self.observe, RateLimitDecided)),
        ):
            object.__setattr__(self, name, value)

    async def begin(self, request: Request) -> RateLimitExchange:
        """Decide about a request. A flow; it never raises an UpstashError."""
        asks = await self._asking.asks(request)
        known = self._known(asks, request)
        if known and any(one.decision.stops for one in known.values()):
            outcomes = list(known.values())
        else:
            outcomes = await self._outcomes(asks, known, request)
        enforced: list[Decision] = []
        taken: list[Taken] = []
        for outcome in outcomes:
            if self._tells:
                self._tell(outcome.decision, request)
            if not outcome.decision.shadow:
                enforced.append(outcome.decision)
            if outcome.taken is not None:
                taken.append(outcome.taken)
        if not enforced:
            return RateLimitExchange(request, self._settling, taken=taken)
        decision = enforced[0] if len(enforced) == 1 else combined(enforced)
        if decision.allowed:
            return RateLimitExchange(request, self._settling, decision, taken)
        decision = self._spread(decision, asks)
        # A shadow goes on counting what another rule denied; slots it holds for nobody.
        taken = [one for one in taken if one.ask.rule.has_slots or not one.ask.rule.rule.shadow]
        response = denial(request, decision, self._time.now())
        return RateLimitExchange(request, self._settling, decision, taken, response)

    async def explain(self, request: Request) -> tuple[Explanation, ...]:
        """Tell what would be decided about a request, by which rules and keys; take nothing.

        A flow. What this process remembers is left aside, and so is whom lists let through or
        turn away without asking. Raises UpstashError.
        """
        asks = [ask for ask in await self._asking.asks(request) if isinstance(ask, Ask)]
        return await self._inspecting().explain(asks)

    async def peek(self, request: Request) -> Decision | None:
        """Tell what ``begin`` would decide; take nothing. A flow. Raises UpstashError.

        None where no rule that limits with this package's own limits covers the request.
        """
        decisions = [one.decision for one in await self.explain(request) if not one.shadow]
        return combined(decisions) if decisions else None

    async def look(self, rule: str, identifier: str | Identifier, cost: int = 1) -> Explanation:
        """Tell what a rule, named as in decisions, would say to an identifier; take nothing.

        A flow. Raises UpstashError, and ValueError for a rule that there is not.
        """
        return await self._inspecting().look(rule, identifier, cost, self.random())

    async def reset(self, rule: str, identifier: str | Identifier) -> None:
        """Give an identifier its whole quota of a rule, named as in decisions and events.

        A flow. Other processes that remember a denial notice within ``remember_denials``.
        Raises UpstashError, and ValueError for a rule that there is not.
        """
        base = await self._inspecting().reset(rule, identifier)
        self._denials.forget(base)

    async def set_limit(self, rule: str, limit: int | None) -> None:
        """Set what a dynamic rule allows, in all processes; None gives it back its own limit.

        A flow. Counters stay, and remembered denials hold on for ``remember_denials`` at most.
        Raises UpstashError, and ValueError for a rule that is not dynamic.
        """
        await self._inspecting().set_limit(rule, limit)

    async def flush(self) -> None:
        """Send what analytics have been collected, as at shutdown. A flow."""
        if self._analytics is not None:
            due = self._analytics.take_due(at_once=True)
            if due:
                await self._send_analytics(self._analytics, due, self.deadline)

    def _inspecting(self) -> Inspecting:
        from upstash_middleware.core.ratelimit.inspecting import Inspecting  # noqa: PLC0415

        return Inspecting(self._asking.rules, self._time, self.secret, self.deadline)

    def _spread(self, decision: Decision, asks: Sequence[Ask | Settled]) -> Decision:
        """Put off a denied client by a part of the rule's jitter, so that not all come at once."""
        jitter = 0.0
        for ask in asks:
            if ask.rule.rule.name == decision.rule:
                jitter = max(jitter, ask.rule.rule.jitter)
        return later(decision, self.random() % round(jitter * 1000 + 1)) if jitter else decision

    def _tell(self, decision: Decision, request: Request) -> None:
        self.observe(
            RateLimitDecided(
                decision.rule,
                decision.identifier,
                decision.allowed,
                decision.remaining or 0,
                decision.retry_after,
                decision.settled_by,
                decision.shadow,
                request,
            )
        )
        counted = not decision.shadow and decision.settled_by not in {"open", "closed"}
        if counted and self._analytics is not None:
            self._analytics.count(decision)

    def _outcomes(
        self, asks: Sequence[Ask | Settled], known: dict[str, Outcome], request: Request
    ) -> Flow[list[Outcome]]:
        """Return a flow for what came of each rule, in order."""
        if self._asks_alone and not known and len(asks) == 1 and asks[0].rule.policies:
            own: Sequence[Ask] = asks  # type: ignore[assignment] # what is settled is known
            return self._ask_own(own, longest_deadline(own, self.deadline))
        return self._joined_outcomes(asks, known, request)

    async def _joined_outcomes(
        self, asks: Sequence[Ask | Settled], known: dict[str, Outcome], request: Request
    ) -> list[Outcome]:
        open_asks: Sequence[Ask] = asks  # type: ignore[assignment]
        if known:  # as it is of what is settled
            open_asks = [ask for ask in open_asks if ask.rule.rule.name not in known]
        deadline = longest_deadline(open_asks, self.deadline)
        flows = [self._ask_sdk(ask, deadline) for ask in open_asks if not ask.rule.policies]
        if own := [ask for ask in open_asks if ask.rule.policies]:
            flows.append(self._ask_own(own, deadline))
        if flows and self._listed is not None:
            flows.append(self._ask_deny_list(self._listed, open_asks, request, deadline))
        if flows and self._analytics is not None and (due := self._analytics.take_due()):
            flows.append(self._send_analytics(self._analytics, due, deadline))
        if len(flows) == 1 and not known:
            return await flows[0]
        answers = await together(*flows)
        found = known
        for one in (one for answer in answers for one in answer):
            before = found.get(one.decision.rule)
            # What a deny list overrules was taken all the same.
            found[one.decision.rule] = one if before is None else replace(one, taken=before.taken)
        return [found[ask.rule.rule.name] for ask in asks]

    def _known(self, asks: Sequence[Ask | Settled], request: Request) -> dict[str, Outcome]:
        """Return what is known of rules, by their names, without asking Upstash."""
        known: dict[str, Outcome] = {}
        listed = self._listed
        for ask in asks:
            if listed is not None and listed.known(listed.members([ask], request)):
                known[ask.rule.rule.name] = _listed(ask)
            elif isinstance(ask, Settled):
                known[ask.rule.rule.name] = settled_outcome(ask)
            elif remembered := self._denials.recall(ask.asked):
                known[ask.rule.rule.name] = Outcome(remembered)
        return known

    async def _ask_own(self, asks: Sequence[Ask], deadline: float) -> list[Outcome]:
        """Ask about the limits of this package, all in one call of the script."""
        now_ms = self._time.now_ms()
        charges = charges_for(asks)
        command = charge_command(charges, now_ms)
        sent = self._time.sent() if self._time.asks() else None
        commands = (command,) if sent is None else (command, TIME)
        try:
            replies = await Pipeline(commands, deadline)
            if sent is not None:
                self._time.learn(replies[1], sent)
            verdicts = read_verdicts(replies[0], charges)
        except UpstashError as error:
            self.observe(UpstashFailed(_DURING, error))
            return self._decide_without(asks, now_ms)
        except GeneratorExit:  # nobody drives this any more
            raise
        except BaseException:  # interrupted: it may have been carried out all the same
            await self._settling.give_back_slots(asks)
            raise
        self.observe(_ANSWERED)
        outcomes = outcomes_of(asks, verdicts, now_ms)
        for ask, outcome in zip(asks, outcomes, strict=True):
            if not outcome.decision.allowed and not ask.rule.has_slots:
                self._denials.remember(ask.asked, outcome.decision, now_ms)
        return outcomes

    async def _ask_deny_list(
        self, listed: DenyList, asks: Sequence[Ask], request: Request, deadline: float
    ) -> list[Outcome]:
        """Ask the deny list on Redis; if it names the request, that overrules all rules."""
        members = listed.members(asks, request)
        try:
            (reply,) = await Pipeline((listed.command(members),), deadline)
        except UpstashError:
            return []  # the limits travelled along, and tell of it
        if isinstance(reply, CommandError):
            if listed.is_first_failure():
                self.observe(SettingDoubted("deny_list", f"it stops nobody: {reply}"))
            return []
        return [_listed(ask) for ask in asks] if listed.learn(members, reply) else []

    async def _send_analytics(
        self, analytics: Analytics, counts: Counts, deadline: float
    ) -> list[Outcome]:
        """Send counts; those of a call that failed are sent with a later one."""
        try:
            await Pipeline(analytics.commands(counts), deadline)
        except UpstashError:
            analytics.give_back(counts)
        return []

    async def _ask_sdk(self, ask: Ask, deadline: float) -> list[Outcome]:
        """Ask a limiter of upstash_ratelimit."""
        from upstash_middleware.core.ratelimit.sdk import sdk_policy  # noqa: PLC0415

        limiter = cast("SdkLimiter", ask.rule.rule.parsed)  # as a rule without policies has one
        name, now = ask.rule.rule.name, self._time.now()
        try:
            policy = await sdk_policy(limiter, name, (ask.base, ask.cost), now, deadline)
        except UpstashError as error:
            self.observe(UpstashFailed(_DURING, error))
        except Exception as error:  # noqa: BLE001 - the limiter may be the application's own
            self._asking.broken(ask.rule, "limits", error)
        else:
            self.observe(_ANSWERED)
            shadow = ask.rule.rule.shadow
            return [Outcome(decided(name, ask.identifier, (policy,), shadow=shadow))]
        return [settled_outcome(Settled(ask.rule, ask.identifier, ask.rule.rule.on_error))]

    def _decide_without(self, asks: Sequence[Ask], now_ms: int) -> list[Outcome]:
        """Settle each rule by its policy; those that count locally do so all or none."""
        local = [ask for ask in asks if ask.rule.rule.on_error == "local"]
        verdicts = self._local.decide(charges_for(local, local=True), now_ms)
        counted = {
            outcome.decision.rule: Outcome(replace(outcome.decision, settled_by="local"))
            for outcome in outcomes_of(local, verdicts, now_ms)
        }
        return [
            counted.get(ask.rule.rule.name)
            or settled_outcome(Settled(ask.rule, ask.identifier, ask.rule.rule.on_error))
            for ask in asks
        ]


# What follows is loaded where it is used: most applications want neither.
def _deny_list(prefix: str, time: ServerClock, rules: Sequence[CompiledRule]) -> DenyList:
    from upstash_middleware.core.ratelimit.deny_list import DenyList, address_for  # noqa: PLC0415

    return DenyList(prefix, time, address_for(rule.rule.by for rule in rules))


def _analytics(prefix: str, time: ServerClock) -> Analytics:
    from upstash_middleware.core.ratelimit.analytics import Analytics  # noqa: PLC0415

    return Analytics(prefix, time)


def _listed(ask: Ask | Settled) -> Outcome:
    return settled_outcome(Settled(ask.rule, ask.identifier, "deny list"))
