"""Rate limit rules: as users write them, and compiled for the limiter."""

from __future__ import annotations

import math
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast, get_args, runtime_checkable
from urllib.parse import unquote

from msgspec import Struct, field
from msgspec.structs import force_setattr, replace

from upstash_middleware.core.clock import Duration, seconds_in
from upstash_middleware.core.identify import (
    EXTRACTORS,
    AnyExtractor,
    ClientAddress,
    EventSource,
    IdentityList,
    SentValue,
    application_client_ip_of,
    client_ip,
    escape,
    extractor_named,
    framework_user,
    identity_list,
    in_application,
    is_extractor,
    peer_address,
    takes,
)
from upstash_middleware.core.patterns import PathPattern
from upstash_middleware.core.ratelimit.algorithms import (
    Concurrency,
    FixedWindow,
    Limit,
    SlidingWindow,
    parse_limits,
)
from upstash_middleware.core.ratelimit.algorithms.fixed_window import KeptFixedWindow
from upstash_middleware.core.ratelimit.algorithms.limit import MAX_QUOTA
from upstash_middleware.errors import ConfigurationError, RuleMeta, named_part, unknown_name
from upstash_middleware.messages import HTTPRequest, ResponseHead

if TYPE_CHECKING:
    from upstash_middleware.core.identify import Identifier

UNLIMITED = "unlimited"
"""The value of a rule's ``limits`` that exempts its requests."""

OnError = Literal["open", "closed", "local"]
Cost = int | Callable[[HTTPRequest], int | Awaitable[int]]
Settle = Callable[[HTTPRequest, ResponseHead], int | Awaitable[int]]
"""The head has status 500 if the application raised before its response."""
Predicate = Callable[[HTTPRequest], bool | Awaitable[bool]]

MIN_LEASED_QUOTA = 100
"""The setting ``lease`` does not apply to limits with a smaller quota."""
_MAX_LEASE_SECONDS = 3600
_DEFAULT_BUSY_UNITS = 10
"""The number of units within the lease's seconds from which an identifier is busy, by default."""


class Lease(Struct, frozen=True, dict=True, metaclass=RuleMeta):
    """Reserves a part of a busy identifier's quota, so that a process decides without calls.

    Args:
        seconds: The maximum time for which a slice of the quota is used, and the time whose traffic
            it should cover: seconds, a timedelta, or text such as ``"500ms"``; at most an hour;
            default 1.
        share: The maximum part of the remaining quota that one slice takes, rounded up to whole
            units; default 0.1.
        from_rate: The rate of an identifier in this process from which slices are taken for it, in
            units per second. None, the default, means ten units within ``seconds``.

    Raises:
        ConfigurationError: A value is invalid.
    """

    seconds: Duration = 1.0
    share: float = 0.1
    from_rate: float | None = None

    def __post_init__(self) -> None:
        seconds, share, rate = seconds_in(self.seconds), self.share, self.from_rate
        if seconds is None or not 0 < seconds <= _MAX_LEASE_SECONDS:
            raise self._field_error(
                "seconds",
                f"above 0 and at most {_MAX_LEASE_SECONDS}, a timedelta, or text such as '500ms'",
            )
        if not _is_number(share) or not 0 < share <= 1:
            raise self._field_error("share", "a number above 0 and at most 1")
        if rate is not None and not (_is_number(rate) and 0 < rate < math.inf):
            raise self._field_error("from_rate", "units per second, a number above 0, or None")
        force_setattr(self, "seconds", seconds)

    def _field_error(self, name: str, should_be: str) -> ConfigurationError:
        return ConfigurationError(
            f"{self}: {name} should be {should_be}, not {getattr(self, name)!r}"
        )

    @cached_property
    def milliseconds(self) -> int:
        """The seconds in milliseconds, at least 1."""
        return max(1, round(cast("float", self.seconds) * 1000))

    @cached_property
    def threshold(self) -> float:
        """The number of units within ``seconds`` from which an identifier is busy; at least 2."""
        if self.from_rate is None:
            return _DEFAULT_BUSY_UNITS
        return max(2, self.from_rate * cast("float", self.seconds))


AnyLease = Lease | Duration | Mapping[str, Any] | Literal[False]
"""The forms of a lease in settings: a Lease, seconds, a mapping of its fields, or False."""


def lease_in(given: object) -> Lease | Literal[False]:
    """Return the Lease for a value of a setting.

    Raises ConfigurationError without the name of the setting.
    """
    if given is False or isinstance(given, Lease):
        return given
    if isinstance(given, Mapping):
        return Lease(**{str(name): value for name, value in given.items()})
    seconds = seconds_in(given)
    if seconds is None:
        raise ConfigurationError(
            "a lease is a number of seconds, text such as '500ms' with a unit, a Lease such as "
            "Lease(seconds=1, share=0.2), a mapping of its fields, or False for none"
        )
    if seconds == 0:
        raise ConfigurationError("a lease must be longer than 0 seconds; use False for no lease")
    return Lease(seconds)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@runtime_checkable
