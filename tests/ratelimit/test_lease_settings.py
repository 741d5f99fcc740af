"""Leases as users write them: on a rule, in its text, for the whole application, for tiers."""

from __future__ import annotations

import pickle
from datetime import timedelta
from typing import Any

import pytest
from upstash_ratelimit import FixedWindow as SdkFixedWindow

from upstash_middleware import GCRA, Concurrency, Lease, RateLimitRule, SlidingWindow, client_ip
from upstash_middleware.core.ratelimit.rules import (
    CompiledRule,
    compile_rules,
    rule_from_mapping,
    tier_of,
)
from upstash_middleware.errors import ConfigurationError
from upstash_middleware.settings import settings_from

BIG = "10000/minute"


def compiled(rule: RateLimitRule, application: Lease | None = None) -> CompiledRule:
    (found,) = compile_rules((rule,), None, "prefix", client_ip(), lease=application)
    return found


def refusal(**mapping: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        rule_from_mapping({"limits": BIG, **mapping}, "rate_limits[3]")
    return str(caught.value)


@pytest.mark.parametrize(
    "given",
    [2, 2.0, "2s", "2 seconds", timedelta(seconds=2), Lease(2), Lease("2s"), {"seconds": 2}],
    ids=str,
)
def test_a_lease_is_written_as_seconds_text_a_lease_or_a_mapping(given: Any) -> None:
    assert RateLimitRule("/a", BIG, lease=given) == RateLimitRule("/a", BIG, lease=Lease(2))
    assert compiled(RateLimitRule("/a", BIG, lease=given)).lease == Lease(2, 0.1)


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("10000/minute lease 500ms", "10000/minute"),
        ("100/s; 10000/minute lease 500ms", "100/s; 10000/minute"),
        ("10/s burst 40 LEASE 0.5 seconds", "10/s burst 40"),
    ],
)
def test_text_of_limits_ends_with_the_lease_of_the_whole_rule(text: str, limits: str) -> None:
    rule = RateLimitRule("/a", text)
    assert rule == RateLimitRule("/a", limits, lease=0.5)
    assert rule.parsed == RateLimitRule("/a", limits).parsed
    assert compiled(rule).lease == Lease(0.5)


@pytest.mark.parametrize(
    ("lease", "milliseconds", "threshold"),
    [
        (Lease(), 1000, 10),
        (Lease("250ms"), 250, 10),
        (Lease(2, from_rate=50), 2000, 100),
        (Lease(0.5, from_rate=1), 500, 2),
        (Lease(0.0001), 1, 10),
        (Lease("1 hour", share=1), 3_600_000, 10),
    ],
    ids=str,
)
def test_a_lease_knows_its_time_and_which_traffic_is_busy(
    lease: Lease, milliseconds: int, threshold: float
) -> None:
    assert (lease.milliseconds, lease.threshold) == (milliseconds, threshold)
    assert isinstance(lease.milliseconds, int)


@pytest.mark.parametrize(
    "rule",
    [
        RateLimitRule("/a", "10/s; 10000/minute lease 500ms"),
        RateLimitRule("/a", BIG, lease=Lease(timedelta(seconds=2), 0.25, 50)),
        RateLimitRule("/a", BIG, lease=False),
        RateLimitRule("/a", BIG),
    ],
    ids=str,
)
def test_rules_with_leases_are_values(rule: RateLimitRule) -> None:
    """Comparable, hashable, picklable, and their reprs are code."""
    assert eval(repr(rule)) == rule
    assert pickle.loads(pickle.dumps(rule)) == rule
    assert {rule: 1}[eval(repr(rule))] == 1


