"""Rate limit rules as users write them, checked when they are made."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from msgspec import Struct, field
from msgspec.structs import force_setattr

from upstash_middleware.core.clock import Duration, seconds_in
from upstash_middleware.core.identify import (
    PLATFORMS,
    AnyExtractor,
    IdentityList,
    client_ip,
    cookie,
    framework_user,
    header,
    identity_list,
    is_extractor,
    query,
)
from upstash_middleware.core.patterns import PathPattern
from upstash_middleware.core.ratelimit.algorithms import (
    Concurrency,
    FixedWindow,
    Limit,
    SlidingWindow,
    parse_limits,
)
from upstash_middleware.core.ratelimit.algorithms.limit import MAX_QUOTA
from upstash_middleware.errors import ConfigurationError, named_part, unknown_name
from upstash_middleware.messages import HTTPRequest, ResponseHead

UNLIMITED = "unlimited"
"""As a rule's ``limits``: requests that it matches are exempt."""

OnError = Literal["open", "closed", "local"]
Cost = int | Callable[[HTTPRequest], int | Awaitable[int]]
Settle = Callable[[HTTPRequest, ResponseHead], int | Awaitable[int]]
"""The response's head is that of a 500 where the application raised before it had one."""
Predicate = Callable[[HTTPRequest], bool | Awaitable[bool]]


@runtime_checkable
class SdkLimiter(Protocol):
    """A limiter of ``upstash_ratelimit``, or one that a user has written in its form."""

    def limit_async(self, redis: Any, identifier: str, rate: int = 1) -> Awaitable[Any]:
        """Decide, with the client that it is given."""
        ...


class Tiers(Struct, frozen=True):
    """Limits that a function of the request returns."""

    of: Callable[[HTTPRequest], Any]


def is_unlimited(value: object) -> bool:
    """Whether a rule's ``limits`` exempts."""
    return isinstance(value, str) and value.strip().lower() == UNLIMITED


class RateLimitRule(Struct, frozen=True, dict=True):
    """Selects requests, identifies whose quota they use, and sets its size.

    ``RateLimitRule("/api/generate", "10/10s", methods=("POST",))``. Functions of the request may
    be async. Raises ConfigurationError.
    """

    path: str | None = None
    """A pattern of the paths that the application routes on, without the prefix under which it is
    mounted: ``/p/{id}`` is one quota whatever the id. None is every path."""
    limits: Any = None
    """Text (``"10/10s"``), a limit, several of them, of which a request takes from all or from
    none; a limiter of ``upstash_ratelimit``; ``"unlimited"``, which exempts; or a function of the
    request that returns one of these, for tiers."""
    methods: Iterable[str] = ()
    """The methods that it covers; GET covers HEAD. Empty is all except browsers' CORS preflights,
    which only a rule that names OPTIONS covers."""
    by: AnyExtractor = field(default_factory=client_ip)
    """Whose quota it is. If no identifier is found, the client's address is used; behind proxies,
    the first ``client_ip`` of the rules that configures proxies finds it."""
    name: str = ""
    """Printable ASCII without colons; made from methods and path where none is given."""
    on_error: OnError = "open"
    """When Upstash is unreachable: ``"open"`` lets the request pass, ``"closed"`` answers 503,
    ``"local"`` counts in this process."""
    cost: Cost = 1
    """The units that a request takes, or a function of the request that returns them. 0 is free:
    such a request is not checked or charged later; under a rule with ``settle`` it takes 1."""
    when: Predicate | None = None
    """A function of the request that restricts further which requests are covered."""
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
    """A function of request and response that returns the final cost of the request, instead of
    ``cost``, which is taken before: ``lambda request, response: int(response.status == 401)``.
    A handler adds to that with ``Decision.charge``."""
    challenge: str | None = None
    """Answer 401 with this challenge, ``"Bearer"`` for instance, if ``by`` finds no identifier."""
    dynamic: bool = False
    """Whether the limit, one fixed or sliding window, can be changed at run time, with
    ``RateLimiter.set_limit``, or with a shared prefix by the JavaScript SDK."""
    hosts: Iterable[str] = ()
    """The hosts that it covers: ``api.example.com``, ``*.example.com``, with any port unless one is
    given. Empty is all."""
    bucket: str = ""
    """Rules that name the same bucket share their counters, and each decides by its own limit."""
    deadline: Duration | None = None
    """Seconds for the whole call to Upstash about a request; None for the setting ``deadline``.
    Rules that share a call use the longest of theirs."""
    setting: str = "RateLimitRule"
    """What errors and events call this rule: where it was set, such as ``rate_limits[0]``."""

    def __post_init__(self) -> None:
        force_setattr(self, "allow", _as_tuple(self.allow))
        force_setattr(self, "deny", _as_tuple(self.deny))
        _ = self.allowed, self.denied, self.pattern  # they raise for wrong values
        force_setattr(self, "methods", _methods(self))
        force_setattr(self, "hosts", _hosts(self))
        _ = self.parsed
        force_setattr(self, "name", self.name or _derived_name(self))
        force_setattr(self, "deadline", _deadline(self))
        for name, is_right, remedy in _checks(self):
            if not is_right:
                raise _wrong(self, name, remedy)

    @cached_property
    def pattern(self) -> PathPattern | None:
        """The parsed path; None without one."""
        return _pattern(self)

    @cached_property
    def parsed(self) -> tuple[Limit, ...] | Tiers | SdkLimiter | None:
        """The limits, parsed; None for ``"unlimited"``."""
        return _parsed_limits(self)

    @cached_property
    def allowed(self) -> IdentityList:
        """The networks and identities of ``allow``."""
        return _identity_list(self, "allow")

    @cached_property
    def denied(self) -> IdentityList:
        """Those of ``deny``."""
        return _identity_list(self, "deny")

    def _values(self) -> tuple[Any, ...]:
        """Return what makes rules equal: all but where they were set."""
        return tuple(getattr(self, name) for name in FIELDS)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RateLimitRule) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        values = zip(FIELDS, self._values(), strict=True)
        return f"RateLimitRule({', '.join(f'{name}={value!r}' for name, value in values)})"