class SdkLimiter(Protocol):
    """A limiter of ``upstash_ratelimit``, or a custom class with the same methods."""

    def limit_async(self, redis: Any, identifier: str, rate: int = 1) -> Awaitable[Any]:
        """Decide with the given client."""
        ...


AnyLimit = str | Limit | SdkLimiter
"""The forms of one limit: text, an algorithm of this package, or a limiter of the SDK."""
LimitsOfARequest = AnyLimit | Sequence[str | Limit]
AnyLimits = (
    LimitsOfARequest | Callable[[HTTPRequest], LimitsOfARequest | Awaitable[LimitsOfARequest]]
)
"""The forms of limits: one limit, several, or a function of the request, sync or async, that
returns either."""


class Tiers(Struct, frozen=True):
    """Limits that a function returns for each request."""

    of: Callable[[HTTPRequest], LimitsOfARequest | Awaitable[LimitsOfARequest]]


def is_unlimited(value: object) -> bool:
    """Whether a value of ``limits`` exempts requests."""
    return isinstance(value, str) and value.strip().lower() == UNLIMITED


class RateLimitRule(Struct, frozen=True, dict=True, metaclass=RuleMeta):
    """Selects requests, identifies whose quota they use, and sets the size of the quota.

    ``RateLimitRule("/api/generate", "10/10s", methods=("POST",))``. All functions of the request
    may be async.

    Args:
        path: A pattern for paths without the prefix under which the application is mounted. With
            ``/p/{id}``, all ids share one quota. None matches every path.
        limits: Text (``"10/10s"``), a limit, or several, which are charged together: all or none; a
            limiter of ``upstash_ratelimit``; ``"unlimited"``, which exempts requests; or a function
            of the request that returns one of these, for tiers.
        methods: The methods that the rule covers; GET includes HEAD. Empty means all, except CORS
            preflights of browsers, which are only covered by a rule that names OPTIONS.
        by: Identifies whose quota is used: an extractor, a function of the request, or text:
            ``"user"``, ``"ip"``, ``"header:X-API-Key"``, ``"cookie:NAME"``, ``"query:NAME"``,
            ``"form:username"``, ``"json:user.name"``; ``"client_ip:2"`` trusts two hops,
            ``"client_ip:vercel"`` a platform. The user is known only after authentication. If the
            middleware is outside of the authentication, the limit is applied in front of the
            handler, with a second round trip. The default is the client's address by the setting
            ``client_ip``. It is also used if no identifier is found, unless ``by`` itself contains
            a ``client_ip(…)``.
        name: Printable ASCII without colons; the default is made from methods and path.
        on_error: The policy if Upstash is unreachable: ``"open"`` lets the request pass,
            ``"closed"`` responds with 503, ``"local"`` counts in this process.
        cost: The units that a request takes, or a function of the request that returns them. A
            request with cost 0 is not checked, and cannot be charged later. Under a rule with
            ``settle``, 0 counts as 1.
        when: A function of the request that returns whether the rule covers it, as a further
            condition.
        allow: Networks and identifiers that are not limited: ``10.0.0.0/8``, ``user=7``, ``alice``.
        deny: Networks and identifiers whose requests get a 403.
        shadow: Whether to emit decisions without applying them; later rules apply as usual.
        shared_prefix: The prefix of an upstash-ratelimit limiter, in Python or JavaScript, whose
            keys are used; for fixed and sliding windows.
        local_share: The part of the quota that this process counts under ``"local"``, such as 0.25
            for one of four processes.
        settle: A function of request and response that returns the final cost of the request. It
            replaces ``cost``, which is charged before: ``lambda request, response:
            int(response.status == 401)``. Handlers can add to it with ``Decision.charge``.
        challenge: The challenge of a 401, such as ``"Bearer"``, for requests in which ``by`` finds
            no identifier.
        dynamic: Whether the limit can be changed at run time with ``Limiter.set_limit``, or with a
            shared prefix by the JavaScript SDK. It must be one fixed or sliding window.
        hosts: The hosts that the rule covers: ``api.example.com``, ``*.example.com``, on any port
            unless the port is given. Empty means all.
        bucket: Rules with the same bucket share their counters. Each rule decides by its own limit.
        deadline: The deadline of a call to Upstash in seconds; None means the setting ``deadline``.
            If rules share a call, the longest of their deadlines applies.
        lease: Reserves quota for busy identifiers, so that their next requests are decided without
            a call. The value is the duration in seconds or as text (``"500ms"``), a Lease, a
            mapping of its fields, or False for none; None means the setting ``lease``. A lease can
            also follow the limits in their text: ``"10000/minute lease 1s"``.
        setting: The name of the rule in errors and events: the setting that defines it, such as
            ``rate_limits[0]``.

    Raises:
        ConfigurationError: A value is invalid; the message names the field.
    """

    path: str | None = None
    limits: AnyLimits | None = None
    methods: Iterable[str] = ()
    by: AnyExtractor | str = field(default_factory=client_ip)
    name: str = ""
    on_error: OnError = "open"
    cost: Cost = 1
    when: Predicate | None = None
    allow: Iterable[str] = ()
    deny: Iterable[str] = ()
    shadow: bool = False
    shared_prefix: str | None = None
    local_share: float = 1.0
    settle: Settle | None = None
    challenge: str | None = None
    dynamic: bool = False
    hosts: Iterable[str] = ()
    bucket: str = ""
    deadline: Duration | None = None
    lease: AnyLease | None = None
    setting: str = "RateLimitRule"

    def __post_init__(self) -> None:
        if isinstance(self.by, str):
            try:
                force_setattr(self, "by", extractor_named(self.by))
            except ConfigurationError as error:
                raise _rule_error(self, "by", str(error)) from None
        force_setattr(self, "allow", _as_tuple(self.allow))
        force_setattr(self, "deny", _as_tuple(self.deny))
        _ = self.allowed, self.denied, self.pattern  # these properties raise for invalid values
        methods = _as_tuple(self.methods)
        if not isinstance(methods, tuple) or not all(
            isinstance(method, str) and method.isalpha() for method in methods
        ):
            raise _rule_error(
                self, "methods", "this should be a sequence of methods such as ('POST',)"
            )
        force_setattr(self, "methods", tuple(dict.fromkeys(map(str.upper, methods))))
        force_setattr(self, "hosts", _hosts(self))
        limits, lease = _limits_and_lease(self)
        force_setattr(self, "limits", limits)
        force_setattr(self, "lease", lease)
        _ = self.parsed
        if not self.name:
            path = "" if self.path is None else self.path.replace(":path}", "}")
            readable = path.encode("ascii", "backslashreplace").decode().replace(":", "_")
            parts = filter(None, ("+".join(self.methods), readable))
            force_setattr(self, "name", " ".join(parts) or "every request")
        force_setattr(self, "deadline", _deadline(self))
        for name, is_right, remedy in _checks(self):
            if not is_right:
                raise _rule_error(self, name, remedy)

    @property
    def extractor(self) -> AnyExtractor:
        """The extractor that ``by`` names, or ``by`` itself."""
        return cast("AnyExtractor", self.by)

    @cached_property
    def pattern(self) -> PathPattern | None:
        """The parsed path; None if there is no path."""
        if self.path is None:
            return None
        if not isinstance(self.path, str):
            raise _rule_error(
                self, "path", "a path pattern is text such as '/api/generate', or None"
            )
        try:
            return PathPattern.parse(self.path)
        except ConfigurationError as error:
            raise _rule_error(self, "path", str(error)) from None

    @cached_property
    def parsed(self) -> tuple[Limit, ...] | Tiers | SdkLimiter | None:
        """The limits, parsed; None for ``"unlimited"``."""
        return _parsed_limits(self)

    @cached_property
    def allowed(self) -> IdentityList:
        """The networks and identifiers of ``allow``."""
        return _identity_list(self, "allow")

    @cached_property
    def denied(self) -> IdentityList:
        """The networks and identifiers of ``deny``."""
        return _identity_list(self, "deny")

    def _values(self) -> tuple[Any, ...]:
        """Return the values that rules are compared by: all except ``setting``."""
        return tuple(getattr(self, name) for name in FIELDS)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RateLimitRule) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        values = dict(zip(FIELDS, self._values(), strict=True))
        if self.by is framework_user:
            values["by"] = "user"
        return f"RateLimitRule({', '.join(f'{name}={value!r}' for name, value in values.items())})"


