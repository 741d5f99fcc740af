"""Charges: which rules cover a request, whose quota it uses, and how many units it takes.

This module also has the commands and replies of the Lua scripts that take and settle charges. All
functions of the application are called here. If one raises, an event is emitted, and the rule's
``on_error`` decides. Nothing here waits for Upstash.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache
from math import ceil
from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.parse import unquote

from msgspec import Struct, field
from msgspec.structs import replace

from upstash_middleware.core.flow import Command, Latch, Script, call, script
from upstash_middleware.core.identify import (
    Finder,
    Identifier,
    IdentityList,
    address_advice,
    extract,
    key_text,
    peer_address,
)
from upstash_middleware.core.patterns import other_readings
from upstash_middleware.core.ratelimit.algorithms import ALGORITHMS, Limit
from upstash_middleware.core.ratelimit.algorithms.limit import MAX_QUOTA
from upstash_middleware.core.ratelimit.decision import Decision, PolicyState, decided
from upstash_middleware.core.ratelimit.rules import CompiledRule, Tiers, tier_of
from upstash_middleware.errors import CommandError, ConfigurationError, UnexpectedAnswer
from upstash_middleware.events import InternalError, SettingDoubted, UserCodeFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from upstash_middleware.core.flow import Argument, Reply
    from upstash_middleware.core.patterns import Unmatched
    from upstash_middleware.core.ratelimit.memory import ServerClock
    from upstash_middleware.events import Observer
    from upstash_middleware.messages import HTTPRequest

Match = Literal["first", "all"]
MOST_TIERS = 256


DenialKey = tuple[str, int, str, Any]
"""The base of the Redis keys, the cost, the name of the rule, and the tier."""


class Slice(Struct, eq=False):
    """Units that one call has reserved for a lease, the same number from each limit of a rule."""

    units: int
    """The units that are left in the slice."""
    rule: CompiledRule
    base: str
    state_parts: tuple[int, ...]
    """For each limit, the part of its state that the units were taken from; see ``Verdict``."""
    taken_ms: int
    ends_ms: int
    """The end of the slice by the database's clock, in milliseconds since 1970."""
    taken_monotonic: float
    ends_monotonic: float
    """The end by the monotonic clock, so that setting the wall clock back does not extend it."""
    used: int
    """The units that requests have used, including the cost that was charged with the slice."""
    is_closed: bool = False
    """Whether the slice can no longer be used or refunded."""

    def returnable(self, units: int, time: ServerClock) -> list[int]:
        """Return how many of these units can be given back now, for each limit."""
        by_monotonic = ceil((time.monotonic() - self.taken_monotonic) * 1000)
        held = max(by_monotonic, time.now_ms() - self.taken_ms)
        return [policy.limit.returnable(units, held) for policy in self.rule.policies]


class LeaseCall(Struct, eq=False):
    """What a call does for a lease, besides charging the request."""

    wanted: int
    """The maximum number of units to reserve."""
    share: float
    """The maximum part of the remaining quota to reserve."""
    began: float
    """The monotonic time at which the call began."""
    unused: int = 0
    """The unused units of a slice that the call returns."""
    given_back: Sequence[int] = ()
    """The returned units for each limit."""
    state_parts: Sequence[int] = ()
    """For each limit, the part of its state that the returned units were taken from."""
    arrival: Latch = field(default_factory=Latch)
    """The latch that opens at the end of the call."""
    promised: int = 0
    """The number of units that more requests may still wait for."""


