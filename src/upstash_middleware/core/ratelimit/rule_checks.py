"""What is right in a rule: each field's value, and what goes together.

Every refusal is a ConfigurationError that names the setting, the value, and what would be right.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, get_args

from upstash_middleware.core.identify import IdentityList, identity_list, is_extractor
from upstash_middleware.core.patterns import PathPattern
from upstash_middleware.core.ratelimit.limits import (
    MAX_QUOTA,
    Concurrency,
    FixedWindow,
    Limit,
    SlidingWindow,
    quota,
    window_ms,
)
from upstash_middleware.core.ratelimit.rule_values import OnError, SdkLimiter, Tiers, is_unlimited
from upstash_middleware.core.ratelimit.text import parse_limits
from upstash_middleware.errors import ConfigurationError

if TYPE_CHECKING:
    from upstash_middleware.core.ratelimit.rules import RateLimitRule

_LONGEST_NAME = 64
_HOST = re.compile(r"(?:\*\.)?(?:[a-z0-9_.-]+|\[[0-9a-f:.]+\])(?::[0-9]+)?")
_EARLIEST_MS = 1_577_836_800_000
"""2020; no clock that this runs on is further back."""


def _wrong(rule: RateLimitRule, name: str, problem: str) -> ConfigurationError:
    return ConfigurationError(f"{rule.setting}.{name} = {getattr(rule, name)!r}: {problem}")


def parsed_pattern(rule: RateLimitRule) -> PathPattern | None:
    """Return the parsed pattern, None where the rule has none."""
    if rule.path is None:
        return None
    if not isinstance(rule.path, str):
        raise _wrong(rule, "path", "a path pattern is text such as '/api/generate', or None")
    try:
        return PathPattern.parse(rule.path)
    except ConfigurationError as error:
        raise _wrong(rule, "path", str(error)) from None


def checked_methods(rule: RateLimitRule) -> tuple[str, ...]:
    """Return the methods, in capitals."""
    given: object = rule.methods
    named = tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else (None,)
    methods = [method.upper() for method in named if isinstance(method, str) and method.isalpha()]
    if len(methods) < len(named):
        raise _wrong(rule, "methods", "this should be a sequence of methods such as ('POST',)")
    return tuple(dict.fromkeys(methods))


def parsed_limits(rule: RateLimitRule) -> tuple[Limit, ...] | Tiers | SdkLimiter | None:
    """Return the limits, the function, or the limiter; None for ``"unlimited"``."""
    given = rule.limits
    if is_unlimited(given):
        return None
    parts = given if isinstance(given, Sequence) and not isinstance(given, str) else (given,)
    if len(parts) == 1 and isinstance(parts[0], SdkLimiter):
        return parts[0]
    if callable(given) and not isinstance(given, type):
        return Tiers(given)
    if len(parts) > 1 and any(isinstance(part, SdkLimiter) for part in parts):
        raise _wrong(
            rule,
            "limits",
            "a limiter of upstash_ratelimit cannot be taken together with other limits, for it "
            "is a command of its own; give it a rule of its own",
        )
    limits = tuple(limit for part in parts for limit in _parsed(rule, part))
    if not limits:
        raise _wrong(rule, "limits", "give at least one limit, or 'unlimited' to exempt")
    _check_distinct(rule, limits)
    return limits


def _parsed(rule: RateLimitRule, part: object) -> tuple[Limit, ...]:
    if isinstance(part, get_args(Limit)):
        return (part,)
    if isinstance(part, str):
        try:
            return parse_limits(part)
        except ConfigurationError as error:
            raise _wrong(rule, "limits", str(error)) from None
    raise _wrong(
        rule,
        "limits",
        "a limit is text such as '10/10s', a limit such as SlidingWindow(10, per=10), a limiter "
        "of upstash_ratelimit, or 'unlimited' to exempt",
    )


def _check_distinct(rule: RateLimitRule, limits: tuple[Limit, ...]) -> None:
    """Refuse limits of one rule that could meet at one key: the key ends in a window's number."""
    timed = [limit for limit in limits if not isinstance(limit, Concurrency)]
    if len(limits) - len(timed) > 1:
        raise _wrong(rule, "limits", "two limits of one rule should not both be a Concurrency")
    windows = sorted(window_ms(limit) for limit in timed)
    for shorter, longer in pairwise(windows):
        if _EARLIEST_MS // shorter - _EARLIEST_MS // longer < 4:
            raise _wrong(
                rule,
                "limits",
                f"two limits of one rule should not share a window's length ({shorter} ms and "
                f"{longer} ms); leave one out or put it into a rule of its own",
            )


def name_of(rule: RateLimitRule) -> str:
    """Return the rule's name, made from methods and path where none is given."""
    return _checked_name(rule, "name", rule.name or _derived_name(rule))


def _checked_name(rule: RateLimitRule, setting: str, name: object) -> str:
    printable = isinstance(name, str) and name.isascii() and name.isprintable()
    if not isinstance(name, str) or not printable or ":" in name:
        raise _wrong(rule, setting, "a name is printable ASCII without colons")
    if len(name) > _LONGEST_NAME:
        raise _wrong(rule, setting, f"a name has at most {_LONGEST_NAME} characters; give one")
    return name


def _derived_name(rule: RateLimitRule) -> str:
    path = "" if rule.path is None else rule.path.replace(":path}", "}")
    readable = path.encode("ascii", "backslashreplace").decode().replace(":", "_")
    return " ".join(filter(None, ("+".join(rule.methods), readable))) or "every request"