FIELDS = tuple(name for name in RateLimitRule.__struct_fields__ if name != "setting")
"""The fields of a rule that users set."""


def rule_from_mapping(mapping: Mapping[str, Any], setting: str = "rate_limits[0]") -> RateLimitRule:
    """Return the rule that a mapping describes.

    ``setting`` is the name of the mapping's setting for error messages. Raises ConfigurationError,
    which names the setting, the value and the remedy.
    """
    if not isinstance(mapping, Mapping):
        raise ConfigurationError(
            f"{setting} = {mapping!r}: a rule is a mapping such as "
            "{'path': '/api/generate', 'limits': '10/10s'}, or a RateLimitRule"
        )
    values = dict(mapping)
    for key in values:
        if key not in FIELDS:
            raise unknown_name(setting, key, FIELDS)
    if "limits" not in values:
        raise ConfigurationError(
            f"{named_part(setting, 'limits')} is missing; write for instance '10/10s'"
        )
    return RateLimitRule(**values, setting=setting)


# ------------------------------------------------------------------------------------------------
# Checks of a rule's fields. Each error names the setting, the value and the remedy.

_MAX_NAME_LENGTH = 64
_HOST = r"(?:\*\.)?(?:[a-z0-9_.-]+|\[[0-9a-f:.]+\])(?::[0-9]*)?"
_EARLIEST_NOW_MS = 1_577_836_800_000
"""The year 2020. No machine's clock is expected to be earlier."""


