"""Rules as the limiter uses them: checked against each other, with everything derived once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote

from msgspec import Struct
from msgspec.structs import replace

from upstash_middleware.core.identify import (
    ClientAddress,
    SentValue,
    address_behind_proxies,
    escape,
)
from upstash_middleware.core.ratelimit.algorithms import (
    Concurrency,
    FixedWindow,
    Limit,
    SlidingWindow,
)
from upstash_middleware.core.ratelimit.algorithms.fixed_window import KeptFixedWindow
from upstash_middleware.core.ratelimit.rules import (
    UNLIMITED,
    RateLimitRule,
    Tiers,
    is_unlimited,
    split_host,
)
from upstash_middleware.core.ratelimit.script import charge_words
from upstash_middleware.errors import ConfigurationError, named_part

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from upstash_middleware.core.identify import AnyExtractor, Identifier
    from upstash_middleware.messages import HTTPRequest

_DEFAULT_PORTS = {"http": "80", "ws": "80", "https": "443", "wss": "443"}


class Policy(Struct, frozen=True):
    """One limit of a rule under the name that clients see."""

    name: str
    limit: Limit
    quota: int
    window: int | None
    """Seconds, the draft's ``w``; None if it is not a whole number of them."""
    words: tuple[str, ...] = ()
    """The script's arguments for the rule's fixed cost."""


class CompiledRule(Struct, frozen=True, kw_only=True):
    """A rule and what follows from it."""

    rule: RateLimitRule
    setting: str
    base: str
    """What its keys begin with: ``PREFIX:RULE:``, the rule escaped; or only a shared prefix."""
    policies: tuple[Policy, ...]
    """Empty for an exempting rule, one with tiers, one with a limiter of ``upstash_ratelimit``."""
    methods: frozenset[str]
    selects: bool
    """Whether it covers only some methods, hosts or paths."""
    is_default: bool = False
    at_handler: bool = False
    """Whether it is in front of a handler, where each request costs the handler's work."""
    address: ClientAddress | None = None
    """Finds the client where ``by`` does not; None where no proxies are configured."""
    tier: Any = None
    """What the rule's function of the request has returned, where it has one."""
    changed_at: str | None
    """The key of a quota that overrides the rule's; None for a rule that is not dynamic."""
    has_slots: bool
    settles: bool
    """Whether to settle after the response even if the application charges nothing."""
    is_exempt: bool
    """Whether every request that it covers is exempt."""
    cost: int
    """What a request takes, unless a function returns that."""
    simple_by: ClientAddress | SentValue | None
    """The rule's ``by``, if nothing else is needed to charge a request; None if more is."""

    def named(self, part: str) -> str:
        """Return what logs and events call a part of this rule."""
        return named_part(self.setting, part)

    def key_base(self, identifier: str) -> str:
        """Return the beginning of the keys of an identifier, as in decisions."""
        if self.rule.shared_prefix is None:
            return self.base + identifier
        return self.base + bare_value(identifier)

    def covers(self, request: HTTPRequest, *, any_path: bool = False) -> bool:
        """Whether method, host and path are those of this rule; ``when`` is not called."""
        if self.methods:
            if request.method not in self.methods:
                return False
        elif request.method == "OPTIONS" and not self.at_handler and is_preflight(request):
            return False
        if self.rule.hosts and not any(_is_host(request, host) for host in self.rule.hosts):
            return False
        pattern = self.rule.pattern
        return any_path or pattern is None or pattern.match(request.path) is not None

    def client_address(self, request: HTTPRequest) -> Identifier | None:
        """Return the client's address where proxies are configured, else None."""
        return None if self.address is None else self.address(request)


def _is_host(request: HTTPRequest, host: str) -> bool:
    """Whether a request is for a host of a rule; a port counts only if the rule's host has one."""
    (requested, port), (name, wanted) = split_host(request.host), split_host(host)
    if wanted and (port or _DEFAULT_PORTS.get(request.scheme)) != wanted:
        return False
    return requested.endswith(name[1:]) if name.startswith("*.") else requested == name


def is_preflight(request: HTTPRequest) -> bool:
    """Whether a browser only asks whether it may send a request (Fetch, CORS protocol)."""
    return (
        request.method == "OPTIONS"
        and "origin" in request.headers
        and "access-control-request-method" in request.headers
    )


def bare_value(identifier: str) -> str:
    """Return an identifier, as in decisions, in the form of upstash-ratelimit: only its value.

    A hash remains as it is.
    """
    _, _, value = identifier.partition("=")
    return identifier if value.startswith("#") else unquote(value, errors="surrogatepass")


def compile_rules(
    rules: tuple[RateLimitRule, ...],
    default: RateLimitRule | None,
    prefix: str,
    also: Sequence[AnyExtractor] = (),
    *,
    at_handler: bool = False,
) -> tuple[CompiledRule, ...]:
    """Return the rules in order of matching, the default last.

    ``also`` are extractors of other rules of the application, which may configure its proxies;
    ``at_handler`` means that the rules are in front of a handler and not of an application.
    Raises ConfigurationError for two rules of one name, or a default that does not cover all.
    """
    placed = [(rule, _setting(rule, f"rate_limits[{index}]")) for index, rule in enumerate(rules)]
    if default is not None:
        _check_default(default)
        placed.append((default, _setting(default, "default_limit")))
    _check_names(placed)
    compiled = [_compiled(rule, setting, prefix) for rule, setting in placed]
    sliding = {
        policy.limit.state(rule.base)
        for rule in compiled
        for policy in rule.policies
        if isinstance(policy.limit, SlidingWindow)
    }
    extractors = [*(rule.by for rule, _ in placed), *also]
    costs: dict[str, set[tuple[int, bool]]] = {}
    for rule in compiled:
        costs.setdefault(rule.base, set()).add((rule.cost, callable(rule.rule.cost)))
    return tuple(
        replace(
            rule,
            policies=tuple(_completed(policy, rule, sliding) for policy in rule.policies),
            # Rules of one bucket take one cost from it, the highest.
            simple_by=rule.simple_by if len(costs[rule.base]) == 1 else None,
            is_default=rule.rule is default,
            at_handler=at_handler,
            address=address_behind_proxies([rule.rule.by, *extractors]),
        )
        for rule in compiled
    )


