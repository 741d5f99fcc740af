"""Rules as users write them; checked at construction, matched and decided elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from upstash_middleware.core.identify import AnyExtractor, IdentityList, client_ip
from upstash_middleware.core.ratelimit import rule_checks
from upstash_middleware.core.ratelimit.rule_values import (
    UNLIMITED,
    Cost,
    OnError,
    Predicate,
    SdkLimiter,
    Settle,
    Tiers,
)
from upstash_middleware.values import dataclass, field

if TYPE_CHECKING:
    from collections.abc import Iterable

    from upstash_middleware.core.patterns import PathPattern
    from upstash_middleware.core.ratelimit.limits import Limit

__all__ = [
    "UNLIMITED",
    "Cost",
    "OnError",
    "Predicate",
    "RateLimitRule",
    "SdkLimiter",
    "Settle",
    "Tiers",
]


@dataclass(frozen=True, slots=True)
class RateLimitRule:
    """Which requests share a quota, and which quota.

    ``RateLimitRule("/api/generate", "10/10s", methods=("POST",))``. Functions of the request may
    be async. Raises ConfigurationError.
    """

    path: str | None = None
    """A pattern: ``/p/{id}`` is one quota whatever the id. None is every path."""
    limits: Any = None
    """Text (``"10/10s"``), a limit, several of them, of which a request takes from all or from
    none; a limiter of ``upstash_ratelimit``; ``"unlimited"``, which exempts; or a function of the
    request that answers one of these, for tiers."""
    methods: Iterable[str] = ()
    """Those that it covers, GET covering HEAD. None named is all, save browsers' CORS preflights,
    which only a rule that names OPTIONS covers."""
    by: AnyExtractor = field(default_factory=client_ip)
    """Whose quota it is. What finds nobody falls to the address of the connection."""
    name: str = ""
    """Printable ASCII without colons; made from methods and path where none is given."""
    on_error: OnError = "open"
    """When Upstash cannot be asked: ``"open"`` lets the request pass, ``"closed"`` answers 503,
    ``"local"`` counts in this process."""
    cost: Cost = 1
    """What a request takes, or a function of the request that answers it; 0 is free."""
    when: Predicate | None = None
    """A function of the request that narrows further which are covered."""
    allow: Iterable[str] = ()
    """Networks and identities that pass uncounted: ``10.0.0.0/8``, ``user=7``, ``alice``."""
    deny: Iterable[str] = ()
    """Networks and identities that get a 403."""
    shadow: bool = False
    """Only report: stop nothing, and let the rules after it apply as if it were not there."""
    shared_prefix: str | None = None
    """Count on the keys of an upstash-ratelimit with this prefix, in Python or JavaScript; for
    fixed and sliding windows."""
    local_share: float = 1.0
    """Which part of the quota this process counts under ``"local"``: 0.25 for one of four."""
    settle: Settle | None = None
    """A function of request and response that answers what the request costs in the end, instead
    of ``cost``, which is taken before: ``lambda request, response: int(response.status == 401)``.
    A handler adds to that with ``Decision.charge``."""
    challenge: str | None = None
    """Answer 401 with this challenge, ``"Bearer"`` for instance, where ``by`` finds nobody."""
    dynamic: bool = False
    """Whether the limit, one fixed or sliding window, can be changed at run time, with
    ``RateLimiter.set_limit``, or with a shared prefix by the JavaScript SDK."""
    hosts: Iterable[str] = ()
    """Those that it covers: ``api.example.com``, ``*.example.com``. None named is all."""
    bucket: str = ""
    """Rules that name the same bucket share their counters."""
    jitter: float = 0.0
    """Seconds over which denied clients are spread when they are told to come back."""
    deadline: float | None = None
    """Seconds that asking about these requests may take in all; None for what the setting of that
    name says. Rules that are asked about together have the longest of theirs."""
    setting: str = field(default="RateLimitRule", kw_only=True, compare=False, repr=False)
    """What errors and events call this rule: where it was set, as ``rate_limits[0]``."""
    pattern: PathPattern | None = field(init=False, repr=False, compare=False)
    parsed: tuple[Limit, ...] | Tiers | SdkLimiter | None = field(
        init=False, repr=False, compare=False
    )
    """The limits, parsed; None for ``"unlimited"``."""
    allowed: IdentityList = field(init=False, repr=False, compare=False)
    denied: IdentityList = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "pattern", rule_checks.parsed_pattern(self))
        put(self, "methods", rule_checks.checked_methods(self))
        put(self, "hosts", rule_checks.checked_hosts(self))
        put(self, "parsed", rule_checks.parsed_limits(self))
        put(self, "name", rule_checks.name_of(self))
        put(self, "allow", rule_checks.entries(self, "allow"))
        put(self, "deny", rule_checks.entries(self, "deny"))
        put(self, "allowed", rule_checks.parsed_list(self, "allow"))
        put(self, "denied", rule_checks.parsed_list(self, "deny"))
        rule_checks.check_together(self)