def _rule_error(rule: RateLimitRule, name: str, problem: str) -> ConfigurationError:
    return ConfigurationError(
        f"{named_part(rule.setting, name)} = {getattr(rule, name)!r}: {problem}"
    )


def _as_tuple(given: object) -> Any:
    return tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else given


def _limits_and_lease(rule: RateLimitRule) -> tuple[Any, Lease | Literal[False] | None]:
    """Return the limits without the lease at the end of their text, and the rule's lease."""
    limits, *ends = _parts_of_lease(rule.limits)
    if not ends:
        try:
            return rule.limits, None if rule.lease is None else lease_in(rule.lease)
        except ConfigurationError as error:
            raise _rule_error(rule, "lease", str(error)) from None
    if rule.lease is not None:
        raise _rule_error(rule, "lease", f"limits = {rule.limits!r} also has a lease; remove one")
    if len(ends) > 1 or re.search("[;,]", ends[0]):
        raise _rule_error(rule, "limits", _ONE_LEASE)
    try:
        return limits, lease_in(ends[0])
    except ConfigurationError as error:
        raise _rule_error(rule, "limits", str(error)) from None


def _parts_of_lease(limits: object) -> list[Any]:
    """Split the text of limits at the word ``lease``."""
    return re.split(r"(?i)\s+lease\s+", limits) if isinstance(limits, str) else [limits]


_ONE_LEASE = (
    "a lease belongs to the whole rule; write it once, at the end of the text, as in "
    "'100/s; 10000/minute lease 1s', or as lease='1s' next to the limits"
)


def _parsed_limits(rule: RateLimitRule) -> tuple[Limit, ...] | Tiers | SdkLimiter | None:
    given = rule.limits
    if is_unlimited(given):
        return None
    parts = given if isinstance(given, Sequence) and not isinstance(given, str) else (given,)
    if len(parts) == 1 and isinstance(parts[0], SdkLimiter):
        return parts[0]
    if callable(given) and not isinstance(given, type):
        return Tiers(given)
    limits: list[Limit] = []
    for part in parts:
        if isinstance(part, Limit):
            limits.append(part)
        elif isinstance(part, str):
            if len(_parts_of_lease(part)) > 1:
                raise _rule_error(rule, "limits", _ONE_LEASE)
            try:
                limits += parse_limits(part)
            except ConfigurationError as error:
                raise _rule_error(rule, "limits", str(error)) from None
        elif isinstance(part, SdkLimiter):
            raise _rule_error(
                rule,
                "limits",
                "a limiter of upstash_ratelimit cannot be combined with other limits, because "
                "it sends its own command; put it into its own rule",
            )
        else:
            raise _rule_error(
                rule,
                "limits",
                "a limit is text such as '10/10s', a limit such as SlidingWindow(10, per=10), a "
                "limiter of upstash_ratelimit, or 'unlimited' to exempt",
            )
    if not limits:
        raise _rule_error(rule, "limits", "give at least one limit, or 'unlimited' to exempt")
    _check_distinct(rule, limits)
    return tuple(limits)


def _check_distinct(rule: RateLimitRule, limits: list[Limit]) -> None:
    """Reject limits of one rule whose keys could be equal: keys end in the number of the window."""
    windows = sorted(x.milliseconds for x in limits if not isinstance(x, Concurrency))
    if len(limits) - len(windows) > 1:
        raise _rule_error(rule, "limits", "one rule should have at most one Concurrency")
    for shorter, longer in pairwise(windows):
        if _EARLIEST_NOW_MS // shorter - _EARLIEST_NOW_MS // longer < 4:
            raise _rule_error(
                rule,
                "limits",
                f"the windows of one rule's limits should differ in length ({shorter} ms and "
                f"{longer} ms); remove one limit or put it into a rule of its own",
            )


def _identity_list(rule: RateLimitRule, name: str) -> IdentityList:
    try:
        return identity_list(getattr(rule, name))
    except ConfigurationError as error:
        raise _rule_error(rule, name, str(error)) from None


