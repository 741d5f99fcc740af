"""Rules as the limiter uses them: named for its keys, checked against each other, matched.

What can be worked out once is worked out here, at construction.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from upstash_middleware.core.identify import escape
from upstash_middleware.core.identify.identifier import Finder
from upstash_middleware.core.ratelimit.limits import Concurrency, Limit, quota, span_ms, window_ms
from upstash_middleware.core.ratelimit.rule_values import UNLIMITED, is_unlimited
from upstash_middleware.core.ratelimit.rules import RateLimitRule, Tiers
from upstash_middleware.errors import ConfigurationError
from upstash_middleware.values import dataclass, replace

if TYPE_CHECKING:
    from upstash_middleware.messages import Request


_HAS_PORT = re.compile(r":[0-9]+$")


@dataclass(frozen=True, slots=True)
class Policy:
    """One limit of a rule under the name that clients see."""

    name: str
    limit: Limit
    quota: int
    window: int | None
    """Seconds, as the draft's ``w``; None if it is not a whole number of them."""


@dataclass(frozen=True, slots=True)
class CompiledRule:
    """A rule, where it was set, and what its keys begin with."""

    rule: RateLimitRule
    setting: str
    base: str
    """``PREFIX:RULE:``, the rule escaped; a shared prefix stands alone."""
    policies: tuple[Policy, ...]
    """Empty for an exempting rule, one with tiers, one with a limiter of ``upstash_ratelimit``."""
    methods: frozenset[str]
    is_default: bool
    has_slots: bool
    is_tiered: bool
    """Whether a function of the request says what its limits are."""
    settles: bool
    """Whether there is something to settle after the response whatever the application charges."""
    has_lists: bool
    """Whether some identifiers are let through or turned away by name."""
    asks_finder: bool
    """Whether ``by`` is made of other extractors, to be awaited and not called."""
    changed_at: str | None
    """The key of a quota that overrules the rule's; None for a rule that is not dynamic."""
    tier: Any = None
    """What the rule's function of the request has answered, where it has one."""

    def key_base(self, identifier: str) -> str:
        """Return what keys of an identifier, given as in decisions, begin with.

        It is bare where keys are shared with upstash-ratelimit.
        """
        if self.rule.shared_prefix is None:
            return self.base + identifier
        return self.base + bare_value(identifier)

    def covers(self, request: Request) -> bool:
        """Whether method and path are those of this rule; ``when`` is not asked."""
        if self.methods:
            if request.method not in self.methods:
                return False
        elif request.method == "OPTIONS" and is_preflight(request):
            return False
        if self.rule.hosts and not any(_is_host(request.host, host) for host in self.rule.hosts):
            return False
        pattern = self.rule.pattern
        return pattern is None or pattern.match(request.path) is not None


def _is_host(asked: str, host: str) -> bool:
    """Whether a request's authority is a host; a port counts only where the host names one."""
    name, colon, port = asked.rpartition(":")
    if colon and port.isdigit() and not _HAS_PORT.search(host):
        asked = name
    if host.startswith("*."):
        return asked.endswith(host[1:])
    return asked == host


def tier_of(compiled: CompiledRule, limits: Any) -> CompiledRule:
    """Return a rule with limits that its function has answered.

    Its counters are the same, so that a change of tier carries over what was used where windows
    agree. Raises ConfigurationError.
    """
    if is_unlimited(limits):  # whatever else the rule says is about limits
        exempt = RateLimitRule(None, UNLIMITED, name=compiled.rule.name)
        return _compiled(exempt, compiled.setting, "")
    rule = replace(compiled.rule, limits=limits, setting=compiled.setting)
    if isinstance(rule.parsed, Tiers):
        raise ConfigurationError(f"{compiled.setting}.limits: it answered another function")
    tier = _compiled(rule, compiled.setting, "")
    return replace(tier, base=compiled.base, is_default=compiled.is_default, tier=limits)


def bare_value(identifier: str) -> str:
    """Return an identifier, given as in decisions, as upstash-ratelimit would hold it.

    A hash stays as it is.
    """
    _, _, value = identifier.partition("=")
    return identifier if value.startswith("#") else unquote(value, errors="surrogatepass")


def is_preflight(request: Request) -> bool:
    """Whether a browser only asks whether it may send a request (Fetch, CORS protocol)."""
    return (
        request.method == "OPTIONS"
        and "origin" in request.headers
        and "access-control-request-method" in request.headers
    )


def compile_rules(
    rules: tuple[RateLimitRule, ...], default: RateLimitRule | None, prefix: str
) -> tuple[CompiledRule, ...]:
    """Return the rules in order of matching, the default last.

    Raises ConfigurationError for two rules of one name, or a default that does not cover all.
    """
    _check_default(default)
    placed = [(rule, f"rate_limits[{index}]") for index, rule in enumerate(rules)]
    if default is not None:
        placed.append((default, "default_limit"))
    _check_names(placed)
    return tuple(_compiled(rule, setting, prefix) for rule, setting in placed)


def _compiled(rule: RateLimitRule, setting: str, prefix: str) -> CompiledRule:
    limits = rule.parsed if isinstance(rule.parsed, tuple) else ()
    methods = frozenset(rule.methods)
    own = f"{prefix}:{escape(rule.bucket or rule.name)}:"
    base = own if rule.shared_prefix is None else f"{rule.shared_prefix}:"
    return CompiledRule(
        rule=rule,
        setting=setting,
        base=base,
        changed_at=f"{base}dynamic:global" if rule.dynamic else None,
        policies=tuple(_policy(rule, limit, several=len(limits) > 1) for limit in limits),
        # Frameworks answer HEAD with the handler of GET.
        methods=methods | {"HEAD"} if "GET" in methods else methods,
        is_default=setting == "default_limit",
        has_slots=any(isinstance(limit, Concurrency) for limit in limits),
        is_tiered=isinstance(rule.parsed, Tiers),
        settles=rule.settle is not None or any(isinstance(x, Concurrency) for x in limits),
        has_lists=bool(rule.allowed or rule.denied),
        asks_finder=isinstance(rule.by, Finder),
    )


def _policy(rule: RateLimitRule, limit: Limit, *, several: bool) -> Policy:
    if isinstance(limit, Concurrency):
        return Policy(f"{rule.name} at once" if several else rule.name, limit, quota(limit), None)
    name = f"{rule.name} {_short(window_ms(limit))}" if several else rule.name
    seconds, rest = divmod(span_ms(limit), 1000)
    return Policy(name, limit, quota(limit), None if rest else seconds)


def _short(milliseconds: int) -> str:
    for unit, length in (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1000)):
        if milliseconds % length == 0:
            return f"{milliseconds // length}{unit}"
    return f"{milliseconds}ms"


def _check_default(default: RateLimitRule | None) -> None:
    if default is not None and (
        default.path is not None or default.methods or default.hosts or default.when
    ):
        raise ConfigurationError(
            f"default_limit = {default!r}: the default covers whatever no rule does, so it has "
            "neither path nor methods nor hosts nor when; put this rule into rate_limits"
        )


def _check_names(placed: list[tuple[RateLimitRule, str]]) -> None:
    taken: dict[str, str] = {}
    for rule, setting in placed:
        if rule.parsed is None:
            continue
        if rule.name in taken:
            raise ConfigurationError(
                f"{setting}.name = {rule.name!r}: {taken[rule.name]} has this name already, and "
                "rules of one name would share their counters; give it another"
            )
        taken[rule.name] = setting