class RuleCharge(Struct):
    """The charge of a request under one rule, and the rule's decision once it is known."""

    rule: CompiledRule
    identifier: str
    base: str = ""
    """The beginning of the Redis keys: ``PREFIX:RULE:IDENTIFIER``."""
    cost: int = 0
    token: int = 0
    """Identifies the request's slot if the rule has a Concurrency."""
    local: bool = False
    """Whether to count in this process, because a part of the charge could not be determined."""
    group: int = 0
    """The group of the charges to its limits: 0, ``FOLLOWS``, or a separate one (shadow rules)."""
    decision: Decision | None = None
    state_parts: tuple[int, ...] | None = None
    """For each limit, the part of its state that the units were taken from; None if not taken."""
    lease: LeaseCall | None = None
    """What the script call does for the rule's lease; None if nothing."""
    slice: Slice | None = None
    """The slice that the charge was taken from, or that its call has reserved."""

    @property
    def denial_key(self) -> DenialKey:
        """The key under which a denial is remembered. It also applies to equal requests."""
        return (self.base, self.cost, self.rule.rule.name, self.rule.tier)

    def decide_by(self, settled_by: str) -> None:
        """Decide without a quota: by ``on_error``, a deny list, or the rule's challenge."""
        rule = self.rule.rule
        # If not even the limits are known, nothing can be counted locally, and the request passes.
        by = "open" if settled_by == "local" else settled_by
        self.decision = Decision(
            allowed=by == "open",
            rule=rule.name,
            identifier=self.identifier,
            settled_by=by,
            shadow=rule.shadow,
            challenge=rule.challenge,
        )


def longest_deadline(charges: Sequence[RuleCharge], default: float) -> float:
    """Return the deadline of one call for all these charges, in seconds."""
    deadlines = [cast("float", charge.rule.rule.deadline or default) for charge in charges]
    return max(deadlines, default=default)


def limit_charges(charges: Sequence[RuleCharge], *, local: bool = False) -> list[Charge]:
    """Return the charges to each limit; with ``local``, the limits are this process's share.

    Enforced rules form one group. Each shadow rule is a separate group, except in the bucket of an
    enforced rule, which must not count the requests that this rule denies.
    """
    if any(charge.rule.rule.shadow for charge in charges):
        enforced = {charge.base for charge in charges if not charge.rule.rule.shadow}
        for index, charge in enumerate(charges):
            if charge.rule.rule.shadow:
                charge.group = FOLLOWS if charge.base in enforced else index + 1
    return [
        Charge(
            charge.base,
            policy.limit.share(charge.rule.rule.local_share) if local else policy.limit,
            charge.cost,
            charge.group,
            charge.token,
            None if local else charge.rule.changed_at,
        )
        for charge in charges
        for policy in charge.rule.policies
    ]


def lease_words(charges: Sequence[RuleCharge]) -> list[tuple[str, ...]]:
    """Return the script's additional arguments for leases, for each limit of these charges."""
    words: list[tuple[str, ...]] = []
    for number, charge in enumerate(charges, start=1):
        asked = charge.lease
        for index in range(len(charge.rule.policies)):
            if asked is None:
                words.append(("0", "0", "0", "0", "0"))
                continue
            given, part = 0, 0
            if asked.unused:
                given, part = asked.given_back[index], asked.state_parts[index]
            share = round(asked.share * MILLION)
            words.append(tuple(map(str, (number, asked.wanted, share, given, part))))
    return words


def decide(charges: Sequence[RuleCharge], verdicts: Sequence[Verdict], now_ms: int) -> None:
    """Set the decisions of charges from the verdicts on their limits, of a call at ``now_ms``."""
    end, denied = 0, False
    for charge in charges:
        rule, states, parts = charge.rule, [], []
        begin, end = end, end + len(rule.policies)
        for policy, verdict in zip(rule.policies, verdicts[begin:end], strict=True):
            wait = verdict.retry_ms
            known = not (verdict.allowed or wait is None or policy.limit.has_slots)
            states.append(
                PolicyState(
                    policy.name,
                    policy.quota if rule.changed_at is None else verdict.quota,
                    policy.window,
                    verdict.remaining,
                    (now_ms + verdict.reset_ms) / 1000,
                    verdict.allowed,
                    (wait or 0) / 1000 if known else None,
                    wait is None,
                )
            )
            parts.append(verdict.state_part)
        name, shadow = rule.rule.name, rule.rule.shadow
        decision = decided(name, charge.identifier, tuple(states), shadow=shadow)
        charge.decision = decision
        denied = denied or not (decision.allowed or charge.group)
        if decision.allowed or charge.group <= 0:
            charge.state_parts = tuple(parts)
    if denied:  # the other limits of the group were not charged either
        for charge in charges:
            if charge.group <= 0:
                charge.state_parts = None