def _hosts(rule: RateLimitRule) -> tuple[str, ...]:
    hosts = _as_tuple(rule.hosts)
    if isinstance(hosts, tuple) and all(
        isinstance(host, str) and re.fullmatch(_HOST, host.lower()) for host in hosts
    ):
        return tuple(f"{name}:{port}" if port else name for name, port in map(split_host, hosts))
    problem = "this should be a sequence of hosts such as ('api.example.com', '*.example.com')"
    raise _rule_error(rule, "hosts", problem)


def split_host(authority: str) -> tuple[str, str]:
    """Return a host name and a port in normalised form; the port is empty if there is none.

    Host names are case-insensitive (RFC 3986 §3.2.2), may end in the DNS root's dot, and may have
    an empty port (§3.2.3).
    """
    authority = authority.lower()
    name, bracket, rest = authority.rpartition("]")  # an IPv6 address
    if not bracket:
        name, _, rest = authority.partition(":")
    return (name + bracket).rstrip("."), rest.lstrip(":").lstrip("0")


def _deadline(rule: RateLimitRule) -> float | None:
    if rule.deadline is None:
        return None
    seconds = seconds_in(rule.deadline)
    if seconds is None or not 0 < seconds <= 60:
        raise _rule_error(
            rule,
            "deadline",
            "this should be a number of seconds above 0 and at most 60, text such as '500ms', or "
            "None",
        )
    return seconds


def _checks(rule: Any) -> Iterator[tuple[str, object, str]]:
    """Yield the name of a field, whether its value is valid, and the remedy."""
    limits = rule.parsed if isinstance(rule.parsed, tuple) else ()
    own = bool(limits) or isinstance(rule.parsed, Tiers)
    windows_only = all(isinstance(limit, FixedWindow | SlidingWindow) for limit in limits)
    has_slots = any(isinstance(limit, Concurrency) for limit in limits)

    for name in ("name", "bucket"):
        value = getattr(rule, name)
        is_text = isinstance(value, str) and value.isascii() and value.isprintable()
        yield name, is_text and ":" not in value, "a name is printable ASCII without colons"
        fits = len(value) <= _MAX_NAME_LENGTH
        yield name, fits, f"a name has at most {_MAX_NAME_LENGTH} characters; give one"
    alone = not rule.bucket or rule.shared_prefix is None
    yield "bucket", alone, "a shared prefix is a bucket of its own; leave one out"

    forms = "an extractor such as header('X-API-Key'), text such as 'header:X-API-Key'"
    is_dependency = type(rule.by).__module__ == "fastapi.params"
    depends = "only upstash_middleware.fastapi resolves dependencies: Depends(limit(..., by=...))"
    yield "by", not is_dependency, depends
    is_called = rule.by not in EXTRACTORS
    yield "by", is_called, "call it, as in header('X-API-Key') and client_ip()"
    yield "by", is_extractor(rule.by), f"{forms}, or a function of the request"
    yield from _checks_of_functions(rule)
    settled = rule.settle is None or own
    yield "settle", settled, "only limits of this package can be settled afterwards"

    known = rule.on_error in get_args(OnError)
    yield "on_error", known, "this should be 'open', 'closed' or 'local'"
    counted = rule.on_error != "local" or (own and not has_slots)
    yield (
        "on_error",
        counted,
        "only limits of this package can be counted locally, and no Concurrency",
    )
    share = rule.local_share
    is_share = isinstance(share, int | float) and share is not True and 0 < share <= 1
    yield "local_share", is_share, "a share is a number above 0 and at most 1"

    prefix = rule.shared_prefix
    is_prefix = prefix is None or (isinstance(prefix, str) and prefix)
    yield "shared_prefix", is_prefix, "this should be text such as '@upstash/ratelimit'"
    shares = prefix is None or (own and windows_only)
    yield "shared_prefix", shares, "only fixed and sliding windows share their keys"
    yield "dynamic", isinstance(rule.dynamic, bool), "this should be True or False"
    changes = not rule.dynamic or (len(limits) == 1 and windows_only)
    yield "dynamic", changes, "only one fixed or sliding window can be changed"

    cost = rule.cost
    if not callable(cost):
        is_cost = isinstance(cost, int) and cost is not True and 1 <= cost <= MAX_QUOTA
        yield "cost", is_cost, "a whole number from 1, or a function of the request"
        for limit in limits:
            fits = cost <= limit.quota
            yield "cost", fits, f"no request could ever pass {limit}; the cost is above the limit"

    yield from _checks_of_lease(rule, has_slots=has_slots)

    challenge = rule.challenge
    if challenge is not None:
        is_text = isinstance(challenge, str) and challenge.isascii() and challenge.isprintable()
        yield "challenge", is_text, "a challenge is text such as 'Bearer' (RFC 9110 §11.6.1)"
        yield "challenge", challenge.strip(), "it should not be empty; None disables the challenge"


