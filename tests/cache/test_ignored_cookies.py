"""No rule of the cache ignores a cookie that the application needs on every path."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask
from starlette.applications import Starlette
from starlette.middleware.sessions import SessionMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from upstash_middleware import CacheRule, ConfigurationError, asgi, flask, starlette
from upstash_middleware.core.cache.http.cookies import (
    ANALYTICS_COOKIES,
    ignored_cookie_pattern,
    without_cookies,
)
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
    message = r"'s\*' matches 'session', the cookie of .*: the application needs it"
    with pytest.raises(ConfigurationError, match=rf"^cache\[0\]\.ignore_cookies: {message}"):
        start(cache=[RULE])
    with pytest.raises(ConfigurationError, match=rf"^cache_ignore_cookies: {message}"):
        start(cache=[CacheRule("/page")], cache_ignore_cookies=["a", "s*"])
    start(cache=[CacheRule("/page")])


class Middleware:
    """Any other middleware that says which cookie it reads."""

    def __init__(self, app: Any, cookie_name: str) -> None:
        self.app, self.cookie_name = app, cookie_name

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


@pytest.mark.usefixtures("upstash")
@pytest.mark.parametrize("cls", [starlette.CacheMiddleware, asgi.CacheMiddleware])
def test_the_cookie_of_middleware_further_in_is_not_ignored(cls: Any):
    """Starlette's sessions, those of this package, and what names its cookie likewise."""
    for inside in (
        SessionMiddleware(Starlette(), "secret", session_cookie="sid"),
        asgi.SessionMiddleware(Starlette(), "secret" * 6, session_cookie="sid"),
        Middleware(Starlette(), cookie_name="sid"),
    ):
        with pytest.raises(
            ConfigurationError, match=f"'sid', the cookie of {type(inside).__name__}"
        ):
            cls(Middleware(inside, cookie_name="other"), cache=[RULE])
        cls(inside, cache=[CacheRule("/page", ignore_cookies=["other"])])


@pytest.mark.usefixtures("upstash")
@pytest.mark.parametrize("has_lifespan", [True, False])
def test_the_cookie_of_starlettes_sessions_further_out_is_not_ignored(has_lifespan: bool):
    """The cache would take the pages made with a session for those of visitors without cookies."""
    app = Starlette()
    app.add_middleware(starlette.CacheMiddleware, cache=[RULE])
    app.add_middleware(SessionMiddleware, "secret", session_cookie="sid")
    client = TestClient(app)
    start = client.__enter__ if has_lifespan else lambda: client.get("/page")
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=r"'s\*' matches 'sid', the cookie of Session"):
            start()


@pytest.mark.usefixtures("upstash")
@pytest.mark.parametrize("is_inside", [True, False])
@pytest.mark.parametrize("named", [["theme"], ["sid", "theme"], None])
def test_no_rule_shares_the_pages_of_a_session_further_out(named: Any, is_inside: bool):
    """The cache does not see the Vary: Cookie that Starlette adds outside of it."""
    app = Starlette()
    middleware: list[tuple[Any, dict[str, Any]]] = [
        (
            starlette.CacheMiddleware,
            {
                "cache": [
                    CacheRule("/page", vary_cookies=named),
                    CacheRule("/{p}", vary_cookies=[], bypass="cookie:sid"),
                ]
            },
        ),
        (SessionMiddleware, {"secret_key": "secret", "session_cookie": "sid"}),
    ]
    for cls, options in reversed(middleware) if is_inside else middleware:
        app.add_middleware(cls, **options)
    if is_inside or named != ["theme"]:
        with TestClient(app) as client:
            assert client.get("/page").status_code == 404
    else:
        with pytest.raises(ConfigurationError, match=r"^cache\[0\]\.vary_cookies = \('theme',\): "):
            TestClient(app).get("/page")


@pytest.mark.usefixtures("upstash")
def test_a_session_further_out_whose_cookie_is_not_ignored_is_served():
    app = Starlette()
    app.add_middleware(starlette.CacheMiddleware, cache=[RULE])
    app.add_middleware(SessionMiddleware, "secret", session_cookie="login")
    app.add_middleware(Middleware, cookie_name="x")
    with TestClient(app) as client:
        assert [client.get("/page").status_code for _ in range(2)] == [404, 404]


@pytest.mark.parametrize(
    "name", ["session", "sessionid", "csrftoken", "theme", "_gax", "__utmp", "__utmx"]
)
def test_the_list_of_analytics_matches_no_other_cookies(name: str):
    ignored = ignored_cookie_pattern(ANALYTICS_COOKIES, ())
    assert ignored is not None
    headers = Headers.of(cookie=f"{name}=1")
    assert without_cookies(headers, ignored) is headers


def test_nothing_is_copied_for_a_request_without_ignored_cookies():
    ignored = ignored_cookie_pattern(["_ga*"], ())
    assert ignored is not None
    for headers in (Headers.of(host="a"), Headers.of(cookie="a=1; b=2")):
        assert without_cookies(headers, ignored) is headers


def test_a_name_in_linear_time():
    """A pattern with many asterisks and a name that nearly matches."""
    ignored = ignored_cookie_pattern(["*a*a*a*a*a*a*a*a*b"], ())
    assert ignored is not None
    headers = Headers.of(cookie="a" * 8000 + "=1")
    assert without_cookies(headers, ignored) is headers


@pytest.mark.usefixtures("upstash")
def test_nobody_is_advised_to_ignore_the_cookie_of_sessions_further_out(
    caplog: pytest.LogCaptureFixture,
):
    """They are found at the first request."""
    page = Route("/page", lambda _: PlainTextResponse("page"))
    app = Starlette(routes=[page])
    app.add_middleware(starlette.CacheMiddleware, cache=[CacheRule("/page", ttl=60)])
    app.add_middleware(SessionMiddleware, "secret", session_cookie="sid")
    TestClient(app, cookies={"sid": "1"}).get("/page")
    (said,) = [text for text in caplog.messages if "was not stored" in text]
    assert "for the session ('sid'), set user=" in said
    assert "ignore_cookies" not in said


@pytest.mark.usefixtures("upstash")
def test_the_log_says_that_user_raised_and_that_the_request_bypassed_the_cache(
    caplog: pytest.LogCaptureFixture,
):
    """Sessions of the same middleware are loaded with the page, so that user= has none yet."""
    app = Starlette(routes=[Route("/page", lambda _: PlainTextResponse("page"))])
    rule = CacheRule("/page", ttl=60, user=lambda request: request.native["session"].get("user"))
    app.add_middleware(
        starlette.UpstashMiddleware,
        default_limit=None,
        sessions={"secret_key": "secret" * 6},
        cache=[rule],
    )
    answer = TestClient(app).get("/page")
    assert 'detail="a function of the rule failed"' in answer.headers["cache-status"]
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.getMessage() == "cache[0].user raised, so the request bypassed the cache"
    assert record.exc_info is not None
    assert repr(record.exc_info[1]) == "KeyError('session')"