def decide_allowed(charge: RuleCharge, reply: Reply, now_ms: int) -> bool:
    """Do the same as ``decide`` for one charge with one limit, if the script has allowed it.

    Returns whether the charge was decided.
    """
    policies = charge.rule.policies
    if len(policies) != 1 or not isinstance(reply, list) or len(reply) != _NUMBERS_PER_LIMIT:
        return False
    numbers: list[Any] = reply
    allowed, remaining, reset_ms, _, part, quota = numbers
    if allowed != 1 or not _INT.issuperset(map(type, numbers)):
        return False
    rule, policy = charge.rule, policies[0]
    limit = policy.quota if rule.changed_at is None else quota
    reset = (now_ms + reset_ms) / 1000
    state = PolicyState(policy.name, limit, policy.window, remaining, reset, True)
    charge.state_parts = (part,)
    charge.decision = Decision(
        True, rule.rule.name, charge.identifier, limit, remaining, reset, None, (state,)
    )
    return True


def share_buckets(charges: Sequence[RuleCharge]) -> None:
    """Charge rules of the same bucket once, with the highest of their costs and one slot."""
    buckets: dict[str, list[RuleCharge]] = {}
    for charge in charges:
        if charge.decision is None:
            buckets.setdefault(charge.base, []).append(charge)
    for sharing in buckets.values():
        cost = max(charge.cost for charge in sharing)
        token = max(charge.token for charge in sharing)
        for charge in sharing:
            charge.cost, charge.token = cost, token


def checked_cost(cost: object) -> int:
    """Return a valid cost from an application's function; raises ValueError.

    The function may read the cost from the request, so a huge number must only be denied.
    """
    if isinstance(cost, bool) or not isinstance(cost, int) or cost < 0:
        raise ValueError(f"a cost should be a whole number from 0, not {cost!r}")
    return min(cost, MAX_QUOTA)


class _BrokenError(Exception):
    """A function of the application raised an exception, which was emitted."""


