"""The rate limit as a part of the engine: makes a script call, and decides by its reply."""

from __future__ import annotations

from os import urandom
from typing import TYPE_CHECKING, Any, cast

from msgspec import Struct
from msgspec.structs import replace

from upstash_middleware.core.engine import Part, PartExchange, Prepared
from upstash_middleware.core.flow import Command, Flow, Pipeline, Wait, call, together
from upstash_middleware.core.identify import (
    Identifier,
    client_ip,
    full_address,
    identifier_of,
    key_text,
    reads_body,
)
from upstash_middleware.core.patterns import Unmatched, other_readings
from upstash_middleware.core.ratelimit.algorithms.limit import MAX_QUOTA
from upstash_middleware.core.ratelimit.charges import (
    AddressWatch,
    Charging,
    Match,
    RuleCharge,
    Settlement,
    charge_command,
    checked_cost,
    decide,
    decide_allowed,
    lease_words,
    limit_charges,
    limit_script,
    longest_deadline,
    read_scripts,
    read_verdicts,
    settle_command,
)
from upstash_middleware.core.ratelimit.decision import (
    Decision,
    combined,
    concern_limits_or_caches,
    custom_denial,
    decided,
    denial,
    limit_fields,
    takes_fields,
)
from upstash_middleware.core.ratelimit.memory import TIME, Denials, LocalCounters, ServerClock
from upstash_middleware.core.ratelimit.rules import Tiers, compile_rules, uncertain_bases
from upstash_middleware.errors import CommandError, ConfigurationError, UpstashError
from upstash_middleware.events import (
    InternalError,
    RateLimitDecided,
    SettingDoubted,
    UpstashAnswered,
    UpstashFailed,
    UserCodeFailed,
    hears,
    ignored_by,
)
from upstash_middleware.messages import NO_HEADERS, Headers, HTTPRequest, ResponseHead

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from upstash_middleware.core.clock import Clock
    from upstash_middleware.core.engine import Step
    from upstash_middleware.core.flow import Argument, Latch, Reply
    from upstash_middleware.core.identify import AnyExtractor
    from upstash_middleware.core.ratelimit.charges import Slice, Verdict
    from upstash_middleware.core.ratelimit.dashboard import Analytics, Counts, DenyList
    from upstash_middleware.core.ratelimit.decision import OnDenied
    from upstash_middleware.core.ratelimit.leases import Leases
    from upstash_middleware.core.ratelimit.rules import (
        CompiledRule,
        Lease,
        RateLimitRule,
        SdkLimiter,
    )
    from upstash_middleware.events import Observer
    from upstash_middleware.messages import Response

_DURING = "rate limit"
_SETTLING = "rate limit settling"
_ANSWERED = UpstashAnswered(_DURING)
_SETTLED_TOGETHER = 100
"""The maximum number of settlements in one call."""


class Explanation(Struct, frozen=True):
    """What one rule would decide about a request."""

    rule: str
    setting: str
    """The name of the rule's setting, such as ``rate_limits[0]``."""
    identifier: str
    cost: int
    keys: tuple[str, ...]
    """The Redis keys of the identifier's current counters."""
    shadow: bool
    decision: Decision
    lease: Lease | None
    """The lease of the rule's limits: from the rule, the application or the request's tier."""


class _Call(Prepared, eq=False):
    """A script call that is to be sent, with the charges that it takes."""

    request: HTTPRequest
    charges: list[RuleCharge]
    now_ms: int
    time_sent: float | None
    """When the TIME command in the same pipeline was sent; None if there is none."""
    forgotten: int
    """The number of forgotten denials before the call; if it has changed, denials are uncertain."""
    served: Sequence[RuleCharge] = ()
    """The charges that were taken from slices."""
    leases: bool = False
    """Whether the script call also requests or extends slices."""


def _token() -> int:
    return int.from_bytes(urandom(8), "big") % MAX_QUOTA + 1


NO_REQUEST = HTTPRequest("", "")
"""A placeholder for calls that do not belong to a request."""
Who = str | Identifier | HTTPRequest
"""An identifier, as text in the form of decisions; or a request that the rule identifies."""


def _refuse(flow: Flow[None]) -> None:
    flow.close()
    raise RuntimeError("charge: too late, the response has been sent and its cost is settled")