FIELDS = tuple(name for name in RateLimitRule.__struct_fields__ if name != "setting")
"""What users set of a rule."""


def rule_from_mapping(mapping: Mapping[str, Any], setting: str = "rate_limits[0]") -> RateLimitRule:
    """Return the rule that a mapping describes.

    ``setting`` is where the mapping was set, for messages. ``by`` may be a name:
    ``"client_ip"``, ``"client_ip:2"`` (trusted hops), ``"client_ip:vercel"`` (a platform),
    ``"header:X-API-Key"``, ``"cookie:NAME"``, ``"query:NAME"``, ``"user"`` (the framework's).
    Raises ConfigurationError, naming the setting, the value and the remedy.
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
    if isinstance(values.get("by"), str):
        values["by"] = _extractor(values["by"], named_part(setting, "by"))
    return RateLimitRule(**values, setting=setting)


def _extractor(text: str, setting: str) -> AnyExtractor:
    name, _, argument = text.partition(":")
    make = _EXTRACTORS.get(name)
    if text == "user":
        return framework_user
    if make is None or (not argument and name != "client_ip"):
        raise ConfigurationError(
            f"{setting} = {text!r}: write 'user', 'client_ip', 'client_ip:HOPS', "
            f"'client_ip:PLATFORM' (one of {', '.join(PLATFORMS)}), 'header:NAME', 'cookie:NAME' "
            "or 'query:NAME', or give a function"
        )
    try:
        return make(argument)
    except ConfigurationError as error:
        raise ConfigurationError(f"{setting} = {text!r}: {error}") from None


def _client_ip(argument: str) -> AnyExtractor:
    if argument.isdecimal():
        return client_ip(trusted_hops=int(argument))
    return client_ip(platform=argument) if argument else client_ip()


_EXTRACTORS: dict[str, Callable[[str], AnyExtractor]] = {
    "client_ip": _client_ip,
    "header": header,
    "cookie": cookie,
    "query": query,
}


# ------------------------------------------------------------------------------------------------
# What the fields of a rule may hold. Each error names the setting, the value and the remedy.

_LONGEST_NAME = 64
_HOST = re.compile(r"(?:\*\.)?(?:[a-z0-9_.-]+|\[[0-9a-f:.]+\])(?::[0-9]*)?")
_EARLIEST_MS = 1_577_836_800_000
"""2020; no clock that this runs on is further back."""


def _wrong(rule: RateLimitRule, name: str, problem: str) -> ConfigurationError:
    return ConfigurationError(
        f"{named_part(rule.setting, name)} = {getattr(rule, name)!r}: {problem}"
    )


def _as_tuple(given: object) -> Any:
    return tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else given


def _pattern(rule: RateLimitRule) -> PathPattern | None:
    if rule.path is None:
        return None
    if not isinstance(rule.path, str):
        raise _wrong(rule, "path", "a path pattern is text such as '/api/generate', or None")
    try:
        return PathPattern.parse(rule.path)
    except ConfigurationError as error:
        raise _wrong(rule, "path", str(error)) from None


def _methods(rule: RateLimitRule) -> tuple[str, ...]:
    given = _as_tuple(rule.methods)
    if not isinstance(given, tuple) or not all(isinstance(x, str) and x.isalpha() for x in given):
        raise _wrong(rule, "methods", "this should be a sequence of methods such as ('POST',)")
    return tuple(dict.fromkeys(method.upper() for method in given))


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
            try:
                limits += parse_limits(part)
            except ConfigurationError as error:
                raise _wrong(rule, "limits", str(error)) from None
        elif isinstance(part, SdkLimiter):
            raise _wrong(
                rule,
                "limits",
                "a limiter of upstash_ratelimit cannot be taken together with other limits, for "
                "it is a command of its own; give it a rule of its own",
            )
        else:
            raise _wrong(
                rule,
                "limits",
                "a limit is text such as '10/10s', a limit such as SlidingWindow(10, per=10), a "
                "limiter of upstash_ratelimit, or 'unlimited' to exempt",
            )
    if not limits:
        raise _wrong(rule, "limits", "give at least one limit, or 'unlimited' to exempt")
    _check_distinct(rule, limits)
    return tuple(limits)


def _check_distinct(rule: RateLimitRule, limits: list[Limit]) -> None:
    """Refuse limits of one rule that could have the same key, which ends in a window's number."""
    windows = sorted(x.milliseconds for x in limits if not isinstance(x, Concurrency))
    if len(limits) - len(windows) > 1:
        raise _wrong(rule, "limits", "two limits of one rule should not both be a Concurrency")
    for shorter, longer in pairwise(windows):
        if _EARLIEST_MS // shorter - _EARLIEST_MS // longer < 4:
            raise _wrong(
                rule,
                "limits",
                f"two limits of one rule should not share a window's length ({shorter} ms and "
                f"{longer} ms); leave one out or put it into a rule of its own",
            )


