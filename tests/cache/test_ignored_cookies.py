"""No rule of the cache ignores a cookie that the application needs on every path."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask
from starlette.applications import Starlette

from upstash_middleware import CacheRule, ConfigurationError, flask, starlette
from upstash_middleware.core.cache.http.cookies import ANALYTICS_COOKIES, ignoring, without_cookies
from upstash_middleware.messages import Headers

if TYPE_CHECKING:
    from collections.abc import Callable

RULE = CacheRule("/page", ttl=60, ignore_cookies=["s*"])


def in_starlette(**settings: Any) -> None:
    starlette.UpstashMiddleware(Starlette(), default_limit=None, sessions=True, **settings)


def in_flask(**settings: Any) -> None:
    flask.CacheMiddleware(Flask("shop"), **settings)


@pytest.mark.usefixtures("upstash")
@pytest.mark.parametrize("start", [in_starlette, in_flask])
def test_a_pattern_that_matches_the_cookie_of_the_session_is_an_error_at_startup(
    start: Callable[..., None],
):
    """In Django, tests/django/test_checks.py has the same."""
    message = r"'s\*' matches 'session', the cookie of .*: the application would not get it"
    with pytest.raises(ConfigurationError, match=rf"^cache\[0\]\.ignore_cookies: {message}"):
        start(cache=[RULE])
    with pytest.raises(ConfigurationError, match=rf"^cache_ignore_cookies: {message}"):
        start(cache=[CacheRule("/page")], cache_ignore_cookies=["a", "s*"])
    start(cache=[CacheRule("/page")])


@pytest.mark.parametrize("name", ["session", "sessionid", "csrftoken", "theme", "_gax", "__utmp"])
def test_the_list_of_analytics_matches_no_other_cookies(name: str):
    ignored = ignoring(ANALYTICS_COOKIES, ())
    assert ignored is not None
    headers = Headers.of(cookie=f"{name}=1")
    assert without_cookies(headers, ignored) is headers


def test_nothing_is_copied_for_a_request_without_ignored_cookies():
    ignored = ignoring(["_ga*"], ())
    assert ignored is not None
    for headers in (Headers.of(host="a"), Headers.of(cookie="a=1; b=2")):
        assert without_cookies(headers, ignored) is headers


def test_a_name_in_linear_time():
    """A pattern with many asterisks and a name that nearly matches."""
    ignored = ignoring(["*a*a*a*a*a*a*a*a*b"], ())
    assert ignored is not None
    headers = Headers.of(cookie="a" * 8000 + "=1")
    assert without_cookies(headers, ignored) is headers