def test_rules_that_differ_in_the_lease_are_different() -> None:
    rules = {RateLimitRule("/a", BIG, lease=lease) for lease in (None, False, 1, 2, Lease(1, 0.2))}
    assert len(rules) == 5


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"lease": 0}, "rate_limits[3].lease = 0: a lease must be longer than 0 seconds; use"),
        (
            {"lease": True},
            "rate_limits[3].lease = True: a lease is a number of seconds, text such as '500ms'",
        ),
        (
            {"lease": "soon"},
            "rate_limits[3].lease = 'soon': a lease is a number of seconds, text such as",
        ),
        ({"lease": -1}, "lease = -1: Lease(seconds=-1, share=0.1, from_rate=None): seconds should"),
        (
            {"lease": "2h"},
            "seconds should be above 0 and at most 3600, a timedelta, or text such as",
        ),
        ({"lease": float("nan")}, "seconds should be above 0 and at most 3600"),
        ({"lease": {"seconds": "x"}}, "seconds should be above 0 and at most 3600"),
        ({"lease": {"share": 0}}, "share should be a number above 0 and at most 1, not 0"),
        ({"lease": {"share": 1.5}}, "share should be a number above 0 and at most 1, not 1.5"),
        ({"lease": {"share": True}}, "share should be a number above 0 and at most 1, not True"),
        ({"lease": {"share": "0.1"}}, "share should be a number above 0 and at most 1, not '0.1'"),
        ({"lease": {"from_rate": 0}}, "from_rate should be units per second, a number above 0, or"),
        ({"lease": {"from_rate": float("inf")}}, "from_rate should be units per second"),
        ({"lease": {"from_rate": "9"}}, "from_rate should be units per second"),
        (
            {"lease": {"second": 1}},
            "{'second': 1}: Lease.second: there is no such setting; did you mean 'seconds'?",
        ),
        ({"lease": {5: 1}}, "Lease.5: there is no such setting; known: seconds, share, from_rate"),
        ({"lese": 1}, "rate_limits[3].lese: there is no such setting; did you mean 'lease'?"),
        ({"limits": "5/s lease 1h lease 1s"}, "a lease belongs to the whole rule; write it once"),
        ({"limits": "5/s lease 1s; 9/m"}, "'5/s lease 1s; 9/m': a lease belongs to the whole rule"),
        ({"limits": ["5/s", "9/m lease 1s"]}, "a lease belongs to the whole rule; write it once"),
        (
            {"limits": "5/s lease 1"},
            "rate_limits[3].limits = '5/s lease 1': a lease is a number of seconds",
        ),
        ({"limits": "5/s lease 2h"}, "rate_limits[3].limits = '5/s lease 2h': Lease(seconds=7200,"),
        (
            {"limits": "5/s lease 1s", "lease": 1},
            "rate_limits[3].lease = 1: limits = '5/s lease 1s' also has a lease; remove one",
        ),
        ({"limits": "5 at once lease 1s"}, "a slot is given back when its request ends, so there"),
        ({"limits": ["9/s", Concurrency(5)], "lease": 1}, "so there is nothing to reserve"),
        ({"limits": "unlimited", "lease": 1}, "'unlimited' has no quota to reserve; leave it out"),
        ({"limits": "unlimited lease 1s"}, "'unlimited' has no quota to reserve; leave it out"),
        (
            {"limits": SdkFixedWindow(500, 1, "s"), "lease": 1},
            "the script of an upstash_ratelimit limiter reserves nothing; leave it out",
        ),
    ],
)
def test_a_wrong_lease_is_refused_with_setting_value_and_remedy(
    mapping: dict[str, Any], words: str
) -> None:
    assert words in refusal(**mapping)


def test_a_wrong_name_in_code_is_answered_with_the_right_one() -> None:
    wrong: dict[str, Any] = {"form_rate": 5}
    with pytest.raises(ConfigurationError, match="did you mean 'from_rate'"):
        Lease(**wrong)


# The application's lease


@pytest.mark.parametrize(
    ("limits", "gets_it"),
    [
        ("100/s", True),
        ("99/s", False),
        ("99/s; 10000/minute", False),
        ("200/s; 10000/minute", True),
        ([GCRA(1000, 1, burst=50)], False),
        ("5000/minute; 200 at once", False),
        ("unlimited", False),
        (SdkFixedWindow(500, 1, "s"), False),
    ],
)
def test_the_applications_lease_is_for_limits_of_at_least_100(limits: Any, gets_it: bool) -> None:
    """Smaller quotas have nothing to reserve, and slots and SDK limiters cannot."""
    assert compiled(RateLimitRule("/a", limits), Lease(3)).lease == (Lease(3) if gets_it else None)


