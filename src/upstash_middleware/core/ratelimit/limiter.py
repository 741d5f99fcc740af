"""The rate limit: prepares a script call for a request, and turns its reply into a decision."""

from __future__ import annotations

from os import urandom
from typing import TYPE_CHECKING, cast

from msgspec import Struct
from msgspec.structs import replace

from upstash_middleware.core.flow import Command, Pipeline, together
from upstash_middleware.core.identify import Identifier, client_ip, key_text, peer_address
from upstash_middleware.core.patterns import Unmatched, other_readings
from upstash_middleware.core.ratelimit.algorithms.limit import MAX_QUOTA
from upstash_middleware.core.ratelimit.charging import (
    Charging,
    Match,
    RuleCharge,
    decide,
    limit_charges,
    longest_deadline,
)
from upstash_middleware.core.ratelimit.compiled import compile_rules, uncertain_bases
from upstash_middleware.core.ratelimit.decision import (
    Decision,
    combined,
    decided,
    denial,
)
from upstash_middleware.core.ratelimit.exchange import RateLimitExchange, Settler
from upstash_middleware.core.ratelimit.memory import TIME, Denials, ServerClock
from upstash_middleware.core.ratelimit.script import (
    LocalCounters,
    charge_command,
    limit_script,
    read_scripts,
    read_verdicts,
    script_command,
)
from upstash_middleware.errors import CommandError, UpstashError
from upstash_middleware.events import (
    RateLimitDecided,
    SettingDoubted,
    UpstashAnswered,
    UpstashFailed,
    UserCodeFailed,
    hears,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from upstash_middleware.core.clock import Clock
    from upstash_middleware.core.flow import Argument, Flow, Reply
    from upstash_middleware.core.identify import AnyExtractor
    from upstash_middleware.core.ratelimit.compiled import CompiledRule
    from upstash_middleware.core.ratelimit.dashboard import Analytics, Counts, DenyList
    from upstash_middleware.core.ratelimit.rules import RateLimitRule, SdkLimiter
    from upstash_middleware.events import Observer
    from upstash_middleware.messages import HTTPRequest

_DURING = "rate limit"
_ANSWERED = UpstashAnswered(_DURING)


class Explanation(Struct, frozen=True):
    """What one rule would decide about a request."""

    rule: str
    setting: str
    """Where the rule was set: ``rate_limits[0]``."""
    identifier: str
    cost: int
    keys: tuple[str, ...]
    """The keys of its counters on Redis at this time."""
    shadow: bool
    decision: Decision


class _Call(Struct):
    """A script call to be sent, and the charges that it takes."""

    charges: list[RuleCharge]
    now_ms: int
    pipeline: Pipeline
    time_sent: float | None
    """When the TIME in the same pipeline was sent; None without one."""
    forgotten: int
    """How many denials had been forgotten: a refund since then makes a denial uncertain."""


def _token() -> int:
    return int.from_bytes(urandom(8), "big") % MAX_QUOTA + 1


def _refuse(flow: Flow[None]) -> None:
    flow.close()
    raise RuntimeError("charge: the response has been sent and its cost is settled; charge before")


class RateLimiter:
    """Decides about requests by rules; implements ``core.engine.Part``.

    Creating one needs neither credentials nor network.

    Args:
        rules: Match in order; the first one that covers a request decides.
        default: For every request that no rule covers; None leaves those unlimited.
        prefix: What keys begin with.
        secret: Returns the key under which credentials are hashed; called when first needed.
        clock: This machine's clock.
        observe: Gets events.
        deadline: Seconds for the whole call to Upstash.
        match: With ``"all"``, all rules that cover a request decide, and all or none is taken.
        remember_denials: Seconds for which a denial is remembered at most.
        denials: Remembers them where several limiters may count in the same keys.
        deny_list: A prefix of the JavaScript SDK, ``"@upstash/ratelimit"`` by its default, whose
            deny list is obeyed.
        analytics: Such a prefix for the analytics of the dashboard in Upstash's console.
        at_handler: Whether the rules are in front of a handler, where preflights count as well.
        random: Returns a random whole number from 1, which identifies a slot.
        also: Extractors of other rules of the application, which may configure its proxies.
        perform: Drives a flow that nothing waits for: a charge after the request is settled.

    Raises:
        ConfigurationError: Two rules have one name, or the default does not cover all requests.
    """

    def __init__(  # noqa: PLR0913
        self,
        rules: Sequence[RateLimitRule],
        default: RateLimitRule | None,
        *,
        prefix: str,
        secret: Callable[[], bytes],
        clock: Clock,
        observe: Observer,
        deadline: float = 1.0,
        match: Match = "first",
        remember_denials: float = 60.0,
        denials: Denials | None = None,
        deny_list: str | None = None,
        analytics: str | None = None,
        at_handler: bool = False,
        random: Callable[[], int] = _token,
        also: Sequence[AnyExtractor] = (),
        perform: Callable[[Flow[None]], object] = _refuse,
    ) -> None:
        read_scripts()
        self._rules = compile_rules(tuple(rules), default, prefix, also, at_handler=at_handler)
        self._by_name = {rule.rule.name: rule for rule in self._rules if rule.policies}
        self._clock = clock
        self._secret = secret
        self._observe = observe
        self._deadline = deadline
        self._match: Match = match
        self._random = random
        self._perform = perform
        self._denials = denials or Denials(remember_denials)
        self._deny_list_prefix = deny_list
        self._analytics_prefix = analytics
        self._needs_more = bool(deny_list or analytics)
        """Whether requests need more than a script call."""
        self._emits = bool(analytics) or hears(observe, RateLimitDecided)
        self._start()

    def forget(self) -> None:
        """Start again, with no remembered denials, local counts, server time or analytics."""
        self._denials.clear()
        self._start()

    def _start(self) -> None:
        self._time = ServerClock(self._clock)
        self._local = LocalCounters()
        self._settler = Settler(
            self._time, self._observe, self._deadline, self._denials, self._perform
        )
        paths = {rule.setting: rule.rule.path for rule in self._rules if rule.rule.path is not None}
        self._unmatched = Unmatched(paths, self._observe)
        self._charging = Charging(
            self._rules, self._match, self._secret, self._observe, self._random, self._unmatched
        )
        self._deny_list: DenyList | None = None
        self._analytics: Analytics | None = None
        if self._needs_more:
            self._use_dashboard()
        for base in uncertain_bases(self._rules):
            self._denials.mark_uncertain(base)

    def _use_dashboard(self) -> None:
        from upstash_middleware.core.ratelimit.dashboard import Analytics, DenyList  # noqa: PLC0415

        if self._deny_list_prefix:
            known = (rule.address for rule in self._rules if rule.address is not None)
            address = next(known, client_ip())
            self._deny_list = DenyList(self._deny_list_prefix, self._time, address)
        if self._analytics_prefix:
            self._analytics = Analytics(self._analytics_prefix, self._time)

    async def begin(self, request: HTTPRequest) -> RateLimitExchange:
        """Decide about a request. A flow; it never raises an UpstashError."""
        if self._unmatched.left:
            self._unmatched.count()
        try:
            call = None if self._needs_more else self._prepare(request)
        except Exception:  # noqa: BLE001 - the flow for unusual requests reports it
            call = None
        if call is None:
            return await self._begin_unusual(request)
        if isinstance(call, RateLimitExchange):
            return call
        try:
            replies = await call.pipeline
        except UpstashError as error:
            self._fail(call, error)
        else:
            self._receive(call, replies)
        return self._exchange(request, call.charges)

    def _prepare(self, request: HTTPRequest) -> _Call | RateLimitExchange | None:
        """Prepare the script call for a request of the usual kind; None for one that needs more."""
        charges = self._simple_charges(request)
        if charges is None:
            return None
        if not charges:
            return RateLimitExchange(request, self._settler)
        bases = self._denials.bases
        if known := [each for each in charges if each.base in bases and self._recall(each)]:
            return self._exchange(request, known)
        now_ms, deadline = self._time.now_ms(), 0.0
        keys: list[Argument] = []
        arguments: list[Argument] = [str(now_ms), "take"]
        for charge in charges:
            rule = charge.rule
            deadline = max(deadline, cast("float", rule.rule.deadline or self._deadline))
            for policy in rule.policies:
                keys += policy.limit.keys(charge.base, now_ms)
                arguments += policy.words
            if rule.changed_at is not None:
                keys.append(rule.changed_at)
        command = script_command(limit_script(), keys, arguments)
        return self._call(charges, command, now_ms, deadline)

    def _simple_charges(self, request: HTTPRequest) -> list[RuleCharge] | None:
        """Return the charges of a request if all rules that cover it are simple, else None."""
        if other_readings(request.path):
            return None
        charges: list[RuleCharge] = []
        for rule in self._rules:
            if not rule.covers(request) or (rule.is_default and charges):
                continue
            self._unmatched.waiting.pop(rule.setting, None)
            if rule.is_exempt:
                return []
            if rule.simple_by is None:
                return None
            found = rule.simple_by(request)
            if found is not None:
                self._charging.advisor.look(rule, found, request)
            elif (found := rule.client_address(request) or peer_address(request)) is None:
                return None
            text = key_text(found, self._secret)
            charges.append(RuleCharge(rule, text, rule.key_base(text), rule.cost))
            if self._match == "first":
                break
        return charges

    def _recall(self, charge: RuleCharge) -> bool:
        """Decide by a remembered denial, if there is one."""
        charge.decision = self._denials.recall(charge.denial_key, self._time)
        return charge.decision is not None

    def _call(
        self, charges: list[RuleCharge], command: Command, now_ms: int, deadline: float
    ) -> _Call:
        """Return a script call, with a TIME in its pipeline if one is due."""
        forgotten = self._denials.forgotten
        if not self._time.needs_time():
            return _Call(charges, now_ms, Pipeline((command,), deadline), None, forgotten)
        pipeline = Pipeline((command, TIME), deadline)
        return _Call(charges, now_ms, pipeline, self._time.sent(), forgotten)

    def _receive(self, call: _Call, replies: list[Reply]) -> None:
        """Decide by the script's verdicts, and remember denials."""
        charges, denials, now_ms = call.charges, self._denials, call.now_ms
        if call.time_sent is not None:
            self._time.learn(replies[1], call.time_sent)
        try:
            verdicts = read_verdicts(replies[0], sum([len(each.rule.policies) for each in charges]))
        except UpstashError as error:
            self._fail(call, error)
            return
        self._observe(_ANSWERED)
        decide(charges, verdicts, now_ms)
        for charge in charges:
            # It may have been of another cost, tier, or rule of the bucket.
            if charge.where is not None and charge.base in denials.bases:
                denials.forget(charge.base)
        for charge in charges:
            decision = cast("Decision", charge.decision)
            if decision.allowed or charge.rule.has_slots:
                continue
            if call.forgotten == denials.forgotten:
                denials.remember(charge.denial_key, decision, now_ms, self._time, charge.rule.base)

    def _fail(self, call: _Call, error: UpstashError) -> None:
        """Decide by each rule's policy; rules that count locally do so all or none."""
        self._observe(UpstashFailed(_DURING, error))
        local = [each for each in call.charges if each.rule.rule.on_error == "local"]
        self._count_locally(local, call.now_ms)
        for charge in call.charges:
            if charge.decision is None:
                charge.decide_by(charge.rule.rule.on_error)

    def _count_locally(self, charges: list[RuleCharge], now_ms: int) -> None:
        decide(charges, self._local.decide(limit_charges(charges, local=True), now_ms), now_ms)
        for charge in charges:
            charge.decision = replace(cast("Decision", charge.decision), settled_by="local")
            charge.where = None

    def _exchange(self, request: HTTPRequest, charges: Sequence[RuleCharge]) -> RateLimitExchange:
        """Combine the decisions of all rules, and emit each."""
        enforced: list[Decision] = []
        taken: list[RuleCharge] = []
        for charge in charges:
            decision = cast("Decision", charge.decision)
            if self._emits:
                self._emit(decision, request)
            if not decision.shadow:
                enforced.append(decision)
            if charge.where is not None:
                taken.append(charge)
        if not enforced:
            return RateLimitExchange(request, self._settler, taken=taken)
        decision = enforced[0] if len(enforced) == 1 else combined(enforced)
        if decision.allowed:
            return RateLimitExchange(request, self._settler, decision, taken)
        # A shadow rule counts requests that another rule denied too, but needs no slot for them.
        taken = [one for one in taken if one.rule.has_slots or not one.rule.rule.shadow]
        response = denial(request, decision, self._time.now())
        return RateLimitExchange(request, self._settler, decision, taken, response)

    def _emit(self, decision: Decision, request: HTTPRequest) -> None:
        self._observe(
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

    # --------------------------------------------------------------------------------------------
    # Requests that need more: code of the application, slots, lists, analytics, SDK limiters.

    async def _begin_unusual(self, request: HTTPRequest) -> RateLimitExchange:
        charges = await self._charging.charges_for(request)
        for charge in charges:
            if self._is_listed(charge, request):
                charge.decide_by("deny list")
            elif charge.decision is None and charge.local:
                self._count_locally([charge], self._time.now_ms())
            elif charge.decision is None:
                self._recall(charge)
        known = [charge for charge in charges if charge.decision is not None]
        if any(cast("Decision", charge.decision).stops for charge in known):
            return self._exchange(request, known)
        if pending := [charge for charge in charges if charge.decision is None]:
            await self._decide_pending(pending, request)
        return self._exchange(request, charges)

    def _is_listed(self, charge: RuleCharge, request: HTTPRequest) -> bool:
        listed = self._deny_list
        return listed is not None and listed.known(listed.members([charge.identifier], request))

    async def _decide_pending(self, charges: list[RuleCharge], request: HTTPRequest) -> None:
        deadline = longest_deadline(charges, self._deadline)
        flows: list[Flow[object]] = [
            self._call_sdk_limiter(charge, deadline)
            for charge in charges
            if not charge.rule.policies
        ]
        if own := [charge for charge in charges if charge.rule.policies]:
            flows.append(self._take(own, deadline))
        if self._deny_list is not None:
            flows.append(self._look_up(self._deny_list, charges, request, deadline))
        if self._analytics is not None and (due := self._analytics.take_due()):
            flows.append(self._send_analytics(self._analytics, due, deadline))
        if True in await together(
            *flows
        ):  # the deny list overrules the limits; the units were taken
            for charge in charges:
                charge.decide_by("deny list")

    async def _take(self, charges: list[RuleCharge], deadline: float) -> None:
        """Take the charges of this package's limits, all in one call of the script."""
        now_ms = self._time.now_ms()
        command = charge_command(limit_charges(charges), now_ms)
        call = self._call(charges, command, now_ms, deadline)
        try:
            replies = await call.pipeline
        except UpstashError as error:
            self._fail(call, error)
        except GeneratorExit:  # nothing drives this any more
            raise
        except BaseException:  # interrupted: it may have been carried out nevertheless
            await self._settler.release_slots(charges)
            raise
        else:
            self._receive(call, replies)

    async def _call_sdk_limiter(self, charge: RuleCharge, deadline: float) -> None:
        from upstash_middleware.core.ratelimit.sdk import sdk_policy  # noqa: PLC0415

        rule = charge.rule.rule
        limiter = cast("SdkLimiter", rule.parsed)  # as a rule without policies has one
        now = self._time.now()
        try:
            policy = await sdk_policy(limiter, rule.name, charge.base, charge.cost, now, deadline)
        except UpstashError as error:
            self._observe(UpstashFailed(_DURING, error))
        except Exception as error:  # noqa: BLE001 - the limiter may be the application's own
            self._observe(UserCodeFailed(charge.rule.named("limits"), error))
        else:
            self._observe(_ANSWERED)
            charge.decision = decided(rule.name, charge.identifier, (policy,), shadow=rule.shadow)
            return
        charge.decide_by(rule.on_error)

    async def _look_up(
        self,
        deny_list: DenyList,
        charges: Sequence[RuleCharge],
        request: HTTPRequest,
        deadline: float,
    ) -> bool:
        """Return whether the deny list on Redis names the request."""
        members = deny_list.members([charge.identifier for charge in charges], request)
        try:
            (reply,) = await Pipeline((deny_list.command(members),), deadline)
        except UpstashError:
            return False  # the limits were in the same call, and emit it
        if isinstance(reply, CommandError):
            if deny_list.is_first_failure():
                self._observe(
                    SettingDoubted(
                        "deny_list", f"it could not be read, so it denies no request: {reply}"
                    )
                )
            return False
        return deny_list.learn(members, reply)

    async def _send_analytics(self, analytics: Analytics, counts: Counts, deadline: float) -> None:
        try:
            await Pipeline(analytics.commands(counts), deadline)
        except UpstashError:
            analytics.add(counts)  # to be sent with a later call

    async def flush(self) -> None:
        """Send the analytics that have been collected, as at shutdown. A flow."""
        if self._analytics is not None and (due := self._analytics.take_due(at_once=True)):
            await self._send_analytics(self._analytics, due, self._deadline)

    # --------------------------------------------------------------------------------------------
    # Peeking, resetting, changing limits. All of these are flows that raise
    # UpstashError, and ValueError for an unknown rule.

    async def explain(self, request: HTTPRequest) -> tuple[Explanation, ...]:
        """Return what would be decided about a request, by which rules and keys; take nothing.

        Only rules with limits of this package that no list or policy decides; remembered denials
        are ignored.
        """
        charges = await self._charging.charges_for(request)
        return await self._explain([each for each in charges if each.decision is None])

    async def peek(self, request: HTTPRequest) -> Decision | None:
        """Return what ``begin`` would decide; take nothing.

        None where no rule with limits of this package covers the request.
        """
        decisions = [one.decision for one in await self.explain(request) if not one.shadow]
        return combined(decisions) if decisions else None

    async def look(self, rule: str, identifier: str | Identifier, cost: int = 1) -> Explanation:
        """Return what a rule, named as in decisions, would decide; take nothing."""
        compiled, text = self._rule(rule), self._text(identifier)
        charge = RuleCharge(compiled, text, compiled.key_base(text), cost, self._random())
        (explanation,) = await self._explain([charge])
        return explanation

    async def reset(self, rule: str, identifier: str | Identifier) -> None:
        """Give an identifier the whole quota of a rule, both named as in decisions and events.

        Other processes that remember a denial notice within ``remember_denials``.
        """
        compiled = self._rule(rule)
        base = compiled.key_base(self._text(identifier))
        await self._send(Command(("DEL", *_keys(compiled, base, self._time.now_ms()))))
        self._denials.forget(base)

    async def set_limit(self, rule: str, limit: int | None) -> None:
        """Set what a dynamic rule allows, in all processes; None returns to its own limit.

        Counters remain, and denials are remembered for ``remember_denials`` at most. Raises
        ValueError for a rule that is not dynamic.
        """
        key = self._rule(rule).changed_at
        if key is None:
            raise ValueError(f"rule {rule!r} is not dynamic; set dynamic=True where it is made")
        given: object = limit
        if given is None:
            await self._send(Command(("DEL", key)))
            return
        if isinstance(given, bool) or not isinstance(given, int) or not 0 <= given <= MAX_QUOTA:
            raise ValueError(f"limit={limit!r} should be a whole number from 0, or None")
        await self._send(Command(("SET", key, given)))

    async def _explain(self, charges: Sequence[RuleCharge]) -> tuple[Explanation, ...]:
        own = [charge for charge in charges if charge.rule.policies]
        if not own:
            return ()
        now_ms, limits = self._time.now_ms(), limit_charges(own)
        reply = await self._send(charge_command(limits, now_ms, peek=True))
        decide(own, read_verdicts(reply, len(limits)), now_ms)
        return tuple(
            Explanation(
                rule=charge.rule.rule.name,
                setting=charge.rule.setting,
                identifier=charge.identifier,
                cost=charge.cost,
                keys=_keys(charge.rule, charge.base, now_ms),
                shadow=charge.rule.rule.shadow,
                decision=cast("Decision", charge.decision),
            )
            for charge in own
        )

    async def _send(self, command: Command) -> Reply:
        (reply,) = await Pipeline((command,), self._deadline)
        if isinstance(reply, CommandError):
            raise reply
        return reply

    def _rule(self, name: str) -> CompiledRule:
        if name not in self._by_name:
            raise ValueError(
                f"no rule with limits of this package is called {name!r}; there are: "
                + (", ".join(map(repr, self._by_name)) or "none")
            )
        return self._by_name[name]

    def _text(self, identifier: str | Identifier) -> str:
        return identifier if isinstance(identifier, str) else key_text(identifier, self._secret)


def _keys(rule: CompiledRule, base: str, now_ms: int) -> tuple[str, ...]:
    return tuple(key for policy in rule.policies for key in policy.limit.keys(base, now_ms))
