"""Rules as users write them, in code and as plain data: what is accepted, what is refused how."""

from __future__ import annotations

from typing import Any

import pytest
from upstash_ratelimit import FixedWindow as SdkFixedWindow

from upstash_middleware.core.identify import client_ip, cookie, header, query
from upstash_middleware.core.ratelimit import (
    FixedWindow,
    RateLimitRule,
    SlidingWindow,
    rule_from_mapping,
)
from upstash_middleware.errors import ConfigurationError


def refusal(**mapping: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        rule_from_mapping({"limits": "1/s", **mapping}, "rate_limits[3]")
    return str(caught.value)


@pytest.mark.parametrize(
    ("field", "function"),
    [
        ("limits", lambda: "2/minute"),
        ("by", lambda: "ada"),
        ("cost", lambda: 1),
        ("when", lambda: True),
        ("when", lambda request, response: True),
        ("settle", lambda response: 1),
    ],
)
def test_a_function_that_cannot_take_the_request_is_refused(field: str, function: Any) -> None:
    """Otherwise it would raise for each request, which then passes unlimited."""
    message = refusal(**{field: function})
    assert message.startswith(f"rate_limits[3].{field} = ")
    assert "it is called with" in message
    assert "'lambda request" in message


def test_functions_may_have_more_parameters_with_defaults() -> None:
    def when(request: Any, least: int = 1) -> bool:
        return bool(request) and bool(least)

    def cost(*_: Any) -> int:
        return 1

    RateLimitRule("/", lambda *_: "1/s", when=when, cost=cost)


def test_a_mapping_makes_the_same_rule_as_code() -> None:
    """Django's settings and TOML say what a RateLimitRule says."""
    data = {"path": "/api", "limits": "10/10s", "methods": ["post"], "by": "client_ip", "cost": 2}
    assert rule_from_mapping(data) == RateLimitRule("/api", "10/10s", methods=("POST",), cost=2)


@pytest.mark.parametrize(
    ("text", "extractor"),
    [
        ("client_ip", client_ip()),
        ("client_ip:2", client_ip(trusted_hops=2)),
        ("client_ip:vercel", client_ip(platform="vercel")),
        ("header:X-API-Key", header("X-API-Key")),
        ("cookie:session", cookie("session")),
        ("query:key", query("key")),
    ],
)
def test_extractors_have_names_in_plain_data(text: str, extractor: object) -> None:
    """TOML holds no functions."""
    assert rule_from_mapping({"limits": "1/s", "by": text}).by == extractor


@pytest.mark.parametrize("limits", [SlidingWindow(10, 10), [SlidingWindow(10, 10)], "10/10s"])
def test_limits_may_be_text_one_or_several(limits: Any) -> None:
    """All of these say the same."""
    assert RateLimitRule("/a", limits).parsed == (SlidingWindow(10, 10),)


def test_rules_are_named_after_what_they_cover() -> None:
    """Names are printable ASCII without colons, whatever the pattern holds."""
    assert RateLimitRule("/p/{id}", "1/s", methods=("GET", "POST")).name == "GET+POST /p/{id}"
    assert RateLimitRule("/f/{rest:path}", "1/s").name == "/f/{rest}"
    assert RateLimitRule("/a:b/ü", "1/s").name == "/a_b/\\xfc"
    assert RateLimitRule(None, "1/s").name == "every request"


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"limits": "10/"}, "rate_limits[3].limits = '10/': '10/' is not a limit; write for"),
        ({"limits": 5}, "rate_limits[3].limits = 5: a limit is text such as '10/10s'"),
        ({"limits": None}, "rate_limits[3].limits = None: a limit is text such as"),
        ({"limits": []}, "rate_limits[3].limits = []: give at least one limit"),
        ({"limits": "5/min; 9/60s"}, "the windows of one rule's limits should differ in length"),
        ({"limits": [FixedWindow(1, 60), SlidingWindow(1, 60)]}, "should differ in length"),
        ({"limits": "5/364d; 9/365d"}, "should differ in length"),
        ({"path": "api"}, "rate_limits[3].path = 'api': path pattern 'api' can never match"),
        ({"path": 5}, "rate_limits[3].path = 5: a path pattern is text"),
        ({"methods": "POST"}, "rate_limits[3].methods = 'POST': this should be a sequence"),
        ({"methods": ["PO ST"]}, "rate_limits[3].methods"),
        ({"methods": [5]}, "rate_limits[3].methods"),
        ({"methods": 5}, "rate_limits[3].methods"),
        ({"by": "header"}, "rate_limits[3].by = 'header': write 'user', 'ip'"),
        ({"by": "user_agent"}, "rate_limits[3].by = 'user_agent': write 'user', 'ip'"),
        ({"by": "client_ip:mars"}, "unknown platform 'mars'; known: vercel, fly"),
        ({"by": "header:a b"}, "rate_limits[3].by = 'header:a b': header('a b'): a name should"),
        ({"by": 5}, "rate_limits[3].by = 5: an extractor such as header('X-API-Key')"),
        ({"by": header}, "call it, as in header('X-API-Key')"),
        ({"by": client_ip}, "call it, as in header('X-API-Key') and client_ip()"),
        ({"name": "a:b"}, "rate_limits[3].name = 'a:b': a name is printable ASCII without colons"),
        ({"name": "ü"}, "rate_limits[3].name"),
        ({"name": 5}, "rate_limits[3].name"),
        ({"name": "x" * 65}, "a name has at most 64 characters"),
        ({"on_error": "ignore"}, "rate_limits[3].on_error = 'ignore': this should be 'open', 'clo"),
        ({"cost": 0}, "rate_limits[3].cost = 0: a whole number from 1"),
        ({"cost": "2"}, "rate_limits[3].cost = '2'"),
        ({"cost": True}, "rate_limits[3].cost = True"),
        ({"cost": 2}, "no request could ever pass SlidingWindow(limit=1, per=1.0); the cost is"),
        ({"hosts": "a.example"}, "rate_limits[3].hosts = 'a.example': this should be a sequence"),
        ({"hosts": ["a b"]}, "rate_limits[3].hosts = ['a b']: this should be a sequence of hosts"),
        ({"hosts": ["*"]}, "rate_limits[3].hosts"),
        ({"bucket": "a:b"}, "rate_limits[3].bucket = 'a:b': a name is printable ASCII"),
        ({"bucket": "a", "shared_prefix": "b"}, "rate_limits[3].bucket = 'a': a shared prefix is"),
        ({"dynamic": 1}, "rate_limits[3].dynamic = 1: this should be True or False"),
        ({"settle": "x"}, "rate_limits[3].settle = 'x': a function of request and response"),
        ({"when": "x"}, "rate_limits[3].when = 'x': a function of the request"),
        (
            {"limit": "1/s"},
            "rate_limits[3].limit: there is no such setting; did you mean 'limits'?",
        ),
    ],
)
def test_what_is_wrong_is_said_with_setting_value_and_remedy(
    mapping: dict[str, Any], words: str
) -> None:
    """At construction, without credentials or network."""
    assert words in refusal(**mapping)