class Charging:
    """Determines the charges of requests, by rules in matching order."""

    def __init__(  # noqa: PLR0913, PLR0917
        self,
        rules: tuple[CompiledRule, ...],
        match: Match,
        secret: Callable[[], bytes],
        observe: Observer,
        random: Callable[[], int],
        unmatched: Unmatched,
        watch: AddressWatch,
    ) -> None:
        self.rules = rules
        self.advisor: Advisor = Advisor(observe, watch)
        self.tiers: dict[tuple[str, Any], CompiledRule] = {}
        """Rules with limits returned by functions, by the rule's setting and the limits."""
        self._match = match
        self._secret = secret
        self._observe = observe
        self._random = random
        self._unmatched = unmatched

    async def charges_for(self, request: HTTPRequest) -> list[RuleCharge]:
        """Return the charges of any request; empty if it is exempt. A flow.

        If no quota is involved, a charge already has its decision. If the path can be interpreted
        in several ways, the rules for each interpretation apply, because it is unknown which of
        them the application uses. After a final line feed, Starlette's mounts route the whole path
        again, so any rule may apply.
        """
        charges = await self._charges(request)
        for path in other_readings(request.path):
            names = [charge.rule.rule.name for charge in charges]
            other = replace(request, path=path)
            for charge in await self._charges(other, any_path=request.path[-1] == "\n"):
                if charge.rule.rule.name not in names:
                    charges.append(charge)
        if len(charges) > 1:
            share_buckets(charges)
        return charges

    async def charge_as(
        self, rule: CompiledRule, request: HTTPRequest, cost: int
    ) -> RuleCharge | None:
        """Return the charge of a cost to the client of a request under a rule. A flow.

        None if the rule allows the client. It is not checked whether the rule covers the request.
        """
        return await self._charge(rule, request, broken=False, cost=cost)

    def charge_to(self, rule: CompiledRule, who: str | Identifier, cost: int) -> RuleCharge | None:
        """Do the same as ``charge_as`` for an identifier, which may be text as in decisions."""
        charge = RuleCharge(rule, "", cost=cost)
        try:
            charge.identifier = who if isinstance(who, str) else key_text(who, self._secret)
            charge.base = rule.key_base(charge.identifier)
            if rule.rule.denied and self._lists(rule.rule.denied, who):
                charge.decide_by("deny list")
            elif rule.rule.allowed and self._lists(rule.rule.allowed, who):
                return None
        except ConfigurationError:
            raise
        except Exception as error:  # noqa: BLE001 - a bug here must not skip the limit
            self._observe(InternalError("begin", error))
            charge.local = rule.rule.on_error == "local"
            if not charge.local:
                charge.decide_by(rule.rule.on_error)
        return charge

    def _lists(self, listed: IdentityList, who: str | Identifier) -> bool:
        """Whether a list contains an identifier, which may be text as in decisions."""
        if isinstance(who, Identifier):
            return who in listed
        kind, _, value = (unquote(part, errors="surrogatepass") for part in who.partition("="))
        if not who.partition("=")[2].startswith("#"):
            return Identifier(kind, value) in listed
        secrets = (Identifier(*each, secret=True) for each in listed.identities if each[0] == kind)
        return any(key_text(each, self._secret) == who for each in secrets)

    async def _charges(self, request: HTTPRequest, *, any_path: bool = False) -> list[RuleCharge]:
        charges: list[RuleCharge] = []
        covered = False
        for rule in self.rules:
            if not rule.covers(request, any_path=any_path) or (rule.is_default and covered):
                continue
            self._unmatched.waiting.pop(rule.setting, None)
            broken = False
            if (when := rule.rule.when) is not None:
                try:
                    with self._reporting(rule, "when"):
                        if not await call(when, request):
                            continue
                except _BrokenError:
                    broken = True
            charge: RuleCharge | None = None
            if not broken or rule.rule.on_error == "local":
                try:
                    limited = await self._tier(rule, request)
                    if limited.rule.parsed is None:
                        if any_path:
                            continue
                        return []
                    charge = await self._charge(limited, request, broken=broken)
                    broken = False
                except _BrokenError:
                    broken = True
            if broken:
                charge = RuleCharge(rule, "")
                charge.decide_by(rule.rule.on_error)
            if charge is not None:
                charges.append(charge)
            covered = covered or not rule.rule.shadow
            if covered and self._match == "first" and not any_path:
                break
        return charges

    async def _tier(self, rule: CompiledRule, request: HTTPRequest) -> CompiledRule:
        """Return the rule with the limits that its function returns; itself without a function."""
        tiers = rule.rule.parsed
        if not isinstance(tiers, Tiers):
            return rule
        with self._reporting(rule, "limits"):
            returned = await call(tiers.of, request)
            limits = tuple(returned) if isinstance(returned, list) else returned
            known = self.tiers.get((rule.setting, limits))
            if known is not None:
                return known
            tier = tier_of(rule, limits)
        if len(self.tiers) >= MOST_TIERS:
            self.tiers.clear()
        self.tiers[rule.setting, limits] = tier
        return tier

    async def _charge(
        self, rule: CompiledRule, request: HTTPRequest, *, broken: bool, cost: Any = None
    ) -> RuleCharge | None:
        """Return the charge of a request under a rule; None if the request is free.

        ``cost`` replaces the rule's cost. If a part is broken, the rule's ``on_error`` decides, and
        ``local`` counts with the parts that are known.
        """
        charge = RuleCharge(rule, "")
        try:
            identifier = await self._identifier(rule, request)
            if identifier is None:
                charge.decide_by("challenge")
                return charge
            charge.identifier = key_text(identifier, self._secret)
            if rule.rule.denied or rule.rule.allowed:
                names = await self._listed_as(rule, identifier, request)
                if any(name in rule.rule.denied for name in names):
                    charge.decide_by("deny list")
                    return charge
                if any(name in rule.rule.allowed for name in names):
                    return None
        except ConfigurationError:
            raise
        except _BrokenError:
            broken = True
        except Exception as error:  # noqa: BLE001 - a bug here must not skip the limit
            self._observe(InternalError("begin", error))
            broken = True
        cost = rule.rule.cost if cost is None else cost
        if not isinstance(cost, int):
            try:
                with self._reporting(rule, "cost"):
                    cost = checked_cost(await call(cost, request))
            except _BrokenError:
                cost, broken = 1, True
            if cost == 0 and rule.rule.settle is not None:
                cost = 1  # until the final cost is known
        if broken and not (rule.rule.on_error == "local" and rule.policies):
            charge.decide_by(rule.rule.on_error)
            return charge
        charge.cost, charge.local = cost, broken
        charge.base = rule.key_base(charge.identifier)
        charge.token = self._random() if rule.has_slots else 0
        return charge if cost else None

    async def _identifier(self, rule: CompiledRule, request: HTTPRequest) -> Identifier | None:
        """Return the identifier that ``by`` finds, otherwise the client's address.

        None if there is no identifier and the rule has a challenge. Raises _BrokenError if the
        client is unknown, so that unrelated clients do not share a quota.
        """
        found: Identifier | None = None
        is_address = rule.by is rule.address
        try:
            found = await extract(rule.by, request)
        except ConfigurationError:
            raise
        except Exception as error:  # noqa: BLE001 - errors of the application's function
            self._observe(UserCodeFailed(_ADDRESS if is_address else rule.named("by"), error))
        if found is not None:
            self.advisor.look(rule, found, request)
            return found
        if rule.rule.challenge is not None:
            return None
        if is_address and isinstance(rule.by, Finder):
            found = peer_address(request)  # the extractor was already called, and found nothing
        else:
            found = await self._client(rule, request)
        if found is None:
            self.advisor.report_no_address(rule, request)
            raise _BrokenError
        self.advisor.look(rule, found, request)
        return found

    async def _client(self, rule: CompiledRule, request: HTTPRequest) -> Identifier | None:
        """Return the client's address; None if it is unknown. A flow."""
        if not isinstance(rule.address, Finder):
            return rule.client_address(request)
        try:
            found = await extract(rule.address, request)
        except Exception as error:  # noqa: BLE001 - errors of the application's function
            self._observe(UserCodeFailed(_ADDRESS, error))
            found = None
        return found or peer_address(request)

    async def _listed_as(
        self, rule: CompiledRule, identifier: Identifier, request: HTTPRequest
    ) -> list[Identifier]:
        """Return the client's identifiers that the rule's lists may contain.

        Networks in lists refer to the address, even if the rule identifies clients otherwise.
        """
        names = [identifier]
        if identifier.kind != "ip" and (rule.rule.denied.networks or rule.rule.allowed.networks):
            address = await self._client(rule, request)
            names += [address] if address else []
        return names

    @contextmanager
    def _reporting(self, rule: CompiledRule, part: str) -> Iterator[None]:
        """Emit exceptions of the application's code, and raise _BrokenError instead."""
        try:
            yield
        except Exception as error:
            self._observe(UserCodeFailed(rule.named(part), error))
            raise _BrokenError from error