class RateLimiter(Part):
    """Applies rate limit rules to requests.

    A RateLimiter can be created without credentials or a network.

    Args:
        rules: The rules in matching order. The first one that covers a request decides.
        default: The rule for requests that no other rule covers; None leaves them unlimited.
        prefix: The prefix of the Redis keys.
        secret: Returns the key for hashes of credentials; called at the first use.
        clock: This machine's clock.
        observe: Receives the events.
        deadline: The deadline of a call to Upstash in seconds.
        match: With ``"all"``, all rules that cover a request apply. Either all or none is charged.
        remember_denials: The maximum time for which a denial is remembered, in seconds.
        denials: The remembered denials, if several limiters share them because they share keys.
        lease: The lease of rules without a lease of their own; None for no lease.
        leases: Returns this process's slices of quotas, which several limiters may share.
        deny_list: The prefix of a JavaScript SDK limiter whose deny list applies; the SDK's default
            is ``"@upstash/ratelimit"``.
        analytics: The prefix for the analytics of the dashboard in Upstash's console.
        at_handler: Whether the rules apply to a single handler. CORS preflights then count as well.
        random: Returns a random integer from 1, which identifies a slot.
        address: The extractor of a client's address, for all rules.
        watch: Emits a warning if requests show that the setting ``client_ip`` is missing.
        perform: Runs a flow in the background, such as a charge after the request is settled.
        on_denied: Returns the application's response to a denial, or None for the default response.
        exempts: Returns whether a request is exempt. If it raises, for instance because the
            framework cannot look up its routes, the request is counted.

    Raises:
        ConfigurationError: Two rules have the same name, or the default does not cover all
            requests.
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
        lease: Lease | None = None,
        leases: Callable[[], Leases] | None = None,
        deny_list: str | None = None,
        analytics: str | None = None,
        at_handler: bool = False,
        random: Callable[[], int] = _token,
        address: AnyExtractor | None = None,
        watch: AddressWatch | None = None,
        perform: Callable[[Flow[None]], object] = _refuse,
        on_denied: OnDenied | None = None,
        exempts: Callable[[HTTPRequest], bool] | None = None,
    ) -> None:
        read_scripts()
        self._script = limit_script()
        self._watch = watch or AddressWatch(observe, None, done=address is not None)
        self._rules = compile_rules(
            tuple(rules),
            default,
            prefix,
            address or client_ip(),
            is_watched=not self._watch.done,
            at_handler=at_handler,
            lease=lease,
        )
        self.reads_body: bool = any(reads_body(rule.by) for rule in self._rules)
        """Whether the adapter must provide the request's body."""
        self._by_name = {rule.rule.name: rule for rule in self._rules if rule.policies}
        self._clock = clock
        self._secret = secret
        self._observe = observe
        self._ignored = ignored_by(observe)
        self._deadline = deadline
        self._match: Match = match
        self._random = random
        self._perform = perform
        self._on_denied = on_denied
        self._exempts = exempts
        self._denials = denials or Denials(remember_denials)
        self._leases: Callable[[], Leases] | None = None
        """None if no rule has a lease."""
        # A function of the request may return limits with a lease.
        if any(each.lease or isinstance(each.rule.parsed, Tiers) for each in self._rules):
            self._leases = leases or self._own_leases()
        self._deny_list_prefix = deny_list
        self._analytics_prefix = analytics
        self._needs_more = bool(deny_list or analytics)
        """Whether requests need other commands besides the script call."""
        self._reads_paths = any(rule.rule.path or rule.rule.when for rule in self._rules)
        self._has_own_deadlines = any(rule.rule.deadline for rule in self._rules)
        self._emits = bool(analytics) or hears(observe, RateLimitDecided)
        self._start()

    def _own_leases(self) -> Callable[[], Leases]:
        from upstash_middleware.core.ratelimit.leases import Leases  # noqa: PLC0415 - if it is used

        own = Leases(self._observe)
        return lambda: own

    @property
    def rules(self) -> dict[str, RateLimitRule]:
        """The rules with limits of this package, by name; SDK limiters are excluded."""
        return {name: compiled.rule for name, compiled in self._by_name.items()}

    def holds(self, rule: str) -> bool:
        """Whether a call under the rule has a slot until it ends."""
        return self._rule(rule).has_slots

    @property
    def has_leases(self) -> bool:
        """Whether any rule has a lease."""
        return self._leases is not None

    def needs_body(self, rule: str) -> bool:
        """Whether a rule needs the body to identify a request."""
        return reads_body(self._rule(rule).by)

    def forget(self) -> None:
        """Clear this process's memory: denials, slices, local counters, server time, analytics."""
        self._denials.clear()
        if self._leases is not None:
            self._leases().clear()
        self._start()

    def _start(self) -> None:
        self._time = ServerClock(self._clock)
        self._local = LocalCounters()
        self._settler = Settler(
            self._time,
            self._observe,
            self._deadline,
            denials=self._denials,
            leases=self._leases,
            perform=self._perform,
        )
        paths = {rule.setting: rule.rule.path for rule in self._rules if rule.rule.path is not None}
        self._unmatched = Unmatched(paths, self._observe)
        self._charging = Charging(
            self._rules,
            self._match,
            self._secret,
            self._observe,
            self._random,
            self._unmatched,
            self._watch,
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
            self._deny_list = DenyList(self._deny_list_prefix, self._time)
        if self._analytics_prefix:
            self._analytics = Analytics(self._analytics_prefix, self._time)

    def prepare(self, request: HTTPRequest) -> Step:
        """Begin a request: return a script call in the usual case, otherwise a flow."""
        if self._exempts is not None:
            try:
                if self._exempts(request):
                    return None
            except Exception as error:  # noqa: BLE001 - an error in routing must not skip a limit
                self._observe(UserCodeFailed("looking for an exempt handler", error))
        if self._unmatched.left:
            self._unmatched.count()
        try:
            charges = None if self._needs_more else self._simple_charges(request)
        except Exception:  # noqa: BLE001 - the flow for unusual requests emits the error
            charges = None
        if charges is None:
            return self._begin_unusual(request)
        if not charges:
            return None
        if self._leases is not None:
            return self._prepare_with_leases(request, charges, self._leases)
        bases = self._denials.bases
        if bases and (
            known := [each for each in charges if each.base in bases and self._recall(each)]
        ):
            return self._exchange(request, known)
        forgotten = self._denials.forgotten
        now_ms, time_sent = self._time.begin_call()
        keys: tuple[Argument, ...] = ()
        arguments: tuple[Argument, ...] = ()
        for charge in charges:
            rule = charge.rule
            for policy in rule.policies:
                keys += policy.limit.keys(charge.base, now_ms)
                arguments += policy.words
            if rule.changed_at is not None:
                keys += (rule.changed_at,)
        script, count = self._script, str(len(keys))
        words = ("EVALSHA", script.sha, count, *keys, str(now_ms), "take", *arguments)
        command, deadline = Command(words, False, script), self._deadline
        deadline = longest_deadline(charges, deadline) if self._has_own_deadlines else deadline
        pipeline = Pipeline((command,) if time_sent is None else (command, TIME), deadline)
        return _Call(pipeline, request, charges, now_ms, time_sent, forgotten)

    async def begin(self, request: HTTPRequest) -> RateLimitExchange:
        """Decide about a request with this limiter alone, even if no rule covers it. A flow."""
        begun = await super().begin(request)
        if isinstance(begun, RateLimitExchange):
            return begun
        return RateLimitExchange(request, self._settler)

    def _simple_charges(self, request: HTTPRequest) -> list[RuleCharge] | None:
        """Return the charges of a request if all rules that cover it are simple, else None."""
        if self._reads_paths and other_readings(request.path):
            return None
        charges: list[RuleCharge] = []
        for rule in self._rules:
            if rule.is_default and charges:
                continue
            if (rule.selects or request.method == "OPTIONS") and not rule.covers(request):
                continue
            if self._unmatched.left:
                self._unmatched.waiting.pop(rule.setting, None)
            if rule.is_exempt:
                return []
            if rule.simple_by is None:
                return None
            found = rule.simple_by(request) or rule.client_address(request)
            if found is None:
                return None
            self._charging.advisor.look(rule, found, request)
            text = key_text(found, self._secret)
            charges.append(RuleCharge(rule, text, rule.key_base(text), rule.cost))
            if self._match == "first":
                break
        return charges

    def _prepare_with_leases(
        self, request: HTTPRequest, charges: list[RuleCharge], leases: Callable[[], Leases]
    ) -> Step:
        served: list[RuleCharge] = []
        if len(charges) > 1:
            served, charges = self._serve(charges)
        elif charges[0].rule.lease is not None:
            if leases().serve(charges[0], self._time):
                return self._admit(request, charges[0])
            if (arrival := leases().arrival(charges[0], self._time)) is not None:
                return self._begin_after(arrival, request, charges)
        known = [charge for charge in charges if self._recall(charge)]
        if known or not charges:
            return self._exchange(request, [*served, *known])
        return self._call(charges, request, longest_deadline(charges, self._deadline), served)

    def _serve(self, charges: list[RuleCharge]) -> tuple[list[RuleCharge], list[RuleCharge]]:
        """Take charges from slices if possible; return the charges taken, and the others."""
        leases = cast("Callable[[], Leases]", self._leases)()
        served, others = [], []
        for charge in charges:
            if (
                charge.decision is None
                and charge.rule.lease is not None
                and _is_alone(charge, charges)
                and leases.serve(charge, self._time)
            ):
                served.append(charge)
            else:
                others.append(charge)
        return served, others

    def _call(
        self,
        charges: list[RuleCharge],
        request: HTTPRequest,
        deadline: float,
        served: Sequence[RuleCharge] = (),
    ) -> _Call:
        """Return the script call that takes the charges, and that requests slices for leases."""
        forgotten = self._denials.forgotten
        now_ms, time_sent = self._time.begin_call()
        words: list[tuple[str, ...]] = []
        if self._leases is not None:
            leases = self._leases()
            for charge in charges:
                if charge.rule.lease is not None and _is_alone(charge, charges):
                    leases.ask(charge, self._time, deadline)
            if any(charge.lease is not None for charge in charges):
                words = lease_words(charges)
        command = charge_command(limit_charges(charges), now_ms, leases=words)
        pipeline = Pipeline((command,) if time_sent is None else (command, TIME), deadline)
        return _Call(pipeline, request, charges, now_ms, time_sent, forgotten, served, bool(words))

    def _recall(self, charge: RuleCharge) -> bool:
        """Apply a remembered denial, if there is one."""
        charge.decision = self._denials.recall(charge.denial_key, self._time)
        return charge.decision is not None

    def receive(
        self, prepared: _Call, replies: list[Reply] | UpstashError
    ) -> RateLimitExchange | Flow[RateLimitExchange]:
        """Decide by the script's reply, or by each rule's ``on_error`` if the call failed."""
        charges = prepared.charges
        if isinstance(replies, UpstashError):
            self._fail(prepared, replies)
        else:
            try:
                if self._is_allowed(prepared, replies):
                    return self._admit(prepared.request, charges[0])
                self._decide(prepared, replies)
            except Exception as error:  # noqa: BLE001 - a bug here must not lift the limit
                self._decide_broken(charges, error)
        if prepared.served:
            charges = [*prepared.served, *charges]
        return self._exchange(prepared.request, charges)

    def interrupted(self, prepared: _Call) -> None:
        """Wake the requests that wait for a slice from this call, which will not be received."""
        if self._leases is not None:
            for charge in prepared.charges:
                self._leases().lose(charge, self._time)

    def _is_allowed(self, call: _Call, replies: list[Reply]) -> bool:
        """Decide as ``_decide`` does if there is one limit and it allows the request."""
        if len(call.charges) != 1 or call.served or call.time_sent is not None:
            return False
        charge = call.charges[0]
        if charge.rule.lease is not None or not decide_allowed(charge, replies[0], call.now_ms):
            return False
        if UpstashAnswered not in self._ignored:
            self._observe(_ANSWERED)
        if charge.base in self._denials.bases:
            self._denials.forget(charge.base)
        return True

    def _admit(self, request: HTTPRequest, charge: RuleCharge) -> RateLimitExchange:
        """Do the same as ``_exchange`` for a request with one charge, which is allowed."""
        decision: Any = charge.decision
        if self._emits:
            self._emit(decision, request)
        charge.decision = None  # as in _exchange
        return RateLimitExchange(request, self._settler, decision, (charge,))

    def _decide(self, call: _Call, replies: list[Reply]) -> None:
        """Decide by the script's verdicts, and remember denials."""
        charges, denials, now_ms = call.charges, self._denials, call.now_ms
        try:
            if call.time_sent is not None:
                self._time.learn(replies[1], call.time_sent)
            count = 0
            for charge in charges:
                count += len(charge.rule.policies)
            verdicts = read_verdicts(replies[0], count, leases=call.leases)
        except UpstashError as error:
            self._fail(call, error)
            return
        if UpstashAnswered not in self._ignored:
            self._observe(_ANSWERED)
        decide(charges, verdicts, now_ms)
        if self._leases is not None:
            self._lease(charges, verdicts, now_ms)
        for charge in charges:
            # The denial may be of another cost or tier, or of another rule of the same bucket.
            if charge.state_parts is not None and charge.base in denials.bases:
                denials.forget(charge.base)
        for charge in charges:
            decision = cast("Decision", charge.decision)
            if decision.allowed or charge.rule.has_slots:
                continue
            if call.forgotten == denials.forgotten:
                denials.remember(charge.denial_key, decision, now_ms, self._time, charge.rule.base)

    def _lease(self, charges: list[RuleCharge], verdicts: Sequence[Verdict], now_ms: int) -> None:
        """Receive slices, and use one for a request that the script denied."""
        leases, end = cast("Callable[[], Leases]", self._leases)(), 0
        for charge in charges:
            begin, end = end, end + len(charge.rule.policies)
            if charge.rule.lease is None or not _is_alone(charge, charges):
                continue
            leases.receive(charge, verdicts[begin:end], now_ms, self._time)
            # With several rules, the denied script call has not charged the others.
            if len(charges) == 1 and not cast("Decision", charge.decision).allowed:
                leases.serve_without_call(charge, self._time)

    def _fail(self, call: _Call, error: UpstashError) -> None:
        """Decide by the remaining units of slices, or by the ``on_error`` of rules without slices.

        Rules with ``on_error="local"`` are charged together: all or none.
        """
        self._observe(UpstashFailed(_DURING, error))
        if self._leases is not None:
            leases = self._leases()
            for charge in call.charges:
                leases.lose(charge, self._time)
                if charge.rule.lease is not None and _is_alone(charge, call.charges):
                    leases.serve_without_call(charge, self._time)
        failed = [each for each in call.charges if each.decision is None]
        local = [each for each in failed if each.rule.rule.on_error == "local"]
        self._count_locally(local, call.now_ms)
        for charge in failed:
            if charge.decision is None:
                charge.decide_by(charge.rule.rule.on_error)

    def _count_locally(self, charges: list[RuleCharge], now_ms: int, *, peek: bool = False) -> None:
        verdicts = self._local.decide(limit_charges(charges, local=True), now_ms, peek=peek)
        decide(charges, verdicts, now_ms)
        for charge in charges:
            charge.decision = replace(cast("Decision", charge.decision), settled_by="local")
            charge.state_parts = None

    def _exchange(
        self, request: HTTPRequest, charges: Sequence[RuleCharge]
    ) -> RateLimitExchange | Flow[RateLimitExchange]:
        """Combine the decisions of all rules, and emit an event for each.

        Returns a flow if the application has a function for denials.
        """
        enforced: list[Decision] = []
        taken: list[RuleCharge] = []
        for charge in charges:
            decision = cast("Decision", charge.decision)
            if self._emits:
                self._emit(decision, request)
            if not decision.shadow:
                enforced.append(decision)
            if charge.state_parts is not None:
                taken.append(charge)
                # Break a reference cycle: the decision's ledger will refer to the charge.
                charge.decision = None
        if not enforced:
            return RateLimitExchange(request, self._settler, taken=taken)
        decision = enforced[0] if len(enforced) == 1 else combined(enforced)
        if decision.allowed:
            return RateLimitExchange(request, self._settler, decision, taken)
        # A shadow rule counts requests that another rule denied, but they need no slot.
        taken = [one for one in taken if one.rule.has_slots or not one.rule.rule.shadow]
        response = denial(request, decision, self._time.now())
        exchange = RateLimitExchange(request, self._settler, decision, taken, response)
        if self._on_denied is None:
            return exchange
        return self._deny(request, exchange, response, self._on_denied)

    async def _deny(
        self,
        request: HTTPRequest,
        exchange: RateLimitExchange,
        own: Response,
        on_denied: OnDenied,
    ) -> RateLimitExchange:
        """Replace the default denial by the application's response, if that is valid."""
        try:
            returned: Any = await call(on_denied, request, exchange.decision)
            if returned is not None:
                exchange.response = custom_denial(returned, own, request)
        except Exception as error:  # noqa: BLE001 - errors of the application's function
            self._observe(UserCodeFailed("on_denied", error))
        except GeneratorExit:  # the flow was closed
            raise
        except BaseException:  # interrupted: the caller does not get the exchange to finish it
            if (flow := exchange.finish(complete=False)) is not None:
                await flow
            raise
        return exchange

    def _emit(self, decision: Decision, request: HTTPRequest | None) -> None:
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
    # Requests that need more: functions, slots, allow and deny lists, analytics, SDK limiters.

    async def _begin_unusual(self, request: HTTPRequest) -> RateLimitExchange:
        return await self._begin_after(None, request, await self._charging.charges_for(request))

    async def _begin_after(
        self, arrival: Latch | None, request: HTTPRequest, charges: list[RuleCharge]
    ) -> RateLimitExchange:
        """Decide about charges; a single charge first waits for a slice that is on its way."""
        charges = await self._settled(charges, request, arrival)
        answered = self._exchange(request, charges)
        return answered if isinstance(answered, RateLimitExchange) else await answered

    async def _settled(
        self, charges: list[RuleCharge], request: HTTPRequest, arrival: Latch | None = None
    ) -> list[RuleCharge]:
        """Return the charges that apply, each with a decision."""
        try:
            return await self._decide_all(charges, request, arrival)
        except ConfigurationError:
            raise
        except Exception as error:  # noqa: BLE001 - a bug here must not lift the limit
            self._decide_broken(charges, error)
            return charges

    def _decide_broken(self, charges: list[RuleCharge], error: Exception) -> None:
        """Decide by ``on_error`` about charges that an internal error left undecided."""
        self._observe(InternalError("begin", error))
        local = []
        for charge in charges:
            if charge.decision is not None:
                continue
            if charge.rule.rule.on_error == "local" and charge.rule.policies:
                local.append(charge)
            else:
                charge.decide_by(charge.rule.rule.on_error)
        self._count_locally(local, self._time.now_ms())

    async def _decide_all(
        self, charges: list[RuleCharge], request: HTTPRequest, arrival: Latch | None
    ) -> list[RuleCharge]:
        address = None
        if self._deny_list is not None and charges:
            address = await _full_address(charges[0].rule.address, request)
        for charge in charges:
            if self._is_listed(charge, address, request):
                charge.decide_by("deny list")
            elif charge.decision is None and charge.local:
                self._count_locally([charge], self._time.now_ms())
        waited = 0.0
        if self._leases is not None and not any(
            charge.decision is not None and charge.decision.stops for charge in charges
        ):
            if arrival is None:
                _, others = self._serve([charge for charge in charges if charge.rule.policies])
                if len(charges) == len(others) == 1 and others[0].rule.lease is not None:
                    arrival = self._leases().arrival(others[0], self._time)
            if arrival is not None:
                waited = await self._wait_for_slice(arrival, charges[0], self._leases())
        for charge in charges:
            if charge.decision is None:
                self._recall(charge)
        known = [charge for charge in charges if charge.decision is not None]
        if any(cast("Decision", charge.decision).stops for charge in known):
            return known
        if pending := [charge for charge in charges if charge.decision is None]:
            deadline = longest_deadline(pending, self._deadline) - waited
            await self._decide_pending(pending, address, request, deadline)
        return charges

    async def _wait_for_slice(self, arrival: Latch, charge: RuleCharge, leases: Leases) -> float:
        """Decide by a slice that another request's call receives; return the seconds of waiting.

        The wait takes at most half of the deadline. The other half is left for a call of its own.
        """
        began, waited = self._time.monotonic(), 0.0
        longest = longest_deadline([charge], self._deadline) / 2
        while waited < longest:
            has_arrived = await Wait(arrival, longest - waited)
            waited = self._time.monotonic() - began
            if leases.serve_without_call(charge, self._time) or self._recall(charge):
                break
            further = leases.arrival(charge, self._time) if has_arrived else None
            if further is None:
                break
            arrival = further
        return min(waited, longest)  # the machine may have been suspended

    def _is_listed(self, charge: RuleCharge, address: str | None, request: HTTPRequest) -> bool:
        listed = self._deny_list
        return listed is not None and listed.known(
            listed.members([charge.identifier], address, request)
        )

    async def _decide_pending(
        self,
        charges: list[RuleCharge],
        address: str | None,
        request: HTTPRequest,
        deadline: float,
    ) -> None:
        flows: list[Flow[object]] = [
            self._call_sdk_limiter(charge, deadline)
            for charge in charges
            if not charge.rule.policies
        ]
        if own := [charge for charge in charges if charge.rule.policies]:
            flows.append(self._take(own, request, deadline))
        if self._deny_list is not None:
            identifiers = [charge.identifier for charge in charges]
            members = self._deny_list.members(identifiers, address, request)
            flows.append(self._look_up(self._deny_list, members, deadline))
        if self._analytics is not None and (due := self._analytics.take_due()):
            flows.append(self._send_analytics(self._analytics, due, deadline))
        if True in await together(
            *flows
        ):  # the deny list has precedence over the limits, although the units were taken
            for charge in charges:
                charge.decide_by("deny list")

    async def _take(self, charges: list[RuleCharge], request: HTTPRequest, deadline: float) -> None:
        """Take the charges of this package's limits, all in one script call."""
        call = self._call(charges, request, deadline)
        try:
            replies = await call.pipeline
        except UpstashError as error:
            self._fail(call, error)
        except GeneratorExit:  # the flow was closed
            raise
        except BaseException:  # interrupted: the script may have run nevertheless
            self.interrupted(call)
            await self._settler.release_slots(charges)
            raise
        else:
            self._decide(call, replies)

    async def _call_sdk_limiter(self, charge: RuleCharge, deadline: float) -> None:
        from upstash_middleware.core.ratelimit.sdk import sdk_policy  # noqa: PLC0415

        rule = charge.rule.rule
        limiter = cast("SdkLimiter", rule.parsed)  # a rule without policies has an SDK limiter
        now = self._time.now()
        try:
            policy = await sdk_policy(limiter, rule.name, charge.base, charge.cost, now, deadline)
        except UpstashError as error:
            self._observe(UpstashFailed(_DURING, error))
        except Exception as error:  # noqa: BLE001 - a custom limiter can raise anything
            self._observe(UserCodeFailed(charge.rule.named("limits"), error))
        else:
            self._observe(_ANSWERED)
            charge.decision = decided(rule.name, charge.identifier, (policy,), shadow=rule.shadow)
            return
        charge.decide_by(rule.on_error)

    async def _look_up(self, deny_list: DenyList, members: Sequence[str], deadline: float) -> bool:
        """Return whether the deny list on Redis contains one of the members."""
        try:
            (reply,) = await Pipeline((deny_list.command(members),), deadline)
        except UpstashError:
            return False  # the script call failed as well, and its failure is emitted
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
            analytics.add(counts)  # send them with a later call

    async def flush(self) -> None:
        """Send collected analytics and return unused slices, at shutdown. A flow."""
        if self._leases is not None:
            await self._settler.give_back(self._leases().clear())
        if self._analytics is not None and (due := self._analytics.take_due(at_once=True)):
            await self._send_analytics(self._analytics, due, self._deadline)

    # --------------------------------------------------------------------------------------------
    # Calls that are not requests: the rule is given by name, the client by an identifier. All of
    # these are flows. They raise ValueError for an unknown rule, and never UpstashError.

    def identifier(self, rule: str, value: str) -> Identifier:
        """Return the identifier of requests with this value under a rule."""
        return identifier_of(self._rule(rule).rule.extractor, None, value)

    async def begin_call(self, rule: str, who: Who, cost: int) -> RateLimitExchange:
        """Decide about a call that is not a request, as the rule decides about requests."""
        charge = await self._charge_of(rule, who, cost)
        if charge is None:
            return RateLimitExchange(NO_REQUEST, self._settler)
        await self._settled([charge], NO_REQUEST)
        decision = cast("Decision", charge.decision)
        if self._emits:
            self._emit(decision, None)
        taken = [charge] if charge.state_parts is not None else []
        response = denial(NO_REQUEST, decision, self._time.now()) if decision.stops else None
        return RateLimitExchange(NO_REQUEST, self._settler, decision, taken, response)

    async def peek_call(self, rule: str, who: Who, cost: int) -> Decision | None:
        """Return the decision of ``begin_call`` without a charge; None if no limit applies."""
        charge = await self._charge_of(rule, who, cost)
        if charge is None or charge.decision is not None:
            return None if charge is None else charge.decision
        local = charge.local
        if not local:
            try:
                await self._explain([charge])
            except UpstashError as error:
                self._observe(UpstashFailed(_DURING, error))
                local = charge.rule.rule.on_error == "local"
        if local:
            self._count_locally([charge], self._time.now_ms(), peek=True)
        elif charge.decision is None:
            charge.decide_by(charge.rule.rule.on_error)
        return charge.decision

    async def add(self, rule: str, who: Who, units: int) -> None:
        """Charge units for a call that was already decided, even beyond the quota."""
        charge = await self._charge_of(rule, who, units)
        if charge is not None and charge.decision is None:
            policies = [each for each in charge.rule.policies if not each.limit.has_slots]
            due = [Settlement(charge.base, policy.limit, units, 0) for policy in policies]
            await self._settler.settle(due, [charge])

    async def _charge_of(self, rule: str, who: Who, cost: int) -> RuleCharge | None:
        compiled = self._rule(rule)
        if isinstance(who, HTTPRequest):
            charge = await self._charging.charge_as(compiled, who, cost)
        else:
            charge = self._charging.charge_to(compiled, who, cost)
        if charge is not None:
            charge.token = self._random() if compiled.has_slots else 0
        return charge

    # --------------------------------------------------------------------------------------------
    # Peeking, resetting, changing limits. All of these are flows. They raise UpstashError, and
    # ValueError for an unknown rule.

    async def explain(self, request: HTTPRequest) -> tuple[Explanation, ...]:
        """Return what each rule would decide about a request, without a charge.

        Rules without limits of this package are left out, and rules for which a list or a policy
        decides. Remembered denials are ignored.
        """
        charges = await self._charging.charges_for(request)
        return await self._explain([each for each in charges if each.decision is None])

    async def peek(self, request: HTTPRequest) -> Decision | None:
        """Return the decision of ``begin`` without a charge.

        None if no rule with limits of this package covers the request.
        """
        decisions = [one.decision for one in await self.explain(request) if not one.shadow]
        return combined(decisions) if decisions else None

    async def look(self, rule: str, identifier: str | Identifier, cost: int = 1) -> Explanation:
        """Return what a rule, given by its name in decisions, would decide, without a charge."""
        compiled, text = self._rule(rule), self._text(identifier)
        charge = RuleCharge(compiled, text, compiled.key_base(text), cost, self._random())
        (explanation,) = await self._explain([charge])
        return explanation

    async def look_at(self, rule: str, identifiers: Sequence[str]) -> tuple[Explanation, ...]:
        """Return what a rule would decide about several identifiers; one call, without a charge."""
        compiled = self._rule(rule)
        return await self._explain(
            [RuleCharge(compiled, each, compiled.base + each, 1) for each in identifiers]
        )

    def place(self, rule: str) -> str:
        """Return the beginning of a rule's keys."""
        return self._rule(rule).base

    async def changed_limit(self, rule: str) -> int | None:
        """Return the limit that ``set_limit`` has set for a rule; None if it is unchanged."""
        key = self._rule(rule).changed_at
        reply = None if key is None else await self._send(Command(("GET", key), reads_only=True))
        return int(reply) if isinstance(reply, bytes) and reply.isdigit() else None

    async def reset(self, rule: str, who: Who) -> None:
        """Reset an identifier's quota under a rule, both given as in decisions and events.

        Other processes may remember a denial for at most ``remember_denials`` seconds.
        """
        compiled = self._rule(rule)
        if isinstance(who, HTTPRequest):
            charge = await self._charging.charge_as(compiled, who, 1)
            if charge is None or charge.decision is not None:
                return
            base = charge.base
        else:
            base = compiled.key_base(self._text(who))
        await self._send(Command(("DEL", *_keys(compiled, base, self._time.now_ms()))))
        self._denials.forget(base)
        if self._leases is not None:
            self._leases().forget(base)

    async def set_limit(self, rule: str, limit: int | None) -> None:
        """Set the limit of a dynamic rule in all processes; None restores the configured limit.

        Counters are kept. Other processes may remember a denial for ``remember_denials`` seconds.
        Raises ValueError for a rule that is not dynamic.
        """
        compiled = self._rule(rule)
        key = compiled.changed_at
        if key is None:
            raise ValueError(f"rule {rule!r} is not dynamic; create it with dynamic=True")
        given: object = limit
        if given is None:
            await self._send(Command(("DEL", key)))
        elif isinstance(given, bool) or not isinstance(given, int) or not 0 <= given <= MAX_QUOTA:
            raise ValueError(f"limit={limit!r} should be a whole number from 0, or None")
        else:
            await self._send(Command(("SET", key, given)))
        self._denials.forget_rule(compiled.base)

    async def _explain(self, charges: Sequence[RuleCharge]) -> tuple[Explanation, ...]:
        own = [charge for charge in charges if charge.rule.policies]
        if not own:
            return ()
        now_ms, limits = self._time.now_ms(), limit_charges(own)
        reply = await self._send(charge_command(limits, now_ms, peek=True))
        decide(own, read_verdicts(reply, len(limits)), now_ms)
        if self._leases is not None:
            for charge in own:
                self._leases().include(charge, self._time)
        return tuple(
            Explanation(
                rule=charge.rule.rule.name,
                setting=charge.rule.setting,
                identifier=charge.identifier,
                cost=charge.cost,
                keys=_keys(charge.rule, charge.base, now_ms),
                shadow=charge.rule.rule.shadow,
                decision=cast("Decision", charge.decision),
                lease=charge.rule.lease,
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


async def _full_address(address: AnyExtractor, request: HTTPRequest) -> str | None:
    """Return the client's full address, not its network. A flow."""
    try:
        return await full_address(address, request)
    except Exception:  # noqa: BLE001 - emitted elsewhere, if a rule uses the address
        return None


def _keys(rule: CompiledRule, base: str, now_ms: int) -> tuple[str, ...]:
    return tuple(key for policy in rule.policies for key in policy.limit.keys(base, now_ms))


# ------------------------------------------------------------------------------------------------
# After the limits have allowed a request: header fields, slots, settling.


class RateLimitExchange(PartExchange):
    """A request and its response."""

    __slots__ = (
        "_head",
        "_renew_at",
        "_request",
        "_settler",
        "_slot_life",
        "decision",
        "holds",
        "only_adds",
        "own",
        "response",
        "taken",
    )

    def __init__(
        self,
        request: HTTPRequest,
        settler: Settler,
        decision: Decision | None = None,
        taken: Sequence[RuleCharge] = (),
        response: Response | None = None,
    ) -> None:
        self.decision: Decision | None = decision
        """None for a request that is exempt, or that no rule covers."""
        self.own: Decision | None = None
        """The decision of this limiter's rules, if ``decision`` also includes those of outer
        limiters.

        Units that are charged to it count only under these rules.
        """
        self.response: Response | None = response
        self.taken: Sequence[RuleCharge] = taken
        """The charges that were taken.

        A denied request has charges only if its denial has another cause than the limits, such as a
        deny list. They are refunded.
        """
        self._request = request
        self._settler = settler
        self._head: ResponseHead | None = None
        self.only_adds: bool = True
        """Whether there is nothing to settle unless the application charges units."""
        self.holds: bool = False
        """Whether the request has slots, which must be renewed before they expire."""
        for charge in taken:
            if charge.rule.settles:
                self.only_adds = False
                self.holds = self.holds or charge.rule.has_slots
        if self.holds:
            slots = _slots(taken, 1)
            self._slot_life = min([slot.limit.milliseconds for slot in slots]) / 1000
            self._renew_at = settler.time.monotonic() + self._slot_life / 2

    def head(self, head: ResponseHead) -> ResponseHead:
        """Return the head, with the limits' fields if it should have them."""
        self._head = head
        names = tuple([name for name, _ in head.headers.raw])
        if self.decision is None or (
            concern_limits_or_caches(names) and not takes_fields(self._request, head)
        ):
            return head
        fields = limit_fields(self.decision, self._settler.time.now())
        return ResponseHead(head.status, head.headers.adding(*fields)) if fields else head

    def added_lines(
        self, status: int, lines: Sequence[tuple[bytes, bytes]]
    ) -> Sequence[tuple[bytes, bytes]]:
        """Return the lines of the limits' fields for such a head, if it should have them."""
        names = tuple([name for name, _ in lines])
        if self.decision is None or (
            concern_limits_or_caches(names)
            and not takes_fields(self._request, ResponseHead(status, Headers(map(tuple, lines))))  # type: ignore[arg-type] # each is of two
        ):
            return ()
        return limit_fields(self.decision, self._settler.time.now(), lower=True)

    def failed(self) -> None:
        """Note that the application raised before the head; the response counts as a 500."""
        self._head = self._head or ResponseHead(500, NO_HEADERS)

    def renewal(self) -> Flow[None] | None:
        """Return the flow that renews the slots; None in the first half of their lifetime."""
        if not self.holds or (now := self._settler.time.monotonic()) < self._renew_at:
            return None
        self._renew_at = now + self._slot_life / 8  # leaves time to retry if this fails
        return self._renew(now + self._slot_life / 2)

    async def _renew(self, renew_at: float) -> None:
        # An expired slot is taken again even if the limit is reached: the request is still running.
        if await self._settler.carry_out(_slots(self.taken, 1), self.taken):
            self._renew_at = renew_at

    def finish(self, *, complete: bool) -> Flow[None] | None:  # noqa: ARG002 - the protocol's name
        """Return the flow that settles the final cost; None if the charges already equal it."""
        taken, settler = self.taken, self._settler
        if not taken:
            return None
        if self.response is not None:
            due = settler.settlements((charge, -charge.cost) for charge in taken)
            return settler.settle(due, taken) if due else None
        charged = 0
        if self.decision is not None:
            charged = self.decision.ledger.close(settler, taken)
        if self.own is not None:
            charged += self.own.ledger.close(settler, taken)
        if self.only_adds and not charged:
            return None
        return settler.settle_request(self._request, self._head, taken, charged)


class Settler:
    """Settles the final costs of requests in separate calls. ``deadline`` is in seconds."""

    def __init__(  # noqa: PLR0913 - called in one place
        self,
        time: ServerClock,
        observe: Observer,
        deadline: float,
        *,
        denials: Denials,
        leases: Callable[[], Leases] | None,
        perform: Callable[[Flow[None]], object],
    ) -> None:
        self.time = time
        self._leases = leases
        self._observe = observe
        self._ignored = ignored_by(observe)
        self._deadline = deadline
        self._denials = denials
        self._perform = perform

    async def settle_request(
        self,
        request: HTTPRequest,
        head: ResponseHead | None,
        taken: Sequence[RuleCharge],
        charged: int,
    ) -> None:
        """Charge or refund the difference to the final cost. A flow; never raises UpstashError.

        ``charged`` is the sum of the units that the application charged. ``head`` is None if the
        client left before the response. The cost then remains, so that leaving early is not free.
        """
        due: list[tuple[RuleCharge, int]] = []
        for charge in taken:
            cost, settle = charge.cost, charge.rule.rule.settle
            if settle is not None and head is not None:
                try:
                    cost = checked_cost(await call(settle, request, head))
                except Exception as error:  # noqa: BLE001 - errors of the application's function
                    self._observe(UserCodeFailed(charge.rule.named("settle"), error))
            due.append((charge, cost + charged - charge.cost))
        self._mark_uncertain(due)
        await self.carry_out(self.settlements(due), taken)

    def charge_late(self, taken: Sequence[RuleCharge], units: int) -> None:
        """Charge units to a request that was already settled, in a separate call."""
        if units:
            due = [(charge, units) for charge in taken]
            self._mark_uncertain(due)
            late = [each for each in self.settlements(due) if not each.limit.has_slots]
            self._perform(self.settle(late, taken))

    def release_slots(self, charges: Sequence[RuleCharge]) -> Flow[None]:
        """Return the flow that releases the slots of a request that ends before its decision."""
        return self.settle(_slots(charges, -1), charges)

    async def settle(
        self, settlements: Sequence[Settlement], charges: Sequence[RuleCharge]
    ) -> None:
        """Carry out settlements. A flow; never raises UpstashError."""
        await self.carry_out(settlements, charges)

    async def carry_out(
        self,
        settlements: Sequence[Settlement],
        charges: Sequence[RuleCharge],
        *,
        reports: bool = True,
    ) -> bool:
        """Carry out settlements; return whether it succeeded. A flow; never raises UpstashError.

        ``reports`` is whether to emit a failure.
        """
        if not settlements:
            return True
        command = settle_command(settlements, self.time.now_ms())
        try:
            (reply,) = await Pipeline((command,), longest_deadline(charges, self._deadline))
            if isinstance(reply, CommandError):
                raise reply
        except UpstashError as error:
            if reports:
                self._observe(UpstashFailed(_SETTLING, error))
            return False
        self._observe(UpstashAnswered(_SETTLING))
        for settlement in settlements:
            # A refund may allow requests at once. After a charge, the remembered time is too short.
            if settlement.units < 0 or settlement.base in self._denials.bases:
                self._denials.forget(settlement.base)
        return True

    def settlements(self, due: Iterable[tuple[RuleCharge, int]]) -> list[Settlement]:
        """Return the settlements of charges and refunds, and the slots to release.

        Units of this process's slices are settled without a call. If rules of the same bucket were
        charged together, the highest number of units is settled once.
        """
        settlements: dict[tuple[str, int], Settlement] = {}
        for charge, units in due:
            held = charge.slice
            if held is not None and self._leases is not None:
                units = self._leases().settle(charge, units, self.time)  # noqa: PLW2901
            for index, (policy, part) in enumerate(
                zip(charge.rule.policies, charge.state_parts or (), strict=True)
            ):
                own = -1 if policy.limit.has_slots else units
                if held is not None and units < 0:
                    own = -held.returnable(-units, self.time)[index]
                state = policy.limit.state(charge.base)
                if state not in settlements or own > settlements[state].units:
                    settlements[state] = Settlement(charge.base, policy.limit, own, part)
        return [settlement for settlement in settlements.values() if settlement.units]

    async def give_back(self, slices: Sequence[Slice]) -> None:
        """Return the unused units of slices. A flow; never raises UpstashError.

        A failure is not emitted. The units then count as used until their window ends.
        """
        due = [
            Settlement(each.base, policy.limit, -units, part)
            for each in slices
            for policy, units, part in zip(
                each.rule.policies,
                each.returnable(each.units, self.time),
                each.state_parts,
                strict=True,
            )
            if units
        ]
        for first in range(0, len(due), _SETTLED_TOGETHER):
            if not await self.carry_out(due[first : first + _SETTLED_TOGETHER], (), reports=False):
                return

    def _mark_uncertain(self, due: Iterable[tuple[RuleCharge, int]]) -> None:
        for charge, units in due:
            if units < 0:
                self._denials.mark_uncertain(charge.rule.base)


def _is_alone(charge: RuleCharge, charges: Sequence[RuleCharge]) -> bool:
    """Whether no other charge has the same keys. Charges with the same keys do not use slices."""
    return len(charges) == 1 or sum(each.base == charge.base for each in charges) == 1


def _slots(charges: Sequence[RuleCharge], units: int) -> list[Settlement]:
    return [
        Settlement(charge.base, policy.limit, units, charge.token)
        for charge in charges
        for policy in charge.rule.policies
        if policy.limit.has_slots
    ]