def _checks_of_functions(rule: RateLimitRule) -> Iterator[tuple[str, object, str]]:
    for name, takes_and_returns in (
        ("when", "the request that returns True or False"),
        ("settle", "request and response that returns a cost"),
    ):
        value = getattr(rule, name)
        yield name, value is None or callable(value), f"a function of {takes_and_returns}"
    for name, takes_one in (
        ("limits", isinstance(rule.parsed, Tiers)),
        ("by", callable(rule.by)),
        ("cost", callable(rule.cost)),
        ("when", rule.when is not None),
    ):
        right = not takes_one or takes(getattr(rule, name), 1)
        yield name, right, "it is called with the request; write for instance 'lambda request: …'"
    right = rule.settle is None or takes(rule.settle, 2)
    written = "it is called with request and response; write 'lambda request, response: …'"
    yield "settle", right, written


def _checks_of_lease(rule: RateLimitRule, *, has_slots: bool) -> Iterator[tuple[str, object, str]]:
    if not isinstance(rule.lease, Lease):
        return
    is_sdks = isinstance(rule.parsed, SdkLimiter)
    its_own = "the script of an upstash_ratelimit limiter reserves nothing; leave it out"
    yield "lease", not is_sdks, its_own
    yield "lease", rule.parsed is not None, "'unlimited' has no quota to reserve; leave it out"
    of_slots = (
        "a slot is given back when its request ends, so there is nothing to reserve; leave it out, "
        "or put the Concurrency into a rule of its own"
    )
    yield "lease", not has_slots, of_slots


# ------------------------------------------------------------------------------------------------
# Compiled rules: checked against each other, with derived values computed once.

_SimpleExtractor = ClientAddress | EventSource | SentValue
"""Extractors that can be called without a flow."""
_DEFAULT_PORTS = {"http": "80", "ws": "80", "https": "443", "wss": "443"}


class Policy(Struct, frozen=True):
    """One limit of a rule, with the policy name that clients see."""

    name: str
    limit: Limit
    quota: int
    window: int | None
    """The window in seconds, ``w`` in RateLimit-Policy; None if it has fractions of a second."""
    words: tuple[str, ...] = ()
    """The script's arguments for the rule's fixed cost."""


class CompiledRule(Struct, frozen=True, kw_only=True):
    """A rule with the values derived from it."""

    rule: RateLimitRule
    setting: str
    base: str
    """The beginning of its keys: ``PREFIX:RULE:`` with the rule escaped, or the shared prefix."""
    policies: tuple[Policy, ...]
    """Empty if the rule exempts, has tiers, or has a limiter of ``upstash_ratelimit``."""
    methods: frozenset[str]
    selects: bool
    """Whether the rule covers only some methods, hosts or paths."""
    is_default: bool = False
    at_handler: bool = False
    """Whether the rule applies to a single handler, which also has to handle preflights."""
    by: AnyExtractor
    """The rule's ``by``, with the application's address in place of ``client_ip()``."""
    address: AnyExtractor
    """The extractor that is used if ``by`` finds nothing."""
    is_watched: bool = False
    """Whether to check requests for signs that the setting ``client_ip`` is missing."""
    tier: Any = None
    """The limits that the rule's function returned for the request; None without a function."""
    changed_at: str | None
    """The key of the quota set at run time; None if the rule is not dynamic."""
    shares_prefix: bool
    """Whether the keys have the format of upstash-ratelimit."""
    has_slots: bool
    settles: bool
    """Whether a request is settled after its response even if the application charges nothing."""
    is_exempt: bool
    """Whether the rule exempts every request that it covers."""
    cost: int
    """The units that a request takes, unless a function returns them."""
    simple_by: ClientAddress | EventSource | SentValue | None
    """The rule's ``by`` if a request can be charged without a flow; otherwise None."""
    lease: Lease | None
    """The lease of the rule or the application; for tiers, the lease that a tier may use."""

    def named(self, part: str) -> str:
        """Return the name of a field of this rule for logs and events."""
        return named_part(self.setting, part)

    def key_base(self, identifier: str) -> str:
        """Return the beginning of the keys of an identifier, given as in decisions."""
        return self.base + (bare_value(identifier) if self.shares_prefix else identifier)

    def covers(self, request: HTTPRequest, *, any_path: bool = False) -> bool:
        """Whether the rule covers method, host and path of a request; ``when`` is not called."""
        if self.methods:
            if request.method not in self.methods:
                return False
        elif request.method == "OPTIONS" and not self.at_handler and is_preflight(request):
            return False
        if self.rule.hosts and not any(_is_host(request, host) for host in self.rule.hosts):
            return False
        pattern = self.rule.pattern
        return any_path or pattern is None or pattern.covers(request.path)

    def client_address(self, request: HTTPRequest) -> Identifier | None:
        """Return the client's address; None if it is unknown, or if only a flow can find it."""
        address = self.address
        if isinstance(address, ClientAddress):
            return address(request) or peer_address(request)
        return address(request) if isinstance(address, EventSource) else None