# ------------------------------------------------------------------------------------------------
# Settings that are probably wrong: they are reported once, with a remedy.

SAMPLE = 1000
"""The number of requests in a sample."""
_LOOKED_INTO = 50
"""The number of requests at the start of a sample that are checked for a proxy in front."""
_DOMINATING = 0.9

_ADDRESS = "client_ip"
"""The name of the setting."""


_OF_CONNECTIONS = frozenset({"ip", "peer"})
"""The kinds of identifiers that depend on the connection."""


class AddressWatch:
    """Emits SettingDoubted once for the application if ``client_ip`` should be set.

    ``platform`` is the detected platform. ``done`` is True if nothing needs to be watched. Lost or
    repeated events under threads are harmless.
    """

    __slots__ = ("_observe", "_platform", "done")

    def __init__(self, observe: Observer, platform: str | None, *, done: bool = False) -> None:
        self._observe = observe
        self._platform = platform
        self.done: bool = done

    def look(self, request: HTTPRequest) -> bool:
        """Check a request that was counted by its address while ``client_ip`` is not set."""
        advice = None if self.done else address_advice(request, self._platform)
        if advice is not None:
            self.done = True
            self._observe(SettingDoubted(_ADDRESS, advice))
        return advice is not None


class Advisor:
    """Emits SettingDoubted if nearly all requests have the same identifier.

    If a proxy is not trusted, all clients share its address. A header field that a gateway sets may
    also be the same for all clients. Identifiers from the application's functions are not checked,
    because one quota for all clients may be intended. The first requests of each sample are also
    passed to ``watch``. Threads use it concurrently; lost counts are harmless.
    """

    __slots__ = ("_candidate", "_count", "_emitted", "_observe", "_seen", "_unknown", "_watch")

    def __init__(self, observe: Observer, watch: AddressWatch) -> None:
        self._observe = observe
        self._watch = watch
        self._emitted = False
        self._unknown: set[str] = set()
        self._candidate: Identifier | None = None
        self._count = self._seen = 0

    def look(self, rule: CompiledRule, found: Identifier, request: HTTPRequest) -> None:
        """Check a request whose identifier was found by an extractor of this package."""
        if found.kind == "id" or self._emitted:
            return
        watches = self._seen < _LOOKED_INTO and rule.is_watched and not self._watch.done
        if watches and not _OF_CONNECTIONS.isdisjoint(found.kind.split("+")):
            self._watch.look(request)
        candidate = self._candidate = self._candidate or found
        self._seen += 1
        self._count += found is candidate or found == candidate
        if self._seen >= SAMPLE:
            if self._count >= SAMPLE * _DOMINATING:
                self._emitted = True
                self._observe(SettingDoubted(rule.named("by"), _dominating(candidate)))
            self._candidate = None
            self._seen = self._count = 0

    def report_no_address(self, rule: CompiledRule, request: HTTPRequest) -> None:
        """Emit, once for each rule, that clients cannot be distinguished."""
        if rule.setting not in self._unknown:
            self._unknown.add(rule.setting)
            if rule.is_watched and self._watch.look(request):
                return
            self._observe(
                SettingDoubted(
                    rule.setting,
                    "some requests have no client address, as with a Unix socket, so "
                    f"on_error={rule.rule.on_error!r} applies to them; if a proxy sends the "
                    "address in X-Forwarded-For, set client_ip=1",
                )
            )