def test_a_rule_without_limits_is_refused() -> None:
    """A forgotten limit would be no limit."""
    with pytest.raises(ConfigurationError, match=r"rate_limits\[0\]\.limits is missing"):
        rule_from_mapping({"path": "/a"})
    with pytest.raises(ConfigurationError, match=r"RateLimitRule\.limits = None"):
        RateLimitRule("/a")


@pytest.mark.parametrize(
    ("name", "right"),
    [("key_func", "by"), ("identifier", "by"), ("key", "by"), ("method", "methods")],
)
def test_a_name_of_another_package_is_answered_with_the_one_it_has_here(
    name: str, right: str
) -> None:
    given: dict[str, Any] = {name: "x"}
    with pytest.raises(ConfigurationError) as raised:
        RateLimitRule("/a", "1/s", **given)
    assert str(raised.value) == (
        f"RateLimitRule.{name}: there is no such setting; did you mean {right!r}?"
    )


def test_what_is_no_mapping_is_refused() -> None:
    """Text in the place of a rule, for instance."""
    with pytest.raises(
        ConfigurationError, match=r"a rule is a mapping such as .*, or a RateLimitRule"
    ):
        rule_from_mapping("10/s")  # type: ignore[arg-type]


def test_a_rule_that_mixes_an_sdk_limiter_with_ours_is_refused() -> None:
    """Its command is its own, so it could not be all or nothing with others."""
    words = refusal(limits=[SdkFixedWindow(1, 60), "1/s"])
    assert "cannot be combined with other limits" in words
    assert RateLimitRule("/a", SdkFixedWindow(1, 60)).parsed