def _is_host(request: HTTPRequest, host: str) -> bool:
    """Whether a request is for a host of a rule. Ports are compared only if the rule has one."""
    (requested, port), (name, wanted) = split_host(request.host), split_host(host)
    if wanted and (port or _DEFAULT_PORTS.get(request.scheme)) != wanted:
        return False
    return requested.endswith(name[1:]) if name.startswith("*.") else requested == name


def is_preflight(request: HTTPRequest) -> bool:
    """Whether a request is a CORS preflight of a browser (Fetch, CORS protocol)."""
    return (
        request.method == "OPTIONS"
        and "origin" in request.headers
        and "access-control-request-method" in request.headers
    )


def bare_value(identifier: str) -> str:
    """Return the value of an identifier, given as in decisions, as upstash-ratelimit writes it.

    A hash is returned unchanged.
    """
    _, _, value = identifier.partition("=")
    return identifier if value.startswith("#") else unquote(value, errors="surrogatepass")


def compile_rules(  # noqa: PLR0913
    rules: tuple[RateLimitRule, ...],
    default: RateLimitRule | None,
    prefix: str,
    address: AnyExtractor,
    *,
    is_watched: bool = False,
    at_handler: bool = False,
    lease: Lease | None = None,
) -> tuple[CompiledRule, ...]:
    """Compile rules; return them in matching order, with the default last.

    ``address`` is the extractor of the application's client addresses, and ``is_watched`` is True
    if it is not configured. ``at_handler`` is True if the rules apply to a single handler.
    ``lease`` is the application's lease. Raises ConfigurationError if two rules have the same name,
    or if the default does not cover all requests.
    """
    placed = check_together(rules, default)
    compiled = [_compile_rule(rule, setting, prefix, address, lease) for rule, setting in placed]
    sliding = {
        policy.limit.state(rule.base)
        for rule in compiled
        for policy in rule.policies
        if isinstance(policy.limit, SlidingWindow)
    }
    costs: dict[str, set[tuple[int, bool]]] = {}
    for rule in compiled:
        costs.setdefault(rule.base, set()).add((rule.cost, callable(rule.rule.cost)))
    return tuple(
        replace(
            rule,
            policies=tuple(
                _with_longer_counters(policy, rule, sliding) for policy in rule.policies
            ),
            # Rules of the same bucket are charged once, with the highest of their costs.
            simple_by=rule.simple_by if len(costs[rule.base]) == 1 else None,
            is_default=rule.rule is default,
            at_handler=at_handler,
            is_watched=is_watched and rule.address is address,
        )
        for rule in compiled
    )


def check_together(
    rules: tuple[RateLimitRule, ...], default: RateLimitRule | None
) -> list[tuple[RateLimitRule, str]]:
    """Return the rules with their settings, and the default last.

    Raises ConfigurationError if two rules have the same name, or the default has conditions.
    """
    placed = [(rule, _setting(rule, f"rate_limits[{index}]")) for index, rule in enumerate(rules)]
    if default is not None:
        setting = _setting(default, "default_limit")
        for name in ("path", "methods", "hosts", "when"):
            if getattr(default, name):
                raise ConfigurationError(
                    f"{named_part(setting, name)} = {getattr(default, name)!r}: default_limit "
                    "covers all requests that no rule covers, so it takes no path, methods, hosts "
                    "or when; move this rule to rate_limits"
                )
        placed.append((default, setting))
    taken: dict[str, str] = {}
    for rule, setting in placed:
        if rule.parsed is None:
            continue
        if rule.name in taken:
            raise ConfigurationError(
                f"{named_part(setting, 'name')} = {rule.name!r}: {taken[rule.name]} has this name "
                "already, and rules of the same name would share their counters; rename one"
            )
        taken[rule.name] = setting
    return placed


def _setting(rule: RateLimitRule, otherwise: str) -> str:
    """Return the name of a rule's setting; ``otherwise`` for a rule that was created in code."""
    return otherwise if rule.setting == RateLimitRule.__name__ else rule.setting


def _with_longer_counters(
    policy: Policy, rule: CompiledRule, sliding: set[tuple[str, int]]
) -> Policy:
    """Return a policy whose counters live as long as a sliding window of the same keys needs."""
    limit = policy.limit
    if isinstance(limit, FixedWindow) and limit.state(rule.base) in sliding:
        limit = KeptFixedWindow(limit.limit, limit.per)
    words = limit.words(rule.cost, changes=rule.changed_at is not None)
    return replace(policy, limit=limit, words=words)