def _dominating(found: Identifier) -> str:
    most = f"nearly all of {SAMPLE} requests"
    if found.kind == "ip":
        return (
            f"{most} came from {found.value} and share one quota; if this is a proxy, set "
            "client_ip=1 (the number of proxies in front), or their networks or platform"
        )
    return (
        f"{most} have the same {found.kind} and share one quota; if they come from "
        "several clients, use an identifier that differs between clients, or several combined: "
        "combine(..., client_ip())"
    )


# ------------------------------------------------------------------------------------------------
# The Lua scripts that take and settle charges.

_NUMBERS_PER_LIMIT = 6
MILLION = 1_000_000
_INT = frozenset({int})
FOLLOWS = -1
"""The group of a shadow rule's charges in the bucket of an enforced rule: they are taken if the
charges of group 0 are, and their own verdicts have no effect."""


class Charge(Struct, frozen=True):
    """A charge to one limit of one identifier."""

    base: str
    """The beginning of the Redis keys, escaped: ``PREFIX:RULE:IDENTIFIER``."""
    limit: Limit
    cost: int
    group: int = 0
    """Charges of the same group are taken all or none; see ``FOLLOWS``."""
    token: int = 0
    """Identifies the request's slot if the limit is a Concurrency."""
    changed_at: str | None = None
    """The key of the quota set at run time; None if the rule is not dynamic."""


class Verdict(Struct, frozen=True):
    """The state of one limit after the call. Times are in milliseconds after the call's time."""

    allowed: bool
    remaining: int
    reset_ms: int
    retry_ms: int | None
    """0 if the request is allowed; None if it never will be, because the cost exceeds the limit."""
    state_part: int
    """The part of the state that was charged, for refunds: a window, or the time of an entry."""
    quota: int
    """The limit's quota, or the quota set at run time."""
    leased: int = 0
    """The units that were reserved for a lease."""