def _derived_name(rule: RateLimitRule) -> str:
    path = "" if rule.path is None else rule.path.replace(":path}", "}")
    readable = path.encode("ascii", "backslashreplace").decode().replace(":", "_")
    return " ".join(filter(None, ("+".join(rule.methods), readable))) or "every request"


def _identity_list(rule: RateLimitRule, name: str) -> IdentityList:
    try:
        return identity_list(getattr(rule, name))
    except ConfigurationError as error:
        raise _wrong(rule, name, str(error)) from None


def _hosts(rule: RateLimitRule) -> tuple[str, ...]:
    hosts = _as_tuple(rule.hosts)
    if isinstance(hosts, tuple) and all(
        isinstance(host, str) and _HOST.fullmatch(host.lower()) for host in hosts
    ):
        return tuple(f"{name}:{port}" if port else name for name, port in map(split_host, hosts))
    problem = "this should be a sequence of hosts such as ('api.example.com', '*.example.com')"
    raise _wrong(rule, "hosts", problem)


def split_host(authority: str) -> tuple[str, str]:
    """Return a name and a port, which is empty if there is none, in one spelling.

    A name compares without case (RFC 3986 §3.2.2) and without the final dot that ends the name of
    a host in the DNS; an empty port is none (§3.2.3).
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
        raise _wrong(
            rule,
            "deadline",
            "this should be seconds above 0, 60 at most, or text such as '500ms', or None",
        )
    return seconds


def _checks(rule: Any) -> Iterator[tuple[str, object, str]]:
    """Yield a field, whether its value is right, and the remedy."""
    limits = rule.parsed if isinstance(rule.parsed, tuple) else ()
    own = bool(limits) or isinstance(rule.parsed, Tiers)
    windows_only = all(isinstance(limit, FixedWindow | SlidingWindow) for limit in limits)
    has_slots = any(isinstance(limit, Concurrency) for limit in limits)

    for name in ("name", "bucket"):
        value = getattr(rule, name)
        is_text = isinstance(value, str) and value.isascii() and value.isprintable()
        yield name, is_text and ":" not in value, "a name is printable ASCII without colons"
        fits = len(value) <= _LONGEST_NAME
        yield name, fits, f"a name has at most {_LONGEST_NAME} characters; give one"
    alone = not rule.bucket or rule.shared_prefix is None
    yield "bucket", alone, "a shared prefix is a bucket of its own; leave one out"

    forms = "an extractor such as header('X-API-Key'), text such as 'header:X-API-Key'"
    yield "by", is_extractor(rule.by), f"{forms}, or a function of the request"
    for name, takes_and_returns in (
        ("when", "the request that returns True or False"),
        ("settle", "request and response that returns a cost"),
    ):
        value = getattr(rule, name)
        yield name, value is None or callable(value), f"a function of {takes_and_returns}"
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
    yield "local_share", is_share, "a share is a number above 0, 1 at most"

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

    challenge = rule.challenge
    if challenge is not None:
        is_text = isinstance(challenge, str) and challenge.isascii() and challenge.isprintable()
        yield "challenge", is_text, "a challenge is text such as 'Bearer' (RFC 9110 §11.6.1)"
        yield "challenge", challenge.strip(), "it should not be empty; None requires no identity"