def lease_of(rule: RateLimitRule, application: Lease | None) -> Lease | None:
    """Return the lease of a rule: its own, or else the application's if its limits support it."""
    if rule.lease is not None:
        return rule.lease if isinstance(rule.lease, Lease) else None
    if not isinstance(rule.parsed, tuple):  # tier_of calls this again for the limits of a tier
        return application if isinstance(rule.parsed, Tiers) else None
    suit = (each.quota >= MIN_LEASED_QUOTA and not each.has_slots for each in rule.parsed)
    return application if all(suit) else None


def _compile_rule(
    rule: RateLimitRule, setting: str, prefix: str, address: AnyExtractor, lease: Lease | None
) -> CompiledRule:
    limits = rule.parsed if isinstance(rule.parsed, tuple) else ()
    methods = frozenset(rule.methods)
    name = rule.bucket or rule.name
    # The application's values are at PREFIX:data:. An escaped name never contains %data.
    base = f"{prefix}:{'%data' if name == 'data' else escape(name)}:"
    if rule.shared_prefix is not None:
        base = f"{rule.shared_prefix}:"
    has_slots = any(isinstance(limit, Concurrency) for limit in limits)
    by = in_application(rule.extractor, address)
    needs_more = (
        *(rule.when, rule.allowed, rule.denied, rule.shadow, rule.challenge, callable(rule.cost)),
        *(has_slots, not limits, not isinstance(by, _SimpleExtractor)),
    )
    return CompiledRule(
        rule=rule,
        setting=setting,
        base=base,
        changed_at=f"{base}dynamic:global" if rule.dynamic else None,
        policies=tuple(_policy(rule, limit, several=len(limits) > 1) for limit in limits),
        # In frameworks, the handler of GET also answers HEAD.
        methods=methods | {"HEAD"} if "GET" in methods else methods,
        selects=bool(methods or rule.hosts or rule.path),
        shares_prefix=rule.shared_prefix is not None,
        has_slots=has_slots,
        settles=rule.settle is not None or has_slots,
        is_exempt=rule.parsed is None and rule.when is None,
        cost=rule.cost if isinstance(rule.cost, int) else 1,
        by=by,
        address=application_client_ip_of(rule.extractor) or address,
        simple_by=None if any(needs_more) else cast("_SimpleExtractor", by),
        lease=lease_of(rule, lease),
    )


def _policy(rule: RateLimitRule, limit: Limit, *, several: bool) -> Policy:
    if isinstance(limit, Concurrency):
        return Policy(f"{rule.name} at once" if several else rule.name, limit, limit.quota, None)
    name = f"{rule.name} {_window_text(limit.milliseconds)}" if several else rule.name
    seconds, rest = divmod(limit.span_ms, 1000)
    return Policy(name, limit, limit.quota, None if rest else seconds)


def _window_text(milliseconds: int) -> str:
    for unit, length in (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1000)):
        if milliseconds % length == 0:
            return f"{milliseconds // length}{unit}"
    return f"{milliseconds}ms"


def tier_of(compiled: CompiledRule, limits: Any) -> CompiledRule:
    """Return a rule with the limits that its function has returned.

    The counters stay the same, so used units are kept when the tier changes, if the windows are
    equal. Raises ConfigurationError.
    """
    if is_unlimited(limits):  # the other fields have no effect without limits
        exempt = RateLimitRule(None, UNLIMITED, name=compiled.rule.name)
        return _compile_rule(exempt, compiled.setting, "", compiled.address, None)
    rule = replace(compiled.rule, limits=limits, setting=compiled.setting)
    if isinstance(rule.parsed, Tiers):
        raise ConfigurationError(f"{compiled.named('limits')}: it returned a function, not limits")
    return replace(
        _compile_rule(rule, compiled.setting, "", compiled.address, compiled.lease),
        base=compiled.base,
        is_default=compiled.is_default,
        by=compiled.by,
        is_watched=compiled.is_watched,
        tier=limits,
    )


def uncertain_bases(rules: Sequence[CompiledRule]) -> Iterator[str]:
    """Yield the beginnings of keys whose denials may end before their Retry-After.

    One case is a rule with ``settle``, because a running request may be refunded. The other is a
    bucket whose limits drain or refill at different rates, because a request under one rule changes
    the rate for the others.
    """
    rates: dict[str, set[tuple[Limit, ...]]] = {}
    for each in rules:
        if each.rule.settle is not None:
            yield each.base
        refilling = tuple(policy.limit for policy in each.policies if policy.limit.refills)
        rates.setdefault(each.base, set()).add(refilling)
    yield from (base for base, found in rates.items() if len(found) > 1 and any(found))