def test_a_rules_own_lease_comes_before_the_applications() -> None:
    assert compiled(RateLimitRule("/a", "5/s", lease=1), Lease(3)).lease == Lease(1)
    assert compiled(RateLimitRule("/a", BIG, lease=1), Lease(3)).lease == Lease(1)
    assert compiled(RateLimitRule("/a", BIG, lease=False), Lease(3)).lease is None
    assert compiled(RateLimitRule("/a", BIG)).lease is None
    assert RateLimitRule("/a", "5 at once", lease=False).lease is False


# Tiers


@pytest.mark.parametrize(
    ("own", "application", "limits", "lease"),
    [
        (None, Lease(3), BIG, Lease(3)),
        (None, Lease(3), "99/s", None),
        (None, Lease(3), "5 at once", None),
        (None, Lease(3), f"{BIG} lease 2s", Lease(2)),
        (None, None, "5/s lease 2s", Lease(2)),
        (1, Lease(3), BIG, Lease(1)),
        (1, None, "5/s", Lease(1)),
        (1, None, (SlidingWindow(5, 1), SlidingWindow(9, 60)), Lease(1)),
        (1, None, "unlimited", None),
        (False, Lease(3), BIG, None),
    ],
)
def test_each_tier_gets_the_lease_of_its_rule_or_application(
    own: Any, application: Lease | None, limits: Any, lease: Lease | None
) -> None:
    rule = RateLimitRule("/a", lambda request: limits, lease=own)
    assert tier_of(compiled(rule, application), limits).lease == lease


@pytest.mark.parametrize("limits", ["5 at once", "9/s lease 2s", SdkFixedWindow(500, 1, "s")])
def test_a_tier_that_cannot_have_the_rules_lease_is_a_wrong_tier(limits: Any) -> None:
    rule = RateLimitRule("/a", lambda request: limits, lease=1)
    with pytest.raises(ConfigurationError, match=r"rate_limits\[0\]\.lease = Lease"):
        tier_of(compiled(rule), limits)


# The setting


@pytest.mark.parametrize("given", ["2s", 2, Lease(2), {"seconds": 2}], ids=str)
def test_the_setting_takes_what_a_rule_does(given: Any) -> None:
    assert settings_from({"lease": given}, {}).lease == Lease(2)


@pytest.mark.parametrize("given", [None, False])
def test_there_are_no_leases_unless_they_are_set(given: Any) -> None:
    assert settings_from({}, {}).lease is None
    assert settings_from({"lease": given}, {"UPSTASH_MIDDLEWARE_LEASE": "2s"}).lease is None
    assert settings_from({}, {"UPSTASH_MIDDLEWARE_LEASE": ""}).lease is None


def test_the_environment_sets_the_lease_where_no_setting_does() -> None:
    environ = {"UPSTASH_MIDDLEWARE_LEASE": "2s"}
    assert settings_from({}, environ).lease == Lease(2)
    assert settings_from({"lease": 1}, environ).lease == Lease(1)


@pytest.mark.parametrize(
    ("arguments", "environ", "words"),
    [
        ({"lease": "x"}, {}, r"UPSTASH\['lease'\] = 'x': a lease is a number of seconds"),
        ({"lease": {"shape": 1}}, {}, r"UPSTASH\['lease'\] = .*did you mean 'share'\?"),
        ({}, {"UPSTASH_MIDDLEWARE_LEASE": "5"}, "UPSTASH_MIDDLEWARE_LEASE = '5': a lease is"),
        ({"leases": 1}, {}, r"UPSTASH\['leases'\]: there is no such setting; did you mean 'lease'"),
    ],
)
def test_a_wrong_setting_is_refused(
    arguments: dict[str, Any], environ: dict[str, str], words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        settings_from(arguments, environ, source="UPSTASH")