def _setting(rule: RateLimitRule, otherwise: str) -> str:
    """Return the setting of a rule; ``otherwise`` for a rule that was created in code."""
    return otherwise if rule.setting == RateLimitRule.__name__ else rule.setting


def _check_default(default: RateLimitRule) -> None:
    for name in ("path", "methods", "hosts", "when"):
        if getattr(default, name):
            raise ConfigurationError(
                f"{named_part(_setting(default, 'default_limit'), name)} = "
                f"{getattr(default, name)!r}: the default covers whatever no rule does, so it has "
                "neither path nor methods nor hosts nor when; move this rule to rate_limits"
            )


def _check_names(placed: list[tuple[RateLimitRule, str]]) -> None:
    taken: dict[str, str] = {}
    for rule, setting in placed:
        if rule.parsed is None:
            continue
        if rule.name in taken:
            raise ConfigurationError(
                f"{named_part(setting, 'name')} = {rule.name!r}: {taken[rule.name]} has this name "
                "already, and rules of one name would share their counters; give it another"
            )
        taken[rule.name] = setting


def _completed(policy: Policy, rule: CompiledRule, sliding: set[tuple[str, int]]) -> Policy:
    """Return a policy, whose counters are kept for as long as a sliding window weighs them."""
    limit = policy.limit
    if isinstance(limit, FixedWindow) and limit.state(rule.base) in sliding:
        limit = KeptFixedWindow(limit.limit, limit.per)
    words = charge_words(limit, rule.cost, changes=rule.changed_at is not None)
    return replace(policy, limit=limit, words=words)


def _compiled(rule: RateLimitRule, setting: str, prefix: str) -> CompiledRule:
    limits = rule.parsed if isinstance(rule.parsed, tuple) else ()
    methods = frozenset(rule.methods)
    base = f"{prefix}:{escape(rule.bucket or rule.name)}:"
    if rule.shared_prefix is not None:
        base = f"{rule.shared_prefix}:"
    has_slots = any(isinstance(limit, Concurrency) for limit in limits)
    needs_more = (
        *(rule.when, rule.allowed, rule.denied, rule.shadow, rule.challenge, callable(rule.cost)),
        *(has_slots, not limits, not isinstance(rule.by, ClientAddress | SentValue)),
    )
    return CompiledRule(
        rule=rule,
        setting=setting,
        base=base,
        changed_at=f"{base}dynamic:global" if rule.dynamic else None,
        policies=tuple(_policy(rule, limit, several=len(limits) > 1) for limit in limits),
        # Frameworks answer HEAD with the handler of GET.
        methods=methods | {"HEAD"} if "GET" in methods else methods,
        selects=bool(methods or rule.hosts or rule.path),
        has_slots=has_slots,
        settles=rule.settle is not None or has_slots,
        is_exempt=rule.parsed is None and rule.when is None,
        cost=rule.cost if isinstance(rule.cost, int) else 1,
        simple_by=None if any(needs_more) else cast("ClientAddress | SentValue", rule.by),
    )


def _policy(rule: RateLimitRule, limit: Limit, *, several: bool) -> Policy:
    if isinstance(limit, Concurrency):
        return Policy(f"{rule.name} at once" if several else rule.name, limit, limit.quota, None)
    name = f"{rule.name} {_short(limit.milliseconds)}" if several else rule.name
    seconds, rest = divmod(limit.span_ms, 1000)
    return Policy(name, limit, limit.quota, None if rest else seconds)


def _short(milliseconds: int) -> str:
    for unit, length in (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1000)):
        if milliseconds % length == 0:
            return f"{milliseconds // length}{unit}"
    return f"{milliseconds}ms"


def tier_of(compiled: CompiledRule, limits: Any) -> CompiledRule:
    """Return a rule with limits that its function has returned.

    Its counters are the same, so that a change of tier carries over used units where windows
    agree. Raises ConfigurationError.
    """
    if is_unlimited(limits):  # whatever else the rule holds is about limits
        exempt = RateLimitRule(None, UNLIMITED, name=compiled.rule.name)
        return _compiled(exempt, compiled.setting, "")
    rule = replace(compiled.rule, limits=limits, setting=compiled.setting)
    if isinstance(rule.parsed, Tiers):
        raise ConfigurationError(f"{compiled.named('limits')}: it returned another function")
    return replace(
        _compiled(rule, compiled.setting, ""),
        base=compiled.base,
        is_default=compiled.is_default,
        address=compiled.address,
        tier=limits,
    )


def uncertain_bases(rules: Sequence[CompiledRule]) -> Iterator[str]:
    """Yield what the keys begin with for which no denial is certain until its Retry-After.

    Those of a rule with ``settle``, since a request in flight may refund its units; and those of a
    bucket in which limits drain or refill at several rates, since a request under one changes the
    rate.
    """
    rates: dict[str, set[tuple[Limit, ...]]] = {}
    for each in rules:
        if each.rule.settle is not None:
            yield each.base
        refilling = tuple(policy.limit for policy in each.policies if policy.limit.refills)
        rates.setdefault(each.base, set()).add(refilling)
    yield from (base for base, found in rates.items() if len(found) > 1 and any(found))