def _check_callables(rule: RateLimitRule) -> None:
    if not is_extractor(rule.by):
        raise _wrong(rule, "by", "an extractor such as client_ip(), or a function of the request")
    if rule.when is not None and not callable(rule.when):
        raise _wrong(rule, "when", "a function of the request that answers True or False")
    if rule.settle is not None and not callable(rule.settle):
        raise _wrong(rule, "settle", "a function of request and response that answers a cost")
    if rule.settle is not None and not isinstance(rule.parsed, tuple | Tiers):
        raise _wrong(rule, "settle", "only limits of this package can be settled afterwards")
    if rule.on_error not in get_args(OnError):
        raise _wrong(rule, "on_error", "this should be 'open', 'closed' or 'local'")


def entries(rule: RateLimitRule, name: str) -> object:
    """Return a field as a tuple if it is a sequence of some kind, else as it is."""
    given: object = getattr(rule, name)
    return tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else given


def parsed_list(rule: RateLimitRule, name: str) -> IdentityList:
    """Return who is on a list."""
    try:
        return identity_list(getattr(rule, name))
    except ConfigurationError as error:
        raise _wrong(rule, name, str(error)) from None


def checked_hosts(rule: RateLimitRule) -> tuple[str, ...]:
    """Return the hosts, in lower case."""
    hosts: object = entries(rule, "hosts")
    if isinstance(hosts, tuple) and all(isinstance(host, str) for host in hosts):
        lowered = tuple(host.lower() for host in hosts)
        if all(_HOST.fullmatch(host) for host in lowered):
            return lowered
    problem = "this should be a sequence of hosts such as ('api.example.com', '*.example.com')"
    raise _wrong(rule, "hosts", problem)


def _check_bucket_and_jitter(rule: RateLimitRule) -> None:
    _checked_name(rule, "bucket", rule.bucket)
    if rule.bucket and rule.shared_prefix is not None:
        raise _wrong(rule, "bucket", "a shared prefix is a bucket of its own; leave one out")
    jitter: object = rule.jitter
    if isinstance(jitter, bool) or not isinstance(jitter, (int, float)) or not 0 <= jitter <= 3600:
        raise _wrong(rule, "jitter", "this should be seconds from 0 to 3600")


def _check_deadline(rule: RateLimitRule) -> None:
    given: object = rule.deadline
    if given is None:
        return
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not 0 < given <= 60:
        raise _wrong(rule, "deadline", "this should be seconds above 0, 60 at most, or None")


def _check_dynamic(rule: RateLimitRule) -> None:
    if not isinstance(rule.dynamic, bool):
        raise _wrong(rule, "dynamic", "this should be True or False")
    limits = rule.parsed if isinstance(rule.parsed, tuple) else ()
    kinds = (FixedWindow, SlidingWindow)
    if rule.dynamic and not (len(limits) == 1 and isinstance(limits[0], kinds)):
        raise _wrong(rule, "dynamic", "only one fixed or sliding window can be changed")


def _check_challenge(rule: RateLimitRule) -> None:
    challenge: object = rule.challenge
    if challenge is None:
        return
    if not isinstance(challenge, str) or not challenge.isascii() or not challenge.isprintable():
        raise _wrong(rule, "challenge", "a challenge is text such as 'Bearer' (RFC 9110 §11.6.1)")
    if not challenge.strip():
        raise _wrong(rule, "challenge", "it should not be empty; None demands nobody's identity")


def _check_sharing(rule: RateLimitRule) -> None:
    share: object = rule.local_share
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise _wrong(rule, "local_share", "a share is a number above 0, 1 at most")
    limits = rule.parsed if isinstance(rule.parsed, tuple) else ()
    slots = any(isinstance(limit, Concurrency) for limit in limits)
    own = bool(limits) or isinstance(rule.parsed, Tiers)
    if rule.on_error == "local" and (slots or not own):
        problem = "only limits of this package can be counted locally, and no Concurrency"
        raise _wrong(rule, "on_error", problem)
    prefix: object = rule.shared_prefix
    if prefix is None:
        return
    if not isinstance(prefix, str) or not prefix:
        raise _wrong(rule, "shared_prefix", "this should be text such as '@upstash/ratelimit'")
    if not own or not all(isinstance(limit, FixedWindow | SlidingWindow) for limit in limits):
        raise _wrong(rule, "shared_prefix", "only fixed and sliding windows share their keys")


def _check_cost(rule: RateLimitRule) -> None:
    cost: object = rule.cost
    if callable(cost):
        return
    if isinstance(cost, bool) or not isinstance(cost, int) or not 1 <= cost <= MAX_QUOTA:
        raise _wrong(rule, "cost", "a whole number from 1, or a function of the request")
    for limit in rule.parsed if isinstance(rule.parsed, tuple) else ():
        if cost > quota(limit):
            raise _wrong(
                rule, "cost", f"no request could ever pass {limit}; the cost is above the limit"
            )


def check_together(rule: RateLimitRule) -> None:
    """Refuse values that are wrong, and such as do not go together. Raises ConfigurationError."""
    for check in (
        _check_callables,
        _check_sharing,
        _check_challenge,
        _check_dynamic,
        _check_bucket_and_jitter,
        _check_deadline,
        _check_cost,
    ):
        check(rule)