class Settlement(Struct, frozen=True):
    """Units to charge to one limit after the response, even beyond the quota; below 0 to refund."""

    base: str
    limit: Limit
    units: int
    state_part: int
    """The part of the state that the units were taken from, as in the verdict."""


@cache
def limit_script() -> Script:
    """Return the script that checks limits and takes charges."""
    return _script("charge")


@cache
def settle_script() -> Script:
    """Return the script that settles charges after the response."""
    return _script("settle")


def read_scripts() -> None:
    """Read the scripts' files in advance, so that no request blocks an event loop to read them."""
    limit_script()
    settle_script()


def _script(main: str) -> Script:
    algorithms = [f"algorithms/{name}" for name in ("common", *ALGORITHMS)]
    # The flag lets Upstash lock only the script's own keys.
    return script(__package__, *algorithms, main, first_line="#!lua flags=allow-key-locking\n")


def charge_command(
    charges: Sequence[Charge],
    now_ms: int,
    *,
    peek: bool = False,
    leases: Sequence[tuple[str, ...]] = (),
) -> Command:
    """Return the command that checks all charges, and takes those of a group all or none.

    With ``peek``, nothing is charged. ``leases`` are the additional arguments for each charge, if
    the call does anything for a lease.
    """
    keys: list[Argument] = []
    arguments: list[Argument] = [str(now_ms), "lease" if leases else "peek" if peek else "take"]
    for index, charge in enumerate(charges):
        keys += charge.limit.keys(charge.base, now_ms)
        if charge.changed_at is not None:
            keys.append(charge.changed_at)
        changes = charge.changed_at is not None
        arguments += charge.limit.words(charge.cost, charge.group, charge.token, changes=changes)
        if leases:
            arguments += leases[index]
    return _command(limit_script(), keys, arguments)


def settle_command(settlements: Sequence[Settlement], now_ms: int) -> Command:
    """Return the command that charges or refunds after the response."""
    keys: list[Argument] = []
    arguments: list[Argument] = [now_ms]
    for settlement in settlements:
        base, limit, part = settlement.base, settlement.limit, settlement.state_part
        if settlement.units < 0:
            own = limit.refund_keys(base, part, now_ms)
        else:
            own = limit.keys(base, now_ms)
        keys += own
        a, b, c = limit.numbers
        if limit.has_slots:
            c = str(part)
        arguments += (limit.name, settlement.units, a, b, c, part, len(own))
    return _command(settle_script(), keys, arguments)


def _command(called: Script, keys: list[Argument], arguments: list[Argument]) -> Command:
    """Return the command that calls a script."""
    return Command(("EVALSHA", called.sha, str(len(keys)), *keys, *arguments), False, called)


def read_verdicts(reply: Reply, count: int, *, leases: bool = False) -> tuple[Verdict, ...]:
    """Return the script's verdicts on ``count`` limits; ``leases`` if it was called with leases.

    Raises the reply if it is an error, and UnexpectedAnswer if it has another format.
    """
    if isinstance(reply, CommandError):
        raise reply
    numbers: list[Any] = reply if isinstance(reply, list) else []
    each = _NUMBERS_PER_LIMIT + leases
    if len(numbers) != each * count:
        raise UnexpectedAnswer(f"the rate limit script returned {type(reply).__name__}")
    if not _INT.issuperset(map(type, numbers)):
        raise UnexpectedAnswer("the rate limit script returned something other than integers")
    verdicts = []
    for begin in range(0, len(numbers), each):
        allowed, remaining, reset, retry, part, quota = numbers[begin : begin + _NUMBERS_PER_LIMIT]
        if allowed not in {0, 1}:
            raise UnexpectedAnswer(f"the rate limit script returned {allowed}, not 0 or 1")
        wait = None if retry < 0 else retry
        leased = numbers[begin + _NUMBERS_PER_LIMIT] if leases else 0
        verdicts.append(Verdict(allowed == 1, remaining, reset, wait, part, quota, leased))
    return tuple(verdicts)
